"""Conversion of parameters to and from Hugging Face's state dicts, as dicts of numpy arrays, by a table; without torch.

A row names one parameter on both sides and the layout of its array; both directions use the same rows. Our side stacks
the layers of a row whose name on Hugging Face's side has `{}` for a layer's number, or which has a name per layer.

Every layout is a change of strides, so the parameters of a file that is mapped into memory are views of the file
(`sources`), of which only a device's shard is read.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.tree import at, insert
from jax_speechlm.nn.functional import Params

StateDict = Mapping[str, np.ndarray]


class Layout(NamedTuple):
    """Conversion of an array to Hugging Face's shape, and to ours; the second argument is the model's config."""

    to_hf: Callable[[np.ndarray, Any], np.ndarray]
    from_hf: Callable[[np.ndarray, Any], np.ndarray]


class Row(NamedTuple):
    """One parameter: dotted path on our side, and Hugging Face's name or its names by layer."""

    path: str
    name: str | Sequence[str]
    layout: Layout

    def names(self, num_layers: int) -> list[str]:
        """Returns Hugging Face's names."""
        if isinstance(self.name, str):
            return [self.name.format(layer) for layer in range(num_layers)] if self.is_stacked else [self.name]
        return list(self.name)

    @property
    def is_stacked(self) -> bool:
        return not isinstance(self.name, str) or "{}" in self.name


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", config.dim // config.num_heads)


SAME = Layout(lambda x, c: x, lambda x, c: x)
TRANSPOSED = Layout(lambda x, c: x.T, lambda x, c: x.T)
# Kernels before attention [dim, heads, head_dim] and behind it [heads, head_dim, dim].
INTO_HEADS = Layout(lambda x, c: x.reshape(c.dim, -1).T, lambda x, c: x.T.reshape(c.dim, -1, _head_dim(c)))
HEADS_BIAS = Layout(lambda x, c: x.reshape(-1), lambda x, c: x.reshape(-1, _head_dim(c)))
OUT_OF_HEADS = Layout(lambda x, c: x.reshape(-1, c.dim).T, lambda x, c: x.T.reshape(c.num_heads, _head_dim(c), c.dim))
# The same kernels where theirs are [in, out] (GPT-2).
SPLIT_HEADS = Layout(lambda x, c: x.reshape(c.dim, -1), lambda x, c: x.reshape(c.dim, -1, _head_dim(c)))
SPLIT_HEADS_OUT = Layout(lambda x, c: x.reshape(-1, c.dim), lambda x, c: x.reshape(c.num_heads, _head_dim(c), c.dim))
# Convolutions, theirs [out, in, taps].
POINTWISE = Layout(lambda x, c: x.T[..., None], lambda x, c: x[..., 0].T)
DEPTHWISE = Layout(lambda x, c: x.T[:, None, :], lambda x, c: x[:, 0, :].T)
CONVOLUTION = Layout(lambda x, c: x.transpose(2, 1, 0), lambda x, c: x.transpose(2, 1, 0))  # ours [taps, in, out]
GATED = Layout(lambda x, c: x.reshape(c.dim, 2 * c.dim).T[..., None], lambda x, c: x[..., 0].T.reshape(c.dim, 2, c.dim))
GATED_BIAS = Layout(lambda x, c: x.reshape(2 * c.dim), lambda x, c: x.reshape(2, c.dim))


def norm(path: str, name: str) -> list[Row]:
    """Returns the rows of a layer norm."""
    return [Row(f"{path}.scale", f"{name}.weight", SAME), Row(f"{path}.bias", f"{name}.bias", SAME)]


def linear(path: str, name: str, kernel: Layout = TRANSPOSED, bias: Layout | None = SAME) -> list[Row]:
    """Returns the rows of a linear map or convolution; `bias` None for one without biases."""
    rows = [Row(f"{path}.kernel", f"{name}.weight", kernel)]
    return rows if bias is None else [*rows, Row(f"{path}.bias", f"{name}.bias", bias)]


def attention(query: str, key: str, value: str, out: str, has_bias: bool = True) -> list[Row]:
    """Returns the rows of the linear maps of a speech encoder's attention."""
    heads = {"query": query, "key": key, "value": value}
    rows = [
        linear(f"layers.attention.{name}", hf, INTO_HEADS, HEADS_BIAS if has_bias else None)
        for name, hf in heads.items()
    ]
    return [*itertools.chain(*rows), *linear("layers.attention.out", out, OUT_OF_HEADS, SAME if has_bias else None)]


def feed_forward(path: str, norm_name: str, inner: str, outer: str, has_bias: bool = True) -> list[Row]:
    """Returns the rows of a Conformer's feed-forward and its norm."""
    bias = SAME if has_bias else None
    maps = linear(f"{path}.expand", inner, bias=bias) + linear(f"{path}.contract", outer, bias=bias)
    return norm(f"{path}.norm", norm_name) + maps


