// The C library (csrc/include/edgecloud.h) as WebAssembly, without glue code of a compiler.
//
// `make web` compiles it to edgecloud.wasm, which needs two functions from us. Everything here
// is synchronous and knows neither URLs nor threads.
//
// Always holds: memory that a call takes in the library is freed when it ends. Views of the
// library's memory are made anew after each call, because memory that grows detaches them.

import { EncoderError } from "./errors.js";

// edgecloud_status -> code of the error.
const CODES = [
  "ok",
  "bad_argument",
  "no_memory",
  "bad_file",
  "bad_bundle",
  "bad_image",
  "small_buffer",
  "bad_feature_file",
  "other_bundle",
  "small_budget",
];
const ERROR_BYTES = 256; // edgecloud_error
const INFO_BYTES = 64; // edgecloud_bundle_info: fingerprint[32], six uint32_t, two int
const CROP_AT = 52; // its member `crop`
const BUDGET_BYTES = 32; // edgecloud_budget: int, double, size_t, double at multiples of 8
const MOST_BYTES = 2 ** 24; // that can be asked for, as in the Python package
const FILE_BYTES = 64 << 20; // most of edge.tables and of edge.weights; the library checks again
const OUTPUT_BYTES = 8; // a pointer and a size, of 32 bits each
const SIDE_LIMIT = 1 << 24; // of edgecloud_prepare, as is the next
const PIXEL_LIMIT = 2 ** 30;

const DECODER = new TextDecoder();

/** The channels of an image's data: 3 or 4. Throws EncoderError. */
export function channelsOf(image) {
  const { data, width, height } = image ?? {};
  const bytes = data instanceof Uint8Array || data instanceof Uint8ClampedArray;
  if (!bytes)
    throw new EncoderError(
      "bad_argument",
      "an image is an ImageData or {data, width, height} with bytes in a Uint8Array or " +
        "Uint8ClampedArray: draw a picture on a canvas and take its getImageData",
    );
  for (const side of [width, height])
    if (!Number.isInteger(side) || side < 1 || side > SIDE_LIMIT)
      throw new EncoderError(
        "bad_image",
        `an image of ${width}x${height} pixels is empty or too large: sides are 1 to 2^24`,
      );
  if (width * height > PIXEL_LIMIT)
    throw new EncoderError(
      "bad_image",
      `an image of ${width}x${height} pixels is too large: there are 2^30 pixels at most`,
    );
  const channels = data.length / (width * height);
  if (channels === 3 || channels === 4) return channels;
  throw new EncoderError(
    "bad_argument",
    `an image of ${width}x${height} pixels has ${4 * width * height} bytes of RGBA or ` +
      `${3 * width * height} of RGB, not ${data.length}`,
  );
}

/**
 * RGBA composited on white, to RGB. Pillow's rounding (BLEND in its Paste.c), so that the Python
 * package gives the same levels.
 */
export function compositeOnWhite(rgba, rgb) {
  for (let from = 0, to = 0; from < rgba.length; from += 4) {
    const alpha = rgba[from + 3];
    const white = 255 * (255 - alpha) + 128;
    for (let channel = 0; channel < 3; ++channel) {
      const sum = white + rgba[from + channel] * alpha;
      rgb[to++] = (sum + (sum >> 8)) >> 8;
    }
  }
}

/** An opened bundle and its encoder. Its methods throw EncoderError. */
export class Library {
  #exports;
  #bundle = 0;
  #encoder = 0;
  #crop = 0;

  /**
   * @param {WebAssembly.Module} module of edgecloud.wasm
   * @param {ArrayBuffer} tables bytes of edge.tables
   * @param {ArrayBuffer} weights bytes of edge.weights
   */
  constructor(module, tables, weights) {
    for (const { byteLength } of [tables, weights])
      if (byteLength > FILE_BYTES)
        throw new EncoderError(
          "bad_bundle",
          `a file of ${byteLength} bytes is no part of a bundle: the limit is ${FILE_BYTES}`,
        );
    const instance = new WebAssembly.Instance(module, {
      env: { emscripten_notify_memory_growth() {} },
      wasi_snapshot_preview1: {
        proc_exit(status) {
          throw new EncoderError("internal", `the encoder ended with ${status}: load it again`);
        },
      },
    });
    this.#exports = instance.exports;
    this.#exports._initialize();
    this.#open(tables, weights);
  }

  /** Whether the bundle is a variable-rate one, of which `ask` can ask something. */
  get hasRates() {
    return this.#exports.edgecloud_bundle_has_rates(this.#bundle) !== 0;
  }

  /** Side of the square that `prepare` makes, in pixels. */
  get crop() {
    return this.#crop;
  }

