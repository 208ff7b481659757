"""Packed rows of speech from a prepared set: settings, batches, and the planner's shapes."""

import json

import numpy as np
import pytest

from data_pipelines.batching.plan import BatchPlan
from data_pipelines.batching.rows import RowPlan
from data_pipelines.core.errors import DataError
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes.experiment import Speech
from jax_speechlm.training.concerns import concerns
from jax_speechlm.training.reporting import BatchSize
from jax_speechlm.training.source import open_source, plan_speech
from tests.data_pipelines.prepared import noise, write_prepared
from tests.training import tiny

LENGTHS = [3000 + 731 * (i * 7 % 29) for i in range(40)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    clips = [(noise(i, length), "abc "[: 1 + i % 4].strip()) for i, length in enumerate(LENGTHS)]
    write_prepared(root / "clips", {"train": clips, "dev": clips[:9]})
    return root


def packed(data_dir, objective="ctc", **changes):
    experiment = tiny.experiment(objective)
    settings = {"sets": ("clips",), "data_dir": str(data_dir), "packed": True, "seconds_per_batch": 12.0}
    return experiment.replace(data=experiment.data.replace(**settings | changes))


@pytest.mark.parametrize("row_seconds", [(), (0.8, 1.6)])
@pytest.mark.parametrize("objective", ["ctc", "best_rq", "speech_lm"])
def test_the_planner_compiles_for_the_batches_that_are_read(data_dir, row_seconds, objective):
    experiment = packed(data_dir, objective, row_seconds=row_seconds)
    source, load = open_source(experiment), workload(experiment, None)
    assert isinstance(source.plan, RowPlan)
    assert len(load.shapes) == max(len(row_seconds), 1)
    assert sum(shape.share for shape in load.shapes) == pytest.approx(1)
    assert load.useful == 1 - source.plan.padding_share
    expected = [
        {name: (array.shape, array.dtype) for name, array in load.abstract(shape, experiment).items()}
        for shape in load.shapes
    ]
    steps = 2 * source.plan.steps_per_epoch
    read = [{name: (x.shape, x.dtype) for name, x in batch.items()} for batch in source.batches(0, steps)]
    assert all(shapes in expected for shapes in read)
    assert all(shapes in read for shapes in expected)


def test_validation_is_not_packed(data_dir):
    source = open_source(packed(data_dir))
    assert type(source.dev_plan) is BatchPlan
    batches = list(source.dev_batches())
    assert sum(batch["weight"].sum() for batch in batches) == 9
    assert all(batch["audio_length"].ndim == 1 and "audio_start" not in batch for batch in batches)


def test_reports_count_the_audio_of_every_utterance(data_dir):
    source = open_source(packed(data_dir))
    (batch,) = source.batches(0, 1)
    size = BatchSize.of(batch, 2, 16_000)
    items = batch["example_id"][batch["example_id"] >= 0]
    assert size.real == pytest.approx(2 * sum(LENGTHS[item] for item in items) / 16_000)
    assert (size.unit, size.length, size.rows) == ("audio_seconds", batch["audio"].shape[1], 2 * len(batch["audio"]))
    assert size.padded == pytest.approx(size.rows * size.length / 16_000)


def test_utterances_keep_the_gap_of_the_front_end(data_dir):
    experiment = packed(data_dir, "fast_conformer")
    assert experiment.frontend.mel.gap_samples > 0
    (batch,) = open_source(experiment).batches(0, 1)
    frame = experiment.frame_samples
    for start, length in zip(batch["audio_start"], batch["audio_length"], strict=True):
        slots = -(-(length[:-1] + experiment.frontend.mel.gap_samples) // frame) * frame
        present = length[1:] > 0
        np.testing.assert_array_equal(np.diff(start)[present], slots[present])


def test_crops_are_refused_and_the_remedy_is_named(data_dir):
    experiment = packed(data_dir, "best_rq", max_crop=0.15)
    with pytest.raises(ValueError, match=r"data\.max_crop is 0\.15.*--data\.max-crop 0, or --data\.packed False"):
        plan_speech(experiment, np.array(LENGTHS), None)


def test_the_option_that_dropped_an_utterance_is_named(data_dir):
    experiment = packed(data_dir, row_seconds=(0.5,), max_dropped=0.1)
    with pytest.raises(DataError, match=r"longer than 0\.5 s \(raise --data\.row-seconds to keep them\)"):
        concerns(experiment, open_source(experiment))
    experiment = packed(data_dir, row_seconds=(5.0,), max_seconds=0.5, max_dropped=0.1)
    with pytest.raises(DataError, match=r"longer than 0\.5 s \(raise --data\.max-seconds to keep them\)"):
        concerns(experiment, open_source(experiment))


def test_few_utterances_a_row_can_be_asked_for(data_dir):
    plan = open_source(packed(data_dir, max_utterances=2, row_seconds=(5.0,))).plan
    assert [bucket.num_utterances for bucket in plan.buckets] == [2]
    assert json.loads(packed(data_dir).model_dump_json())["data"]["packed"] is True


def test_a_transcript_that_follows_its_audio_has_a_bounded_row_of_text(data_dir):
    experiment = packed(data_dir, "speech_lm")
    plan = open_source(experiment).plan
    added = sum(map(len, experiment.objective.prompt_ids(CharTokenizer("abc"))))
    assert plan.added_tokens == added > 0
    assert plan.frame_samples == experiment.slot_samples == 2 * experiment.frame_samples  # of a vector
    assert all(bucket.num_text >= 1 + added for bucket in plan.buckets)
    (batch,) = open_source(packed(data_dir)).batches(0, 1)
    assert "text_segment" not in batch


@pytest.mark.parametrize("tlm_weight", [0.0, 1.0])
def test_pairs_have_a_row_of_text_for_tlm_alone(tlm_weight):
    experiment = tiny.experiment("joint")
    experiment = experiment.replace(objective=experiment.objective.replace(tlm_weight=tlm_weight))
    source = tiny.source(experiment)
    seen = {source.stream(step): batch for step, batch in enumerate(source.batches(0, 12))}
    assert [name for name, batch in seen.items() if "text_segment" in batch] == ["pairs"] * (tlm_weight > 0)
    assert seen["pairs"]["audio_start"].shape == seen["pairs"]["token_length"].shape


def test_settings_of_runs_before_packed_rows_keep_their_buckets():
    stored = json.loads(tiny.NOISE.model_dump_json())
    del stored["joined"]  # of a version in between
    assert Speech.from_json(json.dumps(stored)) == tiny.NOISE
    for added in ("packed", "row_seconds", "max_utterances"):
        del stored[added]
    assert not Speech.from_json(json.dumps(stored)).packed
    assert Speech.from_json('{"sets": ["noise"]}').packed


def test_characters_that_the_tokenizer_does_not_know_are_named(tmp_path):
    clips = [(noise(number, 16_000), text) for number, text in enumerate(("ab ba", "a€b", "b"))]
    write_prepared(tmp_path / "signs", {"train": clips, "dev": clips[:1]})
    CharTokenizer("ab ").save(tmp_path / "tokenizer")
    experiment = packed(tmp_path, sets=("signs",), tokenizer=str(tmp_path / "tokenizer"))
    lost = [text for text in concerns(experiment, open_source(experiment)) if "lose" in text]
    assert len(lost) == 1
    assert lost[0].startswith("training: 1 of 3 texts lose characters that the tokenizer does not know: '€' (U+20AC)")
    known = packed(tmp_path, sets=("signs",), tokenizer=None)
    assert not any("lose" in text for text in concerns(known, open_source(known)))
