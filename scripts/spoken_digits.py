"""Gains from pretraining without transcripts on spoken digits: the table of docs/results.md.

Digits of the Free Spoken Digit Dataset (6 speakers, 3,000 clips), with the tested speaker held out of the training:
from random parameters, and after BEST-RQ, HuBERT, wav2vec 2.0 and w2v-BERT on all Debian speech; by a linear probe of
frozen layers, and by full finetuning. Baseline: MFCCs and the three nearest neighbours. Then the spoken language, one
of tuxpaint's nine, by linear probes of the same encoders. It takes hours: stop it at any time; the same command
continues. Several processes share the runs, for example one on each core:
`taskset -c 0 python scripts/spoken_digits.py fsdd/manifest.jsonl`.
"""

import json
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import jax
import numpy as np
import tyro
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.core.lines import parse_object, text_lines
from data_pipelines.prepare.job import prepare
from data_pipelines.storage import index as indexes
from jax_speechlm.cli import units
from jax_speechlm.core.batch import Batch
from jax_speechlm.evaluation import classification
from jax_speechlm.evaluation.probing import ProbeReport, probe_run, statistics
from jax_speechlm.evaluation.resampling import wilson_interval
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import mfcc
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.debian.best_rq import SETS
from jax_speechlm.recipes.experiment import Experiment, InitFrom
from jax_speechlm.recipes.fsdd.digits import SPEAKERS
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

Start = Literal["random", "BEST-RQ", "HuBERT", "wav2vec 2.0", "w2v-BERT"]
STARTS: dict[Start, str] = {
    "random": "",
    "BEST-RQ": "debian/best_rq",
    "HuBERT": "debian/hubert",
    "wav2vec 2.0": "debian/wav2vec2",
    "w2v-BERT": "debian/w2v_bert",
}
PROBED = "fsdd"  # with the data set's own splits
LEFT_OUT = "fsdd-speakers"  # the same clips, with a split for each speaker
SPOKEN_IN = tuple(name for name in SETS if name.startswith("tuxpaint"))

Report = TypeVar("Report", ProbeReport, classification.ClassificationReport)


class Digits:
    """The runs of the table: a pretraining by its run's name, a finetuning as "<run>-<speaker>"."""

    def __init__(self, runs: Path, data_dir: Path, starts: Sequence[str]):
        self.runs, self.data_dir = runs, data_dir
        self.starts = {title: registry.run_name(recipe) for title, recipe in STARTS.items() if title in starts}
        self.pretraining = [name for name in self.starts.values() if name]
        self.recipes = {registry.run_name(recipe): recipe for recipe in STARTS.values()}

    def tasks(self) -> dict[str, Task]:
        tasks = {name: Task((), partial(self._pretrain, name)) for name in self.pretraining}
        for name in self.starts.values():
            for speaker in SPEAKERS:
                needs = (name,) if name else ()
                tasks[f"{name or 'random'}-{speaker}"] = Task(needs, partial(self._finetune, name, speaker))
        return tasks

    def _pretrain(self, name: str, run: Path) -> None:
        experiment = self._ours(registry.load(self.recipes[name]))
        if experiment.objective.kind == "hubert":
            clusters = self.runs / "mfcc-100"
            units.fit(SETS, clusters, mel=experiment.frontend.mel, data_dir=self.data_dir)
            units.label(clusters, SETS, data_dir=self.data_dir)
            experiment = experiment.replace(data=experiment.data.replace(units=str(clusters)))
        train_to_end(experiment, run)
        # The random encoder is the same for all of them.
        shared = {"random": name == self.pretraining[0], "data_dir": self.data_dir}
        probe_run(run, (PROBED,), target="text", leave_out="speaker", out=self._digits(name), **shared)
        probe_run(run, SPOKEN_IN, target="language", out=self._languages(name), **shared)

    def _finetune(self, name: str, speaker: str, run: Path) -> None:
        experiment = self._ours(registry.load("fsdd/digits"))
        others = tuple(f"{LEFT_OUT}:{other}" for other in SPEAKERS if other != speaker)
        init_from = (InitFrom(checkpoint=str(self.runs / name)),) if name else ()
        train_to_end(experiment.replace(data=experiment.data.replace(sets=others), init_from=init_from), run)
        classification.evaluate_run(run, (LEFT_OUT,), split=speaker, data_dir=self.data_dir)

    def _ours(self, experiment: Experiment) -> Experiment:
        return experiment.replace(data=experiment.data.replace(data_dir=str(self.data_dir)))

    def digits(self) -> Table:
        reports = {name: _read(ProbeReport, self._digits(name)) for name in ("", *self.pretraining)}
        (count,) = {report.utterances for report in reports.values()}
        table = _table(f"Digits of speakers left out, {count:,} clips", "full finetuning")
        table.add_row("MFCC, 3 nearest neighbours", "", _share(neighbours(self.data_dir), count), "")
        for title, name in self.starts.items():
            finetuned = _share(sum(map(partial(self._right, name), SPEAKERS)) / count, count)
            table.add_row(title, *_layers(reports[name], name), finetuned)
        table.add_row("log-mel means and deviations", "", _share(_log_mel(reports[""]), count), "")
        return table

    def languages(self) -> Table:
        reports = {name: _read(ProbeReport, self._languages(name)) for name in ("", *self.pretraining)}
        (count,) = {report.utterances for report in reports.values()}
        table = _table(f"Language, {len(SPOKEN_IN)} of tuxpaint, {count:,} test clips")
        table.add_row("most frequent", "", _share(reports[""].majority, count))
        table.add_row("log-mel means and deviations", "", _share(_log_mel(reports[""]), count))
        for title, name in self.starts.items():
            table.add_row(title, *_layers(reports[name], name))
        return table

    def _digits(self, name: str) -> Path:
        return self._run(name) / "probe" / "digits"

    def _languages(self, name: str) -> Path:
        return self._run(name) / "probe" / "languages"

    def _run(self, name: str) -> Path:
        """Returns a pretraining's folder; the random encoder was probed with the first."""
        return self.runs / (name or self.pretraining[0])

    def _right(self, name: str, speaker: str) -> int:
        """Returns the number of a speaker's clips that finetuning without this speaker classifies correctly."""
        run = self.runs / f"{name or 'random'}-{speaker}"
        report = _read(classification.ClassificationReport, run / "eval" / f"{LEFT_OUT}-{speaker}")
        return int(np.trace(report.confusion))


