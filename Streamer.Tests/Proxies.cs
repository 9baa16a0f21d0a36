using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Streamer.Tests;

/// <summary>Three servers behind the real nginx and the real HAProxy, with the configurations of the folder proxies.</summary>
public class Proxies(SharedServer server)
{
    public static readonly TheoryData<string> Names = ["nginx", "haproxy"];

    [Theory, MemberData(nameof(Names))]
    public async Task StreamsSpreadAndComeThrough(string name)
    {
        await using var site = await Site.StartAsync(name);
        // One after the other: a proxy's threads that choose at the same time may choose the same server.
        var calls = new List<SlowCall>();
        while (calls.Count < 30)
        {
            calls.Add(new(site.Address));
            await calls[^1].TurnAsync();
        }
        await Task.WhenAll(calls.Select(call => call.EndAsync()));
        Assert.All(calls, call => Assert.Equal("0 ", call.Outcome));
        foreach (var server in site.Servers)
            await site.LogAsync(lines => lines.Count(line => line.Contains($"127.0.0.1:{server.Port} ")) == 10);

        // Answers come at once.
        await using (var client = Running.Start("greet", "--address", site.Address))
        {
            for (var i = 0; i < 100; i++)
                await client.TurnAsync($"Ada {i}", $"Hello Ada {i}!");
            client.Input.Close();
            Assert.Equal(new(0, "", ""), await client.EndAsync());
        }

        // More than nginx's usual limit of 1 MB. The numbers fall for HAProxy, as its file says of streams that are busy both ways.
        var rises = name == "nginx";
        var numbers = string.Concat(Enumerable.Range(1, 200_000).Select(number => $"{(rises ? number : -number)}\n"));
        Assert.Equal(new(0, rises ? numbers : "-1\n", ""), await Tool.RunAsync(numbers, "max", "--address", site.Address));

        Assert.Equal(new(76, "", "streamer: UNIMPLEMENTED: Service is unimplemented.\n"), await OneProcess.TypeAsync($"echo 1 | streamer max --method nobody.Knows/Max --address {site.Address}"));
        await Wait.ForEnoughAsync(async deadline =>
        {
            await using var client = Running.Start("max", "--deadline", $"{deadline}", "--address", site.Address);
            await client.WriteLineAsync("1");
            var answer = await client.ReadLineAsync();
            Assert.True(answer is null or "1", answer);
            Assert.Equal(68, (await client.EndAsync()).ExitCode);
            return answer is not null;
        });
    }

    // Neither proxy sends a status then: nginx resets the stream, with a code that depends on which of its timers is
    // first, and HAProxy ends it without trailers and resets it as well. grpc-go says INTERNAL of both.
    [Theory, InlineData("nginx", "the server reset the stream: (PROTOCOL_ERROR|INTERNAL_ERROR)"),
        InlineData("haproxy", "the server ended the stream without trailers")]
    public Task IdleStreamIsCutOff(string name, string error) => Wait.ForEnoughAsync(async seconds =>
    {
        await using var site = await Site.StartAsync(name, configuration => configuration.Replace(" 1h", $" {seconds}s"), instead: server);
        await using var client = Running.Start("greet", "--address", site.Address);
        await client.WriteLineAsync("Ada");
        if (await client.ReadLineAsync() is not { } answer)
            return false;
        Assert.Equal("Hello Ada!", answer);
        var result = await client.EndAsync();
        Assert.Equal((77, ""), (result.ExitCode, result.Output));
        Assert.Matches($"^streamer: INTERNAL: {error}{Verbose.Counts}\n$", result.Error);
        return true;
    });

    [Theory, InlineData("nginx", 502), InlineData("haproxy", 503)]
    public async Task AllServersAreGone(string name, int status)
    {
        await using var site = await Site.StartAsync(name);
        foreach (var server in site.Servers)
        {
            server.Process.Signal("TERM");
            Drained.AssertNoneCut(await server.Process.EndAsync());
        }
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: HTTP status {status} from {site.Address}, content type text/html\n"), await Tool.RunAsync("1\n", "max", "--address", site.Address));
    }

