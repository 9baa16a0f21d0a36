using System.Diagnostics;
using System.Globalization;
using System.IO.Pipes;
using System.Reflection;
using System.Runtime.InteropServices;

namespace Streamer.Tests;

/// <summary>Starts the real tool as a process. STREAMER_TOOL names another build of it, a native one for example.</summary>
static class Tool
{
    /// <summary>No test waits longer for anything; it is there against hanging, not to measure.</summary>
    public static readonly TimeSpan Patience = TimeSpan.FromSeconds(120);

    /// <summary>The folder of this project, with the snapshots and the peers' scripts.</summary>
    public static readonly string Folder = About("Folder");

    static string About(string key) => typeof(Tool).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().Single(about => about.Key == key).Value!;

    /// <summary>How to start the tool: a file name, and arguments that come before the tool's own.</summary>
    public static (string File, string[] Arguments) Command { get; } =
        (Environment.GetEnvironmentVariable("STREAMER_TOOL") is { Length: > 0 } other ? other : About("Tool")) is var tool && IsManaged(tool) ? ("dotnet", [tool]) : (tool, []);

    static bool IsManaged(string tool) => tool.EndsWith(".dll", StringComparison.Ordinal);

    /// <summary>How many of so many cases to run, or how much of so much input to give: a native tool, which has them all, takes no time.</summary>
    public static int Cases(int many) => Command.Arguments is [] ? many : many / 4;

    /// <summary>Types a line into bash, where `streamer` is the tool, and waits for its end.</summary>
    public static Task<Result> TypeAsync(string line, params (string Name, string? Value)[] environment) =>
        TypeAsync("""tool=("$@"); streamer() { "${tool[@]}" "$@"; };""", [Command.File, .. Command.Arguments], line, environment);

    /// <param name="prelude">What `streamer` is.</param>
    /// <param name="arguments">What is "$@" there.</param>
    public static async Task<Result> TypeAsync(string prelude, string[] arguments, string line, (string Name, string? Value)[] environment)
    {
        // .NET's children ignore SIGPIPE, as nobody's shell does: `yes` would complain where it should just end.
        await using var shell = Running.StartProcess("env", ["--default-signal=PIPE", Programs.Need("bash"), "-c", $"{prelude} {line}", "bash", .. arguments], environment);
        shell.Input.Close();
        return await shell.EndAsync();
    }

    /// <summary>Runs the tool with all of its input at hand, and waits for its end.</summary>
    public static Task<Result> RunAsync(string input, params string[] arguments) => RunAsync(Encoding.UTF8.GetBytes(input), arguments);

    /// <inheritdoc cref="RunAsync(string, string[])"/>
    public static Task<Result> RunAsync(byte[] input, params string[] arguments) => RunAsync([input], arguments);

    /// <summary>Runs the tool with input that comes in pieces, so that its reads end where these do.</summary>
    public static async Task<Result> RunAsync(byte[][] pieces, params string[] arguments)
    {
        await using var tool = Running.Start(arguments);
        return await tool.EndAsync(pieces);
    }
}

/// <summary>What a process left behind.</summary>
record Result(int ExitCode, string Output, string Error)
{
    /// <summary>The form that snapshots keep.</summary>
    public override string ToString() => $"exit code: {ExitCode}\n--- stdout\n{Output}--- stderr\n{Error}";
}

/// <summary>A running process of the tool, or of a peer.</summary>
sealed class Running : IAsyncDisposable
{
    readonly Process process;
    readonly Task<string> error;

    Running(ProcessStartInfo start)
    {
        process = Process.Start(start)!;
        error = process.StandardError.ReadToEndAsync();
    }

    /// <summary>Starts the tool.</summary>
    public static Running Start(params string[] arguments) => StartWith([], arguments);

    /// <summary>Starts the tool with some environment variables set (null unsets one).</summary>
    public static Running StartWith((string Name, string? Value)[] environment, params string[] arguments)
    {
        var (file, first) = Tool.Command;
        return StartProcess(file, [.. first, .. arguments], environment);
    }

