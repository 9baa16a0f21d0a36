using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Streamer.Tests;
using Xunit.Sdk;
using Xunit.v3;

[assembly: TestCollectionOrderer(typeof(LongestFirst))]
[assembly: AssemblyFixture(typeof(SharedServer))]
[assembly: AssemblyFixture(typeof(Skipped))]
[assembly: AssemblyFixture(typeof(OneProcesses))]

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
}

/// <summary>What holds for this process before its first test.</summary>
static class Suite
{
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

/// <summary>The other programs that tests are made of.</summary>
static class Programs
{
    /// <summary>Where exec would find a program; null where it is missing.</summary>
    public static string? Find(string name, Func<string, bool>? fits = null) =>
        (name.Contains('/') ? "/" : Environment.GetEnvironmentVariable("PATH") ?? "").Split(':').Select(folder => Path.Combine(folder, name))
            .FirstOrDefault(file => File.Exists(file) && access(file, 1) == 0 && fits?.Invoke(file) != false);

    /// <summary>The same, but the running test is skipped where it is missing.</summary>
    public static string Need(string name)
    {
        var file = Find(name);
        Skipped.Unless(file is not null, name);
        return file;
    }

    [DllImport("libc")]
    static extern int access(string path, int mode);
}

/// <summary>Rows of a theory that have one value each.</summary>
[AttributeUsage(AttributeTargets.Method)]
sealed class RowsAttribute(params object?[] values) : DataAttribute
{
    public override ValueTask<IReadOnlyCollection<ITheoryDataRow>> GetData(MethodInfo testMethod, DisposalTracker disposalTracker) =>
        new([.. values.Select(value => new TheoryDataRow(value))]);

    public override bool SupportsDiscoveryEnumeration() => true;
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
