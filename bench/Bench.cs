// Measures streamer and its peers and prints a table: see README.md. Linux only: it needs /proc, sh and awk.
//
// Read it from top to bottom: the run, what is measured (one function a section), the report, how the
// contestants are built, and the processes and files underneath.

using System.Buffers;
using System.Buffers.Text;
using System.Collections.Concurrent;
using System.Diagnostics;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Sockets;
using System.Reflection;
using System.Runtime.InteropServices;
using System.Text;

namespace Streamer.Bench;

static class Program
{
    const string Usage = """
        usage: bench/run [--tiny] [--only SECTION]... [--runs N] [--before COMMIT] [--readme]

          --tiny           few numbers, few rounds, only the peers at hand: shows that everything still
                           works and is correct; its figures mean nothing
          --only SECTION   numbers, latency, startup, calls, link, memory, idle or many; may be repeated
          --runs N         rounds of each measurement (default 5; with --tiny 1)
          --before COMMIT  measures the streamer of that commit as well, in turns with this one
          --readme         writes the report to its place in bench/README.md as well
        """;

    static readonly (string Name, Action Run)[] sections =
        [("numbers", Numbers), ("latency", Latency), ("startup", StartUp), ("calls", Calls), ("link", OverLink), ("memory", Memory), ("idle", Idle), ("many", Many)];

    static bool tiny;
    static int runs;
    static Stack[] stacks = [];

    static int Main(string[] args)
    {
        List<string> only = [];
        string? before = null;
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
                case "--runs" when i + 1 < args.Length && int.TryParse(args[i + 1], out runs) && runs > 0:
                    i++;
                    break;
                case "--before" when i + 1 < args.Length:
                    before = args[++i];
                    break;
                case "--readme":
                    toReadme = true;
                    break;
                default:
                    Console.Error.WriteLine(Usage);
                    return args[i] is "--help" or "-h" ? 0 : 2;
            }
        runs = runs > 0 ? runs : tiny ? 1 : 5;

