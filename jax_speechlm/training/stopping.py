"""Stops a run on signals: SIGTERM and SIGINT after the current step, a second SIGINT immediately."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

import jax

from jax_speechlm.parallel import distributed

_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


@contextlib.contextmanager
def catch_signals() -> Iterator[Callable[..., str | None]]:
    """Yields a function that returns the name of the signal that ends the run, or None.

    All processes of a run call it at the same points and get the same answer: with a step's number before that step,
    and without one at any other time. In a run of several processes the signal is SIGTERM, sent to any of them: they
    agree on the step. A single process also handles SIGINT.
    """
    is_main = threading.current_thread() is threading.main_thread()  # otherwise the main thread handles signals
    second_interrupt = _second_interrupt_ends() if is_main else contextlib.nullcontext()
    if jax.process_count() > 1:
        with second_interrupt:
            yield _agreed
        return
    received: list[str] = []

    def note(number, frame):
        del frame
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        with second_interrupt:
            yield lambda step=None: received[0] if received else None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(step: int | None = None) -> str | None:
    requested = distributed.stop_announced() if step is None else distributed.stop_requested(step)
    return "SIGTERM" if requested else None


@contextlib.contextmanager
def _second_interrupt_ends() -> Iterator[None]:
    """Ends this process at the second SIGINT with status 130, even during a step that never ends.

    Python's signal handlers run in the main thread only once it returns from a blocking call. The interpreter writes
    signal numbers to its wakeup descriptor at once; a thread reads them.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def watch() -> None:
        interrupts = 0
        while received := os.read(reader, 1):
            interrupts += received[0] == signal.SIGINT
            if interrupts == 1 and received[0] == signal.SIGINT:
                os.write(2, b"\ninterrupted: this step is finished and saved; a second Ctrl-C ends the run at once\n")
            elif interrupts == 2:
                if os.isatty(1):
                    os.write(1, _SHOW_CURSOR)
                os.write(2, b"\nended at once: the same command goes on from the last checkpoint\n")
                os._exit(128 + signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        thread.join()
        os.close(reader)
