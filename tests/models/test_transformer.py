from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.models import functional
from jax_speechlm.models.transformer import Transformer, TransformerConfig, forward_flops, init_cache

VOCAB, TIME = 23, 16
CAUSAL = TransformerConfig(
    dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=24, window=4, global_every=2,
    local_rope_theta=100.0, dropout=0.2,
)  # fmt: skip
BOTH_WAYS = CAUSAL.replace(
    causal=False, norm="layer", activation="gelu", query_key_norm=False, embedding_norm=True, prediction_head=True,
    num_kv_heads=4, norm_epsilon=1e-5,
)  # fmt: skip
FORMS = {"causal": CAUSAL, "both_ways": BOTH_WAYS}


def model(config):
    """The graph of a model and parameters that are nowhere 0 or 1."""
    make = lambda rngs: Transformer(config, VOCAB, rngs=rngs)  # noqa: E731
    params = functional.init(make, jax.random.key(0))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), params)
    return functional.declare(make).graphdef, params


@partial(jax.jit, static_argnames="graphdef")
def apply(graphdef, params, tokens, segment, position, keys=None):
    bound = functional.bind(graphdef, params)
    return bound.logits(bound(tokens, segment, position, keys))


MODELS = {name: model(config) for name, config in FORMS.items()}


def pack(rows, time=TIME, seed=0):
    """Rows of documents as (tokens, segment, position); padding holds junk."""
    tokens = np.random.default_rng(seed).integers(0, VOCAB, (len(rows), time)).astype(np.int32)
    segment, position = np.zeros_like(tokens), np.zeros_like(tokens)
    for r, documents in enumerate(rows):
        start = 0
        for d, document in enumerate(documents):
            place = slice(start, start := start + len(document))
            tokens[r, place], segment[r, place], position[r, place] = document, d + 1, np.arange(len(document))
    return tokens, segment, position


def documents_of(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=12, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) <= TIME),
    rows=st.permutations(range(3)),
    seed=st.integers(0, 99),
)
def test_a_document_depends_on_its_own_tokens_only(form, cuts, rows, seed):
    """Not on what it is packed with, nor on padding, batch size or the order of rows."""
    documents = documents_of(cuts, seed)
    others = [documents_of((5, 6), seed + 1), documents_of((TIME,), seed + 2)]
    together = apply(*MODELS[form], *(x[list(rows)] for x in pack([documents, *others], seed=seed)))
    packed = together[rows.index(0)]
    alone = apply(*MODELS[form], *pack([[document] for document in documents] + [[]] * (4 - len(cuts)), seed=seed + 3))
    start = 0
    for row, document in enumerate(documents):
        expected = alone[row, : len(document)]
        np.testing.assert_allclose(packed[start : start + len(document)], expected, atol=1e-5)
        start += len(document)


@jax.jit
def decode(params, tokens, position, cache):
    bound = functional.bind(MODELS["causal"][0], params)
    hidden, cache = bound.decode(tokens, position, cache)
    return bound.logits(hidden), cache


def test_cached_decoding_is_the_whole_forward_pass_step_by_step():
    tokens, segment, position = pack([documents_of((TIME,), 0), documents_of((TIME,), 1)])
    expected = apply(*MODELS["causal"], tokens, segment, position)
    cache = init_cache(CAUSAL, 2, TIME)
    for t in range(TIME):
        logits, cache = decode(MODELS["causal"][1], tokens[:, t : t + 1], position[:, t : t + 1], cache)
        np.testing.assert_allclose(logits[:, 0], expected[:, t], atol=1e-5)