    /// <summary>Starts the tool by another program.</summary>
    /// <param name="before">That one's arguments that come before the tool and its own.</param>
    public static Running StartBy(string program, string[] before, params string[] arguments)
    {
        var (file, first) = Tool.Command;
        return StartProcess(program, [.. before, file, .. first, .. arguments]);
    }

    /// <summary>Starts the tool by a line of bash that has it and its arguments as "$@".</summary>
    public static Running StartInBash(string line, params string[] arguments) => StartBy("bash", ["-c", line, "bash"], arguments);

    /// <summary>Starts any program, or skips the test where it is missing: there is no other way to start one.</summary>
    public static Running StartProcess(string file, string[] arguments, params (string Name, string? Value)[] environment)
    {
        var start = new ProcessStartInfo(Programs.Need(file), arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
            StandardInputEncoding = new UTF8Encoding(false),
            StandardOutputEncoding = new UTF8Encoding(false),
            StandardErrorEncoding = new UTF8Encoding(false),
        };
        start.Environment.Remove("STREAMER_ADDRESS");
        foreach (var (name, value) in environment)
            start.Environment[name] = value;
        return new(start);
    }

    public int Id => process.Id;
    public StreamWriter Input => process.StandardInput;
    public StreamReader Output => process.StandardOutput;
    public bool HasExited => process.HasExited;
    public Task Exited => process.WaitForExitAsync();

    /// <summary>The memory that the process has in use now, in bytes.</summary>
    public long Memory
    {
        get
        {
            process.Refresh();
            return process.WorkingSet64;
        }
    }

    /// <summary>The most memory that the process has had in use so far, in MiB.</summary>
    public int PeakMemory => int.Parse(
        File.ReadLines($"/proc/{Id}/status").Single(line => line.StartsWith("VmHWM:", StringComparison.Ordinal)).AsSpan(6).Trim().TrimEnd(" kB"),
        CultureInfo.InvariantCulture) / 1024;

    /// <summary>Writes a line and flushes it.</summary>
    public async Task WriteLineAsync(string line)
    {
        await Input.WriteAsync(line + "\n");
        await Input.FlushAsync();
    }

    /// <summary>How many bytes of its input the process has not read yet.</summary>
    public int UnreadInput => Unread((PipeStream)Input.BaseStream);

    static int Unread(PipeStream pipe) => ioctl(pipe.SafePipeHandle, FIONREAD, out var unread) == 0 ? unread : 0;

    const int FIONREAD = 0x541B;

    [DllImport("libc")]
    static extern int ioctl(SafeHandle file, nuint request, out int value);

    /// <summary>
    /// Whether some processes have nothing to do until time or somebody else gives them something: all their threads sleep, and
    /// none has run between two looks. A busy machine keeps them from running, but not from being ready to.
    /// </summary>
    public static async Task<bool> AreAtRestAsync(params Running[] processes)
    {
        var before = Look();
        await Task.Delay(20);
        return before is not null && before == Look();

        string? Look()
        {
            try
            {
                var threads = processes.SelectMany(process => Directory.GetDirectories($"/proc/{process.Id}/task")).ToDictionary(thread => thread, thread => File.ReadAllLines($"{thread}/status"));
                return !threads.Values.All(status => status.Contains("State:\tS (sleeping)")) ? null
                    : string.Concat(threads.Select(thread => $"{thread.Key} {string.Concat(thread.Value.Where(line => line.Contains("_ctxt_switches:")))}\n"));
            }
            catch (IOException)
            {
                // A thread has ended meanwhile.
                return null;
            }
        }
    }

    /// <summary>The next line of stdout; null at its end.</summary>
    public Task<string?> ReadLineAsync() => Output.ReadLineAsync().WaitAsync(Tool.Patience);

    /// <summary>Writes a line and takes its answer.</summary>
    public async Task TurnAsync(string line, string answer)
    {
        await WriteLineAsync(line);
        Assert.Equal(answer, await ReadLineAsync());
    }

