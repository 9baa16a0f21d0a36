using System.Runtime.CompilerServices;

namespace Streamer.Tests;

/// <summary>What the tool shows of a stream on stderr: -v, --stats, the numbers in errors, and `serve -v`.</summary>
public sealed class Verbose(SharedServer server)
{
    static readonly (string, string)[] headers = [(":status", "200"), ("content-type", "application/grpc")], ok = [("grpc-status", "0")];

    /// <summary>What an error says of a stream that had begun.</summary>
    internal const string Counts = @" \([0-9]+ sent, [0-9]+ received, [0-9.]+ s, silent for [0-9.]+ s\)";

    [Fact]
    public async Task EachEventOfAStreamIsShown()
    {
        var shown = new StringBuilder();
        foreach (var (command, line, answer) in new[] { ("max", "5", "5"), ("greet", "Ada  Lovelace", "Hello Ada Lovelace!") })
        {
            await using var client = Running.Start(command, "--address", server.Address, "-v", "-H", "x-trace: 1");
            await client.TurnAsync(line, answer);
            client.Input.Close();
            shown.Append($"{command}\n{InOrder(await client.EndAsync())}");
        }
        Verify(shown.ToString());
    }

    [Fact]
    public async Task StdoutIsTheSame()
    {
        string[] max = ["max", "--address", server.Address];
        var input = string.Concat(Enumerable.Range(1, 20_000).Select(i => $"{i} {i / 2}\n"));
        var plain = await Tool.RunAsync(input, max);
        foreach (var options in new string[][] { ["--verbose"], ["--stats"], ["-v", "--stats"] })
        {
            var result = await Tool.RunAsync(input, [.. max, .. options]);
            Assert.Equal((0, plain.Output), (result.ExitCode, result.Output));
            Assert.Contains("40000 sent, 20000 received, ", result.Error);
        }
    }

    [Fact]
    public async Task EveryKindOfEndIsTold()
    {
        var shown = new StringBuilder();
        foreach (var option in new[] { "--stats", "-v" })
        {
            await EndAsync("half-close", (peer, stream) => peer.SendAsync(Frame.Headers(stream, ok, end: true)), endsInput: true);
            await EndAsync("the server first", (peer, stream) => peer.SendAsync(Frame.Headers(stream, ok, end: true)));
            await EndAsync("a status", (peer, stream) => peer.SendAsync(Frame.Headers(stream, [("grpc-status", "8"), ("grpc-message", "too much")], end: true)));
            await EndAsync("no trailers", (peer, stream) => peer.SendAsync(Frame.Data(stream, [], end: true)));
            await EndAsync("a reset", (peer, stream) => peer.SendAsync(Frame.RstStream(stream, ErrorCode.InternalError)));
            await EndAsync("a lost connection", (peer, _) =>
            {
                peer.ResetConnection();
                return Task.CompletedTask;
            });
            await Wait.ForEnoughAsync(seconds => EndAsync("the deadline", (_, _) => Task.CompletedTask, more: ["--deadline", $"{seconds}"]));
            await EndAsync("a signal", (_, _) => Task.CompletedTask, signal: "INT");

            async Task<bool> EndAsync(string kind, Func<Http2Peer, int, Task> end, bool endsInput = false, string? signal = null, string[]? more = null)
            {
                var answered = new TaskCompletionSource();
                await using var fake = new FakeServer(async peer =>
                {
                    var (stream, _) = await peer.ReadRequestAsync();
                    await peer.ReadAsync();
                    await peer.SendAsync(Frame.Headers(stream, headers), Frame.Data(stream, Grpc.Numbers(7)));
                    await answered.Task;
                    // What half-closes, or what the client sent last.
                    if (endsInput)
                        await peer.ReadAsync();
                    await end(peer, stream);
                });
                await using var client = Running.Start(["max", "--address", fake.Address, option, .. more ?? []]);
                await client.WriteLineAsync("5");
                if (await client.ReadLineAsync() is not { } answer)
                    return false;
                Assert.Equal("7", answer);
                if (endsInput)
                    client.Input.Close();
                answered.SetResult();
                if (signal is not null)
                    client.Signal(signal);
                var result = await client.EndAsync();
                // What leaves and comes is the same at every end.
                var told = result.Error.Split('\n').Where(line => !Regex.IsMatch(line, @"^ *[0-9.]+ ([<>] (?!half|grpc-[sm])|\* connected)"));
                shown.Append($"{option} {kind}: exit code {result.ExitCode}\n{string.Join('\n', told)}");
                return true;
            }
        }
        Verify(shown.ToString());
    }

