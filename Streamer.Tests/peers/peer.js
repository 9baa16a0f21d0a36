// A peer on @grpc/grpc-js, for the interop tests; peer.py is its twin on grpcio.
//
//   peer.js serve                        serves both RPCs under both their names; prints "over" after each call
//   peer.js call ADDRESS METHOD OPTIONS  a line of stdin is a message, an answer a line of stdout;
//                                        exits as streamer does: 64 + N for gRPC status N
//
// OPTIONS is JSON: gzip (true compresses the requests), deadline (seconds), cancelAfter (that many
// answers), raw (true: stdin's lines are messages in hex), metadata (an object; -bin keys in base64).
//
// What the server does on demand of a call's metadata: x-echo: KEY answers the value of that key
// first (for "deadline", whether the call has one), x-refuse: N ends the call at once with status N,
// x-fail: N does so after the first answer.

const { once } = require('node:events');
const { join } = require('node:path');
const { createInterface } = require('node:readline');
const grpc = require('@grpc/grpc-js');
const loader = require('@grpc/proto-loader');

const unlimited = { 'grpc.max_receive_message_length': -1 };
const style = { keepCase: true, longs: String, enums: String, defaults: true };
const contract = loader.loadSync(join(__dirname, '../../streaming.proto'), style);
const greet = contract['streaming.GreetService'];
const calculator = contract['streaming.CalculatorService'];
const services = [greet, calculator, inCourse('greet', greet), inCourse('calculator', calculator)];

// The same service under the name that the course gives it.
function inCourse(name, service) {
  const renamed = Object.entries(service).map(([key, method]) => [key, { ...method, path: method.path.replace('/streaming.', `/${name}.`) }]);
  return Object.fromEntries(renamed);
}

const health = loader.fromJSON({
  nested: {
    HealthCheckRequest: { fields: { service: { type: 'string', id: 1 } } },
    HealthCheckResponse: { fields: { status: { type: 'ServingStatus', id: 1 } } },
    ServingStatus: { values: { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2, SERVICE_UNKNOWN: 3 } },
    Health: {
      methods: {
        Check: { requestType: 'HealthCheckRequest', responseType: 'HealthCheckResponse' },
        Watch: { requestType: 'HealthCheckRequest', responseType: 'HealthCheckResponse', responseStream: true },
      },
    },
  },
}, style).Health;

// ---- server

const trouble = 'what is wrong: 100 % of it, naïvely ✗';

function serve() {
  const server = new grpc.Server(unlimited);
  for (const service of services) {
    server.addService(service, {
      GreetEveryone: answering(
        () => ({ greeting }) => ({ result: `Hello ${[greeting?.first_name, greeting?.last_name].filter(Boolean).join(' ')}!` }),
        (result) => ({ result }),
      ),
      FindMaximum: answering(() => {
        let maximum = null;
        return ({ number }) => (maximum === null || BigInt(number) > maximum ? { maximum: String((maximum = BigInt(number))) } : null);
      }),
    });
  }
  server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
    if (error) throw error;
    console.log(`listening on 127.0.0.1:${port}`);
  });
}

function answering(newAnswer, echo) {
  return (call) => {
    const [asked, refused, failing] = ['x-echo', 'x-refuse', 'x-fail'].map((key) => call.metadata.get(key)[0]);
    const fail = (code) => call.emit('error', { code: Number(code), details: trouble });
    call.on('cancelled', () => console.log('over')); // Despite its name it comes at every call's end.
    call.on('error', () => {}); // Without a listener the process ends.
    if (refused) return fail(refused);
    if (asked) call.write(echo(String(asked === 'deadline' ? Number.isFinite(Number(call.getDeadline())) : call.metadata.get(asked)[0])));
    const answer = newAnswer();
    call.on('data', (request) => {
      const response = answer(request);
      if (response !== null && !call.write(response)) {
        call.pause();
        call.once('drain', () => call.resume());
      }
      if (failing) {
        call.removeAllListeners('data'); // grpc-js forgets the status when something is written after it.
        fail(failing);
      }
    });
    call.on('end', () => call.end());
  };
}

// ---- client

function call(address, method, options) {
  const client = new grpc.Client(address, grpc.credentials.createInsecure(), {
    ...unlimited,
    'grpc.default_compression_algorithm': options.gzip ? grpc.compressionAlgorithms.gzip : grpc.compressionAlgorithms.identity,
    // Above this a written message stays in a list that each write copies: a long stream would take quadratic time.
    'grpc.per_rpc_retry_buffer_size': 4096,
  });
  const metadata = new grpc.Metadata();
  for (const [key, value] of Object.entries(options.metadata ?? {}))
    metadata.set(key, key.endsWith('-bin') ? Buffer.from(value, 'base64') : value);
  const { encode, decode, make, show, single } = codec(method);
  const stream = client.makeBidiStreamRequest(`/${method}`, options.raw ? (hex) => Buffer.from(hex, 'hex') : encode, decode, metadata,
    options.deadline ? { deadline: Date.now() + options.deadline * 1000 } : {});
  let answers = 0;
  stream.on('data', (answer) => {
    process.stdout.write(show(answer) + '\n');
    if (++answers === options.cancelAfter) stream.cancel();
  });
  stream.on('error', () => {}); // The status says it too.
  stream.on('status', ({ code, details }) => {
    if (code !== grpc.status.OK) process.stderr.write(`${grpc.status[code]}: ${details}\n`);
    // What was printed goes first; stdin may still be open.
    process.stdout.write('', () => process.exit(code === grpc.status.OK ? 0 : 64 + code));
  });
  send(stream, options.raw ? (line) => line : make, single);
}

function codec(method) {
  const [, service, name] = /^(.*)\/(.*)$/.exec(method);
  const { FindMaximum, GreetEveryone } = { ...greet, ...calculator };
  const of = (definition, make, show) => ({ encode: definition.requestSerialize, decode: definition.responseDeserialize, make, show });
  return service === 'grpc.health.v1.Health' ? { ...of(health[name], (line) => ({ service: line }), ({ status }) => status), single: true }
    : name === 'FindMaximum' ? of(FindMaximum, (line) => ({ number: line }), ({ maximum }) => maximum)
    : of(GreetEveryone, (line) => {
        const [first, ...last] = line.split(' ');
        return { greeting: { first_name: first, last_name: last.join(' ') } };
      }, ({ result }) => result);
}

async function send(stream, make, single) {
  for await (const line of createInterface({ input: process.stdin, crlfDelay: Infinity })) {
    if (!stream.write(make(line))) await once(stream, 'drain');
    if (single) break; // Only then does a server answer a method that takes one message.
  }
  stream.end();
}

const [command, address, method, options] = process.argv.slice(2);
if (command === 'serve') serve();
else call(address, method, JSON.parse(options));
