"""Adapters in the hands of peft: ours loads onto the exported model, and peft's loads here onto the run."""

import dataclasses

import jax
import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.inference.adapters import adapted
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.peft import write_adapter
from jax_speechlm.nn.adapted_kernel import AdaptedKernel
from tests.interop.test_adapters import MODULES, SETTINGS, _gpt2, random_updates  # noqa: F401  a fixture
from tests.interop.tiny_runs import RUNS, save, tiny_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
peft = pytest.importorskip("peft")
pytestmark = pytest.mark.parity

_NAMES = ("ctc", "best_rq", "fast_conformer", "qwen3", "gpt2")  # WavLM's attention passes LoRA of peft by
_TARGETS = {
    "ctc": ["linear_q", "pointwise_conv1", "output_dense"],
    "best_rq": ["linear_q", "pointwise_conv2", "intermediate_dense"],
    "fast_conformer": ["q_proj", "linear1", "pointwise_conv2"],
    "qwen3": ["q_proj", "down_proj"],
    "gpt2": ["c_attn", "c_fc"],
}


def opened(folder, name):
    """The exported model in transformers."""
    return getattr(transformers, RUNS[name][3]).from_pretrained(folder).eval()


def torch_output(model, name):
    """Hidden states or logits of fixed inputs."""
    rng = np.random.default_rng(0)
    with torch.no_grad():
        if name in ("qwen3", "gpt2"):
            return model(torch.tensor(rng.integers(1, 20, (1, 12)))).logits.numpy()
        output = model(torch.tensor(rng.normal(size=(1, 30, 40)).astype(np.float32)))
        return (output.last_hidden_state if name == "best_rq" else output.logits).numpy()


@pytest.mark.parametrize("name", _NAMES)
def test_ours_in_peft_is_the_export_of_the_merged_run(tmp_path, name):
    run = tiny_run(name)
    write_checked(run, tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", random_updates(run), SETTINGS, run)
    merged = merged_run(run, tmp_path / "adapter")
    write_checked(merged, tmp_path / "merged")
    model = peft.PeftModel.from_pretrained(opened(tmp_path / "base", name), tmp_path / "adapter").eval()
    found, expected = torch_output(model, name), torch_output(opened(tmp_path / "merged", name), name)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(torch_output(opened(tmp_path / "base", name), name) - expected).max() > 1e-2


@pytest.mark.parametrize("name", _NAMES)
def test_an_adapter_of_peft_loads_here(tmp_path, name):
    run = tiny_run(name)
    write_checked(run, tmp_path / "base")
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=_TARGETS[name], fan_in_fan_out=name == "gpt2")
    model = peft.get_peft_model(opened(tmp_path / "base", name), config).eval()
    torch.manual_seed(0)
    for key, value in model.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(value, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    write_checked(merged_run(run, tmp_path / "adapter"), tmp_path / "merged")
    found, expected = torch_output(opened(tmp_path / "merged", name), name), torch_output(model, name)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    if name == "qwen3":
        folder = save(tmp_path / "run", run)
        scores = [jax_speechlm.load(each, adapter=adapter).score(["a b"]) for each, adapter in (
            (folder, tmp_path / "adapter"), (save(tmp_path / "run2", merged_run(run, tmp_path / "adapter")), None),
        )]  # fmt: skip
        np.testing.assert_allclose(*scores, rtol=1e-5)


def merged_run(run, adapter):
    """The run whose kernels hold the updates of an adapter."""

    def dense(leaf):
        if not isinstance(leaf, AdaptedKernel):
            return leaf
        if leaf.a.ndim + leaf.b.ndim - 2 == leaf.kernel.ndim:
            return leaf.kernel + np.tensordot(leaf.a, leaf.b, 1)
        change = [np.tensordot(a, b, 1) for a, b in zip(leaf.a, leaf.b, strict=True)]
        return leaf.kernel + np.stack(change)

    params = jax.tree.map(dense, adapted(run, adapter).params, is_leaf=lambda leaf: isinstance(leaf, AdaptedKernel))
    return dataclasses.replace(run, params=params)
