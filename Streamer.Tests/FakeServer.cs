namespace Streamer.Tests;

/// <summary>A server that does the same on each connection.</summary>
sealed class FakeServer : IAsyncDisposable
{
    readonly Socket listener = new(SocketType.Stream, ProtocolType.Tcp);
    readonly List<Http2Peer> peers = [];

    public FakeServer(Func<Http2Peer, Task> serve, bool silent = false)
    {
        listener.Bind(new IPEndPoint(IPAddress.Loopback, 0));
        listener.Listen();
        Address = $"http://127.0.0.1:{((IPEndPoint)listener.LocalEndPoint!).Port}";
        Serving = ServeAsync(serve, silent);
    }

    /// <summary>One that answers at once, and ends the stream with OK, whatever the client still has to say.</summary>
    public static FakeServer AnswerOnce(byte[] answer) => new(async peer =>
    {
        var (stream, _) = await peer.ReadRequestAsync();
        await peer.SendAsync([Frame.Headers(stream, [(":status", "200"), ("content-type", "application/grpc")]), Frame.Data(stream, answer), Frame.Headers(stream, [("grpc-status", "0")], end: true), Frame.RstStream(stream, ErrorCode.NoError)]);
    });

    public string Address { get; }

    /// <summary>Ends with what the first connection's script ends with.</summary>
    public Task Serving { get; }

    public int Connections => peers.Count;

    async Task ServeAsync(Func<Http2Peer, Task> serve, bool silent)
    {
        peers.Add(await Http2Peer.AcceptAsync(listener, silent));
        _ = ServeMoreAsync(serve, silent);
        await serve(peers[0]);
    }

    async Task ServeMoreAsync(Func<Http2Peer, Task> serve, bool silent)
    {
        try
        {
            while (true)
            {
                var peer = await Http2Peer.AcceptAsync(listener, silent);
                peers.Add(peer);
                _ = serve(peer);
            }
        }
        catch (SocketException)
        {
        }
    }

    public async ValueTask DisposeAsync()
    {
        listener.Dispose();
        foreach (var peer in peers)
            await peer.DisposeAsync();
    }
}
