"""cloud-decode: feature files in, classes out; single files, or one Parquet file to another.

Always holds: a file that is refused stops no other. No output replaces an input. If nobody reads
standard output any more, and nothing goes to a file, the rest is not decoded.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from functools import partial
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
from ..files import check_output, own_descriptor, refuse_same_files, write_atomically
from ..options import add_engine_options, number, thread_count
from .command import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_REFUSED,
    Parser,
    command,
    explain,
    lost,
    say,
    standard_input,
    standard_output,
)
from .decode_packs import classify_on_ray, classify_pack_file
from .workers import without_blas_threads

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..cloud import CloudDecoder
    from ..tasks.base import Task

_MOST_CLASSES = 1_000_000
_WITHOUT_PARQUET = "--info, --logits, --embeddings or --tune"


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="cloud-decode",
        description="Decode feature files and classify them.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong usage, "
        "4 a feature file was refused (the others are decoded).",
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
        help="write the predictions for the Parquet file here: for each row a class or an error",
    )
    parser.add_argument(
        "--ray",
        action="store_true",
        help="decode many Parquet files on a Ray cluster, into the folder -o; "
        "finished ones are skipped",
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
        help="threads of the cloud graph (default: one for each core)",
    )
    add_engine_options(parser, "the files are decoded afterwards")
    parser.add_argument(
        "--json",
        action="store_true",
        help="print a JSON object for each file: classes, bytes, bpp, milliseconds by stage",
    )
    for name, what in (("logits", "logits"), ("embeddings", "pooled features")):
        shape = f"[files, {'classes' if name == 'logits' else 'features'}]"
        text = f"write the {what} too, float32 {shape}; - for standard output"
        parser.add_argument(f"--{name}", metavar="FILE.npy", help=text)
    parser.add_argument(
        "--info",
        action="store_true",
        help="print the headers, and decode nothing; needs no bundle",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _read(name: str) -> bytes:
    """A feature file, which may be a pipe.

    Raises FeatureFileNotFoundError, FeatureFileTooLargeError, ClosedStreamError, OSError.
    """
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
            f"more than {MAX_FEATURE_FILE_BYTES} bytes, no feature file is so large: "
            "name a feature file"
        )
    return data


@command("cloud-decode")
def main(argv: list[str] | None = None) -> int:
    """The command; gives its exit status."""
    parser = _parser()
    args = parser.parse_args(argv)
    _check_usage(parser, args)
    if args.ray:
        return classify_on_ray(args)
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
    # With predictions or an array on standard output, the report goes to standard error.
    report = sys.stderr if to_stdout else sys.stdout
    # Imported after the usage is checked, because numpy and onnxruntime take a while to load.
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
        return classify_pack_file(decoder, args.files[0], args.output, args.json, report)
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
            parser.error(f"--ray cannot be combined with {_WITHOUT_PARQUET}")
        return
    if (args.output is not None) != any(name.endswith(".parquet") for name in args.files):
        parser.error("a Parquet file needs -o FILE.parquet, and -o needs a Parquet file")
    if args.output is not None and (len(args.files) > 1 or without_parquet):
        parser.error(f"-o FILE.parquet takes one Parquet file, and no {_WITHOUT_PARQUET}")


def _need_standard_output(remedy: str) -> None:
    """Refuse a closed standard output if it is the only output. Raises ClosedStreamError."""
    if sys.stdout is None:
        raise ClosedStreamError(
            f"standard output is closed, and there is no other output: {remedy}"
        )


def _classify(decoder: "CloudDecoder", args: argparse.Namespace) -> int:
    if args.embeddings:
        decoder.require_embedding()
    targets = {what: vars(args)[what] for what in ("logits", "embeddings") if vars(args)[what]}
    rows: dict[str, list[NDArray[np.float32]]] = {what: [] for what in targets}

    def decode(name: str, data: bytes) -> None:
        result, outputs = _decode(decoder, name, data, args.top_k)
        for what, found in rows.items():
            embeds = what == "embeddings"
            values = decoder.embedding_of(outputs) if embeds else outputs[decoder.task.OUTPUT]
            found.append(values[0])
        if "-" not in targets.values():
            text = _lines(result, decoder.task)
            say(json.dumps(result, allow_nan=False) if args.json else text, sys.stdout)

    status = _each(args.files, decode, for_stdout=not targets)
    for what, target in targets.items():
        if status != EXIT_DONE:
            say(
                f"cloud-decode: {target} is not written, because rows would be missing",
                sys.stderr,
            )
            continue
        try:
            _write_array(target, rows[what])
        except OSError as error:
            say(f"cloud-decode: cannot write the {what}: {explain(error)}", sys.stderr)
            return EXIT_FAILURE
    return status


def _tune(args: argparse.Namespace, report: IO[str] | None) -> None:
    from ..codec import feature_file
    from ..codec.bundle import Bundle, default_bundle
    from ..engine.tune import readable_inputs, table, tune
    from ..tasks.registry import deviation, task_named

    bundle = Bundle.load(args.bundle or default_bundle())
    task = task_named(bundle.manifest.task)
    inputs = readable_inputs(
        args.files, lambda name: bundle.graph_input(feature_file.parse(_read(name)))[None]
    )
    result = tune(bundle, "cloud", inputs, partial(deviation, task), args.threads)
    say(json.dumps(result, allow_nan=False) if args.json else table(result), report)


def _each(names: list[str], work: Callable[[str, bytes], None], for_stdout: bool = True) -> int:
    """Do `work` with each file's name and content; report what is refused and go on.

    Args:
        for_stdout: there is no other output than standard output.
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
    symbols = decoder.graph_input(data)
    decoded = time.perf_counter()
    outputs = decoder.outputs_of_symbols(symbols[None])
    done = time.perf_counter()
    header = feature_file.parse(data)
    predictions = decoder.predictions(outputs[decoder.task.OUTPUT][0], top_k)
    result: dict[str, Any] = {
        "file": name,
        "bytes": len(data),
        "bpp": 8 * len(data) / header.pixels,
        **header.describe_level(),
        decoder.task.ANSWERS: [prediction._asdict() for prediction in predictions],
        "milliseconds": {
            "coder": round(1e3 * (decoded - start), 3),
            "graph": round(1e3 * (done - decoded), 3),
            "total": round(1e3 * (done - start), 3),
        },
    }
    return result, outputs


def _lines(result: dict[str, Any], task: "Task") -> str:
    lines = [
        f"{result['file']}: {result['bytes']} bytes, {result['bpp']:.3f} bpp, "
        f"{result['milliseconds']['total']:.1f} ms"
    ]
    lines += [f"  {task.line(entry)}" for entry in result[task.ANSWERS]]
    return "\n".join(lines)


def _print_info(name: str, data: bytes, as_json: bool) -> None:
    from ..codec import feature_file

    file = feature_file.parse(data)
    info: dict[str, Any] = {
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
    info |= file.describe_level()
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
