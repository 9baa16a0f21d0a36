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

    [Fact]
    public async Task AMachinesPackageIsNativeWhereItHasACompiler()
    {
        var cases = new List<(string Machine, string Compiler, string Properties, string Expected)>();
        // What .NET links with is `clang` or `gcc`, not any `cc`; on a Mac the latter are found in folders of their own.
        foreach (var (machine, compiler, isNative) in new[]
        {
            ("linux-x64", "gcc", true), ("linux-arm64", "clang", true), ("linux-musl-x64", "gcc", true),
            ("linux-x64", "cc", false), ("linux-musl-x64", "cc", false), ("win-x64", "gcc", false),
        })
        {
            var own = isNative ? "true||" : "|true|";
            Add("", $"||{machine} linux-musl linux-bionic any");
            Add($"RuntimeIdentifier={machine}", own);
            Add("MSBuildIsRestoring=true", $"{own}{machine} linux-musl linux-bionic any");
            foreach (var other in new[] { "any", "linux-musl", "linux-bionic" })
                Add($"RuntimeIdentifier={other}", "||");

            void Add(string properties, string expected) =>
                cases.Add((machine, compiler, $"Configuration=Release;NETCoreSdkPortableRuntimeIdentifier={machine};{properties}", expected));
        }
        // What only runs needs no compiler, and nothing that belongs to one.
        cases.Add(("linux-x64", "gcc", "MSBuildIsRestoring=true", "||"));
        cases.Add(("linux-x64", "gcc", "Configuration=Debug", "||"));
        Assert.Equal(cases.Select(one => (one, one.Expected)), cases.Zip(await EvaluateAsync(cases)));
    }

    // All in one process: to start MSBuild takes longer than what it does here.
    static async Task<string[]> EvaluateAsync(List<(string Machine, string Compiler, string Properties, string Expected)> cases)
    {
        using var folder = new TempFolder();
        foreach (var compiler in cases.Select(one => one.Compiler).Distinct())
            File.WriteAllText(Path.Combine(Directory.CreateDirectory(folder[$"has-{compiler}"]).FullName, compiler), "");
        File.WriteAllText(folder["tell.targets"], """
            <Project>
              <Target Name="Tell">
                <WriteLinesToFile File="$(Told)" Lines="$(PublishAot)|$(PublishReadyToRun)|$(RuntimeIdentifiers.Replace(';', ' '))" />
              </Target>
            </Project>
            """);
        File.WriteAllText(folder["all.proj"], $"""
            <Project>
              <ItemGroup>
            {string.Concat(cases.Select((one, i) => $"""    <Case Include="{root}/Streamer.csproj" AdditionalProperties="PATH={folder[$"has-{one.Compiler}"]};Told={folder[$"{i}"]};{one.Properties}" />{'\n'}"""))}
              </ItemGroup>
              <Target Name="All">
                <MSBuild Projects="@(Case)" Targets="Tell" Properties="CustomAfterMicrosoftCommonTargets={folder["tell.targets"]}" />
              </Target>
            </Project>
            """);
        await using var build = Running.StartProcess("dotnet", ["msbuild", folder["all.proj"], "-v:minimal"], quiet);
        var result = await build.EndAsync();
        Assert.True(result.ExitCode == 0, $"{result}");
        return [.. cases.Select((_, i) => File.ReadAllText(folder[$"{i}"]).TrimEnd())];
    }
}
