import json

import ml_dtypes
import numpy as np
import pytest

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.weights import FILE, INDEX, read_weights, write_weights

ARRAYS = {name: np.arange(size, dtype=np.float32) + size for name, size in (("a", 3), ("b.c", 40), ("d", 5), ("e", 1))}


@pytest.mark.parametrize(("shard_bytes", "files"), [(10**9, 1), (160, 3), (1, 4)])
def test_there_and_back_in_any_number_of_files(tmp_path, shard_bytes, files):
    write_weights(tmp_path, ARRAYS, shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    assert (tmp_path / INDEX).exists() == (files > 1)
    found = read_weights(tmp_path)
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(found[name], array)


def test_reads_bfloat16(tmp_path):
    write_weights(tmp_path, {"a": np.arange(5).astype(ml_dtypes.bfloat16)})
    np.testing.assert_array_equal(read_weights(tmp_path)["a"].astype(np.float32), np.arange(5))


def test_files_that_are_not_whole_are_refused(tmp_path):
    with pytest.raises(ExportError, match="neither"):
        read_weights(tmp_path)
    write_weights(tmp_path, ARRAYS, 160)
    index = json.loads((tmp_path / INDEX).read_text())
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": index["weight_map"] | {"f": index["weight_map"]["e"]}}))
    with pytest.raises(ExportError, match="disagree about 'f'"):
        read_weights(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "../a.safetensors"}}))
    with pytest.raises(ExportError, match="refused"):
        read_weights(tmp_path)
    (tmp_path / FILE).write_bytes(b"\x80\x02not safetensors")
    with pytest.raises(ExportError, match="damaged"):
        read_weights(tmp_path)
