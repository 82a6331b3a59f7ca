// The page /try in Chromium. tests/web/test_try_page.py starts the service, and runs this with
//
//   EDGECLOUD_URL       of the page; its service needs $EDGECLOUD_TOKEN
//   EDGECLOUD_RATES     of the same page with a variable-rate bundle; the same token
//   EDGECLOUD_ELSEWHERE of a copy of the page on another origin, which the service allows
//   EDGECLOUD_PICTURES  a folder with picture.jpg, picture.png, and picture.feat: the feature file
//                       of picture.png as Python writes it
//   EDGECLOUD_CHROMIUM  path of the browser
//   EDGECLOUD_SHOT      if set, where a screenshot of the page is kept

import assert from "node:assert/strict";
import { readFileSync, writeFileSync } from "node:fs";
import { after, afterEach, before, beforeEach, test } from "node:test";

import { chromium } from "playwright-core";

const {
  EDGECLOUD_URL: URL_OF_PAGE,
  EDGECLOUD_RATES: RATES,
  EDGECLOUD_ELSEWHERE: ELSEWHERE,
  EDGECLOUD_TOKEN: TOKEN,
  EDGECLOUD_PICTURES: PICTURES,
  EDGECLOUD_CHROMIUM: CHROMIUM,
  EDGECLOUD_SHOT: SHOT,
} = process.env;
const ARGUMENTS = [
  "--headless",
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--use-fake-device-for-media-stream",
  "--use-fake-ui-for-media-stream",
];

let browser;
let context;
let page;
let asked; // origins of all requests
let allowed; // origins that may be asked
let complaints; // of the browser: faults of scripts, and what the page's policy forbids

before(async () => {
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ARGUMENTS });
});
after(() => browser.close());

beforeEach(async () => {
  context = await browser.newContext({ viewport: { width: 900, height: 700 } });
  page = await context.newPage();
  page.setDefaultTimeout(15_000);
  asked = new Set();
  allowed = new Set([new URL(URL_OF_PAGE).origin, "null"]); // null: data: and blob: addresses
  complaints = [];
  context.on("request", (request) => asked.add(new URL(request.url()).origin));
  page.on("pageerror", (error) => complaints.push(String(error)));
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(message.text());
  });
  await page.goto(URL_OF_PAGE);
});
afterEach(async () => {
  // Chromium also complains of statuses such as 401, which are answers that we show.
  const faults = complaints.filter((text) => !text.startsWith("Failed to load resource"));
  await context.close();
  assert.deepEqual(faults, []);
  assert.deepEqual(
    [...asked].filter((origin) => !allowed.has(origin)),
    [],
  );
});

const status = (text) => page.getByRole("status").filter({ hasText: text }).waitFor();
const choose = (...names) =>
  page.locator("#files").setInputFiles(names.map((name) => `${PICTURES}/${name}`));

/** The page with its encoder, after the token was typed. */
async function ready() {
  const field = page.getByLabel("This service needs a token");
  await field.fill(TOKEN);
  await field.press("Enter");
  await status("Ready");
}

/** Figures of the first card: name -> text. */
const figures = () =>
  page
    .locator(".result")
    .first()
    .locator(".figures > div")
    .evaluateAll((groups) =>
      Object.fromEntries(
        groups.map((group) => [...group.children].map(({ textContent }) => textContent)),
      ),
    );

test("it asks for a token, and says so if it is wrong", async () => {
  const field = page.getByLabel("This service needs a token");
  await field.waitFor();
  assert(await field.evaluate((input) => input === document.activeElement));
  assert(await page.locator("#camera").isDisabled());
  await page.keyboard.type("not-the-token-0123");
  await page.keyboard.press("Enter");
  const alert = page.getByRole("alert").filter({ hasText: "no right token" });
  await alert.waitFor();
  await ready();
  assert(await alert.isHidden());
  assert(await field.isHidden());
});

test("it encodes in a worker, and says so where there can be none", async () => {
  await ready();
  assert.deepEqual(
    page.workers().map((worker) => new URL(worker.url()).pathname),
    ["/try/worker.js"],
  );
  await page.route("**/worker.js", (route) => route.abort());
  await page.reload();
  await page.getByLabel("This service needs a token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "the encoder's worker cannot run" }).waitFor();
  assert(await page.locator("#files").isDisabled());
});

test("a picture becomes a feature file, and the answer is shown", async () => {
  await ready();
  await choose("picture.jpg");
  await status("picture.jpg: golf ball");
  const first = page.locator(".classes li").first();
  assert.match(await first.textContent(), /^golf ball(9\d\.\d|100\.0) %$/);
  const found = await figures();
  assert.match(found["feature file"], /^[3-9]\d\d bytes$/);
  const size = readFileSync(`${PICTURES}/picture.jpg`).length;
  assert.equal(found["picture's file"], `${size.toLocaleString("en")} bytes`);
  for (const stage of ["read picture", "resize", "encode", "network", "cloud: graph"])
    assert.match(found[stage], /^[\d.]+ ms$/, stage);
  const shown = await page.locator(".result canvas").evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(data).size;
  });
  assert(shown > 100, `the picture has ${shown} levels`);
  if (SHOT) writeFileSync(SHOT, await page.screenshot());
});