        // Each stream of a child may block a thread.
        ThreadPool.SetMinThreads(512, 16);
        using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, _ => Child.Abort("interrupted"));
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, _ => Child.Abort("terminated"));
        using var watchdog = new Timer(_ => Child.Abort("the run takes too long"), null, TimeSpan.FromMinutes(tiny ? 10 : 60), Timeout.InfiniteTimeSpan);
        try
        {
            var load = File.ReadAllText("/proc/loadavg").Split(' ')[0];
            stacks = [.. Build.Stacks(tiny, before)];
            foreach (var (name, run) in sections.Where(section => only.Count == 0 || only.Contains(section.Name)))
            {
                Say($"measuring {name}");
                run();
                Files.Clear();
            }
            var report = Report.Write(stacks, tiny, runs, load);
            Console.Write(report);
            if (toReadme)
                Report.Insert(report, Path.Combine(Build.Folder, "README.md"));
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

    public static void Say(string what) => Console.Error.WriteLine($"== {DateTime.Now:HH:mm:ss} {what}");

    // -----------------------------------------------------------------------------------------
    // What is measured
    // -----------------------------------------------------------------------------------------

    // Whole runs of a client from a file to a file, with its start-up, while its server has been up for a while.
    static void Numbers()
    {
        using var servers = new Servers(stacks);
        Round(runs, stacks, stack =>
        {
            Run(stack.Name, Figure.OneAnswer, stack.OneAnswer, stack.Program, stack.Call("max", servers[stack]));
            Run(stack.Name, Figure.EveryNumber, stack.EveryNumber, stack.Program, stack.Call("max", servers[stack]));
            Run(stack.Name, Figure.Names, stack.Names, stack.Program, stack.Call("greet", servers[stack]));
        }, () =>
        {
            foreach (var (name, script) in Awk.Maxima)
            {
                Run(name, Figure.OneAnswer, stacks[0].OneAnswer, "awk", script);
                Run(name, Figure.EveryNumber, stacks[0].EveryNumber, "awk", script);
            }
            Run(Awk.AsTyped, Figure.Names, stacks[0].Names, "awk", Awk.Greetings);
        });

        static void Run(string name, Figure figure, int count, string program, params string[] arguments)
        {
            var (input, expected) = figure switch
            {
                Figure.OneAnswer => (Files.LargestFirst(count), Files.Largest(count)),
                Figure.EveryNumber => (Files.Counting(count), Files.Counting(count)),
                _ => (Files.Names(count), Files.Greetings(count)),
            };
            var start = Stopwatch.GetTimestamp();
            using (var client = Child.WithFiles(program, arguments, input, Files.Output))
                client.End();
            Samples.Add(name, figure, count / Stopwatch.GetElapsedTime(start).TotalSeconds);
            Files.Check(Files.Output, expected, name);
        }
    }

    // From the write of a line to the client's stdin to the read of its answer from stdout.
    static void Latency()
    {
        var (warmUp, count) = tiny ? (10, 100) : (500, 5_000);
        using var servers = new Servers(stacks);
        Round(runs, stacks, stack =>
        {
            Run(stack, "greet", Figure.GreetP50, Figure.GreetP99, i => $"Ada{i}", i => $"Hello Ada{i}!");
            Run(stack, "max", Figure.MaxP50, Figure.MaxP99, i => $"{i}", i => $"{i}");
        });

        void Run(Stack stack, string command, Figure p50, Figure p99, Func<int, string> request, Func<int, string> answer)
        {
            using var client = Child.WithPipes(stack.Program, stack.Call(command, servers[stack]));
            var times = new double[warmUp + count];
            for (var i = 0; i < times.Length; i++)
            {
                var (line, expected) = (Encoding.ASCII.GetBytes(request(i) + "\n"), Encoding.ASCII.GetBytes(answer(i) + "\n"));
                var start = Stopwatch.GetTimestamp();
                client.Write(line);
                var got = client.ReadLine();
                times[i] = Stopwatch.GetElapsedTime(start).TotalMicroseconds;
                Require(got.SequenceEqual(expected), $"{stack.Name} answers {Encoding.UTF8.GetString(got)} to {request(i)}");
            }
            client.Close();
            client.End();
            var sorted = times[warmUp..].Order().ToArray();
            Samples.Add(stack.Name, p50, sorted[(count - 1) * 50 / 100]);
            Samples.Add(stack.Name, p99, sorted[(count - 1) * 99 / 100]);
        }
    }

    // A whole client process, from its start to its exit, for one number; and the least that .NET can do.
    static void StartUp()
    {
        var empty = Build.Empty();
        // One server for all, which is as fast at its first call as ever: each stack's own would be measured with its client.
        using var server = new Server(stacks.FirstOrDefault(stack => stack.Name == "go") ?? stacks[0]);
        // The first round only brings the files into the page cache.
        for (var round = 0; round <= (tiny ? 2 : 20); round++)
        {
            Run(Report.EmptyDotnet, empty, [], "");
            foreach (var stack in stacks)
                Run(stack.Name, stack.Program, stack.Call("max", server), "1\n");

            void Run(string name, string program, string[] arguments, string expected)
            {
                var start = Stopwatch.GetTimestamp();
                using var client = Child.WithPipes(program, arguments);
                if (expected.Length > 0)
                    client.Write("1\n"u8);
                client.Close();
                var output = client.ReadToEnd();
                client.End();
                if (round > 0)
                    Samples.Add(name, Figure.StartUp, Stopwatch.GetElapsedTime(start).TotalMilliseconds);
                Require(output == expected, $"{name} prints {output}");
            }
        }
    }

    // Calls of one message and one answer, 100 at a time, which h2load makes and counts.
    static void Calls()
    {
        if (Build.OnPath("h2load") is not { } h2load)
        {
            Build.LeftOut.Add("calls: there is no h2load (Debian has it in nghttp2-client)");
            return;
        }
        var count = tiny ? 1_000 : 300_000;
        Stack[] contestants = [.. stacks.Where(stack => !stack.IsPeer || stack.Name is "go" or "dotnet" or "dotnet-aot")];
        using var servers = new Servers(contestants);
        Round(runs, contestants, stack =>
        {
            // The first calls only bring the server up to its speed.
            Run(stack, count / 4);
            Samples.Add(stack.Name, Figure.Calls, Run(stack, count));
        });

        double Run(Stack stack, int count)
        {
            using var load = Child.WithPipes(h2load, ["-c", "4", "-m", "25", "-n", $"{count}", "-d", Files.Message, "-H", "content-type: application/grpc", "-H", "te: trailers",
                $"http://127.0.0.1:{servers[stack].Port}/streaming.CalculatorService/FindMaximum"]);
            load.Close();
            var output = load.ReadToEnd();
            load.End();
            foreach (var figure in new[] { $" {count} succeeded,", $" {count} 2xx,", $"({count * Files.Seven.Length}) data" })
                Require(output.Contains(figure, StringComparison.Ordinal), $"short calls to {stack.Name}: h2load does not say \"{figure.Trim()}\" but{output.ReplaceLineEndings(" ").Split("requests:")[^1]}");
            return double.Parse(output.Split(" req/s")[0].Split(' ')[^1]);
        }
    }

    // A client of ours at one end of a link and a server at the other: how much of it the requests fill.
    static void OverLink()
    {
        var count = tiny ? 100_000 : 10_000_000;
        Stack[] clients = [.. stacks.Where(stack => stack.Name is Build.Streamer or Build.Native)];
        Stack[] peers = [.. stacks.Where(stack => stack.Name is "go" or "dotnet")];
        using var servers = new Servers([.. clients, .. peers]);
        Round(runs, clients, client =>
        {
            Run(client, client, Figure.LinkOwn);
            foreach (var peer in peers)
                Run(client, peer, peer.Name == "go" ? Figure.LinkGo : Figure.LinkDotnet);
        });

        void Run(Stack client, Stack server, Figure figure)
        {
            using var link = new Link(servers[server].Port);
            var start = Stopwatch.GetTimestamp();
            using (var process = Child.WithFiles(client.Program, client.Call("max", link.Port), Files.LargestFirst(count), Files.Output))
                process.End();
            Samples.Add(client.Name, figure, link.Sent / 1e6 / Stopwatch.GetElapsedTime(start).TotalSeconds);
            Files.Check(Files.Output, Files.Largest(count), $"{client.Name}, over a link to {server.Name},");
        }
    }

    // The most memory that a client and its server, both fresh, ever held during a stream.
    static void Memory()
    {
        var (few, many) = tiny ? (10_000, 200_000) : (1_000_000, 50_000_000);
        foreach (var stack in stacks.Where(stack => !stack.IsPeer))
            foreach (var (count, isFew) in new[] { (few, true), (many, false) })
                for (var round = 0; round < (isFew ? runs : 1); round++)
                {
                    Run(stack, Files.LargestFirst(count), Files.Largest(count), isFew ? (Figure.ClientFewOne, Figure.ServerFewOne) : (Figure.ClientManyOne, Figure.ServerManyOne));
                    Run(stack, Files.Counting(count), Files.Counting(count), isFew ? (Figure.ClientFewEvery, Figure.ServerFewEvery) : (Figure.ClientManyEvery, Figure.ServerManyEvery));
                }

        static void Run(Stack stack, string input, string expected, (Figure Client, Figure Server) figures)
        {
            using var server = new Server(stack);
            using var client = Child.WithFiles(stack.Program, stack.Call("max", server), input, Files.Output);
            var peak = 0d;
            do
                peak = Math.Max(peak, client.MiB("VmHWM"));
            while (!client.HasEndedWithin(10));
            client.End();
            Files.Check(Files.Output, expected, stack.Name);
            Samples.Add(stack.Name, figures.Client, peak);
            Samples.Add(stack.Name, figures.Server, server.Process.MiB("VmHWM"));
        }
    }

    // What a server holds for a stream that has had one answer and waits.
    static void Idle()
    {
        var (connections, streams) = tiny ? (3, 20) : (100, 100);
        Round(Math.Min(runs, 3), [.. stacks.Where(stack => !stack.IsPeer || stack.Name == "go")], stack =>
        {
            using var server = new Server(stack);
            // What the first stream of all loads is not what a stream needs.
            using (new IdleStreams(server.Port, 1, 1))
                Thread.Sleep(500);
            var before = server.Process.MiB("VmRSS");
            using var idle = new IdleStreams(server.Port, connections, streams);
            Thread.Sleep(tiny ? 100 : 3_000);
            Samples.Add(stack.Name, Figure.IdleBytes, (server.Process.MiB("VmRSS") - before) * (1 << 20) / (connections * streams));
        });
    }

    // Client processes that have all begun are let go at once; the time of each is until its own end.
    static void Many()
    {
        var (clients, count) = tiny ? (10, 1_000) : (200, 50_000);
        var stack = stacks[0];
        using var server = new Server(stack);
        var started = new Child?[clients];
        try
        {
            Parallel.For(0, clients, new() { MaxDegreeOfParallelism = Environment.ProcessorCount * 2 }, i =>
            {
                var client = started[i] = Child.WithPipes(stack.Program, stack.Call("max", server));
                client.Write(Files.Line(First(i)));
                Require(client.ReadLine().SequenceEqual(Files.Line(First(i))), $"client {i} of many gets a wrong first answer");
            });
            using var go = new ManualResetEventSlim();
            var inputs = started.Select((_, i) => Files.Lines(First(i) + 1, count - 1)).ToArray();
            var starts = 0L;
            var times = started.Select((client, i) => Task.Factory.StartNew(() =>
            {
                go.Wait();
                var writing = Task.Factory.StartNew(() =>
                {
                    client!.Write(inputs[i]);
                    client.Close();
                }, TaskCreationOptions.LongRunning);
                var output = new byte[inputs[i].Length];
                client!.ReadExactly(output);
                Require(client.ReadToEnd() == "" && output.AsSpan().SequenceEqual(inputs[i]), $"client {i} of many gets wrong answers");
                var time = Stopwatch.GetElapsedTime(starts).TotalSeconds;
                writing.Wait();
                client.End();
                return time;
            }, TaskCreationOptions.LongRunning)).ToArray();
            starts = Stopwatch.GetTimestamp();
            go.Set();
            foreach (var time in Task.WhenAll(times).GetAwaiter().GetResult())
                Samples.Add(stack.Name, Figure.ManySeconds, time);
        }
        finally
        {
            foreach (var client in started)
                client?.Dispose();
        }

        // Each has numbers of its own, so that an answer on the wrong stream shows.
        static long First(int client) => 1_000_000 + client * 1_000_003L;
    }

    // A B C A B C …: what changes on the machine in the meantime hits all alike.
    static void Round(int rounds, Stack[] contestants, Action<Stack> measure, Action? andThen = null)
    {
        for (var round = 1; round <= rounds; round++)
        {
            foreach (var stack in contestants)
                measure(stack);
            andThen?.Invoke();
            Say($"  round {round} of {rounds}");
        }
    }

    public static void Require(bool correct, string otherwise)
    {
        if (!correct)
            throw new BenchException(otherwise);
    }
}

