"""A dialogue over Home Assistant's protocol, by its own package."""

import pytest
from wyoming.asr import Transcript
from wyoming.audio import AudioChunk, AudioStop
from wyoming.error import Error
from wyoming.event import Event
from wyoming.handle import Handled, NotHandled
from wyoming.info import Describe, Info
from wyoming.tts import Synthesize

from jax_speechlm.serving.admission import Limits
from jax_speechlm.serving.settings import ConversationLimits
from tests.serving.served_dialogues import letters
from tests.serving.service import Server, serving
from tests.serving.test_wyoming import audio, exchange
from tests.serving.tone_voice import ToneVoice
from tests.trained_tones import speak


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    dialogue = letters(tmp_path_factory.mktemp("letters"))
    limits, transcriber = ConversationLimits(max_conversations=4), dialogue.recognizer.transcriber
    with serving(transcriber, Limits(), voice=ToneVoice(), dialogue=dialogue, conversations=limits) as server:
        yield server


def turn(server: Server, text: str, name: str | None = None) -> Event:
    context = None if name is None else {"conversation_id": name}
    return exchange(server, Transcript(text, context), until=lambda kind: True)[0]


def test_a_dialogue_is_offered(server):
    (event,) = exchange(server, Describe(), until=Info.is_type)
    (model,) = Info.from_event(event).handle[0].models
    assert (model.name, model.languages, model.installed) == ("letters", ["en"], True)


def test_conversations_go_on_over_connections_and_are_apart(server):
    """Each turn comes on a connection of its own, as from Home Assistant."""
    assert Handled.from_event(turn(server, "cba", "first")).text == "Other. One. Two."
    refused = turn(server, "nothing of the kind", "second")
    assert NotHandled.from_event(refused).text == "Sorry, I did not understand. One. Two."
    assert NotHandled.is_type(refused.type)
    last = Handled.from_event(turn(server, "abc", "first"))
    assert (last.text, last.context["ended"], last.context["node"]) == ("Bye.", "complete", "end")
    again = Handled.from_event(turn(server, "cba", "first"))
    assert again.text == "Other. One. Two."
    assert NotHandled.from_event(turn(server, "nothing", "second")).context["misunderstood"] == 2


def test_silence_begins_with_the_prompt_and_ends_with_a_reason(server):
    assert Handled.from_event(turn(server, "", "third")).text == "One. Two."
    assert NotHandled.from_event(turn(server, " ", "third")).text == "Are you there? One. Two."
    assert NotHandled.from_event(turn(server, "", "third")).context["ended"] == "silence"


def test_a_connection_is_a_conversation_if_none_is_named(server):
    turns = []
    events = exchange(
        server, Transcript("cba"), Transcript("abc"), until=lambda kind: turns.append(kind) or len(turns) == 2
    )
    assert [Handled.from_event(event).text for event in events] == ["Other. One. Two.", "Bye."]


def test_speech_in_and_speech_out(server):
    """The steps of a voice pipeline: a transcript, the reply to it, and its speech."""
    stop = "transcript-stop"
    heard = exchange(server, *audio(speak("cba")[0]), until=stop.__eq__)
    text = next(Transcript.from_event(event).text for event in heard if Transcript.is_type(event.type))
    reply = Handled.from_event(turn(server, text, "spoken")).text
    assert (text, reply) == ("cba", "Other. One. Two.")
    speech = exchange(server, Synthesize(reply), until=AudioStop.is_type)
    assert sum(len(event.payload) for event in speech if AudioChunk.is_type(event.type)) > 10_000
    assert server.voice.voice.said[-3:] == ["Other", "One", "Two"]


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Transcript("a" * 501), "the limit is 500"),
        (Event("transcript", {"text": 5}), "a turn is"),
        (Event("transcript", {}), "transcript lacks a field"),
        (Event("transcript", {"text": "cba", "context": 5}), "context must be an object"),
        (Event("transcript", {"text": "cba", "context": {"conversation_id": "a" * 201}}), "conversation_id must be"),
        (Event("transcript", {"text": "cba", "context": {"conversation_id": 5}}), "conversation_id must be"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_what_is_wrong(server, event, message):
    class Raw:
        def event(self) -> Event:
            return event if isinstance(event, Event) else event.event()

    answers = exchange(server, Raw(), until=lambda kind: True)
    assert message in Error.from_event(answers[-1]).text


def test_conversations_are_bounded(server):
    for key in list(server.conversations._open):
        server.conversations.end(key)
    for number in range(4):
        assert Handled.is_type(turn(server, "", f"open {number}").type)
    assert "4 conversations are open" in Error.from_event(turn(server, "cba", "open 4")).text
    assert Handled.is_type(turn(server, "cba", "open 0").type)


def test_a_server_without_a_dialogue_says_so():
    with serving(voice=ToneVoice()) as other:
        assert "no dialogue is served here" in Error.from_event(turn(other, "cba")).text
