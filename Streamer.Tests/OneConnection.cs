namespace Streamer.Tests;

/// <summary>Many calls on one connection that the server ends while their requests go on, beside a stream that is answered all the while.</summary>
public class OneConnection(SharedServer server)
{
    const int Calls = 1000, AtOnce = 20;

    static readonly byte[] malformed = Grpc.Message([0x08]), tooLarge = Grpc.Prefix(Grpc.MaxMessage + 1);

    public static readonly TheoryData<string, string, byte[], string?, Status> Ends = new()
    {
        { "an unknown service", "/nobody.Knows/FindMaximum", Grpc.Numbers(5), null, Status.Unimplemented },
        { "an unknown method", "/streaming.CalculatorService/FindMinimum", Grpc.Numbers(5), null, Status.Unimplemented },
        { "a malformed message", Grpc.FindMaximum, malformed, null, Status.Internal },
        { "a malformed message after a good one", Grpc.FindMaximum, [.. Grpc.Numbers(5), .. malformed], null, Status.Internal },
        { "a message that is too large", Grpc.GreetEveryone, tooLarge, null, Status.ResourceExhausted },
        { "a malformed timeout", Grpc.FindMaximum, [], "1x", Status.Internal },
        { "no time at all", Grpc.FindMaximum, [], "0S", Status.DeadlineExceeded },
        { "a deadline before a message", Grpc.FindMaximum, [], "20m", Status.DeadlineExceeded },
        { "a deadline after an answer", Grpc.FindMaximum, Grpc.Numbers(5), "20m", Status.DeadlineExceeded },
        { "a deadline within a message", Grpc.GreetEveryone, Grpc.Name("Ada")[..7], "20m", Status.DeadlineExceeded },
        { "a deadline of reflection", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [], "20m", Status.DeadlineExceeded },
        { "a deadline of a health check", "/grpc.health.v1.Health/Watch", Grpc.Message([]), "20m", Status.DeadlineExceeded },
    };

    [Theory, MemberData(nameof(Ends))]
    public async Task EveryCallGetsItsStatus(string why, string path, byte[] body, string? timeout, Status status)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var good = await peer.RequestAsync(Grpc.FindMaximum, []);
        for (var calls = 0; calls < Calls; calls += AtOnce)
        {
            var open = new Dictionary<int, Response>();
            for (var i = 0; i < AtOnce; i++)
            {
                var id = await peer.RequestAsync(path, [("grpc-timeout", timeout)]);
                open.Add(id, new());
                await peer.SendAsync(Frame.Data(id, body));
            }
            while (open.Values.Any(response => !response.IsOver))
                await ReadAsync();
            Assert.All(open.Values, response => Assert.True(response.Status == status, $"{why}, after {calls} calls: {response}"));

            byte[] expected = Grpc.Numbers(calls + 1), answer = [];
            await peer.SendAsync(Frame.Data(good, expected));
            while (answer.Length < expected.Length)
                if (await ReadAsync() is { Type: FrameType.Data } data && data.Stream == good)
                    answer = [.. answer, .. data.Payload];
            Assert.Equal(expected, answer);

            // With its status a peer ends a call, one so and another so; but it says nothing more on a stream that was reset.
            foreach (var (id, response) in open.Where(call => call.Value.Reset is null))
                await peer.SendAsync(id % 4 == 1 ? Frame.Data(id, [], end: true) : Frame.RstStream(id, ErrorCode.Cancel));

            async Task<Frame> ReadAsync()
            {
                var frame = await peer.ReadAsync();
                Assert.True(frame is { Type: not FrameType.GoAway }, $"{why}, after {calls} calls: the connection is over");
                if (open.TryGetValue(frame.Stream, out var response))
                    response.Add(frame);
                return frame;
            }
        }
    }

    [Fact]
    public async Task WhatThePeerDoesNotEndIsReset()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        foreach (var sends in new[] { false, true })
        {
            var id = await peer.RequestAsync("/nobody.Knows/FindMaximum", []);
            var response = await peer.ReadResponseAsync(id);
            Assert.True(response is { Status: Status.Unimplemented, Ended: true, Reset: null }, $"{response}");
            var reading = peer.ReadAsync();
            while (sends && !reading.IsCompleted)
                await Task.WhenAny(reading, peer.SendDataAsync(id, new byte[Frame.MaxSize])); // for which there may be no window any more
            Assert.True(await reading is { Type: FrameType.RstStream, ErrorCode: ErrorCode.NoError });
        }
    }

    // No deadline among them: where one passes before a call's headers have left, as on a busy machine, grpcio resets a
    // stream that it has never opened, and that ends the connection (RFC 9113, section 5.1).
    [Theory, InlineData("nobody.Knows/FindMaximum", "0805", "UNIMPLEMENTED"),
        InlineData("streaming.CalculatorService/FindMaximum", "0000", "INTERNAL")]
    public async Task ALibrarysCallsGetTheirStatusToo(string method, string message, string status)
    {
        await using var client = Peer.Call(Peer.Python, server.Address, "streaming.GreetService/GreetEveryone", new { beside = new { method, message, calls = Calls } });
        await client.WriteLineAsync("Ada");
        string?[] lines = [await client.ReadLineAsync(), await client.ReadLineAsync()];
        if (lines.Contains(null))
            Assert.Fail($"the client has ended: {await client.EndAsync()}");
        Assert.Equal([$"{Calls} x {status}", "Hello Ada!"], lines.Order());
        await client.TurnAsync("Bea", "Hello Bea!");
        client.Input.Close();
        Assert.Equal(new(0, "", ""), await client.EndAsync());
    }
}
