"""`jax-speechlm tutor`: reading aloud, short answers, practice."""

import dataclasses
import json
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tyro.conf import Positional
from tyro.extras import subcommand_cli_from_dict

from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parsed_objects
from jax_speechlm.apps.tutoring.answers import AnswerScorer, fit, read_answers
from jax_speechlm.apps.tutoring.page import as_html
from jax_speechlm.apps.tutoring.practice import PracticeStore
from jax_speechlm.apps.tutoring.reading import ReadingTutor, read_text, unknown_letters
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.recognition import EvaluationSpeech
from jax_speechlm.evaluation.replaced_words import measure_replaced_words, report_of
from jax_speechlm.inference.asr.ctc import Recognizer

_STORE = Path("tutor.sqlite")


def tutor(argv: Sequence[str], prog: str) -> None:
    """Runs one of the actions."""
    actions = {
        "read": read,
        "validate": validate,
        "fit": fit_scorer,
        "score": score,
        "practice": practice,
        "export": export,
        "erase": erase,
    }
    subcommand_cli_from_dict(actions, prog=prog, args=argv)


def read(
    run: Positional[Path],
    text: Positional[Path],
    audio: Positional[Path],
    *,
    out: Path | None = None,
    pause: float = 0.5,
) -> None:
    """Compares a recording of a text read aloud with the text, word by word; prints a summary.

    Writes words.jsonl, a line for each word, and index.html, the text in colours.

    Args:
      run: a run trained by ctc.
      text: file of the text; numbers written as words.
      audio: the recording.
      out: folder to write to; by default <audio without its ending>-reading.
      pause: seconds between two words from which they are a pause.
    """
    tutor = ReadingTutor(Recognizer.load(run), pause)
    content = read_text(text)
    if unknown := unknown_letters(tutor.recognizer.tokenizer, content):
        print(f"warning: {text}: the recognizer lacks {', '.join(map(repr, unknown))}; left out", file=sys.stderr)
    reading = tutor.read(content, audio)
    out = out or audio.with_name(f"{audio.stem}-reading")
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(dataclasses.asdict(word), ensure_ascii=False) + "\n" for word in reading.words]
    (out / "words.jsonl").write_text("".join(lines), encoding="utf-8")
    (out / "index.html").write_text(as_html(reading, audio.name), encoding="utf-8")
    print(json.dumps(reading.summary, ensure_ascii=False))
    print(f"{out / 'words.jsonl'}, {out / 'index.html'}", file=sys.stderr)


def validate(
    run: Positional[Path],
    sets: tuple[str, ...],
    split: base.Split = "test",
    out: Path | None = None,
    data_dir: base.DataDir = Path("data"),
    seconds_per_batch: base.BatchSeconds = 120.0,
) -> None:
    """Measures how well the scores of words find a word of the text that is not in the recording.

    In each transcript one word is replaced by another of the set, at random.

    Args:
      run: a run trained by ctc.
      sets: names of prepared sets; "name:split" takes another split than --split.
      out: folder of the report; by default <run>/tutor/<sets>-<split>.
    """
    tutor = ReadingTutor(recognizer := Recognizer.load(run))
    speech = EvaluationSpeech(recognizer, sets, split, data_dir, seconds_per_batch)
    transcripts = [tutor.forms(text) for text in speech.index.column("text").to_pylist()]
    rows = (row for batch in speech.batches() for row in recognizer.posteriors(iter((batch,))).items())
    scores, skipped = measure_replaced_words(rows, transcripts, tutor.judge)
    report = report_of(scores, skipped, checkpoint=str(recognizer.checkpoint), sets=sets, split=split)
    report.publish(out or run / "tutor" / f"{'+'.join(sets)}-{split}", str(run))


