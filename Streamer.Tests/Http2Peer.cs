using System.Threading.Channels;

namespace Streamer.Tests;

enum FrameType : byte { Data, Headers, Priority, RstStream, Settings, PushPromise, Ping, GoAway, WindowUpdate, Continuation }

/// <summary>Error codes of HTTP/2 (RFC 9113, section 7).</summary>
public enum ErrorCode : uint
{
    NoError, ProtocolError, InternalError, FlowControlError, SettingsTimeout, StreamClosed, FrameSizeError,
    RefusedStream, Cancel, CompressionError, ConnectError, EnhanceYourCalm, InadequateSecurity, Http11Required,
}

/// <summary>A frame of HTTP/2 (RFC 9113, section 4.1).</summary>
record Frame(FrameType Type, byte Flags, int Stream, byte[] Payload)
{
    public const int HeaderSize = 9, MaxSize = 16384;
    public const byte EndStreamFlag = 1, AckFlag = 1, EndHeadersFlag = 4, PaddedFlag = 8;

    public bool EndsStream => Type is FrameType.Data or FrameType.Headers && (Flags & EndStreamFlag) != 0;
    public ErrorCode ErrorCode => (ErrorCode)BinaryPrimitives.ReadUInt32BigEndian(Payload.AsSpan(Type == FrameType.GoAway ? 4 : 0));

    public byte[] ToBytes()
    {
        var bytes = new byte[HeaderSize + Payload.Length];
        BinaryPrimitives.WriteInt32BigEndian(bytes, Payload.Length << 8 | (byte)Type);
        bytes[4] = Flags;
        BinaryPrimitives.WriteInt32BigEndian(bytes.AsSpan(5), Stream);
        Payload.CopyTo(bytes, HeaderSize);
        return bytes;
    }

    public static Frame Headers(int stream, (string, string)[] fields, bool end = false) => new(FrameType.Headers, Flag(EndHeadersFlag, end), stream, Hpack.Encode(fields));

    public static Frame Data(int stream, byte[] bytes, bool end = false) => new(FrameType.Data, Flag(0, end), stream, bytes);

    public static Frame PaddedData(int stream, byte[] bytes, byte padding, bool end = false) => new(FrameType.Data, Flag(PaddedFlag, end), stream, [padding, .. bytes, .. new byte[padding]]);

    /// <summary>As many frames as these bytes take.</summary>
    public static Frame[] AllData(int stream, byte[] bytes, bool end = false)
    {
        var chunks = bytes.Chunk(MaxSize).ToArray();
        return [.. chunks.Select((chunk, i) => Data(stream, chunk, end && i == chunks.Length - 1))];
    }

    public static Frame RstStream(int stream, ErrorCode code) => new(FrameType.RstStream, 0, stream, Number((uint)code));

    public static Frame GoAway(int lastStream, ErrorCode code, string debug = "") => new(FrameType.GoAway, 0, 0, [.. Number((uint)lastStream), .. Number((uint)code), .. Encoding.UTF8.GetBytes(debug)]);

    public static Frame WindowUpdate(int stream, uint increment) => new(FrameType.WindowUpdate, 0, stream, Number(increment));

    public static Frame Settings(params (ushort Id, uint Value)[] settings) => new(FrameType.Settings, 0, 0, [.. settings.SelectMany(setting => (byte[])[(byte)(setting.Id >> 8), (byte)setting.Id, .. Number(setting.Value)])]);

    static byte Flag(byte flags, bool end) => (byte)(flags | (end ? EndStreamFlag : 0));

    static byte[] Number(uint value)
    {
        var bytes = new byte[4];
        BinaryPrimitives.WriteUInt32BigEndian(bytes, value);
        return bytes;
    }
}

/// <summary>
/// One end of an HTTP/2 connection that writes its frames by hand, so that it can also write what no HTTP stack would.
/// By itself it only acknowledges SETTINGS and PING; all other frames are the test's.
/// </summary>
sealed class Http2Peer : IAsyncDisposable
{
    const ushort HeaderTableSize = 1, InitialWindowSize = 4;
    const int DefaultWindow = 65535;
    static readonly byte[] preface = Encoding.ASCII.GetBytes("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");

    readonly Socket socket;
    readonly NetworkStream stream;
    readonly Channel<Frame> frames = Channel.CreateUnbounded<Frame>();
    readonly SemaphoreSlim writing = new(1);
    readonly Dictionary<int, long> spent = [];
    TaskCompletionSource windowGrew = new(TaskCreationOptions.RunContinuationsAsynchronously);
    long initialWindow = DefaultWindow;
    int lastStream = -1;

    /// <summary>Whether it takes what comes; where not, the kernel is full of it some time.</summary>
    public bool Reads { get; set; } = true;

