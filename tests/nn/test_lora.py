"""LoRA against dense kernels W + (alpha / rank) A B, through a scan over layers; merging and unmerging."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from jax_speechlm.models.conformer import ConformerConfig
from jax_speechlm.models.speech_lm import SpeechLMConfig, SpeechTransformer
from jax_speechlm.models.transformer_config import TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.lora import LoRA, merge, unmerge

TARGETS = ("transformer/layers/attention", "transformer/layers/ffn/down", "encoder/layers/ffn1/expand", "encoder/input")
PLAIN = SpeechLMConfig(
    encoder=ConformerConfig(input_dim=5, dim=8, num_layers=2, num_heads=2, kernel_size=3),
    transformer=TransformerConfig(dim=16, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=6, ffn_dim=20),
)
ADAPTED = PLAIN.replace(lora=LoRA(rank=3, alpha=6.0, targets=TARGETS))
VOCAB = 24


@functools.cache
def made(config):
    """(initial parameters, compiled hidden states)."""

    def make(rngs):
        return SpeechTransformer(config, VOCAB, rngs=rngs)

    graphdef = functional.declare(make).graphdef

    def run(params, x, length, tokens):
        model = functional.bind(graphdef, params).with_lora()
        speech, count = model.encode_speech(x, length)
        none = np.zeros(0, np.int32)
        answer = tokens[:, None], jnp.full((len(tokens), 1), 4)
        sequence = model.lay_out(np.array([1], np.int32), speech, count, none, *answer, num_text=1 + tokens.shape[1])
        return model.transformer.encode(sequence.vectors, sequence.segment, sequence.position)[0]

    return functional.init(make, jax.random.key(0)), jax.jit(run)


@functools.cache
def trained():
    """Adapted parameters whose changes are not 0."""
    params, _ = made(ADAPTED)

    def noise(leaf):
        return np.random.default_rng(leaf.size).normal(0, 0.3, leaf.shape).astype(np.float32)

    return params | {"lora": jax.tree.map(noise, params["lora"])}


def inputs():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 9, 5)).astype(np.float32)
    return x, np.array([9, 6], np.int32), rng.integers(1, VOCAB, (2, 4)).astype(np.int32)


def dense(params):
    """The same kernels written out, map by map and layer by layer."""
    params = jax.tree.map(np.array, {name: group for name, group in params.items() if name != "lora"})
    for path in ("query", "key", "value", "out"):
        _add(params, trained()["lora"], ("transformer", "layers", "attention", path), 2 if path == "out" else 1)
    _add(params, trained()["lora"], ("transformer", "layers", "ffn", "down"), 1)
    _add(params, trained()["lora"], ("encoder", "layers", "ffn1", "expand"), 1)
    change = trained()["lora"]["encoder"]["input"]
    params["encoder"]["input"]["kernel"] += 2.0 * np.asarray(change["a"]) @ np.asarray(change["b"])
    return params


def _add(params, lora, path, num_in):
    for name in path:
        params, lora = params[name], lora[name]
    for layer, kernel in enumerate(params["kernel"]):
        a, b = np.asarray(lora["a"][layer]), np.asarray(lora["b"][layer])
        kernel += 2.0 * (a.reshape(-1, 3) @ b.reshape(3, -1)).reshape(kernel.shape)
        assert a.shape[:num_in] == kernel.shape[:num_in]


def test_a_fresh_lora_changes_nothing():
    params, run = made(ADAPTED)
    base = {name: group for name, group in params.items() if name != "lora"}
    np.testing.assert_array_equal(run(params, *inputs()), made(PLAIN)[1](base, *inputs()))


def test_it_is_the_dense_kernel_with_its_product_added():
    adapted = made(ADAPTED)[1](trained(), *inputs())
    plain = made(PLAIN)[1](dense(trained()), *inputs())
    np.testing.assert_allclose(adapted, plain, atol=2e-5)
    base = {name: group for name, group in trained().items() if name != "lora"}
    assert np.abs(adapted - made(PLAIN)[1](base, *inputs())).max() > 0.1


def test_merging_keeps_the_outputs_and_comes_back_bit_for_bit():
    merged, kept = merge(trained(), ADAPTED.lora)
    assert set(merged) == {"encoder", "adapter", "transformer"}
    np.testing.assert_allclose(made(PLAIN)[1](merged, *inputs()), made(ADAPTED)[1](trained(), *inputs()), atol=2e-5)
    restored = unmerge(merged, kept)
    assert jax.tree.structure(restored) == jax.tree.structure(trained())
    jax.tree.map(np.testing.assert_array_equal, restored, trained())
    assert merge(merged, PLAIN.lora) == (merged, {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda query: {"kernel": query["kernel"][:, :, :2]},
            r"lora/transformer/layers/attention/query: a \(3, 16, 3\)",
        ),
        (lambda query: {"kernel": query["kernel"][:2]}, r"b \(3, 3, 4, 6\) do not fit .*query/kernel: the kernel is"),
        (lambda query: {"bias": query["kernel"]}, r"there is no such kernel.*leave it out of init_from\.groups"),
    ],
)
def test_a_lora_of_another_base_names_the_tensor(change, message):
    params = jax.tree.map(lambda leaf: leaf, trained())
    attention = params["transformer"]["layers"]["attention"]
    attention["query"] = change(attention["query"])
    with pytest.raises(ValueError, match=message):
        merge(params, ADAPTED.lora)


def test_a_lora_of_a_map_that_is_not_there_names_it():
    params = jax.tree.map(lambda leaf: leaf, trained())
    del params["transformer"]["layers"]["ffn"]
    with pytest.raises(ValueError, match="lora/transformer/layers/ffn updates a map that this model does not have"):
        merge(params, ADAPTED.lora)


def test_a_target_that_names_no_linear_map_is_an_error():
    config = PLAIN.replace(lora=LoRA(rank=1, targets=("transformer/layer",)))
    with pytest.raises(ValueError, match=r"no linear map below 'transformer/layer'; choose from .*encoder/input"):
        functional.declare(lambda rngs: SpeechTransformer(config, 8, rngs=rngs))


def test_frozen_kernels_have_no_gradient_of_their_size():
    """No product backward has the shape of an adapted kernel: only the thin matrices' gradients are made."""
    graphdef = functional.declare(lambda rngs: SpeechTransformer(ADAPTED, VOCAB, rngs=rngs)).graphdef
    base = {name: group for name, group in trained().items() if name != "lora"}

    def loss(learnt, base):
        model = functional.bind(graphdef, base | learnt).with_lora()
        x, length, tokens = map(jnp.asarray, inputs())
        speech, count = model.encode_speech(x, length)
        one, answer = np.ones(1, np.int32), (tokens[:, None], jnp.full((len(tokens), 1), 4))
        sequence = model.lay_out(one, speech, count, one, *answer, num_text=2 + tokens.shape[1])
        return model.transformer.encode(sequence.vectors, sequence.segment, sequence.position)[0].sum()

    def products(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield equation.outvars[0].aval.shape
            for inner in jaxprs_in_params(equation.params):
                yield from products(inner)

    kernels = {(16, 4, 6), (16, 2, 6), (4, 6, 16), (20, 16), (16, 20), (8, 32), (32, 8), (5, 8), (8, 5)}
    kernels |= {(4, 6, 16)[::-1], (2, 6, 16), (6, 16, 4)}
    learnt = {"lora": trained()["lora"]}
    assert not kernels & set(products(jax.make_jaxpr(jax.grad(loss))(learnt, base).jaxpr))
    everything = jax.make_jaxpr(jax.grad(lambda params: loss({"lora": params["lora"]}, params)))(trained())
    assert kernels & set(products(everything.jaxpr))  # the test sees such products where there are some
