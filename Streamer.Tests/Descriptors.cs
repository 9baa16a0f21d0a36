namespace Streamer.Tests;

/// <summary>Standard descriptors that are closed, full, left by their reader, or made non-blocking by somebody else.</summary>
public class Descriptors(SharedServer server)
{
    const string ClosedStdin = "streamer: stdin: Bad file descriptor\n", ClosedStdout = "streamer: stdout: Bad file descriptor\n", FullStdout = "streamer: stdout: No space left on device\n";

    // What comes before a line, so that descriptor 3 is a pipe without a reader.
    const string Left = "exec 3> >(true); wait $!; ";

    [Theory, Rows("2>/dev/full", "2>&-", "2>&3")]
    public async Task AnUnwritableStderrChangesNothing(string redirection)
    {
        Assert.Equal(new(1, "1\n", ""), await TypeAsync($"{Left} echo 1 x | streamer max {redirection}"));
        using var certificates = new Certificates();
        var (cert, key) = certificates.Server;
        await using var own = Running.StartInBash($"{Left} exec \"$@\" {redirection}", "serve", "--listen", "https://127.0.0.1:0", "--cert", cert, "--key", key);
        var port = new Uri(await own.ReadAddressAsync()).Port;
        // What is there now is no certificate, which each new connection makes the server say.
        await File.WriteAllTextAsync(cert, "half-written");
        for (var i = 0; i < 2; i++)
            Assert.Equal(new(0, "1\n", ""), await OneProcess.TypeAsync($"echo 1 | streamer max --address https://localhost:{port} --cacert {certificates.Root}"));
        own.Signal("TERM");
        Assert.Equal(new(0, "", ""), await own.EndAsync());
    }

    [Theory, InlineData(2, "streamer max --bogus"), InlineData(2, "streamer max --deadline soon"), InlineData(1, "streamer max < ."), InlineData(1, "streamer --help > /dev/full"),
        InlineData(78, "echo 1 | streamer max --address http://127.0.0.1:1"), InlineData(1, "streamer serve --listen $STREAMER_ADDRESS")]
    public async Task TheExitCodeTellsWhatStderrCannot(int exitCode, string line) => Assert.Equal(new(exitCode, "", ""), await TypeAsync($"{line} 2>&-"));

    [Theory, Rows("streamer serve --help", "echo 1 | streamer max")]
    public async Task AStdoutThatCannotBeWritten(string line)
    {
        Assert.Equal(new(1, "", FullStdout), await TypeAsync($"{line} > /dev/full"));
        Assert.Equal(new(1, "", ClosedStdout), await TypeAsync($"{line} >&-"));
        Assert.Equal(new(1, "", ""), await TypeAsync($"{line} >&- 2>&-"));
        Assert.Equal(new(0, "", ""), await TypeAsync($"{Left} {line} >&3"));
    }

    [Fact]
    public async Task AServerWithAFullStdout() => Assert.Equal(new(1, "", FullStdout), await TypeAsync("streamer serve --listen http://127.0.0.1:0 > /dev/full"));

    [Theory, InlineData("max <&-", ClosedStdin), InlineData("greet <&- >&-", ClosedStdin), InlineData("max <&- 2>&-", ""), InlineData("greet <&- >&- 2>&-", "")]
    public async Task AClosedStdin(string command, string told) => Assert.Equal(new(1, "", told), await TypeAsync($"streamer {command}"));

    [Theory, Rows("<&-", ">&-", "2>&-", "<&- >&- 2>&-")]
    public async Task AServerNeedsNoDescriptor(string redirections)
    {
        using var folder = new TempFolder();
        var address = $"unix:{folder["s"]}";
        await using var own = Running.StartInBash($"exec \"$@\" {redirections}", "serve", "--listen", address);
        for (var i = 0; i < 2; i++)
            Assert.Equal(new(0, "1\n5\n", ""), await OneProcess.TypeAsync($"echo 1 5 3 | streamer max --address {address} --wait-for-ready"));
        own.Signal("TERM");
        Assert.Equal(new(0, redirections.Contains('>') && redirections != "2>&-" ? "" : $"listening on {address}\n", ""), await own.EndAsync());
    }

