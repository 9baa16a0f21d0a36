using System.Runtime.CompilerServices;

namespace Streamer.Tests;

/// <summary>What a user types, and what comes back.</summary>
public class CommandLine(SharedServer server)
{
    [Fact]
    public async Task Max() => Snapshot.Verify((await OneProcess.RunAsync("1 5 3 6 2 20\n", "max", "--address", server.Address)).ToString());

    [Fact]
    public Task MaxTakesAnySeparators() => TypeAsync("""
        echo 1,5,3,6,2,20 | streamer max
        echo '1, 5,3 ,6' | streamer max
        printf '1\n5\n3\n6\n' | streamer max
        printf '1\r\n5\r\n3\r\n6\r\n' | streamer max
        printf '\n\n , 1\t5\v3\f6 ,,\n \n' | streamer max
        printf '1 5' | streamer max
        printf '\xef\xbb\xbf1 5\n' | streamer max
        """);

    [Fact]
    public Task MaxTakesAnyInteger() => TypeAsync("""
        echo -3 -5 -1 0 | streamer max
        echo 0 -1 | streamer max
        echo +7 007 8 | streamer max
        echo -9223372036854775808 9223372036854775807 | streamer max
        """);

    [Fact]
    public Task MaxTakesNothing() => TypeAsync("""
        streamer max < /dev/null
        printf '\xef\xbb\xbf' | streamer max
        echo ' , ' | streamer max
        """);

    [Fact]
    public Task MaxRefusesWhatIsNoInteger() => TypeAsync("""
        printf '1 2\n\n3 abc 4\n5' | streamer max
        echo 9223372036854775808 | streamer max
        echo -9223372036854775809 | streamer max
        echo 1.0 | streamer max
        echo 1e3 | streamer max
        echo 0x10 | streamer max
        echo - | streamer max
        echo 5- | streamer max
        echo 1_000 | streamer max
        printf '1\0002' | streamer max
        printf '\xff\n' | streamer max
        printf '\x1b[31mred' | streamer max
        echo ١ | streamer max
        """);

    [Fact]
    public Task Greet() => TypeAsync("""
        echo Ada | streamer greet
        echo Ada Lovelace | streamer greet
        echo Ludwig van Beethoven | streamer greet
        echo '李 小龍' | streamer greet
        echo 'Zoë  Ångström' | streamer greet
        """);

    [Fact]
    public Task GreetTakesAnyLines() => TypeAsync("""
        printf 'Ada\nGrace Hopper\n' | streamer greet
        printf 'Ada\r\nGrace Hopper\r\n' | streamer greet
        printf '\n\nAda\n \t \n\r\nGrace Hopper\n\n' | streamer greet
        printf ' Ada \n\tGrace\tHopper\t' | streamer greet
        printf 'Ada' | streamer greet
        printf '\xef\xbb\xbfAda\n' | streamer greet
        streamer greet < /dev/null
        """);

    [Fact]
    public Task GreetRefusesWhatIsNotUtf8() => TypeAsync("""
        printf 'Ada\n\nGrace \xff\xfe\nAlan' | streamer greet
        printf 'Ada\n\xc3' | streamer greet
        """);

    /// <summary>These tokens never end: a client that held one whole would die of it, and one that waited for its end would hang.</summary>
    [Fact]
    public Task AnEndlessTokenIsRefused() => TypeApartAsync("""
        yes 1 | tr -d '\n' | streamer max
        yes x | tr -d '\n' | streamer max
        (echo 1 5; yes 1 | tr -d '\n') | streamer max
        (echo Ada; yes Ada | tr -d '\n') | streamer greet
        """, ("DOTNET_GCHeapHardLimit", $"{64 << 20:x}"));

    [Fact]
    public Task TheCoursesMethods() => TypeAsync("""
        echo 1 5 3 6 2 20 | streamer max --method calculator.CalculatorService/FindMaximum
        echo 1 5 3 6 2 20 | streamer max --method /calculator.CalculatorService/FindMaximum
        echo Ada Lovelace | streamer greet --method greet.GreetService/GreetEveryone
        """);