test("it posts the bytes that Python writes", async () => {
  await ready();
  const posted = page.waitForRequest((request) => request.method() === "POST");
  await choose("picture.png");
  const body = (await posted).postDataBuffer();
  assert.deepEqual(new Uint8Array(body), new Uint8Array(readFileSync(`${PICTURES}/picture.feat`)));
  await status("picture.png: golf ball");
});

test("pictures are dropped, and what is none is refused by name", async () => {
  await ready();
  const bytes = [...readFileSync(`${PICTURES}/picture.jpg`)];
  const transfer = await page.evaluateHandle((data) => {
    const made = new DataTransfer();
    made.items.add(new File([new Uint8Array(data)], "dropped.jpg", { type: "image/jpeg" }));
    made.items.add(new File(["text"], "notes.txt", { type: "text/plain" }));
    return made;
  }, bytes);
  await page.dispatchEvent("#sources", "drop", { dataTransfer: transfer });
  await status("notes.txt was not classified");
  const cards = page.locator(".result");
  const texts = await cards.allTextContents();
  assert.equal(texts.length, 2); // the newest first
  assert.match(texts[0], /notes\.txt is no picture .*choose a JPEG/);
  assert.match(texts[1], /dropped\.jpg.*golf ball/s);
});

test("it waits for a service that starts, and says what a bundle lacks", async () => {
  const answers = [
    { status: 503, json: { code: "starting", error: "loading" }, headers: { "Retry-After": "1" } },
    { status: 404, json: { code: "no_edge_half", error: "no bundle has edge.weights: export" } },
  ];
  await page.route("**/try/edge.weights", (route) => route.fulfill(answers.shift()));
  await page.getByLabel("This service needs a token").fill(TOKEN);
  await page.keyboard.press("Enter");
  await page.getByRole("alert").filter({ hasText: "no bundle has edge.weights: export" }).waitFor();
  assert.equal(answers.length, 0);
});

test("a copy on another origin, which the service allows", async () => {
  allowed.add(new URL(ELSEWHERE).origin);
  await page.goto(ELSEWHERE);
  await ready();
  await choose("picture.jpg");
  await status("picture.jpg: golf ball");
});

test("refusals of the service and a lost network are shown as they are", async () => {
  await ready();
  const refusal = { code: "queue_full", error: "too many images wait: ask again in 1 s" };
  await page.route("**/v1/classify*", (route) => route.fulfill({ status: 429, json: refusal }));
  await choose("picture.jpg");
  await page.getByRole("alert").filter({ hasText: refusal.error }).waitFor();
  await page.unroute("**/v1/classify*");
  await page.route("**/v1/classify*", (route) => route.abort());
  await choose("picture.png");
  await page.getByRole("alert").filter({ hasText: /cannot be reached: check/ }).waitFor();
});

test("the camera, from the keyboard", async () => {
  await ready();
  const button = page.getByRole("button", { name: "Use the camera" });
  await button.focus();
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => {
    const text = document.querySelector(".figures")?.textContent ?? "";
    return /frames a second[1-9]/.test(text) && /JPEG, quality 75[1-9]/.test(text);
  });
  const found = await figures();
  assert(Number(found["frames a second"]) > 0.5);
  assert(Number(found["kilobits a second"]) > 0);
  assert(Number(found["feature file"].match(/^\d+/)[0]) > 12);
  const stop = page.getByRole("button", { name: "Stop the camera" });
  assert.equal(await stop.getAttribute("aria-pressed"), "true");
  await stop.press("Enter");
  await status("The camera is off");
  assert.equal(await page.locator(".result").count(), 1);
});

test("on a phone's width nothing overflows, and dark mode is dark", async () => {
  await page.setViewportSize({ width: 320, height: 640 });
  await ready();
  await choose("picture.jpg");
  await status("picture.jpg: golf ball");
  assert.equal(await page.evaluate(() => document.documentElement.scrollWidth), 320);
  const colours = [];
  for (const colorScheme of ["light", "dark"]) {
    await page.emulateMedia({ colorScheme });
    colours.push(await page.evaluate(() => getComputedStyle(document.body).backgroundColor));
  }
  assert.deepEqual(colours, ["rgb(255, 255, 255)", "rgb(20, 23, 26)"]);
});

test("bytes can be asked for where the rate varies", async () => {
  await ready();
  const most = page.getByLabel("Most bytes of a feature file");
  assert(await most.isHidden());
  allowed.add(new URL(RATES).origin);
  await page.goto(RATES);
  await ready();
  const sizes = [];
  for (const asked of ["", "300"]) {
    await most.fill(asked);
    await most.press("Tab");
    await choose("picture.png");
    await page.locator(".figures > div").nth(8 * sizes.length).waitFor();
    await status("picture.png: ");
    sizes.push(Number.parseInt((await figures())["feature file"].replaceAll(",", ""), 10));
  }
  assert(sizes[1] <= 300 && sizes[0] > 300, String(sizes));
  await most.fill("1.5");
  await most.press("Tab");
  await page.getByRole("alert").filter({ hasText: "maxBytes is 1.5" }).waitFor();
});
