"""Means of checkpoints' parameters: the last or the best of one run, or a soup of several runs.

Near the end of training the parameters wander around a minimum, and their mean lies lower than most of them
(Izmailov et al. 2018; the practice of speech recognition since Vaswani et al. 2017). Runs that were finetuned from one
start often lie in one basin too, so that their mean, a "soup", is worth as much as an ensemble at the cost of one model
(Wortsman et al. 2022). Runs that began apart do not: see what comes out on a dev split.
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
from jax_speechlm.core.tree import paths
from jax_speechlm.nn.functional import Params
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.source import saved_tokenizer

_FOR_TRAINING = ("dropout", "attention_dropout", "chunk_lengths", "remat", "attention", "dtype")
"""Settings of a model that do not change what its parameters mean."""

_OF_OBJECTIVE = ("kind", "task", "prompts", "num_units", "sentinels")
"""Settings of an objective that do."""


def average_runs(
    runs: Positional[tuple[Path, ...]],
    out: Path,
    last: pydantic.PositiveInt | None = None,
    best: pydantic.PositiveInt | None = None,
) -> None:
    """Averages the parameters of several checkpoints into one that every other command takes.

    Of one run all the checkpoints that it kept are averaged, of several runs the newest of each; --last and --best say
    how many of each run's instead. Where a run kept a moving average of its parameters (optimizer.ema_decay), that is
    what enters. A run keeps as many checkpoints as loop.keep_last and loop.keep_best say.

    Args:
      runs: runs' directories, or their checkpoints/<step> folders, of one model and tokenizer.
      out: folder to write, like a run's directory; it must not hold checkpoints yet.
      last: so many of each run's newest checkpoints.
      best: so many of those with the lowest dev loss.
    """
    if not runs:
        raise ValueError("name a run's directory, or several: jax-speechlm average runs/finetune --out runs/average")
    chosen = [checkpoint for run in runs for checkpoint in choose(run, last, best, alone=len(runs) == 1)]
    params, meta = average(chosen)
    print(f"the mean of {len(chosen)} checkpoints: {ckpt.write(out, params, meta)}")


def choose(run: Path, last: int | None, best: int | None, *, alone: bool) -> list[AnyPath]:
    """The checkpoints of a run that are to be averaged; without a number all, or (not `alone`) the newest.

    Raises:
      CheckpointError: there are fewer than asked for.
      ValueError: both numbers are given.
    """
    if last and best:
        raise ValueError("--last and --best exclude each other: give one of them")
    found = ckpt.find_all(run)
    if best:
        ranks = {checkpoint: ckpt.goodness(ckpt.dev_metrics(checkpoint), "loss") for checkpoint in found}
        found = sorted((each for each in found if ranks[each] > -math.inf), key=ranks.get)
    wanted = best or last or (len(found) if alone else 1)
    if len(found) < wanted:
        which = "with a validation" if best else "at all"
        keep = "keep_best" if best else "keep_last"
        raise ckpt.CheckpointError(
            f"{run}: has {len(found)} checkpoints {which}, {wanted} were asked for: ask for fewer, or train with a "
            f"greater --loop.{keep}"
        )
    return found[-wanted:]


def average(checkpoints: Sequence[AnyPath]) -> tuple[Params, dict[str, Any]]:
    """The mean of checkpoints' parameters, in float64, as the type that they have; and the `meta` to save beside it.

    One checkpoint and the sum are in memory at a time. Of one checkpoint the mean is the same, bit for bit.

    Raises:
      CheckpointError: one cannot be read, or is of another model, front end, vocabulary or objective than the first.
    """
    totals: list[np.ndarray] = []
    first, structure, step = {}, None, 0
    for checkpoint in checkpoints:
        print(f"  {checkpoint}", flush=True)
        params, meta = ckpt.read_params(checkpoint)
        if not totals:
            first, structure, shapes = meta, jax.tree.structure(params), _shapes(params)
            kinds = [leaf.dtype for leaf in jax.tree.leaves(params)]
            totals = [np.zeros(leaf.shape, np.float64) for leaf in jax.tree.leaves(params)]
        _check_same(checkpoints[0], first, shapes, checkpoint, meta, _shapes(params))
        step = max(step, meta["step"])
        for total, leaf in zip(totals, jax.tree.leaves(params), strict=True):
            total += leaf
        del params, leaf  # before the next is read
    means = [(total / len(checkpoints)).astype(kind) for total, kind in zip(totals, kinds, strict=True)]
    meta = first | {"step": step, "averaged": [str(checkpoint) for checkpoint in checkpoints]}
    return jax.tree.unflatten(structure, means), meta


def _shapes(params: Params) -> dict[str, tuple]:
    return {
        name: (leaf.shape, str(leaf.dtype)) for name, leaf in zip(paths(params), jax.tree.leaves(params), strict=True)
    }


def _check_same(
    first: AnyPath, meta: dict, shapes: dict[str, tuple], other: AnyPath, other_meta: dict, other_shapes: dict
) -> None:
    wanted, found = ({**_meaning(each), **flat} for each, flat in ((meta, shapes), (other_meta, other_shapes)))
    for name in wanted | found:
        if wanted.get(name) != found.get(name):
            raise ckpt.CheckpointError(
                f"{other}: its {name} is {found.get(name, 'not there')}, that of {first} is "
                f"{wanted.get(name, 'not there')}: only parameters of one model, front end and tokenizer have a mean"
            )


def _meaning(meta: dict[str, Any]) -> dict[str, Any]:
    """What decides what parameters compute, besides their shapes, by dotted names."""
    experiment, tokenizer = meta["experiment"], saved_tokenizer(meta)
    found = {
        "tokenizer": tokenizer and f"{tokenizer.kind} of {tokenizer.vocab_size} ids ({tokenizer.fingerprint})",
        "units": meta.get("units"),
    }

    def walk(tree: Any, name: str) -> None:
        if isinstance(tree, dict):
            for key, child in tree.items():
                if key not in _FOR_TRAINING:
                    walk(child, f"{name}.{key}")
        else:
            found[name] = tree

    walk({name: value for name, value in experiment["objective"].items() if name in _OF_OBJECTIVE}, "objective")
    walk(experiment["model"], "model")
    walk(experiment["frontend"]["mel"], "frontend.mel")
    return found
