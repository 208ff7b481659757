"""Parameters to and from Hugging Face's state dicts, as dicts of numpy arrays, by a table; torch is not needed.

A row names one parameter on both sides and how its array is laid out; both directions read the same rows. `{}` in
Hugging Face's name stands for a layer's number: our side holds the layers of such a row stacked.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_speechlm.models.functional import Params

StateDict = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """How an array goes to Hugging Face's shape, and back to ours; the second argument is the model's config."""

    to_hf: Callable[[np.ndarray, Any], np.ndarray]
    from_hf: Callable[[np.ndarray, Any], np.ndarray]


class Row(NamedTuple):
    """One parameter: dotted path on our side, name on theirs."""

    ours: str
    theirs: str
    layout: Layout


SAME = Layout(lambda x, c: x, lambda x, c: x)
TRANSPOSED = Layout(lambda x, c: x.T, lambda x, c: x.T)


def read(state_dict: StateDict, rows: Iterable[Row], config: Any, kind: str) -> Params:
    """Our parameters from a state dict.

    Args:
      config: the model's config: `num_layers` and what the layouts need.
      kind: what the state dict should be of, for messages.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    rest = {name: np.asarray(value) for name, value in state_dict.items()}

    def take(name: str, layout: Layout) -> np.ndarray:
        if name not in rest:
            raise ValueError(f"the state dict has no {name!r}: is it a {kind} of {config.num_layers} layers?")
        value = rest.pop(name)
        try:
            ours = layout.from_hf(value, config)
            matches = layout.to_hf(ours, config).shape == value.shape
        except (ValueError, IndexError):
            matches = False
        if not matches:
            raise ValueError(f"{name!r} has shape {value.shape}, which does not fit dim={config.dim} of the config")
        return ours

    params: Params = {}
    for row in rows:
        if "{}" in row.theirs:
            layers = [take(row.theirs.format(i), row.layout) for i in range(config.num_layers)]
            _put(params, row.ours, np.stack(layers))
        else:
            _put(params, row.ours, take(row.theirs, row.layout))
    if rest:
        raise ValueError(f"the state dict holds arrays that the config has no place for, such as {min(rest)!r}")
    return params


def write(params: Params, rows: Iterable[Row], config: Any) -> dict[str, np.ndarray]:
    """The float32 state dict of our parameters."""
    arrays = {}
    for row in rows:
        ours = _get(params, row.ours)
        named = {row.theirs.format(i): x for i, x in enumerate(ours)} if "{}" in row.theirs else {row.theirs: ours}
        for name, value in named.items():
            arrays[name] = np.ascontiguousarray(row.layout.to_hf(value, config), np.float32)
    return arrays


def require(values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Raises ValueError unless a `config.json` has these settings."""
    missing = [name for name in names if name not in values]
    if missing:
        raise ValueError(f"config.json lacks {', '.join(missing)}; write it with the model's save_pretrained")


def require_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ValueError where a `config.json` sets one of these to another value than the one that our form has."""
    for name, only in fixed.items():
        if values.get(name, only) != only:
            raise ValueError(f"config.json: {name}={values[name]!r} has no counterpart here; only {only!r} has")


def _get(tree: Params, path: str) -> np.ndarray:
    for name in path.split("."):
        tree = tree[name]
    return np.asarray(tree)


def _put(tree: Params, path: str, value: np.ndarray) -> None:
    *parents, last = path.split(".")
    for name in parents:
        tree = tree.setdefault(name, {})
    tree[last] = value
