"""Whisper models of CTranslate2, the form of faster-whisper's folders, as folders of Hugging Face's.

`model.bin` holds arrays by name, little-endian; strings have their length before them and a zero at the end. Format:
CTranslate2's `python/ctranslate2/specs/model_spec.py`, `_serialize`, version 6.
"""

import contextlib
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, errors_of
from jax_speechlm.interop.hf import whisper
from jax_speechlm.interop.hf.feature_extractor import FILE as FRONT_END
from jax_speechlm.interop.hf.mapping import StateDict
from jax_speechlm.interop.hf.speech_forms import GENERATION
from jax_speechlm.interop.hf.weights import write_weights
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig

WEIGHTS = "model.bin"
_SPEC, _VERSION = "WhisperSpec", 6
_DTYPES = dict(enumerate(map(np.dtype, (np.float32, np.int8, np.int16, np.int32, np.float16, ml_dtypes.bfloat16))))
_TOKENIZER = "tokenizer.json"
_FRAMES_PER_SECOND = 50
_GENERATION = {
    "suppress_ids": "suppress_tokens",
    "suppress_ids_begin": "begin_suppress_tokens",
    "alignment_heads": "alignment_heads",
}


@contextlib.contextmanager
def as_hugging_face(folder: Path) -> Iterator[Path]:
    """Yields the folder itself, or for a Whisper of CTranslate2 a temporary folder of Hugging Face's with its weights.

    Raises:
      ExportError: the model is of another kind, quantised to integers or damaged, or has no tokenizer.json.
    """
    if not (folder / WEIGHTS).is_file():
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        _write(folder, Path(made))
        yield Path(made)


def read_arrays(file: Path) -> tuple[str, dict[str, np.ndarray]]:
    """Reads a `model.bin`; returns the name of its specification, and read-only views of its arrays.

    Raises:
      ExportError: it is of another version, cut short, or contradicts itself.
    """
    content, place = np.memmap(file, np.uint8, mode="r") if file.stat().st_size else b"", 0

    def take(form: str) -> Any:
        nonlocal place
        (value,) = struct.unpack_from(f"<{form}", content, place)
        place += struct.calcsize(f"<{form}")
        return value

    def string() -> str:
        return take(f"{take('H')}s")[:-1].decode()

    arrays: dict[str, np.ndarray] = {}
    try:
        if (version := take("I")) != _VERSION:
            raise ExportError(f"{file} is of version {version} of CTranslate2's format; version {_VERSION} is read")
        spec, _ = string(), take("I")
        for _ in range(take("I")):
            name, shape = string(), [take("I") for _ in range(take("B"))]
            dtype, size = _DTYPES[take("B")], take("I")
            array = np.frombuffer(content, dtype, size // dtype.itemsize, place).reshape(shape)
            arrays[name], place = array, place + size
        for _ in range(take("I")):
            alias, name = string(), string()
            arrays[alias] = arrays[name]
    except (struct.error, ValueError, KeyError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f"{file} cannot be read as CTranslate2's weights ({error}): copy it anew") from error
    return spec, arrays


def _write(folder: Path, out: Path) -> None:
    """Writes a model of CTranslate2 as a folder of Hugging Face's."""
    spec, arrays = read_arrays(folder / WEIGHTS)
    if spec != _SPEC:
        raise ExportError(f"{folder / WEIGHTS} is a {spec}; of CTranslate2's models Whisper's ({_SPEC}) is read")
    settings = folders.read_json(folder, "config.json")
    tokenizer = folders.read_json(folder, _TOKENIZER)
    with errors_of(folder):
        try:
            model = _config(arrays)
            state_dict = _state_dict(arrays, model)
            ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
            end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
            generation = {theirs: settings[ours] for ours, theirs in _GENERATION.items() if ours in settings}
        except (KeyError, TypeError, IndexError) as error:
            raise ExportError(
                f"{folder} has no {error}: it is no whole Whisper, or was quantised to integers; convert the original "
                "anew with --quantization float16, or import the original"
            ) from error
    special = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), end) | {"decoder_start_token_id": start}
    num_rows = len(arrays["decoder/embeddings/weight"])
    window = WhisperMel(
        num_mel_bins=model.encoder.input_dim, window_seconds=model.encoder.max_frames // _FRAMES_PER_SECOND
    )
    names = {f"{name}_token": "<|endoftext|>" for name in ("bos", "eos", "pad", "unk")}
    write_weights(out, state_dict)
    for name, values in {
        "config.json": whisper.config_to_hugging_face(model, num_rows) | special,
        FRONT_END: whisper.features_to_hugging_face(window),
        GENERATION: special | generation,
        _TOKENIZER: tokenizer,
        "tokenizer_config.json": names | {"tokenizer_class": "WhisperTokenizer"},
    }.items():
        folders.write_json(out, name, values)


