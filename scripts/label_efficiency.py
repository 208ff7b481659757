"""Errors by minutes of transcripts and by what was learnt before: the figure of label efficiency in docs/results.md.

Recognizers of asterisk-en learn from 2, 5, 10 or all 20 minutes of its transcripts, as `demo/finetune`, from four
starts: random parameters, BEST-RQ on the audio of asterisk-en and queen-en, joint pretraining on this audio and on
prose (both `four_way/pretrain`), or CTC on the transcripts that Whisper tiny.en makes of the same audio. Each start is
trained once; the subsets, of which each holds the smaller ones, are the same for all; the recognizers are trained with
every seed. Greedy, on the test split. It takes hours: stop it at any time; the same command continues. Several
processes share the runs, for example one on each core.

    jax-speechlm prepare asterisk-en queen-en
    jax-speechlm prepare spoken-en --debian text-en --steps unicode sentences spoken exact \\
      --held-out asterisk-en queen-en
    python scripts/label_efficiency.py --whisper runs/whisper-tiny.en
"""

import itertools
import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import numpy as np
import tyro
from over_seeds import gain_cell, mean_cell
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.relabel import relabel
from data_pipelines.storage import index as indexes
from data_pipelines.text.normalize import normalise
from jax_speechlm.cli.tokenizer import train_tokenizer
from jax_speechlm.evaluation.recognition import EvaluationSpeech, evaluate_run
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

STARTS = ("random", "best_rq", "joint", "whisper")
TARGET, AUDIO = "asterisk-en", ("asterisk-en", "queen-en")


class LabelEfficiency:
    """The runs by name: "joint-5-0" learns from 5 minutes after joint pretraining, with seed 0."""

    def __init__(self, runs: Path, data_dir: Path, whisper: Path, num_steps: int):
        self.runs, self.data_dir, self.whisper, self.num_steps = runs, data_dir, whisper, num_steps

    def tasks(self, minutes: tuple[int, ...], seeds: tuple[int, ...]) -> dict[str, Task]:
        """Returns the runs, in order."""
        tasks = {"tokens": Task((), self._tokens), "subsets": Task((), partial(self._subsets, minutes))}
        tasks["transcripts"] = Task((), self._transcripts)
        tasks |= {name: Task(("tokens",), partial(self._pretrain, name)) for name in ("best_rq", "joint")}
        tasks["whisper"] = Task(("tokens", "transcripts"), self._pseudo_labels)
        for seed, amount, start in itertools.product(seeds, minutes, STARTS):
            needs = ("tokens", "subsets") + ((start,) if start != "random" else ())
            tasks[f"{start}-{amount}-{seed}"] = Task(needs, partial(self._recognizer, start, amount, seed))
        return tasks

    def errors(self, name: str) -> tuple[float, float]:
        """Returns WER and CER, per cent."""
        report = EvaluationReport.load(self.runs / name / "eval" / "report.json")
        return 100 * report.wer.rate, 100 * report.cer.rate

    def _tokens(self, run: Path) -> None:
        train_tokenizer((TARGET,), run / "tokenizer", "char", data_dir=self.data_dir)

    def _subsets(self, minutes: tuple[int, ...], run: Path) -> None:
        """Makes the sets "asterisk-en-5min" and so on, whose other rows have no transcript."""
        (part,) = indexes.read_sets(self.data_dir, (TARGET,), "train").parts
        order = np.random.default_rng(0).permutation(part.num_rows)
        until = np.cumsum(part.lengths("num_samples")[order]) / part.sample_rate / 60
        for amount in minutes:
            kept = set(order[until <= amount] if amount < until[-1] else order)
            texts = [text if row in kept else "" for row, text in enumerate(part.texts())]
            relabel(part, texts, self._subset(amount), {"minutes": amount})

    def _subset(self, amount: int) -> Path:
        return self.data_dir / f"{TARGET}-{amount}min"

    def _transcripts(self, run: Path) -> None:
        """Makes the sets "whisper-asterisk-en" and "whisper-queen-en"."""
        transcriber = open_transcriber(self.whisper)
        speech = EvaluationSpeech(transcriber, AUDIO, "train", self.data_dir, 120.0)
        by_row = transcriber.transcribe_batches(speech.batches())
        for part, first in zip(speech.index.parts, speech.index.first_row, strict=False):
            texts = [_spoken(by_row[first + row].text) for row in range(part.num_rows)]
            folder = self.data_dir / f"whisper-{part.set_dir.name}"
            relabel(part, texts, folder, {"transcribed_by": str(transcriber.checkpoint)})

    def _pretrain(self, name: str, run: Path) -> None:
        recipe = registry.load("four_way/pretrain")
        if name == "best_rq":  # a joint model needs text; without any it is BEST-RQ's
            streams = {stream.name: stream.data for stream in recipe.data.streams}
            half = recipe.num_steps // len(streams)
            recipe = recipe.replace(data=streams["speech"], objective=recipe.objective.speech, num_steps=half)
        train_to_end(self._ours(recipe), run)

    def _pseudo_labels(self, run: Path) -> None:
        recipe = registry.load("demo/finetune").replace(num_steps=1500)
        sets = tuple(f"whisper-{name}" for name in AUDIO)
        train_to_end(self._ours(recipe, sets=sets, dev_sets=(TARGET,)), run)

    def _recognizer(self, start: str, amount: int, seed: int, run: Path) -> None:
        recipe = registry.load("demo/finetune").replace(seed=seed, num_steps=self.num_steps)
        if start != "random":
            groups = ("encoder", "head") if start == "whisper" else None
            recipe = recipe.replace(init_from=(InitFrom(checkpoint=str(self.runs / start), groups=groups),))
        sets = {"sets": (self._subset(amount).name,), "dev_sets": (TARGET,), "max_dropped": 1.0}  # few have transcripts
        train_to_end(self._ours(recipe, **sets), run)
        evaluate_run(run, (TARGET,), data_dir=self.data_dir, out=run / "eval")

    def _ours(self, experiment: Experiment, **data: Any) -> Experiment:
        tokenizer = str(self.runs / "tokens" / "tokenizer")
        data = experiment.data.replace(data_dir=str(self.data_dir), tokenizer=tokenizer, **data)
        return experiment.replace(data=data)


