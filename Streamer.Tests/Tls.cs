using System.Net;
using System.Net.Security;
using System.Net.Sockets;
using System.Security.Cryptography.X509Certificates;
using System.Text.RegularExpressions;
using Xunit;

namespace Streamer.Tests;

/// <summary>TLS and mutual TLS, with certificates made for the occasion.</summary>
public sealed class Tls : IDisposable
{
    const string Numbers = "1 5 3 6 2 20\n", Maxima = "1\n5\n6\n20\n";
    const int Unavailable = 78, Unauthenticated = 80;

    readonly Certificates certificates = new();

    public void Dispose() => certificates.Dispose();

    [Fact]
    public async Task AChainIsVerifiedAgainstCacert()
    {
        await using var server = await ServeAsync(2, "--listen", "https://localhost:0");
        foreach (var address in server.Addresses.Append($"https://localhost:{server.Port}"))
            Ok(await MaxAsync(address, "--cacert", certificates.Root));
    }

    [Fact]
    public async Task TheSystemsRootsAreTheDefault()
    {
        await using var server = await ServeAsync();
        await using var client = Running.StartWith([("SSL_CERT_FILE", certificates.Root)], "max", "--address", server.Address);
        await client.FeedAsync("1 5 3 6 2 20\n"u8.ToArray());
        Ok(await client.EndAsync());
    }

    // Other reasons are in Trust.
    [Fact]
    public async Task ARefusedServerCertificateIsOneLineThatSaysWhy()
    {
        await using var server = await ServeAsync();
        using var strangers = new Certificates();
        foreach (var options in new string[][] { [], ["--cacert", strangers.Root] })
            Fails(Unavailable, "UNAVAILABLE: the server's certificate is refused: no trusted root vouches for it (see --cacert)",
                await MaxAsync(server.Address, options));
    }

    [Fact]
    public async Task ARefusedClientCertificateIsUnauthenticated()
    {
        await using var server = await ServeAsync(1, "--listen", "https://127.0.0.1:0", "--client-ca", certificates.Root);
        string[] trusted = ["--cacert", certificates.Root];
        var line = $"UNAUTHENTICATED: {server.Address} wants a client certificate (--cert, --key) that it trusts";
        Fails(Unauthenticated, line, await MaxAsync(server.Address, trusted));

        using var strangers = new Certificates();
        var expired = certificates.Issue("expired", until: DateTimeOffset.UtcNow.AddDays(-1));
        foreach (var (cert, key) in new[] { strangers.Issue("client"), expired })
            Fails(Unauthenticated, line, await MaxAsync(server.Address, [.. trusted, "--cert", cert, "--key", key]));

        // None of them did the server any harm.
        var good = certificates.Issue("client");
        Ok(await MaxAsync(server.Address, [.. trusted, "--cert", good.Cert, "--key", good.Key]));
        server.Process.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
    }

    [Fact]
    public async Task AReplacedCertificateServesNewConnectionsWhileOldStreamsGoOn()
    {
        await using var server = await ServeAsync();
        await using var old = Running.Start("max", "--address", server.Address, "--cacert", certificates.Root);
        await old.TurnAsync("1", "1");

        using var later = new Certificates();
        foreach (var (from, to) in new[] { (later.Server.Cert, certificates.Server.Cert), (later.Server.Key, certificates.Server.Key) })
            File.Move(from, to, overwrite: true);
        Ok(await MaxAsync(server.Address, "--cacert", later.Root));
        Fails(Unavailable, "UNAVAILABLE: the server's certificate is refused: no trusted root vouches for it (see --cacert)", await MaxAsync(server.Address, "--cacert", certificates.Root));

        await old.TurnAsync("2", "2");

        // What cannot be used is told and not used.
        File.WriteAllText(certificates.Server.Cert, "-----BEGIN CERTIFICATE-----\n");
        Ok(await MaxAsync(server.Address, "--cacert", later.Root));
        old.Input.Close();
        Ok(await old.EndAsync(), "");
        server.Process.Signal("TERM");
        var end = await server.Process.EndAsync();
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.StartsWith($"streamer: keeping the old certificate: cannot use {certificates.Server.Cert} and {certificates.Server.Key}: ", end.Error);
        Assert.Single(end.Error.TrimEnd('\n').Split('\n'));
    }

    [Fact]
    public async Task WhereNoFileCanBeLookedAtTheOldCertificateStays()
    {
        using var folder = new TempFolder();
        var (cert, key) = (folder["now/cert.pem"], folder["now/key.pem"]);
        Directory.CreateDirectory(folder["now"]);
        File.Copy(certificates.Server.Cert, cert);
        File.Copy(certificates.Server.Key, key);
        await using var server = await RunningServer.StartAsync(1, "--listen", "https://127.0.0.1:0", "--cert", cert, "--key", key);
        // A link to itself: to root, whom no mode keeps out, there is nothing else that cannot be looked at.
        Directory.Move(folder["now"], folder["old"]);
        File.CreateSymbolicLink(folder["now"], folder["now"]);
        Ok(await MaxAsync(server.Address, "--cacert", certificates.Root));
        File.Delete(folder["now"]);
        server.Process.Signal("TERM");
        var end = await server.Process.EndAsync();
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.StartsWith("streamer: keeping the old certificate: ", end.Error);
    }

