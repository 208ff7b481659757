"""From raw speech to a recognizer and a page about it, on real data: `make demo`.

Fetches asterisk-en (24 minutes of studio prompts) and queen-en (4.4 hours of acted dialogue), pretrains a small
conformer on audio alone, finetunes it on transcripts, estimates a character n-gram of the transcripts, measures word
error rates on the test split, which nothing else uses, exports the recognizer for Hugging Face's transformers, and
writes a page, `index.html`, with error rates, audio, an alignment and learning curves. Steps are counted, not timed:
the same seed on the same idle machine gives the same model.
"""

import contextlib
import importlib.util
import io
import logging
import os
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import jax
import jax.numpy as jnp
import numpy as np
import soundfile
import tyro
from demo_page import Alignment, Clip, Curve, Demo, Step, as_html
from rich.console import Console
from rich.table import Table

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import prepare
from data_pipelines.prepare.report import PreparationReport
from data_pipelines.storage.index import read_index
from data_pipelines.storage.records import RecordReader
from jax_speechlm.decoding.ctc.posteriors import Frames, path_spans
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.decoding.lm.train_ngram import train_ngram
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.align import align_utterances
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.segmentation import in_batches
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import Result, TrainingStopped, train

_CLIPS = 6  # on the page
_SECONDS = 2.0, 6.0  # of a clip on the page, if the set has such
_ORDER = 6  # of the n-gram of characters


def main(
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/demo"),
    sets: tuple[str, ...] = ("asterisk-en", "queen-en"),
    pretrain: str = "demo/pretrain",
    finetune: str = "demo/finetune",
    seed: int = 0,
) -> None:
    """Runs all stages.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs and of the page.
      sets: sets of speech, prepared already or such as `prepare` fetches; the first one's test split is the test.
      pretrain, finetune: recipes, or .py files.
      seed: of both runs.
    """
    cache_compilations()
    # It warns of the two clips over the recipe's limit of validation, which no setting of the demo changes.
    logging.getLogger("data_pipelines.batching.plan").setLevel(logging.ERROR)
    console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 140)
    stages, began, test_set = Stages(console), time.perf_counter(), sets[0]

    def experiment(name: str, start: tuple[InitFrom, ...] = ()) -> Experiment:
        recipe = registry.load(name)
        return recipe.replace(data=recipe.data.replace(data_dir=str(data_dir)), seed=seed, init_from=start)

    with stages.stage("prepare speech") as done:
        for name in sets:
            report = prepared(data_dir, name)
            report.print(console)
            done(f"{name}: {report.hours:.2f} h")

    pretrained, finetuned = run_dir / "pretrain", run_dir / "finetune"
    with stages.stage("pretrain on audio alone (BEST-RQ)") as done:
        done(finish(experiment(pretrain), pretrained).seen)
    with stages.stage("finetune on transcripts (CTC)") as done:
        done(finish(experiment(finetune, (InitFrom(checkpoint=str(pretrained)),)), finetuned).seen)

    reports: dict[str, EvaluationReport] = {}
    with stages.stage("evaluate") as done:
        reports["greedy"] = evaluate_run(finetuned, (test_set,), data_dir=data_dir)
        done(f"WER {reports['greedy'].wer}")
    if importlib.util.find_spec("kenlm"):
        ngram = run_dir / f"characters-{_ORDER}.arpa"
        with stages.stage(f"estimate a character {_ORDER}-gram, decode with it") as done:
            train_ngram(ngram, sets, order=_ORDER, unit="char", data_dir=data_dir)
            report = evaluate_run(finetuned, (test_set,), decoding=Decoding(lm=ngram), data_dir=data_dir)
            reports[f"with a character {_ORDER}-gram"] = report
            done(f"WER {report.wer}")
    else:
        hint = "No n-gram: kenlm is not installed (pip install -e '.[ngram]'; it needs a C++ compiler)."
        console.print(hint, style="yellow", markup=False)
    best = list(reports.values())[-1]

    clips = chosen_clips(data_dir / test_set)
    shown = best.utterances[clips[0].place]
    (run_dir / "clip.flac").write_bytes(clips[0].flac)
    with stages.stage("export the recognizer for transformers, checked") as done:
        recognizer = Recognizer.load(finetuned)
        verdict = write_checked(recognizer.run, run_dir / "exported", audio=(run_dir / "clip.flac",))
        done(verdict.line.partition(":")[0])

    minutes = (time.perf_counter() - began) / 60
    page, size = run_dir / "index.html", sum(array.size for array in jax.tree.leaves(recognizer.run.params))
    demo = Demo(
        summary=f"{size / 1e6:.2f} M parameters; speech: {', '.join(sets)}; test: {test_set}; seed {seed}",
        tiles=[
            *((f"WER, {name}", f"{100 * report.wer.rate:.1f} %") for name, report in reports.items()),
            (f"minutes in all, on {os.cpu_count()} CPU cores", f"{minutes:.1f}"),
        ],
        reports=reports,
        clips=clips,
        alignment=aligned(recognizer, clips[0], shown.id, shown.reference),
        curves=[Curve.read("Pretraining", pretrained), Curve.read("Finetuning", finetuned)],
        stages=stages.rows,
        next_steps=next_steps(run_dir, test_set, finetune, ngram if len(reports) > 1 else None),
    )
    page.write_text(as_html(demo), encoding="utf-8")

    console.print(stages.table())
    console.print(
        f"{run_dir / 'clip.flac'}\nreference:  {shown.reference}\ntranscript: {shown.hypothesis}\n", markup=False
    )
    for name, report in reports.items():
        console.print(f"{test_set} test, {name}: WER {report.wer}, CER {report.cer}", markup=False)
    console.print(f"{minutes:.1f} minutes in all. Figures, sound and what to do next: {page}")
    open_page(page)


