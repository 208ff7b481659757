"""Voice activity, learnt from words' times and heard again: tones that speak, pauses that do not."""

import json

import numpy as np
import pytest
import soundfile

import jax_speechlm
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.storage.word_times import read_word_times, write_word_times
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.inference.segment import VoiceActivity
from jax_speechlm.objectives.base import label_grid
from jax_speechlm.objectives.heads.frame_classification import FrameClassification
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes.experiment import Experiment, LoopConfig, Speech
from jax_speechlm.tasks.inputs import speech_or_silence
from jax_speechlm.training.loop import TrainingStopped, train
from jax_speechlm.training.runs import LoadedRun
from tests.data_pipelines.prepared import write_prepared
from tests.data_pipelines.spoken_sets import write_spoken_set
from tests.trained_tones import FRAME, MEL, MODEL, RATE, random_text, speak

GAP = 0.5  # seconds: longer than the pause that counts as speech


def spoken(seed: int, num_words: int = 3):
    rng = np.random.default_rng(seed)
    text = random_text(rng, num_words)
    return text, *speak(text, seed, GAP)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A detector that has been trained on tones by the loop, from a prepared set."""
    folder = tmp_path_factory.mktemp("voice")
    clips = {split: [spoken(seed) for seed in seeds] for split, seeds in
             {"train": range(24), "dev": range(100, 104), "test": range(200, 206)}.items()}  # fmt: skip
    set_dir = write_prepared(
        folder / "data" / "tones",
        {split: [(samples, text) for text, samples, _ in rows] for split, rows in clips.items()},
    )
    for split, rows in clips.items():
        spans = [[(round(start * RATE), round(end * RATE)) for _, start, end in words] for *_, words in rows]
        write_word_times(read_index(set_dir, split).parts[0], [np.array(each) for each in spans], "test")
    experiment = Experiment(
        data=Speech(sets=("tones",), data_dir=str(folder / "data"), seconds_per_batch=12, num_buckets=1),
        objective=FrameClassification(),
        frontend=FrontEnd(mel=MEL),
        model=MODEL,
        optimizer=Optimizer(schedule=WarmupCosine(peak=3e-3, warmup_steps=5)),
        num_steps=40,
        loop=LoopConfig(log_every=20, eval_every=40, checkpoint_every=40),
    )
    assert train(experiment, folder / "run").step == 40
    return folder / "run"


def test_what_was_learnt_is_measured(run):
    options = ["--sets", "tones", f"--data-dir={run.parent / 'data'}", f"--out={run.parent / 'report'}"]
    assert cli.main(["eval", str(run), *options]) == 0
    report = json.loads((run.parent / "report" / "report.json").read_text())
    assert report["accuracy"] > 0.97 > report["majority"] + 0.2
    assert set(report["classes"]) == {"silence", "speech"}
    frames = sum(MEL.num_frames(len(spoken(seed)[1])) for seed in range(200, 206))
    assert sum(map(sum, report["confusion"])) == frames


def test_speech_is_found_where_it_is_whatever_the_windows(run):
    detector = VoiceActivity.load(run)
    _, samples, words = spoken(300, num_words=8)
    expected = [(start, end) for _, start, end in words]
    for max_seconds in (30.0, 4.0):
        found = detector.speech_times(samples, max_seconds=max_seconds)
        assert len(found) == len(expected)
        np.testing.assert_allclose(found, expected, atol=2.1 * FRAME)
    assert (
        len(detector.probabilities(samples))
        == len(detector.probabilities(samples, 4.0))
        == len(samples) // MEL.frame_samples
    )
    assert detector.speech_times(samples, threshold=1.1) == []
    model = jax_speechlm.load(run)
    assert model.abilities == ("speech_times", "embed")
    assert model.speech_times(samples) == [detector.speech_times(samples)]


def test_a_run_does_not_go_on_with_other_times(run):
    experiment = LoadedRun.read(run).experiment
    part = read_index(run.parent / "data" / "tones", "train").parts[0]
    times = read_word_times(part)
    rows = [times.of(row) for row in range(part.num_rows)]
    try:
        write_word_times(part, [row + 3_000 for row in rows], "another")
        with pytest.raises(TrainingStopped, match="the times of their words"):
            train(experiment, run)
    finally:
        write_word_times(part, rows, "test")


def test_a_plan_needs_no_times(tmp_path):
    write_spoken_set(tmp_path / "new", {"train": [("a word", 16_000)] * 4})
    data = Speech(sets=("new",), data_dir=str(tmp_path), seconds_per_batch=8, num_buckets=1)
    experiment = Experiment(data=data, objective=FrameClassification(), frontend=FrontEnd(mel=MEL), model=MODEL)
    assert "the times of words of new/train not prepared here" in workload(experiment, None).assumed


def test_labels_that_would_be_untrue_are_refused(run):
    mixed = FrontEnd(mel=MEL, augment=Augment(mix_probability=0.5))
    with pytest.raises(ValueError, match="mix_probability would add speech"):
        FrameClassification().build(MODEL, mixed)
    index = read_index(run.parent / "data" / "tones", "train")
    with pytest.raises(DataError, match="classes are speech, silence, and the times of words tell silence and speech"):
        speech_or_silence(FrameClassification(classes=("speech", "silence")), label_grid(MODEL, MEL), index)


def test_the_command_prints_a_line_a_file_and_names_what_it_cannot_read(run, tmp_path, capsys):
    _, samples, words = spoken(301)
    soundfile.write(tmp_path / "a.wav", samples, RATE)
    (tmp_path / "b.wav").write_bytes(b"no audio")
    assert cli.main(["segment", str(run), str(tmp_path / "b.wav"), str(tmp_path / "a.wav")]) == USER_ERROR
    out, err = capsys.readouterr()
    line = json.loads(out)
    assert line["file"].endswith("a.wav")
    assert len(line["speech"]) == len(words)
    assert "b.wav" in err
    assert "1 of 2 files could not be read" in err
