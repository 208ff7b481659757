"""Conversion of the WavTokenizer codec to and from Hugging Face's `WavTokenizerModel` (see `mapping`).

Their encoder's convolutions have weight norm, a direction and a length for each output channel, and their LSTM two
biases. Both are folded here, into one kernel and one bias; on export they have values that change no bit when they are
folded again.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.interop.hf import mapping
from jax_speechlm.interop.hf.class_settings import completed
from jax_speechlm.interop.hf.mapping import CONVOLUTION, SAME, TRANSPOSED, Row, StateDict, linear, norm
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizerConfig
from jax_speechlm.nn.functional import Params

MODEL = "WavTokenizerModel"
EXTRACTOR = "WavTokenizerFeatureExtractor"

_LENGTH, _DIRECTION = ".parametrizations.weight.original0", ".parametrizations.weight.original1"
_INITIALISED = "encoder_model.quantizer.codebook.inited"


def _encoder(config: WavTokenizerConfig) -> list[Row]:
    layer = "encoder_model.encoder.layers"
    rows, place = linear("encoder.first", f"{layer}.0.conv", CONVOLUTION), 1
    for stage in range(len(config.strides)):
        path = f"encoder.stages.{stage}"
        for block in range(config.num_residual_layers):
            parts = [("dilated", "block.1"), ("pointwise", "block.3"), ("shortcut", "shortcut")]
            for name, theirs in parts[: 2 + config.conv_shortcut]:
                rows += linear(f"{path}.blocks.{block}.{name}", f"{layer}.{place}.{theirs}.conv", CONVOLUTION)
            place += 1
        rows += linear(f"{path}.down", f"{layer}.{place + 1}.conv", CONVOLUTION)  # after an activation
        place += 2
    for number in range(config.num_lstm_layers):
        path, name = f"encoder.lstm.{number}", f"{layer}.{place}.lstm"
        rows += [
            Row(f"{path}.input.kernel", f"{name}.weight_ih_l{number}", TRANSPOSED),
            Row(f"{path}.input.bias", f"{name}.bias_ih_l{number}", SAME),
            Row(f"{path}.recurrent", f"{name}.weight_hh_l{number}", TRANSPOSED),
        ]
    return rows + linear("encoder.last", f"{layer}.{place + 2}.conv", CONVOLUTION)


def _position_block(path: str, name: str) -> list[Row]:
    return [
        *norm(f"{path}.norm1", f"{name}.norm1"),
        *linear(f"{path}.conv1", f"{name}.conv1", CONVOLUTION),
        *norm(f"{path}.norm2", f"{name}.norm2"),
        *linear(f"{path}.conv2", f"{name}.conv2", CONVOLUTION),
    ]


def _adaptive_norm(path: str, name: str) -> list[Row]:
    return [Row(f"{path}.{part}", f"{name}.{part}.weight", SAME) for part in ("scale", "shift")]


def _rows(config: WavTokenizerConfig) -> list[Row]:
    codebook, net, layer = "encoder_model.quantizer.codebook", "backbone.pos_net", "backbone.convnext.{}"
    blocks = {"before.0": 0, "before.1": 1, "after.0": 3, "after.1": 4}
    attention = {"query": "q", "key": "k", "value": "v", "out": "proj_out"}
    rows = [
        *_encoder(config),
        Row("quantizer.vectors", f"{codebook}.embed", SAME),
        Row("quantizer.count", f"{codebook}.cluster_size", SAME),
        Row("quantizer.total", f"{codebook}.embed_avg", SAME),
        *linear("decoder.embed", "backbone.embed", CONVOLUTION),
        *norm("decoder.attention.norm", f"{net}.2.norm"),
        *norm("decoder.position_norm", f"{net}.5"),
        *_adaptive_norm("decoder.embed_norm", "backbone.norm"),
        Row("decoder.layers.depthwise", f"{layer}.dwconv.weight", mapping.DEPTHWISE),
        Row("decoder.layers.bias", f"{layer}.dwconv.bias", SAME),
        *_adaptive_norm("decoder.layers.norm", f"{layer}.norm"),
        *linear("decoder.layers.expand", f"{layer}.pwconv1"),
        *linear("decoder.layers.contract", f"{layer}.pwconv2"),
        Row("decoder.layers.scale", f"{layer}.gamma", SAME),
        *norm("decoder.norm", "backbone.final_layer_norm"),
        *linear("decoder.head", "head.linear"),
    ]
    for path, place in blocks.items():
        rows += _position_block(f"decoder.{path}", f"{net}.{place}")
    for path, name in attention.items():
        rows += linear(f"decoder.attention.{path}", f"{net}.2.{name}", mapping.POINTWISE)
    return mapping.below("autoencoder", rows)


def folded(state_dict: StateDict) -> dict[str, np.ndarray]:
    """Returns a state dict with one kernel for each convolution, one bias for each LSTM layer, and no flags."""
    arrays = {name: np.asarray(value) for name, value in state_dict.items() if name != _INITIALISED}
    for name in [name for name in arrays if name.endswith(_LENGTH)]:
        stem = name.removesuffix(_LENGTH)
        if stem + _DIRECTION not in arrays:
            raise ValueError(f"the state dict has {name!r} without {stem + _DIRECTION!r}")
        length, direction = arrays.pop(name), arrays.pop(stem + _DIRECTION)
        arrays[f"{stem}.weight"] = direction * (length / _norm(direction))
    for name in [name for name in arrays if ".lstm.bias_hh" in name]:
        into = name.replace("bias_hh", "bias_ih")
        if into not in arrays:
            raise ValueError(f"the state dict has {name!r} without {into!r}")
        arrays[into] = arrays[into] + arrays.pop(name)
    return arrays


def sources(state_dict: StateDict, config: WavTokenizerConfig) -> Params:
    """Finds the places of our parameters, `autoencoder`, in the state dict of a `WavTokenizerModel`.

    Raises:
      ValueError: an array is missing, left over, or of another shape than `config` implies.
    """
    return mapping.sources(folded(state_dict), _rows(config), config, MODEL)


def to_hugging_face(params: Params, config: WavTokenizerConfig) -> dict[str, np.ndarray]:
    """Returns the state dict of a `WavTokenizerModel`."""
    arrays = mapping.write(params, _rows(config), config)
    prefix = "encoder_model.encoder."
    for name in [name for name in arrays if name.startswith(prefix) and name.endswith(".conv.weight")]:
        stem, kernel = name.removesuffix(".weight"), arrays.pop(name)
        arrays |= {stem + _LENGTH: _norm(kernel), stem + _DIRECTION: kernel}
    for name in [name for name in arrays if ".lstm.bias_ih" in name]:
        arrays[name.replace("bias_ih", "bias_hh")] = np.zeros_like(arrays[name])
    return arrays | {_INITIALISED: np.ones(1, np.float32)}


def _norm(kernel: np.ndarray) -> np.ndarray:
    """Returns the length of each output channel's kernel, [out, 1, 1]; 1 of a kernel of zeros."""
    norms = np.sqrt(np.sum(np.square(kernel), axis=(1, 2), keepdims=True))
    return np.where(norms > 0, norms, np.ones_like(norms))


