"""python -m export MODEL: a checkpoint in, a verified bundle out."""

import argparse
import errno
import hashlib
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime import __version__
from runtime.cli.command import command, say
from runtime.codec.feature_file import BLOCK
from runtime.codec.manifest import MAX_SIDE, STANDARD, Preprocessing
from runtime.options import number

from .stated import DEFAULT_LMB, MODEL_NAMES, agreed_lmb, own_labels

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from runtime.codec.coder import Tables
    from training.folders import Damage
    from training.models import FeatureCompressionModel

    from .counts import Counts
    from .gate import Encode

EXIT_DONE, EXIT_FAILURE, EXIT_USAGE, EXIT_PARITY = 0, 1, 2, 3
_PROJECT = Path(__file__).resolve().parent.parent


class NoCheckpointError(FileNotFoundError):
    """There is no checkpoint where one is looked for."""


_LMB = number(float, 0, 1_000_000)


def _lmb(text: str) -> str:
    """The text itself, by which a checkpoint's file is named."""
    _LMB(text)
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a checkpoint to a bundle: two ONNX graphs, entropy tables, labels, manifest.",
        epilog="Exit status: 0 done, 1 failure, 2 wrong usage, 3 the graphs do not give what torch gives, or int8 loses too much.",
    )
    parser.add_argument("model", choices=MODEL_NAMES, metavar="MODEL", help=", ".join(MODEL_NAMES))
    parser.add_argument(
        "--checkpoint",
        type=Path,
        metavar="FILE",
        help="default: checkpoints/MODEL/lmbL.safetensors or .pt",
    )
    parser.add_argument(
        "--backbone",
        type=Path,
        metavar="FILE",
        help="the ResNet-50 of a checkpoint that holds the bottleneck alone",
    )
    parser.add_argument(
        "--lmb",
        type=_lmb,
        metavar="L",
        help="rate weight the checkpoint was trained with (default: what the file of --checkpoint says, or its name; else 1.28)",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: bundles/MODEL")
    parser.add_argument(
        "--labels",
        type=Path,
        metavar="FILE",
        help="one label a line (default: the checkpoint's, or ImageNet's)",
    )
    parser.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="images for the parity check (default: synthetic ones)",
    )
    tables = parser.add_mutually_exclusive_group()
    tables.add_argument(
        "--refit",
        type=Path,
        metavar="DIR",
        help="count the symbols of the images in DIR and fit the tables to them",
    )
    tables.add_argument(
        "--own-tables",
        action="store_true",
        help="the entropy model's own tables, though there are counts",
    )
    parser.add_argument(
        "--as-is",
        action="store_true",
        help="take the images of --refit, --calibrate and --validate as they are, cropped to multiples of 8",
    )
    parser.add_argument(
        "--skip-damaged",
        "--skip_damaged",
        action="store_true",
        help="leave out images of --refit, --calibrate and --validate that cannot be read, and count them",
    )
    parser.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help="counts to fit the tables to (default: CHECKPOINT.counts.json if there is one); with --refit, where to keep them",
    )
    parser.add_argument(
        "--small",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="whether the edge writes small files unless asked otherwise (default: if there are context tables)",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "fp32", "int8"),
        default="auto",
        help="auto: int8 graphs too, if there are activation ranges for them, and the device chooses; int8: what both ends run",
    )
    parser.add_argument(
        "--device",
        choices=("x86", "arm"),
        default="x86",
        help="what int8 graphs are to be fast on: arm has int8 activations, of the same values (default: x86, which runs on ARM, too)",
    )
    parser.add_argument(
        "--calibrate",
        type=Path,
        metavar="DIR",
        help="take activation ranges of the images in DIR (at least 334), of which every tenth is held out to judge int8 by; "
        "one folder a class, or any folder",
    )
    parser.add_argument(
        "--ranges",
        type=Path,
        metavar="FILE",
        help="activation ranges (default: CHECKPOINT.ranges.json if there is one); with --calibrate, where to keep them",
    )
    parser.add_argument(
        "--validate",
        type=Path,
        metavar="DIR",
        help="also measure int8 on the images in DIR, which have no part in any choice, for the manifest (and for --ranges)",
    )
    parser.add_argument(
        "--resize",
        type=number(int, 8, MAX_SIDE),
        default=STANDARD.resize,
        metavar="N",
        help=f"what the edge resizes an image's short side to (default: {STANDARD.resize})",
    )
    parser.add_argument(
        "--crop",
        type=number(int, 8, MAX_SIDE),
        default=STANDARD.crop,
        metavar="N",
        help=f"side of the central crop that it encodes, a multiple of 8 (default: {STANDARD.crop})",
    )
    parser.add_argument(
        "--max-pixels",
        type=number(int, 64, 1 << 28),
        default=1024 * 1024,
        metavar="N",
        help="largest image that both ends take; at least the crop (default: 1048576)",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _rule(args: argparse.Namespace) -> Preprocessing:
    return Preprocessing(args.resize, args.crop)


def find_checkpoint(model: str, lmb: str) -> Path:
    """`checkpoints/<model>/lmb<L>.{safetensors,pt}` under the current folder, else under the project's."""
    names = [
        f"lmb{text}{suffix}"
        for text in dict.fromkeys((lmb, f"{float(lmb):g}"))
        for suffix in (".safetensors", ".pt")
    ]
    for root in (Path(), _PROJECT):
        for name in names:
            if (root / "checkpoints" / model / name).is_file():
                return root / "checkpoints" / model / name
    raise NoCheckpointError(
        f"no checkpoint of {model} at lmb {lmb}.\n"
        f"  Looked for checkpoints/{model}/{names[0]} and .pt here and in {_PROJECT}.\n"
        "  Published ImageNet checkpoints are linked from the paper's repository (arXiv 2211.09897), listed in\n"
        f"  checkpoints/README.md: save one as checkpoints/{model}/lmb{lmb}.pt, or name it with --checkpoint FILE.\n"
        f"  To train your own: python -m training.train --model {model} --model_args bpp_lmb={lmb} --data DIR --backbone FILE"
    )


def _labels(path: Path | None, metadata: dict[str, str], classes: int) -> list[str]:
    from training.labels import read_labels, stored_labels

    if path is not None:
        return read_labels(path, classes, "the checkpoint")
    if stored := own_labels(metadata, classes) or stored_labels({}, classes):
        return stored
    print(
        f"the checkpoint names no labels for its {classes} classes: they are numbered; --labels FILE names them",
        file=sys.stderr,
    )
    return [f"class {index}" for index in range(classes)]


def _make_counts(
    args: argparse.Namespace, checkpoint: Path, bottleneck: str, damage: "Damage"
) -> "Callable[[Path, Tables], Counts | None]":
    """How write_bundle comes by counts: from a file, which is read now, from the images of --refit, or not at all."""
    from runtime.files import write_atomically
    from training.command import progress

    from .counts import Counts, count, symbols_of
    from .images import unlabelled_paths

    file = args.counts or checkpoint.with_suffix(".counts.json")
    stored = None
    if not args.refit and not args.own_tables and (args.counts or file.is_file()):
        stored = Counts.read(file, bottleneck)
    to_count = unlabelled_paths(args.refit) if args.refit else []

    def make(graph: Path, own: "Tables") -> Counts | None:
        if not to_count:
            return stored
        found = symbols_of(graph, progress(to_count, "counting"), args.as_is, damage, _rule(args))
        counts = count(found, own, bottleneck, args.refit.resolve().name)
        if args.counts:
            args.counts.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.counts, counts.to_json().encode())
        return counts

    return make


