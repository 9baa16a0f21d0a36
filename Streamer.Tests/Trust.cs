using System.Net.Security;
using System.Security.Authentication;
using System.Security.Cryptography;
using System.Security.Cryptography.X509Certificates;

namespace Streamer.Tests;

/// <summary>Who is trusted, on both sides: whom a file names and whom they vouch for, as the files are now, and nobody else whatever they send.</summary>
public sealed class Trust : IDisposable
{
    const string Refused = "UNAVAILABLE: the server's certificate is refused: ";
    const string NoRoot = Refused + "no trusted root vouches for it (see --cacert)";

    static readonly Result One = new(0, "1\n", "");

    readonly TempFolder folder = new();
    readonly X509Certificate2 root = Issuing.Authority("root", null), intermediate, leaf;
    int files;

    public Trust()
    {
        intermediate = Issuing.Authority("intermediate", root);
        leaf = Issuing.Leaf("leaf", intermediate);
    }

    public void Dispose() => folder.Dispose();

    // --- Nothing is fetched ---

    // Nobody's connection is accepted: each visitor is kept waiting, and can be counted.
    [Fact]
    public async Task AServerFetchesNothing()
    {
        using var elsewhere = new Elsewhere();
        var home = Directory.CreateDirectory(folder["home"]).FullName;
        await using var server = await RunningServer.StartWithAsync([("HOME", home)], 1, [.. Https, .. Own(leaf, intermediate), "--client-ca", Pem(root)]);
        string[] trusted = ["--cacert", Pem(root)];
        var named = elsewhere.Name(intermediate);
        for (var i = 0; i < 3; i++)
            Fails(80, "UNAUTHENTICATED", await MaxAsync(server, [.. trusted, .. Own(named)]));
        Assert.Equal(One, await MaxAsync(server, [.. trusted, .. Own(named, intermediate)]));
        await AssertNothingHappenedAsync(server, elsewhere, home);
    }

    [Fact]
    public async Task AServerThatAsksNobodyForACertificateFetchesNothing()
    {
        using var elsewhere = new Elsewhere();
        var home = Directory.CreateDirectory(folder["home"]).FullName;
        await using var server = await RunningServer.StartWithAsync([("HOME", home)], 1, [.. Https, .. Own(elsewhere.Name(intermediate))]);
        Fails(78, NoRoot, await MaxAsync(server, "--cacert", Pem(root)));
        await AssertNothingHappenedAsync(server, elsewhere, home);
    }

    [Theory, Rows("--cacert", "the system's roots", "--insecure")]
    public async Task AClientFetchesNothing(string trusting)
    {
        using var elsewhere = new Elsewhere();
        var home = Directory.CreateDirectory(folder["home"]).FullName;
        var named = elsewhere.Name(intermediate);
        await using var server = await RunningServer.StartAsync(1, [.. Https, .. Own(named)]);
        string[] options = trusting switch { "--cacert" => ["--cacert", Pem(root)], "--insecure" => ["--insecure", .. Own(named)], _ => [] };
        await using var client = Running.StartWith([("HOME", home), ("SSL_CERT_FILE", Pem(root))], ["max", "--address", server.Address, .. options]);
        await client.FeedAsync("1\n"u8.ToArray());
        var end = await client.EndAsync();
        if (trusting == "--insecure")
            Assert.Equal(One with { Error = "streamer: warning: the server's certificate is not verified: no trusted root vouches for it (see --cacert)\n" }, end);
        else
            Fails(78, NoRoot, end);
        Assert.Equal(0, elsewhere.Visitors);
        Assert.Empty(Directory.GetFileSystemEntries(home));
    }

