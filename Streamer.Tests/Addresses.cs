namespace Streamer.Tests;

/// <summary>Every way to say where a server is, and what is told where none is.</summary>
public class Addresses(SharedServer server)
{
    static readonly Result One = new(0, "1\n", "");

    [Theory, InlineData("http://*:0", "http://[::]:"), InlineData("*:0", "http://[::]:"), InlineData("http://0.0.0.0:0", "http://0.0.0.0:")]
    public async Task AnyAddressCanBePasted(string listen, string printed)
    {
        await using var any = await RunningServer.StartAsync(1, "--listen", listen);
        Assert.Equal($"{printed}{any.Port}", any.Address);
        Assert.Equal(One, await OneProcess.TypeAsync($"echo 1 | streamer max --address {any.Address}"));
        Assert.Equal(One, await OneProcess.TypeAsync($"echo 1 | streamer max --address '*:{any.Port}'"));
    }

    [Theory, Rows("PORT", ":PORT", "localhost:PORT", "127.0.0.1:PORT", "127.0.0.1:PORT/", "localhost:0PORT", "[::ffff:127.0.0.1]:PORT",
        "http://localhost:PORT/")]
    public async Task APortIsEnough(string address) => Assert.Equal(One, await OneProcess.TypeAsync($"echo 1 | streamer max --address '{address.Replace("PORT", $"{server.Port}")}'"));

    [Theory, Rows("0", ":0", "localhost:0")]
    public async Task APortIsEnoughToListenAt(string listen)
    {
        string[] hosts = CommandLine.HasIPv6 ? ["127.0.0.1", "[::1]"] : ["127.0.0.1"];
        await using var own = await RunningServer.StartAsync(hosts.Length, "--listen", listen);
        Assert.Equal(hosts.Select(host => $"http://{host}:{own.Port}"), own.Addresses);
    }

    [Theory, InlineData("127.0.0.1:PORT", "127.0.0.1:PORT"), InlineData("localhost:PORT", "127.0.0.1:PORT"), InlineData("*:PORT", "PORT"),
        InlineData("PORT", "*:PORT"), InlineData("unix:SOCKET", "unix:SOCKET")]
    public async Task NobodyListensTwiceAtOneAddress(string first, string second)
    {
        using var port = new FreePort();
        using var folder = new TempFolder();
        var result = await OneProcess.TypeAsync($"streamer serve --listen '{Real(first)}' --listen '{Real(second)}'");
        Assert.Equal((1, ""), (result.ExitCode, result.Output));
        Assert.Matches(@"^streamer: cannot listen at \S+: the address is in use\n\z", result.Error);

        string Real(string address) => address.Replace("PORT", $"{port.Number}").Replace("SOCKET", folder["s"]);
    }

    [Fact]
    public async Task OfServersThatStartAtOnceOneServes()
    {
        using var port = new FreePort();
        await using var servers = new Group<Running>(Enumerable.Range(0, 3).Select(_ => Running.Start("serve", "--listen", port.Address)));
        var ends = servers.Select(server => server.EndAsync()).ToList();
        for (var i = 0; i < 2; i++)
        {
            var ended = await Task.WhenAny(ends);
            Assert.Equal(new(1, "", $"streamer: cannot listen at {port.Address}: the address is in use\n"), await ended);
            ends.Remove(ended);
        }
        Assert.Equal(One, await OneProcess.RunAsync("1", "max", "--wait-for-ready", "--address", port.Address));
    }

    // Ports 80 and 443 of this machine's second loopback address are nobody's.
    [Fact]
    public async Task WhatIsNoAddressOrNobodys() => Snapshot.Verify(await Transcript.OfAsync("""
        echo 1 | streamer max --address http://127.0.0.2
        echo 1 | streamer max --address https://127.0.0.2
        echo 1 | streamer max --address 127.0.0.2:80
        echo 1 | streamer max --address 127.0.0.2:1
        echo 1 | streamer max --address 99999
        echo 1 | streamer max --address 5 --address 6
        echo 1 | streamer max --address 127.1:50051
        echo 1 | streamer max --address http://50051
        echo 1 | streamer max --address :
        echo 1 | streamer max --address unix:
        echo 1 | streamer max --address unix:/
        echo 1 | streamer max --address unix:/none.sock
        echo 1 | streamer max --address unix:///none.sock
        echo 1 | streamer max --address unix:/none/none.sock
        streamer serve --listen unix:
        streamer serve --listen unix:/none/none.sock
        streamer serve --listen 192.0.2.1:1
        """, line => OneProcess.TypeAsync(line)));

