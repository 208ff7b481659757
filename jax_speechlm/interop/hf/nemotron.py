"""Conversion of causal FastConformers to and from Hugging Face's `NemotronAsrStreamingForRNNT`, or its encoder.

Their LSTMs have two biases that are added, of which ours have the sum; on export the second is zeros.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.interop.hf import mapping, parakeet
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import SAME, TRANSPOSED, Row, StateDict, linear, norm
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.models.transducer import LSTMPredictorConfig, TransducerConfig
from jax_speechlm.nn.functional import Params

ARCHITECTURE = "NemotronAsrStreamingForRNNT"
EXTRACTOR = "NemotronAsrStreamingFeatureExtractor"
PROCESSOR = "processor_config.json"
"""File of the latencies that a model was trained with."""

_FIXED = {"model_type": "nemotron_asr_streaming_encoder"}
_FIXED_TRANSDUCER = {"model_type": "nemotron_asr_streaming", "hidden_act": "relu", "max_symbols_per_step": 10}
_PREFIX = "encoder."  # of an encoder with a transducer
_BIASES = "decoder.lstm.bias_ih_l", "decoder.lstm.bias_hh_l"
_LATENCIES = "supported_num_lookahead_tokens"
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


def _transducer(num_layers: int) -> list[Row]:
    """Returns the rows of predictor and joint network, for a predictor of `num_layers`."""
    rows = [
        *linear("encoder_projection", "encoder_projector"),
        Row("embedding", "decoder.embedding.weight", SAME),
        *linear("predictor_projection", "decoder.decoder_projector"),
        *linear("joint", "joint.head"),
    ]
    for layer in range(num_layers):
        path = f"predictor.layers.{layer}"
        rows += [
            Row(f"{path}.input.kernel", f"decoder.lstm.weight_ih_l{layer}", TRANSPOSED),
            Row(f"{path}.input.bias", f"{_BIASES[0]}{layer}", SAME),
            Row(f"{path}.recurrent", f"decoder.lstm.weight_hh_l{layer}", TRANSPOSED),
        ]
    return rows


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Adds the second bias of every LSTM to the first."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items()}
    for name in [name for name in arrays if name.startswith(_BIASES[1])]:
        first, second = name.replace(_BIASES[1], _BIASES[0]), arrays.pop(name)
        arrays[first] = arrays[first] + second
    return arrays


def _all_rows(config: FastConformerConfig, num_layers: int) -> list[Row]:
    encoder = [row._replace(name=_PREFIX + row.name) for row in _encoder(config)]
    return encoder + _transducer(num_layers)


def sources(state_dict: StateDict, config: FastConformerConfig) -> Params:
    """Finds the places of our parameters in a `NemotronAsrStreamingForRNNT`, or of `encoder` in its encoder alone.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    arrays = folded(state_dict)
    num_layers = sum(name.startswith(_BIASES[0]) for name in arrays)
    rows = _all_rows(config, num_layers) if num_layers else _encoder(config)
    return mapping.sources(arrays, rows, config, "NemotronAsrStreaming")


def to_hugging_face(params: Params, config: FastConformerConfig) -> dict[str, np.ndarray]:
    """Returns the state dict, float32, of a `NemotronAsrStreamingForRNNT`, or of its encoder if there is no predictor.

    `sources` returns the same parameters.
    """
    if "predictor" not in params:
        return mapping.write(params, _encoder(config), config)
    num_layers = len(params["predictor"]["layers"])
    arrays = mapping.write(params, _all_rows(config, num_layers), config)
    biases = {f"{_BIASES[1]}{layer}": np.zeros_like(arrays[f"{_BIASES[0]}{layer}"]) for layer in range(num_layers)}
    return arrays | biases


def config_from_hugging_face(values: Mapping[str, Any], chunk_lengths: Sequence[int] = ()) -> FastConformerConfig:
    """Converts all settings of a `NemotronAsrStreamingConfig` or of its encoder; raises ValueError for other forms.

    Args:
      chunk_lengths: chunks that the model was trained on, which the processor knows instead (`chunk_lengths_of`).
    """
    values = completed(values)
    if "encoder_config" in values:
        mapping.require_fixed(values, _FIXED_TRANSDUCER)
        values = values["encoder_config"]
        if not isinstance(values, dict):
            raise ValueError("config.json: encoder_config must be the settings of an encoder")
    mapping.require_fixed(values, _FIXED)
    return FastConformerConfig(
        causal=True,
        chunk_lengths=tuple(chunk_lengths),
        left_context=values["sliding_window"] - 1,
        **parakeet.settings_from_hugging_face(values),
    )


