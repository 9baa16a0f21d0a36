namespace Streamer.Tests;

/// <summary>What a server leaves behind that has drained, and says on stderr when streams were running.</summary>
static class Drained
{
    /// <summary>The end of a server that was told SIGTERM.</summary>
    /// <param name="running">How many streams were running then.</param>
    /// <param name="patience">What --drain gave them, in seconds.</param>
    /// <param name="cut">How many of them did not end within that time.</param>
    public static Result After(int running, int patience, int cut = 0) => new(cut > 0 ? 143 : 0, "",
        $"streamer: draining: {running} {(running == 1 ? "stream is" : "streams are")} running; up to {patience} s; a second signal ends at once\n"
        + $"streamer: drained: {running - cut} ended in time, {cut} cut off\n");

    /// <summary>The same where nobody can tell how many streams are running just then.</summary>
    public static void AssertNoneCut(Result end)
    {
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.Matches(@"^(streamer: draining: \d+ streams? (is|are) running; .*\nstreamer: drained: \d+ ended in time, 0 cut off\n)?$", end.Error);
    }
}

/// <summary>SIGHUP, SIGINT and SIGTERM, on both sides.</summary>
public class Drain
{
    // A busy machine may close the connection before the reason has left.
    const string ShuttingDown = $@"\Astreamer: UNAVAILABLE: (server is shutting down|\S+ shut down before the stream had ended|the connection to \S+ was lost){Verbose.Counts}\n\z";

    static Task<RunningServer> ServeAsync(int drain) => RunningServer.StartAsync("--drain", $"{drain}");

    static async Task<Running> CallAsync(RunningServer server)
    {
        var client = Running.Start("max", "--address", server.Address);
        await client.TurnAsync("1", "1");
        return client;
    }

    static Task BeginsAsync(RunningServer server) => Wait.UntilAsync(async () => !await Site.ConnectsAsync(server.Port), () => "the drain does not begin");

