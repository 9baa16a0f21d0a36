using FsCheck;
using FsCheck.Fluent;

namespace Streamer.Tests;

/// <summary>
/// Streamer takes messages out of a stream in batches, past grpc-dotnet. Nobody can tell: any stream, cut into any chunks,
/// gets the answers and the status from it that a plain grpc-dotnet server or client gives.
/// </summary>
public class Adapter(SharedServer streamer, PlainGrpc plain) : IClassFixture<PlainGrpc>
{
    /// <param name="What">Each message, in words.</param>
    /// <param name="Body">All of them as they are on the wire.</param>
    /// <param name="Chunks">The sizes of the DATA frames, again and again.</param>
    sealed record Stream(string[] What, byte[] Body, int[] Chunks)
    {
        public IEnumerable<byte[]> Frames()
        {
            for (var (at, i) = (0, 0); at < Body.Length; i++)
                yield return Body[at..(at = Math.Min(Body.Length, at + Chunks[i % Chunks.Length]))];
        }

        public override string ToString() => $"{string.Join(", ", What)}; {Body.Length} bytes in chunks of {string.Join(' ', Chunks)}";
    }

    sealed record Piece(string What, byte[] Bytes);

    static readonly Gen<long> number = Gen.OneOf(
        Gen.Choose(-300, 300).Select(n => (long)n),
        Gen.Elements(long.MinValue, int.MinValue, -1, 0, 127, 128, 1 << 28, int.MaxValue, uint.MaxValue, long.MaxValue - 1, long.MaxValue));

    static readonly Gen<string> word = Gen.Elements("", "Ada", "Grace Hopper", "Zoë", "李", "😀", " ", new string('x', 127), new string('x', 128), new string('ß', 20_000));

    static Gen<Piece> Numbers { get; } = number.Select(n => new Piece($"{n}", Grpc.Numbers(n)));

    static Gen<Piece> Names { get; } =
        from first in word
        from last in word
        select new Piece($"name of {first.Length} and {last.Length}", Grpc.Name(first, last));

    // Messages of another form, which mean the same to protobuf. Field 1 is wrapped as the contract has it.
    static Gen<Piece> Unusual(Gen<byte[]> field) =>
        from one in field
        from other in field
        from form in Gen.Choose(0, 6)
        select form switch
        {
            0 => new Piece("twice", Grpc.Message([.. other, .. one])),
            1 => new("unknown fields", Grpc.Message([.. Grpc.Field(2, 99), .. one, .. Grpc.Field(3, "text"), 0x21, .. new byte[8], 0x2b, 0x2c])),
            2 => new("a long key", Grpc.Message(one is [var key, .. var rest] ? [(byte)(key | 0x80), 0x80, 0, .. rest] : [])),
            3 => new("more than a batch", Grpc.Message([.. one, .. Grpc.Field(15, new byte[70_000])])),
            4 => new("gzip", Grpc.Message(Grpc.Gzip(one), flag: 1)),
            5 => new("gzip of much", Grpc.Message(Grpc.Gzip([.. one, .. Grpc.Field(15, new byte[1_000_000])]), flag: 1)),
            _ => new("empty", Grpc.Message([])),
        };

    static readonly Gen<Piece> zeros = Gen.Elements(new Piece("a written zero", Grpc.Message([8, 0])), new("a long zero", Grpc.Message([8, 0x80, 0x80, 0])), new("a varint of eleven bytes", Grpc.Message([8, .. Enumerable.Repeat((byte)0x81, 10), 0])));

    static readonly byte[] gzip = Grpc.Gzip(Grpc.Field(1, 5));

