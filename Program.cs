// Streamer: gRPC bidirectional streaming from the command line.
//
// Read it from top to bottom: what the tool does (the commands), the two RPCs, text to messages and back, the adapter that
// makes two-way methods fast, the server, the client.

using System.Buffers;
using System.Buffers.Binary;
using System.Buffers.Text;
using System.Collections.Concurrent;
using System.CommandLine;
using System.CommandLine.Help;
using System.CommandLine.Invocation;
using System.CommandLine.Parsing;
using System.Globalization;
using System.IO.Pipelines;
using System.Net;
using System.Net.Http.Headers;
using System.Net.Security;
using System.Net.Sockets;
using System.Runtime.InteropServices;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Unicode;
using Google.Protobuf;
using Grpc.AspNetCore.Server;
using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Health.V1;
using Grpc.HealthCheck;
using Grpc.Net.Client;
using Grpc.Reflection;
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
using Streaming;
using ServingStatus = Grpc.Health.V1.HealthCheckResponse.Types.ServingStatus;

namespace Streamer;

// ---------------------------------------------------------------------------------------------
// The commands
// ---------------------------------------------------------------------------------------------

static class Program
{
    sealed class Help : SynchronousCommandLineAction
    {
        public override int Invoke(ParseResult parsed)
        {
            var result = new HelpAction { MaxWidth = 80 }.Invoke(parsed);
            parsed.InvocationConfiguration.Output.WriteLine($"""
                Example: {Example(parsed.CommandResult.Command)}
                Exit codes: 0 OK; 1 bad input or output; 2 bad command line; 3 a bug; 64 + N a
                call's gRPC status N; 128 + N when signal N ends what would have gone on.
                """);
            return result;
        }
    }

    static string Example(Command command) => command.Name switch
    {
        "serve" => "streamer serve --listen 'http://*:50051' --listen unix:/tmp/streamer",
        "ping" => "streamer ping --every 10s --address https://streamer.example",
        "greet" => "printf 'Ada\\nGrace\\n' | streamer greet",
        _ => "echo 1 5 3 6 2 20 | streamer max",
    };

    // The RPC of max and of ping, under its two names.
    static readonly string[] findMaximum = ["streaming.CalculatorService/FindMaximum", "calculator.CalculatorService/FindMaximum"];

    static async Task<int> Main(string[] args)
    {
        AppDomain.CurrentDomain.ProcessExit += (_, _) => Stdio.Settle();
        AppDomain.CurrentDomain.UnhandledException += (_, unforeseen) =>
        {
            var e = ((Exception)unforeseen.ExceptionObject).GetBaseException();
            Tell($"this is a fault of streamer's own, please report it: {e.GetType()}: {e.Message}");
            Environment.Exit(3);
        };
        var root = new RootCommand("gRPC bidirectional streaming from the command line.")
        {
            ServeCommand(),
            ClientCommand("max", "Stream integers from stdin, print each new maximum that the server answers.", findMaximum,
                (client, _) => client.RunAsync<FindMaximumRequest, FindMaximumResponse>(new NumberInput(), Lines.Print)),
            ClientCommand("greet", "Stream names from stdin, one a line, print each greeting that comes back.",
                ["streaming.GreetService/GreetEveryone", "greet.GreetService/GreetEveryone"],
                (client, _) => client.RunAsync<GreetEveryoneRequest, GreetEveryoneResponse>(new NameInput(), Lines.Print)),
            PingCommand(),
        };
        root.Options.OfType<HelpOption>().Single().Action = new Help();
        // What shells ask for to complete a line, by way of dotnet-suggest.
        var isSuggesting = args is [var first, ..] && first.StartsWith("[suggest", StringComparison.Ordinal);
        // A name on the command line may begin with @: it is not a file of arguments.
        var parsed = root.Parse(args is [] ? ["--help"] : args, new() { ResponseFileTokenReplacer = null });
        var output = new StringWriter();
        try
        {
            if (parsed.Action is not Help && !isSuggesting && Fault(parsed) is { } fault)
                throw new Problem(2, fault);
            // Signals are ours: System.CommandLine would end the process two seconds after one.
            var exitCode = await parsed.InvokeAsync(new()
            {
                Output = output,
                ProcessTerminationTimeout = null,
                EnableDefaultExceptionHandler = false,
            });
            // Only help, the version and suggestions are in here; what a signal has ended may be writing to stdout still.
            if (output.ToString() is { Length: > 0 } text)
            {
                Stdio.Output.Write(Encoding.UTF8.GetBytes(text));
                Stdio.Flush();
            }
            return exitCode > 128 ? Signals.EndBy(exitCode) : exitCode;
        }
        catch (Problem e)
        {
            if (e.ExitCode != 0)
                Tell(e.Message);
            return e.ExitCode;
        }
        catch (InvalidOperationException) when (isSuggesting)
        {
            // The library knows nothing to suggest behind an = sign, and says it so.
            return 0;
        }
    }

    // What is wrong with a command line, where to put it right, and where there is more to read. An argument may be a password
    // that a space or a missing option has brought to the wrong place: only the names of options and commands are repeated.
    static string? Fault(ParseResult parsed)
    {
        var (command, root) = (parsed.CommandResult.Command, parsed.RootCommandResult.Command);
        var directive = parsed.Tokens.FirstOrDefault(token => token.Type == TokenType.Directive);
        var stray = directive?.Value ?? parsed.UnmatchedTokens.FirstOrDefault();
        var name = stray?.Split('=', ':')[0];
        // Without a command the first error says just that, and the second, if any, why.
        var fault = parsed.Errors.Skip(command == root ? 1 : 0).Concat(parsed.Errors).FirstOrDefault()?.Message;
        if (stray is null && fault is null)
            return null;
        var commands = command == root ? root.Subcommands : [command];
        if (commands.FirstOrDefault(one => one.Options.Any(option => option.Name == name || option.Aliases.Contains(name!))) is { } owner)
            return $"{name} goes behind the command, as in: streamer {owner.Name} {name} ...";
        if (command.Name is "max" or "greet" && stray is [not ('-' or '['), ..] or ['-', >= '0' and <= '9', ..])
            return $"{command.Name} takes its input from stdin, not from the command line, as in: {Example(command)}";
        if (stray is not null)
            fault = command != root && stray is [not ('-' or '['), ..]
                ? $"{command.Name} takes only options." : $"Unrecognized command or argument '{name}'.";
        return $"{fault}{Suggestion()} (see {(command == root ? "streamer" : $"streamer {command.Name}")} --help)";

        string Suggestion()
        {
            var told = new StringWriter();
            if (name is { Length: > 2 } && command.Parse([name]) is { Action: ParseErrorAction action } alone)
            {
                action.ShowHelp = false;
                // Or the library sets the terminal up to colour what nobody will see.
                Environment.SetEnvironmentVariable("TERM", null);
                alone.Invoke(new() { Output = told, Error = TextWriter.Null });
            }
            return told.ToString().Split('\n') is [_, { Length: > 2 } close, ..] ? $" Did you mean {close.Trim()}?" : "";
        }
    }

    static Command ServeCommand()
    {
        var listen = NewOption<string[]>("--listen", "URL", "http://HOST:PORT, https://HOST:PORT or unix:/PATH, where HOST is localhost, "
            + "an IP address or * and port 0 a free one; repeatable [default: http://localhost:50051]");
        var cert = NewOption<string>("--cert", "FILE",
            "PEM file with the certificate and its chain; a new one there is used for new connections");
        var key = NewOption<string>("--key", "FILE", "PEM file with the certificate's private key");
        var clientCa = NewOption<string>("--client-ca", "FILE", "PEM file with roots that must vouch for clients");
        var drain = NewOption<string>("--drain", "TIME",
            "how long running streams may go on after a signal; a second one ends at once [default: 30]");
        var verbose = NewOption<bool>("--verbose", null, "tell of each stream on stderr", "-v");
        listen.CompletionSources.Add(Endpoint.Default);
        var command = new Command("serve", "Serve both RPCs, health checking and reflection over gRPC.")
        {
            listen, cert, key, clientCa, drain, verbose,
        };
        command.SetAction(async (parsed, _) =>
        {
            var patience = Duration("--drain", 0, parsed.GetValue(drain) ?? "30");
            string[] urls = parsed.GetValue(listen) is { Length: > 0 } given ? given : [Endpoint.Default];
            var endpoints = Array.ConvertAll(urls, url => Endpoint.Parse("--listen", url));
            var tls = Tls.ForServer(parsed.GetValue(cert), parsed.GetValue(key), parsed.GetValue(clientCa));
            var secure = Array.Find(endpoints, endpoint => endpoint.Url.Scheme == "https");
            if (secure is null && tls is not null)
                throw new Problem(2, "--cert and --key are for TLS: https://HOST:PORT is to be among what is listened at");
            if (secure is not null && tls is null)
                throw new Problem(2, $"{secure} needs --cert and --key");
            return await Server.RunAsync(endpoints, tls, patience, parsed.GetValue(verbose));
        });
        return command;
    }

    static Command PingCommand()
    {
        var every = NewOption<string>("--every", "TIME", "from one number to the next [default: 1]");
        var count = NewOption<string>("--count", "N", "how many numbers to send [default: no end]");
        return ClientCommand("ping", "Keep a stream open and time its answers.", findMaximum, (client, parsed) =>
        {
            var interval = Duration("--every", 0.001, parsed.GetValue(every) ?? "1");
            var numbers = long.MaxValue;
            if (parsed.GetValue(count) is { } text && (!long.TryParse(text, NumberStyles.None, null, out numbers) || numbers == 0))
                throw new Problem(2, "--count takes a number from 1");
            return new Ping(client, interval, numbers).RunAsync();
        }, every, count);
    }

    static Command ClientCommand(
        string name, string description, string[] rpcs, Func<Client, ParseResult, Task<int>> run, params Option[] ofPing)
    {
        var isPing = ofPing.Length > 0;
        var address = NewOption<string>("--address", "URL", isPing ? "the server [default: $STREAMER_ADDRESS or localhost:50051]"
            : "HOST:PORT, https://HOST:PORT or unix:/PATH [default: $STREAMER_ADDRESS, else localhost:50051, else its own]");
        var method = NewOption<string>("--method", "NAME", $"[default: {rpcs[0]}]");
        var deadline = NewOption<string>("--deadline", "TIME", "how long the call may take: 5, 5s, 500ms, 1m");
        var wait = NewOption<bool>("--wait-for-ready", null, "retry the connection until the deadline");
        var header = NewOption<string[]>("-H", "name: value", "metadata; base64 for names in -bin; repeatable");
        var caCert = NewOption<string>("--cacert", "FILE", "PEM file with roots to trust, not the system's");
        var cert = NewOption<string>("--cert", "FILE", "PEM file with a client certificate and chain");
        var key = NewOption<string>("--key", "FILE", "PEM file with its private key");
        var insecure = NewOption<bool>("--insecure", null, "do not verify the server's certificate");
        var verbose = NewOption<bool>("--verbose", null, "show the stream on stderr: what leaves, what comes, when", "-v");
        var stats = NewOption<bool>("--stats", null, "count and time the messages on stderr");
        address.CompletionSources.Add(Endpoint.Default);
        method.CompletionSources.Add(rpcs);
        var command = new Command(name, description) { address, method, deadline, wait, header, caCert, cert, key, insecure, verbose };
        foreach (var option in isPing ? ofPing : [stats])
            command.Add(option);
        command.SetAction((parsed, _) =>
        {
            var variable = Environment.GetEnvironmentVariable("STREAMER_ADDRESS");
            var asked = parsed.GetValue(address) ?? (variable is "" ? null : variable);
            var metadata = ParseMetadata(parsed.GetValue(header) ?? []);
            var settings = new CallSettings(
                Endpoint.Parse(parsed.GetValue(address) is null ? "STREAMER_ADDRESS" : "--address", asked ?? Endpoint.Default),
                ParseMethod(parsed.GetValue(method) ?? rpcs[0]),
                metadata,
                Deadline: parsed.GetValue(deadline) is { } text ? Duration("--deadline", 0.001, text) : null,
                WaitForReady: parsed.GetValue(wait),
                ReadsInput: !isPing,
                MayServeItself: asked is null && !isPing,
                Trust: Tls.Trust(parsed.GetValue(caCert)),
                Certificate: Tls.OwnCertificate(parsed.GetValue(cert), parsed.GetValue(key)),
                Insecure: parsed.GetValue(insecure));
            return run(new Client(settings, new Trace(metadata, parsed.GetValue(verbose), parsed.GetValue(stats))), parsed);
        });
        return command;
    }

    static Option<T> NewOption<T>(string name, string? value, string description, params string[] aliases) =>
        new(name, aliases) { HelpName = value, Description = description };

    // 5, 5s, 500ms, 1m or 1h; at most 46 days, which every timer can tell.
    static TimeSpan Duration(string option, double least, string text)
    {
        var number = text.TrimEnd('h', 'm', 's');
        var unit = text[number.Length..] switch { "" or "s" => 1, "ms" => 0.001, "m" => 60, "h" => 3600, _ => double.NaN };
        if (double.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var value)
            && value * unit >= least && value * unit <= 4_000_000)
            return TimeSpan.FromSeconds(value * unit);
        throw new Problem(2, $"{option} takes seconds from {least} to 4000000, or 500ms, 5s, 1m, 1h");
    }

    static (string Service, string Name) ParseMethod(string text)
    {
        var isName = text.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '_' or '/');
        return isName && text.TrimStart('/').Split('/') is [{ Length: > 0 } service, { Length: > 0 } method]
            ? (service, method) : throw new Problem(2, "--method takes SERVICE/METHOD");
    }

    /// <summary>-H's "name: value", checked as PROTOCOL-HTTP2 defines Custom-Metadata.</summary>
    /// <exception cref="Problem">A name is invalid or gRPC's own, or a value is not ASCII or not base64.</exception>
    static Metadata ParseMetadata(string[] headers)
    {
        var metadata = new Metadata();
        foreach (var header in headers)
        {
            var parts = header.Split(':', 2, StringSplitOptions.TrimEntries);
            var (name, value) = (parts[0].ToLowerInvariant(), parts[^1]);
            if (parts.Length == 1 || name == "" || !name.All(c => char.IsAsciiLetterOrDigit(c) || c is '-' or '_' or '.'))
                throw new Problem(2, "-H takes 'name: value', and a name of letters, digits, '-', '_' and '.'");
            // What tells how a call or a connection works (RFC 9113, section 8.2.2), and what gRPC sets.
            if (name.StartsWith("grpc-", StringComparison.Ordinal)
                || name is "te" or "content-type" or "user-agent" or "host" or "connection" or "proxy-connection" or "keep-alive"
                    or "transfer-encoding" or "content-length" or "upgrade" or "expect" or "trailer")
                throw new Problem(2, $"-H cannot set {name}: it is gRPC's or HTTP's own");
            if (!value.All(c => c is >= ' ' and <= '~'))
                throw new Problem(2, $"-H {name}: a value is printable ASCII; other bytes go in base64 under a name that ends in -bin");
            // Padding may be missing.
            var base64 = value.TrimEnd('=').PadRight((value.TrimEnd('=').Length + 3) / 4 * 4, '=');
            if (!name.EndsWith("-bin", StringComparison.Ordinal))
                metadata.Add(name, value);
            else if (Base64.IsValid(base64))
                metadata.Add(name, Convert.FromBase64String(base64));
            else
                throw new Problem(2, $"-H {name}: the value is not base64");
        }
        return metadata;
    }

    /// <summary>Tells the user, in one line on stderr.</summary>
    public static void Tell(string message) => Stdio.Tell($"streamer: {OneLine(message)}");

    /// <summary>A text without what would break a line or speak to a terminal.</summary>
    public static string OneLine(string text) => string.Concat(text.ReplaceLineEndings(" ").Select(c => char.IsControl(c) ? '\uFFFD' : c));
}

