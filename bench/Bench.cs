// Measures streamer and its peers and prints a table: see README.md. Linux only: it needs /proc, sh, cmp and awk.
//
// Read it from top to bottom: the run, what is measured (one function a section), the table, who takes part, and the
// processes and files underneath.

using System.Collections.Concurrent;
using System.Diagnostics;
using System.Net;
using System.Net.Sockets;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;
using Grpc.Core;
using Grpc.Net.Client;
using Streaming;

namespace Streamer.Bench;

static class Program
{
    const string Usage = """
        usage: bench/run [--tiny] [--only SECTION]... [--rounds N] [--beside PROGRAM] [--readme]

          --tiny            few numbers, one round, only the peers at hand: shows that everything still
                            works and is correct; its figures mean nothing
          --only SECTION    numbers, latency, start, calls, link, memory or idle; may be repeated
          --rounds N        rounds of each measurement (default 5; with --tiny 1)
          --beside PROGRAM  measures another build of streamer as well, in turns with this one
          --readme          writes the table into bench/README.md, and its first rows into README.md
        """;

    static readonly (string Name, Action Run)[] sections =
    [
        ("numbers", Numbers), ("latency", Latency), ("start", Start), ("calls", Calls),
        ("link", OverLink), ("memory", Memory), ("idle", Idle),
    ];

    static bool tiny;
    static int rounds;
    static Stack[] stacks = [];

