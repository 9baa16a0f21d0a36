using System.Diagnostics;

namespace Streamer.Tests;

/// <summary>Peers that vanish without a FIN, in network namespaces whose router drops every packet from one moment on.</summary>
public class DeadPeers(DeadPeers.Scenarios scenarios) : IClassFixture<DeadPeers.Scenarios>
{
    // The project's own promise, and the only time that these tests measure.
    static readonly TimeSpan promise = TimeSpan.FromMinutes(1);

    [Fact]
    public Task AnIdleClientFindsAVanishedServer() => scenarios.RunAsync(scenarios.IdleClient);

    [Fact]
    public Task ASendingClientFindsAVanishedServer() => scenarios.RunAsync(scenarios.SendingClient);

    [Fact]
    public Task AClientFindsThatNobodyAnswersItsFirstPacket() => scenarios.RunAsync(scenarios.ConnectingClient);

    [Fact]
    public Task AServerFindsVanishedClients() => scenarios.RunAsync(scenarios.Server);

    [Fact]
    public Task AQuietStreamStaysOpen() => scenarios.RunAsync(scenarios.QuietStream);

    /// <summary>All of them at once, as most of their time is spent waiting.</summary>
    public sealed class Scenarios : IAsyncLifetime
    {
        bool canRun;

        public Task IdleClient { get; private set; } = Task.CompletedTask;
        public Task SendingClient { get; private set; } = Task.CompletedTask;
        public Task ConnectingClient { get; private set; } = Task.CompletedTask;
        public Task Server { get; private set; } = Task.CompletedTask;
        public Task QuietStream { get; private set; } = Task.CompletedTask;

        public async ValueTask InitializeAsync()
        {
            if (Programs.Find("ip") is null)
                return;
            try
            {
                await using var attempt = await Network.CreateAsync();
            }
            catch (InvalidOperationException)
            {
                return;
            }
            canRun = true;
            (IdleClient, SendingClient, ConnectingClient) = (IdleClientAsync(), SendingClientAsync(), ConnectingClientAsync());
            (Server, QuietStream) = (ServerAsync(), QuietStreamAsync());
        }

        public async Task RunAsync(Task scenario)
        {
            Skipped.Unless(canRun, "root, to make network namespaces, with iproute2 on Linux");
            await scenario;
        }

        // A scenario that no test has waited for must not outlive the tests.
        public async ValueTask DisposeAsync() => await Task.WhenAll(IdleClient, SendingClient, ConnectingClient, Server, QuietStream).ContinueWith(_ => { }, TaskScheduler.Default);

        static async Task IdleClientAsync()
        {
            await using var network = await Network.CreateAsync();
            await using var server = await network.ServeAsync();
            await using var client = await network.CallAsync();
            await AssertFindsAsync(network, client);
        }

        static async Task SendingClientAsync()
        {
            await using var network = await Network.CreateAsync();
            await using var server = await network.ServeAsync();
            await using var client = await network.CallAsync();
            var feeding = client.FeedNumbersAsync(2);
            for (var i = 2; i < 1000; i++)
                Assert.Equal($"{i}", await client.ReadLineAsync());
            await AssertFindsAsync(network, client);
            await feeding;
        }

        static async Task ConnectingClientAsync()
        {
            await using var network = await Network.CreateAsync();
            await network.DropAsync();
            await using var client = network.Start();
            await client.WriteLineAsync("1");
            var clock = Stopwatch.StartNew();
            var result = await client.EndAsync();
            Assert.InRange(clock.Elapsed, TimeSpan.Zero, promise);
            Assert.Equal((78, ""), (result.ExitCode, result.Output));
            Assert.Matches($@"^streamer: UNAVAILABLE: cannot connect to {Network.Address}: .+\n\z", result.Error);
        }

        // One that is idle, and one in whose way answers are; the network comes back when both have been given up.
        static async Task ServerAsync()
        {
            await using var network = await Network.CreateAsync();
            await using var server = await network.ServeAsync();
            await using var idle = await network.CallAsync();
            await using var busy = await network.CallAsync();
            var feeding = busy.FeedNumbersAsync(2);
            for (var i = 2; i < 1000; i++)
                Assert.Equal($"{i}", await busy.ReadLineAsync());
            Assert.Equal(2, Connections());
            await network.DropAsync();
            var clock = Stopwatch.StartNew();
            while (Connections() > 0)
            {
                Assert.InRange(clock.Elapsed, TimeSpan.Zero, promise);
                await Task.Delay(100);
            }
            await network.DropAsync(false);
            await using (var client = await network.CallAsync())
                client.Input.Close();
            server.Signal("TERM");
            Assert.Equal(0, (await server.EndAsync()).ExitCode);

            // Linux's 01 is ESTABLISHED; what the kernel keeps after a close is not the server's any more.
            int Connections() => File.ReadLines($"/proc/{server.Id}/net/tcp").Skip(1).Select(line => line.Split(' ', StringSplitOptions.RemoveEmptyEntries)[3]).Count(state => state == "01");
        }

