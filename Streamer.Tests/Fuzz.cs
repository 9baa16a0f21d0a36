namespace Streamer.Tests;

/// <summary>Bodies that nobody would send, by the thousand.</summary>
public class Fuzz(ITestOutputHelper output)
{
    const int Seed = 20260727, CallsPerCheck = 100, ChecksToWarmUp = 20;

    static readonly int calls = Tool.Cases(10_000);

    // Watch is left out: it never ends by itself.
    static readonly (string Path, byte[][] Messages)[] methods =
    [
        (Grpc.FindMaximum, [[], Grpc.Field(1, 1), Grpc.Field(1, -1), Grpc.Field(1, long.MaxValue)]),
        ("/calculator.CalculatorService/FindMaximum", [Grpc.Field(1, 300)]),
        (Grpc.GreetEveryone, [[], Name("Ada", ""), Name("Ada", "Lovelace"), Name("Žofie", "数学"), Name(new string('x', 1000), "y")]),
        ("/greet.GreetService/GreetEveryone", [Name("Ada", "")]),
        ("/grpc.health.v1.Health/Check", [[], Grpc.Field(1, "streaming.GreetService")]),
        ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", [Grpc.Field(7, "*"), Grpc.Field(3, "streaming.proto"), Grpc.Field(4, "streaming.Greeting"), Grpc.Field(5, Name("streaming.Greeting", ""))]),
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", [Grpc.Field(6, "streaming.Greeting")]),
    ];

    static byte[] Name(string first, string last) => Grpc.Field(1, (byte[])[.. Grpc.Field(1, first), .. Grpc.Field(2, last)]);

    [Fact]
    public async Task MutatedBodiesHurtNobody()
    {
        output.WriteLine($"seed {Seed}");
        var random = new Random(Seed);
        await using var server = await RunningServer.StartAsync();
        var warm = 0L;
        for (var check = 0; check < Fuzz.calls / CallsPerCheck; check++)
        {
            await using var peer = await Http2Peer.ConnectAsync(server.Port);
            var calls = Enumerable.Range(0, CallsPerCheck).Select(_ => Call(random)).ToArray();
            // Some at a time, so that they meet in the server.
            foreach (var some in calls.Chunk(10))
            {
                var paths = new Dictionary<int, string>();
                foreach (var (path, body, split, encoding) in some)
                {
                    var id = await peer.RequestAsync(path, [("grpc-encoding", encoding)]);
                    await peer.SendAsync(Frame.Data(id, body[..split]), Frame.Data(id, body[split..], end: true));
                    paths.Add(id, path);
                }
                foreach (var (id, response) in await peer.ReadResponsesAsync(paths.Keys.ToHashSet()))
                    Assert.True(response is { HttpStatus: 200, Status: Status.Ok or Status.Internal or Status.ResourceExhausted or Status.NotFound or Status.Unimplemented }
                        // What grpc-dotnet says of a malformed message in its own services.
                        || response.Status == Status.Unknown && paths[id].StartsWith("/grpc."), $"check {check}, stream {id}, {paths[id]}: {response}");
            }
            var normal = await peer.RequestAsync(Grpc.FindMaximum, []);
            await peer.SendAsync(Frame.Data(normal, Grpc.Numbers(1, 3, 2), end: true));
            var answer = await peer.ReadResponseAsync(normal);
            Assert.True(answer.Status == Status.Ok, $"check {check}: {answer}");
            Assert.Equal([1, 3], Grpc.ToNumbers(answer.Messages));
            if (check == ChecksToWarmUp)
                warm = server.Process.Memory;
        }
        Assert.InRange(server.Process.PeakMemory, 1, RunningServer.MemoryLimit);
        output.WriteLine($"{warm >> 20} MiB after warm-up, {server.Process.Memory >> 20} MiB at the end");
        server.Process.Signal("TERM");
        Assert.Equal(new Result(0, "", ""), await server.Process.EndAsync());
    }

    static (string Path, byte[] Body, int Split, string? Encoding) Call(Random random)
    {
        var (path, messages) = methods[random.Next(methods.Length)];
        var compresses = random.Next(4) == 0;
        var body = new List<byte>();
        for (var count = random.Next(1, 6); count > 0; count--)
        {
            var message = messages[random.Next(messages.Length)];
            body.AddRange(compresses && random.Next(2) == 0 ? Grpc.Message(Grpc.Gzip(message), flag: 1) : Grpc.Message(message));
        }
        for (var count = random.Next(1, 5); count > 0 && body.Count > 0; count--)
            Mutate(body, random);
        return (path, [.. body], random.Next(body.Count + 1), compresses ? "gzip" : null);
    }

    static void Mutate(List<byte> body, Random random)
    {
        var at = random.Next(body.Count);
        var length = random.Next(1, Math.Min(body.Count - at, 20) + 1);
        switch (random.Next(7))
        {
            case 0:
                body[at] ^= (byte)(1 << random.Next(8));
                break;
            case 1:
                body[at] = (byte)random.Next(256);
                break;
            case 2:
                body[at] = random.Next(2) == 0 ? byte.MinValue : byte.MaxValue;
                break;
            case 3:
                body.RemoveRange(at, length);
                break;
            case 4:
                body.InsertRange(at, body.GetRange(random.Next(body.Count - length + 1), length));
                break;
            case 5:
                var bytes = new byte[length];
                random.NextBytes(bytes);
                body.InsertRange(at, bytes);
                break;
            case 6:
                body.RemoveRange(at, body.Count - at);
                break;
        }
    }
}
