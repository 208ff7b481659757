"""The page of judged speech: the table, and players of every system beside the transcripts of the judges."""

import html
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import soundfile

from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.recognition_page import marked
from jax_speechlm.evaluation.synthesis import SpeechRow, SpokenText, judge_speech
from jax_speechlm.evaluation.synthesis_report import SynthesisReport

_STYLE = """body{font:15px system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .6rem;border-bottom:1px solid #ddd;text-align:right}
td:first-child,th:first-child,.said td{text-align:left}small{color:#767676}.table{overflow-x:auto}
del{color:#b3261e}ins{color:#0b57d0}h3{margin:1.5rem 0 0;font-size:1rem}audio{height:2rem;width:16rem}"""


def judge_and_publish(
    rows: Sequence[SpeechRow],
    texts: Sequence[SpokenText],
    settings: JudgeSettings,
    out: Path,
    *,
    title: str = "",
    normalizer_name: NormalizerName | None = None,
) -> SynthesisReport:
    """Judges rows of speech, prints the table, and writes report and page.

    Args:
      out: receives `report.json`, `table.md`, `index.html` and the judged audio as `audio/<row>/<utterance>.flac`.
      title, normalizer_name: as in `judge_speech`, whose errors are raised.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".judged-") as folder:
        clips = Path(folder) / "clips"
        report = judge_speech(rows, texts, settings, title=title, normalizer_name=normalizer_name, folder=clips)
        for clip in clips.glob("*/*.wav"):
            samples, rate = soundfile.read(clip, dtype="int16")
            soundfile.write(clip.with_suffix(".flac"), samples, rate)
            clip.unlink()
        shutil.rmtree(out / "audio", ignore_errors=True)
        clips.rename(out / "audio")
    (out / "index.html").write_text(as_html(report), encoding="utf-8")
    source = "\n".join([*report.conditions(), f"{title}; {out / 'index.html'}"])
    return report.publish(out, source, warning="\n".join(report.problems()))


def judge_sets(
    rows: Sequence[SpeechRow],
    texts: Sequence[SpokenText],
    settings: JudgeSettings,
    out: Path,
    *,
    sets: Sequence[str],
    split: str,
    limit: int | None,
    normalizer_name: NormalizerName | None,
) -> SynthesisReport:
    """Judges rows of speech whose texts are those of prepared sets; others as of `judge_and_publish`."""
    title = f"{', '.join(sets)} {split}" + (f", first {len(texts)}" if limit else "")
    return judge_and_publish(rows, texts, settings, out, title=title, normalizer_name=normalizer_name)


def as_html(report: SynthesisReport) -> str:
    """Returns a page whose players play `audio/<row>/<utterance>.flac` beside it."""
    title = html.escape(f"Judged speech: {report.title}")
    head = "".join(f"<th>{html.escape(column)}</th>" for column in report.titles())
    rows = []
    for row in report.rows:
        cells = "".join(f"<td>{_cell(cell)}</td>" for cell in report.cells(row))
        rows.append(f"<tr><td>{html.escape(row.name)}</td>{cells}</tr>")
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in report.conditions() + report.problems())
    said = "".join(_utterance(report, number) for number in range(len(report.utterances)))
    return f"""<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>{_STYLE}</style>
<h1>{title}</h1><div class="table"><table><tr><th></th>{head}</tr>{"".join(rows)}</table></div><ul>{notes}</ul>
<p>The players play what was judged: 16 kHz, 16 bits. In transcripts, <del>words that are missing</del> and
<ins>words that are not in the text</ins> are marked.</p>
{said}</html>
"""


def _cell(text: str) -> str:
    """Sets the interval of a value in small type."""
    value, bracket, rest = html.escape(text).partition(" [")
    return f"{value}<br><small>[{rest}</small>" if bracket else value


def _utterance(report: SynthesisReport, number: int) -> str:
    utterance = report.utterances[number]
    lines = []
    for place, row in enumerate(report.rows):
        said = ""
        for judge, text in utterance.transcripts[row.name].items():
            differences = marked(utterance.reference, text, utterance.language, report.normalizer)
            said += f"<td><small>{html.escape(judge)}</small> {differences}</td>"
        player = f'<audio controls preload="none" src="audio/{place}/{number}.flac"></audio>'
        lines.append(f"<tr><td>{html.escape(row.name)}</td><td>{player}</td>{said}</tr>")
    return (
        f"<h3>{html.escape(utterance.id)}</h3><div>{html.escape(utterance.reference)}</div>"
        f'<div class="table"><table class="said">{"".join(lines)}</table></div>\n'
    )
