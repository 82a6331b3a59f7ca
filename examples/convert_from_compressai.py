"""Converts a CompressAI string to a feature file and back, without torch and without loss.

    python examples/convert_from_compressai.py [IMAGE] [BUNDLE]

Programs that use CompressAI directly (`EntropyBottleneck.compress`) exchange bare strings, without
header, checksum or size.
"""

import sys

from runtime import CloudDecoder, EdgeEncoder
from runtime.codec.compressai_stream import from_feature_file, to_feature_file

IMAGE = sys.argv[1] if len(sys.argv) > 1 else "docs/demo/golf_ball.jpg"
BUNDLE = sys.argv[2] if len(sys.argv) > 2 else "bundles/ours_n4"


def main() -> int:
    # With CompressAI, the string would come from entropy_bottleneck.compress(latent)[0].
    string, shape = from_feature_file(EdgeEncoder(BUNDLE).encode(IMAGE), BUNDLE)
    print(f"a string of {len(string)} bytes, symbols of {shape[0]}x{shape[1]}")
    # The string does not contain the image's height and width.
    data = to_feature_file(string, 224, 224, BUNDLE)
    again, _ = from_feature_file(data, BUNDLE)
    label, probability, _ = CloudDecoder(BUNDLE).classify(data)[0]
    print(f"a feature file of {len(data)} bytes: {label} {probability:.1%}")
    print(f"the same string again: {again == string}")
    return 0 if again == string else 1


if __name__ == "__main__":
    sys.exit(main())
