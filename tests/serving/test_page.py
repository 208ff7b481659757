"""The page in a real browser: a file, and a microphone that plays one; skipped where there is no Chromium."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from tests.serving.service import encoded, serving
from tests.trained_tones import QUIET, speak, trained_run

pytestmark = pytest.mark.slow
sync_api = pytest.importorskip("playwright.sync_api", reason="the page is driven by playwright: pip install playwright")

TEXT = "cab ba acb"


def find_browser() -> str | None:
    """Debian's Chromium, or any other on the path; None lets playwright look for one of its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page that is open, whose microphone says TEXT again and again."""
    folder = tmp_path_factory.mktemp("page")
    pause = (QUIET * np.random.default_rng(0).normal(size=16_000)).astype(np.int16)
    samples = np.concatenate([speak(TEXT, 1)[0], pause])
    (folder / "said.wav").write_bytes(encoded(samples))
    options = [
        "--use-fake-ui-for-media-stream",
        "--use-fake-device-for-media-stream",
        f"--use-file-for-fake-audio-capture={folder / 'said.wav'}",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ]
    transcriber = Recognizer.load(trained_run(), Decoding(decoder="beam", beam_size=3))
    with serving(transcriber) as server, sync_api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=find_browser(), args=options)
        except sync_api.Error as error:
            # a browser is no Python package: what installs the tests cannot bring one
            pytest.skip(f"no Chromium can be started (apt-get install chromium): {str(error).splitlines()[0]}")
        page = browser.new_page()
        page.faults = []
        page.elsewhere = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
        page.on("request", lambda request: page.elsewhere.append(request.url))
        page.file = folder / "said.wav"
        page.goto(server.url)
        yield page
        assert page.faults == []
        assert all(url.startswith((server.url, "blob:")) for url in page.elsewhere)
        browser.close()


def shades(page) -> int:
    """How many colours the picture has."""
    return page.evaluate(
        "() => { const c = document.getElementById('mel'), d = c.getContext('2d')"
        ".getImageData(0, 0, c.width, c.height - 34).data; const seen = new Set();"
        "for (let i = 0; i < d.length; i += 4) seen.add(d[i]); return seen.size }"
    )


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
    assert shades(page) > 30
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
    assert "no audio" in page.inner_text("#status")
    page.faults.clear()  # the browser reports the response of 400