def below(group: str, rows: Iterable[Row]) -> list[Row]:
    """Returns rows of parameters that are in a group."""
    return [row._replace(path=f"{group}.{row.path}") for row in rows]


@dataclasses.dataclass(frozen=True, eq=False)
class TensorSource:
    """The place that one of our parameters is read from.

    Attributes:
      layers: views of Hugging Face's arrays in our shape: one per layer if our side stacks them, else a single one.
      ids: for a parameter with a row per id (on `id_axis`), the index of their row for each of ours, -1 for a row of
        zeros; None if the rows are in the same order.
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
        """Reads a part of the parameter, and nothing else of it, as a new array.

        `index` has slices of our axes; missing ones are taken whole. Without a `dtype` the file's type is kept.
        """
        index = (*index, *[slice(None)] * (len(self.shape) - len(index)))
        layers = self.layers
        if self.is_stacked:
            layers, index = layers[index[0]], index[1:]
        parts = [self._part(layer, index) for layer in layers]
        shape = (len(parts), *parts[0].shape) if self.is_stacked else parts[0].shape
        array = np.empty(shape, dtype or layers[0].dtype)
        for layer, part in zip(array if self.is_stacked else [array], parts, strict=True):
            layer[...] = part
        return array

    def _part(self, layer: np.ndarray, index: tuple[slice, ...]) -> np.ndarray:
        if self.ids is None:
            return layer[index]
        rows, before = self.ids[index[self.id_axis]], index[: self.id_axis]
        part = np.take(layer[(*before, slice(None), *index[self.id_axis + 1 :])], np.maximum(rows, 0), self.id_axis)
        part[(*[slice(None)] * self.id_axis, rows < 0)] = 0
        return part


def read(tree: Params) -> Params:
    """Reads a nested dict of `TensorSource` as arrays of the files' types."""
    return jax.tree.map(TensorSource.read, tree)


def place(tree: Params, shardings: Any, dtype: Any = jnp.float32) -> Params:
    """Puts parameters (nested dict of `TensorSource`) on devices one at a time, as nested dict of `jax.Array`.

    Only the shards of this host's devices are read.
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
    """Finds the places of our parameters in a state dict, as nested dict of `TensorSource`.

    Args:
      config: the model's config: `num_layers` and the sizes that the layouts use.
      kind: the kind of model, for messages.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    rest = {name: np.asarray(value) for name, value in state_dict.items()}

    def take(name: str, layout: Layout) -> np.ndarray:
        if name not in rest:
            raise ValueError(f"the state dict has no {name!r}: is it a {kind} of {config.num_layers} layers?")
        value = rest.pop(name)
        try:
            view = layout.from_hf(value, config)
            matches = layout.to_hf(view, config).shape == value.shape
        except (ValueError, IndexError):
            matches = False
        if not matches:
            raise ValueError(f"{name!r} has shape {value.shape}, which does not fit dim={config.dim} of the config")
        return view

    tree: Params = {}
    for row in rows:
        layers = tuple(take(name, row.layout) for name in row.names(config.num_layers))
        if len({layer.shape for layer in layers}) > 1:
            raise ValueError(f"{row.names(1)[0]!r} has another shape than the same parameter of other layers")
        insert(tree, row.path.split("."), TensorSource(layers, row.is_stacked))
    if rest:
        raise ValueError(f"the state dict holds arrays that the config has no place for, such as {min(rest)!r}")
    return tree


def write(params: Params, rows: Iterable[Row], config: Any) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of our parameters."""
    arrays = {}
    for row in rows:
        array = np.asarray(at(params, row.path.split(".")))
        for name, value in zip(row.names(config.num_layers), array if row.is_stacked else [array], strict=True):
            arrays[name] = np.ascontiguousarray(row.layout.to_hf(value, config), np.float32)
    return arrays


def class_names(classes: Sequence[str]) -> dict[str, Any]:
    """Returns the settings of a `config.json` that name the classes of one label."""
    return {
        "problem_type": "single_label_classification",
        "id2label": {str(label): name for label, name in enumerate(classes)},
        "label2id": {name: label for label, name in enumerate(classes)},
    }


def ffn_multiple(values: Mapping[str, Any]) -> int | float:
    """Returns the ratio of a feed-forward's inner width to its outer one; a float only if it is not an integer."""
    inner, outer = values["intermediate_size"], values["hidden_size"]
    return inner / outer if inner % outer else inner // outer


def require_fixed(values: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    """Raises ValueError if a `config.json` sets one of `fixed` to another value."""
    for name, only in fixed.items():
        if values.get(name, only) != only:
            raise ValueError(f"config.json: {name}={values[name]!r} has no counterpart here; only {only!r} has")
