from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_speechlm.models import rope
from jax_speechlm.models.transformer import Transformer, init_cache
from jax_speechlm.models.transformer_config import FORMS, SIZES, LearnedPositions, TransformerConfig, forward_flops
from jax_speechlm.nn import functional

VOCAB, TIME = 24, 16
CAUSAL = TransformerConfig(
    dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=24, window=4, global_every=2,
    local_rope_theta=100.0, dropout=0.2,
)  # fmt: skip
BOTH_WAYS = CAUSAL.replace(**FORMS["modernbert"], norm_epsilon=1e-5, num_kv_heads=4, tied=False)
LATE = CAUSAL.replace(
    global_every=None, global_layers=(0, 1), local_rope_theta=None, rope_scaling=rope.Linear(factor=3.0)
)
LEARNT = BOTH_WAYS.replace(**FORMS["bert"], positions=LearnedPositions(size=64, first=2, token_types=2))
CONFIGS = {"causal": CAUSAL, "windows in the last layer": LATE, "both ways": BOTH_WAYS, "learnt positions": LEARNT}


def model(config, vocab_size=VOCAB):
    """The graph of a model and parameters that are nowhere 0 or 1."""

    def make(rngs):
        return Transformer(config, vocab_size, rngs=rngs)

    params, rng = functional.init(make, jax.random.key(0)), np.random.default_rng(0)
    params = jax.tree.map(lambda x: x + 0.2 * rng.standard_normal(x.shape, np.float32), params)
    return functional.declare(make).graphdef, params


@partial(jax.jit, static_argnames="graphdef")
def apply(graphdef, params, tokens, segment, position, keys=None):
    bound = functional.bind(graphdef, params)
    return bound.logits(bound(tokens, segment, position, keys))


MODELS = {name: model(config) for name, config in CONFIGS.items()}


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


def documents(lengths, seed):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB, length).astype(np.int32) for length in lengths]


@pytest.mark.parametrize("form", CONFIGS)
@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4).filter(lambda lengths: sum(lengths) <= TIME),
    order=st.permutations(range(4)),
    seed=st.integers(0, 99),
)
def test_a_document_depends_on_its_own_tokens_only(form, lengths, order, seed):
    """Not on other segments of the row, on padding and its values, or on the order of rows."""
    ours = documents(lengths, seed)
    rows = [ours, documents((5, 6), seed + 1), documents((TIME,), seed + 2), []]
    packed = apply(*MODELS[form], *pack([rows[r] for r in order], seed=seed))[order.index(0)]
    alone = apply(*MODELS[form], *pack([[document] for document in ours] + [[]] * (4 - len(ours)), seed=seed + 3))
    start = 0
    for row, length in enumerate(lengths):
        np.testing.assert_allclose(packed[start : start + length], alone[row, :length], atol=1e-5)
        start += length


@pytest.mark.parametrize("form", CONFIGS)
@pytest.mark.parametrize("position", [0, 6, TIME - 1])
def test_one_layer_sees_the_window_and_no_further(form, position):
    """Every token within reach of a changed one changes, at the row's ends too, and no other."""
    window = 4
    graphdef, params = model(
        CONFIGS[form].replace(num_layers=1, window=window, global_every=None, global_layers=(), dropout=0.0)
    )
    tokens, segment, positions = pack([documents((TIME,), 0)])
    changed = tokens.copy()
    changed[0, position] = (changed[0, position] + 1) % VOCAB
    before, after = (apply(graphdef, params, x, segment, positions)[0] for x in (tokens, changed))
    distance = np.arange(TIME) - position
    reach = (distance >= (0 if CONFIGS[form].causal else -window)) & (distance <= window)
    assert ((np.abs(before - after).max(-1) > 1e-4) == reach).all()
    np.testing.assert_array_equal(before[~reach], after[~reach])


@jax.jit
def decode(params, tokens, position, cache):
    bound = functional.bind(MODELS["causal"][0], params)
    hidden, cache = bound.decode(tokens, position, cache)
    return bound.logits(hidden), cache


