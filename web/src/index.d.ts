// Types of index.js.

/** Levels of a picture, top row first. An ImageData of a canvas is one. */
export interface Image {
  /** RGBA, or RGB: four or three bytes a pixel. Transparency is composited on white. */
  readonly data: Uint8Array | Uint8ClampedArray;
  /** In pixels. */
  readonly width: number;
  readonly height: number;
}

/** RGB levels, three bytes a pixel. */
export interface Pixels extends Image {
  readonly data: Uint8Array;
}

/**
 * - `bad_argument`: no image, no bundle, or data that does not fit the sides
 * - `bad_image`: an image of a size that cannot be encoded
 * - `bad_file`: a file of the bundle, or of this package, cannot be read
 * - `bad_bundle`: the bundle is damaged, or of another release
 * - `small_budget`: fewer bytes are allowed than the smallest feature file has
 * - `no_memory`: there is not enough memory
 * - `unsupported`: no WebAssembly with SIMD here, or the page's policy forbids it
 * - `worker_failed`: the worker cannot run
 * - `closed`: the encoder has been closed
 * - `internal`: a fault of this package
 */
export type EncoderErrorCode =
  | "bad_argument"
  | "bad_image"
  | "bad_file"
  | "bad_bundle"
  | "small_budget"
  | "no_memory"
  | "unsupported"
  | "worker_failed"
  | "closed"
  | "internal";

/** All that this package rejects with. `message` is for people: it says what to do. */
export class EncoderError extends Error {
  readonly code: EncoderErrorCode;
}

/** What is asked of the files of a variable-rate bundle; `rate` and `targetBytes` exclude each other. */
export interface Budget {
  /** The rate level, 0 (fewest bytes) to 15. By default as the bundle says. */
  readonly rate?: number;
  /** The most bytes of each file. The highest level that fits is taken, but none above `rate`. */
  readonly maxBytes?: number;
  /** The mean of all files from now on, which the level follows. */
  readonly targetBytes?: number;
}

/** A bundle's encoder. Its promises are rejected with an EncoderError. */
export interface Encoder {
  /** Side of the square that `prepare` makes, in pixels. */
  readonly crop: number;
  /** Name of the instruction set: `wasm`. */
  readonly kernel: string;

  /** Whether the bundle is a variable-rate one; with another, asking for anything is refused. */
  readonly hasRates: boolean;

  /** Says what the next files shall be; without an argument, what the bundle says. */
  ask(budget?: Budget): Promise<void>;

  /** Prepares an image of any size, and encodes it. Gives the feature file. */
  encode(image: Image): Promise<Uint8Array>;

  /** Resizes and crops an image as the bundle says, with the pixels of the Python package. */
  prepare(image: Image): Promise<Pixels>;

  /** Encodes an image as it is. Both sides must be multiples of 8. Gives the feature file. */
  encodePixels(image: Image): Promise<Uint8Array>;

  /** Frees memory and worker. Calls that are not done are rejected with `closed`. */
  close(): void;
}

/** Bytes of the two files of a bundle's edge half. */
export interface BundleFiles {
  readonly tables: ArrayBuffer;
  readonly weights: ArrayBuffer;
}

export interface Options {
  /** Whether to encode in a worker. By default so where there is `Worker`; not in Node. */
  readonly worker?: boolean;
}

/**
 * Loads the edge half of a bundle.
 *
 * @param source URL of a folder with edge.tables and edge.weights (in Node also a path), or the
 *   bytes of these two files
 * @throws EncoderError bad_argument, bad_file, bad_bundle, no_memory, unsupported, worker_failed
 */
export function loadEncoder(
  source: string | URL | BundleFiles,
  options?: Options,
): Promise<Encoder>;
