"""Draws the figures of docs/concepts: batches, streaming, sharding, planning, checkpoints.

python docs/draw_concepts.py
"""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data_pipelines.batching.plan import FILLER, make_plan

WIDTH = 760  # pixels
BLUE, GREEN, YELLOW, GREY, LINE = "#c9d8ef", "#cfe6c3", "#f5e3b3", "#eeeeee", "#44546a"
RATE = 16_000


class Drawing:
    """Boxes, texts and arrows, as SVG."""

    def __init__(self):
        self.parts: list[str] = []

    def text(self, x: float, y: float, text: str, *, bold: bool = False, centre: bool = False) -> None:
        """Writes a line with its base at y."""
        form = ' font-weight="bold"' * bold + ' text-anchor="middle"' * centre
        self.parts.append(f'<text x="{x:g}" y="{y:g}"{form}>{html.escape(text)}</text>')

    def box(self, x: float, y: float, wide: float, high: float, fill: str, *lines: str) -> None:
        """Draws a box with lines of text in its middle."""
        place = f'x="{x:g}" y="{y:g}" width="{wide:g}" height="{high:g}"'
        self.parts.append(f'<rect {place} rx="3" fill="{fill}" stroke="{LINE}" stroke-width="0.7"/>')
        for number, line in enumerate(lines):
            self.text(x + wide / 2, y + high / 2 + 4 + 16 * (number - (len(lines) - 1) / 2), line, centre=True)

    def arrow(self, *points: tuple[float, float]) -> None:
        """Draws an arrow through points."""
        path = " ".join(f"{x:g},{y:g}" for x, y in points)
        self.parts.append(f'<polyline points="{path}" fill="none" stroke="{LINE}" marker-end="url(#tip)"/>')

    def svg(self, high: float) -> str:
        """Returns the drawing."""
        marker = f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/>'
        marker = f'<marker id="tip" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{marker}</marker>'
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {high:g}" '
        head += 'font-family="sans-serif" font-size="12" fill="#1c2733">'
        ground = '<rect width="100%" height="100%" fill="white"/>'
        return "\n".join([head, ground, f"<defs>{marker}</defs>", *self.parts, "</svg>\n"])


