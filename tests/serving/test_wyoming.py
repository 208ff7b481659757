"""Home Assistant's protocol by its own package: transcripts, speech, what is offered, and what is refused."""

import asyncio
import json
import socket
import time
from collections.abc import Callable

import numpy as np
import pytest
from wyoming.asr import Transcribe, Transcript, TranscriptChunk
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event, Eventable
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import Synthesize, SynthesizeVoice

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving import wyoming
from jax_speechlm.serving.admission import Limits
from tests.serving.service import RATE, Server, encoded, serving
from tests.serving.tone_voice import ToneVoice
from tests.trained_tones import speak, trained_run

TEXT = "cab ba acb"
FORMAT = {"rate": RATE, "width": 2, "channels": 1}


@pytest.fixture(scope="module")
def server():
    limits = Limits(max_megabytes=1, max_requests=4, max_characters=100)
    with serving(Recognizer.load(trained_run()), limits, voice=ToneVoice(("anna", "bert"))) as server:
        yield server


def exchange(server: Server, *requests: Eventable, until: Callable[[str], bool] = Error.is_type) -> list[Event]:
    """Sends events, and returns those that come back, up to an error or the named one."""

    events = []

    async def talk() -> None:
        async with AsyncTcpClient("127.0.0.1", server.wyoming_port) as client:
            for request in requests:
                await client.write_event(request.event())
            while (event := await asyncio.wait_for(client.read_event(), 30)) is not None:
                events.append(event)
                if until(event.type) or Error.is_type(event.type):
                    break

    asyncio.run(talk())
    return events


def audio(samples: np.ndarray, size: int = 1024, **other) -> list[Eventable]:
    """Events of 16-bit audio."""
    content, format = samples.astype("<i2").tobytes(), FORMAT | other
    chunks = [AudioChunk(audio=content[at : at + size], **format) for at in range(0, len(content), size)]
    return [AudioStart(**format), *chunks, AudioStop()]


def test_what_is_offered(server):
    (event,) = exchange(server, Describe(), until=Info.is_type)
    info = Info.from_event(event)
    assert [(program.models[0].name, program.models[0].languages) for program in info.asr] == [("tones", ["en"])]
    (voice,) = info.tts[0].voices
    assert (voice.name, voice.installed, [speaker.name for speaker in voice.speakers]) == (
        *("voice", True),
        ["anna", "bert"],
    )
    (event,) = exchange(server, Ping("here?"), until=Pong.is_type)
    assert Pong.from_event(event).text == "here?"


def test_transcripts_are_those_of_http(server):
    samples = speak(TEXT)[0]
    expected = server.post(encoded(samples)).json()["text"]
    stereo = np.repeat(samples, 2)
    for events in (audio(samples), audio(samples, 77), audio(stereo, channels=2)):
        answers = exchange(server, Transcribe(language="en"), *events, until=lambda kind: kind == "transcript-stop")
        assert [answers[0].type, answers[-1].type] == ["transcript-start", "transcript-stop"]
        assert Transcript.from_event(answers[-2]).text == expected == TEXT
        assert "".join(TranscriptChunk.from_event(answer).text for answer in answers[1:-2]) == expected


def test_several_commands_in_one_connection(server):
    events = [event for text in ("cab", "ba") for event in audio(speak(text)[0])]
    stops = []
    answers = exchange(
        server, *events, until=lambda kind: kind == "transcript-stop" and (stops.append(1) or len(stops) == 2)
    )
    assert [Transcript.from_event(event).text for event in answers if Transcript.is_type(event.type)] == ["cab", "ba"]


