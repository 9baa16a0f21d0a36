// Streamer: gRPC bidirectional streaming from the command line.
//
// Read it from top to bottom: what the tool does (the commands), the two RPCs, how bytes become
// items and items become bytes, how text becomes messages and back, how messages become gRPC, the
// server's side, the client's side.

using System.Buffers;
using System.Buffers.Binary;
using System.Buffers.Text;
using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.Globalization;
using System.IO.Compression;
using System.IO.Pipelines;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Net.Sockets;
using System.Numerics;
using System.Reflection;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Authentication;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Unicode;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Health.V1;
using Grpc.Reflection.V1;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Connections;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.AspNetCore.Server.Kestrel.Https;
using Microsoft.AspNetCore.Server.Kestrel.Transport.Sockets;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Hosting;
using Microsoft.Extensions.Logging;
using Microsoft.Win32.SafeHandles;
using Streaming;
using Asks = Grpc.Reflection.V1.ServerReflectionRequest.MessageRequestOneofCase;
using ServingStatus = Grpc.Health.V1.HealthCheckResponse.Types.ServingStatus;

namespace Streamer;

// ---------------------------------------------------------------------------------------------
// The commands
// ---------------------------------------------------------------------------------------------

static class Program
{
    public static readonly string Version = typeof(Program).Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()!.InformationalVersion;

    const string ExitCodes = """
        Exit codes: 0 OK; 1 bad input, or output that cannot be written; 2 bad command
        line; 64 + N when the call ended with gRPC status N (78 is UNAVAILABLE);
        130 / 143 after SIGINT / SIGTERM.
        """;

    sealed class Help : SynchronousCommandLineAction
    {
        readonly HelpAction usual = new() { MaxWidth = 80 };

        public override int Invoke(ParseResult parsed)
        {
            var result = usual.Invoke(parsed);
            parsed.InvocationConfiguration.Output.WriteLine(ExitCodes);
            return result;
        }
    }

    static async Task<int> Main(string[] args)
    {
        // Otherwise .NET takes the end of the bytes for the end of the gzip stream.
        AppContext.SetSwitch("System.IO.Compression.UseStrictValidation", true);
        var root = new RootCommand("gRPC bidirectional streaming from the command line.")
        {
            ServeCommand(),
            ClientCommand("max", "Stream integers from stdin, print each new maximum that the server answers.",
                "streaming.CalculatorService/FindMaximum",
                client => client.RunAsync<FindMaximumRequest, FindMaximumResponse>(new NumberReader(ReadStdinAsync), Message.Append, Message.DecodeMaximum, Lines.Append)),
            ClientCommand("greet", "Stream names from stdin, one a line, print each greeting that comes back.",
                "streaming.GreetService/GreetEveryone",
                client => client.RunAsync<GreetEveryoneRequest, GreetEveryoneResponse>(new NameReader(ReadStdinAsync), Message.Append, Message.Decode, Lines.Append)),
        };
        root.Options.OfType<HelpOption>().Single().Action = new Help();
        root.Directives.Clear();
        // A name on the command line may begin with @: it is not a file of arguments.
        var parsed = root.Parse(args, new() { ResponseFileTokenReplacer = null });
        var command = parsed.CommandResult.Command;
        if (parsed.Errors is [var first, ..] && parsed.Action is not Help)
            // Without a command the first error says just that, and the second, if any, why.
            return Fail(2, $"{(command == root ? parsed.Errors.Skip(1).FirstOrDefault(first) : first).Message} (see {(command == root ? "" : "streamer ")}{command.Name} --help)");
        try
        {
            // Signals are ours: System.CommandLine would end the process two seconds after one.
            return await parsed.InvokeAsync(new() { ProcessTerminationTimeout = null, EnableDefaultExceptionHandler = false });
        }
        catch (UsageException e)
        {
            return Fail(2, e.Message);
        }
    }

    static Command ServeCommand()
    {
        var listen = Option<string[]>("--listen", "URL", "http://HOST:PORT, https://HOST:PORT or unix:/PATH, where HOST is localhost, an IP address or * and port 0 a free one; repeatable [default: http://localhost:50051]");
        var cert = Option<string>("--cert", "FILE", "PEM file with the certificate and its chain; a new one there is used for new connections");
        var key = Option<string>("--key", "FILE", "PEM file with the certificate's private key");
        var clientCa = Option<string>("--client-ca", "FILE", "PEM file with roots that must vouch for clients");
        var drain = Option<string>("--drain", "SECONDS", "how long running streams may go on after SIGINT or SIGTERM; a second signal ends at once [default: 30]");
        var command = new Command("serve", "Serve both RPCs, health checking and reflection over gRPC.") { listen, cert, key, clientCa, drain };
        command.SetAction(async (parsed, _) =>
        {
            var patience = Seconds("--drain", 0, parsed.GetValue(drain) ?? "30");
            var urls = parsed.GetValue(listen) is { Length: > 0 } given ? given : [Endpoint.Default];
            var tls = ServerTls.Load(parsed.GetValue(cert), parsed.GetValue(key), parsed.GetValue(clientCa));
            return await Server.RunAsync(Array.ConvertAll(urls, Endpoint.Parse), tls, patience);
        });
        return command;
    }

    static Command ClientCommand(string name, string description, string rpc, Func<Client, Task<int>> run)
    {
        var address = Option<string>("--address", "URL", "whom to call [default: $STREAMER_ADDRESS, else http://localhost:50051, else a server in this process]");
        var method = Option<string>("--method", "NAME", $"[default: {rpc}]");
        var deadline = Option<string>("--deadline", "SECONDS", "how long the call may take");
        var wait = Option<bool>("--wait-for-ready", null, "retry the connection until the deadline");
        var header = Option<string[]>("-H", "name: value", "metadata; base64 for names in -bin; repeatable");
        var caCert = Option<string>("--cacert", "FILE", "PEM file with roots to trust, not the system's");
        var cert = Option<string>("--cert", "FILE", "PEM file with a client certificate and chain");
        var key = Option<string>("--key", "FILE", "PEM file with its private key");
        var insecure = Option<bool>("--insecure", null, "do not verify the server's certificate");
        var command = new Command(name, description) { address, method, deadline, wait, header, caCert, cert, key, insecure };
        command.SetAction((parsed, _) =>
        {
            var asked = parsed.GetValue(address) ?? (Environment.GetEnvironmentVariable("STREAMER_ADDRESS") is { Length: > 0 } set ? set : null);
            return run(new(
                Endpoint.Parse(asked ?? Endpoint.Default),
                Metadata.ParseMethod(parsed.GetValue(method) ?? rpc),
                Metadata.Parse(parsed.GetValue(header) ?? []),
                ClientTls.Load(parsed.GetValue(caCert), parsed.GetValue(cert), parsed.GetValue(key), parsed.GetValue(insecure)))
            {
                Deadline = parsed.GetValue(deadline) is { } text ? Seconds("--deadline", 0.001, text) : null,
                WaitForReady = parsed.GetValue(wait),
                MayServeItself = asked is null,
            });
        });
        return command;
    }

    static Option<T> Option<T>(string name, string? value, string description) => new(name) { HelpName = value, Description = description };

    // At most 46 days, which every timer can tell.
    static TimeSpan Seconds(string option, double least, string text) =>
        double.TryParse(text, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var seconds) && seconds >= least && seconds <= 4_000_000
            ? TimeSpan.FromSeconds(seconds) : throw new UsageException($"{option} takes seconds from {least} to 4000000, not \"{text}\"");

    static readonly Lazy<Stream> stdin = new(Console.OpenStandardInput);

    static async ValueTask<int> ReadStdinAsync(Memory<byte> into, CancellationToken cancel)
    {
        try
        {
            return await stdin.Value.ReadAsync(into, cancel);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            throw new InputException($"stdin: {e.Message}");
        }
    }

    /// <summary>Tells the user, in one line on stderr, and gives back the exit code.</summary>
    public static int Fail(int exitCode, string message)
    {
        Console.Error.WriteLine($"streamer: {string.Concat(message.ReplaceLineEndings(" ").Select(c => char.IsControl(c) ? '\uFFFD' : c))}");
        return exitCode;
    }
}

/// <summary>What was typed cannot be meant: one line on stderr and exit code 2.</summary>
sealed class UsageException(string message) : Exception(message);

/// <summary>What came on stdin is not what the command takes: one line on stderr and exit code 1.</summary>
sealed class InputException(string message) : Exception(message);

/// <summary>A place to listen at or to call: a URL, or a Unix socket's path.</summary>
sealed record Endpoint(Uri Url, string? UnixPath)
{
    public const string Default = "http://localhost:50051";

    // Linux has room for 108 bytes in a socket's address, macOS for 104.
    static readonly int MaxUnixPath = OperatingSystem.IsMacOS() ? 103 : 107;

    /// <summary>Takes http://HOST:PORT, https://HOST:PORT, HOST:PORT and unix:/PATH.</summary>
    /// <exception cref="UsageException">The text is none of these.</exception>
    public static Endpoint Parse(string text)
    {
        if (text.StartsWith("unix:", StringComparison.Ordinal) && text.Length > 5)
            return Path.GetFullPath(text[5..]) is var path && Encoding.UTF8.GetByteCount(path) <= MaxUnixPath ? new(new("http://localhost"), path)
                : throw new UsageException($"{text}: a Unix socket's path has at most {MaxUnixPath} bytes");
        // Uri knows no host "*"; [::] is what it means: any address, of IPv4 as well.
        var url = text.Contains("://", StringComparison.Ordinal) ? text : "http://" + text;
        if (Uri.TryCreate(url.Replace("//*", "//[::]"), UriKind.Absolute, out var uri)
            && uri is { Scheme: "http" or "https", PathAndQuery: "/", UserInfo: "", Fragment: "" })
            return new(uri, null);
        throw new UsageException($"\"{text}\" is not an address: http://HOST:PORT, https://HOST:PORT or unix:/PATH");
    }

    public override string ToString() => UnixPath is null ? Url.GetLeftPart(UriPartial.Authority) : $"unix:{UnixPath}";
}

// ---------------------------------------------------------------------------------------------
// The two RPCs
// ---------------------------------------------------------------------------------------------

/// <summary>A bidirectional RPC: a function from a stream of requests to a stream of responses, both in batches as they come.</summary>
delegate IAsyncEnumerable<Batch<TResponse>> Rpc<TRequest, TResponse>(IAsyncEnumerable<Batch<TRequest>> requests)
    where TRequest : class, new() where TResponse : class, new();

static class Rpcs
{
    /// <summary>One answer for each request.</summary>
    public static async IAsyncEnumerable<Batch<GreetEveryoneResponse>> GreetEveryone(IAsyncEnumerable<Batch<GreetEveryoneRequest>> requests)
    {
        await foreach (var batch in requests)
            yield return batch.Map(request => new GreetEveryoneResponse { Result = $"Hello {Name(request.Greeting)}!" });

        static string Name(Greeting? of) => string.IsNullOrEmpty(of?.LastName) ? $"{of?.FirstName}" : $"{of.FirstName} {of.LastName}";
    }

