extern alias tool;

using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Builder;
using Microsoft.Extensions.DependencyInjection;
using ToolAdapter = tool::Streamer.Adapter;

namespace Streamer.Tests;

/// <summary>The adapter beneath a two-way method that Streamer does not have, and whose messages are not protobuf's.</summary>
public sealed class AnyMethod : IAsyncLifetime
{
    static readonly Method<string, string> talk = new(MethodType.DuplexStreaming, "any.Service", "Talk", Counting(), Counting());

    // How many messages each kind of context has read: the adapter's and the library's.
    static readonly ConcurrentDictionary<bool, int> read = [];

    // Some that lie in one piece of memory, some that do not, one that is too large for the adapter, and many at once.
    static readonly string[] texts = ["a", "", "Zoë", new('x', 5000), new('y', 40_000), new('z', 1_000_000), .. Enumerable.Range(0, 20_000).Select(i => $"text {i}")];

    readonly List<WebApplication> servers = [];

    // Answers each text with itself, twice where it begins with "text"; what it does for some others they say.
    async Task TalkAsync(IAsyncStreamReader<string> requests, IServerStreamWriter<string> responses, ServerCallContext context)
    {
        while (await requests.MoveNext(context.CancellationToken))
        {
            await responses.WriteAsync(requests.Current, context.CancellationToken);
            if (requests.Current.StartsWith("text"))
                await responses.WriteAsync(requests.Current);
            if (requests.Current == "wait")
                await go.Task;
            if (requests.Current == "fail")
                throw new RpcException(new(StatusCode.DataLoss, "as asked"), new Metadata { { "why", "asked" } });
        }
        await responses.WriteAsync("the end");
    }

    readonly TaskCompletionSource go = new(TaskCreationOptions.RunContinuationsAsynchronously);

    async Task<int> ServeAsync(bool isAdapted)
    {
        var (app, port) = await PlainGrpc.ServeAsync(
            services => services.AddSingleton(new ToolAdapter()).AddGrpc(options =>
            {
                if (isAdapted)
                    options.Interceptors.Add<ToolAdapter>();
            }),
            app => app.MapGrpcService(ServerServiceDefinition.CreateBuilder().AddMethod(talk, TalkAsync).AddMethod(both, BothAsync).Build()));
        servers.Add(app);
        return port;
    }

    static CallInvoker Invoker(string address, bool isAdapted)
    {
        var handler = new SocketsHttpHandler();
        return isAdapted
            ? GrpcChannel.ForAddress(address, new() { HttpHandler = new ToolAdapter.Handler(handler, _ => { }) }).Intercept(new ToolAdapter())
            : GrpcChannel.ForAddress(address, new() { HttpHandler = handler }).CreateCallInvoker();
    }

    public ValueTask InitializeAsync() => default;

    public async ValueTask DisposeAsync()
    {
        go.TrySetResult();
        foreach (var server in servers)
            await server.DisposeAsync();
    }

    [Theory]
    [InlineData(false, false)]
    [InlineData(false, true)]
    [InlineData(true, false)]
    [InlineData(true, true)]
    public async Task NobodyCanTell(bool isServerAdapted, bool isClientAdapted)
    {
        var invoker = Invoker($"http://127.0.0.1:{await ServeAsync(isServerAdapted)}", isClientAdapted);
        // Two calls at once, which must not be confused.
        var outcomes = await Task.WhenAll(CallAsync(invoker, texts), CallAsync(invoker, [.. texts[..7], "fail", "never answered"]));
        Assert.Equal([.. texts.SelectMany(text => text.StartsWith("text") ? (string[])[text, text] : [text]), "the end"], outcomes[0].Answers);
        Assert.Equal((StatusCode.OK, ""), outcomes[0].Status);
        Assert.Equal([.. texts[..6], texts[6], texts[6], "fail"], outcomes[1].Answers);
        Assert.Equal((StatusCode.DataLoss, "as asked"), outcomes[1].Status);
    }

    static async Task<(string[] Answers, (StatusCode, string) Status)> CallAsync(CallInvoker invoker, string[] requests)
    {
        using var call = invoker.AsyncDuplexStreamingCall(talk, null, new());
        var sending = SendAsync();
        var answers = new List<string>();
        try
        {
            while (await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience))
                answers.Add(call.ResponseStream.Current);
            await sending.WaitAsync(Tool.Patience);
        }
        catch (RpcException e)
        {
            Assert.Equal("asked", e.Trailers.GetValue("why"));
        }
        return ([.. answers], (call.GetStatus().StatusCode, call.GetStatus().Detail));

