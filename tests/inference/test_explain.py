"""Saliency of words adds up to their gains, lies at their times and frequencies, and does not depend on padding."""

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.audio.decode import AudioError
from jax_speechlm import cli
from jax_speechlm.core.energy import EnergyMeter
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.explain import MAX_SECONDS, Explainer, as_html
from tests.core.test_energy import write as write_zone
from tests.trained_tones import RATE, speak, trained_run


@pytest.fixture(scope="module")
def explainer():
    return Explainer(Recognizer.load(trained_run()))


@pytest.fixture(scope="module")
def explained(explainer):
    samples, times = speak("ab bc ca", seed=5)
    return explainer.explain(samples), times


def test_words_are_the_transcripts_and_their_values_add_up(explained):
    explanation, times = explained
    assert explanation.text == "ab bc ca"
    for saliency, (word, start, end) in zip(explanation.words, times, strict=True):
        assert saliency.word.word == word
        assert saliency.values.shape == explanation.features.shape
        assert start - 0.1 <= saliency.word.start < saliency.word.end <= end + 0.1
        assert saliency.values.sum() == pytest.approx(saliency.gain, rel=0.05, abs=0.05)


def test_saliency_is_where_the_word_is(explained):
    """Features near a word contribute more than their share of the recording."""
    explanation, _ = explained
    seconds = len(explanation.features) * explanation.vector_seconds
    for saliency in explanation.words:
        share = (saliency.word.end - saliency.word.start + 0.4) / seconds
        assert saliency.near > 1.3 * share


def test_more_steps_change_little(explainer, explained):
    samples, _ = speak("ab bc ca", seed=5)
    finer = explainer.explain(samples, steps=128)
    for one, other in zip(explained[0].words, finer.words, strict=True):
        np.testing.assert_allclose(one.values, other.values, atol=0.05 * np.abs(other.values).max())


def test_the_page_has_a_picture_of_each_word(tmp_path, capsys):
    file = tmp_path / "said <b>.wav"
    soundfile.write(file, speak("ab cb", seed=1)[0], RATE)
    out = tmp_path / "out"
    assert cli.main(["explain", str(trained_run()), str(file), "--out", str(out), "--steps", "4"]) == 0
    printed = capsys.readouterr().out
    assert "ab cb" in printed
    assert "2 words: " in printed
    page = (out / "index.html").read_text()
    assert page.count("<img") == 3
    assert "said &lt;b&gt;" in page
    assert sorted(np.load(out / "0.npz")) == ["0_ab", "1_cb", "features"]


def test_what_cannot_be_explained_says_why(explainer, tmp_path):
    with pytest.raises(AudioError, match="longer than 30 s"):
        explainer.explain(np.tile(speak("ab")[0], 100)[: int((MAX_SECONDS + 5) * RATE)])
    with pytest.raises(AudioError, match="too short for a single frame"):
        explainer.explain(np.zeros(100, np.int16))


def test_a_recording_without_words_has_features_alone(explainer, monkeypatch):
    monkeypatch.setattr("jax_speechlm.inference.explain.path_spans", lambda frames: [])
    explanation = explainer.explain(np.zeros(RATE, np.int16))
    assert explanation.words == ()
    assert as_html([explanation], "run").count("<img") == 1


def test_eval_explains_the_utterances_with_the_most_errors_and_counts_energy(tmp_path, capsys, monkeypatch):
    write_zone(tmp_path, "intel-rapl:0", "package-0", 5)
    monkeypatch.setattr("jax_speechlm.evaluation.recognition.EnergyMeter", lambda: EnergyMeter(tmp_path))
    texts = ["ab bc", "cb", "ba ca"]
    recordings = [speak(text, seed=seed)[0] for seed, text in enumerate(texts)]
    lines = []
    for number, (text, samples) in enumerate(zip(texts, recordings, strict=True)):
        soundfile.write(tmp_path / f"{number}.wav", samples, RATE)
        reference = "bb bb bb" if number == 1 else text
        lines.append(json.dumps({"audio": f"{number}.wav", "text": reference, "id": f"u{number}", "split": "test"}))
    (tmp_path / "tones.jsonl").write_text("\n".join(lines))
    data = ["--data-dir", str(tmp_path / "data")]
    assert cli.main(["prepare", "tones", "--manifest", str(tmp_path / "tones.jsonl"), *data, "--max-bad", "1"]) == 0
    run = ["eval", str(trained_run()), "--sets", "tones", *data, "--out", str(tmp_path / "out")]
    assert cli.main([*run, "--explain", "1"]) == 0
    page = (tmp_path / "out" / "index.html").read_text()
    assert page.count("<h2>") == 1
    assert "u1</h2>" in page
    assert "<del>bb</del>" in page
    assert page.count("<img") == 2  # the features, and the word
    printed = capsys.readouterr().out
    assert str(tmp_path / "out" / "index.html") in printed
    assert "0 kWh, 0 kWh per hour of audio" in printed
    assert cli.main([*run, "--explain", "1", "--stream"]) == USER_ERROR
