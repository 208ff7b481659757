"""Makes wav_tokenizer.npz: a small randomly initialised `WavTokenizerModel`, audio, its codes and samples.

    python tests/golden/make_wav_tokenizer.py        (needs torch and transformers; see the [parity] extra)

No parameter is left as it was initialised, and the codebook has vectors of the encoder's.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

SETTINGS = {
    "sampling_rate": 16_000,
    "num_filters": 4,
    "upsampling_ratios": [5, 4, 2],
    "hidden_size": 8,
    "codebook_dim": 8,
    "codebook_size": 24,
    "decoder_hidden_size": 16,
    "decoder_intermediate_size": 24,
    "decoder_num_layers": 2,
    "decoder_attention_num_groups": 4,
    "adanorm_num_embeddings": 2,
}
LENGTHS = (2_000, 1_789, 120, 41, 5)


def waveforms() -> list[np.ndarray]:
    """float32: a gliding tone in noise."""
    rng = np.random.default_rng(0)
    seconds = np.arange(max(LENGTHS)) / 16_000
    tone = np.sin(2 * np.pi * (150 + 900 * seconds) * seconds) * (1 + np.sin(20 * seconds))
    return [(0.2 * tone[:n] + 0.05 * rng.standard_normal(n)).astype(np.float32) for n in LENGTHS]


def scatter(model: Any) -> None:
    """Sets the parameters of a `WavTokenizerModel` so that every part has an effect, and an error in it shows."""
    import torch

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "norm" in name:
                parameter.add_(0.2 * torch.randn(parameter.shape))
            elif "lstm" in name or "original1" in name:
                parameter.normal_(0, (parameter.numel() // parameter.shape[0]) ** -0.5)
            elif "original0" in name:
                parameter.uniform_(0.8, 1.6)


def main() -> None:
    import torch
    from transformers import WavTokenizerConfig, WavTokenizerModel

    torch.manual_seed(0)
    config = WavTokenizerConfig(**SETTINGS)
    model = WavTokenizerModel(config).eval()
    audio = waveforms()
    arrays = {"config": np.array(json.dumps(config.to_dict()))}
    with torch.no_grad():
        scatter(model)
        codebook = model.encoder_model.quantizer.codebook
        latents = model.encoder_model.encoder(torch.from_numpy(audio[0])[None, None])[0].T
        codebook.embed.copy_(latents[: len(codebook.embed)])
        codebook.cluster_size.uniform_(0, 1)
        codebook.embed_avg.normal_()
        for row, samples in enumerate(audio):
            output = model(torch.from_numpy(samples)[None, None])
            decoded = model.decode(output.audio_codes).audio_values
            arrays |= {f"codes_{row}": output.audio_codes[0, 0].numpy(), f"samples_{row}": decoded[0, 0].numpy()}
    arrays |= {f"weights/{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(Path(__file__).with_name("wav_tokenizer.npz"), **arrays)


if __name__ == "__main__":
    main()
