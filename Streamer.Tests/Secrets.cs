namespace Streamer.Tests;

/// <summary>What people paste into a bug report holds nobody's password: neither -v nor an error repeats one.</summary>
public sealed class Secrets(SharedServer server)
{
    const string Secret = "s3cret", Url = $"http://me:{Secret}@127.0.0.1:1";

    [Theory, InlineData("max", "-H", Secret), InlineData("max", "-H", $"x key: {Secret}"), InlineData("max", "-H", $"x-key: {Secret}ü"),
        InlineData("max", "-H", $"x-key-bin: {Secret}!"), InlineData("max", "-H", $"te: {Secret}"), InlineData("max", $"-H=x key: {Secret}"),
        InlineData("max", "-H", "x-key:", Secret), InlineData("ping", "-H", "x-key:", Secret), InlineData("max", $"authorization: {Secret}"),
        InlineData("max", "--", Secret), InlineData("max", $"--header=x-key: {Secret}"), InlineData("max", "--address", Url),
        InlineData("ping", "--address", $"me:{Secret}@127.0.0.1:1"), InlineData("max", "--address", $"http://127.0.0.1:1/?token={Secret}"),
        InlineData("max", "--address", $"unix:{Secret}/"), InlineData("max", "--address", Url, "--address", Url),
        InlineData("max", $"--adress={Url}"), InlineData("max", $"--adress:{Url}"), InlineData($"--address={Url}", "max"),
        InlineData("max", "--method", $"{Url}/FindMaximum"), InlineData("max", "--deadline", Secret), InlineData("ping", "--count", Secret),
        InlineData("serve", "--listen", Url), InlineData("serve", Url), InlineData(Url)]
    public async Task AnErrorRepeatsNoValue(params string[] arguments) => HoldsNone(await OneProcess.RunAsync("", arguments));

    [Fact]
    public async Task NorThatOfAVariable()
    {
        await using var client = Running.StartWith([("STREAMER_ADDRESS", Url)], "max");
        var result = await client.EndAsync();
        HoldsNone(result);
        Assert.StartsWith("streamer: STREAMER_ADDRESS takes HOST:PORT, ", result.Error);
    }

    [Fact]
    public async Task VerboseShowsWhatIsSentAndNotTheValues()
    {
        var result = await OneProcess.RunAsync("1", "max", "-v", "--address", server.Address,
            "-H", $"authorization: Bearer {Secret}", "-H", $"Cookie: {Secret}", "-H", $"expires: {Secret}", "-H", "key-bin: czNjcmV0", "-H", $"x: {Secret}", "-H", $"x: 2{Secret}");
        Assert.Equal((0, "1\n"), (result.ExitCode, result.Output));
        Assert.DoesNotContain(Secret, result.Error);
        Assert.DoesNotContain("czNjcmV0", result.Error);
        foreach (var name in new[] { "authorization", "cookie", "expires", "key-bin", "x" })
            Assert.Contains($" > {name}: (as given)\n", result.Error);
        Assert.Contains(" > te: trailers\n", result.Error);
        Assert.Contains(" < content-type: application/grpc\n", result.Error);
    }

    [Fact]
    public async Task VerboseHidesCookiesInHeadersAndTrailers()
    {
        await using var fake = new FakeServer(async peer =>
        {
            var (stream, _) = await peer.ReadRequestAsync();
            (string, string) cookie = ("set-cookie", $"session={Secret}");
            await peer.SendAsync(Frame.Headers(stream, [(":status", "200"), ("content-type", "application/grpc"), cookie, ("x-shown", "1")]));
            await peer.SendAsync(Frame.Headers(stream, [("grpc-status", "0"), cookie], end: true));
        });
        var result = await OneProcess.RunAsync("", "max", "-v", "--address", fake.Address);
        Assert.Equal(0, result.ExitCode);
        Assert.DoesNotContain(Secret, result.Error);
        Assert.Equal(2, result.Error.Split(" < set-cookie: (hidden)\n").Length - 1);
        Assert.Contains(" < x-shown: 1\n", result.Error);
    }

    static void HoldsNone(Result result)
    {
        Assert.Equal((2, ""), (result.ExitCode, result.Output));
        Assert.StartsWith("streamer: ", result.Error);
        Assert.DoesNotContain(Secret, result.Error);
    }
}
