namespace Streamer.Tests;

/// <summary>What -v tells is in the order in which it happens, at any speed: what leaves before what answers it, and times that never go back.</summary>
public class Order(SharedServer server)
{
    [Theory]
    [InlineData("max", 200_000)]
    [InlineData("greet", 200_000)]
    public async Task OfAFirehose(string command, int count)
    {
        var lines = Enumerable.Range(1, count).Select(i => $"{i}").ToArray();
        InOrder(command, lines, await Tool.RunAsync(string.Join('\n', lines), command, "--address", server.Address, "-v"));
    }

    [Theory]
    [InlineData("max")]
    [InlineData("greet")]
    public async Task OfLinesThatWaitForTheirAnswers(string command)
    {
        var lines = Enumerable.Range(1, 500).Select(i => $"{i}").ToArray();
        await using var client = Running.Start(command, "--address", server.Address, "-v");
        foreach (var line in lines)
            await client.TurnAsync(line, Answer(command, line));
        client.Input.Close();
        InOrder(command, lines, await client.EndAsync());
    }

    static string Answer(string command, string line) => command == "max" ? line : $"Hello {line}!";

    static void InOrder(string command, string[] lines, Result result)
    {
        Assert.Equal(0, result.ExitCode);
        var told = result.Error.TrimEnd('\n').Split('\n').Select(line => line.Split(' ', 3, StringSplitOptions.RemoveEmptyEntries)).ToArray();
        var times = told.Select(line => double.Parse(line[0])).ToArray();
        Assert.Equal(times.Order(), times);
        var sent = told.Index().Where(line => line.Item[1] == ">").Select(line => (line.Index, Text: line.Item[2])).ToLookup(line => line.Text, line => line.Index);
        var received = told.Index().Where(line => line.Item[1] == "<").ToLookup(line => line.Item[2], line => line.Index);
        Assert.All(lines, line => Assert.True(sent[line].Single() < received[Answer(command, line)].Single(), line));
    }
}
