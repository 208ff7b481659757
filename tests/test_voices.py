"""docs/voices.md, word for word: every command in order, on a minute of tones and with tiny models."""

import json
import signal
import subprocess
import sys

import httpx
import numpy as np
import pytest
import soundfile

from jax_speechlm import cli
from tests.pages import commands, read

COMMANDS = commands(read("voices.md"))
RATE = 22_050
WORDS = ["please", "enter", "your", "password", "now", "press", "one", "to", "leave", "a", "message"]
LAYERS = [f"--model.{stack}.{size}" for stack in ("encoder", "decoder") for size in ("num-layers=1", "ffn-dim=16")]
TRAINING = ("--num-steps=2", "--loop.log-every=1", "--data.batch-multiple=8", "--data.max-seconds=4")
SMALLER = {
    "finetune": (
        *("--model.dim=16", *LAYERS, "--model.postnet.num-layers=2", "--model.postnet.channels=8"),
        *("--data.row-seconds", "4", "--data.seconds-per-batch=32", *TRAINING),
    ),
    "pretrain": (
        *("--model.dim=16", "--model.num-layers=1", "--objective.crop-frames=16", "--data.num-buckets=1"),
        *("--data.seconds-per-batch=32", *TRAINING),
    ),
    "eval": ("--limit=2", "--judges"),  # without the judges that may be installed here
}
"""Options that the commands get besides those of the page."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the list of recordings, in which a letter is a tone of its own and a space is a pause."""
    folder, rng = tmp_path_factory.mktemp("voice"), np.random.default_rng(0)
    (folder / "recordings").mkdir()
    time, rows = np.arange(int(0.08 * RATE)) / RATE, []
    for number in range(30):
        text = f"Please {' '.join(rng.choice(WORDS, 4))}."
        hertz = [100 * ("abcdefghijklmnopqrstuvwxyz".find(letter) + 1) for letter in text.lower()]
        audio = 0.3 * np.concatenate([np.sin(2 * np.pi * each * time) for each in hertz])
        audio = np.concatenate([np.zeros(RATE // 2), audio, np.zeros(RATE // 2)])
        file = f"recordings/{number:04d}.wav"
        soundfile.write(folder / file, audio + 0.0005 * rng.normal(size=len(audio)), RATE)
        rows.append({"audio": file, "text": text, "split": {0: "test", 1: "dev"}.get(number % 5, "train")})
    (folder / "my-voice.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_the_page_has_every_stage():
    verbs = [words[0] for words in COMMANDS]
    assert verbs == ["prepare", "pitch", "finetune", "pretrain", "synthesize", "synthesize", "eval", "serve"]


def test_every_command_of_the_page_works(folder, monkeypatch, capsys):
    pytest.importorskip("pyloudnorm")
    monkeypatch.chdir(folder)
    for words in COMMANDS[:-1]:
        assert cli.main([*words, *SMALLER.get(words[0], ())]) == 0, words
    printed = capsys.readouterr().out
    assert "voiced" in printed  # of the pitch
    lengths = [len(soundfile.read(folder / name)[0]) for name in ("password.wav", "slower.wav")]
    assert min(lengths) > 0
    for table in folder.glob("runs/my-voice/**/table.md"):
        rows = table.read_text()
        assert all(f"{vocoder} copy" in rows for vocoder in ("griffin-lim", "my-vocos"))
        assert "MCD" in rows
        break
    else:
        pytest.fail("eval wrote no table")
    check_served(COMMANDS[-1])


def check_served(words: list[str]) -> None:
    """Starts the server of the page at a free port and asks it for speech."""
    port = words.index("--port") + 1
    words = [*words[:port], "0", *words[port + 1 :], "--no-warm-up"]
    code = "import sys; from jax_speechlm.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen([sys.executable, "-c", code, *words], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("my-voice at http://127.0.0.1:")
        body = {"input": "Please enter your password.", "response_format": "wav"}
        response = httpx.post(f"{line.split()[2]}/v1/audio/speech", json=body, timeout=120)
        assert response.status_code == 200, response.text
        assert response.content.startswith(b"RIFF")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
