"""Classes of frames: the cross-entropy of frames that have one, whatever stands around them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.augment import SPEC_AUGMENT
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.fast_conformer import FastConformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.tasks import TASKS
from tests.objectives.test_classification import speech_batch

CONFIG = FrameClassification()
FRONTEND = FrontEnd(mel=LogMel(num_mel_bins=8, stack=2), augment=SPEC_AUGMENT.replace(freq_mask_bins=3))
MODEL = ConformerConfig(input_dim=16, dim=8, num_layers=1, num_heads=2, kernel_size=3, left_max=4)


@functools.cache
def objective():
    built = CONFIG.build(MODEL, FRONTEND)
    return built, functional.init(built.make, jax.random.key(1)), jax.jit(built.loss)


def batch_with_codes() -> dict[str, np.ndarray]:
    """Rows of which one has no class, one is a filler row, and one has none at its end."""
    batch = {name: value for name, value in speech_batch().items() if name != "label"}
    frames = FRONTEND.mel.num_frames(batch["audio_length"])
    codes = np.random.default_rng(1).integers(0, 2, (6, int(FRONTEND.mel.num_frames(16_000)))).astype(np.int32)
    codes[np.arange(codes.shape[1]) >= frames[:, None]] = -1
    codes[1], codes[3, 20:] = -1, -1
    return batch | {"frame_labels": codes}


def test_equals_the_cross_entropy_of_each_frame():
    _, params, run = objective()
    batch = batch_with_codes()
    loss, metrics = run(params, batch, None)
    frame_logits = CONFIG.classifier(MODEL, FRONTEND)
    alone, nats, hits, said = jax.jit(lambda params, one: frame_logits(params, one, None)), [], [], []
    for row in (0, 3, 4, 5):
        logits, (frames,) = alone(params, {name: jnp.asarray(value[row : row + 1]) for name, value in batch.items()})
        for scores, own in zip(np.asarray(logits[0, :frames], np.float64), batch["frame_labels"][row], strict=False):
            if own >= 0:
                nats.append(np.log(np.exp(scores).sum()) - scores[own])
                hits.append(scores.argmax() == own)
                said.append(own)
    assert len(nats) == (batch["frame_labels"][[0, 3, 4, 5]] >= 0).sum() > 50
    np.testing.assert_allclose(metrics["loss"], (sum(nats), len(nats)), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (sum(hits), len(nats)))
    np.testing.assert_allclose(metrics["speech"], (sum(said), len(nats)))
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-4)


def test_what_would_part_frames_from_their_words_is_refused():
    cropped = FRONTEND.replace(augment=FRONTEND.augment.replace(crop_seconds=1.0))
    with pytest.raises(ValueError, match="from under its words"):
        CONFIG.build(MODEL, cropped)
    with pytest.raises(ValueError, match="needs an encoder with a frame for each feature vector"):
        TASKS[CONFIG.kind].check_model(FastConformerConfig())
