// Makes bench/streamer.mibc, the profile that both packages are compiled with: which way the code of streamer, grpc-dotnet,
// Kestrel and .NET goes under load, and whom it calls. A just-in-time compiler finds that out at each start.
//
//     dotnet build -c Release && dotnet run --file bench/profile.cs
//
// Run it from the repository's folder when .NET, a package or what is done for each message or call has changed. What a
// profile no longer fits is compiled without it. It needs h2load (Debian has it in nghttp2-client).
#:property PublishAot=false

using System.Collections.Immutable;
using System.Diagnostics;
using System.Globalization;
using System.IO.Compression;
using System.Reflection;
using System.Reflection.Metadata;
using System.Reflection.Metadata.Ecma335;
using System.Reflection.PortableExecutable;

CultureInfo.CurrentCulture = CultureInfo.InvariantCulture;
const string output = "bench/streamer.mibc";

// What runs less often in all of the load is not worth its bytes.
const long fewest = 100;

var build = Path.GetFullPath("bin/Release/net10.0");
var framework = Path.GetDirectoryName(typeof(object).Assembly.Location)!;
var profile = new Profile([build, framework, framework.Replace("Microsoft.NETCore.App", "Microsoft.AspNetCore.App")]);
var work = Directory.CreateTempSubdirectory();
try
{
    Load();
    var methods = work.GetFiles("*.counts").SelectMany(Methods)
        .GroupBy(method => (method.Name, method.IlSize)).Select(same => same.MaxBy(method => method.Busiest)!)
        .Where(method => method.Busiest >= fewest)
        .OrderBy(method => method.Name, StringComparer.Ordinal).ToArray();
    var written = methods.Count(profile.TryAdd);
    profile.Save(output);
    Console.WriteLine($"{written} of {methods.Length} busy methods are in {output}: {new FileInfo(output).Length} bytes");
}
finally
{
    work.Delete(recursive: true);
}

// The load: short calls, and both kinds of stream, on both sides.
void Load()
{
    var message = Path.Combine(work.FullName, "message");
    File.WriteAllBytes(message, [0, 0, 0, 0, 2, 8, 7]);
    using var server = Streamer("server", "serve", "--listen", "http://127.0.0.1:0");
    var address = server.StandardOutput.ReadLine()!["listening on ".Length..];
    Finish(Process.Start("h2load",
    [
        "-c", "4", "-m", "25", "-n", "60000", "-d", message, "-H", "content-type: application/grpc", "-H", "te: trailers",
        $"{address}/streaming.CalculatorService/FindMaximum",
    ]));
    Feed("every", "max", Enumerable.Range(1, 1_000_000));
    Feed("one", "max", Enumerable.Range(1, 1_000_000).Reverse());
    Feed("names", "greet", Enumerable.Range(1, 500_000).Select(i => $"Ada{i}"));
    Finish(Process.Start("kill", ["-TERM", $"{server.Id}"]));
    Finish(server);

    void Feed<T>(string name, string command, IEnumerable<T> lines)
    {
        using var client = Streamer(name, command, "--address", address);
        var answers = client.StandardOutput.ReadToEndAsync();
        client.StandardInput.Write(string.Join('\n', lines));
        client.StandardInput.Close();
        answers.Wait();
        Finish(client);
    }

    static void Finish(Process process)
    {
        process.WaitForExit();
        if (process.ExitCode != 0)
            throw new InvalidOperationException($"{process.StartInfo.FileName} ends with {process.ExitCode}");
    }
}

// A build that counts from its first instruction to its last, and writes its counts as it ends.
Process Streamer(string name, params string[] arguments)
{
    var start = new ProcessStartInfo("dotnet", [$"{build}/streamer.dll", .. arguments]) { RedirectStandardInput = true, RedirectStandardOutput = true };
    foreach (var (setting, value) in new[]
    {
        ("TieredPGO", "1"), ("TieredPGO_InstrumentOnlyHotCode", "0"), ("ReadyToRun", "0"), ("TC_CallCounting", "0"), ("TC_OnStackReplacement", "0"),
        ("WritePGOData", "1"), ("PGODataPath", $"{work}/{name}.counts"),
    })
        start.Environment[$"DOTNET_{setting}"] = value;
    return Process.Start(start)!;
}

