"""Encodes one image to bytes, as the edge does, and decodes them to classes, as the cloud does.

python examples/encode_and_decode.py [IMAGE] [BUNDLE]
"""

import sys

from runtime import CloudDecoder, EdgeEncoder
from runtime.errors import EdgeCloudError

IMAGE = sys.argv[1] if len(sys.argv) > 1 else "docs/demo/golf_ball.jpg"
BUNDLE = sys.argv[2] if len(sys.argv) > 2 else "bundles/ours_n4"


def main() -> int:
    # Each loads its graph once and may be shared between threads.
    encoder, decoder = EdgeEncoder(BUNDLE), CloudDecoder(BUNDLE)
    try:
        data = encoder.encode(IMAGE)  # a path, an open file, a PIL image or a uint8 array [H, W, 3]
    except EdgeCloudError as error:  # its message says what is wrong and what to do
        print(error, file=sys.stderr)
        return 1
    print(f"{IMAGE}: {len(data)} bytes")
    for label, probability, _ in decoder.classify(data, top_k=3):
        print(f"  {probability:6.1%}  {label}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
