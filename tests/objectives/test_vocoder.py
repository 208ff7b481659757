"""Training of vocoders: parts of utterances, gradients of the two sides, and settings that do not fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.core.batch import by_utterance
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd, features
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.models.vocoders.discriminators import DiscriminatorConfig
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.vocoder import crops
from tests.contracts.objectives import TOYS
from tests.training import tiny

FRONTEND, CROP, HOP = FrontEnd(mel=tiny.SYNTHESIS_MEL), 8, 64
TOY = TOYS["vocoder vocos"]
CONFIG = tiny.OBJECTIVES["vocoder"]
LENGTHS = np.array([900, 0, 40, 4000])
crop = jax.jit(lambda batch, key: crops(by_utterance(batch), FRONTEND, CROP, key))


def batch_of(audio, lengths):
    ids = np.arange(len(lengths), dtype=np.int32)
    return {"audio": audio, "audio_length": lengths, "example_id": ids, "weight": np.ones(len(lengths), np.float32)}


@functools.cache
def batch():
    audio = np.random.default_rng(0).integers(-9000, 9000, (len(LENGTHS), LENGTHS.max())).astype(np.int16)
    return batch_of(audio, LENGTHS.astype(np.int32))


def places(audio, lengths):
    """The first sample of each part in its utterance."""
    found = []
    for row, length in enumerate(lengths):
        samples = batch()["audio"][row, : LENGTHS[row]] / np.float32(2**15)
        starts = range(0, max(LENGTHS[row] - length, 0) + 1, HOP)
        (at,) = [start for start in starts if np.array_equal(samples[start:][:length], audio[row, :length])][:1]
        found.append(at)
    return found


def test_a_part_has_the_samples_and_the_spectrogram_of_its_utterance():
    mel, audio, lengths = crop(batch(), None)
    np.testing.assert_array_equal(lengths, [512, 0, 40, 512])
    starts = places(audio, lengths)
    whole, frames = features({name: jnp.asarray(array) for name, array in batch().items()}, FRONTEND, None)
    frames = np.asarray(frames)
    assert [start // HOP for start in starts] == [(max(n - CROP, 0)) // 2 for n in frames]
    for row, start in enumerate(starts):
        assert not audio[row, lengths[row] :].any()
        valid = min(CROP, frames[row])
        np.testing.assert_allclose(mel[row, :valid], whole[row, start // HOP :][:valid], atol=1e-5)


def test_parts_are_drawn_by_the_utterances_own_keys():
    drawn = [places(*crop(batch(), jax.random.key(seed))[1:]) for seed in range(12)]
    assert len({starts[3] for starts in drawn}) > 5
    assert {starts[2] for starts in drawn} == {0}
    alone = {name: array[3:] for name, array in batch().items()}
    np.testing.assert_array_equal(crop(alone, jax.random.key(1))[1][0], crop(batch(), jax.random.key(1))[1][3])


def gradients(config, step=3):
    objective = config.build(TOY.model, TOY.frontend, None)

    def loss(params, batch):
        return objective.loss(params, batch | {"step": jnp.int32(step)}, jax.random.key(3))[0]

    params = TOY.params if config.adversarial else {"generator": TOY.params["generator"]}
    return jax.device_get(jax.jit(jax.grad(loss))(params, TOY.batch))


def change(**changes):
    return CONFIG.replace(adversarial=CONFIG.adversarial.replace(**changes))


def close(one, other):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-4 * max(1, np.abs(x).max())), one, other)


def test_each_side_has_the_gradient_of_its_own_terms():
    both = gradients(CONFIG)
    unopposed = gradients(change(weight=0.0, feature_weight=0.0))
    close(both["discriminators"], unopposed["discriminators"])  # the vocoder's terms do not reach them
    close(unopposed["generator"], gradients(CONFIG.replace(adversarial=None))["generator"])  # nor theirs the vocoder
    heads = both["generator"]["head"]["kernel"], unopposed["generator"]["head"]["kernel"]
    assert np.abs(heads[0] - heads[1]).max() > 1e-4


def test_discriminators_take_part_from_their_first_step_on():
    late = change(start_step=5)
    close(gradients(late, step=5), gradients(CONFIG, step=5))
    early = gradients(late, step=4)
    assert not any(leaf.any() for leaf in jax.tree.leaves(early["discriminators"]))
    close(early["generator"], gradients(CONFIG.replace(adversarial=None))["generator"])


def test_the_groups_are_those_that_training_needs():
    objective = CONFIG.build(TOY.model, TOY.frontend, None)
    assert set(functional.declare(objective.make).shapes) == {"generator", "discriminators"}
    assert objective.training_only == ("discriminators",)
    assert objective.frozen == ("generator/mean", "generator/scale")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": FrontEnd(mel=LogMel(num_mel_bins=16, stack=1))}, "variant speecht5"),
        ({"model": TOY.model.replace(hop=32, window=128)}, "a frame every 64 samples and the vocoder every 32"),
        ({"model": TOY.model.replace(input_dim=9)}, "model.input_dim is 9"),
        ({"config": CONFIG.replace(crop_frames=2)}, "--objective.crop-frames 3 or more"),
        ({"frontend": FrontEnd(mel=tiny.SYNTHESIS_MEL, augment=Augment(crop_seconds=1.0))}, "crop_seconds"),
    ],
)
def test_settings_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        changes.get("config", CONFIG).build(changes.get("model", TOY.model), changes.get("frontend", FRONTEND), None)


def test_no_discriminators_are_refused():
    with pytest.raises(ValueError, match="both empty"):
        DiscriminatorConfig(periods=(), windows=())