    // Each ends a stream with its status, after the answers to what came before.
    static readonly (string What, byte[] Bytes, Status Status)[] faulty =
    [
        ("a key without a value", Grpc.Message([8]), Status.Internal),
        ("a varint without an end", Grpc.Message([8, .. Enumerable.Repeat((byte)0xff, 20)]), Status.Internal),
        ("field number 0", Grpc.Message([0x00, 0x01]), Status.Internal),
        ("wire type 7", Grpc.Message([0x0f]), Status.Internal),
        ("a length beyond the message", Grpc.Message([0x12, 0x7f, 0x01]), Status.Internal),
        ("a negative length", Grpc.Message([0x12, 0xff, 0xff, 0xff, 0xff, 0x0f]), Status.Internal),
        ("a group that is not closed", Grpc.Message([0x2b]), Status.Internal),
        ("a group's end without its start", Grpc.Message([0x2c]), Status.Internal),
        ("groups nested too deep", Grpc.Message([.. Enumerable.Repeat((byte)0x2b, 10_000)]), Status.Internal),
        ("another message, cut off", Grpc.Message(Grpc.Field(1, "text"))[..^1], Status.Internal),
        .. from flag in (byte[])[2, 128, 255] select ($"the reserved flag {flag}", Grpc.Message([8, 1], flag), Status.Internal),
        .. from length in (int[])[1, 4, 5, 6] select ($"{length} bytes of a message", Grpc.Numbers(4)[..length], Status.Internal),
        ("no gzip", Grpc.Message([8, 1], flag: 1), Status.Internal),
        .. from length in (int[])[4, gzip.Length - 9, gzip.Length - 5] select ($"{length} bytes of a gzip", Grpc.Message(gzip[..length], flag: 1), Status.Internal),
        ("a wrong checksum", Grpc.Message([.. gzip[..^8], (byte)(gzip[^8] ^ 1), .. gzip[^7..]], flag: 1), Status.Internal),
        ("a wrong length of a gzip", Grpc.Message([.. gzip[..^1], (byte)(gzip[^1] ^ 1)], flag: 1), Status.Internal),
        ("a reserved block type", Grpc.Message([.. gzip[..10], 0x07, .. gzip[11..]], flag: 1), Status.Internal),
        .. from length in (long[])[Grpc.MaxMessage + 1, int.MaxValue] select ($"{length} bytes", Grpc.Prefix(length), Status.ResourceExhausted),
        .. from length in (int[])[Grpc.MaxMessage + 1, 20_000_000] select ($"{length} bytes in gzip", Grpc.Message(Grpc.Gzip(new byte[length]), flag: 1), Status.ResourceExhausted),
    ];

    static readonly (string What, byte[] Bytes, Status Status)[] faultyNames =
    [
        .. from bytes in (byte[][])[[0xff], [0xc3], [0xc0, 0x80], [0xed, 0xa0, 0x80], [0x41, 0xf8, 0x88, 0x80, 0x80, 0x80]]
           select ($"no UTF-8: {Convert.ToHexString(bytes)}", Grpc.Message(Grpc.Field(1, Grpc.Field(1, bytes))), Status.Internal),
        // Not one byte too many.
        .. from over in (int[])[0, 1] let message = Grpc.Field(1, Grpc.Field(1, new string('x', Grpc.MaxMessage - 10 + over)))
           from form in (byte[])[0, 1] select ($"4 MiB and {over} bytes, flag {form}", Grpc.Message(form == 0 ? message : Grpc.Gzip(message), form), over == 0 ? Status.Ok : Status.ResourceExhausted),
    ];

    static readonly Gen<Piece> faults = Gen.Elements(faulty.Concat(faultyNames).Select(fault => new Piece(fault.What, fault.Bytes)).ToArray());

    public static readonly TheoryData<string> Faults = new(faulty.Select(fault => fault.What)), FaultyNames = new(faultyNames.Select(fault => fault.What));

    static Gen<Stream> Streams(Gen<Piece> usual, Gen<Piece> unusual) =>
        from pieces in Gen.ListOf(Gen.Frequency((8, usual), (1, unusual), (1, from many in usual from count in Gen.Elements(100, 3000) select Repeat(many, Math.Min(count, 300_000 / many.Bytes.Length)))))
        from fault in Gen.Frequency((4, Gen.Constant<Piece[]>([])), (1, faults.Select(fault => (Piece[])[fault])))
        from after in Gen.ListOf(usual).Resize(3)
        from cut in Gen.Frequency((4, Gen.Constant(0)), (1, Gen.Choose(1, 7)))
        from chunks in Gen.NonEmptyListOf(Gen.Elements(1, 2, 4, 5, 6, 7, 11, 100, 1000, 16_384))
        let all = (Piece[])[.. pieces, .. fault, .. after]
        let body = Join(all.Select(piece => piece.Bytes))
        select new Stream([.. all.Select(piece => piece.What), .. cut > 0 ? [$"without the last {cut} bytes"] : (string[])[]], body[..^Math.Min(cut, body.Length)],
            // A frame for each byte would take the whole day where there is much.
            [.. chunks.Select(chunk => Math.Max(chunk, body.Length / 2000))]);

    static Piece Repeat(Piece piece, int count) => new($"{count} x {piece.What}", Join(Enumerable.Repeat(piece.Bytes, count)));

    static byte[] Join(IEnumerable<byte[]> parts)
    {
        var all = new MemoryStream();
        foreach (var part in parts)
            all.Write(part);
        return all.ToArray();
    }

    static readonly Gen<Stream> numbers = Streams(Numbers, Gen.OneOf(Unusual(number.Select(n => Grpc.Field(1, n))), zeros));

    static readonly Gen<Stream> names = Streams(Names, Unusual(from first in word from last in word select Grpc.Field(1, (byte[])[.. Grpc.Field(1, first), .. Grpc.Field(2, last)])));

    static readonly Gen<Stream> greetings = Streams(word.Select(text => new Piece($"greeting of {text.Length}", Grpc.Message(Grpc.Field(1, text)))), Unusual(word.Select(text => Grpc.Field(1, text))));

