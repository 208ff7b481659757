"""Stops a run on signals: SIGTERM and SIGINT after the current step, a second SIGINT immediately."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax

from jax_speechlm.parallel import distributed

_SHOW_CURSOR = b"\x1b[?25h"  # a progress bar hides it


class Stop(NamedTuple):
    """Whether a run has to stop. All processes of a run call it at the same points and get the same answer.

    Attributes:
      before_step: called before each step with its number; name of the signal that ends the run here, or None.
      meanwhile: returns whether a signal was received; called at any other time.
      name: name of the signal reported by `meanwhile`.
    """

    before_step: Callable[[int], str | None]
    meanwhile: Callable[[], bool]
    name: Callable[[], str]


@contextlib.contextmanager
def catch_signals() -> Iterator[Stop]:
    """Records the signals that end a run while it trains.

    In a run of several processes that is SIGTERM, sent to any of them: they agree on the step. A single process also
    handles SIGINT.
    """
    is_main = threading.current_thread() is threading.main_thread()  # otherwise the main thread handles signals
    second_interrupt = _second_interrupt_ends() if is_main else contextlib.nullcontext()
    if jax.process_count() > 1:
        with second_interrupt:
            yield Stop(
                lambda step: "SIGTERM" if distributed.stop_requested(step) else None,
                distributed.stop_announced,
                lambda: "SIGTERM",
            )
        return
    received: list[str] = []

    def note(number, frame):
        del frame
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT) if is_main}
    try:
        with second_interrupt:
            yield Stop(lambda step: received[0] if received else None, lambda: bool(received), lambda: received[0])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