    [Theory, InlineData("HUP", 129), InlineData("INT", 130), InlineData("TERM", 143)]
    public Task AClientResetsItsCallAndEndsWithTheSignalsCode(string signal, int exitCode) => Wait.UntilInTimeAsync(async () =>
    {
        var reset = new TaskCompletionSource<Frame?>();
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Headers(stream, [(":status", "200"), ("content-type", "application/grpc")]), Frame.Data(stream, Grpc.Numbers(7)));
            reset.SetResult(await peer.ReadAsync());
        });
        await using var client = Running.Start("max", "--address", fake.Address);
        await client.TurnAsync("1", "7");
        client.Signal(signal);
        Assert.Equal(new(exitCode, "", ""), await client.EndAsync());
        // The client gives it half a second to leave, and a busy machine may take longer.
        return await reset.Task.WaitAsync(Tool.Patience) is { Type: FrameType.RstStream, ErrorCode: ErrorCode.Cancel };
    }, "the client does not reset its call");

    [Theory, Rows("HUP", "INT", "TERM")]
    public async Task AServerTakesNothingNewAndEndsWithItsLastStream(string signal)
    {
        await using var server = await ServeAsync(1000);
        await using var running = await CallAsync(server);

        await using var old = await Http2Peer.ConnectAsync(server.Port);
        var watch = await old.RequestAsync("/grpc.health.v1.Health/Watch", []);
        await old.SendAsync(Frame.Data(watch, Grpc.Message([]), end: true));
        Assert.Equal(Grpc.Numbers(1), (await old.ReadAsync(FrameType.Data, watch))?.Payload);
        var stream = await old.RequestAsync(Grpc.FindMaximum, []);
        Assert.NotNull(await old.ReadAsync(FrameType.Headers, stream));

        server.Process.Signal(signal);
        var seen = new List<Frame>();
        while (!seen.Exists(frame => frame.Type == FrameType.GoAway) || !seen.Exists(frame => frame.Stream == watch))
            seen.Add(await old.ReadAsync() ?? throw new IOException("the connection ended early"));
        Assert.Equal(Grpc.Numbers(2), seen.First(frame => frame.Stream == watch).Payload);

        // The old connection still carries its old stream.
        await old.SendAsync(Frame.Data(stream, Grpc.Numbers(5), end: true));
        Assert.Equal(Grpc.Numbers(5), (await old.ReadAsync(FrameType.Data, stream))?.Payload);
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {server.Address}\n"), await OneProcess.TypeAsync($"echo 1 | streamer max --address {server.Address}"));

        await running.TurnAsync("2", "2");
        Assert.False(server.Process.HasExited);
        running.Input.Close();
        Assert.Equal(new(0, "", ""), await running.EndAsync());
        // Who only watches does not hold it up, and is cut off.
        Assert.Equal(Drained.After(2, patience: 1000), await server.Process.EndAsync());
        Assert.Null(await old.ReadAsync(FrameType.Data, stream));
    }

    [Fact]
    public async Task APooledConnectionGetsNoNewStream()
    {
        await using var server = await ServeAsync(1000);
        await using var running = await CallAsync(server);
        var old = new SlowCall(server.Address);
        await old.TurnAsync();
        server.Process.Signal("TERM");
        await BeginsAsync(server);
        // What is under way when the GOAWAY comes is still served; then the pool needs a new connection, and gets none.
        await Wait.UntilAsync(async () =>
        {
            var call = new SlowCall(server.Address);
            await call.RunAsync(1, TimeSpan.Zero);
            return call.Outcome!.Contains(nameof(SocketError.ConnectionRefused)) || call.Outcome.Contains("Connection refused");
        }, () => "the pool goes on");
        await old.TurnAsync();
        await old.EndAsync();
        Assert.Equal("0 ", old.Outcome);
    }

    [Fact]
    public async Task ADrainMayLastLongerThanTheHostsOwn30Seconds()
    {
        await using var server = await ServeAsync(1000);
        await using var running = await CallAsync(server);
        server.Process.Signal("TERM");
        await Task.Delay(TimeSpan.FromSeconds(33));
        await running.TurnAsync("2", "2");
        running.Input.Close();
        Assert.Equal(new(0, "", ""), await running.EndAsync());
        Assert.Equal(Drained.After(1, patience: 1000), await server.Process.EndAsync());
    }

    // A proxy's connection is at rest between two calls, and the next call under way when the drain begins.
    [Fact]
    public Task ACallThatIsUnderWayWhenItsConnectionIsToldIsServed() => Wait.UntilInTimeAsync(async () =>
    {
        await using var server = await RunningServer.StartAsync();
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        Assert.True((await peer.ReadResponseAsync(await peer.RequestAsync(Grpc.FindMaximum, [], end: true))).Ended);
        server.Process.Signal("TERM");
        Frame? frame = null;
        while (frame?.Type != FrameType.GoAway)
        {
            await peer.RequestAsync(Grpc.FindMaximum, [], end: true);
            do
                Assert.NotNull(frame = await peer.ReadAsync());
            while (frame.Type != FrameType.GoAway && !frame.EndsStream);
        }
        Assert.Equal(int.MaxValue, BinaryPrimitives.ReadInt32BigEndian(frame.Payload));
        var last = await peer.RequestAsync(Grpc.FindMaximum, [], end: true);
        while ((frame = await peer.ReadAsync(FrameType.Headers, last)) is { EndsStream: false })
        {
        }
        Drained.AssertNoneCut(await server.Process.EndAsync());
        // The server waits a quarter of a second for it, and on a busy machine it may come later.
        return frame is not null;
    }, "no call is served that is under way");

    [Fact]
    public async Task AServerWaitsForNobodyWithoutAStream()
    {
        await using var server = await ServeAsync(1000);
        await using var silent = await Http2Peer.ConnectSilentlyAsync(server.Port);
        await using var idle = await Http2Peer.ConnectAsync(server.Port);
        Assert.True((await idle.ReadResponseAsync(await idle.RequestAsync(Grpc.FindMaximum, [], end: true))).Ended);
        server.Process.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
    }

    [Fact]
    public Task WhatIsOpenAtTheDrainsEndGetsItsAnswersAndThenTheReason() => Wait.ForEnoughAsync(async drain =>
    {
        await using var server = await ServeAsync(drain);
        await using var running = await CallAsync(server);
        const int count = 100_000;
        await running.WriteLineAsync(string.Join(' ', Enumerable.Range(2, count - 1)));
        server.Process.Signal("TERM");
        var result = await running.EndAsync();
        Assert.Equal(78, result.ExitCode);
        Assert.Matches(ShuttingDown, result.Error);
        var expected = string.Concat(Enumerable.Range(2, count - 1).Select(i => $"{i}\n"));
        Assert.StartsWith(result.Output, expected);
        Assert.Equal(Drained.After(1, patience: drain, cut: 1), await server.Process.EndAsync());
        // All that was fed may not have come to the server by then.
        return result.Output == expected && result.Error.Contains("server is shutting down");
    });

    [Fact]
    public async Task NoAnswerIsSkippedWhenABusyStreamIsEnded()
    {
        await using var server = await ServeAsync(0);
        await using var running = Running.Start("max", "--address", server.Address);
        var feeding = running.FeedNumbersAsync(1);
        for (var i = 1; i <= 1000; i++)
            Assert.Equal($"{i}", await running.ReadLineAsync());
        server.Process.Signal("TERM");
        var result = await running.EndAsync();
        await feeding;
        Assert.Equal(78, result.ExitCode);
        Assert.Matches(ShuttingDown, result.Error);
        var expected = 1000;
        // There are millions of them.
        foreach (var line in result.Output.Split('\n', StringSplitOptions.RemoveEmptyEntries))
            if (int.Parse(line) != ++expected)
                Assert.Fail($"{line} came after {expected - 1}");
        Assert.Equal(Drained.After(1, patience: 0, cut: 1), await server.Process.EndAsync());
    }

    [Theory, InlineData("INT", 130), InlineData("TERM", 143)]
    public async Task CuttingAStreamOffIsNoSuccess(string signal, int exitCode)
    {
        await using var server = await ServeAsync(0);
        await using var running = await CallAsync(server);
        server.Process.Signal(signal);
        Assert.Equal(Drained.After(1, patience: 0, cut: 1) with { ExitCode = exitCode }, await server.Process.EndAsync());
        Assert.Equal(78, (await running.EndAsync()).ExitCode);
    }

    // An answer that its reader has not taken yet, and never will, holds a stream up at the end.
    [Fact]
    public async Task AStreamWhosePeerDoesNotReadIsCutOffToo()
    {
        await using var server = await ServeAsync(0);
        await using var peer = await Http2Peer.ConnectAsync(server.Port, window: 1);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1)));
        Assert.NotNull(await peer.ReadAsync(FrameType.Headers, id));
        server.Process.Signal("TERM");
        Assert.Equal(Drained.After(1, patience: 0, cut: 1), await server.Process.EndAsync());
    }

    [Theory, InlineData("HUP", 129), InlineData("INT", 130), InlineData("TERM", 143)]
    public async Task ASecondSignalEndsAServerAtOnce(string signal, int exitCode)
    {
        await using var server = await ServeAsync(1000);
        await using var running = await CallAsync(server);
        server.Process.Signal("TERM");
        await BeginsAsync(server);
        server.Process.Signal(signal);
        var end = await server.Process.EndAsync();
        Assert.Equal((exitCode, ""), (end.ExitCode, end.Output));
        Assert.Matches(@"^streamer: draining: .*\nstreamer: drained: \d+ ended in time, 1 cut off\n$", end.Error);
        Assert.Equal(78, (await running.EndAsync()).ExitCode);
    }

    [Fact]
    public async Task Process1OfAContainerEndsAsWell()
    {
        string[] inside = ["--pid", "--fork", "--mount-proc", "--kill-child"];
        await using (var attempt = Running.StartProcess("unshare", [.. inside, "true"]))
            Skipped.Unless((await attempt.EndAsync()).ExitCode == 0, "root, to make a PID namespace on Linux");
        await using var container = Running.StartBy("unshare", inside, "serve", "--listen", "http://127.0.0.1:0");
        var address = await container.ReadAddressAsync();
        var one = File.ReadAllText($"/proc/{container.Id}/task/{container.Id}/children").Trim();
        Assert.Contains("NSpid:\t" + one + "\t1\n", File.ReadAllText($"/proc/{one}/status"));
        Running.Signal(int.Parse(one), "TERM");
        Assert.Equal(new(0, "", ""), await container.EndAsync());
    }
}
