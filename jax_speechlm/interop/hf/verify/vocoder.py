"""Comparisons of vocoders: mel spectrograms and the samples computed from them."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from jax_speechlm.frontend.synthesis_mel import synthesis_mel
from jax_speechlm.interop.hf.verify.subject import Subject, compiled, distance, within
from jax_speechlm.models.vocoders.vocoders import make_vocoder


def front_end(subject: Subject) -> str:
    """Compares the spectrograms of clips."""
    mel, worst = subject.run.experiment.frontend.mel, 0.0
    for clip, features in zip(subject.clips, _spectrograms(subject), strict=True):
        ours, _ = synthesis_mel(jnp.asarray(clip)[None], jnp.array([len(clip)]), mel)
        worst = max(worst, distance(features, np.asarray(ours)[0]))
    return within(worst, f"spectrograms of {len(subject.clips)} clips")


def waveforms(subject: Subject) -> str:
    """Compares the samples of the folder's spectrograms of single clips."""
    model, worst = subject.run.experiment.model, 0.0
    run = compiled(
        lambda rngs: make_vocoder(model, rngs=rngs),
        subject.run.params["generator"],
        lambda module, mel: module(mel, jnp.array([mel.shape[1]])),
    )
    for features in _spectrograms(subject):
        theirs = subject.model(torch.tensor(features)[None]).numpy()
        worst = max(worst, distance(theirs, jax.device_get(run(jnp.asarray(features)[None]))))
    return within(worst, f"samples of {len(subject.clips)} clips")


def _spectrograms(subject: Subject) -> list[np.ndarray]:
    """Returns the folder's spectrograms of each clip."""
    rate = subject.run.experiment.sample_rate
    return [
        subject.extractor(audio_target=wave, sampling_rate=rate, return_tensors="np")["input_values"][0]
        for wave in subject.waves
    ]
