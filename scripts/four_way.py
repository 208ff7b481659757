"""Gains from pretraining on speech and on text, for two routes to transcripts: the four-way table of docs/results.md.

Few transcripts, more audio, much text: recognizers are trained on the twenty minutes of transcripts of asterisk-en's
train split, with or without pretraining on the audio of asterisk-en and queen-en (3.6 hours), on prose, or on both. Two
routes: CTC and a speech-language model. Test WER, greedy, on asterisk-en, and on queen-en, whose transcripts no model
was trained on. Pretraining runs once, the later stages with every seed. It takes hours: stop it at any time; the same
command continues. Several processes share the runs, for example one on each core:
`taskset -c 0 python scripts/four_way.py`.
"""

import itertools
import os
import sys
from collections.abc import Sequence
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
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

ARMS = {"neither": (), "speech": ("speech",), "text": ("text",), "both": ("speech", "text")}
ROUTES = {"ctc": "CTC", "speech_lm": "speech LM"}
TEST_SETS = ("asterisk-en", "queen-en")


class FourWay:
    """The runs of the table, by name: "ctc-both-0" is the CTC route after pretraining on both, with seed 0."""

    def __init__(self, runs: Path, data_dir: Path, seeds: Sequence[int]):
        self.runs, self.data_dir, self.seeds = runs, data_dir, seeds
        self.first = f"ctc-neither-{seeds[0]}"  # its characters are the tokenizer of all runs

    def tasks(self) -> dict[str, Task]:
        """Returns the runs, in order."""
        tasks = {"text-lm": Task((self.first,), self._text_lm)}
        for arm in list(ARMS)[1:]:
            tasks[f"pretrain-{arm}"] = Task(() if arm == "speech" else (self.first,), partial(self._pretrain, arm))
        for seed in self.seeds:
            for arm in ARMS:
                starts = (f"pretrain-{arm}",) if ARMS[arm] else ()
                tasks[f"ctc-{arm}-{seed}"] = Task(starts, partial(self._ctc, starts, seed))
            for arm in ARMS:
                starts = (f"ctc-{'speech' if 'speech' in ARMS[arm] else 'neither'}-{seed}",)
                starts += ("text-lm",) if "text" in ARMS[arm] else ()
                tasks[f"speech_lm-{arm}-{seed}"] = Task(starts, partial(self._speech_lm, starts, seed))
        return tasks

    def errors(self, name: str, test_set: str) -> tuple[float, float]:
        """Returns WER and CER, per cent."""
        report = EvaluationReport.load(_report(self.runs / name, test_set) / "report.json")
        return 100 * report.wer.rate, 100 * report.cer.rate

    def _pretrain(self, arm: str, run: Path) -> None:
        whole = registry.load("four_way/pretrain")
        streams = {stream.name: stream for stream in whole.data.streams}
        half = whole.num_steps // len(streams)
        if arm == "speech":  # a joint model needs text; without any it is BEST-RQ's
            alone = whole.replace(data=streams[arm].data, objective=whole.objective.speech, num_steps=half)
            return train_to_end(self._ours(alone), run)
        if arm == "text":
            whole = whole.replace(data=whole.data.replace(streams=(streams[arm],)), num_steps=half)
        train_to_end(self._ours(whole, tokenizer=str(self.runs / self.first)), run)

    def _text_lm(self, run: Path) -> None:
        tokenizer = str(self.runs / self.first)
        prose = {"sets": ("spoken-en",), "weights": (), "dev_sets": ("asterisk-en",), "tokenizer": tokenizer}
        train_to_end(self._ours(registry.load("demo/lm").replace(num_steps=600), **prose), run)

    def _ctc(self, starts: Sequence[str], seed: int, run: Path) -> None:
        train_to_end(self._ours(registry.load("four_way/ctc"), starts, seed), run)
        self._measure(run)

    def _speech_lm(self, starts: Sequence[str], seed: int, run: Path) -> None:
        joined = self._ours(registry.load("four_way/speech_lm"), starts, seed, tokenizer=str(self.runs / self.first))
        train_to_end(joined, run)
        self._measure(run)

    def _ours(self, experiment: Experiment, starts: Sequence[str] = (), seed: int = 0, **data: Any) -> Experiment:
        """Returns an experiment on this study's data that starts from its runs."""
        data = experiment.data.replace(data_dir=str(self.data_dir), **data)
        start = tuple(InitFrom(checkpoint=str(self.runs / name)) for name in starts)
        return experiment.replace(data=data, init_from=start, seed=seed)

    def _measure(self, run: Path) -> None:
        for test_set in TEST_SETS:
            evaluate_run(run, (test_set,), data_dir=self.data_dir, out=_report(run, test_set))