    [Theory, InlineData("file", "what is there is not a socket"), InlineData("folder", "what is there is not a socket"),
        InlineData("pipe", "what is there is not a socket"), InlineData("link", "what is there is not a socket"),
        InlineData("folder/none/none.sock", "there is no folder FOLDER/folder/none"), InlineData("file/none.sock", "there is no folder FOLDER/file")]
    public async Task APathsRealFaultIsNamed(string name, string fault)
    {
        using var temp = new TempFolder();
        temp.Write("file", "precious");
        temp.Pipe("pipe");
        Directory.CreateDirectory(temp["folder"]);
        File.CreateSymbolicLink(temp["link"], temp["file"]);
        var address = $"unix:{temp[name]}";
        fault = fault.Replace("FOLDER", temp["."].TrimEnd('.', '/'));
        Assert.Equal(new(78, "", $"streamer: UNAVAILABLE: nothing listens at {address}: {fault}\n"), await OneProcess.TypeAsync($"echo 1 | streamer max --address {address}"));
        Assert.Equal(new(1, "", $"streamer: cannot listen at {address}: {fault}\n"), await OneProcess.TypeAsync($"streamer serve --listen {address}"));
        // What is no socket is left alone.
        Assert.Equal("precious", File.ReadAllText(temp["link"]));
        Assert.True(File.Exists(temp["pipe"]) && Directory.Exists(temp["folder"]));
    }

    [Theory, InlineData("http", "HTTP/1.0 400 Bad Request\r\n\r\n", "speaks HTTP/1.1, not HTTP/2"),
        InlineData("http", "<!DOCTYPE HTML>\n<html lang=\"en\">\n", "speaks HTTP/1.1, not HTTP/2"),
        InlineData("http", "", "closed the connection without an answer (does it want https://?)"),
        InlineData("https", "HTTP/1.0 400 Bad Request\r\n\r\n", "does not answer in TLS with HTTP/2: Cannot determine the frame size or a corrupted frame was received. (does it want http://?)"),
        InlineData("https", "\0\0\0\u0004\0\0\0\0\0", "does not answer in TLS with HTTP/2: Cannot determine the frame size or a corrupted frame was received. (does it want http://?)")]
    public async Task WhoSpeaksAnotherProtocolIsNamed(string scheme, string answer, string told)
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        var address = $"{scheme}://{listener.LocalEndpoint}";
        var running = OneProcess.RunAsync("1", "max", "--address", address);
        using var connection = await listener.AcceptSocketAsync(TestContext.Current.CancellationToken);
        // Only what has been read to its end is closed without a reset, which might cost the client the answer.
        await connection.ReceiveAsync(new byte[64 * 1024]);
        await connection.SendAsync(Encoding.Latin1.GetBytes(answer));
        connection.Shutdown(SocketShutdown.Send);
        var result = await running;
        Assert.Equal((78, ""), (result.ExitCode, result.Output));
        Assert.StartsWith($"streamer: UNAVAILABLE: {address} {told}", result.Error);
        Assert.Single(result.Error.TrimEnd('\n').Split('\n'));
    }

    [Theory, Rows("1ms", "0.001", "50ms")]
    public async Task ADeadlineBeforeAConnectionNamesTheServer(string deadline)
    {
        var result = await OneProcess.TypeAsync($"echo 1 | streamer max --address 127.0.0.1:1 --wait-for-ready --deadline {deadline}");
        Assert.Equal(68, result.ExitCode);
        Assert.Matches(@"\Astreamer: DEADLINE_EXCEEDED: the deadline has passed, and .*127\.0\.0\.1:1.*\n\z", result.Error);
    }

    [Fact]
    public async Task AServerThatGivesUpIsNamed()
    {
        await using var own = await RunningServer.StartAsync();
        await using var client = Running.Start("max", "--address", own.Address);
        await client.TurnAsync("1", "1");
        own.Process.Signal("TERM");
        await Wait.UntilAsync(async () => !await Site.ConnectsAsync(own.Port), () => "the drain does not begin");
        own.Process.Signal("TERM");
        var end = await client.EndAsync();
        Assert.Equal((78, ""), (end.ExitCode, end.Output));
        // Which of the two depends on whether the drain had come to telling its connections.
        Assert.Matches($"^streamer: UNAVAILABLE: ({own.Address} shut down before the stream had ended|the connection to {own.Address} was lost)", end.Error);
    }
}