    [Fact]
    public async Task WhatWasOnlyRefusedHasNoNumbers()
    {
        var result = await Tool.RunAsync("1", "max", "--address", server.Address, "--method", "a.B/C", "--stats");
        Assert.EndsWith("streamer: UNIMPLEMENTED: Service is unimplemented.\n", result.Error);
        Assert.Equal(new(78, "", "streamer: UNAVAILABLE: nothing listens at http://127.0.0.1:1\n"), await Tool.RunAsync("1", "max", "--address", "http://127.0.0.1:1", "-v"));
    }

    [Fact]
    public async Task RetriesAreShown()
    {
        await using var client = Running.StartInBash("exec \"$@\" 2>&1", "max", "--address", "http://127.0.0.1:1", "-v", "--wait-for-ready");
        for (var i = 0; i < 2; i++)
            Assert.Matches(@"^ *[0-9.]+ \* nothing listens at http://127\.0\.0\.1:1: to be tried again$", await client.ReadLineAsync());
    }

    [Fact]
    public async Task TlsIsShownOnBothSides()
    {
        using var certificates = new Certificates();
        await using var own = await RunningServer.StartAsync(1, "--listen", "https://127.0.0.1:0", "--cert", certificates.Server.Cert, "--key", certificates.Server.Key, "--client-ca", certificates.Root, "--verbose");
        var (cert, key) = certificates.Issue("client");
        var result = await Tool.RunAsync("1", "max", "--address", own.Address, "-v", "--cacert", certificates.Root, "--cert", cert, "--key", key);
        Assert.Equal((0, "1\n"), (result.ExitCode, result.Output));
        Assert.Matches(@"\* connected to https://127\.0\.0\.1:[0-9]+\n *[0-9.]+ \* TLS 1\.[23] with CN=.+\n *[0-9.]+ > POST", result.Error);
        // A client without a certificate, and one that does not speak TLS at all.
        Assert.Equal(80, (await Tool.RunAsync("1", "max", "--address", own.Address, "--cacert", certificates.Root)).ExitCode);
        Assert.Equal(78, (await Tool.RunAsync("1", "max", "--address", own.Address.Replace("https", "http"))).ExitCode);
        own.Process.Signal("TERM");
        var told = (await own.Process.EndAsync()).Error.TrimEnd('\n').Split('\n').Where(line => !line.StartsWith("streamer")).ToArray();
        Assert.Equal(4, told.Length);
        Assert.All(told[2..], line => Assert.Matches(@"^refused 127\.0\.0\.1:[0-9]+: the TLS handshake failed$", line));
    }

    [Fact]
    public async Task ServeTellsOfEachStream()
    {
        using var folder = new TempFolder();
        await using var own = await RunningServer.StartAsync(2, "--listen", "http://127.0.0.1:0", "--listen", $"unix:{folder["socket"]}", "-v");
        await Tool.RunAsync("1 5 3", "max", "--address", own.Address);
        await Tool.RunAsync("Ada\nGrace", "greet", "--address", own.Addresses[1]);
        await using (var peer = await Http2Peer.ConnectAsync(own.Port))
        {
            var stream = await peer.RequestAsync("/calculator.CalculatorService/FindMaximum", []);
            await peer.SendAsync(Frame.Data(stream, [.. Grpc.Numbers(1), .. Grpc.Message([0xff])]));
            Assert.Equal(Status.Internal, (await peer.ReadResponseAsync(stream)).Status);
        }
        await using (var client = Running.Start("max", "--address", own.Address))
        {
            await client.WriteLineAsync("1");
            await client.ReadLineAsync();
            client.Signal("INT");
            await client.EndAsync();
        }
        own.Process.Signal("TERM");
        var result = await own.Process.EndAsync();
        Verify(string.Join('\n', result.Error.Split('\n').Where(line => line.StartsWith("stream "))));
    }

