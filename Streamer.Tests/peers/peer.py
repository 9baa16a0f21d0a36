"""A peer on grpcio, for the interop tests: the twin of peer.js, which says how it is used.

Of OPTIONS it knows one more: beside (an object: method, message in hex, calls) makes calls
on the same connection that go on sending until the server ends them, and prints how many ended how.

It generates no code: the handful of messages is described here, from streaming.proto. Its server
also compresses its answers with gzip.
"""

import base64
import collections
import json
import os
import sys
import threading
from concurrent import futures

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

# ---- messages

POOL = descriptor_pool.DescriptorPool()
SERVING = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]


def messages():
    file = descriptor_pb2.FileDescriptorProto(name="peer.proto", package="peer", syntax="proto3")
    for name, fields in {
        "Greeting": [("first_name", "STRING"), ("last_name", "STRING")],
        "GreetEveryoneRequest": [("greeting", "Greeting")],
        "GreetEveryoneResponse": [("result", "STRING")],
        "FindMaximumRequest": [("number", "INT64")],
        "FindMaximumResponse": [("maximum", "INT64")],
        "HealthCheckRequest": [("service", "STRING")],
        "HealthCheckResponse": [("status", "INT32")],
    }.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields, 1):
            scalar = kind.isupper()
            message.field.add(
                name=field,
                number=number,
                label="LABEL_OPTIONAL",
                type=f"TYPE_{kind if scalar else 'MESSAGE'}",
                type_name=None if scalar else f".peer.{kind}",
            )
    POOL.Add(file)
    # GetMessageClass is what protobuf 4 has in place of GetPrototype.
    new = getattr(message_factory, "GetMessageClass", None) or message_factory.MessageFactory(POOL).GetPrototype
    return {message.name: new(POOL.FindMessageTypeByName(f"peer.{message.name}")) for message in file.message_type}


M = messages()

# ---- server

TROUBLE = "what is wrong: 100 % of it, naïvely ✗"


def greet(requests):
    for request in requests:
        names = (request.greeting.first_name, request.greeting.last_name)
        yield M["GreetEveryoneResponse"](result=f"Hello {' '.join(filter(None, names))}!")


def find_maximum(requests):
    maximum = None
    for request in requests:
        if maximum is None or request.number > maximum:
            maximum = request.number
            yield M["FindMaximumResponse"](maximum=maximum)


def answering(answers):
    def handle(requests, context):
        metadata = dict(context.invocation_metadata())
        context.add_callback(lambda: print("over", flush=True))

        def fail(code):
            context.abort(next(status for status in grpc.StatusCode if status.value[0] == int(code)), TROUBLE)

        if code := metadata.get("x-refuse"):
            fail(code)
        if key := metadata.get("x-echo"):
            value = str((context.time_remaining() or 1e9) < 1e6).lower() if key == "deadline" else metadata[key]
            yield M["GreetEveryoneResponse"](result=value.decode() if isinstance(value, bytes) else value)
        for answer in answers(requests):
            yield answer
            if code := metadata.get("x-fail"):
                fail(code)

    return handle


def serve():
    server = grpc.server(futures.ThreadPoolExecutor(), options=UNLIMITED, compression=grpc.Compression.Gzip)
    for service, name, answers in [
        ("streaming.GreetService", "GreetEveryone", greet),
        ("streaming.CalculatorService", "FindMaximum", find_maximum),
        ("greet.GreetService", "GreetEveryone", greet),
        ("calculator.CalculatorService", "FindMaximum", find_maximum),
    ]:
        handler = grpc.stream_stream_rpc_method_handler(
            answering(answers), M[f"{name}Request"].FromString, M[f"{name}Response"].SerializeToString
        )
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"listening on 127.0.0.1:{port}", flush=True)
    server.wait_for_termination()


# ---- client


def greeting(line):
    first, _, last = line.partition(" ")
    return M["GreetEveryoneRequest"](greeting=M["Greeting"](first_name=first, last_name=last))


def codec(method):
    service, name = method.rsplit("/", 1)
    if service == "grpc.health.v1.Health":
        return "HealthCheck", lambda line: M["HealthCheckRequest"](service=line), lambda answer: SERVING[answer.status]
    if name == "FindMaximum":
        return name, lambda line: M["FindMaximumRequest"](number=int(line)), lambda answer: answer.maximum
    return "GreetEveryone", greeting, lambda answer: answer.result


def call_beside(channel, method, message, calls):
    """Makes calls that go on sending until the server ends them, several at a time, and prints how they ended."""

    def requests(over):
        yield bytes.fromhex(message)
        while not over.wait(0.02):
            yield bytes.fromhex(message)

    def end(_):
        over = threading.Event()
        try:
            for _ in channel.stream_stream(f"/{method}", bytes, bytes)(requests(over)):
                pass
            return "OK"
        except grpc.RpcError as error:
            return error.code().name
        finally:
            over.set()

    with futures.ThreadPoolExecutor(20) as threads:
        ends = collections.Counter(threads.map(end, range(calls)))
    for status, count in ends.items():
        print(f"{count} x {status}", flush=True)


def call(address, method, options):
    kind, make, show = codec(method)
    lines = (line.rstrip("\r\n") for line in sys.stdin)
    if options.get("raw"):
        make, serialize = bytes.fromhex, bytes
    else:
        serialize = M[f"{kind}Request"].SerializeToString
    parse = M[f"{kind}Response"].FromString
    more = {
        "timeout": options.get("deadline"),
        "metadata": [
            (key, base64.b64decode(value) if key.endswith("-bin") else value)
            for key, value in options.get("metadata", {}).items()
        ],
        "compression": grpc.Compression.Gzip if options.get("gzip") else None,
    }
    channel = grpc.insecure_channel(address, options=UNLIMITED)
    if beside := options.get("beside"):
        threading.Thread(target=lambda: call_beside(channel, **beside)).start()
    try:
        if method == "grpc.health.v1.Health/Check":
            answers = [channel.unary_unary(f"/{method}", serialize, parse)(make(next(lines)), **more)]
        elif method == "grpc.health.v1.Health/Watch":
            answers = channel.unary_stream(f"/{method}", serialize, parse)(make(next(lines)), **more)
        else:
            answers = channel.stream_stream(f"/{method}", serialize, parse)(map(make, lines), **more)
        for count, answer in enumerate(answers, 1):
            print(show(answer), flush=True)
            if count == options.get("cancelAfter"):
                answers.cancel()
    except grpc.RpcError as error:
        print(f"{error.code().name}: {error.details()}", file=sys.stderr)
        return 64 + error.code().value[0]
    return 0


if __name__ == "__main__":
    sys.stdin.reconfigure(encoding="utf-8")
    sys.stdout.reconfigure(encoding="utf-8")
    sys.stderr.reconfigure(encoding="utf-8")
    if sys.argv[1] == "serve":
        serve()
    else:
        code = call(sys.argv[2], sys.argv[3], json.loads(sys.argv[4]))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # A thread may be blocked on stdin.
