using System.Text.RegularExpressions;
using Xunit;

namespace Streamer.Tests;

/// <summary>Completion, typed into the real shells.</summary>
public class Completion
{
    [Theory]
    [InlineData("bash --rcfile rc -i", "source <(streamer completion bash); PS1='ready '")]
    [InlineData("env ZDOTDIR=. zsh -i", "autoload -U compinit; compinit -u -D; source <(streamer completion zsh); PS1='ready '")]
    [InlineData("fish --no-config -i -C 'source rc'", "streamer completion fish | source; function fish_prompt; echo 'ready '; end")]
    public async Task TabCompletes(string shell, string setUp)
    {
        using var folder = new TempFolder();
        var (file, first) = Tool.Command;
        folder.Write("streamer", $"#!/bin/sh\nexec {file} {string.Join(' ', first)} \"$@\"\n");
        folder.Write("rc", setUp);
        folder.Write(".zshrc", setUp);
        folder.Write("roots.pem", "");
        Assert.Equal(0, (await Tool.TypeAsync($"chmod +x {folder["streamer"]}")).ExitCode);
        await using var terminal = Running.StartProcess("script", ["-qefc", $"cd {folder["."]}; exec {shell}", "/dev/null"],
            ("PATH", $"{folder["."]}:{Environment.GetEnvironmentVariable("PATH")}"), ("TERM", "dumb"), ("HOME", folder["."]));
        await Verbose.ReadUntilAsync(terminal, "ready ");
        // A command, an option, a value, a file: what was not typed was completed.
        await TypeAsync("echo Ada | streamer gr", "eet");
        await TypeAsync("--wait-f", "or-ready");
        await TypeAsync("--method greet.", "GreetService/GreetEveryone");
        await TypeAsync("--cacert roo", "ts.pem");

        async Task TypeAsync(string keys, string completed)
        {
            await terminal.Input.WriteAsync(keys + "\t");
            await terminal.Input.FlushAsync(TestContext.Current.CancellationToken);
            await Verbose.ReadUntilAsync(terminal, Regex.Escape(completed));
        }
    }

    [Fact]
    public async Task AShellThatNobodyKnowsIsRefused()
    {
        var result = await Tool.RunAsync("", "completion", "csh");
        Assert.Equal((2, ""), (result.ExitCode, result.Output));
        Assert.Equal(1, result.Error.Count(c => c == '\n'));
    }

    [Theory]
    [InlineData("[suggest:99]", "streamer")]
    [InlineData("[suggest:0]", "streamer")]
    [InlineData("[suggest:25]", "streamer max --address=ht")]
    [InlineData("[suggest:23]", "streamer max --deadline=1 --st")]
    public async Task APositionThatIsNotThereDoesNoHarm(string directive, string line) => Assert.Equal((0, ""), await EndAsync(directive, line));

    [Theory]
    [InlineData("[suggest:x]", "streamer max")]
    [InlineData("[suggest]", "streamer max")]
    [InlineData("[suggest:-1]", "streamer max")]
    [InlineData("[suggest:99999999999]", "streamer max")]
    [InlineData("[suggest:1]", "max")]
    [InlineData("[suggest:1]", "streamer", "max")]
    public async Task NothingElseIsADirective(params string[] arguments) => Assert.Equal(2, (await EndAsync(arguments)).ExitCode);

    static async Task<(int ExitCode, string Error)> EndAsync(params string[] arguments)
    {
        var result = await Tool.RunAsync("", arguments);
        Assert.InRange(result.Error.Count(c => c == '\n'), 0, 1);
        return (result.ExitCode, result.ExitCode == 0 ? result.Error : "");
    }
}