    static async Task AssertNothingHappenedAsync(RunningServer server, Elsewhere elsewhere, string home)
    {
        server.Process.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.Process.EndAsync());
        Assert.Equal(0, elsewhere.Visitors);
        Assert.Empty(Directory.GetFileSystemEntries(home));
    }

    // --- Who is named is trusted ---

    [Fact]
    public async Task WhoIsNamedIsTrusted()
    {
        using var stranger = Issuing.Authority("stranger", null);
        using var alone = Issuing.Leaf("alone", null);
        using var old = Issuing.Authority("root", null, until: DateTimeOffset.UtcNow.AddDays(-1));
        using var between = Issuing.Authority("intermediate", old);
        using var below = Issuing.Leaf("leaf", between);
        await using var server = await StartAsync(Own(leaf, intermediate), Pem(root));
        foreach (var (who, trusted, sent) in new[]
        {
            ("a root", Pem(root), Own(leaf, intermediate)),
            ("an intermediate", Pem(intermediate), Own(leaf)),
            ("an intermediate beside its root, which has expired", Pem(between, old), Own(below)),
            ("a certificate", Pem(leaf), Own(leaf)),
            ("a certificate that vouches for itself", Pem(alone), Own(alone)),
            ("a certificate among others", Pem(stranger, leaf, alone), Own(leaf, intermediate)),
        })
        {
            Now(who, sent, trusted);
            Assert.Equal(One, await MaxAsync(server, ["--cacert", trusted, .. sent]));
        }
    }

    // What is trusted, and what is sent and with what key, by somebody who has all that is public and keys of his own.
    [Fact]
    public async Task NobodyElseIsTrusted()
    {
        var evil = Issuing.Authority("root", null, like: root);
        var double_ = Issuing.Authority("intermediate", evil, like: intermediate);
        var good = Own(leaf, intermediate);
        await using var server = await StartAsync(good, Pem(root));
        var (unsigned, below) = (Issuing.Leaf("leaf", intermediate, signedBy: evil), Issuing.Leaf("leaf", double_));
        foreach (var (attack, trusted, sent) in new[]
        {
            ("another's names, issuer and number", Pem(leaf), Own(Issuing.Leaf("leaf", double_, like: leaf), double_, evil)),
            ("an intermediate with another's names, number and key identifier", Pem(intermediate), Own(below, double_)),
            ("an intermediate with another's names, and a root with its root's", Pem(root, intermediate), Own(below, double_, evil)),
            ("an issuer's name without its signature", Pem(intermediate), Own(unsigned)),
            ("an issuer's name without its signature, and the issuer", Pem(root), Own(unsigned, intermediate)),
            ("a certificate that a trusted one has signed which is no authority", Pem(leaf), Own(Issuing.Leaf("evil", leaf), leaf)),
            ("a certificate that one has signed which is no authority", Pem(intermediate), Own(Issuing.Leaf("evil", leaf), leaf)),
            ("another's certificate behind one's own", Pem(leaf), Own(Issuing.Leaf("evil", evil), leaf, intermediate)),
        })
        {
            Now(attack, sent, Pem(root));
            Fails(78, Refused, await MaxAsync(server, ["--cacert", trusted, .. good]));
            Now(attack, good, trusted);
            Fails(80, "UNAUTHENTICATED", await MaxAsync(server, ["--cacert", Pem(root), .. sent]));
            // He and nobody else is kept out.
            Assert.Equal(One, await MaxAsync(server, ["--cacert", trusted, .. good]));
        }
    }

    // Trust in an intermediate or in one certificate makes no other fault good.
    [Fact]
    public async Task WhoIsTrustedIsCheckedAllTheSame()
    {
        const string serverAuthentication = "1.3.6.1.5.5.7.3.1", clientAuthentication = "1.3.6.1.5.5.7.3.2";
        var past = DateTimeOffset.UtcNow.AddDays(-1);
        const string hasExpired = "it, or one that vouches for it, has expired or is not valid yet";
        var expired = Issuing.Leaf("leaf", intermediate, until: past);
        var forClients = Issuing.Leaf("leaf", intermediate, usage: clientAuthentication);
        var forServers = Issuing.Leaf("leaf", intermediate, usage: serverAuthentication);
        var elsewhere = Issuing.Leaf("leaf", intermediate, host: "streamer.example");
        var good = Own(leaf, intermediate);
        await using var server = await StartAsync(good, Pem(root));
        foreach (var (bad, why) in new[]
        {
            (expired, $"{hasExpired} (it is valid until {past.LocalDateTime:yyyy-MM-dd})"),
            (elsewhere, "it is not for 127.0.0.1"),
            (forClients, "NotValidForUsage"),
        })
        {
            Now(why, Own(bad), Pem(root));
            foreach (var trusted in new[] { Pem(intermediate), Pem(bad) })
                Fails(78, Refused + why, await MaxAsync(server, ["--cacert", trusted, .. good]));
        }
        foreach (var (bad, why) in new[] { (expired, "expired"), (forServers, "for the other side") })
            foreach (var trusted in new[] { Pem(intermediate), Pem(bad) })
            {
                Now(why, good, trusted);
                Fails(80, "UNAUTHENTICATED", await MaxAsync(server, ["--cacert", Pem(root), .. Own(bad)]));
            }
    }

    // --- The files as they are now ---

    [Fact]
    public async Task AReplacedClientCaJudgesNewConnections()
    {
        using var next = Issuing.Authority("next", null);
        var (ca, before, after) = (Pem(root), Own(leaf, intermediate), Own(Issuing.Leaf("later", next)));
        await using var server = await RunningServer.StartAsync(1, [.. Https, .. before, "--client-ca", ca]);
        string[] trusted = ["--cacert", Pem(root)];
        await using var old = Running.Start(["max", "--address", server.Address, .. trusted, .. before]);
        await old.TurnAsync("1", "1");
        Fails(80, "UNAUTHENTICATED", await MaxAsync(server, [.. trusted, .. after]));

        File.Move(Pem(next), ca, overwrite: true);
        await ChangedAsync();
        await old.TurnAsync("2", "2");

        // What cannot be used is told once, and not used.
        File.WriteAllText(ca, "");
        await ChangedAsync();
        File.Delete(ca);
        await ChangedAsync();
        File.Copy(Pem(root), ca);
        Assert.Equal(One, await MaxAsync(server, [.. trusted, .. before]));
        Fails(80, "UNAUTHENTICATED", await MaxAsync(server, [.. trusted, .. after]));
        old.Input.Close();
        Assert.Equal(new(0, "", ""), await old.EndAsync());
        server.Process.Signal("TERM");
        var end = await server.Process.EndAsync();
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.Matches($@"\A(streamer: keeping the old client CA: cannot use {ca}: .+\n){{2}}\z", end.Error);

        async Task ChangedAsync()
        {
            Assert.Equal(One, await MaxAsync(server, [.. trusted, .. after]));
            Fails(80, "UNAUTHENTICATED", await MaxAsync(server, [.. trusted, .. before]));
        }
    }

    // As Kubernetes mounts a secret: a link to a file in a linked folder, and only the folder's link is swapped.
    [Theory, Rows("a link on the way is swapped", "the link is swapped", "what it leads to is overwritten in place", "what it leads to is replaced")]
    public async Task WhatLinksLeadToNowIsUsed(string change)
    {
        using var next = Issuing.Authority("next", null);
        var time = DateTime.UtcNow.AddHours(-1);
        foreach (var (version, ca, sent) in new[] { ("..v1", root, Own(leaf, intermediate)), ("..v2", next, Own(Issuing.Leaf("later", next))) })
        {
            Directory.CreateDirectory(folder[version]);
            foreach (var (from, to) in new[] { (sent[1], "tls.crt"), (sent[3], "tls.key"), (Pem(ca), "ca.crt") })
            {
                File.Copy(from, folder[$"{version}/{to}"]);
                File.SetLastWriteTimeUtc(folder[$"{version}/{to}"], time);
            }
        }
        File.CreateSymbolicLink(folder["..data"], "..v1");
        string[] names = ["tls.crt", "tls.key", "ca.crt"];
        foreach (var name in names)
            File.CreateSymbolicLink(folder[name], $"..data/{name}");
        await using var server = await RunningServer.StartAsync(1, [.. Https, "--cert", folder["tls.crt"], "--key", folder["tls.key"], "--client-ca", folder["ca.crt"]]);
        Assert.Equal(One, await MaxAsync(server, ["--cacert", Pem(root), .. Own(leaf, intermediate)]));

        if (change == "a link on the way is swapped")
        {
            File.Delete(folder["..data"]);
            File.CreateSymbolicLink(folder["..data"], "..v2");
        }
        foreach (var name in change == "a link on the way is swapped" ? [] : names)
        {
            if (change == "the link is swapped")
            {
                File.CreateSymbolicLink(folder["..new"], $"..v2/{name}");
                File.Move(folder["..new"], folder[name], overwrite: true);
            }
            else if (change == "what it leads to is replaced")
                File.Move(folder[$"..v2/{name}"], folder[$"..v1/{name}"], overwrite: true);
            else
            {
                File.WriteAllBytes(folder[$"..v1/{name}"], File.ReadAllBytes(folder[$"..v2/{name}"]));
                File.SetLastWriteTimeUtc(folder[$"..v1/{name}"], time);
            }
        }
        Assert.Equal(One, await MaxAsync(server, ["--cacert", Pem(next), .. Own(Issuing.Leaf("client", next))]));
        Fails(78, NoRoot, await MaxAsync(server, ["--cacert", Pem(root), .. Own(leaf, intermediate)]));
    }

    // Many clients resume their sessions, and send no chain then.
    [Fact]
    public async Task AClientMayComeBack()
    {
        await using var server = await RunningServer.StartAsync(1, [.. Https, .. Own(leaf, intermediate), "--client-ca", Pem(root)]);
        var certificate = SslStreamCertificateContext.Create(X509CertificateLoader.LoadPkcs12(leaf.Export(X509ContentType.Pfx), null), [intermediate], offline: true);
        foreach (var version in Enumerable.Repeat(SslProtocols.Tls12, 3).Concat(Enumerable.Repeat(SslProtocols.Tls13, 3)))
        {
            using var socket = new TcpClient();
            await socket.ConnectAsync(IPAddress.Loopback, server.Port);
            using var tls = new SslStream(socket.GetStream(), false, (_, _, _, _) => true);
            await tls.AuthenticateAsClientAsync(new SslClientAuthenticationOptions
            {
                TargetHost = "localhost",
                ClientCertificateContext = certificate,
                EnabledSslProtocols = version,
                ApplicationProtocols = [SslApplicationProtocol.Http2],
            });
            // A connection that is accepted begins with the server's SETTINGS.
            var frame = new byte[9];
            await tls.WriteAsync("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u0004\0\0\0\0\0"u8.ToArray());
            await tls.ReadExactlyAsync(frame).AsTask().WaitAsync(Tool.Patience);
            Assert.Equal(4, frame[3]);
        }
    }

    // --- What all of them need ---

    static readonly string[] Https = ["--listen", "https://127.0.0.1:0"];

    string Pem(params X509Certificate2[] certificates) => folder.Write($"{++files}.pem", string.Join("\n", certificates.Select(certificate => certificate.ExportCertificatePem())));

    string[] Own(params X509Certificate2[] chain) => ["--cert", Pem(chain), "--key", folder.Write($"{++files}.key", chain[0].GetECDsaPrivateKey()!.ExportPkcs8PrivateKeyPem())];

    /// <summary>Starts a server whose files <see cref="Now"/> replaces, which new connections see: a start for each case would show no more.</summary>
    Task<RunningServer> StartAsync(string[] own, string clientCa)
    {
        Now("", own, clientCa);
        return RunningServer.StartAsync(1, [.. Https, "--cert", folder["cert"], "--key", folder["key"], "--client-ca", folder["ca"]]);
    }

    void Now(string what, string[] own, string clientCa)
    {
        TestContext.Current.TestOutputHelper?.WriteLine(what);
        foreach (var (from, to) in new[] { (own[1], "cert"), (own[3], "key"), (clientCa, "ca") })
        {
            File.Copy(from, folder["next"]);
            File.Move(folder["next"], folder[to], overwrite: true);
        }
    }

    static Task<Result> MaxAsync(RunningServer server, params string[] options) => OneProcess.RunAsync("1\n", ["max", "--address", server.Address, .. options]);

    static void Fails(int exitCode, string line, Result result)
    {
        Assert.Equal((exitCode, ""), (result.ExitCode, result.Output));
        Assert.StartsWith($"streamer: {line}", result.Error);
        Assert.Single(result.Error.TrimEnd('\n').Split('\n'));
    }

    /// <summary>A port to which certificates point, and that nobody has any business at.</summary>
    sealed class Elsewhere : IDisposable
    {
        readonly TcpListener listener = new(IPAddress.Loopback, 0);

        public Elsewhere() => listener.Start();

        public int Visitors => listener.Pending() ? 1 : 0;

        /// <summary>A certificate that says where its issuer, and whether it is revoked, are to be found.</summary>
        public X509Certificate2 Name(X509Certificate2 issuer) => Issuing.Leaf("named", issuer, at: $"http://{listener.LocalEndpoint}/");

        public void Dispose() => listener.Dispose();
    }
}

