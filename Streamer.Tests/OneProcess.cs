using System.Collections.Concurrent;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Runtime.Loader;
using System.Text;
using Microsoft.Win32.SafeHandles;
using Streamer.Tests;

namespace Streamer.Tests
{
    /// <summary>
    /// Types lines into bash where `streamer` is the tool, but in a process that many lines share, one after the other: .NET is
    /// started and compiled once, and the tool loaded anew for each. That loses nothing of what a command line comes to, and costs a
    /// tenth. A native tool is just started.
    /// </summary>
    public sealed class OneProcess : IAsyncDisposable
    {
        static readonly ConcurrentBag<(Running Process, TempFolder Folder)> idle = [];
        static readonly SemaphoreSlim room = new(Environment.ProcessorCount);

        internal static async Task<Result> TypeAsync(string line, string address = "")
        {
            (string, string?)[] environment = [("STREAMER_ADDRESS", address)];
            if (Tool.Command.Arguments is not [var tool] || !OperatingSystem.IsLinux())
                return await Tool.TypeAsync(line, environment);
            await room.WaitAsync();
            try
            {
                var one = idle.TryTake(out var old) ? old : Start(tool);
                // Bash changes its own descriptors for what it does itself: 7 to 9 stay what the caller's are.
                const string streamer = """
                    folder=$1; streamer() { printf '%s\0' $BASHPID "${STREAMER_ADDRESS-}" $# "$@" > $folder/call; read -r code < $folder/code; return $code; } 7<&0 8>&1 9>&2;
                    """;
                var result = await Tool.TypeAsync(streamer, [one.Folder["."]], line, environment);
                idle.Add(one);
                return result;
            }
            finally
            {
                room.Release();
            }
        }

        static (Running Process, TempFolder Folder) Start(string tool)
        {
            var folder = new TempFolder();
            folder.Pipe("call");
            folder.Pipe("code");
            return (Running.StartWith([("DOTNET_STARTUP_HOOKS", typeof(OneProcess).Assembly.Location), ("STREAMER_CALLS", folder["."]), ("STREAMER_TOOL", tool)]), folder);
        }

        public async ValueTask DisposeAsync()
        {
            foreach (var (process, folder) in idle)
            {
                await process.DisposeAsync();
                folder.Dispose();
            }
        }
    }
}

/// <summary>Runs in a process of the tool, before its Main and in its place: one call after the other, each with its caller's descriptors.</summary>
static class StartupHook
{
    public static void Initialize()
    {
        var (folder, tool) = (Environment.GetEnvironmentVariable("STREAMER_CALLS")!, Environment.GetEnvironmentVariable("STREAMER_TOOL")!);
        var input = new FileStream(new SafeFileHandle(dup(0), true), FileAccess.Read);
        _ = Task.Run(() =>
        {
            // To whom nobody will ever write: it is over when the tests are.
            _ = input.ReadByte();
            Environment.Exit(0);
        });
        // Who listens to AppDomain.ProcessExit: for each call its end is one.
        var atExit = typeof(AppDomain).GetField("ProcessExit", BindingFlags.Instance | BindingFlags.NonPublic)!;
        // Open in both directions, a pipe has no end.
        using var calls = new FileStream($"{folder}/call", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 1);
        using var codes = new FileStream($"{folder}/code", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 0);
        while (true)
        {
            var caller = ReadText();
            Environment.SetEnvironmentVariable("STREAMER_ADDRESS", ReadText());
            var arguments = Enumerable.Range(0, int.Parse(ReadText())).Select(_ => ReadText()).ToArray();
            for (var descriptor = 0; descriptor < 3; descriptor++)
                Redirect(descriptor, $"/proc/{caller}/fd/{7 + descriptor}");
            atExit.SetValue(AppDomain.CurrentDomain, null);
            var code = new AssemblyLoadContext(null, isCollectible: true).LoadFromAssemblyPath(tool).EntryPoint!.Invoke(null, [arguments]);
            ((EventHandler?)atExit.GetValue(AppDomain.CurrentDomain))?.Invoke(null, EventArgs.Empty);
            for (var descriptor = 0; descriptor < 3; descriptor++)
                Redirect(descriptor, "/dev/null");
            codes.Write(Encoding.ASCII.GetBytes($"{code}\n"));
        }

        string ReadText()
        {
            var text = new List<byte>();
            while (calls.ReadByte() is not 0 and var one)
                text.Add((byte)one);
            return Encoding.UTF8.GetString([.. text]);
        }
    }

    static void Redirect(int descriptor, string path)
    {
        var file = open(path, descriptor == 0 ? 0 : 1);
        _ = dup2(file, descriptor);
        _ = close(file);
    }

    [DllImport("libc")]
    static extern int open(string path, int flags);

    [DllImport("libc")]
    static extern int dup(int descriptor);

    [DllImport("libc")]
    static extern int dup2(int descriptor, int at);

    [DllImport("libc")]
    static extern int close(int descriptor);
}
