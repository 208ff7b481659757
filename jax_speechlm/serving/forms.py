"""Request bodies, read into memory under limits: a form with one file, or JSON; and errors in OpenAI's form."""

import asyncio
import contextlib
import dataclasses
import json
import math
from collections.abc import AsyncGenerator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

CLOSED = 499
"""Status of a request whose client closed the connection, for the log."""

_UPLOAD_SECONDS = 60.0
_DRAIN_SECONDS, _DRAIN_BYTES = 5.0, 256 * 2**20  # limits of `Body.drain`
_FIELD_BYTES = 64 * 1024  # of everything but the file


class ApiError(Exception):
    """An error response; its body has the form of OpenAI's errors."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None, retry: int | None = None
    ):
        """Describes an error; `param` is the invalid field, `retry` the seconds to wait before the next attempt."""
        super().__init__(message)
        self.status, self.message, self.param, self.code, self.retry = status, message, param, code, retry

    @classmethod
    def invalid(cls, param: str, message: str, code: str = "invalid_value") -> "ApiError":
        """Returns the error of a field's value."""
        return cls(400, message, param=param, code=code)

    def response(self) -> JSONResponse:
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        headers = {"Retry-After": str(self.retry)} if self.retry is not None else None
        return JSONResponse({"error": error}, self.status, headers)


_FILE_TOO_LARGE = ApiError(413, "the file is too large", param="file", code="file_too_large")


def internal_error() -> ApiError:
    """Returns the error of an unexpected exception, without its details."""
    return ApiError(500, "internal error; the log of the service has the details", code="internal_error")


@dataclasses.dataclass(frozen=True)
class Upload:
    """A parsed form: the file, the client's name of it, of which only the suffix is used, and all other fields."""

    content: bytes
    filename: str
    fields: dict[str, list[str]]

    def values(self, name: str) -> list[str]:
        """Returns all values of a field that may be repeated, as NAME[] or NAME."""
        return self.fields.get(f"{name}[]", []) + self.fields.get(name, [])

    def one(self, name: str, allowed: tuple[str, ...]) -> str:
        """Returns a field's value, by default the first allowed one. Raises `ApiError` if it is not allowed."""
        value = (self.fields.get(name) or [allowed[0]])[-1]
        if value not in allowed:
            raise ApiError.invalid(name, f"{name} must be one of {', '.join(allowed)}; got {value[:80]!r}")
        return value


class _InMemory(MultiPartParser):
    spool_max_size = 2**62  # the stream is limited, and uploads are never written to disk


class Body:
    """A request's body, read under a limit."""

    def __init__(self, request: Request):
        self.request, self.ended = request, False

    async def chunks(
        self, max_bytes: float = math.inf, too_large: ApiError = _FILE_TOO_LARGE
    ) -> AsyncGenerator[bytes, None]:
        """Yields the rest of the body as it arrives. Raises `ApiError` if it is, or declares to be, too large."""
        declared, read = self.request.headers.get("content-length", "0"), 0
        if int(declared) > max_bytes:
            raise too_large
        while not self.ended:
            message = await self.request.receive()
            if message["type"] == "http.disconnect":
                raise ApiError(CLOSED, "the client closed the connection", code="disconnected")
            self.ended = not message.get("more_body", False)
            chunk = message.get("body", b"")
            read += len(chunk)
            if read > max_bytes:
                raise too_large
            yield chunk

    async def is_disconnected(self) -> bool:
        """Returns whether the client has closed the connection."""
        return await self.request.is_disconnected()

    async def drain(self) -> None:
        """Reads and discards the rest, within limits: a client that is still writing does not read a response."""
        read = 0
        with contextlib.suppress(TimeoutError, ApiError):
            async with asyncio.timeout(_DRAIN_SECONDS):
                async for chunk in self.chunks():
                    read += len(chunk)
                    if read > _DRAIN_BYTES:
                        return


async def read_upload(request: Request, max_bytes: int) -> Upload:
    """Reads a multipart form that has a `file`.

    Raises:
      ApiError: the form is too large, too slow or invalid, or has no file.
    """
    body = Body(request)
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            return await _parse(body, max_bytes)
    except TimeoutError:
        raise ApiError(408, f"the upload took over {_UPLOAD_SECONDS:g} s", code="upload_timeout") from None
    except MultiPartException as error:
        await body.drain()
        raise ApiError(400, f"the form cannot be read: {error.message}", code="invalid_form") from None
    except ApiError as error:
        if error.status != CLOSED:
            await body.drain()
        raise


async def read_json(request: Request, max_bytes: int, remedy: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      remedy: what to do about a body that is too large, for its error.

    Raises:
      ApiError: the body is too large, too slow, or not a JSON object.
    """
    body, content = Body(request), bytearray()
    too_large = ApiError(413, f"the request is larger than {max_bytes} bytes: {remedy}", code="request_too_large")
    try:
        async with asyncio.timeout(_UPLOAD_SECONDS):
            async for chunk in body.chunks(max_bytes, too_large):
                content += chunk
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise ApiError(400, "send application/json", code="invalid_content_type")
        parsed = json.loads(content)
    except TimeoutError:
        raise ApiError(408, f"the request took over {_UPLOAD_SECONDS:g} s", code="upload_timeout") from None
    except (ValueError, RecursionError):
        raise ApiError(400, "the request is not JSON", code="invalid_json") from None
    except ApiError as error:
        if error.status != CLOSED:
            await body.drain()
        raise
    if not isinstance(parsed, dict):
        raise ApiError(400, "the request must be a JSON object", code="invalid_json")
    return parsed


async def _parse(body: Body, max_bytes: int) -> Upload:
    headers = body.request.headers
    if not headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise ApiError(400, "send multipart/form-data with the audio in the field `file`", code="invalid_content_type")
    limits = {"max_files": 1, "max_fields": 64, "max_part_size": _FIELD_BYTES}
    form = await _InMemory(headers, body.chunks(max_bytes + _FIELD_BYTES), **limits).parse()
    fields: dict[str, list[str]] = {}
    for name, value in form.multi_items():
        if isinstance(value, str):
            fields.setdefault(name, []).append(value)
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError.invalid("file", "the form has no file in the field `file`", "missing_file")
    content = await file.read()
    await form.close()
    if len(content) > max_bytes:
        raise ApiError(413, f"the file is larger than {max_bytes} bytes", param="file", code="file_too_large")
    if not content:
        raise ApiError.invalid("file", "the file is empty", "empty_file")
    return Upload(content, file.filename or "", fields)
