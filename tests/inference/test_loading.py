"""Every kind of run is opened by its path alone, does what it was trained for, and says what it cannot do."""

import dataclasses
import importlib.metadata
import subprocess
import sys

import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.decoding.lm.generate import GREEDY, Beam
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.experiment import Text, UnitText
from jax_speechlm.training.checkpoints import CheckpointError
from tests.data_pipelines.prepared import noise
from tests.evaluation.runs import save_run
from tests.objectives.text import MODEL as TEXT_MODEL
from tests.objectives.text import TOKENIZER as LETTERS
from tests.trained_tones import trained_run
from tests.training import tiny

SOUNDS = [noise(0, 7_000), noise(1, 20_000), noise(2, 9_000)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of each kind, untrained."""
    folder = tmp_path_factory.mktemp("runs")
    text = Text(sets=("x",), context=32, tokens_per_batch=64)
    experiments = {
        "best_rq": tiny.experiment("best_rq"),
        "speech_lm": tiny.experiment("speech_lm"),
        "causal_lm": tiny.experiment().replace(data=text, objective=CausalLM(), model=TEXT_MODEL),
    }
    spoken = UnitText(sets=("x",), units="units", context=32, tokens_per_batch=64)
    experiments["unit_lm"] = tiny.experiment().replace(data=spoken, objective=UnitLM(num_units=9), model=TEXT_MODEL)
    for name, experiment in experiments.items():
        tokenizer = LETTERS if name.endswith("_lm") and name != "speech_lm" else tiny.CharTokenizer(tiny.LETTERS)
        save_run(folder / name, experiment, None if name == "best_rq" else tokenizer, "fingerprint")
    return folder


def test_recognizers_transcribe_and_embed():
    model = jax_speechlm.load(trained_run())
    assert (model.kind, model.abilities) == ("ctc", ("transcribe", "embed", "stream"))
    assert len(model.transcribe(SOUNDS)) == 3
    alone = [model.embed(each)[0] for each in SOUNDS]
    for one, other in zip(alone, model.embed(SOUNDS), strict=True):
        assert one.shape[1] == model.model.experiment.model.dim
        np.testing.assert_allclose(one, other, atol=2e-3)
    with pytest.raises(CheckpointError, match=r"and stream but no score: load a run .* causal_lm"):
        model.score(["abc"])


def test_encoders_embed(runs):
    model = jax_speechlm.load(runs / "best_rq")
    assert model.abilities == ("embed",)
    assert model.embed(SOUNDS, layer=0)[1].shape == (tiny.MEL.num_frames(20_000), tiny.MODEL.dim)
    with pytest.raises(CheckpointError, match=r"trained by best_rq, .* no transcribe: .* finetune --from .*best_rq"):
        model.transcribe(SOUNDS)


def test_language_models_generate_and_score(runs):
    model = jax_speechlm.load(runs / "causal_lm")
    assert model.abilities == ("generate", "score")
    scores = model.score(["ab", "b"])
    assert (scores < 0).all()
    assert scores[1] == pytest.approx(model.score(["b"])[0], abs=1e-4)
    (continuations,) = model.generate("a", GREEDY, max_tokens=4)
    assert continuations[0].num_tokens <= 4
    with pytest.raises(
        CheckpointError, match=r"has generate and score but no embed: load a run that was trained by .*best_rq"
    ):
        model.embed(SOUNDS)


def test_unit_models_generate_and_score_text_and_units(runs):
    model = jax_speechlm.load(runs / "unit_lm")
    units = [np.array([3, 1, 4]), np.array([1, 5])]
    assert model.score(units).shape == model.score(["ab", "c"]).shape == (2,)
    assert model.score(units)[1] == pytest.approx(model.score(units[1:])[0], abs=1e-4)
    (continuations,) = model.generate([["ab", units[0]]], GREEDY, max_tokens=5)
    assert 1 <= continuations[0].num_tokens <= 5


def test_speech_language_models_transcribe_and_generate(runs):
    model = jax_speechlm.load(runs / "speech_lm")
    assert model.abilities == ("transcribe", "generate")
    transcripts = model.transcribe(SOUNDS)
    for answers, transcript in zip(model.generate(SOUNDS, GREEDY), transcripts, strict=True):
        assert " ".join(answers[0].text.split()) == transcript.text
        (segment,) = transcript.segments
        assert (segment.start, segment.words) == (0.0, ())
        assert segment.avg_logprob == pytest.approx(answers[0].log_prob / answers[0].num_tokens, abs=1e-3)
    assert [len(answers) for answers in model.generate(SOUNDS, Beam(size=2))] == [2, 2, 2]
    drawn = model.generate(SOUNDS, samples=2, seed=3)
    assert drawn[1][1].text == model.generate(SOUNDS[1:2], samples=2, seed=3)[0][1].text
    to_translate = model.model.experiment.replace(objective=SpeechLM(task="translate"))
    run = dataclasses.replace(model.model.run, experiment=to_translate)
    translator = dataclasses.replace(model, model=dataclasses.replace(model.model, run=run))
    assert translator.abilities == ("generate",)
    with pytest.raises(
        CheckpointError, match="trained by speech_lm to translate, which has generate but no transcribe"
    ):
        translator.transcribe(SOUNDS)


def test_what_is_not_there_is_named(runs):
    with pytest.raises(CheckpointError, match="nowhere"):
        jax_speechlm.load(runs / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        jax_speechlm.laod  # noqa: B018


def test_a_loaded_model_has_a_short_repr(runs):
    for run in (trained_run(), *runs.iterdir()):
        text = repr(jax_speechlm.load(run))
        assert str(run) in text
        assert len(text) < 2_000, run
        assert "array(" not in text.lower()


def test_the_package_shows_load_and_its_version():
    assert {"load", "TrainedModel", "__version__"} <= set(dir(jax_speechlm))
    assert jax_speechlm.__version__ == importlib.metadata.version("jax_speechlm")


def test_importing_the_package_imports_nothing():
    code = "import sys, jax_speechlm; print([name for name in ('jax', 'numpy', 'pydantic') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
