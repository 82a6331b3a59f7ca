"""cloud-decode: feature files in, classes out; from single files, or from one Parquet file to another."""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import __version__
from .command import command
from .edge_cli import add_engine_options, without_blas_threads
from .errors import EdgeCloudError, FeatureFileError, FeatureFileNotFoundError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .cloud import CloudDecoder

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE, EXIT_REFUSED = 0, 1, 2, 4
_MAX_BYTES = 64 << 20  # no feature file is larger; more is not read


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cloud-decode",
        description="Decode feature files and classify them.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong usage, 4 a feature file was refused (the others are decoded).",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="feature file, or - for standard input; or one Parquet file, with -o")
    parser.add_argument("-o", "--output", metavar="FILE.parquet", help="write the Parquet file's predictions here: an error, or a class")
    parser.add_argument(
        "--ray",
        action="store_true",
        help="decode many Parquet files on a Ray cluster, into the folder -o; what is there already is skipped",
    )
    parser.add_argument("--bundle", metavar="DIR", help="default: $EDGECLOUD_BUNDLE, else bundles/ours_n4")
    parser.add_argument("--top-k", type=int, default=5, metavar="N", help="classes to print (default: 5)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of the cloud graph (default: one a core)")
    add_engine_options(parser, "then decode")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: classes, bytes, bpp, milliseconds by stage")
    parser.add_argument("--logits", metavar="FILE.npy", help="write the logits too, float32 [files, classes]; - for standard output")
    parser.add_argument("--info", action="store_true", help="print what the headers say, and decode nothing; needs no bundle")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _read(name: str) -> bytes:
    try:
        if name == "-":
            return sys.stdin.buffer.read(_MAX_BYTES)
        with open(name, "rb") as file:
            return file.read(_MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise FeatureFileNotFoundError(f"no such file: {name}") from None
    except IsADirectoryError:
        raise FeatureFileNotFoundError(f"{name} is a folder: name the feature files in it") from None


@command("cloud-decode")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    for option, value in (("--threads", args.threads), ("--top-k", args.top_k)):
        if value is not None and value < 1:
            parser.error(f"{option} {value} is not a number from 1 up")
    if args.files.count("-") > 1:
        parser.error("standard input is named twice")
    if args.ray:
        if args.output is None or not all(name.endswith(".parquet") for name in args.files):
            parser.error("--ray takes Parquet files, and a folder for their predictions with -o")
        if args.info or args.logits or args.tune:
            parser.error("--ray goes with no --info, --logits or --tune")
        return _on_ray(args)
    if (args.output is not None) != any(name.endswith(".parquet") for name in args.files):
        parser.error("a Parquet file goes with -o FILE.parquet, and -o with a Parquet file")
    if args.output is not None and (len(args.files) > 1 or args.info or args.logits or args.tune):
        parser.error("-o FILE.parquet takes one Parquet file, and no --info, --logits or --tune")
    if args.info:
        return _each(args.files, lambda name, data: _print_info(name, data, args.json))
    # After the usage is checked: numpy and onnxruntime take a while.
    without_blas_threads()
    from .cloud import CloudDecoder

    try:
        if args.tune:
            _tune(args)
        decoder = CloudDecoder(args.bundle, args.threads, args.provider, args.precision)
        if args.output is not None:
            return _classify_pack(decoder, args.files[0], args.output, args.json)
    except (EdgeCloudError, OSError) as error:
        print(f"cloud-decode: {error}", file=sys.stderr)
        return EXIT_REFUSED if isinstance(error, FeatureFileError) else EXIT_FAILURE
    rows: list[NDArray[np.float32]] = []

    def decode(name: str, data: bytes) -> None:
        result, logits = _decode(decoder, name, data, args.top_k)
        rows.append(logits)
        if args.logits != "-":
            print(json.dumps(result) if args.json else _lines(result))

    status = _each(args.files, decode)
    if args.logits:
        if status != EXIT_DONE:
            print(f"cloud-decode: {args.logits} is not written, it would lack rows", file=sys.stderr)
        else:
            try:
                _write_logits(args.logits, rows)
            except OSError as error:
                print(f"cloud-decode: cannot write the logits: {error}", file=sys.stderr)
                return EXIT_FAILURE
    return status


def _classify_pack(decoder: "CloudDecoder", source: str, target: str, as_json: bool) -> int:
    from .parquet import classify_pack, count_rows
    from .progress import Progress

    start = time.perf_counter()
    with Progress(count_rows(source), "row") as progress:
        decoded, refused = classify_pack(source, target, decoder, progress.advance)
    seconds = time.perf_counter() - start
    result = {"file": source, "output": target, "decoded": decoded, "refused": refused, "seconds": round(seconds, 3)}
    print(json.dumps(result) if as_json else f"{source} -> {target}: {decoded} decoded, {refused} refused; {decoded / seconds:.1f} rows/s")
    return EXIT_REFUSED if refused else EXIT_DONE


def _on_ray(args: argparse.Namespace) -> int:
    from .bundle import Bundle, default_bundle
    from .progress import Progress

    status = EXIT_DONE
    try:
        from .ray_bulk import classify_packs, plan_packs, plan_targets

        targets = plan_targets(args.files, args.output)
        bundle = Bundle.load(args.bundle or default_bundle())
        Path(args.output).mkdir(parents=True, exist_ok=True)
        packs, results = plan_packs(targets, bundle)
        with Progress(sum(pack.rows for pack in packs), "row") as progress:
            classified = classify_packs(packs, bundle, args.threads, args.provider, args.precision, progress.advance)
            for result in itertools.chain(results, classified):
                if result.failure is not None:
                    progress.say(f"cloud-decode: {result.failure}", sys.stderr)
                    status = EXIT_FAILURE
                elif result.refused:
                    status = status or EXIT_REFUSED
                if args.json:
                    progress.say(json.dumps(result._asdict(), default=str), sys.stdout)
                elif result.failure is None:
                    what = "there already" if result.skipped else f"{result.decoded} decoded, {result.refused} refused"
                    progress.say(f"{result.source} -> {result.target}: {what}", sys.stdout)
    except (EdgeCloudError, OSError) as error:
        print(f"cloud-decode: {error}", file=sys.stderr)
        return EXIT_FAILURE
    return status


def _tune(args: argparse.Namespace) -> None:
    from .bundle import Bundle, default_bundle
    from .tune import table, tune

    bundle = Bundle.load(args.bundle or default_bundle())
    result = tune(bundle, "cloud", [bundle.decode(_read(name))[None] for name in args.files[:8] if name != "-"], args.threads)
    print(json.dumps(result) if args.json else table(result), file=sys.stderr if args.logits == "-" else sys.stdout)


def _each(names: list[str], work: Callable[[str, bytes], None]) -> int:
    """Do `work` for each file; report what is refused and go on."""
    status = EXIT_DONE
    for name in names:
        try:
            work(name, _read(name))
        except FeatureFileNotFoundError as error:
            print(f"cloud-decode: {error}", file=sys.stderr)
            status = status or EXIT_FAILURE
        except FeatureFileError as error:
            print(f"cloud-decode: {name}: {error}", file=sys.stderr)
            status = EXIT_REFUSED
        except OSError as error:
            print(f"cloud-decode: {error}", file=sys.stderr)
            status = status or EXIT_FAILURE
    return status


def _decode(decoder: "CloudDecoder", name: str, data: bytes, top_k: int) -> tuple[dict[str, Any], "NDArray[np.float32]"]:
    from . import feature_file

    start = time.perf_counter()
    symbols = decoder.symbols(data)
    decoded = time.perf_counter()
    logits = decoder.logits_of_symbols(symbols[None])[0]
    done = time.perf_counter()
    header = feature_file.parse(data)
    result: dict[str, Any] = {
        "file": name,
        "bytes": len(data),
        "bpp": 8 * len(data) / header.pixels,
        "classes": [prediction._asdict() for prediction in decoder.predictions(logits, top_k)],
        "milliseconds": {
            "coder": round(1e3 * (decoded - start), 3),
            "graph": round(1e3 * (done - decoded), 3),
            "total": round(1e3 * (done - start), 3),
        },
    }
    return result, logits


def _lines(result: dict[str, Any]) -> str:
    lines = [f"{result['file']}: {result['bytes']} bytes, {result['bpp']:.3f} bpp, {result['milliseconds']['total']:.1f} ms"]
    lines += [f"  {100 * entry['probability']:5.1f} %  {entry['label']}" for entry in result["classes"]]
    return "\n".join(lines)


def _print_info(name: str, data: bytes, as_json: bool) -> None:
    from . import feature_file

    file = feature_file.parse(data)
    info = {
        "file": name,
        "bytes": len(data),
        "version": file.version,
        "profile": "small" if file.small else "plain",
        "bundle": file.fingerprint.hex(),
        "width": file.width,
        "height": file.height,
        "payload_bytes": len(file.payload),
        "bpp": round(8 * len(data) / file.pixels, 6) if file.pixels else None,
        "checksum": "right",
    }
    print(json.dumps(info) if as_json else "\n".join(f"{key.replace('_', ' '):>13}  {value}" for key, value in info.items()))


def _write_logits(target: str, rows: "list[NDArray[np.float32]]") -> None:
    import io

    import numpy as np

    from .files import write_atomically

    buffer = io.BytesIO()
    np.save(buffer, np.stack(rows), allow_pickle=False)
    if target == "-":
        sys.stdout.buffer.write(buffer.getvalue())
    else:
        write_atomically(Path(target), buffer.getvalue())


if __name__ == "__main__":
    sys.exit(main())
