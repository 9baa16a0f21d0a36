namespace Streamer.Tests;

/// <summary>--wait-for-ready: a connection is retried, a message never.</summary>
public class WaitForReady
{
    [Fact]
    public async Task AClientMayStartBeforeItsServer()
    {
        using var folder = new TempFolder();
        var address = $"unix:{folder["s"]}";
        await using var client = Running.Start("max", "--address", address, "--wait-for-ready");
        await client.FeedAsync("1 5 3\n"u8.ToArray());
        await HasFailedAsync(client);
        await using var server = await RunningServer.StartAsync(1, "--listen", address);
        Assert.Equal(new(0, "1\n5\n", ""), await client.EndAsync());
    }

    [Fact]
    public async Task TheDeadlineSaysWhatWasNotReady()
    {
        using var port = new FreePort();
        await SaysAsync(port.Address, $"nothing listens at {port.Address}");
        await SaysAsync("http://streamer.invalid", "there is no host streamer.invalid");

        // One whose connections are never accepted, so that TLS waits for the other side's first word.
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        await SaysAsync($"https://{listener.LocalEndpoint}", $"https://{listener.LocalEndpoint} has not answered");

        static Task SaysAsync(string address, string what) => Wait.ForEnoughAsync(async deadline =>
        {
            var result = await Tool.RunAsync("1\n", "max", "--address", address, "--wait-for-ready", "--deadline", $"{deadline}");
            Assert.Equal((68, ""), (result.ExitCode, result.Output));
            Assert.Matches($"^streamer: DEADLINE_EXCEEDED: the deadline has passed, and ({Regex.Escape(what)}|.+ has not answered)\n\\z", result.Error);
            return result.Error.Contains(what);
        });
    }

    [Fact]
    public async Task ItMayBeInterrupted()
    {
        using var port = new FreePort();
        await using var client = Running.Start("max", "--address", port.Address, "--wait-for-ready");
        await client.FeedAsync("1\n"u8.ToArray());
        await HasFailedAsync(client);
        client.Signal("INT");
        Assert.Equal(new(130, "", ""), await client.EndAsync());
    }

    [Theory, InlineData("the connection is dropped", "the connection to .+ was lost"),
        InlineData("the stream is refused", "the server refused the stream|the server reset the stream: REFUSED_STREAM"),
        InlineData("the connection is to be left", "http:.+ shut down before the stream had ended")]
    public async Task NothingIsSentTwice(string when, string message)
    {
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            Assert.NotNull(await peer.ReadAsync(FrameType.Data, stream));
            if (when == "the connection is dropped")
                await peer.DisposeAsync();
            else
            {
                await peer.SendAsync(when == "the stream is refused" ? Frame.RstStream(stream, ErrorCode.RefusedStream) : Frame.GoAway(0, ErrorCode.NoError));
                while (await peer.ReadAsync() is { } frame)
                    Assert.False(frame.Type == FrameType.Data && frame.Stream != stream);
            }
        });
        // The end of a process of its own is the connection's end as well, for which the server waits.
        await using var client = Running.Start("max", "--address", fake.Address, "--wait-for-ready");
        var result = await client.EndAsync("1 2 3\n"u8.ToArray());
        Assert.Equal((78, ""), (result.ExitCode, result.Output));
        Assert.Matches($@"^streamer: UNAVAILABLE: ({message})({Verbose.Counts})?\n\z", result.Error);
        await fake.Serving.WaitAsync(Tool.Patience);
        Assert.Equal(1, fake.Connections);
    }

    // A client that cannot connect sleeps between its attempts.
    static Task HasFailedAsync(Running client) => Wait.UntilAsync(() => Running.AreAtRestAsync(client), () => "the client does not wait");
}
