"""Speech over HTTP: what it contains, when it arrives, and what is refused."""

import base64
import concurrent.futures
import contextlib
import json
import threading
import time

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines.audio import decode
from data_pipelines.audio.wav import to_int16
from jax_speechlm.serving.admission import Limits
from tests.serving.service import Server, serving
from tests.serving.tone_voice import RATE, ToneVoice

ROUTE = "/v1/audio/speech"
TEXT = "Good day. This is a voice. It plays tones."
LIMITS = Limits(max_requests=8, timeout=30)


@pytest.fixture(scope="module")
def voice() -> ToneVoice:
    return ToneVoice()


@pytest.fixture(scope="module")
def server(voice):
    with serving(voice=voice, limits=LIMITS) as server:
        yield server


def post(server: Server, text: str = TEXT, **fields) -> httpx.Response:
    return server.client.post(ROUTE, json={"model": "tts-1", "input": text, "response_format": "wav"} | fields)


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if response.status_code < 500 else "server_error")
    return error


def spoken(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    return np.frombuffer(response.content[44:], "<i2")


def idle(server: Server) -> None:
    """Waits until no request is in progress."""
    deadline = time.monotonic() + 20
    while server.client.get("/health").json()["requests"]:
        assert time.monotonic() < deadline, "a request is still in progress"
        time.sleep(0.02)


class Gate:
    """Holds a voice back before each sentence until `open` has been called for it."""

    def __init__(self):
        self.reached, self._let = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, sentence: str) -> None:
        self.reached.release()
        assert self._let.acquire(timeout=30)

    def open(self, times: int = 1) -> None:
        self._let.release(times)


def test_speech_is_what_the_voice_makes_of_the_text(server, voice):
    response = post(server, voice="alloy")
    assert response.headers["content-type"] == "audio/wav"
    assert response.headers["cache-control"] == "no-store"
    np.testing.assert_array_equal(spoken(response), to_int16(voice.whole(TEXT)))
    np.testing.assert_array_equal(spoken(post(server, speed=2)), to_int16(voice.whole(TEXT, speed=2)))
    assert post(server, response_format=None).headers["content-type"] == "audio/mpeg"  # OpenAI's default
    health = server.client.get("/health").json()
    assert health["requests"] == 0
    assert health["spoken"]["parts"] == len(voice.said)
    assert len(voice.threads) == 1  # the one that owns the model


@pytest.mark.parametrize(
    ("format", "media_type"),
    [("mp3", "audio/mpeg"), ("opus", "audio/ogg"), ("aac", "audio/aac"), ("flac", "audio/flac"), ("wav", "audio/wav")],
)
def test_every_format_is_an_audio_file(server, voice, format, media_type):
    response = post(server, response_format=format)
    assert response.headers["content-type"] == media_type
    assert len(decode.decode(response.content)) == pytest.approx(len(voice.whole(TEXT)), abs=0.2 * RATE)


