"""Conversion of causal FastConformers to and from the encoder of Hugging Face's `NemotronAsrStreamingForRNNT`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.hf import mapping, parakeet
from jax_speechlm.interop.hf.mapping import SAME, Row, StateDict, norm
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn.functional import Params

_FIXED = {"model_type": "nemotron_asr_streaming_encoder"}
_PREFIX = "encoder."  # of an encoder with a transducer
CHUNK_LENGTHS = (1, 2, 7, 14)
"""Chunks in frames of 80 ms that `nemotron-speech-streaming-en-0.6b` was trained on: 0, 1, 6 or 13 frames ahead."""


def _encoder(config: FastConformerConfig) -> list[Row]:
    layers = [f"subsampling.layers.{layer}" for layer in (0, 1)]
    separable = [(f"{layer}.depthwise_conv", f"{layer}.pointwise_conv") for layer in layers]
    convolution = "layers.{}.conv"
    rows = [
        *parakeet.encoder_rows(config, "subsampling.conv_in", separable),
        *norm("layers.convolution.norm_mid", f"{convolution}.norm"),
        *([Row("layers.convolution.offset", f"{convolution}.depthwise_conv.bias", SAME)] if config.bias else []),
    ]
    return mapping.below("encoder", rows)


def sources(state_dict: StateDict, config: FastConformerConfig) -> Params:
    """Finds the places of our parameters, `encoder`, in a `NemotronAsrStreamingEncoder` or the model around it.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    inside = {name.removeprefix(_PREFIX): array for name, array in state_dict.items() if name.startswith(_PREFIX)}
    return mapping.sources(inside or state_dict, _encoder(config), config, "NemotronAsrStreaming")


def to_hugging_face(params: Params, config: FastConformerConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of a `NemotronAsrStreamingEncoder`, float32; `sources` returns the same parameters."""
    return mapping.write(params, _encoder(config), config)


def config_from_hugging_face(
    values: Mapping[str, Any], chunk_lengths: Sequence[int] = CHUNK_LENGTHS
) -> FastConformerConfig:
    """Converts all settings of a `NemotronAsrStreamingEncoderConfig`; raises ValueError for other forms.

    Args:
      chunk_lengths: chunks that the model was trained on, which the processor knows instead.
    """
    mapping.require_fixed(values, _FIXED)
    return FastConformerConfig(
        causal=True,
        chunk_lengths=tuple(chunk_lengths),
        left_context=values["sliding_window"] - 1,
        **parakeet.settings_from_hugging_face(values),
    )


def config_to_hugging_face(config: FastConformerConfig) -> dict[str, Any]:
    """Returns the settings of a `NemotronAsrStreamingEncoder`; raises ValueError if it cannot compute the same."""
    if not config.causal or config.left_context is None:
        raise ValueError("NemotronAsrStreaming is causal and has a left context: set model.causal and left_context")
    streaming = {
        "sliding_window": config.left_context + 1,
        "default_num_lookahead_tokens": max(config.chunk_lengths, default=1) - 1,
    }
    return _FIXED | parakeet.settings_to_hugging_face(config) | streaming


def features(num_mel_bins: int) -> LogMel:
    """Returns the log-mel features of a `NemotronAsrStreamingFeatureExtractor`, which are not normalised."""
    return LogMel(variant="nemo", num_mel_bins=num_mel_bins, stack=1, normalize=False)
