"""Log-mel features: audio seconds a second, against Hugging Face's, Kaldi's and lhotse's extractors on the same cores.

    python benchmarks/front_end.py

32 utterances of 10 s, from 16-bit samples to features. Ours computes and normalises a batch, ready for the model;
Hugging Face's does the same in numpy; kaldi-native-fbank (C++, one thread) and lhotse (torch) give log-mel features
alone. torchaudio's builds follow torch's releases: if none fits, the table names it as missing. Peers need the [bench]
extra; missing ones are named and left out.
"""

import argparse

import numpy as np
from interleave import load, medians, pin

UTTERANCES, SECONDS, RATE = 32, 10, 16_000


def ours(audio, variant):
    import jax
    import jax.numpy as jnp

    from jax_speechlm.frontend.logmel import LogMel, log_mel

    run = jax.jit(lambda audio, length: log_mel(audio, length, LogMel(variant=variant)))
    length = jnp.full(len(audio), audio.shape[1])
    return lambda: jax.block_until_ready(run(audio, length))


def hugging_face(floats, threads):
    from transformers import SeamlessM4TFeatureExtractor

    extractor = SeamlessM4TFeatureExtractor()
    return lambda: extractor(list(floats), sampling_rate=RATE, return_tensors="np")


def kaldi_native_fbank(floats, threads):
    import kaldi_native_fbank

    options = kaldi_native_fbank.FbankOptions()
    options.frame_opts.dither = 0
    options.mel_opts.num_bins = 80

    def one(row):
        fbank = kaldi_native_fbank.OnlineFbank(options)
        fbank.accept_waveform(RATE, row)
        fbank.input_finished()
        return np.stack([fbank.get_frame(i) for i in range(fbank.num_frames_ready)])

    scaled = [(row * 32768).tolist() for row in floats]
    return lambda: [one(row) for row in scaled]


def lhotse(floats, threads):
    import torch
    from lhotse import Fbank

    torch.set_num_threads(threads)
    extractor = Fbank()
    return lambda: extractor.extract_batch(list(floats), sampling_rate=RATE)


def torchaudio(floats, threads):
    import torch
    from torchaudio.compliance.kaldi import fbank

    torch.set_num_threads(threads)
    rows = [torch.tensor(row * 32768)[None] for row in floats]
    return lambda: [fbank(row, num_mel_bins=80, sample_frequency=RATE) for row in rows]


PEERS = {
    "Hugging Face SeamlessM4T": hugging_face,
    "kaldi-native-fbank": kaldi_native_fbank,
    "lhotse Fbank": lhotse,
    "torchaudio kaldi.fbank": torchaudio,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    pin(args.threads)

    audio = np.random.default_rng(0).normal(0, 3000, (UTTERANCES, SECONDS * RATE)).astype(np.int16)
    floats = (audio / 32768).astype(np.float32)
    programs = {f"jax_speechlm, {variant}": ours(audio, variant) for variant in ("kaldi", "librosa")}
    absent = {}
    for name, make in PEERS.items():
        try:
            programs[name] = make(floats, args.threads)
        except (ImportError, OSError) as error:  # OSError: a shared library built for another release of torch
            absent[name] = str(error).splitlines()[0]
    seconds = medians(programs, args.rounds)

    print(f"{'log-mel features':26} {'audio s/s':>10} {'ours (kaldi) is':>16}")
    for name in programs:
        times = seconds[name] / seconds["jax_speechlm, kaldi"]
        print(f"{name:26} {UTTERANCES * SECONDS / seconds[name]:10.0f} {times:14.1f} x")
    for name, reason in absent.items():
        print(f"{name:26} {'not run':>10}   {reason}")
    print(f"{args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
