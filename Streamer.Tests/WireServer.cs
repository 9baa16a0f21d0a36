namespace Streamer.Tests;

/// <summary>What the server makes of the frames that peers send it, good and bad.</summary>
public class WireServer(SharedServer server)
{
    const string HealthCheck = "/grpc.health.v1.Health/Check", HealthWatch = "/grpc.health.v1.Health/Watch";

    /// <summary>A call with a whole body; afterwards the connection must still be good for another one.</summary>
    async Task<Response> CallAsync(string path, byte[] body, params (string Name, string? Value)[] fields)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(path, fields);
        // A server that has seen enough need not read the rest.
        _ = peer.SendDataAsync(id, body, end: true);
        var response = await peer.ReadResponseAsync(id);
        await WorksAsync(peer);
        return response;
    }

    static async Task WorksAsync(Http2Peer peer)
    {
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendDataAsync(id, Grpc.Numbers(1, 5, 3), end: true);
        AssertNumbers([1, 5], Status.Ok, await peer.ReadResponseAsync(id));
    }

    async Task WorksAsync()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        await WorksAsync(peer);
    }

    static void AssertStatus(Status status, Response response)
    {
        Assert.True(response.Status == status, response.ToString());
        Assert.Equal(200, response.HttpStatus);
        Assert.Equal("application/grpc", response.Header("content-type"));
        Assert.Equal(response.Headers.Length, response.Headers.DistinctBy(field => field.Name).Count());
        Assert.Equal(response.Trailers.Length, response.Trailers.DistinctBy(field => field.Name).Count());
        Assert.True(response.IsTrailersOnly || response.HeadersFrames == 2 && response.Header("grpc-status") is null, response.ToString());
    }

    static void AssertNumbers(long[] numbers, Status status, Response response)
    {
        AssertStatus(status, response);
        Assert.Equal(numbers, Grpc.ToNumbers(response.Messages));
    }

    // Requests

    [Theory, Rows("application/grpc", "application/grpc+proto", "application/grpc; charset=utf-8", "application/grpc+proto;v=1", "Application/GRPC")]
    public async Task ContentTypesOfGrpcAreAccepted(string contentType) =>
        AssertNumbers([7], Status.Ok, await CallAsync(Grpc.FindMaximum, Grpc.Numbers(7), ("content-type", contentType)));

    [Theory, Rows("application/json", "application/grpc-web", "application/grpc-web+proto", "application/grpcproto", "text/plain; application/grpc",
        null)]
    public async Task OtherContentTypesGet415(string? contentType)
    {
        var response = await CallAsync(Grpc.FindMaximum, Grpc.Numbers(7), ("content-type", contentType));
        Assert.Equal(415, response.HttpStatus);
        Assert.Empty(response.Messages);
    }

    [Theory, Rows("GET", "PUT", "HEAD", "OPTIONS", "SPLICE")]
    public async Task MethodsOtherThanPostAreRefused(string method)
    {
        var response = await CallAsync(Grpc.FindMaximum, Grpc.Numbers(7), (":method", method));
        Assert.Equal(404, response.HttpStatus);
        Assert.Empty(response.Messages);
    }

    [Theory, Rows("/streaming.CalculatorService/FindMinimum", "/streaming.Nothing/FindMaximum", "/streaming.calculatorservice/findmaximum",
        "/streaming.CalculatorService/FindMaximum/", "/%C3%A9t%C3%A9/x", "/a%0Ab/c%0D")]
    public async Task AnUnknownMethodIsUnimplementedInTrailersOnly(string path)
    {
        var response = await CallAsync(path, Grpc.Numbers(7));
        AssertStatus(Status.Unimplemented, response);
        Assert.True(response.IsTrailersOnly, response.ToString());
    }

    [Theory, Rows("/streaming.CalculatorService", "/", "//")]
    public async Task APathWithoutAServiceAndAMethodGets404(string path)
    {
        var response = await CallAsync(path, Grpc.Numbers(7));
        Assert.Equal(404, response.HttpStatus);
        Assert.Empty(response.Messages);
    }

    [Theory, Rows("streaming", "calculator")]
    public async Task FindMaximumHasTwoNames(string package) => AssertNumbers([-3, 0, 5, long.MaxValue], Status.Ok,
        await CallAsync($"/{package}.CalculatorService/FindMaximum", Grpc.Numbers(-3, -4, 0, 0, 5, 2, long.MaxValue, long.MinValue)));

    [Theory, Rows("streaming", "greet")]
    public async Task GreetEveryoneHasTwoNames(string package)
    {
        var response = await CallAsync($"/{package}.GreetService/GreetEveryone", [.. Grpc.Name("Ada"), .. Grpc.Name("Ada", "Lovelace"), .. Grpc.Message([]), .. Grpc.Name("", "Lovelace")]);
        AssertStatus(Status.Ok, response);
        Assert.Equal(["Hello Ada!", "Hello Ada Lovelace!", "Hello !", "Hello  Lovelace!"], Grpc.ToGreetings(response.Messages));
    }

    [Theory, Rows(Grpc.FindMaximum, Grpc.GreetEveryone, "/calculator.CalculatorService/FindMaximum", "/greet.GreetService/GreetEveryone")]
    public async Task ResponseHeadersComeBeforeAnyMessage(string path)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(path, []);
        var response = new Response();
        Assert.False(response.Add((await peer.ReadAsync())!));
        Assert.Equal(200, response.HttpStatus);
        Assert.Equal("application/grpc", response.Header("content-type"));
        Assert.Null(response.Header("grpc-status"));
        await peer.SendAsync(Frame.Data(id, [], end: true));
        AssertStatus(Status.Ok, await peer.ReadResponseAsync(id, response));
    }

    [Fact]
    public async Task ARequestWithoutABodyIsAnEmptyStream()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        AssertNumbers([], Status.Ok, await peer.ReadResponseAsync(await peer.RequestAsync(Grpc.FindMaximum, [], end: true)));
    }

    // Messages

    [Fact]
    public async Task EachAnswerComesBeforeTheNextRequest()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        Assert.Equal(FrameType.Headers, (await peer.ReadAsync())!.Type);
        for (var number = 1; number < 100; number++)
        {
            await peer.SendAsync(Frame.Data(id, Grpc.Numbers(number)));
            Assert.Equal(Grpc.Numbers(number), (await peer.ReadAsync())!.Payload);
        }
    }

    [Fact]
    public async Task FramesMayBePadded()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.PaddedData(id, Grpc.Numbers(1), 255), Frame.PaddedData(id, [], 1), Frame.PaddedData(id, Grpc.Numbers(2), 0, end: true));
        AssertNumbers([1, 2], Status.Ok, await peer.ReadResponseAsync(id));
    }

    [Fact]
    public async Task RequestTrailersEndTheRequest()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1)), Frame.Headers(id, [("x-trailer", "1")], end: true));
        AssertNumbers([1], Status.Ok, await peer.ReadResponseAsync(id));
    }

    [Theory, Rows(Grpc.MaxMessage + 1, int.MaxValue, uint.MaxValue)]
    public async Task ALengthOverTheLimitIsResourceExhaustedFromTheFiveBytesAlone(long length)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.Data(id, [.. Grpc.Numbers(1, 2, 3), .. Grpc.Prefix(length)]));
        AssertNumbers([1, 2, 3], Status.ResourceExhausted, await peer.ReadResponseAsync(id));
        await WorksAsync(peer);
    }

    // Compression

    [Fact]
    public async Task GzipIsUnderstoodAndAdvertised()
    {
        byte[] body = [.. Grpc.Message(Grpc.Gzip(Grpc.Field(1, 5)), flag: 1), .. Grpc.Numbers(6), .. Grpc.Message(Grpc.Gzip([]), flag: 1), .. Grpc.Message(Grpc.Gzip(Grpc.Field(1, 7)), flag: 1)];
        var response = await CallAsync(Grpc.FindMaximum, body, ("grpc-encoding", "gzip"));
        AssertNumbers([5, 6, 7], Status.Ok, response);
        Assert.Contains("gzip", response.Header("grpc-accept-encoding")!.Split(','));
    }

    [Fact]
    public async Task DeflateAndIdentityAreUnderstoodAsWell()
    {
        AssertNumbers([5, 6], Status.Ok, await CallAsync(Grpc.FindMaximum, [.. Grpc.Message(Grpc.Deflate(Grpc.Field(1, 5)), flag: 1), .. Grpc.Numbers(6)], ("grpc-encoding", "deflate")));
        AssertNumbers([5], Status.Ok, await CallAsync(Grpc.FindMaximum, Grpc.Numbers(5), ("grpc-encoding", "identity")));
    }

    [Theory, Rows("snappy", "GZIP ", "gzip, gzip")]
    public async Task AnotherEncodingIsUnimplementedWithThoseThatAreNot(string encoding)
    {
        var response = await CallAsync(Grpc.FindMaximum, Grpc.Message(Grpc.Gzip(Grpc.Field(1, 5)), flag: 1), ("grpc-encoding", encoding));
        AssertStatus(Status.Unimplemented, response);
        Assert.Equal(["identity", "gzip", "deflate"], response.Header("grpc-accept-encoding")!.Split(','));
    }

    [Theory, Rows(null, "identity")]
    public async Task ACompressedFlagWithoutAnEncodingIsInternal(string? encoding) =>
        AssertNumbers([1], Status.Internal, await CallAsync(Grpc.FindMaximum, [.. Grpc.Numbers(1), .. Grpc.Message(Grpc.Gzip(Grpc.Field(1, 5)), flag: 1)], ("grpc-encoding", encoding)));

    // Deadlines

    [Theory, Rows("1H", "99999999H", "10M", "00000600S", "600000m", "99999999m")]
    public async Task ADeadlineFarOffChangesNothing(string timeout) =>
        AssertNumbers([5], Status.Ok, await CallAsync(Grpc.FindMaximum, Grpc.Numbers(5), ("grpc-timeout", timeout)));

    [Theory, Rows("0H", "0M", "0S", "1S", "100m", "200000u", "99999999n", "1n")]
    public async Task AStreamEndsAtItsDeadline(string timeout)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        foreach (var path in new[] { Grpc.FindMaximum, Grpc.GreetEveryone })
        {
            AssertStatus(Status.DeadlineExceeded, await peer.ReadResponseAsync(await peer.RequestAsync(path, [("grpc-timeout", timeout)])));
            await WorksAsync(peer);
        }
    }

    [Fact]
    public Task AnswersBeforeTheDeadlineAreSent() => Wait.ForEnoughAsync(async deadline =>
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, [("grpc-timeout", $"{deadline}S")]);
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1, 2, 3)));
        var response = await peer.ReadResponseAsync(id);
        AssertNumbers(response.Messages is [] ? [] : [1, 2, 3], Status.DeadlineExceeded, response);
        return response.Messages is not [];
    });

    [Theory, Rows(1, 400_000)]
    public Task ADeadlineResetsTheStreamOfAPeerThatDoesNotRead(int count) => Wait.ForEnoughAsync(async deadline =>
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port, window: 0);
        var id = await peer.RequestAsync(Grpc.FindMaximum, [("grpc-timeout", $"{deadline}S")]);
        var sending = peer.SendDataAsync(id, Grpc.Numbers([.. Enumerable.Range(1, count).Select(i => (long)i)]));
        var response = await peer.ReadResponseAsync(id);
        // Where there was no answer yet, only a status goes out, which no window holds up.
        Assert.True(response.Reset is not null || response.Status == Status.DeadlineExceeded, response.ToString());
        await peer.SendAsync(Frame.Settings((4, int.MaxValue)));
        await WorksAsync(peer);
        return response.Reset is not null;
    });

    [Theory, Rows("", "1", "S", "-1S", "+1S", "1.5S", "1s", "1 S", "1e3S", "1SS", "123456789S", "1S, 2S")]
    public async Task AMalformedTimeoutIsInternal(string timeout) =>
        AssertStatus(Status.Internal, await CallAsync(Grpc.FindMaximum, Grpc.Numbers(5), ("grpc-timeout", timeout)));

    [Fact]
    public async Task TheMessageOfAStatusIsPercentEncoded() =>
        Assert.EndsWith(" 100%25%0A", (await CallAsync(Grpc.FindMaximum, Grpc.Numbers(5), ("grpc-timeout", "100%\t"))).GrpcMessage!.Replace("%09", "%0A"));

    // Ends that nobody announced

    /// <summary>What a peer may have sent before it goes away, each with the bytes that make a leak show.</summary>
    static Frame[] Beginning(int id, int point) =>
    [
        .. (Frame[])[Frame.Headers(id, Http2Peer.GrpcRequest(point % 2 == 0 ? Grpc.FindMaximum : Grpc.GreetEveryone), end: point == 1)],
        .. point switch
        {
            0 or 1 => (Frame[])[],
            2 => [Frame.Data(id, [0, 0])],
            3 => [Frame.Data(id, Grpc.Prefix(1000))],
            4 => Frame.AllData(id, [.. Grpc.Prefix(Grpc.MaxMessage), .. new byte[60_000]]),
            5 => [Frame.Data(id, Grpc.Name("Ada"))],
            6 => [Frame.Data(id, Grpc.Numbers(1, 2, 3)), Frame.Data(id, [0])],
            7 => [Frame.Data(id, Grpc.Name("Ada"), end: true)],
            _ => [Frame.Data(id, Grpc.Message([0x08]))],
        },
    ];

    const int Points = 9;

    [Theory, Rows(0, 1, 2, 3, 4, 5, 6, 7, 8)]
    public async Task AResetAtAnyPointReleasesTheStream(int point)
    {
        // More than twice the streams that a connection may have at a time: one that stayed would be missed.
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        for (var i = 0; i < 250; i++)
        {
            var id = peer.NextStream();
            await peer.SendAsync(Beginning(id, point));
            if (i % 2 == 0 && point < Points - 1)
                Assert.Equal(FrameType.Headers, (await peer.ReadAsync())!.Type);
            await peer.SendAsync(Frame.RstStream(id, ErrorCode.Cancel));
            await WorksAsync(peer);
        }
    }

    [Fact]
    public async Task AResetReleasesAStreamWhosePeerDoesNotRead()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port, window: 0);
        var body = Grpc.Numbers([.. Enumerable.Range(1, 3000).Select(i => (long)i)]);
        for (var i = 0; i < 250; i++)
        {
            var id = peer.NextStream();
            await peer.SendAsync([Frame.Headers(id, Http2Peer.GrpcRequest(Grpc.FindMaximum)), .. Frame.AllData(id, body)]);
            Assert.Equal(FrameType.Headers, (await peer.ReadAsync())!.Type);
            await peer.SendAsync(Frame.RstStream(id, ErrorCode.Cancel));
        }
        await peer.SendAsync(Frame.Settings((4, int.MaxValue)));
        await WorksAsync(peer);
    }

    [Fact]
    public async Task ConnectionsThatEndAtAnyPointLeaveNothingBehind()
    {
        await using var own = await RunningServer.StartAsync();
        await EndConnectionsAsync(1500);
        Assert.InRange(own.Process.PeakMemory, 1, RunningServer.MemoryLimit);

        async Task EndConnectionsAsync(int count)
        {
            for (var i = 0; i < count; i++)
            {
                await using var peer = await Http2Peer.ConnectAsync(own.Port);
                var bytes = Beginning(peer.NextStream(), i % Points).SelectMany(frame => frame.ToBytes()).ToArray();
                // Every third leaves inside a frame.
                await peer.WriteAsync(bytes[..^(i % 3)]);
                if (i % 5 == 0)
                    await peer.SendAsync(Frame.GoAway(0, ErrorCode.NoError, "bye"));
                if (i % 2 == 0)
                    peer.ResetConnection();
            }
            await using var last = await Http2Peer.ConnectAsync(own.Port);
            await WorksAsync(last);
        }
    }

    [Theory, Rows("", "PRI * HT", "GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", "\u0016\u0003\u0001\u0002\0\u0001")]
    public async Task BytesThatAreNotHttp2HurtNobody(string bytes)
    {
        for (var i = 0; i < 20; i++)
        {
            await using var peer = await Http2Peer.ConnectSilentlyAsync(server.Port);
            await peer.WriteAsync(Encoding.Latin1.GetBytes(bytes));
        }
        await WorksAsync();
    }

    [Fact]
    public async Task AGoAwayFromTheClientLetsItsStreamFinish()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(Grpc.FindMaximum, []);
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(1)), Frame.GoAway(0, ErrorCode.NoError));
        await peer.SendAsync(Frame.Data(id, Grpc.Numbers(2), end: true));
        AssertNumbers([1, 2], Status.Ok, await peer.ReadResponseAsync(id));
        await WorksAsync();
    }

    [Fact]
    public async Task ABodyThatIsNotAsLongAsItsContentLengthHurtsNobody()
    {
        var response = await CallAsync(Grpc.FindMaximum, Grpc.Numbers(1), ("content-length", "1000"));
        Assert.True(response.Status is not Status.Ok, response.ToString());
        await WorksAsync();
    }

    // Health checking and reflection: they tell of the services by the names that streaming.proto gives them

    const long Serving = 1, ServiceUnknown = 3;

    [Theory, Rows("", "streaming.GreetService", "streaming.CalculatorService")]
    public async Task HealthKnowsEachService(string service)
    {
        AssertNumbers([Serving], Status.Ok, await CallAsync(HealthCheck, Grpc.Message(Grpc.Field(1, service))));
        await WatchesAsync(service, Serving);
    }

    [Theory, Rows("streaming.Nothing", "streaming", "/", "greet.GreetService", "calculator.CalculatorService")]
    public async Task HealthKnowsNoOther(string service)
    {
        AssertNumbers([], Status.NotFound, await CallAsync(HealthCheck, Grpc.Message(Grpc.Field(1, service))));
        await WatchesAsync(service, ServiceUnknown);
    }

    async Task WatchesAsync(string service, long status)
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(HealthWatch, []);
        await peer.SendAsync(Frame.Data(id, Grpc.Message(Grpc.Field(1, service)), end: true));
        Assert.Equal(FrameType.Headers, (await peer.ReadAsync())!.Type);
        Assert.Equal(Grpc.Numbers(status), (await peer.ReadAsync())!.Payload);
    }

    [Fact]
    public Task HealthWatchEndsAtItsDeadline() => Wait.ForEnoughAsync(async deadline =>
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        var id = await peer.RequestAsync(HealthWatch, [("grpc-timeout", $"{deadline}S")]);
        await peer.SendAsync(Frame.Data(id, Grpc.Message([]), end: true));
        var response = await peer.ReadResponseAsync(id);
        AssertNumbers(response.Messages is [] ? [] : [Serving], Status.DeadlineExceeded, response);
        return response.Messages is not [];
    });

    [Fact]
    public async Task AResetReleasesAHealthWatch()
    {
        await using var peer = await Http2Peer.ConnectAsync(server.Port);
        for (var i = 0; i < 250; i++)
        {
            var id = await peer.RequestAsync(HealthWatch, []);
            await peer.SendAsync(Frame.Data(id, Grpc.Message([]), end: true));
            Assert.Equal(FrameType.Headers, (await peer.ReadAsync())!.Type);
            Assert.Equal(FrameType.Data, (await peer.ReadAsync())!.Type);
            await peer.SendAsync(Frame.RstStream(id, ErrorCode.Cancel));
            await WorksAsync(peer);
        }
    }

    const int FileByFilename = 3, FileContainingSymbol = 4, ListServices = 7;
    const int FileDescriptorResponse = 4, ListServicesResponse = 6, ErrorResponse = 7;

    async Task<(int Number, byte[] Bytes)[]> ReflectAsync(string version, params byte[][] requests)
    {
        var response = await CallAsync($"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo", [.. requests.SelectMany(request => Grpc.Message(request))]);
        AssertStatus(Status.Ok, response);
        Assert.Equal(requests.Length, response.Messages.Length);
        return [.. response.Messages.Select(message => Grpc.Fields(message).Single(field => field.Number > 2)).Select(answer => (answer.Number, answer.Bytes))];
    }

    static string Text(byte[] message, int field) => Encoding.UTF8.GetString(Grpc.Fields(message).Single(one => one.Number == field).Bytes);

    [Theory, Rows("v1", "v1alpha")]
    public async Task ReflectionListsTheServices(string version)
    {
        var answer = Assert.Single(await ReflectAsync(version, Grpc.Field(ListServices, "*"u8.ToArray())));
        Assert.Equal(ListServicesResponse, answer.Number);
        Assert.Equal(["streaming.CalculatorService", "streaming.GreetService"], Grpc.Fields(answer.Bytes).Select(field => Text(field.Bytes, 1)).Where(name => !name.StartsWith("grpc.")).Order());
    }

    [Theory, Rows("v1", "v1alpha")]
    public async Task ReflectionGivesTheFile(string version)
    {
        byte[][] asked = [Grpc.Field(FileByFilename, "streaming.proto"), .. from symbol in (string[])["GreetService", "GreetService.GreetEveryone", "FindMaximumRequest"] select Grpc.Field(FileContainingSymbol, $"streaming.{symbol}")];
        Assert.All(await ReflectAsync(version, asked), answer =>
        {
            Assert.Equal(FileDescriptorResponse, answer.Number);
            Assert.Equal("streaming.proto", Text(Grpc.Fields(answer.Bytes)[0].Bytes, 1));
        });
    }

    [Theory, Rows("v1", "v1alpha")]
    public async Task WhatReflectionDoesNotFindIsAnsweredInBand(string version)
    {
        var answers = await ReflectAsync(version, [Grpc.Field(FileByFilename, "nothing.proto"),
            .. from symbol in (string[])["streaming.Nothing", "streaming.GreetService.Nothing", "streaming", "greet.GreetService", "calculator.CalculatorService"] select Grpc.Field(FileContainingSymbol, symbol),
            Grpc.Field(FileByFilename, "streaming.proto")]);
        Assert.All(answers[..^1], answer =>
        {
            Assert.Equal(ErrorResponse, answer.Number);
            Assert.Equal((long)Status.NotFound, Grpc.Fields(answer.Bytes)[0].Value);
        });
        Assert.Equal(FileDescriptorResponse, answers[^1].Number);
    }
}
