"""A speech-language model writes what its whole forward pass says, whatever else is in the batch; its runs resume."""

import dataclasses
import functools
import json
import os
import signal
import wave
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.decoding.lm.generate import Beam, Sampling
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.speech_lm import SpeechLanguageModel
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import train
from jax_speechlm.training.runs import LoadedRun
from tests.training import tiny

MODEL = tiny.MODELS["speech_lm"].replace(lora=LoRA(rank=2))
LENGTHS = (7000, 3000, 5600)


def experiment_of(**changes):
    return tiny.experiment("speech_lm", model=MODEL, num_steps=4, **changes)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run of four steps, with LoRA."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(experiment_of(), folder, tiny.MemorySource.make(experiment_of()))
    return folder


@pytest.fixture(scope="module")
def model():
    """One whose answers differ: random parameters, large ones."""
    experiment = tiny.experiment("speech_lm")
    tokenizer = tiny.MemorySource.make(experiment).tokenizer
    objective = experiment.objective.build(experiment.model, experiment.frontend, tokenizer)
    params = functional.init(objective.make, jax.random.key(5))
    params["transformer"] = jax.tree.map(lambda leaf: 3 * leaf, params["transformer"])
    return SpeechLanguageModel(LoadedRun(Path(), 0, experiment, tokenizer, params))


def batch_of(lengths, num_samples=7000):
    audio = np.zeros((len(lengths), num_samples), np.int16)
    for row, length in enumerate(lengths):
        audio[row, :length] = np.random.default_rng(length).normal(0, 3000, length)
    return {
        "audio": audio,
        "audio_length": np.array(lengths, np.int32),
        "example_id": np.array([length or -1 for length in lengths], np.int32),
        "weight": np.array([length > 0 for length in lengths], np.float32),
    }


def written_out(model, length):
    """Greedy search by whole forward passes over the row alone, without padding, cache or layout."""
    objective, front_end = model.experiment.objective, model.experiment.frontend
    make = objective.build(model.experiment.model, front_end, model.tokenizer).make
    bound = functional.bind(functional.declare(make).graphdef, model.params)
    before, behind = objective.prompt_ids(model.tokenizer)
    batch = jax.tree.map(jnp.asarray, batch_of([length], length))
    speech, count = bound.encode_speech(*features(batch, front_end, None))
    table = model.params["transformer"]["embedding"]
    vocabulary, ids, total = Vocabulary.of(model.tokenizer), [], 0.0

    @functools.partial(jax.jit, static_argnums=1)
    def last(vectors, length):
        place = jnp.arange(length)[None]
        hidden, _ = bound.transformer.encode(vectors, place * 0 + 1, place)
        return jax.nn.log_softmax(bound.transformer.logits(hidden[0, -1]))

    while len(ids) < length * 25 // 16_000 + 16 and vocabulary.boundary not in ids:
        parts = table[before], speech[0, : int(count[0])], table[behind], table[np.array(ids, int)]
        log_probs = np.asarray(last(jnp.concatenate(parts)[None], sum(map(len, parts))))
        ids.append(int(np.where(vocabulary.may_follow(), log_probs, -np.inf).argmax()))
        total += log_probs[ids[-1]]
    return ids, total


def test_greedy_answers_are_those_of_whole_forward_passes(model):
    found = model.answers(batch_of(LENGTHS))
    assert len({answers[0].text for answers in found.values()}) > 1
    for length in LENGTHS[1:]:
        ids, total = written_out(model, length)
        (answer,) = found[length]
        assert answer.num_tokens == len(ids)
        assert answer.ended == (ids[-1] == Vocabulary.of(model.tokenizer).boundary)
        assert answer.text == model.tokenizer.decode(ids[: len(ids) - answer.ended])
        assert answer.log_prob == pytest.approx(total, rel=1e-4)


@pytest.mark.parametrize("method", [Sampling(temperature=0.0), Beam(size=3), Sampling(temperature=1.5, top_k=3)])
def test_an_answer_does_not_depend_on_batch_padding_or_order(model, method):
    model = dataclasses.replace(model, method=method)
    keys = jax.random.split(jax.random.key(1), 3)
    together = model.answers(batch_of(LENGTHS), keys)
    assert list(together) == list(LENGTHS)
    order = np.array([2, 0, 1, 0])
    shuffled = model.answers(batch_of([LENGTHS[2], LENGTHS[0], LENGTHS[1], 0], 9000), keys[order])
    assert list(shuffled) == [LENGTHS[2], LENGTHS[0], LENGTHS[1]]  # the filler is left out
    for length in LENGTHS:
        for one, other in zip(together[length], shuffled[length], strict=True):
            assert (one.text, one.num_tokens, one.ended) == (other.text, other.num_tokens, other.ended)
            assert one.log_prob == pytest.approx(other.log_prob, abs=1e-3)
    if isinstance(method, Beam):
        assert all(len(answers) == 3 for answers in together.values())


