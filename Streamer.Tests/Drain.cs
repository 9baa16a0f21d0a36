namespace Streamer.Tests;

/// <summary>SIGHUP, SIGINT and SIGTERM, on both sides.</summary>
public class Drain
{
    const string ShuttingDown = $@"\Astreamer: UNAVAILABLE: server is shutting down{Verbose.Counts}\n\z";

    [Theory, InlineData("HUP", 129), InlineData("INT", 130), InlineData("TERM", 143)]
    public Task AClientResetsItsCallAndEndsWithTheSignalsCode(string signal, int exitCode) => Wait.UntilInTimeAsync(async () =>
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        await using var client = Running.Start("max", "--address", $"http://{listener.LocalEndpoint}");
        using var server = await RawHttp2.AcceptAsync(listener);
        await client.WriteLineAsync("1");
        Assert.NotNull(await server.ReadAsync(RawHttp2.Data, 1));
        client.Signal(signal);
        var reset = await server.ReadAsync(RawHttp2.RstStream, 1);
        Assert.Equal(new(exitCode, "", ""), await client.EndAsync());
        // The client gives it half a second to leave, and a busy machine may take longer.
        return reset?.Word() == 8;
    }, "the client does not reset its call");

    [Theory, Rows("HUP", "INT", "TERM")]
    public async Task AServerTakesNothingNewAndEndsWithItsLastStream(string signal)
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "1000");
        await using var running = Running.Start("max", "--address", server.Address);
        await running.TurnAsync("1", "1");

        using var old = await RawHttp2.ConnectAsync(server.Port);
        await old.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 1, RawHttp2.Call("/grpc.health.v1.Health/Watch"));
        await old.SendAsync(RawHttp2.Data, RawHttp2.EndStream, 1, RawHttp2.Message());
        await old.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 3, RawHttp2.Call(RawHttp2.FindMaximum));
        Assert.Equal(RawHttp2.Message(8, 1), (await old.ReadAsync(RawHttp2.Data, 1))?.Payload);

        server.Process.Signal(signal);
        var seen = new List<RawHttp2.Frame>();
        while (!(seen.Exists(frame => frame.Type == RawHttp2.GoAway) && seen.Exists(frame => frame.Stream == 1 && (frame.Flags & RawHttp2.EndStream) != 0)))
            seen.Add(await old.ReadAsync() ?? throw new IOException("the connection ended early"));
        Assert.Equal(RawHttp2.Message(8, 2), seen.First(frame => (frame.Type, frame.Stream) == (RawHttp2.Data, 1)).Payload);
        Assert.Contains("server is shutting down", seen.Last(frame => frame.Stream == 1 && frame.Type == RawHttp2.Headers).Text());

        // The old connection still carries its old stream, and ends with it although the peer keeps it open.
        await old.SendAsync(RawHttp2.Data, RawHttp2.EndStream, 3, RawHttp2.Message(8, 5));
        Assert.Equal(RawHttp2.Message(8, 5), (await old.ReadAsync(RawHttp2.Data, 3))?.Payload);
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {server.Address}\n"), await Tool.RunAsync("1\n", "max", "--address", server.Address));

        await running.TurnAsync("2", "2");
        Assert.False(server.Process.HasExited);
        running.Input.Close();
        Assert.Equal(new(0, "", ""), await running.EndAsync());
        Assert.Equal(Drained.After(3, patience: 1000), await server.Process.EndAsync());
        Assert.Null(await old.ReadAsync(RawHttp2.Data));
    }

    [Fact]
    public async Task APooledConnectionGetsNoNewStream()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "1000");
        await using var running = Running.Start("max", "--address", server.Address);
        await running.TurnAsync("1", "1");

        using var pool = new HttpMessageInvoker(new SocketsHttpHandler());
        Task<HttpResponseMessage> SendAsync() => pool.SendAsync(new(HttpMethod.Post, $"{server.Address}/grpc.health.v1.Health/Watch")
        {
            Version = HttpVersion.Version20,
            VersionPolicy = HttpVersionPolicy.RequestVersionExact,
            Content = new ByteArrayContent(RawHttp2.Message()) { Headers = { ContentType = new("application/grpc") } },
        }, TestContext.Current.CancellationToken);

        using var watch = await SendAsync();
        var answers = await watch.Content.ReadAsStreamAsync(TestContext.Current.CancellationToken);
        var answer = new byte[RawHttp2.Message(8, 1).Length];
        await answers.ReadExactlyAsync(answer, TestContext.Current.CancellationToken);
        Assert.Equal(RawHttp2.Message(8, 1), answer);
        server.Process.Signal("TERM");
        await answers.ReadExactlyAsync(answer, TestContext.Current.CancellationToken);
        Assert.Equal(RawHttp2.Message(8, 2), answer);
        Assert.Equal(0, await answers.ReadAsync(answer, TestContext.Current.CancellationToken));
        Assert.Equal("14", watch.TrailingHeaders.GetValues("grpc-status").Single());
        // What is under way when the GOAWAY comes is still served; then the pool needs a new connection, and gets none.
        var refused = await Assert.ThrowsAsync<HttpRequestException>(async () =>
        {
            while (true)
                (await SendAsync()).Dispose();
        });
        Assert.Equal(HttpRequestError.ConnectionError, refused.HttpRequestError);
    }

    [Fact]
    public async Task ADrainMayLastLongerThanTheHostsOwn30Seconds()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "1000");
        await using var running = Running.Start("max", "--address", server.Address);
        await running.TurnAsync("1", "1");
        server.Process.Signal("TERM");
        await Task.Delay(TimeSpan.FromSeconds(33), TestContext.Current.CancellationToken);
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
        using var peer = await RawHttp2.ConnectAsync(server.Port);
        Assert.NotNull(await peer.ReadAsync(RawHttp2.Settings));
        server.Process.Signal("TERM");
        RawHttp2.Frame? frame = null;
        var number = -1;
        while (frame?.Type != RawHttp2.GoAway)
        {
            await CallAsync();
            do
                Assert.NotNull(frame = await peer.ReadAsync());
            while (frame.Type != RawHttp2.GoAway && (frame.Flags & RawHttp2.EndStream) == 0);
        }
        Assert.Equal(int.MaxValue, frame.Word());
        await CallAsync();
        while ((frame = await peer.ReadAsync(RawHttp2.Headers, number)) is { } headers && (headers.Flags & RawHttp2.EndStream) == 0)
        {
        }
        Drained.AssertNoneCut(await server.Process.EndAsync());
        // The server waits a quarter of a second for it, and on a busy machine it may come later.
        return frame is not null;

        ValueTask CallAsync() => peer.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders | RawHttp2.EndStream, number += 2, RawHttp2.Call(RawHttp2.FindMaximum));
    }, "no call is served that is under way");

    [Fact]
    public async Task AServerWaitsForNobodyWithoutAStream()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "1000");
        using var silent = await RawHttp2.DialAsync(server.Port);
        using var idle = await RawHttp2.ConnectAsync(server.Port);
        Assert.NotNull(await idle.ReadAsync(RawHttp2.Settings));
        server.Process.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
    }

    [Fact]
    public Task WhatIsOpenAtTheDrainsEndGetsItsAnswersAndThenTheReason() => Wait.ForEnoughAsync(async drain =>
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", $"{drain}");
        await using var running = Running.Start("max", "--address", server.Address);
        const int count = 100_000;
        var feeding = FeedAsync();
        async Task FeedAsync()
        {
            for (var i = 1; i <= count; i++)
                await running.Input.WriteAsync($"{i} ");
            await running.Input.WriteAsync('\n');
            await running.Input.FlushAsync();
        }
        Assert.Equal("1", await running.ReadLineAsync());
        await feeding;
        server.Process.Signal("TERM");
        var result = await running.EndAsync();
        Assert.Equal(78, result.ExitCode);
        Assert.Matches(ShuttingDown, result.Error);
        var expected = string.Concat(Enumerable.Range(2, count - 1).Select(i => $"{i}\n"));
        Assert.StartsWith(result.Output, expected);
        Assert.Equal(Drained.After(1, patience: drain, cut: 1), await server.Process.EndAsync());
        // All that was fed may not have come to the server by then.
        return result.Output == expected;
    });

    [Fact]
    public async Task NoAnswerIsSkippedWhenABusyStreamIsEnded()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "0");
        await using var running = Running.Start("max", "--address", server.Address);
        var feeding = FeedAsync();
        async Task FeedAsync()
        {
            try
            {
                for (var i = 1; ; i++)
                    await running.Input.WriteAsync($"{i}\n");
            }
            catch (IOException)
            {
            }
        }
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

    [Theory, InlineData("HUP", 129), InlineData("INT", 130), InlineData("TERM", 143)]
    public async Task ASecondSignalEndsAServerAtOnce(string signal, int exitCode)
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "1000");
        await using var running = Running.Start("max", "--address", server.Address);
        await running.TurnAsync("1", "1");
        server.Process.Signal("TERM");
        while ((await Tool.RunAsync("1\n", "max", "--address", server.Address)).ExitCode != 78)
        {
        }
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
        Assert.Equal(new(0, "1\n", ""), await Tool.RunAsync("1\n", "max", "--address", address));
        var one = File.ReadAllText($"/proc/{container.Id}/task/{container.Id}/children").Trim();
        Assert.Contains("NSpid:\t" + one + "\t1\n", File.ReadAllText($"/proc/{one}/status"));
        Running.Signal(int.Parse(one), "TERM");
        Assert.Equal(new(0, "", ""), await container.EndAsync());
    }
}
