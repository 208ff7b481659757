"""A page in a real browser, whose errors and requests are recorded."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="pages are driven by playwright: pip install playwright")


def find_browser() -> str | None:
    """Debian's Chromium, or any other on the path; None lets playwright look for one of its own."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return next((path for name in names if (path := shutil.which(name))), None)


@contextlib.contextmanager
def browsing(url: str, microphone: Path | None = None) -> Iterator["sync_api.Page"]:
    """A page that is open; its `faults` are errors that the browser reports, and must be empty in the end.

    Args:
      microphone: a file that its microphone plays again and again.
    """
    options = ["--autoplay-policy=no-user-gesture-required", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    if microphone is not None:
        options += ["--use-fake-ui-for-media-stream", "--use-fake-device-for-media-stream"]
        options += [f"--use-file-for-fake-audio-capture={microphone}"]
    with sync_api.sync_playwright() as driver:
        try:
            browser = driver.chromium.launch(executable_path=find_browser(), args=options)
        except sync_api.Error as error:
            # a browser is no Python package: what installs the tests cannot bring one
            pytest.skip(f"no Chromium can be started (apt-get install chromium): {str(error).splitlines()[0]}")
        page = browser.new_page()
        page.faults = []
        page.elsewhere = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
        page.on("request", lambda request: page.elsewhere.append(request.url))
        page.goto(url)
        yield page
        assert page.faults == []
        assert all(each.startswith((url, "blob:")) for each in page.elsewhere)
        browser.close()


def shades(page: "sync_api.Page", canvas: str, below: int = 0) -> int:
    """How many colours a picture has, without the lowest `below` pixels."""
    return page.evaluate(
        f"() => {{ const c = document.getElementById('{canvas}'), d = c.getContext('2d')"
        f".getImageData(0, 0, c.width, c.height - {below}).data; const seen = new Set();"
        "for (let i = 0; i < d.length; i += 4) seen.add(d[i]); return seen.size }"
    )
