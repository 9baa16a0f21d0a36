using System.Text.Json;

namespace Streamer.Tests;

/// <summary>What `dotnet pack` makes on a machine, and which package a machine gets (.ci/run packs before the tests).</summary>
public class Installs
{
    static readonly string root = Path.GetFullPath(Path.Combine(Tool.Folder, ".."));
    static readonly string packages = Path.Combine(root, "bin", "packages");

    static readonly (string, string?)[] quiet = [("DOTNET_CLI_TELEMETRY_OPTOUT", "1"), ("DOTNET_NOLOGO", "1")];

    // Of a Linux, musl's and bionic's are not glibc's; all others are no Linux of the processor that packed.
    [Theory, InlineData("linux-x64", "any"), InlineData("linux-arm64", "any"), InlineData("osx-x64", "any"), InlineData("osx-arm64", "any"), InlineData("win-x64", "any"),
        InlineData("linux-musl-x64", "linux-musl"), InlineData("linux-musl-arm64", "linux-musl"), InlineData("alpine.3.18-x64", "linux-musl"),
        InlineData("linux-bionic-x64", "linux-bionic"), InlineData("linux-bionic-arm64", "linux-bionic")]
    public async Task AMachineGetsThePackageThatRunsThere(string machine, string expected)
    {
        Skipped.Unless(Directory.Exists(packages), "`dotnet pack`, whose packages they install");
        if (File.Exists(Path.Combine(packages, $"Streamer.{machine}.{Version()}.nupkg")))
            expected = machine;
        using var folder = new TempFolder();
        await using var install = Running.StartProcess("dotnet", ["tool", "install", "--tool-path", folder["tools"], "--configfile", Path.Combine(root, "nuget.config"), "Streamer"],
            [.. quiet, ("DOTNET_RUNTIME_ID", machine)]);
        var result = await install.EndAsync();
        Assert.True(result.ExitCode == 0, $"{result}");
        var package = Directory.GetFiles(folder["tools"], "streamer.*.nupkg", SearchOption.AllDirectories).Select(Path.GetFileName).Where(name => !char.IsDigit(name!["streamer.".Length]));
        Assert.Equal($"streamer.{expected}.{Version()}.nupkg", Assert.Single(package));
    }

    static string Version() => Path.GetFileName(Directory.GetFiles(packages, "Streamer.*.nupkg").Single(file => char.IsDigit(Path.GetFileName(file)["Streamer.".Length])))["Streamer.".Length..^".nupkg".Length];

    [Theory, InlineData("linux-x64", "gcc"), InlineData("linux-arm64", "clang"), InlineData("linux-musl-x64", "gcc")]
    public Task WithACompilerTheMachinesPackageIsNative(string machine, string compiler) => IsPackedAsync(machine, compiler, isNative: true);

    // What .NET links with is `clang` or `gcc`, not any `cc`; on a Mac the latter are found in folders of their own.
    [Theory, InlineData("linux-x64", "cc"), InlineData("linux-musl-x64", "cc"), InlineData("win-x64", "gcc")]
    public Task WithoutOneItIsReadyToRun(string machine, string compiler) => IsPackedAsync(machine, compiler, isNative: false);

    static async Task IsPackedAsync(string machine, string compiler, bool isNative)
    {
        using var folder = new TempFolder();
        File.WriteAllText(folder[compiler], "");
        // What holds for one machine and no other is its compiler; the rest is seen on one.
        foreach (var restores in machine == "linux-x64" ? new[] { false, true } : [false])
        {
            var own = await EvaluateAsync(folder[""], $"NETCoreSdkPortableRuntimeIdentifier={machine}", "Configuration=Release", restores ? "MSBuildIsRestoring=true" : $"RuntimeIdentifier={machine}");
            Assert.Equal((isNative, !isNative), (own.IsNative, own.IsReadyToRun));
        }
        foreach (var other in machine == "linux-x64" ? ["any", "linux-musl", "linux-bionic"] : (string[])[])
        {
            var portable = await EvaluateAsync(folder[""], $"NETCoreSdkPortableRuntimeIdentifier={machine}", "Configuration=Release", $"RuntimeIdentifier={other}");
            Assert.Equal((false, false), (portable.IsNative, portable.IsReadyToRun));
        }
        var all = await EvaluateAsync(folder[""], $"NETCoreSdkPortableRuntimeIdentifier={machine}", "Configuration=Release");
        Assert.Equal((false, false, $"{machine};linux-musl;linux-bionic;any"), all);
    }

    [Fact]
    public async Task WhatOnlyRunsNeedsNoCompilerAndNothingThatBelongsToOne()
    {
        using var folder = new TempFolder();
        File.WriteAllText(folder["gcc"], "");
        Assert.Equal((false, false, ""), await EvaluateAsync(folder[""], "MSBuildIsRestoring=true"));
        Assert.Equal((false, false, ""), await EvaluateAsync(folder[""], "Configuration=Debug"));
    }

    static async Task<(bool IsNative, bool IsReadyToRun, string Packages)> EvaluateAsync(string path, params string[] properties)
    {
        await using var build = Running.StartProcess("dotnet",
            ["msbuild", Path.Combine(root, "Streamer.csproj"), "-getProperty:PublishAot,PublishReadyToRun,RuntimeIdentifiers", .. properties.Select(property => $"-p:{property}")], [.. quiet, ("PATH", path)]);
        var result = await build.EndAsync();
        Assert.True(result.ExitCode == 0, $"{result}");
        var told = JsonDocument.Parse(result.Output).RootElement.GetProperty("Properties");
        return (Is("PublishAot"), Is("PublishReadyToRun"), told.GetProperty("RuntimeIdentifiers").GetString()!);

        bool Is(string name) => told.GetProperty(name).GetString() == "true";
    }
}