/// <summary>Makes certificates, true and false ones. Each holds its key.</summary>
static class Issuing
{
    // None may outlive what vouches for it, not even by a second.
    static readonly DateTimeOffset now = DateTimeOffset.UtcNow;

    /// <summary>One that may vouch for others.</summary>
    /// <param name="issuer">Who vouches for it; null where it does so itself.</param>
    /// <param name="like">Whose number and key identifier it has.</param>
    public static X509Certificate2 Authority(string name, X509Certificate2? issuer, DateTimeOffset? until = null, X509Certificate2? like = null) =>
        Make(name, issuer, issuer, until ?? now.AddDays(60), like,
            new X509BasicConstraintsExtension(true, false, 0, true), new X509KeyUsageExtension(X509KeyUsageFlags.KeyCertSign, true));

    /// <summary>One for a server or a client.</summary>
    /// <param name="host">Whose it is; null for localhost, 127.0.0.1 and ::1.</param>
    /// <param name="usage">What it may be used for; null for anything.</param>
    /// <param name="signedBy">Who signs it in the issuer's place.</param>
    /// <param name="at">Where it says that more is to be found.</param>
    public static X509Certificate2 Leaf(string name, X509Certificate2? issuer, DateTimeOffset? until = null, string? host = null, string? usage = null,
        X509Certificate2? like = null, X509Certificate2? signedBy = null, string? at = null)
    {
        var names = new SubjectAlternativeNameBuilder();
        names.AddDnsName(host ?? "localhost");
        foreach (var address in host is null ? new[] { IPAddress.Loopback, IPAddress.IPv6Loopback } : [])
            names.AddIpAddress(address);
        List<X509Extension> extensions = [new X509BasicConstraintsExtension(false, false, 0, true), names.Build()];
        if (usage is not null)
            extensions.Add(new X509EnhancedKeyUsageExtension([new(usage)], true));
        if (at is not null)
            extensions.AddRange(new X509AuthorityInformationAccessExtension([$"{at}ocsp"], [$"{at}issuer"]), CertificateRevocationListBuilder.BuildCrlDistributionPointExtension([$"{at}crl"]));
        return Make(name, issuer, signedBy ?? issuer, until ?? now.AddDays(30), like, [.. extensions]);
    }

