"""Loads initial parameters from other runs."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.core.paths import AnyPath
from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.core.tree import overlay, paths, select
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.nn.functional import Params
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.runs import LoadedRun

SHARED = ("encoder", "transformer", "decoder", "pooler")
"""The parameter groups that models share."""

PER_TOKEN = ("transformer/embedding", "transformer/untied", "transformer/prediction/bias", "decoder/embedding")
"""The parameters with a row per vocabulary id."""


def take_over(
    start: InitFrom,
    params: Params,
    tokenizer: Tokenizer | None,
    objective: ObjectiveConfig | None = None,
    units: str | None = None,
) -> Params:
    """Replaces groups of parameters with those of another run; the result has the shardings of `params`.

    If the vocabularies differ, as between a text model and the unit model initialised from it, only the rows of ids
    with the same meaning are replaced. `objective` and `units`, the fingerprint of speech units, are this run's.

    Raises:
      CheckpointError: the checkpoint cannot be read, a group is missing in it or in this model or has another shape, or
        its transformer or its head has another tokenizer or other speech units.
    """
    run = LoadedRun.read(start.checkpoint, on_host=True, training_only=True)
    path, loaded = run.checkpoint, run.params
    if start.groups is None:
        groups = [(name, name) for name in SHARED if name in params and name in loaded]
        if not groups:
            raise CheckpointError(
                f"{path}: none of {', '.join(SHARED)} is both there ({', '.join(sorted(loaded))}) and in this "
                f"model ({', '.join(sorted(params))}): name what to take over in init_from.groups"
            )
    else:
        # "group", or "group=its path in the checkpoint"
        named = [group.partition("=") for group in start.groups or params]
        groups = [(group, source or group) for group, _, source in named]
    takes_transformer = ("transformer", "transformer") in groups
    takes_decoder = ("decoder", "decoder") in groups and "embedding" in params.get("decoder", {})
    differs = run.tokenizer and tokenizer and run.tokenizer.fingerprint != tokenizer.fingerprint
    if (takes_transformer or takes_decoder) and differs:
        group = "transformer" if takes_transformer else "decoder"
        raise CheckpointError(
            f"{path}: its {group} was trained with another tokenizer: set --data.tokenizer {start.checkpoint}"
        )
    if run.units != units and any(group.partition("/")[0] == "units" for group, _ in groups):
        raise CheckpointError(
            f"{path}: its head names the speech units of another k-means ({run.units}) than this run's ({units}): "
            "set --data.units to the folder of the former, or take over the encoder alone"
        )
    shared = None
    if (takes_transformer or takes_decoder) and run.tokenizer and tokenizer:
        saved, own = _vocabulary(run.experiment.objective, run.tokenizer), _vocabulary(objective, tokenizer)
        if saved.num_units and own.num_units and run.units != units:
            raise CheckpointError(
                f"{path}: its transformer was trained on other speech units ({run.units}) than this run's "
                f"({units}): set --data.units to the folder of the former"
            )
        shared = own.shared_with(saved) if saved != own else None
    there = dict(zip(paths(loaded), jax.tree.leaves(loaded), strict=True))
    for group, source in groups:
        wanted = select(params, (group,))
        if not wanted:
            raise CheckpointError(f"init_from.groups: nothing lies below {group!r} in this model: {sorted(params)}")
        sources = [source + name[len(group) :] for name in paths(wanted)]
        if missing := [name for name in sources if name not in there]:
            raise CheckpointError(f"{path}: has no {', '.join(missing[:5])}; it has {', '.join(sorted(loaded))}")
        taken = []
        for name, here in zip(sources, jax.tree.leaves(wanted), strict=True):
            value = _grown(there[name], here, *shared) if shared and name in PER_TOKEN else there[name]
            taken.append(_placed(path, name, here, value))
        params = overlay(params, jax.tree.unflatten(jax.tree.structure(wanted), taken))
    return params


def take_over_all(
    starts: Sequence[InitFrom],
    params: Params,
    tokenizer: Tokenizer | None,
    objective: ObjectiveConfig | None = None,
    units: str | None = None,
) -> tuple[Params, list[str]]:
    """Applies `take_over` to each start in order, and returns messages that list the taken and the new parameters."""
    new, messages = set(paths(params)), []
    for start in starts:
        before, params = params, take_over(start, params, tokenizer, objective, units)
        leaves = zip(paths(params), jax.tree.leaves(before), jax.tree.leaves(params), strict=True)
        taken = {name for name, old, now in leaves if now is not old}
        new -= taken
        messages.append(f"taken over from {start.checkpoint}: {_groups(params, taken)}")
    return params, [*messages, f"new: {_groups(params, new)}"]


def _groups(params: Params, names: set[str]) -> str:
    """Lists the largest groups that consist of these parameters only, with their sizes."""

    def walk(tree: Params, prefix: str) -> Iterator[str]:
        for key, child in tree.items():
            below = paths({f"{prefix}{key}": child})
            if names.issuperset(below):
                yield f"{prefix}{key} ({sum(leaf.size for leaf in jax.tree.leaves(child)):,} parameters)"
            elif isinstance(child, dict) and not names.isdisjoint(below):
                yield from walk(child, f"{prefix}{key}/")

    return ", ".join(walk(params, "")) or "nothing"


def _vocabulary(objective: ObjectiveConfig | None, tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer, getattr(objective, "sentinels", 0), getattr(objective, "num_units", 0))


def _grown(there: np.ndarray, here: jax.Array, our_ids: np.ndarray, their_ids: np.ndarray) -> np.ndarray:
    """Returns this model's rows with shared ids replaced by the checkpoint's; on a width mismatch `_placed` raises."""
    if there.shape[1:] != here.shape[1:]:
        return there
    rows = np.array(here if here.is_fully_addressable else multihost_utils.process_allgather(here, tiled=True))
    rows[our_ids] = there[their_ids]
    return rows


def _placed(checkpoint: AnyPath, name: str, here: jax.Array, there: np.ndarray) -> jax.Array:
    if here.shape != there.shape:
        raise CheckpointError(
            f"{checkpoint}: {name} has shape {there.shape}, this model needs {here.shape}. Use the model and front end "
            "of that checkpoint, or take over fewer init_from.groups."
        )
    return jax.device_put(np.asarray(there, here.dtype), here.sharding)
