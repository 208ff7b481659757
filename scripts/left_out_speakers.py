"""Accuracy of recipes of classification on speakers that their training left out, each in turn.

    python scripts/left_out_speakers.py fsdd/cnn fsdd/lstm --name fsdd-speakers-8k

A speaker's clips are a split of the prepared set. Finished runs are not trained again. The intervals are over speakers.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # hides TensorFlow's messages at import
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here; it prints a message

import numpy as np
import tyro
from rich.console import Console
from run_queue import train_to_end

from data_pipelines.core.errors import DataError
from jax_speechlm.evaluation import base, classification, resampling
from jax_speechlm.parallel.platforms import cache_compilations
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.recipes.fsdd.digits import SPEAKERS
from jax_speechlm.training.checkpoints import CheckpointError
from jax_speechlm.training.loop import TrainingStopped

_RESAMPLES = 10_000


def main(
    recipes: tyro.conf.Positional[tuple[str, ...]],
    name: str = "fsdd-speakers-8k",
    data_dir: Path = Path("data"),
    run_dir: Path = Path("runs/left_out"),
    init_from: str = "",
    seed: int = 0,
    speakers: tuple[str, ...] = SPEAKERS,
) -> None:
    """Trains and tests a model for each speaker, and prints the accuracies.

    Args:
      recipes: recipes of classification.
      name: the prepared set, whose splits are the speakers.
      data_dir: prepared data.
      run_dir: folder of the runs.
      init_from: a run to start from; its encoder is taken over.
      seed: of the runs.
      speakers: those to leave out, one after the other; training is on all others.
    """
    cache_compilations()
    table = base.new_table("recipe", *speakers, "mean", left=1)
    for recipe in recipes:
        shares = np.array(
            [_accuracy(recipe, speaker, name, data_dir, run_dir, init_from, seed) for speaker in speakers]
        )
        drawn = np.random.default_rng(0).choice(shares, (_RESAMPLES, len(shares))).mean(axis=1)
        mean = base.percent(float(shares.mean()), resampling.interval(drawn))
        table.add_row(recipe, *(f"{share:.1%}" for share in shares), mean)
    Console(width=140).print(table)


def _accuracy(recipe: str, speaker: str, name: str, data_dir: Path, run_dir: Path, init_from: str, seed: int) -> float:
    """Returns the accuracy on a speaker of a model of the others, which is trained unless it was before."""
    run = run_dir / f"{recipe.replace('/', '_')}-{seed}-{speaker}"
    experiment = registry.load(recipe)
    data = experiment.data.replace(
        sets=tuple(f"{name}:{other}" for other in SPEAKERS if other != speaker), data_dir=str(data_dir)
    )
    start = (InitFrom(checkpoint=init_from),) if init_from else ()
    train_to_end(experiment.replace(data=data, init_from=start, seed=seed), run)
    return classification.evaluate_run(run, (name,), split=speaker, data_dir=data_dir).accuracy


if __name__ == "__main__":
    try:
        tyro.cli(main, description=__doc__)
    except (DataError, CheckpointError, TrainingStopped) as error:
        sys.exit(f"error: {error}")
