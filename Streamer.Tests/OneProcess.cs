using System.Collections.Concurrent;
using System.IO.Pipes;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Runtime.Loader;
using System.Text;
using Microsoft.Win32.SafeHandles;
using Streamer.Tests;

namespace Streamer.Tests
{
    /// <summary>
    /// Runs the tool in a process that many command lines share, one after the other: .NET is started and compiled once, and the tool
    /// loaded anew for each. It is for what options, addresses, certificates and texts come to; streams, signals, descriptors and
    /// terminals have real processes, and so has all where the tool is native, which is just started.
    /// </summary>
    sealed class OneProcess
    {
        static readonly ConcurrentBag<OneProcess> idle = [];
        static readonly SemaphoreSlim room = new(Environment.ProcessorCount);

        readonly Running process;
        readonly TempFolder folder = new();
        readonly FileStream calls, codes;

        OneProcess(string tool)
        {
            (calls, codes) = (Open("call"), Open("code"));
            // Each call is a client that has never been at its server.
            process = Running.StartWith(
            [
                ("DOTNET_STARTUP_HOOKS", typeof(OneProcess).Assembly.Location), ("DOTNET_SYSTEM_NET_SECURITY_DISABLETLSRESUME", "1"),
                ("STREAMER_CALLS", folder["."]), ("STREAMER_TOOL", tool),
            ]);

            // Open in both directions, a pipe has no end.
            FileStream Open(string name) => new(folder.Pipe(name), FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 1);
        }

        static bool Pays => Tool.Command.Arguments is [_] && OperatingSystem.IsLinux();

        static OneProcess Take() => idle.TryTake(out var old) ? old : new(Tool.Command.Arguments[0]);

        /// <summary>Types a line into bash, where `streamer` is the tool.</summary>
        internal static Task<Result> TypeAsync(string line, string address = "")
        {
            (string, string?)[] environment = [("STREAMER_ADDRESS", address)];
            return !Pays ? Tool.TypeAsync(line, environment) : InTurnAsync(async one =>
            {
                // Bash changes its own descriptors for what it does itself: 7 to 9 stay what the caller's are.
                const string streamer = """
                    folder=$1
                    streamer() {
                      printf '%s\0' "${STREAMER_ADDRESS-}" /proc/$BASHPID/fd/{7,8,9} $# "$@" > $folder/call
                      read -r code rested < $folder/code
                      [ $rested = True ] || touch $folder/restless
                      return $code
                    } 7<&0 8>&1 9>&2
                    """;
                return (await Tool.TypeAsync($"{streamer}\n", [one.folder["."]], line, environment), !File.Exists(one.folder["restless"]));
            });
        }

        /// <summary>Runs the tool with some input.</summary>
        internal static Task<Result> RunAsync(string input, params string[] arguments) =>
            Pays ? InTurnAsync(one => one.CallAsync(Encoding.UTF8.GetBytes(input), arguments)) : Tool.RunAsync(input, arguments);

        static async Task<Result> InTurnAsync(Func<OneProcess, Task<(Result, bool Rested)>> call)
        {
            // Each process is compiled once more, but a call that waits for long must not hold up all others.
            var has = await room.WaitAsync(TimeSpan.FromSeconds(1));
            try
            {
                var one = Take();
                var (result, rested) = await call(one);
                if (rested)
                    idle.Add(one);
                else
                    await one.EndProcessAsync();
                return result;
            }
            finally
            {
                if (has)
                    room.Release();
            }
        }

        async Task<(Result, bool Rested)> CallAsync(byte[] input, string[] arguments)
        {
            using AnonymousPipeServerStream stdin = new(PipeDirection.Out), stdout = new(PipeDirection.In), stderr = new(PipeDirection.In);
            AnonymousPipeServerStream[] pipes = [stdin, stdout, stderr];
            var descriptors = pipes.Select(pipe => $"/proc/{Environment.ProcessId}/fd/{pipe.ClientSafePipeHandle.DangerousGetHandle()}");
            string[] call = ["", .. descriptors, $"{arguments.Length}", .. arguments];
            var end = EndAsync();
            await calls.WriteAsync(Encoding.UTF8.GetBytes(string.Concat(call.Select(text => $"{text}\0"))));
            var (output, error, feeding) = (ReadAsync(stdout), ReadAsync(stderr), FeedAsync());
            var (code, rested) = await end.WaitAsync(Tool.Patience);
            // The tool has let go of the other ends, and so does who held them for it.
            foreach (var pipe in pipes)
                pipe.DisposeLocalCopyOfClientHandle();
            await feeding;
            return (new(code, await output, await error), rested);

            async Task FeedAsync()
            {
                await Running.FeedAsync(stdin, [input], () => end.IsCompleted);
                stdin.Dispose();
            }

            static async Task<string> ReadAsync(Stream stream)
            {
                using var reader = new StreamReader(stream, new UTF8Encoding(false), false, -1, leaveOpen: true);
                return await reader.ReadToEndAsync();
            }
        }