    Http2Peer(Socket socket) => (this.socket, stream) = (socket, new(socket, ownsSocket: true));

    /// <summary>Connects as a client, allowing the server so many bytes of each response before a WINDOW_UPDATE.</summary>
    public static async Task<Http2Peer> ConnectAsync(int port, uint window = int.MaxValue)
    {
        var peer = await ConnectSilentlyAsync(port);
        await peer.WriteAsync([.. preface, .. Greeting(window)]);
        _ = peer.ReadLoopAsync();
        return peer;
    }

    /// <summary>Connects without a word of HTTP/2.</summary>
    public static async Task<Http2Peer> ConnectSilentlyAsync(int port)
    {
        var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        await socket.ConnectAsync(IPAddress.Loopback, port);
        return new(socket);
    }

    /// <summary>Accepts a client, and sends SETTINGS unless it is to stay silent.</summary>
    public static async Task<Http2Peer> AcceptAsync(Socket listener, bool silent = false)
    {
        var peer = new Http2Peer(await listener.AcceptAsync());
        peer.socket.NoDelay = true;
        if (!silent)
        {
            await peer.WriteAsync(Greeting(int.MaxValue));
            _ = peer.ReadLoopAsync(preface.Length);
        }
        return peer;
    }

    // Without a dynamic table, Hpack needs no memory of what came before.
    static byte[] Greeting(uint window) =>
    [
        .. Frame.Settings((HeaderTableSize, 0), (InitialWindowSize, window)).ToBytes(),
        .. Frame.WindowUpdate(0, int.MaxValue - DefaultWindow).ToBytes(),
    ];

    /// <summary>Writes frames in one write to the socket.</summary>
    public Task SendAsync(params Frame[] frames) => WriteAsync([.. frames.SelectMany(frame => frame.ToBytes())]);

    /// <summary>Writes bytes that need not be frames; of several pieces each when the other side has read the one before.</summary>
    public async Task WriteAsync(params byte[][] pieces)
    {
        await writing.WaitAsync();
        try
        {
            foreach (var (i, piece) in pieces.Index())
            {
                if (i > 0)
                    await Wait.UntilAsync(IsRead, () => "the other side does not read");
                await stream.WriteAsync(piece).AsTask().WaitAsync(Tool.Patience);
            }
        }
        finally
        {
            writing.Release();
        }
    }

