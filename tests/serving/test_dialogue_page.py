"""The page of a dialogue in a real browser, with a microphone that plays a file; skipped where there is no Chromium."""

import numpy as np
import pytest

from tests.serving.browser import browsing
from tests.serving.served_dialogues import letters, said
from tests.serving.service import serving
from tests.serving.tone_voice import ToneVoice
from tests.trained_tones import RATE, speak

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def voice():
    return ToneVoice()


@pytest.fixture(scope="module")
def page(tmp_path_factory, voice):
    """A page that is open, whose microphone says "cba" once."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "said.wav").write_bytes(said("cba", 0.5, 1.5))
    dialogue = letters(folder)
    dialogue.begin().understand(np.concatenate([speak("cba")[0], np.zeros(RATE, np.int16)]))  # compiles
    with (
        serving(voice=voice, dialogue=dialogue) as server,
        browsing(server.url, microphone=folder / "said.wav%noloop") as page,
    ):
        page.goto(f"{server.url}/dialogue")
        page.wait_for_selector("#turns .reply")
        page.server = server
        yield page


def state(page, name: str) -> str:
    return page.locator(f"#state tr:has(th:text-is('{name}')) td").inner_text()


def wait_for_reply(page, text: str) -> None:
    page.wait_for_function(
        "text => [...document.querySelectorAll('#turns .reply')].at(-1).textContent === text", arg=text, timeout=60_000
    )


def test_spoken_turns_spoken_replies_and_silence_that_ends_it(page, voice):
    """Speech is one turn, then nothing is said: the dialogue asks twice, and ends with its reason."""
    assert page.inner_text("#name") == "letters"
    assert (state(page, "node"), state(page, "question")) == ("main", "One. Two.")
    page.click("#microphone")
    wait_for_reply(page, "Other. One. Two.")
    assert page.locator("#turns .user").all_inner_texts() == ["cba"]
    wait_for_reply(page, "Are you there? One. Two.")
    wait_for_reply(page, "Nobody is there.")
    assert state(page, "ended") == "silence"
    page.wait_for_function("() => document.getElementById('microphone').ariaPressed === 'false'")
    assert "has ended (silence)" in page.inner_text("#status")
    assert page.is_disabled("#send")
    assert {"Other", "Are you there? One", "Nobody is there"} <= set(voice.said)


def test_a_typed_turn_interrupts_the_reply(page, voice):
    page.click("#again")
    wait_for_reply(page, "One. Two.")
    ended = voice.ended
    page.fill("#text", "cba")
    page.click("#send")
    page.wait_for_selector("#interrupt", state="visible")
    page.fill("#text", "what else")
    page.press("#text", "Enter")
    wait_for_reply(page, "Sorry, I did not understand. One. Two.")
    page.wait_for_selector("#interrupt", state="visible")
    page.click("#interrupt")
    page.wait_for_selector("#interrupt", state="hidden")
    assert page.locator("#turns .user").all_inner_texts() == ["cba", "what else"]
    assert voice.ended > ended
    page.fill("#text", "abc")
    page.press("#text", "Enter")
    wait_for_reply(page, "Bye.")
    assert state(page, "ended") == "complete"


def test_a_conversation_that_the_service_has_ended_is_said_to_be(page):
    page.click("#again")
    wait_for_reply(page, "One. Two.")
    (key,) = page.server.conversations._open
    page.server.conversations.end(key)
    page.fill("#text", "cba")
    page.press("#text", "Enter")
    page.wait_for_selector("#status.error")
    assert "the conversation has ended (left)" in page.inner_text("#status")
    page.faults.clear()  # the browser reports the response of 410