    /// <summary>An answer only when a number is larger than all before it on the stream.</summary>
    public static async IAsyncEnumerable<Batch<FindMaximumResponse>> FindMaximum(IAsyncEnumerable<Batch<FindMaximumRequest>> requests)
    {
        var answers = new Batch<FindMaximumResponse>();
        long? largest = null;
        await foreach (var batch in requests)
        {
            answers.Clear();
            foreach (var request in batch)
                if (largest is null || request.Number > largest)
                    answers.Next().Maximum = (largest = request.Number).Value;
            yield return answers;
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Bytes to items, items to bytes: the same both ways, for text and for gRPC
// ---------------------------------------------------------------------------------------------

/// <summary>
/// Messages that came together, or leave together: a read that brought a thousand costs a few asynchronous hops, not a
/// thousand. Whoever made a batch makes the next one of the same objects, so it is good until the next is asked for.
/// </summary>
sealed class Batch<T> where T : class, new()
{
    // At its largest, a batch of small messages still fits in a processor's nearest cache.
    const int Largest = 256;

    T?[] items = [];

    public int Count { get; private set; }

    public bool IsFull => Count == Largest;

    /// <summary>One more message, to be filled in: it may be an old one, with its old values.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public T Next()
    {
        if (Count == items.Length || items[Count] is not { } old)
            return Add(new());
        Count++;
        return old;
    }

    public T Add(T item)
    {
        if (Count == items.Length)
            Array.Resize(ref items, Math.Max(1, Count * 2));
        return items[Count++] = item;
    }

    public void Clear() => Count = 0;

    public T this[int index] => items[index]!;

    /// <summary>A batch with one message for each of this one.</summary>
    public Batch<TOther> Map<TOther>(Func<T, TOther> map) where TOther : class, new()
    {
        var others = new Batch<TOther>();
        foreach (var item in this)
            others.Add(map(item));
        return others;
    }

    public ReadOnlySpan<T>.Enumerator GetEnumerator() => new ReadOnlySpan<T>(items!, 0, Count).GetEnumerator();
}

/// <summary>Reads some bytes as soon as there are any; 0 at the end.</summary>
delegate ValueTask<int> ReadBytes(Memory<byte> into, CancellationToken cancel);

/// <summary>A stream of messages cut out of a stream of bytes.</summary>
/// <param name="oneOfMany">Whether thousands of these may wait at once: then none holds a buffer while it waits.</param>
abstract class Reader<T>(ReadBytes source, bool oneOfMany, CancellationToken cancel) : IAsyncEnumerable<Batch<T>> where T : class, new()
{
    const int ReadSize = 64 * 1024;

    byte[] buffer = [];
    int start, end;

    /// <summary>Whether the source has ended: what <see cref="Take"/> is given then is all there is.</summary>
    protected bool Ended { get; private set; }

    /// <summary>Cuts messages off the front of <paramref name="rest"/> until the batch is full or more bytes are needed.</summary>
    protected abstract void Take(ref ReadOnlySpan<byte> rest, Batch<T> batch);

    public async IAsyncEnumerator<Batch<T>> GetAsyncEnumerator(CancellationToken cancellationToken = default)
    {
        var batch = new Batch<T>();
        while (true)
        {
            var problem = Take(batch);
            if (batch.Count > 0)
                yield return batch;
            if (problem is not null)
                throw problem; // What came before it is good, and went first.
            if (batch.Count > 0)
                continue;
            if (Ended)
                break;
            if (start == end && oneOfMany)
            {
                Release();
                await source(Memory<byte>.Empty, cancel);
            }
            MakeRoom();
            var count = await source(buffer.AsMemory(end), cancel);
            (end, Ended) = (end + count, count == 0);
        }
        Release();
    }

    Exception? Take(Batch<T> batch)
    {
        batch.Clear();
        var rest = new ReadOnlySpan<byte>(buffer, start, end - start);
        try
        {
            Take(ref rest, batch);
            start = end - rest.Length;
            return null;
        }
        catch (Exception e) when (e is InputException or StatusException)
        {
            return e;
        }
    }

    void MakeRoom()
    {
        var (old, left) = (buffer, end - start);
        if (old.Length <= left * 2)
            buffer = ArrayPool<byte>.Shared.Rent(Math.Max(ReadSize, left * 2));
        old.AsSpan(start, left).CopyTo(buffer);
        if (old != buffer && old.Length > 0)
            ArrayPool<byte>.Shared.Return(old);
        (start, end) = (0, left);
    }

    void Release()
    {
        if (buffer.Length > 0)
            ArrayPool<byte>.Shared.Return(buffer);
        (buffer, start, end) = ([], 0, 0);
    }
}

/// <summary>Appends messages to the bytes on their way out.</summary>
delegate void Append<T>(Batch<T> batch, PipeWriter output) where T : class, new();

/// <summary>What came cannot be passed on: the writer says why.</summary>
sealed class OutputException(Exception reason) : Exception(reason.Message, reason);

static class Pump
{
    // With the batch of numbers that fills it up, a little less than four of HTTP/2's usual frames of 16 KiB.
    const int Full = 60 * 1024;

    /// <summary>
    /// The rule that moves all bytes, on both sides: write as long as there is something to write, flush only
    /// when about to wait. It also flushes before it starts, so that a response's headers leave, and before it fails.
    /// </summary>
    /// <exception cref="OutputException">The output cannot be written.</exception>
    public static async Task RunAsync<T>(IAsyncEnumerable<Batch<T>> source, Append<T> append, PipeWriter output, CancellationToken cancel) where T : class, new()
    {
        var full = 0;
        await FlushAsync();
        var batches = source.GetAsyncEnumerator(cancel);
        for (var more = true; more;)
        {
            var next = batches.MoveNextAsync();
            if (output.UnflushedBytes > (next.IsCompletedSuccessfully ? Full : 0))
                await FlushAsync();
            // Nothing to append must not make the pipe take memory for it.
            if ((more = await next) && batches.Current.Count > 0)
                append(batches.Current, output);
        }
        await FlushAsync();

        async ValueTask FlushAsync()
        {
            // A firehose leaves little garbage, but the collector would let tens of megabytes of it gather.
            if (output.UnflushedBytes > Full && ++full % 256 == 0)
                GC.Collect(0);
            try
            {
                // Only the wait is cancelled: Kestrel aborts a stream whose flush is, and drops what was to be flushed.
                var flush = output.FlushAsync(CancellationToken.None);
                if (!flush.IsCompletedSuccessfully)
                    await flush.AsTask().WaitAsync(cancel);
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException)
            {
                throw new OutputException(e);
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Text to messages, messages to text
// ---------------------------------------------------------------------------------------------

/// <summary>Integers separated by white space or commas, as requests.</summary>
sealed class NumberReader(ReadBytes source) : Reader<FindMaximumRequest>(source, oneOfMany: false, default)
{
    // Leading zeros are fine, but not without end: a token must fit in memory to be parsed.
    const int MaxLength = 4096;

    long line = 1;
    bool begun;

    protected override void Take(ref ReadOnlySpan<byte> rest, Batch<FindMaximumRequest> batch)
    {
        if (!begun && !(begun = Text.TrySkipBom(ref rest, Ended)))
            return;
        var text = rest;
        var at = 0;
        while (!batch.IsFull)
        {
            while (at < text.Length && IsSeparator(text[at]))
                at++;
            var token = text[at..];
            if (token.Length > 8 && EightDigits(BinaryPrimitives.ReadUInt64LittleEndian(token), out var number) is > 0 and var length && IsSeparator(token[length]))
                batch.Next().Number = number;
            else if ((length = Parse(token, text[..at], out var other)) > 0)
                batch.Next().Number = other;
            else
                break;
            at += length;
        }
        line += text[..at].Count((byte)'\n');
        rest = text[at..];
    }

    // The length of any token; 0 when it may go on in bytes that are still to come.
    int Parse(ReadOnlySpan<byte> token, ReadOnlySpan<byte> before, out long number)
    {
        var length = 0;
        while (length < token.Length && !IsSeparator(token[length]))
            length++;
        number = 0;
        if (length == 0 || length == token.Length && !Ended && length <= MaxLength)
            return 0;
        return length <= MaxLength && Utf8Parser.TryParse(token[..length], out number, out var used) && used == length ? length
            : throw new InputException($"line {line + before.Count((byte)'\n')}: \"{Text.Excerpt(token[..length])}\" is not an integer from {long.MinValue} to {long.MaxValue}");
    }

    // How many of eight characters are digits, up to the first that is none, and their number. Nearly all numbers are
    // so short; without a loop: the digits are moved to the end of the eight, then neighbours are joined three times.
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static int EightDigits(ulong text, out long number)
    {
        var digits = text ^ 0x3030303030303030;
        var length = BitOperations.TrailingZeroCount((digits + 0x7676767676767676 | digits) & 0x8080808080808080) / 8;
        digits = length == 0 ? 0 : digits << (64 - 8 * length);
        digits = digits * 10 + (digits >> 8) & 0x00ff00ff00ff00ff;
        digits = digits * 100 + (digits >> 16) & 0x0000ffff0000ffff;
        number = (long)(digits * 10_000 + (digits >> 32) & 0xffffffff);
        return length;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static bool IsSeparator(byte b) => b is (byte)'\n' or (byte)' ' or (byte)',' or (>= (byte)'\t' and <= (byte)'\r');
}

/// <summary>Names, one a line, as requests: the first word is the first name, the rest the last name.</summary>
sealed class NameReader(ReadBytes source) : Reader<GreetEveryoneRequest>(source, oneOfMany: false, default)
{
    // With the message around it, a longer one would be more than servers take.
    const int MaxLength = Message.MaxSize - 32;

    long line = 1;
    bool begun;

    protected override void Take(ref ReadOnlySpan<byte> rest, Batch<GreetEveryoneRequest> batch)
    {
        if (!begun && !(begun = Text.TrySkipBom(ref rest, Ended)))
            return;
        for (; !batch.IsFull && rest.Length > 0; line++)
        {
            var length = rest.IndexOf((byte)'\n');
            var name = length < 0 ? rest : rest[..length];
            if (name.Length > MaxLength)
                throw new InputException($"line {line}: the name is longer than {MaxLength} bytes");
            if (length < 0 && !Ended)
                return;
            if (!Utf8.IsValid(name))
                throw new InputException($"line {line}: \"{Text.Excerpt(name)}\" is not valid UTF-8");
            rest = rest[(length < 0 ? rest.Length : length + 1)..];
            var words = Encoding.UTF8.GetString(name).Trim();
            if (words.Length == 0)
                continue;
            var first = words.TakeWhile(c => !char.IsWhiteSpace(c)).Count();
            batch.Next().Greeting = new() { FirstName = words[..first], LastName = words[first..].TrimStart() };
        }
    }
}

static class Text
{
    /// <summary>Skips a byte order mark at the start of text; false while it cannot be told whether there is one.</summary>
    public static bool TrySkipBom(ref ReadOnlySpan<byte> rest, bool ended)
    {
        var bom = "\uFEFF"u8;
        if (rest.StartsWith(bom))
            rest = rest[bom.Length..];
        else if (!ended && bom.StartsWith(rest))
            return false;
        return true;
    }

    /// <summary>The start of a token, fit to be shown in a message.</summary>
    public static string Excerpt(ReadOnlySpan<byte> token)
    {
        var text = Encoding.UTF8.GetString(token[..Math.Min(token.Length, 160)]);
        text = string.Concat(text.Select(c => char.IsControl(c) ? '\uFFFD' : c));
        return text.Length > 40 ? text[..40] + "…" : text;
    }
}

/// <summary>Answers as lines of text.</summary>
static class Lines
{
    public static void Append(Batch<FindMaximumResponse> answers, PipeWriter output)
    {
        const int longest = 21;
        var lines = output.GetSpan(answers.Count * longest);
        var used = 0;
        foreach (var answer in answers)
        {
            Utf8Formatter.TryFormat(answer.Maximum, lines[used..], out var length);
            used += length;
            lines[used++] = (byte)'\n';
        }
        output.Advance(used);
    }

    public static void Append(Batch<GreetEveryoneResponse> answers, PipeWriter output)
    {
        foreach (var answer in answers)
        {
            var line = output.GetSpan(Encoding.UTF8.GetByteCount(answer.Result) + 1);
            var length = Encoding.UTF8.GetBytes(answer.Result, line);
            line[length] = (byte)'\n';
            output.Advance(length + 1);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Messages to gRPC on the wire, and back (grpc/doc/PROTOCOL-HTTP2.md)
// ---------------------------------------------------------------------------------------------

/// <summary>The gRPC status codes, by their names in grpc/doc/statuscodes.md.</summary>
enum Status
{
    OK, CANCELLED, UNKNOWN, INVALID_ARGUMENT, DEADLINE_EXCEEDED, NOT_FOUND, ALREADY_EXISTS, PERMISSION_DENIED,
    RESOURCE_EXHAUSTED, FAILED_PRECONDITION, ABORTED, OUT_OF_RANGE, UNIMPLEMENTED, INTERNAL, UNAVAILABLE,
    DATA_LOSS, UNAUTHENTICATED,
}

/// <summary>Ends a call with a status that is not OK.</summary>
sealed class StatusException(Status status, string message) : Exception(message)
{
    public Status Status => status;
}

/// <summary>Adds a message to a batch, from its bytes.</summary>
delegate void Decode<T>(ReadOnlySpan<byte> bytes, Batch<T> batch) where T : class, new();

/// <summary>Length-Prefixed-Messages: a byte that says whether it is compressed, a length of four bytes, a message.</summary>
static class Message
{
    /// <summary>The largest message that is read, in bytes, compressed or not: gRPC's usual default of 4 MiB.</summary>
    public const int MaxSize = 4 * 1024 * 1024;

    public const int PrefixSize = 5;

    public static void Append<T>(Batch<T> batch, PipeWriter output) where T : class, IMessage<T>, new()
    {
        foreach (var message in batch)
        {
            var size = message.CalculateSize();
            var frame = output.GetSpan(PrefixSize + size);
            WritePrefix(frame, size);
            message.WriteTo(frame.Slice(PrefixSize, size));
            output.Advance(PrefixSize + size);
        }
    }

    public static void Decode<T>(ReadOnlySpan<byte> bytes, Batch<T> batch) where T : class, IMessage<T>, new()
    {
        var message = new T();
        message.MergeFrom(bytes);
        batch.Add(message);
    }

    static void WritePrefix(Span<byte> frame, int size)
    {
        frame[0] = 0;
        BinaryPrimitives.WriteInt32BigEndian(frame[1..], size);
    }

    // A message that is one integer needs no library: its field's tag and a varint, and nothing at all for 0
    // (protobuf.dev, "Encoding"). It is written and read here in a tenth of the time; any other form is left to protobuf.

    const byte Tag = 1 << 3;

    const int LongestNumber = PrefixSize + 11;

    public static void Append(Batch<FindMaximumRequest> batch, PipeWriter output)
    {
        var frames = output.GetSpan(batch.Count * LongestNumber);
        var used = 0;
        foreach (var message in batch)
            used += WriteNumber(frames[used..], (ulong)message.Number);
        output.Advance(used);
    }

    public static void Append(Batch<FindMaximumResponse> batch, PipeWriter output)
    {
        var frames = output.GetSpan(batch.Count * LongestNumber);
        var used = 0;
        foreach (var message in batch)
            used += WriteNumber(frames[used..], (ulong)message.Maximum);
        output.Advance(used);
    }

    // Lambdas, as a delegate to a static method would move its arguments around with each call.

    public static readonly Decode<FindMaximumRequest> DecodeNumber = (bytes, batch) =>
    {
        if (TryReadNumber(bytes, out var number))
            batch.Next().Number = number;
        else
            Decode(bytes, batch);
    };

    public static readonly Decode<FindMaximumResponse> DecodeMaximum = (bytes, batch) =>
    {
        if (TryReadNumber(bytes, out var number))
            batch.Next().Maximum = number;
        else
            Decode(bytes, batch);
    };

    static int WriteNumber(Span<byte> frame, ulong number)
    {
        var end = PrefixSize;
        if (number != 0)
        {
            frame[end++] = Tag;
            for (; number > 0x7f; number >>= 7)
                frame[end++] = (byte)(number | 0x80);
            frame[end++] = (byte)number;
        }
        WritePrefix(frame, end - PrefixSize);
        return end;
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    static bool TryReadNumber(ReadOnlySpan<byte> bytes, out long number)
    {
        number = 0;
        if (bytes.Length is 0 or > 9 || bytes[0] != Tag)
            return bytes.Length == 0;
        for (var i = 1; i < bytes.Length; i++)
        {
            number |= (bytes[i] & 0x7fL) << (7 * (i - 1));
            if (bytes[i] <= 0x7f)
                return i == bytes.Length - 1;
        }
        return false;
    }

    /// <summary>Whether a grpc-encoding can be read; none counts as identity.</summary>
    public static bool CanRead(string? encoding) => encoding is null or "" or "identity" or "gzip";
}

/// <summary>Messages from the body of a request or of a response.</summary>
/// <param name="encoding">The body's grpc-encoding, for messages whose compressed flag is set.</param>
/// <exception cref="StatusException">
/// RESOURCE_EXHAUSTED for a message over <see cref="Message.MaxSize"/>, known from its prefix alone; INTERNAL for
/// one that is malformed, cut off, or compressed in a way that the headers do not say.
/// </exception>
sealed class MessageReader<T>(ReadBytes body, Decode<T> decode, string? encoding, bool oneOfMany, CancellationToken cancel)
    : Reader<T>(body, oneOfMany, cancel) where T : class, new()
{
    protected override void Take(ref ReadOnlySpan<byte> rest, Batch<T> batch)
    {
        while (!batch.IsFull && rest.Length >= Message.PrefixSize)
        {
            var (flag, length) = (rest[0], BinaryPrimitives.ReadUInt32BigEndian(rest[1..]));
            if (flag != 0 || length > Message.MaxSize)
                CheckPrefix(flag, length);
            if (rest.Length - Message.PrefixSize < length)
                break;
            var bytes = rest.Slice(Message.PrefixSize, (int)length);
            try
            {
                decode(flag == 0 ? bytes : Decompress(bytes), batch);
            }
            catch (Exception e) when (e is InvalidProtocolBufferException or InvalidDataException)
            {
                throw new StatusException(Status.INTERNAL, $"a message is malformed: {e.Message}");
            }
            rest = rest[(Message.PrefixSize + (int)length)..];
            if (flag != 0)
                return; // Or a batch of small messages might become one of large ones.
        }
        if (Ended && batch.Count == 0 && rest.Length > 0)
            throw new StatusException(Status.INTERNAL, "the stream ended inside a message");
    }

    void CheckPrefix(byte flag, uint length)
    {
        if (flag > 1)
            throw new StatusException(Status.INTERNAL, $"a message has the reserved flag byte {flag}");
        if (length > Message.MaxSize)
            throw new StatusException(Status.RESOURCE_EXHAUSTED, $"a message of {length} bytes is larger than the {Message.MaxSize} allowed");
        if (encoding != "gzip")
            throw new StatusException(Status.INTERNAL, $"a message is compressed, but grpc-encoding is {encoding ?? "not given"}");
    }

    static byte[] Decompress(ReadOnlySpan<byte> message)
    {
        using var gzip = new GZipStream(new MemoryStream(message.ToArray()), CompressionMode.Decompress);
        using var bytes = new MemoryStream();
        var chunk = new byte[16 * 1024];
        for (int count; (count = gzip.Read(chunk)) > 0; bytes.Write(chunk, 0, count))
            if (bytes.Length + count > Message.MaxSize)
                throw new StatusException(Status.RESOURCE_EXHAUSTED, $"a message is larger than the {Message.MaxSize} bytes allowed once decompressed");
        return bytes.ToArray();
    }
}

/// <summary>Values of gRPC's headers and trailers.</summary>
static class Metadata
{
    /// <summary>Percent-encodes a grpc-message (PROTOCOL-HTTP2, "Responses": all but 0x20 to 0x7E, and %).</summary>
    public static string Encode(string message) => string.Concat(
        Encoding.UTF8.GetBytes(message).Select(b => b is >= 0x20 and <= 0x7e and not (byte)'%' ? ((char)b).ToString() : $"%{b:X2}"));

    /// <summary>Decodes a grpc-message; what is not a valid escape stays as it is, as the specification asks.</summary>
    public static string Decode(string message) => Uri.UnescapeDataString(message);

    /// <summary>A grpc-timeout's duration; null for one that lies further off than a timer can tell.</summary>
    /// <exception cref="StatusException">INTERNAL: it is not 1 to 8 digits and one of H, M, S, m, u, n.</exception>
    public static TimeSpan? ParseTimeout(string text)
    {
        var unit = text is [.., var last] ? last switch { 'H' => 3600e3, 'M' => 60e3, 'S' => 1e3, 'm' => 1, 'u' => 1e-3, 'n' => 1e-6, _ => 0 } : 0;
        if (unit == 0 || text.Length > 9 || !uint.TryParse(text[..^1], NumberStyles.None, CultureInfo.InvariantCulture, out var value))
            throw new StatusException(Status.INTERNAL, $"malformed grpc-timeout: {text}");
        return value * unit <= MaxTimer.TotalMilliseconds ? TimeSpan.FromMilliseconds(value * unit) : null;
    }

    /// <summary>A deadline as a grpc-timeout, in the finest unit that its eight digits hold.</summary>
    public static string FormatTimeout(TimeSpan timeout) => timeout.TotalSeconds switch
    {
        < 99 => $"{Math.Ceiling(timeout.TotalMicroseconds):F0}u",
        < 99_999 => $"{Math.Ceiling(timeout.TotalMilliseconds):F0}m",
        _ => $"{Math.Ceiling(timeout.TotalSeconds):F0}S",
    };

    // The longest that CancellationTokenSource.CancelAfter takes is a little under 50 days.
    static readonly TimeSpan MaxTimer = TimeSpan.FromMilliseconds(uint.MaxValue - 1);

    /// <summary>--method's SERVICE/METHOD, as a path.</summary>
    /// <exception cref="UsageException">It is not two names with a slash between them.</exception>
    public static string ParseMethod(string text) => text.TrimStart('/') is var name && name.Split('/') is [{ Length: > 0 }, { Length: > 0 }]
        && name.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '_' or '/') ? $"/{name}" : throw new UsageException($"--method takes SERVICE/METHOD, not \"{text}\"");

    /// <summary>-H's "name: value", checked as PROTOCOL-HTTP2 defines Custom-Metadata.</summary>
    /// <exception cref="UsageException">A name is invalid or gRPC's own, or a value is not ASCII or not base64.</exception>
    public static (string Name, string Value)[] Parse(string[] headers) => Array.ConvertAll(headers, header =>
    {
        var colon = header.IndexOf(':');
        var (name, value) = colon < 0 ? (header, "") : (header[..colon].Trim().ToLowerInvariant(), header[(colon + 1)..].Trim());
        if (colon < 0 || name.Length == 0 || !name.All(c => char.IsAsciiLetterLower(c) || char.IsAsciiDigit(c) || c is '-' or '_' or '.'))
            throw new UsageException($"-H takes 'name: value', and a name of letters, digits, '-', '_' and '.', not '{header}'");
        if (name.StartsWith("grpc-", StringComparison.Ordinal) || name is "te" or "content-type" or "user-agent" or "host" or "connection" or "transfer-encoding" or "content-length")
            throw new UsageException($"-H cannot set {name}: it is gRPC's own");
        if (!value.All(c => c is >= ' ' and <= '~'))
            throw new UsageException($"-H {name}: a value is printable ASCII; other bytes go in base64 under a name that ends in -bin");
        if (name.EndsWith("-bin", StringComparison.Ordinal) && !Base64.IsValid(value.TrimEnd('=').PadRight((value.TrimEnd('=').Length + 3) / 4 * 4, '=')))
            throw new UsageException($"-H {name}: the value is not base64");
        return (name, value);
    });
}

// ---------------------------------------------------------------------------------------------
// The server's side
// ---------------------------------------------------------------------------------------------

/// <summary>A gRPC server on Kestrel: the two RPCs under both their names, health checking, reflection.</summary>
sealed class Server : IHttpApplication<IFeatureCollection>, IAsyncDisposable
{
    // A peer that vanished without a word is found by a ping that stays unanswered.
    static readonly TimeSpan PingDelay = TimeSpan.FromSeconds(20), PingTimeout = TimeSpan.FromSeconds(20);

    // How long a connection may take to send a whole header block, against peers that drip bytes.
    static readonly TimeSpan HeadersTimeout = TimeSpan.FromSeconds(10);

    // What a connection may hold, at most, is this many streams times their window.
    const int MaxStreamsPerConnection = 100, StreamWindow = 256 * 1024, ConnectionWindow = 1024 * 1024;

    // So that one peer cannot use up the process's descriptors; Linux's usual limit is 1024 soft, 524288 hard.
    const int MaxConnections = 10_000;

    // How long a call that is over may take to get its last bytes to a peer that does not read.
    static readonly TimeSpan Grace = TimeSpan.FromSeconds(1);

    // How long what is under way between two peers may take to arrive.
    static readonly TimeSpan Linger = TimeSpan.FromSeconds(0.25);

    static readonly FileDescriptor[] files =
    [
        StreamingReflection.Descriptor, Greet.GreetReflection.Descriptor, Calculator.CalculatorReflection.Descriptor,
        HealthReflection.Descriptor, Grpc.Reflection.V1.ReflectionReflection.Descriptor, Grpc.Reflection.V1Alpha.ReflectionReflection.Descriptor,
    ];

    readonly Dictionary<string, Func<Call, Task>> methods;
    readonly CancellationTokenSource draining = new(), expired = new(), abort = new();
    readonly List<Socket> sockets = [];
    readonly List<string> unixPaths = [];
    WebApplication app = null!;

    // Calls whose end Kestrel has not been given yet.
    int running;

    /// <summary>Where this server listens, with real ports.</summary>
    public List<Endpoint> Endpoints { get; } = [];

    public Server() => methods = new()
    {
        ["/streaming.GreetService/GreetEveryone"] = Method<GreetEveryoneRequest, GreetEveryoneResponse>(Message.Decode, Message.Append, Rpcs.GreetEveryone),
        ["/streaming.CalculatorService/FindMaximum"] = Method<FindMaximumRequest, FindMaximumResponse>(Message.DecodeNumber, Message.Append, Rpcs.FindMaximum),
        ["/greet.GreetService/GreetEveryone"] = Method<GreetEveryoneRequest, GreetEveryoneResponse>(Message.Decode, Message.Append, Rpcs.GreetEveryone),
        ["/calculator.CalculatorService/FindMaximum"] = Method<FindMaximumRequest, FindMaximumResponse>(Message.DecodeNumber, Message.Append, Rpcs.FindMaximum),
        ["/grpc.health.v1.Health/Check"] = Method<HealthCheckRequest, HealthCheckResponse>(Message.Decode, Message.Append, CheckHealth),
        ["/grpc.health.v1.Health/Watch"] = call => Method<HealthCheckRequest, HealthCheckResponse>(Message.Decode, Message.Append, requests => WatchHealth(requests, Aborted(call.Http)))(call),
        ["/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"] = Method<ServerReflectionRequest, ServerReflectionResponse>(Message.Decode, Message.Append, Reflect),
        ["/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"] = Method<ServerReflectionRequest, ServerReflectionResponse>(Message.Decode, Message.Append, Reflect),
    };

    /// <summary>Serves until SIGINT or SIGTERM, drains, and gives the exit code.</summary>
    /// <param name="drain">How long running streams may go on after the signal.</param>
    public static async Task<int> RunAsync(Endpoint[] endpoints, ServerTls? tls, TimeSpan drain)
    {
        await using var server = new Server();
        var signalled = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var force = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Signals.On(exitCode =>
        {
            if (!signalled.TrySetResult())
                force.TrySetResult(exitCode);
        });
        try
        {
            await server.StartAsync(endpoints, tls);
        }
        catch (SocketException e)
        {
            return Program.Fail(1, e.Message);
        }
        foreach (var endpoint in server.Endpoints)
            Console.Out.WriteLine($"listening on {endpoint}");
        _ = TidyAsync(server.draining.Token);
        await signalled.Task;
        var drained = server.DrainAsync(drain);
        return await Task.WhenAny(drained, force.Task) == force.Task ? await force.Task : 0;
    }

    // The collector waits for an allocation, which a server at rest does not make: what a rush left behind would stay.
    static async Task TidyAsync(CancellationToken stop)
    {
        const int little = 64 * 1024, much = 16 * 1024 * 1024;
        for (long seen = 0, tidied = 0; !stop.IsCancellationRequested; await Task.Delay(1000, stop).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing))
        {
            var allocated = GC.GetTotalAllocatedBytes();
            if (allocated - seen < little && allocated - tidied > much)
            {
                GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive);
                tidied = allocated;
            }
            seen = allocated;
        }
    }

    /// <exception cref="SocketException">An endpoint cannot be listened at; the message says which and why.</exception>
    /// <exception cref="UsageException">An endpoint is not one to listen at.</exception>
    public async Task StartAsync(Endpoint[] endpoints, ServerTls? tls)
    {
        foreach (var endpoint in endpoints)
            Bind(endpoint, tls is not null);
        var builder = WebApplication.CreateEmptyBuilder(new());
        // What Kestrel has to say of HTTP/2 is about its peers, who could fill the log: up to a line for each frame.
        builder.Logging.SetMinimumLevel(LogLevel.Warning).AddFilter("Microsoft.AspNetCore.Server.Kestrel.Http2", LogLevel.None).AddSimpleConsole(console => console.SingleLine = true);
        builder.Services.Configure<Microsoft.Extensions.Logging.Console.ConsoleLoggerOptions>(console => console.LogToStandardErrorThreshold = LogLevel.Trace);
        builder.WebHost.UseKestrelCore();
        builder.Services.AddSingleton<IMemoryPoolFactory<byte>, FrameBlocks>();
        // The sockets are bound before Kestrel starts: only so has port 0 one meaning for both loopback
        // addresses, and a Unix socket its mode before anyone can connect.
        var bound = sockets.ToDictionary(socket => socket.LocalEndPoint!);
        builder.Services.Configure<SocketTransportOptions>(transport => transport.CreateBoundListenSocket = at => bound[at]);
        builder.WebHost.ConfigureKestrel(kestrel =>
        {
            // A proxy that ends TLS passes on what its client said: https, on a connection without.
            (kestrel.AddServerHeader, kestrel.AllowAlternateSchemes) = (false, true);
            var limits = kestrel.Limits;
            // Streams may be idle, and bodies endless: Kestrel's minimum rates and maximum sizes are not for them.
            (limits.MinRequestBodyDataRate, limits.MinResponseDataRate, limits.MaxRequestBodySize) = (null, null, null);
            (limits.RequestHeadersTimeout, limits.MaxConcurrentConnections) = (HeadersTimeout, MaxConnections);
            (limits.Http2.KeepAlivePingDelay, limits.Http2.KeepAlivePingTimeout) = (PingDelay, PingTimeout);
            (limits.Http2.MaxStreamsPerConnection, limits.Http2.InitialStreamWindowSize, limits.Http2.InitialConnectionWindowSize) = (MaxStreamsPerConnection, StreamWindow, ConnectionWindow);
            foreach (var (at, endpoint) in bound.Keys.Zip(Endpoints))
                kestrel.Listen(at, listen =>
                {
                    listen.Protocols = HttpProtocols.Http2;
                    // Closed at once after its GOAWAY, a connection would answer what the peer is sending with a TCP reset,
                    // which may cost the peer answers that it has not read yet.
                    listen.Use(next => async connection =>
                    {
                        await next(connection);
                        if (draining.IsCancellationRequested)
                            await Task.Delay(Linger);
                    });
                    if (endpoint.Url.Scheme == "https")
                        listen.UseHttps(new TlsHandshakeCallbackOptions { OnConnection = _ => new(tls!.Options()) });
                });
        });
        app = builder.Build();
        await app.Services.GetRequiredService<IServer>().StartAsync(this, default);
    }

    void Bind(Endpoint endpoint, bool hasCertificate)
    {
        if (endpoint.Url.Scheme == "https" && !hasCertificate)
            throw new UsageException($"{endpoint} needs --cert and --key");
        if (endpoint.UnixPath is { } path)
        {
            RemoveStaleSocket(path);
            Bind(endpoint, new UnixDomainSocketEndPoint(path));
            if (!OperatingSystem.IsWindows())
                File.SetUnixFileMode(path, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            unixPaths.Add(path);
            return;
        }
        var (host, port) = (endpoint.Url.IdnHost, endpoint.Url.Port);
        if (IPAddress.TryParse(host, out var address))
            Bind(endpoint, new IPEndPoint(address, port));
        else if (host != "localhost")
            throw new UsageException($"{endpoint} cannot be listened at: HOST is localhost, an IP address or *");
        else
        {
            Bind(endpoint, new IPEndPoint(IPAddress.Loopback, port));
            try
            {
                Bind(endpoint, new IPEndPoint(IPAddress.IPv6Loopback, ((IPEndPoint)sockets[^1].LocalEndPoint!).Port));
            }
            catch (SocketException e) when (e.SocketErrorCode is SocketError.AddressNotAvailable or SocketError.AddressFamilyNotSupported)
            {
                // A machine without IPv6.
            }
        }
    }

    void Bind(Endpoint endpoint, EndPoint at)
    {
        var socket = new Socket(at.AddressFamily, SocketType.Stream, at is IPEndPoint ? ProtocolType.Tcp : ProtocolType.Unspecified);
        try
        {
            if (at is IPEndPoint { Address: var address } && address.Equals(IPAddress.IPv6Any))
                socket.DualMode = true;
            if (at is IPEndPoint)
                Tcp.GiveUpAfter(socket, PingDelay + PingTimeout + PingTimeout / 2); // Where no ping can leave any more.
            socket.Bind(at);
        }
        catch (SocketException e)
        {
            socket.Dispose();
            throw new SocketException((int)e.SocketErrorCode, $"cannot listen at {endpoint}: {(e.SocketErrorCode == SocketError.AddressAlreadyInUse ? "the address is in use" : e.Message)}");
        }
        sockets.Add(socket);
        Endpoints.Add(socket.LocalEndPoint is IPEndPoint real ? new(new($"{endpoint.Url.Scheme}://{real}"), null) : endpoint);
    }

    // A socket file that a killed server left behind refuses connections; anything else there is not ours to remove.
    static void RemoveStaleSocket(string path)
    {
        // It does not block: a live server's queue may be full.
        using var probe = new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) { Blocking = false };
        try
        {
            probe.Connect(new UnixDomainSocketEndPoint(path));
        }
        catch (SocketException e) when (e.SocketErrorCode == SocketError.ConnectionRefused && IsSocket(path))
        {
            File.Delete(path);
        }
        catch (SocketException)
        {
            // Nothing there; or what is there makes the bind fail, with a message.
        }

        static bool IsSocket(string path)
        {
            try
            {
                // Read-write, as a pipe without a writer would hold up a reader.
                File.OpenHandle(path, access: FileAccess.ReadWrite, share: FileShare.ReadWrite).Dispose();
                return false;
            }
            catch (Exception e)
            {
                return e.HResult is 6 or 102 or unchecked((int)0x80070780); // ENXIO; EOPNOTSUPP on macOS; ERROR_CANT_ACCESS_FILE
            }
        }
    }

    /// <summary>Takes no new connections and streams, lets running streams finish in time, then ends them with UNAVAILABLE.</summary>
    async Task DrainAsync(TimeSpan patience)
    {
        await draining.CancelAsync();
        // First nobody gets in, and only then are connections told: one just made may be bringing its first call.
        sockets.ForEach(socket => socket.Dispose());
        await Task.Delay(Linger);
        expired.CancelAfter(patience);
        abort.CancelAfter(patience + Grace + Grace);
        var stopped = app.Services.GetRequiredService<IServer>().StopAsync(abort.Token);
        // Kestrel waits for connections as well, but peers may keep one open that has no stream any more, or never had.
        var tick = Grace / 20;
        for (var quiet = TimeSpan.Zero; quiet < Grace && !stopped.IsCompleted; quiet = running == 0 ? quiet + tick : default)
            await Task.WhenAny(stopped, Task.Delay(tick));
        await abort.CancelAsync();
        await stopped;
    }

    public async ValueTask DisposeAsync()
    {
        // A drain that goes on would hold up the end that a second signal asks for.
        await abort.CancelAsync();
        if (app is not null)
            await app.DisposeAsync();
        unixPaths.ForEach(File.Delete);
        sockets.ForEach(socket => socket.Dispose());
    }

    /// <summary>What a method needs of the HTTP request that carries its call.</summary>
    readonly record struct Call(IFeatureCollection Http, CancellationToken Cancel);

    static Func<Call, Task> Method<TRequest, TResponse>(Decode<TRequest> decode, Append<TResponse> append, Rpc<TRequest, TResponse> rpc)
        where TRequest : class, new() where TResponse : class, new() => call =>
    {
        var request = call.Http.GetRequiredFeature<IHttpRequestFeature>();
        var requests = new MessageReader<TRequest>(request.Body.ReadAsync, decode, request.Headers["grpc-encoding"], oneOfMany: true, call.Cancel);
        return Pump.RunAsync(rpc(requests), append, call.Http.GetRequiredFeature<IHttpResponseBodyFeature>().Writer, call.Cancel);
    };

    // Kestrel calls these three. An HttpContext, and a host to make it, would be a tenth of what an idle stream costs.

    public IFeatureCollection CreateContext(IFeatureCollection http)
    {
        Interlocked.Increment(ref running);
        return http;
    }

    public void DisposeContext(IFeatureCollection http, Exception? failure) => Interlocked.Decrement(ref running);

    public async Task ProcessRequestAsync(IFeatureCollection http)
    {
        var (request, response) = (http.GetRequiredFeature<IHttpRequestFeature>(), http.GetRequiredFeature<IHttpResponseFeature>());
        if (!HttpMethods.IsPost(request.Method))
        {
            (response.StatusCode, response.Headers.Allow) = (StatusCodes.Status405MethodNotAllowed, "POST");
            return;
        }
        if (!IsGrpc(request.Headers.ContentType))
        {
            response.StatusCode = StatusCodes.Status415UnsupportedMediaType;
            return;
        }
        if (draining.IsCancellationRequested)
        {
            // Kestrel waits for streams that are under way only while another runs: so this one tells the peer, and runs for a moment.
            http.Get<IConnectionLifetimeNotificationFeature>()?.RequestClose();
            await Task.Delay(Linger);
        }
        response.Headers.ContentType = "application/grpc";
        response.Headers["grpc-accept-encoding"] = "identity,gzip";
        CancellationTokenSource? deadline = null;
        try
        {
            if (!methods.TryGetValue(request.Path, out var method))
                throw new StatusException(Status.UNIMPLEMENTED, $"unknown method {request.RawTarget}");
            if (!Message.CanRead(request.Headers["grpc-encoding"]))
                throw new StatusException(Status.UNIMPLEMENTED, $"grpc-encoding {request.Headers["grpc-encoding"]} is not supported");
            if (request.Headers["grpc-timeout"] is [{ } timeout, ..] && Metadata.ParseTimeout(timeout) is { } limit)
                (deadline = CancellationTokenSource.CreateLinkedTokenSource(expired.Token)).CancelAfter(limit);
            await method(new(http, deadline?.Token ?? expired.Token));
            Finish(http, Status.OK, "");
        }
        catch (StatusException e)
        {
            Finish(http, e.Status, e.Message);
        }
        catch (Exception e) when (e is IOException or OutputException || Aborted(http).IsCancellationRequested)
        {
            // The peer is gone, and with it everybody who could be told.
        }
        catch (OperationCanceledException)
        {
            if (expired.IsCancellationRequested)
                Finish(http, Status.UNAVAILABLE, "server is shutting down");
            else
                Finish(http, Status.DEADLINE_EXCEEDED, "the deadline has passed");
            // A peer that does not read cannot be told: Kestrel does not say whether it does, so its stream is reset in any case.
            await http.GetRequiredFeature<IHttpResponseBodyFeature>().CompleteAsync();
            await Task.Delay(Grace);
            http.Get<IHttpResetFeature>()?.Reset(Http2.Cancel);
        }
        finally
        {
            deadline?.Dispose();
        }
    }

    static CancellationToken Aborted(IFeatureCollection http) => http.GetRequiredFeature<IHttpRequestLifetimeFeature>().RequestAborted;

    /// <summary>application/grpc, with an optional +proto and parameters (PROTOCOL-HTTP2, "Requests").</summary>
    static bool IsGrpc(string? contentType) => contentType?.Split(';')[0].Trim().ToLowerInvariant() is "application/grpc" or "application/grpc+proto";

    // Trailers, or Trailers-Only while nothing has been sent.
    static void Finish(IFeatureCollection http, Status status, string message)
    {
        var response = http.GetRequiredFeature<IHttpResponseFeature>();
        var trailers = response.HasStarted ? http.GetRequiredFeature<IHttpResponseTrailersFeature>().Trailers : response.Headers;
        trailers["grpc-status"] = status.ToString("D");
        if (message.Length > 0)
            trailers["grpc-message"] = Metadata.Encode(message);
    }

    // Health checking (grpc/doc/health-checking.md).

    bool Serves(string service) => service.Length == 0 || methods.Keys.Any(path => path.StartsWith($"/{service}/", StringComparison.Ordinal));

    HealthCheckResponse Health() => new() { Status = draining.IsCancellationRequested ? ServingStatus.NotServing : ServingStatus.Serving };

    async IAsyncEnumerable<Batch<HealthCheckResponse>> CheckHealth(IAsyncEnumerable<Batch<HealthCheckRequest>> requests)
    {
        await foreach (var batch in requests)
            yield return batch.Map(request => Serves(request.Service) ? Health() : throw new StatusException(Status.NOT_FOUND, $"unknown service {request.Service}"));
    }

    async IAsyncEnumerable<Batch<HealthCheckResponse>> WatchHealth(IAsyncEnumerable<Batch<HealthCheckRequest>> requests, CancellationToken aborted, [EnumeratorCancellation] CancellationToken cancel = default)
    {
        using var over = CancellationTokenSource.CreateLinkedTokenSource(draining.Token, aborted, cancel);
        await foreach (var batch in requests)
        {
            yield return batch.Map(request => Serves(request.Service) ? Health() : new() { Status = ServingStatus.ServiceUnknown });
            // The state changes once, when the drain begins; a watch must not hold that up, so it ends with it.
            await Task.Delay(Timeout.Infinite, over.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            aborted.ThrowIfCancellationRequested();
            cancel.ThrowIfCancellationRequested();
            yield return batch.Map(_ => Health());
            throw new StatusException(Status.UNAVAILABLE, "server is shutting down");
        }
    }

    // Reflection (grpc/doc/server-reflection.md).

    static async IAsyncEnumerable<Batch<ServerReflectionResponse>> Reflect(IAsyncEnumerable<Batch<ServerReflectionRequest>> requests)
    {
        // One at a time, as they are large beside their requests: a batch of them would be too much for a peer that does not read.
        var answer = new Batch<ServerReflectionResponse>();
        await foreach (var batch in requests)
            for (var i = 0; i < batch.Count; i++)
            {
                answer.Clear();
                answer.Add(Reflect(batch[i]));
                yield return answer;
            }
    }

    static ServerReflectionResponse Reflect(ServerReflectionRequest request)
    {
        var response = new ServerReflectionResponse { ValidHost = request.Host, OriginalRequest = request };
        var file = files.FirstOrDefault(file => request.MessageRequestCase switch
        {
            Asks.FileByFilename => file.Name == request.FileByFilename,
            Asks.FileContainingSymbol => Declares(file, request.FileContainingSymbol),
            Asks.AllExtensionNumbersOfType => Declares(file, request.AllExtensionNumbersOfType),
            _ => false,
        });
        if (request.MessageRequestCase == Asks.ListServices)
            response.ListServicesResponse = new() { Service = { files.SelectMany(file => file.Services).Select(service => new ServiceResponse { Name = service.FullName }) } };
        else if (file is null)
            response.ErrorResponse = new() { ErrorCode = (int)Status.NOT_FOUND, ErrorMessage = "not found" };
        else if (request.MessageRequestCase == Asks.AllExtensionNumbersOfType)
            response.AllExtensionNumbersResponse = new() { BaseTypeName = request.AllExtensionNumbersOfType };
        else
            response.FileDescriptorResponse = new() { FileDescriptorProto = { file.SerializedData } };
        return response;
    }

    static bool Declares(FileDescriptor file, string symbol)
    {
        return file.Services.Any(service => service.FullName == symbol || service.Methods.Any(method => method.FullName == symbol))
            || file.MessageTypes.Any(InMessage) || file.EnumTypes.Any(InEnum);

        bool InMessage(MessageDescriptor message) => message.FullName == symbol
            || symbol.StartsWith(message.FullName + ".", StringComparison.Ordinal)
            && (message.Fields.InDeclarationOrder().Any(field => field.FullName == symbol) || message.Oneofs.Any(oneof => oneof.FullName == symbol)
                || message.NestedTypes.Any(InMessage) || message.EnumTypes.Any(InEnum));

        bool InEnum(EnumDescriptor type) => type.FullName == symbol || type.Values.Any(value => type.FullName[..^type.Name.Length] + value.Name == symbol);
    }
}

/// <summary>Kestrel's memory in blocks as large as a frame: with its own of 4 KiB it reads a frame in four calls.</summary>
sealed class FrameBlocks : MemoryPool<byte>, IMemoryPoolFactory<byte>
{
    public override int MaxBufferSize => 16 * 1024;

    public MemoryPool<byte> Create(MemoryPoolOptions? options) => this;

    public override IMemoryOwner<byte> Rent(int minBufferSize = -1) => Shared.Rent(Math.Max(minBufferSize, MaxBufferSize));

    protected override void Dispose(bool disposing) { }
}

/// <summary>Error codes of HTTP/2 (RFC 9113, section 7).</summary>
static class Http2
{
    public const int RefusedStream = 7, Cancel = 8, EnhanceYourCalm = 11, InadequateSecurity = 12;

    static readonly string[] names =
    [
        "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED", "FRAME_SIZE_ERROR",
        "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM", "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
    ];

    public static string Name(uint code) => code < names.Length ? names[code] : $"error {code}";
}

static class Tcp
{
    /// <summary>
    /// Ends a connection, or all that a socket will accept, when data stays unacknowledged for so long: the system's own
    /// patience is a quarter of an hour, and keepalive is for connections that have no data under way.
    /// </summary>
    public static void GiveUpAfter(Socket socket, TimeSpan time)
    {
        const int userTimeout = 18;
        if (OperatingSystem.IsLinux())
            socket.SetRawSocketOption((int)SocketOptionLevel.Tcp, userTimeout, BitConverter.GetBytes((int)time.TotalMilliseconds));
    }
}

static class Signals
{
    // One that nothing refers to stops listening.
    static readonly List<PosixSignalRegistration> registered = [];

    /// <summary>Calls <paramref name="action"/> with 130 on SIGINT and with 143 on SIGTERM.</summary>
    public static void On(Action<int> action)
    {
        registered.Add(PosixSignalRegistration.Create(PosixSignal.SIGINT, signal => Handle(signal, 130)));
        registered.Add(PosixSignalRegistration.Create(PosixSignal.SIGTERM, signal => Handle(signal, 143)));

        void Handle(PosixSignalContext signal, int exitCode)
        {
            signal.Cancel = true;
            action(exitCode);
        }
    }
}

/// <summary>The server's certificate, and whose clients it lets in.</summary>
sealed class ServerTls
{
    readonly Lock reloading = new();
    readonly string cert, key;
    readonly X509Certificate2Collection? clientRoots;
    SslStreamCertificateContext context = null!;
    (DateTime, DateTime) loaded;

    ServerTls(string cert, string key, string? clientCa)
    {
        (this.cert, this.key) = (cert, key);
        Reload();
        clientRoots = clientCa is null ? null : Pem.Roots(clientCa);
    }

    /// <summary>Null where there is no certificate.</summary>
    /// <exception cref="UsageException">A file is missing or does not hold what it should.</exception>
    public static ServerTls? Load(string? cert, string? key, string? clientCa) =>
        cert is null != key is null || cert is null && clientCa is not null ? throw new UsageException("--cert and --key go together, and --client-ca with them")
        : cert is null ? null : new(cert, key!, clientCa);

    /// <summary>The options for one more connection, with the files as they are now.</summary>
    public SslServerAuthenticationOptions Options()
    {
        lock (reloading)
            try
            {
                if (Changed() != loaded)
                    Reload();
            }
            catch (UsageException e)
            {
                // A file caught half-written: the certificate in use stays, and the next connection looks again.
                Program.Fail(0, $"keeping the old certificate: {e.Message}");
            }
        return new()
        {
            ServerCertificateContext = context,
            ApplicationProtocols = [SslApplicationProtocol.Http2],
            ClientCertificateRequired = clientRoots is not null,
            CertificateChainPolicy = clientRoots is null ? null : Pem.Trust(clientRoots),
        };
    }

    (DateTime, DateTime) Changed() => (File.GetLastWriteTimeUtc(cert), File.GetLastWriteTimeUtc(key));

    void Reload()
    {
        var changed = Changed();
        context = Pem.Context(cert, key);
        loaded = changed;
    }
}

static class Pem
{
    /// <summary>A certificate with its key and the rest of its chain.</summary>
    public static SslStreamCertificateContext Context(string cert, string key) => Read($"{cert} and {key}", () =>
    {
        var chain = new X509Certificate2Collection();
        chain.ImportFromPemFile(cert);
        using var leaf = X509Certificate2.CreateFromPemFile(cert, key);
        // Windows cannot use a key that was only ever in memory; a round through PKCS#12 makes it one that it can.
        return SslStreamCertificateContext.Create(X509CertificateLoader.LoadPkcs12(leaf.Export(X509ContentType.Pfx), null), chain, offline: true);
    });

    public static X509Certificate2Collection Roots(string file) => Read(file, () =>
    {
        var roots = new X509Certificate2Collection();
        roots.ImportFromPemFile(file);
        return roots.Count > 0 ? roots : throw new InvalidDataException("it holds no certificate");
    });

    public static X509ChainPolicy Trust(X509Certificate2Collection roots)
    {
        var policy = new X509ChainPolicy { TrustMode = X509ChainTrustMode.CustomRootTrust, RevocationMode = X509RevocationMode.NoCheck };
        policy.CustomTrustStore.AddRange(roots);
        return policy;
    }

    static T Read<T>(string what, Func<T> read)
    {
        try
        {
            return read();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or System.Security.Cryptography.CryptographicException or InvalidDataException or ArgumentException)
        {
            throw new UsageException($"cannot use {what}: {e.Message}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The client's side
// ---------------------------------------------------------------------------------------------

/// <summary>One call: stdin's messages go out while the answers come in and go to stdout.</summary>
sealed class Client(Endpoint endpoint, string method, (string Name, string Value)[] metadata, ClientTls tls)
{
    // Found by TCP, not by HTTP/2 pings: gRPC servers cut a client off that pings an idle stream more often than
    // every five minutes (grpc/doc/keepalive.md), and a vanished peer is to be found within one.
    const int KeepAliveSeconds = 20, KeepAliveInterval = 5, KeepAliveProbes = 4;
    static readonly TimeSpan PingDelay = TimeSpan.FromMinutes(6), PingTimeout = TimeSpan.FromSeconds(20);

    const int BufferSize = 64 * 1024;

    // Large enough that a firehose of answers never waits for a window update on a fast network.
    const int StreamWindow = 1024 * 1024;

    static readonly TimeSpan FirstBackoff = TimeSpan.FromSeconds(0.1), LastBackoff = TimeSpan.FromSeconds(5);

    readonly CancellationTokenSource stop = new();
    FrameGate? gate;
    Exception? inputProblem, outputProblem;
    string? notReady;
    bool hasStarted;

    /// <summary>How long the call may take; sent as grpc-timeout and enforced here as well.</summary>
    public TimeSpan? Deadline { get; init; }

    /// <summary>Whether a connection that fails is tried again until the deadline.</summary>
    public bool WaitForReady { get; init; }

    /// <summary>Whether a server in this process answers when nobody else does.</summary>
    public bool MayServeItself { get; init; }

    /// <summary>Makes the call and gives the exit code, having told on stderr what went wrong.</summary>
    public async Task<int> RunAsync<TRequest, TResponse>(Reader<TRequest> input, Append<TRequest> append, Decode<TResponse> decode, Append<TResponse> line)
        where TRequest : class, new() where TResponse : class, new()
    {
        var signalled = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Signals.On(exitCode =>
        {
            signalled.TrySetResult(exitCode);
            stop.Cancel();
        });
        if (Deadline is { } deadline)
            stop.CancelAfter(deadline);
        // stdin and stdout may block a thread each, and the call needs some besides.
        ThreadPool.SetMinThreads(4, 1);
        var call = CallAsync(input, append, decode, line);
        await Task.WhenAny(call, signalled.Task);
        if (!signalled.Task.IsCompleted)
        {
            var (status, message) = await call;
            return outputProblem is { } problem ? (IsReaderGone(problem) ? 0 : Program.Fail(1, $"stdout: {problem.Message}"))
                : status != Status.OK ? Program.Fail(64 + (int)status, $"{status}: {message}")
                : inputProblem is not null ? Program.Fail(1, inputProblem.Message)
                : 0;
        }
        // The reset gets a moment to leave, but a peer or a stdout that nobody reads must not hold up the end.
        await Task.WhenAny(Task.WhenAll(call, gate?.ResetSent ?? Task.CompletedTask), Task.Delay(500));
        return await signalled.Task;
    }

    async Task<(Status, string)> CallAsync<TRequest, TResponse>(Reader<TRequest> input, Append<TRequest> append, Decode<TResponse> decode, Append<TResponse> line)
        where TRequest : class, new() where TResponse : class, new()
    {
        try
        {
            // Not disposed of: that would close the connection before a reset has left. The process ends with its call.
            var invoker = new HttpMessageInvoker(NewHandler());
            using var response = await SendAsync(invoker, body => SendRequestsAsync(input, append, body));
            var headers = response.Headers;
            var contentType = response.Content.Headers.TryGetValues("content-type", out var values) ? values.First() : "none";
            var isGrpc = contentType.Split('+', ';')[0].Trim().ToLowerInvariant() is "application/grpc";
            if (response.StatusCode != HttpStatusCode.OK && !headers.Contains("grpc-status"))
                return (OfHttp((int)response.StatusCode), $"HTTP status {(int)response.StatusCode} from {endpoint}, content type {contentType}");
            if (!isGrpc)
                return (Status.UNKNOWN, $"the answer of {endpoint} is not gRPC: its content type is {contentType}");

            var body = await response.Content.ReadAsStreamAsync(stop.Token);
            async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel)
            {
                var count = await body.ReadAsync(into, cancel);
                gate?.Took(count);
                return count;
            }
            var answers = new MessageReader<TResponse>(ReadAsync, decode, One(headers, "grpc-encoding"), oneOfMany: false, stop.Token);
            // Only reading stops at the deadline: what has been read is printed, however slow stdout is.
            await Pump.RunAsync(answers, line, PipeWriter.Create(OpenStdout(), new(minimumBufferSize: BufferSize)), default);

            // Trailers-Only came as headers, and only then is the status there.
            var trailers = response.TrailingHeaders.Any() ? response.TrailingHeaders : headers;
            return One(trailers, "grpc-status") is not { } code
                    ? ReferenceEquals(trailers, headers) ? (Status.INTERNAL, "the server ended the stream without trailers") : (Status.UNKNOWN, "the trailers hold no grpc-status")
                : Enum.TryParse<Status>(code, out var status) && Enum.IsDefined(status) && char.IsAsciiDigit(code[0]) ? (status, Metadata.Decode(One(trailers, "grpc-message") ?? ""))
                : (Status.UNKNOWN, $"the server sent grpc-status {code}");
        }
        catch (OutputException e)
        {
            outputProblem = e.InnerException;
            return (Status.CANCELLED, e.Message);
        }
        catch (Exception e) when (e is StatusException or HttpRequestException or IOException or OperationCanceledException or AuthenticationException)
        {
            return OfException(e);
        }
    }

    async Task SendRequestsAsync<TRequest>(Reader<TRequest> input, Append<TRequest> append, Stream body) where TRequest : class, new()
    {
        // SocketsHttpHandler tries a refused stream again; but what stdin gave for it is gone.
        if (hasStarted)
            throw new IOException("the server refused the stream");
        hasStarted = true;
        try
        {
            await body.FlushAsync(stop.Token);
            await Pump.RunAsync(input, append, PipeWriter.Create(body, new(minimumBufferSize: BufferSize)), stop.Token);
        }
        catch (InputException e)
        {
            // What came before has been sent; its answers are worth having, so the stream ends as at the end of input.
            inputProblem = e;
        }
        catch (OutputException e)
        {
            throw new IOException("the requests cannot be sent", e.InnerException);
        }
    }

    // Sends the headers and starts the body; comes back with the server's headers.
    async Task<HttpResponseMessage> SendAsync(HttpMessageInvoker invoker, Func<Stream, Task> body)
    {
        for (var backoff = FirstBackoff; ; backoff = backoff * 2 < LastBackoff ? backoff * 2 : LastBackoff)
        {
            using var request = new HttpRequestMessage(HttpMethod.Post, new Uri(endpoint.Url, method))
            {
                Version = HttpVersion.Version20,
                VersionPolicy = HttpVersionPolicy.RequestVersionExact,
                // A stream is reset only when its body has ended, and a body may be waiting for a stdin that never comes.
                Content = new RequestBody(stream => body(stream).WaitAsync(stop.Token)),
            };
            request.Content.Headers.TryAddWithoutValidation("content-type", "application/grpc");
            request.Headers.TryAddWithoutValidation("te", "trailers");
            request.Headers.TryAddWithoutValidation("user-agent", $"streamer/{Program.Version}");
            request.Headers.TryAddWithoutValidation("grpc-accept-encoding", "identity,gzip");
            if (Deadline is { } deadline)
                request.Headers.TryAddWithoutValidation("grpc-timeout", Metadata.FormatTimeout(deadline));
            foreach (var (name, value) in metadata)
                if (!request.Headers.TryAddWithoutValidation(name, value))
                    request.Content.Headers.TryAddWithoutValidation(name, value);
            try
            {
                return await invoker.SendAsync(request, stop.Token);
            }
            catch (HttpRequestException e) when (WaitForReady && !hasStarted && !stop.IsCancellationRequested && tls.Problem is null
                && e.HttpRequestError is HttpRequestError.ConnectionError or HttpRequestError.NameResolutionError or HttpRequestError.SecureConnectionError)
            {
                (notReady, gate) = (OfException(e).Item2, null);
                await Task.Delay(backoff * (0.8 + 0.4 * Random.Shared.NextDouble()), stop.Token);
            }
        }
    }

    SocketsHttpHandler NewHandler() => new()
    {
        UseProxy = false,
        UseCookies = false,
        AllowAutoRedirect = false,
        ActivityHeadersPropagator = null,
        InitialHttp2StreamWindowSize = StreamWindow,
        KeepAlivePingDelay = PingDelay,
        KeepAlivePingTimeout = PingTimeout,
        SslOptions = tls.Options(),
        ConnectCallback = ConnectAsync,
        PlaintextStreamFilter = (context, _) => new(gate = new FrameGate(context.PlaintextStream)),
    };

    async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancel)
    {
        if (gate is not null)
            throw new IOException("a call has one connection");
        try
        {
            return endpoint.UnixPath is { } path ? await DialAsync(new UnixDomainSocketEndPoint(path), cancel) : await DialAsync(context.DnsEndPoint, cancel);
        }
        catch (SocketException e) when (MayServeItself && !WaitForReady && e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            Console.Error.WriteLine($"streamer: nothing listens at {endpoint}: this call is served by this very process");
            var server = new Server();
            await server.StartAsync([Endpoint.Parse("http://127.0.0.1:0")], null);
            return await DialAsync(new IPEndPoint(IPAddress.Loopback, server.Endpoints[0].Url.Port), cancel);
        }
    }

    static async Task<Stream> DialAsync(EndPoint to, CancellationToken cancel)
    {
        var socket = to is UnixDomainSocketEndPoint ? new Socket(AddressFamily.Unix, SocketType.Stream, ProtocolType.Unspecified) : new Socket(SocketType.Stream, ProtocolType.Tcp) { NoDelay = true };
        try
        {
            if (to is not UnixDomainSocketEndPoint)
            {
                socket.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.KeepAlive, true);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveTime, KeepAliveSeconds);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveInterval, KeepAliveInterval);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveRetryCount, KeepAliveProbes);
                Tcp.GiveUpAfter(socket, TimeSpan.FromSeconds(KeepAliveSeconds + KeepAliveInterval * KeepAliveProbes));
            }
            await socket.ConnectAsync(to, cancel);
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    static string? One(HttpHeaders headers, string name) => headers.TryGetValues(name, out var values) ? values.First() : null;

    // Console's stream hides it when a pipe's reader is gone. A FileStream tells, but keeps a position of its own
    // in a file that other processes may be writing to as well, so it is for pipes only.
    static Stream OpenStdout()
    {
        if (Console.IsOutputRedirected)
        {
            var handle = new SafeFileHandle(OperatingSystem.IsWindows() ? GetStdHandle(-11) : 1, ownsHandle: false);
            var stream = new FileStream(handle, FileAccess.Write, bufferSize: 0);
            if (!stream.CanSeek)
                return stream;
        }
        return Console.OpenStandardOutput();
    }

    [DllImport("kernel32.dll")]
    static extern nint GetStdHandle(int which);

    // EPIPE, ERROR_BROKEN_PIPE and ERROR_NO_DATA.
    static bool IsReaderGone(Exception e) => e.HResult is 32 or unchecked((int)0x8007006D) or unchecked((int)0x800700E8);

    /// <summary>The status for an HTTP status without one (grpc/doc/http-grpc-status-mapping.md).</summary>
    static Status OfHttp(int status) => status switch
    {
        400 => Status.INTERNAL,
        401 => Status.UNAUTHENTICATED,
        403 => Status.PERMISSION_DENIED,
        404 => Status.UNIMPLEMENTED,
        429 or 502 or 503 or 504 => Status.UNAVAILABLE,
        _ => Status.UNKNOWN,
    };

    /// <summary>The status for a RST_STREAM (PROTOCOL-HTTP2, "Errors").</summary>
    static Status OfReset(uint code) => code switch
    {
        Http2.RefusedStream => Status.UNAVAILABLE,
        Http2.Cancel => Status.CANCELLED,
        Http2.EnhanceYourCalm => Status.RESOURCE_EXHAUSTED,
        Http2.InadequateSecurity => Status.PERMISSION_DENIED,
        _ => Status.INTERNAL,
    };

    (Status, string) OfException(Exception e) => e switch
    {
        StatusException { Status: var status } => (status, e.Message),
        _ when stop.IsCancellationRequested => (Status.DEADLINE_EXCEEDED, gate is null ? $"the deadline has passed, and {notReady ?? $"{endpoint} has not answered"}" : "the deadline has passed"),
        _ when gate?.Reset is { } code => (OfReset(code), $"the server reset the stream: {Http2.Name(code)}"),
        _ when gate?.GoAway is { } reason => (Status.UNAVAILABLE, $"the server closed the connection: {reason}"),
        _ when gate is { SpeaksHttp1: true } => (Status.UNAVAILABLE, $"{endpoint} speaks HTTP/1.1, not HTTP/2"),
        _ when tls.Problem is { } problem => (Status.UNAVAILABLE, problem),
        _ when gate is { HasReceived: false } && endpoint.Url.Scheme == "http" => (Status.UNAVAILABLE, $"{endpoint} closed the connection without an answer (does it want https://?)"),
        _ when gate is { HasReceived: false } && tls.MayBeAskedForCertificate => (Status.UNAUTHENTICATED, $"{endpoint} wants a client certificate (--cert, --key) that it trusts"),
        _ when Inner<SocketException>(e) is { } socket && gate is null => (Status.UNAVAILABLE, socket.SocketErrorCode switch
        {
            SocketError.ConnectionRefused => $"nothing listens at {endpoint}",
            SocketError.HostNotFound or SocketError.NoData or SocketError.TryAgain => $"there is no host {endpoint.Url.Host}",
            _ => $"cannot connect to {endpoint}: {socket.Message}",
        }),
        HttpRequestException { HttpRequestError: HttpRequestError.VersionNegotiationError } => (Status.UNAVAILABLE, $"{endpoint} does not speak HTTP/2"),
        HttpRequestException { HttpRequestError: HttpRequestError.SecureConnectionError } => (Status.UNAVAILABLE, $"{endpoint} does not answer in TLS with HTTP/2: {e.GetBaseException().Message}"),
        _ when Inner<HttpProtocolException>(e) is { } protocol => (Status.INTERNAL, $"{endpoint} broke the HTTP/2 protocol: {protocol.Message}"),
        _ => (Status.UNAVAILABLE, $"the connection to {endpoint} was lost"),
    };

    static T? Inner<T>(Exception? e) where T : Exception => e is null or T ? (T?)e : Inner<T>(e.InnerException);

    sealed class RequestBody(Func<Stream, Task> write) : HttpContent
    {
        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context) => write(stream);

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }
    }
}

/// <summary>
/// Between SocketsHttpHandler and its connection. The handler drops the answers that it holds when a stream dies, but
/// what was received must not be lost: so it learns of a reset or of the connection's end only after the call has
/// taken all the bytes that came before.
/// </summary>
sealed class FrameGate(Stream inner) : Stream
{
    const int FrameHeader = 9, Data = 0, Headers = 1, EndStream = 1, RstStream = 3, Ping = 6, GoAwayFrame = 7, WindowUpdate = 8, Padded = 8;

    readonly byte[] buffer = new byte[64 * 1024];
    readonly SemaphoreSlim took = new(0);
    readonly TaskCompletionSource resetSent = new(TaskCreationOptions.RunContinuationsAsynchronously);
    long passed, taken;

    // What may pass is from start to open; from there to end it has not been looked at yet.
    int start, open, end, frameLeft;
    bool hasEnded;

    /// <summary>The error code of a RST_STREAM frame, where one came.</summary>
    public uint? Reset { get; private set; }

    /// <summary>Completes when this side has reset a stream.</summary>
    public Task ResetSent => resetSent.Task;

    /// <summary>What a GOAWAY frame says, where one came.</summary>
    public string? GoAway { get; private set; }

    /// <summary>Whether the peer answered in HTTP/1.1.</summary>
    public bool SpeaksHttp1 { get; private set; }

    /// <summary>Whether the peer has sent anything.</summary>
    public bool HasReceived { get; private set; }

    /// <summary>The call has taken this many bytes of the response's body.</summary>
    public void Took(int count)
    {
        Interlocked.Add(ref taken, count);
        if (took.CurrentCount == 0)
            took.Release();
    }

    public override async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default)
    {
        while (!TryOpen(out var mustWait))
            if (mustWait)
                await took.WaitAsync(cancel);
            else if (!await FillAsync(cancel))
                return 0;
        var count = Math.Min(into.Length, open - start);
        buffer.AsSpan(start, count).CopyTo(into.Span);
        start += count;
        return count;
    }

    // Looks at the frames that have come and lets them pass, up to one that ends the stream or the connection.
    bool TryOpen(out bool mustWait)
    {
        mustWait = false;
        while (open < end)
        {
            if (frameLeft == 0)
            {
                var frame = buffer.AsSpan(open, end - open);
                if (frame.StartsWith("HTTP/"u8))
                    SpeaksHttp1 = true;
                if (frame.Length < FrameHeader)
                    break;
                var length = frame[0] << 16 | frame[1] << 8 | frame[2];
                if (frame.Length < FrameHeader + Math.Min(length, 1))
                    break;
                if (frame[3] == Data)
                    passed += length - ((frame[4] & Padded) != 0 && length > 0 ? 1 + frame[FrameHeader] : 0);
                else if (!(frame[3] == Ping && length == 8 || frame[3] == WindowUpdate && length == 4))
                {
                    if (frame.Length < FrameHeader + Math.Min(length, 8))
                        break;
                    if (mustWait = Interlocked.Read(ref taken) < passed)
                        break;
                    Note(frame[3], frame[FrameHeader..]);
                    // After a complete answer a reset only ends the requests; the handler must not take it for a failure.
                    if (frame[3] == RstStream && hasEnded && length == 4)
                        frame.Slice(FrameHeader, length).Clear();
                }
                hasEnded |= frame[3] is Data or Headers && (frame[4] & EndStream) != 0;
                frameLeft = FrameHeader + length;
            }
            var now = Math.Min(frameLeft, end - open);
            (open, frameLeft) = (open + now, frameLeft - now);
        }
        return open > start;
    }

    void Note(int type, ReadOnlySpan<byte> payload)
    {
        if (type == RstStream && payload.Length >= 4)
            Reset = BinaryPrimitives.ReadUInt32BigEndian(payload);
        else if (type == GoAwayFrame && payload.Length >= 8 && BinaryPrimitives.ReadUInt32BigEndian(payload[4..]) is var code)
            GoAway = $"{Http2.Name(code)} {Text.Excerpt(payload[8..])}".TrimEnd();
    }

    // SocketsHttpHandler writes whole frames.
    static bool HoldsReset(ReadOnlySpan<byte> frames)
    {
        while (frames.Length >= FrameHeader && frames[3] != RstStream)
            frames = frames[Math.Min(frames.Length, FrameHeader + (frames[0] << 16 | frames[1] << 8 | frames[2]))..];
        return frames.Length >= FrameHeader;
    }

    async Task<bool> FillAsync(CancellationToken cancel)
    {
        buffer.AsSpan(start, end - start).CopyTo(buffer);
        (start, open, end) = (0, open - start, end - start);
        var count = 0;
        IOException? lost = null;
        try
        {
            count = await inner.ReadAsync(buffer.AsMemory(end), cancel);
        }
        catch (IOException e)
        {
            lost = e;
        }
        end += count;
        HasReceived |= count > 0;
        while (count == 0 && Interlocked.Read(ref taken) < passed)
            await took.WaitAsync(cancel);
        return lost is null ? count > 0 : throw lost;
    }

    public override async ValueTask WriteAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel = default)
    {
        try
        {
            await inner.WriteAsync(bytes, cancel);
        }
        catch (IOException)
        {
            // The connection is gone, and reading will tell: after all that came before.
        }
        if (HoldsReset(bytes.Span))
            resetSent.TrySetResult();
    }

    public override Task<int> ReadAsync(byte[] into, int offset, int count, CancellationToken cancel) => ReadAsync(into.AsMemory(offset, count), cancel).AsTask();
    public override Task WriteAsync(byte[] bytes, int offset, int count, CancellationToken cancel) => WriteAsync(bytes.AsMemory(offset, count), cancel).AsTask();
    public override Task FlushAsync(CancellationToken cancel) => inner.FlushAsync(cancel);
    protected override void Dispose(bool disposing) => inner.Dispose();
    public override bool CanRead => true;
    public override bool CanWrite => true;
    public override bool CanSeek => false;
    public override long Length => throw new NotSupportedException();
    public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }
    public override int Read(byte[] into, int offset, int count) => throw new NotSupportedException();
    public override void Write(byte[] bytes, int offset, int count) => throw new NotSupportedException();
    public override void Flush() { }
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
    public override void SetLength(long value) => throw new NotSupportedException();
}

/// <summary>Whom the client trusts, and what it shows of itself.</summary>
sealed class ClientTls
{
    X509Certificate2Collection? roots;
    SslStreamCertificateContext? own;
    bool insecure;

    /// <summary>Why the server's certificate was refused.</summary>
    public string? Problem { get; private set; }

    /// <summary>Whether the server asked for a certificate; it is not known where there is one to present.</summary>
    public bool MayBeAskedForCertificate { get; private set; }

    /// <exception cref="UsageException">A file is missing or does not hold what it should.</exception>
    public static ClientTls Load(string? caCert, string? cert, string? key, bool insecure) => cert is null != key is null
        ? throw new UsageException("--cert and --key go together")
        : new()
        {
            roots = caCert is null ? null : Pem.Roots(caCert),
            own = cert is null ? null : Pem.Context(cert, key!),
            insecure = insecure,
            MayBeAskedForCertificate = cert is not null,
        };

    public SslClientAuthenticationOptions Options() => new()
    {
        ApplicationProtocols = [SslApplicationProtocol.Http2],
        CertificateChainPolicy = roots is null ? null : Pem.Trust(roots),
        ClientCertificateContext = own,
        RemoteCertificateValidationCallback = Accepts,
        LocalCertificateSelectionCallback = own is not null ? null : (_, _, _, remote, _) =>
        {
            MayBeAskedForCertificate |= remote is not null;
            return null!;
        },
    };

    bool Accepts(object sender, X509Certificate? certificate, X509Chain? chain, SslPolicyErrors errors)
    {
        var flags = chain?.ChainStatus.Aggregate(X509ChainStatusFlags.NoError, (all, one) => all | one.Status) ?? X509ChainStatusFlags.NoError;
        var reason = errors == SslPolicyErrors.None ? null
            : errors.HasFlag(SslPolicyErrors.RemoteCertificateNotAvailable) ? "it has none"
            : errors.HasFlag(SslPolicyErrors.RemoteCertificateNameMismatch) ? $"it is not for {((SslStream)sender).TargetHostName}"
            : flags.HasFlag(X509ChainStatusFlags.NotTimeValid) ? $"it, or one that vouches for it, has expired or is not valid yet (it is valid until {((X509Certificate2)certificate!).NotAfter:yyyy-MM-dd})"
            : flags.HasFlag(X509ChainStatusFlags.UntrustedRoot) || flags.HasFlag(X509ChainStatusFlags.PartialChain) ? "no trusted root vouches for it (see --cacert)"
            : flags.ToString();
        if (reason is not null && insecure)
            Console.Error.WriteLine($"streamer: warning: the server's certificate is not verified: {reason}");
        else if (reason is not null)
            Problem = $"the server's certificate is refused: {reason}";
        return Problem is null;
    }
}
