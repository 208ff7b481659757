"""Conversations over HTTP: their state, many at once, speech, silence, limits, and turns that are none."""

import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from jax_speechlm.apps.dialogue.script import Script
from jax_speechlm.apps.dialogue.serve import ServedDialogue
from jax_speechlm.apps.dialogue.trial import load_conversations
from jax_speechlm.cli import main
from jax_speechlm.serving.admission import Limits
from jax_speechlm.serving.settings import ConversationLimits
from tests.serving.served_dialogues import letters, said
from tests.serving.service import Server, encoded, serving

ROUTE = "/v1/conversations"
AT_ONCE = 50


@pytest.fixture(scope="module")
def coffee():
    with serving(limits=Limits(max_requests=2 * AT_ONCE), dialogue=ServedDialogue(Script.load("coffee"))) as server:
        yield server


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    with serving(limits=Limits(max_megabytes=1), dialogue=letters(tmp_path_factory.mktemp("letters"))) as server:
        yield server


def begin(server: Server) -> dict:
    response = server.client.post(ROUTE)
    assert response.status_code == 201, response.text
    return response.json()


def turn(server: Server, key: str, text: str | bytes) -> httpx.Response:
    if isinstance(text, bytes):
        return server.client.post(f"{ROUTE}/{key}", files={"file": ("turn.wav", text)})
    return server.client.post(f"{ROUTE}/{key}", json={"text": text})


def test_a_typed_conversation_to_its_end(coffee):
    begun = begin(coffee)
    assert begun["say"] == "Hello. What would you like to drink?"
    assert (begun["dialogue"], begun["microphone"], begun["timeout"]) == ("coffee", None, 8)
    answers = [turn(coffee, begun["id"], text).json() for text in ("a latte", "{{ 7 * 7 }}", "", "large", "yes", "no")]
    assert [answer["understood"] for answer in answers] == [True, False, False, True, True, True]
    assert answers[1]["say"].startswith("Sorry, I did not understand.")
    assert answers[2]["say"].startswith("Are you still there?")
    assert answers[3]["state"]["slots"] == {"coffeeDrink": "latte", "size": "large"}
    assert answers[-1]["ended"] == "complete"
    assert answers[-1]["state"]["done"][0]["slots"] == {"coffeeDrink": "latte", "size": "large"}
    response = turn(coffee, begun["id"], "yes")
    assert response.status_code == 410
    assert "has ended (complete)" in response.json()["error"]["message"]


def test_the_page_loads_nothing_from_elsewhere(coffee):
    for path in ("/dialogue", "/dialogue.js"):
        response = coffee.client.get(path)
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in response.text
    assert "/v1/conversations/{key}" in coffee.client.get("/openapi.json").json()["paths"]


def test_fifty_conversations_at_once_are_apart(coffee):
    """All are open before the first turn, and take their turns at the same time."""
    scripted = [each for each in load_conversations("coffee_conversations")[0] if each.done]
    keys = [begin(coffee)["id"] for _ in range(AT_ONCE)]
    full = coffee.client.post(ROUTE)
    assert (full.status_code, full.headers["Retry-After"]) == (503, "10")

    def hold(number: int) -> None:
        conversation = scripted[number % len(scripted)]
        with httpx.Client(base_url=coffee.url, timeout=120) as client:
            for said_ in conversation.turns:
                answer = client.post(f"{ROUTE}/{keys[number]}", json={"text": said_.user}).json()
                assert said_.says is None or said_.says in answer["say"]
                assert said_.slots.items() <= answer["state"]["slots"].items()
        assert [each["slots"] for each in answer["state"]["done"]] == list(conversation.done)
        assert answer["ended"] == "complete"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(hold, range(AT_ONCE)))
    assert coffee.client.get("/health").json()["conversations"]["open"] == 0


def test_turns_of_one_conversation_come_one_after_the_other(coffee):
    key = begin(coffee)["id"]
    with ThreadPoolExecutor(4) as pool:
        answers = [each.json() for each in pool.map(lambda _: turn(coffee, key, "something else"), range(4))]
    assert sorted(answer["state"]["misunderstood"] for answer in answers) == [1, 2, 3, 4]
    assert {answer["ended"] for answer in answers} == {"", "misunderstood"}


