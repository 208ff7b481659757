"""Makes sample_encoders.npz: small randomly initialised encoders of samples of transformers, with their outputs.

    python tests/golden/make_sample_encoders.py        (needs torch and transformers; see the [parity] extra)

Each of wav2vec 2.0, HuBERT, WavLM and data2vec is in the form of its base model, and the first three in that of their
large ones too. No parameter is left as it was initialised. A row's output is of the row by itself, since norms over
time and stacks of convolutions see the padding of a batch there.
"""

import json
from pathlib import Path

import numpy as np

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": [8, 8, 12], "conv_kernel": [10, 3, 2], "conv_stride": [5, 2, 2], "num_conv_pos_embedding_groups": 4,
    "mask_time_prob": 0.0,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True}
WAVLM = {"num_conv_pos_embeddings": 16, "num_buckets": 16, "max_bucket_distance": 20}
MODELS = {
    "wav2vec2": ("Wav2Vec2", {"num_conv_pos_embeddings": 16}),
    "wav2vec2 large": ("Wav2Vec2", {"num_conv_pos_embeddings": 16} | LARGE),
    "hubert": ("Hubert", {"num_conv_pos_embeddings": 9, "feat_proj_layer_norm": False}),
    "hubert large": ("Hubert", {"num_conv_pos_embeddings": 9} | LARGE),
    "wavlm": ("WavLM", WAVLM),
    "wavlm large": ("WavLM", WAVLM | LARGE),
    "data2vec": ("Data2VecAudio", {"conv_pos_kernel_size": 5, "num_conv_pos_embeddings": 3}),
}
LENGTHS = 1777, 2400, 933, 30


def main() -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    audio = [(3000 * rng.standard_normal(length) + 500).astype(np.int16) for length in LENGTHS]
    extractor = transformers.Wav2Vec2FeatureExtractor()
    arrays = {f"audio_{row}": samples for row, samples in enumerate(audio)}
    for name, (family, settings) in MODELS.items():
        model = getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**SMALL | settings))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.mean() if parameter.ndim == 1 else 0))
        arrays |= {f"{name}/weights/{key}": value.numpy() for key, value in model.state_dict().items()}
        arrays[f"{name}/config"] = json.dumps(model.config.to_dict() | {"architectures": [f"{family}Model"]})
        for row, samples in enumerate(audio):
            inputs = extractor(samples / np.float32(32768), sampling_rate=16_000, return_tensors="pt")
            if not row:
                arrays["features_0"] = inputs["input_values"][0].numpy()
            with torch.no_grad():
                output = model.eval()(inputs["input_values"], output_hidden_states=True)
            arrays[f"{name}/hidden_{row}"] = output.last_hidden_state[0].numpy()
            arrays[f"{name}/first_{row}"] = output.hidden_states[0][0].numpy()
    np.savez_compressed(Path(__file__).with_name("sample_encoders.npz"), **arrays)


if __name__ == "__main__":
    main()
