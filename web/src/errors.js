// What the package throws: one class, with a code for programs and a text for people.
//
// Always holds: a text is one line that names the value and says what to do.

export class EncoderError extends Error {
  constructor(code, message) {
    super(message);
    this.name = "EncoderError";
    this.code = code;
  }
}

// An error as a message between threads can carry it, and back.
export const toMessage = (error) =>
  error instanceof EncoderError
    ? { code: error.code, message: error.message }
    : { code: "internal", message: `the encoder failed (${error}): load it again` };

export const fromMessage = ({ code, message }) => new EncoderError(code, message);
