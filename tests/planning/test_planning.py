"""Plans end to end: on the CPU's virtual devices, and by the real compilers of TPU and GPU where they are installed."""

import importlib.util
import json
import math
import re

import jax
import pytest

from jax_speechlm.cli import main
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.core.vocabulary import Vocabulary
from jax_speechlm.models.transformer_config import forward_flops
from jax_speechlm.parallel import chips
from jax_speechlm.parallel.mesh import MESH_AXES, MeshShape
from jax_speechlm.planning import ahead_of_time, compiled, report
from jax_speechlm.planning.ahead_of_time import PlanningError
from jax_speechlm.planning.check import check_fits
from jax_speechlm.planning.compiled import Compiled, Memory
from jax_speechlm.planning.fit import fit
from jax_speechlm.planning.plan import fits, make_plan
from jax_speechlm.planning.workload import workload
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment
from tests.training import tiny

tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
gpu = pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="JAX's CUDA is not installed")


def small_lm(**changes) -> Experiment:
    """A little LM on a set that is not there, on 8 devices."""
    experiment = registry.load("demo/lm")
    model = experiment.model.replace(dim=64, num_layers=3, num_heads=2, num_kv_heads=2, head_dim=32, ffn_dim=96)
    data = experiment.data.replace(sets=("absent",), dev_sets=(), weights=(), tokens_per_batch=2048)
    settings = {"model": model.replace(remat="none"), "data": data, "mesh": MeshShape(data=2, fsdp=4)}
    return experiment.replace(**(settings | changes))


def analytic_flops(experiment: Experiment, more_products: int) -> float:
    """Of one step over all devices where attention looks at every pair; its kernels may repeat products."""
    model, rows, positions = experiment.model.replace(causal=False), 16, 128
    product = 2 * rows * model.num_heads * positions**2 * model.head_dim * model.num_layers
    return 3 * forward_flops(model, Vocabulary(100).size, positions, rows) + more_products * product


@pytest.fixture
def virtual(monkeypatch):
    """Makes plans be for this process's CPU devices."""
    monkeypatch.setattr(ahead_of_time, "devices_of", lambda topology: jax.devices())
    return chips.topology("v5e-8")


def test_a_plan_has_the_models_arithmetic(virtual):
    plan = make_plan(small_lm(), virtual, vocab_size=100)
    (step,) = plan.steps
    # Attention on CPU computes its scores once more for the backward pass.
    assert step.costs.flops * 8 == analytic_flops(small_lm(), more_products=1)
    assert plan.params == sum(leaf.size for leaf in jax.tree.leaves(_params(small_lm(), 100)))
    assert plan.rate.mfu <= plan.estimates[0].best_mfu <= step.model_flops / (step.costs.flops * 8)
    assert "absent not prepared here" in plan.load.assumed


def _params(experiment, vocab_size):
    load = workload(experiment, vocab_size)
    return ahead_of_time.Compiler(experiment, load, jax.devices()).trainer.shapes.params


def test_nothing_is_compiled_twice(virtual, monkeypatch):
    changed = small_lm(num_steps=123)
    first = make_plan(changed, virtual, vocab_size=100)
    compiled = []
    compile_ = ahead_of_time.compile_lowered
    monkeypatch.setattr(ahead_of_time, "compile_lowered", lambda *program: compiled.append(1) or compile_(*program))
    assert make_plan(changed, virtual, vocab_size=100).steps == first.steps
    assert not compiled
    # A change that the program knows of is another compilation; one that it does not know of is none.
    make_plan(changed.replace(loop=changed.loop.replace(log_every=7)), virtual, vocab_size=100)
    assert not compiled
    make_plan(changed.replace(num_steps=124), virtual, vocab_size=100)
    assert compiled == [1]
    monkeypatch.setattr("jax.__version__", "99")
    make_plan(changed, virtual, vocab_size=100)
    assert compiled == [1, 1]
    make_plan(changed, virtual, vocab_size=100, compiler_options={"xla_llvm_disable_expensive_passes": True})
    assert compiled == [1, 1, 1]


