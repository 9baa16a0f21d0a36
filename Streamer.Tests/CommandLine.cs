using Xunit;

namespace Streamer.Tests;

/// <summary>What a user types, and what comes back.</summary>
public class CommandLine
{
    [Fact]
    public async Task Max()
    {
        await using var server = await RunningServer.StartAsync();
        Snapshot.Verify((await Tool.RunAsync("1 5 3 6 2 20\n", "max", "--address", server.Address)).ToString());
    }
}
