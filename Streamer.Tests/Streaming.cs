using FsCheck;
using FsCheck.Fluent;

namespace Streamer.Tests;

/// <summary>Both directions of a stream, for as long and as fast as its two ends go.</summary>
public class Streaming(SharedServer server)
{
    // Of the client and of the server each, in MiB; the endless streams below carry several times as much.
    const int MemoryLimit = 192;

    Running Start(string command) => Running.Start(command, "--address", server.Address);

    [Fact]
    public async Task EachMaximumArrivesBeforeTheNextNumberLeaves()
    {
        await using var client = Start("max");
        for (var i = 1; i <= 1000; i++)
            await client.TurnAsync($"{i}", $"{i}");
        client.Input.Close();
        Assert.Equal(new(0, "", ""), await client.EndAsync());
    }

    [Fact]
    public async Task EachGreetingArrivesBeforeTheNextNameLeaves()
    {
        await using var client = Start("greet");
        for (var i = 1; i <= 1000; i++)
            await client.TurnAsync($"Ada {i}", $"Hello Ada {i}!");
        client.Input.Close();
        Assert.Equal(new(0, "", ""), await client.EndAsync());
    }

    [Fact]
    public async Task AMillionNumbersWithAMillionAnswers()
    {
        var numbers = Lines(Enumerable.Range(1, 1_000_000));
        var (exitCode, output, error) = await Tool.RunAsync(numbers, "max", "--address", server.Address);
        Assert.Equal((0, ""), (exitCode, error));
        Assert.True(numbers == output, "a million numbers did not come back in order");
    }

    [Fact]
    public async Task AMillionNumbersWithOneAnswer()
    {
        var numbers = Lines(Enumerable.Range(1, 1_000_000).Reverse());
        Assert.Equal(new(0, "1000000\n", ""), await Tool.RunAsync(numbers, "max", "--address", server.Address));
    }

    [Fact]
    public async Task AMillionNamesWithAMillionAnswers()
    {
        var names = Enumerable.Range(1, 1_000_000).Select(i => $"Ada {i}").ToList();
        var (exitCode, output, error) = await Tool.RunAsync(Lines(names), "greet", "--address", server.Address);
        Assert.Equal((0, ""), (exitCode, error));
        Assert.True(Lines(names.Select(name => $"Hello {name}!")) == output, "a million greetings did not come back in order");
    }

    static string Lines<T>(IEnumerable<T> items) => string.Concat(items.Select(item => $"{item}\n"));

    // ---- Back-pressure

    [Fact]
    public async Task EndlessNumbersNeedConstantMemory()
    {
        await using var own = await RunningServer.StartAsync();
        await using var client = Running.Start("max", "--address", own.Address);
        var chunk = Repeat("1\n"u8);
        for (var sent = 0L; sent < (long)Tool.Cases(48) << 20; sent += chunk.Length)
            await client.Input.BaseStream.WriteAsync(chunk).AsTask().WaitAsync(Tool.Patience);
        AssertConstantMemory(client, own.Process);
        client.Input.Close();
        Assert.Equal(new(0, "1\n", ""), await client.EndAsync());
    }

    [Fact]
    public async Task EndlessGreetingsNeedConstantMemory()
    {
        await using var own = await RunningServer.StartAsync();
        await using var client = Running.Start("greet", "--address", own.Address);
        var chunk = Repeat("Ada\n"u8);
        var answers = CountAsync(client.Output.BaseStream);
        var sent = 0L;
        for (; sent < (long)Tool.Cases(24) << 20; sent += chunk.Length)
            await client.Input.BaseStream.WriteAsync(chunk).AsTask().WaitAsync(Tool.Patience);
        AssertConstantMemory(client, own.Process);
        client.Input.Close();
        Assert.Equal(sent / "Ada\n".Length * "Hello Ada!\n".Length, await answers.WaitAsync(Tool.Patience));
        Assert.Equal(new(0, "", ""), await client.EndAsync());
    }

    [Fact]
    public async Task AStoppedServerStopsTheInput()
    {
        await using var own = await RunningServer.StartAsync();
        await using var client = Running.Start("max", "--address", own.Address);
        await client.TurnAsync("0", "0");
        own.Process.Signal("STOP");
        var (_, unfinished) = await FeedUntilStuckAsync(client, null, _ => Repeat("1\n"u8));
        AssertConstantMemory(client, own.Process);
        own.Process.Signal("CONT");
        await unfinished.WaitAsync(Tool.Patience);
        client.Input.Close();
        Assert.Equal(new(0, "1\n", ""), await client.EndAsync());
    }

