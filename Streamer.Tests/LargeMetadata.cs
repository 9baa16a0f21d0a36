using Grpc.Core;
using Grpc.Net.Client;
using Streaming;
using Xunit;

namespace Streamer.Tests;

/// <summary>Metadata as large as people send it is served; what is larger than a server takes is called so, whatever form its refusal has.</summary>
public sealed class LargeMetadata(SharedServer server)
{
    const string TooLarge = "the metadata is larger than ";

    static string[] Fields(int count, int size) => [.. Enumerable.Range(1, count).SelectMany(i => (string[])["-H", $"x-{i}: {new string('a', size)}"])];

    [Theory]
    [InlineData(1, 33_000)]
    [InlineData(1, 100_000)]
    [InlineData(3, 25_000)]
    [InlineData(250, 10)]
    [InlineData(900, 10)]
    public async Task TokensOfTensOfKilobytesAndHundredsOfFieldsAreServed(int count, int size) =>
        Assert.Equal(new(0, "1\n", ""), await OneProcess.RunAsync("1", ["max", "--address", server.Address, .. Fields(count, size)]));

    [Fact]
    public async Task TheyCostNobodysStream()
    {
        using var channel = GrpcChannel.ForAddress(server.Address);
        var client = new CalculatorService.CalculatorServiceClient(channel);
        using var first = client.FindMaximum();
        await TurnAsync(first, 1);
        using var second = client.FindMaximum([new("x-token", new string('a', 33_000)), new("x-more", new string('b', 60_000))]);
        await TurnAsync(second, 5);
        await TurnAsync(first, 2);

        static async Task TurnAsync(AsyncDuplexStreamingCall<FindMaximumRequest, FindMaximumResponse> call, long number)
        {
            await call.RequestStream.WriteAsync(new() { Number = number });
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None));
            Assert.Equal(number, call.ResponseStream.Current.Maximum);
        }
    }

    // With status 431, by an error of the connection, or by .NET's own handler, where the server's limit has come in time.
    [Theory]
    [InlineData(1_100, 10)]
    [InlineData(2_500, 10)]
    [InlineData(6, 25_000)]
    [InlineData(20, 25_000)]
    public async Task WhatIsBeyondThatIsCalledSo(int count, int size)
    {
        var result = await OneProcess.RunAsync("1", ["max", "--address", server.Address, .. Fields(count, size)]);
        Assert.InRange(result.ExitCode, 77, 78);
        Assert.Matches($@"^streamer: [A-Z]+: {TooLarge}{server.Address} takes: .+\n\z", result.Error);
    }

    static readonly Dictionary<string, Func<Http2Peer, int, Task>> refusals = new()
    {
        ["status 431"] = (peer, stream) => peer.SendAsync(Frame.Headers(stream, [(":status", "431")], end: true)),
        ["status 400"] = (peer, stream) => peer.SendAsync(Frame.Headers(stream, [(":status", "400"), ("content-type", "text/html")], end: true)),
        ["COMPRESSION_ERROR"] = (peer, _) => peer.SendAsync(Frame.GoAway(0, ErrorCode.CompressionError)),
        ["INTERNAL_ERROR"] = (peer, _) => peer.SendAsync(Frame.GoAway(0, ErrorCode.InternalError)),
        ["ENHANCE_YOUR_CALM"] = (peer, _) => peer.SendAsync(Frame.GoAway(0, ErrorCode.EnhanceYourCalm)),
        ["the server reset the stream: ENHANCE_YOUR_CALM"] = (peer, stream) => peer.SendAsync(Frame.RstStream(stream, ErrorCode.EnhanceYourCalm)),
        ["was lost"] = (_, _) => Task.CompletedTask,
    };

    public static TheoryData<string> Refusals => [.. refusals.Keys];

    [Theory, MemberData(nameof(Refusals))]
    public async Task EveryFormOfRefusalIsUnderstood(string form)
    {
        var large = await RefusedAsync(form, Fields(1, 20_000));
        Assert.Contains(TooLarge, large);
        Assert.Contains(form, large);
        Assert.Contains(TooLarge, await RefusedAsync(form, Fields(100, 1)));
        // Only where there is a doubt what is meant.
        var small = await RefusedAsync(form, Fields(1, 10));
        Assert.Equal(form == "status 431", small.Contains(TooLarge));
        Assert.Contains(form, small);
    }

    [Fact]
    public async Task AServerThatShutsDownDoesNotMeanTheMetadata() =>
        Assert.Contains("shut down", await RefusedAsync((peer, _) => peer.SendAsync(Frame.GoAway(0, ErrorCode.NoError)), Fields(1, 20_000)));

    static Task<string> RefusedAsync(string form, string[] metadata) => RefusedAsync(refusals[form], metadata);

    static async Task<string> RefusedAsync(Func<Http2Peer, int, Task> refuse, string[] metadata)
    {
        await using var fake = new FakeServer(async peer =>
        {
            // Headers of any size: until all are here, they are not looked at.
            Frame? frame;
            do
                frame = await peer.ReadAsync();
            while (frame is not null && (frame.Type is not (FrameType.Headers or FrameType.Continuation) || (frame.Flags & Frame.EndHeadersFlag) == 0));
            await refuse(peer, 1);
            peer.Finish();
        });
        var result = await OneProcess.RunAsync("", ["max", "--address", fake.Address, .. metadata]);
        Assert.NotEqual(0, result.ExitCode);
        Assert.Equal("", result.Output);
        Assert.DoesNotContain(TooLarge, result.Error.Replace($"{TooLarge}{fake.Address} takes: ", ""));
        return Assert.Single(result.Error.TrimEnd('\n').Split('\n'));
    }
}
