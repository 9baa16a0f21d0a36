using System.Net.Sockets;
using System.Text.RegularExpressions;
using Xunit;

namespace Streamer.Tests;

/// <summary>A server is reached at whichever of its addresses it listens, and listens at what the machine has.</summary>
public class Reach
{
    const string Both = "::1 localhost\n127.0.0.1 localhost\n";
    const string OwnServer = "streamer: no server at http://localhost:50051, so this command brings its own\n";

    static readonly Result One = new(0, "1\n", "");

    [Theory]
    [InlineData("127.0.0.1", "trying http://[::1]:50051", "http://[::1]:50051: Connection refused", "trying http://127.0.0.1:50051", "connected to http://127.0.0.1:50051")]
    [InlineData("[::1]", "trying http://[::1]:50051", "connected to http://[::1]:50051")]
    public async Task AServerAtOneAddressOfANameIsFound(string host, params string[] tries)
    {
        await using var machine = await Machine.StartAsync(Both, needsIPv6: true);
        await using var server = await machine.ServeAsync($"http://{host}:50051");
        Assert.Equal(One, await machine.RunAsync("max"));
        Assert.Equal(One, await machine.RunAsync("max", "--address", "localhost:50051"));
        var shown = await machine.RunAsync("max", "-v");
        Assert.Equal((0, "1\n"), (shown.ExitCode, shown.Output));
        Assert.Equal(tries, Happened(shown)[..^1]);
    }

    [Fact]
    public async Task NothingListensOnlyWhereAllAddressesRefuse()
    {
        // There is no way to 192.0.2.1.
        await using var machine = await Machine.StartAsync($"{Both}127.0.0.1 far\n192.0.2.1 far\n");
        Assert.Equal(One with { Error = OwnServer }, await machine.RunAsync("max"));
        Assert.Equal(new(78, "", "streamer: UNAVAILABLE: nothing listens at http://localhost:50051\n"), await machine.RunAsync("max", "--address", "localhost:50051"));
        Assert.Equal(new(78, "", "streamer: UNAVAILABLE: cannot connect to http://far:50051: Network is unreachable\n"), await machine.RunAsync("max", "--address", "far:50051"));
        await using var other = await Machine.StartAsync("127.0.0.1 localhost\n192.0.2.1 localhost\n");
        Assert.Equal(new(78, "", "streamer: UNAVAILABLE: cannot connect to http://localhost:50051: Network is unreachable\n"), await other.RunAsync("max"));
    }

    [Fact]
    public async Task FamiliesTakeTurns()
    {
        await using var machine = await Machine.StartAsync("::1 many\n2001:db8::1 many\n127.0.0.1 many\n127.0.0.2 many\n", setup: "ip addr add 2001:db8::1/128 dev lo nodad", needsIPv6: true);
        var shown = await machine.RunAsync("max", "-v", "--address", "many:50051");
        Assert.Equal(78, shown.ExitCode);
        Assert.EndsWith("streamer: UNAVAILABLE: nothing listens at http://many:50051\n", shown.Error);
        var families = Happened(shown).Where(line => line.StartsWith("trying ")).Select(line => line.Contains('[')).ToArray();
        Assert.Equal([families[0], !families[0], families[0], !families[0]], families);
    }

    // Whoever is asked there says nothing, as what is sent is for no card that there is. A name's IPv6 address comes first.
    [Fact]
    public async Task AnAddressThatSwallowsAllHoldsNobodyUp()
    {
        const string hole = "ip link set veth0 up; ip link set veth1 up; ip addr add 2001:db8::1/64 dev veth0 nodad; ip neigh add 2001:db8::7 lladdr 02:00:00:00:00:07 dev veth0 nud permanent";
        await using var machine = await Machine.StartAsync("2001:db8::7 hole\n127.0.0.1 hole\n", "ip link add veth0 type veth peer name veth1", hole, needsIPv6: true);
        await using var server = await machine.ServeAsync("http://127.0.0.1:50051");
        await using var client = machine.Start("max", "-v", "--address", "hole:50051");
        await client.TurnAsync("1", "1");
        // What has lost is given up.
        await Wait.UntilAsync(() => Running.AreAtRestAsync(client), () => "the client does not come to rest");
        Assert.DoesNotContain(" 02 ", File.ReadAllText($"/proc/{client.Id}/net/tcp6"));
        client.Input.Close();
        var end = await client.EndAsync();
        Assert.Equal((0, ""), (end.ExitCode, end.Output));
        Assert.Equal(["trying http://[2001:db8::7]:50051", "trying http://127.0.0.1:50051", "connected to http://127.0.0.1:50051"], Happened(end)[..^1]);
    }

    [Fact]
    public async Task WaitingForReadyGoesRoundAllAddresses()
    {
        await using var machine = await Machine.StartAsync(Both, needsIPv6: true);
        await using var client = machine.Start("max", "-v", "--wait-for-ready");
        await client.FeedAsync("1\n"u8.ToArray());
        await Wait.UntilAsync(() => Running.AreAtRestAsync(client), () => "the client does not wait");
        await using var server = await machine.ServeAsync("http://127.0.0.1:50051");
        var end = await client.EndAsync();
        Assert.Equal((0, "1\n"), (end.ExitCode, end.Output));
        var tries = Happened(end)[..^1];
        string[] round = ["trying http://[::1]:50051", "http://[::1]:50051: Connection refused", "trying http://127.0.0.1:50051"];
        Assert.Equal([.. round, "http://127.0.0.1:50051: Connection refused", "nothing listens at http://localhost:50051: to be tried again"], tries[..5]);
        Assert.Equal([.. round, "connected to http://127.0.0.1:50051"], tries[^4..]);
    }

