"""Logs of a run that was killed and went on: every step once, in order, each line on its own."""

import json

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator

from jax_speechlm.training.logs import METRICS
from jax_speechlm.training.reporting import Reporter


def log(folder, start, steps):
    with Reporter(folder, "run", start, 8) as reporter:
        for step in steps:
            reporter.write(step, "train", {"loss": float(10 * start + step)})


def lines_of(folder):
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


@pytest.mark.parametrize("rest", ["", '{"step": 7, "part": "tra', '{"step": 4, "part": "goo', '{"step": 7}', "\0\0\0"])
def test_steps_that_a_kill_lost_leave_the_logs_and_a_cut_line_swallows_none(tmp_path, rest):
    log(tmp_path, 0, (2, 4, 6))
    with (tmp_path / METRICS).open("a") as file:
        file.write(rest)
    log(tmp_path, 4, (6, 8))
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path)] == [(2, 2), (4, 4), (6, 46), (8, 48)]


def test_tensorboard_gets_a_session_start_after_the_resumed_step(tmp_path):
    log(tmp_path, 0, (2, 4, 6))
    log(tmp_path, 4, (6, 8))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Tensors("train/loss")
    assert [(event.step, event.tensor_proto.float_val[0]) for event in shown] == [(2, 2), (4, 4), (6, 46), (8, 48)]


def test_a_run_begun_afresh_leaves_nothing_of_one_that_never_saved(tmp_path):
    log(tmp_path, 0, (2, 4))
    log(tmp_path, 0, (2,))
    assert [line["step"] for line in lines_of(tmp_path)] == [2]