sealed class BenchException(string message) : Exception(message);

// ---------------------------------------------------------------------------------------------
// The report
// ---------------------------------------------------------------------------------------------

enum Figure
{
    OneAnswer, EveryNumber, Names, GreetP50, GreetP99, MaxP50, MaxP99, StartUp, Calls, LinkOwn, LinkGo, LinkDotnet, IdleBytes, ManySeconds,
    ClientFewOne, ServerFewOne, ClientManyOne, ServerManyOne, ClientFewEvery, ServerFewEvery, ClientManyEvery, ServerManyEvery,
}

static class Samples
{
    static readonly Dictionary<(string, Figure), List<double>> all = [];

    public static void Add(string name, Figure figure, double value)
    {
        if (!all.TryGetValue((name, figure), out var values))
            all[(name, figure)] = values = [];
        values.Add(value);
    }

    /// <summary>NaN where nothing was measured.</summary>
    public static double Median(string? name, Figure figure) =>
        name is null || all.GetValueOrDefault((name, figure)) is not { } values ? double.NaN
        : (values.Order().ElementAt((values.Count - 1) / 2) + values.Order().ElementAt(values.Count / 2)) / 2;

    public static bool Any(params Figure[] figures) => all.Keys.Any(key => figures.Contains(key.Item2));

    public static double Largest(string name, Figure figure) => all.GetValueOrDefault((name, figure))?.Max() ?? double.NaN;
}

static class Report
{
    public const string EmptyDotnet = "an empty `dotnet` program";

    static readonly string[] ours = [Build.Streamer, Build.Native];
    static readonly Figure[] latencies = [Figure.GreetP50, Figure.GreetP99, Figure.MaxP50, Figure.MaxP99];
    static readonly StringBuilder text = new();

    public static string Write(Stack[] stacks, bool tiny, int runs, string load)
    {
        var cpu = File.ReadLines("/proc/cpuinfo").FirstOrDefault(line => line.StartsWith("model name", StringComparison.Ordinal))?.Split(": ")[^1] ?? $"{RuntimeInformation.OSArchitecture}";
        Line($"Measured on {DateTime.UtcNow:yyyy-MM-dd} with `bench/run`: medians of {runs} interleaved round{(runs == 1 ? "" : "s")}; {Environment.ProcessorCount} cores, {cpu}; {RuntimeInformation.OSDescription}; {RuntimeInformation.FrameworkDescription}; load before it {load}.");
        if (tiny)
            Line("\n**A tiny run: it shows that everything works; its figures mean nothing.**");
        foreach (var reason in Build.LeftOut)
            Line($"\nLeft out: {reason}.");
        InShort(stacks);
        Stacks(stacks);
        OverLink();
        Bars();
        return text.ToString();
    }

    /// <summary>Puts a report between the two marks of a file.</summary>
    public static void Insert(string report, string path)
    {
        const string Mark = "<!-- bench/run --readme writes between two of these lines -->\n";
        if (File.ReadAllText(path).Split(Mark) is not [var before, _, var after])
            throw new BenchException($"{path} has no place for the report");
        File.WriteAllText(path, $"{before}{Mark}\n{report}\n{Mark}{after}");
    }