def test_speech_is_that_of_http(server):
    for name, other in ((None, "anna"), ("bert", "bert")):
        expected = server.client.post(
            "/v1/audio/speech", json={"input": "One. Two.", "voice": other, "response_format": "pcm"}
        ).content
        voice = None if name is None else SynthesizeVoice(name="voice", speaker=name)
        answers = exchange(server, Synthesize("One. Two.", voice), until=AudioStop.is_type)
        start = AudioStart.from_event(answers[0])
        assert (start.rate, start.width, start.channels) == (24_000, 2, 1)
        assert b"".join(event.payload for event in answers[1:-1]) == expected


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        ([AudioStop()], "audio-stop before audio-start"),
        ([AudioChunk(**FORMAT, audio=b"00")], "audio-chunk before audio-start"),
        ([AudioStart(**FORMAT | {"rate": 0})], "rate must be an integer from 4000 to 192000; got 0"),
        ([AudioStart(**FORMAT | {"width": "2"})], "width must be"),
        ([AudioStart(**FORMAT), AudioChunk(**FORMAT | {"rate": 8_000}, audio=b"00")], "goes on with (8000, 2, 1)"),
        (audio(np.zeros(600_000, np.int16), 2**18), "larger than 1 MiB"),
        ([Transcribe(name="other")], "the only model here is tones"),
        ([Synthesize("One.", SynthesizeVoice(name="other"))], "the only model here is voice"),
        ([Synthesize("One.", SynthesizeVoice(name="voice", speaker="carl"))], "voice 'carl' is unknown"),
        ([Synthesize("7")], "cannot speak '7'"),
        ([Synthesize(" ")], "input is empty"),
        ([Synthesize("a" * 101)], "the limit is 100"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_errors_name_what_is_wrong(server, requests, message):
    answers = exchange(server, *requests)
    assert Error.is_type(answers[-1].type)
    assert message in Error.from_event(answers[-1]).text
    assert exchange(server, Describe(), until=Info.is_type)


@pytest.mark.parametrize(
    "content",
    [
        b"x" * 2**21,
        b"{}\n",
        b"[1]\n",
        b'{"type": "audio-start"}\n',
        b'{"type": 3}\n',
        b'{"type": "ping", "data": 5}\n',
        b'{"type": "audio-chunk", "payload_length": 99999999999}\n',
        b'{"type": "audio-chunk", "data_length": -1}\n',
        b'{"type": "ping", "data_length": 4}\nabcd',
        b'{"type": "synthesize", "data": {"text": 5}}\n',
        b"[" * 100_000 + b"\n",
    ],
    ids=lambda content: content[:40].decode(),
)
def test_what_is_not_the_protocol_is_refused(server, content):
    with socket.create_connection(("127.0.0.1", server.wyoming_port), 10) as client:
        client.sendall(content)
        answer = b""
        while part := client.recv(65_536):
            answer += part
    assert json.loads(answer.splitlines()[0])["type"] == "error"
    assert exchange(server, Describe(), until=Info.is_type)


def test_clients_are_bounded_and_silent_ones_are_left(server, monkeypatch):
    monkeypatch.setattr(wyoming, "_IDLE_SECONDS", 1.0)
    clients = [socket.create_connection(("127.0.0.1", server.wyoming_port), 10) for _ in range(4)]
    try:
        (event,) = exchange(server, Describe())
        assert "4 clients are connected" in Error.from_event(event).text
        assert [client.recv(1) for client in clients] == [b""] * 4  # closed, as they say nothing
    finally:
        for client in clients:
            client.close()
    assert exchange(server, Describe(), until=Info.is_type)


def test_a_client_that_leaves_ends_its_request(server):
    with socket.create_connection(("127.0.0.1", server.wyoming_port), 10) as client:
        data = json.dumps({"text": "One. " * 19})
        client.sendall(b'{"type": "synthesize", "data": ' + data.encode() + b"}\n")
        client.recv(100)
    for _ in range(100):
        if not server.requests.in_flight:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert not server.requests.in_flight


def test_refused_clients_that_do_not_leave_make_room(server, monkeypatch):
    monkeypatch.setattr(wyoming, "_REFUSED_SECONDS", 0.1)
    clients = [socket.create_connection(("127.0.0.1", server.wyoming_port), 10) for _ in range(4)]
    try:
        for client in clients:
            client.sendall(b"{}\n")
            while client.recv(65_536):
                pass
        for _ in range(100):
            if Info.is_type(exchange(server, Describe(), until=Info.is_type)[-1].type):
                return
            time.sleep(0.1)
        pytest.fail("the clients that were refused still take places")
    finally:
        for client in clients:
            client.close()