    // As Docker has it, where nobody has asked for IPv6.
    [Fact]
    public async Task WhereIPv6IsSwitchedOffTheRestIsListenedAt()
    {
        const string file = "/proc/sys/net/ipv6/conf/all/disable_ipv6";
        await using var machine = await Machine.StartAsync(Both, setup: $"[ ! -e {file} ] || echo 1 > {file}");
        await using (var plain = await machine.ServeAsync())
        {
            Assert.Equal(One, await machine.RunAsync("max"));
            plain.Signal("TERM");
            Assert.Equal(new(0, "", ""), await plain.EndAsync());
        }
        Assert.Equal(One with { Error = OwnServer }, await machine.RunAsync("max"));
        await using (var any = await machine.ServeAsync("http://*:50051"))
            Assert.Equal(One, await machine.RunAsync("max", "--address", "127.0.0.1:50051"));
        // Only who asks for IPv6 by name is told that there is none.
        var named = await machine.RunAsync("serve", "--listen", "http://[::1]:50051");
        Assert.Equal((1, ""), (named.ExitCode, named.Output));
        Assert.Matches(@"\Astreamer: cannot listen at http://\[::1\]:50051: .+\n\z", named.Error);
    }

    // A kernel that knows no IPv6 is not to be had: .NET can be told to take this one for such.
    [Fact]
    public async Task WhereThereIsNoIPv6AnyAddressIsOneOfIPv4()
    {
        (string, string?)[] without = [("DOTNET_SYSTEM_NET_DISABLEIPV6", "1")];
        await using var any = await RunningServer.StartWithAsync(without, 1, "--listen", "http://*:0");
        Assert.Equal($"http://0.0.0.0:{any.Port}", any.Address);
        Assert.Equal(One, await Tool.RunAsync("1", "max", "--address", $"127.0.0.1:{any.Port}"));
        await using var localhost = await RunningServer.StartWithAsync(without, 1, "--listen", "localhost:0");
        await using var client = Running.StartWith(without, "max", "--address", $"localhost:{localhost.Port}");
        await client.FeedAsync("1"u8.ToArray());
        Assert.Equal(One, await client.EndAsync());
        localhost.Process.Signal("TERM");
        Assert.Equal(new(0, "", ""), await localhost.Process.EndAsync());
    }

    [Fact]
    public async Task AnIPv4AddressMayBeWrittenAsOneOfIPv6()
    {
        Skipped.Unless(CommandLine.HasIPv6, "IPv6");
        await using var server = await RunningServer.StartAsync();
        Assert.Equal(One, await Tool.RunAsync("1", "max", "--address", $"[::ffff:127.0.0.1]:{server.Port}"));
    }

    // What -v shows with *, without the times and the summary.
    static string[] Happened(Result shown) => [.. Regex.Matches(shown.Error, @"^ *[0-9.]+ \* (.+)$", RegexOptions.Multiline).Select(line => line.Groups[1].Value)];

    /// <summary>A machine of its own, as far as the network and the names of hosts go.</summary>
    sealed class Machine : IAsyncDisposable
    {
        const string Need = "unshare, nsenter, ip and root, to make network namespaces on Linux";

        // Who is not root may be so in a namespace of his own.
        static readonly string[] namespaces = Environment.IsPrivilegedProcess ? ["--net", "--mount"] : ["--net", "--mount", "--user"];

        readonly TempFolder folder = new();
        readonly Running inside;

        Machine(string hosts, string need, string setup) => inside = Running.StartProcess("unshare",
        [
            .. namespaces, .. Environment.IsPrivilegedProcess ? [] : (string[])["--map-root-user"], "sh", "-ec",
            $"ip link set lo up; mount --bind {folder.Write("hosts", hosts)} /etc/hosts; {need}; echo made; {setup}; echo ready; exec cat",
        ]);

        /// <param name="hosts">What /etc/hosts holds.</param>
        /// <param name="need">What not every machine can do.</param>
        /// <param name="setup">And what it can do then.</param>
        public static async Task<Machine> StartAsync(string hosts, string need = ":", string setup = ":", bool needsIPv6 = false)
        {
            var path = (Environment.GetEnvironmentVariable("PATH") + ":/usr/sbin:/sbin").Split(':');
            Skipped.Unless(OperatingSystem.IsLinux() && new[] { "unshare", "nsenter", "ip" }.All(program => path.Any(folder => File.Exists(Path.Combine(folder, program)))), Need);
            Skipped.Unless(!needsIPv6 || CommandLine.HasIPv6, "IPv6");
            var machine = new Machine(hosts, need, setup);
            Skipped.Unless(await machine.inside.ReadLineAsync() == "made", Need);
            Assert.Equal("ready", await machine.inside.ReadLineAsync());
            return machine;
        }

        public Running Start(params string[] arguments) => Running.StartBy("nsenter",
            [$"--target={inside.Id}", .. namespaces, .. Environment.IsPrivilegedProcess ? [] : (string[])["--preserve-credentials"], "--"], arguments);

        /// <summary>Runs the tool with a 1 to read.</summary>
        public async Task<Result> RunAsync(params string[] arguments)
        {
            await using var tool = Start(arguments);
            await tool.FeedAsync("1\n"u8.ToArray());
            return await tool.EndAsync();
        }

        /// <summary>Starts a server, and waits for its one address.</summary>
        public async Task<Running> ServeAsync(string? listen = null)
        {
            var server = Start(["serve", .. listen is null ? [] : (string[])["--listen", listen]]);
            var address = await server.ReadAddressAsync();
            Assert.Equal(listen?.Replace("*", "[::]") ?? "http://127.0.0.1:50051", address);
            return server;
        }

        public async ValueTask DisposeAsync()
        {
            await inside.DisposeAsync();
            folder.Dispose();
        }
    }
}
