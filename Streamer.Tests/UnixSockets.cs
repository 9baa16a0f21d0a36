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
        var result = await Tool.RunAsync("1\n", "max", "--address", Address);
        Assert.Equal((78, ""), (result.ExitCode, result.Output));
        Assert.Matches($@"^streamer: UNAVAILABLE: nothing listens at {Address}: there is no such file\n\z", result.Error);
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
            Assert.Equal(new(0, "1\n5\n", ""), await Tool.RunAsync("1 5 3\n", "max", "--address", address));
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
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {Address}\n"), await Tool.RunAsync("1\n", "max", "--address", Address));
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        await CallAsync();
    }

    [Fact]
    public async Task ALiveOneIsRefusedAndGoesOn()
    {
        await using var server = await RunningServer.StartAsync(1, "--listen", Address);
        Assert.Equal(new(1, "", $"streamer: cannot listen at {Address}: the address is in use\n"), await Tool.RunAsync("", "serve", "--listen", Address));
        await CallAsync();

        // One that is too busy to accept is as alive.
        server.Process.Signal("STOP");
        var queue = new List<Socket>();
        try
        {
            while (Connect(queue)) { }
            Assert.Equal(new(1, "", $"streamer: cannot listen at {Address}: the address is in use\n"), await Tool.RunAsync("", "serve", "--listen", Address));
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
    public async Task WhatIsNoSocketIsLeftAlone()
    {
        File.WriteAllText(SocketPath, "precious");
        Assert.Equal(new(1, "", $"streamer: cannot listen at {Address}: what is there is not a socket\n"), await Tool.RunAsync("", "serve", "--listen", Address));
        Assert.Equal("precious", File.ReadAllText(SocketPath));

        File.Delete(SocketPath);
        Directory.CreateDirectory(SocketPath);
        Assert.Equal(1, (await Tool.RunAsync("", "serve", "--listen", Address)).ExitCode);
        Assert.True(Directory.Exists(SocketPath));

        Directory.Delete(SocketPath);
        folder.Pipe("s");
        Assert.Equal(1, (await Tool.RunAsync("", "serve", "--listen", Address)).ExitCode);
        Assert.True(File.Exists(SocketPath));

        File.Delete(SocketPath);
        var file = folder.Write("file", "precious");
        File.CreateSymbolicLink(SocketPath, file);
        Assert.Equal(1, (await Tool.RunAsync("", "serve", "--listen", Address)).ExitCode);
        Assert.Equal("precious", File.ReadAllText(SocketPath));
    }

    [Fact]
    public async Task APathThatCannotBeUsedIsOneLine()
    {
        var missing = $"{Address}/missing";
        var result = await Tool.RunAsync("", "serve", "--listen", missing);
        Assert.Equal(1, result.ExitCode);
        Assert.Matches($@"^streamer: cannot listen at {missing}: .+\n\z", result.Error);

        var tooLong = $"unix:/{new string('x', 200)}";
        foreach (var arguments in (string[][])[["serve", "--listen", tooLong], ["max", "--address", tooLong]])
        {
            result = await Tool.RunAsync("1\n", arguments);
            Assert.Equal(2, result.ExitCode);
            Assert.Matches($@"^streamer: {arguments[1]} takes unix:/PATH, where a path has at most 10\d bytes\n\z", result.Error);
        }
    }

    async Task CallAsync() => Assert.Equal(new(0, "1\n5\n", ""), await Tool.RunAsync("1 5 3\n", "max", "--address", Address));

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