def test_headerless_samples_are_at_24_khz(server, voice):
    response = post(server, response_format="pcm")
    assert response.headers["content-type"] == "audio/pcm"
    assert len(response.content) / 2 / 24_000 == pytest.approx(len(voice.whole(TEXT)) / RATE, abs=0.001)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": ""}, "empty_string", "input"),
        ({"input": " \n\t"}, "empty_string", "input"),
        ({"input": ["a"]}, "invalid_value", "input"),
        ({"input": "a" * 4097}, "string_above_max_length", "input"),
        ({"input": "a" * 100_000}, "string_above_max_length", "input"),
        ({"input": "Good day. 😀"}, "invalid_input", "input"),
        ({"input": "Good day. Ж"}, "invalid_input", "input"),
        ({"input": "..."}, "invalid_input", "input"),
        ({"voice": "nobody"}, "voice_not_found", "voice"),
        ({"voice": {"id": "voice_1234"}}, "voice_not_found", "voice"),
        ({"voice": 3}, "invalid_value", "voice"),
        ({"voice": {"id": ["alloy"]}}, "invalid_value", "voice"),
        ({"model": 3}, "invalid_value", "model"),
        ({"speed": 0.2}, "invalid_value", "speed"),
        ({"speed": 4.5}, "invalid_value", "speed"),
        ({"speed": "1"}, "invalid_value", "speed"),
        ({"speed": True}, "invalid_value", "speed"),
        ({"speed": 10**400}, "invalid_value", "speed"),
        ({"response_format": "m4a"}, "invalid_value", "response_format"),
        ({"response_format": {}}, "invalid_value", "response_format"),
        ({"stream_format": "chunks"}, "invalid_value", "stream_format"),
        ({"instructions": "cheerful"}, "unsupported_parameter", "instructions"),
        ({"langauge": "en"}, "unknown_parameter", "langauge"),
    ],
)
def test_bad_requests_are_refused_with_the_field_and_the_remedy(server, fields, code, param):
    response = post(server, **fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert 10 < len(error["message"]) < 500
    assert server.client.get("/health").json()["requests"] == 0


def test_what_an_error_says(server):
    assert "4096" in error_of(post(server, "a" * 100_000))["message"]
    assert "--max-characters" in error_of(post(server, "a" * 100_000))["message"]
    assert "'Ж'" in error_of(post(server, "Good day. Ж"))["message"]
    assert "default" in error_of(post(server, voice="nobody"))["message"]
    assert "0.25 to 4" in error_of(post(server, speed=9))["message"]


def test_other_bodies_are_refused(server):
    for content, kind, status, code in (
        (b"{", "application/json", 400, "invalid_json"),
        (b"[]", "application/json", 400, "invalid_json"),
        (b"\xff", "application/json", 400, "invalid_json"),
        (b"[" * 50_000, "application/json", 400, "invalid_json"),
        (b'{"input": "a", "speed": NaN}', "application/json", 400, "invalid_value"),
        (b'{"input": "\\ud83d"}', "application/json", 400, "invalid_value"),
        (b'{"input": "a"}', "text/plain", 400, "invalid_content_type"),
        (json.dumps({"input": "a" * 200_000}).encode(), "application/json", 413, "request_too_large"),
    ):
        response = server.client.post(ROUTE, content=content, headers={"content-type": kind})
        assert (response.status_code, error_of(response)["code"]) == (status, code), content[:40]
    assert "4096 characters" in error_of(response)["message"]
    form = server.client.post(ROUTE, data={"input": "a"})
    assert error_of(form)["code"] == "invalid_content_type"


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["input", "voice", "speed", "response_format", "stream_format", "instructions", "x"]),
        st.none()
        | st.text(max_size=12)
        | st.floats()
        | st.integers()
        | st.booleans()
        | st.lists(st.integers(), max_size=2)
        | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)
        | st.sampled_from(["wav", "alloy", "sse", "Good day."]),
        max_size=5,
    )
)
def test_no_request_breaks_the_service(server, fields):
    response = server.client.post(
        ROUTE, content=json.dumps(fields), headers={"content-type": "application/json; charset=utf-8"}
    )
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error_of(response)


def test_voices_are_speakers_by_name():
    voice = ToneVoice(("anna", "bert", "echo"))
    with serving(voice=voice) as server:
        for name in ("anna", {"id": "bert"}, "echo"):  # the last is also a name of OpenAI's
            speaker = name["id"] if isinstance(name, dict) else name
            np.testing.assert_array_equal(spoken(post(server, voice=name)), to_int16(voice.whole(TEXT, speaker)))
        for name in ("alloy", "default", "Anna"):
            error = error_of(post(server, voice=name))
            assert (error["param"], error["code"]) == ("voice", "voice_not_found")
            assert "anna, bert, echo" in error["message"]
        assert "anna, bert, echo" in error_of(post(server))["message"]
        model = server.client.get("/v1/models/voice").json()
        assert (model["task"], model["voices"]) == ("synthesize", ["anna", "bert", "echo"])
    with serving(voice=ToneVoice(("anna",))) as server:
        assert [post(server, voice=name).status_code for name in ("anna", "alloy", None, "x")] == [200, 200, 200, 400]


def test_an_error_that_lists_many_voices_is_short():
    with serving(voice=ToneVoice([f"speaker{number}" for number in range(2000)])) as server:
        message = error_of(post(server, voice="alloy"))["message"]
        assert "speaker0, speaker1," in message
        assert "1980 more" in message
        assert len(message) < 500


