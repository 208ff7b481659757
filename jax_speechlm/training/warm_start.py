"""Initial parameters that are taken over from other runs."""

from pathlib import Path

import jax
import numpy as np

from data_pipelines.tokenizers import Tokenizer
from jax_speechlm.experiment import Start
from jax_speechlm.models.functional import Params
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.optimizers import overlay, paths, select
from jax_speechlm.training.source import saved_tokenizer

SHARED = ("encoder", "transformer")
"""The groups of parameters that models have in common."""


def take_over(start: Start, params: Params, tokenizer: Tokenizer | None) -> Params:
    """`params` with the groups that `start` names read from its checkpoint, resharded to this mesh.

    Raises:
      CheckpointError: there is no readable checkpoint, a group is missing in it or in this model or has another shape,
        or its transformer has another tokenizer.
    """
    path = ckpt.find(start.checkpoint)
    loaded, meta = ckpt.read_params(path)
    if start.groups is None:
        groups = [(name, name) for name in SHARED if name in params and name in loaded]
        if not groups:
            raise ckpt.CheckpointError(
                f"{path}: neither encoder nor transformer is both there ({', '.join(sorted(loaded))}) and in this "
                f"model ({', '.join(sorted(params))}): name what to take over in start.groups"
            )
    else:
        groups = [_names(group) for group in start.groups or params]
    saved = saved_tokenizer(meta)
    if ("transformer", "transformer") in groups and saved and tokenizer and saved.fingerprint != tokenizer.fingerprint:
        raise ckpt.CheckpointError(
            f"{path}: its transformer was trained with another tokenizer: set --data.tokenizer {start.checkpoint}"
        )
    there = dict(zip(paths(loaded), jax.tree.leaves(loaded), strict=True))
    for ours, theirs in groups:
        wanted = select(params, (ours,))
        if not wanted:
            raise ckpt.CheckpointError(f"start.groups: nothing in this model lies below {ours!r}: {sorted(params)}")
        sources = [theirs + name[len(ours) :] for name in paths(wanted)]
        if missing := [name for name in sources if name not in there]:
            raise ckpt.CheckpointError(f"{path}: has no {', '.join(missing[:5])}; it has {', '.join(sorted(loaded))}")
        found = [
            _placed(path, name, here, there[name]) for name, here in zip(sources, jax.tree.leaves(wanted), strict=True)
        ]
        params = overlay(params, jax.tree.unflatten(jax.tree.structure(wanted), found))
    return params


def _names(group: str) -> tuple[str, str]:
    """A group's path prefix in this model and in the checkpoint."""
    ours, _, theirs = group.partition("=")
    return ours, theirs or ours


def _placed(checkpoint: Path, name: str, here: jax.Array, there: np.ndarray) -> jax.Array:
    if here.shape != there.shape:
        raise ckpt.CheckpointError(
            f"{checkpoint}: {name} has shape {there.shape}, this model needs {here.shape}. Use the model and front end "
            "of that checkpoint, or take over fewer start.groups."
        )
    return jax.device_put(np.asarray(there, here.dtype), here.sharding)
