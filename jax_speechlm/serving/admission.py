"""Admission of requests: how many are in progress, the threads that they run in, and their cancellation."""

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Annotated, Any, Protocol, TypeVar, runtime_checkable

import pydantic

from jax_speechlm.core.config import Config
from jax_speechlm.serving.forms import CLOSED, ApiError

W = TypeVar("W", bound="Work")


class Limits(Config):
    """Limits of a service.

    Attributes:
      max_megabytes: of one upload (2^20 bytes).
      max_minutes: of one upload's audio.
      max_characters: of one text that is synthesised.
      max_requests: requests in progress at a time; further ones get 503 with Retry-After.
      timeout: seconds from the end of an upload to its transcript, or that a client waits for parts of its speech.
    """

    max_megabytes: Annotated[float, pydantic.Field(gt=0)] = 25.0
    max_minutes: Annotated[float, pydantic.Field(gt=0)] = 60.0
    max_characters: Annotated[int, pydantic.Field(ge=1)] = 4096
    max_requests: Annotated[int, pydantic.Field(ge=1)] = 32
    timeout: Annotated[float, pydantic.Field(gt=0)] = 300.0


class GivenUpError(Exception):
    """The request was cancelled, or the service is stopping."""


class Work:
    """The work of one request, which another thread may cancel."""

    def __init__(self):
        self._waiting: Sequence[Future] = ()
        self._lock = threading.Lock()
        self.cancelled = threading.Event()

    def wait(self, submit: Callable[[], Sequence[Future]]) -> list[Any]:
        """Submits jobs and returns their results. Raises `GivenUpError` once `cancel` was called."""
        with self._lock:
            self.check()
            self._waiting = submit()
        try:
            return [future.result() for future in self._waiting]
        except CancelledError:
            raise GivenUpError from None

    def check(self) -> None:
        """Raises `GivenUpError` once `cancel` was called."""
        if self.cancelled.is_set():
            raise GivenUpError

    def cancel(self) -> None:
        """Cancels the request: `wait` raises, and its queued jobs are dropped."""
        with self._lock:
            self.cancelled.set()
            for future in self._waiting:
                future.cancel()


@runtime_checkable
class Client(Protocol):
    """Whoever waits for a response: an HTTP request's `Body`, or a connection of another protocol."""

    async def is_disconnected(self) -> bool:
        """Returns whether the client has closed the connection."""

    async def drain(self) -> None:
        """Reads and discards the rest of the request."""


class Requests:
    """The requests in progress.

    Attributes:
      in_flight: their number.
    """

    def __init__(self, limits: Limits):
        self.limits, self.in_flight = limits, 0
        self._works: set[Work] = set()
        self._threads = ThreadPoolExecutor(limits.max_requests, "request")

    def close(self) -> None:
        """Cancels requests in progress, and ends the threads without waiting for them."""
        for work in tuple(self._works):
            work.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)

    @contextlib.asynccontextmanager
    async def admitted(self, client: Client) -> AsyncIterator[None]:
        """Counts a request as in progress within the context. Raises `ApiError` if `max_requests` already are."""
        if self.in_flight >= self.limits.max_requests:
            await client.drain()
            raise ApiError(503, f"{self.limits.max_requests} requests are in progress", code="queue_full", retry=1)
        self.in_flight += 1
        try:
            yield
        except asyncio.CancelledError:  # by the server, at the end of its grace period
            asyncio.current_task().uncancel()
            raise _stopping() from None
        finally:
            self.in_flight -= 1

    async def run(self, client: Client, function: Callable[[W], Any], work: W, timeout: float | None = None) -> Any:
        """Calls `function(work)` in a thread, until it returns, times out or the client disconnects.

        Args:
          timeout: in seconds; by default that of the limits.

        Raises:
          ApiError: the time is up, the client is gone, or the service stops; and any error of the function.
        """
        timeout = self.limits.timeout if timeout is None else timeout
        self._works.add(work)
        working = asyncio.get_running_loop().run_in_executor(self._threads, function, work)
        working.add_done_callback(lambda _: self._works.discard(work))
        gone = asyncio.ensure_future(_disconnected(client))
        try:
            done, _ = await asyncio.wait(
                {working, gone},
                timeout=timeout if math.isfinite(timeout) else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if gone in done and working not in done:
                raise ApiError(CLOSED, "the client closed the connection", code="disconnected")
            if working not in done:
                raise timed_out(timeout)
            return working.result()
        except GivenUpError as error:
            raise _stopping() from error
        finally:
            gone.cancel()
            if not working.done():
                work.cancel()
                self.in_flight += 1  # its slot stays taken until its thread ends
                working.add_done_callback(self._ended)

    def _ended(self, working: asyncio.Future) -> None:
        self.in_flight -= 1
        if not working.cancelled():
            working.exception()  # retrieves the exception, or asyncio logs it as never retrieved


def timed_out(seconds: float) -> ApiError:
    """Returns the error of a request that takes too long."""
    return ApiError(504, f"not done after {seconds:g} s", code="timeout")


def _stopping() -> ApiError:
    return ApiError(503, "the service is being stopped", code="stopping", retry=10)


async def _disconnected(client: Client) -> None:
    while not await client.is_disconnected():
        await asyncio.sleep(0.5)
