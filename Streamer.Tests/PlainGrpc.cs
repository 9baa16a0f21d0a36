using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Streaming;

namespace Streamer.Tests;

/// <summary>The two RPCs as anybody would write them with grpc-dotnet, and a client: what Streamer must look like from outside.</summary>
public sealed class PlainGrpc : IAsyncLifetime, IAsyncDisposable
{
    WebApplication app = null!;

    public int Port { get; private set; }

    public async ValueTask InitializeAsync() => (app, Port) = await ServeAsync(services => services.AddGrpc(), app =>
    {
        app.MapGrpcService<Calculator>();
        app.MapGrpcService<Greeter>();
    });

    /// <summary>Starts a server of grpc-dotnet in this process, at a free port.</summary>
    internal static async Task<(WebApplication App, int Port)> ServeAsync(Action<IServiceCollection> services, Action<WebApplication> map)
    {
        var builder = WebApplication.CreateEmptyBuilder(new());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel => kestrel.Listen(IPAddress.Loopback, 0, listen => listen.Protocols = HttpProtocols.Http2));
        services(builder.Services);
        var app = builder.Build();
        map(app);
        await app.StartAsync();
        return (app, new Uri(app.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single()).Port);
    }

    public ValueTask DisposeAsync() => app.DisposeAsync();

    /// <summary>Makes a call without requests, and gives its status and what came back, in lines.</summary>
    public static async Task<(Status Status, string Output)> CallAsync(string address, string path)
    {
        using var channel = GrpcChannel.ForAddress(address);
        var output = new StringWriter { NewLine = "\n" };
        try
        {
            if (path == Grpc.FindMaximum)
                await PrintAsync(new CalculatorService.CalculatorServiceClient(channel).FindMaximum(), answer => $"{answer.Maximum}");
            else
                await PrintAsync(new GreetService.GreetServiceClient(channel).GreetEveryone(), answer => answer.Result);
            return (Status.Ok, $"{output}");
        }
        catch (RpcException e)
        {
            // To grpc-dotnet a message that it cannot read is an IOException, and so UNAVAILABLE.
            return (e.Status.DebugException is InvalidProtocolBufferException or InvalidDataException ? Status.Internal : (Status)e.StatusCode, $"{output}");
        }

        async Task PrintAsync<TRequest, TResponse>(AsyncDuplexStreamingCall<TRequest, TResponse> call, Func<TResponse, string> print)
        {
            using (call)
            {
                await call.RequestStream.CompleteAsync();
                await foreach (var answer in call.ResponseStream.ReadAllAsync())
                    output.WriteLine(print(answer));
            }
        }
    }

    sealed class Calculator : CalculatorService.CalculatorServiceBase
    {
        public override Task FindMaximum(IAsyncStreamReader<FindMaximumRequest> requests, IServerStreamWriter<FindMaximumResponse> responses, ServerCallContext context) => BlamingThePeer(async () =>
        {
            long? largest = null;
            await foreach (var request in requests.ReadAllAsync())
                if (largest is null || request.Number > largest)
                    await responses.WriteAsync(new() { Maximum = (largest = request.Number).Value });
        });
    }

    sealed class Greeter : GreetService.GreetServiceBase
    {
        public override Task GreetEveryone(IAsyncStreamReader<GreetEveryoneRequest> requests, IServerStreamWriter<GreetEveryoneResponse> responses, ServerCallContext context) => BlamingThePeer(async () =>
        {
            await foreach (var request in requests.ReadAllAsync())
            {
                var (first, last) = (request.Greeting?.FirstName ?? "", request.Greeting?.LastName ?? "");
                await responses.WriteAsync(new() { Result = last == "" ? $"Hello {first}!" : $"Hello {first} {last}!" });
            }
        });
    }

    // grpc-dotnet says UNKNOWN, "Exception was thrown by handler", where a message cannot be read.
    static async Task BlamingThePeer(Func<Task> handle)
    {
        try
        {
            await handle();
        }
        catch (Exception e) when (e is InvalidProtocolBufferException or InvalidDataException)
        {
            throw new RpcException(new(StatusCode.Internal, e.Message));
        }
    }
}
