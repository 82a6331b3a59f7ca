// The page /try: pictures and camera frames become feature files here, and classes in the service.
//
//   picture -> levels -> prepare -> encode -> POST v1/classify -> classes and figures
//
// Always holds: no host but the service is asked, and it gets feature files only. Every failure is
// shown with what to do. Pictures are worked on one after the other, as are the camera's frames.

import { EncoderError, loadEncoder } from "./index.js";

const SERVICE = new URL(
  document.querySelector("meta[name=edgecloud-service]").content,
  document.baseURI,
);
const CLASSES = 5; // that are shown
// The largest canvas of phones. Larger pictures are made smaller by the browser.
const CANVAS_PIXELS = 2 ** 24;
const JPEG_QUALITY = 0.75; // of what camera frames are compared with
const JPEG_EVERY = 1000; // ms between two such comparisons
const RATE_MS = 2000; // time over which frames and bits are counted
const PAUSE_MS = 1000; // before the service is asked again, if it does not say how long
// What passes by itself: the camera goes on after these.
const PASSING = new Set(["queue_full", "deadline", "starting", "draining", "slow_body", "network"]);

const element = (id) => document.getElementById(id);
const wait = (ms) => new Promise((resolve) => setTimeout(resolve, ms));
const milliseconds = (value) => `${value.toFixed(value < 10 ? 1 : 0)} ms`;
const bytes = (count) => `${count.toLocaleString("en")} bytes`;

/** What the user is told: a text that says what to do, and a code. */
class Failure extends Error {
  constructor(code, text, seconds = 0) {
    super(text);
    this.code = code;
    this.seconds = seconds; // to wait before the next try
  }
}

/** The service, with the token that the user gave. */
class Service {
  token = "";

  /** The answer of a path, if it is none of an error. Throws Failure. */
  async ask(path, options = {}) {
    const headers = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    const url = new URL(path, SERVICE);
    const response = await fetch(url, { ...options, headers }).catch(() => {
      throw new Failure(
        "network",
        `${SERVICE.origin} cannot be reached: check the network, and that cloud-serve runs`,
      );
    });
    if (response.ok) return response;
    const { code, error } = await response.json().catch(() => ({}));
    const seconds = Number(response.headers.get("Retry-After")) || 0;
    const text = error ?? `${url} answers with status ${response.status}: is it a cloud-serve?`;
    throw new Failure(code ?? "unknown", text, seconds);
  }

  async classify(file) {
    const answer = await this.ask(`v1/classify?top_k=${CLASSES}`, { method: "POST", body: file });
    return answer.json();
  }

  /** The files of the bundle's edge half. Waits while the service starts. */
  async edgeHalf() {
    for (;;)
      try {
        const read = async (path) => (await this.ask(path)).arrayBuffer();
        const [tables, weights] = await Promise.all(
          ["try/edge.tables", "try/edge.weights"].map(read),
        );
        return { tables, weights };
      } catch (failure) {
        if (failure.code !== "starting") throw failure;
        await wait(failure.seconds * 1000 || PAUSE_MS);
      }
  }
}

/** Takes levels of pictures and of frames from a canvas, which it keeps. */
class Levels {
  #context = document
    .createElement("canvas")
    .getContext("2d", { willReadFrequently: true, alpha: true });

  /** An ImageData of a bitmap or a video. */
  take(source, width, height) {
    const scale = Math.min(1, Math.sqrt(CANVAS_PIXELS / (width * height)));
    const size = [width, height].map((side) => Math.max(1, Math.floor(side * scale)));
    const { canvas } = this.#context;
    [canvas.width, canvas.height] = size; // clears it as well
    this.#context.drawImage(source, 0, 0, ...size);
    return this.#context.getImageData(0, 0, ...size);
  }

  /** Of a file, upright, without colour management. Throws Failure. */
  async read(file) {
    const bitmap = await createImageBitmap(file, {
      colorSpaceConversion: "none",
      premultiplyAlpha: "none",
    }).catch(() => {
      throw new Failure(
        "no_picture",
        `${file.name} is no picture that this browser can read: choose a JPEG, PNG or WebP file`,
      );
    });
    try {
      return this.take(bitmap, bitmap.width, bitmap.height);
    } finally {
      bitmap.close();
    }
  }
}

/** A result on the page: picture, classes, figures. */
class Card {
  constructor(name) {
    const copy = element("result").content.cloneNode(true);
    this.item = copy.querySelector("li");
    this.part = (selector) => this.item.querySelector(selector);
    this.part("h2").textContent = name;
    this.part("canvas").setAttribute("aria-label", `${name}, as it is encoded`);
    element("results").prepend(copy);
  }

