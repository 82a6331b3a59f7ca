// How long encoding takes in Chromium: node web/test/chromium_speed.js BUNDLE...
//
// For each bundle: median and least milliseconds of 50 calls of encodePixels in a worker, after 20
// to warm up, for 224x224 pixels. Each call must give the bytes that the package gives in Node.

import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { resolve } from "node:path";

import { chromium } from "playwright-core";

import { loadEncoder } from "../dist/index.js";

const SIDE = 224;
const DIST = new URL("../dist/", import.meta.url);
const TYPES = { js: "text/javascript", wasm: "application/wasm" };
const levels = Array.from({ length: 3 * SIDE * SIDE }, (_, index) =>
  Math.floor(128 + 100 * Math.sin(index / 700)),
);

// Runs in the page.
async function time({ levels, side }) {
  const { loadEncoder } = await import("/dist/index.js");
  const encoder = await loadEncoder("/bundle/");
  const image = { data: new Uint8Array(levels), width: side, height: side };
  const times = [];
  const files = new Set();
  for (let count = 0; count < 70; ++count) {
    const start = performance.now();
    files.add(String(await encoder.encodePixels(image)));
    if (count >= 20) times.push(performance.now() - start);
  }
  encoder.close();
  return { times: times.sort((a, b) => a - b), files: [...files] };
}

for (const bundle of process.argv.slice(2)) {
  const server = createServer(async ({ url }, answer) => {
    const [, folder, name] = url.split("/");
    const places = { dist: new URL(name ?? "", DIST), bundle: resolve(bundle, name ?? "") };
    const data = places[folder] && (await readFile(places[folder]).catch(() => null));
    const type = TYPES[url.split(".").pop()] ?? "text/html";
    answer.writeHead(200, { "content-type": type }).end(data ?? "<!doctype html>");
  }).listen(0, "127.0.0.1");
  const browser = await chromium.launch({
    executablePath: process.env.EDGECLOUD_CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", "--disable-gpu"],
  });
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const { times, files } = await page.evaluate(time, { levels, side: SIDE });
  const encoder = await loadEncoder(bundle);
  const pixels = { data: new Uint8Array(levels), width: SIDE, height: SIDE };
  if (files.length !== 1 || files[0] !== String(await encoder.encodePixels(pixels)))
    throw new Error(`${bundle}: Chromium gives other bytes than Node`);
  console.log(`${bundle}: ${times[25].toFixed(2)} ms, at least ${times[0].toFixed(2)}`);
  await browser.close();
  server.close();
}
