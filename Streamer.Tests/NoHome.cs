namespace Streamer.Tests;

/// <summary>TLS with files that are named needs no home: a container's user often has none.</summary>
public sealed class NoHome : IDisposable
{
    // A user whom /etc/passwd does not know.
    const int nobody = 54321;

    readonly Certificates certificates = new();

    public void Dispose() => certificates.Dispose();

    [Theory, InlineData("-u", "HOME"), InlineData("HOME="), InlineData("HOME=/nonexistent"), InlineData("HOME=/root")]
    public async Task TlsNeedsNone(params string[] home)
    {
        string[] before = ["--reuid", $"{nobody}", "--regid", $"{nobody}", "--clear-groups", "env", .. home];
        Skipped.Unless(OperatingSystem.IsLinux() && (await Tool.TypeAsync($"chmod a+x {certificates.Folder} && setpriv {string.Join(' ', before)} \"${{tool[@]}}\" --version")).ExitCode == 0,
            "root, to be another user on Linux, who can run the tool");
        var (cert, key) = certificates.Server;
        await using var server = Running.StartBy("setpriv", before, "serve", "--listen", "https://127.0.0.1:0", "--cert", cert, "--key", key, "--client-ca", certificates.Root);
        var address = await server.ReadAddressAsync();
        foreach (var trust in new[] { new[] { "--cacert", certificates.Root }, ["--insecure"] })
        {
            await using var client = Running.StartBy("setpriv", before, ["max", "--address", address, "--cert", cert, "--key", key, .. trust]);
            await client.FeedAsync("7\n"u8.ToArray());
            var end = await client.EndAsync();
            Assert.Equal((0, "7\n"), (end.ExitCode, end.Output));
        }
        server.Signal("TERM");
        Assert.Equal(new(0, "", ""), await server.EndAsync());
    }

    [Fact]
    public Task NorAnyStoreThatCannotBeRead()
    {
        var store = Directory.CreateDirectory(Path.Combine(certificates.Folder, ".dotnet/corefx/cryptography/x509stores/disallowed"));
        if (!OperatingSystem.IsWindows())
            store.UnixFileMode = UnixFileMode.None;
        return TlsNeedsNone($"HOME={certificates.Folder}");
    }
}
