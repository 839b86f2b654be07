// Asks Perfetto's trace processor, in WebAssembly as its UI runs it, about a trace:
//   node trace_processor.js FOLDER TRACE SQL...
// prints a JSON list with the rows of each query. FOLDER has engine_bundle.js and the .wasm files.
const fs = require("fs"), path = require("path"), vm = require("vm");
const [folder, trace, ...queries] = process.argv.slice(2);
const own = process;
const read = (name) => fs.readFileSync(path.join(folder, path.basename(String(name))));

// What the bundle expects of a browser's worker; it refuses to run under node.
Object.assign(globalThis, { self: globalThis, WorkerGlobalScope: class {}, process: undefined });
self.location = { href: "https://localhost/engine_bundle.js" };
globalThis.XMLHttpRequest = class {
  open(_, name) { [this.status, this.response] = [200, new Uint8Array(read(name)).buffer]; }
  send() { this.onload?.(); }
};
console.log = console.error;

// Protocol buffers by hand: of protos/perfetto/trace_processor/trace_processor.proto what is used.
const [SEQ, METHOD, FATAL, DATA, QUERY, RESULT] = [1, 2, 5, 101, 103, 203]; // of TraceProcessorRpc
const [APPEND, FINALIZE, ASK] = [1, 2, 3]; // of TraceProcessorMethod
const [NAMES, ERROR, BATCH] = [1, 2, 3]; // of QueryResult
const [CELLS, INTS, FLOATS, TEXTS] = [1, 2, 3, 5]; // of CellsBatch
const varint = (n) => (n < 128 ? [n] : [(n % 128) | 128, ...varint(Math.floor(n / 128))]);
const whole = (field, n) => Buffer.from([...varint(field * 8), ...varint(n)]);
const bytes = (field, data) =>
  Buffer.concat([Buffer.from([...varint(field * 8 + 2), ...varint(data.length)]), data]);

class Reader {
  constructor(data) { [this.data, this.at] = [data, 0]; }
  get more() { return this.at < this.data.length; }
  varint() {
    for (let value = 0n, shift = 0n; ; shift += 7n) {
      const byte = this.data[this.at++];
      if (byte === undefined) throw new RangeError("cut");
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(BigInt.asIntN(64, value));
    }
  }
  take(n) {
    if (this.at + n > this.data.length) throw new RangeError("cut");
    return this.data.subarray(this.at, (this.at += n));
  }
  field() {
    const tag = this.varint();
    if ((tag & 7) === 0) return [tag >> 3, this.varint()];
    return [tag >> 3, this.take((tag & 7) === 1 ? 8 : this.varint())];
  }
}
function parsed(data) {
  const reader = new Reader(data), found = [];
  while (reader.more) found.push(reader.field());
  return (field) => found.filter(([f]) => f === field).map(([, value]) => value);
}
function packed(data) {
  const reader = new Reader(Buffer.concat(data)), found = [];
  while (reader.more) found.push(reader.varint());
  return found;
}

let seq = 0, rest = Buffer.alloc(0), replies = [];
const port = {
  postMessage(data) { // replies are a stream that comes in pieces
    rest = Buffer.concat([rest, Buffer.from(data)]);
    while (rest.length) {
      const reader = new Reader(rest);
      try { replies.push(parsed(reader.field()[1])); } catch (error) {
        if (error.message === "cut") return;
        throw error;
      }
      rest = rest.subarray(reader.at);
    }
  },
};
function ask(method, ...given) {
  replies = [];
  const rpc = Buffer.concat([whole(SEQ, ++seq), whole(METHOD, method), ...given]);
  port.onmessage({ data: new Uint8Array(bytes(1, rpc)) });
  for (const reply of replies) for (const said of reply(FATAL)) throw new Error(String(said));
  return replies;
}
function rows(sql) {
  const names = [], cells = [];
  for (const reply of ask(ASK, bytes(QUERY, bytes(1, Buffer.from(sql))))) {
    const result = parsed(reply(RESULT)[0]);
    for (const said of result(ERROR)) throw new Error(`${sql}: ${said}`);
    names.push(...result(NAMES));
    for (const batch of result(BATCH).map(parsed)) {
      const ints = packed(batch(INTS));
      const floats = Buffer.concat(batch(FLOATS));
      const texts = Buffer.concat(batch(TEXTS)).toString().split("\0");
      let float = 0;
      for (const kind of packed(batch(CELLS))) {
        if (kind === 1) cells.push(null);
        else if (kind === 2) cells.push(ints.shift());
        else if (kind === 3) cells.push(floats.readDoubleLE(8 * float++));
        else cells.push(texts.shift());
      }
    }
  }
  return cells.flatMap((_, i) => (i % names.length ? [] : [cells.slice(i, i + names.length)]));
}

vm.runInThisContext(read("engine_bundle.js").toString());
self.onmessage({ data: port });
setTimeout(() => { // once the bundle has set itself up
  try {
    ask(APPEND, bytes(DATA, fs.readFileSync(trace)));
    ask(FINALIZE);
    own.stdout.write(JSON.stringify(queries.map(rows)) + "\n");
  } catch (error) {
    own.stderr.write(`${error.stack}\n`);
    own.exitCode = 1;
  }
});