/// <summary>What ends the tool: one line on stderr, and an exit code.</summary>
sealed class Problem(int exitCode, string message) : Exception(message)
{
    public int ExitCode => exitCode;
}

/// <summary>A place to listen at or to call: a URL, or a Unix socket's path.</summary>
sealed record Endpoint(Uri Url, string? UnixPath)
{
    public const string Default = "http://localhost:50051";

    // Linux has room for 108 bytes in a socket's address, macOS for 104.
    static readonly int MaxUnixPath = OperatingSystem.IsMacOS() ? 103 : 107;

    /// <summary>What to dial: where a server listens at any address, that is this machine.</summary>
    public Uri Dialled => Url.IdnHost is "0.0.0.0" or "::" ? new UriBuilder(Url) { Host = "localhost" }.Uri : Url;

    /// <summary>Takes http://HOST:PORT, https://HOST:PORT, HOST:PORT, HOST, PORT, :PORT and unix:/PATH.</summary>
    /// <param name="source">The option or variable that holds the text, which is not repeated: it may hold a password.</param>
    /// <exception cref="Problem">The text is none of these.</exception>
    public static Endpoint Parse(string source, string text)
    {
        if (text.StartsWith("unix:", StringComparison.Ordinal))
            return UnixSocket(source, text[5..]);
        var hasScheme = text.Contains("://", StringComparison.Ordinal);
        var url = hasScheme ? text : $"http://{text}";
        if (!text.StartsWith('[') && IPAddress.TryParse(text, out var ip) && ip.AddressFamily == AddressFamily.InterNetworkV6)
            url = $"http://[{text}]";
        // Uri takes a plain number for a host's address.
        else if (text.TrimStart(':') is not "" and var port && port.All(char.IsAsciiDigit))
            url = $"http://localhost:{port}";
        // Nor does it know a host "*": any address, also of IPv4, is [::] where there is IPv6.
        url = url.Replace("//*", Socket.OSSupportsIPv6 ? "//[::]" : "//0.0.0.0");
        if (!Uri.TryCreate(url, UriKind.Absolute, out var uri)
            || uri is not { Scheme: "http" or "https", PathAndQuery: "/", UserInfo: "", Fragment: "" }
            || uri.HostNameType == UriHostNameType.IPv4 && !url.Contains(uri.Host))
            throw new Problem(2, $"{source} takes HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH");
        // For http Uri has port 80 whether one was given or not; for a scheme that it does not know, -1 where none was.
        var hasPort = hasScheme || new Uri($"grpc{url[4..]}").Port >= 0;
        return new(hasPort ? uri : new UriBuilder(uri) { Port = new Uri(Default).Port }.Uri, null);
    }

    static Endpoint UnixSocket(string source, string path)
    {
        if (path.TrimStart('/') is "" || path.EndsWith('/'))
            throw new Problem(2, $"{source} takes unix:/PATH, with the name of a socket");
        var full = Path.GetFullPath(path);
        if (Encoding.UTF8.GetByteCount(full) > MaxUnixPath)
            throw new Problem(2, $"{source} takes unix:/PATH, where a path has at most {MaxUnixPath} bytes");
        return new(new("http://localhost"), full);
    }

    /// <summary>What is wrong with a Unix socket's path, whether it is to be listened at or called; null where nothing is.</summary>
    public string? PathFault => UnixPath is null ? null
        : Path.GetDirectoryName(UnixPath) is var folder && !Directory.Exists(folder) ? $"there is no folder {folder}"
        : Path.Exists(UnixPath) && !IsSocket(UnixPath) ? "what is there is not a socket" : null;

    /// <summary>Whether a file is a socket.</summary>
    public static bool IsSocket(string path)
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

    public override string ToString() => UnixPath is null ? $"{Url.Scheme}://{Url.Host}:{Url.Port}" : $"unix:{UnixPath}";
}

// ---------------------------------------------------------------------------------------------
// The two RPCs
// ---------------------------------------------------------------------------------------------

/// <summary>Greets people.</summary>
sealed class Greeter : GreetService.GreetServiceBase
{
    /// <summary>Answers each request with one greeting.</summary>
    public override async Task GreetEveryone(
        IAsyncStreamReader<GreetEveryoneRequest> requests, IServerStreamWriter<GreetEveryoneResponse> responses, ServerCallContext context)
    {
        while (await requests.MoveNext())
        {
            var whom = requests.Current.Greeting ?? new();
            var space = whom.LastName == "" ? "" : " ";
            await responses.WriteAsync(new() { Result = $"Hello {whom.FirstName}{space}{whom.LastName}!" });
        }
    }
}