def test_plan_and_run_have_the_compiler_options_of_the_chip(virtual, monkeypatch):
    """An option that no compiler has, so that it fails wherever the option arrives."""
    monkeypatch.setattr("jax_speechlm.training.state.options_for", lambda device_kind: {"xla_no_such_option": True})
    experiment = small_lm()
    with pytest.raises(PlanningError, match="No such compile option: 'xla_no_such_option'"):
        make_plan(experiment, virtual, vocab_size=100)
    assert make_plan(experiment, virtual, vocab_size=100, compiler_options={}).fits
    load = workload(experiment, 100)
    as_in_a_run = ahead_of_time.Compiler(experiment, load, jax.devices())
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option: 'xla_no_such_option'"):
        as_in_a_run.memory_needed(load.shapes[-1])


def test_a_compiler_that_gives_up_ends_no_search(virtual, monkeypatch):
    """XLA for GPUs has no tile for some products when it may not time kernels."""

    def give_up(lowered, platform):
        raise jax.errors.JaxRuntimeError("INTERNAL: Couldn't find output tile sizes\nand much more")

    monkeypatch.setattr(ahead_of_time, "compile_lowered", give_up)
    experiment = small_lm(num_steps=321)
    with pytest.raises(PlanningError, match=r"not for lack of memory: INTERNAL: Couldn't find output tile sizes$"):
        make_plan(experiment, virtual, vocab_size=100)
    trials = fit(experiment, virtual, vocab_size=100, max_compiles=3)
    assert {trial.plan for trial in trials} == {None}
    assert sum("compiler failed" in trial.why for trial in trials) == 3


def test_what_did_not_fit_is_remembered_too():
    memory = Memory(1.0, 2.0, 0.0, 0.0, math.inf, 0.0, math.inf)
    compiled.keep("too large", Compiled(memory, None, 3.0))
    assert compiled.recall("too large") == Compiled(memory, None, 3.0)
    compiled.keep("small", Compiled(memory, "HloModule µ", 3.0))
    assert compiled.recall("small") == Compiled(memory, "HloModule µ", 3.0)
    assert compiled.recall("never seen") is None


def test_a_model_without_rematerialisation_is_planned(virtual):
    experiment = tiny.experiment("vocoder", data=tiny.NOISE.replace(sets=("absent",), seconds_per_batch=64.0))
    plan = make_plan(experiment, virtual, vocab_size=None, longest_only=True)
    assert plan.steps[0].costs.flops > 0
    assert report.heading(plan).endswith("chips: data 8)")


def test_a_plan_for_the_machine_at_hand(tmp_path, capsys):
    """On the devices that CPUs are cut into, by the command."""
    job = tmp_path / "job.json"
    job.write_text(small_lm(topology="cpu-8").model_dump_json())
    assert main(["plan", "--config", str(job), "--out", str(tmp_path / "out")]) == 0
    assert "Fits" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "plan.json").read_text())["topology"] == "cpu-8"
    job.write_text(small_lm(topology="cpu-9").model_dump_json())
    assert main(["plan", "--config", str(job)]) == USER_ERROR
    assert "XLA_FLAGS=--xla_force_host_platform_device_count=9" in capsys.readouterr().err


def test_the_size_of_a_tokenizer_that_is_not_here_is_in_its_name():
    data = small_lm().data
    sizes = {"data/bpe-2048": 2048, "data/unigram1024": 1024, "data/pieces": 1024, None: 64}
    for path, size in sizes.items():
        assert workload(small_lm(data=data.replace(tokenizer=path)), None).tokenizer.vocab_size == size
    assert workload(small_lm(data=data.replace(tokenizer="data/bpe-2048")), 99).tokenizer.vocab_size == 99


@pytest.mark.parametrize("absent", ["queen-en", "spoken-en", "units"])
def test_rows_of_units_are_planned_before_sets_and_units_are_made(absent, tmp_path):
    experiment = registry.load("debian/unit_lm")
    data = experiment.data.replace(data_dir=str(tmp_path), units=str(tmp_path / "units"))
    for name in {*data.sets, *data.text_sets, "units"} - {absent}:
        (tmp_path / name).mkdir()
    load = workload(experiment.replace(data=data), vocab_size=64)
    assert load.assumed.startswith(str(tmp_path / absent) if absent == "units" else absent)
    assert [shape.length for shape in load.shapes] == [data.context]


