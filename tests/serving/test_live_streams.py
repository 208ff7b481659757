"""Live streams by real clients: OpenAI's own over Realtime, and Vosk's protocol over plain WebSockets."""

import base64
import concurrent.futures
import io
import json
import time

import httpx
import numpy as np
import pytest
import soundfile
import soxr
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

import jax_speechlm
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.hypothesis import Endpointing
from jax_speechlm.serving.admission import Limits
from jax_speechlm.serving.live import StreamLimits
from tests.serving.service import RATE, Server, serving
from tests.trained_tones import QUIET, STREAMING, speak, trained_run

openai = pytest.importorskip("openai")

LIMITS = StreamLimits(max_streams=3, stream_minutes=0.5, silent_seconds=20)
TEXTS = ["cab ba acb", "ba cab", "acb ca bac ab"]
PAUSE = (QUIET * np.random.default_rng(0).normal(size=RATE)).astype(np.int16)


@pytest.fixture(scope="module")
def server():
    with serving(Recognizer.load(trained_run(STREAMING)), streams=LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def model():
    return jax_speechlm.load(trained_run(STREAMING))


def spoken(*texts: str) -> np.ndarray:
    """Samples of texts with a second of silence after each."""
    return np.concatenate([part for text in texts for part in (speak(text)[0], PAUSE)])


def vosk(server: Server, samples: bytes, size: int = 3_201, config: dict | None = None) -> list[dict]:
    """The answers to samples sent in messages of `size` bytes."""
    with connect(server.url.replace("http", "ws"), compression=None) as socket:
        answers = []
        if config is not None:
            socket.send(json.dumps({"config": config}))
        for at in range(0, len(samples), size):
            socket.send(samples[at : at + size])
            answers.append(json.loads(socket.recv(30)))
        socket.send('{"eof" : 1}')
        answers.append(json.loads(socket.recv(30)))
        with pytest.raises(ConnectionClosed):
            socket.recv(30)
        return answers


def texts_of(answers: list[dict]) -> list[str]:
    return [answer["text"] for answer in answers if answer.get("text")]


def transcript_at(model, samples: np.ndarray, rate: int) -> str:
    """The run's own transcript of samples at another rate: with half of the band missing it may be wrong."""
    stream = model.stream()
    resampled = soxr.ResampleStream(rate, RATE, 1).resample_chunk(np.float32(samples) / 32_768, last=True)
    stream.accept(np.clip(resampled, -1, 1))
    return stream.finalize().text


@pytest.mark.parametrize("size", [1_001, 8_000, 200_000])
def test_vosk_has_the_segments_of_the_run(server, model, size):
    samples = spoken(*TEXTS[:2])
    stream = model.stream(endpointing=Endpointing(silence_seconds=0.5))
    stream.accept(samples)
    expected = stream.finalize().segments
    answers = vosk(server, samples.tobytes(), size, {"sample_rate": RATE, "words": True})
    assert " ".join(texts_of(answers)) == " ".join(TEXTS[:2]) == " ".join(segment.text for segment in expected)
    found = [word for answer in answers for word in answer.get("result", ())]
    words = [word for segment in expected for word in segment.words]
    assert [(word["word"], word["start"], word["end"]) for word in found] == [
        (word.word, pytest.approx(word.start), pytest.approx(word.end)) for word in words
    ]
    if size < 200_000:
        assert any(answer.get("partial") for answer in answers)
        assert len(texts_of(answers)) == 2


def test_other_rates_are_resampled(server, model):
    samples = soxr.resample(spoken(TEXTS[0]), RATE, 8_000)
    answers = vosk(server, samples.tobytes(), config={"sample_rate": 8_000})
    assert " ".join(texts_of(answers)) == transcript_at(model, samples, 8_000)


def test_streams_do_not_affect_each_other(server):
    """Three at a time, in messages of other sizes, twice as many connections as have room wait for their turn."""

    def ask(job: int) -> list[str]:
        text = TEXTS[job % 3]
        while True:
            answers = vosk_or_full(server, spoken(text).tobytes(), 900 + 1_700 * job)
            if answers is not None:
                return texts_of(answers)
            time.sleep(0.05)

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        found = list(pool.map(ask, range(6)))
    assert found == [[TEXTS[job % 3]] for job in range(6)]
    counters = httpx.get(f"{server.url}/health").json()["streams"]
    assert counters["connections"] == 0
    assert 0 < counters["steps"] < counters["pieces"]  # several in one step


def vosk_or_full(server: Server, samples: bytes, size: int) -> list[dict] | None:
    with connect(server.url.replace("http", "ws"), compression=None) as socket:
        answers = []
        for at in range(0, len(samples), size):
            socket.send(samples[at : at + size])
            answers.append(json.loads(socket.recv(30)))
            if "error" in answers[-1]:
                assert answers[-1]["error"]["code"] == "queue_full"
                with pytest.raises(ConnectionClosed, match="1013"):
                    socket.recv(30)
                return None
        socket.send('{"eof" : 1}')
        return [*answers, json.loads(socket.recv(30))]


@pytest.mark.parametrize(
    ("messages", "error"),
    [
        (["junk"], "a text message is"),
        (['{"other": 1}'], "a text message is"),
        (['{"config": {"sample_rate": 1}}'], "sample_rate must be an integer from 4000 to 192000; got 1"),
        (['{"config": {"sample_rate": "fast"}}'], "got fast"),
        (['{"config": {"grammar": 1}}'], "config has the fields sample_rate, "),
        ([b"\0" * 100, '{"config": {"sample_rate": 8000}}'], "config after audio"),
        ([b"\0" * 101, '{"eof": 1}'], "half of a sample"),
        ([b"\0" * (2 * 31 * RATE)], "longer than 0.5 minutes"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value,
)
def test_vosk_errors_name_what_is_wrong(server, messages, error):
    with connect(server.url.replace("http", "ws"), compression=None) as socket:
        for message in messages:
            socket.send(message)
        answers = [json.loads(socket.recv(30))]
        with pytest.raises(ConnectionClosed, match="1008"):
            answers.extend(json.loads(socket.recv(30)) for _ in messages)
        assert error in answers[-1]["error"]["message"]
    assert httpx.get(f"{server.url}/health").json()["streams"]["connections"] == 0
    assert texts_of(vosk(server, spoken("cab").tobytes())) == ["cab"]


def test_pages_of_other_sites_and_other_runs_are_refused(server):
    address = server.url.replace("http", "ws")
    with pytest.raises(InvalidStatus, match="403"):
        connect(address, origin="https://evil.example")
    with connect(address, origin=server.url) as socket:
        socket.send('{"eof": 1}')
        assert json.loads(socket.recv(30)) == {"text": ""}
    with serving(Recognizer.load(trained_run())) as other, pytest.raises(InvalidStatus, match=r"403|404"):
        connect(other.url.replace("http", "ws"))


def realtime(server: Server):
    client = openai.OpenAI(
        base_url=f"{server.url}/v1", websocket_base_url=f"{server.url.replace('http', 'ws')}/v1", api_key="none"
    )
    return client.realtime.connect(model="any", extra_query={"intent": "transcription"})


def session(turn_detection: dict | None = None, **audio) -> dict:
    format = {"type": "audio/pcm", "rate": 24_000}
    return {"type": "transcription", "audio": {"input": {"format": format, "turn_detection": turn_detection} | audio}}


def append(connection, content: bytes, size: int = 9_999) -> None:
    for at in range(0, len(content), size):
        connection.input_audio_buffer.append(audio=base64.b64encode(content[at : at + size]).decode())


def until(connection, kind: str) -> list:
    events = []
    for event in connection:
        events.append(event)
        if event.type in (kind, "error"):
            return events
    raise AssertionError(f"the connection ended before {kind}: {[event.type for event in events]}")


def pcm(samples: np.ndarray, rate: int = 24_000) -> bytes:
    return soxr.resample(samples, RATE, rate).astype("<i2").tobytes()


COMPLETED = "conversation.item.input_audio_transcription.completed"
DELTA = "conversation.item.input_audio_transcription.delta"


def test_openais_client_commits_items(server):
    with realtime(server) as connection:
        created = until(connection, "session.created")[0]
        assert created.session.type == "transcription"
        assert created.session.audio.input.turn_detection.type == "server_vad"
        connection.session.update(session=session())
        updated = until(connection, "session.updated")[0]
        assert updated.session.audio.input.turn_detection is None
        previous = None
        for text in TEXTS[:2]:
            append(connection, pcm(spoken(text)))
            connection.input_audio_buffer.commit()
            events = until(connection, COMPLETED)
            done = events[-1]
            assert done.transcript == text
            assert done.usage.seconds == pytest.approx(len(spoken(text)) / RATE, abs=0.2)
            deltas = [event for event in events if event.type == DELTA]
            assert "".join(event.delta for event in deltas) == text
            assert len(deltas) > 1
            committed = next(event for event in events if event.type == "input_audio_buffer.committed")
            assert (committed.item_id, committed.previous_item_id) == (done.item_id, previous)
            assert {event.item_id for event in deltas} == {done.item_id}
            previous = done.item_id


def test_openais_client_gets_items_at_pauses(server):
    samples = spoken(*TEXTS[:2])
    with realtime(server) as connection:
        until(connection, "session.created")
        connection.session.update(session=session({"type": "server_vad", "silence_duration_ms": 400}))
        until(connection, "session.updated")
        append(connection, pcm(samples))
        for number, text in enumerate(TEXTS[:2]):
            events = until(connection, COMPLETED)
            kinds = [event.type for event in events]
            assert events[-1].transcript == text
            started, stopped = (
                next(event for event in events if event.type == f"input_audio_buffer.speech_{what}")
                for what in ("started", "stopped")
            )
            assert kinds.index(started.type) < kinds.index(stopped.type)
            seconds = (stopped.audio_end_ms - started.audio_start_ms) / 1000
            assert seconds == pytest.approx(len(speak(text)[0]) / RATE - 0.4, abs=0.25)
            assert (started.audio_start_ms > 1_000 * len(spoken(TEXTS[0])) / RATE) == bool(number)
        append(connection, pcm(PAUSE))
        connection.input_audio_buffer.commit()  # nothing more was said
        assert until(connection, COMPLETED)[-1].transcript == ""


@pytest.mark.parametrize(("kind", "subtype"), [("audio/pcmu", "ULAW"), ("audio/pcma", "ALAW")])
def test_telephone_audio(server, model, kind, subtype):
    content, raw = io.BytesIO(), {"format": "RAW", "subtype": subtype, "samplerate": 8_000}
    soundfile.write(content, soxr.resample(spoken("cab ba"), RATE, 8_000), **raw)
    samples = soundfile.read(io.BytesIO(content.getvalue()), dtype="int16", channels=1, **raw)[0]
    with realtime(server) as connection:
        connection.session.update(session=session(format={"type": kind}))
        append(connection, content.getvalue())
        connection.input_audio_buffer.commit()
        assert until(connection, COMPLETED)[-1].transcript == transcript_at(model, samples, 8_000) != ""


def test_errors_are_events_and_the_session_goes_on(server):
    with realtime(server) as connection:
        until(connection, "session.created")
        for event, message in [
            ({"type": "response.create"}, "there are the events"),
            ({"type": "input_audio_buffer.append", "audio": "??"}, "base64"),
            ({"type": "input_audio_buffer.commit"}, "nothing was appended"),
            ({"type": "session.update", "session": {"type": "realtime"}}, "type transcription"),
            ({"type": "session.update", "session": session({"type": "semantic_vad"})}, "server_vad, or null"),
            ({"type": "session.update", "session": session(format={"type": "audio/pcm", "rate": 1})}, "from 8000"),
            ({"type": "session.update", "session": session(noise_reduction={"type": "near_field"})}, "send null"),
        ]:
            connection.send(event | {"event_id": "mine"})
            error = until(connection, "error")[-1].error
            assert message in error.message
            assert (error.type, error.event_id) == ("invalid_request_error", "mine")
        connection.session.update(session=session())
        append(connection, pcm(spoken("cab")))
        connection.session.update(session=session(format={"type": "audio/pcmu"}))
        assert "cannot change" in until(connection, "error")[-1].error.message
        connection.input_audio_buffer.clear()
        until(connection, "input_audio_buffer.cleared")
        append(connection, pcm(spoken("ba")))
        connection.input_audio_buffer.commit()
        assert until(connection, COMPLETED)[-1].transcript == "ba"


def test_silent_clients_are_disconnected_with_a_reason():
    limits = StreamLimits(max_streams=1, silent_seconds=0.5)
    recognizer = Recognizer.load(trained_run(STREAMING))
    with serving(recognizer, Limits(), streams=limits) as server:
        with connect(server.url.replace("http", "ws")) as socket:
            assert json.loads(socket.recv(30))["error"]["code"] == "silent"
            with pytest.raises(ConnectionClosed, match=r"nothing was sent for 0\.5 s"):
                socket.recv(30)
        assert httpx.get(f"{server.url}/health").json()["streams"]["connections"] == 0
