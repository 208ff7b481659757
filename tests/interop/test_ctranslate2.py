"""A Whisper of CTranslate2 becomes the run that its Hugging Face folder becomes; damaged files are refused by name."""

import contextlib
import json
import struct
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.ctranslate2 import WEIGHTS, as_hugging_face, read_arrays
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.interop.hf.weights import read_weights
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import load, write_whisper

TYPES = {np.dtype(name): number for number, name in enumerate(("float32", "int8", "int16", "int32", "float16"))}
TYPES[np.dtype(ml_dtypes.bfloat16)] = 5


def text(name: str) -> bytes:
    return struct.pack("<H", len(name) + 1) + name.encode() + b"\0"


def model_bin(arrays: dict[str, np.ndarray], aliases: dict[str, str], spec: str = "WhisperSpec") -> bytes:
    """The file as CTranslate2's converters write it."""
    parts = [struct.pack("<I", 6), text(spec), struct.pack("<II", 3, len(arrays))]
    for name, array in arrays.items():
        parts += [text(name), struct.pack("<B", array.ndim), *(struct.pack("<I", size) for size in array.shape)]
        parts += [struct.pack("<BI", TYPES[array.dtype], array.nbytes), array.tobytes()]
    parts.append(struct.pack("<I", len(aliases)))
    return b"".join([*parts, *(text(end) for pair in aliases.items() for end in pair)])


def converted(state: dict[str, np.ndarray], dtype: np.dtype) -> dict[str, np.ndarray]:
    """CTranslate2's arrays of a Whisper's state dict: joined linear maps, and a bias of zeros for the keys."""
    arrays = {"encoder/num_heads": np.int16(2), "decoder/num_heads": np.int16(4)}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}

    def put(name: str, *values: np.ndarray) -> None:
        arrays[name] = np.concatenate(values).astype(dtype)

    def linear(name: str, *modules: str) -> None:
        weights = [state[f"model.{module}.weight"] for module in modules]
        biases = [state.get(f"model.{module}.bias", np.zeros(len(weights[0]))) for module in modules]
        put(f"{name}/weight", *weights)
        put(f"{name}/bias", *biases)

    def norm(name: str, module: str) -> None:
        put(f"{name}/gamma", state[f"model.{module}.weight"])
        put(f"{name}/beta", state[f"model.{module}.bias"])

    for conv in ("conv1", "conv2"):
        linear(f"encoder/{conv}", f"encoder.{conv}")
    put("decoder/embeddings/weight", state["model.decoder.embed_tokens.weight"])
    for side in ("encoder", "decoder"):
        put(f"{side}/position_encodings/encodings", state[f"model.{side}.embed_positions.weight"])
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(2):
            name, module = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            norm(f"{name}/self_attention/layer_norm", f"{module}.self_attn_layer_norm")
            linear(f"{name}/self_attention/linear_0", *(f"{module}.self_attn.{part}_proj" for part in "qkv"))
            linear(f"{name}/self_attention/linear_1", f"{module}.self_attn.out_proj")
            norm(f"{name}/ffn/layer_norm", f"{module}.final_layer_norm")
            linear(f"{name}/ffn/linear_0", f"{module}.fc1")
            linear(f"{name}/ffn/linear_1", f"{module}.fc2")
            if side == "decoder":
                norm(f"{name}/attention/layer_norm", f"{module}.encoder_attn_layer_norm")
                linear(f"{name}/attention/linear_0", f"{module}.encoder_attn.q_proj")
                linear(f"{name}/attention/linear_1", *(f"{module}.encoder_attn.{part}_proj" for part in "kv"))
                linear(f"{name}/attention/linear_2", f"{module}.encoder_attn.out_proj")
    return arrays


def write_ct2(folder: Path, of: Path, state: dict[str, np.ndarray], dtype: object = np.float32) -> None:
    """A folder of CTranslate2's with the model of a Hugging Face folder."""
    folder.mkdir()
    arrays = converted(state, np.dtype(dtype))
    (folder / WEIGHTS).write_bytes(model_bin(arrays, {"decoder/projection/weight": "decoder/embeddings/weight"}))
    (folder / "tokenizer.json").write_bytes((of / "tokenizer.json").read_bytes())
    theirs = load(of, "generation_config.json")
    ours = {"suppress_ids": "suppress_tokens", "suppress_ids_begin": "begin_suppress_tokens"}
    ours = {name: theirs[value] for name, value in ours.items()} | {"alignment_heads": theirs["alignment_heads"]}
    (folder / "config.json").write_text(json.dumps(ours | {"lang_ids": [1, 2]}))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of one model: Hugging Face's and CTranslate2's."""
    folder = tmp_path_factory.mktemp("ct2")
    write_ct2(folder / "ct2", folder / "hf", write_whisper(folder / "hf", multilingual=False))
    return folder / "hf", folder / "ct2"


def test_it_becomes_the_run_that_its_original_becomes(folders, tmp_path):
    hf, ct2 = folders
    import_run(ct2, tmp_path / "run")
    import_run(hf, tmp_path / "other")
    run, other = LoadedRun.read(tmp_path / "run"), LoadedRun.read(tmp_path / "other")
    assert run.experiment == other.experiment
    for text_ in ("the cat", " sat"):
        assert run.tokenizer.encode(text_) == other.tokenizer.encode(text_)
    assert load(tmp_path / "run", "jax_speechlm.json")["imported"] == str(ct2)
    jax.tree.map(np.testing.assert_array_equal, run.params, other.params)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_read_without_loss(folders, tmp_path, dtype):
    hf, _ = folders
    write_ct2(tmp_path / "ct2", hf, read_weights(hf), dtype)
    with as_hugging_face(tmp_path / "ct2") as folder:
        for name, array in read_weights(folder).items():
            np.testing.assert_array_equal(array, read_weights(hf)[name].astype(dtype).astype(np.float32))
    assert not folder.exists()
    with as_hugging_face(hf) as folder:
        assert folder == hf


@pytest.mark.parametrize(
    ("dtype", "spec", "message"),
    [(np.int8, "WhisperSpec", "quantised to integers"), (np.float32, "TransformerSpec", "is a TransformerSpec; of")],
)
def test_other_models_are_refused(folders, tmp_path, dtype, spec, message):
    hf, _ = folders
    write_ct2(tmp_path / "ct2", hf, read_weights(hf))
    (tmp_path / "ct2" / WEIGHTS).write_bytes(model_bin(converted(read_weights(hf), np.dtype(dtype)), {}, spec))
    with pytest.raises(ExportError, match=message), as_hugging_face(tmp_path / "ct2"):
        pass


@pytest.mark.parametrize("missing", ["config.json", "tokenizer.json"])
def test_a_missing_file_is_named(folders, tmp_path, missing):
    hf, _ = folders
    write_ct2(tmp_path / "ct2", hf, read_weights(hf))
    (tmp_path / "ct2" / missing).unlink()
    with pytest.raises(ExportError, match=missing), as_hugging_face(tmp_path / "ct2"):
        pass


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read(folders, tmp_path, data):
    whole = model_bin({"a/b": np.ones((2, 3), np.float32), "c": np.asarray(np.int16(3))}, {"d": "c"})
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.booleans())
    content = whole[:place] if cut else whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    (tmp_path / WEIGHTS).write_bytes(content)
    if cut:
        with pytest.raises(ExportError, match=WEIGHTS):
            read_arrays(tmp_path / WEIGHTS)
        return
    with contextlib.suppress(ExportError):
        _, arrays = read_arrays(tmp_path / WEIGHTS)
        assert sum(array.nbytes for array in arrays.values()) <= 2 * len(whole)