/// <summary>Calculates.</summary>
sealed class Calculator : CalculatorService.CalculatorServiceBase
{
    /// <summary>Answers a request only when its number is larger than all before it on the stream.</summary>
    public override async Task FindMaximum(
        IAsyncStreamReader<FindMaximumRequest> requests, IServerStreamWriter<FindMaximumResponse> responses, ServerCallContext context)
    {
        long? maximum = null;
        while (await requests.MoveNext())
        {
            var number = requests.Current.Number;
            if (maximum is null || number > maximum)
            {
                maximum = number;
                await responses.WriteAsync(new() { Maximum = number });
            }
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Text to messages, messages to text
// ---------------------------------------------------------------------------------------------

/// <summary>Where the requests of a call come from.</summary>
abstract class Input<T> : IAsyncStreamReader<T> where T : class
{
    public T Current { get; protected set; } = null!;

    /// <summary>Whether one more request is at hand, so that what is written before it need not leave at once.</summary>
    public virtual bool HasMore => false;

    public abstract Task<bool> MoveNext(CancellationToken cancel);
}

/// <summary>Requests cut out of the text that comes on stdin.</summary>
abstract class TextInput<T> : Input<T> where T : class
{
    byte[] buffer = new byte[64 * 1024];
    int start, end;
    T? next;

    public override bool HasMore => next is not null;

    /// <summary>Whether stdin has ended: what <see cref="Parse"/> is given then is all there is.</summary>
    protected bool Ended { get; private set; }

    /// <summary>The number of the line that comes next.</summary>
    protected long Line { get; set; } = 1;

    /// <summary>What is wrong with the text that comes next, and how many bytes of it to skip where it is typed by hand.</summary>
    protected (string Message, int Length)? Fault { get; set; }

    /// <summary>Takes one request off the front of the text; null where more text is needed or there is a fault.</summary>
    protected abstract T? Parse(ref ReadOnlySpan<byte> text);

    /// <summary>Takes the next request, and waits for one; false at the end.</summary>
    /// <exception cref="Problem">The text is not what the command takes. What came before it has been taken already.</exception>
    public override Task<bool> MoveNext(CancellationToken cancel)
    {
        if (next is null)
            return ReadAsync();
        Current = next;
        next = Take();
        return Task.FromResult(true);
    }

    async Task<bool> ReadAsync()
    {
        while (true)
        {
            if (start == 0 && Line == 1 && IsUtf16(buffer.AsSpan(0, end)))
                throw new Problem(1, "the input is in UTF-16, not UTF-8");
            if (Take() is { } request)
            {
                (Current, next) = (request, Take());
                return true;
            }
            if (Fault is var (message, length))
            {
                if (!Stdio.IsInteractive)
                    throw new Problem(1, $"line {Line}: {message}");
                Program.Tell($"line {Line}: {message}");
                (start, Fault) = (start + length, null);
                continue;
            }
            if (Ended)
                return false;
            var (old, left) = (buffer, end - start);
            if (left * 2 > old.Length)
                buffer = new byte[old.Length * 2];
            old.AsSpan(start, left).CopyTo(buffer);
            var count = await Stdio.ReadAsync(buffer.AsMemory(left));
            (start, end, Ended) = (0, left + count, count == 0);
        }
    }

    T? Take()
    {
        if (Fault is not null)
            return null;
        ReadOnlySpan<byte> text = buffer.AsSpan(start, end - start);
        var request = Parse(ref text);
        start = end - text.Length;
        return request;
    }

    // By its byte order mark, or by the halves that are 0 in what is ASCII.
    static bool IsUtf16(ReadOnlySpan<byte> text) =>
        text is [0xFF, 0xFE, ..] or [0xFE, 0xFF, ..] or [not 0, 0, not 0, 0, ..] or [0, not 0, 0, not 0, ..];

    /// <summary>The start of a token, fit to be shown in a message.</summary>
    protected static string Excerpt(ReadOnlySpan<byte> token)
    {
        var text = Program.OneLine(Encoding.UTF8.GetString(token[..Math.Min(token.Length, 160)]));
        return text.Length > 40 ? text[..40] + "…" : text;
    }
}

/// <summary>Integers separated by white space or commas, as requests.</summary>
sealed class NumberInput : TextInput<FindMaximumRequest>
{
    // Leading zeros are fine, but not without end: a token must fit in memory to be parsed.
    const int MaxLength = 4096;

    protected override FindMaximumRequest? Parse(ref ReadOnlySpan<byte> text)
    {
        while (Separator(text) is > 0 and var size)
        {
            if (text[0] == '\n')
                Line++;
            text = text[size..];
        }
        var isNumber = Utf8Parser.TryParse(text, out long number, out var length);
        var end = length;
        while (end < text.Length && Separator(text[end..]) == 0)
            end++;
        // What ends where the text does may go on with the next that comes.
        if (end == 0 || end == text.Length && !Ended && end <= MaxLength)
            return null;
        if (!isNumber || length < end || end > MaxLength)
        {
            Fault = ($"\"{Excerpt(text[..end])}\" is not an integer from {long.MinValue} to {long.MaxValue}", end);
            return null;
        }
        text = text[end..];
        return new() { Number = number };
    }

    // The length of the separator that a text begins with, or 0. A byte order mark is one: some editors put it before text, and
    // `cat` leaves it in its middle.
    static int Separator(ReadOnlySpan<byte> text) =>
        text is [(byte)' ' or (byte)',' or (>= (byte)'\t' and <= (byte)'\r'), ..] ? 1 : text is [0xEF, 0xBB, 0xBF, ..] ? 3 : 0;
}

/// <summary>Names, one a line, as requests: the first word is the first name, the rest the last name.</summary>
sealed class NameInput : TextInput<GreetEveryoneRequest>
{
    // With the message around it, a longer one would be more than servers take: gRPC's usual limit is 4 MiB.
    const int MaxLength = 4 * 1024 * 1024 - 32;

    protected override GreetEveryoneRequest? Parse(ref ReadOnlySpan<byte> text)
    {
        while (!text.IsEmpty)
        {
            var length = text.IndexOf((byte)'\n');
            var line = length < 0 ? text : text[..length];
            if (line.Length > MaxLength)
                Fault = ($"the name is longer than {MaxLength} bytes", line.Length);
            else if (length < 0 && !Ended)
                return null;
            else if (!Utf8.IsValid(line))
                Fault = ($"\"{Excerpt(line)}\" is not valid UTF-8", line.Length);
            if (Fault is not null)
                return null;
            text = text[(length < 0 ? text.Length : length + 1)..];
            Line++;
            // A byte order mark counts as white space.
            var name = Encoding.UTF8.GetString(line).Replace('\uFEFF', ' ').Trim();
            var end = 0;
            while (end < name.Length && !char.IsWhiteSpace(name[end]))
                end++;
            if (end > 0)
                return new() { Greeting = new() { FirstName = name[..end], LastName = name[end..].TrimStart() } };
        }
        return null;
    }
}

/// <summary>Messages as text.</summary>
static class Lines
{
    /// <summary>What -v shows of a message.</summary>
    public static string Of(IMessage message) => message switch
    {
        FindMaximumRequest request => $"{request.Number}",
        FindMaximumResponse response => $"{response.Maximum}",
        GreetEveryoneRequest { Greeting: { } whom } => $"{whom.FirstName} {whom.LastName}".TrimEnd(' '),
        GreetEveryoneResponse response => response.Result,
        _ => "",
    };

    public static void Print(FindMaximumResponse answer)
    {
        var line = Stdio.Output.GetSpan(24);
        Utf8Formatter.TryFormat(answer.Maximum, line, out var length);
        line[length] = (byte)'\n';
        Stdio.Output.Advance(length + 1);
    }

    public static void Print(GreetEveryoneResponse answer)
    {
        // A terminal would obey what a server sends.
        Encoding.UTF8.GetBytes(Stdio.IsShown ? Program.OneLine(answer.Result) : answer.Result, Stdio.Output);
        Stdio.Output.Write("\n"u8);
    }
}

/// <summary>
/// The standard descriptors, read and written as they are. .NET's own streams hide that the reader of a pipe is gone,
/// keep a position of their own in a file that others write to as well, edit what is typed, and set the terminal up.
/// </summary>
static class Stdio
{
    // In the place of a descriptor that was closed from the start .NET may have opened something of its own, which unlike
    // what is inherited is close-on-exec; -1 is nothing to all calls.
    static readonly int input = Inherited(0), output = Inherited(1), errors = Inherited(2);

    /// <summary>Whether there is a stdout.</summary>
    public static bool HasOutput => output >= 0;

    /// <summary>Whether stderr is a terminal.</summary>
    public static bool IsToldShown { get; } = !Console.IsErrorRedirected;

    /// <summary>Whether somebody types the input, and sees what is told.</summary>
    public static bool IsInteractive { get; } = !Console.IsInputRedirected && IsToldShown;

    /// <summary>Whether stdout is a terminal.</summary>
    public static bool IsShown { get; } = !Console.IsOutputRedirected;

    /// <summary>Whether the terminal that stderr is belongs to this process's job now, not to one that runs before it.</summary>
    public static bool IsInForeground => OperatingSystem.IsWindows() || tcgetpgrp(errors) == getpgrp();

    /// <summary>What gathers for stdout until it is flushed.</summary>
    public static ArrayBufferWriter<byte> Output { get; } = new(128 * 1024);

    /// <summary>Reads some bytes of stdin as soon as there are any; 0 at the end.</summary>
    /// <exception cref="Problem">It cannot be read.</exception>
    public static ValueTask<int> ReadAsync(Memory<byte> into)
    {
        return !OperatingSystem.IsWindows() && poll([input, PollIn], 1, 0) == 1 ? new(Read()) : new(Task.Run(Read));

        int Read()
        {
            if (OperatingSystem.IsWindows())
                return Console.OpenStandardInput().Read(into.Span);
            nint count;
            while ((count = read(input, ref MemoryMarshal.GetReference(into.Span), into.Length)) < 0)
                if (!CanRetry(input, PollIn, out var error))
                    throw new Problem(1, $"stdin: {error.Message}");
            return (int)count;
        }
    }

    /// <summary>Writes what has gathered.</summary>
    /// <exception cref="Problem">It cannot be written, which is no problem where the reader of a pipe is gone.</exception>
    public static void Flush()
    {
        Settle();
        var error = Write(output, Output.WrittenSpan);
        Output.ResetWrittenCount();
        // EPIPE, ERROR_BROKEN_PIPE and ERROR_NO_DATA.
        if (error is not null)
            throw new Problem((uint)error.HResult is 32 or 0x8007006D or 0x800700E8 ? 0 : 1, $"stdout: {error.Message}");
    }

    /// <summary>Tells the user one line on stderr. What finds no room within a moment is dropped, and all else until there is.</summary>
    /// <param name="end">Behind a \r the next line takes this one's place.</param>
    public static void Tell(string line, string end = "\n")
    {
        lock (untold)
        {
            if (!HasToldBut(64 * 1024))
                return;
            var bytes = Encoding.UTF8.GetBytes($"{(isPassing && end != "\r" ? "\r\e[J" : "")}{line}{end}");
            isPassing = end == "\r";
            try
            {
                teller ??= Task.Factory.StartNew(TellAll, TaskCreationOptions.LongRunning);
                size += bytes.Length;
                untold.Add(bytes);
            }
            catch (TaskSchedulerException)
            {
                // There may be no thread left (ulimit -u).
                Write(errors, bytes);
            }
        }
    }

    /// <summary>Waits until all is told that has been, but not for a stderr that is full.</summary>
    public static void Settle()
    {
        lock (untold)
            HasToldBut(0);
    }

    static bool HasToldBut(int most)
    {
        // A busy machine may take longer than a moment.
        while (size > most)
            if (!Monitor.Wait(untold, isFull ? 0 : 500) && (isFull = OperatingSystem.IsWindows() || poll([errors, PollOut], 1, 0) == 0))
                return false;
        return true;
    }

    // Only this thread is held up where stderr is full and nobody reads it, or ^S stops it. Whether a write will be, no poll tells.
    static void TellAll()
    {
        foreach (var line in untold.GetConsumingEnumerable())
        {
            Write(errors, line);
            lock (untold)
            {
                (size, isFull) = (size - line.Length, false);
                Monitor.PulseAll(untold);
            }
        }
    }

    static readonly BlockingCollection<byte[]> untold = [];
    static Task? teller;
    static int size;
    static bool isFull, isPassing;

    static IOException? Write(int descriptor, ReadOnlySpan<byte> bytes)
    {
        if (OperatingSystem.IsWindows())
            try
            {
                using var stream = descriptor == output ? Console.OpenStandardOutput() : Console.OpenStandardError();
                stream.Write(bytes);
                return null;
            }
            catch (IOException e)
            {
                return e;
            }
        while (!bytes.IsEmpty)
            if (write(descriptor, ref MemoryMarshal.GetReference(bytes), bytes.Length) is >= 0 and var count)
                bytes = bytes[(int)count..];
            else if (!CanRetry(descriptor, PollOut, out var error))
                return error;
        return null;
    }

    // After a call that failed: what another program has made non-blocking is waited for, with poll's events.
    static bool CanRetry(int descriptor, int events, out IOException error)
    {
        var (code, interrupted, again) = (Marshal.GetLastPInvokeError(), 4, OperatingSystem.IsLinux() ? 11 : 35);
        error = new(Marshal.GetPInvokeErrorMessage(code), code);
        return code == interrupted || code == again && poll([descriptor, events], 1, -1) >= 0;
    }

    // 1 is F_GETFD, and FD_CLOEXEC all that it tells.
    static int Inherited(int descriptor) => OperatingSystem.IsWindows() || fcntl(descriptor, 1) == 0 ? descriptor : -1;

    [DllImport("libc")]
    static extern int fcntl(int descriptor, int command);

    [DllImport("libc")]
    static extern int tcgetpgrp(int descriptor);

    [DllImport("libc")]
    static extern int getpgrp();

    [DllImport("libc", SetLastError = true)]
    static extern nint read(int descriptor, ref byte into, nint count);

    [DllImport("libc", SetLastError = true)]
    static extern nint write(int descriptor, ref readonly byte bytes, nint count);

    // What poll waits for. Behind the descriptor its struct has two shorts, what is asked and what is answered: with the number
    // in both, either order of bytes is right.
    const int PollIn = 0x10001, PollOut = 0x40004;

    [DllImport("libc", SetLastError = true)]
    static extern int poll(int[] descriptors, nuint count, int timeout);
}

// ---------------------------------------------------------------------------------------------
// The adapter: what makes any two-way method of grpc-dotnet fast
//
// The library pays for each message with an asynchronous read or write, a flush and a lock, some 20 µs in all. This
// interceptor gives a handler, or a client's code, streams that take whole plain messages straight out of what has arrived, and
// gather what is written until they are about to wait: write as long as there is something to write, flush only when
// about to wait. All else is the library's, whose streams read and write the same pipes: whatever comes next that is
// compressed, large, malformed or cut off is left to them byte for byte, and so are headers, deadlines, statuses and trailers.
// No peer can see it, and neither a service nor a client need know of it:
//
//     builder.Services.AddGrpc(options => options.Interceptors.Add<Adapter>());
//     var invoker = GrpcChannel.ForAddress(url, new() { HttpHandler = new Adapter.Handler(…) }).Intercept(new Adapter());
// ---------------------------------------------------------------------------------------------

/// <summary>Gives two-way methods fast streams, on the server and on the client.</summary>
/// <param name="marshallers">Of type <see cref="Marshaller{T}"/>: for messages of type T instead of the method's own.</param>
sealed class Adapter(params object[] marshallers) : Interceptor
{
    /// <summary>A message's prefix: whether it is compressed, in one byte, and its length in four (grpc/doc/PROTOCOL-HTTP2.md).</summary>
    const int PrefixSize = 5;

    /// <summary>So many bytes are enough for a flush. What is larger is left to the library.</summary>
    public const int Full = 32 * 1024;

    public override async Task DuplexStreamingServerHandler<TRequest, TResponse>(IAsyncStreamReader<TRequest> requests,
        IServerStreamWriter<TResponse> responses, ServerCallContext context, DuplexStreamingServerMethod<TRequest, TResponse> continuation)
    {
        var http = context.GetHttpContext();
        var method = (Method<TRequest, TResponse>)http.GetEndpoint()!.Metadata.GetMetadata<GrpcMethodMetadata>()!.Method;
        var stop = context.CancellationToken;
        var reader = new Reader<TRequest>(() => http.Request.BodyReader, requests, For(method.RequestMarshaller), stop, endIsAll: true);
        var writer = new Writer<TResponse>(
            () => http.Response.BodyWriter, () => reader.HasMore, responses, For(method.ResponseMarshaller), stop);
        reader.BeforeWait = writer.FlushAsync;
        try
        {
            await continuation(reader, writer, context);
        }
        finally
        {
            reader.Release();
            // What is cut off here has been written all the same.
            if (writer.HasGathered)
                await writer.FlushAsync().ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }

    public override AsyncDuplexStreamingCall<TRequest, TResponse> AsyncDuplexStreamingCall<TRequest, TResponse>(
        ClientInterceptorContext<TRequest, TResponse> context, AsyncDuplexStreamingCallContinuation<TRequest, TResponse> continuation)
    {
        var bodies = Bodies.OfCall.Value = new();
        var call = continuation(context);
        Bodies.OfCall.Value = null;
        var (requests, responses) = (For(context.Method.RequestMarshaller), For(context.Method.ResponseMarshaller));
        var writer = new Writer<TRequest>(() => bodies.Request, () => false, call.RequestStream, requests, stop: default);
        var reader = new Reader<TResponse>(
            () => bodies.Response, call.ResponseStream, responses, context.Options.CancellationToken, endIsAll: false);
        return new(writer, reader, call.ResponseHeadersAsync, call.GetStatus, call.GetTrailers, () =>
        {
            bodies.End();
            call.Dispose();
        });
    }

    Marshaller<T> For<T>(Marshaller<T> own) => marshallers.OfType<Marshaller<T>>().FirstOrDefault(own);

    /// <summary>Takes messages out of a pipe that the library's stream of the same messages reads as well.</summary>
    /// <param name="pipe">Null until there is one: what comes first is the library's then.</param>
    /// <param name="endIsAll">Whether nothing follows the end of the pipe, as a status does for a client.</param>
    public sealed class Reader<T>(
        Func<PipeReader?> pipe, IAsyncStreamReader<T> library, Marshaller<T> marshaller, CancellationToken stop, bool endIsAll)
        : DeserializationContext, IAsyncStreamReader<T> where T : class
    {
        // What the last read gave, and a copy of its front, of which so much has been taken; the payload behind it is so long.
        PipeReader? reading;
        ReadOnlySequence<byte> arrived;
        byte[] front = [];
        int taken, length;

        public T Current { get; private set; } = null!;

        /// <summary>How many messages have been read.</summary>
        public long Count { get; private set; }

        /// <summary>Called before anything is waited for.</summary>
        public Func<Task> BeforeWait { get; set; } = () => Task.CompletedTask;

        /// <summary>Whether one more message has come already, or its first bytes.</summary>
        public bool HasMore => taken < arrived.Length;

        /// <summary>Reads the next message. What has arrived already is read even when the call has been cancelled.</summary>
        public Task<bool> MoveNext(CancellationToken cancel) => TryTake() ? Task.FromResult(true) : ReadAsync(cancel);

        // Takes the next message where it is whole, not compressed and not malformed: any other is for the library to meet.
        bool TryTake()
        {
            var bytes = front.AsSpan(taken);
            if (bytes.Length < PrefixSize || bytes[0] != 0)
                return false;
            length = BinaryPrimitives.ReadInt32BigEndian(bytes[1..]);
            if ((uint)length > bytes.Length - PrefixSize)
                return false;
            try
            {
                Current = marshaller.ContextualDeserializer(this);
            }
            catch (Exception)
            {
                return false;
            }
            taken += PrefixSize + length;
            Count++;
            return true;
        }

        async Task<bool> ReadAsync(CancellationToken cancel)
        {
            Current = null!;
            Release();
            try
            {
                var open = pipe();
                var read = open is null ? default : await ReadPipeAsync(open, cancel);
                (reading, arrived) = (open, read.Buffer);
                // A copy, as the pipe's pieces are small and messages lie across them.
                front = arrived.Slice(0, Math.Min(arrived.Length, PrefixSize + Full)).ToArray();
                if (TryTake())
                    return true;
                Release();
                if (read.IsCompleted && read.Buffer.IsEmpty && endIsAll)
                    return false;
                if (read.IsCanceled)
                    throw new OperationCanceledException(cancel.IsCancellationRequested ? cancel : stop);
            }
            catch (Exception e) when (e is not OperationCanceledException)
            {
                // The library reads the same pipe next, meets the same, and says what it means.
            }
            var moving = library.MoveNext(cancel);
            if (!moving.IsCompleted)
                await BeforeWait();
            if (!await moving)
                return false;
            Current = library.Current;
            Count++;
            return true;
        }

        // A cancellation ends the wait, but not before what has arrived is read.
        async ValueTask<ReadResult> ReadPipeAsync(PipeReader open, CancellationToken cancel)
        {
            if (open.TryRead(out var read))
                return read;
            await BeforeWait();
            var coming = open.ReadAsync(CancellationToken.None);
            using var stopped = coming.IsCompleted ? default : stop.UnsafeRegister(Cancel, open);
            using var cancelled = coming.IsCompleted ? default : cancel.UnsafeRegister(Cancel, open);
            return await coming;

            static void Cancel(object? pipe) => ((PipeReader)pipe!).CancelPendingRead();
        }

        /// <summary>Gives the pipe back what has been taken: an idle stream holds no memory of it.</summary>
        public void Release()
        {
            reading?.AdvanceTo(arrived.GetPosition(taken));
            (reading, arrived, front, taken) = (null, default, [], 0);
        }

        public override int PayloadLength => length;
        public override byte[] PayloadAsNewBuffer() => PayloadAsReadOnlySequence().ToArray();
        public override ReadOnlySequence<byte> PayloadAsReadOnlySequence() => new(front, taken + PrefixSize, length);
    }

    /// <summary>Gathers messages, and sends them when no more is sure to follow at once.</summary>
    /// <param name="pipe">Null until there is one: the library sends the first message then, and opens the stream with it.</param>
    /// <param name="hasMore">Whether its user goes on without having to wait; or says so, in gRPC's words, with BufferHint.</param>
    public sealed class Writer<T>(
        Func<PipeWriter?> pipe, Func<bool> hasMore, IAsyncStreamWriter<T> library, Marshaller<T> marshaller, CancellationToken stop)
        : IServerStreamWriter<T>, IClientStreamWriter<T> where T : class
    {
        readonly Gathered gathered = new();
        // A handler that writes while it reads has two who flush.
        readonly Lock writing = new();
        bool isOpen, hasFlushed;

        public WriteOptions? WriteOptions { get; set; }

        /// <summary>How many messages have been written, but for those that the library did.</summary>
        public long Count { get; private set; }

        /// <summary>Whether there is something to flush.</summary>
        public bool HasGathered => gathered.Size > 0;

        public Task WriteAsync(T message, CancellationToken cancel) =>
            cancel.IsCancellationRequested ? Task.FromCanceled(cancel) : WriteAsync(message);

        public Task WriteAsync(T message)
        {
            isOpen = isOpen || pipe() is not null;
            if (!isOpen)
                return library.WriteAsync(message);
            lock (writing)
            {
                gathered.Begin();
                marshaller.ContextualSerializer(message, gathered);
                Count++;
                var isHinted = WriteOptions is { } options && (options.Flags & WriteFlags.BufferHint) != 0;
                return gathered.Size < Full && (isHinted || hasMore()) ? Task.CompletedTask : FlushAsync();
            }
        }

        /// <summary>Sends what has been gathered, and the first time the headers as well.</summary>
        public Task FlushAsync()
        {
            lock (writing)
            {
                if (pipe() is not { } open || hasFlushed && !HasGathered)
                    return Task.CompletedTask;
                hasFlushed = true;
                // Only the wait is stopped: Kestrel aborts a stream whose flush is cancelled.
                var flushing = HasGathered ? open.WriteAsync(gathered.Take(), default) : open.FlushAsync(default);
                return stop.IsCancellationRequested ? Task.FromCanceled(stop) : flushing.AsTask().WaitAsync(stop);
            }
        }

        public async Task CompleteAsync()
        {
            await FlushAsync();
            await ((IClientStreamWriter<T>)library).CompleteAsync();
        }
    }

    /// <summary>Messages as they lie on the wire, and behind them the one that is being serialized.</summary>
    sealed class Gathered : SerializationContext, IBufferWriter<byte>
    {
        byte[] buffer = [];
        int end, at, usual;

        public int Size => end;

        public void Begin() => at = end + PrefixSize;

        /// <summary>Gives all away: an idle stream holds no memory.</summary>
        public ReadOnlyMemory<byte> Take()
        {
            var all = buffer.AsMemory(0, end);
            (buffer, usual, end) = ([], end, 0);
            return all;
        }

        public override IBufferWriter<byte> GetBufferWriter() => this;

        public override void Complete()
        {
            // An empty message has asked for no room, which its prefix needs.
            GetSpan(0);
            buffer[end] = 0;
            BinaryPrimitives.WriteInt32BigEndian(buffer.AsSpan(end + 1), at - end - PrefixSize);
            end = at;
        }

        public override void Complete(byte[] payload)
        {
            this.Write(payload);
            Complete();
        }

        public void Advance(int count) => at += count;

        public Memory<byte> GetMemory(int sizeHint)
        {
            GetSpan(sizeHint);
            return buffer.AsMemory(at);
        }

        public Span<byte> GetSpan(int sizeHint)
        {
            if (buffer.Length - at <= sizeHint)
                Array.Resize(ref buffer, Math.Max(Math.Max(2 * buffer.Length, usual), at + sizeHint) + 64);
            return buffer.AsSpan(at);
        }
    }

    /// <summary>On a client's channel, before the handler that connects: where the adapter finds the two bodies of a call.</summary>
    /// <param name="took">Told how many bytes of a response's body have been taken.</param>
    public sealed class Handler(HttpMessageHandler inner, Action<int> took) : DelegatingHandler(inner)
    {
        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancel)
        {
            if (Bodies.OfCall.Value is not { } bodies)
                return await base.SendAsync(request, cancel);
            bodies.Library = request.Content!;
            request.Content = bodies;
            request.Content.Headers.ContentType = bodies.Library.Headers.ContentType;
            // Not the library's token: at a deadline it would drop answers that have arrived. The call's end ends it.
            var response = await base.SendAsync(request, bodies.Ended.Token);
            // What is not gRPC is for the library to refuse.
            var type = response.Content.Headers.ContentType;
            if (type?.MediaType?.Split('+')[0] != "application/grpc")
                return response;
            var body = new Counted(await response.Content.ReadAsStreamAsync(CancellationToken.None), took);
            bodies.Response = PipeReader.Create(body, new(bufferSize: 2 * Full));
            response.Content = new StreamContent(bodies.Response.AsStream(leaveOpen: true)) { Headers = { ContentType = type } };
            return response;
        }
    }

    // The two bodies of a client's call: as the request's content it learns where that goes to.
    sealed class Bodies : HttpContent
    {
        public static readonly AsyncLocal<Bodies?> OfCall = new();
        public readonly CancellationTokenSource Ended = new();
        public HttpContent Library = null!;
        public PipeWriter? Request;
        public PipeReader? Response;

        protected override async Task SerializeToStreamAsync(Stream stream, TransportContext? context)
        {
            // SocketsHttpHandler tries a refused stream again; but what was written for it is gone.
            if (Request is not null)
                throw new IOException("the server refused the stream");
            Request = PipeWriter.Create(stream);
            try
            {
                await Library.CopyToAsync(stream).WaitAsync(Ended.Token);
            }
            catch
            {
                // Ended now, the request would take the answers with it that have arrived and are still to be read.
                await Task.Delay(Timeout.Infinite, Ended.Token);
            }
        }

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }

        // With a reset where the call has not ended.
        public void End()
        {
            Ended.Cancel();
            Response?.Complete();
        }
    }

    sealed class Counted(Stream body, Action<int> took) : TransportStream
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default)
        {
            var count = await body.ReadAsync(into, cancel);
            took(count);
            return count;
        }

        protected override void Dispose(bool disposing) => body.Dispose();
    }
}

/// <summary>Reads and writes protobuf's messages where they lie: a third faster than the generated marshallers.</summary>
static class Protobuf
{
    /// <summary>A marshaller for each message of the two RPCs.</summary>
    public static readonly object[] Marshallers =
    [
        OfNumber(FindMaximumRequest.Parser, request => request.Number, number => new() { Number = number }),
        OfNumber(FindMaximumResponse.Parser, response => response.Maximum, number => new() { Maximum = number }),
        Of(GreetEveryoneRequest.Parser),
        Of(GreetEveryoneResponse.Parser),
    ];

