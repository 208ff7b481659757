"""Two real processes train what one trains, through a polite stop, a killed process and restarts."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.training import checkpoints as ckpt
from tests import quick_xla
from tests.test_end_to_end import RATE, SMALL, TONES, spoken

LAUNCHER = Path(__file__).parents[2] / "launch" / "local.py"
COMMAND = (sys.executable, "-m", "jax_speechlm.cli", "finetune")
LONGER = ("--num-steps=40", "--loop.checkpoint-every=10", "--loop.eval-every=10")
FLAGS = quick_xla.on_devices(1)  # the launcher says how many after all
SAME_BITS = quick_xla.on_devices(1, partitions_alike=True)
COUNTING = """
import collections, jax, sys
counts = collections.Counter()
jax.monitoring.register_event_listener(lambda name, **_: counts.update([name.rsplit("/")[-1]]))
from jax_speechlm import cli
status = cli.main()
print("programs", counts["compile_requests_use_cache"], counts["cache_hits"])
sys.exit(status)
"""
"""The command, which prints at its end how many programs it needed, and how many of them were in the cache."""
SILENCE = 6  # seconds after which a process counts as gone


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options of a run on a prepared set of tones."""
    folder = tmp_path_factory.mktemp("work")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        text = "".join(rng.choice(list(TONES), rng.integers(3, 7)))
        soundfile.write(folder / f"{number}.wav", spoken(text, rng), RATE)
        rows.append({"audio": f"{number}.wav", "text": text, "split": "dev" if number % 5 == 1 else "train"})
    (folder / "tones.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    assert cli.main(["prepare", f"--manifest={folder / 'tones.jsonl'}", f"--data-dir={folder / 'data'}"]) == 0
    small = [option for option in SMALL if not option.startswith("--num-steps")]
    return [*small, *LONGER, f"--data.data-dir={folder / 'data'}"]


def figures(run_dir: Path, part: str) -> dict[int, dict]:
    """What was logged last of each step."""
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return {line["step"]: line for line in lines if line["part"] == part}


def wait_for_step(run_dir: Path, step: int, launcher: subprocess.Popen) -> None:
    deadline = time.monotonic() + 600  # compiling, beside whatever else runs
    while max(figures(run_dir, "train"), default=0) < step:
        assert launcher.poll() is None, launcher.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def launch(run_dir: Path, options: list[str], *more: str, processes: int = 2) -> subprocess.Popen:
    """Starts a run on two devices: one of each of two processes, or both of one."""
    shape = f"--processes={processes}", f"--cpu-devices={2 // processes}"
    counting = sys.executable, "-c", COUNTING, "finetune", f"--run-dir={run_dir}"
    environment = os.environ | {"JAX_SPEECHLM_PEER_SECONDS": str(SILENCE), "XLA_FLAGS": SAME_BITS}
    environment["JAX_SPEECHLM_CACHE"] = f"{run_dir} of the user"
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        environment.pop(name)  # several processes then keep their programs in the folder of the run
    command = [sys.executable, LAUNCHER, *shape, *more, "--", *counting, *options]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def programs(output: str) -> list[tuple[int, int]]:
    """By process: programs needed, and programs found in the cache."""
    lines = sorted(line.split() for line in output.splitlines() if "] programs " in line)
    assert [process for process, *_ in lines] == ["[0]", "[1]"], output
    return [(int(needed), int(found)) for *_, needed, found in lines]


def test_two_processes_train_what_one_trains_through_stop_kill_and_restart(options, tmp_path):
    """And the restart compiles nothing: process 1 too finds all programs in the run's folder."""
    one, two = tmp_path / "one", tmp_path / "two"
    launcher = launch(one, options, processes=1)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output

    launcher = launch(two, options)
    wait_for_step(two, 11, launcher)  # past a checkpoint and a validation: every program has been needed
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    assert launcher.returncode == 0, output
    stopped = int(ckpt.find(two).name)
    assert 11 <= stopped < 40
    assert output.count(f"SIGTERM received: saved step {stopped}") == 1
    assert all(needed > 20 and found == 0 for needed, found in programs(output))

    launcher = launch(two, options, "--restarts=1")
    wait_for_step(two, stopped + 5, launcher)
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    os.kill(int(children[1]), signal.SIGKILL)
    output, _ = launcher.communicate(timeout=300)
    assert launcher.returncode == 0, output
    assert "stopped: process 1 on " in output, output
    assert f"has not responded for {SILENCE} s. Start the same command again" in output
    assert "restarting" in output
    assert all(needed == found > 20 for needed, found in programs(output))

    for part in ("train", "dev"):
        logged, expected = figures(two, part), figures(one, part)
        assert logged.keys() == expected.keys()
        for step, line in logged.items():
            for name in ("loss", "grad_norm", "wer", "cer"):
                assert line.get(name) == expected[step].get(name), (step, name)
    first, second = (ckpt.read(ckpt.find(run_dir)) for run_dir in (one, two))
    assert first.step == second.step == 40
    jax.tree.map(np.testing.assert_array_equal, first.state, second.state)


def trained(run_dir: Path, options: list[str], mesh: str, processes: int, node: str) -> dict[str, dict[int, dict]]:
    """Figures of a run of four steps, by part; `node` is bash's arithmetic on the number of a process."""
    short = [option for option in options if option not in LONGER] + ["--num-steps=4"]
    named = "bash", "-c", f'JAX_PARTITION_INDEX=$(({node})) exec "$@"', "-", *COMMAND
    shape = f"--processes={processes}", f"--cpu-devices={2 // processes}"
    command = [sys.executable, LAUNCHER, *shape, "--", *named, f"--run-dir={run_dir}", *short, mesh]
    run = subprocess.run(command, env=os.environ | {"XLA_FLAGS": FLAGS}, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return {part: figures(run_dir, part) for part in ("train", "dev")}


@pytest.fixture(scope="module")
def by_one(options, tmp_path_factory):
    return trained(tmp_path_factory.mktemp("one") / "run", options, "--mesh.data=2", 1, "0")


@pytest.mark.parametrize(
    ("mesh", "node"),
    [("--mesh.tensor=2", "0"), ("--mesh.sequence=2", "0"), ("--mesh.data=2", "1 - JAX_PROCESS_ID")],
    ids=["tensor", "sequence", "nodes-in-another-order"],
)
def test_processes_of_one_node_may_share_rows_and_nodes_come_in_any_order(options, by_one, mesh, node, tmp_path):
    by_two = trained(tmp_path / "run", options, mesh, 2, node)
    for part, names in (("train", ("loss", "grad_norm")), ("dev", ("loss", "wer", "cer"))):
        assert by_two[part].keys() == by_one[part].keys()
        for step, line in by_two[part].items():
            for name in names:
                assert line[name] == pytest.approx(by_one[part][step][name], rel=1e-4), (step, name)


def test_a_process_that_fails_ends_the_others_and_says_why(tmp_path, options):
    """Only process 1 is told of a data set that does not exist; process 0 would wait for it for ever."""
    script = "import os, sys; sys.argv[1:] = [a + (os.environ['JAX_PROCESS_ID'] == '1') * 'x' if a == 'tones' else a"
    script += " for a in sys.argv[1:]]; from jax_speechlm import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", script, "finetune", f"--run-dir={tmp_path}", *options]
    done = subprocess.run(
        [sys.executable, LAUNCHER, "--processes=2", "--cpu-devices=1", "--", *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == USER_ERROR, done.stdout
    lines = done.stdout.splitlines()
    assert any(line.startswith("[1]") and "this process failed" in line and "tonesx" in line for line in lines)
    assert any(line.startswith("[0]") and "process 1 on " in line and "failed" in line for line in lines)


def test_dry_run_shows_what_each_process_gets():
    done = subprocess.run(
        [sys.executable, LAUNCHER, "--processes=2", "--dry-run", "--", "echo", "a"], capture_output=True, text=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all(line.endswith(f"JAX_PROCESS_ID={number} echo a") for number, line in enumerate(lines))


def test_the_first_failure_decides_the_status_and_others_end_after_the_grace():
    """Process 1 fails at once; process 0 would go on for a minute, and then fail differently."""
    script = "import os, sys, time; me = int(os.environ['JAX_PROCESS_ID']); time.sleep(60 * (1 - me)); sys.exit(4 - me)"
    command = [sys.executable, LAUNCHER, "--processes=2", "--grace=1", "--", sys.executable, "-c", script]
    assert subprocess.run(command, timeout=45).returncode == 3


def test_sigterm_during_validation_reaches_all_processes(tmp_path):
    """Between two steps, where no step can be agreed on, a signal to one process is known to both at the same call."""
    script = (
        "import os, pathlib, sys, time; from jax_speechlm.parallel import distributed\n"
        "with distributed.session():\n"
        "    me = os.environ['JAX_PROCESS_ID']\n"
        "    (pathlib.Path(sys.argv[1]) / me).write_text(str(os.getpid()))\n"
        "    calls = 0\n"
        "    while not distributed.stop_announced() and calls < 600: calls += 1; time.sleep(0.1)\n"
        "    print(f'left after {calls}', flush=True)\n"
    )
    command = [sys.executable, LAUNCHER, "--processes=2", "--cpu-devices=1", "--", sys.executable, "-c", script]
    launcher = subprocess.Popen([*command, tmp_path], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not all((tmp_path / name).exists() and (tmp_path / name).read_text() for name in "01"):
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    os.kill(int((tmp_path / "1").read_text()), signal.SIGTERM)
    output, _ = launcher.communicate(timeout=120)
    left = [line.split("left after ")[1] for line in output.splitlines() if "left after" in line]
    assert len(left) == 2
    assert left[0] == left[1] != "600"


def test_a_second_ctrl_c_kills_processes_that_hang():
    script = (
        "import signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked', flush=True))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(60)\n"
    )
    command = [sys.executable, LAUNCHER, "--processes=2", "--grace=60", "--", sys.executable, "-c", script]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for said in ("up", "asked"):
        assert [launcher.stdout.readline().strip()[-len(said) :] for _ in range(2)] == [said, said]
        launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=30) == 128 + signal.SIGKILL
