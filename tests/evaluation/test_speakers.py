"""Equal error rates: against scikit-learn's curve, and of a checkpoint's own vectors."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_curve

import jax_speechlm
from data_pipelines.core.errors import DataError
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation.speakers import score
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.logmel import LogMel
from jax_speechlm.inference.speaker import SpeakerVectors
from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.xvector import XVectorConfig
from jax_speechlm.objectives.heads.speaker_verification import SpeakerVerification
from jax_speechlm.recipes.experiment import Experiment, Speech
from jax_speechlm.tasks.inputs import class_ids
from jax_speechlm.training.source import open_source
from tests.data_pipelines.prepared import noise, write_prepared
from tests.evaluation.runs import write_run


@settings(max_examples=100, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40).filter(
        lambda pairs: len({target for _, target in pairs}) == 2
    )
)
def test_rates_are_those_of_the_curve(pairs):
    cosine, is_target = np.array([pair[0] / 4 for pair in pairs]), np.array([pair[1] for pair in pairs])
    found = score(cosine, is_target)
    alarms, hits, _ = roc_curve(is_target, cosine, drop_intermediate=False)
    grid = np.linspace(0, 1, 200_001)
    at = np.argmin(np.abs(np.interp(grid, *_drawn(alarms, 1 - hits)) - grid))
    assert found.equal_error_rate == pytest.approx(grid[at], abs=1e-4)
    cost = (0.01 * (1 - hits) + 0.99 * alarms).min() / 0.01
    assert found.min_cost == pytest.approx(cost)
    assert (found.targets, found.others) == (is_target.sum(), (~is_target).sum())


def _drawn(alarms, misses):
    """A curve with its upright pieces leaning by a hair, so that it is a function."""
    return alarms + np.arange(len(alarms)) * 1e-9, misses


def test_a_perfect_and_a_useless_model():
    assert score(np.array([0.9, 0.8, 0.1]), np.array([True, True, False])).equal_error_rate == 0
    assert score(np.array([0.1, 0.2, 0.9]), np.array([True, True, False])).equal_error_rate == 1
    useless = score(np.zeros(4), np.array([True, False, True, False]))
    assert (useless.equal_error_rate, useless.min_cost) == (0.5, 1.0)
    with pytest.raises(ValueError, match="some of both"):
        score(np.zeros(2), np.array([True, True]))


HEAD = XVectorConfig(channels=(6, 7), kernels=(3, 1), dilations=(1, 1), dim=5)
CLIPS = [(noise(seed, 6_000 + 1_000 * seed), "") for seed in range(6)] + [(noise(9, 500), "")]


MEL = LogMel(num_mel_bins=8, stack=2)
EXPERIMENT = Experiment(
    data=Speech(sets=("things",)),
    objective=SpeakerVerification(classes=("speaker0", "speaker1"), head=HEAD),
    frontend=FrontEnd(mel=MEL),
    model=ConformerConfig(input_dim=MEL.input_dim, dim=8, num_layers=1, num_heads=2, kernel_size=3),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("speakers")
    write_prepared(folder / "data" / "things", {"test": CLIPS})
    return write_run(folder / "run", EXPERIMENT, None)


def evaluate(run, *options):
    options = ["--sets", "things", f"--data-dir={run.parent / 'data'}", f"--out={run.parent / 'report'}", *options]
    assert cli.main(["eval", str(run), *options]) == 0
    return json.loads((run.parent / "report" / "report.json").read_text())


def test_every_pair_is_compared_whatever_the_batch(run):
    report = evaluate(run, "--seconds-per-batch=1")
    other = evaluate(run, "--seconds-per-batch=60")
    assert report["equal_error_rate"] == pytest.approx(other["equal_error_rate"])
    assert report["threshold"] == pytest.approx(other["threshold"], abs=1e-5)
    assert (report["recordings"], report["speakers"], report["skipped"]) == (6, 2, 1)
    assert (report["targets"], report["others"]) == (6, 9)
    vectors = SpeakerVectors.load(run).vectors([samples for samples, _ in CLIPS[:6]])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    one, two = np.triu_indices(6, 1)
    expected = score((vectors @ vectors.T)[one, two], one % 2 == two % 2)
    assert report["equal_error_rate"] == pytest.approx(expected.equal_error_rate)


def test_listed_pairs_alone(run, capsys):
    trials = run.parent / "trials.txt"
    trials.write_text("1 clip0 clip2\n0 clip0 clip1\n\n1 clip0 clip6\n")  # the last is too short for a vector
    report = evaluate(run, f"--trials={trials}")
    assert (report["targets"], report["others"], report["recordings"]) == (1, 1, 3)
    assert (report["skipped"], report["skipped_trials"]) == (1, 1)
    for line, said in (
        ("1 clip0", "line 1: '1 clip0' is not of the form"),
        ("01 clip0 clip1", "is not of the form"),
        ("1 clip0 nobody", "the id 'nobody'"),
    ):
        trials.write_text(line)
        options = ["--sets", "things", f"--data-dir={run.parent / 'data'}", f"--trials={trials}"]
        assert cli.main(["eval", str(run), *options]) == USER_ERROR
        assert said in capsys.readouterr().err


def test_who_is_validated_on_need_not_be_trained_on(tmp_path, caplog):
    clips = {"train": CLIPS[:4], "dev": CLIPS[4:6]}
    write_prepared(tmp_path / "data" / "own", clips, speakers={"dev": "stranger"})
    experiment = Experiment.model_validate(EXPERIMENT.model_dump() | {"num_steps": 1})
    experiment = experiment.replace(data=Speech(sets=("own",), data_dir=str(tmp_path / "data"), label="text"))
    source = open_source(experiment)
    assert source.dev is source.dev_plan is source.labels[1] is None
    assert source.labels[0].tolist() == [0, 1, 0, 1]
    assert "nothing validates" in caplog.text
    assert class_ids(["speaker1", "stranger"], experiment.objective.classes, strict=False).tolist() == [1, -1]
    with pytest.raises(DataError, match="'stranger' is none of the classes"):
        class_ids(["stranger"], experiment.objective.classes)


def test_embed_writes_the_vectors(run, tmp_path, capsys):
    import soundfile

    for number in (0, 1, 6):
        soundfile.write(tmp_path / f"{number}.wav", CLIPS[number][0], 16_000)
    out = tmp_path / "vectors.npz"
    files = [str(tmp_path / f"{number}.wav") for number in (0, 1)]
    assert cli.main(["embed", str(run), *files, "--out", str(out)]) == 0
    expected = SpeakerVectors.load(run).vectors([CLIPS[0][0], CLIPS[1][0]])
    np.testing.assert_allclose(np.load(out)["embeddings"], expected, atol=1e-6)
    assert cli.main(["embed", str(run), *files, "--out", str(out), "--layer", "1"]) == 0
    assert np.load(out)["embeddings"].shape == (2, 8)
    assert cli.main(["embed", str(run), str(tmp_path / "6.wav"), "--out", str(out)]) == USER_ERROR
    assert "too short to say who speaks" in capsys.readouterr().err
    model = jax_speechlm.load(run)
    assert model.abilities == ("speaker_vectors", "embed")
    np.testing.assert_allclose(model.speaker_vectors(files), expected, atol=1e-6)
    assert model.embed(files)[0].shape[1] == 8