def network_from_hugging_face(values: Mapping[str, Any]) -> TransducerConfig:
    """Returns the shape of predictor and joint network of a `NemotronAsrStreamingConfig`."""
    values = completed(values)
    predictor = LSTMPredictorConfig(num_layers=values["num_decoder_layers"])
    return TransducerConfig(dim=values["decoder_hidden_size"], predictor=predictor)


def transducer_to_hugging_face(
    config: FastConformerConfig, network: TransducerConfig, vocab_size: int
) -> dict[str, Any]:
    """Returns the `config.json` of a `NemotronAsrStreamingForRNNT` whose blank is 0.

    Raises:
      ValueError: it cannot compute the same.
    """
    if not isinstance(network.predictor, LSTMPredictorConfig):
        raise ValueError("NemotronAsrStreaming has a predictor of kind lstm, and this is a stateless one")
    return _FIXED_TRANSDUCER | {
        "architectures": [ARCHITECTURE],
        "vocab_size": vocab_size,
        "decoder_hidden_size": network.dim,
        "num_decoder_layers": network.predictor.num_layers,
        "blank_token_id": 0,
        "encoder_config": config_to_hugging_face(config),
    }


def chunk_lengths_of(processor: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the chunks in frames of the latencies in a `processor_config.json`; raises ValueError for others."""
    lookaheads = processor.get(_LATENCIES) or [length - 1 for length in CHUNK_LENGTHS]
    if not isinstance(lookaheads, list) or not all(type(each) is int and 0 <= each < 1 << 16 for each in lookaheads):
        raise ValueError(f"{_LATENCIES}={str(lookaheads)[:80]} is not possible")
    return tuple(sorted({each + 1 for each in lookaheads}))


def processor_to_hugging_face(config: FastConformerConfig, blank: str) -> dict[str, Any]:
    """Returns the `processor_config.json` of a model; `blank` is the blank's name in the tokenizer."""
    lookaheads = [length - 1 for length in sorted(config.chunk_lengths, reverse=True)]
    settings = {_LATENCIES: lookaheads, "default_num_lookahead_tokens": lookaheads[0]}
    return {"processor_class": "NemotronAsrStreamingProcessor", "blank_token": blank} | settings


def config_to_hugging_face(config: FastConformerConfig) -> dict[str, Any]:
    """Returns the settings of a `NemotronAsrStreamingEncoder`; raises ValueError if it cannot compute the same."""
    if not config.causal or config.left_context is None:
        raise ValueError("NemotronAsrStreaming is causal and has a left context: set model.causal and left_context")
    streaming = {
        "sliding_window": config.left_context + 1,
        "default_num_lookahead_tokens": max(config.chunk_lengths, default=1) - 1,
    }
    return _FIXED | parakeet.settings_to_hugging_face(config) | streaming


_FEATURES = {"feature_extractor_type": EXTRACTOR} | FEATURES[EXTRACTOR]


def features(num_mel_bins: int) -> LogMel:
    """Returns the log-mel features of a `NemotronAsrStreamingFeatureExtractor`, which are not normalised."""
    return LogMel(variant="nemo", num_mel_bins=num_mel_bins, stack=1, normalize=False)


def features_from_hugging_face(values: Mapping[str, Any]) -> LogMel:
    """Converts its `preprocessor_config.json`; raises ValueError for other features."""
    values = FEATURES[EXTRACTOR] | dict(values)
    mapping.require_fixed(values, {name: value for name, value in _FEATURES.items() if name != "feature_size"})
    return features(values["feature_size"])


def features_to_hugging_face(mel: LogMel) -> dict[str, Any]:
    """Returns the settings of the extractor that computes the same features; raises ValueError if it cannot."""
    if mel != features(mel.num_mel_bins):
        raise ValueError(
            f"{EXTRACTOR} does not compute log-mel of variant {mel.variant}, stack {mel.stack}, normalize "
            f"{mel.normalize} at {mel.sample_rate} Hz: export a run that was trained with variant nemo, stack 1 and "
            "normalize false"
        )
    return _FEATURES | {"feature_size": mel.num_mel_bins, "padding_side": "right", "return_attention_mask": True}
