using System.IO.Compression;

namespace Streamer.Tests;

/// <summary>The gRPC status codes (grpc/doc/statuscodes.md).</summary>
public enum Status
{
    Ok, Cancelled, Unknown, InvalidArgument, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied,
    ResourceExhausted, FailedPrecondition, Aborted, OutOfRange, Unimplemented, Internal, Unavailable,
    DataLoss, Unauthenticated,
}

/// <summary>gRPC's and protobuf's bytes, written by hand: the tests must not share the tool's idea of them.</summary>
static class Grpc
{
    public const int MaxMessage = 4 * 1024 * 1024;
    public const string FindMaximum = "/streaming.CalculatorService/FindMaximum", GreetEveryone = "/streaming.GreetService/GreetEveryone";

    /// <summary>A Length-Prefixed-Message (PROTOCOL-HTTP2).</summary>
    public static byte[] Message(byte[] message, byte flag = 0) => [.. Prefix(message.Length, flag), .. message];

    public static byte[] Prefix(long length, byte flag = 0)
    {
        var prefix = new byte[5];
        prefix[0] = flag;
        BinaryPrimitives.WriteUInt32BigEndian(prefix.AsSpan(1), (uint)length);
        return prefix;
    }

    /// <summary>Cuts a body into its messages.</summary>
    public static IEnumerable<byte[]> Cut(byte[] body)
    {
        for (var at = 0; at < body.Length;)
        {
            var length = BinaryPrimitives.ReadInt32BigEndian(body.AsSpan(at + 1));
            yield return body[(at + 5)..(at + 5 + length)];
            at += 5 + length;
        }
    }

    /// <summary>The messages of FindMaximum, requests and responses alike: a number in field 1.</summary>
    public static byte[] Numbers(params long[] numbers) => [.. numbers.SelectMany(number => Message(Field(1, number)))];

    /// <summary>The request of GreetEveryone.</summary>
    public static byte[] Name(string first, string last = "") => Message(Field(1, (byte[])[.. Field(1, first), .. Field(2, last)]));

    /// <summary>The numbers in FindMaximum's messages.</summary>
    public static long[] ToNumbers(IEnumerable<byte[]> messages) => [.. messages.Select(message => Fields(message).SingleOrDefault().Value)];

    /// <summary>The text in GreetEveryone's responses.</summary>
    public static string[] ToGreetings(IEnumerable<byte[]> messages) => [.. messages.Select(message => Encoding.UTF8.GetString(Fields(message).Single().Bytes))];

    /// <summary>A field of type int64, int32 or enum; none for proto3's default.</summary>
    public static byte[] Field(int number, long value) => value == 0 ? [] : [.. Varint((ulong)number << 3), .. Varint((ulong)value)];

    /// <summary>A field of type string; none for proto3's default.</summary>
    public static byte[] Field(int number, string value) => value == "" ? [] : Field(number, Encoding.UTF8.GetBytes(value));

    /// <summary>A field of type bytes, string or message.</summary>
    public static byte[] Field(int number, byte[] value) => [.. Varint((ulong)number << 3 | 2), .. Varint((ulong)value.Length), .. value];

    public static byte[] Varint(ulong value) => value < 0x80 ? [(byte)value] : [(byte)(value | 0x80), .. Varint(value >> 7)];

    /// <summary>A message's fields: varints as numbers, the rest as bytes.</summary>
    public static List<(int Number, long Value, byte[] Bytes)> Fields(byte[] message)
    {
        var (fields, at) = (new List<(int, long, byte[])>(), 0);
        while (at < message.Length)
        {
            var (key, value) = (ReadVarint(), ReadVarint());
            if ((key & 7) == 0)
                fields.Add(((int)key >> 3, value, []));
            else
                fields.Add(((int)key >> 3, 0, message[at..(at += (int)value)]));
        }
        return fields;

        long ReadVarint()
        {
            var value = 0L;
            for (var shift = 0; ; shift += 7)
            {
                value |= (long)(message[at] & 0x7f) << shift;
                if (message[at++] < 0x80)
                    return value;
            }
        }
    }

    /// <summary>What .NET makes of bytes; of none it makes none, and grpc-dotnet sends that for an empty message.</summary>
    public static byte[] Gzip(byte[] bytes) => Compress(bytes, stream => new GZipStream(stream, CompressionLevel.Optimal));

    /// <summary>What gRPC calls deflate: zlib's format.</summary>
    public static byte[] Deflate(byte[] bytes) => Compress(bytes, stream => new ZLibStream(stream, CompressionLevel.Optimal));

    static byte[] Compress(byte[] bytes, Func<Stream, Stream> compressor)
    {
        using var compressed = new MemoryStream();
        using (var stream = compressor(compressed))
            stream.Write(bytes);
        return compressed.ToArray();
    }
}