    // By itself as well: a random stream may miss it.
    [Theory, MemberData(nameof(Faults))]
    public async Task AFaultEndsAStreamWithItsStatus(string what)
    {
        var (_, bytes, status) = faulty.Single(fault => fault.What == what);
        var stream = new Stream([what], [.. Grpc.Numbers(1, 2, 3), .. bytes], [16_384]);
        var response = await ServersAreAlikeAsync(Grpc.FindMaximum, stream);
        Assert.Equal(status, response.Status);
        Assert.Equal([1, 2, 3], Grpc.ToNumbers(response.Messages));
        Assert.Equal((64 + (int)status, "1\n2\n3\n"), await ClientsAreAlikeAsync("max", Grpc.FindMaximum, stream));
        await ServersAreAlikeAsync(Grpc.GreetEveryone, stream with { Body = bytes });
    }

    [Theory, MemberData(nameof(FaultyNames))]
    public async Task AFaultyNameEndsAStreamWithItsStatus(string what)
    {
        var (_, bytes, status) = faultyNames.Single(fault => fault.What == what);
        var response = await ServersAreAlikeAsync(Grpc.GreetEveryone, new([what], [.. Grpc.Name("Ada"), .. bytes], [16_384]));
        Assert.Equal(status, response.Status);
        Assert.Equal("Hello Ada!", Grpc.ToGreetings(response.Messages)[0]);
    }

    [Fact]
    public void ServersAnswerNumbersAlike() => Check(numbers, Tool.Cases(200), stream => ServersAreAlikeAsync(Grpc.FindMaximum, stream));

    [Fact]
    public void ServersAnswerNamesAlike() => Check(names, Tool.Cases(200), stream => ServersAreAlikeAsync(Grpc.GreetEveryone, stream));

    [Fact]
    public void ClientsPrintNumbersAlike() => Check(numbers, Tool.Cases(40), stream => ClientsAreAlikeAsync("max", Grpc.FindMaximum, stream));

    [Fact]
    public void ClientsPrintGreetingsAlike() => Check(greetings, Tool.Cases(40), stream => ClientsAreAlikeAsync("greet", Grpc.GreetEveryone, stream));

    static void Check(Gen<Stream> streams, int count, Func<Stream, Task> test) => Prop.ForAll(streams.ToArbitrary(), test).Check(Config.QuickThrowOnFailure.WithMaxTest(count));

    async Task<Response> ServersAreAlikeAsync(string path, Stream stream)
    {
        var responses = await Task.WhenAll(CallAsync(plain.Port, path, stream), CallAsync(streamer.Port, path, stream));
        var (expected, actual) = (responses[0], responses[1]);
        Assert.Equal(expected.Status, actual.Status);
        Assert.Equal(expected.Messages.Length, actual.Messages.Length);
        // Not by Assert.Equal, which takes a minute for the bytes of all cases.
        Assert.All(expected.Messages.Zip(actual.Messages), pair => Assert.True(pair.First.AsSpan().SequenceEqual(pair.Second)));
        return actual;
    }

    static async Task<Response> CallAsync(int port, string path, Stream stream)
    {
        await using var peer = await Http2Peer.ConnectAsync(port);
        var id = await peer.RequestAsync(path, [("grpc-encoding", "gzip")]);
        _ = SendAsync();
        return await peer.ReadResponseAsync(id);

        // A server that has seen enough reads no further.
        async Task SendAsync()
        {
            foreach (var frame in stream.Frames())
                await peer.SendDataAsync(id, frame);
            await peer.SendDataAsync(id, [], end: true);
        }
    }

    static async Task<(int ExitCode, string Output)> ClientsAreAlikeAsync(string command, string path, Stream stream)
    {
        await using var server = new FakeServer(async peer =>
        {
            var (id, _) = await peer.ReadRequestAsync();
            // Nothing is left to be read of the input when the call ends.
            while (await peer.ReadAsync() is { EndsStream: false })
            {
            }
            await peer.SendAsync(Frame.Headers(id, [(":status", "200"), ("content-type", "application/grpc"), ("grpc-encoding", "gzip")]));
            foreach (var frame in stream.Frames())
                await peer.SendDataAsync(id, frame);
            await peer.SendAsync(Frame.Headers(id, [("grpc-status", "0")], end: true));
        });
        var expected = PlainGrpc.CallAsync(server.Address, path);
        var actual = await OneProcess.TypeAsync($"streamer {command} --address {server.Address} < /dev/null");
        var (status, output) = await expected.WaitAsync(Tool.Patience);
        Assert.Equal((status == Status.Ok ? 0 : 64 + (int)status, output), (actual.ExitCode, actual.Output));
        return (actual.ExitCode, actual.Output);
    }
}
