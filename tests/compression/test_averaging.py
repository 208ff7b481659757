"""The mean of checkpoints is exact, keeps types, and is refused where it would mean nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.compression.average import average, average_runs, choose
from jax_speechlm.training import checkpoints as ckpt
from jax_speechlm.training.runs import tokenizer_files
from jax_speechlm.training.state import TrainState
from tests.training import tiny

META = {
    "experiment": tiny.experiment("ctc").model_dump(mode="json"),
    "tokenizer": tokenizer_files(CharTokenizer("abc ")),
    "units": None,
}


def params_of(seed: int):
    rng = np.random.default_rng(seed)
    return {
        "head": {"kernel": rng.normal(size=(3, 5)).astype(np.float32), "half": rng.normal(size=7).astype(jnp.bfloat16)},
        "count": np.array([4, 5], np.int32),
    }


def save(run, seeds, *, losses=(), ema=False, keep=9, **meta):
    """A run with a checkpoint for each seed, at steps 1, 2, ...; its average, if any, is of seed + 100."""
    checkpoints = ckpt.Checkpoints(run, keep_last=keep)
    zero = jnp.array(0)
    for step, seed in enumerate(seeds, start=1):
        average = {"head": params_of(seed + 100)["head"]} if ema else {}
        metrics = {"loss": losses[step - 1]} if step <= len(losses) and losses[step - 1] is not None else None
        state = TrainState(zero, params_of(seed), {"moment": np.ones(3)}, average, zero, zero)
        checkpoints.save(step, state, META | meta | {"step": step}, metrics)
    checkpoints.close()
    return run


def expected(seeds):
    return jax.tree.map(
        lambda *leaves: (sum(leaf.astype(np.float64) for leaf in leaves) / len(leaves)).astype(leaves[0].dtype),
        *(params_of(seed) for seed in seeds),
    )


def assert_same(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert jax.tree.map(lambda x: x.dtype, first) == jax.tree.map(lambda x: x.dtype, second)


def test_the_mean_is_that_of_float64_and_the_types_stay(tmp_path):
    run = save(tmp_path / "run", (0, 1, 2))
    average_runs((run,), tmp_path / "mean")
    params, meta = ckpt.read_params(tmp_path / "mean")
    assert_same(params, expected((0, 1, 2)))
    assert meta["step"] == 3
    assert [path.rsplit("/", 1)[1] for path in meta["averaged"]] == ["1", "2", "3"]
    assert meta["experiment"] == META["experiment"]


def test_the_mean_of_one_is_the_same_bit_for_bit(tmp_path):
    run = save(tmp_path / "run", (0, 1))
    average_runs((run,), tmp_path / "mean", last=1)
    assert_same(ckpt.read_params(tmp_path / "mean")[0], params_of(1))


def test_what_is_the_same_everywhere_stays_the_same_bit_for_bit(tmp_path):
    params, _ = average(ckpt.find_all(save(tmp_path / "run", (3,) * 7)))
    assert_same(params, params_of(3))


def test_the_moving_average_enters_where_there_is_one(tmp_path):
    params, _ = average(ckpt.find_all(save(tmp_path / "run", (0, 1), ema=True)))
    assert_same(params["head"], expected((100, 101))["head"])
    assert_same(params["count"], params_of(0)["count"])


def test_last_and_best_choose(tmp_path):
    run = save(tmp_path / "run", (0, 1, 2, 3), losses=(0.5, 0.1, None, 0.3))

    def names(*args, **kwargs):
        return {each.name for each in choose(run, *args, **kwargs)}

    assert names(None, None, alone=True) == {"1", "2", "3", "4"}
    assert names(None, None, alone=False) == {"4"}
    assert names(2, None, alone=True) == {"3", "4"}
    assert names(None, 2, alone=False) == {"2", "4"}
    with pytest.raises(ckpt.CheckpointError, match=r"has 3 checkpoints with a validation, 4 were requested"):
        choose(run, None, 4, alone=True)
    with pytest.raises(ckpt.CheckpointError, match=r"greater --loop.keep_last"):
        choose(run, 5, None, alone=True)
    with pytest.raises(ValueError, match="exclude each other"):
        choose(run, 1, 1, alone=True)


def test_a_soup_takes_the_newest_of_each_run_whatever_they_trained_with(tmp_path):
    experiment = tiny.experiment("ctc", seed=5)
    other = experiment.replace(model=experiment.model.replace(dropout=0.3)).model_dump(mode="json")
    runs = save(tmp_path / "a", (0, 1)), save(tmp_path / "b", (2,), experiment=other)
    average_runs(runs, tmp_path / "soup")
    params, meta = ckpt.read_params(tmp_path / "soup")
    assert_same(params, expected((1, 2)))
    assert meta["step"] == 2


DIFFERENT = tiny.experiment("ctc")


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"tokenizer": tokenizer_files(CharTokenizer("abcd"))}, r"b/checkpoints/1: its tokenizer is char of 5 ids"),
        ({"units": "abc"}, "its units is abc"),
        (
            {
                "experiment": DIFFERENT.replace(
                    frontend=DIFFERENT.frontend.replace(mel=DIFFERENT.frontend.mel.replace(stack=4)),
                    model=DIFFERENT.model.replace(input_dim=80),
                ).model_dump(mode="json")
            },
            r"its model.input_dim is 80, .*a/checkpoints/1 has 40",
        ),
        ({"experiment": tiny.experiment("best_rq").model_dump(mode="json")}, r"its objective.kind is best_rq"),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path, meta, message):
    runs = save(tmp_path / "a", (0,)), save(tmp_path / "b", (0,), **meta)
    with pytest.raises(ckpt.CheckpointError, match=message):
        average_runs(runs, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_other_shapes_are_refused_by_name(tmp_path, monkeypatch):
    runs = [save(tmp_path / "a", (0,))]
    narrow = params_of(0) | {"count": np.zeros(3, np.int32)}
    monkeypatch.setitem(globals(), "params_of", lambda seed: narrow)
    runs.append(save(tmp_path / "b", (0,)))
    with pytest.raises(ckpt.CheckpointError, match=r"its count is \(\(3,\), 'int32'\), .* has"):
        average_runs(tuple(runs), tmp_path / "mean")


def test_a_folder_that_holds_checkpoints_is_not_written_over(tmp_path):
    run = save(tmp_path / "run", (0, 1))
    with pytest.raises(ckpt.CheckpointError, match="holds checkpoints already"):
        average_runs((run,), run)


def test_one_checkpoint_is_in_memory_at_a_time(tmp_path, monkeypatch):
    """Each is read only once the one before it can be freed."""
    import gc
    import weakref

    run, read, alive = save(tmp_path / "run", (0, 1, 2)), ckpt.read_params, []

    def watched(path, **options):
        gc.collect()
        assert not any(each() is not None for each in alive)
        params, meta = read(path, **options)
        alive.append(weakref.ref(params["head"]["kernel"]))
        return params, meta

    monkeypatch.setattr(ckpt, "read_params", watched)
    average(ckpt.find_all(run))
    assert len(alive) == 3
