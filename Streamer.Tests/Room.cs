using System.Globalization;
using Xunit;

namespace Streamer.Tests;

/// <summary>More connections than a server has descriptors or memory for.</summary>
public class Room
{
    const string Full = "streamer: there is no room for more connections, which wait until others end\n";
    const int Peers = 300;

    // Three times what a server of this build takes that has nothing to do: the portable one keeps its assemblies open.
    [Fact]
    public async Task DescriptorsAreNeverUsedUp()
    {
        Skipped.Unless(OperatingSystem.IsLinux(), "Linux");
        int limit;
        await using (var usual = await RunningServer.StartAsync())
        {
            Assert.Equal(0, (await Tool.RunAsync("1\n", "max", "--address", usual.Address)).ExitCode);
            limit = Directory.GetFiles($"/proc/{usual.Process.Id}/fd").Length * 3;
        }
        var (file, first) = Tool.Command;
        await using var server = Running.StartProcess("prlimit", [$"--nofile={limit}:{limit}", file, .. first, "serve", "--listen", "http://127.0.0.1:0"]);
        // Where one is left, accepting does not fail, which Kestrel would try again and again.
        await RushAsync(server, () => Assert.InRange(Directory.GetFiles($"/proc/{server.Id}/fd").Length, 1, limit - 1));
    }

    [Fact]
    public async Task MemoryIsNeverUsedUp()
    {
        var (file, first) = Tool.Command;
        await using var server = Running.StartProcess(file, [.. first, "serve", "--listen", "http://127.0.0.1:0"], ("DOTNET_GCHeapHardLimit", 100_000_000.ToString("x", CultureInfo.InvariantCulture)));
        await RushAsync(server, () => { });
    }

    // Some are served, the others wait, and each gets its turn.
    static async Task RushAsync(Running server, Action look)
    {
        var port = new Uri((await server.ReadLineAsync())!["listening on ".Length..]).Port;
        var peers = new List<(RawHttp2 Peer, Task<RawHttp2.Frame?> Settings)>();
        for (var i = 0; i < Peers; i++)
        {
            var peer = await RawHttp2.ConnectAsync(port);
            peers.Add((peer, peer.ReadAsync(RawHttp2.Settings)));
        }
        for (var served = 0; served < Peers; served++)
        {
            var next = await Task.WhenAny(peers.Select(one => one.Settings));
            Assert.NotNull(await next);
            var (peer, _) = peers.Single(one => one.Settings == next);
            await peer.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 1, RawHttp2.Call(RawHttp2.FindMaximum));
            await peer.SendAsync(RawHttp2.Data, RawHttp2.EndStream, 1, RawHttp2.Message(8, 5));
            Assert.Equal(RawHttp2.Message(8, 5), (await peer.ReadAsync(RawHttp2.Data))?.Payload);
            look();
            peers.RemoveAll(one => one.Settings == next);
            peer.Dispose();
        }
        Assert.Equal(new(0, "1\n", ""), await Tool.RunAsync("1\n", "max", "--address", $"http://127.0.0.1:{port}"));
        server.Signal("TERM");
        Assert.Equal(new(0, "", Full), await server.EndAsync());
    }
}
