"""A task's declared fields are what the source yields and what the planner compiles for."""

from pathlib import Path

import numpy as np
import pytest

from data_pipelines.batching import fields
from data_pipelines.batching.fields import BatchSpec, every_field, table
from jax_speechlm.planning.workload import Shape, Workload
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.tasks import TASKS
from jax_speechlm.training.source import inputs_of, stream_experiments
from tests.objectives import text
from tests.training import tiny

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def verify_task(experiment: Experiment, batch: dict[str, np.ndarray], stream: str = "") -> None:
    """Checks one batch of an experiment against the task's declaration and the planner's abstract batch."""
    wanted = {field for each in inputs_of(experiment, stream) for field in each.fields}
    optional = {"row_label": fields.ROW_LABEL in wanted}
    if "audio" in batch:
        packed = "audio_start" in batch
        optional["row_labels"] = fields.ROW_LABELS in wanted
        optional |= {"frame_labels": fields.FRAME_LABELS in wanted, "pitch": fields.PITCH in wanted}
        objective = experiment.objective.of_stream(stream)
        optional["text"] = packed and objective.added_tokens(text.TOKENIZER) is not None
        spec = BatchSpec.speech(packed=packed, **optional)
        length, unit = batch["audio"].shape[1], "samples"
        assert (batch["tokens"].shape[-1] > 0) == (fields.TRANSCRIPT_TOKENS in wanted)
    else:
        spec = BatchSpec.text(**optional, duration=fields.DURATION in wanted, word_pairs=fields.COUNT in wanted)
        length, unit = batch["tokens"].shape[1], "tokens"
    sizes = spec.check(batch)
    packed_sizes = (sizes.get(name, 0) for name in ("utterances", "text"))
    shape = Shape(sizes["rows"], length, sizes.get("tokens", 0), 1.0, unit, stream, *packed_sizes)
    abstract = Workload((shape,), unit, 1.0, None).abstract(shape, experiment)
    assert {name: (x.shape, x.dtype) for name, x in abstract.items()} == {
        name: (x.shape, x.dtype) for name, x in batch.items()
    }


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", [name for name in tiny.OBJECTIVES if name != "joint"])
def test_batches_of_speech_are_as_declared(name, packed):
    experiment = tiny.experiment(name, data=tiny.NOISE.replace(packed=packed))
    source = tiny.source(experiment)
    batch = next(iter(source.batches(0, 1)))
    assert ("audio_start" in batch) == packed
    verify_task(experiment, batch)
    verify_task(experiment, next(iter(source.dev_batches())))


def test_batches_of_every_stream_are_as_declared():
    experiment = tiny.experiment("joint")
    source = tiny.source(experiment)
    seen = {source.stream(step): batch for step, batch in enumerate(source.batches(0, 12))}
    assert set(seen) == set(stream_experiments(experiment))
    for name, batch in seen.items():
        verify_task(experiment, batch, name)


def test_every_objective_of_the_tests_has_a_task():
    assert {objective.kind for objective in tiny.OBJECTIVES.values()} <= set(TASKS)


def test_the_page_has_the_table_of_the_schema():
    assert table(every_field()) in PAGE.read_text()


def test_a_batch_that_is_not_of_the_schema_is_named():
    spec = BatchSpec.speech()
    batch = spec.empty({"rows": 2, "samples": 16, "tokens": 3})
    assert spec.check(batch) == {"rows": 2, "samples": 16, "tokens": 3}
    assert (batch["example_id"] == -1).all()
    with pytest.raises(ValueError, match=r"\['weight'\]"):
        spec.check({name: x for name, x in batch.items() if name != "weight"})
    with pytest.raises(ValueError, match="audio is float32, not int16"):
        spec.check(batch | {"audio": batch["audio"].astype(np.float32)})
    with pytest.raises(ValueError, match=r"audio has shape \(16,\), not \[rows, samples\]"):
        spec.check(batch | {"audio": batch["audio"][0]})
    with pytest.raises(ValueError, match="token_length has 1 rows, other arrays 2"):
        spec.check(batch | {"token_length": batch["token_length"][:1]})