  /** Shows RGB pixels. */
  picture({ data, width, height }) {
    const levels = new ImageData(width, height);
    for (let from = 0, to = 0; from < data.length; from += 3, to += 4) {
      levels.data.set(data.subarray(from, from + 3), to);
      levels.data[to + 3] = 255;
    }
    const canvas = this.part("canvas");
    if (canvas.width !== width) [canvas.width, canvas.height] = [width, height];
    canvas.getContext("2d").putImageData(levels, 0, 0);
  }

  classes(found) {
    const lines = found.map(({ label, probability }) => {
      const line = document.createElement("li");
      const [name, bar, fill, percent] = ["span", "div", "div", "span"].map((kind) =>
        document.createElement(kind),
      );
      name.textContent = label;
      bar.className = "bar";
      fill.style.width = `${100 * probability}%`;
      bar.append(fill);
      percent.className = "percent";
      percent.textContent = `${(100 * probability).toFixed(1)} %`;
      line.append(name, bar, percent);
      return line;
    });
    this.part(".classes").replaceChildren(...lines);
  }

  /** Shows [name, text] pairs. */
  figures(pairs) {
    const groups = pairs.map(([name, text]) => {
      const group = document.createElement("div");
      const [term, value] = ["dt", "dd"].map((kind) => document.createElement(kind));
      term.textContent = name;
      value.textContent = text;
      group.append(term, value);
      return group;
    });
    this.part(".figures").replaceChildren(...groups);
  }

  failure(text) {
    this.part(".failure").textContent = text;
    this.part(".failure").hidden = text === "";
  }
}

const service = new Service();
const levels = new Levels();
let encoder;
let stopCamera; // set while the camera runs
let work = Promise.resolve(); // of pictures; the next one begins when it is done

/** Encodes levels and has them classified: {file, prepared, answer, times}, times in ms. */
async function classify(image) {
  const times = [performance.now()];
  const note = () => times.push(performance.now());
  const prepared = await encoder.prepare(image);
  note();
  const file = await encoder.encodePixels(prepared);
  note();
  const answer = await service.classify(file);
  note();
  const [resize, encode, round] = [0, 1, 2].map((index) => times[index + 1] - times[index]);
  return { file, prepared, answer, times: { resize, encode, round } };
}

/** Figures of the stages in the browser and in the service. */
function stages({ answer, times }) {
  const cloud = answer.milliseconds;
  const network = times.round - Object.values(cloud).reduce((sum, value) => sum + value, 0);
  return [
    ["resize", milliseconds(times.resize)],
    ["encode", milliseconds(times.encode)],
    ["network", milliseconds(Math.max(0, network))],
    ...Object.entries(cloud).map(([stage, value]) => [`cloud: ${stage}`, milliseconds(value)]),
  ];
}

const textOf = (error) =>
  error instanceof Failure || error instanceof EncoderError
    ? error.message
    : `this page has a fault (${error}): reload it`;

/** Shows a failure of the page as a whole, or none; asks for a token if that is what it needs. */
function report(error) {
  element("failure").hidden = !error;
  element("failure").textContent = error ? textOf(error) : "";
  if (error?.code !== "unauthorized") return;
  element("token").hidden = false;
  element("token-text").focus();
}

async function tryPicture(file) {
  const card = new Card(file.name);
  element("status").textContent = `Encoding ${file.name}.`;
  try {
    const start = performance.now();
    const image = await levels.read(file);
    const read = performance.now() - start;
    const result = await classify(image);
    card.picture(result.prepared);
    card.classes(result.answer.classes);
    card.figures([
      ["feature file", bytes(result.file.length)],
      ["picture's file", bytes(file.size)],
      ["smaller by", `${(file.size / result.file.length).toFixed(0)} times`],
      ["read picture", milliseconds(read)],
      ...stages(result),
    ]);
    const { label } = result.answer.classes[0];
    element("status").textContent = `${file.name}: ${label}, ${bytes(result.file.length)}.`;
    report();
  } catch (error) {
    card.failure(textOf(error));
    element("status").textContent = `${file.name} was not classified.`;
    if (error.code === "unauthorized") report(error);
  }
}

function tryPictures(files) {
  for (const file of files) work = work.then(() => tryPicture(file));
}

/** Frames and bits a second, over the last moments. */
class Rate {
  #sent = []; // [time, bytes]

