"""A minute of audio of our own making, for the demos."""

import json

import numpy as np
import pytest
import soundfile

from data_pipelines.prepare.job import prepare
from tests.test_end_to_end import RATE, TONES, spoken


@pytest.fixture(scope="session")
def tones(tmp_path_factory):
    """A folder with a minute of tones, prepared in data/tones."""
    folder, rng, rows = tmp_path_factory.mktemp("demo"), np.random.default_rng(0), []
    for number in range(30):
        text = " ".join("".join(rng.choice(list(TONES), 2)) for _ in range(5))
        soundfile.write(folder / f"{number}.wav", spoken(text.replace(" ", ""), rng), RATE)
        split = {0: "test", 1: "dev"}.get(number % 5, "train")
        rows.append({"audio": f"{number}.wav", "text": text, "split": split})
    (folder / "tones.jsonl").write_text("\n".join(map(json.dumps, rows)))
    prepare(manifest=folder / "tones.jsonl", data_dir=folder / "data")
    return folder
