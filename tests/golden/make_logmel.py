"""Makes logmel.npz: waveforms of mixed lengths, and what Hugging Face and librosa make of them.

    python tests/golden/make_logmel.py        (needs transformers and librosa; see the [parity] extra)

The waveforms are the hard cases for a DFT by matrix product in float32: a quiet signal on a large DC offset, a loud low
tone beside a quiet hiss, digital silence within speech-like bursts, and full-scale clipping.
"""

from pathlib import Path

import numpy as np

LENGTHS = (16_000, 11_111, 8_080, 560)


def waveforms() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    time = np.arange(max(LENGTHS)) / 16_000
    offset = 12_000 + 3 * rng.standard_normal(LENGTHS[0])
    swell = 20_000 * np.sin(2 * np.pi * 1.5 * time[: LENGTHS[1]])
    tone = swell * np.sin(2 * np.pi * 110 * time[: LENGTHS[1]]) + 3 * rng.standard_normal(LENGTHS[1])
    chirp = np.sin(2 * np.pi * (200 + 3000 * time[: LENGTHS[2]]) * time[: LENGTHS[2]])
    bursts = 9_000 * chirp * (np.sin(2 * np.pi * 5 * time[: LENGTHS[2]]) > 0)
    clipped = 90_000 * rng.standard_normal(LENGTHS[3])
    return [np.clip(np.round(x), -32768, 32767).astype(np.int16) for x in (offset, tone, bursts, clipped)]


def main() -> None:
    import librosa
    from transformers import SeamlessM4TFeatureExtractor

    audio = waveforms()
    extractor = SeamlessM4TFeatureExtractor()
    floats = [x.astype(np.float64) / 32768 for x in audio]
    arrays = {}
    for name, normalize in (("kaldi", False), ("kaldi_normalized", True)):
        output = extractor(floats, sampling_rate=16_000, return_tensors="np", do_normalize_per_mel_bins=normalize)
        arrays[name] = output["input_features"].astype(np.float32)
        arrays["kaldi_length"] = output["attention_mask"].sum(-1)
    for i, x in enumerate(floats):
        power = librosa.feature.melspectrogram(y=x, sr=16_000, n_fft=400, hop_length=160, n_mels=80)
        decibels = librosa.power_to_db(power, top_db=None)
        arrays[f"librosa_{i}"] = (decibels.T * np.log(10) / 10).astype(np.float32)
    for i, x in enumerate(audio):
        arrays[f"audio_{i}"] = x
    np.savez_compressed(Path(__file__).with_name("logmel.npz"), **arrays)


if __name__ == "__main__":
    main()
