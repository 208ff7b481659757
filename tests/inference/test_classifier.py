"""Recordings and texts are classified as the evaluation does it, whatever else is asked about."""

import json

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.storage.index import read_index
from data_pipelines.storage.tokens import open_tokens
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.batches import speech_batches, text_batches
from jax_speechlm.evaluation.classification import predict
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.classify import Classifier
from jax_speechlm.inference.segmentation import cut_at_pauses
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.objectives.heads.classification import Classification
from jax_speechlm.recipes.experiment import Experiment, Speech, Text
from jax_speechlm.training.checkpoints import CheckpointError
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.text_sets import write_text_set
from tests.evaluation.runs import write_run

OBJECTIVE = Classification(classes=("low", "high", "none"))
MEL = LogMel(num_mel_bins=8, stack=2)
SOUNDS = [noise(seed, 4_000 + 5_000 * seed) for seed in range(5)]
TEXTS = ["a bad cab", "fed", "", "head of a gag" * 4, "abcabc"] * 5


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifiers")
    model = ConformerConfig(input_dim=MEL.input_dim, dim=8, num_layers=1, num_heads=2, kernel_size=3)
    speech = Experiment(data=Speech(sets=("x",)), objective=OBJECTIVE, frontend=FrontEnd(mel=MEL), model=model)
    write_run(folder / "speech", speech, None)
    transformer = TransformerConfig(dim=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16)
    data = Text(sets=("x",), context=32, tokens_per_batch=64)
    write_run(
        folder / "text", Experiment(data=data, objective=OBJECTIVE, model=transformer), CharTokenizer("abcdefgh ")
    )
    return folder


@pytest.mark.parametrize(("name", "inputs"), [("speech", SOUNDS), ("text", TEXTS)])
def test_an_input_is_taken_for_the_same_whatever_else_is_asked_about(runs, name, inputs):
    classifier = Classifier.load(runs / name)
    together = classifier.probabilities(inputs)
    np.testing.assert_allclose(together.sum(1), 1, rtol=1e-5)
    for one, other in zip(inputs, together, strict=True):
        np.testing.assert_allclose(classifier.probabilities([one])[0], other, atol=1e-5)
    assert len(set(together.argmax(1).tolist())) > 1, "one class for all would show nothing"
    assert classifier.probabilities([]).shape == (0, 3)
    model = jax_speechlm.load(runs / name)
    assert list(model.classify(inputs)[2]) == ["low", "high", "none"]
    assert list(model.classify(inputs)[2].values()) == pytest.approx(together[2].tolist())


def test_the_evaluation_gives_the_same_classes(runs, tmp_path):
    """In its own batches, from prepared sets; the empty text it leaves out."""
    write_prepared(tmp_path / "sounds", {"test": [(samples, "") for samples in SOUNDS]})
    classifier = Classifier.load(runs / "speech")
    batches = speech_batches(read_index(tmp_path / "sounds", "test"), classifier.run.experiment.frame_samples, 3.0)
    expected = predict(classifier.run, batches, len(SOUNDS))
    np.testing.assert_array_equal(classifier.probabilities(SOUNDS).argmax(1), expected)
    write_text_set(tmp_path / "texts", {"test": TEXTS}, label=["low"] * len(TEXTS))
    classifier = Classifier.load(runs / "text")
    tokens = open_tokens(read_index(tmp_path / "texts", "test"), classifier.run.tokenizer)
    batches = text_batches(classifier.run, tokens, is_packed=False)
    expected = predict(classifier.run, batches, len(TEXTS))
    found = classifier.probabilities(TEXTS).argmax(1)
    assert (expected >= 0).sum() == sum(map(bool, TEXTS))
    np.testing.assert_array_equal(found[expected >= 0], expected[expected >= 0])


def test_no_more_is_computed_than_the_texts_need(runs):
    classifier, shapes = Classifier.load(runs / "text"), []
    compute = classifier._probabilities

    def counted(params, batch):
        shapes.append(batch["tokens"].shape)
        return compute(params, batch)

    object.__setattr__(classifier, "_probabilities", counted)
    classifier.probabilities(["a"])
    classifier.probabilities(["a" * 100] * 17)
    assert shapes == [(1, 16), (16, 32), (1, 32)]


def test_a_long_recording_is_the_mean_of_its_parts_by_their_length(runs):
    classifier = Classifier.load(runs / "speech")
    quiet = np.zeros(3_200, np.int16)
    long = np.concatenate([noise(1, 30_000), quiet, noise(2, 16_000)])
    (found,) = classifier.probabilities([long], max_seconds=2.5)
    cut = cut_at_pauses(long, 2.5)
    assert 30_000 < len(cut[0]) < 33_200, "the cut is not in the pause"
    parts, frames = classifier.probabilities(cut), np.array([MEL.num_frames(len(part)) for part in cut])
    np.testing.assert_allclose(found, (frames[:, None] * parts).sum(0) / frames.sum(), atol=1e-5)


def test_the_command_says_it_in_lines(runs, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", SOUNDS[0], 16_000)
    soundfile.write(tmp_path / "short.wav", SOUNDS[0][:100], 16_000)
    assert (
        cli.main(["classify", str(runs / "speech"), str(tmp_path / "short.wav"), str(tmp_path / "a.wav")]) == USER_ERROR
    )
    out, err = capsys.readouterr()
    line = json.loads(out)
    shares = line["probabilities"]
    assert line["class"] == next(iter(shares)) == max(shares, key=shares.get)
    assert "short.wav: too short for a single frame" in err
    assert "1 of 2 files could not be read" in err
    assert cli.main(["classify", str(runs / "text"), "a bad cab"]) == 0
    assert json.loads(capsys.readouterr().out)["text"] == "a bad cab"


def test_what_it_cannot_do_is_said(runs):
    model = jax_speechlm.load(runs / "text")
    assert model.abilities == ("classify",)
    with pytest.raises(CheckpointError, match="has classify but no embed"):
        model.embed(SOUNDS)
    assert jax_speechlm.load(runs / "speech").abilities == ("classify", "embed")
    assert jax_speechlm.load(runs / "speech").embed(SOUNDS[:1])[0].shape[1] == 8
