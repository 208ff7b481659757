"""An hour of audio in 200 live streams that come and go: the well-behaved get their texts, and memory stays flat."""

import concurrent.futures
import gc
import json
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving.live import StreamLimits
from tests.serving.service import RATE, serving
from tests.trained_tones import QUIET, STREAMING, random_text, speak, trained_run

pytestmark = pytest.mark.slow

STREAMS, AT_A_TIME, SECONDS = 200, 12, 18.0
PAUSE = (QUIET * np.random.default_rng(0).normal(size=RATE)).astype(np.int16)


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20


def recording(rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
    """Sentences with a second of silence after each."""
    parts, texts = [], []
    while sum(map(len, parts)) < SECONDS * RATE:
        texts.append(random_text(rng, int(rng.integers(1, 4))))
        parts += [speak(texts[-1], int(rng.integers(1_000)))[0], PAUSE]
    return np.concatenate(parts), texts


def talk(url: str, job: int) -> tuple[float, bool]:
    """One client: its seconds of audio, and whether it got to the end; every third misbehaves or leaves."""
    rng = np.random.default_rng(job)
    samples, texts = recording(rng)
    content, at, found, sent = samples.tobytes(), 0, [], 0
    leaves = len(content) * rng.uniform() if job % 3 == 0 else len(content) + 1
    junk = job % 6 == 0
    while True:
        try:
            with connect(url, compression=None) as socket:
                while at < len(content):
                    if at >= leaves:
                        if junk:
                            socket.send('{"junk": 1}')
                        return sent / (2 * RATE), False
                    size = int(rng.choice([0, 1, 319, 3_200, 10_241, 50_001]))
                    socket.send(content[at : at + size])
                    answer = json.loads(socket.recv(60))
                    if answer.get("error", {}).get("code") == "queue_full":
                        raise ConnectionRefusedError
                    found += [answer["text"]] if answer.get("text") else []
                    at, sent = at + size, min(at + size, len(content))
                socket.send('{"eof": 1}')
                found += [json.loads(socket.recv(60))["text"]]
                assert " ".join(filter(None, found)) == " ".join(texts), job
                return sent / (2 * RATE), True
        except ConnectionRefusedError:
            at, found = 0, []
            time.sleep(0.2)
        except ConnectionClosed:
            assert junk
            return sent / (2 * RATE), False


def test_an_hour_of_streams_that_come_and_go():
    recognizer = Recognizer.load(trained_run(STREAMING))
    with serving(recognizer, streams=StreamLimits(max_streams=8)) as server:
        url, used, seconds, done = server.url.replace("http", "ws"), [], 0.0, 0
        with concurrent.futures.ThreadPoolExecutor(AT_A_TIME) as pool:
            for first in range(0, STREAMS, 50):
                for heard, ended in pool.map(lambda job: talk(url, job), range(first, first + 50)):
                    seconds, done = seconds + heard, done + ended
                gc.collect()
                used.append(resident_megabytes())
        health = httpx.get(f"{server.url}/health").json()["streams"]
        assert health["connections"] == 0
        assert server.service.streaming.streams._batch._rows == [None] * 8
    assert done >= STREAMS // 2
    assert seconds > 2_400
    assert used[-1] - used[0] < 30, used
