using System.Runtime.CompilerServices;

namespace Streamer.Tests;

/// <summary>Verify's conventions in a few lines, so that Verify.Xunit can take over.</summary>
static class Snapshot
{
    /// <summary>
    /// Compares a text with Class.Test.verified.txt beside the test; where they differ, leaves the text in
    /// Class.Test.received.txt and fails. To accept a change, rename that file.
    /// </summary>
    public static void Verify(string received, [CallerFilePath] string file = "", [CallerMemberName] string test = "")
    {
        var name = Path.Combine(Tool.Folder, $"{Path.GetFileNameWithoutExtension(file)}.{test}");
        var (verifiedFile, receivedFile) = ($"{name}.verified.txt", $"{name}.received.txt");
        var verified = File.Exists(verifiedFile) ? File.ReadAllText(verifiedFile).ReplaceLineEndings("\n") : "";
        File.Delete(receivedFile);
        if (received == verified)
            return;
        File.WriteAllText(receivedFile, received);
        Assert.Fail($"{receivedFile} differs from the verified text.\n--- verified\n{verified}\n--- received\n{received}");
    }
}
