"""Draws docs/layout.svg: the packages, floor upon floor, from the layers that pyproject.toml lets import-linter check.

python docs/draw_layout.py
"""

import html
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]

# The layer at the top of each box, and a description of the box; layers not named here join the box above them.
BOXES = {
    "cli": "the jax-speechlm command; export and import, HTTP service, plans, clusters",
    "evaluation": "one evaluator a task: WER, bits per byte, accuracy, reports",
    "inference": "opens checkpoints; predictors; speech units, averages, integer weights",
    "training": "train state and step, loop, checkpoints, logs",
    "recipes": "the Experiment record, named experiments; a declaration of each task",
    "decoding": "CTC and LM search, n-grams, alignment, sampling",
    "objectives": "one loss a file; optimizers and schedules",
    "frontend": "waveform to log-mel, on the device; one architecture a file",
    "nn": "layers, attention; mesh and axis rules; config, batch schema",
}
DATA = (
    "sources: corpora, manifests",
    "prepare: decode, clean, convert",
    "storage: records, index, labels",
    "batching: plans, packing, mixtures",
)

WIDTH, LEFT, BOX, GAP = 960, 330, 46, 8  # pixels; floors begin at LEFT
FLOOR, PIPELINE, LINE = "#e8eef7", "#eaf4e4", "#44546a"


def boxes() -> list[tuple[list[str], str]]:
    """Returns (layers, description) of each box of jax_speechlm, top floor first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (layers,) = (each["layers"] for each in contracts if each.get("containers") == ["jax_speechlm"])
    grouped: list[tuple[list[str], str]] = []
    for layer in layers:
        first = layer.split(" | ")[0]
        if first in BOXES or not grouped:
            grouped.append(([], BOXES[first]))
        grouped[-1][0].append(layer)
    return grouped


def draw() -> str:
    """Returns the drawing as SVG."""
    floors = boxes()
    top, right = 40, WIDTH - 110
    bottom = top + len(floors) * (BOX + GAP) - GAP
    middle = {}
    parts = [
        _text(20, 24, "data_pipelines (no JAX)", bold=True),
        _text(LEFT, 24, "jax_speechlm: a package imports only from floors below its own", bold=True),
        _box(20, top + 4 * (BOX + GAP), 230, bottom - top - 4 * (BOX + GAP), PIPELINE),
    ]
    parts += [_text(34, top + 4 * (BOX + GAP) + 34 + 40 * row, line, size=12) for row, line in enumerate(DATA)]
    for floor, (layers, description) in enumerate(floors):
        y = top + floor * (BOX + GAP)
        middle[layers[0].split(" | ")[0]] = y + BOX / 2
        names = " / ".join(layer.replace(" | ", ", ") for layer in layers)
        parts += [
            _box(LEFT, y, right - LEFT, BOX, FLOOR),
            _text(LEFT + 12, y + 19, names, bold=True),
            _text(LEFT + 12, y + 36, description, size=12),
        ]
    parts += [
        _arrow([(135, top + 4 * (BOX + GAP)), (135, middle["training"]), (LEFT, middle["training"])]),
        _text(150, middle["training"] - 8, "batches", size=12),
        _arrow(
            [
                (right, middle["training"]),
                (right + 30, middle["training"]),
                (right + 30, middle["inference"]),
                (right, middle["inference"]),
            ]
        ),
        _text(right + 38, (middle["training"] + middle["inference"]) / 2 + 4, "checkpoint", size=12),
        _arrow(
            [
                (right, middle["recipes"]),
                (right + 16, middle["recipes"]),
                (right + 16, middle["training"] + 12),
                (right, middle["training"] + 12),
            ]
        ),
    ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 16}" font-family="sans-serif">'
    marker = (
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/></marker></defs>'
    )
    return "\n".join([head, '<rect width="100%" height="100%" fill="white"/>', marker, *parts, "</svg>", ""])


def _box(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{LINE}"/>'


def _text(x: float, y: float, text: str, *, bold: bool = False, size: int = 14) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x}" y="{y:g}" font-size="{size}"{weight} fill="#1c2733">{html.escape(text)}</text>'


def _arrow(points: list[tuple[float, float]]) -> str:
    path = " ".join(f"{x:g},{y:g}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{LINE}" stroke-width="1.5" marker-end="url(#tip)"/>'


if __name__ == "__main__":
    (ROOT / "docs" / "layout.svg").write_text(draw())
