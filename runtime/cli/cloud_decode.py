"""cloud-decode: feature files in, classes out; from single files, or from one Parquet file to another.

Always holds: a file that is refused stops no other; no output takes the place of an input; what standard output has no taker
for is not computed, unless it goes to a file as well.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .. import __version__
from ..codec.feature_file import MAX_FEATURE_FILE_BYTES
from ..errors import (
    ClosedStreamError,
    EdgeCloudError,
    FeatureFileError,
    FeatureFileNotFoundError,
    FeatureFileTooLargeError,
)
from ..files import check_folder, check_output, own_descriptor, refuse_same_files, write_atomically
from ..options import add_engine_options, number, thread_count
from .command import (
    EXIT_DONE,
    EXIT_FAILURE,
    command,
    explain,
    lost,
    say,
    standard_input,
    standard_output,
)
from .workers import without_blas_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..cloud import CloudDecoder

EXIT_REFUSED = 4
_MOST_CLASSES = 1_000_000
_WITHOUT_PARQUET = "--info, --logits, --embeddings or --tune"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-decode",
        description="Decode feature files and classify them.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong usage, 4 a feature file was refused (the others are decoded).",
    )
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="feature file, or - for standard input; or one Parquet file, with -o",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE.parquet",
        help="write the Parquet file's predictions here: an error, or a class",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="decode many Parquet files on a Ray cluster, into the folder -o; what is there already is skipped",
    )
    parser.add_argument(
        "--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4"
    )
    parser.add_argument(
        "--top-k",
        type=number(int, 1, _MOST_CLASSES),
        default=5,
        metavar="N",
        help="classes to print (default: 5)",
    )
    parser.add_argument(
        "--threads",
        type=thread_count,
        metavar="N",
        help="threads of the cloud graph (default: one a core)",
    )
    add_engine_options(parser, "then decode")
    parser.add_argument(
        "--json",
        action="store_true",
        help="one JSON object a line: classes, bytes, bpp, milliseconds by stage",
    )
    for name, what in (("logits", "logits"), ("embeddings", "pooled features")):
        shape = f"[files, {'classes' if name == 'logits' else 'features'}]"
        parser.add_argument(
            f"--{name}",
            metavar="FILE.npy",
            help=f"write the {what} too, float32 {shape}; - for standard output",
        )
    parser.add_argument(
        "--info",
        action="store_true",
        help="print what the headers say, and decode nothing; needs no bundle",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _read(name: str) -> bytes:
    """A feature file, from a pipe as well. Raises FeatureFileNotFoundError, FeatureFileTooLargeError, OSError."""
    try:
        if name == "-":
            data = standard_input().read(MAX_FEATURE_FILE_BYTES + 1)
        else:
            with open(name, "rb") as file:
                data = file.read(MAX_FEATURE_FILE_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise FeatureFileNotFoundError(f"no such file: {name}") from None
    except IsADirectoryError:
        raise FeatureFileNotFoundError(
            f"{name} is a folder: name the feature files in it"
        ) from None
    if len(data) > MAX_FEATURE_FILE_BYTES:
        raise FeatureFileTooLargeError(
            f"more than {MAX_FEATURE_FILE_BYTES} bytes, no feature file is so large: name a feature file"
        )
    return data


@command("cloud-decode")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    if args.ray:
        return _on_ray(args)
    if args.info:
        _need_standard_output("open it")
        return _each(args.files, lambda name, data: _print_info(name, data, args.json))
    args.output = "/dev/stdout" if args.output == "-" else args.output
    args.logits = "-" if args.logits and own_descriptor(args.logits) == 1 else args.logits
    if args.embeddings and own_descriptor(args.embeddings) == 1:
        args.embeddings = "-"
    if args.logits is not None and args.logits == args.embeddings:
        parser.error(f"--logits and --embeddings are both {args.logits}: name two files")
    arrays = [name for name in (args.logits, args.embeddings) if name is not None]
    to_stdout = "-" in arrays or (args.output is not None and own_descriptor(args.output) == 1)
    if to_stdout:
        standard_output()
    elif not arrays and args.output is None:
        _need_standard_output("open it, or name a file with --logits")
    # With predictions or an array on standard output, what is said goes to standard error.
    report = sys.stderr if to_stdout else sys.stdout
    # After the usage is checked: numpy and onnxruntime take a while.
    without_blas_threads()
    from ..cloud import CloudDecoder
    from ..codec.bundle import bundle_files

    outputs = [*arrays, *([args.output] if args.output is not None else [])]
    refuse_same_files(outputs, [*args.files, *bundle_files(args.bundle)])
    for output in outputs:
        if output != "-":
            check_output(output)
    if args.tune:
        _tune(args, report)
    decoder = CloudDecoder(args.bundle, args.threads, args.provider, args.precision)
    if args.output is not None:
        return _classify_pack(decoder, args.files[0], args.output, args.json, report)
    return _classify(decoder, args)


def _check_usage(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    without_parquet = args.info or args.logits or args.embeddings or args.tune
    if args.files.count("-") > 1:
        parser.error("standard input is named twice")
    if "" in (args.output, args.logits, args.embeddings):
        parser.error("the name of the output is empty: name a file")
    if args.ray:
        if args.output is None or not all(name.endswith(".parquet") for name in args.files):
            parser.error("--ray takes Parquet files, and a folder for their predictions with -o")
        if without_parquet:
            parser.error(f"--ray goes with no {_WITHOUT_PARQUET}")
        return
    if (args.output is not None) != any(name.endswith(".parquet") for name in args.files):
        parser.error("a Parquet file goes with -o FILE.parquet, and -o with a Parquet file")
    if args.output is not None and (len(args.files) > 1 or without_parquet):
        parser.error(f"-o FILE.parquet takes one Parquet file, and no {_WITHOUT_PARQUET}")


def _need_standard_output(remedy: str) -> None:
    """Where all that comes out goes there. Raises ClosedStreamError."""
    if sys.stdout is None:
        raise ClosedStreamError(
            f"standard output is closed, and nothing else is to be written: {remedy}"
        )


def _classify(decoder: "CloudDecoder", args: argparse.Namespace) -> int:
    if args.embeddings:
        decoder.require_embedding()
    targets = {what: vars(args)[what] for what in ("logits", "embeddings") if vars(args)[what]}
    rows: dict[str, list[NDArray[np.float32]]] = {what: [] for what in targets}

    def decode(name: str, data: bytes) -> None:
        result, outputs = _decode(decoder, name, data, args.top_k)
        for what, found in rows.items():
            values = decoder.embedding_of(outputs) if what == "embeddings" else outputs[what]
            found.append(values[0])
        if "-" not in targets.values():
            say(json.dumps(result, allow_nan=False) if args.json else _lines(result), sys.stdout)

    status = _each(args.files, decode, for_stdout=not targets)
    for what, target in targets.items():
        if status != EXIT_DONE:
            say(f"cloud-decode: {target} is not written, it would lack rows", sys.stderr)
            continue
        try:
            _write_array(target, rows[what])
        except OSError as error:
            say(f"cloud-decode: cannot write the {what}: {explain(error)}", sys.stderr)
            return EXIT_FAILURE
    return status


def _classify_pack(
    decoder: "CloudDecoder", source: str, target: str, as_json: bool, report: IO[str] | None
) -> int:
    from ..bulk.parquet import classify_pack, count_rows
    from .progress import Progress

    start = time.perf_counter()
    try:
        with Progress(count_rows(source), "row") as progress:
            decoded, refused = classify_pack(source, target, decoder, progress.advance)
    except FeatureFileError as error:  # all of it is of another bundle
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
    line = f"{source} -> {target}: {decoded} decoded, {refused} refused; {decoded / seconds:.1f} rows/s"
    say(json.dumps(result, allow_nan=False) if as_json else line, report)
    return EXIT_REFUSED if refused else EXIT_DONE


def _on_ray(args: argparse.Namespace) -> int:
    from ..cluster.bulk import classify_packs, plan_packs, plan_targets
    from ..codec.bundle import Bundle, bundle_files, default_bundle
    from .progress import Progress

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
                    "there already"
                    if result.skipped
                    else f"{result.decoded} decoded, {result.refused} refused"
                )
                progress.say(f"{result.source} -> {result.target}: {what}", sys.stdout)
    return status


def _tune(args: argparse.Namespace, report: IO[str] | None) -> None:
    from ..codec.bundle import Bundle, default_bundle
    from ..engine.tune import readable_inputs, table, tune
    from ..tasks.classification import Classification

    bundle = Bundle.load(args.bundle or default_bundle())
    inputs = readable_inputs(args.files, lambda name: bundle.decode(_read(name))[None])
    result = tune(
        bundle, "cloud", inputs, Classification.OUTPUT, Classification.deviation, args.threads
    )
    say(json.dumps(result, allow_nan=False) if args.json else table(result), report)


def _each(names: list[str], work: Callable[[str, bytes], None], for_stdout: bool = True) -> int:
    """Do `work` for each file; report what is refused and go on.

    Args:
        for_stdout: standard output is all that it is done for.
    """
    status = EXIT_DONE
    for index, name in enumerate(names):
        try:
            work(name, _read(name))
        except FeatureFileNotFoundError as error:
            say(f"cloud-decode: {error}", sys.stderr)
            status = status or EXIT_FAILURE
        except FeatureFileError as error:
            say(f"cloud-decode: {name}: {error}", sys.stderr)
            status = EXIT_REFUSED
        except (EdgeCloudError, OSError, MemoryError) as error:
            reason = explain(error)
            say(f"cloud-decode: {reason if name in reason else f'{name}: {reason}'}", sys.stderr)
            status = status or EXIT_FAILURE
        if for_stdout and lost(sys.stdout) and index + 1 < len(names):
            left = f"the last {len(names) - index - 1} of {len(names)} files were not decoded"
            say(f"cloud-decode: nobody reads standard output any more: {left}", sys.stderr)
            return status or EXIT_FAILURE
    return status


def _decode(
    decoder: "CloudDecoder", name: str, data: bytes, top_k: int
) -> tuple[dict[str, Any], "dict[str, NDArray[np.float32]]"]:
    """What is printed of a feature file, and the graph's outputs [1, ...] by name."""
    from ..codec import feature_file

    start = time.perf_counter()
    symbols = decoder.symbols(data)
    decoded = time.perf_counter()
    outputs = decoder.outputs_of_symbols(symbols[None])
    done = time.perf_counter()
    header = feature_file.parse(data)
    predictions = decoder.predictions(outputs["logits"][0], top_k)
    result: dict[str, Any] = {
        "file": name,
        "bytes": len(data),
        "bpp": 8 * len(data) / header.pixels,
        "classes": [prediction._asdict() for prediction in predictions],
        "milliseconds": {
            "coder": round(1e3 * (decoded - start), 3),
            "graph": round(1e3 * (done - decoded), 3),
            "total": round(1e3 * (done - start), 3),
        },
    }
    return result, outputs


