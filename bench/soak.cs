// A soak test: mixed load on one server, every answer checked, and in the end the server must hold no more descriptors
// and memory than it did after the first minute.
//
//     dotnet build -c Release && dotnet run --file bench/soak.cs -- --minutes 15
//
// Run it from the repository's folder, or with STREAMER_TOOL naming a build of the tool.

using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Diagnostics;
using System.Globalization;
using System.Net;
using System.Net.Sockets;
using System.Text;

CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
var minutes = args is ["--minutes", var text] ? double.Parse(text) : 15;
var tool = Environment.GetEnvironmentVariable("STREAMER_TOOL") is { Length: > 0 } given ? (given, Array.Empty<string>()) : ("dotnet", [Path.GetFullPath("bin/Release/net10.0/streamer.dll")]);

using var server = Start("serve", "--listen", "http://127.0.0.1:0", "--drain", "5");
var serverErrors = server.StandardError.ReadToEndAsync();
var address = server.StandardOutput.ReadLine()!["listening on ".Length..];
var port = new Uri(address).Port;
var clock = Stopwatch.StartNew();
var length = TimeSpan.FromMinutes(minutes);
var counts = new ConcurrentDictionary<string, long>();
var failures = new ConcurrentQueue<string>();

Console.WriteLine($"{"minute",6} {"descriptors",11} {"RSS MB",7} {"threads",7} {"calls",8} {"answers",10} {"failures",8}");
(string Kind, Func<Random, Task> Run)[] jobs =
[
    ("short", ShortAsync), ("short", ShortAsync), ("process", ProcessAsync), ("long", LongAsync), ("long", LongAsync), ("cancel", CancelAsync), ("cancel", CancelAsync),
    ("kill", random => SignalAsync(random, "KILL", null)), ("interrupt", random => SignalAsync(random, "INT", 130)),
    ("slow reader", SlowReaderAsync), ("slow reader", SlowReaderAsync), ("broken connection", BreakAsync),
];
var load = Task.WhenAll(jobs.Select((job, seed) => Task.Run(async () =>
{
    var random = new Random(seed);
    while (clock.Elapsed < length)
        try
        {
            await job.Run(random);
            Count(job.Kind);
        }
        catch (Exception e)
        {
            failures.Enqueue($"{clock.Elapsed:hh\\:mm\\:ss} {job.Kind}: {e.GetType().Name}: {e.Message}");
        }
})));

// What the first minute ends with is the most of a few looks, as both go up and down with the load.
var first = (Descriptors: 0, Memory: 0L);
for (var next = 1; !load.IsCompleted; await Task.WhenAny(load, Task.Delay(1000)))
{
    var now = Look();
    if (clock.Elapsed.TotalSeconds is > 45 and < 75 && (now.Descriptors > first.Descriptors || now.Memory > first.Memory))
        first = (Math.Max(first.Descriptors, now.Descriptors), Math.Max(first.Memory, now.Memory));
    if (clock.Elapsed.TotalMinutes >= next)
        Print($"{next++}", now);
}
await load;
// The connections that were killed last are still being taken down.
await Task.Delay(TimeSpan.FromSeconds(10));
var last = Look();
Print("end", last);
foreach (var (kind, count) in counts.OrderBy(pair => pair.Key))
    Console.WriteLine($"{kind,18}: {count}");

using (Process.Start("kill", ["-TERM", $"{server.Id}"])) { }
await server.WaitForExitAsync();
if (server.ExitCode != 0 || await serverErrors is not "")
    failures.Enqueue($"the server ended with {server.ExitCode} and said: {await serverErrors}");
if (minutes >= 2 && last.Descriptors > first.Descriptors)
    failures.Enqueue($"{last.Descriptors} descriptors, {first.Descriptors} after the first minute");
// A heap breathes; what leaks in a quarter of an hour of this load is more than that.
const double breath = 1.25;
if (minutes >= 2 && last.Memory > first.Memory * breath)
    failures.Enqueue($"{last.Memory / 1e6:F0} MB, {first.Memory / 1e6:F0} MB after the first minute");
foreach (var failure in failures.Take(20))
    Console.WriteLine($"FAILED {failure}");
Console.WriteLine(failures.IsEmpty ? "OK" : $"{failures.Count} failures");
return failures.IsEmpty ? 0 : 1;

// One short call of a few greetings on a connection that many calls share.
async Task ShortAsync(Random random)
{
    await using var call = new Duplex(shared, address, Duplex.Greet);
    var names = Enumerable.Range(0, random.Next(1, 20)).Select(_ => $"name{random.Next()}").ToArray();
    foreach (var name in names)
        await call.SendAsync(Duplex.Name(name));
    call.CloseRequest();
    foreach (var name in names)
        Check(Duplex.Greeting(name), await call.ReadAsync());
    await EndAsync(call);
}

