"""A run's folder belongs to one process: to no second one, and to nobody once that one is gone, children or not."""

import subprocess
import sys
import textwrap

import pytest

from jax_speechlm.training import run_lock
from jax_speechlm.training.checkpoints import CheckpointError

HOLD = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from jax_speechlm.training import run_lock
    with run_lock.held(Path(sys.argv[1])):
        if os.fork() == 0:  # as data workers may be
            os.close(1)
            time.sleep(600)
        print(os.getpid(), flush=True)
        time.sleep(600)
    """
)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        assert other.stdout.readline().strip() == str(other.pid)
        with pytest.raises(CheckpointError, match=f"{tmp_path}: another process trains here"), run_lock.held(tmp_path):
            pass
        other.kill()
        other.wait()  # its child lives on
        with run_lock.held(tmp_path):
            pass
    finally:
        subprocess.run(["pkill", "-KILL", "-s", str(other.pid)], check=False)
        other.stdout.close()


TRY = """
import sys
from pathlib import Path
from jax_speechlm.training import run_lock
with run_lock.held(Path(sys.argv[1])):
    pass
"""


def test_the_folder_is_held_in_the_block_and_free_behind_it(tmp_path):
    other = [sys.executable, "-c", TRY, str(tmp_path)]  # a lock is a process's: this one would not refuse itself
    with run_lock.held(tmp_path):
        refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert "another process trains here" in refused.stderr
    assert refused.returncode == 1
    subprocess.run(other, check=True)