  /** What the package's Encoder has as properties. */
  get about() {
    return { crop: this.#crop, kernel: this.kernel, hasRates: this.hasRates };
  }

  /** Name of the kernel that the library has chosen. */
  get kernel() {
    return this.#text(this.#exports.edgecloud_encoder_kernel(this.#encoder));
  }

  /** Bytes of memory that the library has, which never become fewer. */
  get memoryBytes() {
    return this.#exports.memory.buffer.byteLength;
  }

  /** The image resized and cropped as the bundle says: {data, width, height}, RGB. */
  prepare(image) {
    const { width, height } = image;
    return this.#withPixels(image, (pixels) => {
      const bytes = 3 * this.#crop * this.#crop;
      return this.#withMemory(bytes, (out) => {
        this.#call("edgecloud_prepare", this.#bundle, pixels, height, width, 0, out);
        return { data: this.#bytes(out, bytes).slice(), width: this.#crop, height: this.#crop };
      });
    });
  }

  /** The feature file of an image as it is. Both its sides are multiples of 8. */
  encodePixels(image) {
    const { width, height } = image;
    return this.#withPixels(image, (pixels) => this.#encode(pixels, height, width));
  }

  /** `prepare` and `encodePixels`. */
  encode(image) {
    return this.encodePixels(this.prepare(image));
  }

  /** What the files of the next images shall be. A stream of images with a mean begins anew. */
  ask({ rate, maxBytes, targetBytes } = {}) {
    for (const [name, value] of Object.entries({ rate, maxBytes, targetBytes })) {
      if (value === undefined) continue;
      if (typeof value !== "number")
        throw new EncoderError("bad_argument", `${name} is no number: leave it out or give one`);
      if (name !== "rate" && !(value >= 1 && value <= MOST_BYTES))
        throw new EncoderError("bad_argument", `${name} is ${value}: give 1 to ${MOST_BYTES}`);
    }
    if (maxBytes !== undefined && !Number.isInteger(maxBytes))
      throw new EncoderError("bad_argument", `maxBytes is ${maxBytes}: give a whole number`);
    this.#withMemory(BUDGET_BYTES, (at) => {
      const budget = new DataView(this.#exports.memory.buffer, at >>> 0, BUDGET_BYTES);
      budget.setInt32(0, rate === undefined ? 0 : 1, true);
      budget.setFloat64(8, rate ?? 0, true);
      budget.setUint32(16, maxBytes ?? 0, true);
      budget.setFloat64(24, targetBytes ?? 0, true);
      this.#call("edgecloud_encoder_ask", this.#encoder, at);
    });
  }

  /** Frees the memory. No other method may be called afterwards. */
  close() {
    this.#exports.edgecloud_encoder_free(this.#encoder);
    this.#exports.edgecloud_bundle_close(this.#bundle);
    this.#encoder = this.#bundle = 0;
  }

  #open(tables, weights) {
    this.#withBytes(new Uint8Array(tables), (first) =>
      this.#withBytes(new Uint8Array(weights), (second) =>
        this.#withMemory(OUTPUT_BYTES, (out) => {
          const sizes = [tables.byteLength, weights.byteLength];
          const given = [first, sizes[0], second, sizes[1]];
          this.#call("edgecloud_bundle_from_memory", ...given, out);
          this.#bundle = this.#word(out);
          this.#call("edgecloud_encoder_new", this.#bundle, 0, out);
          this.#encoder = this.#word(out);
        }),
      ),
    );
    this.#withMemory(INFO_BYTES, (info) => {
      this.#exports.edgecloud_bundle_describe(this.#bundle, info);
      this.#crop = this.#word(info + CROP_AT);
    });
  }

  #encode(pixels, height, width) {
    return this.#withMemory(OUTPUT_BYTES, (out) => {
      const image = [pixels, height, width, 0];
      this.#call("edgecloud_encode", this.#encoder, ...image, out, out + 4);
      return this.#bytes(this.#word(out), this.#word(out + 4)).slice();
    });
  }

  // Calls a function whose last parameter is an edgecloud_error.
  #call(name, ...given) {
    this.#withMemory(ERROR_BYTES, (error) => {
      const status = this.#exports[name](...given, error);
      if (status !== 0) throw new EncoderError(CODES[status] ?? "internal", this.#text(error));
    });
  }

  #withMemory(size, work) {
    const at = this.#exports.malloc(size);
    if (!at) throw new EncoderError("no_memory", `there is not enough memory for ${size} bytes`);
    try {
      return work(at);
    } finally {
      this.#exports.free(at);
    }
  }

  #withBytes(bytes, work) {
    return this.#withMemory(Math.max(1, bytes.length), (at) => {
      this.#bytes(at, bytes.length).set(bytes);
      return work(at);
    });
  }

  // The image's RGB levels in the library's memory.
  #withPixels(image, work) {
    const channels = channelsOf(image);
    if (channels === 3) return this.#withBytes(image.data, work);
    const size = 3 * image.width * image.height;
    return this.#withMemory(size, (at) => {
      compositeOnWhite(image.data, this.#bytes(at, size));
      return work(at);
    });
  }

  // Addresses above 2^31 come as negative numbers.
  #bytes(at, size) {
    return new Uint8Array(this.#exports.memory.buffer, at >>> 0, size);
  }

  #word(at) {
    return new DataView(this.#exports.memory.buffer).getUint32(at >>> 0, true);
  }

  #text(at) {
    const bytes = new Uint8Array(this.#exports.memory.buffer, at >>> 0);
    return DECODER.decode(bytes.subarray(0, bytes.indexOf(0)));
  }
}
