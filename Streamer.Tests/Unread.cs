namespace Streamer.Tests;

/// <summary>A stderr that is full and that nobody reads holds up neither a call nor an end.</summary>
public sealed class Unread(SharedServer server) : IDisposable
{
    const string StopOutput = "\u0013";

    readonly TempFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Theory, InlineData("1 2\n", 0, "1\n2\n", "max", "--stats"), InlineData("1 2\n", 0, "1\n2\n", "max", "-v"), InlineData("1 x\n", 1, "1\n", "max"),
        InlineData("", 2, "", "max", "--bogus"), InlineData("1\n", 78, "", "max", "--address", "http://127.0.0.1:1"),
        InlineData("", 78, "", "ping", "--address", "http://127.0.0.1:1")]
    public async Task ClientsEnd(string input, int exitCode, string output, params string[] arguments)
    {
        await using var client = Start(arguments);
        await client.FeedAsync(Encoding.UTF8.GetBytes(input));
        var end = await client.EndAsync();
        Assert.Equal((exitCode, output), (end.ExitCode, end.Output));
    }

    [Fact]
    public async Task ALotIsTold()
    {
        await using var client = Start("max", "-v");
        var numbers = string.Concat(Enumerable.Range(1, 20_000).Select(i => $"{i}\n"));
        await client.FeedAsync(Encoding.UTF8.GetBytes(numbers));
        Assert.Equal(new(0, numbers, ""), await client.EndAsync());
    }

    [Fact]
    public async Task APingSumsUp()
    {
        await using var ping = Start("ping", "-v", "--every", "0.01", "--count", "3");
        Assert.Equal(["answer 1", "answer 2", "answer 3"], Regex.Matches((await ping.EndAsync()).Output, "answer [0-9]").Select(match => match.Value));
    }

    [Theory, Rows("max", "ping")]
    public async Task ADeadlineEndsAClient(string command)
    {
        await using var fake = new FakeServer(_ => Task.CompletedTask);
        await using var client = Start(command, "-v", "--deadline", "1", "--address", fake.Address);
        Assert.Equal(command == "ping" ? 1 : 68, (await client.EndAsync()).ExitCode);
    }

    [Theory, Rows("max", "ping")]
    public async Task ASignalEndsAClient(string command)
    {
        await using var client = Start(command, "-v");
        await client.WriteLineAsync("1");
        Assert.NotNull(await client.ReadLineAsync());
        client.Signal("TERM");
        Assert.Equal(143, (await client.EndAsync()).ExitCode);
    }

    [Fact]
    public async Task AServerAnswersAndDrains()
    {
        await using var own = Start("serve", "-v", "--drain", "0", "--listen", "http://127.0.0.1:0");
        var port = new Uri(await own.ReadAddressAsync()).Port;
        await using var peer = await Http2Peer.ConnectAsync(port);
        // More than is kept for a reader who is slow.
        for (var i = 0; i < 1000; i++)
        {
            var id = await peer.RequestAsync(Grpc.FindMaximum, []);
            await peer.SendAsync(Frame.Data(id, Grpc.Numbers(i + 1), end: true));
            Assert.Equal(Status.Ok, (await peer.ReadResponseAsync(id)).Status);
        }
        await peer.RequestAsync(Grpc.FindMaximum, []);
        Assert.True(await peer.ReadAsync() is { Type: FrameType.Headers });
        own.Signal("TERM");
        Assert.Equal(143, (await own.EndAsync()).ExitCode);
    }

    [Fact]
    public async Task ASecondSignalEndsAServerAtOnce()
    {
        await using var own = Start("serve", "--drain", "1000", "--listen", "http://127.0.0.1:0");
        var address = await own.ReadAddressAsync();
        await using var running = Running.Start("max", "--address", address);
        await running.TurnAsync("1", "1");
        own.Signal("TERM");
        while ((await Tool.RunAsync("1\n", "max", "--address", address)).ExitCode != 78)
        {
        }
        own.Signal("INT");
        Assert.Equal(130, (await own.EndAsync()).ExitCode);
    }

    /// <summary>Nor does a stdout hold up a signal.</summary>
    [Theory, InlineData("max"), InlineData("ping", "--every", "0.001"), InlineData("serve", "--listen", "http://127.0.0.1:0")]
    public async Task ASignalEndsWhatNobodyReads(params string[] arguments)
    {
        Skipped.Unless(OperatingSystem.IsLinux(), "Linux, to look into a process");
        await using var process = Fill(1, arguments);
        if (arguments[0] == "max")
            _ = process.FeedAsync(Encoding.UTF8.GetBytes(string.Concat(Enumerable.Range(1, 100_000).Select(i => $"{i}\n"))));
        // That it is held up by now: write is what it waits in.
        await Wait.UntilAsync(() => Directory.GetDirectories($"/proc/{process.Id}/task").Any(IsWriting), () => "it never writes");
        process.Signal("TERM");
        Assert.Equal(arguments[0] == "serve" ? 0 : 143, (await process.EndAsync()).ExitCode);

        static bool IsWriting(string thread)
        {
            try
            {
                return File.ReadAllText($"{thread}/wchan").Contains("pipe_write");
            }
            catch (IOException)
            {
                return false;
            }
        }
    }

    /// <summary>The same for a terminal that ^S has stopped, of which no poll can tell what it takes.</summary>
    [Theory, InlineData("streamer max --address http://127.0.0.1:1 < /dev/null", 78), InlineData("streamer max -v < /dev/null", 0)]
    public async Task AStoppedTerminalHoldsUpNothing(string line, int exitCode)
    {
        await using var terminal = new Terminal($"stty ixon; echo ready; read; {line}; echo $? > {folder["code"]}", server.Address);
        await terminal.ShowsAsync("ready");
        await terminal.TypeAsync($"{StopOutput}\n");
        await Wait.UntilAsync(() => File.Exists(folder["code"]) && File.ReadAllText(folder["code"]) == $"{exitCode}\n", () => "it does not end");
    }

    /// <summary>Who reads late gets the first lines and the last, each of them whole.</summary>
    [Fact]
    public async Task WhatFindsRoomIsToldWhole()
    {
        await using var client = Running.StartBy("bash", ["-c", """mkfifo "$0" && exec 2<> "$0" 3< "$0" && "$@"; printf '\nend\n' >&2 & cat <&3""", folder["stderr"]], "max", "-v", "--address", server.Address);
        var feeding = client.FeedAsync(Encoding.UTF8.GetBytes(string.Concat(Enumerable.Repeat("1\n", 100_000))));
        Assert.Equal("1", await client.ReadLineAsync());
        for (string? line = ""; line != "end"; line = await client.ReadLineAsync())
            Assert.Matches(@"^( *[0-9]+\.[0-9]{3} [*<>] .+)?$", line);
        await feeding;
    }

    Running Start(params string[] arguments) => Fill(2, arguments);

    // A FIFO that is open for reading as well, and full.
    Running Fill(int descriptor, string[] arguments)
    {
        Skipped.Unless(OperatingSystem.IsLinux(), "Linux, where a pipe has room for 64 KiB");
        return Running.StartBy("bash", ["-c", $$"""mkfifo "$0" && exec {{descriptor}}<> "$0" && printf '%65536s' x >&{{descriptor}} && STREAMER_ADDRESS={{server.Address}} exec "$@" """, folder["full"]], arguments);
    }
}