@pytest.mark.parametrize("format", ["wav", "mp3", "opus", "aac", "pcm"])
def test_audio_arrives_before_the_rest_of_the_text_is_spoken(format):
    gate = Gate()
    voice = ToneVoice(gate=gate)
    text = f"{'a' * 60}. {'b' * 30}."
    with serving(voice=voice) as server:
        gate.open()
        with server.client.stream("POST", ROUTE, json={"input": text, "response_format": format}) as response:
            arrived = response.iter_raw()
            first = next(arrived)
            assert len(first) > 500
            assert len(voice.said) == 1  # the second sentence is held back
            gate.open()
            rest = b"".join(arrived)
        if format == "wav":
            assert first + rest == first[:44] + to_int16(voice.whole(text)).tobytes()
        idle(server)


def test_flac_comes_whole_as_programs_cannot_open_it_otherwise(voice):
    with serving(voice=voice) as server:
        content = post(server, response_format="flac").content
        np.testing.assert_array_equal(decode.decode(content), to_int16(voice.whole(TEXT)))


def test_events_are_those_of_openais_schema(server, voice):
    with server.client.stream(
        "POST", ROUTE, json={"input": TEXT, "response_format": "wav", "stream_format": "sse"}
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines)
    *deltas, done = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len(deltas) == 4  # one a sentence, and one for the very beginning
    assert all(delta.keys() == {"type", "audio"} and delta["type"] == "speech.audio.delta" for delta in deltas)
    content = b"".join(base64.b64decode(delta["audio"], validate=True) for delta in deltas)
    np.testing.assert_array_equal(np.frombuffer(content[44:], "<i2"), to_int16(voice.whole(TEXT)))
    frames = len(voice.whole(TEXT)) // voice.experiment.frontend.mel.frame_samples
    usage = {"input_tokens": len(TEXT), "output_tokens": frames, "total_tokens": len(TEXT) + frames}
    assert done == {"type": "speech.audio.done", "usage": usage}


def test_two_requests_take_turns_sentence_by_sentence():
    gate = Gate()
    voice = ToneVoice(gate=gate)
    with serving(voice=voice) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, server, "aa. ab. ac. ad.")
        assert gate.reached.acquire(timeout=20)  # its first sentence is being computed
        second = pool.submit(post, server, "ba. bb.")
        while server.client.get("/health").json()["requests"] < 2:
            time.sleep(0.01)
        time.sleep(0.2)  # until the second request waits for the model
        gate.open(6)
        assert spoken(first.result()).tobytes() == to_int16(voice.whole("aa. ab. ac. ad.")).tobytes()
        assert spoken(second.result()).tobytes() == to_int16(voice.whole("ba. bb.")).tobytes()
    assert voice.said.index("bb") < voice.said.index("ad")
    assert voice.said[1] == "ba"


@pytest.mark.parametrize("stream_format", ["audio", "sse"])
def test_a_client_that_leaves_ends_its_speech_and_frees_its_place(stream_format):
    gate = Gate()
    voice = ToneVoice(gate=gate)
    with serving(voice=voice, limits=LIMITS.replace(max_requests=1)) as server:
        gate.open()
        body = {"input": "aa. " * 200, "response_format": "wav", "stream_format": stream_format}
        with httpx.stream("POST", server.url + ROUTE, json=body, timeout=30) as response:
            next(response.iter_raw())
            assert post(server).status_code == 503
        time.sleep(1.2)  # the service looks twice a second
        gate.open(10)  # what is being computed is not interrupted
        idle(server)
        assert (voice.said, voice.ended) == (["aa"] * 2, 1)
        gate.open(1000)
        assert post(server).status_code == 200


def test_a_client_that_leaves_before_the_first_audio(server):
    gate = Gate()
    voice = ToneVoice(gate=gate)
    with serving(voice=voice) as server:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + ROUTE, json={"input": "aa. ab. ac."}, timeout=0.2)
        assert gate.reached.acquire(timeout=20)
        time.sleep(1.2)  # the service looks twice a second
        gate.open(10)
        idle(server)
        assert voice.said == ["aa"]