// Reads the runtime's own text: a line for each method, two for its name and signature, one for each probe and each of its values.
static IEnumerable<Method> Methods(FileInfo file)
{
    using var lines = File.ReadLines(file.FullName).Skip(1).GetEnumerator();
    while (lines.MoveNext() && lines.Current.Split(' ') is ["@@@", _, _, _, _, _, var ilSize, _, var records])
    {
        lines.MoveNext();
        var name = lines.Current["MethodName: ".Length..];
        lines.MoveNext();
        var probes = new Probe[Convert.ToInt32(records, 16)];
        for (var i = 0; i < probes.Length; i++)
        {
            lines.MoveNext();
            var words = lines.Current.Split(' ');
            var values = new string[int.Parse(words[6])];
            for (var j = 0; j < values.Length; j++)
            {
                lines.MoveNext();
                values[j] = lines.Current;
            }
            probes[i] = new(int.Parse(words[2]), int.Parse(words[4]), (int)uint.Parse(words[8]), values);
        }
        yield return new(name, Convert.ToInt32(ilSize, 16), probes);
    }
}

/// <summary>What is known of the way through a method.</summary>
sealed record Method(string Name, int IlSize, Probe[] Probes)
{
    const int edge = 385, block = 65;

    /// <summary>How often its busiest place ran.</summary>
    public long Busiest => Probes.Where(probe => probe.Kind is edge or block).Select(probe => long.Parse(probe.Values[0])).DefaultIfEmpty().Max();
}

/// <summary>What was counted at a place, or who was called there.</summary>
sealed record Probe(int Kind, int Offset, int Other, string[] Values);

/// <summary>
/// The file, which is an assembly: for each of those that methods are in it has a function whose code names them one after
/// the other, each with its probes as numbers and tokens; and AssemblyDictionary, whose code names these functions.
/// </summary>
sealed class Profile : ISignatureTypeProvider<byte[], object?>
{
    // As in signatures, ECMA-335 II.23.1.16.
    const byte valueType = 0x11, classType = 0x12, genericInstance = 0x15;

    readonly ILookup<string, (PEReader File, MetadataReader Reader, TypeDefinitionHandle Handle)> types;
    readonly MetadataBuilder metadata = new();
    readonly MethodBodyStreamEncoder bodies = new(new());
    readonly Dictionary<(EntityHandle, string), EntityHandle> references = [];
    readonly SortedDictionary<string, InstructionEncoder> functions = new(StringComparer.Ordinal);

    public Profile(string[] folders) => types =
    (
        from path in folders.SelectMany(folder => Directory.GetFiles(folder, "*.dll"))
        let file = new PEReader(File.OpenRead(path))
        where file.HasMetadata
        let reader = file.GetMetadataReader()
        from handle in reader.TypeDefinitions
        select (file, reader, handle)
    ).ToLookup(type => FullName(type.reader, type.handle));

    static string NameOf(MetadataReader reader) => reader.GetString(reader.GetAssemblyDefinition().Name);

    static string FullName(MetadataReader reader, TypeDefinitionHandle handle)
    {
        var type = reader.GetTypeDefinition(handle);
        var (space, name, outer) = (reader.GetString(type.Namespace), reader.GetString(type.Name), type.GetDeclaringType());
        return !outer.IsNil ? $"{FullName(reader, outer)}+{name}" : space.Length > 0 ? $"{space}.{name}" : name;
    }

    /// <summary>Adds a method; false where its name does not tell what it is, as with most generic ones.</summary>
    public bool TryAdd(Method method)
    {
        // Any dot may be the one between the type's name and the method's.
        var dots = Enumerable.Range(1, method.Name.Length - 1).Where(i => method.Name[i] == '.');
        var found = dots.SelectMany(dot => Find(method.Name[..dot], method.Name[(dot + 1)..], method.IlSize)).ToArray();
        // Overloads of one size, or one source in two assemblies, do the same.
        foreach (var (assembly, handle) in found)
        {
            if (!functions.TryGetValue(assembly, out var code))
                functions[assembly] = code = new(new());
            AddToken(code, handle);
            code.LoadString(metadata.GetOrAddUserString("InstrumentationDataStart"));
            foreach (var probe in method.Probes)
            {
                const int hasAllFour = 15;
                foreach (var number in (int[])[hasAllFour, probe.Offset, probe.Kind, probe.Values.Length, probe.Other])
                    code.LoadConstantI4(number);
                foreach (var value in probe.Values)
                    AddValue(code, value);
            }
            code.LoadString(metadata.GetOrAddUserString("InstrumentationDataEnd"));
            code.OpCode(ILOpCode.Pop);
        }
        return found.Length > 0;
    }

    static void AddToken(InstructionEncoder code, EntityHandle handle)
    {
        code.OpCode(ILOpCode.Ldtoken);
        code.Token(handle);
    }

    void AddValue(InstructionEncoder code, string value)
    {
        const int none = 0, unknown = 1;
        EntityHandle? token = null;
        if (value.Split(": ") is [var kind, var named])
        {
            if (kind == "TypeHandle")
                token = Token(TypeName.Parse(named));
            else if (named.Split("|@|") is [var name, var type] && Find(type, name, null).ToArray() is [var only])
                token = only.Handle;
            if (token is { } known)
                AddToken(code, known);
            else
                code.LoadConstantI4(named == "NULL" ? none : unknown);
        }
        else if (value.Split(' ') is [var low, var high])
            code.LoadConstantI8((long)(uint.Parse(low) | ulong.Parse(high) << 32));
        else
            code.LoadConstantI4((int)Math.Min(uint.Parse(value), int.MaxValue));
    }