    /// <summary>The next address that a server says it listens at.</summary>
    public async Task<string> ReadAddressAsync()
    {
        const string ready = "listening on ";
        var line = await ReadLineAsync();
        return line?.StartsWith(ready) == true ? line[ready.Length..] : throw new InvalidOperationException($"the server did not start: {line} {await EndAsync()}");
    }

    /// <summary>Writes all of the input and closes it; a process that ends before it has read all is fine.</summary>
    public async Task FeedAsync(params byte[][] pieces)
    {
        if (await FeedAsync((PipeStream)Input.BaseStream, pieces, () => HasExited))
            Input.Close();
    }

    /// <summary>Writes pieces, each when the one before has been read, so that the other side's reads end where these writes do.</summary>
    /// <returns>Whether the other side was there to the end.</returns>
    public static async Task<bool> FeedAsync(PipeStream input, byte[][] pieces, Func<bool> isOver)
    {
        try
        {
            foreach (var (i, piece) in pieces.Index())
            {
                while (i > 0 && Unread(input) > 0 && !isOver())
                    await Task.Delay(1);
                await input.WriteAsync(piece);
            }
            return true;
        }
        catch (IOException)
        {
            return false;
        }
    }

    /// <summary>Writes a number a line until nobody reads them any more.</summary>
    public async Task FeedNumbersAsync(int first)
    {
        try
        {
            for (var i = first; ; i++)
                await Input.WriteAsync($"{i}\n");
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
        }
    }

    /// <summary>Sends a signal by its name.</summary>
    public void Signal(string name) => Signal(Id, name);

    /// <summary>Sends a signal to any process.</summary>
    public static void Signal(int process, string name) => _ = kill(process, name switch
    {
        "HUP" => 1, "INT" => 2, "KILL" => 9, "TERM" => 15,
        "CONT" => OperatingSystem.IsLinux() ? 18 : 19,
        "STOP" => OperatingSystem.IsLinux() ? 19 : 17,
        _ => throw new ArgumentException(name),
    });

    [DllImport("libc")]
    static extern int kill(int process, int signal);

    /// <summary>Feeds the process, and waits for its end.</summary>
    public async Task<Result> EndAsync(params byte[][] pieces)
    {
        var feeding = FeedAsync(pieces);
        var result = await EndAsync();
        await feeding;
        return result;
    }

    /// <summary>Waits for the process to end and gives what was not read of its output yet.</summary>
    public async Task<Result> EndAsync()
    {
        var output = await Output.ReadToEndAsync().WaitAsync(Tool.Patience);
        await process.WaitForExitAsync().WaitAsync(Tool.Patience);
        return new(process.ExitCode, output, await error.WaitAsync(Tool.Patience));
    }

    public async ValueTask DisposeAsync()
    {
        if (!process.HasExited)
            process.Kill(entireProcessTree: true);
        await process.WaitForExitAsync();
        process.Dispose();
    }
}

/// <summary>A running `streamer serve` on free ports.</summary>
sealed class RunningServer : IAsyncDisposable
{
    FreePort? port;

    RunningServer(Running process, string[] addresses) => (Process, Addresses) = (process, addresses);

    /// <summary>In MiB, for what is done to a server thousands of times: several times as much would be in use if something of each stayed.</summary>
    public const int MemoryLimit = 256;

    public Running Process { get; }

    /// <summary>The endpoints that it printed when it was ready.</summary>
    public string[] Addresses { get; }

    public string Address => Addresses[0];
    public int Port => new Uri(Address).Port;

    /// <summary>Serves at a port of 127.0.0.1 where nobody else will, also when it no longer listens.</summary>
    public static async Task<RunningServer> StartAsync(params string[] arguments)
    {
        var port = new FreePort();
        var server = await StartAsync(1, ["--listen", port.Address, .. arguments]);
        server.port = port;
        return server;
    }

    /// <summary>Serves with these arguments, and waits for as many lines as there are endpoints.</summary>
    public static Task<RunningServer> StartAsync(int endpoints, params string[] arguments) => StartWithAsync([], endpoints, arguments);

