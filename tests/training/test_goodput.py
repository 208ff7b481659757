"""The account of wall time, on a clock that the test turns."""

import json

import pytest

from jax_speechlm.training.goodput import KINDS, GoodputTracker, describe


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def run(account, clock, steps, seconds=2.0):
    for _ in range(steps):
        with account.paying_for("input"):
            clock.now += 0.5
        with account.stepping(lambda: 1):
            clock.now += seconds


def test_kinds_add_up_to_the_wall_time(clock, tmp_path):
    account = GoodputTracker(clock.now, tmp_path / "metrics.jsonl", clock)
    clock.now += 10
    account.resume(0)
    compiled = []
    with account.stepping(lambda: len(compiled)):
        compiled.append("program")
        clock.now += 30
    run(account, clock, 8)
    with account.paying_for("checkpoint"):
        clock.now += 3
        with account.paying_for("validate"):
            clock.now += 1
    figures = account.figures()
    assert figures == {
        "start_seconds": 10, "compile_seconds": 30, "input_seconds": 4, "step_seconds": 16, "validate_seconds": 1,
        "checkpoint_seconds": 3, "lost_seconds": 0, "goodput": 0.25,
    }  # fmt: skip
    assert describe(figures) == (
        "goodput 25.0% of 1.1 minutes (start 15.6%, compile 46.9%, input 6.2%, validate 1.6%, checkpoint 4.7%)"
    )


def test_a_restart_loses_the_steps_behind_the_checkpoint_and_the_time_between(clock, tmp_path):
    log = tmp_path / "metrics.jsonl"
    account = GoodputTracker(clock.now, log, clock)
    account.resume(0)
    run(account, clock, 10)
    line = json.dumps({"step": 10, "part": "goodput", "time": clock.now} | account.figures())
    log.write_text(f'{line}\n{{"step": 12, "part": "goodput", "ti')  # killed while it wrote
    clock.now += 100
    again = GoodputTracker(clock.now, log, clock)
    clock.now += 5
    again.resume(6)
    figures = again.figures()
    assert figures["lost_seconds"] == pytest.approx(100 + 4 * 2)
    assert figures["step_seconds"] == pytest.approx(6 * 2)
    assert sum(figures[f"{kind}_seconds"] for kind in KINDS) == pytest.approx(clock.now - 1000)