def batches() -> str:
    """The batches of two epochs of eight utterances, by the plan itself, and what two hosts read of them."""
    plan = make_plan(
        np.full(8, RATE, np.int64), seconds_per_batch=4, batch_multiple=2, num_buckets=1, seed=0, min_seconds=0.1
    )
    drawing, left, wide, high = Drawing(), 110, 70, 26
    for step in range(2 * plan.steps_per_epoch):
        x = left + 110 * step + 30 * (step // plan.steps_per_epoch)
        drawing.text(x + wide / 2, 40, f"step {step}", centre=True)
        for row, item in enumerate(plan.batch(step).rows):
            host = row * 2 // len(plan.batch(step).rows)
            name = "filler" if item == FILLER else f"clip {item}"
            drawing.box(x, 50 + row * (high + 4), wide, high, (BLUE, GREEN)[host], name)
    for epoch in range(2):
        x = left + epoch * (110 * plan.steps_per_epoch + 30)
        drawing.text(x, 20, f"epoch {epoch}: a permutation of (seed, {epoch})", bold=True)
    drawing.text(16, 84, "host 0 reads", bold=True)
    drawing.text(16, 144, "host 1 reads", bold=True)
    x = left + 110 * plan.steps_per_epoch + 30
    drawing.arrow((x + wide / 2, 208), (x + wide / 2, 174))
    drawing.text(
        left, 226, "A restart at this step asks the plan for it and for those after it; nothing before is read."
    )
    return drawing.svg(240)


def streaming() -> str:
    """Pieces of any size, chunks of one size, and the state between two steps."""
    drawing, left, chunk = Drawing(), 120, 144
    drawing.text(16, 38, "pieces of audio", bold=True)
    x = left
    for wide in (70, 30, 150, 46, 100, 36):
        drawing.box(x, 20, wide, 28, GREY)
        x += wide
    drawing.text(16, 94, "chunks", bold=True)
    drawing.text(16, 150, "steps", bold=True)
    drawing.text(16, 206, "hidden states", bold=True)
    for number in range(3):
        x = left + number * chunk
        drawing.box(x, 76, chunk, 28, BLUE, f"chunk {number}")
        drawing.arrow((x + chunk / 2, 104), (x + chunk / 2, 128))
        drawing.box(x + 24, 130, chunk - 48, 32, YELLOW, "step")
        drawing.arrow((x + chunk - 24, 146), (x + chunk + 22, 146))
        drawing.arrow((x + chunk / 2, 162), (x + chunk / 2, 184))
        drawing.box(x, 186, chunk, 28, GREEN, "frames, final")
    drawing.text(left + 3 * chunk + 26, 144, "state: last samples, frames,")
    drawing.text(left + 3 * chunk + 26, 160, "keys and values: fixed sizes")
    drawing.text(left, 240, "Equal, to rounding, to one pass over the whole recording in which a frame sees its own")
    drawing.text(left, 256, "chunk and left_context frames before it.")
    return drawing.svg(270)


def sharding() -> str:
    """Rows of a batch and a matrix of parameters on eight devices, data 2 x fsdp 4."""
    drawing = Drawing()
    colors = (BLUE, GREEN, YELLOW, "#f3cfd8")
    drawing.text(16, 20, "mesh: data 2 x fsdp 4", bold=True)
    drawing.text(300, 20, "a batch of 16 rows", bold=True)
    drawing.text(530, 20, "a matrix of parameters", bold=True)
    for device in range(8):
        data, fsdp = divmod(device, 4)
        y = 30 + 28 * device + 12 * data
        drawing.box(16, y, 200, 24, colors[fsdp], f"device {device}: data {data}, fsdp {fsdp}")
        drawing.box(300, y, 170, 24, GREY, f"rows {2 * device} and {2 * device + 1}")
        drawing.box(530, y, 200, 24, colors[fsdp], f"quarter {fsdp} of its rows")
    drawing.text(
        16,
        292,
        "Each device has rows of its own, and a quarter of every matrix. For a layer it gathers the other three from",
    )
    drawing.text(
        16, 308, "the devices of its data group; gradients are summed over all eight, and each keeps its quarter."
    )
    return drawing.svg(322)


def planning() -> str:
    """From a recipe and the name of an accelerator to memory, time and a verdict."""
    drawing = Drawing()
    drawing.box(16, 20, 170, 44, BLUE, "recipe", "model, data, mesh")
    drawing.box(16, 84, 170, 44, BLUE, "topology", "v5e-16, h100-64, ...")
    drawing.arrow((186, 42), (234, 66))
    drawing.arrow((186, 106), (234, 82))
    drawing.box(236, 48, 190, 52, YELLOW, "the real compiler of TPU or", "GPU, on this machine")
    drawing.arrow((426, 74), (470, 74))
    drawing.text(332, 118, "one program a batch shape", centre=True)
    found = ("memory a chip, by the compiler", "bound: no step is faster", "estimate: the program in its order")
    for row, line in enumerate(found):
        drawing.box(472, 16 + 42 * row, 272, 34, GREEN, line)
    drawing.arrow((608, 134), (608, 156))
    drawing.box(472, 158, 272, 34, GREY, "fits or not, hours, cost; --fit searches")
    return drawing.svg(206)


def checkpoints() -> str:
    """A run that is killed between two checkpoints, and the folder that it goes on from."""
    drawing = Drawing()
    drawing.text(16, 24, "first start", bold=True)
    drawing.text(16, 84, "second start", bold=True)
    drawing.arrow((110, 20), (470, 20))
    drawing.arrow((350, 80), (740, 80))
    for step, x, y in ((100, 230, 20), (200, 350, 20), (200, 350, 80), (300, 470, 80), (400, 590, 80)):
        drawing.box(x - 5, y - 5, 10, 10, GREEN)
        if (x, y) != (350, 80):
            drawing.text(x, y - 10, f"{step}", centre=True)
    drawing.text(478, 24, "killed at step 273")
    drawing.arrow((350, 30), (350, 70))
    drawing.text(360, 104, "steps 200 to 273 again, bit for bit the same")
    drawing.box(
        110, 128, 260, 68, BLUE, "checkpoints/200/state (Orbax)", "parameters, optimizer moments,", "moving average"
    )
    drawing.box(
        390,
        128,
        260,
        68,
        BLUE,
        "checkpoints/200/meta (JSON)",
        "experiment, tokenizer, step, seed,",
        "fingerprint of the batch plan",
    )
    return drawing.svg(210)


FIGURES: Sequence[Callable[[], str]] = (batches, streaming, sharding, planning, checkpoints)

if __name__ == "__main__":
    for figure in FIGURES:
        (Path(__file__).parent / "concepts" / f"{figure.__name__}.svg").write_text(figure(), encoding="utf-8")