    /// <summary>The one for messages of type T.</summary>
    public static Marshaller<T> Marshaller<T>() => Marshallers.OfType<Marshaller<T>>().Single();

    static Marshaller<T> Of<T>(MessageParser<T> parser) where T : class, IMessage<T> => new(Write, context => Read(parser, context));

    static void Write(IMessage message, SerializationContext context)
    {
        var size = message.CalculateSize();
        var buffer = context.GetBufferWriter();
        message.WriteTo(buffer.GetSpan(size)[..size]);
        buffer.Advance(size);
        context.Complete();
    }

    static T Read<T>(MessageParser<T> parser, DeserializationContext context) where T : IMessage<T>
    {
        var payload = context.PayloadAsReadOnlySequence();
        return payload.IsSingleSegment ? parser.ParseFrom(payload.FirstSpan) : parser.ParseFrom(payload);
    }

    // For messages that are one number, in field 1: nearly twice as fast once more.
    static Marshaller<T> OfNumber<T>(MessageParser<T> parser, Func<T, long> number, Func<long, T> create)
        where T : class, IMessage<T> => new(
        (message, context) =>
        {
            var buffer = context.GetBufferWriter();
            var bytes = buffer.GetSpan(11);
            var (rest, size) = ((ulong)number(message), 0);
            if (rest != 0)
                bytes[size++] = 1 << 3;
            for (; rest > 0; rest >>= 7)
                bytes[size++] = (byte)(rest > 0x7f ? rest | 0x80 : rest);
            buffer.Advance(size);
            context.Complete();
        },
        (DeserializationContext context) =>
        {
            var bytes = context.PayloadAsReadOnlySequence().FirstSpan;
            var (value, at) = (0UL, 1);
            while (at < bytes.Length && at < 10 && bytes[at] > 0x7f)
                value |= (bytes[at] & 0x7fUL) << (7 * at++ - 7);
            // Any other form of the same message is protobuf's to read.
            var isUsual = at == bytes.Length - 1 && bytes[0] == 1 << 3 && bytes[at] <= 0x7f;
            return isUsual ? create((long)(value | (ulong)bytes[at] << (7 * at - 7))) : Read(parser, context);
        });
}

/// <summary>What a stream between a library and its transport need not do.</summary>
abstract class TransportStream : Stream
{
    public override bool CanRead => true;
    public override bool CanWrite => true;
    public override bool CanSeek => false;
    public override long Length => throw new NotSupportedException();
    public override long Position { get => throw new NotSupportedException(); set => throw new NotSupportedException(); }
    public override int Read(byte[] into, int offset, int count) => throw new NotSupportedException();
    public override void Write(byte[] bytes, int offset, int count) => throw new NotSupportedException();
    public override void Flush() { }
    public override Task FlushAsync(CancellationToken cancel) => Task.CompletedTask;
    public override long Seek(long offset, SeekOrigin origin) => throw new NotSupportedException();
    public override void SetLength(long value) => throw new NotSupportedException();
}

// ---------------------------------------------------------------------------------------------
// The server
// ---------------------------------------------------------------------------------------------

/// <summary>A gRPC server on Kestrel: the two RPCs under both their names, health checking, reflection.</summary>
sealed class Server : IAsyncDisposable
{
    // A peer that vanished is found by a ping, and one that drips bytes has so long for a whole header block.
    static readonly TimeSpan PingDelay = TimeSpan.FromSeconds(20), PingTimeout = PingDelay, HeadersTimeout = TimeSpan.FromSeconds(10);

    const int MaxHeaders = 128 * 1024, Window = 4 * 1024 * 1024;

    // A call that is over has so long to get its last bytes to a peer that does not read, or to be ended by one that still sends.
    static readonly TimeSpan Grace = TimeSpan.FromSeconds(1);

    // What is under way between two peers has arrived after so long.
    static readonly TimeSpan Linger = TimeSpan.FromSeconds(0.25);

    static readonly Status ShuttingDown = new(StatusCode.Unavailable, "server is shutting down");

    // The steps of a drain: nothing new comes in; running streams end; connections are cut.
    readonly CancellationTokenSource draining = new(), expired = new(), abort = new();
    readonly List<Socket> sockets = [];
    WebApplication app = null!;
    int running, streams;
    bool verbose;

    /// <summary>Where this server listens, with real ports.</summary>
    public List<Endpoint> Endpoints { get; } = [];

    /// <summary>Serves until a signal asks it to end, drains, and gives the exit code.</summary>
    /// <param name="drain">How long running streams may go on after the signal.</param>
    /// <param name="verbose">Whether each stream is told of on stderr, in words that may change.</param>
    /// <exception cref="Problem">An endpoint is not one to listen at, or cannot be listened at.</exception>
    public static async Task<int> RunAsync(Endpoint[] endpoints, Func<SslServerAuthenticationOptions>? tls, TimeSpan drain, bool verbose)
    {
        await using var server = new Server { verbose = verbose };
        var first = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        var second = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Signals.On(exitCode => _ = first.TrySetResult(exitCode) || second.TrySetResult(exitCode));
        await server.StartAsync(endpoints, tls);
        foreach (var endpoint in Stdio.HasOutput ? server.Endpoints : [])
            Stdio.Output.Write(Encoding.UTF8.GetBytes($"listening on {endpoint}\n"));
        // A stdout that is full must not keep a signal from ending this.
        await await Task.WhenAny(Task.Run(Stdio.Flush), first.Task);
        var exitCode = await first.Task;
        var before = server.running;
        var streams = before == 1 ? "stream is" : "streams are";
        if (before > 0)
            Program.Tell($"draining: {before} {streams} running; up to {drain.TotalSeconds} s; a second signal ends at once");
        await Task.WhenAny(server.DrainAsync(drain), second.Task);
        var cut = server.running;
        if (before + cut > 0)
            Program.Tell($"drained: {Math.Max(before - cut, 0)} ended in time, {cut} cut off");
        return second.Task.IsCompleted ? await second.Task : cut > 0 ? exitCode : 0;
    }

    /// <summary>Starts to serve.</summary>
    /// <exception cref="Problem">An endpoint is not one to listen at, or cannot be listened at.</exception>
    public async Task StartAsync(Endpoint[] endpoints, Func<SslServerAuthenticationOptions>? tls)
    {
        // The sockets are bound before Kestrel starts: only so has port 0 one meaning for both loopback addresses, and a
        // Unix socket its mode before anyone can connect.
        foreach (var endpoint in endpoints)
            ListenAt(endpoint);
        var builder = WebApplication.CreateEmptyBuilder(new());
        builder.WebHost.UseKestrelCore().ConfigureKestrel(kestrel => Configure(kestrel, tls));
        builder.Services.Configure<SocketTransportOptions>(transport =>
            transport.CreateBoundListenSocket = at => sockets.Single(socket => at.Equals(socket.LocalEndPoint)));
        builder.Services.AddSingleton(new Adapter(Protobuf.Marshallers)).AddSingleton(new Rules(this)).AddGrpc(grpc =>
        {
            grpc.Interceptors.Add<Adapter>();
            grpc.Interceptors.Add<Rules>();
        });
        // Neither holds anything: one does for all calls.
        builder.Services.AddSingleton<Greeter>().AddSingleton<Calculator>();
        app = builder.Build();
        // A well-known gRPC course has names of its own for the two methods.
        app.Use((http, next) =>
        {
            var path = http.Request.Path.Value!;
            if (path is "/greet.GreetService/GreetEveryone" or "/calculator.CalculatorService/FindMaximum")
                http.Request.Path = $"/streaming{path[path.IndexOf('.')..]}";
            return next(http);
        });
        app.UseRouting();
        app.Use(ServeAsync);
        app.MapGrpcService<Greeter>();
        app.MapGrpcService<Calculator>();

        Google.Protobuf.Reflection.ServiceDescriptor[] services =
        [
            .. StreamingReflection.Descriptor.Services, Health.Descriptor,
            Grpc.Reflection.V1.ServerReflection.Descriptor, Grpc.Reflection.V1Alpha.ServerReflection.Descriptor,
        ];
        app.MapGrpcService(Grpc.Reflection.V1.ServerReflection.BindService(new ReflectionV1ServiceImpl(services)));
        app.MapGrpcService(Grpc.Reflection.V1Alpha.ServerReflection.BindService(new ReflectionServiceImpl(services)));
        var health = new HealthServiceImpl();
        foreach (var name in services.Select(service => service.FullName).Append(""))
        {
            health.SetStatus(name, ServingStatus.Serving);
            draining.Token.Register(() => health.SetStatus(name, ServingStatus.NotServing));
        }
        app.MapGrpcService(Health.BindService(health));
        await app.StartAsync();
    }