def test_parameters_are_gathered_and_activations_stay(virtual):
    """FSDP: what moves along fsdp is of the parameters' size, not of the activations'."""
    plan = make_plan(small_lm(), virtual, vocab_size=100)
    moved = sum(each.sent for each in plan.steps[0].costs.collectives if each.axes == "fsdp")
    assert moved <= 4 * (2 * 3) * plan.params
    doubled = small_lm().data.replace(tokens_per_batch=2 * 2048)
    again = make_plan(small_lm(data=doubled), virtual, vocab_size=100)
    moved_again = sum(each.sent for each in again.steps[0].costs.collectives if each.axes == "fsdp")
    assert moved_again == pytest.approx(moved, rel=0.02)


def test_activations_are_what_the_layers_keep(virtual):
    none, full = (
        make_plan(small_lm(model=small_lm().model.replace(remat=remat)), virtual, vocab_size=100).steps[0].memory
        for remat in ("none", "full")
    )
    rows, layers, positions, dim = 2, 3, 128, 64  # of one device
    assert full.activations == layers * rows * positions * dim * 4
    assert none.activations > 5 * full.activations
    assert none.total > none.params + none.optimizer + none.activations


def test_devices_along_tensor_keep_their_part_of_time(virtual):
    model = small_lm().model.replace(num_heads=4, num_kv_heads=4, head_dim=16)

    def kept(remat, mesh):
        experiment = small_lm(model=model.replace(remat=remat), mesh=mesh)
        return make_plan(experiment, virtual, vocab_size=100).steps[0].memory.activations

    rows, layers, positions, dim = 8, 3, 128, 64  # of two devices
    spread = MeshShape(data=2, tensor=4)
    assert kept("full", spread) == layers * rows * positions // 4 * dim * 4
    # What "dots" keeps is sharded by heads, inner width or time: the same share as if each device had its own rows.
    assert kept("dots", spread) == kept("dots", MeshShape(data=8))


def test_speech_is_planned_by_buckets(virtual):
    experiment = registry.load("librispeech/ctc_100_gpu")
    model = experiment.model.replace(dim=32, num_layers=2, num_heads=2, left_max=8, right_max=2)
    experiment = experiment.replace(
        model=model,
        objective=experiment.objective.replace(intermediate=(1,)),
        data=experiment.data.replace(num_buckets=3, seconds_per_batch=160.0, max_seconds=4.0),
        mesh=MeshShape(data=8),
    )
    plan = make_plan(experiment, virtual, vocab_size=64)
    assert len(plan.steps) == 3
    assert sum(step.shape.share for step in plan.steps) == pytest.approx(1)
    assert all(step.shape.tokens for step in plan.steps)
    assert not any(step.costs.unknown_loops for step in plan.steps)
    # Rows stay where they are: nothing of the audio's size is gathered (the front end is part of the step).
    for step in plan.steps:
        audio = step.shape.rows * step.shape.length * 2
        assert sum(each.sent for each in step.costs.collectives if each.kind == "all-gather") < audio / 8
    assert make_plan(experiment, virtual, vocab_size=64, longest_only=True).rate is None


def test_rows_that_do_not_divide_are_an_error(virtual):
    data = small_lm().data.replace(tokens_per_batch=12 * 128)
    with pytest.raises(ValueError, match="a batch of 12 rows does not divide among the 8"):
        make_plan(small_lm(data=data), virtual)


def test_fit_finds_the_fastest_and_says_why_others_do_not_fit(virtual, monkeypatch):
    said = []
    trials = fit(small_lm(), virtual, vocab_size=100, max_compiles=5, progress=said.append)
    assert sum(trial.plan is not None for trial in trials) == len(said) == 5
    times = [trial.seconds_per_unit for trial in trials]
    assert times == sorted(times)
    assert not trials[0].why
    assert math.isfinite(times[0])
    tiny = chips.CHIPS["v5e"]._replace(hbm=300_000)
    monkeypatch.setitem(chips.CHIPS, "v5e", tiny)
    trials = fit(small_lm(), virtual, vocab_size=100, max_compiles=3)
    assert all(trial.why for trial in trials)
    assert any("alone need" in trial.why for trial in trials)


