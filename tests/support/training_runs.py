"""What the tests of training share: options of a short run, its log, and images to break."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def options(data: Path, backbone: Path, run: Path, *more: str) -> list[str]:
    """Arguments of training.train for two short epochs; `more` overrides them."""
    text = "--model ours_n0 --model_args bpp_lmb=0.5 --train_size 32:1,64:1 --batch_size 8"
    text += " --held_out 4 --workers 0 --val_crop_r 1"
    paths = ["--data", str(data), "--backbone", str(backbone), "--run_dir", str(run)]
    """Arguments of training.train for two short epochs; `more` overrides them."""
    text = "--model ours_n0 --model_args bpp_lmb=0.5 --train_size 32:1,64:1 --batch_size 8"
    text += " --held_out 4 --workers 0 --val_crop_r 1"
    paths = ["--data", str(data), "--backbone", str(backbone), "--run_dir", str(run)]
    return [*text.split(), *paths, *more]


def read_log(run: Path) -> list[dict[str, Any]]:
    """The records in a run's log."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def picture(path: Path, level: int = 90, side: int = 40) -> Path:
    """Write an image of noise; `level` is the noise's seed."""
    """Write an image of noise; `level` is the noise's seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(level).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def spoil(root: Path) -> list[Path]:
    """Damage three of dog's five images (cut short, not an image, a broken link); their paths."""
    cut = root / "dog" / "1.png"
    cut.write_bytes(cut.read_bytes()[:500])
    (root / "dog" / "2.png").write_bytes(b"no image")
    (root / "dog" / "4.png").unlink()
    (root / "dog" / "4.png").symlink_to("nowhere")
    return [root / "dog" / name for name in ("1.png", "2.png", "4.png")]
