"""A real server over real HTTP: it answers what `transcribe` gives, whoever else asks and whatever they send."""

import concurrent.futures
import dataclasses
import gc
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.serving.admission import Limits
from tests.data_pipelines.audio.foreign_audio import claiming
from tests.serving.service import RATE, encoded, serving
from tests.trained_tones import random_text, speak, trained_run

LIMITS = Limits(max_megabytes=2, max_minutes=1.5, max_requests=16, timeout=60)


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.load(trained_run())


@pytest.fixture(scope="module")
def server(recognizer):
    with serving(recognizer, LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def spoken(recognizer) -> list[tuple[bytes, str]]:
    """Files of all lengths, with what `transcribe` gives; the last takes several windows."""
    rng = np.random.default_rng(0)
    texts = [random_text(rng, count) for count in (1, 2, 3, 5, 4, 1, 8, 45)]
    formats = ["WAV", "FLAC", "OGG", "MP3"]
    contents = [encoded(speak(text, n)[0], formats[n % 4] if n < 7 else "WAV") for n, text in enumerate(texts)]
    found = [next(recognizer.transcribe([content])).text for content in contents]
    assert all(found)
    assert [found[n] for n in (2, 3, 4, 7)] == [texts[n] for n in (2, 3, 4, 7)]
    return list(zip(contents, found, strict=True))


def error_of(response: httpx.Response) -> dict:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == ("invalid_request_error" if response.status_code < 500 else "server_error")
    return error


def test_every_response_format(server, spoken):
    content, text = spoken[2]
    json_response = server.post(content, model="whisper-1", language="en", temperature="0", prompt="x")
    assert (json_response.status_code, json_response.json()) == (200, {"text": text})
    assert server.post(content, response_format="text").text == text + "\n"
    srt = server.post(content, response_format="srt")
    assert srt.headers["content-type"].startswith("text/plain")
    assert srt.text.startswith("1\n00:00:00,")
    assert server.post(content, response_format="vtt").text.startswith("WEBVTT\n\n00:00:00.")
    verbose = server.post(content, response_format="verbose_json").json()
    assert verbose.keys() == {"task", "language", "duration", "text", "segments"}
    assert verbose["text"] == " ".join(segment["text"] for segment in verbose["segments"]) == text
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    words = server.post(content, **fields).json()["words"]
    truth = speak(text, 2)[1]
    assert [(word["word"], word["start"], word["end"]) for word in words] == [
        (word, pytest.approx(start, abs=0.05), pytest.approx(end, abs=0.05)) for word, start, end in truth
    ]


def test_answers_are_those_of_transcribe_whoever_else_asks(server, spoken):
    """Forty requests at once, good and bad ones: each gets its own."""
    before = server.service.batcher.windows, server.service.batcher.batches
    jobs = [number % (len(spoken) + 1) for number in range(40)]

    def ask(job: int):
        with httpx.Client(base_url=server.url, timeout=60) as client:
            while True:  # as a client does that is told to come again
                content = spoken[job][0] if job < len(spoken) else b"no audio" * 1000
                response = server.post(content, client=client)
                if response.status_code != 503:
                    return response
                time.sleep(0.05 * int(response.headers["retry-after"]))

    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        responses = list(pool.map(ask, jobs))
    for job, response in zip(jobs, responses, strict=True):
        if job < len(spoken):
            assert (response.status_code, response.json()) == (200, {"text": spoken[job][1]})
        else:
            assert (response.status_code, error_of(response)["code"]) == (400, "bad_audio")
    heard, batches = server.service.batcher.windows - before[0], server.service.batcher.batches - before[1]
    assert batches < heard  # some were heard together


def test_a_beam_tells_what_else_it_may_be(spoken):
    with serving(Recognizer.load(trained_run(), Decoding(decoder="beam", beam_size=3)), LIMITS) as server:
        found = server.post(spoken[3][0], response_format="verbose_json").json()
        assert found["alternatives"][0]["texts"][0] == found["text"] == spoken[3][1]
        card = server.client.get("/v1/models/tones").json()["card"]
        assert card["decoding"] == "prefix beam 3"


@pytest.mark.parametrize(
    ("content", "fields", "status", "code", "param"),
    [
        (b"", {}, 400, "empty_file", "file"),
        (b"{}" * 500, {}, 400, "bad_audio", "file"),
        (b"RIFF\xff\xff\xff\xffWAVEfmt ", {}, 400, "bad_audio", "file"),
        (claiming(85_000_000), {}, 400, "bad_audio", "file"),
        (claiming(20_000_000, 4), {}, 400, "bad_audio", "file"),
        (b"0" * (2 * 2**20 + 1), {}, 413, "file_too_large", "file"),
        (b"0" * (5 * 2**20), {}, 413, "file_too_large", "file"),
        (encoded(np.zeros(91 * RATE, np.int16), "FLAC"), {}, 400, "audio_too_long", "file"),
        (encoded(np.ones(RATE, np.int16)), {"response_format": "xml"}, 400, "invalid_value", "response_format"),
        (
            encoded(np.ones(RATE, np.int16)),
            {"timestamp_granularities[]": "letter"},
            400,
            "invalid_value",
            "timestamp_granularities[]",
        ),
        (encoded(np.ones(RATE, np.int16)), {"prompt": "x" * 70_000}, 400, "invalid_form", None),
    ],
)
def test_bad_input_is_the_clients_fault_and_says_what_is_wrong(server, content, fields, status, code, param):
    response = server.post(content, **fields)
    error = error_of(response)
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert "0x" not in error["message"]  # no address of ours
    assert len(error["message"]) > 10


def test_other_requests_that_cannot_be_served(server):
    client, route = server.client, "/v1/audio/transcriptions"
    assert error_of(client.post(route, json={"file": "x"}))["code"] == "invalid_content_type"
    assert error_of(client.post(route, data={"model": "x"}))["code"] == "invalid_content_type"
    assert error_of(client.post(route, files={"sound": b"x"}))["code"] == "missing_file"
    assert error_of(client.post(route, files={"file": (None, b"x")}))["code"] == "missing_file"
    headers = {"content-type": "multipart/form-data"}
    assert error_of(client.post(route, content=b"x", headers=headers))["code"] == "invalid_form"
    two = [("file", ("a.wav", b"x")), ("file", ("b.wav", b"x"))]
    assert error_of(client.post(route, files=two))["code"] == "invalid_form"
    for method, path, status in (("GET", route, 405), ("GET", "/nothing", 404), ("GET", route + "/", 404)):
        response = client.request(method, path)
        assert (response.status_code, error_of(response)["code"]) == (status, "unknown_url")
    response = client.post("/v1/audio/translations", files={"file": b"x"})
    assert (response.status_code, error_of(response)["code"]) == (404, "wrong_task")
    assert error_of(client.get("/v1/models/other"))["code"] == "model_not_found"


def test_what_there_is(server):
    client = server.client
    assert client.get("/health").json()["status"] == "ok"
    (model,) = client.get("/v1/models").json()["data"]
    assert (model["id"], model["object"]) == ("tones", "model")
    card = client.get("/v1/models/tones").json()["card"]
    assert (card["trained by"], card["decoding"]) == ("ctc", "greedy")
    assert card["parameters"] > 1000
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/audio/transcriptions", "/v1/models", "/health"} <= set(paths)
    for path in ("/", "/common.js", "/audio.js", "/page.js", "/listen.js", "/speak.js", "/recorder.js"):
        response = client.get(path)
        assert response.status_code == 200
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert "://" not in response.text  # nothing comes from elsewhere


def test_a_full_queue_says_when_to_come_again(recognizer, spoken):
    held, let = threading.Event(), threading.Event()

    class Slow(Recognizer):
        def encode(self, batches):
            held.set()
            assert let.wait(30)
            return super().encode(batches)

    slow = Slow(**{field.name: getattr(recognizer, field.name) for field in dataclasses.fields(recognizer)})
    with (
        serving(slow, LIMITS.replace(max_requests=2)) as server,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        first = [
            pool.submit(httpx.post, f"{server.url}/v1/audio/transcriptions", files={"file": spoken[0][0]}, timeout=60)
        ]
        first += [
            pool.submit(httpx.post, f"{server.url}/v1/audio/transcriptions", files={"file": spoken[1][0]}, timeout=60)
        ]
        while server.client.get("/health").json()["requests"] < 2 or not held.is_set():
            time.sleep(0.01)
        refused = server.post(spoken[2][0])
        assert (refused.status_code, error_of(refused)["code"]) == (503, "queue_full")
        assert int(refused.headers["retry-after"]) > 0
        let.set()
        assert [each.result().json()["text"] for each in first] == [spoken[0][1], spoken[1][1]]
        assert server.post(spoken[2][0]).json() == {"text": spoken[2][1]}


def test_time_runs_out_and_clients_go_away(recognizer, spoken):
    let = threading.Event()

    class Slow(Recognizer):
        def encode(self, batches):
            assert let.wait(30)
            return super().encode(batches)

    slow = Slow(**{field.name: getattr(recognizer, field.name) for field in dataclasses.fields(recognizer)})
    with serving(slow, LIMITS.replace(timeout=0.5)) as server:
        response = server.post(spoken[0][0])
        assert (response.status_code, error_of(response)["code"]) == (504, "timeout")
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/audio/transcriptions", files={"file": spoken[0][0]}, timeout=0.1)
        assert server.client.get("/health").json()["requests"] >= 1  # the model is still at it
        let.set()
        deadline = time.monotonic() + 20
        while server.client.get("/health").json()["requests"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.post(spoken[0][0]).status_code == 200


def test_nothing_that_an_upload_names_is_opened(server, tmp_path):
    """Playlists are audio to FFmpeg: those of strangers must reach neither our files nor anybody's server."""
    secret, asked = tmp_path / "secret.wav", []
    secret.write_bytes(encoded(speak("abc")[0]))

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_error(404)

    with http.server.HTTPServer(("127.0.0.1", 0), Elsewhere) as elsewhere:
        thread = threading.Thread(target=elsewhere.serve_forever)
        thread.start()
        for target in (f"file://{secret}", str(secret), f"http://127.0.0.1:{elsewhere.server_port}/x.wav"):
            representation = f'<Representation id="0"><BaseURL>{target}</BaseURL></Representation>'
            adaptation = f'<AdaptationSet mimeType="audio/wav">{representation}</AdaptationSet>'
            schema = 'xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"'
            session = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n"
            playlists = {
                "a.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
                "a.ffconcat": f"ffconcat version 1.0\nfile '{target}'\n",
                "a.mpd": f"<MPD {schema}><Period>{adaptation}</Period></MPD>",
                "a.sdp": f"{session}a=control:{target}\n",
            }
            for name, playlist in playlists.items():
                response = server.post(playlist.encode(), name)
                assert (name, response.status_code, error_of(response)["code"]) == (name, 400, "bad_audio")
        elsewhere.shutdown()
        thread.join()
    assert asked == []
    for name in (str(secret), f"../../{secret}", f"file://{secret}"):
        assert error_of(server.post(b"junk" * 100, name))["code"] == "bad_audio"


HEADERS = [encoded(speak("ab")[0], format) for format in ("WAV", "FLAC", "OGG", "MP3", "AIFF", "CAF", "W64", "AU")]


@st.composite
def uploads(draw) -> bytes:
    """Random bytes; files cut off; headers that lie."""
    kind = draw(st.sampled_from(["random", "cut", "lying", "magic"]))
    if kind == "random":
        return draw(st.binary(max_size=600))
    content = bytearray(draw(st.sampled_from(HEADERS)))
    if kind == "cut":
        return bytes(content[: draw(st.integers(0, len(content)))])
    if kind == "magic":
        return bytes(content[: draw(st.integers(4, 60))]) + draw(st.binary(max_size=300))
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, 79))
        content[place : place + 4] = draw(
            st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\1\0\0\0", b"\0\0\0\1", b"\x7f" * 4])
        )
    return bytes(content)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(content=uploads(), filename=st.sampled_from(["a.wav", "b.mp3", "c.g722", "", "\0", "..", "é\n.ogg", "x" * 300]))
def test_no_upload_breaks_the_service(server, content, filename):
    response = server.post(content, filename)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        error_of(response)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.binary(max_size=400)
    | st.binary(max_size=100).map(lambda x: b'--b\r\nContent-Disposition: form-data; name="file"' + x),
    kind=st.sampled_from(
        ["multipart/form-data; boundary=b", "multipart/form-data; boundary=", "multipart/form-data", "text/plain", "a"]
    ),
)
def test_no_form_breaks_the_service(server, body, kind):
    response = server.client.post("/v1/audio/transcriptions", content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    error_of(response)


def resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_hundreds_of_requests_leave_nothing_behind(server, spoken, tmp_path, monkeypatch):
    """Threads, open files: as many after 300 requests as after 60. Memory: at most 60 MB above. No temporary file."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bad = [b"junk" * 200_000, HEADERS[3][:100], b"0" * (2 * 2**20 + 1)]
    contents = [*(content for content, _ in spoken[:5]), *bad]

    def ask(count: int) -> tuple[int, int, float]:
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            codes = list(pool.map(lambda n: server.post(contents[n % len(contents)]).status_code, range(count)))
        assert set(codes) == {200, 400, 413}
        gc.collect()
        assert not list(tmp_path.iterdir())
        return threading.active_count(), len(os.listdir("/proc/self/fd")), resident_megabytes()

    before, after = ask(60), ask(300)
    assert after[0] <= before[0] + 1
    assert after[1] <= before[1] + 2
    assert after[2] <= before[2] + 60
    assert server.client.get("/health").json()["requests"] == 0


def test_the_command_serves_until_it_is_told_to_stop(spoken):
    code = "import sys; from jax_speechlm.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = ["serve", str(trained_run()), "--port", "0", "--wyoming-port", "0", "--no-warm-up"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        assert line.startswith("tones at http://127.0.0.1:")
        url = line.split()[2]
        address, _, port = process.stdout.readline().split()[-1].rpartition(":")
        assert address == "tcp://127.0.0.1"
        socket.create_connection(("127.0.0.1", int(port)), 10).close()
        response = httpx.post(f"{url}/v1/audio/transcriptions", files={"file": spoken[3][0]}, timeout=120)
        assert response.json() == {"text": spoken[3][1]}
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) in (0, -signal.SIGTERM)
    finally:
        process.kill()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
    assert json.dumps(line)
