"""State dicts in safetensors files, as Hugging Face lays them out: one file, or several and an index."""

from collections.abc import Mapping
from pathlib import Path

import ml_dtypes  # noqa: F401  tells NumPy what bfloat16 is
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jax_speechlm.interop.folders import ExportError, read_json, readable, write_json

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 5 * 10**9  # of a file, where a model is larger than that


def write_weights(folder: Path, arrays: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a state dict to `model.safetensors`, or to `model-00001-of-0000n.safetensors` and an index.

    Args:
      arrays: by Hugging Face's names.
      shard_bytes: the most that a file holds, unless one array is larger.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, array in arrays.items():
        if shards[-1] and filled + array.nbytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += array.nbytes
    if len(shards) == 1:
        _save(folder / FILE, arrays)
        return
    place = {}
    for number, names in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _save(folder / file, {name: arrays[name] for name in names})
        place |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in arrays.values())
    write_json(folder, INDEX, {"metadata": {"total_size": total}, "weight_map": place})


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """The state dict of a folder of Hugging Face's, from safetensors alone; no pickle is ever opened.

    Raises:
      ExportError: there are no safetensors, or they are damaged or not those that the index names.
    """
    if (folder / FILE).is_file():
        return _load(folder / FILE)
    if not (folder / INDEX).is_file():
        raise ExportError(f"{folder} has neither {FILE} nor {INDEX}: weights are read from safetensors alone")
    place: dict[str, str] = read_json(folder, INDEX)["weight_map"]
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(place.values())):
        if Path(file).name != file:
            raise ExportError(f"{folder / INDEX} names {file!r}, which is no file of the folder: refused")
        arrays |= _load(folder / file)
    if arrays.keys() != place.keys():
        differing = min(arrays.keys() ^ place.keys())
        raise ExportError(f"{folder / INDEX} and the files that it names disagree about {differing!r}")
    return arrays


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    save_file(dict(arrays), file, metadata={"format": "pt"})
    readable(file)


def _load(file: Path) -> dict[str, np.ndarray]:
    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file} cannot be read as safetensors ({error}): it is damaged or half copied") from error
