"""State dicts in files as Hugging Face lays them out: safetensors, or what its Flax classes wrote; one or several."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from jax_speechlm.interop.folders import ExportError, inside, read_json, readable, write_json
from jax_speechlm.interop.hf import msgpack
from jax_speechlm.interop.hf.safetensors import open_arrays

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
FLAX, FLAX_INDEX = "flax_model.msgpack", "flax_model.msgpack.index.json"
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5")
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
    """Reads the state dict of a Hugging Face folder, from safetensors, else from `flax_model.msgpack`; no pickle is
    ever opened.

    Returns:
      Read-only views of the files, by name: nothing is read before it is used. Names and layouts are those of
      transformers' torch classes.
    """
    if (folder / FILE).is_file():
        return _parameters(open_arrays(inside(folder, FILE)))
    if (folder / INDEX).is_file():
        return _parameters(_of_index(folder, INDEX, ".safetensors", open_arrays))
    if (folder / FLAX).is_file():
        return _parameters(_from_flax(msgpack.read_arrays(inside(folder, FLAX))))
    if (folder / FLAX_INDEX).is_file():
        return _parameters(_from_flax(_of_index(folder, FLAX_INDEX, ".msgpack", msgpack.read_arrays)))
    pickles = sorted(file.name for file in folder.glob("*") if file.suffix in PICKLES)
    also = f"; {pickles[0]} is a pickle, which could run any code and is never opened" if pickles else ""
    raise ExportError(
        f"{folder} has neither {FILE} nor {INDEX}: weights are read from safetensors alone, and from {FLAX}{also}. "
        "Where the model is trusted, open it with transformers and write it with save_pretrained, which makes them"
    )


def is_flax(folder: Path) -> bool:
    """Returns whether `read_weights` reads what a Flax class wrote, which transformers 5 cannot open."""
    return not any((folder / name).is_file() for name in (FILE, INDEX))


def _of_index(
    folder: Path, name: str, suffix: str, read: Callable[[Path], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Reads the files that an index names."""
    index = read_json(folder, name)
    file_of = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of, dict) or not file_of or not all(isinstance(file, str) for file in file_of.values()):
        raise ExportError(f"{folder / name} has no weight_map from names to files: it is damaged; copy it anew")
    file_of = {key.replace("/", "."): file for key, file in file_of.items()}  # of Flax's names the parts
    arrays: dict[str, np.ndarray] = {}
    for file in sorted(set(file_of.values())):
        if Path(file).name != file or not file.endswith(suffix):
            raise ExportError(f"{folder / name} names {file!r}, which is no {suffix[1:]} of the folder: refused")
        shard = read(inside(folder, file))
        if twice := shard.keys() & arrays.keys():
            raise ExportError(f"{folder / file} holds {min(twice)!r}, which another file has too: save the model anew")
        if misplaced := [key for key in shard if file_of.get(key) != file]:
            raise ExportError(f"{folder / name} and {file} disagree about {min(misplaced)!r}: copy the model anew")
        arrays |= shard
    if missing := file_of.keys() - arrays.keys():
        raise ExportError(f"{folder / name} and the files that it names disagree about {min(missing)!r}")
    return arrays


_OF_FLAX = {"kernel": "weight", "scale": "weight", "embedding": "weight"}


def _from_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a Flax class's arrays by the names and in the layouts of the torch class.

    Their kernels are transposed, those of convolutions [taps, in, out] too.
    """
    renamed: dict[str, np.ndarray] = {}
    for name, value in arrays.items():
        parent, dot, last = name.rpartition(".")
        of_torch = f"{parent}{dot}{_OF_FLAX.get(last, last)}"
        if of_torch in renamed:
            raise ExportError(f"two arrays of the Flax parameters, as {name!r}, are {of_torch!r} in torch's names")
        renamed[of_torch] = value.T if last == "kernel" else value
    return renamed


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
