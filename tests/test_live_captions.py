"""The tutorial docs/live_captions.md: a real server and its WebSocket client, on a run that has learnt tones."""

import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from jax_speechlm.recipes import registry
from tests.pages import blocks, commands, read
from tests.trained_tones import QUIET, STREAMING, speak, trained_run

PAGE = read("live_captions.md")
RATE = 16_000


def test_the_recipe_of_the_page_streams():
    (finetune,) = (words for words in commands(PAGE) if words[0] == "finetune")
    config = registry.load(finetune[finetune.index("--config") + 1])
    assert "160, 320, 640 and 1,280 ms" in PAGE
    frame_ms = 1000 * config.frame_samples / config.sample_rate
    assert [frame_ms * length for length in config.model.chunk_lengths] == [160, 320, 640, 1280]


@pytest.fixture
def server(tmp_path):
    """The address of the command of the page, on a free port, with the chunks that the run has."""
    (serve,) = (words for words in commands(PAGE) if words[0] == "serve")
    smaller = {"runs/streaming": str(trained_run(STREAMING)), "8000": "0", "320": "160"}
    arguments = [smaller.get(word, word) for word in serve]
    code = "import sys; from jax_speechlm.cli import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments, "--no-warm-up"], stdout=subprocess.PIPE, text=True
    )
    try:
        process.stdout.readline()
        line = process.stdout.readline()
        assert line.startswith("live streams at ws://127.0.0.1:")
        yield line.split(" and ")[1].split()[0]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()


def test_the_client_prints_captions_of_a_file(server, tmp_path):
    (program,) = blocks(PAGE, "python")
    first, second = speak("ab cab", 0)[0], speak("bca", 1)[0]
    pause = (QUIET * np.random.default_rng(0).normal(size=RATE)).astype(np.int16)
    soundfile.write(tmp_path / "talk.wav", np.concatenate([first, pause, second]), RATE)
    (tmp_path / "captions.py").write_text(program)
    client = next(words for words in commands(PAGE, "python") if "talk.wav" in words)
    arguments = [server if word.startswith("ws://") else word for word in client]
    done = subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    *lines, last = done.stdout.decode().split("\n")  # not as text, for which a carriage return is an end of line too
    assert [line.rpartition("\033[K")[2] for line in lines] == ["ab cab", "bca"]
    assert last == ""
    partials = [part for part in lines[0].split("\r\033[K")[:-1] if part]
    assert partials
    assert all("ab cab".startswith(part[:1]) for part in partials)
