"""Pretraining of a decoder: stretches by numpy, and parameters that an acoustic model takes over."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_speechlm.core.segments import Segments
from jax_speechlm.core.tree import paths
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.mel_restoration import hold
from tests.contracts.objectives import TOYS


def test_stretches_begin_with_an_utterance_and_have_the_mean_length():
    length, num_frames = np.array([[900, 1000], [1500, 0]]), 2000
    segments = Segments(jnp.array([[0, 900], [0, 0]]), jnp.asarray(length))
    keys = jax.random.split(jax.random.key(0), (2, 2))
    index = jnp.broadcast_to(jnp.arange(num_frames, dtype=jnp.float32)[None, :, None], (2, num_frames, 1))
    held, known = hold(index, segments, keys, 5.0, 0.25)
    first = np.asarray(held)[..., 0].astype(int)
    real = np.asarray(segments.mask(num_frames))
    np.testing.assert_array_equal(first[0, [0, 899, 900]] < 900, [True, True, False])
    for row in range(2):
        starts = np.unique(first[row, real[row]])
        np.testing.assert_allclose(length[row].sum() / len(starts), 5, rtol=0.15)
        np.testing.assert_allclose(np.asarray(known)[row, starts].mean(), 0.75, atol=0.08)
        for frame in range(length[row].sum()):  # the last start before, whose draw decides for the whole stretch
            assert first[row, frame] == starts[starts <= frame][-1]
            assert known[row, frame] == known[row, first[row, frame]]


def test_parameters_are_those_of_an_acoustic_model():
    restorer, voice = (
        functional.declare(TOYS[name].objective.make).shapes["acoustic"]
        for name in ("mel_restoration fastspeech2", "tts fastspeech2")
    )
    assert set(restorer) == {"decoder", "head", "postnet"}
    shared = {name: voice[name] for name in restorer}
    assert paths(shared) == paths(restorer)
    assert [leaf.shape for leaf in jax.tree.leaves(shared)] == [leaf.shape for leaf in jax.tree.leaves(restorer)]