    // What the project's README quotes.
    static void InShort(Stack[] stacks)
    {
        if (!Samples.Any(Figure.OneAnswer, Figure.MaxP50, Figure.StartUp))
            return;
        Line("\n| | one answer, M numbers/s | every number answered, M numbers/s | `greet`, M names/s | µs a line, `max`, p50 / p99 | ms for `echo 1 \\| max` |");
        Line("|---|---|---|---|---|---|");
        Row(Build.Native, Build.Native);
        Row(Build.Streamer, Build.Streamer);
        foreach (var (name, how) in new[] { ("go", ""), ("cpp", ""), ("dotnet", "plain ") })
            if (stacks.FirstOrDefault(stack => stack.Name == name) is { } peer)
                Row($"{how}{peer.About.Split(',')[0]}", name);
        Row($"{Awk.AsTyped}, no network", Awk.AsTyped);

        static void Row(string title, string name)
        {
            Line(title, Millions(Figure.OneAnswer), Millions(Figure.EveryNumber), Millions(Figure.Names), Pair(Figure.MaxP50, Figure.MaxP99, figure => Text(name, figure)), Text(name, Figure.StartUp));

            string Millions(Figure figure) => Text(name, figure) == "" ? "" : $"{Samples.Median(name, figure) / 1e6:0.0#}";
        }
    }

