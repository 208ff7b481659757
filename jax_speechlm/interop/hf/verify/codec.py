"""Comparisons of codecs: code ids, and decoded samples."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_speechlm.interop.hf.verify.subject import Subject, compiled, distance, within
from jax_speechlm.interop.hf.verify.verdict import Differs, expect_equal
from jax_speechlm.models.codec.wav_tokenizer import WavTokenizer

_TIE = 1e-5  # difference of two squared distances, as a share of the squared lengths of the vectors


def codes(subject: Subject) -> str:
    """Compares the codes of clips alone; one that is another of two at equal distance, to rounding, is counted."""
    encode, vectors = _part(subject, "encode"), _part(subject, "latents")
    codebook = np.asarray(subject.made.params["autoencoder"]["quantizer"]["vectors"])
    ties, total = 0, 0
    for wave in subject.waves:
        theirs = subject.model.encode(_input(subject, wave)).audio_codes[0, 0].numpy()
        length = np.array([len(wave)])
        (ours,), (count,) = encode(wave[None], length)
        expect_equal(f"the number of codes of {len(wave)} samples", len(theirs), int(count))
        for place in np.flatnonzero(ours[:count] != theirs):
            vector = vectors(wave[None], length)[0][0, place]
            pair = codebook[[ours[place], theirs[place]]]
            one, other = np.sum((vector - pair) ** 2, axis=-1)
            if abs(one - other) > _TIE * (np.sum(vector**2) + np.sum(pair**2)):
                raise Differs(f"code {place} of {len(wave)} samples is {theirs[place]}, not {ours[place]}")
            ties += 1
        total += len(theirs)
    but = f", but for {ties} at equal distance from two vectors" if ties else ""
    return f"equal on {len(subject.clips)} clips, {total} codes{but}"


def samples(subject: Subject) -> str:
    """Compares the samples that codes decode to."""
    decode, worst = _part(subject, "decode"), 0.0
    for wave in subject.waves:
        ids = subject.model.encode(_input(subject, wave)).audio_codes
        theirs = subject.model.decode(ids).audio_values[0, 0].numpy()
        ours, _ = decode(ids[0].numpy().astype(np.int32), np.array([ids.shape[2]]))
        expect_equal("the number of samples", len(theirs), ours.shape[1])
        worst = max(worst, distance(ours[0], theirs))
    return within(worst, f"{len(subject.clips)} clips")


def _part(subject: Subject, name: str):
    """Returns a method of the codec as a function of rows and their lengths."""
    config = subject.run.experiment.model

    def call(module: WavTokenizer, rows: jax.Array, lengths: jax.Array):
        return getattr(module, name)(jnp.asarray(rows), jnp.asarray(lengths))

    return compiled(lambda rngs: WavTokenizer(config, rngs=rngs), subject.made.params["autoencoder"], call)


def _input(subject: Subject, wave: np.ndarray) -> torch.Tensor:
    return torch.tensor(subject.extract(wave)["input_values"])
