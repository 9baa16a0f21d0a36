// Peer program: gRPC bidirectional streaming, .NET (grpc-dotnet).
//
//   dotnet server PORT | max ADDR | greet ADDR

using System.Buffers;
using System.Buffers.Text;
using System.Globalization;
using System.Net;
using System.Text;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Streaming;

try
{
    return args switch
    {
        ["server", var port] => await Peer.ServeAsync(int.Parse(port, CultureInfo.InvariantCulture)),
        ["max", var address] => await Peer.MaxAsync(address),
        ["greet", var address] => await Peer.GreetAsync(address),
        _ => Peer.Fail(2, "usage: dotnet server PORT | max ADDR | greet ADDR"),
    };
}
catch (RpcException e)
{
    return Peer.Fail(1, $"{e.StatusCode}: {e.Status.Detail}");
}
catch (FormatException e)
{
    return Peer.Fail(2, e.Message);
}

static class Peer
{
    public static int Fail(int exitCode, string message)
    {
        Console.Error.WriteLine(message);
        return exitCode;
    }

    public static async Task<int> ServeAsync(int port)
    {
        var builder = WebApplication.CreateSlimBuilder();
        builder.Logging.ClearProviders();
        builder.WebHost.ConfigureKestrel(kestrel => kestrel.Listen(IPAddress.Loopback, port, listen => listen.Protocols = HttpProtocols.Http2));
        builder.Services.AddGrpc();
        var app = builder.Build();
        app.MapGrpcService<Greeter>();
        app.MapGrpcService<Calculator>();
        await app.StartAsync();
        Console.WriteLine($"listening {port}");
        await app.WaitForShutdownAsync();
        return 0;
    }

    public static async Task<int> MaxAsync(string address)
    {
        using var channel = GrpcChannel.ForAddress($"http://{address}");
        using var call = new CalculatorService.CalculatorServiceClient(channel).FindMaximum();
        return await ConverseAsync(call, " \t\n\v\f\r"u8.ToArray(),
            token => Utf8Parser.TryParse(token, out long number, out var used) && used == token.Length
                ? new FindMaximumRequest { Number = number }
                : throw new FormatException($"not a number in range: {Encoding.UTF8.GetString(token)}"),
            (response, line) => response.Maximum.TryFormat(line, out var written, provider: CultureInfo.InvariantCulture) ? written : -1);
    }

    public static async Task<int> GreetAsync(string address)
    {
        using var channel = GrpcChannel.ForAddress($"http://{address}");
        using var call = new GreetService.GreetServiceClient(channel).GreetEveryone();
        return await ConverseAsync(call, "\n"u8.ToArray(),
            token => new GreetEveryoneRequest { Greeting = new() { FirstName = Encoding.UTF8.GetString(token) } },
            (response, line) => Encoding.UTF8.TryGetBytes(response.Result, line, out var written) ? written : -1);
    }

    delegate T Make<T>(ReadOnlySpan<byte> token);

    /// <summary>Writes a response to the line; -1 where the line is too short.</summary>
    delegate int Print<T>(T response, Span<byte> line);

    // Streams requests made from stdin while it prints the responses.
    static async Task<int> ConverseAsync<TRequest, TResponse>(AsyncDuplexStreamingCall<TRequest, TResponse> call, byte[] separators, Make<TRequest> make, Print<TResponse> print)
    {
        var sending = Task.Run(() => SendAsync(call.RequestStream, separators, make));
        var printing = PrintAsync(call.ResponseStream, print);
        // Input that cannot be sent ends the program, though the server may still wait for more.
        if (await Task.WhenAny(sending, printing) == sending)
            await sending;
        await printing;
        return 0;
    }

    static async Task SendAsync<T>(IClientStreamWriter<T> requests, byte[] separators, Make<T> make)
    {
        using var stdin = Console.OpenStandardInput();
        var buffer = new byte[64 * 1024];
        // The hint says that more will follow at once, so that a busy stream's requests leave together.
        WriteOptions flush = new(), gather = new(WriteFlags.BufferHint);
        var (end, ended, skipsEmpty) = (0, false, separators.Length > 1);
        T? waiting = default;
        while (!ended)
        {
            var count = await stdin.ReadAsync(buffer.AsMemory(end));
            (end, ended) = (end + count, count == 0);
            var start = 0;
            while (start < end && buffer.AsSpan(start, end - start).IndexOfAny(separators) is var length && (length >= 0 || ended))
            {
                var token = start..(length < 0 ? end : start + length);
                start = token.End.Value + 1;
                if (skipsEmpty && token.Start.Equals(token.End))
                    continue;
                if (waiting is not null)
                {
                    requests.WriteOptions = gather;
                    await requests.WriteAsync(waiting);
                }
                waiting = make(buffer.AsSpan(token));
            }
            if (waiting is not null)
            {
                requests.WriteOptions = flush;
                await requests.WriteAsync(waiting);
                waiting = default;
            }
            start = Math.Min(start, end);
            buffer.AsSpan(start, end - start).CopyTo(buffer);
            end -= start;
            if (end == buffer.Length)
                Array.Resize(ref buffer, buffer.Length * 2);
        }
        await requests.CompleteAsync();
    }

    static async Task PrintAsync<T>(IAsyncStreamReader<T> responses, Print<T> print)
    {
        using var stdout = Console.OpenStandardOutput();
        var lines = new ArrayBufferWriter<byte>(64 * 1024);
        while (true)
        {
            var next = responses.MoveNext(default);
            // Buffered under load, prompt otherwise.
            if (!next.IsCompleted || lines.FreeCapacity < 1024)
                Flush();
            if (!await next)
                break;
            int written;
            for (var size = 256; (written = print(responses.Current, lines.GetSpan(size)[..^1])) < 0;)
                size *= 2;
            lines.GetSpan(written + 1)[written] = (byte)'\n';
            lines.Advance(written + 1);
        }
        Flush();

        void Flush()
        {
            stdout.Write(lines.WrittenSpan);
            lines.ResetWrittenCount();
        }
    }
}

sealed class Greeter : GreetService.GreetServiceBase
{
    public override async Task GreetEveryone(IAsyncStreamReader<GreetEveryoneRequest> requests, IServerStreamWriter<GreetEveryoneResponse> responses, ServerCallContext context)
    {
        while (await requests.MoveNext(default))
        {
            var (first, last) = (requests.Current.Greeting?.FirstName, requests.Current.Greeting?.LastName);
            await responses.WriteAsync(new() { Result = string.IsNullOrEmpty(last) ? $"Hello {first}!" : $"Hello {first} {last}!" });
        }
    }
}

sealed class Calculator : CalculatorService.CalculatorServiceBase
{
    public override async Task FindMaximum(IAsyncStreamReader<FindMaximumRequest> requests, IServerStreamWriter<FindMaximumResponse> responses, ServerCallContext context)
    {
        long? maximum = null;
        while (await requests.MoveNext(default))
            if (maximum is null || requests.Current.Number > maximum)
            {
                maximum = requests.Current.Number;
                await responses.WriteAsync(new() { Maximum = requests.Current.Number });
            }
    }
}
