"""A record of accuracy.py as lines of text."""

from typing import Any


def text(record: dict[str, Any]) -> str:
    """The record's figures, a line each."""
    head = (
        f"{record['model']} lmb {record['lmb']}, {record['weights']} weights, "
        f"bundle {record['bundle']}, {record['images']} images"
    )
    if "points" in record:
        points = (f"{_asked(one)}\n{_figures_text(one)}" for one in record["points"])
        return "\n".join((head, *points))
    return f"{head}\n{_figures_text(record)}"


def _asked(point: dict[str, Any]) -> str:
    """What a point asks for."""
    if "max_bytes" in point:
        return f"at most {point['max_bytes']} bytes: {point['cut']} files are cut"
    if "target_bytes" in point:
        return f"{point['target_bytes']} bytes on average"
    return f"level {point['level']:g}"


def _figures_text(record: dict[str, Any]) -> str:
    """The figures of a record, or of one point of it, a line each."""

    def interval(entry: dict[str, float], form: str = ".2%") -> str:
        return f"95 % interval {entry['low']:{form}} to {entry['high']:{form}}"

    top1, bpp, size = record["top1"], record["bpp"], record["bytes"]
    lines = [
        f"top-1    {top1['share']:.2%} ({interval(top1)})",
        f"top-5    {record['top5']['share']:.2%}",
        *_among(record),
        f"bpp      {bpp['mean']:.4f} mean, {bpp['p5']:.4f} to {bpp['p95']:.4f} "
        "(5th to 95th percentile)",
        f"bytes    {size['mean']:.0f} mean, {size['p5']:.0f} to {size['p95']:.0f}",
    ]
    for coding, mean in record.get("mean_bytes_by_profile", {}).items():
        lines.append(f"bytes    {mean:.1f} mean, {coding}")
    if "teacher_top1" in record:
        teacher, change = record["teacher_top1"], record["top1_minus_teacher"]
        lines += [
            f"teacher  {teacher['share']:.2%} ({interval(teacher)})",
            f"top-1 minus teacher's  {change['mean']:+.2%} ({interval(change, '+.2%')}, paired)",
        ]
    return "\n".join(lines)


def _among(record: dict[str, Any]) -> list[str]:
    """The line on images of some of the classes."""
    if "top1_among" not in record:
        return []
    among = record["top1_among"]
    line = f"top-1    {among['share']:.2%} among the {among['classes']} classes of the images"
    if "teacher_top1_among" in record:
        line += f"; the teacher's {record['teacher_top1_among']['share']:.2%}"
    return [line]
