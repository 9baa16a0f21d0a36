namespace Streamer.Tests;

/// <summary>What people see who type at a terminal, and what pipes and files are spared.</summary>
public class Terminals(SharedServer server)
{
    const string EndOfInput = "\u0004", Interrupt = "\u0003", Delete = "\u007f", DeleteWord = "\u0017", DeleteLine = "\u0015";

    [Theory, Rows("streamer --help", "streamer --version", "streamer max --bogus", "streamer max --adress x", "streamer", "echo 1 5 3 | streamer max", "echo 1 x | streamer max",
        "streamer greet <<< Ada", "streamer greet <<< Ada | cat", "streamer max --address http://127.0.0.1:1")]
    public async Task NoEscapeCode(string line)
    {
        await using var terminal = new Terminal(line, server.Address);
        var (_, screen) = await terminal.EndAsync();
        Assert.NotEmpty(screen);
        Assert.DoesNotContain('\e', screen);
    }

    [Fact]
    public async Task NoEscapeCodeOfAServer()
    {
        await using var terminal = new Terminal("streamer serve --listen http://127.0.0.1:0", server.Address);
        await terminal.ShowsAsync("listening on");
        await terminal.TypeAsync(Interrupt);
        Assert.Matches(@"^listening on http://[\d.:]+\r\n(\^C)?\z", (await terminal.EndAsync()).Screen);
    }

    /// <summary>All of it is typed ahead, long before the tool reads.</summary>
    [Fact]
    public async Task TheTerminalEditsItsLines()
    {
        await using var terminal = new Terminal("streamer greet", server.Address);
        await terminal.TypeAsync($"Bob{DeleteLine}Ada Lovelax{Delete}ce{DeleteWord}Byron\nGrace{EndOfInput} Hopper\n{EndOfInput}");
        var (exitCode, screen) = await terminal.EndAsync();
        Assert.Contains("\r\nHello Ada Byron!\r\nHello Grace Hopper!\r\n", screen);
        Assert.Equal(0, exitCode);
    }

    [Fact]
    public async Task TheTerminalStaysAsItIs()
    {
        await using var terminal = new Terminal("""stty -g; bash -c 'echo "<$$>"; exec "$@"' bash "${tool[@]}" max; stty -g""", server.Address);
        await terminal.ShowsAsync("^D ends the input\r\n");
        await terminal.TypeAsync("12\n");
        await terminal.ShowsAsync("12\r\n12\r\n");
        var id = terminal.Screen.Split('<', '>')[1];
        Assert.Equal(0, (await Tool.TypeAsync($"kill -KILL {id}")).ExitCode);
        var lines = (await terminal.EndAsync()).Screen.Split("\r\n");
        Assert.Matches("^[0-9a-f:]+$", lines[^2]);
        Assert.Equal(2, lines.Count(line => line == lines[^2]));
    }

    [Theory, InlineData("max", "7", "7"), InlineData("greet", "Ada", "Hello Ada!")]
    public async Task ClientsSayWhomTheyAreConnectedTo(string command, string typed, string answer)
    {
        await using var terminal = new Terminal($"streamer {command}", server.Address);
        await terminal.ShowsAsync($"streamer: connected to {server.Address}; ^D ends the input\r\n");
        await terminal.TypeAsync($"{typed}\n");
        await terminal.ShowsAsync($"{typed}\r\n{answer}\r\n");
        await terminal.TypeAsync(EndOfInput);
        Assert.Equal((0, $"streamer: connected to {server.Address}; ^D ends the input\r\n{typed}\r\n{answer}\r\n"), await terminal.EndAsync());
    }

    [Theory, InlineData("echo 7 | streamer max", "7\r\n"), InlineData("echo Ada | streamer greet", "Hello Ada!\r\n"),
        InlineData("streamer max < <(echo 7; echo x) 2>&1 | head -1", "7\r\n")]
    public async Task PipesAndFilesAreSpared(string line, string shown)
    {
        await using var terminal = new Terminal(line, server.Address);
        Assert.Equal(shown, (await terminal.EndAsync()).Screen);
    }

    [Fact]
    public async Task PipesAreSparedEvenThatNothingComes()
    {
        await using var terminal = new Terminal("echo 7 | streamer max --address http://127.0.0.1:1 --wait-for-ready --deadline 6", server.Address);
        Assert.Matches(@"^streamer: DEADLINE_EXCEEDED: .+\r\n\z", (await terminal.EndAsync()).Screen);
    }

    [Fact]
    public async Task AStderrThatIsAFileIsSpared()
    {
        using var folder = new TempFolder();
        await using var terminal = new Terminal($"streamer max 2> {folder["errors"]}", server.Address);
        await terminal.TypeAsync("7 x\n");
        Assert.Equal((1, "7 x\r\n7\r\n"), await terminal.EndAsync());
        Assert.StartsWith("streamer: line 1: \"x\" is not an integer", await File.ReadAllTextAsync(folder["errors"]));
    }

    [Fact]
    public async Task ClientsSayWhatTheyWaitFor()
    {
        await using var terminal = new Terminal("streamer max --address http://127.0.0.1:1 --wait-for-ready", server.Address);
        await terminal.ShowsAsync("streamer: still waiting: nothing listens at http://127.0.0.1:1\r\n");
        await terminal.TypeAsync(Interrupt);
        Assert.Equal(130, (await terminal.EndAsync()).ExitCode);

        using var silent = new TcpListener(IPAddress.Loopback, 0);
        silent.Start();
        await using var second = new Terminal($"streamer greet --address {silent.LocalEndpoint}", server.Address);
        await second.ShowsAsync($"streamer: still waiting: http://{silent.LocalEndpoint} has not answered\r\n");
        await second.TypeAsync(Interrupt);
        Assert.Equal(130, (await second.EndAsync()).ExitCode);
    }