_RENAMED = {
    "num_filters": "num_filters",
    "num_residual_layers": "num_residual_layers",
    "dilation_growth_rate": "dilation_growth",
    "compress": "compress",
    "use_conv_shortcut": "conv_shortcut",
    "kernel_size": "kernel_size",
    "last_kernel_size": "last_kernel_size",
    "residual_kernel_size": "residual_kernel_size",
    "num_lstm_layers": "num_lstm_layers",
    "hidden_size": "latent_dim",
    "codebook_size": "codebook_size",
    "decoder_hidden_size": "dim",
    "decoder_intermediate_size": "ffn_dim",
    "decoder_num_layers": "num_layers",
    "adanorm_num_embeddings": "num_conditions",
    "decoder_attention_num_groups": "num_groups",
    "norm_eps": "norm_eps",
}
_FIXED = {
    "model_type": "wavtokenizer",
    "audio_channels": 1,
    "use_causal_conv": False,
    "pad_mode": "reflect",
    "norm_type": "weight_norm",
}


def config_from_hugging_face(values: Mapping[str, Any]) -> WavTokenizerConfig:
    """Converts the `config.json` of a `WavTokenizerModel`; raises ValueError for other forms."""
    values = completed(values)
    mapping.require_fixed(values, _FIXED | {"codebook_dim": values.get("hidden_size")})
    renamed = {setting: values[name] for name, setting in _RENAMED.items()}
    return WavTokenizerConfig(strides=tuple(reversed(values["upsampling_ratios"])), **renamed)


def config_to_hugging_face(config: WavTokenizerConfig, sample_rate: int) -> dict[str, Any]:
    """Returns the `config.json` of a `WavTokenizerModel`."""
    renamed = {name: getattr(config, setting) for name, setting in _RENAMED.items()}
    derived = {
        "codebook_dim": config.latent_dim,
        "sampling_rate": sample_rate,
        "upsampling_ratios": list(reversed(config.strides)),
        "architectures": [MODEL],
    }
    return _FIXED | renamed | derived


def extractor_to_hugging_face(config: WavTokenizerConfig, sample_rate: int) -> dict[str, Any]:
    """Returns the settings of the `WavTokenizerFeatureExtractor` of a model."""
    return {
        "feature_extractor_type": EXTRACTOR,
        "feature_size": 1,
        "hop_length": config.hop,
        "normalize_audio": False,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
        "sampling_rate": sample_rate,
    }


def spectrogram(config: WavTokenizerConfig, sample_rate: int) -> SynthesisMel:
    """Returns the form of the spectrograms that further training of an imported model compares."""
    window = 1024 if config.hop <= 1024 else 2 * config.hop
    return SynthesisMel(sample_rate=sample_rate, hop=config.hop, window=window, high_hertz=0.475 * sample_rate)