    [Fact]
    public Task Options() => TypeAsync("""
        echo 1 | streamer max --address $STREAMER_ADDRESS --deadline 60 -H 'x-trace: a: b' -H 'x-trace-bin: AAE='
        echo Ada | streamer greet --address=$STREAMER_ADDRESS --deadline=60.5 -H x-trace:1
        echo 1 | streamer max --deadline 60s
        echo 1 | streamer max --deadline 60000ms
        echo 1 | streamer max --deadline 1.5m
        echo 1 | streamer max --deadline 1h
        echo 1 | STREAMER_ADDRESS= streamer max --address $STREAMER_ADDRESS
        echo 1 | STREAMER_ADDRESS=http://127.0.0.1:1 streamer max --address $STREAMER_ADDRESS
        """);

    [Fact]
    public Task Help() => TypeAsync("""
        streamer --help
        streamer serve --help
        streamer max --help
        streamer greet --help
        """);

    [Theory, Rows("", "serve", "max", "greet", "ping")]
    public async Task HelpFitsOneScreen(string command)
    {
        var result = await OneProcess.TypeAsync($"streamer {command} --help");
        Assert.Equal((0, ""), (result.ExitCode, result.Error));
        var lines = result.Output.TrimEnd('\n').Split('\n');
        Assert.InRange(lines.Length, 1, 24);
        Assert.All(lines, line => Assert.InRange(line.Length, 0, 80));
        // Nothing is a question.
        if (command == "")
            Assert.Equal(result, await OneProcess.TypeAsync("streamer"));
    }

    [Fact]
    public async Task Version() => Assert.Matches(@"^exit code: 0\n--- stdout\n[0-9]+\.[0-9]+\.[0-9]+\n--- stderr\n\z", $"{await OneProcess.TypeAsync("streamer --version")}");

    /// <summary>What `dotnet-suggest` asks, for every shell that it knows.</summary>
    [Fact]
    public async Task CommandsAreSuggested()
    {
        var (exitCode, output, error) = await OneProcess.TypeAsync("streamer '[suggest:9]' 'streamer '");
        Assert.Equal((0, ""), (exitCode, error));
        Assert.Superset(new HashSet<string> { "serve", "max", "greet", "ping" }, output.Split('\n').ToHashSet());
    }

    [Fact]
    public Task UnknownCommands() => TypeAsync("""
        streamer maximum
        streamer grete
        streamer Max
        streamer '[x]' max
        """);

    [Fact]
    public Task UnknownOptions() => TypeAsync("""
        streamer --verbose
        streamer serve --port 1
        streamer max --adress http://127.0.0.1:1
        streamer serve --lisen=http://127.0.0.1:1
        streamer --address http://127.0.0.1:1 max
        streamer --address=http://127.0.0.1:1 max
        streamer --address http://127.0.0.1:1
        streamer --listen http://127.0.0.1:0 serve
        streamer -v max
        streamer max --listen http://127.0.0.1:0
        streamer max 1 5 3
        streamer max -- -1
        streamer serve 50051
        streamer greet @names
        streamer greet Ada
        streamer max --address
        streamer max --address http://127.0.0.1:1 --address http://127.0.0.1:2
        """);

    [Fact]
    public Task BadAddresses() => TypeAsync("""
        streamer max --address ftp://127.0.0.1:1
        streamer max --address http://
        streamer max --address http://127.0.0.1:99999
        streamer max --address http://127.0.0.1:1/path
        streamer max --address http://user@127.0.0.1:1
        streamer max --address ''
        STREAMER_ADDRESS=: streamer greet
        streamer serve --listen ftp://127.0.0.1:0
        streamer serve --listen http://somewhere.invalid:0
        streamer serve --listen ''
        """);

    [Fact]
    public Task BadMethods() => TypeAsync("""
        streamer max --method ''
        streamer max --method FindMaximum
        streamer max --method http://127.0.0.1:1/streaming.CalculatorService/FindMaximum
        streamer max --method //127.0.0.1:1/FindMaximum
        streamer max --method 'a b/c'
        """);

    [Fact]
    public Task BadMetadata() => TypeAsync("""
        streamer max -H
        streamer max -H x-trace
        streamer max -H ': 1'
        streamer max -H 'x trace: 1'
        streamer max -H 'x-trace: ü'
        streamer max -H 'x-trace-bin: not base64'
        streamer max -H 'grpc-timeout: 1S'
        streamer max -H 'content-type: text/plain'
        streamer max -H 'Expect: 100-continue'
        streamer max -H 'connection: close'
        streamer max -H 'proxy-connection: close'
        streamer max -H 'keep-alive: 1'
        streamer max -H 'transfer-encoding: chunked'
        streamer max -H 'content-length: 1'
        streamer max -H 'upgrade: websocket'
        streamer max -H 'trailer: x'
        streamer max -H 'te: gzip'
        streamer max -H 'host: x'
        streamer max -H no-colon
        streamer max -H ':path: /x'
        streamer max -H 'naïve: x'
        streamer max -H 'a/b: x'
        streamer max -H 'grpc-anything: x'
        streamer max -H 'User-Agent: x'
        streamer max -H $'x: a\nb'
        streamer max -H 'x-bin: AAAAA'
        """);