    [Fact]
    public async Task AnUnreadStdoutStopsTheInput()
    {
        await using var own = await RunningServer.StartAsync();
        await using var client = Running.Start("max", "--address", own.Address);
        var (chunks, unfinished) = await FeedUntilStuckAsync(client, own.Process, NumbersOf);
        AssertConstantMemory(client, own.Process);
        var output = client.EndAsync();
        await unfinished.WaitAsync(Tool.Patience);
        client.Input.Close();
        var expected = string.Concat(Enumerable.Range(0, chunks).Select(i => Encoding.UTF8.GetString(NumbersOf(i))));
        Assert.True(new Result(0, expected, "") == await output, "the numbers did not come back in order");

        static byte[] NumbersOf(int chunk) => Encoding.UTF8.GetBytes(Lines(Enumerable.Range(chunk * 8192, 8192)));
    }

    // Writes until a write does not come to an end: there is more for the client to read, but it sleeps, and so does the server.
    static async Task<(int Chunks, Task Unfinished)> FeedUntilStuckAsync(Running client, Running? server, Func<int, byte[]> chunk)
    {
        Running[] both = server is null ? [client] : [client, server];
        for (var (chunks, fed) = (0, 0L); ; chunks++)
        {
            var bytes = chunk(chunks);
            var writing = client.Input.BaseStream.WriteAsync(bytes).AsTask();
            while (await Task.WhenAny(writing, Task.Delay(20)) != writing)
                if (client.UnreadInput > 0 && await Running.AreAtRestAsync(both) && !writing.IsCompleted)
                    return (chunks + 1, writing);
            await writing;
            fed += bytes.Length;
            Assert.True(fed < 64 << 20, "the client goes on reading although nobody takes what it has");
        }
    }

    static byte[] Repeat(ReadOnlySpan<byte> line)
    {
        var chunk = new byte[64 * 1024];
        for (var i = 0; i < chunk.Length; i += line.Length)
            line.CopyTo(chunk.AsSpan(i));
        return chunk;
    }

    static async Task<long> CountAsync(Stream stream)
    {
        var buffer = new byte[64 * 1024];
        var total = 0L;
        for (int count; (count = await stream.ReadAsync(buffer)) > 0; total += count) ;
        return total;
    }

    static void AssertConstantMemory(Running client, Running server)
    {
        Assert.InRange(client.PeakMemory, 1, MemoryLimit);
        Assert.InRange(server.PeakMemory, 1, MemoryLimit);
    }

    // ---- Ends and pauses

    [Fact]
    public async Task TheServerOutlivesAClientThatIsKilled()
    {
        await using var own = await RunningServer.StartAsync();
        await using var idle = Running.Start("greet", "--address", own.Address);
        await idle.TurnAsync("Ada", "Hello Ada!");
        await using var busy = Running.Start("greet", "--address", own.Address);
        var (_, unfinished) = await FeedUntilStuckAsync(busy, own.Process, _ => Repeat("Ada\n"u8));
        idle.Signal("KILL");
        busy.Signal("KILL");
        await Assert.ThrowsAnyAsync<IOException>(() => unfinished.WaitAsync(Tool.Patience));

        Assert.Equal(new(0, "1\n", ""), await Tool.RunAsync("1", "max", "--address", own.Address));
        own.Process.Signal("TERM");
        // It may not have seen by now that they are gone.
        Drained.AssertNoneCut(await own.Process.EndAsync());
    }

    /// <summary>Longer than any of Kestrel's grace periods, before the first message and after one.</summary>
    [Fact]
    public async Task AnIdleStreamStaysOpen()
    {
        await using var first = Start("max");
        await using var second = Start("max");
        await second.TurnAsync("1", "1");
        await Task.Delay(TimeSpan.FromSeconds(20));
        foreach (var client in new[] { first, second })
        {
            await client.TurnAsync("2", "2");
            client.Input.Close();
            Assert.Equal(new(0, "", ""), await client.EndAsync());
        }
    }