// The real client as a process, with its own connection.
async Task ProcessAsync(Random random)
{
    using var client = Start("max", "--address", address);
    var numbers = Enumerable.Range(0, 5000).Select(_ => random.NextInt64()).ToArray();
    var output = client.StandardOutput.ReadToEndAsync();
    await client.StandardInput.WriteAsync(string.Join('\n', numbers));
    client.StandardInput.Close();
    await client.WaitForExitAsync();
    var maxima = numbers.Where((number, i) => i == 0 || number > numbers.Take(i).Max()).Select(number => $"{number}\n").ToArray();
    if (client.ExitCode != 0 || await output != string.Concat(maxima))
        throw new InvalidDataException($"exit code {client.ExitCode}, {await client.StandardError.ReadToEndAsync()} output {await output}");
    Count("answers", maxima.Length);
}

// A stream that trickles for half a minute on a connection of its own.
async Task LongAsync(Random random)
{
    using var connection = Duplex.NewConnection();
    await using var call = new Duplex(connection, address, Duplex.Max);
    var end = Math.Min(clock.Elapsed.TotalSeconds + 30, length.TotalSeconds);
    for (long number = 1; clock.Elapsed.TotalSeconds < end; number += random.Next(1, 1000))
    {
        await call.SendAsync(Duplex.Number(number));
        Check(Duplex.Number(number), await call.ReadAsync());
        await Task.Delay(random.Next(20));
    }
    call.CloseRequest();
    await EndAsync(call);
}

// A call that is reset in its middle, with answers under way.
async Task CancelAsync(Random random)
{
    await using var call = new Duplex(shared, address, Duplex.Max);
    var count = random.Next(1, 200);
    for (var i = 1; i <= count; i++)
        await call.SendAsync(Duplex.Number(i));
    for (var i = 1; i <= random.Next(count); i++)
        Check(Duplex.Number(i), await call.ReadAsync());
}

// A client process that is ended while it streams.
async Task SignalAsync(Random random, string signal, int? exitCode)
{
    using var client = Start("max", "--address", address);
    var feeding = FeedAsync();
    async Task FeedAsync()
    {
        try
        {
            for (var i = 1; ; i++)
                await client.StandardInput.WriteAsync($"{i}\n");
        }
        catch (IOException)
        {
        }
    }
    for (var i = 1; i <= random.Next(1, 20_000); i++)
        if (await client.StandardOutput.ReadLineAsync() is var line && line != $"{i}")
            throw new InvalidDataException($"{line} instead of {i}");
        else
            Count("answers");
    using (Process.Start("kill", [$"-{signal}", $"{client.Id}"])) { }
    await client.StandardOutput.ReadToEndAsync();
    await client.WaitForExitAsync();
    await feeding;
    if (exitCode is not null && client.ExitCode != exitCode)
        throw new InvalidDataException($"exit code {client.ExitCode}: {await client.StandardError.ReadToEndAsync()}");
}

// A client that sends as fast as it may and reads slowly, so that the server must wait for it.
async Task SlowReaderAsync(Random random)
{
    using var connection = Duplex.NewConnection();
    await using var call = new Duplex(connection, address, Duplex.Max);
    const int count = 50_000;
    var sending = Task.Run(async () =>
    {
        for (var i = 1; i <= count; i++)
            await call.SendAsync(Duplex.Number(i));
        call.CloseRequest();
    });
    for (var i = 1; i <= count; i++)
    {
        Check(Duplex.Number(i), await call.ReadAsync());
        if (i % 500 == 0)
            await Task.Delay(random.Next(100));
    }
    await sending;
    await EndAsync(call);
}

// A connection that is reset by TCP in the middle of a frame.
async Task BreakAsync(Random random)
{
    using var socket = new Socket(SocketType.Stream, ProtocolType.Tcp) { LingerState = new(true, 0) };
    await socket.ConnectAsync(IPAddress.Loopback, port);
    byte[] bytes = [.. "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"u8, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 90, 1, 4, 0, 0, 0, 1, 0x83, 0x86];
    await socket.SendAsync(bytes.AsMemory(0, random.Next(bytes.Length + 1)));
    await Task.Delay(random.Next(200));
}