def fit_scorer(answers: Positional[Path], out: Path, embed: str | None = None) -> None:
    """Fits a scorer of short answers to scores of yours; prints its agreement on answers that were held out.

    Args:
      answers: JSON lines with question, reference, answer, score.
      out: file of the scorer, in JSON; the report is written to the folder beside it, <out without its ending>-report.
      embed: a run that makes vectors of texts, to compare meanings too.
    """
    scorer, report = fit(read_answers(answers, scored=True), embed)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(scorer.model_dump_json(indent=2) + "\n", encoding="utf-8")
    report.publish(out.with_name(f"{out.stem}-report"), str(out))


def score(scorer: Positional[Path], answers: Positional[Path]) -> None:
    """Scores short answers; prints a line of JSON for each.

    Args:
      scorer: file of `tutor fit`.
      answers: JSON lines with question, reference, answer.
    """
    rows = read_answers(answers, scored=False)
    for row, value in zip(rows, AnswerScorer.load(scorer).score(rows), strict=True):
        print(json.dumps({"question": row.question, "answer": row.answer, "score": value}, ensure_ascii=False))


def practice(
    learner: Positional[str],
    *,
    reading: tuple[Path, ...] = (),
    knew: tuple[str, ...] = (),
    forgot: tuple[str, ...] = (),
    store: Path = _STORE,
) -> None:
    """Stores what a learner knew and missed, and prints what is due: a line of JSON for each item.

    Args:
      learner: name of the learner.
      reading: words.jsonl of `tutor read`: missed words become items, or are due again; words read correctly are known
        if they are items.
      knew: items that the learner knew.
      forgot: items that the learner did not know, new ones too.
      store: file of the learners.
    """
    with PracticeStore(store) as stored:
        for path in reading:
            known = {each.item for each in stored.items(learner)}
            for word, is_correct in _outcomes(path).items():
                if word in known or not is_correct:
                    stored.review(learner, word, is_correct)
        for items, is_known in ((knew, True), (forgot, False)):
            for item in items:
                stored.review(learner, item, is_known)
        every, now = stored.items(learner), datetime.now(UTC)
        due = [each for each in every if each.due <= now]
        for each in due:
            print(json.dumps({"item": each.item, "due": each.due.isoformat()}, ensure_ascii=False))
        following = f", the next at {every[len(due)].due:%Y-%m-%d %H:%M} UTC" if len(due) < len(every) else ""
        print(f"{len(due)} of {len(every)} items are due{following}", file=sys.stderr)


def _outcomes(path: Path) -> dict[str, bool]:
    """Returns the words of a reading, and whether each was read correctly every time. Raises `DataError`."""
    outcomes: dict[str, bool] = {}
    for word, verdict in parsed_objects(path, _read_word, "name words.jsonl of jax-speechlm tutor read"):
        if word and verdict in ("correct", "substituted", "left out"):
            outcomes[word] = outcomes.get(word, True) and verdict == "correct"
    return outcomes


def _read_word(row: dict[str, Any]) -> tuple[str, Any]:
    """Returns a word of a reading without case and punctuation, and its verdict."""
    if not isinstance(word := row["word"], str):
        raise TypeError("word should be a text")
    outside = "".join(each for each in word if unicodedata.category(each)[0] in "PSZC")
    return word.casefold().strip(outside), row["verdict"]


def export(learner: Positional[str], *, out: Path | None = None, store: Path = _STORE) -> None:
    """Writes all that is stored of a learner as JSON.

    Args:
      learner: name of the learner.
      out: the file; by default the standard output.
      store: file of the learners.
    """
    with PracticeStore(_existing(store)) as stored:
        text = json.dumps(stored.export(learner), ensure_ascii=False, indent=2)
    print(text) if out is None else out.write_text(text + "\n", encoding="utf-8")


def erase(learner: Positional[str], *, store: Path = _STORE) -> None:
    """Erases all that is stored of a learner.

    Args:
      learner: name of the learner.
      store: file of the learners.
    """
    with PracticeStore(_existing(store)) as stored:
        count = stored.erase(learner)
    print(f"{store}: erased {learner!r} with {count} items")


def _existing(store: Path) -> Path:
    if not store.is_file():
        raise DataError(f"{store} does not exist: name the file of the learners with --store")
    return store