    static void Stacks(Stack[] stacks)
    {
        if (!Samples.Any(Figure.OneAnswer, Figure.GreetP50, Figure.StartUp, Figure.Calls, Figure.IdleBytes))
            return;
        Line($"\nIn brackets: how many times as good {Build.Streamer}, is.\n");
        Line("| | one answer, numbers/s | every number answered, numbers/s | `greet`, names/s | µs a line, `greet`, p50 / p99 | µs a line, `max`, p50 / p99 | ms for `echo 1 \\| max` | short calls/s | bytes an idle stream |");
        Line("|---|---|---|---|---|---|---|---|---|");
        foreach (var stack in stacks)
            Row($"{stack.Name}: {stack.About}", stack.Name, stack);
        foreach (var (name, _) in Awk.Maxima)
            Row($"{name}, no network", name);
        Row(EmptyDotnet, EmptyDotnet);

        static void Row(string title, string name, Stack? stack = null)
        {
            Line(title, Cell(Figure.OneAnswer, stack?.OneAnswer), Cell(Figure.EveryNumber, stack?.EveryNumber), Cell(Figure.Names, stack?.Names),
                Pair(Figure.GreetP50, Figure.GreetP99, figure => Cell(figure)), Pair(Figure.MaxP50, Figure.MaxP99, figure => Cell(figure)),
                Cell(Figure.StartUp), Cell(Figure.Calls), Cell(Figure.IdleBytes));

            string Cell(Figure figure, int? of = null)
            {
                var (value, ours) = (Samples.Median(name, figure), Samples.Median(Build.Streamer, figure));
                var ratio = Kind(figure).MoreIsBetter ? ours / value : value / ours;
                return $"{Text(figure, value)}{(double.IsNaN(value) || of is null ? "" : $" of {of:N0}")}{(double.IsNaN(ratio) || name == Build.Streamer ? "" : $" ({ratio:0.0#})")}";
            }
        }
    }

    static void OverLink()
    {
        if (!Samples.Any(Figure.LinkOwn))
            return;
        Line($"\nOver a link of 10 ms and 1 Gbit/s, MB/s of {Link.BytesPerSecond / 1e6}:\n");
        Line("| client | to its own server | to go | to dotnet |");
        Line("|---|---|---|---|");
        foreach (var client in ours)
            Line(client, Text(client, Figure.LinkOwn), Text(client, Figure.LinkGo), Text(client, Figure.LinkDotnet));
    }

    static void Bars()
    {
        Line("\n| bar | measured | ratio | target | at least | |");
        Line("|---|---|---|---|---|---|");
        Bar(Build.Native, Awk.AsTyped, Figure.OneAnswer, 5, 4);
        Bar(Build.Native, Awk.AsTyped, Figure.EveryNumber, 4.5, 4);
        Bar(Build.Streamer, Awk.AsTyped, Figure.OneAnswer, 3.5, 2.7);
        Bar(Build.Streamer, Awk.AsTyped, Figure.EveryNumber, 3.5, 3);
        foreach (var streamer in ours)
            Bar(streamer, Awk.AsTyped, Figure.Names, 0.6, 0.4);
        foreach (var streamer in ours)
            foreach (var figure in latencies)
                Bar(streamer, new[] { "go", "cpp" }.Where(peer => !double.IsNaN(Samples.Median(peer, figure))).MinBy(peer => Samples.Median(peer, figure)), figure, 1);
        Bar(Build.Native, "go", Figure.StartUp, 1.5, 2);
        Bar(Build.Streamer, EmptyDotnet, Figure.StartUp, 4, 6);
        foreach (var (streamer, plain) in new[] { (Build.Streamer, "dotnet"), (Build.Native, "dotnet-aot") })
        {
            Bar(streamer, plain, Figure.Calls, 1, 0.95);
            Bar(streamer, "go", Figure.Calls, 1.25, 1.1);
        }
        foreach (var streamer in ours)
        {
            var own = Samples.Median(streamer, Figure.LinkOwn);
            Ratio($"{Kind(Figure.LinkOwn).What}, {streamer} against the link", Figure.LinkOwn, own, Link.BytesPerSecond / 1e6, 0.8, 0.5);
            Ratio($"{Kind(Figure.LinkOwn).What}, {streamer} with its own server against go's", Figure.LinkOwn, own, Samples.Median(streamer, Figure.LinkGo), 1);
        }
        foreach (var streamer in ours)
            Bar(streamer, "go", Figure.IdleBytes, 0.85, 1);
        foreach (var (now, before, start) in new[] { (Build.Streamer, Build.Before, 1.1), (Build.Native, Build.BeforeNative, 1.25) })
        {
            Bar(now, before, Figure.OneAnswer, 0.95);
            Bar(now, before, Figure.EveryNumber, 0.95);
            foreach (var figure in latencies)
                Bar(now, before, figure, 1.1);
            Bar(now, before, Figure.StartUp, start);
        }
        foreach (var streamer in new[] { Build.Streamer, Build.Native, Build.Before, Build.BeforeNative })
        {
            Growth(streamer, "client's memory, one answer", Figure.ClientFewOne, Figure.ClientManyOne);
            Growth(streamer, "server's memory, one answer", Figure.ServerFewOne, Figure.ServerManyOne);
            Growth(streamer, "client's memory, every number answered", Figure.ClientFewEvery, Figure.ClientManyEvery);
            Growth(streamer, "server's memory, every number answered", Figure.ServerFewEvery, Figure.ServerManyEvery);
            var peak = Math.Max(Samples.Largest(streamer, Figure.ClientManyOne), Samples.Largest(streamer, Figure.ClientManyEvery));
            Row($"client's peak memory, {streamer}", $"{peak:0.0} MiB", double.NaN, "< 64 MiB", "", peak < 64 ? "met" : "missed", peak);
        }
        Ratio("many clients at once, the slowest against the median", Figure.ManySeconds, Samples.Largest(Build.Streamer, Figure.ManySeconds), Samples.Median(Build.Streamer, Figure.ManySeconds), 3);
    }

    static (string What, string Unit, bool MoreIsBetter) Kind(Figure figure) => figure switch
    {
        Figure.OneAnswer => ("one answer", "numbers/s", true),
        Figure.EveryNumber => ("every number answered", "numbers/s", true),
        Figure.Names => ("`greet`", "names/s", true),
        Figure.GreetP50 => ("line in to line out, `greet`, p50", "µs", false),
        Figure.GreetP99 => ("line in to line out, `greet`, p99", "µs", false),
        Figure.MaxP50 => ("line in to line out, `max`, p50", "µs", false),
        Figure.MaxP99 => ("line in to line out, `max`, p99", "µs", false),
        Figure.StartUp => ("start of a client", "ms", false),
        Figure.Calls => ("short calls", "calls/s", true),
        Figure.LinkOwn or Figure.LinkGo or Figure.LinkDotnet => ("over a link", "MB/s", true),
        Figure.IdleBytes => ("an idle stream on the server", "bytes", false),
        Figure.ManySeconds => ("many clients at once", "s", false),
        _ => throw new ArgumentOutOfRangeException(nameof(figure)),
    };

    // Empty where nothing was measured.
    static string Text(Figure figure, double value) => Kind(figure).Unit switch
    {
        _ when double.IsNaN(value) => "",
        "numbers/s" or "names/s" or "calls/s" => $"{Math.Round(value / 100) * 100:N0}",
        "ms" or "MB/s" => $"{value:N1}",
        "s" => $"{value:N2}",
        _ => $"{value:N0}",
    };

    static string Text(string name, Figure figure) => Text(figure, Samples.Median(name, figure));

    static string Pair(Figure one, Figure other, Func<Figure, string> cell) => cell(one) == "" ? "" : $"{cell(one)} / {cell(other)}";

    static void Bar(string ours, string? theirs, Figure figure, double target, double? least = null) =>
        Ratio($"{Kind(figure).What}, {ours} against {theirs}", figure, Samples.Median(ours, figure), Samples.Median(theirs, figure), target, least);

    static void Ratio(string bar, Figure figure, double ours, double theirs, double target, double? least = null)
    {
        var (_, unit, moreIsBetter) = Kind(figure);
        var ratio = ours / theirs;
        var sign = moreIsBetter ? "≥" : "≤";
        Row(bar, $"{Text(figure, ours)} {unit} against {Text(figure, theirs)}", ratio, $"{sign} {target}", least is null ? "" : $"{sign} {least}", Reaches(target) ? "met" : Reaches(least) ? "at least" : "missed", ratio);

        bool Reaches(double? bar) => moreIsBetter ? ratio >= bar : ratio <= bar;
    }

    static void Growth(string ours, string what, Figure few, Figure many)
    {
        var (before, after) = (Samples.Median(ours, few), Samples.Median(ours, many));
        Row($"{what}, {ours}: growth", $"{before:0.0} to {after:0.0} MiB: {after - before:0.0} MiB", double.NaN, "< 8 MiB", "", after - before < 8 ? "met" : "missed", after - before);
    }

    static void Row(string bar, string measured, double ratio, string target, string least, string verdict, double known)
    {
        if (!double.IsNaN(known))
            Line($"| {bar} | {measured} | {(double.IsNaN(ratio) ? "" : ratio.ToString("0.00"))} | {target} | {least} | {verdict} |");
    }

    // A row of a table, unless nothing of it was measured.
    static void Line(string title, params string[] cells)
    {
        if (cells.Any(cell => cell != ""))
            Line($"| {title} | {string.Join(" | ", cells)} |");
    }

    static void Line(string line) => text.Append(line).Append('\n');
}

// ---------------------------------------------------------------------------------------------
// The contestants
// ---------------------------------------------------------------------------------------------

/// <summary>A client and a server of one make, and how many numbers it is given: enough for a second or more.</summary>
sealed record Stack(string Name, string About, string Program, int OneAnswer, int EveryNumber, bool IsPeer)
{
    /// <summary>Of names, of which each has an answer, it gets no more than of numbers that have.</summary>
    public int Names => Math.Min(EveryNumber, 5_000_000);

    public string[] Serve(int port) => IsPeer ? ["server", $"{port}"] : ["serve", "--listen", $"http://127.0.0.1:{port}"];

    public string[] Call(string command, Server server) => Call(command, server.Port);

    public string[] Call(string command, int port) => IsPeer ? [command, $"127.0.0.1:{port}"] : [command, "--address", $"http://127.0.0.1:{port}"];
}

static class Awk
{
    public const string Greetings = """{print "Hello " $1 "!"}""";

    public static readonly string AsTyped = $"{Make()} as typed";

    /// <summary>As one would type it, and one that takes several numbers a line as max does.</summary>
    public static readonly (string Name, string Script)[] Maxima =
    [
        (AsTyped, "NR==1||$1>m{m=$1;print m}"),
        ($"{Make()} for many numbers a line", "{for(i=1;i<=NF;i++) if(!n++||$i>m) print m=$i}"),
    ];

    // awk is a name that several programs share.
    static string Make()
    {
        var program = Build.OnPath("awk") ?? throw new BenchException("there is no awk");
        var version = Build.Try(program, ["-W", "version"]).Split('\n')[0].Split(' ', ',').FirstOrDefault(word => word.Length > 0 && char.IsAsciiDigit(word[0]));
        return $"{File.ResolveLinkTarget(program, returnFinalTarget: true)?.Name ?? "awk"} {version}".Trim();
    }
}

static class Build
{
    public const string Streamer = "streamer, ReadyToRun", Native = "streamer, native", Before = "before, ReadyToRun", BeforeNative = "before, native";

    public static readonly string Folder = typeof(Build).Assembly.GetCustomAttributes<AssemblyMetadataAttribute>().Single(about => about.Key == "Folder").Value!;

    /// <summary>What could not be measured, and why.</summary>
    public static readonly List<string> LeftOut = [];

    public static IEnumerable<Stack> Stacks(bool tiny, string? before)
    {
        var root = Path.Combine(Folder, "..");
        foreach (var stack in Streamers(tiny, root, Try("git", ["-C", root, "describe", "--always", "--dirty", "--exclude=*"]).Trim(), Path.Combine(Folder, "obj"), Streamer, Native))
            yield return stack;
        if (before is not null)
            foreach (var stack in Streamers(tiny, Sources(root, before), Try("git", ["-C", root, "rev-parse", "--short", before]).Trim(), Files.Folder, Before, BeforeNative))
                yield return stack;
        // Peers that are slow get fewer numbers, for about a second or two each.
        foreach (var (name, one, every) in new[]
        {
            ("go", 2_000_000, 1_000_000), ("cpp", 800_000, 400_000), ("node", 100_000, 40_000),
            ("python", 16_000, 12_000), ("dotnet", 100_000, 80_000), ("dotnet-aot", 250_000, 150_000),
        })
        {
            var program = Path.Combine(Folder, "peers", "bin", name);
            // Node's peer is only a download; to compile or install the others takes longer than a tiny run.
            if (!tiny || name == "node" && OnPath("npm") is not null)
            {
                Program.Say($"building the peer {name}");
                var line = Try(Path.Combine(Folder, "peers", "build"), [name]).Trim();
                if (line.StartsWith("left out ", StringComparison.Ordinal))
                    LeftOut.Add(line["left out ".Length..]);
            }
            else if (!File.Exists(program))
                LeftOut.Add($"{name}: not built (bench/peers/build {name})");
            if (File.Exists(program))
                yield return new(name, File.ReadAllText(program + ".version").Trim(), program, tiny ? 2_000 : one, tiny ? 2_000 : every, IsPeer: true);
        }
    }

    static IEnumerable<Stack> Streamers(bool tiny, string sources, string commit, string into, string name, string native)
    {
        // As many numbers as make start-up small.
        var numbers = tiny ? 100_000 : 40_000_000;
        var project = Path.Combine(sources, "Streamer.csproj");
        // As its packages are built, but for a tiny run without the minute that their compilers take.
        string[] options = ["-p:_IsPacking=true", "-p:PublishAot=false", $"-p:PublishReadyToRun={!tiny}"];
        yield return new(name, commit, Publish(name, project, "streamer", into, options) ?? throw new BenchException(LeftOut[^1]), numbers, numbers, IsPeer: false);
        if (tiny)
            LeftOut.Add($"{name} and {native} are not compiled ahead of time, and the latter is left out");
        else if (Publish(native, project, "streamer", into, ["-p:_IsPacking=true", "-p:PublishAot=true"]) is { } program)
            yield return new(native, commit, program, numbers, numbers, IsPeer: false);
    }

    // What a commit holds, in a temporary folder: the repository has no worktree to forget.
    static string Sources(string repository, string commit)
    {
        var folder = Directory.CreateDirectory(Path.Combine(Files.Folder, "before")).FullName;
        var log = Try("sh", ["-c", "git -C \"$0\" archive \"$1\" | tar -x -C \"$2\"", repository, commit, folder], out var exitCode);
        Program.Require(exitCode == 0, $"--before {commit}: {log.Split('\n')[0]}");
        return folder;
    }

    public static string? OnPath(string program) =>
        Environment.GetEnvironmentVariable("PATH")!.Split(':').Select(folder => Path.Combine(folder, program)).FirstOrDefault(File.Exists);

    /// <summary>A program that does nothing.</summary>
    public static string Empty()
    {
        var project = Directory.CreateDirectory(Path.Combine(Folder, "obj", "empty")).FullName;
        File.WriteAllText(Path.Combine(project, "empty.csproj"), """<Project Sdk="Microsoft.NET.Sdk"><PropertyGroup><OutputType>Exe</OutputType><TargetFramework>net10.0</TargetFramework></PropertyGroup></Project>""");
        File.WriteAllText(Path.Combine(project, "empty.cs"), "return 0;");
        return Publish("empty", Path.Combine(project, "empty.csproj"), "empty", Path.Combine(Folder, "obj"), ["-p:PublishReadyToRun=true", "--self-contained", "false"]) ?? throw new BenchException(LeftOut[^1]);
    }

    // Null, with the reason among those left out, where it does not work.
    static string? Publish(string name, string project, string program, string into, string[] options)
    {
        var output = Path.Combine(into, $"published-{name.Replace(", ", "-")}");
        Program.Say($"publishing {name}");
        string[] arguments = ["publish", project, "-c", "Release", "-r", RuntimeInformation.RuntimeIdentifier, "--artifacts-path", output, "-o", Path.Combine(output, "out"), "-nologo", "-v", "quiet", "-p:UseSharedCompilation=false", .. options];
        var log = Try(Environment.ProcessPath!, arguments, out var exitCode);
        if (exitCode == 0)
            return Path.Combine(output, "out", program);
        LeftOut.Add($"{name}: {log.Split('\n').FirstOrDefault(line => line.Contains("error", StringComparison.Ordinal), "dotnet publish failed").Trim()}");
        return null;
    }

    /// <summary>Runs a command and gives all that it prints.</summary>
    public static string Try(string program, string[] arguments) => Try(program, arguments, out _);

    static string Try(string program, string[] arguments, out int exitCode)
    {
        using var process = Process.Start(new ProcessStartInfo(program, arguments) { RedirectStandardOutput = true, RedirectStandardError = true, RedirectStandardInput = true })!;
        process.StandardInput.Close();
        var error = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd() + error.Result;
        process.WaitForExit();
        exitCode = process.ExitCode;
        return output;
    }
}

// ---------------------------------------------------------------------------------------------
// Processes, streams and files
// ---------------------------------------------------------------------------------------------

/// <summary>A process that is measured.</summary>
sealed class Child : IDisposable
{
    static readonly ConcurrentDictionary<Child, bool> running = [];

    readonly Process process;
    readonly string name;
    readonly byte[] line = new byte[256];

    Child(ProcessStartInfo start, string name)
    {
        foreach (var variable in start.Environment.Keys.Where(key => key.EndsWith("_proxy", StringComparison.OrdinalIgnoreCase) || key == "STREAMER_ADDRESS").ToArray())
            start.Environment.Remove(variable);
        start.Environment["PEER_PACKAGES"] = "streaming";
        start.Environment["DOTNET_ROOT"] = Path.GetDirectoryName(Environment.ProcessPath);
        this.name = name;
        process = Process.Start(start)!;
        running[this] = true;
    }

    public static Child WithPipes(string program, string[] arguments) =>
        new(new(program, arguments) { RedirectStandardInput = true, RedirectStandardOutput = true }, program);

    /// <summary>Process only knows pipes, which would make the harness a part of what is measured; exec keeps the process id.</summary>
    public static Child WithFiles(string program, string[] arguments, string input, string output)
    {
        var start = new ProcessStartInfo("sh", ["-c", "exec \"$0\" \"$@\" <\"$BENCH_IN\" >\"$BENCH_OUT\"", program, .. arguments]);
        (start.Environment["BENCH_IN"], start.Environment["BENCH_OUT"]) = (input, output);
        return new(start, program);
    }

    public void Write(ReadOnlySpan<byte> bytes)
    {
        process.StandardInput.BaseStream.Write(bytes);
        process.StandardInput.BaseStream.Flush();
    }

    public void Close() => process.StandardInput.Close();

    /// <summary>The next line with its end; only for a process that has no more than one line to print.</summary>
    public ReadOnlySpan<byte> ReadLine()
    {
        var used = 0;
        while (used == 0 || line[used - 1] != '\n')
        {
            var count = used == line.Length ? 0 : process.StandardOutput.BaseStream.Read(line, used, line.Length - used);
            Program.Require(count > 0, $"{Path.GetFileName(name)} prints no line");
            used += count;
        }
        return line.AsSpan(0, used);
    }

    public void ReadExactly(byte[] into) => process.StandardOutput.BaseStream.ReadExactly(into);

    public string ReadToEnd() => process.StandardOutput.ReadToEnd();

    public bool HasEndedWithin(int milliseconds) => process.WaitForExit(milliseconds);

    /// <summary>Waits for its end, which must be a good one.</summary>
    public void End()
    {
        process.WaitForExit();
        Program.Require(process.ExitCode == 0, $"{Path.GetFileName(name)} exits with {process.ExitCode}");
    }

    /// <summary>A figure of /proc/PID/status; 0 once it has ended.</summary>
    public double MiB(string figure)
    {
        try
        {
            return File.ReadLines($"/proc/{process.Id}/status").FirstOrDefault(line => line.StartsWith(figure, StringComparison.Ordinal)) is { } line
                ? double.Parse(line.Split(':')[1].Replace("kB", "")) / 1024 : 0;
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

    /// <summary>Ends everything from any thread.</summary>
    public static void Abort(string why)
    {
        Console.Error.WriteLine($"bench: {why}");
        KillAll();
        Files.Remove();
        Environment.Exit(1);
    }
}

/// <summary>A server that accepts connections.</summary>
sealed class Server : IDisposable
{
    public Server(Stack stack)
    {
        // Not every peer can tell which port it was given for 0.
        using (var free = new TcpListener(IPAddress.Loopback, 0))
        {
            free.Start();
            Port = ((IPEndPoint)free.LocalEndpoint).Port;
        }
        Process = Child.WithFiles(stack.Program, stack.Serve(Port), "/dev/null", "/dev/null");
        while (true)
            try
            {
                using var probe = new TcpClient("127.0.0.1", Port);
                return;
            }
            catch (SocketException)
            {
                Program.Require(!Process.HasEndedWithin(20), $"the server of {stack.Name} does not start");
            }
    }

    public int Port { get; }

    public Child Process { get; }

    public void Dispose() => Process.Dispose();
}

/// <summary>
/// A network between clients and a server: each direction delays by 5 ms and lets 1 Gbit pass in a second. It is a relay, as
/// `tc netem` needs a kernel module and root.
/// </summary>
sealed class Link : IDisposable
{
    public const double BytesPerSecond = 125e6;

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
        Start(() =>
        {
            var free = 0L;
            try
            {
                for (var buffer = new byte[64 * 1024]; from.GetStream().Read(buffer) is > 0 and var size;)
                {
                    free = Math.Max(free, Stopwatch.GetTimestamp()) + (long)(size / BytesPerSecond * Stopwatch.Frequency);
                    count(size);
                    chunks.Add((buffer[..size], free + delay));
                    // A router holds no more than about so much; the rest waits in the sender's socket.
                    WaitUntil(free - 2 * delay);
                }
            }
            finally
            {
                chunks.CompleteAdding();
            }
        });
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

    // To the nearest millisecond: to spin for more would take a processor from what is measured.
    static void WaitUntil(long due)
    {
        while (due - Stopwatch.GetTimestamp() > Stopwatch.Frequency / 2000)
            Thread.Sleep(1);
    }

    // A connection that one side closes, however it does it, ends for the other side.
    static void Start(Action work) => new Thread(() =>
    {
        try
        {
            work();
        }
        catch (Exception e) when (e is IOException or SocketException or ObjectDisposedException or InvalidOperationException)
        {
        }
    }) { IsBackground = true }.Start();

    public void Dispose() => listener.Dispose();
}

/// <summary>A server of each stack.</summary>
sealed class Servers(Stack[] stacks) : IDisposable
{
    readonly Dictionary<Stack, Server> all = stacks.ToDictionary(stack => stack, stack => new Server(stack));

    public Server this[Stack stack] => all[stack];

    public void Dispose()
    {
        foreach (var server in all.Values)
            server.Dispose();
    }
}

/// <summary>Streams of FindMaximum that have each sent one number and had its answer, and stay open.</summary>
sealed class IdleStreams : IDisposable
{
    readonly List<HttpMessageInvoker> connections = [];
    readonly TaskCompletionSource end = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public IdleStreams(int port, int connectionCount, int streams)
    {
        for (var i = 0; i < connectionCount; i++)
        {
            // Without EnableMultipleHttp2Connections a handler has exactly one.
            var connection = new HttpMessageInvoker(new SocketsHttpHandler { UseProxy = false });
            connections.Add(connection);
            // The first tells how many streams the server allows.
            OpenAsync(connection, port).GetAwaiter().GetResult();
            Task.WhenAll(Enumerable.Range(1, streams - 1).Select(_ => OpenAsync(connection, port))).GetAwaiter().GetResult();
        }
    }

    async Task OpenAsync(HttpMessageInvoker connection, int port)
    {
        var request = new HttpRequestMessage(HttpMethod.Post, $"http://127.0.0.1:{port}/streaming.CalculatorService/FindMaximum")
        {
            Version = HttpVersion.Version20,
            VersionPolicy = HttpVersionPolicy.RequestVersionExact,
            Content = new Body(end.Task),
        };
        request.Headers.TE.Add(new("trailers"));
        var response = await connection.SendAsync(request, default).WaitAsync(TimeSpan.FromSeconds(30));
        var answer = new byte[Files.Seven.Length];
        await (await response.Content.ReadAsStreamAsync()).ReadExactlyAsync(answer).AsTask().WaitAsync(TimeSpan.FromSeconds(30));
        Program.Require(answer.AsSpan().SequenceEqual(Files.Seven), "an idle stream gets a wrong answer");
    }

    public void Dispose()
    {
        end.TrySetResult();
        foreach (var connection in connections)
            connection.Dispose();
    }

    sealed class Body : HttpContent
    {
        readonly Task end;

        public Body(Task end)
        {
            this.end = end;
            Headers.ContentType = new MediaTypeHeaderValue("application/grpc");
        }

        protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context)
        {
            await stream.WriteAsync(Files.Seven);
            await stream.FlushAsync();
            await end;
        }

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }
    }
}

/// <summary>What goes in and what must come out.</summary>
static class Files
{
    static readonly DirectoryInfo folder = Directory.CreateTempSubdirectory("streamer-bench-");

    public static readonly string Folder = folder.FullName, Output = Path.Combine(Folder, "output");

    /// <summary>The message {1: 7}, with gRPC's prefix: request and response are the same bytes.</summary>
    public static readonly byte[] Seven = [0, 0, 0, 0, 2, 8, 7];

    public static string Message => Written("message", stream => stream.Write(Seven));

    /// <summary>1 to <paramref name="count"/>: every number is a new maximum.</summary>
    public static string Counting(int count) => Written($"counting-{count}", stream => Write(stream, 1, count));

    /// <summary><paramref name="count"/>, then 1 to <paramref name="count"/> - 1: only the first is a maximum.</summary>
    public static string LargestFirst(int count) => Written($"largest-first-{count}", stream =>
    {
        stream.Write(Line(count));
        Write(stream, 1, count - 1);
    });

    public static string Largest(int count) => Written($"largest-{count}", stream => stream.Write(Line(count)));

    /// <summary>Ada1, Ada2, Ada3, ….</summary>
    public static string Names(int count) => Written($"names-{count}", stream => Write(stream, 1, count, "Ada"u8));

    public static string Greetings(int count) => Written($"greetings-{count}", stream => Write(stream, 1, count, "Hello Ada"u8, "!"u8));

    public static byte[] Line(long number) => Encoding.ASCII.GetBytes($"{number}\n");

    public static byte[] Lines(long first, int count)
    {
        var lines = new MemoryStream();
        Write(lines, first, count);
        return lines.ToArray();
    }

    static void Write(Stream stream, long first, int count, ReadOnlySpan<byte> before = default, ReadOnlySpan<byte> after = default)
    {
        Span<byte> line = stackalloc byte[24];
        for (var number = first; number < first + count; number++)
        {
            Utf8Formatter.TryFormat(number, line, out var length);
            stream.Write(before);
            stream.Write(line[..length]);
            stream.Write(after);
            stream.WriteByte((byte)'\n');
        }
    }

    static string Written(string name, Action<Stream> write)
    {
        var path = Path.Combine(Folder, name);
        if (!File.Exists(path))
        {
            using var stream = new FileStream(path, FileMode.CreateNew, FileAccess.Write, FileShare.Read, 1 << 20);
            write(stream);
        }
        return path;
    }

    public static void Check(string path, string expected, string who)
    {
        using FileStream got = File.OpenRead(path), wanted = File.OpenRead(expected);
        var same = got.Length == wanted.Length;
        byte[] a = new byte[1 << 20], b = new byte[1 << 20];
        for (int count; same && (count = got.ReadAtLeast(a, a.Length, throwOnEndOfStream: false)) > 0;)
            same = wanted.ReadAtLeast(b, b.Length, throwOnEndOfStream: false) == count && a.AsSpan(0, count).SequenceEqual(b.AsSpan(0, count));
        Program.Require(same, $"the output of {who} is not right: {got.Length} bytes of {wanted.Length}");
    }

    public static void Clear()
    {
        foreach (var file in folder.GetFiles())
            file.Delete();
    }

    public static void Remove() => folder.Delete(recursive: true);
}
