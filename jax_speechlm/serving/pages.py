"""The files of pages, which load nothing from elsewhere."""

import importlib.resources
from collections.abc import Mapping

from fastapi import FastAPI
from fastapi.responses import Response

_SECURITY = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; "
    "media-src blob:; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def add_files(app: FastAPI, *scripts: str, pages: Mapping[str, str]) -> None:
    """Adds routes of files in `serving/page`: scripts by their own names, and pages by path."""
    files = importlib.resources.files("jax_speechlm.serving") / "page"
    named = {f"/{name}": (name, "text/javascript") for name in scripts}
    for path, (name, kind) in (named | {path: (name, "text/html") for path, name in pages.items()}).items():
        response = Response((files / name).read_bytes(), media_type=kind, headers=_SECURITY)
        app.add_route(path, lambda request, response=response: response, include_in_schema=False)
