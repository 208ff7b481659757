"""Settings as the classes of transformers 5 complete them: the defaults of their class, and other names of one value.

A `config.json` may leave out the defaults of its class, and earlier versions and other writers use other names for some
settings. `tests/parity/test_class_settings_parity.py` compares every entry here with the classes. Ids of tokens are
left as they are in the files: a default id may be an ordinary token of another vocabulary.
"""

from collections.abc import Mapping
from typing import Any

from data_pipelines.core.audio_format import DEFAULT_SAMPLE_RATE

# fmt: off
_CAUSAL = {
    "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "hidden_act": "silu", "rms_norm_eps": 1e-6,
    "tie_word_embeddings": False, "attention_bias": False, "rope_theta": 10_000.0,
}
_BERT = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "type_vocab_size": 2,
    "tie_word_embeddings": True, "is_decoder": False, "add_cross_attention": False,
}

_FAST_CONFORMER = {
    "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8, "intermediate_size": 4096,
    "hidden_act": "silu", "attention_bias": True, "convolution_bias": True, "conv_kernel_size": 9,
    "subsampling_factor": 8, "subsampling_conv_channels": 256, "num_mel_bins": 80,
    "subsampling_conv_kernel_size": 3, "subsampling_conv_stride": 2, "dropout": 0.1, "attention_dropout": 0.1,
    "scale_input": True,
}

_HIFIGAN = {
    "model_in_dim": 80, "upsample_initial_channel": 512, "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]], "leaky_relu_slope": 0.1, "normalize_before": True,
}