        static async Task QuietStreamAsync()
        {
            await using var network = await Network.CreateAsync();
            await using var server = await network.ServeAsync();
            await using var client = await network.CallAsync();
            await Task.Delay(promise + TimeSpan.FromSeconds(10));
            await client.TurnAsync("2", "2");
            client.Input.Close();
            Assert.Equal(new(0, "", ""), await client.EndAsync());
        }

        static async Task AssertFindsAsync(Network network, Running client)
        {
            await network.DropAsync();
            var clock = Stopwatch.StartNew();
            var result = await client.EndAsync();
            Assert.InRange(clock.Elapsed, TimeSpan.Zero, promise);
            Assert.Equal(78, result.ExitCode);
            Assert.Matches($@"\Astreamer: UNAVAILABLE: the connection to {Network.Address} was lost{Verbose.Counts}\n\z", result.Error);
        }
    }

    /// <summary>A client's, a router's and a server's namespace in a row.</summary>
    sealed class Network : IAsyncDisposable
    {
        public const string Address = "http://10.9.2.2:50051";

        static int count;

        readonly string client, router, server;

        Network()
        {
            var name = $"streamer-{Environment.ProcessId}-{Interlocked.Increment(ref count)}";
            (client, router, server) = ($"{name}c", $"{name}r", $"{name}s");
        }

        public static async Task<Network> CreateAsync()
        {
            var network = new Network();
            try
            {
                foreach (var name in (string[])[network.client, network.router, network.server])
                    await IpAsync("netns", "add", name);
                foreach (var (side, net) in new[] { (network.client, 1), (network.server, 2) })
                {
                    await IpAsync("-n", side, "link", "add", "eth0", "type", "veth", "peer", "name", $"eth{net}", "netns", network.router);
                    await IpAsync("-n", side, "addr", "add", $"10.9.{net}.2/24", "dev", "eth0");
                    await IpAsync("-n", network.router, "addr", "add", $"10.9.{net}.1/24", "dev", $"eth{net}");
                    await IpAsync("-n", side, "link", "set", "eth0", "up");
                    await IpAsync("-n", network.router, "link", "set", $"eth{net}", "up");
                    await IpAsync("-n", side, "route", "add", "default", "via", $"10.9.{net}.1");
                }
                await IpAsync("netns", "exec", network.router, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward");
                return network;
            }
            catch
            {
                await network.DisposeAsync();
                throw;
            }
        }

        /// <summary>Starts a server and waits until it listens.</summary>
        public async Task<Running> ServeAsync()
        {
            var running = Start(server, "serve", "--listen", Address);
            Assert.Equal($"listening on {Address}", await running.ReadLineAsync());
            return running;
        }

        public Running Start() => Start(client, "max", "--address", Address);

        /// <summary>Starts a client and waits for its first answer.</summary>
        public async Task<Running> CallAsync()
        {
            var running = Start();
            await running.TurnAsync("1", "1");
            return running;
        }

        /// <summary>From now on nothing arrives any more, and nobody is told; or everything does again.</summary>
        public async Task DropAsync(bool drop = true)
        {
            foreach (var net in (int[])[1, 2])
                await IpAsync("-n", router, "route", drop ? "add" : "del", "blackhole", $"10.9.{net}.2/32");
        }

        public async ValueTask DisposeAsync()
        {
            foreach (var name in (string[])[client, router, server])
                try
                {
                    await IpAsync("netns", "del", name);
                }
                catch (InvalidOperationException)
                {
                }
        }

        static Running Start(string name, params string[] arguments) => Running.StartBy("ip", ["netns", "exec", name], arguments);

        static async Task IpAsync(params string[] arguments)
        {
            await using var ip = Running.StartProcess("ip", arguments);
            if (await ip.EndAsync() is { ExitCode: not 0 } result)
                throw new InvalidOperationException($"ip {string.Join(' ', arguments)}: {result}");
        }
    }
}
