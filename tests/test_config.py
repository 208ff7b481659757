"""Configs refuse what they do not know, and survive JSON."""

import pydantic
import pytest

from jax_speechlm import cli, configs
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.optim.optimizers import Noam, Optimizer
from jax_speechlm.recipes.experiment import Experiment, InitFrom, differences
from tests.golden import make_configs


def test_an_unknown_key_names_the_nearest():
    with pytest.raises(pydantic.ValidationError, match=r"no setting 'wieght_decay'; did you mean 'weight_decay'"):
        Optimizer(wieght_decay=0.1)


def test_a_value_out_of_range_is_refused():
    with pytest.raises(pydantic.ValidationError, match="greater than 0"):
        Optimizer(clip_norm=-1.0)


def test_replace_validates():
    with pytest.raises(pydantic.ValidationError):
        Optimizer().replace(accumulate=0)
    assert Optimizer().replace(accumulate=3).accumulate == 3


def test_configs_are_frozen():
    with pytest.raises(pydantic.ValidationError):
        Optimizer().clip_norm = 2.0


@pytest.mark.parametrize("name", configs.names())
def test_every_shipped_experiment_survives_json_and_says_how_to_run_it(name):
    experiment = configs.load(name)
    again = Experiment.from_json(experiment.model_dump_json())
    assert again == experiment
    assert differences(again, experiment) == []
    assert f"--config {name}" in configs.docstring(name)


def test_every_setting_of_every_shipped_experiment_is_as_reviewed():
    golden = {file.stem: file.read_text() for file in make_configs.FOLDER.glob("*.json")}
    assert golden == make_configs.texts(), "after a change on purpose: python tests/golden/make_configs.py"


def test_setting_that_a_file_gives_twice_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"seed": 1, "num_steps": 5, "seed": 2}')
    with pytest.raises(ValueError, match=r"mine\.json: the setting 'seed' is given twice"):
        configs.load(str(file))


def test_an_unknown_experiment_names_the_nearest():
    with pytest.raises(ValueError, match="'demo_pretrain'"):
        configs.load("demo_pretrian")


def test_differences_name_what_decides_a_result():
    first = configs.load("demo_pretrain")
    second = first.replace(
        optimizer=first.optimizer.replace(schedule=Noam(peak=0.5)), loop=first.loop.replace(log_every=3)
    )
    names = differences(first, second)
    assert "optimizer.schedule.kind" in names
    assert "optimizer.schedule.peak" in names
    assert not any(name.startswith("loop") for name in names)


def test_a_run_may_start_from_several_others(monkeypatch):
    seen = []

    def train(experiment, run_dir):
        del run_dir
        seen.append(experiment.init_from)
        raise ValueError("enough")

    monkeypatch.setattr("jax_speechlm.training.loop.train", train)
    assert (
        cli.main(["finetune", "--force", "--from=runs/a", "--from=runs/b", "--init-from.1.groups", "head", "encoder"])
        == USER_ERROR
    )
    assert seen == [(InitFrom(checkpoint="runs/a"), InitFrom(checkpoint="runs/b", groups=("head", "encoder")))]