    [Fact]
    public Task BadDeadlines() => TypeAsync("""
        streamer max --deadline 0
        streamer max --deadline -1
        streamer max --deadline soon
        streamer max --deadline 1,5
        streamer max --deadline NaN
        streamer max --deadline Infinity
        streamer max --deadline 0ms
        streamer max --deadline 5x
        streamer max --deadline 1sm
        streamer max --deadline s
        streamer max --deadline 2000h
        streamer serve --drain soon
        """);

    [Fact]
    public Task ATakenPort() => TypeAsync("""
        streamer serve --listen $STREAMER_ADDRESS
        streamer serve --listen http://127.0.0.1:0 --listen $STREAMER_ADDRESS
        """);

    [Fact]
    public Task NobodyThere() => TypeAsync("""
        echo 1 | streamer max --address http://127.0.0.1:1
        echo 1 | streamer max --address 127.0.0.1:1
        echo Ada | STREAMER_ADDRESS=http://127.0.0.1:1 streamer greet
        """);

    [Fact]
    public Task AnUnknownMethod() => TypeAsync("echo 1 | streamer max --method streaming.CalculatorService/FindMinimum");

    [Fact]
    public Task AReaderThatGoesAway() => TypeApartAsync("""
        yes Ada | streamer greet | head -1; echo ${PIPESTATUS[1]}
        seq 1 10000000 | streamer max | head -2; echo ${PIPESTATUS[1]}
        """);

    [Fact]
    public Task AFullStdout() => TypeApartAsync("echo 1 | streamer max > /dev/full");

    [Fact]
    public Task AnUnreadableStdin() => TypeApartAsync("""
        streamer max < .
        streamer greet < .
        """);

    [Fact]
    public Task NoLineIsCutAtTheDeadline() => Wait.ForEnoughAsync(async deadline =>
    {
        // More than fits in the pipe, which nobody reads before the deadline has passed: that began before the request came.
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync([Frame.Headers(stream, [(":status", "200"), ("content-type", "application/grpc")]), .. Frame.AllData(stream, Grpc.Numbers([.. Enumerable.Range(1, 30_000).Select(i => (long)i)]))]);
            await Task.Delay(TimeSpan.FromSeconds(deadline));
        });
        await using var client = Running.Start("max", "--address", fake.Address, "--deadline", $"{deadline}");
        await Wait.UntilAsync(async () => client.HasExited || fake.Serving.IsCompleted && await Running.AreAtRestAsync(client), () => "the client does not wait for its reader");
        var result = await client.EndAsync();
        Assert.Equal(68, result.ExitCode);
        var lines = result.Output.Split('\n');
        Assert.Equal("", lines[^1]);
        Assert.Equal(Enumerable.Range(1, lines.Length - 1).Select(i => $"{i}"), lines[..^1]);
        return lines.Length > 10_000;
    });

    [Fact]
    public async Task ADeadlineThatPasses()
    {
        await using var client = Running.Start("max", "--address", server.Address, "--deadline", "0.5");
        var end = await client.EndAsync();
        Assert.Equal((68, ""), (end.ExitCode, end.Output));
        // What follows tells what was still missing when it passed, if anything.
        Assert.StartsWith("streamer: DEADLINE_EXCEEDED: the deadline has passed", end.Error);
    }

    [Theory, InlineData("http://127.0.0.1:0", "127.0.0.1"), InlineData("http://localhost:0", "127.0.0.1", "[::1]")]
    public async Task ServePrintsALineForEachEndpoint(string url, params string[] hosts)
    {
        hosts = HasIPv6 ? hosts : hosts[..1];
        await using var own = await RunningServer.StartAsync(hosts.Length, "--listen", url);
        Assert.NotEqual(0, own.Port);
        Assert.Equal(hosts.Select(host => $"http://{host}:{own.Port}"), own.Addresses);
        foreach (var address in own.Addresses)
            Assert.Equal(new(0, "1\n", ""), await OneProcess.RunAsync("1", "max", "--address", address));
        own.Process.Signal("TERM");
        var end = await own.Process.EndAsync();
        Assert.Equal(("", ""), (end.Output, end.Error));
    }

    [Fact]
    public async Task ServeTakesManyEndpoints()
    {
        await using var own = await RunningServer.StartAsync(2, "--listen", "http://127.0.0.1:0", "--listen", "http://127.0.0.2:0");
        foreach (var address in own.Addresses)
            Assert.Equal(new(0, "Hello Ada!\n", ""), await OneProcess.RunAsync("Ada", "greet", "--address", address));
    }

    internal static bool HasIPv6
    {
        get
        {
            try
            {
                using var listener = new TcpListener(IPAddress.IPv6Loopback, 0);
                listener.Start();
                return true;
            }
            catch (SocketException)
            {
                return false;
            }
        }
    }

    Task TypeAsync(string lines, [CallerMemberName] string test = "") => VerifyAsync(lines, line => OneProcess.TypeAsync(line, server.Address), test);

    // Each line's process is its own.
    Task TypeApartAsync(string lines, (string, string?) variable = default, [CallerMemberName] string test = "") =>
        VerifyAsync(lines, line => Tool.TypeAsync(line, [("STREAMER_ADDRESS", server.Address), .. variable == default ? [] : (ReadOnlySpan<(string, string?)>)[variable]]), test);

    async Task VerifyAsync(string lines, Func<string, Task<Result>> type, string test) =>
        Snapshot.Verify((await Transcript.OfAsync(lines, type)).Replace(server.Address, "http://127.0.0.1:PORT"), test: test);
}

