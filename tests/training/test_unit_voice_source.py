"""Data of a voice that speaks units: their numbers are the texts of a set, whatever is written in its index."""

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index
from data_pipelines.storage.units import UnitTexts, open_unit_ids
from jax_speechlm.planning.workload import UNITS_PER_SECOND, workload
from jax_speechlm.training.source import open_source
from tests.data_pipelines.prepared import noise, write_prepared
from tests.data_pipelines.storage.test_pitch import random_pitch
from tests.data_pipelines.unit_sets import label, make_units
from tests.training import tiny

LENGTHS = [3000 + 731 * (i * 7 % 29) for i in range(24)]
SPLITS = {"train": slice(0, 18), "dev": slice(18, 24)}


@pytest.fixture(scope="module", params=[True, False], ids=["clusters", "codes"])
def labelled(request, tmp_path_factory):
    """A prepared set with pitch and units; its folder, the k-means, and the unit ids of each split."""
    root = tmp_path_factory.mktemp("data")
    clips = [(noise(i, length), "") for i, length in enumerate(LENGTHS)]  # no transcript is needed
    write_prepared(root / "clips", {name: clips[rows] for name, rows in SPLITS.items()})
    units = make_units(root / "units-5", 5, merges_repeats=request.param)
    indexes = {name: read_index(root / "clips", name) for name in SPLITS}
    for index in indexes.values():
        random_pitch(index)
    return root, units, {name: label(index, units) for name, index in indexes.items()}


def experiment(root, **changes):
    made = tiny.experiment("tts")
    settings = {
        "sets": ("clips",),
        "data_dir": str(root),
        "units": str(root / "units-5"),
        "seconds_per_batch": 12.0,
        "min_seconds": 0.1,
    }
    return made.replace(
        objective=made.objective.replace(text="units", classes=()), data=made.data.replace(**settings | changes)
    )


def tokens_of(ids: np.ndarray, merges: bool) -> list[int]:
    return [int(unit) + 1 for place, unit in enumerate(ids) if not merges or place == 0 or unit != ids[place - 1]]


@pytest.mark.parametrize("packed", [True, False])
def test_the_tokens_of_a_row_are_its_units(labelled, packed):
    root, units, ids = labelled
    source = open_source(experiment(root, packed=packed))
    assert source.tokenizer == units.tokenizer
    seen = {"train": set(), "dev": set()}
    batches = {"train": source.batches(0, source.plan.steps_per_epoch), "dev": source.dev_batches()}
    for split, of_split in batches.items():
        for batch in of_split:
            for place in zip(*np.nonzero(batch["weight"]), strict=True):
                row, count = int(batch["example_id"][place]), int(batch["token_length"][place])
                expected = tokens_of(ids[split][row], units.merges_repeats)
                assert batch["tokens"][place][:count].tolist() == expected
                seen[split].add(row)
    assert {split: len(rows) for split, rows in seen.items()} == {"train": 18, "dev": 6}


def test_texts_are_made_when_they_are_read(labelled):
    root, units, ids = labelled
    texts = UnitTexts(open_unit_ids(read_index(root / "clips", "dev"), units.path))
    expected = [" ".join(str(token - 1) for token in tokens_of(row, units.merges_repeats)) for row in ids["dev"]]
    assert list(texts) == expected
    assert texts.token_lengths().tolist() == [len(text.split()) for text in expected]


def test_a_run_remembers_its_units(labelled):
    root, units, _ = labelled
    source = open_source(experiment(root))
    assert source.fingerprints()["units"] == units.fingerprint
    assert source.fingerprints()["labels"] == source.pitch[0].fingerprint


def test_the_planner_has_the_shapes_of_the_batches(labelled):
    root, _, _ = labelled
    planned = experiment(root)
    source, load = open_source(planned), workload(planned, None)
    assert load.assumed == ""
    (batch,) = source.batches(0, 1)
    shapes = [{name: array.shape for name, array in load.abstract(shape, planned).items()} for shape in load.shapes]
    assert {name: array.shape for name, array in batch.items()} in shapes


@pytest.mark.parametrize("with_units", [True, False])
def test_a_plan_without_the_data_has_as_many_units(labelled, with_units, tmp_path):
    root, units, _ = labelled
    folder = str(root / "units-5") if with_units else str(tmp_path / "units-5")
    load = workload(experiment(tmp_path, units=folder, max_seconds=2.0), None)
    assert f"with {UNITS_PER_SECOND:g} tokens a second" in load.assumed
    assert load.tokenizer.vocab_size == (units.tokenizer.vocab_size if with_units else 5)


def test_what_does_not_fit_is_refused(labelled, tmp_path):
    root, _, _ = labelled
    with pytest.raises(ValueError, match=r"set data\.units to a folder"):
        experiment(root, units=None)
    with pytest.raises(ValueError, match=r"leave data\.tokenizer out"):
        experiment(root, tokenizer="data/phones")
    other = make_units(tmp_path / "other", 5, seed=1)
    with pytest.raises(DataError, match=r"clips/train is not labelled .*with 1 other k-means. Run: jax-speechlm units"):
        open_source(experiment(root, units=str(other.path)))
