"""Averages of checkpoints' parameters: the last or the best of one run, or a soup of several runs.

Near the end of training the parameters move around a minimum, and their mean has a lower loss than most of them
(Izmailov et al. 2018; standard in speech recognition since Vaswani et al. 2017). Runs finetuned from the same
initialisation often end in one basin, so that their mean, a "soup", is as good as an ensemble at the cost of one model
(Wortsman et al. 2022). Independently initialised runs do not: check the result on a dev split.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pydantic
from tyro.conf import Positional

from data_pipelines.core.paths import AnyPath
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import paths
from jax_speechlm.nn.functional import Params
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import LoadedRun

_FOR_TRAINING = ("dropout", "attention_dropout", "chunk_lengths", "left_context", "remat", "attention", "dtype")
"""Model settings under which the same parameters compute the same function, but for dropout and rounding."""

_OF_OBJECTIVE = ("kind", "task", "prompts", "num_units", "sentinels")
"""Objective settings that change the function of the parameters."""


def average_runs(
    runs: Positional[tuple[Path, ...]],
    out: Path,
    last: pydantic.PositiveInt | None = None,
    best: pydantic.PositiveInt | None = None,
) -> None:
    """Averages the parameters of several checkpoints into one that every other command takes.

    Given one run, averages all checkpoints that it kept; given several, only their newest. --last and --best change
    these numbers. Where a run kept a moving average of its parameters (optimizer.ema_decay), that average is
    used. loop.keep_last and loop.keep_best decide how many checkpoints a run keeps.

    Args:
      runs: run directories, or their checkpoints/<step> folders, of one model and tokenizer.
      out: folder to write, in the form of a run directory; it must not contain checkpoints.
      last: how many checkpoints per run, the newest.
      best: how many checkpoints per run, with the lowest dev loss.
    """
    if not runs:
        raise ValueError("name a run's directory, or several: jax-speechlm average runs/finetune --out runs/average")
    chosen = [checkpoint for run in runs for checkpoint in choose(run, last, best, alone=len(runs) == 1)]
    params, meta = average(chosen)
    print(f"averaged {len(chosen)} checkpoints: {ckpt.write(out, params, meta)}")


def choose(run: Path, last: int | None, best: int | None, *, alone: bool) -> list[AnyPath]:
    """Selects the checkpoints of a run to average.

    Args:
      last, best: number of the newest, or of those with the lowest dev loss; without either, all if `alone`, otherwise
        the newest.

    Raises:
      CheckpointError: the run has fewer than requested.
    """
    if last and best:
        raise ValueError("--last and --best exclude each other: give one of them")
    checkpoints = ckpt.find_all(run)
    if best:
        ranks = {checkpoint: ckpt.goodness(ckpt.dev_metrics(checkpoint)) for checkpoint in checkpoints}
        checkpoints = sorted((path for path in checkpoints if ranks[path] > -math.inf), key=ranks.get)
    wanted = best or last or (len(checkpoints) if alone else 1)
    if len(checkpoints) < wanted:
        which = "with a validation" if best else "in all"
        keep = "keep_best" if best else "keep_last"
        raise CheckpointError(
            f"{run}: has {len(checkpoints)} checkpoints {which}, {wanted} were requested: request fewer, or train with "
            f"a greater --loop.{keep}"
        )
    return checkpoints[-wanted:]


def average(checkpoints: Sequence[AnyPath]) -> tuple[Params, dict[str, Any]]:
    """Averages checkpoints' parameters in float64; the result has their dtypes.

    One checkpoint and the sum are in memory at a time. The average of a single checkpoint is bit-identical to it.

    Returns:
      The parameters, and the `meta` to save with them.

    Raises:
      CheckpointError: one cannot be read, or differs from the first in model, front end, vocabulary or objective.
    """
    totals, first, expected, step = None, {}, {}, 0
    for checkpoint in checkpoints:
        print(f"  {checkpoint}", flush=True)
        run = LoadedRun.read(checkpoint, on_host=True)
        meaning = _meaning(run)
        if totals is None:
            first, expected = run.meta, meaning
            dtypes = jax.tree.map(lambda leaf: leaf.dtype, run.params)
            totals = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float64), run.params)
        for name in expected | meaning:
            if expected.get(name) != meaning.get(name):
                raise CheckpointError(
                    f"{checkpoint}: its {name} is {meaning.get(name, 'absent')}, {checkpoints[0]} has "
                    f"{expected.get(name, 'absent')}: average only checkpoints of one model, front end and tokenizer"
                )
        step = max(step, run.step)
        jax.tree.map(lambda total, leaf: np.add(total, leaf, out=total), totals, run.params)
        del run  # before the next is read
    means = jax.tree.map(lambda total, dtype: (total / len(checkpoints)).astype(dtype), totals, dtypes)
    return means, first | {"step": step, "averaged": [str(checkpoint) for checkpoint in checkpoints]}


def _meaning(run: LoadedRun) -> dict[str, Any]:
    """Returns what decides the function of the parameters: settings by dotted names, shapes and dtypes by paths."""
    experiment, tokenizer = run.experiment.model_dump(mode="json"), run.tokenizer
    settings = {
        "tokenizer": tokenizer and f"{tokenizer.kind} of {tokenizer.vocab_size} ids ({tokenizer.fingerprint})",
        "units": run.units,
    }

    def walk(tree: Any, name: str) -> None:
        if isinstance(tree, dict):
            for key, child in tree.items():
                if key not in _FOR_TRAINING:
                    walk(child, f"{name}.{key}")
        else:
            settings[name] = tree

    walk({name: value for name, value in experiment["objective"].items() if name in _OF_OBJECTIVE}, "objective")
    walk(experiment["model"], "model")
    walk(experiment["frontend"]["mel"], "frontend.mel")
    leaves = zip(paths(run.params), jax.tree.leaves(run.params), strict=True)
    return settings | {name: (leaf.shape, str(leaf.dtype)) for name, leaf in leaves}
