"""Makes whisper.npz: features of Whisper, and a small randomly initialised model with its outputs.

    python tests/golden/make_whisper.py        (needs torch and transformers; see the [parity] extra)

Features are of the extractor's double-precision path: its other one, by torch, rounds in float32. The model's windows
are of one second, and no parameter is left as it was initialised.
"""

import json
from pathlib import Path

import numpy as np
from make_fast_conformer import waveforms

SETTINGS = {
    "vocab_size": 24, "d_model": 16, "num_mel_bins": 8, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 2, "decoder_attention_heads": 4, "encoder_ffn_dim": 24, "decoder_ffn_dim": 40,
    "max_source_positions": 50, "max_target_positions": 12, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1,
    "decoder_start_token_id": 2,
}  # fmt: skip


def main() -> None:
    import torch
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    torch.manual_seed(0)
    audio = waveforms()
    arrays = {f"audio_{row}": samples for row, samples in enumerate(audio)}
    windows = np.stack([np.pad(x[:16_000], (0, max(0, 16_000 - len(x)))) for x in audio]) / np.float32(32768)
    for bins in (8, 80, 128):
        extractor = WhisperFeatureExtractor(feature_size=bins, chunk_length=1)
        arrays[f"features_{bins}"] = np.stack(extractor._np_extract_fbank_features(windows, "cpu")).swapaxes(1, 2)
        alone = extractor._np_extract_fbank_features(audio[2][None] / np.float32(32768), "cpu")
        arrays[f"alone_{bins}"] = alone[0].T
    model = WhisperForConditionalGeneration(WhisperConfig(**SETTINGS)).eval()
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, SETTINGS["vocab_size"], (len(audio), 11))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.mean() if parameter.ndim == 1 else 0))
        features = torch.tensor(arrays["features_8"].swapaxes(1, 2), dtype=torch.float32)
        output = model(input_features=features, decoder_input_ids=torch.tensor(tokens), output_hidden_states=True)
    arrays |= {
        f"weights/{name}": value.numpy() for name, value in model.state_dict().items() if name != "proj_out.weight"
    }
    arrays["config"] = json.dumps(model.config.to_dict())
    arrays["tokens"] = tokens.astype(np.int32)
    arrays["encoded"] = output.encoder_last_hidden_state.numpy()
    arrays["hidden"] = output.decoder_hidden_states[-1].numpy()
    arrays["logits"] = output.logits.numpy()
    single = {
        name: x.astype(np.float32) if getattr(x, "dtype", None) == np.float64 else x for name, x in arrays.items()
    }
    np.savez_compressed(Path(__file__).with_name("whisper.npz"), **single)


if __name__ == "__main__":
    main()