    static int Main(string[] args)
    {
        List<string> only = [];
        string? beside = null;
        var toReadme = false;
        for (var i = 0; i < args.Length; i++)
            switch (args[i])
            {
                case "--tiny":
                    tiny = true;
                    break;
                case "--only" when i + 1 < args.Length && sections.Any(section => section.Name == args[i + 1]):
                    only.Add(args[++i]);
                    break;
                case "--rounds" when i + 1 < args.Length && int.TryParse(args[i + 1], out rounds) && rounds > 0:
                    i++;
                    break;
                case "--beside" when i + 1 < args.Length && File.Exists(args[i + 1]):
                    beside = Path.GetFullPath(args[++i]);
                    break;
                case "--readme":
                    toReadme = true;
                    break;
                default:
                    Console.Error.WriteLine(Usage);
                    return args[i] is "--help" or "-h" ? 0 : 2;
            }
        rounds = rounds > 0 ? rounds : tiny ? 1 : 5;

        // Where a program finds its .NET, and what the peers call their services.
        Environment.SetEnvironmentVariable("DOTNET_ROOT", Path.GetDirectoryName(Environment.ProcessPath));
        Environment.SetEnvironmentVariable("PEER_PACKAGES", "streaming");
        using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, _ => Abort("interrupted"));
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, _ => Abort("terminated"));
        using var watchdog = new Timer(_ => Abort("the run takes too long"), null, tiny ? 600_000 : 3_600_000, Timeout.Infinite);
        try
        {
            var load = File.ReadAllText("/proc/loadavg").Split(' ')[0];
            stacks = [.. Build.Stacks(tiny, beside)];
            foreach (var (name, run) in sections.Where(section => only.Count == 0 || only.Contains(section.Name)))
            {
                Say($"measuring {name}");
                run();
                Child.KillAll();
                Files.Clear();
            }
            Report.Write(stacks, tiny, rounds, load, toReadme);
            return 0;
        }
        catch (Exception e)
        {
            Console.Error.WriteLine($"bench: {(e.GetBaseException() is BenchException known ? known.Message : e)}");
            return 1;
        }
        finally
        {
            Child.KillAll();
            Files.Remove();
        }
    }

    static void Abort(string why)
    {
        Console.Error.WriteLine($"bench: {why}");
        Child.KillAll();
        Files.Remove();
        Environment.Exit(1);
    }

    public static void Say(string what) => Console.Error.WriteLine($"== {DateTime.Now:HH:mm:ss} {what}");

    public static void Require(bool correct, string otherwise)
    {
        if (!correct)
            throw new BenchException(otherwise);
    }

    // -----------------------------------------------------------------------------------------
    // What is measured
    // -----------------------------------------------------------------------------------------

    // A B C A B C …: what changes on the machine in the meantime hits all alike.
    static IEnumerable<Stack> InTurns(IEnumerable<Stack> contestants)
    {
        for (var round = 1; round <= rounds; round++)
        {
            Say($"  round {round} of {rounds}");
            foreach (var stack in contestants)
                yield return stack;
        }
    }

    static Stack[] Streamers(params string[] andPeers) => [.. stacks.Where(stack => !stack.IsPeer || andPeers.Contains(stack.Name))];

    // They end with the section.
    static Dictionary<Stack, Child> Serve(Stack[] contestants) => contestants.ToDictionary(stack => stack, stack => stack.Serve());

    // Whole runs of a client from a file to a file, with its start-up.
    static void Numbers()
    {
        var servers = Serve(stacks);
        foreach (var stack in InTurns(stacks))
        {
            Run(stack.Title, stack, stack.Program, stack.Call("max", servers[stack].Port), stack.Call("greet", servers[stack].Port));
            if (stack == stacks[0])
                Run(Build.Awk, stack, "awk", [Build.AwkMaxima], [Build.AwkGreetings]);
        }

        static void Run(string title, Stack counts, string program, string[] max, string[] greet)
        {
            Time(Figure.OneAnswer, max, counts.OneAnswer, Files.LargestFirst(counts.OneAnswer), Files.Largest(counts.OneAnswer));
            Time(Figure.EveryNumber, max, counts.EveryNumber, Files.Counting(counts.EveryNumber), Files.Counting(counts.EveryNumber));
            Time(Figure.Names, greet, counts.Names, Files.Names(counts.Names), Files.Greetings(counts.Names));

            void Time(Figure figure, string[] arguments, int count, string input, string expected)
            {
                var start = Stopwatch.GetTimestamp();
                using (var client = Child.WithFiles(program, arguments, input, Files.Output))
                    client.End();
                Report.Add(title, figure, count / Stopwatch.GetElapsedTime(start).TotalSeconds);
                Files.Check(expected, title);
            }
        }
    }

    // From the write of a line to the client's stdin to the read of its answer from stdout.
    static void Latency()
    {
        var (warmUp, count) = tiny ? (10, 100) : (500, 5_000);
        var servers = Serve(stacks);
        foreach (var stack in InTurns(stacks))
        {
            using var client = Child.WithPipes(stack.Program, stack.Call("max", servers[stack].Port));
            var times = new double[warmUp + count];
            for (var i = 0; i < times.Length; i++)
            {
                var line = $"{i}";
                var start = Stopwatch.GetTimestamp();
                client.Input.WriteLine(line);
                var answer = client.Output.ReadLine();
                times[i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
                Require(answer == line, $"{stack.Title} answers {answer} to {line}");
            }
            client.Input.Close();
            client.End();
            var sorted = times[warmUp..].Order().ToArray();
            Report.Add(stack.Title, Figure.P50, sorted[(count - 1) * 50 / 100]);
            Report.Add(stack.Title, Figure.P99, sorted[(count - 1) * 99 / 100]);
        }
    }

    // A whole client process, from its start to its exit, for one number.
    static void Start()
    {
        // One server for all, which is as fast at its first call as ever: each stack's own would be measured with its client.
        using var server = (stacks.FirstOrDefault(stack => stack.Name == "go") ?? stacks[0]).Serve();
        // The first time only brings the files into the page cache.
        for (var time = 0; time <= rounds * 4; time++)
            foreach (var stack in stacks)
            {
                var start = Stopwatch.GetTimestamp();
                using var client = Child.WithPipes(stack.Program, stack.Call("max", server.Port));
                client.Input.WriteLine("1");
                client.Input.Close();
                var output = client.Output.ReadToEnd();
                client.End();
                if (time > 0)
                    Report.Add(stack.Title, Figure.Start, Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                Require(output == "1\n", $"{stack.Title} prints {output}");
            }
    }

    // Calls of one message and one answer, 100 at a time, which h2load makes and counts.
    static void Calls()
    {
        if (Build.OnPath("h2load") is not { } h2load)
        {
            Say("  left out: there is no h2load (Debian has it in nghttp2-client)");
            return;
        }
        // The message {1: 7}, with gRPC's prefix: request and answer are the same bytes.
        byte[] message = [0, 0, 0, 0, 2, 8, 7];
        File.WriteAllBytes(Files.Output, message);
        var count = tiny ? 1_000 : 300_000;
        var contestants = Streamers("go", "dotnet");
        var servers = Serve(contestants);
        foreach (var stack in InTurns(contestants))
        {
            // The first calls only bring the server up to its speed.
            Run(stack, count / 4);
            Report.Add(stack.Title, Figure.Calls, Run(stack, count));
        }

        double Run(Stack stack, int count)
        {
            using var load = Child.WithPipes(h2load, ["-c", "4", "-m", "25", "-n", $"{count}", "-d", Files.Output,
                "-H", "content-type: application/grpc", "-H", "te: trailers",
                $"http://127.0.0.1:{servers[stack].Port}/streaming.CalculatorService/FindMaximum"]);
            load.Input.Close();
            var output = load.Output.ReadToEnd();
            load.End();
            foreach (var figure in new[] { $" {count} succeeded,", $" {count} 2xx,", $"({count * message.Length}) data" })
                Require(output.Contains(figure), $"h2load says not \"{figure}\" of {stack.Title} but\n{output}");
            return double.Parse(output.Split(" req/s")[0].Split(' ')[^1]);
        }
    }

    // A client at one end of a link and its server at the other: how much of the link the requests fill.
    static void OverLink()
    {
        var count = tiny ? 100_000 : 10_000_000;
        var contestants = Streamers();
        var servers = Serve(contestants);
        foreach (var stack in InTurns(contestants))
        {
            using var link = new Link(servers[stack].Port);
            var input = Files.LargestFirst(count);
            var start = Stopwatch.GetTimestamp();
            using (var client = Child.WithFiles(stack.Program, stack.Call("max", link.Port), input, Files.Output))
                client.End();
            Report.Add(stack.Title, Figure.Link, link.Sent / Stopwatch.GetElapsedTime(start).TotalSeconds);
            Files.Check(Files.Largest(count), $"{stack.Title}, over a link,");
        }
    }

    // The most memory that a client and its server, both fresh, ever held during a stream whose every number is answered.
    static void Memory()
    {
        var (few, many) = tiny ? (20_000, 200_000) : (5_000_000, 50_000_000);
        foreach (var stack in InTurns(Streamers()))
        {
            Run(stack, few, Figure.ClientFew, Figure.ServerFew);
            Run(stack, many, Figure.ClientMany, Figure.ServerMany);
        }

        static void Run(Stack stack, int count, Figure ofClient, Figure ofServer)
        {
            using var server = stack.Serve();
            using var client = Child.WithFiles(stack.Program, stack.Call("max", server.Port), Files.Counting(count), Files.Output);
            var peak = 0d;
            do
                peak = Math.Max(peak, client.Bytes("VmHWM"));
            while (!client.HasEndedWithin(10));
            client.End();
            Files.Check(Files.Counting(count), stack.Title);
            Report.Add(stack.Title, ofClient, peak);
            Report.Add(stack.Title, ofServer, server.Bytes("VmHWM"));
        }
    }

    // What a server holds for a stream that has had one answer and waits.
    static void Idle()
    {
        var (connections, streams) = tiny ? (3, 20) : (100, 100);
        foreach (var stack in InTurns(Streamers("go")))
        {
            using var server = stack.Serve();
            List<GrpcChannel> channels = [];
            // What the first stream of all loads is not what a stream needs.
            OpenAsync(1).GetAwaiter().GetResult();
            Thread.Sleep(500);
            var before = server.Bytes("VmRSS");
            for (var i = 0; i < connections; i++)
                OpenAsync(streams).GetAwaiter().GetResult();
            Thread.Sleep(tiny ? 100 : 3_000);
            Report.Add(stack.Title, Figure.Idle, (server.Bytes("VmRSS") - before) / (connections * streams));
            foreach (var channel in channels)
                channel.Dispose();

            // Streams on a connection of their own, which live as long as their channel.
            async Task OpenAsync(int count)
            {
                var handler = new SocketsHttpHandler { UseProxy = false };
                var channel = GrpcChannel.ForAddress($"http://127.0.0.1:{server.Port}", new() { HttpHandler = handler });
                channels.Add(channel);
                var client = new CalculatorService.CalculatorServiceClient(channel);
                await Task.WhenAll(Enumerable.Range(0, count).Select(async _ =>
                {
                    var call = client.FindMaximum();
                    await call.RequestStream.WriteAsync(new() { Number = 7 });
                    var answered = await call.ResponseStream.MoveNext().WaitAsync(TimeSpan.FromSeconds(30));
                    Require(answered && call.ResponseStream.Current.Maximum == 7, $"an idle stream of {stack.Title} gets a wrong answer");
                }));
            }
        }
    }
}

sealed class BenchException(string message) : Exception(message);

// ---------------------------------------------------------------------------------------------
// The table
// ---------------------------------------------------------------------------------------------

enum Figure
{
    OneAnswer, EveryNumber, Names, P50, P99, Start, Calls, Link,
    ClientFew, ClientMany, ServerFew, ServerMany, Idle,
}

static class Report
{
    const int RowsInShort = 5, MiB = 1 << 20;

    static readonly Dictionary<(string, Figure), List<double>> samples = [];

    static readonly (string Title, double Unit, Figure[] Figures)[] rows =
    [
        ("one answer, M numbers/s", 1e6, [Figure.OneAnswer]),
        ("every number answered, M numbers/s", 1e6, [Figure.EveryNumber]),
        ("`greet`, M names/s", 1e6, [Figure.Names]),
        ("a line in to its answer out, µs, p50 / p99", 1, [Figure.P50, Figure.P99]),
        ("`echo 1 \\| max`, ms", 1, [Figure.Start]),
        ("short calls, k/s", 1e3, [Figure.Calls]),
        ("over a link of 10 ms and 125 MB/s, MB/s", 1e6, [Figure.Link]),
        ("client's peak memory, MiB, 5 M / 50 M numbers", MiB, [Figure.ClientFew, Figure.ClientMany]),
        ("server's peak memory, MiB, 5 M / 50 M numbers", MiB, [Figure.ServerFew, Figure.ServerMany]),
        ("an idle stream on the server, kB", 1e3, [Figure.Idle]),
    ];

    public static void Add(string title, Figure figure, double value)
    {
        samples.TryAdd((title, figure), []);
        samples[(title, figure)].Add(value);
    }

    // Null where nothing was measured.
    static double? Median(string title, Figure figure) =>
        samples.GetValueOrDefault((title, figure)) is not { } values ? null
        : (values.Order().ElementAt((values.Count - 1) / 2) + values.Order().ElementAt(values.Count / 2)) / 2;

    public static void Write(Stack[] stacks, bool tiny, int rounds, string load, bool toReadme)
    {
        string[] titles = [.. stacks.Select(stack => stack.Title), Build.Awk];
        var about = About(tiny, rounds, load);
        Console.Write(about + Table(titles, rows));
        if (!toReadme)
            return;
        // A reader has no use for what another build does.
        titles = [.. titles.Except(stacks.Where(stack => stack.Name == Build.Beside).Select(stack => stack.Title))];
        Insert(Path.Combine(Build.Folder, "README.md"), about + Table(titles, rows));
        Insert(Path.Combine(Build.Folder, "..", "README.md"), Table(titles, rows[..RowsInShort]));
    }

    static string About(bool tiny, int rounds, string load)
    {
        var cpu = File.ReadLines("/proc/cpuinfo").FirstOrDefault(line => line.StartsWith("model name"))?.Split(": ")[^1] ?? "unknown";
        var text = new StringBuilder($"Measured on {DateTime.UtcNow:yyyy-MM-dd}: medians of {rounds} interleaved rounds; ");
        text.Append($"{Environment.ProcessorCount} cores, {cpu}; {RuntimeInformation.OSDescription}; ");
        text.Append($"{RuntimeInformation.FrameworkDescription}; load before it {load}.\n\n");
        if (tiny)
            text.Append("**A tiny run: it shows that everything works; its figures mean nothing.**\n\n");
        return text.ToString();
    }

    // Rows and columns of which nothing was measured are left out.
    static string Table(string[] titles, (string Title, double Unit, Figure[] Figures)[] rows)
    {
        rows = [.. rows.Where(row => titles.Any(title => Median(title, row.Figures[0]) is not null))];
        titles = [.. titles.Where(title => rows.Any(row => Median(title, row.Figures[0]) is not null))];
        var text = new StringBuilder($"| | {string.Join(" | ", titles)} |\n|---|{string.Concat(titles.Select(_ => "---|"))}\n");
        foreach (var (what, unit, figures) in rows)
            text.Append($"| {what} | {string.Join(" | ", titles.Select(title => Cell(title, unit, figures)))} |\n");
        return text.ToString();

        // In brackets: streamer's figure as a multiple of this one.
        string Cell(string title, double unit, Figure[] figures)
        {
            if (Median(title, figures[0]) is null)
                return "";
            var values = Text(figures.Select(figure => Median(title, figure) / unit));
            var multiples = Text(figures.Select(figure => Median(titles[0], figure) / Median(title, figure)));
            return title == titles[0] ? values : $"{values} ({multiples})";
        }

        static string Text(IEnumerable<double?> values) =>
            string.Join(" / ", values.Select(value => value >= 100 ? $"{value:N0}" : $"{value:G3}"));
    }

    static void Insert(string path, string text)
    {
        const string Mark = "<!-- bench/run --readme writes between two of these lines -->\n";
        if (File.ReadAllText(path).Split(Mark) is not [var before, _, var after])
            throw new BenchException($"{path} has no place for the table");
        File.WriteAllText(path, $"{before}{Mark}\n{text}\n{Mark}{after}");
    }
}

// ---------------------------------------------------------------------------------------------
// Who takes part
// ---------------------------------------------------------------------------------------------

/// <summary>A client and a server of one make, and how many numbers it is given: enough for a second or more.</summary>
sealed record Stack(string Name, string Title, string Program, int OneAnswer, int EveryNumber, bool IsPeer)
{
    /// <summary>Of names, of which each has an answer, it gets no more than of numbers that have.</summary>
    public int Names => Math.Min(EveryNumber, 5_000_000);

    public string[] Call(string command, int port) =>
        IsPeer ? [command, $"127.0.0.1:{port}"] : [command, "--address", $"http://127.0.0.1:{port}"];

    /// <summary>A server of it that accepts connections.</summary>
    public Child Serve()
    {
        // Not every peer can tell which port it was given for 0.
        using var free = new TcpListener(IPAddress.Loopback, 0);
        free.Start();
        var port = ((IPEndPoint)free.LocalEndpoint).Port;
        free.Stop();
        string[] arguments = IsPeer ? ["server", $"{port}"] : ["serve", "--listen", $"http://127.0.0.1:{port}"];
        var server = Child.WithFiles(Program, arguments, "/dev/null", "/dev/null", port);
        while (true)
            try
            {
                using var probe = new TcpClient("127.0.0.1", port);
                return server;
            }
            catch (SocketException)
            {
                Bench.Program.Require(!server.HasEndedWithin(20), $"the server of {Title} does not start");
            }
    }
}

static class Build
{
    public const string Beside = "beside", AwkGreetings = """{print "Hello " $1 "!"}""", AwkMaxima = "NR==1||$1>m{m=$1;print m}";

    /// <summary>It finds the same maxima and makes the same greetings. awk is a name that several programs share.</summary>
    public static readonly string Awk = $"{Path.GetFileName(File.ResolveLinkTarget(OnPath("awk")!, true)?.Name ?? "awk")}, no network";

    public static readonly string Folder =
        typeof(Build).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().Single(about => about.Key == "Folder").Value!;

    public static IEnumerable<Stack> Stacks(bool tiny, string? beside)
    {
        // As many numbers as make start-up small.
        var numbers = tiny ? 100_000 : 20_000_000;
        var streamer = Publish(tiny);
        yield return new("streamer", $"streamer {Version(streamer)}", streamer, numbers, numbers, IsPeer: false);
        if (beside is not null)
            yield return new(Beside, $"streamer {Version(beside)}, beside it", beside, numbers, numbers, IsPeer: false);
        // Peers that are slow get fewer numbers, for about a second or two each.
        (string Name, int OneAnswer, int EveryNumber)[] peers =
        [
            ("go", 2_000_000, 1_000_000), ("cpp", 800_000, 400_000), ("dotnet", 250_000, 150_000),
            ("node", 100_000, 40_000), ("python", 16_000, 12_000),
        ];
        foreach (var (name, oneAnswer, everyNumber) in tiny ? peers.Select(peer => (peer.Name, 2_000, 2_000)) : peers)
        {
            var program = Path.Combine(Folder, "peers", "bin", name);
            // Node's peer is only a download; to compile or install the others takes longer than a tiny run.
            if (!tiny || name == "node" && OnPath("npm") is not null)
                Program.Say(Try(Path.Combine(Folder, "peers", "build"), [name], out _).Trim());
            if (File.Exists(program))
                yield return new(name, File.ReadAllText(program + ".version").Trim(), program, oneAnswer, everyNumber, IsPeer: true);
        }

        static string Version(string program) => Try(program, ["--version"], out _).Trim();
    }

    // Native, but for a tiny run without the minute that its compiler takes.
    static string Publish(bool tiny)
    {
        Program.Say("publishing streamer");
        var artifacts = Path.Combine(Folder, "obj", tiny ? "portable" : "native");
        var output = Path.Combine(artifacts, "out");
        string[] portable = ["-p:PublishAot=false", "-p:PublishReadyToRun=false", "-p:UseAppHost=true", "--self-contained", "false"];
        var log = Try(Environment.ProcessPath!, ["publish", Path.Combine(Folder, "..", "Streamer.csproj"), "-c", "Release",
            "-r", RuntimeInformation.RuntimeIdentifier, "--artifacts-path", artifacts, "-o", output, "-nologo", "-v", "quiet",
            "-p:UseSharedCompilation=false", .. tiny ? portable : ["-p:PublishAot=true"]], out var exitCode);
        Program.Require(exitCode == 0, $"streamer cannot be published:\n{log}");
        return Path.Combine(output, "streamer");
    }

    public static string? OnPath(string program) =>
        Environment.GetEnvironmentVariable("PATH")!.Split(':').Select(folder => Path.Combine(folder, program)).FirstOrDefault(File.Exists);

    /// <summary>Runs a command and gives all that it prints.</summary>
    public static string Try(string program, string[] arguments, out int exitCode)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        })!;
        process.StandardInput.Close();
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd() + error.Result;
        process.WaitForExit();
        exitCode = process.ExitCode;
        return output;
    }
}