    [Fact]
    public async Task ATypoIsToldAndSkipped()
    {
        await using var terminal = new Terminal("streamer max", server.Address);
        await terminal.ShowsAsync("^D ends the input\r\n");
        await terminal.TypeAsync("1\n2 abc 3\nx y\n");
        foreach (var (line, typo) in new[] { (2, "abc"), (3, "x"), (3, "y") })
            await terminal.ShowsAsync($"streamer: line {line}: \"{typo}\" is not an integer from -9223372036854775808 to 9223372036854775807\r\n");
        await terminal.ShowsAsync("\r\n3\r\n");
        await terminal.TypeAsync($"4\n{EndOfInput}");
        var (exitCode, screen) = await terminal.EndAsync();
        Assert.EndsWith("\r\n4\r\n", screen);
        Assert.Equal(0, exitCode);
    }

    [Fact]
    public async Task ANameThatIsNoTextIsToldAndSkipped()
    {
        await using var terminal = new Terminal("streamer greet", server.Address);
        await terminal.ShowsAsync("^D ends the input\r\n");
        await terminal.TypeAsync("Ada\nZo\u00eb\nGrace\n", Encoding.Latin1);
        await terminal.ShowsAsync("streamer: line 2: \"Zo\uFFFD\" is not valid UTF-8\r\n");
        await terminal.ShowsAsync("Hello Grace!\r\n");
        await terminal.TypeAsync(EndOfInput);
        Assert.Equal(0, (await terminal.EndAsync()).ExitCode);
    }

    [Fact]
    public async Task AnAnswerIsOneLine()
    {
        const string greeting = "Hello\n\u001b[2J\u0007Ada\r\nand 李!";
        var text = Encoding.UTF8.GetBytes(greeting);
        await using var early = FakeServer.AnswerOnce(Grpc.Message(Grpc.Field(1, text)));
        await using var terminal = new Terminal("echo Ada | streamer greet", early.Address);
        Assert.Equal((0, "Hello \uFFFD[2J\uFFFDAda and 李!\r\n"), await terminal.EndAsync());
        Assert.Equal(new(0, greeting + "\n", ""), await Tool.RunAsync("Ada\n", "greet", "--address", early.Address));
    }

    [Fact]
    public async Task AServerDrainsWhenItsTerminalIsGone()
    {
        using var folder = new TempFolder();
        await using (var terminal = new Terminal($"exec \"${{tool[@]}}\" serve --listen unix:{folder["s"]}", server.Address))
        {
            await terminal.ShowsAsync("listening on");
            Assert.True(File.Exists(folder["s"]));
            terminal.Close();
        }
        using var patience = new CancellationTokenSource(Tool.Patience);
        while (File.Exists(folder["s"]))
            await Task.Delay(10, patience.Token);
    }

    [Fact]
    public async Task NohupIsHonoured()
    {
        await using var own = Running.StartBy("nohup", [], "serve", "--listen", "http://127.0.0.1:0");
        var address = await own.ReadAddressAsync();
        own.Signal("HUP");
        Assert.Equal(new(0, "1\n", ""), await Tool.RunAsync("1\n", "max", "--address", address));
        // It is the first signal, so it gives no code.
        own.Signal("TERM");
        Assert.Equal(new(0, "", ""), await own.EndAsync());
    }
}

/// <summary>A terminal that shows what a line of bash does, where `streamer` and "${tool[@]}" are the tool. It answers no queries.</summary>
sealed class Terminal : IAsyncDisposable
{
    readonly Running script;
    readonly StringBuilder screen = new();

    public Terminal(string line, string address)
    {
        var (file, first) = Tool.Command;
        var tool = string.Join(' ', first.Prepend(file).Select(word => $"'{word}'"));
        script = Running.StartProcess("script", ["-qec", $$"""tool=({{tool}}); streamer() { "${tool[@]}" "$@"; }; {{line}}""", "/dev/null"],
            ("SHELL", "/bin/bash"), ("TERM", "xterm-256color"), ("STREAMER_ADDRESS", address));
    }

    public string Screen => screen.ToString();

    /// <summary>Waits until that has been shown, which may be before now.</summary>
    /// <param name="masked">The screen without what is different every time.</param>
    public async Task ShowsAsync(string text, Func<string, string>? masked = null)
    {
        var buffer = new char[1024];
        while (!(masked?.Invoke(Screen) ?? Screen).Contains(text, StringComparison.Ordinal))
            if (await script.Output.ReadAsync(buffer).AsTask().WaitAsync(Tool.Patience) is > 0 and var count)
                screen.Append(buffer, 0, count);
            else
                Assert.Fail($"never shown: {text}\n--- screen\n{Screen}");
    }

    public async Task TypeAsync(string keys, Encoding? encoding = null)
    {
        await script.Input.BaseStream.WriteAsync((encoding ?? Encoding.UTF8).GetBytes(keys));
        await script.Input.BaseStream.FlushAsync();
    }

    /// <summary>Waits for the line's end.</summary>
    public async Task<(int ExitCode, string Screen)> EndAsync()
    {
        var result = await script.EndAsync();
        return (result.ExitCode, Screen + result.Output);
    }

    /// <summary>Hangs up.</summary>
    public void Close() => script.Signal("KILL");

    public ValueTask DisposeAsync() => script.DisposeAsync();
}
