"""State dicts in safetensors files, as Hugging Face lays them out: one file, or several and an index."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jax_speechlm.interop.folders import ExportError, inside, read_json, readable, write_json
from jax_speechlm.interop.hf.safetensors import open_arrays

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5", ".msgpack")
SHARD_BYTES = 5 * 10**9  # of a file, where a model is larger than that


def write_weights(folder: Path, arrays: Mapping[str, np.ndarray], shard_bytes: int = SHARD_BYTES) -> None:
    """Writes a state dict to `model.safetensors`, or to `model-00001-of-0000n.safetensors` and an index.

    Args:
      arrays: by Hugging Face's names.
      shard_bytes: largest number of bytes of a file, unless one array is larger.
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
    file_of = {}
    for shard, names in enumerate(shards, start=1):
        file = f"model-{shard:05}-of-{len(shards):05}.safetensors"
        _save(folder / file, {name: arrays[name] for name in names})
        file_of |= dict.fromkeys(names, file)
    total = sum(array.nbytes for array in arrays.values())
    write_json(folder, INDEX, {"metadata": {"total_size": total}, "weight_map": file_of})


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    """Reads the state dict of a Hugging Face folder, from safetensors alone; no pickle is ever opened.

    Returns:
      Read-only views of the files, by name: nothing is read before it is used.
    """
    if (folder / FILE).is_file():
        return _parameters(open_arrays(inside(folder, FILE)))
    if not (folder / INDEX).is_file():
        pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
        also = f"; {pickles[0]} is a pickle, which could run any code and is never opened" if pickles else ""
        raise ExportError(
            f"{folder} has neither {FILE} nor {INDEX}: weights are read from safetensors alone{also}. Where the model "
            "is trusted, open it with transformers and write it with save_pretrained, which makes them"
        )
    index = read_json(folder, INDEX)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(file, str) for file in file_of.values()):
        raise ExportError(f"{folder / INDEX} has no weight_map from names to files: it is damaged; copy it anew")
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(file_of.values())):
        if Path(file).name != file or not file.endswith(".safetensors"):
            raise ExportError(f"{folder / INDEX} names {file!r}, which is no safetensors of the folder: refused")
        shard = open_arrays(inside(folder, file))
        if twice := shard.keys() & arrays.keys():
            raise ExportError(f"{folder / file} holds {min(twice)!r}, which another file has too: save the model anew")
        if misplaced := [name for name in shard if file_of.get(name) != file]:
            raise ExportError(f"{folder / INDEX} and {file} disagree about {min(misplaced)!r}: copy the model anew")
        arrays |= shard
    if missing := file_of.keys() - arrays.keys():
        raise ExportError(f"{folder / INDEX} and the files that it names disagree about {min(missing)!r}")
    return _parameters(arrays)


def _parameters(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Removes buffers that earlier versions saved and today's classes compute; transformers skips them too."""
    return {
        name: array
        for name, array in arrays.items()
        if not name.endswith("inv_freq") and name.rpartition(".")[2] not in ("position_ids", "token_type_ids")
    }


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    save_file(dict(arrays), file, metadata={"format": "pt"})
    readable(file)
