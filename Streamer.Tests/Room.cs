using System.Globalization;

namespace Streamer.Tests;

/// <summary>More connections than a server has descriptors or memory for.</summary>
public class Room
{
    const int Peers = 300;

    // Three times what a server of this build takes that has nothing to do: one that is not native keeps its assemblies open.
    [Fact]
    public async Task DescriptorsAreNeverUsedUp()
    {
        Skipped.Unless(OperatingSystem.IsLinux(), "Linux");
        int limit;
        await using (var usual = await RunningServer.StartAsync())
        {
            await Site.CallAsync(usual.Port);
            limit = Directory.GetFiles($"/proc/{usual.Process.Id}/fd").Length * 3;
        }
        await using var server = Running.StartInBash($"ulimit -n {limit}; exec \"$@\"", "serve", "--listen", "http://127.0.0.1:0");
        // Where one is left, accepting does not fail, which Kestrel would try again and again.
        await RushAsync(server, () => Assert.InRange(Directory.GetFiles($"/proc/{server.Id}/fd").Length, 1, limit - 1));
    }

    [Fact]
    public async Task MemoryIsNeverUsedUp()
    {
        await using var server = Running.StartWith([("DOTNET_GCHeapHardLimit", 100_000_000.ToString("x", CultureInfo.InvariantCulture))], "serve", "--listen", "http://127.0.0.1:0");
        await RushAsync(server, () => { });
    }

    // As many as there is room for are served, and the others refused; with each that ends there is room for a new one.
    static async Task RushAsync(Running server, Action look)
    {
        var port = new Uri(await server.ReadAddressAsync()).Port;
        var served = new List<Http2Peer>();
        for (var i = 0; i < Peers; i++)
        {
            var peer = await Http2Peer.ConnectAsync(port);
            if (await Site.IsServedAsync(peer))
                served.Add(peer);
            else
                await peer.DisposeAsync();
        }
        Assert.InRange(served.Count, 1, Peers - 1);
        look();
        foreach (var old in served)
        {
            Assert.True(await Site.IsServedAsync(old));
            await old.DisposeAsync();
            await Wait.UntilAsync(async () =>
            {
                await using var next = await Http2Peer.ConnectAsync(port);
                return await Site.IsServedAsync(next);
            }, () => "there is no room although a connection has ended");
        }
        look();
        server.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.EndAsync());
    }
}