_WAV2VEC2 = {
    "vocab_size": 32, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "hidden_dropout": 0.1, "layer_norm_eps": 1e-5, "feat_extract_norm": "group",
    "feat_extract_activation": "gelu", "conv_dim": [512] * 7, "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2], "conv_bias": False, "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16, "do_stable_layer_norm": False, "use_weighted_layer_sum": False,
    "classifier_proj_size": 256,
}
_XVECTOR = {
    "tdnn_dim": [512, 512, 512, 512, 1500], "tdnn_kernel": [5, 3, 3, 1, 1], "tdnn_dilation": [1, 2, 3, 1, 1],
    "xvector_output_dim": 512, "add_adapter": False,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": _CAUSAL | {
        "vocab_size": 32_000, "intermediate_size": 11_008, "num_key_value_heads": None, "head_dim": None,
        "max_position_embeddings": 2048, "mlp_bias": False,
    },
    "mistral": {name: value for name, value in _CAUSAL.items() if name != "attention_bias"} | {
        "vocab_size": 32_000, "intermediate_size": 14_336, "num_key_value_heads": 8, "head_dim": None,
        "max_position_embeddings": 131_072, "sliding_window": 4096,
    },
    "qwen3": _CAUSAL | {
        "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32, "head_dim": 128,
        "max_position_embeddings": 32_768, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28, "layer_types": None,
    },
    "qwen2": {name: value for name, value in _CAUSAL.items() if name != "attention_bias"} | {
        "vocab_size": 151_936, "intermediate_size": 22_016, "num_key_value_heads": 32,
        "max_position_embeddings": 32_768, "use_sliding_window": False, "sliding_window": 4096,
        "max_window_layers": 28, "layer_types": None,
    },
    "modernbert": {
        "vocab_size": 50_368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "hidden_activation": "gelu", "max_position_embeddings": 8192, "norm_eps": 1e-5,
        "norm_bias": False, "attention_bias": False, "layer_types": None, "global_attn_every_n_layers": 3,
        "local_attention": 128, "global_rope_theta": 160_000.0, "local_rope_theta": 10_000.0, "mlp_bias": False,
        "decoder_bias": True, "classifier_pooling": "cls", "classifier_bias": False, "classifier_activation": "gelu",
        "tie_word_embeddings": True,
    },
    "bert": _BERT | {"vocab_size": 30_522},
    "roberta": _BERT | {"vocab_size": 50_265, "pad_token_id": 1},  # its positions begin after that id
    "xlm-roberta": _BERT | {"vocab_size": 30_522, "pad_token_id": 1},
    "distilbert": {
        "vocab_size": 30_522, "max_position_embeddings": 512, "n_layers": 6, "n_heads": 12, "dim": 768,
        "hidden_dim": 3072, "activation": "gelu", "tie_word_embeddings": True,
    },
    "gpt2": {
        "vocab_size": 50_257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False, "reorder_and_upcast_attn": False, "add_cross_attention": False,
        "tie_word_embeddings": True,
    },
    "wav2vec2-bert": {
        "vocab_size": None, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "feature_projection_input_dim": 160,
        "hidden_act": "silu",  # which the class calls swish
        "hidden_dropout": 0.0, "attention_dropout": 0.0, "layer_norm_eps": 1e-5, "use_weighted_layer_sum": False,
        "use_intermediate_ffn_before_adapter": False,
        "position_embeddings_type": "relative_key", "left_max_position_embeddings": 64,
        "right_max_position_embeddings": 8, "conv_depthwise_kernel_size": 31,
    } | _XVECTOR,
    "wav2vec2": _WAV2VEC2 | _XVECTOR | {
        "adapter_attn_dim": None, "num_codevectors_per_group": 320, "num_codevector_groups": 2,
        "contrastive_logits_temperature": 0.1, "num_negatives": 100, "codevector_dim": 256, "proj_codevector_dim": 256,
        "diversity_loss_weight": 0.1, "mask_time_prob": 0.05, "mask_time_length": 10,
    },
    "hubert": _WAV2VEC2 | {"feat_proj_layer_norm": True, "conv_pos_batch_norm": False},
    "wavlm": _WAV2VEC2 | _XVECTOR | {"num_buckets": 320, "max_bucket_distance": 800},
    "data2vec-audio": {
        name: value for name, value in (_WAV2VEC2 | _XVECTOR).items()
        if name not in ("feat_extract_norm", "do_stable_layer_norm")
    } | {"conv_pos_kernel_size": 19, "num_conv_pos_embeddings": 5},
    "parakeet_encoder": _FAST_CONFORMER,
    "parakeet_ctc": {"vocab_size": 1025},
    "nemotron_asr_streaming_encoder": _FAST_CONFORMER | {"sliding_window": 71, "default_num_lookahead_tokens": 13},
    "nemotron_asr_streaming": {
        "vocab_size": 1025, "decoder_hidden_size": 640, "num_decoder_layers": 2, "hidden_act": "relu",
        "max_symbols_per_step": 10,
    },
    "voxtral": {"projector_hidden_act": "gelu"},
    "voxtral_encoder": {
        "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20,
        "num_mel_bins": 128, "max_source_positions": 1500, "activation_function": "gelu", "scale_embedding": False,
        "dropout": 0.0,
    },
    "whisper": {
        "vocab_size": 51_865, "num_mel_bins": 80, "encoder_layers": 4, "encoder_attention_heads": 6,
        "decoder_layers": 4, "decoder_attention_heads": 6, "decoder_ffn_dim": 1536, "encoder_ffn_dim": 1536,
        "activation_function": "gelu", "d_model": 384, "dropout": 0.0, "scale_embedding": False,
        "max_source_positions": 1500, "max_target_positions": 448, "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    },
    "wavtokenizer": {
        "sampling_rate": 24_000, "audio_channels": 1, "num_filters": 32, "upsampling_ratios": [6, 5, 5, 4],
        "num_residual_layers": 1, "dilation_growth_rate": 2, "compress": 2, "use_conv_shortcut": True,
        "use_causal_conv": False, "pad_mode": "reflect", "norm_type": "weight_norm", "kernel_size": 7,
        "last_kernel_size": 7, "residual_kernel_size": 3, "num_lstm_layers": 2, "hidden_size": 512,
        "codebook_size": 4096, "codebook_dim": 512, "decoder_hidden_size": 768, "decoder_intermediate_size": 2304,
        "decoder_num_layers": 12, "adanorm_num_embeddings": 4, "decoder_attention_num_groups": 32, "norm_eps": 1e-6,
    },
    "speecht5_hifigan": _HIFIGAN | {
        "sampling_rate": 16_000, "upsample_rates": [4, 4, 4, 4], "upsample_kernel_sizes": [8, 8, 8, 8],
    },
    "fastspeech2_conformer_hifigan": _HIFIGAN | {
        "upsample_rates": [8, 8, 2, 2], "upsample_kernel_sizes": [16, 16, 4, 4],
    },
}
"""By `model_type`: what a setting is that a `config.json` does not have."""