// ---------------------------------------------------------------------------------------------
// Processes and files
// ---------------------------------------------------------------------------------------------

/// <summary>A process that is measured.</summary>
sealed class Child : IDisposable
{
    static readonly ConcurrentDictionary<Child, bool> running = [];

    readonly Process process;
    readonly string name;

    Child(ProcessStartInfo start, string name)
    {
        foreach (var variable in start.Environment.Keys.Where(key => key.EndsWith("_proxy", StringComparison.OrdinalIgnoreCase)).ToArray())
            start.Environment.Remove(variable);
        this.name = Path.GetFileName(name);
        process = Process.Start(start)!;
        running[this] = true;
    }

    public StreamWriter Input => process.StandardInput;

    public StreamReader Output => process.StandardOutput;

    /// <summary>Where a server listens.</summary>
    public int Port { get; private init; }

    public static Child WithPipes(string program, string[] arguments) =>
        new(new(program, arguments) { RedirectStandardInput = true, RedirectStandardOutput = true }, program);

    /// <summary>Process only knows pipes, which would make the harness a part of what is measured; exec keeps the process id.</summary>
    public static Child WithFiles(string program, string[] arguments, string input, string output, int port = 0) =>
        new(new("sh", ["-c", $"exec \"$0\" \"$@\" <'{input}' >'{output}'", program, .. arguments]), program) { Port = port };

