"""Draws docs/flow.svg: the way from recordings and texts to what is used, with the command of each step.

python docs/draw_flow.py
"""

import html
from pathlib import Path

# Columns from left to right; each box has its title, the command, and what it is.
COLUMNS = (
    (
        ("recordings", "", "wav, mp3, NeMo, Kaldi, ..."),
        ("texts", "", "txt, parquet, ..."),
        ("published weights", "", "Whisper, HuBERT, BERT, Qwen3"),
    ),
    (("data set", "prepare", "records, index, splits"), ("run", "import", "settings and parameters")),
    (
        ("pretraining", "pretrain", "BEST-RQ, HuBERT, causal, joint"),
        ("finetuning", "finetune", "CTC, transducer, attention, voice"),
    ),
    (
        ("measured", "eval", "WER with interval, tables"),
        ("used", "transcribe, serve, chat", "text, speech, streams"),
        ("given away", "export", "transformers, ONNX, LiteRT"),
    ),
)
ARROWS = (((0, 0), (1, 0)), ((0, 1), (1, 0)), ((0, 2), (1, 1)), ((1, 0), (2, 0)), ((1, 0), (2, 1)), ((1, 1), (2, 1)))
ARROWS += (((2, 0), (2, 1)), ((2, 1), (3, 0)), ((2, 1), (3, 1)), ((2, 1), (3, 2)))
WIDTH, HEIGHT, ROW, COLUMN, TOP = 205, 62, 84, 252, 16  # pixels
COLORS, LINE = ("#f3efe4", "#eaf4e4", "#e8eef7", "#f6e9ef"), "#44546a"


def draw() -> str:
    """Returns the drawing as SVG."""
    tall = TOP * 2 + ROW * 3 - (ROW - HEIGHT)
    parts = [_arrow(_corner(*start), _corner(*end)) for start, end in ARROWS]
    for column, boxes in enumerate(COLUMNS):
        for row, (title, command, text) in enumerate(boxes):
            x, y = _corner(column, row)
            parts += [
                f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" fill="{COLORS[column]}"/>',
                _text(x + 10, y + 19, title, "bold"),
                _text(x + 10, y + 37, command, family="monospace"),
                _text(x + 10, y + (54 if command else 37), text),
            ]
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {16 + COLUMN * 4 - 30} {tall}" font-size="12">'
    arrow = f'<path d="M0 0 8 4 0 8z" fill="{LINE}"/>'
    marker = f'<marker id="a" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">{arrow}</marker>'
    return "\n".join(
        [head, '<rect width="100%" height="100%" fill="white"/>', f"<defs>{marker}</defs>", *parts, "</svg>\n"]
    )


def _corner(column: int, row: int) -> tuple[int, int]:
    """Returns the upper left corner of a box; columns of two stand in the middle."""
    return 16 + COLUMN * column, TOP + ROW * row + (3 - len(COLUMNS[column])) * ROW // 2


def _arrow(start: tuple[int, int], end: tuple[int, int]) -> str:
    if start[0] == end[0]:
        points = (start[0] + WIDTH / 2, start[1] + HEIGHT, end[0] + WIDTH / 2, end[1] - 2)
    else:
        points = (start[0] + WIDTH, start[1] + HEIGHT / 2, end[0] - 2, end[1] + HEIGHT / 2)
    x1, y1, x2, y2 = points
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{LINE}" marker-end="url(#a)"/>'


def _text(x: float, y: float, text: str, weight: str = "normal", family: str = "sans-serif") -> str:
    return f'<text x="{x}" y="{y}" font-family="{family}" font-weight="{weight}">{html.escape(text)}</text>'


if __name__ == "__main__":
    (Path(__file__).parent / "flow.svg").write_text(draw(), encoding="utf-8")
