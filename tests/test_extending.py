"""docs/extending.md, word for word: a new task in three files works through the ordinary commands."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.test_end_to_end import RATE, TONES, spoken

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the packages with the three files of the page, and a prepared set to run them on."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("jax_speechlm", "data_pipelines"):
        shutil.copytree(ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
    files = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE, re.DOTALL)
    assert len(files) == 3
    for name, text in files:
        assert not (folder / name).exists()
        (folder / name).write_text(text)
    rng, rows = np.random.default_rng(0), []
    for number in range(24):
        text = "".join(rng.choice(list(TONES), rng.integers(3, 7)))
        soundfile.write(folder / f"{number}.wav", spoken(text, rng), RATE)
        rows.append({"audio": f"{number}.wav", "text": text, "split": "dev" if number % 5 == 1 else "train"})
    (folder / "tones.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_a_new_task_in_three_files_goes_through_every_command(copy):
    """All in one process, since a start takes seconds; not in this one, which has imported the packages themselves."""
    block = re.search(r"```bash\n(jax-speechlm prepare.*?)```", PAGE, re.DOTALL)[1]
    environment = os.environ | {"PYTHONPATH": str(copy), "XLA_FLAGS": os.environ["XLA_FLAGS"].replace("=8", "=1")}
    script = (
        "import sys; import jax_speechlm; from jax_speechlm import cli\n"
        "for line in sys.stdin:\n"
        "    if status := cli.main(line.split()[1:]): sys.exit(f'{line}ended with {status}')\n"
        "print(*jax_speechlm.load('runs/entropy').abilities)"
    )
    options = {"cwd": copy, "env": environment, "input": block, "text": True, "timeout": 900}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, **options)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    logged = [json.loads(line) for line in (copy / "runs/entropy/metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in logged if line["part"] == "train"]
    assert steps == [1, 2, 3, 4]  # the second command went on from the first one's checkpoint
    assert all(line["entropy"] > 0 for line in logged if line["part"] == "train")
    assert list((copy / "plans").rglob("plan.json"))
    assert list((copy / "runs/entropy").rglob("report.json"))
    assert done.stdout.splitlines()[-1].split() == ["transcribe", "embed", "stream"]
