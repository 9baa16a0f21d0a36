namespace Streamer.Tests;

/// <summary>What the proxies' files say to type, typed as it stands there.</summary>
public class ProxyCommands
{
    [Theory, Rows("nginx.conf", "haproxy.cfg")]
    public async Task Work(string file)
    {
        Site.Program(Path.GetFileNameWithoutExtension(file));
        using var folder = new TempFolder();
        // Only the ports are other ones, at which nobody listens.
        using FreePort proxyPort = new(), one = new(), two = new(), three = new();
        FreePort[] ports = [proxyPort, one, two, three];
        var text = Regex.Replace(await File.ReadAllTextAsync(Path.Combine(Tool.Folder, "..", "proxies", file)), "50051|5006[123]", match => $"{ports[match.Value == "50051" ? 0 : match.Value[4] - '0'].Number}");
        Directory.CreateDirectory(folder["proxies"]);
        File.WriteAllText(folder[$"proxies/{file}"], text);
        if (Regex.Matches(text, "^#   (.*)", RegexOptions.Multiline).Select(match => match.Groups[1].Value).ToArray() is not [var servers, var proxy, var client])
            throw new InvalidDataException(text);

        // The proxy as an ordinary user, whoever runs the tests.
        var user = Environment.UserName == "root" ? $"{Programs.Need("setpriv")} --reuid=65534 --regid=65534 --clear-groups" : "env";
        var result = await Tool.TypeAsync($$"""
            set -m; chmod -R a+rX {{folder["."]}}; cd {{folder["."]}}; PATH=$PATH:/usr/sbin
            { {{servers}}
            } > servers.log
            {{user}} bash -c '{{proxy}} 2>&1 | cat' > proxy.log &
            until {{client}} > answers 2> errors; do kill -0 $! || { cat proxy.log; break; }; sleep 0.1; done
            cat answers errors; exec 2> /dev/null; for job in $(jobs -p); do kill -KILL -- -$job; done; wait
            """, ("STREAMER_ADDRESS", "http://127.0.0.1:1"));
        Assert.Equal(new(0, "1\n5\n", ""), result);
    }
}