    public bool HasEndedWithin(int milliseconds) => process.WaitForExit(milliseconds);

    /// <summary>Waits for its end, which must be a good one.</summary>
    public void End()
    {
        process.WaitForExit();
        Program.Require(process.ExitCode == 0, $"{name} exits with {process.ExitCode}");
    }

    /// <summary>A figure of /proc/PID/status; 0 once it has ended.</summary>
    public double Bytes(string figure)
    {
        try
        {
            var line = File.ReadLines($"/proc/{process.Id}/status").FirstOrDefault(line => line.StartsWith(figure));
            return line is null ? 0 : double.Parse(line.Split(':')[1].Replace("kB", "")) * 1024;
        }
        catch (IOException)
        {
            return 0;
        }
    }

    public void Dispose()
    {
        if (!running.TryRemove(this, out _))
            return;
        process.Kill();
        process.WaitForExit();
        process.Dispose();
    }

    public static void KillAll()
    {
        foreach (var child in running.Keys)
            child.Dispose();
    }
}

/// <summary>
/// A network between a client and a server: each direction delays by 5 ms and lets 1 Gbit pass in a second. It is a relay, as
/// `tc netem` needs a kernel module and root.
/// </summary>
sealed class Link : IDisposable
{
    const double BytesPerSecond = 125e6;