def _config(arrays: Mapping[str, np.ndarray]) -> EncoderDecoderConfig:
    """Returns the shape of the model."""

    def side(name: str) -> dict[str, int]:
        layers = {key.split("/")[1] for key in arrays if key.startswith(f"{name}/layer_") and key.count("/") > 2}
        ffn_dim, dim = arrays[f"{name}/layer_0/ffn/linear_0/weight"].shape
        heads = int(arrays[f"{name}/num_heads"])
        return {"dim": dim, "num_layers": len(layers), "num_heads": heads, "ffn_dim": ffn_dim}

    positions = {name: len(arrays[f"{name}/position_encodings/encodings"]) for name in ("encoder", "decoder")}
    bins = arrays["encoder/conv1/weight"].shape[1]
    encoder = WhisperEncoderConfig(**side("encoder"), input_dim=bins, max_frames=positions["encoder"])
    decoder = AttentionDecoderConfig(**side("decoder"), max_tokens=positions["decoder"])
    return EncoderDecoderConfig(encoder=encoder, decoder=decoder)


def _state_dict(arrays: Mapping[str, np.ndarray], model: EncoderDecoderConfig) -> StateDict:
    """Returns the float32 arrays by Hugging Face's names."""
    state_dict: StateDict = {}

    def put(name: str, array: np.ndarray) -> None:
        if not np.issubdtype(array.dtype, np.floating) and array.dtype != ml_dtypes.bfloat16:
            raise KeyError(f"{name} in floats")
        state_dict[f"model.{name}"] = np.asarray(array, np.float32)

    def linear(theirs: str, *ours: str) -> None:
        """Puts the linear maps that CTranslate2 joins, the outputs of one after those of another."""
        for part in ("weight", "bias"):
            pieces = np.split(arrays[f"{theirs}/{part}"], len(ours))
            for name, piece in zip(ours, pieces, strict=True):
                if part == "weight" or not name.endswith("k_proj"):  # whose bias is zero there, and left out here
                    put(f"{name}.{part}", piece)

    def norm(theirs: str, ours: str) -> None:
        put(f"{ours}.weight", arrays[f"{theirs}/gamma"])
        put(f"{ours}.bias", arrays[f"{theirs}/beta"])

    for number in (1, 2):
        linear(f"encoder/conv{number}", f"encoder.conv{number}")
    put("decoder.embed_tokens.weight", arrays["decoder/embeddings/weight"])
    for side, config in (("encoder", model.encoder), ("decoder", model.decoder)):
        put(f"{side}.embed_positions.weight", arrays[f"{side}/position_encodings/encodings"])
        norm(f"{side}/layer_norm", f"{side}.layer_norm")
        for layer in range(config.num_layers):
            theirs, ours = f"{side}/layer_{layer}", f"{side}.layers.{layer}"
            norm(f"{theirs}/self_attention/layer_norm", f"{ours}.self_attn_layer_norm")
            linear(f"{theirs}/self_attention/linear_0", *(f"{ours}.self_attn.{name}_proj" for name in "qkv"))
            linear(f"{theirs}/self_attention/linear_1", f"{ours}.self_attn.out_proj")
            if side == "decoder":
                norm(f"{theirs}/attention/layer_norm", f"{ours}.encoder_attn_layer_norm")
                linear(f"{theirs}/attention/linear_0", f"{ours}.encoder_attn.q_proj")
                linear(f"{theirs}/attention/linear_1", *(f"{ours}.encoder_attn.{name}_proj" for name in "kv"))
                linear(f"{theirs}/attention/linear_2", f"{ours}.encoder_attn.out_proj")
            norm(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm")
            linear(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            linear(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
    return state_dict
