namespace Streamer.Tests;

/// <summary>`streamer ping`, and every way it ends.</summary>
public sealed class Ping(SharedServer server)
{
    // A busy machine may be late.
    const string late = "(no answer for .+\n)*";

    static readonly (string, string)[] headers = [(":status", "200"), ("content-type", "application/grpc")];

    [Fact]
    public async Task EachNumberIsAnswered() =>
        Snapshot.Verify(Regex.Replace(Verbose.Masked((await Tool.RunAsync("", "ping", "--address", server.Address, "--every", "0.01", "--count", "3")).ToString()), late, ""));

    [Theory, Rows("calculator.CalculatorService/FindMaximum", "streaming.CalculatorService/FindMaximum")]
    public async Task TheCoursesMethodWorks(string method) =>
        AssertSummary(await Tool.RunAsync("", "ping", "--address", server.Address, "--method", method, "--count", "1", "-H", "x-trace: 1"), "1 sent, 1 answered, 0 lost, 0 under way", "this side's half-close: OK");

    [Theory, InlineData("INT", 130), InlineData("TERM", 143)]
    public async Task ASignalIsSummedUp(string signal, int exitCode)
    {
        await using var ping = Running.Start("ping", "--address", server.Address, "--every", "0.1");
        Assert.StartsWith("answer 1: ", await ping.ReadLineAsync());
        Assert.StartsWith("answer 2: ", await ping.ReadLineAsync());
        ping.Signal(signal);
        AssertSummary(await ping.EndAsync(), "[0-9]+ sent, [0-9]+ answered, [0-9]+ lost, [0-9]+ under way", "this side", exitCode);
    }

    [Fact]
    public Task TheDeadlineIsARegularEnd() => Wait.ForEnoughAsync(async seconds =>
    {
        var result = await Tool.RunAsync("", "ping", "--address", server.Address, "--every", "0.1", "--deadline", $"{seconds}");
        if (!result.Output.StartsWith("answer 1: "))
            return false;
        AssertSummary(result, "[0-9]+ sent, [0-9]+ answered, [0-9]+ lost, [0-9]+ under way", "(this side|the server|the server's reset): DEADLINE_EXCEEDED");
        return true;
    });

    [Fact]
    public async Task LateAnswersAreToldAndLostOnesCounted()
    {
        var late = new TaskCompletionSource();
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Headers(stream, headers), Frame.Data(stream, Grpc.Numbers(1)));
            // The second is never answered; what was not asked for is no answer.
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Data(stream, Grpc.Numbers(99)));
            await late.Task;
            await peer.SendAsync(Frame.RstStream(stream, ErrorCode.InternalError));
        });
        await using var ping = Start("--address", fake.Address, "--every", "0.5");
        Assert.StartsWith("answer 1: ", await ping.ReadLineAsync());
        Assert.Equal("no answer for 1 s", await ping.ReadLineAsync());
        late.SetResult();
        var result = await ping.EndAsync();
        Assert.Equal(64 + (int)Status.Internal, result.ExitCode);
        Assert.Matches("(?s)[0-9]+ sent, 1 answered, [1-9][0-9]* lost, [0-9]+ under way\n.*\nthe stream lived for [0-9.]+ s, ended by the server's reset: INTERNAL\nstreamer: INTERNAL: the server reset the stream: INTERNAL_ERROR \\([0-9]+ sent, 2 received, [0-9.]+ s, silent for [0-9.]+ s\\)\n\\z", result.Output);
    }

    [Fact]
    public async Task LostNumbersAreCounted()
    {
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Headers(stream, headers));
        });
        await using var ping = Start("--address", fake.Address, "--every", "1000");
        Assert.StartsWith("no answer for ", await ping.ReadLineAsync());
        ping.Signal("INT");
        Assert.Matches("\\A(no answer for .*\n)*1 sent, 0 answered, 1 lost, 0 under way\nthe stream lived for [0-9.]+ s, ended by this side\n\\z", (await ping.EndAsync()).Output);
    }

    [Fact]
    public async Task NumbersThatCannotLeaveAreCountedToo()
    {
        const int initialWindowSize = 4;
        await using var fake = new FakeServer(async peer =>
        {
            await peer.ReadRequestAsync();
            await peer.ReadAsync();
            await peer.SendAsync(Frame.Settings((initialWindowSize, 0)));
        });
        await using var ping = Start("--address", fake.Address, "--every", "0.01");
        // By then those are lost too that the window has held back.
        while (await ping.ReadLineAsync() is "no answer for 1 s")
            ;
        ping.Signal("INT");
        Assert.Matches(@"\A[0-9]+ sent, 0 answered, [1-9][0-9]* lost, [0-9]+ under way\n", (await ping.EndAsync()).Output);
    }

    // What is told on stderr can be waited for where it comes with the answers.
    static Running Start(params string[] arguments) => Running.StartInBash("exec \"$@\" 2>&1", ["ping", .. arguments]);

    [Fact]
    public async Task NobodyIsPingedWhereNobodyListens()
    {
        Assert.Equal(new(78, "", "streamer: UNAVAILABLE: nothing listens at http://127.0.0.1:1\n"), await Tool.RunAsync("", "ping", "--address", "http://127.0.0.1:1"));
        // Nor itself, where no address is given.
        await using var ping = Running.StartWith([("STREAMER_ADDRESS", null)], "ping", "--deadline", "0.001");
        Assert.Equal("", (await ping.EndAsync()).Output);
    }

    [Fact]
    public async Task BadOptions()
    {
        var shown = new StringBuilder();
        foreach (var options in new[] { "--every 0", "--every x", "--count 0", "--count -1", "--count 1.5", "--stats" })
            shown.Append($"ping {options}\n{await Tool.RunAsync("", ["ping", .. options.Split(' ')])}");
        Snapshot.Verify(shown.ToString());
    }

    // Where a busy machine loses a number at the end, it is a failure.
    static void AssertSummary(Result result, string counts, string end, int? exitCode = null)
    {
        Assert.Matches($@"\A{late}{counts}\nminimum [0-9.]+ ms, median [0-9.]+ ms, 99th percentile [0-9.]+ ms, maximum [0-9.]+ ms\nthe stream lived for [0-9.]+ s, ended by {end}\n\z", result.Error);
        Assert.Equal(exitCode ?? (result.Error.Contains(" 0 lost") ? 0 : 1), result.ExitCode);
    }
}
