// Pictures to feature files, in the browser and in Node. docs/web.md is the manual.
//
//   const encoder = await loadEncoder("bundles/ours_n4/");
//   const file = await encoder.encode(context.getImageData(0, 0, width, height));
//
// Always holds: the bytes are those of the Python package's engine `native`. A promise is rejected
// with an EncoderError. The caller's arrays are copied, never taken away.

import { EncoderError, fromMessage, toMessage } from "./errors.js";
import { folderUrl, readFile } from "./files.js";
import { channelsOf, Library } from "./library.js";

export { EncoderError };

const WASM = new URL("./edgecloud.wasm", import.meta.url);
const CLOSED = "the encoder is closed: load another one";

/** Runs the library's methods on this thread. */
class Here {
  #library;

  async open(...given) {
    this.#library = new Library(...given);
    return this.#library.about;
  }

  async run(method, given) {
    return this.#library[method](...given);
  }

  close() {
    this.#library?.close();
  }
}

/** Runs them in a worker; calls are answered in their order. */
class InWorker {
  #worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  #waiting = new Map(); // id of a message -> {resolve, reject}
  #last = 0;

  constructor() {
    this.#worker.onmessage = ({ data: { id, result, error } }) => {
      const { resolve, reject } = this.#waiting.get(id);
      this.#waiting.delete(id);
      if (error) reject(fromMessage(error));
      else resolve(result);
    };
    // A worker that cannot be loaded says nothing more than that.
    this.#worker.onerror = (event) => {
      event.preventDefault?.();
      const why = event.message ? ` (${event.message})` : "";
      this.#end("worker_failed", `the encoder's worker cannot run${why}: try {worker: false}`);
    };
  }

  open(...given) {
    return this.run("open", given);
  }

  run(method, given) {
    return new Promise((resolve, reject) => {
      this.#waiting.set(++this.#last, { resolve, reject });
      this.#worker.postMessage({ id: this.#last, method, given });
    });
  }

  close() {
    this.#end("closed", CLOSED);
  }

  #end(code, text) {
    this.#worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(new EncoderError(code, text));
    this.#waiting.clear();
  }
}

/** What loadEncoder gives. Its methods may be called again before they are done. */
export class Encoder {
  #runner;
  #closed = false;

  constructor(runner, { crop, kernel, hasRates }) {
    this.#runner = runner;
    this.crop = crop;
    this.kernel = kernel;
    this.hasRates = hasRates;
  }

  ask(budget) {
    const { rate, maxBytes, targetBytes } = budget ?? {};
    return this.#run("ask", { rate, maxBytes, targetBytes });
  }

  prepare(image) {
    return this.#runOn("prepare", image);
  }

  encodePixels(image) {
    return this.#runOn("encodePixels", image);
  }

  encode(image) {
    return this.#runOn("encode", image);
  }

  close() {
    if (!this.#closed) this.#runner.close();
    this.#closed = true;
  }

  async #runOn(method, image) {
    if (this.#closed) throw new EncoderError("closed", CLOSED);
    channelsOf(image); // before it is copied
    const { data, width, height } = image;
    return this.#run(method, { data, width, height });
  }

  async #run(method, given) {
    if (this.#closed) throw new EncoderError("closed", CLOSED);
    try {
      return await this.#runner.run(method, [given]);
    } catch (error) {
      throw error instanceof EncoderError ? error : fromMessage(toMessage(error));
    }
  }
}

async function compile() {
  const bytes = await readFile(WASM).catch((error) => {
    throw new EncoderError(error.code, `${error.message}, or build it with \`make web\``);
  });
  try {
    return await WebAssembly.compile(bytes);
  } catch (error) {
    throw new EncoderError(
      "unsupported",
      `WebAssembly with SIMD cannot be compiled here (${error.message}): use a newer browser, ` +
        "and let the Content-Security-Policy have 'wasm-unsafe-eval'",
    );
  }
}

async function readBundle(source) {
  if (source?.tables || source?.weights) {
    for (const name of ["tables", "weights"])
      if (!(source[name] instanceof ArrayBuffer))
        throw new EncoderError("bad_argument", `${name} is no ArrayBuffer: give both files' bytes`);
    return [source.tables, source.weights];
  }
  if (typeof source !== "string" && !(source instanceof URL))
    throw new EncoderError(
      "bad_argument",
      "a bundle is the URL of a folder, or {tables, weights} with ArrayBuffers",
    );
  const folder = await folderUrl(source);
  const names = ["edge.tables", "edge.weights"];
  return Promise.all(names.map((name) => readFile(new URL(name, folder))));
}

/** Loads a bundle's edge half; see index.d.ts. */
export async function loadEncoder(source, { worker = typeof Worker === "function" } = {}) {
  const [module, [tables, weights]] = await Promise.all([compile(), readBundle(source)]);
  const runner = worker ? new InWorker() : new Here();
  try {
    return new Encoder(runner, await runner.open(module, tables, weights));
  } catch (error) {
    runner.close();
    throw error instanceof EncoderError ? error : fromMessage(toMessage(error));
  }
}