        /// <summary>What a call comes to, and whether another may follow. A signal ends the process for good.</summary>
        async Task<(int Code, bool Rested)> EndAsync()
        {
            var reading = Task.Run(() =>
            {
                var text = new StringBuilder();
                while (codes.ReadByte() is var one && one != '\n')
                    text.Append((char)one);
                return text.ToString().Split(' ');
            });
            if (await Task.WhenAny(reading, process.Exited) != reading)
            {
                // So that the thread does not wait for ever.
                codes.WriteByte((byte)'\n');
                return ((await process.EndAsync()).ExitCode, false);
            }
            return (int.Parse((await reading)[0]), bool.Parse((await reading)[1]));
        }

        async Task EndProcessAsync()
        {
            await process.DisposeAsync();
            await calls.DisposeAsync();
            await codes.DisposeAsync();
            folder.Dispose();
        }

        /// <summary>Ends all of them.</summary>
        internal static async Task EndAllAsync()
        {
            foreach (var one in idle)
                await one.EndProcessAsync();
        }
    }

    /// <summary>They end when the tests do.</summary>
    public sealed class OneProcesses : IAsyncDisposable
    {
        public async ValueTask DisposeAsync() => await OneProcess.EndAllAsync();
    }
}

/// <summary>Runs in a process of the tool, before its Main and in its place: one call after the other, each with its caller's descriptors.</summary>
static class StartupHook
{
    public static void Initialize()
    {
        var (folder, tool) = (Environment.GetEnvironmentVariable("STREAMER_CALLS")!, Environment.GetEnvironmentVariable("STREAMER_TOOL")!);
        var input = new FileStream(new SafeFileHandle(dup(0), true), FileAccess.Read);
        _ = Task.Factory.StartNew(() =>
        {
            // To whom nobody will ever write: it is over when the tests are.
            _ = input.ReadByte();
            Environment.Exit(0);
        }, TaskCreationOptions.LongRunning);
        // Who listens to AppDomain.ProcessExit: for each call its end is one.
        var atExit = typeof(AppDomain).GetField("ProcessExit", BindingFlags.Instance | BindingFlags.NonPublic)!;
        // Open in both directions, a pipe has no end.
        using var calls = new FileStream($"{folder}/call", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 1);
        using var codes = new FileStream($"{folder}/code", FileMode.Open, FileAccess.ReadWrite, FileShare.ReadWrite, 0);
        while (true)
        {
            Environment.SetEnvironmentVariable("STREAMER_ADDRESS", ReadText());
            string[] descriptors = [ReadText(), ReadText(), ReadText()];
            var arguments = Enumerable.Range(0, int.Parse(ReadText())).Select(_ => ReadText()).ToArray();
            for (var descriptor = 0; descriptor < 3; descriptor++)
                Redirect(descriptor, descriptors[descriptor]);
            atExit.SetValue(AppDomain.CurrentDomain, null);
            var code = new AssemblyLoadContext(null, isCollectible: true).LoadFromAssemblyPath(tool).EntryPoint!.Invoke(null, [arguments]);
            ((EventHandler?)atExit.GetValue(AppDomain.CurrentDomain))?.Invoke(null, EventArgs.Empty);
            for (var descriptor = 0; descriptor < 3; descriptor++)
                Redirect(descriptor, "/dev/null");
            codes.Write(Encoding.ASCII.GetBytes($"{code} {HasComeToRest()}\n"));
        }

        string ReadText()
        {
            var text = new List<byte>();
            while (calls.ReadByte() is not 0 and var one)
                text.Add((byte)one);
            return Encoding.UTF8.GetString([.. text]);
        }
    }

    // What was left of a call might read the next one's input.
    static bool HasComeToRest()
    {
        for (var looks = 0; looks < 1000; looks++)
        {
            ThreadPool.GetMaxThreads(out var all, out _);
            ThreadPool.GetAvailableThreads(out var resting, out _);
            if (resting == all && ThreadPool.PendingWorkItemCount == 0)
                return true;
            Thread.Sleep(1);
        }
        return false;
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
