// Reads the files that an encoder is made of: with fetch, or in Node from the disk.
//
// Node's fetch does not read files, so its file system does where there is one.

import { EncoderError } from "./errors.js";

const IN_NODE = typeof process === "object" && Boolean(process.versions?.node);

// A module of Node. Bundlers for browsers must not look for it, and do not look into variables.
const ofNode = (name) => import(/* webpackIgnore: true */ /* @vite-ignore */ `node:${name}`);

/**
 * A file's bytes.
 *
 * @param {URL} url of the file
 * @returns {Promise<ArrayBuffer>}
 * @throws {EncoderError} bad_file
 */
export async function readFile(url) {
  if (IN_NODE && url.protocol === "file:") {
    const { readFile: read } = await ofNode("fs/promises");
    const bytes = await read(url).catch((error) => refuse(url, error.message));
    return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength);
  }
  const response = await fetch(url).catch((error) => refuse(url, error.message));
  if (!response.ok) refuse(url, `the answer is ${response.status}`);
  return response.arrayBuffer().catch((error) => refuse(url, error.message));
}

function refuse(url, why) {
  throw new EncoderError("bad_file", `cannot read ${url} (${why}): check the address`);
}

/**
 * The URL of a folder, ending in a slash. In Node a path is one too.
 *
 * @param {string | URL} folder
 * @returns {Promise<URL>}
 * @throws {EncoderError} bad_argument
 */
export async function folderUrl(folder) {
  let base = globalThis.document?.baseURI ?? globalThis.location?.href;
  if (IN_NODE && !base) {
    const { pathToFileURL } = await ofNode("url");
    base = pathToFileURL("./");
  }
  let url;
  try {
    url = new URL(folder, base);
  } catch {
    throw new EncoderError("bad_argument", `${folder} is no URL: give that of a bundle's folder`);
  }
  if (!url.pathname.endsWith("/")) url.pathname += "/";
  return url;
}