async Task EndAsync(Duplex call)
{
    if (await call.ReadAsync() is { } more)
        throw new InvalidDataException($"one answer too many: {Convert.ToHexString(more)}");
    if (call.Status is not "0")
        throw new InvalidDataException($"grpc-status {call.Status}");
}

void Check(byte[] expected, byte[]? answer)
{
    if (answer?.AsSpan().SequenceEqual(expected) != true)
        throw new InvalidDataException($"{(answer is null ? "the end" : Convert.ToHexString(answer))} instead of {Convert.ToHexString(expected)}");
    Count("answers");
}

void Count(string what, long by = 1) => counts.AddOrUpdate(what, by, (_, count) => count + by);

(int Descriptors, long Memory, int Threads) Look()
{
    server.Refresh();
    return (Directory.GetFileSystemEntries($"/proc/{server.Id}/fd").Length, server.WorkingSet64, server.Threads.Count);
}

void Print(string when, (int Descriptors, long Memory, int Threads) now) => Console.WriteLine(
    $"{when,6} {now.Descriptors,11} {now.Memory / 1e6,7:F1} {now.Threads,7} {counts.Where(pair => pair.Key != "answers").Sum(pair => pair.Value),8} {counts.GetValueOrDefault("answers"),10} {failures.Count,8}");

Process Start(params string[] arguments) => Process.Start(new ProcessStartInfo(tool.Item1, [.. tool.Item2, .. arguments])
{
    RedirectStandardInput = true,
    RedirectStandardOutput = true,
    RedirectStandardError = true,
})!;

partial class Program
{
    static readonly HttpMessageInvoker shared = Duplex.NewConnection();
}

/// <summary>A bidirectional call, its messages as bytes: not a line of the tool's own code takes part on this side.</summary>
sealed class Duplex : HttpContent, IAsyncDisposable
{
    public const string Greet = "/streaming.GreetService/GreetEveryone", Max = "/streaming.CalculatorService/FindMaximum";

    readonly TaskCompletionSource<Stream> request = new(TaskCreationOptions.RunContinuationsAsynchronously);
    readonly TaskCompletionSource closed = new(TaskCreationOptions.RunContinuationsAsynchronously);
    readonly CancellationTokenSource stop = new();
    readonly Task<HttpResponseMessage> response;
    Stream? body;

    public static HttpMessageInvoker NewConnection() => new(new SocketsHttpHandler());

    public Duplex(HttpMessageInvoker connection, string address, string method)
    {
        Headers.ContentType = new("application/grpc");
        // Its headers come with the first answer.
        response = connection.SendAsync(new(HttpMethod.Post, address + method) { Version = HttpVersion.Version20, VersionPolicy = HttpVersionPolicy.RequestVersionExact, Content = this }, stop.Token);
    }

    public string? Status => (response.Result.TrailingHeaders.TryGetValues("grpc-status", out var values) ? values : null)?.Single();

    public static byte[] Name(string name) => [10, (byte)(name.Length + 2), 10, (byte)name.Length, .. Encoding.ASCII.GetBytes(name)];
    public static byte[] Greeting(string name) => [10, (byte)(name.Length + 7), .. Encoding.ASCII.GetBytes($"Hello {name}!")];

    public static byte[] Number(long number)
    {
        var bytes = new List<byte> { 8 };
        for (; number > 127; number >>= 7)
            bytes.Add((byte)(number | 128));
        return [.. bytes, (byte)number];
    }

    public async Task SendAsync(byte[] message)
    {
        var stream = await request.Task;
        await stream.WriteAsync((byte[])[0, 0, 0, (byte)(message.Length >> 8), (byte)message.Length, .. message]);
        await stream.FlushAsync();
    }

    public void CloseRequest() => closed.TrySetResult();

    /// <summary>The next answer; null at the end.</summary>
    public async Task<byte[]?> ReadAsync()
    {
        body ??= await (await response).Content.ReadAsStreamAsync();
        var prefix = new byte[5];
        if (await body.ReadAtLeastAsync(prefix, 5, throwOnEndOfStream: false) < 5)
            return null;
        var message = new byte[BinaryPrimitives.ReadInt32BigEndian(prefix.AsSpan(1))];
        await body.ReadExactlyAsync(message);
        return message;
    }

    public async ValueTask DisposeAsync()
    {
        await stop.CancelAsync();
        closed.TrySetCanceled();
        try
        {
            (await response).Dispose();
        }
        catch (OperationCanceledException)
        {
        }
    }

    protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context)
    {
        await stream.FlushAsync();
        request.TrySetResult(stream);
        await closed.Task;
    }

    protected override bool TryComputeLength(out long length)
    {
        length = -1;
        return false;
    }
}
