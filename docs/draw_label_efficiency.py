"""Draws docs/label_efficiency.svg: character errors by minutes of transcripts, from the runs of its study.

python scripts/label_efficiency.py --whisper runs/whisper-tiny.en
python docs/draw_label_efficiency.py runs/label_efficiency/errors.json
"""

import json
import statistics
from pathlib import Path

import tyro

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 760, 390, 60, 32, 240, 50  # pixels
LINE = "#44546a"
STARTS = {
    "random": ("#888888", "random parameters"),
    "best_rq": ("#4269d0", "BEST-RQ"),
    "joint": ("#2a9d5c", "BEST-RQ and masked text"),
    "whisper": ("#d1495b", "CTC on Whisper's transcripts"),
}


def draw(errors: dict[str, dict[str, list[tuple[float, float]]]]) -> str:
    """Returns the drawing as SVG: the mean over seeds, and a bar from the least to the largest.

    Args:
      errors: by start and minutes: WER and CER of each seed, per cent.
    """
    minutes = list(next(iter(errors.values())))
    cer = {start: {amount: [pair[1] for pair in errors[start][amount]] for amount in minutes} for start in errors}
    highest = 10 * -(-max(max(values) for row in cer.values() for values in row.values()) // 10)

    def x(place: float) -> float:
        return LEFT + place * (WIDTH - LEFT - RIGHT) / max(len(minutes) - 1, 1)

    def y(percent: float) -> float:
        return HEIGHT - BOTTOM - percent * (HEIGHT - TOP - BOTTOM) / highest

    parts = []
    for percent in range(0, int(highest) + 1, 10):
        parts.append(_line((x(0), y(percent)), (x(len(minutes) - 1), y(percent)), "#dddddd"))
        parts.append(_text(LEFT - 8, y(percent) + 5, str(percent), "end"))
    parts += [_text(x(place), HEIGHT - BOTTOM + 22, amount, "middle") for place, amount in enumerate(minutes)]
    parts.append(_text(x((len(minutes) - 1) / 2), HEIGHT - 8, "minutes of transcripts", "middle"))
    parts.append(_text(LEFT, TOP - 14, "CER, %", "middle"))
    for number, (start, row) in enumerate(cer.items()):
        color, name = STARTS[start]
        shift = 4 * (number - (len(cer) - 1) / 2)  # so that bars stand side by side
        points = [(x(place) + shift, statistics.mean(row[amount])) for place, amount in enumerate(minutes)]
        path = " ".join(f"{at:.1f},{y(mean):.1f}" for at, mean in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        for (at, mean), amount in zip(points, minutes, strict=True):
            parts.append(_line((at, y(min(row[amount]))), (at, y(max(row[amount]))), color))
            parts.append(f'<circle cx="{at:.1f}" cy="{y(mean):.1f}" r="3" fill="{color}"/>')
        parts.append(_line((WIDTH - RIGHT + 16, TOP + 22 * number), (WIDTH - RIGHT + 36, TOP + 22 * number), color))
        parts.append(_text(WIDTH - RIGHT + 42, TOP + 22 * number + 5, name, "start"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="13" fill="{LINE}">\n{body}\n</svg>\n'
    )


def _line(start: tuple[float, float], end: tuple[float, float], color: str) -> str:
    (x1, y1), (x2, y2) = start, end
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="1.5"/>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def main(errors: tyro.conf.Positional[Path]) -> None:
    """Writes the drawing beside this file.

    Args:
      errors: errors.json of `scripts/label_efficiency.py`.
    """
    drawing = draw(json.loads(errors.read_text())["errors"])
    Path(__file__).with_name("label_efficiency.svg").write_text(drawing)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
