"""What each augmentation is worth: recognizers trained on queen-en with one of them more than SpecAugment and speeds.

Every arm trains `four_way/ctc` on queen-en with every seed and transcribes its test split, greedily, clean and with
noise as it would come from another room: `--also` names further prepared sets. Stop it at any time; the same command
continues. Several processes share the runs.
"""

import os
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import tyro
from over_seeds import mean_cell
from rich.console import Console
from rich.table import Table
from run_queue import RunQueue, Task, train_to_end

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation.recognition import evaluate_run
from jax_speechlm.evaluation.report import EvaluationReport
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

ARMS = {
    "none": {},
    "other voices": {"augment": {"vocal_tract": 0.1}},
    "time warp": {"augment": {"time_warp": 0.1}},
    "frames repeated and dropped": {"augment": {"frame_jitter": 0.1}},
    "rooms": {"augment": {"room_probability": 0.5}},
    "telephone": {"augment": {"telephone_probability": 0.5}},
    "babble": {"augment": {"babble_probability": 0.5}},
    "joined": {"data": {"joined": 0.5}},
}


def arm_experiment(arm: str, seed: int, data_dir: Path, num_steps: int | None = None) -> Experiment:
    """Returns the training of an arm."""
    experiment = registry.load("four_way/ctc")
    data = experiment.data.replace(sets=("queen-en",), data_dir=str(data_dir), **ARMS[arm].get("data", {}))
    augment = experiment.frontend.augment.replace(**ARMS[arm].get("augment", {}))
    frontend = experiment.frontend.replace(augment=augment)
    steps = experiment.num_steps if num_steps is None else num_steps
    return experiment.replace(data=data, frontend=frontend, seed=seed, num_steps=steps)


def main(
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/augmentations"),
    seeds: tuple[int, ...] = (0, 1, 2),
    also: tuple[str, ...] = (),
    num_steps: int | None = None,
) -> None:
    """Trains the runs that are left and prints the table of those that are there.

    Args:
      data_dir: prepared data.
      run_dir: folder of the runs.
      seeds: of every arm.
      also: further prepared sets to measure on, such as queen-en with noise.
      num_steps: of every run; by default the recipe's.
    """
    cache_compilations()
    sets = ("queen-en", *also)

    def finish(arm: str, seed: int, run: Path) -> None:
        train_to_end(arm_experiment(arm, seed, data_dir, num_steps), run)
        for name in sets:
            evaluate_run(run, (name,), data_dir=data_dir, out=run / "eval" / name)

    runs = {(arm, seed): f"{arm.replace(' ', '_')}-{seed}" for seed in seeds for arm in ARMS}
    queue = RunQueue(run_dir, {name: Task((), partial(finish, *run)) for run, name in runs.items()})
    for _ in queue.work():
        table = Table("augmentation", *(f"{name} WER, %" for name in sets), title="Means over seeds (each)")
        for arm in ARMS:
            done = [runs[arm, seed] for seed in seeds if queue.finished(runs[arm, seed])]
            if done:
                table.add_row(arm, *(_cell([run_dir / name / "eval" / each for name in done]) for each in sets))
        Console().print(table)


def _cell(folders: list[Path]) -> str:
    return mean_cell([100 * EvaluationReport.load(folder / "report.json").wer.rate for folder in folders])


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
