"""The thread that owns the model: what waits is heard together, in order, and given up without harm."""

import threading
import time

import numpy as np
import pytest

from jax_speechlm.inference.segmentation import shape_of
from jax_speechlm.serving.admission import GivenUpError
from jax_speechlm.serving.batcher import Batcher, Caller

SECOND = 16_000


class Slow:
    """A model that says how long a window is, once it is let; and counts what it is given."""

    def __init__(self):
        self.let, self.calls, self.threads = threading.Event(), [], set()

    def __call__(self, parts):
        self.calls.append([len(part) for part in parts])
        self.threads.add(threading.get_ident())
        assert self.let.wait(10)
        if any(len(part) == 13 for part in parts):
            raise RuntimeError("thirteen")
        return [len(part) for part in parts]


@pytest.fixture
def model():
    return Slow()


@pytest.fixture
def batcher(model):
    batcher = Batcher(4.0)
    yield batcher
    model.let.set()
    batcher.close()


def part(length: int) -> np.ndarray:
    return np.zeros(length, np.int16)


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_what_waits_is_heard_together_up_to_the_limit_and_in_order(model, batcher):
    first = batcher.submit(part(1), model)
    until(lambda: model.calls)
    rest = [batcher.submit(part(length), model) for length in (2, 3, 5 * SECOND, 4, 5)]
    model.let.set()
    assert [each.result(10) for each in [first, *rest]] == [1, 2, 3, 5 * SECOND, 4, 5]
    assert 2 * shape_of(1) <= 4 * SECOND < 3 * shape_of(1)
    assert model.calls == [[1], [2, 3], [5 * SECOND], [4, 5]]  # one that is larger than the limit comes alone
    assert len(model.threads) == 1
    assert (batcher.windows, batcher.batches) == (6, 4)


def test_batches_are_of_one_model_and_the_oldest_window_comes_first(model, batcher):
    other = Slow()
    other.let.set()
    first = batcher.submit(part(1), model)
    until(lambda: model.calls)
    models = {2: other, 3: model, 4: other, 5: model}
    rest = [batcher.submit(part(length), each) for length, each in models.items()]
    model.let.set()
    assert [each.result(10) for each in (first, *rest)] == [1, 2, 3, 4, 5]
    assert (model.calls, other.calls) == ([[1], [3, 5]], [[2, 4]])


def test_a_request_that_gives_up_leaves_the_others_alone(model, batcher):
    first = batcher.submit(part(1), model)
    until(lambda: model.calls)
    caller, raised = Caller(batcher, model), []

    def encode():
        try:
            caller.encode([part(7), part(8)])
        except GivenUpError as error:
            raised.append(error)

    thread = threading.Thread(target=encode)
    thread.start()
    until(lambda: len(batcher._waiting) == 2)
    other = batcher.submit(part(9), model)
    caller.cancel()
    thread.join(10)
    assert len(raised) == 1
    model.let.set()
    assert (first.result(10), other.result(10)) == (1, 9)
    assert model.calls == [[1], [9]]
    with pytest.raises(GivenUpError):
        caller.encode([part(1)])


def test_an_error_reaches_those_whose_batch_it_was_and_no_others(model, batcher):
    model.let.set()
    with pytest.raises(RuntimeError, match="thirteen"):
        Caller(batcher, model).encode([part(13)])
    assert Caller(batcher, model).encode([part(length) for length in range(30, 40)]) == list(range(30, 40))


def test_closing_ends_the_thread_and_whoever_waits(model):
    batcher = Batcher(4.0)
    first = batcher.submit(part(1), model)
    until(lambda: model.calls)
    waiting = batcher.submit(part(2), model)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    until(waiting.cancelled)
    model.let.set()
    closing.join(10)
    assert first.result() == 1
    assert not batcher._thread.is_alive()
    with pytest.raises(GivenUpError):
        batcher.submit(part(3), model)
