"""Makes fast_conformer.npz: small randomly initialised Parakeets, their audio, features and outputs.

    python tests/golden/make_fast_conformer.py        (needs torch and transformers; see the [parity] extra)

Batch norms have running statistics as after training, and no parameter is left as it was initialised. Of the two models
one has all biases, an input that is scaled and eight times fewer frames, the other none of these and four times fewer.
"""

import json
from pathlib import Path

import numpy as np

SETTINGS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_kernel_size": 5,
    "subsampling_conv_channels": 6,
    "num_mel_bins": 16,
    "dropout": 0.0,
    "activation_dropout": 0.0,
    "attention_dropout": 0.0,
    "layerdrop": 0.0,
}
FORMS = {
    "full": {},
    "bare": {"attention_bias": False, "convolution_bias": False, "scale_input": False, "subsampling_factor": 4},
}
SAMPLES = (16_123, 9_679, 8_000, 1_400)


def waveforms() -> list[np.ndarray]:
    """int16: bursts of noise, a swelling hum in hiss, a brown noise that wraps around, and clipping.

    A louder hum or chirp in less hiss is left out: in the bins that it leaves quiet the rounding of the extractor's own
    float32 FFT comes to more than 1e-4.
    """
    rng = np.random.default_rng(0)
    time = np.arange(max(SAMPLES)) / 16_000
    hum = 9_000 * np.sin(2 * np.pi * 1.5 * time) * np.sin(2 * np.pi * 110 * time)
    loud = 1 + 200 * (np.sin(2 * np.pi * 5 * time) > 0)
    noise = rng.standard_normal((4, max(SAMPLES)))
    brown = 40 * np.cumsum(noise[2]) % 20_000 - 10_000
    signals = 15 * loud * noise[0], hum + 200 * noise[1], brown, 90_000 * noise[3]
    return [np.clip(np.round(x[:n]), -32768, 32767).astype(np.int16) for x, n in zip(signals, SAMPLES, strict=True)]


def main() -> None:
    import torch
    from transformers import ParakeetCTCConfig, ParakeetFeatureExtractor, ParakeetForCTC

    torch.manual_seed(0)
    audio = waveforms()
    arrays = {f"audio_{row}": samples for row, samples in enumerate(audio)}
    floats = [x.astype(np.float32) / 32768 for x in audio]
    for bins in (16, 80):
        inputs = ParakeetFeatureExtractor(feature_size=bins)(floats, sampling_rate=16_000, return_tensors="pt")
        arrays[f"features_{bins}"] = inputs["input_features"].numpy()
    inputs = ParakeetFeatureExtractor(feature_size=16)(floats, sampling_rate=16_000, return_tensors="pt")
    arrays["num_features"] = inputs["attention_mask"].sum(-1).numpy().astype(np.int32)
    for form, changes in FORMS.items():
        config = ParakeetCTCConfig(vocab_size=7, pad_token_id=0, encoder_config=SETTINGS | changes)
        model = ParakeetForCTC(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.3 + (parameter.mean() if parameter.ndim == 1 else 0))
            for name, statistic in model.named_buffers():
                if name.endswith("running_mean"):
                    statistic.normal_(0, 0.3)
                elif name.endswith("running_var"):
                    statistic.uniform_(0.2, 2)
            output = model(**inputs, output_hidden_states=True)
        arrays |= {f"{form}/weights/{name}": value.numpy() for name, value in model.state_dict().items()}
        arrays[f"{form}/config"] = json.dumps(config.to_dict())
        arrays[f"{form}/hidden"] = np.stack([state.numpy() for state in output.hidden_states])
        arrays[f"{form}/logits"] = output.logits.numpy()
    np.savez_compressed(Path(__file__).with_name("fast_conformer.npz"), **arrays)


if __name__ == "__main__":
    main()