    // Linux tells of each socket how much it still holds for its process; one that is closed holds nothing.
    bool IsRead()
    {
        var (other, own) = (Hex(socket.RemoteEndPoint), Hex(socket.LocalEndPoint));
        return !((string[])["/proc/net/tcp", "/proc/net/tcp6"]).SelectMany(File.ReadLines).Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries))
            .Any(columns => columns[1].EndsWith(other) && columns[2].EndsWith(own) && !columns[4].EndsWith(":00000000"));

        static string Hex(EndPoint? end) => $":{((IPEndPoint)end!).Port:X4}";
    }

    /// <summary>Sends a body as the other side's flow control lets it.</summary>
    public async Task SendDataAsync(int id, byte[] bytes, bool end = false)
    {
        for (var sent = 0; sent < bytes.Length;)
        {
            var (grew, now) = (windowGrew.Task, 0);
            lock (spent)
                now = (int)Math.Min(Math.Min(Frame.MaxSize, bytes.Length - sent), Math.Min(DefaultWindow - spent.GetValueOrDefault(0), initialWindow - spent.GetValueOrDefault(id)));
            if (now <= 0)
            {
                await grew.WaitAsync(Tool.Patience);
                continue;
            }
            Spend(0, now);
            Spend(id, now);
            await SendAsync(Frame.Data(id, bytes[sent..(sent + now)], end && sent + now == bytes.Length));
            sent += now;
        }
        if (end && bytes.Length == 0)
            await SendAsync(Frame.Data(id, [], end: true));
    }

    void Spend(int id, long count)
    {
        lock (spent)
            spent[id] = spent.GetValueOrDefault(id) + count;
    }

    /// <summary>The next frame that is not about SETTINGS, PING or flow control; null at the connection's end.</summary>
    public async Task<Frame?> ReadAsync()
    {
        try
        {
            return await frames.Reader.ReadAsync().AsTask().WaitAsync(Tool.Patience);
        }
        catch (ChannelClosedException)
        {
            return null;
        }
    }

    /// <summary>The next frame of a type on a stream; null at the connection's end.</summary>
    public async Task<Frame?> ReadAsync(FrameType type, int id)
    {
        while (await ReadAsync() is { } frame)
            if ((frame.Type, frame.Stream) == (type, id))
                return frame;
        return null;
    }

    async Task ReadLoopAsync(int skip = 0)
    {
        try
        {
            await stream.ReadExactlyAsync(new byte[skip]);
            var head = new byte[Frame.HeaderSize];
            while (Reads)
            {
                await stream.ReadExactlyAsync(head);
                var payload = new byte[BinaryPrimitives.ReadInt32BigEndian(head) >>> 8];
                await stream.ReadExactlyAsync(payload);
                await HandleAsync(new((FrameType)head[3], head[4], BinaryPrimitives.ReadInt32BigEndian(head.AsSpan(5)), payload));
            }
        }
        catch (Exception e) when (e is IOException or ObjectDisposedException)
        {
            frames.Writer.Complete();
        }
    }

    async Task HandleAsync(Frame frame)
    {
        if (frame.Type is FrameType.Settings or FrameType.Ping)
        {
            for (var i = 0; frame.Type == FrameType.Settings && i < frame.Payload.Length; i += 6)
                if (BinaryPrimitives.ReadUInt16BigEndian(frame.Payload.AsSpan(i)) == InitialWindowSize)
                    initialWindow = BinaryPrimitives.ReadUInt32BigEndian(frame.Payload.AsSpan(i + 2));
            if ((frame.Flags & Frame.AckFlag) == 0)
                await SendAsync(frame with { Flags = Frame.AckFlag, Payload = frame.Type == FrameType.Ping ? frame.Payload : [] });
        }
        else if (frame.Type == FrameType.WindowUpdate)
            Spend(frame.Stream, -BinaryPrimitives.ReadUInt32BigEndian(frame.Payload));
        else
            frames.Writer.TryWrite(frame);
        if (frame.Type is FrameType.Settings or FrameType.WindowUpdate)
            Interlocked.Exchange(ref windowGrew, new(TaskCreationOptions.RunContinuationsAsynchronously)).SetResult();
    }

    /// <summary>As a client: the identifier of the next request's stream.</summary>
    public int NextStream() => lastStream += 2;

    /// <summary>As a client: sends the HEADERS of a gRPC request, with some fields replaced, added or (null) left out; gives its stream.</summary>
    public async Task<int> RequestAsync(string path, (string Name, string? Value)[] fields, bool end = false)
    {
        var id = NextStream();
        await SendAsync(Frame.Headers(id, GrpcRequest(path, fields), end));
        return id;
    }

    /// <summary>The fields of a gRPC request.</summary>
    public static (string Name, string Value)[] GrpcRequest(string path, params (string Name, string? Value)[] fields)
    {
        (string Name, string? Value)[] usual = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "localhost"), ("te", "trailers"), ("content-type", "application/grpc")];
        return [.. usual.Where(field => fields.All(other => other.Name != field.Name)).Concat(fields).Where(field => field.Value is not null)
            .OrderBy(field => field.Name[0] != ':').Select(field => (field.Name, field.Value!))];
    }

    /// <summary>As a client: the response on a stream, up to its end, whatever that is.</summary>
    public async Task<Response> ReadResponseAsync(int id, Response? begun = null)
    {
        var response = begun ?? new();
        while (await ReadAsync() is { } frame)
            if (frame.Type == FrameType.GoAway)
                response.GoAway = frame.ErrorCode;
            else if (frame.Stream == id && response.Add(frame))
                return response;
        return response;
    }

    /// <summary>As a client: the responses on several streams at a time.</summary>
    public async Task<Dictionary<int, Response>> ReadResponsesAsync(IReadOnlySet<int> ids)
    {
        var responses = ids.ToDictionary(id => id, _ => new Response());
        for (var open = ids.Count; open > 0 && await ReadAsync() is { } frame;)
            if (responses.TryGetValue(frame.Stream, out var response) && !response.IsOver && response.Add(frame))
                open--;
        return responses;
    }

    /// <summary>As a server: the next request's stream and header fields.</summary>
    public async Task<(int Stream, (string Name, string Value)[] Fields)> ReadRequestAsync()
    {
        while (await ReadAsync() is { } frame)
            if (frame.Type == FrameType.Headers)
                return (frame.Stream, Hpack.Decode(frame.Payload));
        throw new IOException("the client left without a request");
    }

    /// <summary>Sends what TCP has for an end, and goes on reading.</summary>
    public void Finish() => socket.Shutdown(SocketShutdown.Send);

    /// <summary>Resets the TCP connection.</summary>
    public void ResetConnection()
    {
        socket.LingerState = new(true, 0);
        stream.Dispose();
    }

    public ValueTask DisposeAsync() => stream.DisposeAsync();
}

/// <summary>What a server sent on one stream.</summary>
sealed class Response
{
    readonly List<byte> body = [];