    static X509Certificate2 Make(string name, X509Certificate2? issuer, X509Certificate2? signedBy, DateTimeOffset until, X509Certificate2? like, params X509Extension[] extensions)
    {
        using var key = ECDsa.Create(ECCurve.NamedCurves.nistP256);
        var request = new CertificateRequest($"CN={name}", key, HashAlgorithmName.SHA256);
        foreach (var extension in extensions)
            request.CertificateExtensions.Add(extension);
        request.CertificateExtensions.Add(like is null ? new X509SubjectKeyIdentifierExtension(request.PublicKey, false) : IdentifierOf(like));
        if (issuer is not null)
            request.CertificateExtensions.Add(X509AuthorityKeyIdentifierExtension.CreateFromSubjectKeyIdentifier(IdentifierOf(issuer)));
        using var certificate = request.Create(issuer?.SubjectName ?? request.SubjectName, X509SignatureGenerator.CreateForECDsa(signedBy?.GetECDsaPrivateKey() ?? key),
            now.AddDays(-30), until, like?.SerialNumberBytes.ToArray() ?? RandomNumberGenerator.GetBytes(8));
        return certificate.CopyWithPrivateKey(key);
    }

    static X509SubjectKeyIdentifierExtension IdentifierOf(X509Certificate2 certificate) => certificate.Extensions.OfType<X509SubjectKeyIdentifierExtension>().Single();
}
