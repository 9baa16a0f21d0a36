using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Streamer.Tests;
using Xunit;
using Xunit.Sdk;
using Xunit.v3;

[assembly: TestCollectionOrderer(typeof(LongestFirst))]
[assembly: AssemblyFixture(typeof(Skipped))]

namespace Streamer.Tests;

/// <summary>
/// Most tests wait most of the time: for a process to start, for a peer that has vanished to be missed. So many more run at a
/// time than there are processors (xunit.runner.json), those that wait for minutes begin first, and what cannot bear
/// company says so (<see cref="TestClassAttribute.DisableParallelization"/>).
/// </summary>
sealed class LongestFirst : ITestCollectionOrderer
{
    static readonly string[] classes = [nameof(DeadPeers), nameof(Drain), nameof(Hostile), nameof(Streaming), nameof(Adapter), nameof(WireClient)];

    public IReadOnlyCollection<T> OrderTestCollections<T>(IReadOnlyCollection<T> collections) where T : ITestCollection =>
        [.. collections.OrderByDescending(collection => classes.Reverse().ToList().FindIndex(name => collection.TestCollectionDisplayName.Contains($".{name} ")))];

    [ModuleInitializer]
    internal static void Prepare()
    {
        // Some tests hold a thread each, and the others must not wait until the pool has seen that it needs more.
        ThreadPool.SetMinThreads(64, 64);
        // A shell that runs this in the background, or nohup, has SIGINT and SIGHUP ignored, and what is started here would inherit that.
        const int hangUp = 1, interrupt = 2;
        if (!OperatingSystem.IsWindows())
            _ = (signal(hangUp, 0), signal(interrupt, 0));
    }

    [DllImport("libc")]
    static extern nint signal(int number, nint handler);
}

/// <summary>Skips tests that this machine cannot run, and says at the end how many and what they need.</summary>
public sealed class Skipped : IDisposable
{
    static readonly ConcurrentDictionary<string, int> needs = [];

    /// <summary>Skips the running test where something is missing.</summary>
    /// <param name="need">What to install, or else what is needed, in one line.</param>
    public static void Unless([DoesNotReturnIf(false)] bool has, string need)
    {
        if (!has)
            needs.AddOrUpdate(need, 1, (_, count) => count + 1);
        Assert.SkipUnless(has, need);
    }

    public void Dispose()
    {
        if (!needs.IsEmpty)
            TestContext.Current.SendDiagnosticMessage($"skipped: {needs.Values.Sum()}, which is no fault: {string.Join("; ", needs.OrderByDescending(need => need.Value).Select(need => $"{need.Value} need {need.Key}"))}");
    }
}
