"""Conversion of an encoder with an attention decoder to and from Hugging Face's Whisper (see `mapping`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import (
    CONVOLUTION,
    HEADS_BIAS,
    INTO_HEADS,
    OUT_OF_HEADS,
    SAME,
    Row,
    StateDict,
    below,
    linear,
    norm,
)
from jax_speechlm.models.attention_decoder import AttentionDecoderConfig
from jax_speechlm.models.encoder_decoder import EncoderDecoderConfig
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.nn.functional import Params

ARCHITECTURE = "WhisperForConditionalGeneration"
TIED = "proj_out.weight"
"""The vocabulary map, which is the embedding; files may hold it too."""


def _maps(path: str, name: str) -> list[Row]:
    return [
        *linear(f"{path}.query", f"{name}.q_proj", INTO_HEADS, HEADS_BIAS),
        *linear(f"{path}.key", f"{name}.k_proj", INTO_HEADS, None),
        *linear(f"{path}.value", f"{name}.v_proj", INTO_HEADS, HEADS_BIAS),
        *linear(f"{path}.out", f"{name}.out_proj", OUT_OF_HEADS),
    ]


def _layer(name: str) -> list[Row]:
    return [
        *norm("layers.attention_norm", f"{name}.self_attn_layer_norm"),
        *_maps("layers.attention", f"{name}.self_attn"),
        *norm("layers.ffn_norm", f"{name}.final_layer_norm"),
        *linear("layers.ffn.expand", f"{name}.fc1"),
        *linear("layers.ffn.contract", f"{name}.fc2"),
    ]


_ENCODER = [
    *linear("first", "model.encoder.conv1", CONVOLUTION),
    *linear("second", "model.encoder.conv2", CONVOLUTION),
    Row("position", "model.encoder.embed_positions.weight", SAME),
    *_layer("model.encoder.layers.{}"),
    *norm("norm", "model.encoder.layer_norm"),
]
_DECODER = [
    Row("embedding", "model.decoder.embed_tokens.weight", SAME),
    Row("position", "model.decoder.embed_positions.weight", SAME),
    *_layer("model.decoder.layers.{}"),
    *norm("layers.source_norm", "model.decoder.layers.{}.encoder_attn_layer_norm"),
    *_maps("layers.source", "model.decoder.layers.{}.encoder_attn"),
    *norm("norm", "model.decoder.layer_norm"),
]
_GROUPS = {"encoder": below("encoder", _ENCODER), "decoder": below("decoder", _DECODER)}


def sources(state_dict: StateDict, config: EncoderDecoderConfig) -> Params:
    """Finds the places of our `EncoderDecoder`'s parameters in a state dict: `encoder` and `decoder`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays, embedding = dict(state_dict), "model.decoder.embed_tokens.weight"
    if (head := arrays.pop(TIED, None)) is not None and not np.array_equal(head, arrays.get(embedding)):
        raise ValueError(f"{TIED} differs from {embedding}: a vocabulary map of its own has no counterpart here")
    decoder = {name: value for name, value in arrays.items() if name.startswith("model.decoder.")}
    encoder = {name: value for name, value in arrays.items() if name not in decoder}
    return mapping.sources(encoder, _GROUPS["encoder"], config.encoder, "Whisper encoder") | mapping.sources(
        decoder, _GROUPS["decoder"], config.decoder, "Whisper decoder"
    )


def to_hugging_face(params: Params, config: EncoderDecoderConfig) -> dict[str, np.ndarray]:
    """Returns the float32 state dict of a model whose LoRA has been merged."""
    encoder = mapping.write(params, _GROUPS["encoder"], config.encoder)
    return encoder | mapping.write(params, _GROUPS["decoder"], config.decoder)


_FIXED = {
    "model_type": "whisper",
    "activation_function": "gelu",
    "scale_embedding": False,
    "is_encoder_decoder": True,
    "tie_word_embeddings": True,
}
# Names of settings, "{}" being the side.
_RENAMED = {"{}_layers": "num_layers", "{}_attention_heads": "num_heads", "{}_ffn_dim": "ffn_dim"}


