"""The status of a run that a signal stopped, where a launcher asks for one."""

import pytest

from jax_speechlm import cli
from jax_speechlm.training import loop


@pytest.mark.parametrize(("step", "asked", "status"), [(3, "75", 75), (3, None, 0), (10, "75", 0)])
def test_only_a_run_that_was_stopped_asks_to_be_started_again(step, asked, status, monkeypatch, tmp_path):
    result = loop.Result(step=step, minutes=0.0, audio_hours=0.0, tokens=0, train={}, dev={}, compiles=0)
    monkeypatch.setattr(loop, "train", lambda experiment, run_dir: result)
    if asked:
        monkeypatch.setenv("JAX_SPEECHLM_STOPPED_STATUS", asked)
    options = ["--config=demo/pretrain", "--num-steps=10", f"--run-dir={tmp_path}"]
    assert cli.main(["pretrain", *options]) == status
