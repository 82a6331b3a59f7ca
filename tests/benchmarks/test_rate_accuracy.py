"""benchmarks/rate_accuracy.py: curves from records, and all steps from training to the figure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.common import RESULTS
from benchmarks.curves import (
    CODECS,
    Curves,
    Point,
    bd_rate,
    bytes_at,
    bytes_enough,
    pareto,
    top1_at,
)
from benchmarks.rate_accuracy import (
    RecordsError,
    compare,
    compare_all,
    measured,
    published,
    text,
)
from benchmarks.rate_accuracy_figure import compared_in_bytes, draw, drawn
from export.images import synthetic_images

PROJECT = Path(__file__).resolve().parents[2]


def curve(*points: tuple[float, float]) -> list[Point]:
    return [
        Point(f"lmb {index}", bpp, bpp * 1000, top1) for index, (bpp, top1) in enumerate(points)
    ]


def test_a_front_leaves_out_what_a_cheaper_point_equals() -> None:
    points = curve((0.4, 0.7), (0.1, 0.5), (0.2, 0.7), (0.3, 0.6), (0.8, 0.8))
    assert [point.bpp for point in pareto(points)] == [0.1, 0.2, 0.8]


def test_readings_lie_on_lines_over_the_logarithm_and_nothing_is_extrapolated() -> None:
    points = curve((0.1, 0.5), (0.4, 0.7))
    assert bytes_at(points, 0.6) == pytest.approx(200)
    assert top1_at(points, 0.2) == pytest.approx(0.6)
    assert (
        bytes_at(points, 0.49)
        is bytes_at(points, 0.71)
        is top1_at(points, 0.09)
        is top1_at(points, 0.41)
        is None
    )
    assert bytes_at([], 0.5) is None


def test_a_curve_above_the_target_needs_at_most_its_cheapest_points_bytes() -> None:
    assert bytes_enough(curve((0.3, 0.6), (0.2, 0.55), (0.4, 0.7)), 0.5) == 200
    assert bytes_enough(curve((0.2, 0.5)), 0.5) == 200
    assert bytes_enough(curve((0.2, 0.5)), 0.51) is None
    codec = curve((1, 0.6), (4, 0.9))
    curves = Curves(
        {"ours_n4": curve((0.1, 0.85)), "ours_n0": curve((0.1, 0.4)), "AVIF": codec},
        0.76,
        "teacher",
        10,
    )
    rows = text(compare(curves, "ours_n0")).splitlines()
    assert "| ≤ 100 | ≤ 5% |" in rows[-3]
    assert "| 40.0% at 100 | - | - |" in rows[-2]
    assert "| 2000 | 100% |" in rows[-1]


def test_bd_rate_of_half_the_bits_is_minus_half() -> None:
    anchor = curve((0.2, 0.5), (0.4, 0.6), (0.8, 0.65))
    assert bd_rate(curve((0.1, 0.5), (0.2, 0.6), (0.4, 0.65)), anchor) == pytest.approx(-0.5)
    assert bd_rate(anchor, anchor) == pytest.approx(0)
    assert bd_rate(curve((0.1, 0.7), (0.2, 0.8)), anchor) is None, "no common top-1"
    assert bd_rate(curve((0.1, 0.6)), anchor) is None, "a single point is no curve"


def test_the_published_curves_order_as_in_the_paper() -> None:
    result = compare(published(), "ours_n0")
    at = {one["curve"]: one["top1_at_0.2_bpp"] for one in result["curves"]}
    assert at["ours_n8"] > at["ours_n4"] > at["ours_n0"]
    bd = {one["curve"]: one["bd_rate"] for one in result["curves"]}
    assert bd["ours_n8"] < bd["ours_n4"] < bd["ours_n0"] == 0
    assert "| ours_n8 |" in text(result)


def test_the_kept_figure_is_of_the_kept_records() -> None:
    kept = json.loads((RESULTS / "rate_accuracy.json").read_text())
    assert compare_all(RESULTS, kept["anchor"]) == kept
    assert set(CODECS) < {one["curve"] for one in kept["curves"]}
    assert json.loads((RESULTS / "rate_accuracy_imagenet.json").read_text()) == compare(
        published(), "ours_n0"
    )


def record(folder: Path, name: str, **changes: object) -> None:
    point = {"bpp": {"mean": 0.1}, "bytes": {"mean": 600.0}, "top1": {"share": 0.8}}
    one = {
        "benchmark": "accuracy",
        "model": "ours_n4",
        "lmb": 1.28,
        "images": 10,
        "as_is": True,
        **point,
        **changes,
    }
    (folder / f"accuracy_{name}.json").write_text(json.dumps(one))


def test_records_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordsError, match=r"no accuracy_codecs\.json"):
        measured(tmp_path)
    codecs = {"benchmark": "codecs", "teacher": "t", "teacher_top1": {"share": 0.9}, "points": []}
    record(tmp_path, "codecs", **codecs)
    record(tmp_path, "ours_n4_lmb1.28")
    with pytest.raises(RecordsError, match="no points of the anchor ours_n8"):
        compare(measured(tmp_path), "ours_n8")
    record(tmp_path, "ours_n4_lmb2.56", images=11)
    with pytest.raises(RecordsError, match="different images"):
        measured(tmp_path)


def test_a_model_with_another_teacher_is_asked_among_the_images_classes(tmp_path: Path) -> None:
    """And its bytes are not compared with those that the codecs need for theirs."""
    codec = {"codec": "JPEG", "quality": 9, "bpp": {"mean": 1}, "bytes": {"mean": 6000}}
    codecs = {"benchmark": "codecs", "teacher": "t", "teacher_top1": {"share": 0.9}}
    record(tmp_path, "codecs", **codecs, points=[{**codec, "top1": {"share": 0.89}}])
    record(tmp_path, "ours_n4_lmb1.28", top1={"share": 0.89})
    among = {"top1_among": {"share": 0.97}, "teacher_top1_among": {"share": 0.99}}
    record(tmp_path, "n4_lite2_lmb1", model="n4_lite2", lmb=1, top1={"share": 0.7}, **among)
    result = compare(measured(tmp_path), "ours_n4")
    ours, lite2, _ = result["curves"]
    assert (ours["own_teacher_top1"], lite2["own_teacher_top1"]) == (None, 0.99)
    assert ours["share_of_best_codec"] == 0.1
    assert lite2["points"][0]["top1"] == 0.97
    assert "| n4_lite2 (its teacher: 99.0%) | 97.0% at 600 | - | - | - | - |" in text(result)
    draw(result, tmp_path / "figure.png", "10 images", set())
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_models_of_an_earlier_teacher_have_a_table_and_stand_in_the_figure(tmp_path: Path) -> None:
    """Their bytes are compared with those of the codecs of their own teacher."""
    codec = {"codec": "JPEG", "quality": 9, "bpp": {"mean": 1}}
    for folder, share in ((tmp_path, 0.9), (tmp_path / "earlier_teacher", 0.8)):
        folder.mkdir(exist_ok=True)
        point = {**codec, "bytes": {"mean": 10000 * share}, "top1": {"share": share - 0.01}}
        codecs = {"benchmark": "codecs", "teacher": f"t{share}", "teacher_top1": {"share": share}}
        record(folder, "codecs", **codecs, points=[point])
        record(folder, "ours_n4_lmb1.28", top1={"share": share - 0.01})
    result = compare_all(tmp_path, "ours_n4")
    (earlier,) = result["other_teachers"]
    assert (result["teacher_top1"], earlier["teacher_top1"]) == (0.9, 0.8)
    assert earlier["curves"][0]["share_of_best_codec"] == 0.075
    assert "Teacher t0.9: top-1 90.00% of 10 images.\n" in text(result)
    assert "Teacher t0.8: top-1 80.00% of 10 images (records in earlier_teacher/)." in text(result)
    for name, more in (("codecs", {**codecs, "points": []}), ("ours_n4_lmb1.28", {})):
        record(tmp_path / "earlier_teacher", name, images=11, **more)
    with pytest.raises(RecordsError, match=r"are of 11 images, and those in .* of 10"):
        compare_all(tmp_path, "ours_n4")
    names = [name for name, _, _ in drawn(result, set())]
    assert names == ["ours_n4", "JPEG", "ours_n4"]
    draw(result, tmp_path / "figure.png", "10 images", set())
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_the_figure_compares_the_default_where_it_has_points_around_the_target() -> None:
    codec = curve((1, 0.6), (4, 0.9))
    default, variable = curve((0.1, 0.5), (0.2, 0.8)), curve((0.05, 0.5), (0.1, 0.8))
    for ours, expected in ((default, "ours_n4"), (default[:1], "ours_n4_vr")):
        curves = Curves({"ours_n4": ours, "ours_n4_vr": variable, "AVIF": codec}, 0.8, "t", 10)
        found = compared_in_bytes(compare(curves, "AVIF"))
        assert found is not None
        assert found[0] == expected
    assert compared_in_bytes(compare(Curves({"AVIF": codec}, 0.8, "t", 10), "AVIF")) is None


def python(folder: Path, *arguments: str) -> str:
    """Run Python in a folder, and give its standard output."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def train(folder: Path, models: tuple[str, ...]) -> Path:
    """Train a teacher and the models for an instant; gives the teacher's file."""
    options = ("--data", "images", "--smoke", "--workers", "0")
    python(folder, "-m", "training.backbone", *options, "--run_dir", "teacher")
    # A bottleneck alone finds its backbone one folder up from it.
    (folder / "checkpoints").mkdir()
    backbone = (folder / "teacher" / "resnet50.safetensors").rename(
        folder / "checkpoints" / "resnet50.safetensors"
    )
    options += ("--optimizer", "adamw", "--frozen_tail", "--bottleneck_only")
    options += ("--backbone", str(backbone), "--model_args", "bpp_lmb=1.28")
    for model in models:
        place = ("--model", model, "--run_dir", f"checkpoints/{model}")
        python(folder, "-m", "training.train", *options, *place)
    return backbone


@pytest.mark.slow
def test_from_training_to_the_figure_in_the_smallest_size(tmp_path: Path) -> None:
    for index, image in enumerate(synthetic_images(20, side=96)):
        folder = tmp_path / "images" / f"class {index % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{index}.png")
    models = ("ours_n4_enc", "matsubara2022wacv")
    backbone = train(tmp_path, models)
    assert (tmp_path / "checkpoints" / models[0] / "lmb1.28.safetensors").stat().st_size < 10e6

    evaluate = ("-m", "training.evaluate", "-d", "images", "--smoke", "--out", "results")
    python(tmp_path, *evaluate, "-m", *models)
    codecs = (str(PROJECT / "benchmarks" / "codecs.py"), "--data", "images", "--smoke")
    codecs += ("--teacher", str(backbone), "--out", "results/accuracy_codecs.json")
    python(tmp_path, *codecs)
    script = str(PROJECT / "benchmarks" / "rate_accuracy.py")
    result = json.loads(python(tmp_path, script, "--results", "results", "--json"))
    assert {one["curve"] for one in result["curves"]} == {*models, *CODECS}
    assert result["images"] == 10
    assert (tmp_path / "results" / "rate_accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "results" / "rate_accuracy.json").read_text()) == result