    void Configure(KestrelServerOptions kestrel, Func<SslServerAuthenticationOptions>? tls)
    {
        // A proxy that ends TLS passes on what its client said: https, on a connection without.
        (kestrel.AddServerHeader, kestrel.AllowAlternateSchemes) = (false, true);
        var limits = kestrel.Limits;
        // Streams may be idle, and bodies endless: Kestrel's minimum rates and maximum sizes are not for them.
        (limits.MinRequestBodyDataRate, limits.MinResponseDataRate, limits.MaxRequestBodySize) = (null, null, null);
        (limits.RequestHeadersTimeout, limits.MaxConcurrentConnections) = (HeadersTimeout, MaxConnections());
        // What is beyond these costs the connection, with everybody's streams: tokens of tens of kB, and hundreds of fields, are served.
        (limits.MaxRequestHeadersTotalSize, limits.MaxRequestHeaderCount) = (MaxHeaders, 1000);
        limits.Http2.MaxRequestHeaderFieldSize = MaxHeaders;
        (limits.Http2.KeepAlivePingDelay, limits.Http2.KeepAlivePingTimeout) = (PingDelay, PingTimeout);
        (limits.Http2.InitialStreamWindowSize, limits.Http2.InitialConnectionWindowSize) = (Window, Window);
        foreach (var (socket, endpoint) in sockets.Zip(Endpoints))
            kestrel.Listen(socket.LocalEndPoint!, listen =>
            {
                listen.Protocols = HttpProtocols.Http2;
                listen.Use(next => async connection =>
                {
                    await next(connection);
                    if (verbose && !connection.Items.ContainsKey(this))
                        Stdio.Tell($"refused {Tcp.Plain(connection.RemoteEndPoint)}: the TLS handshake failed");
                    // Closed at once after its GOAWAY, a connection would answer what the peer is sending with a TCP reset,
                    // which may cost the peer answers that it has not read yet.
                    if (draining.IsCancellationRequested)
                        await Task.Delay(Linger);
                });
                if (endpoint.Url.Scheme == "https")
                    listen.UseHttps(new TlsHandshakeCallbackOptions { OnConnection = _ => new(tls!()) });
                // Only what has passed the TLS handshake gets here.
                listen.Use(next => connection =>
                {
                    connection.Items[this] = null;
                    return next(connection);
                });
            });
    }

    // A connection may hold memory up to its window, and without a descriptor for the next one Kestrel would try at full
    // speed. Half of the memory, and of the descriptors, is for all else.
    static long MaxConnections()
    {
        nuint[] descriptors = [int.MaxValue, 0];
        if (!OperatingSystem.IsWindows())
            getrlimit(OperatingSystem.IsLinux() ? 7 : 8, descriptors);
        var windows = GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / Window;
        return Math.Clamp((long)Math.Min(descriptors[0], (nuint)windows) / 2, 1, 10_000);

        [DllImport("libc")]
        static extern int getrlimit(int resource, nuint[] limits);
    }

    // What the specification asks for beyond what grpc-dotnet does, and what -v tells of a stream.
    sealed class Rules(Server server) : Interceptor
    {
        public override async Task DuplexStreamingServerHandler<TRequest, TResponse>(
            IAsyncStreamReader<TRequest> requests, IServerStreamWriter<TResponse> responses, ServerCallContext context,
            DuplexStreamingServerMethod<TRequest, TResponse> continuation)
        {
            var http = context.GetHttpContext();
            var method = MethodOf(http)!.FullName;
            // Routes care neither about case nor about a slash at the end.
            if (context.Method != method)
                throw new RpcException(new(StatusCode.Unimplemented, "Method is unimplemented."));
            // A timeout that is malformed, or 0, is none to grpc-dotnet; one of more than eight digits it takes.
            if (http.Request.Headers.GrpcTimeout is [{ } timeout, ..] && (context.Deadline == DateTime.MaxValue || timeout.Length > 9))
            {
                var isZero = timeout.Length is > 1 and <= 9 && "HMSmun".Contains(timeout[^1]) && timeout[..^1].All(char.IsAsciiDigit);
                throw new RpcException(isZero ? new(StatusCode.DeadlineExceeded, "Deadline Exceeded")
                    : new(StatusCode.Internal, $"malformed grpc-timeout: {timeout}"));
            }
            var (number, start, end) = (Interlocked.Increment(ref server.streams), Trace.Now, StatusCode.Cancelled);
            if (server.verbose)
            {
                var peer = http.Connection.RemoteIpAddress is { } ip ? Tcp.Plain(new IPEndPoint(ip, http.Connection.RemotePort)) : null;
                Stdio.Tell($"stream {number} from {peer?.ToString() ?? "a Unix socket"}: {method[1..]}");
            }
            try
            {
                await continuation(requests, responses, context);
                end = StatusCode.OK;
            }
            catch (Exception e) when (StatusOf(e) is { } status)
            {
                end = status.StatusCode;
                throw new RpcException(status);
            }
            finally
            {
                if (end == StatusCode.Cancelled && context.Deadline <= DateTime.UtcNow)
                    end = StatusCode.DeadlineExceeded;
                if (server.verbose && requests is Adapter.Reader<TRequest> reader && responses is Adapter.Writer<TResponse> writer)
                {
                    var seconds = TimeProvider.System.GetElapsedTime(start).TotalSeconds;
                    Stdio.Tell($"stream {number}: {Client.NameOf(end)}, {reader.Count} received, {writer.Count} sent, {seconds:0.0##} s");
                }
            }
        }

        // Otherwise grpc-dotnet has UNKNOWN for them.
        Status? StatusOf(Exception e) => e switch
        {
            RpcException known => known.Status,
            OperationCanceledException or InvalidOperationException when server.expired.IsCancellationRequested => ShuttingDown,
            InvalidProtocolBufferException or InvalidDataException => new(StatusCode.Internal, $"a message is malformed: {e.Message}"),
            IOException when e.Message.StartsWith("Message too large", StringComparison.Ordinal) =>
                new(StatusCode.ResourceExhausted, e.Message),
            _ => null,
        };
    }

    static IMethod? MethodOf(HttpContext http) => http.GetEndpoint()?.Metadata.GetMetadata<GrpcMethodMetadata>()?.Method;

    async Task ServeAsync(HttpContext http, RequestDelegate next)
    {
        if (draining.IsCancellationRequested)
        {
            // Its peer did not know of the drain yet, and is told now. Kestrel closes the connection at its last stream's end, with
            // those that are still on their way: so this one stays for a moment.
            http.Features.Get<IConnectionLifetimeNotificationFeature>()?.RequestClose();
            await Task.Delay(Linger);
        }
        var requests = http.Request.BodyReader;
        var reset = http.Features.Get<IHttpResetFeature>()!;
        var late = new LateReset(requests);
        http.Features.Set<IHttpResetFeature>(late);
        // The streams of the two RPCs are what a drain waits for, and what it ends; the pipe tells them of their peer's end.
        var isStream = MethodOf(http)?.ServiceName.StartsWith("streaming.", StringComparison.Ordinal) == true;
        if (isStream)
        {
            http.RequestAborted = expired.Token;
            http.Response.Headers.GrpcAcceptEncoding = "identity,gzip,deflate";
            Interlocked.Increment(ref running);
        }
        try
        {
            await next(http);
        }
        finally
        {
            // What ends when its time is over has not ended by itself: for the count it runs on.
            if (isStream && !expired.IsCancellationRequested)
                Interlocked.Decrement(ref running);
        }
        // Kestrel counts a stream that ends before its request for five seconds more, and closes a connection that has many:
        // so the peer gets the status, and then a moment to end the request.
        var rest = requests.CopyToAsync(Stream.Null);
        if (!rest.IsCompleted)
        {
            // Not awaited: a peer that does not read would hold this up.
            _ = http.Response.CompleteAsync();
            await Task.WhenAny(rest, Task.Delay(Grace));
            requests.CancelPendingRead();
        }
        await rest.ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        if (late.Code is { } code)
            reset.Reset(code);
    }

    // At a deadline grpc-dotnet sends the status and resets the stream, which here waits for that moment; nothing is read any more.
    sealed class LateReset(PipeReader requests) : IHttpResetFeature
    {
        public int? Code { get; private set; }

        public void Reset(int errorCode)
        {
            Code = errorCode;
            requests.CancelPendingRead();
        }
    }

    void ListenAt(Endpoint endpoint)
    {
        var (host, port) = (endpoint.Url.IdnHost, endpoint.Url.Port);
        if (endpoint.UnixPath is { } path)
            Bind(endpoint, new UnixDomainSocketEndPoint(path));
        else if (IPAddress.TryParse(host, out var address))
            Bind(endpoint, new IPEndPoint(address, port));
        else if (host != "localhost")
            throw new Problem(2, $"{endpoint} cannot be listened at: HOST is localhost, an IP address or *");
        else
        {
            Bind(endpoint, new IPEndPoint(IPAddress.Loopback, port));
            if (Socket.OSSupportsIPv6)
                Bind(endpoint, new IPEndPoint(IPAddress.IPv6Loopback, ((IPEndPoint)sockets[^1].LocalEndPoint!).Port), mayBeMissing: true);
        }
    }

    void Bind(Endpoint endpoint, EndPoint at, bool mayBeMissing = false)
    {
        try
        {
            if (endpoint.UnixPath is { } path)
                RemoveStaleSocket(path);
            var socket = SocketTransportOptions.CreateDefaultBoundListenSocket(at);
            sockets.Add(socket);
            if (socket.LocalEndPoint is IPEndPoint real)
            {
                // For a peer to whom no ping can be sent, as data before it waits to be acknowledged.
                Tcp.GiveUpAfter(socket, PingDelay + PingTimeout + PingTimeout / 2);
                endpoint = new(new($"{endpoint.Url.Scheme}://{real}"), null);
            }
            else if (!OperatingSystem.IsWindows())
                File.SetUnixFileMode(endpoint.UnixPath!, UnixFileMode.UserRead | UnixFileMode.UserWrite);
            // Several sockets may be bound to an address, but only one listens there.
            socket.Listen();
            Endpoints.Add(endpoint);
        }
        catch (SocketException e) when (mayBeMissing && e.SocketErrorCode == SocketError.AddressNotAvailable)
        {
            // IPv6 is supported, but switched off.
        }
        catch (Exception e) when (e is SocketException or IOException or UnauthorizedAccessException)
        {
            var why = (e as SocketException)?.SocketErrorCode switch
            {
                null or SocketError.AccessDenied => e.Message,
                _ when endpoint.PathFault is { } fault => fault,
                SocketError.AddressAlreadyInUse => "the address is in use",
                // What .NET has no name for: EROFS, ENOSPC.
                SocketError.SocketError when endpoint.UnixPath is not null => "no file can be made there",
                _ => e.Message,
            };
            throw new Problem(1, $"cannot listen at {endpoint}: {why}");
        }
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
        catch (SocketException e)
        {
            // Otherwise nothing is there; or what is there makes the bind fail, with a message.
            if (e.SocketErrorCode == SocketError.ConnectionRefused && Endpoint.IsSocket(path))
                File.Delete(path);
        }
    }

    /// <summary>Takes no new connections and streams, lets running streams finish in time, then ends them with UNAVAILABLE.</summary>
    async Task DrainAsync(TimeSpan patience)
    {
        await draining.CancelAsync();
        // First nobody gets in, and only then are connections told: one just made may be bringing its first call.
        sockets.ForEach(Tcp.IgnoreNewcomers);
        await Task.Delay(Linger);
        sockets.ForEach(socket => socket.Dispose());
        await Task.Delay(Linger);
        expired.CancelAfter(patience);
        abort.CancelAfter(patience + Grace + Grace);
        var stopped = app.Services.GetRequiredService<IServer>().StopAsync(abort.Token);
        // Kestrel waits for connections as well, but peers may keep one open that has no stream any more, or never had.
        var (quiet, tick) = (TimeSpan.Zero, Grace / 20);
        while (quiet < Grace && !stopped.IsCompleted)
        {
            await Task.WhenAny(stopped, Task.Delay(tick));
            quiet = running == 0 ? quiet + tick : TimeSpan.Zero;
        }
        await abort.CancelAsync();
        await stopped;
    }

    public async ValueTask DisposeAsync()
    {
        // A drain that goes on would hold up the end that a second signal asks for.
        await abort.CancelAsync();
        if (app is not null)
            await app.DisposeAsync();
        sockets.ForEach(socket => socket.Dispose());
    }
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

    /// <summary>
    /// Lets a listener finish the handshakes that are under way, and begin none: its end would reset a connection that the
    /// system has made already, with the peer's first request on it. A newcomer asks again a second later.
    /// </summary>
    public static void IgnoreNewcomers(Socket listener)
    {
        const int socketLevel = 1, attachFilter = 26;
        if (!OperatingSystem.IsLinux() || listener.ProtocolType != ProtocolType.Tcp)
            return;
        // Classic BPF, for 64 bits and the usual byte order: the flags; of these SYN and ACK; SYN alone is dropped, all else is kept.
        var program = GC.AllocateUninitializedArray<ulong>(7, pinned: true);
        ulong[] words =
        [
            5, (ulong)Marshal.UnsafeAddrOfPinnedArrayElement(program, 2), 0x0000000d_00000030, 0x00000012_00000054,
            0x00000002_01000015, 0x00000000_00000006, 0xffffffff_00000006,
        ];
        words.CopyTo(program, 0);
        try
        {
            listener.SetRawSocketOption(socketLevel, attachFilter, MemoryMarshal.AsBytes(program.AsSpan(0, 2)));
        }
        catch (SocketException)
        {
            // Not every system that runs Linux programs can.
        }
    }

    /// <summary>An IPv4 address as such, also where the socket is one for both kinds.</summary>
    public static EndPoint? Plain(EndPoint? peer) =>
        peer is IPEndPoint { Address.IsIPv4MappedToIPv6: true } mapped ? new IPEndPoint(mapped.Address.MapToIPv4(), mapped.Port) : peer;
}

static class Signals
{
    // A registration that nothing refers to stops listening.
    static readonly List<PosixSignalRegistration> registered = [];

    /// <summary>Calls <paramref name="action"/> with 129 on SIGHUP, 130 on SIGINT and 143 on SIGTERM.</summary>
    public static void On(Action<int> action)
    {
        foreach (var (signal, exitCode) in new[] { (PosixSignal.SIGHUP, 129), (PosixSignal.SIGINT, 130), (PosixSignal.SIGTERM, 143) })
            registered.Add(PosixSignalRegistration.Create(signal, context =>
            {
                context.Cancel = true;
                action(exitCode);
            }));
    }

