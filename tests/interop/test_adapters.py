"""LoRA apart from its base: trained on any run, written and read in peft's format, and applied beside the base."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import jax_speechlm
from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.peft import CONFIG, WEIGHTS, export_adapter, read_adapter, write_adapter
from jax_speechlm.models.transformer_config import LearnedPositions, TransformerConfig
from jax_speechlm.nn import functional
from jax_speechlm.nn.int_weights import quantize_kernel
from jax_speechlm.nn.lora import GROUP, LoRA, attach, merge
from jax_speechlm.objectives import adaptation
from jax_speechlm.objectives.lm.causal_lm import CausalLM
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.loop import train
from jax_speechlm.training.runs import LoadedRun
from tests.interop.tiny_runs import QWEN, RUNS, TEXT, save, tiny_run
from tests.training import tiny

SETTINGS = LoRA(rank=3, alpha=5.0, targets=())
GPT2 = TransformerConfig.gpt2(
    dim=16, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=8, ffn_dim=24, positions=LearnedPositions(size=64)
)
MODULES = {
    "ctc": "wav2vec2_bert.encoder.layers.1.self_attn.linear_q",
    "fast_conformer": "encoder.layers.0.self_attn.q_proj",
    "samples": "wavlm.encoder.layers.0.attention.q_proj",
    "best_rq": "encoder.layers.1.conv_module.pointwise_conv1",
    "qwen3": "model.layers.1.mlp.gate_proj",
    "bert": "bert.encoder.layer.0.attention.self.query",
    "gpt2": "transformer.h.0.attn.c_attn",
}
"""A module of each class that LoRA of all layers updates."""


@pytest.fixture(autouse=True)
def _gpt2(monkeypatch):
    monkeypatch.setitem(RUNS, "gpt2", (CausalLM(), GPT2, TEXT, "GPT2LMHeadModel"))


def random_updates(run: LoadedRun, settings: LoRA = SETTINGS):
    """The group "lora" of a run, all of whose matrices are random."""
    experiment = run.experiment
    built = experiment.objective.build(experiment.model, experiment.frontend, run.tokenizer)
    shapes = functional.declare(adaptation.adapted(built, settings).make).shapes[GROUP]
    rng = np.random.default_rng(3)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.2, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize("name", MODULES)
def test_an_adapter_reads_back_as_the_same_change_of_every_kernel(tmp_path, name):
    run = tiny_run(name)
    updates = random_updates(run)
    write_adapter(tmp_path, updates, SETTINGS, run)
    expected, _ = merge(run.params | {GROUP: updates}, SETTINGS)
    merged, _ = merge(run.params | {GROUP: read_adapter(tmp_path, run)}, LoRA(rank=1, alpha=1.0))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5), expected, merged)
    assert f"base_model.model.{MODULES[name]}.lora_A.weight" in load_file(tmp_path / WEIGHTS)
    assert json.loads((tmp_path / CONFIG).read_text())["fan_in_fan_out"] == (name == "gpt2")


def test_a_run_that_no_class_computes_has_names_of_its_own(tmp_path):
    run = tiny_run("qwen3")
    run = dataclasses.replace(run, experiment=run.experiment.replace(model=QWEN.replace(feedforward="gelu_tanh")))
    updates = random_updates(run)
    write_adapter(tmp_path, updates, SETTINGS, run)
    assert "base_model.model.transformer.layers.ffn.down.1.lora_B.weight" in load_file(tmp_path / WEIGHTS)
    read = read_adapter(tmp_path, run)
    jax.tree.map(lambda one, other: np.testing.assert_array_equal(one.shape, other.shape), updates, read)


def test_fused_modules_of_peft_have_one_update_for_query_key_and_value(tmp_path):
    run, name, rng = tiny_run("gpt2"), "base_model.model.transformer.h.1.attn.c_attn", np.random.default_rng(0)
    a, b = rng.normal(size=(2, 16)).astype(np.float32), rng.normal(size=(48, 2)).astype(np.float32)
    save_file({f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": b}, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 3, "use_rslora": True}))
    updates = read_adapter(tmp_path, run)
    change = (3 / 2**0.5 * b @ a).T.reshape(16, 3, 2, 8)
    for part, map_ in enumerate(("query", "key", "value")):
        update = updates["transformer"]["layers"]["attention"][map_]
        assert not update["a"][0].any()  # the layer without an update
        np.testing.assert_allclose(np.tensordot(update["a"][1], update["b"][1], 1), change[:, part], rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "of no LoRA"),
        ({"use_dora": True}, "use_dora=True has no counterpart here"),
        ({"bias": "all"}, "trains biases"),
    ],
)
def test_other_methods_of_peft_are_refused(tmp_path, change, message):
    run = tiny_run("qwen3")
    write_adapter(tmp_path, random_updates(run), SETTINGS, run)
    config = json.loads((tmp_path / CONFIG).read_text()) | change
    (tmp_path / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ExportError, match=message):
        read_adapter(tmp_path, run)


def test_an_adapter_of_another_model_is_refused(tmp_path):
    run, other = tiny_run("qwen3"), tiny_run("ctc")
    write_adapter(tmp_path, random_updates(run), SETTINGS, run)
    with pytest.raises(ExportError, match="has no such linear map"):
        read_adapter(tmp_path, other)
    wider = dataclasses.replace(run, experiment=run.experiment.replace(model=QWEN.replace(ffn_dim=32)))
    with pytest.raises(ExportError, match=r"down_proj.*the weight of .* is \(16, 32\)|gate_proj|up_proj"):
        read_adapter(tmp_path, wider)


def test_a_language_model_and_its_quantised_form_take_an_adapter_beside_their_kernels(tmp_path):
    run = tiny_run("qwen3")
    updates = random_updates(run)
    folder, adapter = save(tmp_path / "base", run), tmp_path / "adapter"
    adapter.mkdir()
    write_adapter(adapter, updates, SETTINGS, run)
    merged, _ = merge(run.params | {GROUP: updates}, SETTINGS)
    expected = jax_speechlm.load(save(tmp_path / "merged", dataclasses.replace(run, params=merged))).score(["a b", "c"])
    base, with_adapter = jax_speechlm.load(folder), jax_speechlm.load(folder, adapter=adapter)
    np.testing.assert_allclose(with_adapter.score(["a b", "c"]), expected, rtol=1e-4)
    assert np.abs(base.score(["a b", "c"]) - expected).max() > 0.1

    kernel = run.params["transformer"]["layers"]["ffn"]["down"]["kernel"]
    update = updates["transformer"]["layers"]["ffn"]["down"]
    quantized = quantize_kernel(kernel, 1, "int8", stacked=True)
    x = np.random.default_rng(0).normal(size=(5, kernel.shape[1])).astype(np.float32)
    beside = attach({"down": {"kernel": quantized}}, {"down": update}, SETTINGS.scale)["down"]["kernel"]
    for layer in range(2):
        own = jax.tree.map(lambda leaf, layer=layer: leaf[layer], beside)
        dense = quantized.dequantize()[layer] + SETTINGS.scale * update["a"][layer] @ update["b"][layer]
        np.testing.assert_allclose(own.apply(jnp.asarray(x)), x @ dense, atol=1e-3)


def test_recognizers_of_one_base_share_arrays_and_programs(tmp_path):
    run = tiny_run("ctc")
    folder, names = save(tmp_path / "base", run), ("jane", "john")
    for seed, name in enumerate(names):
        (tmp_path / name).mkdir()
        updates = jax.tree.map(lambda leaf, seed=seed: leaf * (1 + seed), random_updates(run))
        write_adapter(tmp_path / name, updates, SETTINGS, run)
    base = jax_speechlm.load(folder).model
    audio = [np.random.default_rng(5).integers(-9000, 9000, 16000).astype(np.int16)]
    speakers = [base.with_adapter(tmp_path / name) for name in names]
    frames = [each.encode_audio(audio)[0].log_probs for each in (base, *speakers)]
    assert np.abs(frames[1] - frames[2]).max() > 1e-3 < np.abs(frames[0] - frames[1]).max()
    assert speakers[0]._greedy._cache_size() == 2  # one program of the base, one of both adapters
    for name, each, computed in zip(names, speakers, frames[1:], strict=True):
        loaded = jax_speechlm.load(folder, adapter=tmp_path / name)
        np.testing.assert_allclose(loaded.model.encode_audio(audio)[0].log_probs, computed, atol=1e-5)
        merged = adapted(run, tmp_path / name).params["encoder"]["layers"]["ffn1"]["expand"]["kernel"]
        assert merged.kernel is run.params["encoder"]["layers"]["ffn1"]["expand"]["kernel"]
        assert "adapter" in each.decoding_description
    with pytest.raises(ValueError, match="already"):
        speakers[0].with_adapter(tmp_path / "john")


def test_a_run_with_lora_trains_updates_alone_resumes_and_exports_them(tmp_path):
    plain = tiny.experiment("ctc", num_steps=2)
    tokenizer = CharTokenizer(tiny.LETTERS)
    params = functional.init(plain.build(tokenizer).make, jax.random.key(7))
    save(tmp_path / "base", LoadedRun(tmp_path, 5, plain, tokenizer, params))
    starts = (InitFrom(checkpoint=str(tmp_path / "base")),)
    experiment = plain.replace(init_from=starts, lora=LoRA(rank=2, targets=()), data=tiny.NOISE.replace(num_buckets=1))
    experiment = experiment.replace(loop=plain.loop.replace(checkpoint_every=1))
    whole, parts, source = tmp_path / "whole", tmp_path / "parts", tiny.MemorySource.make(experiment, 8)
    train(experiment, whole, source)
    shutil.copytree(whole, parts)
    shutil.rmtree(ckpt.find(parts))
    assert train(experiment, parts, source).step == 2
    base, trained = LoadedRun.read(tmp_path / "base"), ckpt.read(ckpt.find(whole)).state["params"]
    jax.tree.map(np.testing.assert_array_equal, {name: trained[name] for name in base.params}, base.params)
    run = LoadedRun.read(whole)
    assert set(run.params) == set(base.params)
    assert run.experiment.lora.rank == 0
    export_adapter(whole, tmp_path / "adapter")
    merged, _ = merge(base.params | {GROUP: read_adapter(tmp_path / "adapter", base)}, LoRA(rank=1, alpha=1.0))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-6), merged, run.params)
    resumed = ckpt.read(ckpt.find(parts)).state["params"]
    jax.tree.map(np.testing.assert_array_equal, resumed, trained)
    with pytest.raises(ExportError, match="has no LoRA"):
        export_adapter(tmp_path / "base", tmp_path / "none")
