"""Conversion of HiFi-GAN's parameters and settings to and from Hugging Face's `SpeechT5HifiGan` (see `mapping`).

`FastSpeech2ConformerHifiGan` has the same settings, but for the sample rate, and the same arrays.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import FEATURES, completed
from jax_speechlm.interop.hf.mapping import CONVOLUTION, SAME, Layout, Row, StateDict, linear
from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
from jax_speechlm.nn.functional import Params

SPEECH_T5 = "SpeechT5HifiGan"
FAST_SPEECH_2 = "FastSpeech2ConformerHifiGan"
ARCHITECTURES = SPEECH_T5, FAST_SPEECH_2
EXTRACTOR = "SpeechT5FeatureExtractor"

_TYPES = {SPEECH_T5: "speecht5_hifigan", FAST_SPEECH_2: "fastspeech2_conformer_hifigan"}
_TRANSPOSED = Layout(lambda x, c: x.transpose(0, 2, 1), lambda x, c: x.transpose(0, 2, 1))  # theirs [in, out, taps]


def _rows(config: HifiGanConfig) -> list[Row]:
    rows = [Row("mean", "mean", SAME), Row("scale", "scale", SAME)]
    rows += linear("first", "conv_pre", CONVOLUTION) + linear("last", "conv_post", CONVOLUTION)
    for stage in range(config.num_layers):
        rows += linear(f"upsamplings.layer{stage}", f"upsampler.{stage}", _TRANSPOSED)
        for block, (_, dilations) in enumerate(config.blocks, start=stage * len(config.blocks)):
            for i in range(len(dilations)):
                path, name = f"blocks.layer{block}", f"resblocks.{block}"
                rows += linear(f"{path}.dilated.layer{i}", f"{name}.convs1.{i}", CONVOLUTION)
                rows += linear(f"{path}.plain.layer{i}", f"{name}.convs2.{i}", CONVOLUTION)
    return mapping.below("generator", rows)


def to_hugging_face(params: Params, config: HifiGanConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of our parameters, `generator`."""
    return mapping.write(params, _rows(config), config)


def sources(state_dict: StateDict, config: HifiGanConfig) -> Params:
    """Finds the places of our parameters, `generator`, in a state dict.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    if any(name.endswith(("weight_g", "weight_v", "weight.original0")) for name in state_dict):
        raise ValueError(
            "the arrays have weight normalisation: open it with transformers, call remove_weight_norm() and write it "
            "with save_pretrained"
        )
    return mapping.sources(state_dict, _rows(config), config, "HiFi-GAN")


def config_to_hugging_face(model: HifiGanConfig, sample_rate: int) -> dict[str, Any]:
    """Returns the settings of a `config.json`; an `ExportError` names a form that the classes do not have."""
    return {
        "architectures": [SPEECH_T5],
        "model_type": _TYPES[SPEECH_T5],
        "model_in_dim": model.input_dim,
        "sampling_rate": sample_rate,
        "upsample_initial_channel": model.dim,
        "upsample_rates": list(model.upsample_rates),
        "upsample_kernel_sizes": list(model.upsample_kernels),
        "resblock_kernel_sizes": list(model.block_kernels),
        "resblock_dilation_sizes": [list(dilations) for dilations in model.block_dilations],
        "leaky_relu_slope": model.slope,
        "normalize_before": model.normalize,
    }


def config_from_hugging_face(values: Mapping[str, Any]) -> HifiGanConfig:
    """Converts a `config.json`; raises ValueError for sizes that do not fit together."""
    values = completed(values)
    return HifiGanConfig(
        input_dim=values["model_in_dim"],
        dim=values["upsample_initial_channel"],
        upsample_rates=values["upsample_rates"],
        upsample_kernels=values["upsample_kernel_sizes"],
        block_kernels=values["resblock_kernel_sizes"],
        block_dilations=values["resblock_dilation_sizes"],
        slope=values["leaky_relu_slope"],
        normalize=values["normalize_before"],
    )


def features_to_hugging_face(mel: SynthesisMel) -> dict[str, Any]:
    """Returns the settings of a `preprocessor_config.json`; an `ExportError` names what the extractor does not have."""
    milliseconds = {name: 1000 * getattr(mel, name) / mel.sample_rate for name in ("hop", "window")}
    for name, value in milliseconds.items():
        if value % 1:
            raise ExportError(
                f"frontend.mel.{name}={getattr(mel, name)} is {value:g} ms at {mel.sample_rate} Hz, and Hugging Face's "
                f"{EXTRACTOR} has whole milliseconds"
            )
    return {
        "feature_extractor_type": EXTRACTOR,
        "feature_size": 1,
        "sampling_rate": mel.sample_rate,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": False,
        "num_mel_bins": mel.num_mel_bins,
        "hop_length": int(milliseconds["hop"]),
        "win_length": int(milliseconds["window"]),
        "win_function": "hann_window",
        "fmin": mel.low_hertz,
        "fmax": mel.high_hertz,
        "mel_floor": mel.floor,
        "return_attention_mask": True,
    }


def features_from_hugging_face(values: Mapping[str, Any]) -> SynthesisMel:
    """Converts a `preprocessor_config.json`; raises ValueError for settings that ours does not have."""
    values = FEATURES[EXTRACTOR] | dict(values)
    mapping.require_fixed(values, {"win_function": "hann_window", "reduction_factor": None})
    rate = values["sampling_rate"]
    return SynthesisMel(
        sample_rate=rate,
        hop=rate * values["hop_length"] // 1000,
        window=rate * values["win_length"] // 1000,
        num_mel_bins=values["num_mel_bins"],
        low_hertz=values["fmin"],
        high_hertz=values["fmax"],
        floor=values["mel_floor"],
    )


def default_features(values: Mapping[str, Any], config: HifiGanConfig) -> SynthesisMel:
    """Returns the spectrograms of a folder without a `preprocessor_config.json`: SpeechT5's, at the vocoder's hop."""
    rate = values.get("sampling_rate") or completed(values).get("sampling_rate")
    if not isinstance(rate, int):
        raise ExportError(
            "config.json has no sampling_rate, and nothing else says at which rate the vocoder computes samples: add it"
        )
    return SynthesisMel(sample_rate=rate, hop=config.hop, window=4 * config.hop, num_mel_bins=config.input_dim)