    /// <summary>Calls <paramref name="action"/> before ^Z stops the process, which .NET, once it listens, would leave running.</summary>
    public static void OnStop(Action action)
    {
        if (!OperatingSystem.IsWindows())
            registered.Add(PosixSignalRegistration.Create(PosixSignal.SIGTSTP, _ =>
            {
                action();
                Stdio.Settle();
                registered[^1].Dispose();
                raise(OperatingSystem.IsMacOS() ? 18 : 20);
                OnStop(action);
            }));
    }

    /// <summary>Ends the process by the signal that an exit code tells of: after any other end a shell would go on with its loop.</summary>
    /// <returns>The exit code, on Windows and for process 1 of a container, which no signal of its own ends.</returns>
    public static int EndBy(int exitCode)
    {
        Stdio.Settle();
        if (!OperatingSystem.IsWindows())
            _ = (signal(exitCode - 128, 0), raise(exitCode - 128));
        return exitCode;
    }

    [DllImport("libc")]
    static extern nint signal(int number, nint handler);

    [DllImport("libc")]
    static extern int raise(int number);
}

/// <summary>Certificates, and whom they are trusted from.</summary>
static class Tls
{
    static bool isSure;

    /// <summary>Gives the options for each new connection, with the files as they are then; null where there is no certificate.</summary>
    /// <exception cref="Problem">A file is missing or does not hold what it should.</exception>
    public static Func<SslServerAuthenticationOptions>? ForServer(string? cert, string? key, string? clientCa)
    {
        if (cert is null != key is null || cert is null && clientCa is not null)
            throw new Problem(2, "--cert and --key go together, and --client-ca with them");
        if (cert is null)
            return null;
        var own = Latest("certificate", Own, cert, key!);
        var trusted = clientCa is null ? null : Latest("client CA", All, clientCa);
        return () => new()
        {
            ServerCertificateContext = own(),
            ApplicationProtocols = [SslApplicationProtocol.Http2],
            ClientCertificateRequired = trusted is not null,
            // A session that is resumed brings the client's certificate without its chain: .NET would refuse it.
            AllowTlsResume = trusted is null,
            CertificateChainPolicy = ChainPolicy(trusted?.Invoke()),
            RemoteCertificateValidationCallback = trusted is null ? null
                : (sender, certificate, chain, errors) => Refusal(sender, certificate, chain, errors) is null,
        };
    }

    /// <summary>A certificate with its key and the rest of its chain; null where there is none.</summary>
    public static SslStreamCertificateContext? OwnCertificate(string? cert, string? key)
    {
        if (cert is null != key is null)
            throw new Problem(2, "--cert and --key go together");
        return cert is null ? null : Read(Own, cert, key!);
    }

    /// <summary>The certificates that a file names as trusted; null, which is trust in the system's roots, where there is none.</summary>
    public static X509Certificate2Collection? Trust(string? file) => file is null ? null : Read(All, file);

    /// <summary>How a peer's chain is built: nothing is fetched from where it says, neither an issuer nor whether one is revoked.</summary>
    public static X509ChainPolicy ChainPolicy(X509Certificate2Collection? trusted)
    {
        var policy = new X509ChainPolicy { DisableCertificateDownloads = true, RevocationMode = X509RevocationMode.NoCheck };
        policy.TrustMode = trusted is null ? X509ChainTrustMode.System : X509ChainTrustMode.CustomRootTrust;
        policy.CustomTrustStore.AddRange(trusted ?? []);
        return policy;
    }

    /// <summary>Why a peer is refused; null where it is not. A chain may end at anyone who is named: .NET trusts only roots.</summary>
    public static string? Refusal(object sender, X509Certificate? certificate, X509Chain? chain, SslPolicyErrors errors)
    {
        if (errors == SslPolicyErrors.None)
            return null;
        if (certificate is null || chain is null)
            return "it has none";
        var below = chain.ChainElements.TakeWhile(element => !IsNamed(element.Certificate)).Count();
        var isTrusted = below < chain.ChainElements.Count;
        var judged = chain.ChainElements.Take(below + 1).SelectMany(element => element.ChainElementStatus);
        var faults = (isTrusted ? judged : chain.ChainStatus).Aggregate(X509ChainStatusFlags.NoError, (all, one) => all | one.Status);
        if (errors.HasFlag(SslPolicyErrors.RemoteCertificateNameMismatch))
            return $"it is not for {((SslStream)sender).TargetHostName}";
        if (faults.HasFlag(X509ChainStatusFlags.NotTimeValid))
            return "it, or one that vouches for it, has expired or is not valid yet "
                + $"(it is valid until {((X509Certificate2)certificate).NotAfter:yyyy-MM-dd})";
        if (!isTrusted && (faults & (X509ChainStatusFlags.UntrustedRoot | X509ChainStatusFlags.PartialChain)) != 0)
            return "no trusted root vouches for it (see --cacert)";
        return isTrusted && (faults & ~X509ChainStatusFlags.PartialChain) == 0 ? null : $"{faults}";

        // By all of its bytes: .NET takes two for equal that share an issuer's name and a number, which anybody may choose.
        bool IsNamed(X509Certificate2 one) => chain.ChainPolicy.CustomTrustStore.Any(named => named.RawData.SequenceEqual(one.RawData));
    }

    /// <summary>Makes sure of OpenSSL, as without it .NET ends the process: the names are those that it looks for.</summary>
    /// <exception cref="Problem">It is not installed.</exception>
    public static void Require()
    {
        if (isSure || !OperatingSystem.IsLinux())
            return;
        isSure = true;
        if (!Array.Exists(["3", "1.1", "1.0.2", "1.0.0", "10"], version => NativeLibrary.TryLoad($"libssl.so.{version}", out _)))
            throw new Problem(2, "TLS needs OpenSSL, whose libssl is not on this machine");
        try
        {
            var home = Environment.GetFolderPath(Environment.SpecialFolder.UserProfile, Environment.SpecialFolderOption.DoNotVerify);
            _ = Directory.GetFiles($"{home}/.dotnet/corefx/cryptography/x509stores", "*", SearchOption.AllDirectories);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            // .NET opens these stores whatever is trusted, and fails without a home or where one is unreadable, not where there is none.
            Environment.SetEnvironmentVariable("HOME", "/dev/null");
        }
    }

    static SslStreamCertificateContext Own(string[] pem)
    {
        using var leaf = X509Certificate2.CreateFromPem(pem[0], pem[1]);
        // Windows cannot use a key that was only ever in memory; a round through PKCS#12 makes it one that it can.
        var usable = X509CertificateLoader.LoadPkcs12(leaf.Export(X509ContentType.Pfx), null);
        return SslStreamCertificateContext.Create(usable, All(pem), offline: true);
    }

    static X509Certificate2Collection All(string[] pem)
    {
        var all = new X509Certificate2Collection();
        all.ImportFromPem(pem[0]);
        return all.Count > 0 ? all : throw new InvalidDataException("it holds no certificate");
    }

    // What is made of some files, as they are whenever it is asked for: the time of a link tells nothing of what it leads to.
    static Func<T> Latest<T>(string what, Func<string[], T> make, params string[] files)
    {
        var (latest, read, told, looking) = (default(T)!, Array.Empty<string>(), "", new Lock());
        Look();
        return () =>
        {
            lock (looking)
                try
                {
                    Look();
                    told = "";
                }
                catch (Problem e)
                {
                    // A file caught half-written: what is in use stays, and the next connection looks again.
                    if (e.Message != told)
                        Program.Tell($"keeping the old {what}: {told = e.Message}");
                }
            return latest;
        };

        void Look() => (latest, read) = Read(texts => texts.SequenceEqual(read) ? (latest, read) : (make(texts), texts), files);
    }

