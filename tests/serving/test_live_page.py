"""The page in a real browser with a model that streams; skipped where there is no Chromium."""

import numpy as np
import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving.live import StreamLimits
from tests.serving.browser import browsing
from tests.serving.service import encoded, serving
from tests.trained_tones import QUIET, STREAMING, speak, trained_run

pytestmark = pytest.mark.slow

TEXT = "cab ba acb"


def test_a_model_that_streams_transcribes_what_arrives(tmp_path):
    file = tmp_path / "said.wav"
    pause = (QUIET * np.random.default_rng(0).normal(size=16_000)).astype(np.int16)
    file.write_bytes(encoded(np.concatenate([speak(TEXT, 1)[0], pause])))
    recognizer = Recognizer.load(trained_run(STREAMING))
    with serving(recognizer, streams=StreamLimits()) as server, browsing(server.url, microphone=file) as page:
        page.wait_for_selector("#card tr")
        page.click("#record")
        page.wait_for_function(
            "() => document.getElementById('transcript').textContent.includes('cab ba acb')", timeout=60_000
        )
        assert server.service.health()["streams"]["pieces"] > 5
        assert server.service.health()["heard"]["windows"] == 0  # nothing was transcribed twice
        page.click("#record")
        page.wait_for_function(
            "() => document.getElementById('status').textContent.includes('s of audio in')", timeout=60_000
        )
