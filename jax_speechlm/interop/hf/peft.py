"""LoRA adapters as files of their own, in peft's format: `adapter_config.json` and `adapter_model.safetensors`.

The names in the file are those of the transformers class that the run is exported as (`registry`), so that peft loads
an adapter of ours onto the exported model, and an adapter of peft's fits the imported run. They are derived from the
export itself: kernels that hold their own number are exported, and the numbers are looked up in the state dict. A run
that no class of transformers computes has the names of our parameters; only this package reads such a file.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file
from tyro.conf import Positional

from jax_speechlm.core.tree import insert, replace
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, FailedCheck
from jax_speechlm.interop.hf.registry import package
from jax_speechlm.interop.hf.safetensors import open_arrays
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.nn.lora import GROUP, LoRA, MapShape, adaptable_maps
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import LoadedRun, experiment_of, saved_tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of every name in the file
_FIRST_INPUT, _FIRST_OUTPUT = 0.25, 0.5  # added to a kernel's number, to find its orientation

_UNSUPPORTED = (
    "use_dora", "modules_to_save", "layer_replication", "trainable_token_indices", "target_parameters",
    "alora_invocation_tokens", "use_qalora", "lora_bias", "megatron_config",
)  # fmt: skip
"""Settings of peft that change what an adapter computes in ways that LoRA here does not have."""


class Part(NamedTuple):
    """One of our linear maps, or one layer of a stack, in a torch module: the rows of its weight [out, in]."""

    path: str
    layer: int
    rows: slice


class Module(NamedTuple):
    """A torch module with linear maps of ours, several where it fuses them.

    Attributes:
      shape: outputs and inputs.
      axes: of its weight; 3 for a convolution of one tap.
      is_transposed: whether its weight is [in, out] (GPT-2).
    """

    parts: tuple[Part, ...]
    shape: tuple[int, int]
    axes: int = 2
    is_transposed: bool = False


class Names(NamedTuple):
    """Names of a run's linear maps: their torch modules in a class of transformers, and their shapes on our side."""

    architecture: str
    modules: dict[str, Module]
    maps: dict[str, MapShape]

    @classmethod
    def of(cls, run: LoadedRun) -> "Names":
        """Finds the names for a run; of its parameters only the settings count."""
        experiment = run.experiment
        make = experiment.objective.build(experiment.model, experiment.frontend, run.tokenizer).make
        maps = {path: shape for path, shape in adaptable_maps(make).items() if not path.startswith(f"{GROUP}/")}
        numbers = {key: number for number, key in enumerate(_layers(maps), start=1)}
        shapes = {name: group for name, group in functional.declare(make).shapes.items() if name != GROUP}
        try:
            exported = package(dataclasses.replace(run, params=_numbered(shapes, maps, numbers)))
        except ExportError:
            return cls(
                "jax_speechlm", {_own_name(path, layer, maps): _own(path, layer, maps) for path, layer in numbers}, maps
            )
        keys, modules = list(numbers), {}
        for name, weight in exported.arrays.items():
            if name.endswith(".weight") and weight.ndim in (2, 3) and weight.flat[0] >= 1:
                module = _module(weight, keys, maps)
                if module is not None:
                    modules[name.removesuffix(".weight")] = module
        return cls(exported.architecture, modules, maps)


