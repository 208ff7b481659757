"""What is left out and what has no effect is said before a run begins."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pydantic
import pytest

from data_pipelines.batching.packing import make_text_plan
from data_pipelines.core.errors import DataError
from jax_speechlm.core.batch import seed_key, step_key
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.inference.lm.generation import prompt_keys
from jax_speechlm.optim.optimizers import WSD, Group, Noam, Optimizer, WarmupCosine
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, Speech, differences
from jax_speechlm.training.concerns import _of_windows, concerns
from jax_speechlm.training.loop import train
from jax_speechlm.training.source import SpeechSource, plan_speech
from jax_speechlm.units.kmeans import KMeans
from tests.training import tiny

RATE = 16_000


def of_clips(seconds, experiment: Experiment, tokens=None) -> tiny.MemorySource:
    """A source whose training clips have these durations; its validation is complete."""
    plan = plan_speech(experiment, (np.array(seconds) * RATE).astype(int), tokens)
    return dataclasses.replace(tiny.MemorySource.make(tiny.experiment("best_rq")), plan=plan)


def test_dropping_more_than_half_of_the_audio_is_an_error_that_names_hours_share_and_option(tmp_path):
    pretraining = registry.load("demo/pretrain")
    clips = of_clips([10.0] * 9 + [2.0], pretraining)
    with pytest.raises(DataError, match=r"training leaves out 98% .*9 utterances, 0.025 h, longer than 8 s") as error:
        train(pretraining, tmp_path / "run", clips)
    assert "raise --data.max-seconds" in str(error.value)
    assert "--data.max-dropped 0.99" in str(error.value)
    assert not (tmp_path / "run").exists()
    asked = pretraining.replace(data=pretraining.data.replace(max_dropped=1.0))
    (warning,) = concerns(asked, clips)
    assert "98%" in warning
    assert differences(asked, pretraining) == []  # a run may be resumed with it


def test_dropping_more_than_a_tenth_of_the_audio_is_a_warning():
    pretraining = registry.load("demo/pretrain")
    (warning,) = concerns(pretraining, of_clips([9.0] * 2 + [7.0] * 10, pretraining))
    assert warning == (
        "training leaves out 20% of its audio: 2 utterances, 0.005 h, longer than 8 s (raise --data.max-seconds to "
        "keep them)"
    )
    assert concerns(pretraining, of_clips([9.0] + [7.0] * 30, pretraining)) == ()
    finetuning = registry.load("demo/finetune")
    (warning,) = concerns(finetuning, of_clips([2.0] * 4, finetuning, np.array([0, 5, 5, 5])))
    assert "25%" in warning
    assert "without a transcript" in warning


def test_utterances_longer_than_the_window_of_the_front_end_are_a_warning():
    whisper = registry.load("demo/finetune").replace(frontend=FrontEnd(mel=WhisperMel(window_seconds=5)))
    source = object.__new__(SpeechSource)
    vars(source)["train"] = SimpleNamespace(num_samples=RATE * np.array([2, 5, 6, 7, 40]))
    (warning,) = _of_windows(whisper, source)  # one is too long for the data anyway
    assert "takes 5 s of an utterance, and 2 are longer" in warning
    assert "--data.max-seconds 5" in warning
    assert not list(_of_windows(whisper.replace(data=whisper.data.replace(max_seconds=5.0)), source))
    assert not list(_of_windows(registry.load("demo/finetune"), source))


def test_validation_that_drops_audio_is_an_error_too_and_none_at_all_is_a_warning():
    pretraining = registry.load("demo/pretrain")
    source = of_clips([2.0] * 8, pretraining)
    dropping = of_clips([10.0] * 9 + [2.0], pretraining).plan
    with pytest.raises(DataError, match="validation leaves out 98%"):
        concerns(pretraining, dataclasses.replace(source, dev_plan=dropping))
    (warning,) = concerns(pretraining, dataclasses.replace(source, dev_plan=None))
    assert "nothing validates asterisk-en, queen-en" in warning


def test_the_option_of_a_stream_is_named():
    joint = registry.load("demo/joint")
    source = tiny.source(tiny.experiment("joint"))
    speech = joint.data.streams[0]
    assert isinstance(speech.data, Speech)
    lengths = (np.array([9.0, 7.0]) * RATE).astype(int)
    plan = plan_speech(tiny.experiment("best_rq").replace(data=speech.data, model=joint.model), lengths, None)
    source.parts["speech"] = dataclasses.replace(source.parts["speech"], plan=plan)
    with pytest.raises(DataError, match=r"raise --data\.streams\.0\.data\.max-seconds"):
        concerns(joint, source)


def test_texts_cut_off_are_counted_in_tokens():
    shape = {"context": 10, "sequences_per_batch": 2, "seed": 0}
    plan = make_text_plan(np.array([8, 28]), **shape, is_packed=False)
    assert plan.cut_off_share == 20 / 36
    assert "cut off (55.6% of the tokens): 1" in plan.describe()
    assert make_text_plan(np.array([8, 28]), **shape).cut_off_share == 0


@pytest.mark.parametrize("schedule", [WarmupCosine(warmup_steps=9), Noam(warmup_steps=9), WSD(warmup_steps=9)])
def test_a_warmup_longer_than_the_run_says_that_the_peak_is_never_reached(schedule):
    experiment = tiny.experiment("best_rq")
    source = tiny.MemorySource.make(experiment)
    slow = experiment.replace(optimizer=Optimizer(schedule=schedule))
    (warning,) = concerns(slow, source)
    rate = float(schedule.build(8)(7))
    assert rate < schedule.peak
    assert f"the learning rate ends at {rate:.3g} and never reaches its peak of 0.001" in warning
    whole = slow.replace(num_steps=9)
    assert not any("peak" in warning for warning in concerns(whole, source))
    assert float(schedule.build(9)(8)) == pytest.approx(schedule.peak)


def test_settings_that_begin_after_the_end_are_named():
    experiment = tiny.experiment("best_rq")
    late = Optimizer(schedule=WSD(warmup_steps=8), groups=(Group(prefix="encoder", start_step=8),))
    decay, group = concerns(experiment.replace(optimizer=late), tiny.MemorySource.make(experiment))
    assert "do not fit into 8 steps: the learning rate ends at 0.001 instead of 0" in decay
    assert "encoder begins to learn at step 8, and the run has 8: it never learns" in group


def test_where_micro_batches_change_the_result_it_is_said():
    said = {}
    for name in tiny.OBJECTIVES:
        experiment = tiny.experiment(name)
        experiment = experiment.replace(optimizer=experiment.optimizer.replace(accumulate=4))
        said[name] = [text for text in concerns(experiment, tiny.source(experiment)) if "accumulate is 4" in text]
    assert {name for name, texts in said.items() if texts} == {"wav2vec2", "w2v_bert", "codec"}
    assert "diversity" in (Optimizer.__doc__ or "")


def test_every_bit_of_a_seed_counts():
    seeds = [0, 1, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**63, 2**64 - 1]
    keys = {jax.random.key_data(seed_key(seed)).tobytes() for seed in seeds}
    keys |= {jax.random.key_data(step_key(seed, 3)).tobytes() for seed in seeds}
    assert len(keys) == 2 * len(seeds)
    for seed in seeds[:4]:  # those of before have the keys of before
        np.testing.assert_array_equal(jax.random.key_data(seed_key(seed)), jax.random.key_data(jax.random.key(seed)))
    drawn = [jax.random.key_data(prompt_keys(seed, b"prompt", 1)).tobytes() for seed in (0, 2**32)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("seed", [-1, 2**64, 2**80])
def test_seeds_of_more_than_64_bits_are_refused(seed):
    with pytest.raises(ValueError, match="from 0 to 2"):
        seed_key(seed)
    with pytest.raises(pydantic.ValidationError):
        tiny.experiment("ctc", seed=seed)
    with pytest.raises(pydantic.ValidationError):
        KMeans(seed=seed)