    static readonly long delay = Stopwatch.Frequency * 5 / 1000;

    readonly TcpListener listener = new(IPAddress.Loopback, 0);
    long sent;

    public Link(int port)
    {
        listener.Start();
        Start(() =>
        {
            while (true)
            {
                TcpClient near = listener.AcceptTcpClient(), far = new("127.0.0.1", port);
                near.NoDelay = far.NoDelay = true;
                Carry(near, far, count => Interlocked.Add(ref sent, count));
                Carry(far, near, _ => { });
            }
        });
    }

    public int Port => ((IPEndPoint)listener.LocalEndpoint).Port;

    /// <summary>How many bytes clients have sent.</summary>
    public long Sent => Interlocked.Read(ref sent);

    static void Carry(TcpClient from, TcpClient to, Action<int> count)
    {
        var chunks = new BlockingCollection<(byte[] Bytes, long Due)>();
        var reading = Start(() =>
        {
            var free = 0L;
            for (var buffer = new byte[64 * 1024]; from.GetStream().Read(buffer) is > 0 and var size;)
            {
                free = Math.Max(free, Stopwatch.GetTimestamp()) + (long)(size / BytesPerSecond * Stopwatch.Frequency);
                count(size);
                chunks.Add((buffer[..size], free + delay));
                // A router holds no more than about so much; the rest waits in the sender's socket.
                WaitUntil(free - 2 * delay);
            }
        });
        // A connection that one side closes, however it does it, ends for the other side.
        reading.ContinueWith(_ => chunks.CompleteAdding());
        Start(() =>
        {
            using (to)
                foreach (var (bytes, due) in chunks.GetConsumingEnumerable())
                {
                    WaitUntil(due);
                    to.GetStream().Write(bytes);
                }
        });
    }

