using System.Globalization;

namespace Streamer.Tests;

/// <summary>More connections than a server has descriptors or memory for.</summary>
public class Room
{
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
        await using var server = Running.StartBy("prlimit", [$"--nofile={limit}:{limit}"], "serve", "--listen", "http://127.0.0.1:0");
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
        var served = new List<RawHttp2>();
        for (var i = 0; i < Peers; i++)
            if (await TryAsync() is { } peer)
                served.Add(peer);
        Assert.InRange(served.Count, 1, Peers - 1);
        look();
        foreach (var old in served)
        {
            await CallAsync(old);
            old.Dispose();
            await Wait.UntilAsync(async () =>
            {
                using var next = await TryAsync();
                return next is not null && await CallAsync(next);
            }, () => "there is no room although a connection has ended");
        }
        look();
        Assert.Equal(new(0, "1\n", ""), await Tool.RunAsync("1\n", "max", "--address", $"http://127.0.0.1:{port}"));
        server.Signal("TERM");
        var end = await server.EndAsync();
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.Matches($@"\Astreamer: there is no room for more than {served.Count} connections: others are refused\n\z", end.Error);

        async Task<RawHttp2?> TryAsync()
        {
            RawHttp2? peer = null;
            try
            {
                peer = await RawHttp2.ConnectAsync(port);
                if (await peer.ReadAsync(RawHttp2.Settings) is not null)
                    return peer;
            }
            catch (IOException)
            {
            }
            peer?.Dispose();
            return null;
        }

        static async Task<bool> CallAsync(RawHttp2 peer)
        {
            await peer.SendAsync(RawHttp2.Headers, RawHttp2.EndHeaders, 1, RawHttp2.Call(RawHttp2.FindMaximum));
            await peer.SendAsync(RawHttp2.Data, RawHttp2.EndStream, 1, RawHttp2.Message(8, 5));
            Assert.Equal(RawHttp2.Message(8, 5), (await peer.ReadAsync(RawHttp2.Data))?.Payload);
            Assert.NotNull(await peer.ReadAsync(RawHttp2.Headers));
            return true;
        }
    }
}
