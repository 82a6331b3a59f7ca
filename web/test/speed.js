// How long encoding takes in Node: node web/test/speed.js BUNDLE...
//
// For each bundle: milliseconds of encodePixels for an array of 224x224 pixels, median and least of
// 50 after 20 to warm up, on one thread.

import { loadEncoder } from "../dist/index.js";

const WARM_UP = 20;
const COUNT = 50;
const SIDE = 224;

const data = new Uint8Array(3 * SIDE * SIDE);
// Waves and a pattern of all levels: neither empty nor noise.
for (let index = 0; index < data.length; ++index)
  data[index] = 128 + 100 * Math.sin(index / 700) + ((index * 2654435761) >>> 28);

for (const bundle of process.argv.slice(2)) {
  const encoder = await loadEncoder(bundle);
  const times = [];
  for (let count = 0; count < WARM_UP + COUNT; ++count) {
    const start = performance.now();
    await encoder.encodePixels({ data, width: SIDE, height: SIDE });
    times.push(performance.now() - start);
  }
  const sorted = times.slice(WARM_UP).sort((a, b) => a - b);
  const [median, least] = [sorted[COUNT / 2], sorted[0]].map((time) => time.toFixed(2));
  console.log(`${bundle}: ${median} ms, at least ${least}`);
  encoder.close();
}
