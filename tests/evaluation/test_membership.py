"""The attack by losses: its area against all pairs, its interval against resampling, and losses row by row."""

import dataclasses

import jax
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation import membership
from jax_speechlm.evaluation.membership import area, losses_of, measure_membership
from jax_speechlm.training.runs import LoadedRun
from tests.evaluation.runs import write_run
from tests.training import tiny


def test_the_area_counts_pairs_and_ties_by_half():
    rng = np.random.default_rng(0)
    members, others = rng.integers(0, 9, 40).astype(float), rng.integers(2, 12, 30).astype(float)
    pairs = members[:, None] - others
    assert area(members, others)[0] == pytest.approx(np.mean((pairs < 0) + 0.5 * (pairs == 0)))
    assert area(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == (1.0, (1.0, 1.0))


def test_the_interval_is_that_of_resampling():
    rng = np.random.default_rng(1)
    members, others = rng.normal(0, 1, 150), rng.normal(0.5, 2, 100)
    _, (low, high) = area(members, others)
    drawn = [area(rng.choice(members, 150), rng.choice(others, 100))[0] for _ in range(2000)]
    assert (high - low) / 3.92 == pytest.approx(np.std(drawn), rel=0.1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    experiment = tiny.experiment("ctc", data=tiny.NOISE.replace(num_buckets=1))
    return write_run(tmp_path_factory.mktemp("runs") / "run", experiment, CharTokenizer(tiny.LETTERS))


def test_losses_are_those_of_rows_alone_and_the_sets_are_told_apart(run, monkeypatch, tmp_path):
    asked = []

    def source(experiment):
        asked.append(experiment.data.dev_sets)
        made = tiny.MemorySource.make(experiment, 8)
        if asked[-1] == ("noise:dev",):  # others are longer words than members
            made = dataclasses.replace(made, texts=[text[:1] for text in made.texts])
        return made

    monkeypatch.setattr(membership, "open_source", source)
    report = measure_membership(run, out=tmp_path)
    assert asked == [("noise:train",), ("noise:dev",)]
    assert (report.members, report.others) == (8, 8)
    assert report.auc != 0.5
    assert (tmp_path / "report.json").exists()

    loaded = LoadedRun.read(run)
    losses = losses_of(loaded, ("noise:train",), None)
    batches = list(tiny.MemorySource.make(loaded.experiment, 8).dev_batches())
    objective = loaded.experiment.build(loaded.tokenizer)
    batch = batches[0]
    weighted = jax.jit(objective.loss, static_argnums=2)(loaded.params, batch, None)[1]["loss"]
    real = batch["example_id"] >= 0
    lengths = np.maximum(batch["token_length"][real], 1)
    assert np.sum(losses[: real.sum()] * lengths) == pytest.approx(float(weighted[0]), rel=1e-4)


def test_what_was_trained_on_is_refused_as_others(run):
    with pytest.raises(Exception, match="was trained on noise:train"):
        measure_membership(run, split="train")


def test_mixtures_are_refused(tmp_path):
    folder = write_run(tmp_path / "joint", tiny.experiment("joint"), CharTokenizer(tiny.LETTERS))
    with pytest.raises(CheckpointError, match="runs on speech or on text"):
        measure_membership(folder)