    [Fact]
    public async Task ServeTellsTheStatusThatThePeerGets()
    {
        await using var own = await RunningServer.StartAsync("-v");
        await using var peer = await Http2Peer.ConnectAsync(own.Port);
        foreach (var (status, body, fields) in new (Status, byte[], (string, string?)[])[]
        {
            (Status.ResourceExhausted, Grpc.Prefix(5_000_000, 0), []),
            (Status.Internal, [.. Grpc.Numbers(1), 0, 0], []),
            (Status.Unimplemented, Grpc.Message(Grpc.Field(1, 5), flag: 1), [("grpc-encoding", "br")]),
        })
        {
            var stream = await peer.RequestAsync(Grpc.FindMaximum, fields);
            await peer.SendAsync(Frame.Data(stream, body, end: true));
            Assert.Equal(status, (await peer.ReadResponseAsync(stream)).Status);
        }
        own.Process.Signal("TERM");
        var told = (await own.Process.EndAsync()).Error;
        Assert.Matches("(?s)stream 1: RESOURCE_EXHAUSTED, .*stream 2: INTERNAL, .*stream 3: UNIMPLEMENTED, ", told);
    }

    [Theory, InlineData("xterm", "", true), InlineData("xterm", "1", false), InlineData("dumb", "", false)]
    public async Task DirectionsHaveColourOnATerminal(string term, string noColour, bool hasColour)
    {
        await using var terminal = Type($"max --address {server.Address} -v --stats < /dev/null", term, ("NO_COLOR", noColour));
        var output = (await terminal.EndAsync()).Output;
        Assert.Contains(hasColour ? "\e[36m>\e[0m half-close" : " > half-close", output);
        Assert.Equal(hasColour, output.Contains('\e'));
        // Events and numbers that overwrite each other would be hard to read.
        Assert.DoesNotMatch("\r[^\n]", output);
    }

    static Running Type(string arguments, string term, params (string, string?)[] environment)
    {
        var (file, first) = Tool.Command;
        return Running.StartProcess("script", ["-qefc", $"{file} {string.Join(' ', first)} {arguments}", "/dev/null"], [("TERM", term), .. environment]);
    }

    internal static async Task<string> ReadUntilAsync(Running process, string pattern)
    {
        var (read, buffer) = (new StringBuilder(), new char[4096]);
        using var patience = new CancellationTokenSource(Tool.Patience);
        while (!Regex.IsMatch(read.ToString(), pattern))
            read.Append(buffer, 0, await process.Output.ReadAsync(buffer, patience.Token) is > 0 and var count ? count : throw new EndOfStreamException(read.ToString()));
        return read.ToString();
    }

    // Both directions run at once: only within each is there an order.
    static string InOrder(Result result) => string.Concat(result.Error.Split('\n').SkipLast(1).GroupBy(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[1])
        .OrderBy(mark => mark.Key).SelectMany(mark => mark).Select(line => line + "\n"));

    void Verify(string text, [CallerMemberName] string test = "") => Snapshot.Verify(Masked(text.Replace(server.Address, "http://127.0.0.1:PORT")), test: test);

    /// <summary>A text without what is different every time.</summary>
    internal static string Masked(string text)
    {
        text = Regex.Replace(text, @"^ *[0-9]+\.[0-9]{3} (?=[*<>])", "  TIME ", RegexOptions.Multiline);
        text = Regex.Replace(text, @"[0-9.]+ (s\b|ms\b|messages/s)", "N $1");
        text = Regex.Replace(text, @"127\.0\.0\.1:[0-9]+", "127.0.0.1:PORT");
        return Regex.Replace(text, "(user-agent|date|grpc-timeout): .*", "$1: …");
    }
}
