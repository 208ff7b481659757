"""Draws docs/packing.svg: the batches of one plan in buckets and in packed rows, from the plans of made-up utterances.

python docs/draw_packing.py
"""

from pathlib import Path

import numpy as np

from data_pipelines.batching.plan import FILLER, make_plan
from data_pipelines.batching.rows import make_row_plan

RATE, SECONDS = 16_000, 24  # of a batch
WIDTH, LEFT, ROW, GAP = 960, 20, 16, 5  # pixels
AUDIO, PADDING, LINE = "#7f9fcf", "#eeeeee", "#44546a"


def draw() -> str:
    """Returns the drawing as SVG."""
    seconds = np.array(
        [7.6, 6.9, 6.6, 6.1, 5.2, 4.7, 4.1, 3.8, 3.4, 3.1, 2.8, 2.6, 2.3, 2.1, 1.9, 1.7, 1.5, 1.2, 1.0, 0.9, 0.8]
    )
    lengths = (RATE * seconds).astype(np.int64)
    shared = {"seconds_per_batch": SECONDS, "batch_multiple": 1, "seed": 0}
    buckets = make_plan(lengths, num_buckets=2, **shared)
    rows = make_row_plan(lengths, row_seconds=(8.0,), **shared)
    scale = (WIDTH / 2 - 2 * LEFT) / 8  # pixels a second
    parts, heights = [], []
    for column, (plan, title) in enumerate(
        ((buckets, f"2 buckets, 2 programs: {buckets.padding_share:.0%} padding"),
         (rows, f"packed rows, 1 program: {rows.padding_share:.0%} padding"))
    ):  # fmt: skip
        x, y = LEFT + column * WIDTH / 2, 24
        parts.append(_text(x, y, title, bold=True))
        for step in range(plan.steps_per_epoch):
            planned = plan.batch(step)
            width = plan.buckets[planned.bucket].num_samples / RATE * scale
            y += 10
            for items, starts in zip(
                *(a.reshape(len(planned.rows), -1) for a in (planned.rows, planned.start)), strict=True
            ):
                parts.append(_box(x, y, width, PADDING))
                for item, start in zip(items, starts, strict=True):
                    if item != FILLER:
                        at = x + start / RATE * scale
                        parts.append(_box(at, y, lengths[item] / RATE * scale, AUDIO))
                        parts.append(_text(at + 3, y + 12, str(item + 1), size=10))
                y += ROW + GAP
        heights.append(y)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {max(heights) + 10:.0f}" '
        f'font-family="sans-serif" fill="{LINE}">\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, *, size: int = 14, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}"{weight}>{text}</text>'


def _box(x: float, y: float, width: float, fill: str) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{ROW}"'
    return f'<rect {place} fill="{fill}" stroke="{LINE}" stroke-width="0.5"/>'


if __name__ == "__main__":
    Path(__file__).with_name("packing.svg").write_text(draw())
