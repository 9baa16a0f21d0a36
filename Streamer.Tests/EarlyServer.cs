using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Server.Kestrel.Core;

namespace Streamer.Tests;

/// <summary>A server that answers once, with the maximum 42 where nothing else is said, and ends the stream with OK, whatever the client still has to say.</summary>
sealed class EarlyServer : IAsyncDisposable
{
    readonly WebApplication app;

    EarlyServer(WebApplication app) => this.app = app;

    public string Address => app.Urls.Single();

    public static async Task<EarlyServer> StartAsync(byte[]? answer = null)
    {
        var builder = WebApplication.CreateEmptyBuilder(new());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel => kestrel.Listen(IPAddress.Loopback, 0, listen => listen.Protocols = HttpProtocols.Http2));
        var app = builder.Build();
        app.Run(async http =>
        {
            http.Response.ContentType = "application/grpc";
            await http.Response.Body.WriteAsync(answer ?? [0, 0, 0, 0, 2, 0x08, 42]);
            http.Response.AppendTrailer("grpc-status", "0");
        });
        await app.StartAsync();
        return new(app);
    }

    public ValueTask DisposeAsync() => app.DisposeAsync();
}
