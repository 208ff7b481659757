"""Overhead of a run besides its steps: time to the first step, cold and restarted, and waiting for batches.

    jax-speechlm prepare asterisk-en queen-en
    python benchmarks/overheads.py

Starts `demo/pretrain` with an empty compilation cache, stops it after some steps, and starts it again. Seconds count
from the start of the program, imports included. benchmarks/checkpoint.py measures how long a save blocks the steps.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

LOG_EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="demo/pretrain", help="the experiment (default: %(default)s)")
    parser.add_argument("--data-dir", default="data", help="its prepared data (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=100, help="per start (default: %(default)s)")
    args = parser.parse_args()

    table = Table(title=f"{args.config}, {args.steps} steps a start, load average {os.getloadavg()[0]:.1f}")
    for column in ("", "to the first step, s", "waiting for input, % of step time", "low to high"):
        table.add_column(column, justify="right" if column else "left")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("empty compilation cache", "restart"):
            seconds, waits = start(Path(folder), args.config, args.data_dir, args.steps)
            spread = f"{100 * min(waits):.2f} to {100 * max(waits):.2f}"
            table.add_row(name, f"{seconds:.1f}", f"{100 * statistics.median(waits):.2f}", spread)
    Console().print(table)


def start(folder: Path, config: str, data_dir: str, steps: int) -> tuple[float, list[float]]:
    """Runs a few steps: (seconds to the first, shares of the later logged intervals that waited for input)."""
    log = folder / "run" / "metrics.jsonl"
    known = len(lines(log))
    command = [sys.executable, "-m", "jax_speechlm.cli", "pretrain", f"--config={config}", f"--run-dir={log.parent}"]
    options = [f"--data.data-dir={data_dir}", f"--loop.log-every={LOG_EVERY}"]
    began = time.time()
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(folder / "cache")}
    process = subprocess.Popen([*command, *options], env=environment, stdout=subprocess.DEVNULL)
    intervals = max(2, steps // LOG_EVERY)
    while process.poll() is None:
        new = lines(log)[known:]
        train = [line for line in new if line["part"] == "train"]
        if len(train) >= intervals:
            process.send_signal(signal.SIGTERM)
            break
        time.sleep(0.2)
    if process.wait():
        sys.exit(f"the run failed with status {process.returncode}")
    (first,) = [line["time"] for line in lines(log)[known:] if line["part"] == "start"]
    return first - began, [line["input_wait_share"] for line in train[1:]]


def lines(log: Path) -> list[dict]:
    """Returns the complete lines of a run's log."""
    text = log.read_text() if log.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


if __name__ == "__main__":
    main()
