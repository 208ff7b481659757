"""The page in a real browser: a file, and a microphone that plays one; skipped where there is no Chromium."""

from pathlib import Path

import numpy as np
import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from tests.serving.browser import browsing, shades
from tests.serving.service import encoded, serving
from tests.trained_tones import QUIET, speak, trained_run

pytestmark = pytest.mark.slow

TEXT = "cab ba acb"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page that is open, whose microphone says TEXT again and again."""
    file = tmp_path_factory.mktemp("page") / "said.wav"
    pause = (QUIET * np.random.default_rng(0).normal(size=16_000)).astype(np.int16)
    file.write_bytes(encoded(np.concatenate([speak(TEXT, 1)[0], pause])))
    transcriber = Recognizer.load(trained_run(), Decoding(decoder="beam", beam_size=3))
    with serving(transcriber) as server, browsing(server.url, microphone=file) as page:
        page.file = file
        yield page


def test_a_file_is_transcribed_and_shown(page):
    page.wait_for_selector("#card tr")
    assert "prefix beam 3" in page.inner_text("#card")
    assert page.inner_text("#model") == "tones"
    page.set_input_files("#file", page.file)
    page.wait_for_function("() => document.getElementById('mel').width > 50")
    assert page.inner_text("#transcript").strip() == TEXT
    words = [text.split("\n") for text in page.locator("#words span").all_inner_texts()]
    truth = speak(TEXT, 1)[1]
    assert [word for word, _ in words] == TEXT.split()
    for (_, times), (_, start, end) in zip(words, truth, strict=True):
        assert [float(each) for each in times.split("\u2013")] == pytest.approx([start, end], abs=0.05)
    assert page.locator("#alternatives li").first.inner_text() == TEXT
    assert shades(page, "mel", 34) > 30
    assert page.is_hidden("#voice")
    assert "s of audio in" in page.inner_text("#status")


def test_the_microphone_is_transcribed_while_it_listens(page):
    page.click("#record")
    page.wait_for_function(
        "() => document.querySelector('#transcript .live')?.textContent.includes('cab ba')", timeout=60_000
    )
    assert page.get_attribute("#record", "aria-pressed") == "true"
    page.click("#record")
    page.wait_for_function(
        "() => document.getElementById('status').textContent.includes('s of audio in')", timeout=60_000
    )
    assert "cab ba" in page.inner_text("#transcript")
    assert page.locator("#words span").count() >= 2


def test_what_is_no_audio_is_said_to_be_none(page, tmp_path):
    file = Path(tmp_path / "x.wav")
    file.write_bytes(b"nothing to hear" * 100)
    page.set_input_files("#file", file)
    page.wait_for_selector("#status.error")
    assert "cannot be decoded as audio" in page.inner_text("#status")
    page.faults.clear()  # the browser reports the response of 400
