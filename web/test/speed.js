// How long encoding takes in Node: node web/test/speed.js PIXELS HEIGHT WIDTH RUNS BUNDLE
//
// PIXELS is a file of RGB levels. Prints a JSON object: the milliseconds of each run after 20 to
// warm up, the bytes of the module's memory, and the feature file in hexadecimal digits. One thread.
// benchmarks/edges.py runs it.

import { readFile } from "node:fs/promises";

import { Library } from "../dist/library.js";

const WARM_UP = 20;

const [pixels, height, width, runs, bundle] = process.argv.slice(2);
const image = { data: new Uint8Array(await readFile(pixels)), width: +width, height: +height };
const dist = new URL("../dist/", import.meta.url);
const module = await WebAssembly.compile(await readFile(new URL("edgecloud.wasm", dist)));
const halves = ["edge.tables", "edge.weights"].map((name) => readBundle(`${bundle}/${name}`));
const library = new Library(module, ...(await Promise.all(halves)));

async function readBundle(path) {
  const { buffer, byteOffset, byteLength } = await readFile(path);
  return buffer.slice(byteOffset, byteOffset + byteLength);
}

const milliseconds = [];
let file;
for (let count = 0; count < WARM_UP + +runs; ++count) {
  const start = performance.now();
  file = library.encodePixels(image);
  if (count >= WARM_UP) milliseconds.push(performance.now() - start);
}
const memory_bytes = library.memoryBytes;
console.log(
  JSON.stringify({ milliseconds, memory_bytes, file: Buffer.from(file).toString("hex") }),
);