def test_what_stands_in_the_padding_changes_no_bit(model):
    model, batch = dataclasses.replace(model, method=Beam(size=3)), batch_of(LENGTHS)
    clean = model.answers(batch)
    for row, length in enumerate(LENGTHS):
        batch["audio"][row, length:] = np.random.default_rng(0).integers(-30_000, 30_000, 7000 - length)
    assert model.answers(batch) == clean


def test_a_model_whose_probabilities_are_not_finite_answers_nothing(model):
    broken = dataclasses.replace(model.run, params=jax.tree.map(lambda leaf: leaf * np.nan, model.params))
    for method in (Sampling(temperature=0.0), Beam(size=2)):
        silent = SpeechLanguageModel(broken, method)
        assert set(silent.recognize(iter([batch_of(LENGTHS)])).values()) == {""}
        assert silent.transcribe_batches(iter([batch_of(LENGTHS)]))[LENGTHS[0]] == ("", -np.inf)
        (transcript,) = silent.transcribe([np.full(8000, 1000, np.int16)])
        assert (transcript.text, transcript.error) == ("", None)


def test_a_run_with_frozen_parts_and_lora_resumes_bit_for_bit(run, tmp_path):
    class Interrupted(tiny.MemorySource):
        def batch(self, plan, step):
            if step == 1 and plan is self.plan:
                os.kill(os.getpid(), signal.SIGTERM)
            return super().batch(plan, step)

    experiment = experiment_of()
    assert train(experiment, tmp_path / "run", Interrupted.make(experiment)).step == 2
    before = ckpt.read(ckpt.find(tmp_path / "run")).state["params"]
    assert train(experiment, tmp_path / "run", tiny.MemorySource.make(experiment)).step == 4
    one, other = (ckpt.read(ckpt.find(folder)).state["params"] for folder in (run, tmp_path / "run"))
    jax.tree.map(np.testing.assert_array_equal, one, other)
    for group in ("encoder", "transformer"):
        jax.tree.map(np.testing.assert_array_equal, before[group], one[group])
    for group in ("adapter", "lora"):
        assert all(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), before[group], one[group])))


def test_a_model_that_learns_nothing_sets_off_the_alarm(tmp_path, capsys):
    optimizer = experiment_of().optimizer
    still = optimizer.replace(schedule=optimizer.schedule.replace(peak=1e-12), ema_decay=0.0)
    experiment = tiny.experiment("speech_lm", num_steps=12, optimizer=still)
    experiment = experiment.replace(loop=experiment.loop.replace(eval_every=11, log_every=6))
    train(experiment, tmp_path, tiny.MemorySource.make(experiment))
    said = " ".join(capsys.readouterr().out.split())
    assert "the answers do not depend on the speech: without it the dev loss is only" in said


def test_a_loaded_run_writes_text(run, tmp_path, capsys):
    clip = tmp_path / "clip.wav"
    with wave.open(str(clip), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(np.random.default_rng(0).normal(0, 1000, 6000).astype(np.int16).tobytes())
    loaded = open_transcriber(run)
    assert set(loaded.params) == {"encoder", "adapter", "transformer"}  # LoRA is merged
    assert (loaded.decoding_description, loaded.task) == ("greedy", "transcribe")
    assert open_transcriber(run, Decoding(decoder="beam", beam_size=3)).decoding_description == "beam 3"
    (heard,) = loaded.transcribe([clip])
    assert cli.main(["transcribe", str(run), str(clip)]) == 0
    assert capsys.readouterr().out.split() == heard.text.split()
    assert cli.main(["generate", str(run), str(clip), "--temperature", "0", "--format", "json"]) == 0
    assert " ".join(json.loads(capsys.readouterr().out)["text"].split()) == heard.text
    assert cli.main(["translate", str(run), str(clip)]) == USER_ERROR
    assert "was trained to transcribe, not to translate: use jax-speechlm transcribe" in capsys.readouterr().err
    assert cli.main(["transcribe", str(run), str(clip), "--lm", "words.arpa"]) == USER_ERROR
    assert "is a language model itself" in capsys.readouterr().err


def test_other_runs_write_nothing(tmp_path):
    experiment = tiny.experiment("best_rq", num_steps=1)
    train(experiment, tmp_path, tiny.MemorySource.make(experiment))
    with pytest.raises(ckpt.CheckpointError, match="was trained by best_rq, which does not transcribe"):
        open_transcriber(tmp_path)