        async Task SendAsync()
        {
            foreach (var text in requests)
                await call.RequestStream.WriteAsync(text);
            await call.RequestStream.CompleteAsync();
        }
    }

    /// <summary>What is answered leaves before the handler does something else.</summary>
    [Fact]
    public async Task NoAnswerIsHeldBack()
    {
        using var call = Invoker($"http://127.0.0.1:{await ServeAsync(true)}", true).AsyncDuplexStreamingCall(talk, null, new());
        await call.RequestStream.WriteAsync("wait");
        Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience));
        Assert.Equal("wait", call.ResponseStream.Current);
        go.SetResult();
    }

    /// <summary>gRPC allows one who reads and one who writes at the same time.</summary>
    [Fact]
    public async Task AHandlerMayWriteWhileItReads()
    {
        var port = await ServeAsync(true);
        using var call = Invoker($"http://127.0.0.1:{port}", true).AsyncDuplexStreamingCall(both, null, new());
        var sending = Task.Run(async () =>
        {
            for (var i = 0; i < Many; i++)
                await call.RequestStream.WriteAsync($"request {i}");
            await call.RequestStream.CompleteAsync();
        }, TestContext.Current.CancellationToken);
        for (var i = 0; i < Many; i++)
        {
            Assert.True(await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience));
            Assert.Equal($"answer {i}", call.ResponseStream.Current);
        }
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience));
        await sending;
    }

    const int Many = 50_000;

    static readonly Method<string, string> both = new(MethodType.DuplexStreaming, "any.Service", "Both", Marshallers.StringMarshaller, Marshallers.StringMarshaller);

    static async Task BothAsync(IAsyncStreamReader<string> requests, IServerStreamWriter<string> responses, ServerCallContext context)
    {
        var writing = Task.Run(async () =>
        {
            for (var i = 0; i < Many; i++)
                await responses.WriteAsync($"answer {i}");
        });
        while (await requests.MoveNext())
        {
        }
        await writing;
    }

    /// <summary>What it is there for: of many messages it takes nearly all itself, on both sides, and leaves the library those that a frame cuts.</summary>
    [Fact]
    public async Task TheAdapterTakesNearlyAllOfManyMessages()
    {
        var invoker = Invoker($"http://127.0.0.1:{await ServeAsync(true)}", true);
        using var call = invoker.AsyncDuplexStreamingCall(talk, null, new());
        for (var i = 0; i < 20_000; i++)
        {
            call.RequestStream.WriteOptions = new(WriteFlags.BufferHint);
            await call.RequestStream.WriteAsync($"adapted {i}");
        }
        await call.RequestStream.CompleteAsync();
        var answers = 0;
        while (await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience))
            answers++;
        Assert.Equal(20_001, answers);
        Assert.InRange(read.GetValueOrDefault(true), 39_000, 40_000);
        Assert.InRange(read.GetValueOrDefault(false), 0, 1000);
    }

    static Marshaller<string> Counting() => new(
        (text, context) => context.Complete(Encoding.UTF8.GetBytes(text)),
        context =>
        {
            var text = Encoding.UTF8.GetString(context.PayloadAsNewBuffer());
            if (text.StartsWith("adapted"))
                read.AddOrUpdate(context is ToolAdapter.Reader<string>, 1, (_, count) => count + 1);
            return text;
        });

    [Theory]
    [InlineData(true, 1)]
    [InlineData(false, 1000)]
    public async Task RequestsTravelTogetherWhenTheirWriterSaysSo(bool isAdapted, int atLeast)
    {
        var frames = 0;
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            while (await peer.ReadAsync(FrameType.Data, stream) is { } frame)
            {
                frames += frame.Payload.Length > 0 ? 1 : 0;
                if (frame.EndsStream)
                    break;
            }
            await peer.SendAsync(Frame.Headers(stream, [(":status", "200"), ("content-type", "application/grpc")]), Frame.Headers(stream, [("grpc-status", "0")], end: true));
        });
        using var call = Invoker(fake.Address, isAdapted).AsyncDuplexStreamingCall(talk, null, new());
        for (var i = 0; i < 1000; i++)
        {
            call.RequestStream.WriteOptions = i < 999 ? new(WriteFlags.BufferHint) : null;
            await call.RequestStream.WriteAsync($"{i}");
        }
        await call.RequestStream.CompleteAsync();
        Assert.False(await call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience));
        Assert.InRange(frames, atLeast, isAdapted ? 99 : int.MaxValue);
    }

    /// <summary>A call that cannot be made fails on both streams, as the library's does.</summary>
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task NobodyWaitsForACallThatCannotBeMade(bool isAdapted)
    {
        using var free = new FreePort();
        using var call = Invoker(free.Address, isAdapted).AsyncDuplexStreamingCall(talk, null, new());
        await Assert.ThrowsAnyAsync<Exception>(() => call.RequestStream.WriteAsync("a").WaitAsync(Tool.Patience));
        var failure = await Assert.ThrowsAsync<RpcException>(() => call.ResponseStream.MoveNext(CancellationToken.None).WaitAsync(Tool.Patience));
        Assert.Equal(StatusCode.Unavailable, failure.StatusCode);
    }
}
