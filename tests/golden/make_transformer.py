"""Makes transformer.npz: small randomly initialised models of eight kinds, their inputs, hidden states and logits.

    python tests/golden/make_transformer.py        (needs torch and transformers; see the [parity] extra)

Rows are whole, padded on the right and padded on the left, and longer than the windows. Qwen3 has grouped keys, a head
width that is not dim / heads, a tied head and two layers with a window of four; Qwen2 has one such layer, Llama an
untied head. The others look both ways: ModernBERT with a window in four layers of six, BERT, RoBERTa and DistilBERT
with learnt positions. GPT-2 has these too, and an inner width that is no multiple of its outer one.
"""

import json
from pathlib import Path

import numpy as np

VOCAB, TIME, LONGEST = 19, 21, 200
LENGTHS = (21, 13, 8)  # the last row is padded on the left
COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
SETTINGS = {
    "qwen3": COMMON | {
        "num_hidden_layers": 3,
        "num_key_value_heads": 2,
        "head_dim": 6,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
    },
    "qwen2": COMMON | {
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
        "use_sliding_window": True,
        "sliding_window": 5,
        "max_window_layers": 1,
    },
    "llama": COMMON | {"num_hidden_layers": 2, "num_key_value_heads": 1, "tie_word_embeddings": False},
    "modernbert": COMMON | {
        "num_hidden_layers": 6, "local_attention": 8, "cls_token_id": None, "sep_token_id": None
    },
    "bert": COMMON | {"num_hidden_layers": 2, "max_position_embeddings": LONGEST},
    "roberta": COMMON | {
        "num_hidden_layers": 2, "max_position_embeddings": LONGEST + 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5
    },
    "distilbert": {
        "vocab_size": VOCAB, "dim": 16, "n_heads": 4, "n_layers": 2, "hidden_dim": 20,
        "max_position_embeddings": LONGEST,
    },
    "gpt2": {
        "vocab_size": VOCAB, "n_embd": 16, "n_head": 4, "n_layer": 2, "n_inner": 20, "n_positions": LONGEST,
        "pad_token_id": 0, "bos_token_id": None, "eos_token_id": None,
    },
}  # fmt: skip


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 4.0},
    "yarn, untruncated": {
        "rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32, "mscale": 0.8,
        "mscale_all_dim": 0.4, "truncate": False, "beta_fast": 2.0,
    },
}  # fmt: skip
"""Scaled rotary positions, of Llamas that are otherwise as above with a small theta, so that all pairs turn."""


def inputs(*, padded_left: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, their segments and their positions, all [B, T]; `padded_left` is whether the last row is."""
    tokens = np.random.default_rng(0).integers(1, VOCAB, (len(LENGTHS), TIME))
    segment = (np.arange(TIME) < np.array(LENGTHS)[:, None]).astype(np.int32)
    if padded_left:
        segment[-1] = segment[-1, ::-1]
    return tokens.astype(np.int32), segment, np.maximum(segment.cumsum(1) - 1, 0).astype(np.int32)


def random_model(model_type: str, **changes):
    """A model in float32 whose parameters are nowhere all 0 or 1, which would hide a swapped scale."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **SETTINGS[model_type] | changes)
    is_causal = model_type in ("qwen3", "qwen2", "llama", "gpt2")
    auto = transformers.AutoModelForCausalLM if is_causal else transformers.AutoModelForMaskedLM
    model = auto.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.mean() if parameter.ndim == 1 else 0))
    return model


def outputs_of(model, tokens: np.ndarray, segment: np.ndarray, position: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The model's hidden states [B, T, D] and logits [B, T, V]; segment 0 is padding and all else one segment."""
    import torch

    first = model.config.pad_token_id + 1 if model.config.model_type == "roberta" else 0
    places = {} if model.config.model_type == "distilbert" else {"position_ids": torch.tensor(position + first).long()}
    if not places and not (np.diff(segment, axis=1) <= 0).all():
        raise ValueError("DistilBERT counts positions from the left: pad its rows on the right")
    with torch.no_grad():
        outputs = model(
            torch.tensor(tokens).long(),
            attention_mask=torch.tensor(segment > 0).long(),
            output_hidden_states=True,
            **places,
        )
    return outputs.hidden_states[-1].numpy(), outputs.logits.numpy()


def logits_of(model, tokens: np.ndarray, segment: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The model's logits [B, T, V]."""
    return outputs_of(model, tokens, segment, position)[1]


def main() -> None:
    tokens, segment, position = inputs()
    arrays = {"tokens": tokens, "segment": segment, "position": position}
    for name in SETTINGS:
        model = random_model(name)
        arrays[f"{name}/config"] = json.dumps(model.config.to_dict())
        hidden, logits = outputs_of(model, *inputs(padded_left=name != "distilbert"))
        arrays |= {f"{name}/hidden": hidden, f"{name}/logits": logits}
        arrays |= {f"{name}/weights/{key}": value.numpy() for key, value in model.state_dict().items()}
    for name, rope in ROPES.items():
        changes = {"head_dim": 16, "max_position_embeddings": 64, "rope_parameters": rope | {"rope_theta": 100.0}}
        model = random_model("llama", **changes)
        arrays[f"rope/{name}/config"] = json.dumps(model.config.to_dict())
        arrays[f"rope/{name}/logits"] = logits_of(model, *inputs())
    arrays |= {f"rope/weights/{key}": value.numpy() for key, value in model.state_dict().items()}  # the same of all
    np.savez_compressed(Path(__file__).with_name("transformer.npz"), **arrays)


if __name__ == "__main__":
    main()