    public (string Name, string Value)[] Headers { get; private set; } = [];

    /// <summary>The trailers; in a Trailers-Only response these are the headers.</summary>
    public (string Name, string Value)[] Trailers { get; private set; } = [];
    public int HeadersFrames { get; private set; }
    public int DataFrames { get; private set; }
    public bool Ended { get; private set; }
    public ErrorCode? Reset { get; private set; }
    public ErrorCode? GoAway { get; set; }

    public bool IsOver => Ended || Reset is not null;
    public bool IsTrailersOnly => Ended && HeadersFrames == 1 && DataFrames == 0;
    public int HttpStatus => int.Parse(One(Headers, ":status") ?? "0");
    public Status? Status => One(Trailers, "grpc-status") is { } status ? (Status)int.Parse(status) : null;
    public string? GrpcMessage => One(Trailers, "grpc-message");
    public byte[][] Messages => [.. Grpc.Cut([.. body])];

    public string? Header(string name) => One(Headers, name);

    /// <summary>Takes a frame; true when it is the stream's last.</summary>
    public bool Add(Frame frame)
    {
        if (frame.Type == FrameType.Data)
        {
            DataFrames++;
            body.AddRange(frame.Payload);
        }
        else if (frame.Type == FrameType.Headers)
        {
            Trailers = Hpack.Decode(frame.Payload);
            if (HeadersFrames++ == 0)
                Headers = Trailers;
        }
        else if (frame.Type == FrameType.RstStream)
            Reset = frame.ErrorCode;
        Ended = frame.EndsStream;
        return IsOver;
    }

    // A field that came twice is a failure of its own.
    static string? One((string Name, string Value)[] fields, string name) => fields.SingleOrDefault(field => field.Name == name).Value;

    public override string ToString() => $"HTTP {HttpStatus}, status {Status} \"{GrpcMessage}\", {Messages.Length} messages, reset {Reset}, GOAWAY {GoAway}";
}

/// <summary>HPACK (RFC 7541) without its dynamic table and Huffman code, which neither side of Streamer uses when it is not offered a table.</summary>
static class Hpack
{
    static readonly (string Name, string Value)[] table =
    [
        .. """
            :authority; :method GET; :method POST; :path /; :path /index.html; :scheme http; :scheme https; :status 200; :status 204;
            :status 206; :status 304; :status 400; :status 404; :status 500; accept-charset; accept-encoding gzip,deflate; accept-language;
            accept-ranges; accept; access-control-allow-origin; age; allow; authorization; cache-control; content-disposition;
            content-encoding; content-language; content-length; content-location; content-range; content-type; cookie; date; etag; expect;
            expires; from; host; if-match; if-modified-since; if-none-match; if-range; if-unmodified-since; last-modified; link; location;
            max-forwards; proxy-authenticate; proxy-authorization; range; referer; refresh; retry-after; server; set-cookie;
            strict-transport-security; transfer-encoding; user-agent; vary; via; www-authenticate
            """.Split(';').Select(line => line.Trim().Split(' ')).Select(words => (words[0], words.ElementAtOrDefault(1) ?? "")),
    ];

    /// <summary>Literal fields without indexing.</summary>
    public static byte[] Encode(params (string Name, string Value)[] fields) => [.. fields.SelectMany(field => (byte[])[0, .. Text(field.Name), .. Text(field.Value)])];

    static byte[] Text(string text)
    {
        var bytes = Encoding.Latin1.GetBytes(text);
        return bytes.Length < 127 ? [(byte)bytes.Length, .. bytes] : [127, .. Grpc.Varint((ulong)bytes.Length - 127), .. bytes];
    }

    public static (string Name, string Value)[] Decode(byte[] block)
    {
        var (fields, at) = (new List<(string, string)>(), 0);
        while (at < block.Length)
            if (block[at] >= 0x80)
                fields.Add(table[Number(0x7f) - 1]);
            else if (block[at] is >= 0x20 and < 0x40)
                Number(0x1f);
            else
            {
                var name = Number(block[at] >= 0x40 ? 0x3f : 0x0f);
                fields.Add((name > 0 ? table[name - 1].Name : Text(), Text()));
            }
        return [.. fields];

        int Number(int prefix)
        {
            var value = block[at++] & prefix;
            if (value == prefix)
                for (var shift = 0; ; shift += 7)
                {
                    value += (block[at] & 0x7f) << shift;
                    if (block[at++] < 0x80)
                        break;
                }
            return value;
        }

        string Text()
        {
            if (block[at] >= 0x80)
                throw new NotSupportedException("a field in Huffman code");
            var length = Number(0x7f);
            return Encoding.Latin1.GetString(block, (at += length) - length, length);
        }
    }
}