def _lines(result: dict[str, Any]) -> str:
    lines = [
        f"{result['file']}: {result['bytes']} bytes, {result['bpp']:.3f} bpp, {result['milliseconds']['total']:.1f} ms"
    ]
    lines += [
        f"  {100 * entry['probability']:5.1f} %  {entry['label']}" for entry in result["classes"]
    ]
    return "\n".join(lines)


def _print_info(name: str, data: bytes, as_json: bool) -> None:
    from ..codec import feature_file

    file = feature_file.parse(data)
    info = {
        "file": name,
        "bytes": len(data),
        "version": file.version,
        "profile": file.profile.title,
        "bundle": file.fingerprint.hex(),
        "width": file.width,
        "height": file.height,
        "payload_bytes": len(file.payload),
        "bpp": round(8 * len(data) / file.pixels, 6) if file.pixels else None,
        "checksum": "right",
    }
    text = "\n".join(f"{key.replace('_', ' '):>13}  {value}" for key, value in info.items())
    say(json.dumps(info, allow_nan=False) if as_json else text, sys.stdout)


def _write_array(target: str, rows: "list[NDArray[np.float32]]") -> None:
    import io

    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, np.stack(rows), allow_pickle=False)
    if target == "-":
        stream = standard_output()
        stream.write(buffer.getvalue())
        stream.flush()
    else:
        write_atomically(Path(target), buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
