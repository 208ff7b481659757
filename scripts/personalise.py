"""What a few utterances of a speaker buy: WER of a CTC recognizer before and after LoRA on 1, 5 and 20 of them.

    python scripts/personalise.py runs/base my.jsonl --run-dir runs/personal

The manifest (`prepare --manifest`) names the speaker of each utterance. Of each speaker some utterances are drawn to
train on, fewer within more, and others to test on; the latter are the same for every number. Finished runs are not
trained again. The intervals are over utterances; "change" is the paired difference to the base.
"""

import json
import os
import sys
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import numpy as np
import tyro
from rich.console import Console
from run_queue import train_to_end

from data_pipelines.core.errors import DataError
from data_pipelines.prepare.job import main as prepare
from jax_speechlm.evaluation import base, recognition, report
from jax_speechlm.evaluation.comparison import compare
from jax_speechlm.evaluation.report import EvaluationReport, Utterance
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes.experiment import Experiment, InitFrom, LoopConfig
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped
from jax_speechlm.training.runs import LoadedRun

_SET = "personal"


def main(
    run: tyro.conf.Positional[Path],
    manifest: tyro.conf.Positional[Path],
    run_dir: Path = Path("runs/personal"),
    utterances: tuple[int, ...] = (1, 5, 20),
    tested: int = 100,
    rank: int = 8,
    steps: int = 40,
    peak: float = 3e-3,
    seed: int = 0,
) -> None:
    """Trains an adapter for each speaker and number of utterances, and prints the error rates.

    Args:
      run: a recognizer trained by ctc, of other speakers.
      manifest: JSONL with `audio`, `text` and `speaker`.
      run_dir: folder of the prepared set and of the runs.
      utterances: numbers to train on.
      tested: most utterances of a speaker to test on.
      rank: of LoRA.
      steps: of training.
      peak: learning rate.
      seed: of the draws and of the runs.
    """
    cache_compilations()
    speakers = _prepare(manifest, run_dir, utterances, tested, seed)
    reports = {
        speaker: [
            _evaluate(run, run_dir, speaker),
            *(
                _evaluate(_train(run, run_dir, speaker, count, rank, steps, peak, seed), run_dir, speaker)
                for count in utterances
            ),
        ]
        for speaker in speakers
    }
    reports["all"] = [_pooled(each) for each in zip(*reports.values(), strict=True)]
    table = base.new_table("speaker", "utterances", "WER", "change", left=1)
    for speaker, (before, *after) in reports.items():
        table.add_row(speaker, "0", str(before.wer), "")
        for count, each in zip(utterances, after, strict=True):
            (change,) = compare(before, each)
            low, high = (100 * bound for bound in change.interval)
            difference = f"{100 * change.difference:+.1f} [{low:+.1f}, {high:+.1f}]"
            table.add_row(speaker, str(count), str(each.wer), difference)
        table.add_section()
    Console(width=140).print(table)


def _prepare(manifest: Path, run_dir: Path, utterances: tuple[int, ...], tested: int, seed: int) -> list[str]:
    """Prepares a set with the splits "<speaker>_<number>" and "<speaker>_test"; returns the speakers."""
    lines: dict[str, list[dict]] = defaultdict(list)
    for line in map(json.loads, manifest.read_text().splitlines()):
        lines[line["speaker"]].append(line | {"audio": str((manifest.parent / line["audio"]).resolve())})
    most, rows, rng = max(utterances), [], np.random.default_rng(seed)
    for speaker, own in lines.items():
        if len(own) < most + 20:
            raise DataError(
                f"{manifest}: {speaker} has {len(own)} utterances; {most} to train on and 20 to test on are needed"
            )
        drawn = [own[place] for place in rng.permutation(len(own))]
        parts = {str(count): drawn[:count] for count in utterances} | {"test": drawn[most : most + tested]}
        rows += [
            line | {"split": f"{speaker}_{name}", "id": f"{speaker}-{name}-{place}"}
            for name, part in parts.items()
            for place, line in enumerate(part)
        ]
    split = run_dir / f"{_SET}.jsonl"
    text = "".join(f"{json.dumps(row)}\n" for row in rows)
    if not split.exists() or split.read_text() != text:
        run_dir.mkdir(parents=True, exist_ok=True)
        split.write_text(text)
        prepare(["--manifest", str(split), "--name", _SET, "--data-dir", str(run_dir / "data"), "--force"], "prepare")
    return list(lines)


def _train(run: Path, run_dir: Path, speaker: str, count: int, rank: int, steps: int, peak: float, seed: int) -> Path:
    """Returns the run of one adapter, which is trained unless it was before."""
    folder = run_dir / f"{speaker}-{count}-{rank}-{steps}-{peak:g}-{seed}"
    experiment: Experiment = LoadedRun.read(run, on_host=True).experiment
    changes = {
        "sets": (f"{_SET}:{speaker}_{count}",),
        "dev_sets": (),
        "data_dir": str(run_dir / "data"),
        "tokenizer": None,
    }
    loop = LoopConfig(log_every=steps, eval_every=steps, checkpoint_every=steps)
    train_to_end(
        experiment.replace(
            data=experiment.data.replace(**changes, num_buckets=1),
            init_from=(InitFrom(checkpoint=str(run)),),
            lora=LoRA(rank=rank, targets=()),
            optimizer=Optimizer(schedule=WarmupCosine(peak=peak, warmup_steps=steps // 10), weight_decay=0.0),
            num_steps=steps,
            seed=seed,
            loop=loop,
        ),
        folder,
    )
    return folder


def _evaluate(run: Path, run_dir: Path, speaker: str) -> EvaluationReport:
    out = run_dir / "eval" / f"{speaker}-{run.name}"
    return recognition.evaluate_run(run, (_SET,), split=f"{speaker}_test", data_dir=run_dir / "data", out=out)


def _pooled(reports: tuple[EvaluationReport, ...]) -> EvaluationReport:
    """Returns the report of the utterances of all speakers."""
    utterances: list[Utterance] = [
        each.replace(id=f"{number}/{each.id}") for number, part in enumerate(reports) for each in part.utterances
    ]
    return report.evaluate(utterances, reports[0].normalizer)


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
