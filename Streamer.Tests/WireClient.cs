namespace Streamer.Tests;

/// <summary>What the client makes of the frames that servers send it, good and bad.</summary>
public class WireClient
{
    static readonly (string, string)[] ok = [("grpc-status", "0")];

    static (string, string)[] ResponseHeaders(params (string Name, string Value)[] more) => [(":status", "200"), ("content-type", "application/grpc"), .. more];

    static (string, string)[] TrailersOnly(Status status, string message = "") => ResponseHeaders(("grpc-status", $"{status:D}"), ("grpc-message", message));

    /// <summary>Runs `max` against a server that waits for all of the requests and then sends these frames.</summary>
    static Task<Result> AnswerAsync(Func<int, Frame[]> frames) => AnswerAsync((peer, stream) => peer.SendAsync(frames(stream)));

    /// <summary>Runs `max` against a server that waits for all of the requests and then does this.</summary>
    static async Task<Result> AnswerAsync(Func<Http2Peer, int, Task> answer)
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            while (await peer.ReadAsync() is { EndsStream: false })
            {
            }
            await answer(peer, stream);
        });
        var result = await OneProcess.TypeAsync($"echo 1 2 3 | streamer max --address {server.Address}");
        await server.Serving.WaitAsync(Tool.Patience);
        return result;
    }

    /// <summary>Runs `max` against a server that waits for the request and then does this.</summary>
    static async Task<Result> ServeAsync(string input, Func<Http2Peer, int, Task> serve, string command = "max")
    {
        await using var server = new FakeServer(async peer => await serve(peer, (await peer.ReadRequestAsync()).Stream));
        var result = await Tool.RunAsync(input, command, "--address", server.Address);
        await server.Serving.WaitAsync(Tool.Patience);
        return result;
    }

    /// <summary>The exit code is the status's, stdout is these lines, and stderr is one line.</summary>
    static void AssertEnd(Status status, string output, Result result)
    {
        Assert.True(result.ExitCode == (status == Status.Ok ? 0 : 64 + (int)status), $"{status} was expected, not {result.ExitCode} and {result.Error}");
        Assert.Equal(output, result.Output);
        Assert.True(status == Status.Ok ? result.Error == "" : result.Error.StartsWith("streamer: ") && result.Error.Count(c => c == '\n') == 1, result.Error);
    }

    // The request

    [Fact]
    public async Task TheRequestIsGrpcs()
    {
        (string Name, string Value)[] fields = [];
        await using var server = new FakeServer(async peer =>
        {
            (var stream, fields) = await peer.ReadRequestAsync();
            await peer.SendAsync(Frame.Headers(stream, TrailersOnly(Status.Ok), end: true));
        });
        AssertEnd(Status.Ok, "", await Tool.RunAsync("", "max", "--address", server.Address, "--deadline", "90",
            "-H", "X-Mixed: Some text, with: a colon", "-H", "x-twice: 1", "-H", "x-twice: 2", "-H", "trace-bin: AAEC/w==", "-H", "short-bin:AAEC/w", "-H", "empty:", "-H", "expires: 0", "-H", "allow: all"));
        Assert.Equal([":authority", ":method", ":path", ":scheme"], fields.Where(field => field.Name[0] == ':').Select(field => field.Name).Order());
        Assert.All(fields[..4], field => Assert.Equal(':', field.Name[0]));
        Assert.Equal(fields.Length, fields.DistinctBy(field => field.Name).Count());
        var values = fields.ToDictionary();
        var (timeout, agent) = (values["grpc-timeout"], values["user-agent"]);
        Assert.Equal(new Dictionary<string, string>
        {
            [":method"] = "POST",
            [":scheme"] = "http",
            [":path"] = Grpc.FindMaximum,
            [":authority"] = new Uri(server.Address).Authority,
            ["te"] = "trailers",
            ["content-type"] = "application/grpc",
            ["user-agent"] = agent,
            ["grpc-accept-encoding"] = "identity,gzip,deflate",
            ["grpc-timeout"] = timeout,
            ["x-mixed"] = "Some text, with: a colon",
            ["x-twice"] = "1, 2",
            ["trace-bin"] = "AAEC/w==",
            ["short-bin"] = "AAEC/w==",
            ["empty"] = "",
            ["expires"] = "0",
            ["allow"] = "all",
        }.OrderBy(field => field.Key), values.OrderBy(field => field.Key));
        Assert.Matches("^[0-9]{1,8}[HMSmun]$", timeout);
        Assert.StartsWith("grpc-dotnet/", agent);
    }

    [Theory, Rows("99.5", "3600", "4000000")]
    public async Task TheDeadlineIsSent(string seconds)
    {
        var timeout = "";
        await using var server = new FakeServer(async peer =>
        {
            var (stream, fields) = await peer.ReadRequestAsync();
            timeout = fields.Single(field => field.Name == "grpc-timeout").Value;
            await peer.SendAsync(Frame.Headers(stream, TrailersOnly(Status.Ok), end: true));
        });
        await Tool.RunAsync("", "max", "--address", server.Address, "--deadline", seconds);
        await server.Serving.WaitAsync(Tool.Patience);
        var value = long.Parse(timeout[..^1]) * timeout[^1] switch { 'H' => 3600, 'M' => 60, 'S' => 1, 'm' => 1e-3, 'u' => 1e-6, _ => 1e-9 };
        Assert.InRange(value, 0.01, double.Parse(seconds));
    }

    [Fact]
    public async Task MessagesDoNotWaitForTheResponsesHeaders()
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            var received = new List<byte>();
            while (await peer.ReadAsync() is { Type: FrameType.Data } data)
            {
                received.AddRange(data.Payload);
                if (data.EndsStream)
                    break;
            }
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, [.. received]), Frame.Headers(stream, ok, end: true));
        });
        AssertEnd(Status.Ok, "1\n-2\n0\n3\n", await Tool.RunAsync("1 -2 0 3\n", "max", "--address", server.Address));
    }

    [Fact]
    public async Task EachAnswerIsPrintedAsItComes()
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()));
            while (await peer.ReadAsync() is { Type: FrameType.Data, EndsStream: false } data)
                await peer.SendAsync(data);
            await peer.SendAsync(Frame.Headers(stream, ok, end: true));
        });
        await using var tool = Running.Start("max", "--address", server.Address);
        for (var i = 0; i < 10; i++)
            await tool.TurnAsync($"{i}", $"{i}");
        tool.Input.Close();
        AssertEnd(Status.Ok, "", await tool.EndAsync());
    }

    // Statuses

    public static readonly TheoryData<Status> Errors = new(Enum.GetValues<Status>().Where(status => status != Status.Ok));

    [Theory, MemberData(nameof(Errors))]
    public async Task ATrailersOnlyStatusIsTheCalls(Status status)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, TrailersOnly(status, "as you were"), end: true)]);
        AssertEnd(status, "", result);
        Assert.EndsWith(": as you were\n", result.Error);
    }

    [Theory, InlineData(Status.NotFound, "NOT_FOUND"), InlineData(Status.DeadlineExceeded, "DEADLINE_EXCEEDED: the deadline has passed")]
    public async Task AStatusNeedsNoMessage(Status status, string told)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, ResponseHeaders()), Frame.Headers(stream, [("grpc-status", $"{status:D}")], end: true)]);
        AssertEnd(status, "", result);
        Assert.Matches($@"^streamer: {told}{Verbose.Counts}\n\z", result.Error);
    }

    [Fact]
    public async Task ATrailersOnlyOkIsAnEmptyStream() =>
        AssertEnd(Status.Ok, "", await AnswerAsync(stream => [Frame.Headers(stream, TrailersOnly(Status.Ok), end: true)]));

    [Theory, InlineData("caf%C3%A9 %E2%82%AC", "café €"), InlineData("100%25", "100%"), InlineData("100%", "100%"), InlineData("%4", "%4"),
        InlineData("%zz%41", "%zzA"), InlineData("a%0Ab%0D%0Ac", "a b c"), InlineData("a+b", "a+b")]
    public async Task TheMessageOfAStatusIsDecoded(string sent, string shown)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, ResponseHeaders()), Frame.Headers(stream, [("grpc-status", "9"), ("grpc-message", sent)], end: true)]);
        AssertEnd(Status.FailedPrecondition, "", result);
        Assert.Matches($@": {Regex.Escape(shown)}{Verbose.Counts}\n\z", result.Error);
    }

    [Theory, Rows("%1B[2J%1B]0;title%07", "%C2%9B2J")]
    public async Task AStatusMessageCannotControlTheTerminal(string sent)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, TrailersOnly(Status.Aborted, sent), end: true)]);
        AssertEnd(Status.Aborted, "", result);
        Assert.DoesNotContain(result.Error.TrimEnd('\n'), char.IsControl);
    }

    [Theory, Rows("seven", "99", "-1", "+1", "", "OK", "1,2", "99999999999")]
    public async Task AStatusThatIsNoneIsUnknown(string status)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1)), Frame.Headers(stream, [("grpc-status", status)], end: true)]);
        AssertEnd(Status.Unknown, "1\n", result);
        Assert.Contains(status, result.Error);
    }

    [Fact]
    public async Task AStreamWithoutTrailersIsInternal() => AssertEnd(Status.Internal, "1\n2\n", await AnswerAsync(stream =>
        [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1, 2), end: true)]));

    [Fact]
    public async Task HeadersThatEndTheStreamWithoutAStatusAreInternal() => AssertEnd(Status.Internal, "", await AnswerAsync(stream =>
        [Frame.Headers(stream, ResponseHeaders(), end: true)]));

    [Fact]
    public async Task TrailersWithoutAStatusAreUnknown() => AssertEnd(Status.Unknown, "1\n2\n", await AnswerAsync(stream =>
        [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1, 2)), Frame.Headers(stream, [("x-other", "1")], end: true)]));

    [Theory, InlineData(400, Status.Internal), InlineData(401, Status.Unauthenticated), InlineData(403, Status.PermissionDenied),
        InlineData(404, Status.Unimplemented), InlineData(429, Status.Unavailable), InlineData(502, Status.Unavailable),
        InlineData(503, Status.Unavailable), InlineData(504, Status.Unavailable), InlineData(204, Status.Unknown), InlineData(302, Status.Unknown),
        InlineData(405, Status.Unknown), InlineData(415, Status.Unknown), InlineData(500, Status.Unknown)]
    public async Task AnHttpStatusIsMapped(int http, Status status)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, [(":status", $"{http}"), ("content-type", "text/html"), ("location", "/elsewhere")]), Frame.Data(stream, "<p>"u8.ToArray(), end: true)]);
        AssertEnd(status, "", result);
        Assert.Contains($"{http}", result.Error);
    }

    [Fact]
    public async Task AGrpcStatusGoesBeforeTheHttpStatus() => AssertEnd(Status.PermissionDenied, "", await AnswerAsync(stream =>
        [Frame.Headers(stream, [(":status", "503"), ("content-type", "application/grpc"), ("grpc-status", "7")], end: true)]));

    [Theory, Rows("text/html; charset=utf-8", "application/json", "application/grpc-web+proto", "application/grpcish")]
    public async Task AContentTypeThatIsNotGrpcIsUnknown(string contentType)
    {
        var result = await AnswerAsync(stream => [Frame.Headers(stream, [(":status", "200"), ("content-type", contentType)]), Frame.Data(stream, Grpc.Numbers(1)), Frame.Headers(stream, ok, end: true)]);
        AssertEnd(Status.Unknown, "", result);
        Assert.Contains(contentType, result.Error);
    }

    [Theory, Rows("application/grpc+proto", "application/grpc;charset=utf-8", "application/grpc+proto; v=1")]
    public async Task ContentTypesOfGrpcAreAccepted(string contentType) => AssertEnd(Status.Ok, "1\n", await AnswerAsync(stream =>
        [Frame.Headers(stream, [(":status", "200"), ("content-type", contentType)]), Frame.Data(stream, Grpc.Numbers(1)), Frame.Headers(stream, ok, end: true)]));

    [Fact]
    public async Task NoContentTypeIsUnknown() => AssertEnd(Status.Unknown, "", await AnswerAsync(stream =>
        [Frame.Headers(stream, [(":status", "200")]), Frame.Data(stream, Grpc.Numbers(1), end: true)]));

    // Ends of a stream and of a connection

    [Theory, InlineData(ErrorCode.NoError, Status.Internal), InlineData(ErrorCode.ProtocolError, Status.Internal),
        InlineData(ErrorCode.InternalError, Status.Internal), InlineData(ErrorCode.FlowControlError, Status.Internal),
        InlineData(ErrorCode.RefusedStream, Status.Unavailable), InlineData(ErrorCode.Cancel, Status.Cancelled),
        InlineData(ErrorCode.ConnectError, Status.Internal), InlineData(ErrorCode.EnhanceYourCalm, Status.ResourceExhausted),
        InlineData(ErrorCode.InadequateSecurity, Status.PermissionDenied), InlineData(ErrorCode.Http11Required, Status.Internal),
        InlineData((ErrorCode)1000, Status.Internal)]
    public async Task AResetIsMapped(ErrorCode reset, Status status)
    {
        AssertEnd(status, "", await AnswerAsync(stream => [Frame.RstStream(stream, reset)]));
        AssertEnd(status, "1\n", await AnswerAsync(stream => [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1)), Frame.RstStream(stream, reset)]));
    }

    [Theory, Rows(false, true)]
    public async Task ALostConnectionIsUnavailable(bool reset)
    {
        foreach (var before in new Func<int, Frame[]>[] { _ => [], stream => [Frame.Headers(stream, ResponseHeaders())] })
        {
            var result = await AnswerAsync(async (peer, stream) =>
            {
                await peer.SendAsync(before(stream));
                if (reset)
                    peer.ResetConnection();
                else
                    await peer.DisposeAsync();
            });
            AssertEnd(Status.Unavailable, "", result);
            Assert.Contains("lost", result.Error);
        }
    }

    [Theory, Rows(9, 10, 30, 60)]
    public async Task AConnectionThatEndsInsideAFrameIsUnavailable(int length)
    {
        var result = await AnswerAsync(async (peer, stream) =>
        {
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1, 2)));
            await peer.WriteAsync(Frame.Data(stream, Grpc.Numbers([.. Enumerable.Range(3, 20).Select(n => (long)n)])).ToBytes()[..length]);
            await peer.DisposeAsync();
        });
        AssertEnd(Status.Unavailable, "1\n2\n", result);
        Assert.Contains("lost", result.Error);
    }

    [Fact]
    public async Task ARefusedConnectionIsUnavailable()
    {
        using var port = new FreePort();
        var result = await Tool.RunAsync("1\n", "max", "--address", port.Address);
        AssertEnd(Status.Unavailable, "", result);
        Assert.Contains($"nothing listens at {port.Address}", result.Error);
    }

    [Theory, Rows("HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\nno\n",
        "HTTP/1.0 505 HTTP Version Not Supported\r\n\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n")]
    public async Task APeerThatSpeaksHttp1IsUnavailable(string answer)
    {
        for (var split = 0; split < 12; split += answer.Contains("400") ? 3 : 12)
        {
            await using var server = new FakeServer(async peer =>
            {
                await peer.WriteAsync(Encoding.ASCII.GetBytes(answer[..split]), Encoding.ASCII.GetBytes(answer[split..]));
            }, silent: true);
            var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address);
            AssertEnd(Status.Unavailable, "", result);
            Assert.Contains("HTTP/1.1", result.Error);
        }
    }

    [Fact]
    public async Task APeerThatSpeaksSomethingElseIsAnErrorInOneLine()
    {
        foreach (var greeting in new[] { "SSH-2.0-OpenSSH_9.9\r\n", "220 mail ESMTP\r\n", "\0\0", "" })
        {
            await using var server = new FakeServer(async peer =>
            {
                await peer.WriteAsync(Encoding.ASCII.GetBytes(greeting));
                peer.Finish();
            }, silent: true);
            var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address);
            AssertEnd(result.ExitCode == 64 + (int)Status.Internal ? Status.Internal : Status.Unavailable, "", result);
        }
    }

    public enum Ending { Reset, GoAwayWithError, GoAwayAndFin, Fin, Close, TcpReset, ResetWithoutError, MalformedFrame, NoTrailers, Oversized, Reserved }

    [Theory, InlineData(Ending.Reset, Status.Internal), InlineData(Ending.ResetWithoutError, Status.Internal),
        InlineData(Ending.GoAwayWithError, Status.Unavailable), InlineData(Ending.GoAwayAndFin, Status.Unavailable),
        InlineData(Ending.Fin, Status.Unavailable), InlineData(Ending.Close, Status.Unavailable), InlineData(Ending.TcpReset, Status.Unavailable),
        InlineData(Ending.MalformedFrame, Status.Internal), InlineData(Ending.NoTrailers, Status.Internal),
        InlineData(Ending.Oversized, Status.ResourceExhausted), InlineData(Ending.Reserved, Status.Internal)]
    public Task AnswersBeforeAnErrorArePrinted(Ending ending, Status status) => RepeatAsync(ending <= Ending.TcpReset ? Often : 3, async i =>
    {
        // A few in one frame, each in a padded one, or a megabyte: where there is much, there is much to lose.
        var (count, padded) = (i % 3) switch { 0 => (3, false), 1 => (3, true), _ => (100_000, false) };
        // What a TCP reset has overtaken in the kernel cannot be had back.
        if (ending is Ending.TcpReset or Ending.Close)
            count = 3;
        long[] numbers = [.. Enumerable.Range(1, count).Select(number => (long)number)];
        var result = await ServeAsync("1 2 3\n", async (peer, stream) =>
        {
            await peer.SendAsync(
            [
                Frame.Headers(stream, ResponseHeaders()),
                .. padded ? numbers.Select(number => Frame.PaddedData(stream, Grpc.Numbers(number), (byte)(number * 80))) : Frame.AllData(stream, Grpc.Numbers(numbers)),
                .. ending switch
                {
                    Ending.Reset => [Frame.RstStream(stream, ErrorCode.InternalError)],
                    Ending.ResetWithoutError => [Frame.RstStream(stream, ErrorCode.NoError)],
                    Ending.GoAwayWithError => [Frame.GoAway(stream, ErrorCode.InternalError, "the end")],
                    Ending.GoAwayAndFin => [Frame.GoAway(stream, ErrorCode.NoError)],
                    Ending.MalformedFrame => [new Frame(FrameType.WindowUpdate, 0, stream, [1, 2, 3])],
                    Ending.NoTrailers => [Frame.Data(stream, [], end: true)],
                    Ending.Oversized => [Frame.Data(stream, Grpc.Prefix(Grpc.MaxMessage + 1))],
                    Ending.Reserved => [Frame.Data(stream, Grpc.Prefix(0, flag: 9))],
                    _ => (Frame[])[],
                },
            ]);
            if (ending is Ending.Fin or Ending.GoAwayAndFin or Ending.GoAwayWithError)
                peer.Finish();
            else if (ending == Ending.Close)
                await peer.DisposeAsync();
            else if (ending == Ending.TcpReset)
                peer.ResetConnection();
        });
        // .NET may tell of the connection that it gave up after a malformed frame, instead of the frame.
        if (ending == Ending.MalformedFrame && result.ExitCode == 64 + (int)Status.Unavailable)
            status = Status.Unavailable;
        AssertEnd(status, string.Concat(numbers.Select(number => $"{number}\n")), result);
    });

    // So often that a race is lost some time.
    static readonly int Often = Tool.Cases(12);

    static async Task RepeatAsync(int times, Func<int, Task> test)
    {
        for (var i = 0; i < times; i++)
            await test(i);
    }

    [Fact]
    public Task AnOkThatComesEarlyEndsTheCallWhileInputGoesOn() => RepeatAsync(Often, async i =>
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync(i % 2 == 0
                ? [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1, 2, 3)), Frame.Headers(stream, ok, end: true), Frame.RstStream(stream, ErrorCode.NoError)]
                : [Frame.Headers(stream, TrailersOnly(Status.Ok), end: true), Frame.RstStream(stream, ErrorCode.NoError)]);
        });
        await using var tool = Running.Start("max", "--address", server.Address);
        var feeding = FeedWithoutEndAsync(tool);
        AssertEnd(Status.Ok, i % 2 == 0 ? "1\n2\n3\n" : "", await tool.EndAsync());
        await feeding;
    });

    [Fact]
    public async Task AnEarlyStatusEndsTheCallWhileInputWaits()
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync(Frame.Headers(stream, TrailersOnly(Status.PermissionDenied, "no"), end: true));
        });
        await using var tool = Running.Start("max", "--address", server.Address);
        AssertEnd(Status.PermissionDenied, "", await tool.EndAsync());
    }

    static async Task FeedWithoutEndAsync(Running tool)
    {
        try
        {
            while (true)
                await tool.WriteLineAsync("1 2 3");
        }
        catch (IOException)
        {
        }
    }

    public static readonly MatrixTheoryData<int, int> Pieces = new([100, 256], [3, Frame.HeaderSize, Frame.HeaderSize + 1, Frame.HeaderSize + 5]);

    [Theory, MemberData(nameof(Pieces))]
    public async Task AFrameMayComeInPieces(int length, int first)
    {
        // A length of 256 has a last byte of 0: what looks only at that takes the frame for an empty one.
        var result = await AnswerAsync(async (peer, stream) =>
        {
            var padded = Frame.PaddedData(stream, Grpc.Numbers(5), (byte)(length - 1 - Grpc.Numbers(5).Length)).ToBytes();
            Assert.Equal(Frame.HeaderSize + length, padded.Length);
            await peer.WriteAsync([.. Frame.Headers(stream, ResponseHeaders()).ToBytes(), .. padded[..first]], [.. padded[first..], .. Frame.Headers(stream, ok, end: true).ToBytes()]);
        });
        AssertEnd(Status.Ok, "5\n", result);
    }

    [Theory, Rows(false, true)]
    public async Task AGoAwayThatCoversTheStreamLetsItFinish(bool twice)
    {
        var result = await ServeAsync("1 2 3\n", async (peer, stream) =>
        {
            // A graceful server sends two: first one that stops new streams, then the last stream that it took.
            await peer.SendAsync([.. twice ? [Frame.GoAway(int.MaxValue, ErrorCode.NoError)] : (Frame[])[], Frame.GoAway(stream, ErrorCode.NoError), Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1))]);
            while (await peer.ReadAsync() is { EndsStream: false })
                ;
            await peer.SendAsync(Frame.Data(stream, Grpc.Numbers(2)), Frame.Headers(stream, ok, end: true));
        });
        AssertEnd(Status.Ok, "1\n2\n", result);
    }

    public enum Refusal { Reset, GoAway, GoAwayWithError }

    public static readonly MatrixTheoryData<Refusal, bool> Refusals = new([Refusal.Reset, Refusal.GoAway, Refusal.GoAwayWithError], [false, true]);

    [Theory, MemberData(nameof(Refusals))]
    public async Task WhatARefusedStreamSentIsNeitherLostNorSentTwice(Refusal refusal, bool afterMessages)
    {
        var refused = 0;
        await using var server = new FakeServer(async peer =>
        {
            while (true)
            {
                var (stream, _) = await peer.ReadRequestAsync();
                if (Interlocked.Exchange(ref refused, 1) == 0)
                {
                    if (afterMessages)
                        await peer.ReadAsync();
                    await peer.SendAsync(refusal switch
                    {
                        Refusal.Reset => Frame.RstStream(stream, ErrorCode.RefusedStream),
                        Refusal.GoAway => Frame.GoAway(0, ErrorCode.NoError),
                        _ => Frame.GoAway(0, ErrorCode.EnhanceYourCalm, "too_many_pings"),
                    });
                    continue;
                }
                await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()));
                Frame? frame;
                while ((frame = await peer.ReadAsync()) is { Type: FrameType.Data })
                {
                    await peer.SendAsync(Frame.Data(stream, frame.Payload));
                    if (frame.EndsStream)
                        break;
                }
                if (frame is { Type: FrameType.Data })
                    await peer.SendAsync(Frame.Headers(stream, ok, end: true));
            }
        });
        var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address);
        if (result.ExitCode == 0)
            AssertEnd(Status.Ok, "1\n2\n3\n", result);
        else
            AssertEnd(Status.Unavailable, "", result);
    }

    // Messages

    [Fact]
    public async Task AnAnswerOfExactly4MiBIsAccepted()
    {
        var text = new string('x', Grpc.MaxMessage - 5);
        var result = await ServeAsync("Ada\n", async (peer, stream) =>
        {
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()));
            await peer.SendDataAsync(stream, Grpc.Message(Grpc.Field(1, text)));
            await peer.SendAsync(Frame.Headers(stream, ok, end: true));
        }, "greet");
        AssertEnd(Status.Ok, text + "\n", result);
    }

    // All others are Adapter's.
    [Theory, Rows(null, "identity", "snappy")]
    public async Task ACompressedAnswerNeedsAnEncoding(string? encoding) => AssertEnd(Status.Internal, "1\n2\n3\n", await AnswerAsync(stream =>
        [Frame.Headers(stream, encoding is null ? ResponseHeaders() : ResponseHeaders(("grpc-encoding", encoding))), Frame.Data(stream, [.. Grpc.Numbers(1, 2, 3), .. Grpc.Message(Grpc.Gzip(Grpc.Field(1, 5)), flag: 1)]), Frame.Headers(stream, ok, end: true)]));

    [Fact]
    public async Task AnAnswerOf4GiBIsRefused() => AssertEnd(Status.ResourceExhausted, "1\n2\n3\n", await AnswerAsync(stream =>
        [Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, [.. Grpc.Numbers(1, 2, 3), .. Grpc.Prefix(uint.MaxValue)])]));

    // Deadlines

    [Theory, Rows(true, false)]
    public async Task TheDeadlineEndsACallToAPeerThatSaysNothing(bool silent)
    {
        await using var server = new FakeServer(_ => Task.CompletedTask, silent);
        var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address, "--deadline", "1");
        AssertEnd(Status.DeadlineExceeded, "", result);
    }

    [Fact]
    public Task AnswersBeforeTheDeadlineArePrinted() => Wait.ForEnoughAsync(async deadline =>
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, Grpc.Numbers(1, 2, 3)));
        });
        var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address, "--deadline", $"{deadline}");
        AssertEnd(Status.DeadlineExceeded, result.Output == "" ? "" : "1\n2\n3\n", result);
        return result.Output != "";
    });

    [Fact]
    public Task TheDeadlineMayPassInsideAMessage() => Wait.ForEnoughAsync(async deadline =>
    {
        await using var server = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            await peer.SendAsync(Frame.Headers(stream, ResponseHeaders()), Frame.Data(stream, [.. Grpc.Numbers(1, 2, 3), .. Grpc.Numbers(4)[..^1]]));
        });
        var result = await Tool.RunAsync("1 2 3\n", "max", "--address", server.Address, "--deadline", $"{deadline}");
        AssertEnd(Status.DeadlineExceeded, result.Output == "" ? "" : "1\n2\n3\n", result);
        return result.Output != "";
    });

    [Fact]
    public async Task TheDeadlineEndsACallToAPeerThatDoesNotRead()
    {
        await using var server = new FakeServer(async peer => await peer.SendAsync(Frame.Headers((await peer.ReadRequestAsync()).Stream, ResponseHeaders())));
        await using var tool = Running.Start("max", "--address", server.Address, "--deadline", "3");
        var feeding = FeedWithoutEndAsync(tool);
        AssertEnd(Status.DeadlineExceeded, "", await tool.EndAsync());
        await feeding;
    }
}
