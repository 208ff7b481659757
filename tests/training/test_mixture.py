"""A mixture is trained by the one loop: each stream logged by itself, one program a shape, resumed bit for bit."""

import contextlib
import hashlib
import io
import json
import os
import signal

import jax
import jax.numpy as jnp
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.objectives.speech_text.joint import stream_of
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes.experiment import Mixture, Speech, Stream, differences
from jax_speechlm.training.loop import train
from jax_speechlm.training.reporting import BatchSize, IntervalMetrics
from jax_speechlm.training.source import MixtureSource, open_source
from tests.data_pipelines.text_sets import write_text_set
from tests.training import tiny
from tests.training.test_loop import assert_same, lines_of, params_of


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run of 24 steps, with its result, and what it said."""
    run_dir = tmp_path_factory.mktemp("runs") / "whole"
    experiment = tiny.experiment("joint", num_steps=24)
    loop = experiment.loop.replace(log_every=12, eval_every=24, checkpoint_every=24)
    experiment = experiment.replace(loop=loop)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        result = train(experiment, run_dir, tiny.source(experiment))
    return run_dir, result, experiment, said.getvalue()


class Interrupted(MixtureSource):
    """Sends this process a signal as a batch is asked for."""

    at_step = 5

    def stream(self, step):
        if step == self.at_step:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().stream(step)


def test_each_stream_is_logged_and_validated_under_its_name(whole):
    run_dir, result, experiment, _ = whole
    assert [line["step"] for line in lines_of(run_dir, "train")] == [12, 24]
    last, dev = lines_of(run_dir, "train")[-1], lines_of(run_dir, "dev")[-1]
    names = {"speech_loss", "speech_masked_accuracy", "text_loss", "text_majority", "pairs_ctc_loss", "pairs_tlm_codes"}
    assert names | {"loss", "grad_norm", "audio_seconds_per_second", "tokens_per_second"} <= set(last)
    assert names | {"loss", "pairs_wer", "pairs_cer"} <= set(dev)
    assert not {"speech_wer", "text_wer", "masked_accuracy", "wer"} & set(dev)
    shares = {"speech": 0.5, "text": 0.25, "pairs": 0.25}
    assert dev["loss"] == pytest.approx(sum(share * dev[f"{name}_loss"] for name, share in shares.items()))
    assert last["mfu"] > 0
    assert 0 < last["padding_share"] < 1
    assert result.audio_hours > 0
    assert result.tokens > 0
    assert "h of audio" in result.seen
    assert "tokens" in result.seen
    assert experiment.num_steps == result.step


def test_one_program_is_compiled_for_each_shape_of_each_stream(whole):
    _, result, experiment, _ = whole
    source = tiny.source(experiment)
    shapes = {name: len(getattr(part.plan, "buckets", "t")) for name, part in source.parts.items()}
    assert shapes == {"speech": 1, "text": 1, "pairs": 1}
    assert result.compiles == sum(shapes.values())


def test_a_run_stopped_by_sigterm_resumes_bit_for_bit(whole, tmp_path):
    run_dir, _, experiment, _ = whole
    source = tiny.source(experiment)
    stopped = train(experiment, tmp_path, Interrupted(source.parts, source.plan, source.tokenizer))
    assert stopped.step == 6
    assert train(experiment, tmp_path, tiny.source(experiment)).step == 24
    assert_same(params_of(run_dir), params_of(tmp_path))


def test_batches_are_the_same_from_whichever_step_they_are_begun():
    source = tiny.source(tiny.experiment("joint"))
    every = list(source.batches(0, 30))
    for first in range(30):
        for step, batch in zip(range(first, 30), source.batches(first, 30), strict=True):
            assert_same(batch, every[step])
    kinds = {"speech": 0, "text": 0, "pairs": 0}
    for step, batch in enumerate(every):
        name = source.stream(step)
        kinds[name] += 1
        assert ("segment" in batch) == (name == "text")
        assert name == "text" or bool(batch["tokens"].shape[-1]) == (name == "pairs")
    assert sorted(kinds.values()) == [7, 8, 15]


def test_streams_on_the_same_sets_are_shuffled_apart():
    source = tiny.source(tiny.experiment("joint"))
    speech, pairs = (
        [batch["example_id"].tolist() for batch in source.parts[name].batches(0, 6)] for name in ("speech", "pairs")
    )
    assert speech != pairs


def test_a_metric_is_the_mean_over_the_steps_that_have_it():
    meter = IntervalMetrics(1.0)
    own = {"grad_norm": (2.0, 1.0), "skipped_in_a_row": (0.0, 1.0)}

    def add(stream, **metrics):
        return meter.add(jax.tree.map(jnp.asarray, own | metrics), stream)

    add("speech", loss=(30.0, 10.0), accuracy=(5.0, 10.0))
    add("pairs", loss=(8.0, 2.0), blank=(1.0, 4.0), grad_norm=(4.0, 1.0))
    add("pairs", loss=(0.0, 0.0))  # skipped
    meter.count(BatchSize("audio_seconds", 6.0, 8.0, 16, 1), 1.0)
    meter.count(BatchSize("tokens", 50.0, 100.0, 100, 1), 1.0)
    figures = meter.take()
    expected = {"speech_loss": 3.0, "speech_accuracy": 0.5, "pairs_loss": 4.0, "pairs_blank": 0.25, "loss": 3.5}
    expected |= {"grad_norm": 8 / 3, "padding_share": 0.375}
    assert {name: figures[name] for name in expected} == pytest.approx(expected)
    assert not {"accuracy", "blank"} & set(figures)


def test_noise_and_random_letters_raise_an_alarm(whole):
    """Neither what is masked in white noise nor a letter drawn at random can be told from its context."""
    said = whole[-1]
    assert "predictions have collapsed" in said or "reads nothing from context" in said


def test_names_and_what_all_streams_share_are_checked():
    speech = Stream(name="speech", data=Speech(sets=("noise",)))
    with pytest.raises(ValueError, match="names of their own, got speech, speech"):
        Mixture(streams=(speech, speech))
    with pytest.raises(ValueError, match=r"tokenizer of its own: .* set --data\.tokenizer instead"):
        Mixture(streams=(speech.replace(data=speech.data.replace(tokenizer="runs/a")),))
    with pytest.raises(ValueError, match="pattern"):
        speech.replace(name="My stream")
    mixture = Mixture(streams=(speech,), data_dir="here", tokenizer="runs/b")
    assert mixture.parts["speech"].data_dir == "here"
    assert mixture.parts["speech"].tokenizer == "runs/b"
    twice = mixture.scaled(2.0)
    assert twice.sizes == {"streams.0.data.seconds_per_batch": 240.0}


def test_differences_name_the_stream():
    first = tiny.experiment("joint")
    streams = first.data.streams
    second = first.replace(data=first.data.replace(streams=(streams[0].replace(weight=9), *streams[1:])))
    assert differences(first, second) == ["data.streams.0.weight"]


def write_speech_index(set_dir, seconds, texts):
    """The index of a prepared set without its records, which planning does not read."""
    rows = len(texts)
    columns = {
        "id": [str(row) for row in range(rows)],
        "num_samples": [int(16_000 * s) for s in seconds],
        "text": texts,
    }
    (set_dir / "index").mkdir(parents=True)
    pq.write_table(
        pa.table(columns | dict.fromkeys(("speaker", "language"), [""] * rows)), set_dir / "index/train.parquet"
    )
    digest = hashlib.sha256((set_dir / "index/train.parquet").read_bytes()).hexdigest()
    meta = {"tfds_dir": "records", "splits": {"train": {"index_sha256": digest}}}
    (set_dir / "meta.json").write_text(json.dumps(meta))


def prepared(tmp_path, **changes):
    """An experiment on sets whose indexes lie in `tmp_path`: ten clips of a second, and two documents."""
    write_speech_index(tmp_path / "noise", **({"seconds": [1.0] * 10, "texts": ["a cab"] * 10} | changes))
    write_text_set(tmp_path / "letters", {"train": ["dead beef", "cafe"]})
    experiment = tiny.experiment("joint")
    return experiment.replace(data=experiment.data.replace(data_dir=str(tmp_path)))


def test_streams_share_one_vocabulary_of_all_that_they_read(tmp_path):
    source = open_source(prepared(tmp_path))
    assert set(source.tokenizer.characters) == set("abcdef ")
    assert source.parts["pairs"].tokenizer is source.parts["text"].tokenizer is source.tokenizer
    assert source.parts["speech"].tokenizer is None
    assert not source.parts["text"].plan.is_packed


def test_pairs_without_audio_or_text_are_left_out_and_counted(tmp_path):
    experiment = prepared(tmp_path, seconds=[0.0] + [1.0] * 9, texts=["", "", "", *["a cab"] * 7])
    source = open_source(experiment)
    dropped = source.parts["pairs"].plan.dropped
    assert (dropped["empty"], dropped["no_tokens"]) == (1, 2)
    assert sum(source.parts["speech"].plan.dropped.values()) == 1
    assert "1 empty" in source.plan.describe()
    assert "2 no_tokens" in source.plan.describe()


def test_an_error_names_the_stream_and_the_remedy(tmp_path):
    missing = tiny.experiment("joint")
    missing = missing.replace(data=missing.data.replace(data_dir=str(tmp_path)))
    with pytest.raises(DataError, match=r"letters is not a prepared data set .* jax-speechlm prepare letters"):
        open_source(missing)
    experiment = prepared(tmp_path, texts=[""] * 10)
    with pytest.raises(ValueError, match=r"stream pairs: no item of 10 is left for the plan .*'no_tokens': 10"):
        open_source(experiment)
    silent = tuple(each.replace(data=each.data.replace(sets=("letters",))) for each in experiment.data.streams)
    with pytest.raises(DataError, match="stream speech: letters/train has no column 'num_samples'"):
        open_source(experiment.replace(data=experiment.data.replace(streams=silent)))
    elsewhere = experiment.replace(data=experiment.data.replace(tokenizer=str(tmp_path / "absent")))
    with pytest.raises(DataError, match="absent"):
        open_source(elsewhere)


def test_a_plan_knows_every_shape_of_every_stream(tmp_path):
    experiment = prepared(tmp_path)
    absent = experiment.replace(data=experiment.data.replace(data_dir=str(tmp_path / "absent")))
    for load, assumed in ((workload(experiment, 100), False), (workload(absent, 100), True)):
        assert sum(shape.share for shape in load.shapes) == pytest.approx(1)
        assert {shape.stream for shape in load.shapes} == {"speech", "text", "pairs"}
        assert load.shapes[-1].stream == "pairs"  # the longest row: frames and tokens
        assert load.unit == "samples"
        assert 0 < load.useful <= 1
        assert bool(load.assumed) == assumed
        assert load.tokenizer is not None
        for shape in load.shapes:
            batch = load.abstract(shape, experiment)
            assert stream_of(batch) == shape.stream
