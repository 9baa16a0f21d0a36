using System.Text.Json;

namespace Streamer.Tests;

/// <summary>Other people's gRPC stacks, with Streamer at either end; their scripts are in the folder peers.</summary>
public class Interop(SharedServer server, PeerServers peers) : IClassFixture<PeerServers>
{
    const string Greet = "streaming.GreetService/GreetEveryone", Max = "streaming.CalculatorService/FindMaximum";
    static readonly string[] methods = [Greet, Max, "greet.GreetService/GreetEveryone", "calculator.CalculatorService/FindMaximum"];

    // What the peers say of a status that a call asked for; its escapes are to survive the wire.
    const string Trouble = "what is wrong: 100 % of it, naïvely ✗";

    public static readonly TheoryData<string> Peers = new(Peer.All);
    public static readonly MatrixTheoryData<string, string> PeersAndMethods = new(Peer.All, methods);
    public static readonly TheoryData<string> Methods = new(methods);

    // ---- a peer calls Streamer

    [Theory, MemberData(nameof(PeersAndMethods))]
    public async Task PeerCalls(string peer, string method)
    {
        await using var client = Peer.Call(peer, server.Address, method);
        await ConverseAsync(client, method);
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerCallsAtLength(string peer)
    {
        Assert.Equal(new(0, manyNumbers, ""), await Peer.CallAsync(peer, manyNumbers, server.Address, Max));
        Assert.Equal(new(0, $"Hello {longName}!\nHello Ada!\n", ""), await Peer.CallAsync(peer, $"{longName}\nAda\n", server.Address, Greet));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerCompresses(string peer)
    {
        await using var relay = new Relay(server.Address);
        var result = await Peer.CallAsync(peer, $"Ada\n{longName}\nBea\n", relay.Address, Greet, new { gzip = true });
        Assert.Equal(new(0, $"Hello Ada!\nHello {longName}!\nHello Bea!\n", ""), result);
        Assert.InRange(relay.BytesOut, 1, longName.Length / 4);
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerSendsMetadata(string peer)
    {
        var metadata = new Dictionary<string, string> { ["x-some.key_1"] = "a value: 100 % of it", ["x-bytes-bin"] = "AP/+", ["authorization"] = "Bearer abc" };
        Assert.Equal(new(0, "Hello Ada!\n", ""), await Peer.CallAsync(peer, "Ada\n", server.Address, Greet, new { metadata }));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerHasDeadline(string peer)
    {
        await Wait.ForEnoughAsync(deadline => AnswersBeforeDeadlineAsync(Peer.Call(peer, server.Address, Greet, new { deadline })));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerCancels(string peer)
    {
        await using var server = await RunningServer.StartAsync();
        await using var client = Peer.Call(peer, server.Address, Greet, new { cancelAfter = 2 });
        await client.WriteLineAsync("Ada");
        await client.WriteLineAsync("Bea");
        var result = await client.EndAsync();
        Assert.Equal((65, "Hello Ada!\nHello Bea!\n"), (result.ExitCode, result.Output));
        Assert.Equal(new(0, "Hello Cleo!\n", ""), await Peer.CallAsync(peer, "Cleo\n", server.Address, Greet));
        // A call that was not released would hold the drain up, and then be cut off.
        server.Process.Signal("TERM");
        Drained.AssertNoneCut(await server.Process.EndAsync());
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerLearnsStatus(string peer)
    {
        const string ada = "0a050a03416461\n", answer = "Hello Ada!\n";
        // After an answer, so in trailers, ...
        await Expect(77, answer, "INTERNAL: a message is malformed", Greet, $"{ada}0aff\n", new { raw = true });
        await Expect(72, answer, "RESOURCE_EXHAUSTED: ", Greet, $"Ada\n{new string('a', 5_000_000)}\n", new { });
        // ... and instead of one, so as Trailers-Only.
        await Expect(76, "", "UNIMPLEMENTED: Method is unimplemented.", "streaming.GreetService/Nothing", "Ada\n", new { });

        async Task Expect(int exitCode, string output, string error, string method, string input, object options)
        {
            var result = await Peer.CallAsync(peer, input, server.Address, method, options);
            Assert.Equal((exitCode, output), (result.ExitCode, result.Output));
            Assert.StartsWith(error, result.Error);
        }
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerIsToldOfShutdown(string peer)
    {
        await using var server = await RunningServer.StartAsync("--drain", "0.5");
        await using var client = Peer.Call(peer, server.Address, Greet);
        await client.TurnAsync("Ada", "Hello Ada!");
        server.Process.Signal("TERM");
        Assert.Equal(new(78, "", "UNAVAILABLE: server is shutting down\n"), await client.EndAsync());
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerChecksHealth(string peer)
    {
        await using var server = await RunningServer.StartAsync();
        Assert.Equal(new(0, "SERVING\n", ""), await Peer.CallAsync(peer, "\n", server.Address, "grpc.health.v1.Health/Check"));
        Assert.Equal(new(69, "", "NOT_FOUND: \n"), await Peer.CallAsync(peer, "nobody.Knows\n", server.Address, "grpc.health.v1.Health/Check"));
        await using var watch = Peer.Call(peer, server.Address, "grpc.health.v1.Health/Watch");
        await watch.TurnAsync("streaming.GreetService", "SERVING");
        server.Process.Signal("TERM");
        Assert.Equal("NOT_SERVING", await watch.ReadLineAsync());
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
    }

    // ---- Streamer calls a peer

    [Theory, MemberData(nameof(PeersAndMethods))]
    public async Task CallsPeer(string peer, string method)
    {
        var other = await peers.GetAsync(peer);
        await using var client = Call(other, method);
        await ConverseAsync(client, method);
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task CallsPeerAtLength(string peer)
    {
        var other = await peers.GetAsync(peer);
        Assert.Equal(new(0, manyNumbers, ""), await CallAsync(other, manyNumbers, Max));
        Assert.Equal(new(0, $"Hello {longName}!\nHello Ada!\n", ""), await CallAsync(other, $"{longName}\nAda\n", Greet));
    }

    // grpc-js cannot compress what its server answers.
    [Theory, InlineData(Peer.Python)]
    public async Task PeerCompressesAnswers(string peer)
    {
        var other = await peers.GetAsync(peer);
        await using var relay = new Relay(other.Address);
        var result = await Tool.RunAsync($"{longName}\n", "greet", "--address", relay.Address);
        Assert.Equal(new(0, $"Hello {longName}!\n", ""), result);
        Assert.InRange(relay.BytesBack, 1, longName.Length / 4);
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerReceivesMetadata(string peer)
    {
        var other = await peers.GetAsync(peer);
        await Expect("a value: 100 % of it", "x-echo: x-some.key_1", "X-Some.Key_1: a value: 100 % of it");
        await Expect("naïve ✗", "x-echo: x-bytes-bin", $"x-bytes-bin: {Convert.ToBase64String("naïve ✗"u8)}");
        await Expect("naïve ✗", "x-echo: x-bytes-bin", $"x-bytes-bin: {Convert.ToBase64String("naïve ✗"u8).TrimEnd('=')}");
        Assert.StartsWith("grpc-dotnet/", (await CallAsync(other, "", Greet, "-H", "x-echo: user-agent")).Output);

        async Task Expect(string value, params string[] headers) =>
            Assert.Equal(new(0, $"{value}\n", ""), await CallAsync(other, "", Greet, [.. headers.SelectMany(header => new[] { "-H", header })]));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerReceivesDeadline(string peer)
    {
        var other = await peers.GetAsync(peer);
        Assert.Equal("false\n", (await CallAsync(other, "", Greet, "-H", "x-echo: deadline")).Output);
        Assert.Equal("true\n", (await CallAsync(other, "", Greet, "-H", "x-echo: deadline", "--deadline", "60")).Output);
        await Wait.ForEnoughAsync(deadline => AnswersBeforeDeadlineAsync(Call(other, Greet, "--deadline", $"{deadline}")));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerIsCancelled(string peer)
    {
        await using var other = await Peer.ServeAsync(peer);
        await using var client = Call(other, Greet);
        await client.TurnAsync("Ada", "Hello Ada!");
        client.Signal("INT");
        Assert.Equal(new(130, "", ""), await client.EndAsync());
        Assert.Equal("over", await other.Process.ReadLineAsync());
        Assert.Equal(new(0, "Hello Bea!\n", ""), await CallAsync(other, "Bea\n", Greet));
    }

    [Theory, MemberData(nameof(Peers))]
    public async Task PeerFails(string peer)
    {
        var other = await peers.GetAsync(peer);
        foreach (var status in (int[])[1, 2, 7, 13, 16])
        {
            var result = await CallAsync(other, "", Greet, "-H", $"x-refuse: {status}");
            Assert.Equal((64 + status, ""), (result.ExitCode, result.Output));
            Assert.EndsWith($": {Trouble}\n", result.Error);
        }
        var late = await CallAsync(other, "Ada\nBea\n", Greet, "-H", "x-fail: 9");
        Assert.Equal((73, "Hello Ada!\n"), (late.ExitCode, late.Output));
        Assert.Matches($@"\Astreamer: FAILED_PRECONDITION: {Trouble}{Verbose.Counts}\n\z", late.Error);
        Assert.Equal(76, (await CallAsync(other, "Ada\n", "nobody.Knows/GreetEveryone")).ExitCode);
    }

    // ---- buf curl, a client only: it finds out by reflection what there is, or reads a .proto file

    [Fact]
    public async Task BufLists()
    {
        Assert.Equal(
            """
            grpc.health.v1.Health/Check
            grpc.health.v1.Health/Watch
            grpc.reflection.v1.ServerReflection/ServerReflectionInfo
            grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo
            streaming.CalculatorService/FindMaximum
            streaming.GreetService/GreetEveryone

            """, (await Peer.BufCurlAsync("", $"{server.Address}", "--list-methods")).Output);
    }

    [Theory, MemberData(nameof(Methods))]
    public async Task BufCalls(string method)
    {
        // The course's contract is the same but for its package.
        using var folder = new TempFolder();
        var schema = folder.Write("schema.proto", File.ReadAllText(Path.Combine(Tool.Folder, "../streaming.proto")).Replace("package streaming;", $"package {method.Split('.')[0]};"));
        string[][] ways = [["--schema", schema], .. method.StartsWith("streaming.") ? (string[][])[["--reflect-protocol", "grpc-v1"], ["--reflect-protocol", "grpc-v1alpha"]] : []];
        var (input, answers) = method.EndsWith("FindMaximum")
            ? ("""{"number": -5}{"number": -9}{}{"number": 7}""", (string[])["-5", "0", "7"])
            : ("""{"greeting": {"firstName": "Ada", "lastName": "Lovelace"}}{"greeting": {"firstName": "Zoë"}}{}""", ["Hello Ada Lovelace!", "Hello Zoë!", "Hello !"]);
        foreach (var way in ways)
        {
            var result = await Peer.BufCurlAsync(input, $"{server.Address}/{method}", [.. way, "-d", "@-"]);
            Assert.Equal((0, ""), (result.ExitCode, result.Error));
            Assert.Equal(answers, JsonLines(result.Output));
        }
    }

    [Fact]
    public async Task BufChecksHealth()
    {
        var check = $"{server.Address}/grpc.health.v1.Health/Check";
        Assert.Equal(["SERVING"], JsonLines((await Peer.BufCurlAsync("{}", check, "-d", "@-")).Output));
        Assert.Contains("\"not_found\"", (await Peer.BufCurlAsync("""{"service": "nobody.Knows"}""", check, "-d", "@-")).Error);
    }

    // buf prints each answer as an object of several lines, with one field each; int64 as a string, and no field for 0.
    static string[] JsonLines(string output) => [.. output.Split("}\n", StringSplitOptions.RemoveEmptyEntries)
        .Select(text => JsonDocument.Parse(text + "}").RootElement.EnumerateObject().Select(field => field.Value.ToString()).SingleOrDefault("0"))];

    // ---- what both sides share

    static readonly string manyNumbers = string.Concat(Enumerable.Range(1, 3_000).Select(number => $"{number}\n"));
    static readonly string longName = new('ß', 512 * 1024);

    /// <summary>A line goes in only after the answer to the one before, so both must come at once; then the input ends.</summary>
    static async Task ConverseAsync(Running client, string method)
    {
        var (turns, last, lastAnswers) = method.EndsWith("FindMaximum")
            ? (Turns(("-2147483648", "-2147483648"), ("0", "0"), ("2147483646", "2147483646")), "5\n2147483647\n-7\n", "2147483647\n")
            : (Turns(("Ada", "Hello Ada!"), ("Zoë Žižek 👋", "Hello Zoë Žižek 👋!")), "Bea\nCleo of Alexandria\n", "Hello Bea!\nHello Cleo of Alexandria!\n");
        foreach (var (line, answer) in turns)
            await client.TurnAsync(line, answer);
        await client.Input.WriteAsync(last);
        client.Input.Close();
        Assert.Equal(new(0, lastAnswers, ""), await client.EndAsync());

        static (string, string)[] Turns(params (string, string)[] turns) => turns;
    }

    /// <summary>A call that ends at its deadline: whether there was an answer before that.</summary>
    static async Task<bool> AnswersBeforeDeadlineAsync(Running started)
    {
        await using var client = started;
        await client.WriteLineAsync("Ada");
        var answer = await client.ReadLineAsync();
        Assert.True(answer is null or "Hello Ada!", answer);
        var result = await client.EndAsync();
        Assert.Equal((68, ""), (result.ExitCode, result.Output));
        Assert.Contains("DEADLINE_EXCEEDED: ", result.Error);
        return answer is not null;
    }

    static string[] Arguments(PeerServer server, string method, string[] more) =>
        [method.EndsWith("FindMaximum") ? "max" : "greet", "--address", server.Address, "--method", method, .. more];

    static Running Call(PeerServer server, string method, params string[] more) => Running.Start(Arguments(server, method, more));

    static Task<Result> CallAsync(PeerServer server, string input, string method, params string[] more) => Tool.RunAsync(input, Arguments(server, method, more));
}

/// <summary>The programs at the other end. A test that needs one which is not installed is skipped.</summary>
static class Peer
{
    public const string Js = "grpc-js", Python = "grpcio";
    public static readonly string[] All = [Js, Python];

    const string NodePackages = "Node.js with npm, and then Streamer.Tests/peers/install";

    static readonly string folder = Path.Combine(Tool.Folder, "peers");

    // The first python3 that has grpcio: Debian's is often behind another one on the path.
    static readonly Lazy<string?> python = new(() => Programs.Find("python3", file => Running.StartProcess(file, ["-c", "import grpc, google.protobuf"]).EndAsync().Result.ExitCode == 0));

    static bool HasPackage(string name) => Programs.Find("node") is not null && Directory.Exists(Path.Combine(folder, "node_modules", name));

    static (string File, string Script) Command(string peer)
    {
        if (peer == Js)
            Skipped.Unless(HasPackage("@grpc/grpc-js"), NodePackages);
        else
            Skipped.Unless(python.Value is not null, "python3 with grpcio and protobuf (Debian: apt install python3-grpcio python3-protobuf)");
        return peer == Js ? ("node", Path.Combine(folder, "peer.js")) : (python.Value!, Path.Combine(folder, "peer.py"));
    }

    /// <summary>Starts a call of the peer's; its command line is like that of `streamer greet`.</summary>
    public static Running Call(string peer, string address, string method, object? options = null)
    {
        var (file, script) = Command(peer);
        return Running.StartProcess(file, [script, "call", new Uri(address).Authority, method, JsonSerializer.Serialize(options ?? new { })]);
    }

    /// <summary>Makes a call with all of its input at hand.</summary>
    public static async Task<Result> CallAsync(string peer, string input, string address, string method, object? options = null)
    {
        await using var client = Call(peer, address, method, options);
        var feeding = client.FeedAsync(System.Text.Encoding.UTF8.GetBytes(input));
        var result = await client.EndAsync();
        await feeding;
        return result;
    }

    /// <summary>Skips the running test where the peer is not installed.</summary>
    public static void Need(string peer) => Command(peer);

    /// <summary>Starts a server of the peer's.</summary>
    public static async Task<PeerServer> ServeAsync(string peer)
    {
        var (file, script) = Command(peer);
        var process = Running.StartProcess(file, [script, "serve"]);
        return new(process, $"http://{await process.ReadAddressAsync()}");
    }

    public static async Task<Result> BufCurlAsync(string input, string url, params string[] arguments)
    {
        Skipped.Unless(HasPackage("@bufbuild/buf"), NodePackages);
        await using var buf = Running.StartProcess(Path.Combine(folder, "node_modules", ".bin", "buf"), ["curl", "--protocol", "grpc", "--http2-prior-knowledge", .. arguments, url]);
        await buf.FeedAsync(System.Text.Encoding.UTF8.GetBytes(input));
        return await buf.EndAsync();
    }
}

/// <summary>A running server of a peer's.</summary>
sealed record PeerServer(Running Process, string Address) : IAsyncDisposable
{
    public ValueTask DisposeAsync() => Process.DisposeAsync();
}

/// <summary>A server of each peer that the tests share, started for the first.</summary>
public sealed class PeerServers : IAsyncDisposable
{
    readonly ConcurrentDictionary<string, Lazy<Task<PeerServer>>> servers = [];

    internal Task<PeerServer> GetAsync(string peer)
    {
        Peer.Need(peer);
        return servers.GetOrAdd(peer, _ => new(() => Peer.ServeAsync(peer))).Value;
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var server in servers.Values)
            await (await server.Value).DisposeAsync();
    }
}

/// <summary>Passes the bytes of connections on, and counts them.</summary>
sealed class Relay : IAsyncDisposable
{
    readonly TcpListener listener = new(IPAddress.Loopback, 0);
    readonly Task accepting;
    long bytesOut, bytesBack;

    public Relay(string address)
    {
        listener.Start();
        accepting = AcceptAsync(new Uri(address));
    }

    public string Address => $"http://{listener.LocalEndpoint}";

    /// <summary>What went to the server.</summary>
    public long BytesOut => Interlocked.Read(ref bytesOut);

    /// <summary>What came from the server.</summary>
    public long BytesBack => Interlocked.Read(ref bytesBack);

    async Task AcceptAsync(Uri server)
    {
        while (true)
            _ = PassAsync(await listener.AcceptTcpClientAsync(), server);
    }

    async Task PassAsync(TcpClient client, Uri to)
    {
        using (client)
        using (var server = new TcpClient())
        {
            await server.ConnectAsync(to.Host, to.Port);
            var (near, far) = (client.GetStream(), server.GetStream());
            await Task.WhenAny(PassAsync(near, far, count => Interlocked.Add(ref bytesOut, count)), PassAsync(far, near, count => Interlocked.Add(ref bytesBack, count)));
        }
    }

    static async Task PassAsync(NetworkStream from, NetworkStream to, Action<int> count)
    {
        var buffer = new byte[64 * 1024];
        try
        {
            for (int bytes; (bytes = await from.ReadAsync(buffer)) > 0; count(bytes))
                await to.WriteAsync(buffer.AsMemory(0, bytes));
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
        }
    }

    public async ValueTask DisposeAsync()
    {
        listener.Stop();
        await accepting.ContinueWith(_ => { });
    }
}