    [Fact]
    public async Task AServerThatEndsFirstEndsTheClient()
    {
        await using var early = FakeServer.AnswerOnce(Grpc.Numbers(42));
        await using var silent = Running.Start("max", "--address", early.Address);
        Assert.Equal(new(0, "42\n", ""), await silent.EndAsync());

        await using var busy = Running.Start("max", "--address", early.Address);
        var feeding = FeedForEverAsync(busy);
        Assert.Equal(new(0, "42\n", ""), await busy.EndAsync());
        await Assert.ThrowsAnyAsync<IOException>(() => feeding.WaitAsync(Tool.Patience));

        static async Task FeedForEverAsync(Running client)
        {
            while (true)
                await client.Input.BaseStream.WriteAsync(Repeat("1\n"u8));
        }
    }

    // ---- Any chunking of the input

    /// <param name="Text">All of the input.</param>
    /// <param name="Cuts">How long the chunks are that it is written in; the last has the rest.</param>
    /// <param name="Expected">What comes back.</param>
    sealed record Case(string Text, int[] Cuts, Result Expected)
    {
        public override string ToString() => $"{string.Join(' ', Cuts)} of {System.Text.Json.JsonSerializer.Serialize(Text)}";
    }

    static readonly Gen<int[]> cuts = Gen.ArrayOf(Gen.Choose(1, 6));
    static readonly Gen<string> bom = Gen.Elements("", "\uFEFF");

    static readonly Gen<long> number = Gen.OneOf(
        Gen.Choose(-1000, 1000).Select(n => (long)n),
        Gen.Elements(long.MinValue, long.MinValue + 1, -1, 0, 1, long.MaxValue - 1, long.MaxValue));

    static readonly Gen<string> separator = Gen.NonEmptyListOf(Gen.Elements(" ", ",", "\t", "\n", "\r\n", "\uFEFF")).Resize(3).Select(string.Concat);

    static readonly Gen<Case> numbers =
        from start in bom
        from items in Gen.ListOf(Gen.Zip(number, separator))
        from last in Gen.Elements("", "7", "-", "1x", "9223372036854775808")
        from chunks in cuts
        select new Case(start + string.Concat(items.Select(item => $"{item.Item1}{item.Item2}")) + last, chunks, Maximums(items, last));

    static Result Maximums(IEnumerable<(long Number, string Separator)> items, string last)
    {
        var all = items.Select(item => item.Number).Concat(last == "7" ? [7L] : []).ToList();
        var answers = Lines(all.Where((n, i) => all.Take(i).All(before => before < n)));
        var line = 1 + items.Sum(item => item.Separator.Count(c => c == '\n'));
        return last is "" or "7" ? new(0, answers, "")
            : new(1, answers, $"streamer: line {line}: \"{last}\" is not an integer from -9223372036854775808 to 9223372036854775807\n");
    }

    static readonly Gen<string> name = Gen.Elements("Ada", "Lovelace", "X", "Zoë", "Ångström", "小龍", "😀");
    static readonly Gen<string> newline = Gen.Elements("\n", "\r\n", "\n\n", "\n \r\n");

    static readonly Gen<Case> names =
        from start in bom
        from items in Gen.ListOf(Gen.Zip(Gen.NonEmptyListOf(name).Resize(3), newline))
        from last in Gen.Elements("", "Zoë", " Zoë\r")
        from chunks in cuts
        select new Case(
            start + string.Concat(items.Select(item => string.Join(' ', item.Item1) + item.Item2)) + last, chunks,
            new(0, Lines(items.Select(item => $"Hello {string.Join(' ', item.Item1)}!").Concat(last.Length > 0 ? ["Hello Zoë!"] : [])), ""));

    [Fact]
    public void AnyChunkingOfNumbersGivesTheSame() => Check("max", numbers);

    [Fact]
    public void AnyChunkingOfNamesGivesTheSame() => Check("greet", names);

    void Check(string command, Gen<Case> cases) => Prop.ForAll(cases.ToArbitrary(), async one =>
    {
        var rest = Encoding.UTF8.GetBytes(one.Text);
        var pieces = new List<byte[]>();
        foreach (var cut in one.Cuts.Where(_ => rest.Length > 0))
        {
            pieces.Add(rest[..Math.Min(cut, rest.Length)]);
            rest = rest[pieces[^1].Length..];
        }
        Assert.Equal(one.Expected, await Tool.RunAsync([.. pieces, rest], command, "--address", server.Address));
    }).Check(Config.QuickThrowOnFailure.WithMaxTest(Tool.Cases(50)));
}
