"""Encodes pictures with the microcontroller's program under qemu, and compares with Python's files.

    python examples/cortex-m/run.py [IMAGE ...] [--bundle bundles/ours_n0_enc] [--cpu cortex-m7]
                                    [--json]

Without an image it takes docs/demo/golf_ball.jpg and two pictures that it makes: a gradient and
noise. For each it prints the bytes of the feature file, the instructions of the picture's rows and
of the coder, and the milliseconds that these are at 480 MHz if each instruction takes one cycle.
Then it prints flash, RAM and the stack that was used. It needs arm-none-eabi-g++, make and
qemu-system-arm.

Always holds: it fails if a feature file differs from that of the engine `native` in any byte.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from runtime import EdgeEncoder
from runtime.images.preprocess import preprocess

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
MACHINES = {"cortex-m7": "mps2-an500", "cortex-m4": "mps2-an386"}
# With `-icount shift=0` an instruction takes 1 ns, and SysTick counts 25 MHz on these machines.
INSTRUCTIONS_A_TICK = 40
MEGAHERTZ = 480


def pictures(images: list[Path]) -> dict[str, NDArray[np.uint8]]:
    """Pixels uint8 [224, 224, RGB] of the images, or of those that are the default."""
    if images:
        return {path.name: preprocess(Image.open(path)) for path in images}
    ramp = np.linspace(0, 255, 224).astype(np.uint8)
    planes = np.broadcast_arrays(ramp, ramp[:, None], np.uint8(128))
    return {
        "golf_ball.jpg": preprocess(Image.open(PROJECT / "docs/demo/golf_ball.jpg")),
        "gradient": np.stack(planes, axis=-1),
        "noise": np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8),
    }


def build(bundle: Path, cpu: str) -> Path:
    """Makes the program with the bundle inside. Raises CalledProcessError."""
    folder = PROJECT / "build" / "cortex-m" / cpu
    names = [f"BUNDLE={bundle.resolve()}", f"CPU={cpu}", f"BUILD={folder}"]
    subprocess.run(["make", "-s", "-C", HERE, *names], check=True, stdout=subprocess.DEVNULL)
    return folder / "encoder.elf"


def encode(program: Path, cpu: str, pixels: NDArray[np.uint8]) -> tuple[bytes, dict[str, int]]:
    """The feature file of pixels uint8 [height, width, RGB], and the program's report."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "pixels.rgb"), Path(folder, "feat.bin")
        source.write_bytes(pixels.tobytes())
        arguments = [*pixels.shape[:2], source, target]
        words = ",".join(f"arg={argument}" for argument in arguments)
        command = ["qemu-system-arm", "-M", MACHINES[cpu], "-kernel", program]
        command += ["-icount", "shift=0,sleep=off", "-display", "none", "-monitor", "none"]
        command += ["-serial", "null", "-semihosting-config", f"enable=on,target=native,{words}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr)
        lines = map(str.split, done.stderr.splitlines())
        return target.read_bytes(), {name: int(number) for name, number in lines}


def sizes(program: Path) -> tuple[int, int]:
    """Bytes of flash and of RAM that the program takes, the whole stack included."""
    lines = subprocess.check_output(["arm-none-eabi-size", "-A", program], text=True).splitlines()
    of = {name: int(size) for name, size, _ in (line.split() for line in lines if line[:1] == ".")}
    flash, ram = (".text", ".ARM.exidx", ".data"), (".stack", ".data", ".bss")
    return sum(of.get(name, 0) for name in flash), sum(of.get(name, 0) for name in ram)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("images", nargs="*", type=Path, metavar="IMAGE")
    parser.add_argument("--bundle", type=Path, default=PROJECT / "bundles" / "ours_n0_enc")
    parser.add_argument("--cpu", choices=MACHINES, default="cortex-m7")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    args = parser.parse_args()
    python = EdgeEncoder(args.bundle, threads=1, provider="native")
    program = build(args.bundle, args.cpu)
    flash, ram = sizes(program)
    found: dict[str, Any] = {"cpu": args.cpu, "megahertz": MEGAHERTZ, "pictures": []}
    found |= {"flash_bytes": flash, "ram_bytes": ram, "stack_bytes": 0}
    for name, pixels in pictures(args.images).items():
        file, report = encode(program, args.cpu, pixels)
        if file != python.encode(np.ascontiguousarray(pixels), as_is=True):
            print(f"{name}: the feature file differs from that of Python", file=sys.stderr)
            return 1
        rows, coder, opening = (
            INSTRUCTIONS_A_TICK * report[f"{part}_ticks"] for part in ("rows", "coder", "open")
        )
        found["pictures"].append({"name": name, "bytes": len(file), "instructions": rows + coder})
        found["opening_instructions"] = opening
        found["stack_bytes"] = max(found["stack_bytes"], report["stack_bytes"])
        if not args.json:
            print(
                f"{name}: {len(file)} bytes, as in Python; {rows / 1e6:.1f} million instructions "
                f"for the rows and {coder / 1e6:.1f} for the coder, "
                f"{(rows + coder) / MEGAHERTZ / 1000:.0f} ms"
            )
    if args.json:
        print(json.dumps(found))
        return 0
    print(
        f"opening the bundle, once: {found['opening_instructions'] / 1e6:.1f} million instructions"
    )
    print(
        f"flash {flash:,} bytes, RAM {ram:,} bytes; {found['stack_bytes']:,} bytes of the stack "
        "were used"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
