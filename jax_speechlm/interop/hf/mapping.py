"""Parameters to and from Hugging Face's state dicts, as dicts of numpy arrays, by a table; torch is not needed.

A row names one parameter on both sides and how its array is laid out; both directions read the same rows. `{}` in
Hugging Face's name stands for a layer's number: our side holds the layers of such a row stacked.

Every layout is a change of strides, so what a table makes of a file mapped into memory are views of the file
(`sources`), of which a device's share is read alone.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.tree import at, insert
from jax_speechlm.nn.functional import Params

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


@dataclasses.dataclass(frozen=True, eq=False)
class TensorSource:
    """Where one of our parameters is read from.

    Attributes:
      layers: views of Hugging Face's arrays in our shape: one a layer where our side stacks them, else one alone.
      is_stacked: whether it does.
      ids: for a parameter with a row for each id: whose row of theirs is ours, -1 for a row of zeros; None for all as
        they are.
      id_axis: the axis that ids lie along.
    """

    layers: tuple[np.ndarray, ...]
    is_stacked: bool = False
    ids: np.ndarray | None = None
    id_axis: int = 0

    @property
    def shape(self) -> tuple[int, ...]:
        one = list(self.layers[0].shape)
        if self.ids is not None:
            one[self.id_axis] = len(self.ids)
        return (len(self.layers), *one) if self.is_stacked else tuple(one)

    def read(self, index: tuple[slice, ...] = (), dtype: Any = None) -> np.ndarray:
        """A part of the parameter; nothing else of it is read.

        Args:
          index: slices of our axes; what is missing is taken whole.
          dtype: None keeps the file's.
        """
        index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        layers = self.layers
        if self.is_stacked:
            layers, index = layers[index[0]], index[1:]
        parts = [self._part(layer, index) for layer in layers]
        shape = (len(parts), *parts[0].shape) if self.is_stacked else parts[0].shape
        found = np.empty(shape, dtype or layers[0].dtype)
        for place, part in zip(found if self.is_stacked else [found], parts, strict=True):
            place[...] = part
        return found

    def _part(self, layer: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        if self.ids is None:
            return layer[index]
        rows, before = self.ids[index[self.id_axis]], index[: self.id_axis]
        part = np.take(layer[(*before, slice(None), *index[self.id_axis + 1 :])], np.maximum(rows, 0), self.id_axis)
        part[(*[slice(None)] * self.id_axis, rows < 0)] = 0
        return part


def read(state_dict: StateDict, rows: Iterable[Row], config: Any, kind: str) -> Params:
    """Our parameters from a state dict, as arrays. Arguments and errors are those of `sources`."""
    return jax.tree.map(TensorSource.read, sources(state_dict, rows, config, kind))


def place(tree: Params, shardings: Any, dtype: Any = jnp.float32) -> Params:
    """Parameters as JAX's arrays, each device's share read by itself; one parameter after the other.

    Args:
      tree: nested dict of `TensorSource`.
      shardings: where each lies: a nested dict of the same structure.
    """

    def put(source: TensorSource, sharding: jax.sharding.Sharding) -> jax.Array:
        shares: dict[tuple, np.ndarray] = {}  # replicas have the same

        def share(index: tuple[slice, ...]) -> np.ndarray:
            key = tuple((part.start, part.stop) for part in index)
            if key not in shares:
                shares[key] = source.read(index, dtype)
            return shares[key]

        return jax.block_until_ready(jax.make_array_from_callback(source.shape, sharding, share, dtype=dtype))

    return jax.tree.map(put, tree, shardings)


def sources(state_dict: StateDict, rows: Iterable[Row], config: Any, kind: str) -> Params:
    """Where our parameters are read from: a nested dict of `TensorSource`.

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

    tree: Params = {}
    for row in rows:
        if "{}" in row.theirs:
            layers = tuple(take(row.theirs.format(i), row.layout) for i in range(config.num_layers))
            if len({layer.shape for layer in layers}) > 1:
                raise ValueError(f"{row.theirs.format('*')!r} has other shapes in some layers than in others")
            insert(tree, row.ours.split("."), TensorSource(layers, is_stacked=True))
        else:
            insert(tree, row.ours.split("."), TensorSource((take(row.theirs, row.layout),)))
    if rest:
        raise ValueError(f"the state dict holds arrays that the config has no place for, such as {min(rest)!r}")
    return tree


def write(params: Params, rows: Iterable[Row], config: Any) -> dict[str, np.ndarray]:
    """The float32 state dict of our parameters."""
    arrays = {}
    for row in rows:
        ours = np.asarray(at(params, row.ours.split(".")))
        named = {row.theirs.format(i): x for i, x in enumerate(ours)} if "{}" in row.theirs else {row.theirs: ours}
        for name, value in named.items():
            arrays[name] = np.ascontiguousarray(row.layout.to_hf(value, config), np.float32)
    return arrays


def class_names(classes: Sequence[str]) -> dict[str, Any]:
    """The settings of a `config.json` that name the classes of one label."""
    return {
        "problem_type": "single_label_classification",
        "id2label": {str(number): name for number, name in enumerate(classes)},
        "label2id": {name: number for number, name in enumerate(classes)},
    }


def ffn_multiple(values: Mapping[str, Any]) -> int | float:
    """The inner width of a `config.json`'s feed-forward over the outer; no integer where that is no multiple."""
    inner, outer = values["intermediate_size"], values["hidden_size"]
    return inner / outer if inner % outer else inner // outer


def require_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ValueError where a `config.json` sets one of these to another value than the one that our form has."""
    for name, only in fixed.items():
        if values.get(name, only) != only:
            raise ValueError(f"config.json: {name}={values[name]!r} has no counterpart here; only {only!r} has")
