"""Records are read in parallel and ahead, as many at a time as asked and no more, and batches stay the same."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data_pipelines.batching.noise import NoiseReader
from data_pipelines.batching.plan import make_eval_plan, make_plan
from data_pipelines.batching.read_ahead import ReadAhead
from data_pipelines.batching.speech import open_batches
from data_pipelines.storage.index import read_index
from data_pipelines.storage.records import RecordReader
from tests.data_pipelines.prepared import noise, write_prepared

CLIPS = [(noise(i, 3000 + 731 * (i * 7 % 29)), str(i)) for i in range(45)]


class Storage:
    """Reads that end when `together` of them are in flight, or by `release`; counts them."""

    def __init__(self, together: int):
        self.together, self.in_flight, self.peak, self.read_items = together, 0, 0, []
        self._changed = threading.Condition()
        self._released = False

    def read(self, item):
        with self._changed:
            self.read_items.append(item)
            self.in_flight += 1
            self.peak = max(self.peak, self.in_flight)
            self._changed.notify_all()
            is_met = self._changed.wait_for(lambda: self._released or self.peak >= self.together, timeout=60)
            self.in_flight -= 1
        assert is_met, f"{self.peak} reads in flight at most, {self.together} expected"
        return item

    def release(self):
        with self._changed:
            self._released = True
            self._changed.notify_all()


def reader(pool, storage, items, ahead, start_step=0, stop_step=None):
    return ReadAhead(pool, storage.read, items, start_step=start_step, stop_step=stop_step, ahead=ahead)


def three_items(step):
    return [3 * step, None, 3 * step + 2]


class TestReadAhead:
    def test_reads_fill_the_pool_beyond_the_step_that_is_taken(self):
        storage = Storage(together=8)
        with ThreadPoolExecutor(8) as pool:
            reads = reader(pool, storage, three_items, ahead=12).take(0)
            assert [read and read.result() for read in reads] == [0, None, 2]
        assert storage.peak == 8

    def test_requests_are_bounded(self):
        storage, requested = Storage(together=1), []
        with ThreadPoolExecutor(2) as pool:
            ahead = reader(pool, storage, lambda step: requested.append(step) or three_items(step), ahead=7)
            for step in range(5):
                ahead.take(step)
                assert requested == list(range(step + 1 + 4))  # 4 steps have 8 items to read, the fewest over 7

    def test_the_next_step_is_requested_whatever_its_size(self):
        requested = []
        with ThreadPoolExecutor(2) as pool:
            reader(pool, Storage(1), lambda step: requested.append(step) or range(50), ahead=4).take(0)
        assert requested == [0, 1]

    def test_steps_taken_out_of_order_are_each_read_once_up_to_the_end(self):
        storage = Storage(together=1)
        with ThreadPoolExecutor(4) as pool:
            ahead = reader(pool, storage, three_items, ahead=20, start_step=5, stop_step=9)
            for step in (7, 5, 6, 8):
                assert [read and read.result() for read in ahead.take(step)] == three_items(step)
        assert sorted(storage.read_items) == [item for step in range(5, 9) for item in three_items(step) if item]

    def test_steps_without_items_do_not_request_for_ever(self):
        requested = []
        with ThreadPoolExecutor(1) as pool:
            assert reader(pool, Storage(1), lambda step: requested.append(step) or [], ahead=4).take(0) == []
        assert len(requested) == 5

    def test_an_error_stays_with_its_read(self):
        def read(item):
            if item == 3:
                raise OSError("no such block")
            return item

        with ThreadPoolExecutor(2) as pool:
            ahead = ReadAhead(pool, read, lambda step: [2 * step, 2 * step + 1], start_step=0, stop_step=3, ahead=6)
            assert [read.result() for read in ahead.take(0)] == [0, 1]
            first, second = ahead.take(1)
            assert first.result() == 2
            with pytest.raises(OSError, match="no such block"):
                second.result()
            assert [read.result() for read in ahead.take(2)] == [4, 5]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return read_index(write_prepared(tmp_path_factory.mktemp("sets") / "a", {"train": CLIPS}), "train")


@pytest.fixture(scope="module")
def plan(index):
    return make_plan(index.num_samples, seconds_per_batch=3, seed=5, num_buckets=3)


def patch_read(monkeypatch, before):
    """Runs `before(row)` before every read of a record."""
    read = RecordReader.read
    monkeypatch.setattr(RecordReader, "read", lambda self, row: (before(row), read(self, row))[1])


def test_records_of_several_batches_are_read_at_a_time(index, plan, monkeypatch):
    storage = Storage(together=24)
    rows = max(bucket.batch_size for bucket in plan.buckets)
    assert rows < 12, "two batches must have fewer records than are read at a time"
    patch_read(monkeypatch, storage.read)
    batches = open_batches(index, plan, parallel=2, num_reads=24, prefetch=1)
    for _ in range(6):
        next(batches)
    batches.close()
    assert storage.peak == 24
    # taken: 6 batches, 1 ahead for the caller, 1 prefetched, 2 under assembly; and 24 records more, to whole batches
    assert len(storage.read_items) <= 10 * rows + 24 + rows


def test_uneven_latency_changes_no_batch_and_no_count(tmp_path, index, monkeypatch):
    folder = write_prepared(tmp_path / "bad", {"test": CLIPS}, corrupt=[2, 7, 40])
    hiss = NoiseReader(read_index(write_prepared(tmp_path / "hiss", {"train": [(noise(100, 900), "")]}), "train"), 5)
    index = read_index(folder, "test")
    plan = make_eval_plan(index.num_samples, seconds_per_batch=4)

    def read_all(**options):
        batches = open_batches(index, plan, noise=hiss, num_steps=2 * plan.steps_per_epoch, **options)
        return list(batches), batches.bad, sorted(batches.bad_records)

    alone, *counts = read_all(parallel=1, num_reads=1)
    delays = np.random.default_rng(0).permutation(len(CLIPS)) / 2000
    patch_read(monkeypatch, lambda row: time.sleep(delays[row]))
    together, *slow_counts = read_all(parallel=3, num_reads=32)
    assert counts == slow_counts
    assert counts[0] == 3
    assert len(alone) == len(together) == 2 * plan.steps_per_epoch
    for one, other in zip(alone, together, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_closing_ends_the_threads_that_read(index, plan, monkeypatch, caplog):
    storage, before = Storage(together=10**9), set(threading.enumerate())  # those of batches that nothing closed
    patch_read(monkeypatch, storage.read)
    batches = open_batches(index, plan, parallel=2, num_reads=4, prefetch=1)
    closing = threading.Thread(target=batches.close)
    closing.start()
    storage.release()
    closing.join(timeout=60)
    assert not closing.is_alive()
    added = set(threading.enumerate()) - before
    assert not [thread for thread in added if thread.name.startswith("read-records")]
    assert batches.bad == 0
    assert not caplog.records, "a cancelled read was taken for a damaged record"
