// The package in Node. tests/web/test_web_package.py writes what it reads, and runs it:
// $EDGECLOUD_CASES is a folder with cases.json, and for each case N.pixels and N.feat, its feature
// file as Python wrote it.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createServer } from "node:http";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";

import { EncoderError, loadEncoder } from "../dist/index.js";

const FOLDER = process.env.EDGECLOUD_CASES;
const { bundle, cases, variable } = JSON.parse(readFileSync(`${FOLDER}/cases.json`, "utf8"));

const bytesOf = (path) => new Uint8Array(readFileSync(path));
const bundleFiles = () => ({
  tables: bytesOf(`${bundle}/edge.tables`).buffer,
  weights: bytesOf(`${bundle}/edge.weights`).buffer,
});
const imageOf = (index) => {
  const { width, height } = cases[index];
  return { data: bytesOf(`${FOLDER}/${index}.pixels`), width, height };
};
const refuses = (promise, code, text) =>
  assert.rejects(promise, (error) => {
    assert(error instanceof EncoderError && error instanceof Error);
    assert.equal(error.code, code);
    assert.match(error.message, text);
    return true;
  });

let encoder;
before(async () => {
  encoder = await loadEncoder(bundle);
});
after(() => encoder.close());

for (const [index, { width, height, asIs }] of cases.entries())
  test(`${width}x${height}${asIs ? " as it is" : ""}: the bytes of Python`, async () => {
    const image = imageOf(index);
    const copy = image.data.slice();
    const file = await (asIs ? encoder.encodePixels(image) : encoder.encode(image));
    assert.deepEqual(file, bytesOf(`${FOLDER}/${index}.feat`));
    assert.deepEqual(image.data, copy); // the caller's array is as it was
  });

test("preparing and encoding apart is the same", async () => {
  const index = cases.findIndex(({ asIs }) => !asIs);
  const prepared = await encoder.prepare(imageOf(index));
  assert.equal(prepared.data.length, 3 * encoder.crop ** 2);
  assert.deepEqual(await encoder.encodePixels(prepared), bytesOf(`${FOLDER}/${index}.feat`));
});

test("clamped arrays, and calls before others are done", async () => {
  const { data, ...size } = imageOf(0);
  const files = await Promise.all([
    encoder.encodePixels({ data: new Uint8ClampedArray(data), ...size }),
    encoder.encodePixels(imageOf(1)),
  ]);
  assert.deepEqual(files, [bytesOf(`${FOLDER}/0.feat`), bytesOf(`${FOLDER}/1.feat`)]);
});