def test_speech_is_computed_only_a_little_ahead_of_a_slow_client():
    """And the time that the client takes is not counted."""
    samples = ToneVoice().tone("a" * 600)  # 30 s, a megabyte

    class Ready(ToneVoice):
        def tone(self, sentence, speaker=None, speed=1.0):
            return samples

    voice, limits = Ready(), LIMITS.replace(timeout=3.0)
    with serving(voice=voice, limits=limits) as server:
        body = {"input": "a. " * 40, "response_format": "wav"}
        with server.client.stream("POST", ROUTE, json=body) as response:
            arrived = response.iter_raw(65_536)
            content = next(arrived)
            time.sleep(4.0)
            ahead = len(voice.said)
            content += b"".join(arrived)
        assert ahead < 25  # four that are ready, and what the connection holds
        assert content[44:] == 40 * to_int16(samples).tobytes()


def test_time_runs_out():
    gate = Gate()
    voice = ToneVoice(gate=gate)
    with serving(voice=voice, limits=LIMITS.replace(timeout=1.0)) as server:
        response = post(server)  # before any audio: a status
        assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
        gate.open(2)
        with pytest.raises(httpx.RemoteProtocolError):  # afterwards: a response without an end
            post(server)
        gate.open(2)
        events = post(server, stream_format="sse").text
        assert json.loads(events.split("data: ")[-1])["error"]["code"] == "timeout"
        gate.open(100)
        idle(server)
        assert post(server).status_code == 200


def test_a_failure_of_the_model_is_an_incomplete_response_and_no_shorter_one():
    def gate(sentence: str) -> None:
        if "voice" in sentence:
            raise MemoryError("0x1234")

    with serving(voice=ToneVoice(gate=gate)) as server:
        with pytest.raises(httpx.RemoteProtocolError):
            post(server)
        *_, last = post(server, stream_format="sse").text.split("data: ")
        assert json.loads(last)["error"]["code"] == "internal_error"
        assert "0x" not in last
        for _ in range(10):  # over one connection, which stays open
            response = post(server, "A voice.")
            assert (response.status_code, error_of(response)["code"]) == (500, "internal_error")
        assert post(server, "Good day.").status_code == 200
        idle(server)


def test_a_service_that_stops_ends_speech():
    """Before its first audio a request is told so; a response that has begun ends without its end."""
    gate = Gate()
    server = Server(None, LIMITS, voice=ToneVoice(gate=gate))
    outcomes: dict[str, object] = {}
    body = {"input": "aa. ab. " * 50, "response_format": "wav"}

    def begun() -> None:
        with (
            contextlib.suppress(httpx.RemoteProtocolError),
            httpx.stream("POST", server.url + ROUTE, json=body, timeout=60) as response,
        ):
            for _ in response.iter_raw():
                outcomes["begun"] = "cut off"
            outcomes["begun"] = "whole"

    def waiting() -> None:
        outcomes["waiting"] = httpx.post(server.url + ROUTE, json={"input": "ac."}, timeout=60)

    threads = [threading.Thread(target=begun)]
    threads[0].start()
    gate.open()
    assert gate.reached.acquire(timeout=20)
    assert gate.reached.acquire(timeout=20)
    threads.append(threading.Thread(target=waiting))
    threads[1].start()
    while server.client.get("/health").json()["requests"] < 2:
        time.sleep(0.02)
    began = time.monotonic()
    threading.Timer(5.5, gate.open, (1000,)).start()  # as a model that is at work when the service stops
    server.stop()
    assert time.monotonic() - began < 5 + 4
    for thread in threads:
        thread.join(10)
    assert outcomes["begun"] == "cut off"
    response = outcomes["waiting"]
    assert (response.status_code, error_of(response)["code"]) == (503, "stopping")


def test_a_service_without_a_recognizer_names_the_route_that_it_has(server):
    response = server.client.post("/v1/audio/transcriptions", files={"file": b"x"})
    assert (response.status_code, error_of(response)["code"]) == (404, "wrong_task")
    assert ROUTE in error_of(response)["message"]
    assert ROUTE in server.client.get("/openapi.json").json()["paths"]