def config_from_hugging_face(values: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Converts a Whisper's `config.json`; raises ValueError for other forms."""
    values = completed(values)
    mapping.require_fixed(values, _FIXED)

    def side(name: str) -> dict[str, Any]:
        renamed = {setting: values[hf.format(name)] for hf, setting in _RENAMED.items()}
        return renamed | {"dim": values["d_model"], "dropout": values["dropout"]}

    positions = {"input_dim": values["num_mel_bins"], "max_frames": values["max_source_positions"]}
    encoder = WhisperEncoderConfig(**side("encoder"), **positions)
    decoder = AttentionDecoderConfig(**side("decoder"), max_tokens=values["max_target_positions"])
    return EncoderDecoderConfig(encoder=encoder, decoder=decoder)


def config_to_hugging_face(model: EncoderDecoderConfig, vocab_size: int) -> dict[str, Any]:
    """Returns the settings of Whisper's `config.json`; an `ExportError` names a part that it does not have."""
    encoder, decoder = model.encoder, model.decoder
    if not isinstance(encoder, WhisperEncoderConfig):
        raise ExportError(
            f"its encoder is a {encoder.kind}, and {ARCHITECTURE} has Whisper's: runs with model.encoder.kind "
            "whisper_encoder can be exported"
        )
    if encoder.dim != decoder.dim:
        raise ExportError(
            f"{ARCHITECTURE} has one width for both sides, and this model has encoder.dim {encoder.dim} and "
            f"decoder.dim {decoder.dim}"
        )
    sides = {
        hf.format(name): getattr(side, setting)
        for name, side in (("encoder", encoder), ("decoder", decoder))
        for hf, setting in _RENAMED.items()
    }
    return (
        _FIXED
        | sides
        | {
            "architectures": [ARCHITECTURE],
            "vocab_size": vocab_size,
            "d_model": encoder.dim,
            "num_mel_bins": encoder.input_dim,
            "max_source_positions": encoder.max_frames,
            "max_target_positions": decoder.max_tokens,
            "dropout": encoder.dropout,
            "attention_dropout": 0.0,
            "activation_dropout": 0.0,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
        }
    )


_TOWER = {"model_type": "voxtral_encoder", "activation_function": "gelu", "scale_embedding": False}
_TOWER_NAMES = {
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "ffn_dim",
    "hidden_size": "dim",
    "dropout": "dropout",
    "num_mel_bins": "input_dim",
    "max_source_positions": "max_frames",
}


def tower_from_hugging_face(values: Mapping[str, Any]) -> WhisperEncoderConfig:
    """Converts the settings of a Whisper's encoder in Voxtral; raises ValueError for other forms."""
    values = completed(values)
    mapping.require_fixed(values, _TOWER)
    return WhisperEncoderConfig(**{ours: values[theirs] for theirs, ours in _TOWER_NAMES.items()})


def tower_to_hugging_face(encoder: WhisperEncoderConfig) -> dict[str, Any]:
    """Returns the settings of a Whisper's encoder in Voxtral."""
    return _TOWER | {theirs: getattr(encoder, ours) for theirs, ours in _TOWER_NAMES.items()}


def tower_sources(state_dict: StateDict, encoder: WhisperEncoderConfig) -> Params:
    """Finds the places of the encoder's parameters among the arrays of Voxtral's tower; errors as of `sources`."""
    arrays = {f"model.encoder.{name}": value for name, value in state_dict.items()}
    return mapping.sources(arrays, _GROUPS["encoder"], encoder, "Whisper encoder")


def tower_arrays(params: Params, encoder: WhisperEncoderConfig) -> dict[str, np.ndarray]:
    """Returns the float32 arrays of Voxtral's tower."""
    arrays = mapping.write(params, _GROUPS["encoder"], encoder)
    return {name.removeprefix("model.encoder."): value for name, value in arrays.items()}


EXTRACTOR = "WhisperFeatureExtractor"
_FEATURES = {
    "feature_extractor_type": EXTRACTOR,
    "sampling_rate": DEFAULT_SAMPLE_RATE,
    "hop_length": 160,
    "n_fft": 400,
    "padding_value": 0.0,
    "dither": 0.0,
}


def features_from_hugging_face(values: Mapping[str, Any]) -> WhisperMel:
    """Converts a `WhisperFeatureExtractor`'s `preprocessor_config.json`; raises ValueError for other features."""
    values = FEATURES[EXTRACTOR] | dict(values)
    mapping.require_fixed(values, _FEATURES)
    if values["chunk_length"] is None:
        raise ValueError("chunk_length is null: windows have a length in seconds, in Whisper 30")
    return WhisperMel(num_mel_bins=values["feature_size"], window_seconds=values["chunk_length"])


def features_to_hugging_face(mel: WhisperMel) -> dict[str, Any]:
    """Returns the settings of the `WhisperFeatureExtractor` that computes the same features.

    Raises:
      ExportError: it does not compute them.
    """
    if not isinstance(mel, WhisperMel) or mel.window_seconds is None:
        raise ExportError(
            f"{EXTRACTOR} computes features of whole windows, and frontend.mel has variant {mel.variant!r}"
            f"{' without window_seconds' * isinstance(mel, WhisperMel)}: runs with variant whisper and window_seconds "
            "can be exported"
        )
    samples = mel.window_seconds * DEFAULT_SAMPLE_RATE
    return _FEATURES | {
        "feature_size": mel.num_mel_bins,
        "chunk_length": mel.window_seconds,
        "n_samples": samples,
        "nb_max_frames": samples // 160,
        "padding_side": "right",
        "return_attention_mask": False,
    }
