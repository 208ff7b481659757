"""OpenAI's own client on speech: whole, streamed to a file, as events, asynchronously, and its errors."""

import asyncio
import base64
import json
import threading

import numpy as np
import pytest

from data_pipelines.audio import decode
from data_pipelines.audio.wav import to_int16
from jax_speechlm.serving.admission import Limits
from tests.serving.service import Server, serving
from tests.serving.tone_voice import RATE, ToneVoice

openai = pytest.importorskip("openai")

TEXT = "Good day. This is a voice. It plays tones."


@pytest.fixture(scope="module")
def voice() -> ToneVoice:
    return ToneVoice(("anna", "bert"))


@pytest.fixture(scope="module")
def server(voice):
    with serving(voice=voice, limits=Limits(timeout=30)) as server:
        yield server


def client_of(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)


@pytest.mark.parametrize("format", ["mp3", "opus", "aac", "flac", "wav", None])
def test_every_format(server, voice, format):
    options = {} if format is None else {"response_format": format}
    made = client_of(server).audio.speech.create(input=TEXT, model="tts-1", voice="anna", speed=1.25, **options)
    samples = decode.decode(made.content)
    assert len(samples) == pytest.approx(len(voice.whole(TEXT, "anna", 1.25)), abs=0.2 * RATE)
    spectrum = np.abs(np.fft.rfft(samples))
    assert np.argmax(spectrum) * RATE / len(samples) == pytest.approx(600, abs=5)  # of the first voice


def test_a_custom_voice_is_named_by_its_id(server, voice):
    made = client_of(server).audio.speech.create(input=TEXT, model="tts-1", voice={"id": "bert"}, response_format="wav")
    assert made.content[44:] == to_int16(voice.whole(TEXT, "bert")).tobytes()


def test_speech_is_streamed_to_a_file(server, voice, tmp_path):
    speech = client_of(server).audio.speech
    with speech.with_streaming_response.create(
        input=TEXT, model="tts-1", voice="anna", response_format="wav"
    ) as response:
        assert response.headers["content-type"] == "audio/wav"
        response.stream_to_file(tmp_path / "a.wav")
    np.testing.assert_array_equal(decode.decode(tmp_path / "a.wav"), to_int16(voice.whole(TEXT, "anna")))
    raw = speech.with_raw_response.create(input=TEXT, model="tts-1", voice="anna", response_format="wav")
    assert raw.content == (tmp_path / "a.wav").read_bytes()


def test_streamed_bytes_arrive_before_the_whole_is_spoken():
    spoken, heard = [], threading.Event()

    def gate(sentence: str) -> None:
        if spoken:
            assert heard.wait(20)
        spoken.append(sentence)

    with serving(voice=ToneVoice(gate=gate)) as server:
        speech = client_of(server).audio.speech.with_streaming_response
        with speech.create(input=TEXT, model="tts-1", voice="alloy", response_format="pcm") as response:
            parts = response.iter_bytes(1024)
            assert len(next(parts)) == 1024
            assert len(spoken) == 1
            heard.set()
            assert sum(map(len, parts)) > 20_000
        assert len(spoken) == 3


def test_events(server, voice):
    with client_of(server).audio.speech.with_streaming_response.create(
        input=TEXT, model="gpt-4o-mini-tts", voice="anna", response_format="wav", stream_format="sse"
    ) as response:
        events = [json.loads(line.removeprefix("data: ")) for line in response.iter_lines() if line]
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"speech.audio.delta"}
    content = b"".join(base64.b64decode(event["audio"]) for event in deltas)
    assert content[44:] == to_int16(voice.whole(TEXT, "anna")).tobytes()
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["total_tokens"] == done["usage"]["input_tokens"] + done["usage"]["output_tokens"]


def test_the_asynchronous_client(server, voice):
    async def ask() -> bytes:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            options = {"input": TEXT, "model": "tts-1", "response_format": "wav"}
            async with client.audio.speech.with_streaming_response.create(voice="bert", **options) as response:
                return b"".join([part async for part in response.iter_bytes()])

    assert asyncio.run(ask())[44:] == to_int16(voice.whole(TEXT, "bert")).tobytes()


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"voice": "alloy"}, "voice", "voice_not_found"),
        ({"input": "a" * 5000}, "input", "string_above_max_length"),
        ({"input": ""}, "input", "empty_string"),
        ({"input": "Good day. ☃"}, "input", "invalid_input"),
        ({"speed": 5.0}, "speed", "invalid_value"),
        ({"instructions": "Speak slowly."}, "instructions", "unsupported_parameter"),
        ({"extra_body": {"language": "en"}}, "language", "unknown_parameter"),
    ],
)
@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_errors_are_the_clients_own(server, fields, param, code, stream_format):
    request = {"input": TEXT, "model": "tts-1", "voice": "anna", "stream_format": stream_format} | fields
    with pytest.raises(openai.BadRequestError) as refused:
        client_of(server).audio.speech.create(**request)
    assert (refused.value.param, refused.value.code) == (param, code)


def test_models(server):
    client = client_of(server)
    (model,) = client.models.list().data
    assert model.id == "voice"
    assert client.models.retrieve("voice").voices == ["anna", "bert"]
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