class Stages:
    """Announces the stages and keeps their names, minutes and outcomes."""

    def __init__(self, console: Console):
        self._console = console
        self.rows: list[tuple[str, float, str]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator:
        """Times a stage; the body calls what it gets with the outcomes."""
        self._console.rule(name)
        outcomes: list[str] = []
        began = time.perf_counter()
        yield lambda *each: outcomes.extend(each)
        self.rows.append((name, (time.perf_counter() - began) / 60, "; ".join(outcomes)))

    def table(self) -> Table:
        """Returns all stages as a table."""
        table = Table("stage", "minutes", "", title="jax_speechlm demo", title_justify="left")
        for name, minutes, outcome in self.rows:
            table.add_row(name, f"{minutes:.1f}", outcome)
        return table


def prepared(data_dir: Path, name: str) -> PreparationReport:
    """Prepares a set unless it is complete; returns its report."""
    if (data_dir / name / "meta.json").is_file():
        return PreparationReport.load(data_dir / name / "report.json")
    return prepare(name, data_dir=data_dir)


def open_page(page: Path) -> None:
    """Opens a page in the user's browser where there is a display."""
    if os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(page.absolute().as_uri())


def finish(experiment: Experiment, run_dir: Path) -> Result:
    """Trains a run to its end; exits if a signal stopped it."""
    result = train(experiment, run_dir)
    if result.step < experiment.num_steps:
        sys.exit("Stopped. The same command goes on from there.")
    return result


def chosen_clips(folder: Path) -> list[Clip]:
    """Reads clips of suitable length at even distances in the test split, so that none is chosen by its errors."""
    index = read_index(folder, "test")
    seconds = [samples / index.sample_rate for samples in index.num_samples]
    rows = [row for row, length in enumerate(seconds) if _SECONDS[0] <= length <= _SECONDS[1]] or list(
        range(len(index))
    )
    places = np.unique(np.linspace(0, len(rows) - 1, _CLIPS).round().astype(int))
    reader = RecordReader(index)
    return [Clip(rows[place], reader.read(rows[place])[0]) for place in places]


def aligned(recognizer: Recognizer, clip: Clip, name: str, reference: str) -> Alignment:
    """Computes the features of a clip, the recognizer's best path, and the times of the words of its reference."""
    frontend, rate = recognizer.experiment.frontend, recognizer.experiment.sample_rate
    samples = soundfile.read(io.BytesIO(clip.flac), dtype="int16")[0]
    (batch,) = in_batches([samples])
    log_probs = recognizer.posteriors(iter([batch]))[0]
    vectors_BxTxF, _ = features(jax.tree.map(jnp.asarray, batch), frontend, None)
    vectors = np.asarray(vectors_BxTxF[0, : int(frontend.mel.num_frames(len(samples)))])
    frame, pieces = recognizer.experiment.frame_samples / rate, recognizer.tokenizer.pieces
    spans = path_spans(Frames.of(log_probs))
    (found, _) = align_utterances(recognizer, [(name, reference, len(samples) / rate, log_probs)])
    return Alignment(
        text=reference,
        seconds=len(log_probs) * frame,
        mel=vectors.reshape(len(vectors) * frontend.mel.stack, -1),
        token_probability=np.exp(log_probs[:, 1:].max(-1)),
        letters=[(pieces[span.token].strip(SPACE), span.start * frame, span.end * frame) for span in spans],
        words=[(word.word, word.start, word.end) for each in found for word in each.words],
    )


def next_steps(run_dir: Path, test_set: str, recipe: str, ngram: Path | None) -> list[Step]:
    """Returns what a user may do with the runs, with commands for this environment."""
    finetuned = run_dir / "finetune"
    longer = 4 * registry.load(recipe).num_steps
    lm = f" --lm {ngram}" if ngram else ""
    return [
        Step("First, once per terminal:", (f". {Path(sys.prefix) / 'bin' / 'activate'}",)),
        Step("Transcribe a recording of your own:", (f"jax-speechlm transcribe {finetuned} my.wav{lm}",)),
        Step(
            'Train on your own recordings, from a file of lines like {"audio": "a.wav", "text": "..."}:',
            (
                "jax-speechlm prepare --manifest my.jsonl",
                f"jax-speechlm finetune --config {recipe} --data.sets my --from {finetuned} --run-dir runs/my",
            ),
        ),
        Step(
            "Train four times as long:",
            (
                f"jax-speechlm finetune --config {recipe} --from {run_dir / 'pretrain'} --num-steps {longer} "
                "--run-dir runs/longer",
                f"jax-speechlm eval runs/longer --sets {test_set}{lm}",
            ),
        ),
        Step("Train a small voice, which needs its own ten minutes, and let it speak:", ("make demo-tts",)),
        Step("Look at all curves:", (f"tensorboard --logdir {run_dir}",)),
        Step("See all commands, and the recipes with their results:", ("jax-speechlm --help", "jax-speechlm recipes")),
    ]


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, ExportError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
