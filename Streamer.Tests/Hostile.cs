namespace Streamer.Tests;

/// <summary>Peers that mean harm: the others are served all the while, and memory stays where it can be told beforehand.</summary>
public class Hostile(ITestOutputHelper output)
{
    // A server that has just answered its first call has 60 to 90 MiB; what one of these attacks adds is small.
    const int MemoryBound = 400;

    const int Connections = 50, Streams = 100;

    static readonly byte[] names = [.. Enumerable.Repeat(Grpc.Name(new string('x', 100)), 100).SelectMany(message => message)];

    [Fact]
    public Task ThatConnectAndSayNothing() => AttackAsync(Connections * 10, async (port, stop) =>
    {
        await using var peer = await Http2Peer.ConnectSilentlyAsync(port);
        await stop;
    });

    [Fact]
    public Task ThatOpenStreamsAndSayNothing() => AttackAsync(Connections, async (port, stop) =>
    {
        await using var peer = await Http2Peer.ConnectAsync(port);
        for (var i = 0; i < Streams; i++)
            await peer.RequestAsync(Grpc.FindMaximum, []);
        // One more than the server allows at once is refused, and the others stay.
        var refused = await peer.ReadAsync(FrameType.RstStream, await peer.RequestAsync(Grpc.FindMaximum, []));
        Assert.Equal(ErrorCode.RefusedStream, refused?.ErrorCode);
        await stop;
    });

    [Fact]
    public Task ThatSendOneByteASecond() => AttackAsync(Connections, async (port, stop) =>
    {
        // Half a header block: the server gives it 10 seconds.
        await using var peer = await Http2Peer.ConnectAsync(port);
        var headers = Frame.Headers(peer.NextStream(), Http2Peer.GrpcRequest(Grpc.FindMaximum)) with { Flags = 0 };
        await peer.SendAsync(headers);
        var closed = Task.Run(async () =>
        {
            while (await peer.ReadAsync() is not null)
            {
            }
        });
        while (!closed.IsCompleted && await Task.WhenAny(closed, Task.Delay(1000)) != closed)
            try
            {
                await peer.WriteAsync(new byte[1]);
            }
            catch (IOException)
            {
                break;
            }
        await closed;
    }, untilClosed: true);

    [Fact]
    public Task ThatResetStreamsInALoop() => FloodAsync(peer => peer.NextStream() is var id ? [Frame.Headers(id, Http2Peer.GrpcRequest(Grpc.FindMaximum)), Frame.RstStream(id, ErrorCode.Cancel)] : [], reads: true);

    [Theory, Rows(true, false)]
    public Task ThatFloodSettings(bool reads) => FloodAsync(_ => [Frame.Settings((3, 100))], reads);

    [Theory, Rows(true, false)]
    public Task ThatFloodPings(bool reads) => FloodAsync(_ => [new(FrameType.Ping, 0, 0, new byte[8])], reads);

    [Theory, Rows(true, false)]
    public Task ThatAskAndNeverTakeTheirAnswers(bool reads) => AttackAsync(Connections / 5, async (port, stop) =>
    {
        // Without a window, or without reading what comes.
        await using var peer = await Http2Peer.ConnectAsync(port, window: reads ? 0u : int.MaxValue);
        peer.Reads = reads;
        for (var i = 0; i < Streams; i++)
            _ = AskAsync(await peer.RequestAsync(Grpc.GreetEveryone, []));
        await stop;

        // As much as the server's windows take: more would end the attack.
        async Task AskAsync(int id)
        {
            while (!stop.IsCompleted)
                await peer.SendDataAsync(id, names);
        }
    });

    // Each connection repeats its frames as fast as it can until it is closed or the attack is over.
    Task FloodAsync(Func<Http2Peer, Frame[]> frames, bool reads) => AttackAsync(4, async (port, stop) =>
    {
        var peer = await Http2Peer.ConnectAsync(port);
        peer.Reads = reads;
        var sending = Task.Run(async () =>
        {
            try
            {
                while (!stop.IsCompleted)
                    await peer.SendAsync([.. Enumerable.Range(0, 100).SelectMany(_ => frames(peer))]);
            }
            catch (Exception e) when (e is IOException or ObjectDisposedException)
            {
            }
        });
        await Task.WhenAny(sending, stop);
        await peer.DisposeAsync();
        await sending;
    });

    [Fact]
    public async Task AStreamAtRestHoldsNoBuffers()
    {
        await using var server = await RunningServer.StartAsync();
        await Site.CallAsync(server.Port);
        var before = server.Process.Memory;
        await using var peers = new Group<Http2Peer>([]);
        for (var i = 0; i < Connections; i++)
        {
            // Each stream has an answer, and a message without one.
            var peer = await Http2Peer.ConnectAsync(server.Port);
            peers.Add(peer);
            for (var j = 0; j < Streams; j++)
                await peer.SendAsync(Frame.Data(await peer.RequestAsync(Grpc.FindMaximum, []), Grpc.Numbers(5, 3)));
            for (var answers = 0; answers < Streams;)
                answers += (await peer.ReadAsync())!.Type == FrameType.Data ? 1 : 0;
        }
        output.WriteLine($"{(server.Process.Memory - before) / (Connections * Streams)} bytes a stream");
        Assert.InRange(server.Process.PeakMemory, 1, MemoryBound);
    }

    // Runs many attackers, calls the server like anybody else meanwhile and afterwards, and looks at its memory.
    async Task AttackAsync(int attackers, Func<int, Task, Task> attack, bool untilClosed = false)
    {
        await using var server = await RunningServer.StartAsync();
        await Site.CallAsync(server.Port);
        var before = server.Process.Memory >> 20;
        var stop = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var attacks = Enumerable.Range(0, attackers).Select(_ => Task.Run(() => attack(server.Port, stop.Task))).ToArray();
        var all = Task.WhenAll(attacks);
        for (var calls = 0; calls < 5 || untilClosed && !all.IsCompleted; calls++)
        {
            await Site.CallAsync(server.Port);
            await Task.Delay(200);
        }
        var ended = attacks.Count(attack => attack.IsCompleted);
        stop.SetResult();
        await all.WaitAsync(Tool.Patience);
        await Site.CallAsync(server.Port);
        output.WriteLine($"{attackers} attackers, {ended} of them closed by the server; memory before {before} MiB, peak {server.Process.PeakMemory} MiB");
        Assert.InRange(server.Process.PeakMemory, 1, MemoryBound);
        server.Process.Signal("TERM");
        var result = await server.Process.EndAsync();
        Assert.Equal((0, ""), (result.ExitCode, result.Output));
        // Kestrel sometimes tells that it has dropped a connection which it had closed in the middle of many resets; and the
        // server may not have seen yet that all attackers are gone.
        Assert.All(result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries), line => Assert.Matches(@"Server\.Kestrel\[23\] Connection id|^streamer: drain(ing|ed): ", line));
    }
}
