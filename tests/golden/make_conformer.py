"""Makes conformer.npz: a small randomly initialised Wav2Vec2BertForCTC, its inputs and its outputs.

    python tests/golden/make_conformer.py        (needs torch and transformers; see the [parity] extra)

The sequence is longer than the distance table's left reach, and the lengths are mixed.
"""

import json
from pathlib import Path

import numpy as np

SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "feature_projection_input_dim": 10,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 6,
    "right_max_position_embeddings": 3,
    "vocab_size": 7,
    "hidden_dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.0,
    "conformer_conv_dropout": 0.0,
    "final_dropout": 0.0,
    "layerdrop": 0.0,
    "apply_spec_augment": False,
    "add_adapter": False,
}
LENGTHS = (23, 17, 6, 1)


def main() -> None:
    import torch
    from transformers import Wav2Vec2BertConfig, Wav2Vec2BertForCTC

    torch.manual_seed(0)
    config = Wav2Vec2BertConfig(**SETTINGS)
    model = Wav2Vec2BertForCTC(config).eval()
    with torch.no_grad():  # the initial zeros and ones would hide a swapped bias or scale
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.mean() if parameter.ndim == 1 else 0))
    features = torch.randn(len(LENGTHS), max(LENGTHS), SETTINGS["feature_projection_input_dim"])
    mask = torch.arange(max(LENGTHS))[None] < torch.tensor(LENGTHS)[:, None]
    with torch.no_grad():
        output = model(features, attention_mask=mask.long(), output_hidden_states=True)
    arrays = {f"weights/{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(
        Path(__file__).with_name("conformer.npz"),
        config=json.dumps(config.to_dict()),
        features=features.numpy(),
        lengths=np.array(LENGTHS, np.int32),
        hidden=np.stack([state.numpy() for state in output.hidden_states]),
        logits=output.logits.numpy(),
        **arrays,
    )


if __name__ == "__main__":
    main()
