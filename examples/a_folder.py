"""Encodes a folder of images into one Parquet file and writes predictions into another.

    python examples/a_folder.py [FOLDER] [BUNDLE]

These commands do the same, with several workers: `edge-encode FOLDER --pack features.parquet`,
then `cloud-decode features.parquet -o predictions.parquet`.
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

import pyarrow.parquet

from runtime import CloudDecoder, EdgeEncoder
from runtime.bulk.parquet import classify_pack, pack_writer
from runtime.codec.feature_file import parse
from runtime.errors import ImageError
from runtime.images.find import find

FOLDER = sys.argv[1] if len(sys.argv) > 1 else "docs/demo"
BUNDLE = sys.argv[2] if len(sys.argv) > 2 else "bundles/ours_n4"


def main() -> int:
    encoder, decoder = EdgeEncoder(BUNDLE), CloudDecoder(BUNDLE)
    skipped: Counter[str] = Counter()  # other files in the folder, by suffix
    with tempfile.TemporaryDirectory() as place:
        features, predictions = Path(place, "features.parquet"), Path(place, "predictions.parquet")
        with pack_writer(features, encoder.bundle) as write:
            for image, key in find([FOLDER], skipped):
                try:
                    data = encoder.encode(image)
                except ImageError as error:  # go on with the other images
                    print(error, file=sys.stderr)
                    continue
                file = parse(data)
                write(key, data, file.width, file.height)
        decoded, refused = classify_pack(features, predictions, decoder)
        for row in pyarrow.parquet.read_table(predictions).to_pylist():
            print(f"{row['key']}: {row['error'] or row['label']}")
    print(f"{decoded} decoded, {refused} refused; skipped: {dict(skipped)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