def export_adapter(run: Positional[Path], out: Path) -> None:
    """Writes the LoRA of a run as a folder that peft loads onto the exported base, and checks it by reading it.

    Args:
      run: directory of a run that was trained with LoRA, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
    """
    checkpoint = ckpt.find(run)
    experiment, (params, meta) = experiment_of(checkpoint), ckpt.read_params(checkpoint)
    lora = experiment.lora if experiment.lora.rank else getattr(experiment.model, "lora", LoRA())
    if GROUP not in params:
        raise ExportError(f"{checkpoint}: has no LoRA: train one by finetune --from {run} --lora.rank 8")
    updates = params.pop(GROUP)
    base = LoadedRun(checkpoint, meta["step"], experiment, saved_tokenizer(meta), params, meta=meta)
    record = {"target": "peft", "checkpoint": str(checkpoint), "step": base.step}
    with folders.written(out, record) as folder:
        names = Names.of(base)
        write_adapter(folder, updates, lora, base, names)
        if not _reads_back(folder, updates, lora, base, names):
            raise FailedCheck(f"{checkpoint}: the adapter differs after it was read back")
    size = (out / WEIGHTS).stat().st_size / 1e6
    print(f"{out}: {size:.2f} MB, by the names of {names.architecture}; reads back as the same change of every kernel")


def write_adapter(folder: Path, updates: Params, lora: LoRA, base: LoadedRun, names: Names | None = None) -> None:
    """Writes the group "lora" of a run into a folder.

    Args:
      lora: its settings.
      base: the run without it; of the parameters only the settings count.
      names: those of the run, if they are known.

    Raises:
      ExportError: a map has no module of its own in the class that the base is exported as.
    """
    architecture, modules, maps = names or Names.of(base)
    trained, arrays, ranks = dict(_updates(updates)), {}, {}
    for name, module in modules.items():
        parts = [part for part in module.parts if part.path in trained]
        if not parts:
            continue
        halves = [_flat(trained[part.path], part, maps) for part in parts]
        a = np.concatenate([a for a, _ in halves])
        b, column = np.zeros((module.shape[0], len(a)), np.float32), 0
        for part, (_, own) in zip(parts, halves, strict=True):
            b[part.rows, column : column + own.shape[1]] = own
            column += own.shape[1]
        ranks[name] = len(a)
        for half, array in (("A", a), ("B", b)):
            arrays[f"{_PREFIX}{name}.lora_{half}.weight"] = array.reshape(*array.shape, *[1] * (module.axes - 2))
    known = {part.path for module in modules.values() for part in module.parts}
    if unknown := trained.keys() - known:
        raise ExportError(
            f"{base.checkpoint}: {architecture} has no linear map that is {min(unknown)}: leave it out of lora.targets"
        )
    patterns = {name: rank for name, rank in ranks.items() if rank != lora.rank}
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM" if architecture.endswith("ForCausalLM") else None,
        "base_model_name_or_path": str(next((each.checkpoint for each in base.experiment.init_from), base.checkpoint)),
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(ranks),
        "rank_pattern": patterns,
        "alpha_pattern": {name: lora.scale * rank for name, rank in patterns.items()},
        "fan_in_fan_out": any(modules[name].is_transposed for name in ranks),
        "bias": "none",
        "inference_mode": True,
    }
    folders.write_json(folder, CONFIG, config)
    save_file(arrays, folder / WEIGHTS, metadata={"format": "pt"})
    folders.readable(folder / WEIGHTS)


def read_adapter(folder: Path, base: LoadedRun, names: Names | None = None) -> Params:
    """Reads an adapter for a run.

    Args:
      base: of the parameters only the settings count.
      names: those of the run, if they are known.

    Returns:
      The updates of the run's linear maps, for `nn.lora.attach` with a scale of 1: the adapter's own is in b.

    Raises:
      ExportError: it is no LoRA, or an update belongs to no map of the run or has another shape.
    """
    config = folders.read_json(folder, CONFIG)
    _check_config(folder, config)
    if not (folder / WEIGHTS).is_file():
        raise ExportError(
            f"{folder} has no {WEIGHTS}: adapters are read from safetensors alone; save it anew with peft"
        )
    (architecture, modules, maps), halves = names or Names.of(base), _halves(folder)
    found: dict[str, dict[int, tuple[np.ndarray, np.ndarray]]] = {}
    for name, (a, b) in halves.items():
        module = modules.get(name)
        if module is None:
            raise ExportError(
                f"{folder}: updates {name!r}, and {base.checkpoint}, in transformers {architecture}, has no such "
                f"linear map; it has {', '.join(list(modules)[:3])}, ...: name the run that the adapter was trained on"
            )
        if (len(b), a.shape[1], b.shape[1]) != (*module.shape, len(a)):
            raise ExportError(
                f"{folder}: the update of {name!r} is {b.shape} by {a.shape}, and the weight of {base.checkpoint} is "
                f"{module.shape}: name the run that the adapter was trained on"
            )
        b = _scale(config, name, len(a)) * b
        for part in module.parts:
            found.setdefault(part.path, {})[part.layer] = a, b[part.rows]
    tree: Params = {}
    for path, layers in found.items():
        insert(tree, path.split("/"), _stacked(layers, maps[path]))
    return tree