    static Task Start(Action work) => Task.Factory.StartNew(work, TaskCreationOptions.LongRunning);

    // To the nearest millisecond: to spin for more would take a processor from what is measured.
    static void WaitUntil(long due)
    {
        while (due - Stopwatch.GetTimestamp() > Stopwatch.Frequency / 2000)
            Thread.Sleep(1);
    }

    public void Dispose() => listener.Dispose();
}

/// <summary>What goes in and what must come out.</summary>
static class Files
{
    static readonly DirectoryInfo folder = Directory.CreateTempSubdirectory("streamer-bench-");

    public static readonly string Output = Path.Combine(folder.FullName, "output");

    /// <summary>Every number is a new maximum.</summary>
    public static string Counting(int count) => Lines($"counting-{count}", count, i => $"{i}");

    /// <summary>Only the first is a maximum.</summary>
    public static string LargestFirst(int count) => Lines($"largest-first-{count}", count, i => $"{(i == 1 ? count : i - 1)}");

    public static string Largest(int count) => Lines($"largest-{count}", 1, _ => $"{count}");

    public static string Names(int count) => Lines($"names-{count}", count, i => $"Ada{i}");

    public static string Greetings(int count) => Lines($"greetings-{count}", count, i => $"Hello Ada{i}!");

    static string Lines(string name, int count, Func<int, string> line)
    {
        var path = Path.Combine(folder.FullName, name);
        if (!File.Exists(path))
        {
            using var file = new StreamWriter(path, append: false, new UTF8Encoding(false), 1 << 20);
            for (var i = 1; i <= count; i++)
                file.WriteLine(line(i));
        }
        return path;
    }

    /// <summary>Holds the output against the file that it must be like.</summary>
    public static void Check(string expected, string who)
    {
        var difference = Build.Try("cmp", [Output, expected], out var exitCode);
        Program.Require(exitCode == 0, $"the output of {who} is not right: {difference}");
    }

    public static void Clear()
    {
        foreach (var file in folder.GetFiles())
            file.Delete();
    }

    public static void Remove() => folder.Delete(recursive: true);
}