def _read(kind: type[Report], folder: Path) -> Report:
    return kind.model_validate_json((folder / "report.json").read_text())


def _table(title: str, *more: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in ("start", "probe of the middle layer", "probe of the last layer", *more):
        table.add_column(column, justify="left" if column == "start" else "right")
    return table


def _layers(report: ProbeReport, name: str) -> tuple[str, str]:
    """Returns the accuracies of the middle and the last layer; layers are not selected by their test accuracy."""
    source = "encoder" if name else "random encoder"
    by_layer = {probe.layer: probe.accuracy for probe in report.probes if probe.source == source}
    depth = max(by_layer)
    return _share(by_layer[depth // 2], report.utterances), _share(by_layer[depth], report.utterances)


def _log_mel(report: ProbeReport) -> float:
    return next(probe.accuracy for probe in report.probes if probe.source == "log-mel")


def neighbours(data_dir: Path) -> float:
    """Returns the accuracy of three nearest neighbours of MFCC means and deviations, each speaker held out."""
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    mel = LogMel(normalize=False)
    x, digits, speakers = [], [], []

    def cepstra(batch: Batch) -> tuple[jax.Array, jax.Array]:
        return mfcc(batch["audio"], batch["audio_length"], mel)

    for speaker in SPEAKERS:
        index = indexes.read_sets(data_dir, (LEFT_OUT,), speaker, mel.sample_rate)
        plan = plans.make_eval_plan(index.num_samples, seconds_per_batch=60.0, frame_samples=mel.frame_samples)
        batches = open_batches(index, plan, num_steps=plan.steps_per_epoch)
        x.append(statistics(batches, len(index), cepstra)[:, 0])
        digits += index.column("text").to_pylist()
        speakers += [speaker] * len(index)
    x, digits, speakers = np.concatenate(x), np.array(digits), np.array(speakers)
    right = 0
    for speaker in SPEAKERS:
        model = make_pipeline(StandardScaler(), KNeighborsClassifier(3))
        model.fit(x[speakers != speaker], digits[speakers != speaker])
        right += (model.predict(x[speakers == speaker]) == digits[speakers == speaker]).sum()
    return right / len(x)


def prepare_digits(manifest: Path, data_dir: Path) -> None:
    """Prepares the clips twice: with the manifest's splits, and with a split for each speaker."""
    prepare(PROBED, manifest=manifest, data_dir=data_dir)
    by_speaker = data_dir / f"{LEFT_OUT}.jsonl"
    rows = [parse_object(line) for _, line in text_lines(manifest) if line.strip()]
    for row in rows:
        row |= {"audio": str((manifest.parent / row["audio"]).absolute()), "split": row["speaker"]}
    by_speaker.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    prepare(LEFT_OUT, manifest=by_speaker, data_dir=data_dir)


def _share(accuracy: float, count: int) -> str:
    low, high = wilson_interval(accuracy, count)
    return f"{accuracy:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


def main(
    manifest: tyro.conf.Positional[Path],
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/digits"),
    starts: tuple[Start, ...] = get_args(Start),
) -> None:
    """Trains and measures the runs that are left, and prints the tables.

    Args:
      manifest: of the digits, as `prepare --manifest` takes it, with speakers.
      data_dir: prepared data.
      run_dir: folder of the runs.
      starts: some of the parameters to start from.
    """
    if starts == ("random",):
        print("--starts: name a pretraining as well; random parameters are probed with it", file=sys.stderr)
        sys.exit(2)
    cache_compilations()
    for name in SETS:
        prepare(name, data_dir=data_dir)
    prepare_digits(manifest, data_dir)
    digits = Digits(run_dir, data_dir, starts)
    queue = RunQueue(run_dir, digits.tasks())
    for name in queue.work():
        print(f"--- {name} is done", flush=True)
    Console(width=120).print(digits.digits(), digits.languages())


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