  add(size) {
    const now = performance.now();
    this.#sent.push([now, size]);
    while (this.#sent[0][0] < now - RATE_MS) this.#sent.shift();
  }

  /** [frames a second, bits a second]; zeros before there are two frames. */
  get() {
    const count = this.#sent.length - 1;
    if (count < 1) return [0, 0];
    const seconds = (this.#sent[count][0] - this.#sent[0][0]) / 1000;
    const sum = this.#sent.slice(1).reduce((total, [, size]) => total + size, 0);
    return [count / seconds, (8 * sum) / seconds];
  }
}

/** A camera's stream, in a video that plays. Throws Failure. */
async function openCamera() {
  if (!navigator.mediaDevices)
    throw new Failure("no_camera", "the camera needs a page over HTTPS, or from localhost");
  const wanted = { video: { facingMode: "environment", width: { ideal: 640 } } };
  const stream = await navigator.mediaDevices.getUserMedia(wanted).catch((error) => {
    throw new Failure(
      "no_camera",
      `the camera cannot be used (${error.message}): connect one, and allow this page to use it`,
    );
  });
  const video = document.createElement("video");
  Object.assign(video, { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  return video;
}

const jpegBytes = (canvas) =>
  new Promise((resolve) =>
    canvas.toBlob((blob) => resolve(blob?.size ?? 0), "image/jpeg", JPEG_QUALITY),
  );

/** Classifies frames until `stopped` or unplugged, each when the one before has been answered. */
async function watch(video, card, stopped) {
  const rate = new Rate();
  let jpeg = 0;
  let next = 0; // when the next JPEG is made
  while (!stopped.aborted && video.srcObject.active) {
    await new Promise(requestAnimationFrame); // waits while the page is hidden
    const image = levels.take(video, video.videoWidth, video.videoHeight);
    const result = await classify(image).catch(async (error) => {
      if (!PASSING.has(error.code)) throw error;
      card.failure(textOf(error));
      await wait(error.seconds * 1000 || PAUSE_MS);
    });
    if (!result) continue;
    rate.add(result.file.length);
    card.failure("");
    card.picture(result.prepared);
    card.classes(result.answer.classes);
    if (performance.now() >= next) {
      jpeg = await jpegBytes(card.part("canvas"));
      next = performance.now() + JPEG_EVERY;
    }
    const [frames, bits] = rate.get();
    card.figures([
      ["frames a second", frames.toFixed(1)],
      ["kilobits a second", (bits / 1000).toFixed(1)],
      ["the same as JPEG", `${((8 * jpeg * frames) / 1000).toFixed(0)} kbit/s`],
      ["feature file", bytes(result.file.length)],
      [`JPEG, quality ${100 * JPEG_QUALITY}`, bytes(jpeg)],
      ...stages(result),
    ]);
  }
}

async function useCamera() {
  if (stopCamera) return stopCamera.abort();
  const stopped = (stopCamera = new AbortController());
  const button = element("camera");
  button.setAttribute("aria-pressed", "true");
  button.textContent = "Stop the camera";
  report();
  let video;
  try {
    video = await openCamera();
    element("status").textContent = "The camera runs.";
    await watch(video, new Card("Camera"), stopped.signal);
  } catch (error) {
    report(error);
  }
  for (const track of video?.srcObject.getTracks() ?? []) track.stop();
  stopCamera = undefined;
  button.setAttribute("aria-pressed", "false");
  button.textContent = "Use the camera";
  element("status").textContent = "The camera is off.";
}

/** Asks for files of at most so many bytes, or of the bundle's default level. */
async function askBytes({ target: { value } }) {
  try {
    await encoder.ask({ maxBytes: value === "" ? undefined : Number(value) });
    report();
  } catch (error) {
    report(error);
  }
}

async function start() {
  report();
  element("status").textContent = "Loading the encoder.";
  try {
    encoder ??= await loadEncoder(await service.edgeHalf());
  } catch (error) {
    element("status").textContent = "The encoder is not loaded.";
    return report(error);
  }
  element("token").hidden = true;
  element("budget").hidden = !encoder.hasRates;
  element("files").disabled = element("camera").disabled = false;
  element("status").textContent = "Ready: choose or drop pictures, or use the camera.";
}

function listen() {
  element("token").addEventListener("submit", (event) => {
    event.preventDefault();
    service.token = element("token-text").value.trim();
    start();
  });
  element("files").addEventListener("change", ({ target }) => {
    tryPictures([...target.files]);
    target.value = ""; // so that the same picture may be chosen again
  });
  element("camera").addEventListener("click", useCamera);
  element("most").addEventListener("change", askBytes);
  // Anywhere on the page: a browser would leave it for a file that is dropped beside a target.
  const over = (event) => {
    event.preventDefault();
    const inside = event.type === "dragover" && Boolean(encoder);
    element("sources").classList.toggle("over", inside);
  };
  for (const kind of ["dragover", "dragleave", "drop"]) document.addEventListener(kind, over);
  document.addEventListener("drop", ({ dataTransfer }) => {
    if (encoder) tryPictures([...dataTransfer.files]);
  });
}

listen();
start();