class TestDecoding:
    tokens, segment, position = pack([documents((TIME,), seed) for seed in range(3)])
    expected = apply(*MODELS["causal"], tokens, segment, position)
    params = MODELS["causal"][1]

    def test_step_by_step_is_the_whole_forward_pass(self):
        cache = init_cache(CAUSAL, 3, TIME + 2)
        for t in range(TIME):
            logits, cache = decode(self.params, self.tokens[:, t : t + 1], self.position[:, t : t + 1], cache)
            np.testing.assert_allclose(logits[:, 0], self.expected[:, t], atol=1e-5)

    @pytest.mark.parametrize("side", ["left", "right"])
    def test_prompts_of_mixed_length_then_one_by_one(self, side):
        lengths = np.array([1, 9, 4])
        width = lengths.max()
        tokens, position = np.full((3, width), 7, np.int32), np.full((3, width), -1, np.int32)
        for row, length in enumerate(lengths):
            place = slice(width - length, width) if side == "left" else slice(length)
            tokens[row, place], position[row, place] = self.tokens[row, :length], np.arange(length)
        cache = jax.tree.map(
            lambda x: x + 1e4, init_cache(CAUSAL, 3, TIME)
        )  # entries that were never written are never read
        logits, cache = decode(self.params, tokens, position, cache)
        for row, length in enumerate(lengths):
            real = logits[row][position[row] >= 0]
            np.testing.assert_allclose(real, self.expected[row, :length], atol=1e-5)
        for step in range(TIME - width):
            at = (lengths + step)[:, None]
            logits, cache = decode(self.params, np.take_along_axis(self.tokens, at, 1), at.astype(np.int32), cache)
            np.testing.assert_allclose(logits, np.take_along_axis(self.expected, at[..., None], 1), atol=1e-5)

    def test_a_row_may_go_back(self):
        cache = init_cache(CAUSAL, 3, TIME)
        _, cache = decode(self.params, (self.tokens + 1) % VOCAB, self.position, cache)
        _, cache = decode(self.params, self.tokens[:, :8], self.position[:, :8], cache)
        logits, _ = decode(self.params, self.tokens[:, 8:9], self.position[:, 8:9], cache)
        np.testing.assert_allclose(logits[:, 0], self.expected[:, 8], atol=1e-5)

    def test_learnt_positions_go_on_behind_the_prompt(self):
        config = CAUSAL.replace(num_layers=1, positions=LearnedPositions(size=TIME, token_types=1))
        graphdef, params = model(config)
        bound, cache, found = functional.bind(graphdef, params), init_cache(config, 3, TIME), []
        for part in (slice(0, TIME - 1), slice(TIME - 1, TIME)):
            tokens, position = jnp.asarray(self.tokens[:, part]), jnp.asarray(self.position[:, part])
            hidden, cache = bound.decode(tokens, position, cache)
            found.append(bound.logits(hidden))
        expected = apply(graphdef, params, self.tokens, self.segment, self.position)
        np.testing.assert_allclose(jnp.concatenate(found, 1), expected, atol=1e-5)

    def test_only_causal_models_continue(self):
        bound = functional.bind(*MODELS["both ways"])
        with pytest.raises(ValueError, match="only a causal model"):
            bound.decode(jnp.asarray(self.tokens), jnp.asarray(self.position), init_cache(BOTH_WAYS, 3, TIME))


def next_token_loss(graphdef, params, tokens, segment, position, keys):
    logits = apply(graphdef, params, tokens, segment, position, keys)[:, :-1]
    real = (segment[:, 1:] == segment[:, :-1]) & (segment[:, 1:] > 0)
    losses = -jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[:, 1:, None], axis=-1)[..., 0]
    return jnp.sum(losses * real) / jnp.maximum(jnp.sum(real), 1)


@partial(jax.jit, static_argnames="graphdef")
def loss_and_gradients(graphdef, params, *batch):
    return jax.value_and_grad(partial(next_token_loss, graphdef))(params, *batch)


def test_remat_changes_memory_only():
    batch = *pack([documents((9, 5), 0), documents((TIME,), 1)]), jax.random.split(jax.random.key(0), 2)
    expected = loss_and_gradients(*MODELS["causal"], *batch)
    for remat in ("none", "full"):
        graphdef, _ = model(CAUSAL.replace(remat=remat))
        got = loss_and_gradients(graphdef, MODELS["causal"][1], *batch)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, expected)


@pytest.mark.parametrize("form", CONFIGS)
def test_bfloat16_computes_close_to_float32_and_returns_float32(form):
    config = CONFIGS[form].replace(dtype="bfloat16")
    batch = pack([documents((9, 5), 0)])
    low = apply(model(config)[0], MODELS[form][1], *batch)
    assert low.dtype == jnp.float32
    difference = np.abs(low - apply(*MODELS[form], *batch))[0, :14]
    assert 0 < difference.max() < 0.3
    assert init_cache(config, 1, 4)["key"].dtype == jnp.bfloat16


