"""Classical classifiers learn words of tones, one speaker held out, and come back from their files."""

import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import skops.io
import soundfile
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from data_pipelines.core.errors import DataError
from jax_speechlm import cli
from jax_speechlm.evaluation.baselines import BaselineReport, baseline
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.frontend.mfcc import mfcc
from jax_speechlm.frontend.utterance_vectors import utterance_vectors
from jax_speechlm.models.classical.classifiers import load_classifier, make_classifier, save_classifier
from tests.data_pipelines.prepared import write_prepared
from tests.trained_tones import speak

WORDS = ("ab", "ba", "cc", "ac")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four words, said 6 times by two speakers in one split, and 4 times by a third in another."""
    folder = tmp_path_factory.mktemp("data")
    clips = {
        split: [(speak(word, seed)[0], word) for seed in range(first, first + number) for word in WORDS]
        for split, first, number in (("train", 0, 6), ("test", 100, 4))
    }
    write_prepared(folder / "words", clips)
    return folder


def audio(lengths, width):
    rng = np.random.default_rng(0)
    samples = np.zeros((len(lengths), width), np.int16)
    for row, length in enumerate(lengths):
        samples[row, :length] = rng.normal(0, 3000, length)
    return {"audio": jnp.asarray(samples), "audio_length": jnp.asarray(lengths, jnp.int32)}


@pytest.mark.parametrize("kind", ["statistics", "sequence"])
def test_vectors_are_those_of_numpy_and_do_not_depend_on_padding(kind):
    lengths = [16_000, 4_321, 700, 100]
    vectors, frames = jax.device_get(utterance_vectors(audio(lengths, 20_000), kind, 16_000))
    narrow, _ = jax.device_get(utterance_vectors(audio(lengths, 16_000), kind, 16_000))
    batch = audio(lengths, 16_000)
    mel = LogMel(normalize=kind == "sequence")
    for row, length in enumerate(lengths):
        coefficients, (count,) = mfcc(batch["audio"][row : row + 1, :length], jnp.asarray([length], jnp.int32), mel)
        x = np.asarray(coefficients)[0, : int(count)]
        if not len(x):
            expected = np.zeros(vectors.shape[1])
        elif kind == "statistics":
            expected = np.concatenate([x.mean(0), x.std(0)])
        else:
            places = np.linspace(0, len(x) - 1, 20)
            expected = np.stack([np.interp(places, np.arange(len(x)), x[:, c]) for c in range(13)], 1).ravel()
        assert frames[row] == len(x)
        np.testing.assert_allclose(vectors[row], expected, rtol=1e-3, atol=2e-3)
    np.testing.assert_allclose(vectors, narrow, rtol=1e-4, atol=1e-4)


def test_baselines_learn_words_and_classify_files(data, tmp_path, capsys):
    out = tmp_path / "out"
    report = baseline(("words",), data_dir=data, out=out)
    assert BaselineReport.from_json((out / "report.json").read_bytes()) == report
    assert (report.classes, report.utterances, report.majority) == (4, 16, 0.25)
    by_name = {(each.vectors, each.classifier): each.accuracy for each in report.baselines}
    assert len(by_name) == 10
    assert min(by_name["sequence", name] for name in ("svm", "logistic", "knn", "forest")) == 1.0
    capsys.readouterr()
    file = tmp_path / "ba.wav"
    soundfile.write(file, speak("ba", 777)[0], 16_000)
    for name in ("sequence-svm", "sequence-knn", "statistics-forest"):
        assert cli.main(["classify", str(out / name), str(file)]) == 0
        line = json.loads(capsys.readouterr().out)
        assert line["class"] == "ba"
        assert sum(line["probabilities"].values()) == pytest.approx(1)


def test_each_speaker_is_tested_by_classifiers_of_the_others(data, tmp_path):
    options = {"classifiers": ("knn",), "vectors": ("sequence",), "data_dir": data}
    report = baseline(("words",), leave_out="speaker", out=tmp_path / "out", **options)
    (row,) = report.baselines
    assert report.utterances == 40
    assert len(row.by_group) == 2
    assert row.interval[0] <= row.accuracy <= row.interval[1]
    assert row.accuracy == pytest.approx(np.mean(list(row.by_group.values())))


def test_what_cannot_be_trained_says_why(data, tmp_path):
    with pytest.raises(DataError, match="1 classes to learn from"):
        baseline(("words",), target="language", data_dir=data, out=tmp_path)
    with pytest.raises(DataError, match="nothing to train"):
        baseline(("words",), vectors=(), data_dir=data, out=tmp_path)


def test_files_that_are_no_classifiers_are_refused(tmp_path):
    file = tmp_path / "x.skops"
    with pytest.raises(DataError, match=r"x\.skops: is no classifier"):
        load_classifier(file)
    file.write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="is no classifier"):
        load_classifier(file)
    save_classifier(make_pipeline(FunctionTransformer(soundfile.write)), file)
    with pytest.raises(DataError, match=r"holds soundfile\.write"):
        load_classifier(file)
    skops.io.dump(make_classifier("tree").steps[0][1], file)
    with pytest.raises(DataError, match="holds a StandardScaler"):
        load_classifier(file)