    /// <summary>A parent's event loop may leave them so: what is not there yet, or does not fit yet, is waited for.</summary>
    [Fact]
    public async Task NonBlockingDescriptors()
    {
        Programs.Need("python3");
        const string unblock = "python3 -c 'import os, sys; [os.set_blocking(fd, False) for fd in (0, 1, 2)]; os.execvp(sys.argv[1], sys.argv[1:])' \"$@\"";
        await using var client = Running.StartInBash(unblock, "greet", "--address", server.Address);
        await client.TurnAsync("Ada", "Hello Ada!");
        // Many times what a pipe holds.
        var names = Enumerable.Range(1, 200_000).Select(i => $"{i}").ToArray();
        var feeding = client.FeedAsync(Encoding.ASCII.GetBytes(string.Join('\n', names)));
        var result = await client.EndAsync();
        await feeding;
        Assert.Equal((0, ""), (result.ExitCode, result.Error));
        Assert.Equal(names.Select(name => $"Hello {name}!"), result.Output.TrimEnd('\n').Split('\n'));
    }

    [Theory, Rows("streamer max --address https://localhost:1 <<< 1", "streamer max --address https://localhost:1 --insecure --wait-for-ready <<< 1",
        "streamer greet --cacert roots.pem <<< Ada", "streamer greet --cert cert.pem --key key.pem <<< Ada",
        "streamer serve --listen https://127.0.0.1:0 --cert cert.pem --key key.pem")]
    public async Task WithoutOpenSslThereIsNoTls(string line)
    {
        using var folder = new TempFolder();
        // Found first, and no libraries.
        foreach (var version in new[] { "3", "1.1", "1.0.2", "1.0.0", "10" })
            folder.Write($"libssl.so.{version}", "");
        var environment = ("LD_LIBRARY_PATH", folder["."]);
        Assert.Equal(new(2, "", "streamer: TLS needs OpenSSL, whose libssl is not on this machine\n"), await Tool.TypeAsync(line, environment));
        if (line.Contains("serve"))
            Assert.Equal(new(0, "1\n", ""), await Tool.TypeAsync("echo 1 | streamer max", environment, ("STREAMER_ADDRESS", server.Address)));
    }

    [Theory, Rows("UTF-16", "UTF-16LE", "UTF-16BE")]
    public async Task AnInputInUtf16IsNamed(string encoding)
    {
        const string named = "streamer: the input is in UTF-16, not UTF-8\n";
        Programs.Need("iconv");
        Assert.Equal(new(1, "", named), await OneProcess.TypeAsync($"printf '1\\n5\\n3\\n' | iconv -t {encoding} | streamer max", server.Address));
        Assert.Equal(new(1, "", named), await OneProcess.TypeAsync($"printf 'Ada\\nGrace\\n' | iconv -t {encoding} | streamer greet", server.Address));
        Assert.Equal(new(1, "", named), await OneProcess.TypeAsync($"printf '\\xfe\\xff\\x67\\x4e\\x0a\\x00' | streamer greet", server.Address));
    }

    [Theory, InlineData("1\uFEFF2", "max", "1\n2\n"), InlineData("1\n\uFEFF2", "max", "1\n2\n"),
        InlineData("\uFEFF-1\uFEFF\uFEFF 1234567890\uFEFF\n7", "max", "-1\n1234567890\n"),
        InlineData("Ada\uFEFFLovelace\n\uFEFFAlan\n\uFEFF\n", "greet", "Hello Ada Lovelace!\nHello Alan!\n")]
    public async Task AByteOrderMarkIsWhiteSpace(string input, string command, string output)
    {
        // A mark may be cut wherever a read ends.
        byte[][] pieces = [.. Encoding.UTF8.GetBytes(input).Chunk(1)];
        Assert.Equal(new(0, output, ""), await Tool.RunAsync(pieces, command, "--address", server.Address));
    }

    Task<Result> TypeAsync(string line) => Tool.TypeAsync(line, ("STREAMER_ADDRESS", server.Address));
}