/// <summary>The address that is called where none is given. One test at a time may have its port, and no other test may be given it.</summary>
[TestClass(DisableParallelization = true)]
public class DefaultAddress : IAsyncLifetime
{
    public async ValueTask InitializeAsync() => Skipped.Unless(!await Site.ConnectsAsync(50051), "port 50051, where a server listens");

    public ValueTask DisposeAsync() => default;

    [Fact]
    public async Task IsServed()
    {
        string[] hosts = CommandLine.HasIPv6 ? ["127.0.0.1", "[::1]"] : ["127.0.0.1"];
        await using var server = await RunningServer.StartAsync(hosts.Length);
        Assert.Equal(hosts.Select(host => $"http://{host}:50051"), server.Addresses);
        Snapshot.Verify(await Transcript.OfAsync("""
            echo 1 5 3 6 2 20 | streamer max
            echo Ada | streamer greet
            echo Ada | STREAMER_ADDRESS= streamer greet
            """, line => OneProcess.TypeAsync(line)));
    }

    [Fact]
    public async Task FallsBackWhereNobodyListens() => Snapshot.Verify(await Transcript.OfAsync("""
        echo 1 5 3 6 2 20 | streamer max
        printf 'Ada\nGrace Hopper\n' | streamer greet
        echo 1 abc | streamer max
        echo 1 | streamer max --method a.B/C
        """, line => Tool.TypeAsync(line)));

    [Fact]
    public async Task FallsBackWithoutAStderr()
    {
        foreach (var redirection in new[] { "2>/dev/full", "2>&-", "2> >(true)" })
            Assert.Equal(new(0, "1\n5\n", ""), await Tool.TypeAsync($"echo 1 5 3 | streamer max {redirection}"));
    }

    [Fact]
    public async Task NeverFallsBackWhereItWasAskedFor() => Snapshot.Verify(await Transcript.OfAsync("""
        echo 1 | streamer max --address http://localhost:50051
        echo 1 | STREAMER_ADDRESS=http://localhost:50051 streamer max
        echo 1 | streamer max --address localhost
        echo 1 | streamer max --address 127.0.0.1
        echo 1 | streamer max --address ::1
        """, line => OneProcess.TypeAsync(line)));
}

static class Transcript
{
    /// <summary>Types lines into a shell, and writes down what a terminal would show.</summary>
    public static async Task<string> OfAsync(string lines, Func<string, Task<Result>> type)
    {
        var transcript = new StringBuilder();
        var separator = "";
        foreach (var line in lines.Split('\n'))
        {
            var (exitCode, output, error) = await type(line);
            transcript.Append($"{separator}$ {line}\n{output}");
            foreach (var told in error.Split('\n').SkipLast(1))
                transcript.Append($"stderr: {told}\n");
            transcript.Append(exitCode == 0 ? "" : $"exit code: {exitCode}\n");
            separator = "\n";
        }
        return transcript.ToString();
    }
}
