"""Greedy CTC decoding against a plain reading of its definition."""

import itertools

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.decoding.ctc.greedy import best_path, collapse

PATHS = st.integers(0, 20).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=5)
)


def test_repeats_merge_and_a_blank_keeps_equal_tokens_apart():
    assert collapse(np.array([[0, 3, 3, 0, 3, 2, 2, 0]])) == [[3, 3, 2]]


@given(PATHS)
def test_collapse_merges_runs_then_drops_blanks(paths):
    expected = [[token for token, _ in itertools.groupby(path) if token != 0] for path in paths]
    assert collapse(np.array(paths, np.int32).reshape(len(paths), -1)) == expected


@settings(max_examples=20)
@given(seed=st.integers(0, 99), length=st.integers(0, 12))
def test_a_row_does_not_depend_on_padding_or_on_other_rows(seed, length):
    logits = np.random.default_rng(seed).standard_normal((3, 12, 4)).astype(np.float32)
    alone = collapse(np.asarray(best_path(jnp.asarray(logits[:1, :length]), jnp.array([length]))))
    together = collapse(np.asarray(best_path(jnp.asarray(logits), jnp.array([length, 12, 0]))))
    assert (together[0], together[2]) == (alone[0], [])
