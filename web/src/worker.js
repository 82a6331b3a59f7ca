// The thread that encodes: each message names a method of Library, and is answered once.
//
//   {id, method, given}  ->  {id, result} or {id, error: {code, message}}
//
// The method `open` comes first, with what the constructor takes.

import { toMessage } from "./errors.js";
import { Library } from "./library.js";

let library;

function run(method, given) {
  if (method !== "open") return library[method](...given);
  library = new Library(...given);
  return library.about;
}

self.addEventListener("message", ({ data: { id, method, given } }) => {
  try {
    const result = run(method, given);
    const bytes = result?.data ?? result;
    self.postMessage({ id, result }, bytes instanceof Uint8Array ? [bytes.buffer] : []);
  } catch (error) {
    self.postMessage({ id, error: toMessage(error) });
  }
});
