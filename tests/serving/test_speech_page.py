"""The page of a voice in a real browser: a text is spoken, played and drawn; skipped where there is no Chromium."""

import threading

import pytest

from tests.serving.browser import browsing, shades
from tests.serving.service import serving
from tests.serving.tone_voice import LETTER, ToneVoice, sentences

pytestmark = pytest.mark.slow

TEXT = "Good day. This is a voice. It plays tones."
SECONDS = LETTER * sum(map(len, sentences(TEXT)))


@pytest.fixture(scope="module")
def let() -> threading.Event:
    """Sentences with "wait" in them wait for it."""
    return threading.Event()


@pytest.fixture(scope="module")
def server(let):
    voice = ToneVoice(("anna", "bert"), gate=lambda sentence: "wait" not in sentence or let.wait(30))
    with serving(voice=voice) as server:
        yield server


@pytest.fixture(scope="module")
def page(server):
    with browsing(server.url) as page:
        page.wait_for_selector("#voice", state="visible")
        yield page


def speak(page, text: str) -> None:
    page.fill("#text", text)
    page.click("#speak")


def test_a_text_is_spoken_played_and_drawn(page):
    assert page.inner_text("#model") == "voice"
    assert page.is_hidden("#transcriber")
    assert "synthesize" in page.inner_text("#card")
    assert page.locator("#speaker option").all_inner_texts() == ["anna", "bert"]
    page.fill("#text", TEXT)
    assert page.inner_text("#characters") == f"{len(TEXT)} of 4096 characters"
    page.click("#speak")
    page.wait_for_selector("#speech-result", state="visible")
    assert page.inner_text("#speech-status").startswith(f"{SECONDS:.1f} s of speech in ")
    assert page.evaluate("document.getElementById('speech').duration") == pytest.approx(SECONDS, abs=0.01)
    assert page.evaluate("playback.end") == pytest.approx(SECONDS, abs=0.5)
    page.wait_for_function(f"() => playback.context.currentTime > {SECONDS}")  # it was played as it arrived
    page.evaluate("document.getElementById('speech').play()")
    page.wait_for_function("() => document.getElementById('speech').currentTime > 0.1")  # and is played again
    assert page.evaluate("document.getElementById('speech-mel').width") == pytest.approx(SECONDS * 200, rel=0.05)
    assert shades(page, "speech-mel") > 30
    assert page.get_attribute("#download", "href").startswith("blob:")


def test_voice_and_speed_are_sent(server, page):
    page.select_option("#speaker", "bert")
    page.fill("#speed", "2")
    with page.expect_request("**/v1/audio/speech") as request:
        speak(page, TEXT)
    assert request.value.post_data_json == {
        "model": "voice", "input": TEXT, "voice": "bert", "speed": 2, "response_format": "wav"
    }  # fmt: skip
    page.wait_for_function(
        f"() => document.getElementById('speech-status').textContent.startsWith('{SECONDS / 2:.1f} s of speech')"
    )
    page.fill("#speed", "1")


def test_the_first_audio_is_reported_while_the_rest_is_spoken_and_it_can_be_stopped(server, page):
    speak(page, "Good day. Please wait.")
    page.wait_for_function("() => document.getElementById('speech-status').textContent.includes('first audio after')")
    page.wait_for_function("() => playback.context.currentTime > 0.1")  # and it is played already
    assert page.is_disabled("#speak")
    page.click("#quiet")
    page.wait_for_function("() => document.getElementById('speech-status').textContent === 'stopped'")
    assert page.is_enabled("#speak")
    assert page.evaluate("playback.context.state") == "closed"


def test_what_cannot_be_spoken_is_named(page, let):
    let.set()
    speak(page, "Good day, 5 times.")
    page.wait_for_selector("#speech-status.error")
    assert "cannot speak '5'" in page.inner_text("#speech-status")
    assert page.is_enabled("#speak")
    page.faults.clear()  # the browser reports the response of 400
