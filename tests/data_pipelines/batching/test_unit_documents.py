"""Documents of units and of interleaved words hold what their utterances do, once, whatever is drawn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.batching.packing import make_text_eval_plan, make_text_plan
from data_pipelines.batching.text import open_text_batches
from data_pipelines.batching.unit_documents import (
    Markers,
    draw_stretches,
    interleaved_documents,
    spoken_documents,
    word_frames,
)
from data_pipelines.core.errors import DataError
from data_pipelines.storage.index import read_index, read_sets
from data_pipelines.storage.tokens import TokenStore, open_tokens
from data_pipelines.storage.units import deduplicate, read_units
from data_pipelines.storage.word_times import find_word_times, read_word_times
from data_pipelines.tokenizers.base import CharTokenizer
from tests.data_pipelines.spoken_sets import align_evenly, write_spoken_set
from tests.data_pipelines.text_sets import write_text_set
from tests.data_pipelines.unit_sets import label, make_units

TOKENIZER = CharTokenizer("abcdefgh ")
BOUNDARY, MARKERS = 10, Markers(speech=12, text=13, first_unit=14)
TEXTS = ["a bad cab", "", "head", "a bed had a cafe beach ahead", "bad dad fed", "dead beach cage", "h g"]
ROWS = [(text, 16_000 + 977 * number) for number, text in enumerate(TEXTS)] + [("too short", 100)]
FAILED = [4]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """(index of two sets, units, codes of every row, spans of every row)"""
    root = tmp_path_factory.mktemp("sets")
    write_spoken_set(root / "one", {"train": ROWS[:5]})
    write_spoken_set(root / "two", {"train": ROWS[5:]})
    index = read_sets(root, ("one", "two"), "train")
    units = make_units(root / "units")
    spans = align_evenly(index.parts[0], FAILED) + align_evenly(index.parts[1])
    return index, units, label(index, units), spans


def interleave(prepared, **changes):
    index, units, *_ = prepared
    options = {"mean_words": 2.0, "draws": 3, "seed": 0} | changes
    return interleaved_documents(index, units.path, TOKENIZER, MARKERS, **options)


def read(store: TokenStore, row: int) -> tuple[list[int], list[int]]:
    length = int(store.lengths[row])
    return store.read(row, 0, length).tolist(), store.frames(row, 0, length).tolist()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30))
def test_units_and_their_frames_give_the_codes_back(codes):
    units, frames = deduplicate(np.array(codes, np.uint16))
    assert [(unit, len(list(run))) for unit, run in itertools.groupby(codes)] == list(
        zip(units.tolist(), frames.tolist(), strict=True)
    )


@given(num_words=st.integers(2, 60), mean=st.floats(1, 50), key=st.integers(0, 2**64 - 1))
def test_stretches_cover_every_word_once_and_change_kind(num_words, mean, key):
    stretches = draw_stretches(num_words, mean, key)
    assert [word for each in stretches for word in range(each.first, each.stop)] == list(range(num_words))
    assert len(stretches) > 1
    assert all(one.spoken != other.spoken for one, other in itertools.pairwise(stretches))
    assert stretches == draw_stretches(num_words, mean, key)


def test_stretches_are_as_long_as_asked_and_begin_either_way():
    drawn = [draw_stretches(1000, 5.0, key) for key in range(30)]
    assert 4.5 < np.mean([each.stop - each.first for stretches in drawn for each in stretches]) < 5.5
    assert {stretches[0].spoken for stretches in drawn} == {True, False}
    assert drawn[0] != drawn[1]
    # One cut is made where none was drawn, anywhere.
    assert {draw_stretches(4, 1e9, key)[0].stop for key in range(40)} == {1, 2, 3}


@given(st.lists(st.integers(0, 3000), min_size=1, max_size=20), st.integers(0, 40))
def test_word_frames_part_all_frames_in_order(steps, num_frames):
    bounds = np.cumsum(steps)
    first = word_frames(np.stack([bounds, bounds + 10], axis=1), num_frames, 320)
    assert len(first) == len(steps) + 1
    assert (first[0], first[-1]) == (0, num_frames)
    assert (np.diff(first) >= 0).all()


def test_words_part_where_the_pause_between_them_is_halfway():
    spans = np.array([[0, 3000], [3400, 5000], [9800, 12_000]])
    assert word_frames(spans, 40, 320).tolist() == [0, 10, 23, 40]


def test_a_spoken_document_is_the_speech_token_and_the_units(prepared):
    index, units, codes, _ = prepared
    made = spoken_documents(index, units.path, MARKERS)
    for row, each in enumerate(codes):
        ids, frames = read(made.store, row)
        if not len(each):
            assert ids == []
            continue
        runs = [(unit, len(list(run))) for unit, run in itertools.groupby(each.tolist())]
        assert ids == [MARKERS.speech, *(unit + MARKERS.first_unit for unit, _ in runs)]
        assert frames == [0, *(length for _, length in runs)]
    assert made.missing == {"without units": 1}  # the last is shorter than a frame


def test_codes_of_a_codec_keep_their_repeats(tmp_path):
    write_spoken_set(tmp_path / "set", {"train": ROWS[:3]})
    index = read_sets(tmp_path, ("set",), "train")
    units = make_units(tmp_path / "codec", num_units=2, merges_repeats=False)
    assert not read_units(units.path).merges_repeats
    codes = label(index, units)
    align_evenly(index.parts[0])
    made = spoken_documents(index, units.path, MARKERS)
    for row, each in enumerate(codes):
        ids, frames = read(made.store, row)
        assert ids == [MARKERS.speech, *(each + MARKERS.first_unit).tolist()]
        assert frames == [0] + [1] * len(each)
    settings = {"mean_words": 2.0, "draws": 1, "seed": 0}
    mixed = interleaved_documents(index, units.path, TOKENIZER, MARKERS, **settings).store
    lengths = [len(read(mixed, row)[0]) for row in range(3)]
    assert lengths[0] > 20  # words of a second and more, at 50 codes a second
    assert {number for row in range(3) for number in read(mixed, row)[1]} == {0, 1}


def test_an_interleaved_document_holds_its_utterance_once(prepared):
    _, units, codes, spans = prepared
    made = interleave(prepared)
    assert len(made.store.lengths) == 3 * len(ROWS)
    kinds = set()
    for row, draw in itertools.product(range(len(ROWS)), range(3)):
        ids, frames = read(made.store, 3 * row + draw)
        words = ROWS[row][0].split()
        if spans[row] is None or len(words) < 2 or not len(codes[row]):
            assert ids == []
            continue
        first_frame = word_frames(spans[row], len(codes[row]), units.frame_samples)
        word, is_speech = 0, False
        kinds.add(ids[0] == MARKERS.speech)
        for marker, part in itertools.groupby(enumerate(ids), lambda each: each[1] in MARKERS[:2]):
            part = [place for place, _ in part]
            if marker:
                assert len(part) == 1
                is_speech = ids[part[0]] == MARKERS.speech
            elif is_speech:
                heard = [(ids[place] - MARKERS.first_unit, frames[place]) for place in part]
                heard = [unit for unit, count in heard for _ in range(count)]
                stop = first_frame.tolist().index(first_frame[word] + len(heard))
                assert heard == codes[row][first_frame[word] : first_frame[stop]].tolist()
                word = stop
            else:
                text = TOKENIZER.decode([ids[place] for place in part])
                assert text.split() == words[word : word + len(text.split())]
                assert not any(frames[place] for place in part)
                word += len(text.split())
        assert word == len(words)
    assert kinds == {True, False}
    # 3 draws each: rows 1 and 4 have no times, 2 is one word, the last has no frame
    assert made.missing == {"not aligned": 6, "of one word": 3, "without units": 3}


def test_interleaving_is_a_pure_function_of_its_settings(prepared, tmp_path):
    def everything(made):
        return [read(made.store, row)[0] for row in range(len(made.store.lengths))]

    first = everything(interleave(prepared))
    for part in prepared[0].parts:
        for path in part.index_path.parent.glob("*interleaved*"):
            path.unlink()
    assert everything(interleave(prepared)) == first
    assert everything(interleave(prepared)) == first  # as it was kept
    assert everything(interleave(prepared, seed=1)) != first
    assert everything(interleave(prepared, mean_words=5.0)) != first
    # More draws leave the first ones as they were, and other sets before it change nothing.
    assert everything(interleave(prepared, draws=4))[0:3] == first[0:3]
    index, *rest = prepared
    alone = interleave((read_index(index.parts[1].set_dir, "train"), *rest))
    assert everything(alone) == first[15:]


def test_a_row_of_text_is_that_of_a_model_of_text_and_speech_has_its_seconds(prepared, tmp_path):
    index, units, codes, _ = prepared
    texts = read_index(write_text_set(tmp_path / "text", {"train": TEXTS}), "train")
    tokens = open_tokens(texts, TOKENIZER)
    spoken = spoken_documents(index, units.path, MARKERS).store
    both = TokenStore.join([spoken, tokens])
    plan = make_text_eval_plan(both.lengths, context=16, sequences_per_batch=4)
    options = {"boundary": BOUNDARY, "frame_samples": units.frame_samples}
    batches = list(open_text_batches(both, plan, num_steps=plan.steps_per_epoch, **options))
    # A long document's pieces share a token: it is the target of the first alone.
    samples = sum(batch["samples"][:, 1:][batch["position"][:, 1:] > 0].sum() for batch in batches)
    assert samples == sum(map(len, codes)) * units.frame_samples
    assert sum((batch["samples"][batch["tokens"] < MARKERS.first_unit] != 0).sum() for batch in batches) == 0

    plan = make_text_plan(both.lengths, context=16, sequences_per_batch=4, seed=0)
    for step in range(3):
        (batch,) = open_text_batches(both, plan, start_step=step, num_steps=1, **options)
        planned = plan.batch(step)
        segments = batch["tokens"], batch["segment"]
        for number, row in enumerate(planned.row.tolist()):
            place = planned.place[number]
            within = number - int(np.searchsorted(planned.place, place)) + 1
            found = segments[0][place][segments[1][place] == within].tolist()
            ids = read(both, row)[0] if row < len(ROWS) else TOKENIZER.encode(TEXTS[row - len(ROWS)])
            start, length = int(planned.start[number]), int(planned.length[number])
            assert found == [BOUNDARY, *ids, BOUNDARY][start : start + length]


def test_what_is_not_there_is_named(prepared, tmp_path):
    _, units, *_ = prepared
    index = read_index(write_spoken_set(tmp_path / "three", {"train": ROWS}), "train")
    with pytest.raises(DataError, match=r"three/train is not labelled .* jax-speechlm units label"):
        spoken_documents(index, units.path, MARKERS)
    label(index, units)
    with pytest.raises(DataError, match=r"three/train: its words have no times.*align RUN --sets three --split train"):
        interleave((index, units, None, None))
    align_evenly(index.parts[0])
    path = next((tmp_path / "three" / "index").glob("train.words-*.npz"))
    path.write_bytes(path.read_bytes()[:100])
    assert find_word_times(index.parts[0]) is None
    with pytest.raises(DataError, match="its words have no times"):
        read_word_times(index.parts[0])


@settings(max_examples=5)
@given(st.integers(0, 3))
def test_word_times_come_back(prepared, row):
    times = read_word_times(prepared[0].parts[0])
    expected = prepared[3][row]
    assert times.of(row).tolist() == ([] if expected is None else expected.tolist())