    [Fact]
    public async Task OnlyH2IsNegotiated()
    {
        await using var server = await ServeAsync();
        Assert.Equal(SslApplicationProtocol.Http2, await NegotiateAsync(server.Port, SslApplicationProtocol.Http11, SslApplicationProtocol.Http2));
        await Assert.ThrowsAnyAsync<Exception>(() => NegotiateAsync(server.Port, SslApplicationProtocol.Http11));
        Ok(await MaxAsync(server.Address, "--cacert", certificates.Root));
    }

    [Fact]
    public async Task AServerWithoutH2IsOneLine()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        using var certificate = X509CertificateLoader.LoadPkcs12(certificates.ServerWithKey.Export(X509ContentType.Pfx), null);
        var serving = ServeAsync();
        async Task ServeAsync()
        {
            using var tls = new SslStream(new NetworkStream(await listener.AcceptSocketAsync(), ownsSocket: true));
            await tls.AuthenticateAsServerAsync(new SslServerAuthenticationOptions { ServerCertificate = certificate, ApplicationProtocols = [SslApplicationProtocol.Http11] });
        }
        var address = $"https://{listener.LocalEndpoint}";
        Fails(Unavailable, $"UNAVAILABLE: {address} does not answer in TLS with HTTP/2: ", await MaxAsync(address, "--cacert", certificates.Root));
        await serving.ContinueWith(_ => { }, TaskScheduler.Default);
    }

    [Fact]
    public async Task TlsOnOneSideOnlyIsOneLine()
    {
        await using var secure = await ServeAsync();
        var plainAddress = $"http://127.0.0.1:{secure.Port}";
        Fails(Unavailable, $"UNAVAILABLE: {plainAddress} closed the connection without an answer (does it want https://?)", await MaxAsync(plainAddress));

        await using var plain = await RunningServer.StartAsync();
        var secureAddress = $"https://127.0.0.1:{plain.Port}";
        Fails(Unavailable, $"UNAVAILABLE: {secureAddress} does not answer in TLS with HTTP/2: ", await MaxAsync(secureAddress));
    }

    [Fact]
    public async Task FilesThatCannotBeUsedAreOneLineEach()
    {
        var (cert, key) = certificates.Server;
        var (otherCert, _) = certificates.Issue("other");
        var missing = Path.Combine(certificates.Folder, "missing.pem");
        var empty = Path.Combine(certificates.Folder, "empty.pem");
        File.WriteAllText(empty, "");
        string[] serve = ["serve", "--listen", "https://127.0.0.1:0"], max = ["max", "--address", "https://127.0.0.1:1"];
        foreach (var (arguments, line) in new (string[], string)[]
        {
            (serve, "https://127.0.0.1:0 needs --cert and --key"),
            ([.. serve, "--cert", cert], "--cert and --key go together, and --client-ca with them"),
            ([.. serve, "--client-ca", certificates.Root], "--cert and --key go together, and --client-ca with them"),
            ([.. serve, "--cert", missing, "--key", key], $"cannot use {missing} and {key}: "),
            ([.. serve, "--cert", cert, "--key", missing], $"cannot use {cert} and {missing}: "),
            ([.. serve, "--cert", empty, "--key", key], $"cannot use {empty} and {key}: "),
            ([.. serve, "--cert", cert, "--key", cert], $"cannot use {cert} and {cert}: "),
            ([.. serve, "--cert", otherCert, "--key", key], $"cannot use {otherCert} and {key}: "),
            ([.. serve, "--cert", cert, "--key", key, "--client-ca", missing], $"cannot use {missing}: "),
            ([.. serve, "--cert", cert, "--key", key, "--client-ca", empty], $"cannot use {empty}: "),
            ([.. max, "--cacert", missing], $"cannot use {missing}: "),
            ([.. max, "--cacert", empty], $"cannot use {empty}: "),
            ([.. max, "--cert", cert], "--cert and --key go together"),
            ([.. max, "--cert", certificates.Folder, "--key", key], $"cannot use {certificates.Folder} and {key}: "),
        })
            Fails(2, line, await OneProcess.TypeAsync($"streamer {string.Join(' ', arguments)}"));
    }

    // Who asks for TLS must not get plain text without a word: `HOST:PORT` alone is plain.
    [Fact]
    public async Task TlsOptionsWithoutTlsAreRefused()
    {
        var (cert, key) = certificates.Server;
        foreach (var (command, address, options) in new (string, string, string[])[]
        {
            ("max", "127.0.0.1:1", ["--cacert", certificates.Root]), ("max", "http://127.0.0.1:1", ["--cert", cert, "--key", key]),
            ("max", "unix:/none", ["--insecure"]),
            ("greet", "127.0.0.1:1", ["--cacert", certificates.Root]), ("ping", "127.0.0.1:1", ["--cacert", certificates.Root]),
        })
        {
            var told = address[0] == '1' ? $"http://{address}" : address;
            Fails(2, $"--cacert, --cert and --insecure are for TLS: call https://HOST:PORT, not {told}",
                await OneProcess.RunAsync("", [command, "--address", address, .. options]));
        }
        string[] plain = ["serve", "--cert", cert, "--key", key, "--listen", "http://127.0.0.1:0"];
        Fails(2, "--cert and --key are for TLS: ", await OneProcess.RunAsync("", plain));
        Fails(2, "--cert and --key are for TLS: ", await OneProcess.RunAsync("", [.. plain, "--listen", $"unix:{certificates.Folder}/socket"]));
        await using var both = await RunningServer.StartAsync(2, [.. plain[1..], "--listen", "https://127.0.0.1:0"]);
    }

    Task<RunningServer> ServeAsync() => ServeAsync(1, "--listen", "https://127.0.0.1:0");

    Task<RunningServer> ServeAsync(int endpoints, params string[] arguments) =>
        RunningServer.StartAsync(endpoints, ["--cert", certificates.Server.Cert, "--key", certificates.Server.Key, .. arguments]);

    static Task<Result> MaxAsync(string address, params string[] options) => OneProcess.RunAsync(Numbers, ["max", "--address", address, .. options]);

    static void Ok(Result result, string output = Maxima) => Assert.Equal(new(0, output, ""), result);

    // A line that ends in ": " goes on in words of the runtime's or OpenSSL's own.
    static void Fails(int exitCode, string line, Result result)
    {
        Assert.Equal((exitCode, ""), (result.ExitCode, result.Output));
        Assert.Matches($@"^streamer: {Regex.Escape(line)}{(line.EndsWith(": ") ? ".+" : "")}\n\z", result.Error);
    }

    static async Task<SslApplicationProtocol> NegotiateAsync(int port, params SslApplicationProtocol[] protocols)
    {
        using var socket = new TcpClient();
        await socket.ConnectAsync(IPAddress.Loopback, port);
        using var tls = new SslStream(socket.GetStream(), false, (_, _, _, _) => true);
        await tls.AuthenticateAsClientAsync(new SslClientAuthenticationOptions { TargetHost = "localhost", ApplicationProtocols = [.. protocols] });
        return tls.NegotiatedApplicationProtocol;
    }
}

