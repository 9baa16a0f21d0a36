namespace Streamer.Tests;

/// <summary>HTTP/2 frames by hand, for peers that no library would be.</summary>
sealed class RawHttp2(Socket socket) : IDisposable
{
    public const byte Data = 0, Headers = 1, RstStream = 3, Settings = 4, Ping = 6, GoAway = 7, WindowUpdate = 8;
    public const byte EndStream = 1, EndHeaders = 4, Ack = 1;

    public const string FindMaximum = "/streaming.CalculatorService/FindMaximum";

    static readonly byte[] preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8.ToArray();

    readonly NetworkStream stream = new(socket, ownsSocket: true);

    public sealed record Frame(byte Type, byte Flags, int Stream, byte[] Payload)
    {
        public int Word() => BinaryPrimitives.ReadInt32BigEndian(Payload);
        public string Text() => Encoding.Latin1.GetString(Payload);
    }

    /// <summary>Connects, as a client, and says what HTTP/2 begins with.</summary>
    public static async Task<RawHttp2> ConnectAsync(int port, params byte[] settings)
    {
        var peer = new RawHttp2(await DialAsync(port));
        await peer.stream.WriteAsync(preface);
        await peer.SendAsync(Settings, 0, 0, settings);
        return peer;
    }

    /// <summary>Connects and says nothing.</summary>
    public static async Task<Socket> DialAsync(int port)
    {
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await socket.ConnectAsync(IPAddress.Loopback, port).WaitAsync(Tool.Patience);
        return socket;
    }

    /// <summary>Takes a client's connection, as a server that grants whatever is asked.</summary>
    public static async Task<RawHttp2> AcceptAsync(TcpListener listener)
    {
        var peer = new RawHttp2(await listener.AcceptSocketAsync().WaitAsync(Tool.Patience));
        await peer.stream.ReadExactlyAsync(new byte[preface.Length]);
        await peer.SendAsync(Settings, 0, 0);
        return peer;
    }

    /// <summary>The header block of a gRPC call, all of it literal.</summary>
    public static byte[] Call(string path) =>
        [0x83, 0x86, 0x04, (byte)path.Length, .. Encoding.ASCII.GetBytes(path), 0x01, 1, (byte)'x', 0x0f, 0x10, 16, .. "application/grpc"u8, 0x00, 2, .. "te"u8, 8, .. "trailers"u8];

    /// <summary>A gRPC message.</summary>
    public static byte[] Message(params byte[] proto) => [0, 0, 0, 0, (byte)proto.Length, .. proto];

    public static byte[] Frames(byte type, byte flags, int stream, params byte[] payload) =>
        [(byte)(payload.Length >> 16), (byte)(payload.Length >> 8), (byte)payload.Length, type, flags, (byte)(stream >> 24), (byte)(stream >> 16), (byte)(stream >> 8), (byte)stream, .. payload];

    public ValueTask SendAsync(byte type, byte flags, int number, params byte[] payload) => SendAsync(Frames(type, flags, number, payload));

    public ValueTask SendAsync(byte[] bytes) => stream.WriteAsync(bytes);

    /// <summary>The next frame; null when the connection is over.</summary>
    public async Task<Frame?> ReadAsync()
    {
        try
        {
            var head = new byte[9];
            await stream.ReadExactlyAsync(head).AsTask().WaitAsync(Tool.Patience);
            var payload = new byte[head[0] << 16 | head[1] << 8 | head[2]];
            await stream.ReadExactlyAsync(payload).AsTask().WaitAsync(Tool.Patience);
            return new(head[3], head[4], BinaryPrimitives.ReadInt32BigEndian(head.AsSpan(5)), payload);
        }
        catch (IOException)
        {
            return null;
        }
    }

    /// <summary>The next frame of a type; null when the connection ended before one came.</summary>
    public async Task<Frame?> ReadAsync(byte type, int? number = null)
    {
        while (await ReadAsync() is { } frame)
            if (frame.Type == type && frame.Stream == (number ?? frame.Stream))
                return frame;
        return null;
    }

    /// <summary>Answers pings to the connection's end, and drops all else.</summary>
    public async Task AnswerPingsAsync()
    {
        while (await ReadAsync(Ping) is { } ping)
            if (ping.Flags != Ack)
                await SendAsync(Ping, Ack, 0, ping.Payload);
    }

    public void Dispose() => stream.Dispose();
}