    // 300 calls run when a server is told to stop, and short ones begin all the time before, during and after its drain.
    [Theory, MemberData(nameof(Names))]
    public async Task DrainLosesNoCall(string name)
    {
        await using var site = await Site.StartAsync(name, drain: 100);
        var outcomes = new ConcurrentDictionary<string, int>();
        var running = Enumerable.Range(0, 300).Select(_ => new SlowCall(site.Address)).ToArray();
        await Task.WhenAll(running.Select(call => call.TurnAsync()));
        var ends = Task.WhenAll(running.Select(call => RunAsync(call, turns: 30)));
        using var enough = new CancellationTokenSource();
        var others = Task.WhenAll(Enumerable.Range(0, 10).Select(_ => CallAgainAndAgainAsync()));
        await Wait.UntilAsync(() => outcomes.Values.Sum() > 100, () => "the short calls do not end");
        site.Servers[0].Process.Signal("TERM");
        Drained.AssertNoneCut(await site.Servers[0].Process.EndAsync());
        await ends;
        await enough.CancelAsync();
        await others;
        Assert.True(outcomes.Keys.SequenceEqual(["0 "]), string.Join("\n", outcomes.Select(outcome => $"{outcome.Value} x {outcome.Key}")));

        async Task CallAgainAndAgainAsync()
        {
            while (!enough.IsCancellationRequested)
                await RunAsync(new(site.Address), turns: 1);
        }

        async Task RunAsync(SlowCall call, int turns)
        {
            await call.RunAsync(turns, TimeSpan.FromMilliseconds(turns == 1 ? 5 : 100));
            outcomes.AddOrUpdate(call.Outcome!, 1, (_, count) => count + 1);
        }
    }

    // What does not finish within the drain gets its answers and a status; calls on the other servers go on.
    [Theory, MemberData(nameof(Names))]
    public async Task DrainEndsCalls(string name)
    {
        await using var site = await Site.StartAsync(name, drain: 1);
        // One after the other, so that each is on a server of its own.
        await using var clients = new Group<Running>([]);
        while (clients.Count < 3)
        {
            clients.Add(Running.Start("greet", "--address", site.Address));
            await clients[^1].TurnAsync("Ada", "Hello Ada!");
        }
        site.Servers[0].Process.Signal("TERM");
        var end = await site.Servers[0].Process.EndAsync();
        Assert.Equal((143, ""), (end.ExitCode, end.Output));
        Assert.EndsWith(", 1 cut off\n", end.Error);
        var results = await Task.WhenAll(clients.Select(async client =>
        {
            await client.FeedAsync("Bea\n"u8.ToArray());
            return await client.EndAsync();
        }));
        Assert.Equal(1, results.Count(result => result is { ExitCode: 78, Output: "" } && Regex.IsMatch(result.Error, $@"\Astreamer: UNAVAILABLE: server is shutting down{Verbose.Counts}\n\z")));
        Assert.Equal(2, results.Count(result => result == new Result(0, "Hello Bea!\n", "")));
    }

    // The servers then see requests for https come in without TLS.
    [Theory, MemberData(nameof(Names))]
    public async Task TlsMayEndAtProxy(string name)
    {
        var file = Path.GetTempFileName();
        try
        {
            using var key = RSA.Create(2048);
            var names = new SubjectAlternativeNameBuilder();
            names.AddIpAddress(IPAddress.Loopback);
            var request = new CertificateRequest("CN=proxy", key, HashAlgorithmName.SHA256, RSASignaturePadding.Pkcs1) { CertificateExtensions = { names.Build() } };
            using var certificate = request.CreateSelfSigned(DateTimeOffset.Now.AddDays(-1), DateTimeOffset.Now.AddDays(1));
            File.WriteAllText(file, $"{certificate.ExportCertificatePem()}\n{key.ExportPkcs8PrivateKeyPem()}\n");
            await using var site = await Site.StartAsync(name, configuration => Regex.Replace(Regex.Replace(configuration,
                "(listen .*) http2 (.*);", $"$1 ssl http2 $2; ssl_certificate {file}; ssl_certificate_key {file};"),
                "(bind .*) proto h2", $"$1 ssl crt {file} alpn h2"), instead: server);
            Assert.Equal(new(0, "1\n5\n", ""), await Tool.RunAsync("1 5 3\n", "max", "--cacert", file, "--address", site.Address.Replace("http:", "https:")));
        }
        finally
        {
            File.Delete(file);
        }
    }

    // HAProxy alone looks after its servers by itself.
    [Theory, InlineData("haproxy")]
    public Task HungServerIsLeftOut(string name) => Wait.ForEnoughAsync(async seconds =>
    {
        await using var site = await Site.StartAsync(name, configuration => configuration.Replace(Site.PatientChecks, $"timeout check {seconds}s"));
        site.Servers[0].Process.Signal("STOP");
        await site.LogAsync(lines => lines.Any(line => line.Contains("streamers/streamer1 is DOWN")));
        for (var i = 0; i < 6; i++)
        {
            var call = new SlowCall(site.Address);
            await call.RunAsync(turns: 3, TimeSpan.Zero);
            // On a busy machine the others may look as if they hung.
            if (call.Outcome == "HTTP ServiceUnavailable")
                return false;
            Assert.Equal("0 ", call.Outcome);
        }
        return true;
    });
}