    static T Read<T>(Func<string[], T> make, params string[] files)
    {
        Require();
        try
        {
            return make(Array.ConvertAll(files, File.ReadAllText));
        }
        catch (Exception e) when (
            e is IOException or UnauthorizedAccessException or CryptographicException or InvalidDataException or ArgumentException)
        {
            throw new Problem(2, $"cannot use {string.Join(" and ", files)}: {e.Message}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The client
// ---------------------------------------------------------------------------------------------

/// <summary>What is asked of a call, as the options have it.</summary>
/// <param name="ReadsInput">Whether its messages come from stdin.</param>
/// <param name="MayServeItself">Whether a server in this process answers when nobody else does.</param>
/// <param name="Trust">Null for whom the system trusts.</param>
sealed record CallSettings(
    Endpoint Endpoint, (string Service, string Name) Method, Metadata Metadata, TimeSpan? Deadline, bool WaitForReady, bool ReadsInput,
    bool MayServeItself, X509Certificate2Collection? Trust, SslStreamCertificateContext? Certificate, bool Insecure);

/// <summary>One call: stdin's messages go out while the answers come in and go to stdout.</summary>
sealed class Client(CallSettings settings, Trace trace)
{
    // A peer that vanished is to be found within a minute, so by TCP: gRPC servers cut a client off that pings an idle stream more
    // often than every five (grpc/doc/keepalive.md). The rare pings find one that hangs and whose system still acknowledges.
    const int KeepAliveSeconds = 20, KeepAliveInterval = 5, KeepAliveProbes = 4;
    static readonly TimeSpan PingDelay = TimeSpan.FromMinutes(6), PingTimeout = TimeSpan.FromSeconds(20);

    static readonly TimeSpan FirstBackoff = TimeSpan.FromSeconds(0.1), LastBackoff = TimeSpan.FromSeconds(5);

    // Of an address over the next one of the same name.
    static readonly TimeSpan HeadStart = TimeSpan.FromSeconds(0.25);

    static readonly WriteOptions moreFollows = new(WriteFlags.BufferHint);

    readonly CallSettings settings = settings;
    readonly Endpoint endpoint = settings.Endpoint;
    readonly CancellationTokenSource stop = new();
    readonly TaskCompletionSource connected = new(TaskCreationOptions.RunContinuationsAsynchronously);
    readonly TaskCompletionSource<int> ended = new(TaskCreationOptions.RunContinuationsAsynchronously);
    FrameGate? gate;
    HttpResponseMessage? response;
    Problem? badInput;
    string? notReady, refusal;
    bool isAskedForCertificate, servesItself, isHalfClosed;

    public Trace Trace { get; } = trace;

    /// <summary>Makes the call and gives the exit code.</summary>
    /// <exception cref="Problem">The call did not end well, or stdin or stdout cannot be used.</exception>
    public async Task<int> RunAsync<TRequest, TResponse>(Input<TRequest> input, Action<TResponse> print)
        where TRequest : class, IMessage where TResponse : class, IMessage
    {
        if (endpoint.Url.Scheme == "https")
            Tls.Require();
        else if (settings is not { Trust: null, Certificate: null, Insecure: false })
            throw new Problem(2, $"--cacert, --cert and --insecure are for TLS: call https://HOST:PORT, not {endpoint}");
        Signals.On(End);
        if (settings.Deadline is { } deadline)
            stop.CancelAfter(deadline);
        // stdin and stdout may block a thread each, and the call needs some besides.
        ThreadPool.SetMinThreads(Math.Max(4, Environment.ProcessorCount), 1);
        var call = CallAsync(input, print);
        await Trace.ShowAsync(Task.WhenAny(call, ended.Task));
        var isEnded = ended.Task.IsCompleted;
        // The reset gets a moment to leave, but a peer or a stdout that nobody reads must not hold up the end.
        if (isEnded)
            await Task.WhenAny(Task.WhenAll(call, gate?.ResetSent.Task ?? Task.CompletedTask), Task.Delay(500));
        var status = call.IsCompletedSuccessfully ? call.Result.Status : (StatusCode?)null;
        Trace.Note('<', null, response is null ? [] : [response.TrailingHeaders]);
        Trace.End(isEnded ? "this side" : EndedBy(status));
        if (isEnded)
            return await ended.Task;
        var (code, message) = await call;
        if (code == StatusCode.OK)
            return badInput is null ? 0 : throw badInput;
        // Where an answer was only a refusal, the stream never was.
        var isRefusal = response is not null && (!ContentType(response).IsGrpc || One(response.Headers, "grpc-status") is not null);
        var counts = gate is { Received: (true, false) } && !isRefusal ? $" ({Trace.Counts})" : "";
        // A status need not have a message.
        throw new Problem(64 + (int)code, $"{NameOf(code)}{(message == "" ? "" : ": ")}{message}{counts}");
    }

    /// <summary>Ends the call from this side, with an exit code.</summary>
    public void End(int exitCode)
    {
        ended.TrySetResult(exitCode);
        stop.Cancel();
    }

    string EndedBy(StatusCode? status)
    {
        var side = gate switch
        {
            { Reset: not null } => "the server's reset",
            { HasEnded: true } when isHalfClosed && status == StatusCode.OK => "this side's half-close",
            { HasEnded: true } => "the server",
            { IsLost: true } => "the loss of the connection",
            _ => "this side",
        };
        return status is null ? side : $"{side}: {NameOf(status.Value)}";
    }

    async Task<(StatusCode Status, string Message)> CallAsync<TRequest, TResponse>(Input<TRequest> input, Action<TResponse> print)
        where TRequest : class, IMessage where TResponse : class, IMessage
    {
        // With an HttpClient instead of the handler, the channel leaves its load balancing out, which takes time to start. Neither is
        // disposed of, which would close the connection before a reset has left: the process ends with its call.
        var handler = new Adapter.Handler(new Connector(this), count => gate?.Took(count));
        var http = new HttpClient(handler) { Timeout = Timeout.InfiniteTimeSpan };
        var invoker = GrpcChannel.ForAddress(endpoint.Dialled, new() { HttpClient = http }).Intercept(new Adapter());
        var method = new Method<TRequest, TResponse>(MethodType.DuplexStreaming, settings.Method.Service, settings.Method.Name,
            Protobuf.Marshaller<TRequest>(), Protobuf.Marshaller<TResponse>());
        var call = invoker.AsyncDuplexStreamingCall(method, null, new(settings.Metadata, DateTime.UtcNow + settings.Deadline, stop.Token));
        try
        {
            if (Stdio.IsInteractive)
                _ = HintAsync(call.ResponseHeadersAsync);
            _ = SendAsync(input, call.RequestStream);
            while (true)
            {
                var coming = call.ResponseStream.MoveNext();
                if (!coming.IsCompleted)
                {
                    Trace.Rests();
                    Stdio.Flush();
                }
                if (!await coming)
                    return (StatusCode.OK, "");
                Trace.Came(call.ResponseStream.Current);
                print(call.ResponseStream.Current);
                // Answers may come faster than a wait for them does.
                if (Stdio.Output.WrittenCount >= Adapter.Full)
                    Stdio.Flush();
            }
        }
        catch (Exception e) when (e is OperationCanceledException or RpcException { Status.DebugException: OperationCanceledException }
            || e is RpcException { StatusCode: StatusCode.DeadlineExceeded, Status.Detail: "" })
        {
            return (StatusCode.DeadlineExceeded, gate is null ? $"the deadline has passed, and {Awaited}" : "the deadline has passed");
        }
        catch (RpcException e)
        {
            var (status, message) = Explain(e);
            return (status, IsMetadataTooLarge ? $"the metadata is larger than {endpoint} takes: {message}" : message);
        }
        finally
        {
            call.Dispose();
            Stdio.Flush();
        }
    }

    string Awaited => gate is null && notReady is not null ? notReady : $"{endpoint} has not answered";

    // Who has typed something wonders when nothing happens.
    async Task HintAsync(Task headers)
    {
        await Task.WhenAny(headers, Task.Delay(3000, stop.Token));
        if (!headers.IsCompleted && !stop.IsCancellationRequested)
            Program.Tell($"still waiting: {Awaited}");
    }

    async Task SendAsync<T>(Input<T> input, IClientStreamWriter<T> requests) where T : class, IMessage
    {
        // Nothing is taken from stdin before there is somebody to send it to.
        await connected.Task;
        try
        {
            while (await input.MoveNext(stop.Token))
            {
                Trace.Left(input.Current);
                var hasMore = input.HasMore;
                if (!hasMore)
                    Trace.Rests();
                requests.WriteOptions = hasMore ? moreFollows : null;
                await requests.WriteAsync(input.Current);
            }
        }
        catch (Problem e)
        {
            // What came before has been sent; its answers are worth having, so the stream ends as at the end of input.
            badInput = e;
        }
        isHalfClosed = true;
        Trace.Note('>', "half-close");
        await requests.CompleteAsync();
    }

    // Makes the connection; with --wait-for-ready as often as it takes.
    sealed class Connector(Client client) : DelegatingHandler(client.NewSockets())
    {
        protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancel)
        {
            // To .NET a name such as content-language or expires is the content's, and is lost on the way from the library.
            foreach (var entry in client.settings.Metadata.Where(entry => !request.Headers.NonValidated.Contains(entry.Key)))
                request.Content!.Headers.TryAddWithoutValidation(entry.Key, entry.Value);
            for (var backoff = FirstBackoff; ; backoff = backoff * 2 < LastBackoff ? backoff * 2 : LastBackoff)
                try
                {
                    var response = client.response = await base.SendAsync(request, cancel);
                    client.Trace.Note('<', $"HTTP/2 {(int)response.StatusCode}", response.Headers, response.Content.Headers);
                    return response;
                }
                catch (HttpRequestException e) when (client is { settings.WaitForReady: true, refusal: null, gate: null }
                    && e.HttpRequestError is HttpRequestError.ConnectionError or HttpRequestError.NameResolutionError
                        or HttpRequestError.SecureConnectionError)
                {
                    (_, client.notReady) = client.ExplainCause(e, default);
                    client.Trace.Note('*', $"{client.notReady}: to be tried again");
                    await Task.Delay(backoff * (0.8 + 0.4 * Random.Shared.NextDouble()), cancel);
                }
        }
    }

    SocketsHttpHandler NewSockets() => new()
    {
        UseProxy = false,
        UseCookies = false,
        AllowAutoRedirect = false,
        // Large enough that a firehose of answers never waits for a window update on a fast network.
        InitialHttp2StreamWindowSize = 1024 * 1024,
        KeepAlivePingDelay = PingDelay,
        KeepAlivePingTimeout = PingTimeout,
        ConnectCallback = ConnectAsync,
        PlaintextStreamFilter = (context, _) =>
        {
            var end = OperatingSystem.IsWindows() ? "^Z" : "^D";
            if (Stdio.IsInteractive && settings.ReadsInput)
                Program.Tell($"connected to {(servesItself ? "its own server" : endpoint)}; {end} ends the input");
            if (context.PlaintextStream is SslStream { RemoteCertificate: var certificate } tls)
                Trace.Note('*', $"{tls.SslProtocol} with {certificate?.Subject}".Replace("Tls1", "TLS 1."));
            var request = context.InitialRequestMessage;
            Trace.Note('>', $"POST {request.RequestUri!.AbsolutePath}", request.Headers, request.Content!.Headers);
            gate = new FrameGate(context.PlaintextStream);
            connected.TrySetResult();
            return new(gate);
        },
        SslOptions = new()
        {
            CertificateChainPolicy = endpoint.Url.Scheme == "https" ? Tls.ChainPolicy(settings.Trust) : null,
            ClientCertificateContext = settings.Certificate,
            RemoteCertificateValidationCallback = Accepts,
            // Whether the server asks is not known where there is a certificate to present.
            LocalCertificateSelectionCallback = settings.Certificate is not null ? null : (_, _, _, remote, _) =>
            {
                isAskedForCertificate |= remote is not null;
                return null!;
            },
        },
    };

    async ValueTask<Stream> ConnectAsync(SocketsHttpConnectionContext context, CancellationToken cancel)
    {
        if (gate is not null)
            throw new IOException("a call has one connection");
        Socket socket;
        try
        {
            socket = await (endpoint.UnixPath is null ? DialFirstAsync(context.DnsEndPoint, cancel)
                : DialAsync(new UnixDomainSocketEndPoint(endpoint.UnixPath), cancel));
        }
        catch (SocketException e) when (
            settings is { MayServeItself: true, WaitForReady: false } && e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            Program.Tell($"no server at {endpoint}, so this command brings its own");
            servesItself = true;
            var server = new Server();
            await server.StartAsync([Endpoint.Parse("", "http://127.0.0.1:0")], null);
            socket = await DialAsync(new IPEndPoint(IPAddress.Loopback, server.Endpoints[0].Url.Port), cancel);
        }
        var peer = endpoint.UnixPath is null ? $"{endpoint.Url.Scheme}://{Tcp.Plain(socket.RemoteEndPoint)}" : $"{endpoint}";
        Trace.Note('*', $"connected to {peer}");
        return new NetworkStream(socket, ownsSocket: true);
    }

    // Happy Eyeballs (RFC 8305): of a name's addresses, of both families in turn, the first that connects. Each is tried when the
    // one before has failed, or has had its moment.
    async Task<Socket> DialFirstAsync(DnsEndPoint to, CancellationToken cancel)
    {
        Socket? first = null;
        using var over = CancellationTokenSource.CreateLinkedTokenSource(cancel);
        var tries = new List<Task>();
        var left = new List<IPAddress>(await Dns.GetHostAddressesAsync(to.Host, cancel));
        var isAlone = left.Count == 1;
        for (IPAddress? address = null; first is null && left.Count > 0; left.Remove(address))
        {
            address = left.Find(other => other.AddressFamily != address?.AddressFamily) ?? left[0];
            tries.Add(TryAsync(new(address, to.Port)));
            await Task.WhenAny(tries[^1], Task.Delay(HeadStart, over.Token));
        }
        await Task.WhenAll(tries).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        var failures = tries.Select(one => one.Exception?.InnerException).OfType<SocketException>();
        if (first is null)
            cancel.ThrowIfCancellationRequested();
        // "Refused" means that nothing listens there: it is told only where no address failed otherwise, and before the lack of IPv6.
        SocketError[] last = [SocketError.ConnectionRefused, SocketError.AddressNotAvailable];
        return first ?? throw failures.MinBy(e => Array.IndexOf(last, e.SocketErrorCode)) ?? new((int)SocketError.HostNotFound);

        async Task TryAsync(IPEndPoint to)
        {
            if (!isAlone)
                Trace.Note('*', $"trying {endpoint.Url.Scheme}://{to}");
            try
            {
                var socket = await DialAsync(to, over.Token);
                if (Interlocked.CompareExchange(ref first, socket, null) is null)
                    await over.CancelAsync();
                else
                    socket.Dispose();
            }
            catch (SocketException e) when (!isAlone)
            {
                Trace.Note('*', $"{endpoint.Url.Scheme}://{to}: {e.Message}");
                throw;
            }
        }
    }

    static async Task<Socket> DialAsync(EndPoint to, CancellationToken cancel)
    {
        var socket = to is IPEndPoint ? new Socket(SocketType.Stream, ProtocolType.Tcp) : new(to.AddressFamily, SocketType.Stream, 0);
        try
        {
            if (to is IPEndPoint)
            {
                socket.NoDelay = true;
                socket.SetSocketOption(SocketOptionLevel.Socket, SocketOptionName.KeepAlive, true);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveTime, KeepAliveSeconds);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveInterval, KeepAliveInterval);
                socket.SetSocketOption(SocketOptionLevel.Tcp, SocketOptionName.TcpKeepAliveRetryCount, KeepAliveProbes);
                Tcp.GiveUpAfter(socket, TimeSpan.FromSeconds(KeepAliveSeconds + KeepAliveInterval * KeepAliveProbes));
            }
            await socket.ConnectAsync(to, cancel);
            return socket;
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    bool Accepts(object sender, X509Certificate? certificate, X509Chain? chain, SslPolicyErrors errors)
    {
        var reason = Tls.Refusal(sender, certificate, chain, errors);
        if (reason is not null && settings.Insecure)
            Program.Tell($"warning: the server's certificate is not verified: {reason}");
        else if (reason is not null)
            refusal = $"the server's certificate is refused: {reason}";
        return refusal is null;
    }

    /// <summary>A status's name (grpc/doc/statuscodes.md).</summary>
    public static string NameOf(StatusCode status) => status == StatusCode.OK ? "OK"
        : string.Concat($"{status}".Select((c, i) => char.IsUpper(c) && i > 0 ? $"_{c}" : $"{char.ToUpperInvariant(c)}"));

    // What a call ended with that did not end well, in words that help. The status is the library's, but for what the
    // specifications call differently: UNKNOWN or INTERNAL where there is no status or an unknown encoding, UNAVAILABLE
    // where a connection ends.
    (StatusCode, string) Explain(RpcException e)
    {
        if (response is null)
            return e.Status.DebugException is { } failure ? ExplainCause(failure, e.StatusCode) : (e.StatusCode, e.Status.Detail);
        var (contentType, isGrpc) = ContentType(response);
        var given = One(response.Headers, "grpc-status") ?? (isGrpc ? One(response.TrailingHeaders, "grpc-status") : null);
        if (given is not null)
            return int.TryParse(given, NumberStyles.None, null, out var code) && Enum.IsDefined((StatusCode)code)
                ? (e.StatusCode, e.Status.Detail) : (StatusCode.Unknown, $"the server sent grpc-status {given}");
        if (e.Status.DebugException is { } cause)
            return ExplainCause(cause, e.StatusCode);
        if (response.StatusCode != HttpStatusCode.OK)
            return (e.StatusCode, $"HTTP status {(int)response.StatusCode} from {endpoint}, content type {contentType}");
        if (!isGrpc)
            return (StatusCode.Unknown, $"the answer of {endpoint} is not gRPC: its content type is {contentType}");
        if (e.StatusCode == StatusCode.Unimplemented)
            return (StatusCode.Internal, e.Status.Detail);
        if (e.StatusCode != StatusCode.Cancelled)
            return (e.StatusCode, e.Status.Detail);
        return response.TrailingHeaders.Any() ? (StatusCode.Unknown, "the trailers hold no grpc-status")
            : (StatusCode.Internal, "the server ended the stream without trailers");
    }

    // Servers and proxies refuse too much metadata with HTTP status 431 or 400, a reset, an error of the connection, or just its end.
    // The least that any is known to take is 8 kB, and 100 fields, of which some are gRPC's own.
    bool IsMetadataTooLarge => response is { StatusCode: HttpStatusCode.RequestHeaderFieldsTooLarge }
        || (settings.Metadata.Count > 90 || settings.Metadata.Sum(entry => entry.Key.Length + entry.ValueBytes.Length) > 8 * 1024)
        && (response is { StatusCode: HttpStatusCode.BadRequest }
            || response is null && gate is { Received: (true, false), GoAway: not "NO_ERROR", Reset: not FrameGate.Error.REFUSED_STREAM });

    static (string Text, bool IsGrpc) ContentType(HttpResponseMessage response)
    {
        var text = One(response.Content.Headers, "content-type") ?? "none";
        return (text, text.Split('+', ';')[0].Trim().Equals("application/grpc", StringComparison.OrdinalIgnoreCase));
    }

    (StatusCode, string) ExplainCause(Exception e, StatusCode status) => e switch
    {
        InvalidDataException { Message: "Message too large." } => (StatusCode.ResourceExhausted, e.Message),
        InvalidProtocolBufferException or InvalidDataException => (StatusCode.Internal, $"a message is malformed: {e.Message}"),
        _ when gate?.Reset is { } code => (status, $"the server reset the stream: {code}"),
        _ when NoConnection(e) is { } message => (StatusCode.Unavailable, message),
        _ when gate is { Received.Any: false } && (isAskedForCertificate || settings.Certificate is not null) =>
            (StatusCode.Unauthenticated, $"{endpoint} wants a client certificate (--cert, --key) that it trusts"),
        _ when gate is not null && e.GetBaseException() is HttpProtocolException protocol =>
            (StatusCode.Internal, $"{endpoint} broke the HTTP/2 protocol: {protocol.Message}"),
        // The handler knows of a limit that the server tells, where it has told it in time.
        HttpRequestException { HttpRequestError: HttpRequestError.Unknown, InnerException: null } => (status, e.Message),
        _ => (StatusCode.Unavailable, $"the connection to {endpoint} was lost"),
    };

    // Why there is no connection, or none any more, where that can be told.
    string? NoConnection(Exception e)
    {
        var cause = e.GetBaseException();
        if (gate?.GoAway is "NO_ERROR")
            return $"{endpoint} shut down before the stream had ended";
        if (gate?.GoAway is { } reason)
            return $"the server closed the connection: {reason}";
        if (gate is { Received.IsHttp1: true })
            return $"{endpoint} speaks HTTP/1.1, not HTTP/2";
        if (refusal is not null)
            return refusal;
        if (gate is { Received.Any: false } && endpoint.Url.Scheme == "http")
            return $"{endpoint} closed the connection without an answer (does it want https://?)";
        if (gate is not null)
            return null;
        var hint = cause is AuthenticationException or IOException ? " (does it want http://?)" : "";
        return (e as HttpRequestException)?.HttpRequestError switch
        {
            _ when cause is SocketException socket => WhyNot(socket),
            HttpRequestError.VersionNegotiationError => $"{endpoint} does not speak HTTP/2",
            HttpRequestError.SecureConnectionError => $"{endpoint} does not answer in TLS with HTTP/2: {cause.Message}{hint}",
            _ => null,
        };
    }

    string WhyNot(SocketException e) => e.SocketErrorCode switch
    {
        // What may not be looked at is not known to be missing.
        SocketError.AccessDenied => $"cannot connect to {endpoint}: {e.Message}",
        _ when endpoint.PathFault is { } fault => $"nothing listens at {endpoint}: {fault}",
        _ when endpoint.UnixPath is { } path && !Path.Exists(path) => $"nothing listens at {endpoint}: there is no such file",
        SocketError.ConnectionRefused => $"nothing listens at {endpoint}",
        SocketError.HostNotFound or SocketError.NoData or SocketError.TryAgain => $"there is no host {endpoint.Url.Host}",
        _ => $"cannot connect to {endpoint}: {e.Message}",
    };

    static string? One(HttpHeaders headers, string name) => headers.NonValidated.TryGetValues(name, out var values) ? values.First() : null;
}

/// <summary>
/// What happens on a stream: each event with --verbose, its numbers with --stats and in errors. Scripts may rely on the time of
/// an event, in seconds since the call began, on its mark (as curl's: * what happens, &gt; what leaves, &lt; what comes) with the
/// message behind it, and on the four numbers that the last line begins with; all other words may change.
/// </summary>
sealed class Trace(Metadata given, bool verbose, bool stats)
{
    static readonly bool hasEscapes = Stdio.IsToldShown && Environment.GetEnvironmentVariable("TERM") is not (null or "dumb");
    readonly bool hasColour = hasEscapes && Environment.GetEnvironmentVariable("NO_COLOR") is null or "";
    readonly Lock showing = new();
    readonly long start = Now;
    long sent, received, end, last = Now;
    double firstAnswer;
    bool hasBegun;

    /// <summary>A time, to be given to <see cref="Since"/>.</summary>
    public static long Now => TimeProvider.System.GetTimestamp();

    /// <summary>Seconds from a time until now, but never beyond the stream's end; a message may still leave after that.</summary>
    public double Since(long time) => Math.Max(0, TimeProvider.System.GetElapsedTime(time, end == 0 ? Now : end).TotalSeconds);

    /// <summary>Seconds since the call began.</summary>
    public double Seconds => Since(start);

    /// <summary>What ended the stream, once it has ended.</summary>
    public string? EndedBy { get; private set; }

    /// <summary>The four numbers that scripts may rely on.</summary>
    public string Counts => $"{sent} sent, {received} received, {Seconds:0.0##} s, silent for {Since(last):0.0##} s";

    /// <summary>An event other than a message, and a line for each of some headers.</summary>
    public void Note(char mark, string? text, params ReadOnlySpan<HttpHeaders> headers)
    {
        hasBegun |= mark == '>';
        if (!verbose)
            return;
        if (text is not null)
            Show(mark, text);
        foreach (var some in headers)
            // HTTP/2 has no chunks: the handler drops the header for them.
            foreach (var (name, values) in some.NonValidated.Where(header => header.Key != "Transfer-Encoding"))
                Show(mark, $"{name.ToLowerInvariant()}: {Shown(name.ToLowerInvariant(), $"{values}")}");

        // Others read what is printed: passwords and tokens stay where they are.
        string Shown(string name, string value) =>
            mark == '>' && given.Get(name) is not null ? "(as given)" : mark == '<' && name == "set-cookie" ? "(hidden)" : value;
    }

    /// <summary>A message is about to leave.</summary>
    public void Left(IMessage message)
    {
        sent++;
        if (verbose)
            Show('>', Lines.Of(message));
    }

    /// <summary>A message has come.</summary>
    public void Came(IMessage message)
    {
        if (received++ == 0)
            firstAnswer = Seconds;
        if (verbose)
            Show('<', Lines.Of(message));
    }

    /// <summary>Something is about to be waited for: what left or came last did so now.</summary>
    public void Rests() => last = Now;

    void Show(char mark, string text)
    {
        var shown = hasColour && mark != '*' ? $"\e[36m{mark}\e[0m" : $"{mark}";
        // Both directions show what they do: lines are to have the order of their times.
        lock (showing)
            Stdio.Tell($"{Seconds,7:0.000} {shown} {Program.OneLine(text)}");
    }

    /// <summary>The stream has ended: the last line.</summary>
    public void End(string endedBy)
    {
        (end, EndedBy) = (Now, endedBy);
        var answered = received == 0 ? "" : $", first answer after {firstAnswer:0.0##} s";
        var line = $"{Counts}, {(sent + received) / Seconds:0} messages/s{answered}, ended by {endedBy}";
        if (verbose && hasBegun)
            Show('*', line);
        else if (stats && hasBegun)
            Stdio.Tell(line);
    }

    /// <summary>Waits for the end of a call, and shows the numbers so far on a terminal, but not among what is typed or printed.</summary>
    public async Task ShowAsync(Task over)
    {
        var shows = stats && !verbose && hasEscapes && !Stdio.IsInteractive && !Stdio.IsShown;
        if (shows)
            Signals.OnStop(() => Stdio.Tell("", end: ""));
        while (await Task.WhenAny(over, Task.Delay(shows ? 500 : Timeout.Infinite)) != over)
            // The terminal itself cuts the row to its width; with the cursor at its start, a resize leaves nothing of it behind.
            if (hasBegun && Stdio.IsInForeground)
                Stdio.Tell($"\r\e[?7l{Counts} \e[J\e[?7h", end: "\r");
    }
}

/// <summary>Numbers on one stream, each larger than the last, and how long the answers take. Scripts may rely on stdout.</summary>
sealed class Ping(Client client, TimeSpan every, long count) : Input<FindMaximumRequest>
{
    // A number without an answer for so long is late, and lost if the stream ends; a younger one was under way.
    static readonly TimeSpan late = TimeSpan.FromSeconds(1);

    readonly ConcurrentDictionary<long, long> unanswered = [];
    readonly ConcurrentQueue<double> times = [];
    readonly PeriodicTimer timer = new(Timeout.InfiniteTimeSpan);
    long last;

    /// <summary>Makes the call, sums it up, and gives the exit code: 0 where no number was lost.</summary>
    /// <exception cref="Problem">The stream ended otherwise than after the last number, at the deadline or by a signal.</exception>
    public async Task<int> RunAsync()
    {
        var calling = client.RunAsync<FindMaximumRequest, FindMaximumResponse>(this, Print);
        while (await Task.WhenAny(calling, Task.Delay(late)) != calling)
            if (Late().DefaultIfEmpty().Max() is > 0 and var seconds)
                Stdio.Tell($"no answer for {Math.Floor(seconds)} s");
        var (trace, lost) = (client.Trace, Late().Count());
        double[] sorted = [.. times.Order()];
        if (last > 0)
            Stdio.Tell($"{last} sent, {sorted.Length} answered, {lost} lost, {last - sorted.Length - lost} under way");
        if (sorted.Length > 0)
            Stdio.Tell($"minimum {sorted[0]:0.00} ms, median {sorted[(sorted.Length - 1) / 2]:0.00} ms, "
                + $"99th percentile {sorted[(sorted.Length * 99 - 1) / 100]:0.00} ms, maximum {sorted[^1]:0.00} ms");
        if (last > 0)
            Stdio.Tell($"the stream lived for {trace.Seconds:0.0##} s, ended by {trace.EndedBy}");
        var isDeadline = calling.Exception?.InnerException is Problem { ExitCode: 64 + (int)StatusCode.DeadlineExceeded };
        if (isDeadline && sorted.Length == 0)
            throw new Problem(1, calling.Exception!.InnerException!.Message);
        var exitCode = isDeadline ? 0 : await calling;
        return exitCode == 0 && (lost > 0 || sorted.Length == 0) ? 1 : exitCode;
    }

    IEnumerable<double> Late() => unanswered.Values.Select(client.Trace.Since).Where(seconds => seconds >= late.TotalSeconds);

    public override async Task<bool> MoveNext(CancellationToken cancel)
    {
        if (last == count)
        {
            // A server that has stopped to answer would hold up the sum for ever.
            _ = Task.Delay(TimeSpan.FromSeconds(Math.Clamp(every.TotalSeconds * 3, 5, 4_000_000))).ContinueWith(_ => client.End(0));
            return false;
        }
        if (last > 0)
            await timer.WaitForNextTickAsync(cancel);
        else
            // The first number leaves once there is a connection, and the others by the time of this one.
            timer.Period = every;
        unanswered[++last] = Trace.Now;
        Current = new() { Number = last };
        return true;
    }

    void Print(FindMaximumResponse answer)
    {
        if (!unanswered.TryRemove(answer.Maximum, out var sent))
            return;
        var time = client.Trace.Since(sent) * 1000;
        times.Enqueue(time);
        Stdio.Output.Write(Encoding.UTF8.GetBytes($"answer {answer.Maximum}: {time:0.00} ms\n"));
    }
}

/// <summary>
/// Between SocketsHttpHandler and its connection. The handler drops the answers that it holds when a stream dies, but what was
/// received must not be lost: it learns of a reset, or of the connection's end, only when the call has taken all that came before.
/// </summary>
sealed class FrameGate(Stream connection) : TransportStream
{
    /// <summary>Error codes of HTTP/2 (RFC 9113, section 7).</summary>
    public enum Error : uint
    {
        NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR, SETTINGS_TIMEOUT, STREAM_CLOSED, FRAME_SIZE_ERROR,
        REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, CONNECT_ERROR, ENHANCE_YOUR_CALM, INADEQUATE_SECURITY, HTTP_1_1_REQUIRED,
    }

    enum Kind : byte { Data, Headers, Priority, RstStream, Settings, PushPromise, Ping, GoAway, WindowUpdate, Continuation }

    const int HeaderSize = 9, LargestPayload = 16 * 1024, EndStream = 1, Padded = 8;

    readonly BufferedStream received = new(connection, 64 * 1024);
    readonly SemaphoreSlim took = new(0);

    // What of the frame the handler has not got yet, and how many bytes of the body that it got the call has not taken.
    readonly byte[] frame = new byte[HeaderSize + LargestPayload];
    ReadOnlyMemory<byte> left;
    long untaken;

    // What the peer has sent and how it has ended the stream, whether the connection has ended, and this side's own reset.
    public (bool Any, bool IsHttp1) Received { get; private set; }
    public bool HasEnded { get; private set; }
    public Error? Reset { get; private set; }
    public string? GoAway { get; private set; }
    public bool IsLost { get; private set; }
    public TaskCompletionSource ResetSent { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

    /// <summary>The call has taken so many bytes of the response's body.</summary>
    public void Took(int count)
    {
        Interlocked.Add(ref untaken, -count);
        if (took.CurrentCount == 0)
            took.Release();
    }

    public override async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default)
    {
        try
        {
            while (left.IsEmpty)
                await LookAsync(cancel);
            var count = Math.Min(into.Length, left.Length);
            left[..count].CopyTo(into);
            left = left[count..];
            return count;
        }
        catch (IOException)
        {
            IsLost = true;
            await AllTakenAsync(cancel);
            return 0;
        }
    }

    // Takes the next frame in, and waits with one that may end the stream or the connection.
    async ValueTask LookAsync(CancellationToken cancel)
    {
        var end = await received.ReadAtLeastAsync(frame.AsMemory(0, HeaderSize), HeaderSize, throwOnEndOfStream: false, cancel);
        if (end == 0)
            throw new EndOfStreamException();
        // Some answer what they do not understand with a page and nothing else.
        Received = (true, Received.IsHttp1 || frame.AsSpan(0, end).StartsWith("HTTP/"u8) || frame[0] == '<');
        var (size, kind, flags) = (SizeOf(frame), (Kind)frame[3], frame[4]);
        if (end == HeaderSize && size <= LargestPayload)
            end += await received.ReadAtLeastAsync(frame.AsMemory(end, size), size, throwOnEndOfStream: false, cancel);
        left = frame.AsMemory(0, end);
        // What is not HTTP/2 is for the handler to refuse, and of a frame that is cut off it gives the call nothing.
        if (end < HeaderSize + size)
            return;
        if (kind == Kind.Data)
            Interlocked.Add(ref untaken, (flags & Padded) == 0 ? size : size - 1 - frame[HeaderSize]);
        // What cannot end the stream, and must not wait for it.
        else if (!(kind == Kind.Ping && size == 8 || kind == Kind.WindowUpdate && size == 4))
            await AllTakenAsync(cancel);
        var payload = frame.AsSpan(HeaderSize, size);
        if (kind == Kind.RstStream && size == 4)
        {
            Reset = (Error)BinaryPrimitives.ReadUInt32BigEndian(payload);
            // After a complete answer a reset only ends the requests; the handler must not take it for a failure.
            if (HasEnded)
                payload.Clear();
        }
        else if (kind == Kind.GoAway && size >= 8)
        {
            var error = (Error)BinaryPrimitives.ReadUInt32BigEndian(payload[4..]);
            GoAway = $"{error} {Program.OneLine(Encoding.UTF8.GetString(payload[8..]))}".TrimEnd();
        }
        else if (kind > Kind.Continuation)
            left = default; // Frames of a kind that nobody knows are ignored (RFC 9113, section 4.1), and not by the handler.
        HasEnded |= kind is Kind.Data or Kind.Headers && (flags & EndStream) != 0;
    }

    async ValueTask AllTakenAsync(CancellationToken cancel)
    {
        while (Interlocked.Read(ref untaken) > 0)
            await took.WaitAsync(cancel);
    }

    public override async ValueTask WriteAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel = default)
    {
        try
        {
            await connection.WriteAsync(bytes, cancel);
        }
        catch (IOException)
        {
            // The connection is gone, and reading will tell: after all that came before.
        }
        // SocketsHttpHandler writes whole frames.
        for (; bytes.Length >= HeaderSize; bytes = bytes[Math.Min(bytes.Length, HeaderSize + SizeOf(bytes.Span))..])
            if (bytes.Span[3] == (byte)Kind.RstStream)
                ResetSent.TrySetResult();
    }

    static int SizeOf(ReadOnlySpan<byte> header) => header[0] << 16 | header[1] << 8 | header[2];

    protected override void Dispose(bool disposing) => connection.Dispose();
}