def test_what_does_not_fit_is_said_and_told_to_the_shell(virtual, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(chips.CHIPS, "v5e", chips.CHIPS["v5e"]._replace(hbm=300_000))
    job = tmp_path / "job.json"
    job.write_text(small_lm(topology="v5e-8").model_dump_json())
    assert main(["plan", "--config", str(job), "--vocab-size", "100", "--out", str(tmp_path / "out")]) == 3
    assert "Does not fit" in " ".join(capsys.readouterr().out.split())
    saved = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert saved["fits"] is False
    assert Experiment.model_validate(saved["experiment"]) == small_lm(topology="v5e-8")


def test_training_refuses_what_cannot_fit():
    check_fits(small_lm())  # a CPU does not say what it has
    check_fits(small_lm(), limit=10**9, vocab_size=100)
    with pytest.raises(PlanningError, match=r"16 rows of 128 tokens needs .* --force starts anyway"):
        check_fits(small_lm(), limit=100_000, vocab_size=100)


def test_a_plan_is_a_page_without_scripts_or_network(virtual):
    page = report.as_html(make_plan(small_lm(), virtual, vocab_size=100), price=1.5)
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=", page)
    assert page.count('class="row"') == 2
    assert "At 1.5 a chip-hour" in page


def test_the_oom_messages_of_the_compiler_are_read():
    message = "the total memory required for HLO temporaries (16.12G) exceeds available HBM (15.75G)"
    assert ahead_of_time._needed(message) == 16.12 * 2**30
    assert ahead_of_time._needed("Used 20.30G of 15.75G hbm. Exceeded") == 20.30 * 2**30
    assert ahead_of_time._needed("something else") == math.inf


def test_every_experiment_names_a_target_that_its_mesh_fits():
    for name in registry.names():
        experiment = registry.load(name)
        assert experiment.topology, f"{name}: say what it was sized for, cpu-1 if nothing else"
        target, mesh = chips.topology(experiment.topology), experiment.mesh
        sizes = [getattr(mesh, axis) for axis in MESH_AXES]
        assert math.prod(sizes) == target.num_devices or mesh.data == -1, name
        assert mesh.replica % target.slices == 0, name


@tpu
def test_a_small_lm_for_a_real_v5e_16():
    experiment = small_lm(mesh=MeshShape(data=4, fsdp=4), model=small_lm().model.replace(dtype="bfloat16"))
    plan = make_plan(experiment, chips.topology("v5e-16"), vocab_size=100)
    step, estimate = plan.steps[0], plan.estimates[0]
    assert plan.fits
    assert not step.costs.unknown_loops
    assert not step.costs.unknown_calls
    # Splash attention has two kernels for the backward pass: four products become seven.
    assert step.costs.flops * 16 == analytic_flops(experiment, more_products=3)
    assert {each.axes for each in step.costs.collectives} <= {"data", "fsdp", "data+fsdp"}
    assert 0 < estimate.best <= estimate.seconds
    # The same step on a chip with less memory would be refused.
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(chips.CHIPS, "v5e", chips.CHIPS["v5e"]._replace(hbm=step.memory.total - 1))
        assert not fits(step, plan.topology)


@tpu
def test_long_rows_for_a_real_v5e_16():
    model = small_lm().model.replace(dtype="bfloat16", num_heads=4, num_kv_heads=2)
    experiment = small_lm(mesh=MeshShape(data=2, fsdp=2, sequence=4), model=model)
    step = make_plan(experiment, chips.topology("v5e-16"), vocab_size=100).steps[0]
    along = {each.kind: each for each in step.costs.collectives if "sequence" in each.axes.split("+")}
    # Queries, keys, values and their mean; and all four gradients. Keys and values are gathered nowhere.
    assert along["all-to-all"].axes == "sequence"
    assert along["all-to-all"].times == model.num_layers * 8
    assert "all-gather" not in along
    assert step.costs.flops * 16 == analytic_flops(experiment, more_products=3)


@tpu
def test_tensor_parallel_blocks_for_a_real_v5e_16():
    """A pair of linear maps gathers its input and sums its output by time, forwards; for gradients the reverse."""
    model = small_lm().model.replace(dtype="bfloat16", num_heads=4, num_kv_heads=4, head_dim=16, dim=256, ffn_dim=512)
    experiment = small_lm(mesh=MeshShape(data=4, tensor=4), model=model.replace(remat="dots"))
    step = make_plan(experiment, chips.topology("v5e-16"), vocab_size=100).steps[0]
    along = {each.kind: each for each in step.costs.collectives if each.axes == "tensor"}
    piece = 4 * 128 * model.dim * 2 * 3 / 4  # bytes sent for the residual stream of a device's rows
    # Gradients of the maps need their inputs gathered again. Before the first and after the last layer a few more.
    for kind, times in (("all-gather", 2 + 4), ("reduce-scatter", 2 + 2)):
        assert 0 <= along[kind].sent / piece - model.num_layers * times <= 4
    assert "all-to-all" not in along


@pytest.mark.slow
@tpu
def test_long_utterances_for_a_real_v5e_16():
    experiment = registry.load("librispeech/ctc_100_gpu")
    model = experiment.model.replace(dim=64, num_layers=2, num_heads=4, left_max=8, kernel_size=7, remat="full")
    data = experiment.data.replace(num_buckets=1, seconds_per_batch=160.0, max_seconds=8.0, batch_multiple=4)
    experiment = experiment.replace(
        model=model,
        data=data,
        objective=experiment.objective.replace(intermediate=()),
        mesh=MeshShape(data=2, fsdp=2, sequence=4),
    )
    step = make_plan(experiment, chips.topology("v5e-16"), vocab_size=100).steps[0]
    along = {each.kind: each for each in step.costs.collectives if each.axes == "sequence"}
    # As above, and with "full" the way there and back once more; the same for the frames before a device's own.
    assert along["all-to-all"].times == model.num_layers * 12
    assert along["collective-permute"].times == model.num_layers * 3
    # What CTC needs whole, once and not frame by frame: the logits, the tokens' log-probabilities and their gradient.
    frames = experiment.frontend.mel.num_frames(step.shape.length)
    widths = 104 + 2 * step.shape.tokens
    assert along["all-gather"].sent < 3 * 4 * (step.shape.rows // 4) * (frames + 4) * widths


@gpu
@pytest.mark.parametrize("chip", [name for name, chip in chips.CHIPS.items() if chip.platform == "cuda"])
def test_a_small_lm_for_a_node_of_every_gpu(chip):
    experiment = small_lm(model=small_lm().model.replace(dtype="bfloat16"))
    plan = make_plan(experiment, chips.topology(f"{chip}-8"), vocab_size=100)
    (step,) = plan.steps
    assert plan.fits
    assert not step.costs.unknown_loops
    assert not step.costs.unknown_calls
    # cuDNN computes its scores once more for the backward pass; for some chips XLA pads the vocabulary.
    assert step.costs.flops * 8 == pytest.approx(analytic_flops(experiment, more_products=1), rel=0.01)
    assert {each.axes for each in step.costs.collectives} <= {"data", "fsdp", "data+fsdp"}


@pytest.mark.slow
@tpu
def test_the_largest_for_two_real_slices_of_v5p():
    plan = make_plan(registry.load("scaling/lm_8b_v5p512"), chips.topology("2xv5p-512"), vocab_size=128_000)
    step, estimate = plan.steps[0], plan.estimates[0]
    assert plan.fits
    assert plan.params == pytest.approx(8e9, rel=0.02)
    assert 20 * 2**30 < step.memory.total < 45 * 2**30
    # Parameters are gathered for the forward pass, its repetition and the backward pass, and their gradients summed:
    # some tens of GB. An activation that moved would be hundreds.
    along = {axes: sum(c.sent for c in step.costs.collectives if c.axes == axes) for axes in ("fsdp", "replica")}
    assert along["fsdp"] < 100e9
    assert 0 < along["replica"] < 1e9
    assert estimate.bound != "links"
    assert 0.4 < estimate.mfu < estimate.best_mfu
    assert estimate.best_mfu > 0.6


@pytest.mark.slow
@gpu
def test_the_largest_for_64_h100():
    plan = make_plan(registry.load("scaling/lm_8b_h100x64"), chips.topology("h100-64"), vocab_size=128_000)
    assert plan.fits
    assert not plan.steps[0].costs.unknown_calls
    assert 0.3 < plan.estimates[0].mfu < plan.estimates[0].best_mfu
    assert plan.estimates[0].best_mfu > 0.5


@gpu
@pytest.mark.slow
def test_a_conformer_for_an_a100():
    plan = make_plan(
        registry.load("librispeech/ctc_100_gpu"), chips.topology("a100-1"), vocab_size=128, longest_only=True
    )
    assert plan.fits
    assert not plan.steps[0].costs.unknown_calls
    assert plan.steps[0].costs.flops > plan.steps[0].model_flops
