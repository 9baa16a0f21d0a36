namespace Streamer.Tests;

/// <summary>Which package a machine gets, after the repository's `dotnet pack` (.ci/run does that before the tests).</summary>
public class Installs
{
    static readonly string root = Path.GetFullPath(Path.Combine(Tool.Folder, ".."));

    public static readonly TheoryData<string, bool> Machines = new()
    {
        { "linux-x64", true },
        { "linux-musl-x64", false }, { "alpine.3.18-x64", false }, { "linux-bionic-x64", false },
        { "linux-arm64", false }, { "osx-arm64", false }, { "win-x64", false },
    };

    [Theory, MemberData(nameof(Machines))]
    public async Task OnlyWhereItRunsIsThePackageForLinuxX64Chosen(string machine, bool isForLinuxX64)
    {
        Skipped.Unless(Directory.Exists(Path.Combine(root, "bin", "packages")), "`dotnet pack`, whose packages they install");
        using var folder = new TempFolder();
        await using var install = Running.StartProcess("dotnet", ["tool", "install", "--tool-path", folder["tools"], "--configfile", Path.Combine(root, "nuget.config"), "Streamer"],
            ("DOTNET_RUNTIME_ID", machine), ("DOTNET_CLI_TELEMETRY_OPTOUT", "1"), ("DOTNET_NOLOGO", "1"));
        var result = await install.EndAsync();
        Assert.True(result.ExitCode == 0, $"{result}");
        var package = Directory.GetFiles(folder["tools"], "streamer.*.nupkg", SearchOption.AllDirectories).Select(Path.GetFileName).Where(name => !char.IsDigit(name!["streamer.".Length]));
        Assert.StartsWith(isForLinuxX64 ? "streamer.linux-x64." : "streamer.any.", Assert.Single(package));
    }
}