VOXTRAL_TEXT = {
    "model_type": "llama", "vocab_size": 131_072, "hidden_size": 3072, "intermediate_size": 8192,
    "num_hidden_layers": 30, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
    "rope_theta": 100_000_000.0, "head_dim": 128,
}
"""Voxtral's defaults of its language model, which come before those of that model's own class."""
# fmt: on

_PARTS: dict[str, dict[str, dict[str, Any]]] = {
    "voxtral": {"audio_config": {"model_type": "voxtral_encoder"}, "text_config": VOXTRAL_TEXT},
    "parakeet_ctc": {"encoder_config": {"model_type": "parakeet_encoder"}},
    "nemotron_asr_streaming": {"encoder_config": {"model_type": "nemotron_asr_streaming_encoder"}},
}

_NEMO = {
    "feature_size": 80, "sampling_rate": DEFAULT_SAMPLE_RATE, "hop_length": 160, "n_fft": 512, "win_length": 400,
    "preemphasis": 0.97, "padding_value": 0.0,
}  # fmt: skip

FEATURES: dict[str, dict[str, Any]] = {
    "SeamlessM4TFeatureExtractor": {"sampling_rate": DEFAULT_SAMPLE_RATE, "num_mel_bins": 80, "stride": 2},
    "ParakeetFeatureExtractor": _NEMO,
    "NemotronAsrStreamingFeatureExtractor": _NEMO | {"mel_filters_dtype": "float32"},
    "Wav2Vec2FeatureExtractor": {
        "feature_size": 1, "sampling_rate": DEFAULT_SAMPLE_RATE, "padding_value": 0.0, "do_normalize": True,
    },
    "WhisperFeatureExtractor": {
        "feature_size": 80, "sampling_rate": DEFAULT_SAMPLE_RATE, "hop_length": 160, "n_fft": 400, "chunk_length": 30,
        "padding_value": 0.0, "dither": 0.0,
    },
    "SpeechT5FeatureExtractor": {
        "sampling_rate": DEFAULT_SAMPLE_RATE, "num_mel_bins": 80, "hop_length": 16, "win_length": 64,
        "win_function": "hann_window", "fmin": 80, "fmax": 7600, "mel_floor": 1e-10,
    },
}  # fmt: skip
"""The same of feature extractors, by the name of the class."""

ACTIVATIONS = {"swish": "silu", "gelu_python": "gelu"}
ACTIVATIONS |= dict.fromkeys(("gelu_pytorch_tanh", "gelu_fast", "gelu_python_tanh", "gelu_accurate"), "gelu_new")
"""Other names of the functions that models here have."""

_ACTIVATION_SETTINGS = (
    "hidden_act", "feat_extract_activation", "hidden_activation", "classifier_activation", "projector_hidden_act",
    "activation", "activation_function",
)  # fmt: skip


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Completes a `config.json` with the defaults of its class, each value under one name; idempotent.

    Settings that are settings of a model themselves are completed too. For a `model_type` that is not in `DEFAULTS` no
    defaults are known.
    """
    model_type = values.get("model_type")
    settings = DEFAULTS.get(model_type, {}) | dict(values)
    for name in _ACTIVATION_SETTINGS:
        if isinstance(settings.get(name), str):
            settings[name] = ACTIVATIONS.get(settings[name], settings[name])
    for name, defaults in _PARTS.get(model_type, {}).items():
        part = settings.get(name)
        if part is None or isinstance(part, dict):
            settings[name] = completed(defaults | (part or {}))
    if settings.get("id2label") is None:
        settings["id2label"] = {str(number): f"LABEL_{number}" for number in range(settings.get("num_labels") or 2)}
    return settings