/// <summary>A proxy with three servers behind it.</summary>
sealed class Site : IAsyncDisposable
{
    /// <summary>How long HAProxy waits for a server to say that it is well, where a test is about something else: on a busy machine that may take its time.</summary>
    public const string PatientChecks = "timeout check 120s";

    readonly Running proxy;
    readonly DirectoryInfo folder;
    readonly FreePort port;
    readonly ConcurrentQueue<string> log = new();

    Site(Running proxy, DirectoryInfo folder, RunningServer[] servers, FreePort port)
    {
        (this.proxy, this.folder, this.port, Servers) = (proxy, folder, port, servers);
        _ = ReadLogAsync();
    }

    public RunningServer[] Servers { get; }
    public string Address => port.Address;

    /// <summary>Starts the servers and the proxy with its file in the folder proxies, which is changed in its ports and by <paramref name="change"/>.</summary>
    /// <param name="instead">What serves in the place of all three, where none of them matters.</param>
    public static async Task<Site> StartAsync(
        string name, Func<string, string>? change = null, double drain = 30, SharedServer? instead = null)
    {
        var program = Program(name);
        var servers = await Task.WhenAll(Enumerable.Range(0, instead is null ? 3 : 0)
            .Select(_ => RunningServer.StartAsync("--drain", $"{drain}")));
        // Neither proxy takes port 0.
        var port = new FreePort();
        var folder = Directory.CreateTempSubdirectory("streamer-");
        var original = Directory.GetFiles(Path.Combine(Tool.Folder, "..", "proxies"), $"{name}.*").Single();
        var configuration = (await File.ReadAllTextAsync(original))
            .Replace("listen 50051", $"listen 127.0.0.1:{port.Number}").Replace("bind :50051", $"bind 127.0.0.1:{port.Number}").Replace("timeout check 2s", PatientChecks);
        for (var i = 0; i < 3; i++)
            configuration = configuration.Replace($"127.0.0.1:{50061 + i}", $"127.0.0.1:{instead?.Port ?? servers[i].Port}");
        var file = Path.Combine(folder.FullName, Path.GetFileName(original));
        await File.WriteAllTextAsync(file, change?.Invoke(configuration) ?? configuration);

        var proxy = Running.StartProcess(program, name == "nginx" ? ["-e", "stderr", "-p", folder.FullName, "-c", file] : ["-f", file]);
        var site = new Site(proxy, folder, servers, port);
        await Wait.UntilAsync(async () => proxy.HasExited || await ConnectsAsync(port.Number), () => $"{name} does not listen");
        if (proxy.HasExited)
            Assert.Fail($"{name} did not start: {await proxy.EndAsync()}");
        return site;
    }

    /// <summary>A proxy's program, which is not on everybody's path.</summary>
    internal static string Program(string name) => Programs.Find($"/usr/sbin/{name}") ?? Programs.Need(name);

    internal static async Task<bool> ConnectsAsync(int port)
    {
        using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp);
        try
        {
            await socket.ConnectAsync(IPAddress.Loopback, port);
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }

    /// <summary>Calls like anybody else.</summary>
    internal static async Task CallAsync(int port)
    {
        await using var peer = await Http2Peer.ConnectAsync(port);
        Assert.True(await IsServedAsync(peer));
    }

    /// <summary>Whether a connection is there and serves a call; where not, it was closed before one.</summary>
    internal static async Task<bool> IsServedAsync(Http2Peer peer)
    {
        try
        {
            var id = await peer.RequestAsync(Grpc.FindMaximum, []);
            await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1, 5, 3), end: true));
            var response = await peer.ReadResponseAsync(id);
            Assert.True(response is { Status: null, Ended: false } || response.Status == Status.Ok && Grpc.ToNumbers(response.Messages) is [1, 5], $"{response}");
            return response.Ended;
        }
        catch (IOException)
        {
            return false;
        }
    }

    async Task ReadLogAsync()
    {
        while (await proxy.Output.ReadLineAsync() is { } line)
            log.Enqueue(line);
    }

    /// <summary>Waits until the lines of the proxy's log are as they should be.</summary>
    public Task LogAsync(Func<IReadOnlyCollection<string>, bool> expected) => Wait.UntilAsync(() => expected(log), () => $"the log is not as expected:\n{string.Join('\n', log)}");

    public async ValueTask DisposeAsync()
    {
        proxy.Signal("TERM");
        await proxy.DisposeAsync();
        foreach (var server in Servers)
            await server.DisposeAsync();
        port.Dispose();
        folder.Delete(recursive: true);
    }
}