    // The methods of a type with that name and, if given, size, and the assemblies that they are in.
    IEnumerable<(string Assembly, EntityHandle Handle)> Find(string type, string name, int? ilSize)
    {
        if (!TypeName.TryParse(type, out var typeName))
            yield break;
        var definition = typeName.IsConstructedGenericType ? typeName.GetGenericTypeDefinition() : typeName;
        foreach (var (file, reader, typeHandle) in types[definition.FullName])
            foreach (var method in reader.GetTypeDefinition(typeHandle).GetMethods().Select(reader.GetMethodDefinition))
                if (reader.StringComparer.Equals(method.Name, name) && method.GetGenericParameters().Count == 0 && method.RelativeVirtualAddress > 0
                    && (ilSize is null || file.GetMethodBody(method.RelativeVirtualAddress).GetILBytes()!.Length == ilSize)
                    && (typeName.IsConstructedGenericType ? Token(typeName) : Reference(reader, typeHandle)) is { } parent)
                {
                    var signature = Signature(method.DecodeSignature(this, null));
                    yield return (NameOf(reader), Once(parent, $"{name} {Convert.ToHexString(signature)}",
                        () => metadata.AddMemberReference(parent, metadata.GetOrAddString(name), metadata.GetOrAddBlob(signature))));
                }
    }

    EntityHandle? Token(TypeName type) => Encode(type) is { } signature ? Once(default, Convert.ToHexString(signature), () => metadata.AddTypeSpecification(metadata.GetOrAddBlob(signature))) : null;

    // A type as signatures have it; null for one that is not known.
    byte[]? Encode(TypeName type)
    {
        if (type.IsSZArray)
            return Encode(type.GetElementType()) is { } element ? GetSZArrayType(element) : null;
        if (type.IsConstructedGenericType)
        {
            var arguments = type.GetGenericArguments().Select(Encode).ToImmutableArray();
            return !arguments.Contains(null) && Encode(type.GetGenericTypeDefinition()) is { } definition ? GetGenericInstantiation(definition, arguments!) : null;
        }
        // What stands for every class in code that they share has an assembly of its own here.
        if (type.FullName == "System.__Canon")
            return [classType, .. Coded(Reference(Assembly("System.Private.Canon"), "System", "__Canon"))];
        var (_, reader, handle) = types[type.FullName].FirstOrDefault(found => type.AssemblyName is not { Name: var assembly } || NameOf(found.Reader) == assembly);
        return reader is null ? null : GetTypeFromDefinition(reader, handle, IsValueType(reader, handle) ? valueType : classType);
    }

    static bool IsValueType(MetadataReader reader, TypeDefinitionHandle handle)
    {
        var parent = reader.GetTypeDefinition(handle).BaseType;
        var name = parent switch
        {
            { IsNil: true } => default,
            { Kind: HandleKind.TypeReference } => reader.GetTypeReference((TypeReferenceHandle)parent).Name,
            { Kind: HandleKind.TypeDefinition } => reader.GetTypeDefinition((TypeDefinitionHandle)parent).Name,
            _ => default,
        };
        return reader.GetString(name) is "ValueType" or "Enum" && FullName(reader, handle) != "System.Enum";
    }

    EntityHandle Once(EntityHandle scope, string name, Func<EntityHandle> add) => references.TryGetValue((scope, name), out var handle) ? handle : references[(scope, name)] = add();

    EntityHandle Assembly(string name) => Once(default, $"assembly {name}", () => metadata.AddAssemblyReference(metadata.GetOrAddString(name), new(), default, default, default, default));

    EntityHandle Reference(EntityHandle scope, string space, string name) => Once(scope, $"type {space}.{name}", () => metadata.AddTypeReference(scope, metadata.GetOrAddString(space), metadata.GetOrAddString(name)));

    EntityHandle Reference(MetadataReader reader, TypeDefinitionHandle handle)
    {
        var type = reader.GetTypeDefinition(handle);
        var outer = type.GetDeclaringType();
        var scope = outer.IsNil ? Assembly(NameOf(reader)) : Reference(reader, outer);
        return Reference(scope, reader.GetString(type.Namespace), reader.GetString(type.Name));
    }

