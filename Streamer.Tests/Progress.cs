namespace Streamer.Tests;

/// <summary>The line of --stats on a terminal, while a call goes on.</summary>
public sealed class Progress(SharedServer server) : IDisposable
{
    // Cut by the terminal itself, with the cursor at its start; and the end of it.
    const string Shown = "\r\e[?7lN sent, N received, N s, silent for N s \e[J\e[?7h\r", Hidden = "\r\e[J";
    const string Input = "(echo 1 2 3; until test -e $F; do sleep 0.1; done)", StopJob = "\u001a", Interrupt = "\u0003", EndOfInput = "\u0004";

    readonly TempFolder folder = new();

    public void Dispose() => folder.Dispose();

    [Fact]
    public async Task IsOneRowAndLeavesNothing()
    {
        await using var terminal = Type($"{Input} | streamer max --stats > $F.out");
        await ShowsAsync(terminal, Shown + Shown);
        folder.Write("f", "");
        var (exitCode, screen) = await terminal.EndAsync();
        Assert.Equal(0, exitCode);
        Assert.Matches(Regex.Escape(Shown + Hidden) + "N sent, N received, [^\r\n]*, ended by this side's half-close: OK\r\n$", Masked(screen));
        Assert.Equal("1\n2\n3\n", File.ReadAllText(folder["f.out"]));
    }

    [Theory, InlineData("streamer max --stats > $F.out", "xterm"), InlineData("echo 1 2 3 | streamer max --stats", "xterm"),
        InlineData("echo 1 2 3 | streamer max --stats -v > $F.out", "xterm"), InlineData("echo 1 2 3 | streamer max --stats > $F.out", "dumb")]
    public async Task IsNotShownWhereItWouldBeInTheWay(string line, string term)
    {
        await using var terminal = Type(line.Replace("echo 1 2 3", Input), term);
        if (line.StartsWith("streamer"))
            await terminal.TypeAsync("1 2 3\n");
        // Time enough for it to be seen.
        await Task.Delay(1500, TestContext.Current.CancellationToken);
        folder.Write("f", "");
        if (line.StartsWith("streamer"))
            await terminal.TypeAsync(EndOfInput);
        var (exitCode, screen) = await terminal.EndAsync();
        Assert.Equal(0, exitCode);
        Assert.Contains("3 sent, 3 received", screen);
        Assert.DoesNotMatch("\r[^\n]", screen.Replace("\e[36m", ""));
    }

    [Fact]
    public async Task AJobThatIsStoppedLeavesNothing()
    {
        // Not by the function: a job has stopped when its shell has, and that would be one more.
        await using var terminal = Type($$"""set -m; {{Input}} | "${tool[@]}" max --stats > $F.out; echo stopped; fg > /dev/null""");
        await ShowsAsync(terminal, Shown);
        await terminal.TypeAsync(StopJob);
        await ShowsAsync(terminal, "stopped\r\n" + Shown);
        await terminal.TypeAsync(Interrupt);
        var (_, screen) = await terminal.EndAsync();
        Assert.Matches(Regex.Escape(Shown) + @"(\^Z)?" + Regex.Escape(Hidden) + "[^\e]*stopped\r\n", Masked(screen));
        Assert.Matches(Regex.Escape(Shown) + @"(\^C)?" + Regex.Escape(Hidden) + "N sent, N received, [^\r\n]*, ended by this side\r\n", Masked(screen));
    }

    [Fact]
    public async Task AJobInTheBackgroundShowsNone()
    {
        await using var terminal = Type($"set -m; {Input} | streamer max --stats > $F.out & sleep 1.5; touch $F; wait");
        var (_, screen) = await terminal.EndAsync();
        Assert.DoesNotContain('\e', screen);
        Assert.Contains("3 sent, 3 received", screen);
    }

    Terminal Type(string line, string term = "xterm") => new($"export TERM={term} F={folder["f"]}; {line}", server.Address);

    static Task ShowsAsync(Terminal terminal, string text) => terminal.ShowsAsync(text, Masked);

    // What is different every time.
    static string Masked(string screen) => Regex.Replace(screen, "[0-9.]+ (s\\b|sent|received)", "N $1");
}
