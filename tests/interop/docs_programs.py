"""The programs that the docs show for running an exported recognizer, run where this package is not."""

import contextlib
import os
import re
import subprocess
import sys
from pathlib import Path

import jaxtyping
import numpy as np
import soundfile

from jax_speechlm.inference.asr.ctc import Recognizer

DOCS = Path(__file__).parents[2] / "docs" / "interchange.md"
_WITHOUT_US = "import sys; sys.modules['jax_speechlm'] = sys.modules['data_pipelines'] = None\n"


@contextlib.contextmanager
def symbols_for_sizes():
    """Lets a symbol of `jax.export` be where a signature says int, as the tests' type checker would not."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def save_audio(file: Path, samples: int = 20_001) -> Path:
    """Writes noise that swells and fades, on which random weights find many tokens."""
    rng = np.random.default_rng(5)
    noise = 4000 * np.sin(np.arange(samples) / 900) * rng.normal(size=samples)
    soundfile.write(file, noise.astype(np.int16), 16_000)
    return file


def transcript(run: Path, file: Path) -> str:
    """What the recognizer itself hears."""
    (heard,) = Recognizer.load(run).transcribe([file])
    assert len(heard.text) > 5
    return heard.text


def run_docs(marker: str, *arguments: object) -> str:
    """What the docs' program that holds `marker` prints, in a process that cannot import this package."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    (program,) = (block for block in blocks if marker in block)
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT_US + program, *map(str, arguments)],
        env={name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
        cwd="/",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return " ".join(done.stdout.split())  # as `transcribe` does