def _make_int8(
    args: argparse.Namespace,
    checkpoint: Path,
    model: "FeatureCompressionModel",
    labels: list[str],
    damage: "Damage",
) -> "Callable[[Path, Encode], dict[str, Any]]":
    """How write_bundle comes by int8 graphs: by ranges from a file, from the images of --calibrate, or not at all."""
    from runtime.engine.registry import GRAPHS
    from runtime.files import write_atomically
    from training.command import progress

    from .gate import GateError, Graphs, judge, open_session, reasons
    from .images import labelled_paths, pixels_of
    from .quantise import (
        CALIBRATION_IMAGES,
        LEAST_IMAGES,
        Calibration,
        NothingToQuantiseError,
        RangesError,
        quantise,
        take_ranges,
    )
    from .tables import bottleneck_sha256, weights_sha256

    file = args.ranges or checkpoint.with_suffix(".ranges.json")
    stored = None
    if args.precision != "fp32" and not args.calibrate and (args.ranges or file.is_file()):
        stored = Calibration.from_json(file.read_text(encoding="utf-8"), str(file))
    paths = (
        labelled_paths(args.calibrate, labels)
        if args.calibrate and args.precision != "fp32"
        else []
    )
    unseen = (
        labelled_paths(args.validate, labels) if args.validate and args.precision != "fp32" else []
    )
    if paths and len(paths) < LEAST_IMAGES:
        raise RangesError(
            f"{args.calibrate} has {len(paths)} images, too few to calibrate with: "
            f"name a folder of at least {LEAST_IMAGES}, of which every tenth is held out"
        )
    if not stored and not paths:
        if args.precision == "int8" or unseen:
            raise RangesError(
                f"no activation ranges at {file}: give images to take them of with --calibrate DIR"
            )
        return lambda folder, encode: {}
    digests = {"edge": bottleneck_sha256(model), "cloud": weights_sha256(model)}

    def calibrate(graphs: Graphs) -> Calibration:
        rest = [path for index, (path, _) in enumerate(paths) if index % 10]
        if len(rest) > CALIBRATION_IMAGES:
            rest = [
                rest[index * len(rest) // CALIBRATION_IMAGES] for index in range(CALIBRATION_IMAGES)
            ]

        def read(title: str) -> "Iterator[NDArray[np.uint8]]":
            for path in progress(rest, title):
                if (pixels := pixels_of(path, args.as_is, damage, _rule(args))) is not None:
                    yield pixels[None]

        edge, images = take_ranges(
            graphs["edge"]["fp32"], read("calibrating the edge"), digests["edge"]
        )
        encoder = open_session(graphs["edge"]["fp32"])
        symbols = (
            encoder.run(None, {"pixels": pixels})[0] for pixels in read("calibrating the cloud")
        )
        cloud, _ = take_ranges(graphs["cloud"]["fp32"], symbols, digests["cloud"])
        return Calibration(images, args.calibrate.resolve().name, edge, cloud)

    def make(folder: Path, encode: "Encode") -> dict[str, Any]:
        graphs: Graphs = {
            end: {precision: folder / name for precision, name in files.items()}
            for end, files in GRAPHS.items()
        }
        calibration = stored or calibrate(graphs)
        for end, ranges in (("edge", calibration.edge), ("cloud", calibration.cloud)):
            try:
                quantise(
                    graphs[end]["fp32"],
                    ranges,
                    digests[end],
                    graphs[end]["int8"],
                    signed=args.device == "arm",
                )
            except NothingToQuantiseError as error:
                say(f"export: {error}", sys.stderr)
                del graphs[end]["int8"]
        if paths:
            source = f"{calibration.source}, held out"
            calibration = replace(
                calibration,
                gate=judge(
                    graphs,
                    encode,
                    progress(paths[::10], "judging"),
                    args.as_is,
                    source,
                    damage,
                    _rule(args),
                ),
            )
        if unseen:
            found = judge(
                graphs,
                encode,
                progress(unseen, "validating"),
                args.as_is,
                args.validate.resolve().name,
                damage,
                _rule(args),
            )
            calibration = replace(calibration, validation=found)
        if args.ranges and (paths or unseen):
            args.ranges.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(args.ranges, calibration.to_json().encode())
        for end in graphs:
            if (
                "int8" in graphs[end]
                and calibration.gate
                and (why := reasons(calibration.gate, end))
            ):
                if args.precision == "int8":
                    raise GateError(f"{end}: {'; '.join(why)}")
                say(f"export: no int8 {end} graph is written: {'; '.join(why)}", sys.stderr)
                graphs[end]["int8"].unlink()
        return {
            "activations": "int8" if args.device == "arm" else "uint8",
            "calibration": {"images": calibration.images, "source": calibration.source},
            "gate": calibration.gate,
            "validation": calibration.validation,
        }

    return make


def _check_outputs(args: argparse.Namespace, out: Path, checkpoint: Path) -> None:
    """Refuse, before minutes of work, outputs that cannot be written or that would replace an input. Raises OutputError."""
    from runtime.errors import OutputError
    from runtime.files import check_output, refuse_same_file

    inputs = [file for file in (checkpoint, args.backbone, args.labels) if file]
    counts, ranges = (
        given or checkpoint.with_suffix(f".{kind}.json")
        for given, kind in ((args.counts, "counts"), (args.ranges, "ranges"))
    )
    written = [(args.counts, ranges)] * bool(args.refit) + [(args.ranges, counts)] * bool(
        args.calibrate or args.validate
    )
    for file, other in written:
        if file:
            check_output(file)
            refuse_same_file(file, [*inputs, other])
            if file.resolve() == other.resolve():
                raise OutputError(
                    f"counts and ranges would both be {file}: name two files with --counts and --ranges"
                )
    for file in (
        *inputs,
        args.counts,
        args.ranges,
        args.refit,
        args.calibrate,
        args.validate,
        args.images,
    ):
        # The labels of the bundle that is replaced may be kept.
        if file and file.name != "labels.txt" and file.resolve().is_relative_to(out.resolve()):
            raise OutputError(
                f"{file} lies in {out}, which the new bundle replaces: name another folder with --out"
            )


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@command("export")
def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    if args.own_tables and (args.counts or args.small):
        parser.error("--own-tables leaves no counts to use: leave out --counts and --small")
    if args.crop % BLOCK or args.crop > args.resize:
        parser.error(
            f"--crop {args.crop} is not a multiple of {BLOCK} up to --resize {args.resize}"
        )
    out: Path = args.out or Path("bundles") / args.model
    try:
        path = args.checkpoint or find_checkpoint(args.model, args.lmb or DEFAULT_LMB)
    except NoCheckpointError as error:
        print(f"export: {error}", file=sys.stderr)
        return EXIT_FAILURE
    # torch takes seconds to import: only when there is something to export.
    import warnings

    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.jit")
    from runtime.codec.feature_file import Profile
    from runtime.errors import EdgeCloudError
    from training.checkpoint import load_model
    from training.files import check_space
    from training.folders import Damage
    from training.weights import read_metadata

    from .bundle import check_output, write_bundle
    from .gate import GateError
    from .graphs import ExportError
    from .images import folder_images, synthetic_images
    from .parity import ParityError
    from .tables import bottleneck_sha256

    try:
        check_output(out)
        _check_outputs(args, out, path)
        damage = Damage(args.skip_damaged, "--skip-damaged")
        # Before the weights: a file of another model is refused by what it says, not by a list of keys.
        lmb = agreed_lmb(path, args.model, args.lmb, read_metadata(path))
        model, metadata = load_model(path, args.model, args.backbone)
        labels = _labels(args.labels, metadata, model.classes)
        images, source = synthetic_images(), "synthetic images"
        if args.images:
            images, source = (
                folder_images(args.images, rule=_rule(args)),
                f"images from {args.images.name}",
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        check_space(
            out, sum(value.numel() * value.element_size() for value in model.state_dict().values())
        )
        say(f"checkpoint  {path}", sys.stdout)
        write_bundle(
            out,
            model,
            args.model,
            lmb,
            labels,
            images,
            source,
            weights=metadata.get("weights", "trained"),
            checkpoint={"file": path.name, "sha256": digest},
            make_counts=_make_counts(args, path, bottleneck_sha256(model), damage),
            make_int8=_make_int8(args, path, model, labels, damage),
            precision=args.precision,
            profile=None
            if args.small is None
            else Profile.CONTEXT
            if args.small
            else Profile.STATIC,
            preprocessing=_rule(args),
            max_pixels=max(args.max_pixels, args.crop**2),
            report=lambda line: say(line, sys.stdout),
        )
        damage.report()
    except ParityError as error:
        say(f"export: parity failed, no bundle was written: {error}", sys.stderr)
        return EXIT_PARITY
    except GateError as error:
        say(f"export: int8 is not good enough, no bundle was written: {error}", sys.stderr)
        return EXIT_PARITY
    except (EdgeCloudError, ExportError, ValueError, OSError) as error:
        full = (
            f"{out} cannot be written: free space there, or name another folder with --out: "
            if _is_full(error)
            else ""
        )
        say(f"export: {full}{error}", sys.stderr)
        return EXIT_FAILURE
    bundle = (
        ""
        if out == Path("bundles") / "ours_n4" and "EDGECLOUD_BUNDLE" not in os.environ
        else f" --bundle {out}"
    )
    say(
        f"\nnext:\n  edge-encode IMAGE -o feat.bin{bundle}\n  cloud-decode feat.bin{bundle}",
        sys.stdout,
    )
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