def _report(run: Path, test_set: str) -> Path:
    return run / "eval" / f"{test_set}-test"


def main(
    data_dir: Path = Path("data"), run_dir: Path = Path("runs/four_way"), seeds: tuple[int, ...] = (0, 1, 2)
) -> None:
    """Trains the runs that are left and prints the tables of the seeds that are complete.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs.
      seeds: of the runs after pretraining.
    """
    cache_compilations()
    four_way = FourWay(run_dir, data_dir, seeds)
    queue, printed = RunQueue(run_dir, four_way.tasks()), []
    for _ in itertools.chain(queue.work(), (None,)):
        names = {seed: [f"{route}-{arm}-{seed}" for route in ROUTES for arm in ARMS] for seed in seeds}
        done = [seed for seed in seeds if all(map(queue.finished, names[seed]))]
        if done != printed:
            Console(width=140).print(_table(four_way, done))
            if len(done) > 1:
                Console(width=140).print(_gains(four_way, done))
            printed = done


def _table(four_way: FourWay, seeds: Sequence[int]) -> Table:
    """Makes the table of means over seeds, with each seed's figure."""
    title = f"Test errors, per cent, greedy; seeds {', '.join(map(str, seeds))}"
    table = Table("route", "pretrained on", title=title, title_justify="left")
    for test_set, rate in itertools.product(TEST_SETS, ("WER", "CER")):
        table.add_column(f"{test_set} {rate}", justify="right")
    for route, arm in itertools.product(ROUTES, ARMS):
        cells = []
        for test_set in TEST_SETS:
            for rates in zip(*(four_way.errors(f"{route}-{arm}-{seed}", test_set) for seed in seeds), strict=True):
                cells.append(mean_cell(rates))
        table.add_row(ROUTES[route], arm, *cells)
    return table


def _gains(four_way: FourWay, seeds: Sequence[int]) -> Table:
    """Makes the table of differences to no pretraining: means over seeds, and their 95 % intervals."""
    title = f"Differences to no pretraining, points [95 %, Student's t]; seeds {', '.join(map(str, seeds))}"
    table = Table("route", "pretrained on", title=title, title_justify="left")
    for test_set, rate in itertools.product(TEST_SETS, ("WER", "CER")):
        table.add_column(f"{test_set} {rate}", justify="right")
    for route, arm in itertools.product(ROUTES, list(ARMS)[1:]):
        cells = []
        for test_set in TEST_SETS:
            gains = np.array([_gain(four_way, route, arm, test_set, seed) for seed in seeds])  # [seeds, (WER, CER)]
            cells += map(gain_cell, gains.T)
        table.add_row(ROUTES[route], arm, *cells)
    return table


def _gain(four_way: FourWay, route: str, arm: str, test_set: str, seed: int) -> np.ndarray:
    """Returns WER and CER of a pretrained model, minus those without pretraining, for one seed."""
    pretrained, scratch = (four_way.errors(f"{route}-{start}-{seed}", test_set) for start in (arm, "neither"))
    return np.subtract(pretrained, scratch)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
