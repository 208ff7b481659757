"""Span corruption against a slow oracle of the layout, and its gaps against what T5 promises."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.nn import functional
from jax_speechlm.objectives.lm.span_corruption import (
    SpanCorruption,
    corrupt,
    corrupted_length,
    draw_gaps,
    most_spans,
)
from tests.objectives.text import MODEL, TOKENIZER, documents, pack

TIME, RATIO, SPAN, MARKERS = 40, 0.3, 2.0, 8
VOCABULARY = Vocabulary.of(TOKENIZER, MARKERS)
SPANS = most_spans(TIME, RATIO, SPAN)
ROWS = [documents(0, [9, 14]), documents(1, [7, 4, 11]), documents(2, [30]), [], documents(3, [2]), documents(4, [38])]


def corrupted(tokens: list[int], gaps: list[bool]) -> tuple[list[int], int]:
    """The two parts written out, and where the second begins."""
    first, second, marker = [], [], VOCABULARY.sentinel
    for gap, run in itertools.groupby(zip(tokens, gaps, strict=True), key=lambda pair: pair[1]):
        run = [token for token, _ in run]
        if gap:
            first.append(marker)
            second += [marker, *run]
            marker += 1
        else:
            first += run
    return first + second + [VOCABULARY.boundary], len(first)


@settings(max_examples=60)
@given(gaps=st.lists(st.booleans(), min_size=1, max_size=12).filter(any), padding=st.integers(0, 5))
def test_the_layout_equals_the_oracle(gaps, padding):
    gaps, tokens = gaps[:12], list(range(1, len(gaps) + 1))
    padded = np.zeros((1, 17), np.int32) + 5  # junk behind
    padded[0, : len(tokens)] = tokens
    where = np.zeros((1, 17), bool)
    where[0, : len(gaps)] = gaps
    run = _corrupt()(padded, np.array([len(tokens)], np.int32), where)
    expected, answer = corrupted(tokens, gaps)
    assert run.tokens[0, : run.length[0]].tolist() == expected
    assert int(run.answer[0]) == answer
    assert not run.tokens[0, run.length[0] :].any()


@functools.cache
def _corrupt():
    return jax.jit(lambda tokens, length, gaps: corrupt(tokens, length, gaps, VOCABULARY, MARKERS))


@functools.cache
def drawer(num_tokens: int, ratio: float, span: float):
    spans = most_spans(num_tokens, ratio, span)
    return jax.jit(lambda keys, lengths: draw_gaps(keys, lengths, num_tokens, ratio, span, spans))


def runs(gaps: np.ndarray) -> list[tuple[bool, int]]:
    return [(bool(gap), len(list(run))) for gap, run in itertools.groupby(gaps)]


@pytest.mark.parametrize(("ratio", "span"), [(0.15, 3.0), (0.5, 1.0), (0.3, 2.0)])
def test_gaps_have_the_promised_number_and_length(ratio, span):
    lengths = np.arange(0, 41)
    gaps = np.asarray(drawer(TIME, ratio, span)(jax.random.split(jax.random.key(0), 41), lengths))
    for length, row in zip(lengths, gaps, strict=True):
        assert not row[length:].any()
        if length < 2:
            assert not row.any()
            continue
        found = runs(row[:length])
        noise = min(max(1, round(ratio * length)), length - 1)
        assert abs(row.sum() - noise) <= (1 if abs(ratio * length % 1 - 0.5) < 1e-4 else 0)
        noise = int(row.sum())
        assert sum(gap for gap, _ in found) == min(max(1, round(noise / span)), noise, length - noise)
        assert found[0][0] is False
        assert found[-1][0] is True


def test_every_way_to_cut_is_as_likely():
    draws = 6000
    gaps = np.asarray(drawer(9, 0.5, 2.0)(jax.random.split(jax.random.key(2), draws), np.full(draws, 9)))
    # 4 tokens in 2 gaps: 3 ways; 5 tokens before and between them: 4 ways.
    ways, counts = np.unique(gaps, axis=0, return_counts=True)
    assert len(ways) == 12
    statistic = ((counts - draws / 12) ** 2 / (draws / 12)).sum()
    assert statistic < 11 + 4.5 * 22**0.5


@functools.cache
def objective():
    config = SpanCorruption(ratio=RATIO, mean_span=SPAN, sentinels=MARKERS)
    built = config.build(MODEL, None, TOKENIZER)
    params = jax.tree.map(lambda leaf: 3 * leaf, functional.init(built.make, jax.random.key(0)))
    return built, params, jax.jit(built.loss)


def test_the_loss_is_that_of_the_answers():
    built, params, run = objective()
    batch = pack(ROWS, TIME)
    loss, metrics = run(params, batch, None)
    keys = jax.vmap(lambda row: jax.random.fold_in(jax.random.key(0), row))(jnp.asarray(batch["example_id"]))
    lengths = (batch["segment"] > 0).sum(1)
    gaps = np.asarray(drawer(TIME, RATIO, SPAN)(keys, lengths))

    @jax.jit
    def logits(params, tokens):
        transformer = functional.bind(functional.declare(built.make).graphdef, params).transformer
        place = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        return transformer.logits(transformer(tokens, place * 0 + 1, place))

    nll, hits, count = 0.0, 0, 0
    for row in np.flatnonzero(batch["weight"]):
        ids, answer = corrupted(batch["tokens"][row, : lengths[row]].tolist(), gaps[row, : lengths[row]].tolist())
        padded = np.zeros((1, corrupted_length(TIME, SPANS)), np.int32)
        padded[0, : len(ids)] = ids
        scores = np.asarray(logits(params, padded)[0], np.float64)
        for place in range(answer, len(ids) - 1):
            nll += np.log(np.exp(scores[place]).sum()) - scores[place, ids[place + 1]]
            hits += scores[place].argmax() == ids[place + 1]
            count += 1
    np.testing.assert_allclose(metrics["loss"], (nll, count), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], (hits, count))
    np.testing.assert_allclose(loss, nll / count, rtol=1e-5)


def test_settings_that_cannot_work_are_refused():
    with pytest.raises(ValueError, match=r"--model\.causal True"):
        SpanCorruption().build(MODEL.replace(causal=False), None, TOKENIZER)
    built = SpanCorruption(sentinels=2).build(MODEL, None, TOKENIZER)
    with pytest.raises(ValueError, match=r"--objective\.sentinels 3"):
        built.forward_flops(64, 1)