    /// <summary>Starts a server with some environment variables set.</summary>
    public static async Task<RunningServer> StartWithAsync((string Name, string? Value)[] environment, int endpoints, params string[] arguments)
    {
        var process = Running.StartWith(environment, ["serve", .. arguments]);
        var addresses = new string[endpoints];
        for (var i = 0; i < endpoints; i++)
            addresses[i] = await process.ReadAddressAsync();
        return new(process, addresses);
    }

    public async ValueTask DisposeAsync()
    {
        await Process.DisposeAsync();
        port?.Dispose();
    }
}

/// <summary>A server that all tests share which do not end it, count what it has open or measure it.</summary>
public sealed class SharedServer : IAsyncLifetime
{
    RunningServer server = null!;

    public string Address => server.Address;
    public int Port => server.Port;

    public async ValueTask InitializeAsync() => server = await RunningServer.StartAsync();

    public ValueTask DisposeAsync() => server.DisposeAsync();
}

/// <summary>A test waits for what must have happened: never for a time, and never without end.</summary>
static class Wait
{
    /// <summary>Waits until something is so.</summary>
    public static Task UntilAsync(Func<bool> isSo, Func<string> otherwise) => UntilAsync(() => Task.FromResult(isSo()), otherwise);

    /// <inheritdoc cref="UntilAsync(Func{bool}, Func{string})"/>
    public static async Task UntilAsync(Func<Task<bool>> isSo, Func<string> otherwise)
    {
        for (var clock = Stopwatch.StartNew(); !await isSo(); await Task.Delay(50))
            Assert.True(clock.Elapsed < Tool.Patience, otherwise());
    }

    /// <summary>
    /// Tries with more and more seconds until they were enough. Where a deadline is to pass after something has happened,
    /// nobody knows for how long a busy machine may put that off.
    /// </summary>
    /// <param name="enough">Tries, and tells whether what was to come first did.</param>
    public static async Task ForEnoughAsync(Func<int, Task<bool>> enough)
    {
        var seconds = 1;
        while (!await IsSoAsync(() => enough(seconds)))
            Assert.True((seconds *= 2) < Tool.Patience.TotalSeconds, $"{seconds / 2} s were not enough");
    }

    /// <summary>Tries again and again what the tool gives a moment only, until a busy machine was quick enough.</summary>
    public static Task UntilInTimeAsync(Func<Task<bool>> tries, string otherwise) => UntilAsync(() => IsSoAsync(tries), () => otherwise);

    static async Task<bool> IsSoAsync(Func<Task<bool>> tries)
    {
        try
        {
            return await tries();
        }
        catch (IOException)
        {
            // The other side was gone already.
            return false;
        }
    }
}

/// <summary>A port at which nobody listens. The system gives it to nobody, and only who asks for it by its number may listen there.</summary>
sealed class FreePort : IDisposable
{
    readonly Socket socket = new(AddressFamily.InterNetwork, SocketType.Stream, ProtocolType.Tcp);

    public FreePort() => socket.Bind(new IPEndPoint(IPAddress.Loopback, 0));

    public int Number => ((IPEndPoint)socket.LocalEndPoint!).Port;

    public string Address => $"http://127.0.0.1:{Number}";

    public void Dispose() => socket.Dispose();
}

/// <summary>A folder that is gone after the test.</summary>
sealed class TempFolder : IDisposable
{
    readonly DirectoryInfo folder = Directory.CreateTempSubdirectory("streamer-");

    /// <summary>The path of something in it.</summary>
    public string this[string name] => Path.Combine(folder.FullName, name);

    /// <summary>Writes a file and gives its path.</summary>
    public string Write(string name, string text)
    {
        File.WriteAllText(this[name], text);
        return this[name];
    }

    /// <summary>Makes a named pipe and gives its path.</summary>
    public string Pipe(string name) => mkfifo(this[name], 0b110_000_000) == 0 ? this[name] : throw new IOException(this[name]);

    [DllImport("libc")]
    static extern int mkfifo(string path, uint mode);

    public void Dispose() => folder.Delete(recursive: true);
}