def _check_config(folder: Path, config: Any) -> None:
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ExportError(f"{folder / CONFIG} is of no LoRA: other methods of peft have no counterpart here")
    for name in _UNSUPPORTED:
        if config.get(name):
            raise ExportError(
                f"{folder / CONFIG}: {name}={config[name]!r} has no counterpart here; only plain LoRA has"
            )
    if config.get("bias", "none") != "none":
        raise ExportError(f"{folder / CONFIG}: trains biases, which has no counterpart here: train with bias='none'")


def _halves(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Reads the matrices A [rank, in] and B [out, rank] of every module of an adapter."""
    arrays = {name.removeprefix(_PREFIX): array for name, array in open_arrays(folder / WEIGHTS).items()}
    halves = {}
    for name in arrays:
        module, _, half = name.rpartition(".lora_")
        if half not in ("A.weight", "B.weight") or f"{module}.lora_{'BA'[half[0] == 'B']}.weight" not in arrays:
            raise ExportError(
                f"{folder / WEIGHTS} holds {name!r}, which is no half of an update: save it anew with peft"
            )
        pair = (np.asarray(arrays[f"{module}.lora_{half}.weight"], np.float32) for half in "AB")
        a, b = halves[module] = tuple(x[..., 0] if x.ndim == 3 and x.shape[2] == 1 else x for x in pair)
        if a.ndim != 2 or b.ndim != 2:
            raise ExportError(
                f"{folder / WEIGHTS}: the update of {module!r} is of no linear map: leave that module out"
            )
    return halves


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """Returns the factor of a module's update. A pattern's key is a regular expression for the end of a name."""
    alphas = config.get("alpha_pattern") or {}
    of_module = (alpha for key, alpha in alphas.items() if re.match(rf"(.*\.)?({key})$", name))
    alpha = next(of_module, config.get("lora_alpha", 8))
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _flat(update: Params, part: Part, maps: Mapping[str, MapShape]) -> tuple[np.ndarray, np.ndarray]:
    """Returns A [rank, in] and B [out, rank] of one layer of an update."""
    a, b = (np.asarray(update[name], np.float32) for name in "ab")
    if maps[part.path].is_stacked:
        a, b = a[part.layer], b[part.layer]
    return np.ascontiguousarray(a.reshape(-1, a.shape[-1]).T), np.ascontiguousarray(b.reshape(b.shape[0], -1).T)


def _stacked(layers: Mapping[int, tuple[np.ndarray, np.ndarray]], shape: MapShape) -> Params:
    """Returns {"a", "b"} of a map in our shapes; layers of lower rank, or without an update, are filled with zeros."""
    num_layers, num_in, num_out = shape.flat
    rank = max(len(a) for a, _ in layers.values())
    a_LxIxR = np.zeros((num_layers, num_in, rank), np.float32)
    b_LxRxO = np.zeros((num_layers, rank, num_out), np.float32)
    for layer, (a, b) in layers.items():
        a_LxIxR[layer, :, : len(a)], b_LxRxO[layer, : len(a)] = a.T, b.T
    lead = shape.shape[: int(shape.is_stacked)]
    inputs, outputs = np.split(np.array(shape.shape[len(lead) :], int), [shape.num_in])
    return {"a": a_LxIxR.reshape(*lead, *inputs, rank), "b": b_LxRxO.reshape(*lead, rank, *outputs)}


def _updates(tree: Params, path: str = "") -> Iterator[tuple[str, Params]]:
    """Yields the path of each map that has an update, and the update."""
    for name, child in tree.items():
        here = f"{path}/{name}".lstrip("/")
        if "a" in child and "b" in child:
            yield here, child
        else:
            yield from _updates(child, here)


def _layers(maps: Mapping[str, MapShape]) -> Iterator[tuple[str, int]]:
    return ((path, layer) for path, shape in maps.items() for layer in range(shape.flat[0]))


def _numbered(shapes: Params, maps: Mapping[str, MapShape], numbers: Mapping[tuple[str, int], int]) -> Params:
    """Returns parameters of zeros, but for kernels, whose entries are the layer's number and mark the first input and
    the first output."""
    params = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    for path, shape in maps.items():
        layers, num_in, num_out = shape.flat
        kernel = np.empty((layers, num_in, num_out), np.float32)
        kernel[:] = np.array([numbers[path, layer] for layer in range(layers)])[:, None, None]
        kernel[:, 0] += _FIRST_INPUT
        kernel[:, :, 0] += _FIRST_OUTPUT
        params = replace(params, [*path.split("/"), "kernel"], kernel.reshape(shape.shape))
    return params


def _module(weight: np.ndarray, keys: list[tuple[str, int]], maps: Mapping[str, MapShape]) -> Module | None:
    """Finds our maps in the exported weight of a module; None if it holds others too, or parts of some."""
    axes = weight.ndim
    if axes == 3:
        if weight.shape[2] != 1:
            return None
        weight = weight[..., 0]
    number, marks = np.divmod(weight, 1)
    first_input = (marks == _FIRST_INPUT) | (marks == _FIRST_INPUT + _FIRST_OUTPUT)
    is_transposed = not first_input[:, 0].all()
    if is_transposed:
        number, marks, first_input = number.T, marks.T, first_input.T
    if not first_input[:, 0].all() or (number != number[:, :1]).any() or number.min() < 1:
        return None
    parts = []
    for value in dict.fromkeys(number[:, 0].astype(int).tolist()):
        (rows,) = np.nonzero(number[:, 0] == value)
        path, layer = keys[value - 1]
        if len(rows) != maps[path].flat[2] or marks[rows[0], 0] < _FIRST_OUTPUT:
            return None
        parts.append(Part(path, layer, slice(int(rows[0]), int(rows[-1]) + 1)))
    return Module(tuple(parts), number.shape, axes, is_transposed)


def _own_name(path: str, layer: int, maps: Mapping[str, MapShape]) -> str:
    name = path.replace("/", ".")
    return f"{name}.{layer}" if maps[path].is_stacked else name


def _own(path: str, layer: int, maps: Mapping[str, MapShape]) -> Module:
    _, num_in, num_out = maps[path].flat
    return Module((Part(path, layer, slice(0, num_out)),), (num_out, num_in))


def _reads_back(folder: Path, updates: Params, lora: LoRA, base: LoadedRun, names: Names) -> bool:
    """Returns whether a folder's updates change every kernel as the group "lora" does, up to rounding."""
    read = dict(_updates(read_adapter(folder, base, names)))
    for path, update in _updates(updates):
        for layer in range(names.maps[path].flat[0]):
            (a, b), (a_read, b_read) = (
                _flat(each, Part(path, layer, slice(None)), names.maps) for each in (update, read[path])
            )
            if not np.allclose(
                lora.scale * (b @ a), b_read @ a_read, rtol=1e-5, atol=1e-6 * lora.scale * np.abs(b @ a).max()
            ):
                return False
    return True
