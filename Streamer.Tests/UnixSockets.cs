namespace Streamer.Tests;

/// <summary>Serving and calling over a Unix socket.</summary>
public sealed class UnixSockets : IDisposable
{
    readonly TempFolder folder = new();

    string SocketPath => folder["s"];
    string Address => $"unix:{SocketPath}";

    public void Dispose() => folder.Dispose();

    [Theory, Rows("TERM", "INT", "HUP")]
    public async Task ServesItsOwnerAloneAndRemovesTheSocketAtExit(string signal)
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        Assert.Equal(Address, server.Address);
        if (!OperatingSystem.IsWindows())
            Assert.Equal(UnixFileMode.UserRead | UnixFileMode.UserWrite, File.GetUnixFileMode(SocketPath));
        await CallAsync();
        server.Process.Signal(signal);
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
        Assert.False(File.Exists(SocketPath));
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {Address}: there is no such file\n"), await OneProcess.TypeAsync($"echo 1 | streamer max --address {Address}"));
    }

    [Fact]
    public async Task AnotherUsersSocketIsNoMissingOne()
    {
        Skipped.Unless(Environment.UserName == "root", "root, to call as another user");
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        if (!OperatingSystem.IsWindows())
            File.SetUnixFileMode(folder["."], (UnixFileMode)0b111_101_101);
        await using var client = Running.StartBy("setpriv", ["--reuid=65534", "--regid=65534", "--clear-groups"], "max", "--address", Address);
        client.Input.Close();
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: cannot connect to {Address}: Permission denied\n"), await client.EndAsync());
    }

    [Fact]
    public async Task ServesBesideAPortAndUnderARelativePath()
    {
        var relative = Path.GetRelativePath(Environment.CurrentDirectory, SocketPath);
        await using var server = await RunningServer.StartAsync(2, "--listen", $"unix:{relative}", "--listen", "http://127.0.0.1:0");
        foreach (var address in (string[])[Address, $"unix:{relative}", server.Addresses[1]])
            Assert.Equal(new(0, "1\n5\n", ""), await OneProcess.TypeAsync($"echo 1 5 3 | streamer max --address {address}"));
    }

    [Fact]
    public async Task AStaleSocketIsReplaced()
    {
        await using (var killed = await RunningServer.StartAsync(1, "--listen", Address))
        {
            killed.Process.Signal("KILL");
            await killed.Process.EndAsync();
        }
        Assert.True(File.Exists(SocketPath));
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {Address}\n"), await OneProcess.TypeAsync($"echo 1 | streamer max --address {Address}"));
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        await CallAsync();
    }

    [Fact]
    public async Task ALiveOneIsRefusedAndGoesOn()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        Assert.Equal(new(1, "", $"streamer: cannot listen at {Address}: the address is in use\n"), await OneProcess.TypeAsync($"streamer serve --listen {Address}"));
        await CallAsync();

        // One that is too busy to accept is as alive.
        server.Process.Signal("STOP");
        var queue = new List<Socket>();
        try
        {
            while (Connect(queue)) { }
            Assert.Equal(new(1, "", $"streamer: cannot listen at {Address}: the address is in use\n"), await OneProcess.TypeAsync($"streamer serve --listen {Address}"));
            Assert.True(File.Exists(SocketPath));
        }
        finally
        {
            queue.ForEach(socket => socket.Dispose());
            server.Process.Signal("CONT");
        }
        await CallAsync();
    }

    [Fact]
    public async Task APathThatIsTooLongIsOneLine()
    {
        var tooLong = $"unix:/{new string('x', 200)}";
        foreach (var command in (string[])["serve --listen", "max --address"])
        {
            var result = await OneProcess.TypeAsync($"streamer {command} {tooLong}");
            Assert.Equal(2, result.ExitCode);
            Assert.Matches($@"^streamer: {command.Split(' ')[1]} takes unix:/PATH, where a path has at most 10\d bytes\n\z", result.Error);
        }
    }

    async Task CallAsync() => Assert.Equal(new(0, "1\n5\n", ""), await OneProcess.TypeAsync($"echo 1 5 3 | streamer max --address {Address}"));

    bool Connect(List<Socket> queue)
    {
        var socket = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
        queue.Add(socket);
        try
        {
            socket.Connect(new UnixDomainSocketEndPoint(SocketPath));
            return true;
        }
        catch (SocketException)
        {
            return false;
        }
    }
}
