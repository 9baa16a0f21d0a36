namespace Streamer.Tests;

/// <summary>How a process ends: by the signal that ended it, with the exit codes of README, and without a stack trace.</summary>
public sealed class Endings(SharedServer server)
{
    const string Interrupt = "\u0003", late = "(no answer for .+\n)*";

    static readonly (string, string)[] headers = [(":status", "200"), ("content-type", "application/grpc")];

    [Theory, Rows("bash", "dash")]
    public async Task OneInterruptEndsALoop(string shell)
    {
        Skipped.Unless((await Tool.TypeAsync($"command -v {shell}")).ExitCode == 0, shell);
        await using var terminal = new Terminal($$"""{{shell}} -c 'for i in 1 2 3; do echo "run $i"; "$@" greet; done; echo it went on' {{shell}} "${tool[@]}" """, server.Address);
        await terminal.ShowsAsync("^D ends the input\r\n");
        await terminal.TypeAsync(Interrupt);
        var (exitCode, screen) = await terminal.EndAsync();
        Assert.Equal(130, exitCode);
        Assert.DoesNotContain("run 2", screen);
        Assert.DoesNotContain("went on", screen);
    }

    [Theory, InlineData(1, "max"), InlineData(2, "greet"), InlineData(2, "ping", "--every", "0.1"), InlineData(15, "max", "-v")]
    public async Task AClientEndsByTheSignalItself(int signal, params string[] arguments)
    {
        await using var parent = Start(signal, [.. arguments, "--address", server.Address]);
        Assert.NotNull(await parent.ReadLineAsync());
        await parent.WriteLineAsync("");
        Assert.Equal($"{-signal}\n", (await parent.EndAsync()).Output);
    }

    [Theory, Rows(true, false)]
    public async Task AServerEndsByTheSignalWhereItHadToCut(bool cuts)
    {
        const int terminate = 15;
        await using var parent = Start(terminate, "serve", "--listen", "http://127.0.0.1:0", "--drain", "0");
        var address = await parent.ReadAddressAsync();
        await using var client = Running.Start("max", "--address", address);
        await client.TurnAsync("1", "1");
        if (!cuts)
        {
            client.Input.Close();
            Assert.Equal(0, (await client.EndAsync()).ExitCode);
        }
        await parent.WriteLineAsync("");
        Assert.Equal(cuts ? $"{-terminate}\n" : "0\n", (await parent.EndAsync()).Output);
    }

    // A parent that knows a signal from an exit code. It feeds the tool a line, passes one of its lines on, and signals it when told so.
    static Running Start(int signal, params string[] arguments)
    {
        return Running.StartBy("python3", ["-c", """
            import subprocess, sys
            tool = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            tool.stdin.write(b"1\n")
            tool.stdin.flush()
            print(tool.stdout.readline().decode(), end="", flush=True)
            sys.stdin.readline()
            tool.send_signal(int(sys.argv[1]))
            print(tool.wait())
            """, $"{signal}"], arguments);
    }

    /// <summary>The end of stdin and a signal may come together: here the answer to the one is there before the other, but stdout has no room.</summary>
    [Fact]
    public async Task ASignalIsThisSidesEnd()
    {
        var ended = new TaskCompletionSource();
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            while (!(await peer.ReadAsync())!.EndsStream)
            {
            }
            await peer.SendAsync([Frame.Headers(stream, headers), .. Frame.AllData(stream, Grpc.Numbers([.. Enumerable.Range(100_000, 30_000).Select(i => (long)i)]), end: true)]);
            ended.SetResult();
        });
        await using var client = Running.Start("max", "--stats", "--address", fake.Address);
        await client.FeedAsync("1\n"u8.ToArray());
        await ended.Task.WaitAsync(Tool.Patience);
        client.Signal("TERM");
        var end = await client.EndAsync();
        Assert.Equal(143, end.ExitCode);
        Assert.Matches("^1 sent, .*, ended by this side\n$", end.Error);
    }

    [Theory, Rows(0, 1)]
    public async Task APingSumsUpWhenAnswersStop(int answers)
    {
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.ReadAsync();
            if (answers == 1)
                await peer.SendAsync(Frame.Headers(stream, headers), Frame.Data(stream, Grpc.Numbers(1)));
        });
        var end = await Tool.RunAsync("", "ping", "--every", "0.01", "--count", "2", "--address", fake.Address);
        Assert.Equal(1, end.ExitCode);
        Assert.Matches($@"\A{late}2 sent, {answers} answered, {2 - answers} lost, 0 under way\n(minimum .*\n)?the stream lived for [0-9.]+ s, ended by this side\n\z", end.Error);
    }

    [Fact]
    public async Task APingWhoseNumbersAreAllAnsweredIsWell()
    {
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Headers(stream, headers), Frame.Data(stream, Grpc.Numbers(1)));
        });
        var end = await Tool.RunAsync("", "ping", "--count", "1", "--address", fake.Address);
        Assert.Equal(0, end.ExitCode);
        Assert.Matches($@"\A{late}1 sent, 1 answered, 0 lost, 0 under way\nminimum .*\nthe stream lived for [0-9.]+ s, ended by this side\n\z", end.Error);
    }

    [Theory, Rows(true, false)]
    public async Task APingWithoutAnAnswerFailsAtItsDeadline(bool isConnected)
    {
        await using var fake = new FakeServer(_ => Task.CompletedTask);
        using var silent = new TcpListener(IPAddress.Loopback, 0);
        silent.Start();
        var end = await Tool.RunAsync("", "ping", "--deadline", "2", "--address", isConnected ? fake.Address : $"http://{silent.LocalEndpoint}");
        Assert.Equal((1, ""), (end.ExitCode, end.Output));
        Assert.Matches(@"(?s)\A(.*\n)?streamer: DEADLINE_EXCEEDED: the deadline has passed.*\n\z", end.Error);
    }

    [Theory, InlineData("max", "--address"), InlineData("serve", "--listen")]
    public async Task WhatNobodyForesawIsOneLine(string command, string option)
    {
        Skipped.Unless(OperatingSystem.IsLinux(), "Linux, where the folder that a process works in can be removed");
        await using var process = Running.StartInBash("""cd "$(mktemp -d)" && rmdir "$PWD" && exec "$@" """, command, option, "unix:s");
        var end = await process.EndAsync();
        Assert.Equal((3, ""), (end.ExitCode, end.Output));
        Assert.Matches(@"^streamer: this is a fault of streamer's own, please report it: System\.IO\.[A-Za-z]+: [^\n]+\n$", end.Error);
    }

    [Fact]
    public async Task AReadOnlyFileSystemIsNamed()
    {
        Skipped.Unless(OperatingSystem.IsLinux() && (await Tool.TypeAsync("unshare --mount true")).ExitCode == 0, "root, to mount a file system on Linux");
        using var folder = new TempFolder();
        await using var process = Running.StartBy("unshare", ["--mount", "bash", "-c", $"mount -t tmpfs -o ro none {folder[""]} && exec \"$@\"", "bash"], "serve", "--listen", $"unix:{folder["s"]}");
        Assert.Equal(new(1, "", $"streamer: cannot listen at unix:{folder["s"]}: no file can be made there\n"), await process.EndAsync());
    }
}
