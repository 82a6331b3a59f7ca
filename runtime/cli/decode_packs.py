"""cloud-decode on packs: one in this process, or many on a Ray cluster.

Always holds: a row that is refused, or a pack that cannot be read, stops no other.
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ..errors import FeatureFileError
from ..files import check_folder, refuse_same_files
from .command import EXIT_DONE, EXIT_FAILURE, EXIT_REFUSED, say
from .progress import Progress

if TYPE_CHECKING:
    from ..cloud import CloudDecoder


def classify_pack_file(
    decoder: "CloudDecoder", source: str, target: str, as_json: bool, report: IO[str] | None
) -> int:
    """Write the predictions of one pack; gives the exit status."""
    from ..bulk.parquet import classify_pack, count_rows

    start = time.perf_counter()
    try:
        with Progress(count_rows(source), "row") as progress:
            decoded, refused = classify_pack(source, target, decoder, progress.advance)
    except FeatureFileError as error:  # the whole pack is of another bundle
        say(f"cloud-decode: {error}", sys.stderr)
        return EXIT_REFUSED
    seconds = time.perf_counter() - start
    result = {
        "file": source,
        "output": target,
        "decoded": decoded,
        "refused": refused,
        "seconds": round(seconds, 3),
    }
    line = (
        f"{source} -> {target}: {decoded} decoded, {refused} refused; "
        f"{decoded / seconds:.1f} rows/s"
    )
    say(json.dumps(result, allow_nan=False) if as_json else line, report)
    return EXIT_REFUSED if refused else EXIT_DONE


def classify_on_ray(args: argparse.Namespace) -> int:
    """Classify many packs on a Ray cluster; gives the exit status."""
    from ..cluster.bulk import classify_packs, plan_packs, plan_targets
    from ..codec.bundle import Bundle, bundle_files, default_bundle

    targets = plan_targets(args.files, args.output)
    refuse_same_files([target for _, target in targets], bundle_files(args.bundle))
    check_folder(args.output)
    bundle = Bundle.load(args.bundle or default_bundle())
    Path(args.output).mkdir(parents=True, exist_ok=True)
    packs, results = plan_packs(targets, bundle)
    status = EXIT_DONE
    with Progress(sum(pack.rows for pack in packs), "row") as progress:
        classified = classify_packs(
            packs, bundle, args.threads, args.provider, args.precision, progress.advance
        )
        for result in itertools.chain(results, classified):
            if result.failure is not None:
                progress.say(f"cloud-decode: {result.failure}", sys.stderr)
                status = EXIT_FAILURE
            elif result.refused:
                status = status or EXIT_REFUSED
            if args.json:
                progress.say(json.dumps(result._asdict(), default=str, allow_nan=False), sys.stdout)
            elif result.failure is None:
                what = (
                    "skipped, it exists already"
                    if result.skipped
                    else f"{result.decoded} decoded, {result.refused} refused"
                )
                progress.say(f"{result.source} -> {result.target}: {what}", sys.stdout)
    return status