/// <summary>A root, an intermediate that it vouches for, and what that one issues, as PEM files in a folder of their own.</summary>
sealed class Certificates : IDisposable
{
    readonly X509Certificate2 intermediate;
    int issued;

    // The folder's name is in the subject as two roots of one name are a puzzle of its own.
    public Certificates()
    {
        var root = Issuing.Authority($"root of {Path.GetFileName(Folder)}", null);
        intermediate = Issuing.Authority($"intermediate of {Path.GetFileName(Folder)}", root);
        Root = Write("root.pem", root.ExportCertificatePem());
        ServerWithKey = Issuing.Leaf("server", intermediate);
        Server = Write("server", ServerWithKey);
    }

    public string Folder { get; } = Directory.CreateTempSubdirectory("streamer-").FullName;

    /// <summary>The file with the root.</summary>
    public string Root { get; }

    /// <summary>For localhost and its IPv4 and IPv6 addresses; the intermediate's certificate is in the same file.</summary>
    public (string Cert, string Key) Server { get; }

    public X509Certificate2 ServerWithKey { get; }

    /// <summary>One more certificate from the intermediate.</summary>
    public (string Cert, string Key) Issue(string name, DateTimeOffset? until = null, string? host = null)
    {
        using var certificate = Issuing.Leaf(name, intermediate, until, host);
        return Write($"{name}{++issued}", certificate);
    }

    public void Dispose() => Directory.Delete(Folder, recursive: true);

    (string Cert, string Key) Write(string name, X509Certificate2 certificate) =>
    (
        Write($"{name}.pem", $"{certificate.ExportCertificatePem()}\n{intermediate.ExportCertificatePem()}\n"),
        Write($"{name}.key", certificate.GetECDsaPrivateKey()!.ExportPkcs8PrivateKeyPem())
    );

    string Write(string name, string text)
    {
        var file = Path.Combine(Folder, name);
        File.WriteAllText(file, text);
        return file;
    }
}
