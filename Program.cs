// Streamer: gRPC bidirectional streaming from the command line.
//
// Read it from top to bottom: what the tool does (the commands), the two RPCs, batches of messages, text to messages and
// back, the adapter that shows grpc-dotnet a batch as one message, the server, the client.

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
using System.Numerics;
using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;
using System.Text;
using System.Text.Unicode;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
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
using FindMaximumRequest = Streamer.Number;
using FindMaximumResponse = Streamer.Number;
using ServiceDescriptor = Google.Protobuf.Reflection.ServiceDescriptor;
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
                Exit codes: 0 OK; 1 bad input or output; 2 bad command line; 64 + N when a call
                ends with gRPC status N; 128 + N when signal N ends what would have gone on.
                """);
            return result;
        }
    }

    static string Example(Command command) => command.Name switch
    {
        "serve" => "streamer serve --listen 'http://*:50051' --listen unix:/tmp/streamer",
        "ping" => "streamer ping --every 10s --address https://streamer.example",
        "completion" => "source <(streamer completion bash)",
        "greet" => "printf 'Ada\\nGrace\\n' | streamer greet",
        _ => "echo 1 5 3 6 2 20 | streamer max",
    };

    // The RPC of max and of ping, under its two names.
    static readonly string[] findMaximum = ["streaming.CalculatorService/FindMaximum", "calculator.CalculatorService/FindMaximum"];

    static async Task<int> Main(string[] args)
    {
        // Native code needs no warming up, and half of what a client does at its start is not this tool's code.
        if (RuntimeFeature.IsDynamicCodeSupported && args is ["max" or "greet" or "ping", ..])
            _ = Task.Run(Client.WarmUpAsync);
        var root = new RootCommand("gRPC bidirectional streaming from the command line.")
        {
            ServeCommand(),
            ClientCommand("max", "Stream integers from stdin, print each new maximum that the server answers.", findMaximum,
                (client, _) => client.RunAsync<FindMaximumRequest, FindMaximumResponse>(new NumberReader().ReadAsync, Lines.Print)),
            ClientCommand("greet", "Stream names from stdin, one a line, print each greeting that comes back.",
                ["streaming.GreetService/GreetEveryone", "greet.GreetService/GreetEveryone"],
                (client, _) => client.RunAsync<GreetEveryoneRequest, GreetEveryoneResponse>(new NameReader().ReadAsync, Lines.Print)),
            PingCommand(),
            CompletionCommand(),
        };
        root.Options.OfType<HelpOption>().Single().Action = new Help();
        var isSuggesting = IsSuggesting(args);
        if (!isSuggesting)
            root.Directives.Clear();
        // A name on the command line may begin with @: it is not a file of arguments.
        var parsed = root.Parse(args is [] ? ["--help"] : args, new() { ResponseFileTokenReplacer = null });
        var output = new StringWriter();
        try
        {
            if (parsed.Action is not Help && !isSuggesting && Fault(parsed) is { } fault)
                throw new Problem(2, fault);
            // Signals are ours: System.CommandLine would end the process two seconds after one.
            var exitCode = await parsed.InvokeAsync(new() { Output = output, ProcessTerminationTimeout = null, EnableDefaultExceptionHandler = false });
            // Only help, the version, completion and suggestions are in here; what a signal has ended may be writing to stdout still.
            if (output.ToString() is { Length: > 0 } text)
            {
                Stdio.Output.Write(Encoding.UTF8.GetBytes(text));
                await Stdio.FlushAsync();
            }
            return exitCode;
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

    // What the completion's scripts send. Nobody else speaks in directives: in brackets is a wrong argument like any other.
    static bool IsSuggesting(string[] args) =>
        args is [['[', 's', 'u', 'g', 'g', 'e', 's', 't', ':', .. var position, ']'], var line] && line.Contains("streamer") && int.TryParse(position, NumberStyles.None, null, out _);

    // What is wrong with a command line, where to put it right, and where there is more to read. An argument may be a password
    // that a space or a missing option has brought to the wrong place: only the names of options and commands are repeated.
    static string? Fault(ParseResult parsed)
    {
        var (command, root) = (parsed.CommandResult.Command, parsed.RootCommandResult.Command);
        var stray = parsed.Tokens.FirstOrDefault(token => token.Type == TokenType.Directive)?.Value ?? parsed.UnmatchedTokens.FirstOrDefault();
        var name = stray?.Split('=', ':')[0];
        // Without a command the first error says just that, and the second, if any, why.
        var fault = parsed.Errors.Skip(command == root ? 1 : 0).Concat(parsed.Errors).FirstOrDefault()?.Message;
        if (stray is null && fault is null)
            return null;
        var commands = command == root ? root.Subcommands : [command];
        if (commands.FirstOrDefault(one => one.Options.Any(option => option.Aliases.Append(option.Name).Contains(name))) is { } owner)
            return $"{name} goes behind the command, as in: streamer {owner.Name} {name} ...";
        if (command.Name is "max" or "greet" && stray is [not ('-' or '['), ..] or ['-', >= '0' and <= '9', ..])
            return $"{command.Name} takes its input from stdin, not from the command line, as in: {Example(command)}";
        if (stray is not null)
            fault = command != root && stray is [not ('-' or '['), ..] ? $"{command.Name} takes only options." : $"Unrecognized command or argument '{name}'.";
        return $"{fault}{Suggestion()} (see streamer{(command == root ? "" : $" {command.Name}")} --help)";

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
        var listen = NewOption<string[]>("--listen", "URL", "http://HOST:PORT, https://HOST:PORT or unix:/PATH, where HOST is localhost, an IP address or * and port 0 a free one; repeatable [default: http://localhost:50051]");
        var cert = NewOption<string>("--cert", "FILE", "PEM file with the certificate and its chain; a new one there is used for new connections");
        var key = NewOption<string>("--key", "FILE", "PEM file with the certificate's private key");
        var clientCa = NewOption<string>("--client-ca", "FILE", "PEM file with roots that must vouch for clients");
        var drain = NewOption<string>("--drain", "TIME", "how long running streams may go on after a signal; a second one ends at once [default: 30]");
        var verbose = NewOption<bool>("--verbose", null, "tell of each stream on stderr", "-v");
        var command = new Command("serve", "Serve both RPCs, health checking and reflection over gRPC.") { listen, cert, key, clientCa, drain, verbose };
        listen.CompletionSources.Add(Endpoint.Default);
        command.SetAction(async (parsed, _) =>
        {
            var patience = Duration("--drain", 0, parsed.GetValue(drain) ?? "30");
            var endpoints = Array.ConvertAll(parsed.GetValue(listen) is { Length: > 0 } given ? given : [Endpoint.Default], url => Endpoint.Parse("--listen", url));
            var tls = Tls.ForServer(parsed.GetValue(cert), parsed.GetValue(key), parsed.GetValue(clientCa));
            var secure = Array.Find(endpoints, endpoint => endpoint.Url.Scheme == "https");
            if (secure is null != tls is null)
                throw new Problem(2, secure is null ? "--cert and --key are for TLS: https://HOST:PORT is to be among what is listened at" : $"{secure} needs --cert and --key");
            return await Server.RunAsync(endpoints, tls, patience, parsed.GetValue(verbose));
        });
        return command;
    }

    static Command PingCommand()
    {
        var every = NewOption<string>("--every", "TIME", "from one number to the next [default: 1]");
        var count = NewOption<string>("--count", "N", "how many numbers to send [default: no end]");
        return ClientCommand("ping", "Keep a stream open and time its answers.", findMaximum,
            (client, parsed) => new Ping(client, Duration("--every", 0.001, parsed.GetValue(every) ?? "1"), parsed.GetValue(count) is { } text ? Count(text) : long.MaxValue).RunAsync(), every, count);
    }

    static Command ClientCommand(string name, string description, string[] rpcs, Func<Client, ParseResult, Task<int>> run, params Option[] ofPing)
    {
        var isPing = ofPing.Length > 0;
        var address = NewOption<string>("--address", "URL", isPing ? "the server [default: $STREAMER_ADDRESS or localhost:50051]" : "HOST:PORT, https://HOST:PORT or unix:/PATH [default: $STREAMER_ADDRESS, else localhost:50051, else its own]");
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
        var command = new Command(name, description) { address, method, deadline, wait, header, caCert, cert, key, insecure, verbose };
        foreach (var option in isPing ? ofPing : [stats])
            command.Add(option);
        address.CompletionSources.Add(Endpoint.Default);
        method.CompletionSources.Add(rpcs);
        command.SetAction((parsed, _) =>
        {
            var asked = parsed.GetValue(address) ?? (Environment.GetEnvironmentVariable("STREAMER_ADDRESS") is { Length: > 0 } set ? set : null);
            var source = parsed.GetValue(address) is null ? "STREAMER_ADDRESS" : "--address";
            var metadata = ParseMetadata(parsed.GetValue(header) ?? []);
            return run(new Client(new CallSettings(Endpoint.Parse(source, asked ?? Endpoint.Default), ParseMethod(parsed.GetValue(method) ?? rpcs[0]), metadata,
                Deadline: parsed.GetValue(deadline) is { } text ? Duration("--deadline", 0.001, text) : null,
                WaitForReady: parsed.GetValue(wait),
                ReadsInput: !isPing,
                MayServeItself: asked is null && !isPing,
                Trust: Tls.Trust(parsed.GetValue(caCert)),
                Certificate: Tls.OwnCertificate(parsed.GetValue(cert), parsed.GetValue(key)),
                Insecure: parsed.GetValue(insecure)), new Trace(metadata, parsed.GetValue(verbose), parsed.GetValue(stats))), parsed);
        });
        return command;
    }

    static Command CompletionCommand()
    {
        var shell = new Argument<string>("SHELL") { HelpName = "SHELL", Description = "bash, zsh or fish" };
        shell.CompletionSources.Add("bash", "zsh", "fish");
        var command = new Command("completion", "Print what bash, zsh or fish sources to complete.") { shell };
        command.SetAction(parsed => parsed.InvocationConfiguration.Output.Write(parsed.GetValue(shell) switch
        {
            "bash" => """_streamer() { local IFS=$'\n'; COMPREPLY=($(compgen -W "$(streamer "[suggest:$COMP_POINT]" "$COMP_LINE")" -- "$2")); }; complete -o default -F _streamer streamer""",
            "zsh" => """_streamer() { local line="streamer ${words[2,CURRENT-1]} $PREFIX"; compadd -- ${(f)"$(streamer "[suggest:$#line]" "$line")"} || _files; }; compdef _streamer streamer""",
            "fish" => """complete -c streamer -f -a '(set -l line (commandline -cp); streamer "[suggest:"(string length -- "$line")"]" "$line" | string match -r ".+"; or __fish_complete_path (commandline -ct))'""",
            var other => throw new Problem(2, $"completion is for bash, zsh and fish, not for \"{other}\""),
        } + "\n"));
        return command;
    }

    static Option<T> NewOption<T>(string name, string? value, string description, params string[] aliases) => new(name, aliases) { HelpName = value, Description = description };

    // 5, 5s, 500ms, 1m or 1h; at most 46 days, which every timer can tell.
    static TimeSpan Duration(string option, double least, string text)
    {
        var number = text.TrimEnd('h', 'm', 's');
        var unit = text[number.Length..] switch { "" or "s" => 1, "ms" => 0.001, "m" => 60, "h" => 3600, _ => double.NaN };
        return double.TryParse(number, NumberStyles.AllowDecimalPoint, CultureInfo.InvariantCulture, out var value) && value * unit is var seconds && seconds >= least && seconds <= 4_000_000
            ? TimeSpan.FromSeconds(seconds) : throw new Problem(2, $"{option} takes seconds from {least} to 4000000, or 500ms, 5s, 1m, 1h");
    }

    static long Count(string text) =>
        long.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out var count) && count > 0 ? count : throw new Problem(2, "--count takes a number from 1");

    /// <summary>--method's SERVICE/METHOD.</summary>
    /// <exception cref="Problem">It is not two names with a slash between them.</exception>
    static (string Service, string Name) ParseMethod(string text) =>
        text.TrimStart('/') is var name && name.All(c => char.IsAsciiLetterOrDigit(c) || c is '.' or '_' or '/') && name.Split('/') is [{ Length: > 0 } service, { Length: > 0 } method]
            ? (service, method) : throw new Problem(2, "--method takes SERVICE/METHOD");

    /// <summary>-H's "name: value", checked as PROTOCOL-HTTP2 defines Custom-Metadata.</summary>
    /// <exception cref="Problem">A name is invalid or gRPC's own, or a value is not ASCII or not base64.</exception>
    static Metadata ParseMetadata(string[] headers)
    {
        var metadata = new Metadata();
        foreach (var header in headers)
        {
            var (name, value) = header.Split(':', 2) is [var before, var after] ? (before.Trim().ToLowerInvariant(), after.Trim()) : ("", "");
            if (name.Length == 0 || !name.All(c => char.IsAsciiLetterLower(c) || char.IsAsciiDigit(c) || c is '-' or '_' or '.'))
                throw new Problem(2, "-H takes 'name: value', and a name of letters, digits, '-', '_' and '.'");
            // What tells how a call or a connection works (RFC 9113, section 8.2.2), and what gRPC sets.
            if (name.StartsWith("grpc-", StringComparison.Ordinal) || name is "te" or "content-type" or "user-agent" or "host" or "connection" or "proxy-connection"
                or "keep-alive" or "transfer-encoding" or "content-length" or "upgrade" or "expect" or "trailer")
                throw new Problem(2, $"-H cannot set {name}: it is gRPC's or HTTP's own");
            if (!value.All(c => c is >= ' ' and <= '~'))
                throw new Problem(2, $"-H {name}: a value is printable ASCII; other bytes go in base64 under a name that ends in -bin");
            if (!name.EndsWith("-bin", StringComparison.Ordinal))
                metadata.Add(name, value);
            else if (value.TrimEnd('=') is var digits && digits.PadRight((digits.Length + 3) / 4 * 4, '=') is var padded && Base64.IsValid(padded))
                metadata.Add(name, Convert.FromBase64String(padded));
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
    public Uri Dialled => IPAddress.TryParse(Url.IdnHost, out var ip) && (ip.Equals(IPAddress.Any) || ip.Equals(IPAddress.IPv6Any)) ? new UriBuilder(Url) { Host = "localhost" }.Uri : Url;

    /// <summary>Takes http://HOST:PORT, https://HOST:PORT, HOST:PORT, HOST, PORT, :PORT and unix:/PATH.</summary>
    /// <param name="source">The option or variable that holds the text, which is not repeated: it may hold a password.</param>
    /// <exception cref="Problem">The text is none of these.</exception>
    public static Endpoint Parse(string source, string text)
    {
        if (text.StartsWith("unix:", StringComparison.Ordinal))
            return UnixSocket(source, text[5..]);
        var hasScheme = text.Contains("://", StringComparison.Ordinal);
        var bare = text.StartsWith(':') ? text[1..] : text;
        // Uri takes a plain number for a host's address, and knows no host "*": [::] is what that means, any address, of IPv4 as well.
        var url = (hasScheme ? text
            : bare.Length > 0 && bare.All(char.IsAsciiDigit) ? $"http://localhost:{bare}"
            : !text.StartsWith('[') && IPAddress.TryParse(text, out var ip) && ip.AddressFamily == AddressFamily.InterNetworkV6 ? $"http://[{text}]"
            : $"http://{text}").Replace("//*", "//[::]");
        if (Uri.TryCreate(url, UriKind.Absolute, out var uri)
            && uri is { Scheme: "http" or "https", PathAndQuery: "/", UserInfo: "", Fragment: "" }
            && (uri.HostNameType != UriHostNameType.IPv4 || url.Contains(uri.Host)))
            // For http Uri has port 80 whether one was given or not; for a scheme that it does not know, -1 where none was.
            return new(hasScheme || new Uri($"grpc{url[4..]}").Port >= 0 ? uri : new UriBuilder(uri) { Port = new Uri(Default).Port }.Uri, null);
        throw new Problem(2, $"{source} takes HOST:PORT, http://HOST:PORT, https://HOST:PORT or unix:/PATH");
    }

    static Endpoint UnixSocket(string source, string path) =>
        path.TrimStart('/') is "" || path.EndsWith('/') ? throw new Problem(2, $"{source} takes unix:/PATH, with the name of a socket")
        : Path.GetFullPath(path) is var full && Encoding.UTF8.GetByteCount(full) <= MaxUnixPath ? new(new("http://localhost"), full)
        : throw new Problem(2, $"{source} takes unix:/PATH, where a path has at most {MaxUnixPath} bytes");

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

/// <summary>The handlers, as grpc-dotnet has them; only that what their streams carry are batches of all the messages that have come.</summary>
static class Rpcs
{
    /// <summary>One answer for each request.</summary>
    public static async Task GreetEveryone(IAsyncStreamReader<Batch<GreetEveryoneRequest>> requests, IServerStreamWriter<Batch<GreetEveryoneResponse>> responses, ServerCallContext context)
    {
        var answers = new Batch<GreetEveryoneResponse>();
        while (await requests.MoveNext())
        {
            foreach (var request in requests.Current)
                answers.Add("Hello "u8, request, "!"u8);
            await responses.WriteAsync(answers);
        }
    }

    /// <summary>An answer only when a number is larger than all before it on the stream.</summary>
    public static async Task FindMaximum(IAsyncStreamReader<Batch<FindMaximumRequest>> requests, IServerStreamWriter<Batch<FindMaximumResponse>> responses, ServerCallContext context)
    {
        var answers = new Batch<FindMaximumResponse>();
        long? largest = null;
        while (await requests.MoveNext())
        {
            foreach (var request in requests.Current)
                if (largest is null || request.Value > largest)
                    answers.Add((largest = request.Value).Value);
            await responses.WriteAsync(answers);
        }
    }
}

// ---------------------------------------------------------------------------------------------
// Batches: messages that travel together, as their bytes on the wire
// ---------------------------------------------------------------------------------------------

/// <summary>
/// Length-Prefixed-Messages, one behind the other (grpc/doc/PROTOCOL-HTTP2.md). They are written and read in place, which
/// takes a tenth of the time that an object and a call of grpc-dotnet's for each would.
/// </summary>
sealed class Batch<T> where T : IWire<T>, allows ref struct
{
    byte[] buffer = [];
    int start, end, untidied;

    /// <summary>The messages' bytes, without those that have been taken by enumerating; good until the batch changes.</summary>
    public ReadOnlyMemory<byte> Bytes => buffer.AsMemory(start, end - start);

    /// <summary>Makes this a batch of those messages at the start of some bytes that have their usual form; false where there is none.</summary>
    public bool TrySet(ReadOnlyMemory<byte> bytes)
    {
        IsForeign = false;
        var hasAny = MemoryMarshal.TryGetArray(bytes, out var array) && T.Take(bytes.Span, out _) > 0;
        (buffer, start, end) = hasAny ? (array.Array!, array.Offset, array.Offset + array.Count) : ([], 0, 0);
        Tidy(bytes.Length);
        return hasAny;
    }

    // Told the bytes of each batch. A firehose leaves little garbage, but the collector would let some 12 MB of it gather; and
    // each collection costs memory too, so that there is one in 32 MiB.
    void Tidy(int moved)
    {
        untidied += moved;
        if (untidied < 32 * 1024 * 1024)
            return;
        untidied = 0;
        GC.Collect(0);
    }

    /// <summary>Whether this is one message that has fields, and none that its type knows: it was meant as another.</summary>
    public bool IsForeign { get; private set; }

    /// <summary>Makes this a batch of one message, which came in another form.</summary>
    public void Set(IMessage message)
    {
        // protobuf keeps what it does not know, and that is no part of the usual form.
        var known = T.Parser.WithDiscardUnknownFields(true).ParseFrom(message.ToByteArray());
        IsForeign = known.CalculateSize() == 0 && message.CalculateSize() > 0;
        buffer = [.. new byte[Wire.PrefixSize], .. known.ToByteArray()];
        (start, end) = (0, Wire.WritePrefix(buffer, buffer.Length - Wire.PrefixSize));
    }

    /// <summary>Room for so many bytes of messages.</summary>
    public Span<byte> GetSpan(int size)
    {
        if (buffer.Length - end < size)
        {
            var (old, larger) = (buffer, ArrayPool<byte>.Shared.Rent(Math.Max(Wire.FullBatch, end) + size));
            old.AsSpan(0, end).CopyTo(larger);
            buffer = larger;
            ArrayPool<byte>.Shared.Return(old);
        }
        return buffer.AsSpan(end);
    }

    /// <summary>So many bytes of the room hold messages now.</summary>
    public void Advance(int size, int messages = 1) => (end, Added) = (end + size, Added + messages);

    /// <summary>Adds a message of so many bytes, which are then to be written.</summary>
    public Span<byte> AddMessage(int size)
    {
        var frame = GetSpan(Wire.PrefixSize + size);
        Advance(Wire.WritePrefix(frame, size));
        return frame.Slice(Wire.PrefixSize, size);
    }

    /// <summary>Empties a batch that was filled by adding; it holds no memory then.</summary>
    public void Clear()
    {
        Tidy(end);
        ArrayPool<byte>.Shared.Return(buffer);
        (buffer, start, end, Added) = ([], 0, 0, 0);
    }

    /// <summary>How many messages have been added since it was empty.</summary>
    public int Added { get; private set; }

    /// <summary>How many messages have ever been taken by enumerating.</summary>
    public long Taken { get; private set; }

    /// <summary>The same messages, to be taken without taking them from here.</summary>
    public Batch<T> Peek() => new() { buffer = buffer, start = start, end = end };

    public Enumerator GetEnumerator() => new(this);

    /// <summary>Takes messages out of the batch, up to the first that has another form.</summary>
    public ref struct Enumerator(Batch<T> batch)
    {
        ReadOnlySpan<byte> rest = batch.Bytes.Span;
        T current = default!;
        int count;

        public readonly T Current => current;

        [MethodImpl(MethodImplOptions.AggressiveInlining)]
        public bool MoveNext()
        {
            var size = T.Take(rest, out current);
            rest = rest[size..];
            count += size > 0 ? 1 : 0;
            return size > 0;
        }

        // Here foreach ends, also by an exception.
        public readonly void Dispose() => (batch.start, batch.Taken) = (batch.end - rest.Length, batch.Taken + count);
    }
}

/// <summary>A message as it lies in a batch, in the one form that it is written in here. Texts are in UTF-8.</summary>
interface IWire<T> where T : IWire<T>, allows ref struct
{
    /// <summary>What reads a message in any form.</summary>
    static abstract MessageParser Parser { get; }

    /// <summary>Reads the message at the start of some bytes, and gives its size with its prefix; 0 where it is not whole or has another form.</summary>
    static abstract int Take(ReadOnlySpan<byte> bytes, out T view);

    /// <summary>What -v shows.</summary>
    string Text { get; }
}

/// <summary>FindMaximum's messages, which are alike in both directions.</summary>
readonly record struct Number(long Value) : IWire<Number>
{
    public static MessageParser Parser => Streaming.FindMaximumRequest.Parser;

    public string Text => $"{Value}";

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int Take(ReadOnlySpan<byte> bytes, out Number view)
    {
        var size = Wire.TakeNumber(bytes, out var number);
        view = new(number);
        return size;
    }
}

readonly ref struct GreetEveryoneRequest(ReadOnlySpan<byte> firstName, ReadOnlySpan<byte> lastName) : IWire<GreetEveryoneRequest>
{
    public ReadOnlySpan<byte> FirstName { get; } = firstName;
    public ReadOnlySpan<byte> LastName { get; } = lastName;

    public static MessageParser Parser => Streaming.GreetEveryoneRequest.Parser;

    public string Text => $"{Encoding.UTF8.GetString(FirstName)} {Encoding.UTF8.GetString(LastName)}".TrimEnd(' ');

    public static int Take(ReadOnlySpan<byte> bytes, out GreetEveryoneRequest view)
    {
        var size = Wire.Take(bytes, out var message);
        var greeting = Wire.TakeText(ref message, 1);
        view = new(Wire.TakeText(ref greeting, 1), Wire.TakeText(ref greeting, 2));
        return message.IsEmpty && greeting.IsEmpty && Utf8.IsValid(view.FirstName) && Utf8.IsValid(view.LastName) ? size : 0;
    }
}

readonly ref struct GreetEveryoneResponse(ReadOnlySpan<byte> result) : IWire<GreetEveryoneResponse>
{
    public ReadOnlySpan<byte> Result { get; } = result;

    public static MessageParser Parser => Streaming.GreetEveryoneResponse.Parser;

    public string Text => Encoding.UTF8.GetString(Result);

    public static int Take(ReadOnlySpan<byte> bytes, out GreetEveryoneResponse view)
    {
        var size = Wire.Take(bytes, out var message);
        view = new(Wire.TakeText(ref message, 1));
        return message.IsEmpty && Utf8.IsValid(view.Result) ? size : 0;
    }
}

/// <summary>Writes messages into batches.</summary>
static class Messages
{
    public static void Add(this Batch<Number> batch, long number) => batch.Advance(Wire.WriteNumber(batch.GetSpan(Wire.MaxNumberSize), number));

    public static void Add(this Batch<GreetEveryoneRequest> batch, ReadOnlySpan<byte> first, ReadOnlySpan<byte> last)
    {
        var size = Wire.SizeOfText(first.Length) + Wire.SizeOfText(last.Length);
        var message = batch.AddMessage(Wire.SizeOfText(size));
        Wire.WriteTag(ref message, 1, size);
        Wire.WriteTag(ref message, 1, first.Length);
        Wire.Write(ref message, first);
        Wire.WriteTag(ref message, 2, last.Length);
        Wire.Write(ref message, last);
    }

    public static void Add(this Batch<GreetEveryoneResponse> batch, ReadOnlySpan<byte> hello, GreetEveryoneRequest whom, ReadOnlySpan<byte> end)
    {
        ReadOnlySpan<byte> space = whom.LastName.IsEmpty ? ""u8 : " "u8;
        var size = hello.Length + whom.FirstName.Length + space.Length + whom.LastName.Length + end.Length;
        var message = batch.AddMessage(Wire.SizeOfText(size));
        Wire.WriteTag(ref message, 1, size);
        Wire.Write(ref message, hello);
        Wire.Write(ref message, whom.FirstName);
        Wire.Write(ref message, space);
        Wire.Write(ref message, whom.LastName);
        Wire.Write(ref message, end);
    }
}

/// <summary>gRPC's framing, and protobuf's encoding as far as the contract uses it (protobuf.dev, "Encoding"). Sizes are in bytes.</summary>
static class Wire
{
    /// <summary>A message's prefix: whether it is compressed, in one byte, and its length in four, big-endian.</summary>
    public const int PrefixSize = 5;

    /// <summary>The largest message that is read: gRPC's usual default of 4 MiB.</summary>
    public const int MaxMessage = 4 * 1024 * 1024;

    /// <summary>From this size on a batch is full: it still fits in a processor's nearer caches. A larger message travels by itself.</summary>
    public const int FullBatch = 64 * 1024;

    // Field 1, as a varint.
    const byte NumberTag = 1 << 3;

    /// <summary>The room that it takes to write a number, with its prefix.</summary>
    public const int MaxNumberSize = 16;

    /// <summary>A method as grpc-dotnet has it, which reads messages in any form; batches are written past it.</summary>
    public static Method<IMessage, IMessage> Method(string service, string name, MessageParser requests, MessageParser responses) =>
        new(MethodType.DuplexStreaming, service, name, Marshaller(requests), Marshaller(responses));

    static Marshaller<IMessage> Marshaller(MessageParser parser) =>
        new((message, context) => context.Complete(message.ToByteArray()), context => parser.ParseFrom(context.PayloadAsReadOnlySequence()));

    /// <summary>Finds the message at the start of some bytes, and gives its size with its prefix; 0 where it is not whole or not plain.</summary>
    public static int Take(ReadOnlySpan<byte> bytes, out ReadOnlySpan<byte> message)
    {
        message = default;
        if (bytes.Length < PrefixSize || bytes[0] != 0)
            return 0;
        var size = BinaryPrimitives.ReadUInt32BigEndian(bytes[1..]);
        if (size > bytes.Length - PrefixSize)
            return 0;
        message = bytes.Slice(PrefixSize, (int)size);
        return PrefixSize + (int)size;
    }

    /// <summary>Writes the prefix of a message of so many bytes, and gives the size of both.</summary>
    public static int WritePrefix(Span<byte> frame, int size)
    {
        frame[0] = 0;
        BinaryPrimitives.WriteInt32BigEndian(frame[1..], size);
        return PrefixSize + size;
    }

    /// <summary>Writes a message that is a number in field 1, or nothing where that is 0, with its prefix, and gives the size of both.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int WriteNumber(Span<byte> frame, long number)
    {
        if (number is <= 0 or >= 1 << 28)
        {
            frame[PrefixSize] = NumberTag;
            return WritePrefix(frame, number == 0 ? 0 : 1 + WriteVarint(frame[(PrefixSize + 1)..], (ulong)number));
        }
        // Nearly all numbers are up to four bytes of seven bits each: prefix, tag and varint without a loop.
        var bits = (uint)number;
        var size = SizeOfVarint(bits);
        BinaryPrimitives.WriteUInt64LittleEndian(frame, (ulong)(1 + size) << 32 | (ulong)NumberTag << 40);
        BinaryPrimitives.WriteUInt32LittleEndian(frame[(PrefixSize + 1)..], bits & 0x7f | (bits & 0x3f80) << 1 | (bits & 0x1fc000) << 2 | bits >> 21 << 24 | 0x808080 & LowBytes(size - 1));
        return PrefixSize + 1 + size;
    }

    /// <summary>Reads a message that is a number in field 1, or nothing where that is 0, and gives its size with its prefix; 0 for any other form.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static int TakeNumber(ReadOnlySpan<byte> bytes, out long number)
    {
        // What is written without a loop is read without one.
        if (bytes.Length > PrefixSize + 5 && BinaryPrimitives.ReadUInt32LittleEndian(bytes) == 0 && bytes[4] is >= 2 and <= 5 && bytes[PrefixSize] == NumberTag)
        {
            var size = bytes[4] - 1;
            var varint = BinaryPrimitives.ReadUInt32LittleEndian(bytes[(PrefixSize + 1)..]) & LowBytes(size);
            number = varint & 0x7f | (varint & 0x7f00) >> 1 | (varint & 0x7f0000) >> 2 | (varint & 0x7f000000) >> 3;
            return (varint & 0x80808080) == (0x808080 & LowBytes(size - 1)) ? PrefixSize + 1 + size : 0;
        }
        return TakeAnyNumber(bytes, out number);
    }

    static uint LowBytes(int count) => (uint)((1UL << (8 * count)) - 1);

    static int TakeAnyNumber(ReadOnlySpan<byte> bytes, out long number)
    {
        var (size, varint) = (Take(bytes, out var message), 0UL);
        var isUsual = message.IsEmpty || message.Length > 1 && message[0] == NumberTag && TakeVarint(message[1..], out varint) == message.Length - 1;
        number = (long)varint;
        return isUsual ? size : 0;
    }

    /// <summary>What a text or a message takes in a field, with what comes before it; nothing where it is empty.</summary>
    public static int SizeOfText(int size) => size == 0 ? 0 : 1 + SizeOfVarint((uint)size) + size;

    /// <summary>Writes what comes before a text or a message of so many bytes, in a field whose number is below 16.</summary>
    public static void WriteTag(ref Span<byte> into, int field, int size)
    {
        if (size == 0)
            return;
        into[0] = (byte)(field << 3 | 2);
        into = into[(1 + WriteVarint(into[1..], (ulong)size))..];
    }

    /// <summary>Writes some bytes.</summary>
    public static void Write(ref Span<byte> into, ReadOnlySpan<byte> bytes)
    {
        bytes.CopyTo(into);
        into = into[bytes.Length..];
    }

    /// <summary>Takes the text or the message in a field off the front; where it is not there, or cut off, it takes nothing.</summary>
    public static ReadOnlySpan<byte> TakeText(scoped ref ReadOnlySpan<byte> fields, int field)
    {
        if (fields.IsEmpty || fields[0] != (field << 3 | 2))
            return default;
        var start = 1 + TakeVarint(fields[1..], out var size);
        if (start == 1 || size > (ulong)(fields.Length - start))
            return default;
        var text = fields.Slice(start, (int)size);
        fields = fields[(start + (int)size)..];
        return text;
    }

    // Reads a varint of up to ten bytes and gives its size; 0 where it is cut off or longer.
    static int TakeVarint(ReadOnlySpan<byte> bytes, out ulong value)
    {
        value = 0;
        for (var i = 0; i < bytes.Length && i < 10; i++)
        {
            value |= (bytes[i] & 0x7fUL) << (7 * i);
            if (bytes[i] <= 0x7f)
                return i + 1;
        }
        return 0;
    }

    // As protobuf has it: a byte for every seven bits, without a division.
    static int SizeOfVarint(uint value) => (BitOperations.Log2(value) * 9 + 73) / 64;

    static int WriteVarint(Span<byte> into, ulong value)
    {
        var size = 0;
        for (; value > 0x7f; value >>= 7)
            into[size++] = (byte)(value | 0x80);
        into[size] = (byte)value;
        return size + 1;
    }
}

// ---------------------------------------------------------------------------------------------
// Text to messages, messages to text
// ---------------------------------------------------------------------------------------------

/// <summary>Cuts requests out of the text that comes on stdin.</summary>
abstract class RequestReader<T> where T : IWire<T>, allows ref struct
{
    byte[] buffer = new byte[64 * 1024];
    int start, end;

    /// <summary>Whether stdin has ended: what <see cref="Take"/> is given then is all there is.</summary>
    protected bool Ended { get; private set; }

    /// <summary>The number of the line that comes next.</summary>
    protected long Line { get; set; } = 1;

    /// <summary>What is wrong with the text that comes next, and how many bytes of it are to be skipped where it is typed by hand.</summary>
    protected (string Message, int Length)? Fault { get; set; }

    /// <summary>Takes requests off the front of the text until the batch is full, more text is needed or there is a fault; gives the bytes taken.</summary>
    protected abstract int Take(ReadOnlySpan<byte> text, Batch<T> batch);

    /// <summary>Fills a batch with the requests that are there, and waits for one; false at the end.</summary>
    /// <exception cref="Problem">The text is not what the command takes. What came before it has been read already.</exception>
    public async ValueTask<bool> ReadAsync(Batch<T> batch)
    {
        while (true)
        {
            if (start == 0 && Line == 1 && IsUtf16(buffer.AsSpan(0, end)))
                throw new Problem(1, "the input is in UTF-16, not UTF-8");
            if (Fault is null)
                start += Take(buffer.AsSpan(start, end - start), batch);
            if (!batch.Bytes.IsEmpty)
                return true;
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

    // By its byte order mark, or by the halves that are 0 in what is ASCII.
    static bool IsUtf16(ReadOnlySpan<byte> text) => text is [0xFF, 0xFE, ..] or [0xFE, 0xFF, ..] or [not 0, 0, not 0, 0, ..] or [0, not 0, 0, not 0, ..];

    /// <summary>The start of a token, fit to be shown in a message.</summary>
    protected static string Excerpt(ReadOnlySpan<byte> token)
    {
        var text = Program.OneLine(Encoding.UTF8.GetString(token[..Math.Min(token.Length, 160)]));
        return text.Length > 40 ? text[..40] + "…" : text;
    }
}

/// <summary>Integers separated by white space or commas, as requests.</summary>
sealed class NumberReader : RequestReader<FindMaximumRequest>
{
    // Leading zeros are fine, but not without end: a token must fit in memory to be parsed.
    const int MaxLength = 4096;

    protected override int Take(ReadOnlySpan<byte> text, Batch<FindMaximumRequest> batch)
    {
        var frames = batch.GetSpan(Wire.FullBatch + Wire.MaxNumberSize);
        var (at, used, count) = (0, 0, 0);
        while (used < Wire.FullBatch)
        {
            while (at < text.Length && IsSeparator(text[at]))
                at++;
            var token = text[at..];
            if (token.Length > 8 && EightDigits(BinaryPrimitives.ReadUInt64LittleEndian(token), out var number) is > 0 and var length && IsSeparator(token[length]))
                used += Wire.WriteNumber(frames[used..], number);
            // What some editors put before text, and `cat` leaves in its middle.
            else if (token.StartsWith("\uFEFF"u8))
            {
                at += 3;
                continue;
            }
            else if ((length = Parse(token, out number)) > 0)
                used += Wire.WriteNumber(frames[used..], number);
            else
                break;
            at += length;
            count++;
        }
        batch.Advance(used, count);
        Line += text[..at].Count((byte)'\n');
        return at;
    }

    // The length of any token; 0 where it may go on in bytes that are still to come, or is none.
    int Parse(ReadOnlySpan<byte> token, out long number)
    {
        var length = 0;
        while (length < token.Length && !IsSeparator(token[length]))
            length++;
        number = 0;
        if (length == 0 || length == token.Length && !Ended && length <= MaxLength)
            return 0;
        if (length <= MaxLength && Utf8Parser.TryParse(token[..length], out number, out var used) && (used == length || token[used..].StartsWith("\uFEFF"u8)))
            return used;
        Fault = ($"\"{Excerpt(token[..length])}\" is not an integer from {long.MinValue} to {long.MaxValue}", length);
        return 0;
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
sealed class NameReader : RequestReader<GreetEveryoneRequest>
{
    // With the message around it, a longer one would be more than servers take.
    const int MaxLength = Wire.MaxMessage - 32;

    protected override int Take(ReadOnlySpan<byte> text, Batch<GreetEveryoneRequest> batch)
    {
        var rest = text;
        for (; batch.Bytes.Length < Wire.FullBatch && !rest.IsEmpty; Line++)
        {
            var length = rest.IndexOf((byte)'\n');
            var line = length < 0 ? rest : rest[..length];
            if (line.Length > MaxLength)
                Fault = ($"the name is longer than {MaxLength} bytes", line.Length);
            else if (length < 0 && !Ended)
                break;
            else if (!Utf8.IsValid(line))
                Fault = ($"\"{Excerpt(line)}\" is not valid UTF-8", line.Length);
            if (Fault is not null)
                break;
            rest = rest[(length < 0 ? rest.Length : length + 1)..];
            Add(line, batch);
        }
        return text.Length - rest.Length;
    }

    // Nearly all names are ASCII, and need no strings.
    static void Add(ReadOnlySpan<byte> line, Batch<GreetEveryoneRequest> batch)
    {
        ReadOnlySpan<byte> first, last, whiteSpace = " \t\v\f\r"u8;
        if (Ascii.IsValid(line))
        {
            line = line.Trim(whiteSpace);
            first = line.IndexOfAny(whiteSpace) is >= 0 and var length ? line[..length] : line;
            last = line[first.Length..].TrimStart(whiteSpace);
        }
        else
        {
            var name = Encoding.UTF8.GetString(line).Replace('\uFEFF', ' ').Trim();
            var length = name.TakeWhile(c => !char.IsWhiteSpace(c)).Count();
            first = Encoding.UTF8.GetBytes(name[..length]);
            last = Encoding.UTF8.GetBytes(name[length..].TrimStart());
        }
        if (!first.IsEmpty)
            batch.Add(first, last);
    }
}

/// <summary>Answers as lines of text.</summary>
static class Lines
{
    public static void Print(Batch<FindMaximumResponse> answers)
    {
        foreach (var answer in answers)
        {
            var line = Stdio.Output.GetSpan(24);
            Utf8Formatter.TryFormat(answer.Value, line, out var length);
            line[length] = (byte)'\n';
            Stdio.Output.Advance(length + 1);
        }
    }

    public static void Print(Batch<GreetEveryoneResponse> answers)
    {
        foreach (var answer in answers)
        {
            // A terminal would obey what a server sends.
            Stdio.Output.Write(Stdio.IsShown ? Encoding.UTF8.GetBytes(Program.OneLine(Encoding.UTF8.GetString(answer.Result))) : answer.Result);
            Stdio.Output.Write("\n"u8);
        }
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
    public static Task FlushAsync()
    {
        var error = Write(output, Output.WrittenSpan);
        Output.ResetWrittenCount();
        // EPIPE, ERROR_BROKEN_PIPE and ERROR_NO_DATA.
        return error is null ? Task.CompletedTask : throw new Problem(error.HResult is 32 or unchecked((int)0x8007006D) or unchecked((int)0x800700E8) ? 0 : 1, $"stdout: {error.Message}");
    }

    /// <summary>Tells the user one line on stderr, where that can be written.</summary>
    public static void Tell(string line, string end = "\n") => Write(errors, Encoding.UTF8.GetBytes(line + end));

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
// The adapter: grpc-dotnet for everything, but for the messages of a busy stream
//
// A call is grpc-dotnet's, with its headers, deadline, status and trailers. Its messages are read from a pipe that is ours
// as well: of those that have arrived, the whole and usual ones are taken right there, as one batch; whatever comes next
// is left to grpc-dotnet, which reads the same pipe: a message that is compressed, large, malformed, cut off or in another
// form, and the end. A batch that is written goes to the transport past grpc-dotnet. Nothing of this can be seen on the wire.
// ---------------------------------------------------------------------------------------------

/// <summary>Reads a stream in batches, on both sides.</summary>
/// <param name="pipe">The body, which <paramref name="others"/> reads as well.</param>
/// <param name="others">The library's stream of the same messages.</param>
/// <param name="flush">Called before anything is waited for.</param>
/// <param name="isRequest">Whether its end is all: no status follows, for the library to read.</param>
/// <param name="stop">Ends the wait.</param>
sealed class BatchReader<T>(PipeReader pipe, IAsyncStreamReader<IMessage> others, Func<Task> flush, bool isRequest, CancellationToken stop) : IAsyncStreamReader<Batch<T>> where T : IWire<T>, allows ref struct
{
    ReadOnlySequence<byte> bytes;

    public Batch<T> Current { get; } = new();

    public async Task<bool> MoveNext(CancellationToken cancel)
    {
        Release();
        var reading = pipe.ReadAsync(stop);
        if (!reading.IsCompleted)
            await flush();
        try
        {
            var read = await reading;
            if (TryTake(read))
                return true;
            if (isRequest && read is { IsCompleted: true, Buffer.IsEmpty: true })
                return false;
        }
        catch (IOException)
        {
            // For the library to say what that means.
        }
        var moving = others.MoveNext(stop);
        if (!moving.IsCompleted)
            await flush();
        if (!await moving)
            return false;
        Current.Set(others.Current);
        return true;
    }

    /// <summary>Takes one more batch of what has arrived already, also after the stop.</summary>
    public bool TryMoveNext()
    {
        Release();
        return pipe.ReadAsync() is { IsCompletedSuccessfully: true } reading && TryTake(reading.Result);
    }

    bool TryTake(ReadResult read)
    {
        var hasTaken = Current.TrySet(read.Buffer.First);
        if (hasTaken)
            bytes = read.Buffer;
        else
            pipe.AdvanceTo(read.Buffer.Start);
        return hasTaken;
    }

    // Only when the next batch is asked for is the one before done with; an idle stream holds no memory of the pipe's.
    void Release()
    {
        if (!bytes.IsEmpty)
            pipe.AdvanceTo(bytes.GetPosition(bytes.FirstSpan.Length - Current.Bytes.Length));
        bytes = default;
        Current.TrySet(default);
    }
}

/// <summary>Writes a stream in batches, on the server.</summary>
sealed class BatchWriter<T>(PipeWriter pipe, CancellationToken stop) : IServerStreamWriter<Batch<T>> where T : IWire<T>, allows ref struct
{
    bool hasFlushed;

    public WriteOptions? WriteOptions { get; set; }

    /// <summary>How many messages have been written.</summary>
    public long Sent { get; private set; }

    /// <summary>Writes a batch, which is empty then, and flushes only much: there may be more to write, and a flush comes before the next wait.</summary>
    public Task WriteAsync(Batch<T> batch)
    {
        // Writing nothing would still take a block of memory, until the next flush.
        if (!batch.Bytes.IsEmpty)
            pipe.Write(batch.Bytes.Span);
        Sent += batch.Added;
        batch.Clear();
        return pipe.UnflushedBytes < Wire.FullBatch ? Task.CompletedTask : FlushAsync();
    }

    /// <summary>Sends what has been written, and the first time the headers before it.</summary>
    public Task FlushAsync()
    {
        if (hasFlushed && pipe.UnflushedBytes == 0)
            return Task.CompletedTask;
        hasFlushed = true;
        // Only the wait ends: Kestrel aborts a stream whose flush is cancelled, and drops what was to be flushed.
        return pipe.FlushAsync(CancellationToken.None).AsTask().WaitAsync(stop);
    }
}

/// <summary>On the client, between the library and SocketsHttpHandler: where the pipes of a call come from.</summary>
/// <param name="took">Told how many bytes of the response's body have been taken.</param>
sealed class PipeHandler(HttpMessageHandler inner, Action<int> took) : DelegatingHandler(inner)
{
    readonly TaskCompletionSource<Stream> requests = new(TaskCreationOptions.RunContinuationsAsynchronously);
    readonly CancellationTokenSource closed = new();
    Stream? body;

    /// <summary>Where requests are written.</summary>
    public Task<Stream> Requests => requests.Task;

    /// <summary>Where responses are read, once their headers are there.</summary>
    public PipeReader? Responses { get; private set; }

    /// <summary>Ends the call, with a reset where it has not ended.</summary>
    public void Close()
    {
        closed.Cancel();
        body?.Dispose();
    }

    // Not the library's token: at a deadline it would drop answers that have arrived. Close ends the call.
    protected override async Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancel)
    {
        var content = request.Content!;
        request.Content = WithHeaders(content.Headers, new RequestContent(async stream =>
        {
            // SocketsHttpHandler tries a refused stream again; but what stdin gave for it is gone.
            if (!requests.TrySetResult(stream))
                throw new IOException("the server refused the stream");
            try
            {
                await content.CopyToAsync(stream).WaitAsync(closed.Token);
            }
            catch
            {
                // Ended now, the request would take the answers with it that have arrived and are still to be read.
                await Task.Delay(Timeout.Infinite, closed.Token);
            }
        }));
        var response = await base.SendAsync(request, closed.Token);
        body = await response.Content.ReadAsStreamAsync(CancellationToken.None);
        Responses = PipeReader.Create(new CountedStream(body, took), new(bufferSize: Wire.FullBatch));
        response.Content = WithHeaders(response.Content.Headers, new StreamContent(Responses.AsStream(leaveOpen: true)));
        return response;
    }

    static HttpContent WithHeaders(HttpContentHeaders headers, HttpContent content)
    {
        foreach (var (name, values) in headers.NonValidated)
            content.Headers.TryAddWithoutValidation(name, values);
        return content;
    }

    sealed class RequestContent(Func<Stream, Task> write) : HttpContent
    {
        protected override Task SerializeToStreamAsync(Stream stream, TransportContext? context) => write(stream);

        protected override bool TryComputeLength(out long length)
        {
            length = -1;
            return false;
        }
    }

    sealed class CountedStream(Stream stream, Action<int> took) : TransportStream
    {
        public override async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default)
        {
            var count = await stream.ReadAsync(into, cancel);
            took(count);
            return count;
        }
    }
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

    const int MaxStreamsPerConnection = 100, MaxHeaders = 128 * 1024, StreamWindow = 4 * 1024 * 1024, ConnectionWindow = StreamWindow;

    // How long a call that is over may take to get its last bytes to a peer that does not read, or to be ended by a peer
    // that still sends; and what is under way between two peers, to arrive.
    static readonly TimeSpan Grace = TimeSpan.FromSeconds(1), Linger = TimeSpan.FromSeconds(0.25);

    static readonly Status ShuttingDown = new(StatusCode.Unavailable, "server is shutting down");

    // The steps of a drain: nothing new comes in; running streams end; connections are cut.
    readonly CancellationTokenSource draining = new(), expired = new(), abort = new();
    readonly List<Socket> sockets = [];
    WebApplication app = null!;
    int running, streams, connections, refused;
    bool verbose;

    // A connection may hold memory up to its window, and without a descriptor for the next one Kestrel would try at full
    // speed. Half of the memory, and of the descriptors, is for all else.
    readonly long maxConnections = Math.Clamp(Math.Min(MaxDescriptors(), GC.GetGCMemoryInfo().TotalAvailableMemoryBytes / ConnectionWindow) / 2, 1, 10_000);

    /// <summary>Where this server listens, with real ports.</summary>
    public List<Endpoint> Endpoints { get; } = [];

    /// <summary>Serves until a signal asks it to end, drains, and gives the exit code.</summary>
    /// <param name="drain">How long running streams may go on after the signal.</param>
    /// <param name="verbose">Whether each stream is told of on stderr, in words that may change.</param>
    /// <exception cref="Problem">An endpoint is not one to listen at, or cannot be listened at.</exception>
    public static async Task<int> RunAsync(Endpoint[] endpoints, Func<SslServerAuthenticationOptions>? tls, TimeSpan drain, bool verbose)
    {
        await using var server = new Server { verbose = verbose };
        TaskCompletionSource<int> first = new(TaskCreationOptions.RunContinuationsAsynchronously), second = new(TaskCreationOptions.RunContinuationsAsynchronously);
        Signals.On(exitCode => _ = first.TrySetResult(exitCode) || second.TrySetResult(exitCode));
        await server.StartAsync(endpoints, tls);
        foreach (var endpoint in Stdio.HasOutput ? server.Endpoints : [])
            Stdio.Output.Write(Encoding.UTF8.GetBytes($"listening on {endpoint}\n"));
        await Stdio.FlushAsync();
        _ = server.TidyAsync();
        var exitCode = await first.Task;
        var before = server.running;
        if (before > 0)
            Program.Tell($"draining: {before} {(before == 1 ? "stream is" : "streams are")} running; up to {drain.TotalSeconds} s; a second signal ends at once");
        await Task.WhenAny(server.DrainAsync(drain), second.Task);
        var cut = server.running;
        if (before + cut > 0)
            Program.Tell($"drained: {Math.Max(before - cut, 0)} ended in time, {cut} cut off");
        return second.Task.IsCompleted ? await second.Task : cut > 0 ? exitCode : 0;
    }

    // The collector waits for an allocation, which a server at rest does not make: without this, 10,000 idle streams hold
    // 10.8 kB each instead of 7.9, and what a rush left behind stays.
    async Task TidyAsync()
    {
        const int little = 64 * 1024, much = 16 * 1024 * 1024;
        for (long seen = 0, atRest = 0; !draining.IsCancellationRequested; await Task.Delay(1000))
        {
            var allocated = GC.GetTotalAllocatedBytes();
            if (allocated - seen < little && allocated - atRest > much)
            {
                FrameBlocks.Trim();
                GC.Collect(GC.MaxGeneration, GCCollectionMode.Aggressive);
            }
            (seen, atRest) = (allocated, allocated - seen < little ? allocated : atRest);
        }
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
        builder.Services.Configure<SocketTransportOptions>(transport => transport.CreateBoundListenSocket = at => sockets.Single(socket => at.Equals(socket.LocalEndPoint)));
        builder.Services.AddSingleton<IMemoryPoolFactory<byte>, FrameBlocks>().AddGrpc();
        app = builder.Build();
        app.Use(ServeAsync);

        var contract = Streaming.StreamingReflection.Descriptor.Services;
        ServiceDescriptor[] services =
        [
            .. contract, InCourse("greet", contract[0]), InCourse("calculator", contract[1]),
            Health.Descriptor, Grpc.Reflection.V1.ServerReflection.Descriptor, Grpc.Reflection.V1Alpha.ServerReflection.Descriptor,
        ];
        Map<GreetEveryoneRequest, GreetEveryoneResponse>(Rpcs.GreetEveryone, services[0], services[2]);
        Map<FindMaximumRequest, FindMaximumResponse>(Rpcs.FindMaximum, services[1], services[3]);
        app.MapGrpcService(Grpc.Reflection.V1.ServerReflection.BindService(new ReflectionV1ServiceImpl(services)));
        app.MapGrpcService(Grpc.Reflection.V1Alpha.ServerReflection.BindService(new ReflectionServiceImpl(services)));
        var health = new DrainingHealth([.. services.Select(service => service.FullName), ""], draining.Token);
        health.SetAll(ServingStatus.Serving);
        draining.Token.Register(() => health.SetAll(ServingStatus.NotServing));
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
        limits.RequestHeadersTimeout = HeadersTimeout;
        // What is beyond these limits costs the connection, with everybody's streams: tokens of tens of kB, and hundreds of fields, are served.
        (limits.MaxRequestHeadersTotalSize, limits.Http2.MaxRequestHeaderFieldSize, limits.MaxRequestHeaderCount) = (MaxHeaders, MaxHeaders, 1000);
        (limits.Http2.KeepAlivePingDelay, limits.Http2.KeepAlivePingTimeout) = (PingDelay, PingTimeout);
        (limits.Http2.MaxStreamsPerConnection, limits.Http2.InitialStreamWindowSize, limits.Http2.InitialConnectionWindowSize) = (MaxStreamsPerConnection, StreamWindow, ConnectionWindow);
        foreach (var (socket, endpoint) in sockets.Zip(Endpoints))
            kestrel.Listen(socket.LocalEndPoint!, listen =>
            {
                listen.Protocols = HttpProtocols.Http2;
                listen.Use(next => async connection =>
                {
                    try
                    {
                        if (Interlocked.Increment(ref connections) <= maxConnections)
                            await ConnectedAsync(connection, next);
                        else if (Interlocked.Increment(ref refused) == 1)
                            Program.Tell($"there is no room for more than {maxConnections} connections: others are refused");
                    }
                    finally
                    {
                        Interlocked.Decrement(ref connections);
                    }
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

        async Task ConnectedAsync(ConnectionContext connection, ConnectionDelegate next)
        {
            await next(connection);
            if (verbose && !connection.Items.ContainsKey(this))
                Stdio.Tell($"refused {Tcp.Plain(connection.RemoteEndPoint)}: the TLS handshake failed");
            // Closed at once after its GOAWAY, a connection would answer what the peer is sending with a TCP reset,
            // which may cost the peer answers that it has not read yet.
            if (draining.IsCancellationRequested)
                await Task.Delay(Linger);
        }
    }

    static long MaxDescriptors()
    {
        nuint[] limits = [int.MaxValue, 0];
        if (!OperatingSystem.IsWindows())
            getrlimit(OperatingSystem.IsLinux() ? 7 : 8, limits);
        return (long)Math.Min(limits[0], int.MaxValue);

        [DllImport("libc")]
        static extern int getrlimit(int resource, nuint[] limits);
    }

    // A service of the contract under the name that a well-known gRPC course gives it.
    static ServiceDescriptor InCourse(string package, ServiceDescriptor service)
    {
        var file = service.File.ToProto();
        (file.Name, file.Package) = ($"{package}.proto", package);
        file.Service.RemoveAt(1 - service.Index);
        foreach (var method in file.Service[0].Method)
            (method.InputType, method.OutputType) = (Renamed(method.InputType), Renamed(method.OutputType));
        foreach (var field in file.MessageType.SelectMany(message => message.Field).Where(field => field.HasTypeName))
            field.TypeName = Renamed(field.TypeName);
        return FileDescriptor.BuildFromByteStrings([file.ToByteString()])[0].Services[0];

        string Renamed(string type) => type.Replace($".{service.File.Package}.", $".{package}.");
    }

    void Map<TRequest, TResponse>(DuplexStreamingServerMethod<Batch<TRequest>, Batch<TResponse>> handler, params ServiceDescriptor[] services)
        where TRequest : IWire<TRequest>, allows ref struct where TResponse : IWire<TResponse>, allows ref struct
    {
        var definition = ServerServiceDefinition.CreateBuilder();
        foreach (var service in services)
        {
            var method = Wire.Method(service.FullName, service.Methods[0].Name, TRequest.Parser, TResponse.Parser);
            definition.AddMethod(method, (requests, _, context) => HandleAsync(handler, method, requests, context));
        }
        app.MapGrpcService(definition.Build());
    }

    // The adapter, and what the specification asks for beyond what grpc-dotnet does.
    async Task HandleAsync<TRequest, TResponse>(DuplexStreamingServerMethod<Batch<TRequest>, Batch<TResponse>> handler, IMethod method, IAsyncStreamReader<IMessage> others, ServerCallContext context)
        where TRequest : IWire<TRequest>, allows ref struct where TResponse : IWire<TResponse>, allows ref struct
    {
        var http = context.GetHttpContext();
        // Routes care neither about case nor about a slash at the end.
        if (context.Method != method.FullName)
            throw new RpcException(new(StatusCode.Unimplemented, "Method is unimplemented."));
        // A timeout that is malformed, or 0, is none to grpc-dotnet; one of more than eight digits it takes.
        if (http.Request.Headers.GrpcTimeout is [{ } timeout, ..] && (context.Deadline == DateTime.MaxValue || timeout.Length > 9))
            throw new RpcException(timeout is [.. { Length: > 0 and <= 8 } value, 'H' or 'M' or 'S' or 'm' or 'u' or 'n'] && value.All(char.IsAsciiDigit)
                ? new(StatusCode.DeadlineExceeded, "Deadline Exceeded") : new(StatusCode.Internal, $"malformed grpc-timeout: {timeout}"));
        // Without a deadline the pipe itself tells of the peer's end, and a call needs no link.
        using var deadline = context.Deadline == DateTime.MaxValue ? null : CancellationTokenSource.CreateLinkedTokenSource(expired.Token, context.CancellationToken);
        var stop = deadline?.Token ?? expired.Token;
        var responses = new BatchWriter<TResponse>(http.Response.BodyWriter, stop);
        var requests = new BatchReader<TRequest>(http.Request.BodyReader, others, responses.FlushAsync, isRequest: true, stop);
        var (number, start, end) = (Interlocked.Increment(ref streams), Trace.Now, StatusCode.Cancelled);
        if (verbose)
            Stdio.Tell($"stream {number} from {(http.Connection.RemoteIpAddress is { } ip ? Tcp.Plain(new IPEndPoint(ip, http.Connection.RemotePort)) : "a Unix socket")}: {method.FullName[1..]}");
        try
        {
            http.Response.Headers.GrpcAcceptEncoding = "identity,gzip,deflate";
            await http.Response.StartAsync();
            await handler(requests, responses, context);
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
            if (verbose)
                Stdio.Tell($"stream {number}: {Client.NameOf(end)}, {requests.Current.Taken} received, {responses.Sent} sent, {TimeProvider.System.GetElapsedTime(start).TotalSeconds:0.0##} s");
        }

        // Otherwise grpc-dotnet has UNKNOWN for them. An IOException as such tells of a length of 2 GiB or more.
        Status? StatusOf(Exception e) => e switch
        {
            RpcException known => known.Status,
            OperationCanceledException when expired.IsCancellationRequested => ShuttingDown,
            InvalidProtocolBufferException or InvalidDataException => new(StatusCode.Internal, $"a message is malformed: {e.Message}"),
            IOException when e.GetType() == typeof(IOException) => new(StatusCode.ResourceExhausted, e.Message),
            _ => null,
        };
    }

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
        Interlocked.Increment(ref running);
        try
        {
            await next(http);
        }
        finally
        {
            // What ends when its time is over has not ended by itself: for the count it runs on.
            if (!expired.IsCancellationRequested)
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

    // The state of each service changes once, when the drain begins, and a watch ends then: the library's would hold the drain up.
    sealed class DrainingHealth(string[] services, CancellationToken draining) : HealthServiceImpl
    {
        public void SetAll(ServingStatus status) => Array.ForEach(services, service => SetStatus(service, status));

        public override async Task Watch(HealthCheckRequest request, IServerStreamWriter<HealthCheckResponse> responses, ServerCallContext context)
        {
            await responses.WriteAsync(new() { Status = services.Contains(request.Service) ? ServingStatus.Serving : ServingStatus.ServiceUnknown });
            using var over = CancellationTokenSource.CreateLinkedTokenSource(draining, context.CancellationToken);
            await Task.Delay(Timeout.Infinite, over.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            await responses.WriteAsync(new() { Status = ServingStatus.NotServing });
            throw new RpcException(ShuttingDown);
        }
    }

    void ListenAt(Endpoint endpoint)
    {
        var (host, port) = (endpoint.Url.IdnHost, endpoint.Url.Port);
        if (endpoint.UnixPath is { } path)
        {
            RemoveStaleSocket(path);
            Bind(endpoint, new UnixDomainSocketEndPoint(path));
        }
        else if (IPAddress.TryParse(host, out var address))
            Bind(endpoint, new IPEndPoint(address, port));
        else if (host != "localhost")
            throw new Problem(2, $"{endpoint} cannot be listened at: HOST is localhost, an IP address or *");
        else
        {
            Bind(endpoint, new IPEndPoint(IPAddress.Loopback, port));
            if (Socket.OSSupportsIPv6)
                Bind(endpoint, new IPEndPoint(IPAddress.IPv6Loopback, ((IPEndPoint)sockets[^1].LocalEndPoint!).Port));
        }
    }

    void Bind(Endpoint endpoint, EndPoint at)
    {
        try
        {
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
        catch (SocketException e)
        {
            var why = e.SocketErrorCode switch
            {
                SocketError.AccessDenied => e.Message,
                _ when endpoint.PathFault is { } fault => fault,
                SocketError.AddressAlreadyInUse => "the address is in use",
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
        sockets.ForEach(socket => socket.Dispose());
    }
}

/// <summary>Kestrel's memory in blocks as large as a frame: with its own of 4 KiB it reads a frame in four calls.</summary>
sealed class FrameBlocks : MemoryPool<byte>, IMemoryPoolFactory<byte>
{
    static readonly ConcurrentQueue<Block> free = [];

    public override int MaxBufferSize => 16 * 1024;
    public MemoryPool<byte> Create(MemoryPoolOptions? options) => this;
    public override IMemoryOwner<byte> Rent(int minBufferSize = -1) => minBufferSize > MaxBufferSize ? Shared.Rent(minBufferSize) : free.TryDequeue(out var block) ? block : new Block(MaxBufferSize);
    protected override void Dispose(bool disposing) { }

    /// <summary>Lets go of what is not in use.</summary>
    public static void Trim() => free.Clear();

    sealed class Block(int size) : IMemoryOwner<byte>
    {
        public Memory<byte> Memory { get; } = GC.AllocateUninitializedArray<byte>(size);
        public void Dispose() => free.Enqueue(this);
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
        ulong[] words = [5, (ulong)Marshal.UnsafeAddrOfPinnedArrayElement(program, 2), 0x0000000d_00000030, 0x00000012_00000054, 0x00000002_01000015, 0x00000000_00000006, 0xffffffff_00000006];
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
    public static EndPoint? Plain(EndPoint? peer) => peer is IPEndPoint { Address.IsIPv4MappedToIPv6: true } mapped ? new IPEndPoint(mapped.Address.MapToIPv4(), mapped.Port) : peer;
}

static class Signals
{
    // One that nothing refers to stops listening.
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
}

/// <summary>Certificates, and whom they are trusted from.</summary>
static class Tls
{
    /// <summary>Gives the options for each new connection, with the files as they are then; null where there is no certificate.</summary>
    /// <exception cref="Problem">A file is missing or does not hold what it should.</exception>
    public static Func<SslServerAuthenticationOptions>? ForServer(string? cert, string? key, string? clientCa)
    {
        if (cert is null != key is null || cert is null && clientCa is not null)
            throw new Problem(2, "--cert and --key go together, and --client-ca with them");
        if (cert is null)
            return null;
        var (loaded, context) = (Written(), OwnCertificate(cert, key!));
        var trust = Trust(clientCa);
        var reloading = new Lock();
        return () =>
        {
            lock (reloading)
                try
                {
                    if (Written() is var now && now != loaded)
                        (context, loaded) = (OwnCertificate(cert, key!), now);
                }
                catch (Exception e) when (e is Problem or IOException or UnauthorizedAccessException)
                {
                    // A file caught half-written: the certificate in use stays, and the next connection looks again.
                    Program.Tell($"keeping the old certificate: {e.Message}");
                }
            return new()
            {
                ServerCertificateContext = context,
                ApplicationProtocols = [SslApplicationProtocol.Http2],
                ClientCertificateRequired = trust is not null,
                // A handshake may add to the policy.
                CertificateChainPolicy = trust?.Clone(),
            };
        };

        (DateTime, DateTime) Written() => (File.GetLastWriteTimeUtc(cert), File.GetLastWriteTimeUtc(key!));
    }

    /// <summary>A certificate with its key and the rest of its chain; null where there is none.</summary>
    public static SslStreamCertificateContext? OwnCertificate(string? cert, string? key)
    {
        if (cert is null != key is null)
            throw new Problem(2, "--cert and --key go together");
        return cert is null ? null : Read($"{cert} and {key}", () =>
        {
            var chain = new X509Certificate2Collection();
            chain.ImportFromPemFile(cert);
            using var leaf = X509Certificate2.CreateFromPemFile(cert, key!);
            // Windows cannot use a key that was only ever in memory; a round through PKCS#12 makes it one that it can.
            return SslStreamCertificateContext.Create(X509CertificateLoader.LoadPkcs12(leaf.Export(X509ContentType.Pfx), null), chain, offline: true);
        });
    }

    /// <summary>Trust in nobody but the roots in a file; null, which is trust in the system's, where there is none.</summary>
    public static X509ChainPolicy? Trust(string? file) => file is null ? null : Read(file, () =>
    {
        var policy = new X509ChainPolicy { TrustMode = X509ChainTrustMode.CustomRootTrust, RevocationMode = X509RevocationMode.NoCheck };
        policy.CustomTrustStore.ImportFromPemFile(file);
        return policy.CustomTrustStore.Count > 0 ? policy : throw new InvalidDataException("it holds no certificate");
    });

    /// <summary>Makes sure of OpenSSL, as without it .NET ends the process: the names are those that it looks for.</summary>
    /// <exception cref="Problem">It is not installed.</exception>
    public static void Require()
    {
        if (OperatingSystem.IsLinux() && !Array.Exists(["3", "1.1", "1.0.2", "1.0.0", "10"], version => NativeLibrary.TryLoad($"libssl.so.{version}", out _)))
            throw new Problem(2, "TLS needs OpenSSL, whose libssl is not on this machine");
    }

    static T Read<T>(string what, Func<T> read)
    {
        Require();
        try
        {
            return read();
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or CryptographicException or InvalidDataException or ArgumentException)
        {
            throw new Problem(2, $"cannot use {what}: {e.Message}");
        }
    }
}

// ---------------------------------------------------------------------------------------------
// The client
// ---------------------------------------------------------------------------------------------

/// <summary>What is asked of a call.</summary>
/// <param name="Deadline">How long it may take.</param>
/// <param name="WaitForReady">Whether a connection that fails is tried again until the deadline.</param>
/// <param name="ReadsInput">Whether its messages come from stdin.</param>
/// <param name="MayServeItself">Whether a server in this process answers when nobody else does.</param>
/// <param name="Trust">Whom the server's certificate must come from; null for whom the system trusts.</param>
/// <param name="Certificate">This client's certificate.</param>
/// <param name="Insecure">Whether the server's certificate need not be verified.</param>
sealed record CallSettings(Endpoint Endpoint, (string Service, string Name) Method, Metadata Metadata, TimeSpan? Deadline, bool WaitForReady, bool ReadsInput, bool MayServeItself,
    X509ChainPolicy? Trust, SslStreamCertificateContext? Certificate, bool Insecure);

/// <summary>One call: stdin's messages go out while the answers come in and go to stdout.</summary>
sealed class Client(CallSettings settings, Trace trace)
{
    // A peer that vanished is to be found within a minute, so by TCP: gRPC servers cut a client off that pings an idle stream more
    // often than every five (grpc/doc/keepalive.md). The rare pings find one that hangs and whose system still acknowledges.
    const int KeepAliveSeconds = 20, KeepAliveInterval = 5, KeepAliveProbes = 4;
    static readonly TimeSpan PingDelay = TimeSpan.FromMinutes(6), PingTimeout = TimeSpan.FromSeconds(20);

    // Large enough that a firehose of answers never waits for a window update on a fast network.
    const int StreamWindow = 1024 * 1024;

    static readonly TimeSpan FirstBackoff = TimeSpan.FromSeconds(0.1), LastBackoff = TimeSpan.FromSeconds(5);

    readonly CallSettings settings = settings;
    readonly Endpoint endpoint = settings.Endpoint;
    readonly CancellationTokenSource stop = new();
    FrameGate? gate;
    HttpResponseMessage? response;
    Problem? badInput;
    string? notReady, refusal;
    bool isAskedForCertificate, servesItself, isHalfClosed;

    public Trace Trace { get; } = trace;

    /// <summary>Makes the call and gives the exit code.</summary>
    /// <exception cref="Problem">The call did not end well, or stdin or stdout cannot be used.</exception>
    public async Task<int> RunAsync<TRequest, TResponse>(Func<Batch<TRequest>, ValueTask<bool>> read, Action<Batch<TResponse>> print)
        where TRequest : IWire<TRequest>, allows ref struct where TResponse : IWire<TResponse>, allows ref struct
    {
        if (endpoint.Url.Scheme == "https")
            Tls.Require();
        else if (settings is not { Trust: null, Certificate: null, Insecure: false })
            throw new Problem(2, $"--cacert, --cert and --insecure are for TLS: call https://HOST:PORT, not {endpoint}");
        var signalled = new TaskCompletionSource<int>(TaskCreationOptions.RunContinuationsAsynchronously);
        Signals.On(exitCode =>
        {
            signalled.TrySetResult(exitCode);
            stop.Cancel();
        });
        if (settings.Deadline is { } deadline)
            stop.CancelAfter(deadline);
        // stdin and stdout may block a thread each, and the call needs some besides.
        ThreadPool.SetMinThreads(Math.Max(4, Environment.ProcessorCount), 1);
        var call = CallAsync(read, print);
        await Trace.ShowAsync(Task.WhenAny(call, signalled.Task));
        var isSignalled = signalled.Task.IsCompleted;
        // The reset gets a moment to leave, but a peer or a stdout that nobody reads must not hold up the end.
        if (isSignalled)
            await Task.WhenAny(Task.WhenAll(call, gate?.ResetSent ?? Task.CompletedTask), Task.Delay(500));
        var status = call.IsCompletedSuccessfully && !isSignalled ? call.Result.Status : (StatusCode?)null;
        Trace.Note('<', null, response is null ? [] : [response.TrailingHeaders]);
        Trace.End(EndedBy(status));
        if (isSignalled)
            return await signalled.Task;
        // Where an answer was only a refusal, the stream never was.
        var counts = gate is { HasReceived: true, SpeaksHttp1: false } && (response is null || ContentType(response).IsGrpc && One(response.Headers, "grpc-status") is null) ? $" ({Trace.Counts})" : "";
        var (_, message) = await call;
        return status != StatusCode.OK ? throw new Problem(64 + (int)status!, $"{NameOf(status.Value)}: {message}{counts}") : badInput is null ? 0 : throw badInput;
    }

    string EndedBy(StatusCode? status)
    {
        var side = gate is { Reset: not null } ? "the server's reset"
            : gate is { HasEnded: true } ? isHalfClosed && status == StatusCode.OK ? "this side's half-close" : "the server"
            : gate is { IsLost: true } ? "the loss of the connection" : "this side";
        return status is null ? side : $"{side}: {NameOf(status.Value)}";
    }

    async Task<(StatusCode Status, string Message)> CallAsync<TRequest, TResponse>(Func<Batch<TRequest>, ValueTask<bool>> read, Action<Batch<TResponse>> print)
        where TRequest : IWire<TRequest>, allows ref struct where TResponse : IWire<TResponse>, allows ref struct
    {
        var handler = new PipeHandler(new Connector(this), count => gate?.Took(count));
        // Given a client, the channel has no balancer to load. Not disposed of, which would close the connection before a reset
        // has left: the process ends with its call.
        var call = GrpcChannel.ForAddress(endpoint.Dialled, new() { HttpClient = new(handler) { Timeout = Timeout.InfiniteTimeSpan } }).CreateCallInvoker().AsyncDuplexStreamingCall(
            Wire.Method(settings.Method.Service, settings.Method.Name, TRequest.Parser, TResponse.Parser), null, new(settings.Metadata, DateTime.UtcNow + settings.Deadline));
        BatchReader<TResponse>? answers = null;
        try
        {
            if (Stdio.IsInteractive)
                _ = HintAsync(call.ResponseHeadersAsync);
            _ = SendAsync(handler, call.RequestStream, read);
            await call.ResponseHeadersAsync.WaitAsync(stop.Token);
            // What is not gRPC is for the library to refuse: it throws here.
            if (ContentType(response!) is { IsGrpc: false })
                await call.ResponseStream.MoveNext();
            answers = new(handler.Responses!, call.ResponseStream, Stdio.FlushAsync, isRequest: false, stop.Token);
            for (var hasTold = false; await answers.MoveNext(CancellationToken.None); hasTold |= answers.Current.IsForeign)
            {
                if (answers.Current.IsForeign && !hasTold)
                    Program.Tell($"answers of {settings.Method.Service}/{settings.Method.Name} are of another type, and are not printed");
                Trace.Came(answers.Current, print);
                // Answers may come faster than a wait for them does.
                if (Stdio.Output.WrittenCount >= Wire.FullBatch)
                    await Stdio.FlushAsync();
            }
            return (StatusCode.OK, "");
        }
        catch (Exception e) when (e is OperationCanceledException or RpcException { Status.DebugException: OperationCanceledException } || e is RpcException { StatusCode: StatusCode.DeadlineExceeded } && response is null)
        {
            // What has arrived is printed, however slow stdout is.
            while (answers?.TryMoveNext() == true)
                Trace.Came(answers.Current, print);
            return (StatusCode.DeadlineExceeded, gate is null ? $"the deadline has passed, and {Awaited}" : "the deadline has passed");
        }
        catch (RpcException e)
        {
            var (status, message) = Explain(e);
            return (status, IsMetadataTooLarge ? $"the metadata is larger than {endpoint} takes: {message}" : message);
        }
        finally
        {
            handler.Close();
            await Stdio.FlushAsync();
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

    // Two batches in turn: one is filled from stdin while the other leaves.
    async Task SendAsync<T>(PipeHandler handler, IClientStreamWriter<IMessage> requests, Func<Batch<T>, ValueTask<bool>> read) where T : IWire<T>, allows ref struct
    {
        var (filling, leaving, sent) = (new Batch<T>(), new Batch<T>(), Task.CompletedTask);
        var stream = await handler.Requests;
        try
        {
            while (true)
            {
                var reading = read(filling);
                if (!reading.IsCompleted)
                {
                    await sent;
                    await stream.FlushAsync();
                }
                if (!await reading)
                    break;
                await sent;
                leaving.Clear();
                sent = WriteAsync(filling);
                (filling, leaving) = (leaving, filling);
            }
        }
        catch (Problem e)
        {
            // What came before has been sent; its answers are worth having, so the stream ends as at the end of input.
            badInput = e;
        }
        await sent;
        isHalfClosed = true;
        Trace.Note('>', "half-close");
        await requests.CompleteAsync();

        async Task WriteAsync(Batch<T> batch)
        {
            await stream.WriteAsync(batch.Bytes);
            Trace.Left(batch);
        }
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
                    client.response = await base.SendAsync(request, cancel);
                    client.Trace.Note('<', $"HTTP/2 {(int)client.response.StatusCode}", client.response.Headers, client.response.Content.Headers);
                    return client.response;
                }
                catch (HttpRequestException e) when (client is { settings.WaitForReady: true, refusal: null, gate: null }
                    && e.HttpRequestError is HttpRequestError.ConnectionError or HttpRequestError.NameResolutionError or HttpRequestError.SecureConnectionError)
                {
                    (_, client.notReady) = client.Explain(e, default);
                    client.Trace.Note('*', $"{client.notReady}: to be tried again");
                    await Task.Delay(backoff * (0.8 + 0.4 * Random.Shared.NextDouble()), cancel);
                }
        }
    }

    /// <summary>
    /// Has .NET load and compile its HTTP/2 client, while the command line is read: a channel, and a request that goes nowhere.
    /// A start takes a fifth less time so.
    /// </summary>
    public static Task WarmUpAsync()
    {
        // As `serve` prints it, and in numbers, which takes .NET longest.
        const string address = "http://127.0.0.1:50051";
        var nowhere = new HttpClient(new SocketsHttpHandler { UseProxy = false, UseCookies = false, AllowAutoRedirect = false, ConnectCallback = (_, _) => new(new Nowhere()) }) { Timeout = Timeout.InfiniteTimeSpan };
        _ = GrpcChannel.ForAddress(address, new() { HttpClient = nowhere });
        return nowhere.SendAsync(new(HttpMethod.Post, address) { Version = HttpVersion.Version20, VersionPolicy = HttpVersionPolicy.RequestVersionExact }, HttpCompletionOption.ResponseHeadersRead);
    }

    sealed class Nowhere : TransportStream
    {
        public override ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default) => new(new TaskCompletionSource<int>().Task);
        public override ValueTask WriteAsync(ReadOnlyMemory<byte> bytes, CancellationToken cancel = default) => default;
    }

    SocketsHttpHandler NewSockets() => new()
    {
        UseProxy = false,
        UseCookies = false,
        AllowAutoRedirect = false,
        InitialHttp2StreamWindowSize = StreamWindow,
        KeepAlivePingDelay = PingDelay,
        KeepAlivePingTimeout = PingTimeout,
        ConnectCallback = ConnectAsync,
        PlaintextStreamFilter = (context, _) =>
        {
            if (Stdio.IsInteractive && settings.ReadsInput)
                Program.Tell($"connected to {(servesItself ? "its own server" : endpoint)}; {(OperatingSystem.IsWindows() ? "^Z" : "^D")} ends the input");
            if (context.PlaintextStream is SslStream { RemoteCertificate: var certificate } tls)
                Trace.Note('*', $"{tls.SslProtocol} with {certificate?.Subject}".Replace("Tls1", "TLS 1."));
            var request = context.InitialRequestMessage;
            Trace.Note('>', $"POST {request.RequestUri!.AbsolutePath}", request.Headers, request.Content!.Headers);
            return new(gate = new FrameGate(context.PlaintextStream));
        },
        SslOptions = new()
        {
            CertificateChainPolicy = settings.Trust,
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
        try
        {
            return await DialAsync(endpoint.UnixPath is { } path ? new UnixDomainSocketEndPoint(path) : context.DnsEndPoint, cancel);
        }
        catch (SocketException e) when (settings is { MayServeItself: true, WaitForReady: false } && e.SocketErrorCode == SocketError.ConnectionRefused)
        {
            Program.Tell($"no server at {endpoint}, so this command brings its own");
            servesItself = true;
            var server = new Server();
            await server.StartAsync([Endpoint.Parse("", "http://127.0.0.1:0")], null);
            return await DialAsync(new IPEndPoint(IPAddress.Loopback, server.Endpoints[0].Url.Port), cancel);
        }
    }

    async Task<Stream> DialAsync(EndPoint to, CancellationToken cancel)
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
            Trace.Note('*', $"connected to {(endpoint.UnixPath is null ? $"{endpoint.Url.Scheme}://{Tcp.Plain(socket.RemoteEndPoint)}" : endpoint)}");
            return new NetworkStream(socket, ownsSocket: true);
        }
        catch
        {
            socket.Dispose();
            throw;
        }
    }

    bool Accepts(object sender, X509Certificate? certificate, X509Chain? chain, SslPolicyErrors errors)
    {
        var flags = chain?.ChainStatus.Aggregate(X509ChainStatusFlags.NoError, (all, one) => all | one.Status) ?? X509ChainStatusFlags.NoError;
        var reason = errors == SslPolicyErrors.None ? null
            : errors.HasFlag(SslPolicyErrors.RemoteCertificateNotAvailable) ? "it has none"
            : errors.HasFlag(SslPolicyErrors.RemoteCertificateNameMismatch) ? $"it is not for {((SslStream)sender).TargetHostName}"
            : flags.HasFlag(X509ChainStatusFlags.NotTimeValid) ? $"it, or one that vouches for it, has expired or is not valid yet (it is valid until {((X509Certificate2)certificate!).NotAfter:yyyy-MM-dd})"
            : flags.HasFlag(X509ChainStatusFlags.UntrustedRoot) || flags.HasFlag(X509ChainStatusFlags.PartialChain) ? "no trusted root vouches for it (see --cacert)"
            : flags.ToString();
        if (reason is not null && settings.Insecure)
            Program.Tell($"warning: the server's certificate is not verified: {reason}");
        else if (reason is not null)
            refusal = $"the server's certificate is refused: {reason}";
        return refusal is null;
    }

    /// <summary>A status's name (grpc/doc/statuscodes.md).</summary>
    public static string NameOf(StatusCode status) => status == StatusCode.OK ? "OK" : string.Concat($"{status}".Select((c, i) => char.IsUpper(c) && i > 0 ? $"_{c}" : $"{char.ToUpperInvariant(c)}"));

    // What a call ended with that did not end well, in words that help. The status is the library's, but for what the
    // specifications call differently: UNKNOWN or INTERNAL where there is no status or an unknown encoding, UNAVAILABLE
    // where a connection ends.
    (StatusCode, string) Explain(RpcException e)
    {
        var (contentType, isGrpc) = response is null ? (null, false) : ContentType(response);
        var given = response is null ? null : One(response.Headers, "grpc-status") ?? (isGrpc ? One(response.TrailingHeaders, "grpc-status") : null);
        if (given is not null)
            return int.TryParse(given, NumberStyles.None, null, out var code) && Enum.IsDefined((StatusCode)code) ? (e.StatusCode, e.Status.Detail) : (StatusCode.Unknown, $"the server sent grpc-status {given}");
        if (e.Status.DebugException is { } cause)
            return Explain(cause, e.StatusCode);
        return response is null ? (e.StatusCode, e.Status.Detail)
            : response.StatusCode != HttpStatusCode.OK ? (e.StatusCode, $"HTTP status {(int)response.StatusCode} from {endpoint}, content type {contentType}")
            : !isGrpc ? (StatusCode.Unknown, $"the answer of {endpoint} is not gRPC: its content type is {contentType}")
            : e.StatusCode == StatusCode.Unimplemented ? (StatusCode.Internal, e.Status.Detail)
            : e.StatusCode != StatusCode.Cancelled ? (e.StatusCode, e.Status.Detail)
            : response.TrailingHeaders.Any() ? (StatusCode.Unknown, "the trailers hold no grpc-status") : (StatusCode.Internal, "the server ended the stream without trailers");
    }

    // Servers and proxies refuse too much metadata with HTTP status 431 or 400, a reset, an error of the connection, or just its end.
    // The least that any is known to take is 8 kB, and 100 fields with gRPC's own.
    bool IsMetadataTooLarge => response is { StatusCode: HttpStatusCode.RequestHeaderFieldsTooLarge }
        || (settings.Metadata.Count > 90 || settings.Metadata.Sum(entry => entry.Key.Length + entry.ValueBytes.Length) > 8 * 1024)
        && (response is { StatusCode: HttpStatusCode.BadRequest }
            || response is null && gate is { HasReceived: true, SpeaksHttp1: false, GoAway: not "NO_ERROR", Reset: not FrameGate.Error.REFUSED_STREAM });

    static (string Text, bool IsGrpc) ContentType(HttpResponseMessage response)
    {
        var text = One(response.Content.Headers, "content-type") ?? "none";
        return (text, text.Split('+', ';')[0].Trim().Equals("application/grpc", StringComparison.OrdinalIgnoreCase));
    }

    (StatusCode, string) Explain(Exception e, StatusCode status) => e switch
    {
        InvalidDataException { Message: "Message too large." } => (StatusCode.ResourceExhausted, e.Message),
        InvalidProtocolBufferException or InvalidDataException => (StatusCode.Internal, $"a message is malformed: {e.Message}"),
        _ when gate?.Reset is { } code => (status, $"the server reset the stream: {code}"),
        _ when gate?.GoAway is "NO_ERROR" => (StatusCode.Unavailable, $"{endpoint} shut down before the stream had ended"),
        _ when gate?.GoAway is { } reason => (StatusCode.Unavailable, $"the server closed the connection: {reason}"),
        _ when gate is { SpeaksHttp1: true } => (StatusCode.Unavailable, $"{endpoint} speaks HTTP/1.1, not HTTP/2"),
        _ when refusal is not null => (StatusCode.Unavailable, refusal),
        _ when gate is { HasReceived: false } && endpoint.Url.Scheme == "http" => (StatusCode.Unavailable, $"{endpoint} closed the connection without an answer (does it want https://?)"),
        _ when gate is { HasReceived: false } && (isAskedForCertificate || settings.Certificate is not null) => (StatusCode.Unauthenticated, $"{endpoint} wants a client certificate (--cert, --key) that it trusts"),
        _ when e.GetBaseException() is SocketException socket && gate is null => (StatusCode.Unavailable, socket.SocketErrorCode switch
        {
            SocketError.AccessDenied => $"cannot connect to {endpoint}: {socket.Message}",
            _ when endpoint.PathFault is { } fault => $"nothing listens at {endpoint}: {fault}",
            _ when endpoint.UnixPath is { } path && !Path.Exists(path) => $"nothing listens at {endpoint}: there is no such file",
            SocketError.ConnectionRefused => $"nothing listens at {endpoint}",
            SocketError.HostNotFound or SocketError.NoData or SocketError.TryAgain => $"there is no host {endpoint.Url.Host}",
            _ => $"cannot connect to {endpoint}: {socket.Message}",
        }),
        HttpRequestException { HttpRequestError: HttpRequestError.VersionNegotiationError } => (StatusCode.Unavailable, $"{endpoint} does not speak HTTP/2"),
        HttpRequestException { HttpRequestError: HttpRequestError.SecureConnectionError } => (StatusCode.Unavailable, $"{endpoint} does not answer in TLS with HTTP/2: {e.GetBaseException().Message}{(e.GetBaseException() is AuthenticationException or IOException ? " (does it want http://?)" : "")}"),
        _ when e.GetBaseException() is HttpProtocolException protocol => (StatusCode.Internal, $"{endpoint} broke the HTTP/2 protocol: {protocol.Message}"),
        // The handler knows of a limit that the server tells, where it has told it in time.
        HttpRequestException { HttpRequestError: HttpRequestError.Unknown, InnerException: null } => (status, e.Message),
        _ => (StatusCode.Unavailable, $"the connection to {endpoint} was lost"),
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
    readonly bool hasColour = verbose && Stdio.IsToldShown && Environment.GetEnvironmentVariable("TERM") is not (null or "dumb") && Environment.GetEnvironmentVariable("NO_COLOR") is null or "";
    readonly long start = Now;
    long received, foreign, end, last = Now;
    double firstAnswer;
    bool hasBegun;

    public static long Now => TimeProvider.System.GetTimestamp();

    /// <summary>Seconds from a time until now, but never beyond the stream's end; a message may still leave after that.</summary>
    public double Since(long time) => Math.Max(0, TimeProvider.System.GetElapsedTime(time, end == 0 ? Now : end).TotalSeconds);

    public double Seconds => Since(start);
    public long Sent { get; private set; }
    public string? EndedBy { get; private set; }
    public string Counts => $"{Sent} sent, {received} received, {Seconds:0.0##} s, silent for {Since(last):0.0##} s";

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

    public void Left<T>(Batch<T> batch) where T : IWire<T>, allows ref struct
    {
        Show('>', batch);
        Sent += batch.Added;
    }

    public void Came<T>(Batch<T> batch, Action<Batch<T>> print) where T : IWire<T>, allows ref struct
    {
        Show('<', batch);
        firstAnswer = firstAnswer == 0 ? Seconds : firstAnswer;
        if (batch.IsForeign)
            foreign++;
        else
            print(batch);
        received = batch.Taken + foreign;
    }

    void Show<T>(char mark, Batch<T> batch) where T : IWire<T>, allows ref struct
    {
        last = Now;
        if (verbose)
            foreach (var message in batch.Peek())
                Show(mark, batch.IsForeign ? "a message of another type" : message.Text);
    }

    void Show(char mark, string text) => Stdio.Tell($"{Seconds,7:0.000} {(hasColour && mark != '*' ? $"\e[36m{mark}\e[0m" : mark)} {Program.OneLine(text)}");

    public void End(string endedBy)
    {
        (end, EndedBy) = (Now, endedBy);
        var answered = received == 0 ? "" : $", first answer after {firstAnswer:0.0##} s";
        var line = $"{Counts}, {(Sent + received) / Seconds:0} messages/s{answered}, ended by {endedBy}";
        if (verbose && hasBegun)
            Show('*', line);
        else if (stats && hasBegun)
            Stdio.Tell(line);
    }

    /// <summary>Waits for the end of a call, and shows the numbers so far on a terminal, but not on one that shows the answers.</summary>
    public async Task ShowAsync(Task over)
    {
        var shows = stats && !verbose && Stdio.IsToldShown && !Stdio.IsShown;
        var line = "";
        while (await Task.WhenAny(over, Task.Delay(!shows ? Timeout.Infinite : line == "" ? 500 : 250)) != over)
            Stdio.Tell("\r" + (line = Counts.PadRight(line.Length)), end: "");
        if (shows)
            Stdio.Tell($"\r{new string(' ', line.Length)}\r", end: "");
    }
}

/// <summary>Numbers on one stream, each larger than the last, and how long the answers take. Scripts may rely on stdout.</summary>
sealed class Ping(Client client, TimeSpan every, long count)
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
        var calling = client.RunAsync<FindMaximumRequest, FindMaximumResponse>(ReadAsync, Print);
        while (await Task.WhenAny(calling, Task.Delay(late)) != calling)
            if (Late().DefaultIfEmpty().Max() is > 0 and var seconds)
                Stdio.Tell($"no answer for {Math.Floor(seconds)} s");
        var (trace, lost) = (client.Trace, Late().Count());
        double[] sorted = [.. times.Order()];
        if (last > 0)
            Stdio.Tell($"{last} sent, {sorted.Length} answered, {lost} lost, {last - sorted.Length - lost} under way");
        if (sorted.Length > 0)
            Stdio.Tell($"minimum {sorted[0]:0.00} ms, median {sorted[(sorted.Length - 1) / 2]:0.00} ms, 99th percentile {sorted[(sorted.Length * 99 - 1) / 100]:0.00} ms, maximum {sorted[^1]:0.00} ms");
        if (last > 0)
            Stdio.Tell($"the stream lived for {trace.Seconds:0.0##} s, ended by {trace.EndedBy}");
        if (sorted.Length == 0 || calling.Exception?.InnerException is not Problem { ExitCode: 64 + (int)StatusCode.DeadlineExceeded })
            await calling;
        return lost == 0 && sorted.Length > 0 ? 0 : 1;
    }

    IEnumerable<double> Late() => unanswered.Values.Select(client.Trace.Since).Where(seconds => seconds >= late.TotalSeconds);

    async ValueTask<bool> ReadAsync(Batch<FindMaximumRequest> batch)
    {
        if (last == count)
            return false;
        if (last > 0)
            await timer.WaitForNextTickAsync();
        else
            timer.Period = every;
        unanswered[++last] = Trace.Now;
        batch.Add(last);
        return true;
    }

    void Print(Batch<FindMaximumResponse> answers)
    {
        foreach (var answer in answers)
            if (unanswered.TryRemove(answer.Value, out var sent))
            {
                var time = client.Trace.Since(sent) * 1000;
                times.Enqueue(time);
                Stdio.Output.Write(Encoding.UTF8.GetBytes($"answer {answer.Value}: {time:0.00} ms\n"));
            }
    }
}

/// <summary>
/// Between SocketsHttpHandler and its connection. The handler drops the answers that it holds when a stream dies, but
/// what was received must not be lost: so it learns of a reset or of the connection's end only after the call has
/// taken all the bytes that came before.
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
    readonly TaskCompletionSource resetSent = new(TaskCreationOptions.RunContinuationsAsynchronously);

    // From start to end is what the handler has not got yet. It was given so many bytes of the body, and so many the call has read.
    readonly byte[] frame = new byte[HeaderSize + LargestPayload];
    int start, end;
    long passed, taken;

    /// <summary>Whether the peer has ended the stream.</summary>
    public bool HasEnded { get; private set; }

    /// <summary>Whether the connection has ended.</summary>
    public bool IsLost { get; private set; }

    /// <summary>The error of a reset, where one came.</summary>
    public Error? Reset { get; private set; }

    /// <summary>What a GOAWAY says, where one came.</summary>
    public string? GoAway { get; private set; }

    /// <summary>Whether the peer has sent anything.</summary>
    public bool HasReceived { get; private set; }

    /// <summary>Whether that was HTTP/1.1.</summary>
    public bool SpeaksHttp1 { get; private set; }

    /// <summary>Completes when this side has reset a stream.</summary>
    public Task ResetSent => resetSent.Task;

    /// <summary>The call has taken so many bytes of the response's body.</summary>
    public void Took(int count)
    {
        Interlocked.Add(ref taken, count);
        if (took.CurrentCount == 0)
            took.Release();
    }

    public override async ValueTask<int> ReadAsync(Memory<byte> into, CancellationToken cancel = default)
    {
        try
        {
            while (start == end)
                await LookAsync(cancel);
            var count = Math.Min(into.Length, end - start);
            frame.AsSpan(start, count).CopyTo(into.Span);
            start += count;
            return count;
        }
        catch (IOException e)
        {
            IsLost = true;
            await AllTakenAsync(cancel);
            if (e is EndOfStreamException)
                return 0;
            throw;
        }
    }

    // Takes the next frame in, and waits with one that may end the stream or the connection.
    async ValueTask LookAsync(CancellationToken cancel)
    {
        (start, end) = (0, await received.ReadAtLeastAsync(frame.AsMemory(0, HeaderSize), HeaderSize, throwOnEndOfStream: false, cancel));
        if (end == 0)
            throw new EndOfStreamException();
        HasReceived = true;
        // Some answer what they do not understand with a page and nothing else.
        SpeaksHttp1 |= frame.AsSpan(0, end).StartsWith("HTTP/"u8) || frame[0] == '<';
        var (size, kind, flags) = (frame[0] << 16 | frame[1] << 8 | frame[2], (Kind)frame[3], frame[4]);
        if (end < HeaderSize || size > LargestPayload)
            return; // No HTTP/2, which is for the handler to say.
        end += await received.ReadAtLeastAsync(frame.AsMemory(end, size), size, throwOnEndOfStream: false, cancel);
        // The handler gives the call whole frames only: one that the connection's end cuts off never gets there.
        if (end < HeaderSize + size)
            return;
        if (kind == Kind.Data)
            passed += (flags & Padded) == 0 ? size : size - 1 - frame[HeaderSize];
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
            GoAway = $"{(Error)BinaryPrimitives.ReadUInt32BigEndian(payload[4..])} {Program.OneLine(Encoding.UTF8.GetString(payload[8..]))}".TrimEnd();
        else if (kind > Kind.Continuation)
            start = end; // Frames of a kind that nobody knows are ignored (RFC 9113, section 4.1), and not by the handler.
        HasEnded |= kind is Kind.Data or Kind.Headers && (flags & EndStream) != 0;
    }

    async ValueTask AllTakenAsync(CancellationToken cancel)
    {
        while (Interlocked.Read(ref taken) < passed)
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
        if (HoldsReset(bytes.Span))
            resetSent.TrySetResult();
    }

    // SocketsHttpHandler writes whole frames.
    static bool HoldsReset(ReadOnlySpan<byte> frames)
    {
        while (frames.Length >= HeaderSize && frames[3] != (byte)Kind.RstStream)
            frames = frames[Math.Min(frames.Length, HeaderSize + (frames[0] << 16 | frames[1] << 8 | frames[2]))..];
        return frames.Length >= HeaderSize;
    }

    public override Task FlushAsync(CancellationToken cancel) => connection.FlushAsync(cancel);

    protected override void Dispose(bool disposing) => connection.Dispose();
}