def test_initial_logits_are_near_uniform_and_the_stream_does_not_grow_with_depth():
    def spread(num_layers):
        config = TransformerConfig(dim=128, num_layers=num_layers, num_heads=4, num_kv_heads=4, head_dim=32)

        def make(rngs):
            return Transformer(config, VOCAB, rngs=rngs)

        params = functional.init(make, jax.random.key(0))
        layers = params["layers"]
        scale = sum(jnp.var(layers[a][b]["kernel"]) for a, b in (("attention", "out"), ("ffn", "down"))) * num_layers
        logits = apply(functional.declare(make).graphdef, params, *pack([documents((TIME,), 0)]))
        return scale, logits.std()

    (few, logits), (many, _) = spread(2), spread(8)
    assert float(few) == pytest.approx(float(many), rel=0.05)
    assert 0.1 < float(logits) < 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_kv_heads": 3}, "multiple of num_kv_heads"),
        ({"head_dim": 5}, "must be even"),
        ({"positions": {"size": 2, "first": 2}}, "must be below size"),
        ({"window": None}, "set window"),
        ({"attention": "cudnn"}, "bfloat16 only"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(pydantic.ValidationError, match=message):
        CAUSAL.replace(**change)


def num_parameters(config, vocab_size):
    declared = functional.declare(lambda rngs: Transformer(config, vocab_size, rngs=rngs))
    return sum(leaf.size for leaf in jax.tree.leaves(declared.shapes))


@pytest.mark.parametrize(
    ("size", "without_vocabulary"),
    [
        ("1M", 1_005_248),
        ("5M", 4_820_992),
        ("25M", 25_699_840),
        ("110M", 84_955_392),
        ("0.6B", 440_467_456),
        ("1.7B", 1_409_410_048),
        ("8B", 6_946_075_648),
    ],
)
def test_sizes(size, without_vocabulary):
    config, vocab_size = SIZES[size], 100
    tables = 1 if config.tied else 2
    assert num_parameters(config, vocab_size) == without_vocabulary + tables * vocab_size * config.dim


def test_the_sizes_named_after_qwen3_have_its_published_number_of_parameters():
    sizes = [num_parameters(SIZES[size], 151_936) for size in ("0.6B", "1.7B", "8B")]
    assert sizes == [596_049_920, 1_720_574_976, 8_190_735_360]


@pytest.mark.parametrize("form", CONFIGS)
def test_flops_are_what_xla_counts(form):
    """XLA multiplies the hidden pairs too. On one layer, because it counts a scan's body once."""
    config = CONFIGS[form].replace(
        dim=256,
        num_layers=1,
        head_dim=64,
        ffn_dim=512,
        window=None,
        global_every=None,
        global_layers=(),
        local_rope_theta=None,
    )
    batch, time, vocab = 2, 60, 600
    declared = functional.declare(lambda rngs: Transformer(config, vocab, rngs=rngs))
    row = jax.ShapeDtypeStruct((batch, time), jnp.int32)
    counted = apply.lower(declared.graphdef, declared.shapes, row, row, row).cost_analysis()["flops"]
    hidden = 2.0 * batch * 2 * config.num_heads * config.head_dim * time * (time - 1) / 2 * config.causal
    assert forward_flops(config, vocab, time, batch) + hidden == pytest.approx(counted, rel=0.05)


def test_flops_count_the_pairs_that_attention_may_see():
    def flops(**changes):
        return forward_flops(CAUSAL.replace(**changes), VOCAB, TIME, 3)

    def pairs(reach):
        return sum(min(t, reach) + 1 for t in range(TIME))

    a_pair = 3 * 2 * 2 * CAUSAL.num_heads * CAUSAL.head_dim
    assert flops(global_every=1) - flops(global_every=None) == pytest.approx(3 * a_pair * (pairs(TIME) - pairs(4)))
    assert flops(global_every=2) - flops(global_every=None) == pytest.approx(2 * a_pair * (pairs(TIME) - pairs(4)))
    both_ways = flops(global_every=None, causal=False) - flops(global_every=None)
    assert both_ways == pytest.approx(3 * a_pair * (pairs(4) - TIME))


def test_a_row_beyond_the_learnt_positions_is_refused():
    graphdef, params = model(LEARNT.replace(positions=LearnedPositions(size=TIME, first=1)))
    with pytest.raises(ValueError, match="a row of 16 tokens is longer than the 15 positions"):
        apply(graphdef, params, *pack([documents((TIME,), 0)]))
