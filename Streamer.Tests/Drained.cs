namespace Streamer.Tests;

/// <summary>What a server leaves behind that has drained, and says on stderr when streams were running.</summary>
public class Drained
{
    /// <summary>The end of a server that was told SIGTERM.</summary>
    /// <param name="running">How many streams were running then.</param>
    /// <param name="patience">What --drain gave them, in seconds.</param>
    /// <param name="cut">How many of them did not end within that time.</param>
    internal static Result After(int running, int patience, int cut = 0) => new(cut > 0 ? 143 : 0, "",
        $"streamer: draining: {running} {(running == 1 ? "stream is" : "streams are")} running; up to {patience} s; a second signal ends at once\n"
        + $"streamer: drained: {running - cut} ended in time, {cut} cut off\n");

    /// <summary>The same where nobody can tell how many streams are running just then.</summary>
    internal static void AssertNoneCut(Result end)
    {
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.Matches(@"^(streamer: draining: \d+ streams? (is|are) running; .*\nstreamer: drained: \d+ ended in time, 0 cut off\n)?$", end.Error);
    }

    [Theory, InlineData("INT", 130), InlineData("TERM", 143)]
    public async Task CuttingAStreamOffIsNoSuccess(string signal, int exitCode)
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "0");
        await using var running = Running.Start("max", "--address", server.Address);
        await running.TurnAsync("1", "1");
        server.Process.Signal(signal);
        Assert.Equal(After(1, patience: 0, cut: 1) with { ExitCode = exitCode }, await server.Process.EndAsync());
        Assert.Equal(78, (await running.EndAsync()).ExitCode);
    }

    // An answer that its reader has not taken yet, and never will, holds a stream up at the end.
    [Fact]
    public async Task AStreamWhosePeerDoesNotReadIsCutOffToo()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", "http://127.0.0.1:0", "--drain", "0");
        await using var peer = await Http2Peer.ConnectAsync(server.Port, window: 1);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1)));
        Assert.True(await peer.ReadAsync() is { Type: FrameType.Headers });
        server.Process.Signal("TERM");
        Assert.Equal(After(1, patience: 0, cut: 1), await server.Process.EndAsync());
    }
}