def test_a_conversation_without_turns_ends_with_a_reason_and_makes_room():
    limits = ConversationLimits(max_conversations=1, idle_seconds=0.5)
    with serving(dialogue=ServedDialogue(Script.load("voicemail")), conversations=limits) as server:
        key = begin(server)["id"]
        assert server.client.post(ROUTE).status_code == 503
        time.sleep(0.6)
        error = turn(server, key, "listen").json()["error"]
        assert (error["code"], "no turn for 0.5 s" in error["message"]) == ("conversation_ended", True)
        other = begin(server)["id"]
        assert server.client.delete(f"{ROUTE}/{other}").status_code == 204
        assert "(left)" in turn(server, other, "listen").json()["error"]["message"]
        begin(server)


def test_spoken_turns_are_held_to_what_is_expected(spoken):
    begun = begin(spoken)
    assert begun["microphone"]["rate"] == 16_000
    answer = turn(spoken, begun["id"], said("cba")).json()
    assert (answer["heard"], answer["say"]) == ("cba", "Other. One. Two.")
    assert turn(spoken, begun["id"], said("abc ab")).json()["ended"] == "complete"


def test_silence_ends_a_conversation_with_a_reason(spoken):
    key = begin(spoken)["id"]
    silence = encoded(np.zeros(16_000, np.int16))
    assert turn(spoken, key, silence).json()["say"] == "Are you there? One. Two."
    answer = turn(spoken, key, silence).json()
    assert (answer["say"], answer["ended"], answer["heard"]) == ("Nobody is there.", "silence", "")


@pytest.mark.parametrize(
    ("request_", "status", "message"),
    [
        ({"files": {"file": ("a.wav", b"nothing to hear" * 50)}}, 400, "cannot be decoded as audio"),
        ({"files": {"file": ("a.wav", b"")}}, 400, "the file is empty"),
        ({"files": {"file": ("a.wav", encoded(np.full(16_000 * 31, 999, np.int16)))}}, 400, "longer than a command"),
        ({"files": {"file": ("a.wav", bytes(2**21))}}, 413, "the file is too large"),
        ({"data": {"text": "cba"}}, 400, "send application/json"),
        ({"files": {"other": ("a.wav", b"x")}}, 400, "no file in the field `file`"),
        ({"json": {"text": 5}}, 400, "a turn is"),
        ({"json": {}}, 400, "a turn is"),
        ({"json": {"text": "a" * 501}}, 400, "the limit is 500"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "not JSON"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_turn_changes_nothing(spoken, request_, status, message):
    key = begin(spoken)["id"]
    before = turn(spoken, key, "cba").json()["state"]
    response = spoken.client.post(f"{ROUTE}/{key}", **request_)
    assert (response.status_code, message in response.json()["error"]["message"]) == (status, True), response.text
    after = turn(spoken, key, "acb acb").json()
    assert after["state"] == before
    spoken.client.delete(f"{ROUTE}/{key}")


def test_speech_without_a_recognizer_and_unknown_conversations(coffee):
    key = begin(coffee)["id"]
    assert "turns are typed here" in turn(coffee, key, said("abc")).json()["error"]["message"]
    assert turn(coffee, "../models", "a latte").status_code in (404, 405)
    assert turn(coffee, "0", "a latte").json()["error"]["code"] == "not_found"
    assert "no run is served" in coffee.client.post("/v1/audio/speech", json={}).json()["error"]["message"]


def test_the_command_serves_with_its_settings(monkeypatch, capsys):
    served = []
    monkeypatch.setattr("jax_speechlm.apps.dialogue.serve.run_services", lambda *each: served.append(each))
    assert main(["chat", "coffee", "--serve", "--port", "0", "--max-conversations", "3"]) == 0
    (((service,), requests, address, languages),) = served
    assert (service.name, requests.limits.max_requests, address.port, languages) == ("dialogue coffee", 6, 0, ("en",))
    assert main(["chat", "coffee", "--serve", "--microphone"]) != 0
    assert "leave out --microphone" in capsys.readouterr().err
