"""Connections that send no request, browsers led here by other sites, and a service that is told to stop."""

import contextlib
import json
import socket
import threading
import time

import httpx
import numpy as np
import pytest

from data_pipelines.audio import decode
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.serving import server as http_server
from jax_speechlm.serving.admission import Limits
from tests.serving.service import RATE, Server, encoded, serving
from tests.trained_tones import speak, trained_run

ROUTE = "/v1/audio/transcriptions"
SOUND = encoded(speak("ab")[0])


@pytest.fixture(scope="module")
def recognizer() -> Recognizer:
    return Recognizer.load(trained_run())


@pytest.fixture(scope="module")
def server(recognizer):
    with serving(recognizer) as server:
        yield server


@pytest.fixture(scope="module")
def impatient(recognizer):
    with serving(recognizer, idle_seconds=0.4) as server:
        yield server


def connect(server: Server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def rest_of(connection: socket.socket) -> bytes:
    """All that still comes, until the other end closes."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET /health HT",
        b"POST /v1/audio/transcriptions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET /hea",
        b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 10\r\n\r\nhalf",
    ],
    ids=["nothing", "half a line", "half a header", "one request", "one and a half", "half a body"],
)
def test_a_connection_without_a_request_is_closed(impatient, sent):
    with connect(impatient) as connection:
        began = time.monotonic()
        connection.sendall(sent)
        answers = rest_of(connection)
    assert time.monotonic() - began < 5
    assert answers.count(b"HTTP/1.1 200 OK") == (1 if b"\r\n\r\n" in sent else 0)


def test_bytes_that_trickle_in_do_not_hold_a_connection(impatient):
    with connect(impatient) as connection, contextlib.suppress(ConnectionResetError, BrokenPipeError):
        began = time.monotonic()
        while time.monotonic() - began < 15:
            connection.sendall(b"G")
            time.sleep(0.1)
    assert time.monotonic() - began < 10


def test_a_slow_request_is_not_idle(impatient):
    """Only headers are under this bound: an upload has its own."""

    def slowly():
        yield (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\n' + SOUND[:100])
        time.sleep(1.0)
        yield SOUND[100:] + b"\r\n--b--\r\n"

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert httpx.post(impatient.url + ROUTE, content=slowly(), headers=headers, timeout=30).json() == {"text": "ab"}


def test_a_client_that_reads_nothing_is_cut_off():
    ended = threading.Event()

    async def app(scope, receive, send):
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(100):
            await send({"type": "http.response.body", "body": bytes(2**20), "more_body": True})
        ended.set()

    listener = socket.create_server(("127.0.0.1", 0))
    server = http_server.make_server(app, stop_seconds=1, write_seconds=0.3)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        with socket.create_connection(listener.getsockname()) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert ended.wait(20)
    finally:
        server.should_exit = True
        thread.join()


def test_what_is_not_http_is_answered_in_the_form_of_all_errors(server):
    with connect(server) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        head, body = rest_of(connection).split(b"\r\n\r\n", 1)
    assert b"400 Bad Request" in head
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def post(server: Server, **headers: str) -> httpx.Response:
    return server.client.post(ROUTE, files={"file": SOUND}, headers=headers)


@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "http://localhost:1", "null", "", "file://", "http://127.0.0.1", "http://["),
        *("http://{host}.evil.example", "http://evil.example/{host}", "http://{host}@evil.example", "chrome://{host}"),
        *("http://speech.example.evil.example", "https://{host}"),
    ],
)
def test_a_page_of_another_site_is_refused(server, origin):
    host = server.url.removeprefix("http://")
    response = post(server, Origin=origin.format(host=host))
    if origin == "https://{host}":  # a proxy with encryption, which passes Host on
        assert response.json() == {"text": "ab"}
        return
    assert (response.status_code, response.json()["error"]["code"]) == (403, "foreign_origin")
    response = server.client.options(ROUTE, headers={"Origin": "https://evil.example"})
    assert response.status_code == 403
    assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        *(("localhost", True), ("LOCALHOST:8000", True), ("localhost.", True), ("127.0.0.1", True), ("[::1]:80", True)),
        *(("evil.example", False), ("localhost.evil.example", False), ("127.0.0.1.evil.example:8000", False)),
        *(("localhost:80@evil.example", False), ("0.0.0.0", False), ("192.168.1.1", False), ("speech.example", False)),
    ],
)
def test_another_name_for_this_machine_is_refused(server, host, allowed):
    """By DNS rebinding a site's own name leads here."""
    for response in (post(server, Host=host), server.client.get("/", headers={"Host": host})):
        assert response.status_code == (200 if allowed else 403)
        assert allowed or response.json()["error"]["code"] == "foreign_host"
    same = post(server, Host=host, Origin=f"http://{host}")
    assert same.status_code == (200 if allowed else 403)


def test_names_let_a_proxy_in(recognizer):
    with serving(recognizer, names=("Speech.example", "dev.example:3000")) as server:
        for host, origin, status in (
            ("speech.example", "https://speech.example", 200),
            ("127.0.0.1", "https://speech.example", 200),  # a proxy that names the machine behind it
            ("dev.example:3000", "http://dev.example:3000", 200),
            ("127.0.0.1", "http://dev.example:3001", 403),
            ("dev.example", "http://dev.example", 403),
            ("127.0.0.1", "https://evil.example", 403),
        ):
            assert post(server, Host=host, Origin=origin).status_code == status, (host, origin)


@pytest.fixture
def endless(monkeypatch) -> list[threading.Event]:
    """Uploads take for ever to decode, block by block; the events tell which of them were ended."""
    ended = []

    def stream(*args, check, **options):
        ended.append(threading.Event())
        mine = ended[-1]
        try:
            while True:
                time.sleep(0.05)
                check()
                yield np.zeros(RATE // 100, np.int16)
        finally:
            mine.set()

    monkeypatch.setattr(decode, "stream", stream)
    return ended


def test_a_service_that_stops_gives_up_what_takes_too_long(recognizer, endless):
    """Requests at hand, in each of their phases, are answered in OpenAI's form; decoding ends."""
    answers: dict[str, httpx.Response | str] = {}
    server = Server(recognizer, Limits())

    def ask(name: str, **fields: str) -> None:
        response = httpx.post(server.url + ROUTE, files={"file": SOUND}, data=fields, timeout=60)
        answers[name] = response

    threads = [
        threading.Thread(target=ask, args=(name,), kwargs=fields)
        for name, fields in {"json": {}, "text": {"response_format": "text"}, "stream": {"stream": "true"}}.items()
    ]
    for thread in threads:
        thread.start()
    uploading = connect(server)
    head = f"POST {ROUTE} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 1000\r\n"
    uploading.sendall((head + "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\nContent-").encode())
    while server.client.get("/health").json()["requests"] < 4 or len(endless) < 3:
        time.sleep(0.02)
    began = time.monotonic()
    server.stop()
    assert time.monotonic() - began < 5 + 4  # the test's server gives them 5 s
    for thread in threads:
        thread.join(10)
    for response in answers.values():
        assert (response.status_code, response.json()["error"]["code"]) == (503, "stopping")
        assert int(response.headers["retry-after"]) > 0
    with uploading:
        half = rest_of(uploading)
    assert b" 503 " in half
    assert b'"code":"stopping"' in half
    assert len(answers) == 3
    assert all(event.wait(5) for event in endless)


def test_a_cancelled_caller_ends_its_decoding(recognizer, endless):
    with serving(recognizer, Limits(timeout=0.5)) as server:
        assert server.post(SOUND).json()["error"]["code"] == "timeout"
        assert endless[0].wait(5)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(server.url + ROUTE, files={"file": SOUND}, timeout=0.1)
        assert endless[1].wait(5)


def test_the_command_stops_within_what_platforms_give():
    """SIGKILL follows SIGTERM after 30 s on Kubernetes, 30 s on most preemptible machines."""
    from jax_speechlm.serving import app, batcher

    assert http_server.STOP_SECONDS + batcher._LAST_SECONDS + app._ANSWER_SECONDS < 28