test("bundles by URL, over HTTP, and as bytes", async (context) => {
  const server = createServer((request, response) => {
    const name = request.url.split("/").at(-1);
    if (!request.url.startsWith("/models/n4/")) response.writeHead(404).end();
    else response.end(readFileSync(`${bundle}/${name}`));
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  context.after(() => server.close());
  const site = `http://127.0.0.1:${server.address().port}`;
  for (const source of [pathToFileURL(bundle), `${site}/models/n4`, bundleFiles()]) {
    const other = await loadEncoder(source);
    assert.equal(other.kernel, "wasm");
    assert.deepEqual(await other.encodePixels(imageOf(0)), bytesOf(`${FOLDER}/0.feat`));
    other.close();
  }
  await refuses(loadEncoder(`${site}/other`), "bad_file", /other\/edge\..*404/);
});

test("levels and bytes of a variable-rate bundle", async () => {
  const other = await loadEncoder(variable.bundle);
  assert.deepEqual([other.hasRates, encoder.hasRates], [true, false]);
  for (const [index, { asked }] of variable.cases.entries()) {
    await other.ask(asked);
    const file = await other.encodePixels(imageOf(0));
    assert.deepEqual(file, bytesOf(`${FOLDER}/variable${index}.feat`), JSON.stringify(asked));
    assert(file.length <= (asked.maxBytes ?? file.length));
  }
  await other.ask({ targetBytes: 300 });
  for (const file of ["stream0", "stream1"])
    assert.deepEqual(await other.encodePixels(imageOf(0)), bytesOf(`${FOLDER}/${file}.feat`));
  await refuses(other.ask({ rate: 15.5 }), "bad_argument", /level is from 0 to 15/);
  await refuses(other.ask({ rate: "7" }), "bad_argument", /rate is no number/);
  await refuses(other.ask({ targetBytes: null }), "bad_argument", /targetBytes is no number/);
  await refuses(other.ask({ maxBytes: 1.5 }), "bad_argument", /maxBytes is 1\.5/);
  for (const value of [0, -1, Number.NaN, 2 ** 24 + 1])
    for (const name of ["maxBytes", "targetBytes"])
      await refuses(other.ask({ [name]: value }), "bad_argument", /give 1 to 16777216/);
  await refuses(other.ask({ rate: 1, targetBytes: 300 }), "bad_argument", /ask for one of both/);
  await other.ask({ maxBytes: 5 });
  await refuses(other.encodePixels(imageOf(0)), "small_budget", /5 bytes are too few/);
  await refuses(encoder.ask({ maxBytes: 500 }), "bad_argument", /the bundle has one rate/);
  other.close();
  await refuses(other.ask(), "closed", /load another one/);
});

test("what is no bundle is refused", async () => {
  await refuses(loadEncoder("/no/such/folder"), "bad_file", /folder\/edge\..*ENOENT/);
  await refuses(loadEncoder(7), "bad_argument", /URL of a folder/);
  await refuses(loadEncoder("http://"), "bad_argument", /http:\/\/ is no URL/);
  await refuses(loadEncoder({ tables: new ArrayBuffer(8) }), "bad_argument", /weights is no/);
  const damaged = bundleFiles();
  new Uint8Array(damaged.weights)[5000] ^= 1;
  await refuses(loadEncoder(damaged), "bad_bundle", /edge\.weights .*export the bundle again/);
  const long = { ...bundleFiles(), weights: new ArrayBuffer((64 << 20) + 1) };
  await refuses(loadEncoder(long), "bad_bundle", /67108865 bytes .* limit is 67108864/);
  const short = { ...bundleFiles(), tables: new ArrayBuffer(0) };
  await refuses(loadEncoder(short), "bad_bundle", /edge\.tables/);
});

test("what is no image is refused", async () => {
  const data = new Uint8Array(4 * 16 * 16);
  const square = { data, width: 16, height: 16 };
  await refuses(encoder.encode(undefined), "bad_argument", /ImageData/);
  await refuses(encoder.encode({ ...square, data: [...data] }), "bad_argument", /Uint8Array/);
  await refuses(encoder.encode({ ...square, width: 15 }), "bad_argument", /960 bytes.*not 1024/);
  await refuses(encoder.encode({ ...square, width: 0 }), "bad_image", /0x16 pixels is empty/);
  await refuses(encoder.encode({ ...square, width: 1.5 }), "bad_image", /1\.5x16/);
  await refuses(
    encoder.encodePixels({ data: data.subarray(0, 4 * 12 * 16), width: 12, height: 16 }),
    "bad_image",
    /12x16 pixels has sides that are not multiples of 8/,
  );
  assert((await encoder.encode(square)).length > 12); // it still works
});

test("an encoder that is closed says so", async () => {
  const other = await loadEncoder(bundleFiles());
  other.close();
  other.close();
  await refuses(other.encode(imageOf(0)), "closed", /load another one/);
});

test("memory is freed", async () => {
  // Together more than the 2 GiB that the library may have.
  const size = 3000;
  const data = new Uint8Array(3 * size * size);
  for (let count = 0; count < 100; ++count)
    await encoder.prepare({ data, width: size, height: size }).catch(assert.fail);
});