def _spoken(text: str) -> str:
    """Returns a transcript as the prepared sets are written; "" if it has no spoken form."""
    try:
        return normalise(text, "en")
    except ValueError:
        return ""


def main(
    whisper: Path,
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/label_efficiency"),
    minutes: tuple[int, ...] = (2, 5, 10, 20),
    seeds: tuple[int, ...] = (0, 1, 2),
    num_steps: int = 800,
) -> None:
    """Trains the runs that are left and prints the table of the seeds that are complete.

    Args:
      whisper: a run imported from Whisper tiny.en (docs/whisper.md).
      data_dir: prepared data; receives the sets with fewer or other transcripts.
      run_dir: folder of the runs; receives errors.json, which docs/draw_label_efficiency.py draws.
      minutes: of transcripts.
      seeds: of the recognizers.
      num_steps: of the recognizers.
    """
    cache_compilations()
    study = LabelEfficiency(run_dir, data_dir, whisper, num_steps)
    queue, printed = RunQueue(run_dir, study.tasks(minutes, seeds)), []
    for _ in itertools.chain(queue.work(), (None,)):
        names = {seed: [f"{start}-{amount}-{seed}" for start in STARTS for amount in minutes] for seed in seeds}
        done = [seed for seed in seeds if all(map(queue.finished, names[seed]))]
        if done != printed:
            _report(study, minutes, done)
            printed = done


def _report(study: LabelEfficiency, minutes: tuple[int, ...], seeds: list[int]) -> None:
    """Prints the table of means over seeds, with differences to random parameters, and writes the errors."""
    errors = {
        start: {amount: [study.errors(f"{start}-{amount}-{seed}") for seed in seeds] for amount in minutes}
        for start in STARTS
    }
    (study.runs / "errors.json").write_text(json.dumps({"seeds": seeds, "errors": errors}, indent=1))
    title = f"Test errors, per cent, greedy; seeds {', '.join(map(str, seeds))}"
    table = Table("minutes", "start", title=title, title_justify="left")
    for rate in ("WER", "CER"):
        table.add_column(rate, justify="right")
        table.add_column("to random [95 %, Student's t]", justify="right")
    for amount, start in itertools.product(minutes, STARTS):
        rates, random = np.array(errors[start][amount]).T, np.array(errors["random"][amount]).T  # [2, seeds]
        cells = []
        for own, base in zip(rates, random, strict=True):
            cells += [mean_cell(own), gain_cell(own - base) if start != "random" and len(seeds) > 1 else ""]
        table.add_row(str(amount), start, *cells, end_section=start == STARTS[-1])
    Console(width=140).print(table)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
