"""The page of `make demo`: a file of its own with figures, sound and text, which nothing outside is needed to read."""

import base64
import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from jax_speechlm.evaluation.recognition_page import marked
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.training.pictures import to_png

_POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"  # nothing is fetched
_STYLE = """
:root{--ink:#1e293b;--soft:#64748b;--line:#e2e8f0;--blue:#2563eb;--amber:#d97706;--red:#b91c1c}
*{box-sizing:border-box}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:#f8fafc;margin:0 auto;max-width:64rem;
 padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0}h2{font-size:1.2rem;margin:2.5rem 0 .75rem}
p{margin:.5rem 0}small,figcaption,.soft{color:var(--soft);font-size:.875rem}
.tiles,.pair{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(11rem,1fr));margin:1.5rem 0}
.pair{grid-template-columns:repeat(auto-fit,minmax(20rem,1fr));margin:0}
.card{background:#fff;border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.25rem;margin:0;overflow-x:auto}
.tiles b{display:block;font-size:1.8rem;line-height:1.25}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
td,th{padding:.4rem .75rem .4rem 0;border-bottom:1px solid var(--line);text-align:right;font-weight:400}
td:first-child,th:first-child,td.text{text-align:left}td.text{color:var(--soft);padding-left:1.5rem}
tr:last-child td{border-bottom:0}th{color:var(--soft);font-size:.875rem}
.clip{display:grid;grid-template-columns:18rem 1fr;gap:.25rem 1.25rem;align-items:center;padding:.75rem 0;
 border-bottom:1px solid var(--line)}.clip:last-child{border:0}@media(max-width:42rem){.clip{grid-template-columns:1fr}}
audio{width:100%;height:2.25rem}del{color:var(--red)}ins{color:var(--blue);text-decoration-thickness:1px}
svg{display:block;width:100%;height:auto}svg text{font:12px system-ui,sans-serif;fill:var(--soft)}
svg text.ink{fill:var(--ink)}
pre{margin:.25rem 0 1rem;padding:.6rem .9rem;background:#f1f5f9;border-radius:.4rem;white-space:pre-wrap;
 font-size:.875rem}
"""


class Curve(NamedTuple):
    """Losses of a run, as pairs of step and loss."""

    title: str
    train: list[tuple[int, float]]
    dev: list[tuple[int, float]]

    @classmethod
    def read(cls, title: str, run_dir: Path) -> "Curve":
        """Reads the log of a run."""
        lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
        losses = ([(line["step"], line["loss"]) for line in lines if line["part"] == part] for part in ("train", "dev"))
        return cls(title, *losses)


class Alignment(NamedTuple):
    """A clip with the features and output of the recognizer.

    Attributes:
      mel: log-mel spectrogram.
      token_probability: by frame, of the likeliest token but the blank.
      letters, words: recognised letters and words of the reference, each with its start and end in seconds.
    """

    text: str
    seconds: float
    mel: Float[np.ndarray, "time bins"]
    token_probability: Float[np.ndarray, " frames"]
    letters: list[tuple[str, float, float]]
    words: list[tuple[str, float, float]]


class Clip(NamedTuple):
    """An utterance of the test split, by its place in the reports, with its audio as a FLAC file."""

    place: int
    flac: bytes


class Step(NamedTuple):
    """Something to do next, and its commands."""

    title: str
    commands: tuple[str, ...]


class Demo(NamedTuple):
    """What the page shows; `reports` by decoding, the best last."""

    summary: str
    tiles: Sequence[tuple[str, str]]
    reports: dict[str, EvaluationReport]
    clips: Sequence[Clip]
    alignment: Alignment
    curves: Sequence[Curve]
    stages: Sequence[tuple[str, float, str]]
    next_steps: Sequence[Step]


def as_html(demo: Demo) -> str:
    """Returns a self-contained page."""
    best = list(demo.reports.values())[-1]
    tiles = "".join(f'<div class="card"><b>{_text(value)}</b>{_text(name)}</div>' for name, value in demo.tiles)
    rates = "".join(
        f"<tr><td>{_text(name)}</td><td>{report.wer}</td><td>{report.cer}</td></tr>"
        for name, report in demo.reports.items()
    )
    stages = "".join(
        f'<tr><td>{_text(name)}</td><td>{minutes:.1f}</td><td class="text">{_text(outcome)}</td></tr>'
        for name, minutes, outcome in demo.stages
    )
    steps = "".join(
        f"<div>{_text(step.title)}</div><pre>{_text(chr(10).join(step.commands))}</pre>" for step in demo.next_steps
    )
    return f"""<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>jax_speechlm demo</title><style>{_STYLE}</style>
<h1>jax_speechlm demo</h1><p class="soft">{_text(demo.summary)}</p><div class="tiles">{tiles}</div>
<h2>Errors on {best.wer.utterances:,} clips that training did not see</h2>
<div class="card"><table><tr><th>decoding</th><th>WER [95 %]</th><th>CER [95 %]</th></tr>{rates}</table></div>
<p class="soft">{best.wer.tokens:,} words. The intervals are over the utterances alone: other seeds and machines train
other models. docs/results.md has the errors of larger models on the same clips.</p>
<h2>Listen and compare</h2><div class="card">{"".join(_clip(clip, best) for clip in demo.clips)}</div>
<p class="soft">Transcripts of the last row of the table. <del>Words that are missing</del> and <ins>words that are not
in the reference</ins> are marked.</p>
<h2>Features and output for one clip</h2>
<figure class="card"><p>{_text(demo.alignment.text)}</p>{_aligned(demo.alignment)}</figure>
<p class="soft">Above, the log-mel spectrogram, low frequencies at the bottom. In the middle, the letters of
the best path, without a language model, and the probability of the likeliest letter at each time: where it falls, CTC's
blank is likelier. Below, the reference, aligned with the same output.</p>
<h2>Learning curves</h2><div class="pair">{"".join(map(_curve, demo.curves))}</div>
<h2>Stages</h2><div class="card"><table><tr><th>stage</th><th>minutes</th><th></th></tr>{stages}</table></div>
<h2>What to do next</h2><div class="card">{steps}</div></html>
"""


