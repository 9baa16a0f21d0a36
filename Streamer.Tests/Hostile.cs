namespace Streamer.Tests;

/// <summary>Peers that mean harm: the others are served all the while, and memory stays where it can be told beforehand.</summary>
public class Hostile(ITestOutputHelper output)
{
    // A server that has just answered its first call has 60 to 90 MB; what one of these attacks adds is small.
    const long MemoryBound = 400_000_000;

    const int Connections = 50, Streams = 100;

    [Fact]
    public Task ThatConnectAndSayNothing() => AttackAsync(Connections * 10, async (port, stop) =>
    {
        using var socket = await RawHttp2.DialAsync(port);
        await stop;
    });

    [Fact]
    public Task ThatOpenStreamsAndSayNothing() => AttackAsync(Connections, async (port, stop) =>
    {
        using var peer = await RawHttp2.ConnectAsync(port);
        await peer.SendAsync([.. Enumerable.Range(0, Streams).SelectMany(i => RawHttp2.Frames(RawHttp2.Headers, RawHttp2.EndHeaders, 2 * i + 1, RawHttp2.Call(RawHttp2.FindMaximum)))]);
        // One more than the server allows at once is refused, and the others stay.
        await peer.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 2 * Streams + 1, RawHttp2.Call(RawHttp2.FindMaximum));
        Assert.Equal(7, (await peer.ReadAsync(RawHttp2.RstStream, 2 * Streams + 1))?.Word());
        await stop;
    });

    [Fact]
    public Task ThatSendOneByteASecond() => AttackAsync(Connections, async (port, stop) =>
    {
        // Half a header block: the server gives it 10 seconds.
        using var socket = await RawHttp2.DialAsync(port);
        byte[] start = [.. "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8, .. RawHttp2.Frames(RawHttp2.Settings, 0, 0), .. RawHttp2.Frames(RawHttp2.Headers, 0, 1, RawHttp2.Call(RawHttp2.FindMaximum))];
        await socket.SendAsync(start);
        var answer = DrainAsync(socket);
        while (!answer.IsCompleted && await Task.WhenAny(answer, Task.Delay(1000)) != answer)
            try
            {
                await socket.SendAsync(new byte[1]);
            }
            catch (SocketException)
            {
                break;
            }
        await answer;
    }, untilClosed: true);

    [Fact]
    public Task ThatResetStreamsInALoop() => FloodAsync(number => [
        .. RawHttp2.Frames(RawHttp2.Headers, RawHttp2.EndHeaders, number, RawHttp2.Call(RawHttp2.FindMaximum)),
        .. RawHttp2.Frames(RawHttp2.RstStream, 0, number, 0, 0, 0, 8)], reads: true);

    [Theory, Rows(true, false)]
    public Task ThatFloodSettings(bool reads) => FloodAsync(_ => RawHttp2.Frames(RawHttp2.Settings, 0, 0, 0, 3, 0, 0, 0, 100), reads);

    [Theory, Rows(true, false)]
    public Task ThatFloodPings(bool reads) => FloodAsync(_ => RawHttp2.Frames(RawHttp2.Ping, 0, 0, new byte[8]), reads);

    [Fact]
    public Task ThatAskAndNeverGrantAWindow() => AttackAsync(Connections / 5, async (port, stop) =>
    {
        var (peer, window, streamWindow) = await AskAsync(port);
        using var closing = peer;
        // As much as the server's windows take: more would end the attack.
        var windows = Enumerable.Repeat(streamWindow, Streams).ToArray();
        while (!stop.IsCompleted)
            if (window >= greetings.Length && Array.FindIndex(windows, left => left >= greetings.Length) is >= 0 and var i)
            {
                (window, windows[i]) = (window - greetings.Length, windows[i] - greetings.Length);
                await peer.SendAsync(RawHttp2.Data, 0, 2 * i + 1, greetings);
            }
            else
            {
                var reading = peer.ReadAsync(RawHttp2.WindowUpdate);
                if (await Task.WhenAny(reading, stop) == stop || await reading is not { } update)
                    break;
                if (update.Stream == 0)
                    window += update.Word();
                else
                    windows[update.Stream / 2] += update.Word();
            }
    });

    [Fact]
    public Task ThatAskAndNeverReadTheirSocket() => AttackAsync(Connections / 5, async (port, stop) =>
    {
        byte[] endless = [0, 4, 0x7f, 0xff, 0xff, 0xff];
        var (peer, window, _) = await AskAsync(port, endless);
        using var closing = peer;
        await peer.SendAsync(RawHttp2.WindowUpdate, 0, 0, 0x7f, 0xff, 0, 0);
        // What the server's window for a connection takes before it has granted more.
        for (var i = 0; i < window / greetings.Length; i++)
            await peer.SendAsync(RawHttp2.Data, 0, 2 * (i % Streams) + 1, greetings);
        await stop;
    });

    static readonly byte[] greetings = [.. Enumerable.Repeat(RawHttp2.Message([10, 102, 10, 100, .. new byte[100]]), 100).SelectMany(message => message)];

    // Opens as many calls as the server allows at once; gives what it lets the connection and each stream send, which it says first.
    static async Task<(RawHttp2 Peer, int Window, int StreamWindow)> AskAsync(int port, params byte[] settings)
    {
        var peer = await RawHttp2.ConnectAsync(port, settings);
        var asked = (await peer.ReadAsync(RawHttp2.Settings))!.Payload.Chunk(6).Single(setting => setting[1] == 4);
        var window = 65_535 + (await peer.ReadAsync(RawHttp2.WindowUpdate, 0))!.Word();
        for (var i = 0; i < Streams; i++)
            await peer.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 2 * i + 1, RawHttp2.Call("/streaming.GreetService/GreetEveryone"));
        return (peer, window, BinaryPrimitives.ReadInt32BigEndian(asked.AsSpan(2)));
    }

    // Each connection repeats its frames as fast as it can until it is closed or the attack is over.
    Task FloodAsync(Func<int, byte[]> frames, bool reads) => AttackAsync(4, async (port, stop) =>
    {
        using var socket = await RawHttp2.DialAsync(port);
        await socket.SendAsync((byte[])[.. "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8, .. RawHttp2.Frames(RawHttp2.Settings, 0, 0)]);
        var answers = reads ? DrainAsync(socket) : null;
        var sending = Task.Run(async () =>
        {
            try
            {
                for (var number = 1; !stop.IsCompleted; number += 200)
                    await socket.SendAsync((byte[])[.. Enumerable.Range(0, 100).SelectMany(i => frames(number + 2 * i))]);
            }
            catch (Exception e) when (e is SocketException or ObjectDisposedException)
            {
            }
        }, TestContext.Current.CancellationToken);
        await Task.WhenAny(sending, stop);
        socket.Dispose();
        await sending;
        if (answers is not null)
            await answers;
    });

    [Fact]
    public async Task AStreamAtRestHoldsNoBuffers()
    {
        await using var server = await RunningServer.StartAsync();
        var before = server.Process.Memory;
        var (peers, answering) = (new List<RawHttp2>(), new List<Task>());
        byte[] five = RawHttp2.Message(8, 5), three = RawHttp2.Message(8, 3);
        for (var i = 0; i < Connections; i++)
        {
            var peer = await RawHttp2.ConnectAsync(server.Port);
            peers.Add(peer);
            await peer.SendAsync([.. Enumerable.Range(0, Streams).SelectMany(i => (byte[])[
                .. RawHttp2.Frames(RawHttp2.Headers, RawHttp2.EndHeaders, 2 * i + 1, RawHttp2.Call(RawHttp2.FindMaximum)), .. RawHttp2.Frames(RawHttp2.Data, 0, 2 * i + 1, five)])]);
            for (var answers = 0; answers < Streams; answers++)
                Assert.NotNull(await peer.ReadAsync(RawHttp2.Data));
            // A message without an answer.
            await peer.SendAsync([.. Enumerable.Range(0, Streams).SelectMany(i => RawHttp2.Frames(RawHttp2.Data, 0, 2 * i + 1, three)), .. RawHttp2.Frames(RawHttp2.Ping, 0, 0, new byte[8])]);
            Assert.NotNull(await peer.ReadAsync(RawHttp2.Ping));
            // The server closes connections that do not answer its pings, and has their memory back then.
            answering.Add(peer.AnswerPingsAsync());
        }
        Assert.InRange(server.Process.PeakMemory, 1, RunningServer.MemoryLimit);
        Assert.DoesNotContain(answering, task => task.IsCompleted);
        output.WriteLine($"{(server.Process.Memory - before) / (Connections * Streams)} bytes a stream");
        peers.ForEach(peer => peer.Dispose());
    }

    // Runs many attackers, calls the server like anybody else meanwhile and afterwards, and looks at its memory.
    async Task AttackAsync(int attackers, Func<int, Task, Task> attack, bool untilClosed = false)
    {
        await using var server = await RunningServer.StartAsync();
        await CallAsync();
        var (before, during) = (server.Process.Memory, 0L);
        var stop = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var attacks = Enumerable.Range(0, attackers).Select(_ => Task.Run(() => attack(server.Port, stop.Task))).ToArray();
        var all = Task.WhenAll(attacks);
        for (var calls = 0; calls < 5 || untilClosed && !all.IsCompleted; calls++)
        {
            await CallAsync();
            during = Math.Max(during, server.Process.Memory);
            await Task.Delay(200, TestContext.Current.CancellationToken);
        }
        var ended = attacks.Count(attack => attack.IsCompleted);
        stop.SetResult();
        await all.WaitAsync(Tool.Patience, TestContext.Current.CancellationToken);
        await CallAsync();
        output.WriteLine($"{attackers} attackers, {ended} of them closed by the server; memory before {before / 1e6:F0} MB, during {during / 1e6:F0} MB, peak {server.Process.PeakMemory} MiB, after {server.Process.Memory / 1e6:F0} MB");
        Assert.InRange(server.Process.PeakMemory * 1024L * 1024, 0, MemoryBound);
        server.Process.Signal("TERM");
        var result = await server.Process.EndAsync();
        Assert.Equal((0, ""), (result.ExitCode, result.Output));
        // Kestrel sometimes tells that it has dropped a connection which it had closed in the middle of many resets; and the
        // server may not have seen yet that all attackers are gone.
        Assert.All(result.Error.Split('\n', StringSplitOptions.RemoveEmptyEntries), line => Assert.Matches(@"Server\.Kestrel\[23\] Connection id|^streamer: drain(ing|ed): ", line));

        async Task CallAsync() => Assert.Equal(new(0, "1\n5\n", ""), await Tool.RunAsync("1 5 3\n", "max", "--address", server.Address));
    }

    // Reads until the other side closes.
    static async Task DrainAsync(Socket socket)
    {
        try
        {
            var buffer = new byte[64 * 1024];
            while (await socket.ReceiveAsync(buffer) > 0)
            {
            }
        }
        catch (Exception e) when (e is SocketException or ObjectDisposedException)
        {
        }
    }
}