    EntityHandle Reference(MetadataReader reader, TypeReferenceHandle handle)
    {
        var type = reader.GetTypeReference(handle);
        var scope = type.ResolutionScope.Kind == HandleKind.TypeReference
            ? Reference(reader, (TypeReferenceHandle)type.ResolutionScope)
            : Assembly(reader.GetString(reader.GetAssemblyReference((AssemblyReferenceHandle)type.ResolutionScope).Name));
        return Reference(scope, reader.GetString(type.Namespace), reader.GetString(type.Name));
    }

    /// <summary>Writes the file.</summary>
    public void Save(string path)
    {
        var dictionary = new InstructionEncoder(new());
        foreach (var (assembly, code) in functions)
        {
            dictionary.LoadString(metadata.GetOrAddUserString($"{assembly};"));
            AddToken(dictionary, Function($"Assemblies_{assembly};", code));
            dictionary.OpCode(ILOpCode.Pop);
        }
        Function("AssemblyDictionary", dictionary);
        var (name, id) = (metadata.GetOrAddString(Path.GetFileNameWithoutExtension(path)), new Guid("a0c7d6f1-3f5b-4b59-9c46-6c1d0e2b7a55"));
        metadata.AddModule(0, name, metadata.GetOrAddGuid(id), default, default);
        metadata.AddAssembly(name, new(), default, default, default, default);
        metadata.AddTypeDefinition(default, default, metadata.GetOrAddString("<Module>"), default, MetadataTokens.FieldDefinitionHandle(1), MetadataTokens.MethodDefinitionHandle(1));
        var image = new BlobBuilder();
        new ManagedPEBuilder(PEHeaderBuilder.CreateLibraryHeader(), new(metadata), bodies.Builder, deterministicIdProvider: _ => new(id, 1)).Serialize(image);
        File.Delete(path);
        using var zip = ZipFile.Open(path, ZipArchiveMode.Create);
        using var entry = zip.CreateEntry($"{Path.GetFileName(path)}.dll", CompressionLevel.SmallestSize).Open();
        image.WriteContentTo(entry);
    }

    MethodDefinitionHandle Function(string name, InstructionEncoder code)
    {
        code.OpCode(ILOpCode.Ret);
        return metadata.AddMethodDefinition(MethodAttributes.Public | MethodAttributes.Static, MethodImplAttributes.IL, metadata.GetOrAddString(name),
            metadata.GetOrAddBlob(Signature(new(default, GetPrimitiveType(PrimitiveTypeCode.Void), 0, 0, []))), bodies.AddMethodBody(code), default);
    }

    // What follows writes the signature that is read, ECMA-335 II.23.2, with this file's tokens in the place of the other's.

    static byte[] Signature(MethodSignature<byte[]> read) => [read.Header.RawValue, .. Compressed(read.ParameterTypes.Length), .. read.ReturnType, .. read.ParameterTypes.SelectMany(type => type)];

    static byte[] Compressed(int number)
    {
        var bytes = new BlobBuilder();
        bytes.WriteCompressedInteger(number);
        return bytes.ToArray();
    }

    static byte[] Coded(EntityHandle type) => Compressed(CodedIndex.TypeDefOrRefOrSpec(type));

    public byte[] GetPrimitiveType(PrimitiveTypeCode code) => [(byte)code];
    public byte[] GetTypeFromDefinition(MetadataReader reader, TypeDefinitionHandle handle, byte kind) => [kind, .. Coded(Reference(reader, handle))];
    public byte[] GetTypeFromReference(MetadataReader reader, TypeReferenceHandle handle, byte kind) => [kind, .. Coded(Reference(reader, handle))];
    public byte[] GetTypeFromSpecification(MetadataReader reader, object? context, TypeSpecificationHandle handle, byte kind) => reader.GetTypeSpecification(handle).DecodeSignature(this, context);
    public byte[] GetGenericInstantiation(byte[] type, ImmutableArray<byte[]> arguments) => [genericInstance, .. type, .. Compressed(arguments.Length), .. arguments.SelectMany(argument => argument)];
    public byte[] GetGenericTypeParameter(object? context, int index) => [0x13, .. Compressed(index)];
    public byte[] GetGenericMethodParameter(object? context, int index) => [0x1e, .. Compressed(index)];
    public byte[] GetSZArrayType(byte[] element) => [0x1d, .. element];
    public byte[] GetArrayType(byte[] element, ArrayShape shape) => [0x14, .. element, .. Compressed(shape.Rank), 0, 0];
    public byte[] GetByReferenceType(byte[] element) => [0x10, .. element];
    public byte[] GetPointerType(byte[] element) => [0x0f, .. element];
    public byte[] GetFunctionPointerType(MethodSignature<byte[]> signature) => [0x1b, .. Signature(signature)];
    public byte[] GetModifiedType(byte[] modifier, byte[] type, bool isRequired) => [(byte)(isRequired ? 0x1f : 0x20), .. modifier.AsSpan(1), .. type];
    public byte[] GetPinnedType(byte[] element) => element;
}