/// <summary>What ends together.</summary>
sealed class Group<T>(IEnumerable<T> items) : List<T>(items), IAsyncDisposable where T : IAsyncDisposable
{
    public async ValueTask DisposeAsync()
    {
        foreach (var item in this)
            await item.DisposeAsync();
    }
}

/// <summary>A call of FindMaximum that takes its time: each number goes out after the answer to the one before.</summary>
sealed class SlowCall
{
    static readonly HttpMessageInvoker invoker = new(new SocketsHttpHandler { UseProxy = false, EnableMultipleHttp2Connections = true });

    readonly OpenBody body = new();
    readonly Task<HttpResponseMessage> sending;
    byte number;

    public SlowCall(string address)
    {
        var request = new HttpRequestMessage(HttpMethod.Post, $"{address}/streaming.CalculatorService/FindMaximum")
        {
            Version = HttpVersion.Version20,
            VersionPolicy = HttpVersionPolicy.RequestVersionExact,
            Content = body,
        };
        request.Headers.TryAddWithoutValidation("te", "trailers");
        request.Content.Headers.TryAddWithoutValidation("content-type", "application/grpc");
        sending = invoker.SendAsync(request, default);
    }

    /// <summary>How it ended: gRPC's status and message, or what came instead; null while it runs.</summary>
    public string? Outcome { get; private set; }

    /// <summary>Makes some turns, and ends the call.</summary>
    public async Task RunAsync(int turns, TimeSpan pause)
    {
        for (var i = 0; i < turns && Outcome is null; i++)
        {
            await TurnAsync();
            await Task.Delay(pause);
        }
        await EndAsync();
    }

    /// <summary>Sends a number that is larger than the one before, and takes the answer.</summary>
    public Task TurnAsync() => TryAsync(async () =>
    {
        // Smaller than 128, so that it is one byte; the answer's bytes are those of the request.
        byte[] message = [0, 0, 0, 0, 2, 8, ++number];
        body.Write(message);
        var answer = new byte[message.Length];
        var response = await sending;
        if (response.StatusCode != HttpStatusCode.OK)
        {
            Outcome = Status(response);
            return;
        }
        var count = await (await response.Content.ReadAsStreamAsync()).ReadAtLeastAsync(answer, answer.Length, throwOnEndOfStream: false);
        if (count == 0)
            Outcome = Status(response);
        else
            Assert.Equal(message, answer);
    });

    /// <summary>Ends the requests, and takes the status.</summary>
    public Task EndAsync() => TryAsync(async () =>
    {
        body.End();
        var response = await sending;
        if (response.StatusCode == HttpStatusCode.OK)
            Assert.Equal(0, await (await response.Content.ReadAsStreamAsync()).ReadAsync(new byte[1]));
        Outcome = Status(response);
    });

    static string Status(HttpResponseMessage response) => response.StatusCode != HttpStatusCode.OK ? $"HTTP {response.StatusCode}"
        : $"{One(response, "grpc-status") ?? "no grpc-status"} {One(response, "grpc-message")}";

    static string? One(HttpResponseMessage response, string name) =>
        response.TrailingHeaders.TryGetValues(name, out var values) || response.Headers.TryGetValues(name, out values) ? values.Single() : null;

    async Task TryAsync(Func<Task> step)
    {
        if (Outcome is not null)
            return;
        try
        {
            await step().WaitAsync(Tool.Patience);
        }
        catch (Exception e) when (e is HttpRequestException or IOException or OperationCanceledException or TimeoutException)
        {
            Outcome = $"{number}: {e.GetType().Name}: {e.Message} {e.InnerException?.Message}";
        }
        if (Outcome is not null)
            body.End();
    }

    /// <summary>A request's body that is written from outside; .NET asks for it again where a proxy has refused the stream.</summary>
    sealed class OpenBody : HttpContent
    {
        readonly TaskCompletionSource<byte[]?>[] messages = [.. Enumerable.Range(0, 128).Select(_ => new TaskCompletionSource<byte[]?>(TaskCreationOptions.RunContinuationsAsynchronously))];
        int count;

        public void Write(byte[] message) => messages[count++].SetResult(message);

        public void End() => messages[count].TrySetResult(null);

        protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context)
        {
            for (var i = 0; await messages[i].Task is { } message; i++)
            {
                await stream.WriteAsync(message);
                await stream.FlushAsync();
            }
        }

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }
    }
}