def _text(text: str) -> str:
    return html.escape(text)


def _clip(clip: Clip, report: EvaluationReport) -> str:
    utterance = report.utterances[clip.place]
    differences = marked(utterance.reference, utterance.hypothesis, utterance.language, report.normalizer)
    audio = base64.b64encode(clip.flac).decode()
    return (
        f'<div class="clip"><audio controls preload="metadata" src="data:audio/flac;base64,{audio}"></audio>'
        f"<div><small>reference</small> {_text(utterance.reference)}<br>"
        f"<small>transcript</small> {differences}</div></div>"
    )


def _aligned(alignment: Alignment) -> str:
    """Draws the spectrogram, the recognizer's output and the words of the reference over one axis of time."""
    left, width, height = 76, 914, 160  # of the spectrogram
    spikes, words = height + 84, height + 96  # base line of the probabilities, top of the words

    def x(seconds: float) -> float:
        return left + width * seconds / alignment.seconds

    picture = base64.b64encode(to_png(alignment.mel.T[::-1])).decode()
    frames = alignment.token_probability
    middles = (np.arange(len(frames)) + 0.5) * alignment.seconds / len(frames)
    points = " ".join(f"{x(time):.1f},{spikes - 56 * share:.1f}" for time, share in zip(middles, frames, strict=True))
    parts = [
        f'<image x="{left}" width="{width}" height="{height}" preserveAspectRatio="none" '
        f'href="data:image/png;base64,{picture}"/>',
        f'<polygon points="{left},{spikes} {points} {left + width},{spikes}" fill="#bfdbfe" stroke="var(--blue)"/>',
        *(
            f'<text x="0" y="{y}">{name}</text>'
            for name, y in (("log-mel", height / 2), ("CTC", spikes - 24), ("reference", words + 16))
        ),
    ]
    for letter, start, end in alignment.letters:
        place = x((start + end) / 2)
        parts.append(f'<text class="ink" x="{place:.1f}" y="{spikes - 60}" text-anchor="middle">{_text(letter)}</text>')
    for word, start, end in alignment.words:
        parts.append(
            f'<rect x="{x(start):.1f}" y="{words}" width="{x(end) - x(start):.1f}" height="24" rx="3" fill="#fef3c7" '
            f'stroke="var(--amber)"/><text class="ink" x="{(x(start) + x(end)) / 2:.1f}" y="{words + 16}" '
            f'text-anchor="middle">{_text(word)}</text>'
        )
    for second in np.arange(0, alignment.seconds, 0.5):
        parts.append(f'<text x="{x(second):.1f}" y="{words + 44}" text-anchor="middle">{second:g} s</text>')
    return f'<svg viewBox="0 0 1000 {words + 50}" role="img">{"".join(parts)}</svg>'


def _curve(curve: Curve) -> str:
    """Draws the losses of a run: training as a line, validation as dots."""
    left, top, width, height = 40, 8, 400, 190  # of 460: half of the last step's number stands beyond
    steps, losses = zip(*curve.train, *curve.dev, strict=True)
    low, high = min(losses), max(losses)
    low, high = low - 0.05 * (high - low), high + 0.05 * (high - low) + 1e-6
    last = max(steps)

    def place(step: int, loss: float) -> tuple[float, float]:
        return left + width * step / last, top + height * (high - loss) / (high - low)

    parts = []
    for value in _ticks(low, high):
        y = place(0, value)[1]
        parts.append(
            f'<path d="M{left} {y:.1f}h{width}" stroke="var(--line)"/><text x="0" y="{y + 4:.1f}">{value:g}</text>'
        )
    for step in _ticks(0, last):
        parts.append(f'<text x="{place(step, 0)[0]:.1f}" y="{top + height + 20}" text-anchor="middle">{step:g}</text>')
    line = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in curve.train)
    parts.append(f'<polyline points="{line}" fill="none" stroke="var(--blue)" stroke-width="2"/>')
    for point in curve.dev:
        parts.append('<circle cx="{:.1f}" cy="{:.1f}" r="4.5" fill="var(--amber)"/>'.format(*place(*point)))
    return (
        f'<figure class="card"><p>{_text(curve.title)}</p><svg viewBox="0 0 460 {top + height + 28}" role="img">'
        f'{"".join(parts)}</svg><figcaption>loss by step: <span style="color:var(--blue)">training</span>, '
        '<span style="color:var(--amber)">validation</span></figcaption></figure>'
    )


def _ticks(low: float, high: float) -> list[float]:
    """Returns three to nine round values from `low` to `high`."""
    unit = 10 ** np.floor(np.log10((high - low) / 4))
    step = next(step for step in (unit, 2 * unit, 5 * unit) if (high - low) / step <= 8)
    return [float(np.round(value, 10)) for value in np.arange(np.ceil(low / step) * step, high + step / 1e6, step)]
