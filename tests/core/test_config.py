"""Configs refuse what they do not know, and survive JSON."""

import ast
from pathlib import Path

import pydantic
import pytest

from jax_speechlm import cli, recipes
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.optim.optimizers import Noam, Optimizer
from jax_speechlm.recipes import registry
from jax_speechlm.recipes.experiment import Experiment, InitFrom, differences
from tests.golden import make_configs

RECIPES = Path(recipes.__file__).parent


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


@pytest.mark.parametrize("name", registry.names())
def test_every_shipped_experiment_survives_json_and_documents_itself(name):
    experiment = registry.load(name)
    again = Experiment.from_json(experiment.model_dump_json())
    assert again == experiment
    assert differences(again, experiment) == []
    assert f"--config {name} " in registry.docstring(name).replace("\n", " ")
    assert registry.result(name)


@pytest.mark.parametrize("name", registry.names())
def test_every_recipe_and_its_result_are_in_the_readme_of_its_folder(name):
    folder, module = name.split("/")
    rows = (RECIPES / folder / "README.md").read_text().splitlines()
    (row,) = (row for row in rows if row.startswith(f"| [`{name}`]({module}.py) |"))
    assert row.endswith(f"| {registry.result(name)} |")
    assert f"--config {name}" in row


@pytest.mark.parametrize("name", registry.names())
def test_a_recipe_inherits_from_at_most_one_other_and_no_study_from_the_demo(name):
    imports = (
        node for node in ast.walk(ast.parse((RECIPES / f"{name}.py").read_text())) if isinstance(node, ast.ImportFrom)
    )
    imported = {f"{node.module}.{alias.name}" for node in imports for alias in node.names}
    modules = {other: f"jax_speechlm.recipes.{other.replace('/', '.')}" for other in registry.names()}
    parents = {
        other for other, module in modules.items() if any(f"{symbol}.".startswith(f"{module}.") for symbol in imported)
    }
    assert len(parents) <= 1
    assert name.startswith("demo/") or not any(parent.startswith("demo/") for parent in parents)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("demo_pretrain", "demo/pretrain"),
        ("text_en_mlm", "text_en/mlm"),
        ("spoken_en_sources", "text_en/sources"),
        ("lm_8b_h100x64", "scaling/lm_8b_h100x64"),
    ],
)
def test_an_old_name_opens_the_recipe_with_a_note(old, new, capsys):
    assert registry.load(old) == registry.load(new)
    assert (
        capsys.readouterr().err == f"note: the recipe {old} is now called {new}; the old name works for one version\n"
    )


def test_a_python_file_is_an_experiment_too(tmp_path):
    file = tmp_path / "best.py"
    file.write_text("from jax_speechlm.recipes.debian.best_rq import config\n")
    assert registry.load(str(file)) == registry.load("debian/best_rq")
    assert [registry.run_name(name) for name in (str(file), "debian/best_rq", "debian_best_rq")] == [
        "best",
        "debian_best_rq",
        "debian_best_rq",
    ]


@pytest.mark.parametrize("command", ["recipes", "configs"])
def test_recipes_lists_every_experiment_with_its_result(command, capsys):
    assert cli.main([command]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed and registry.result(name) in printed for name in registry.names())


def test_every_setting_of_every_shipped_experiment_is_as_reviewed():
    golden = {
        file.relative_to(make_configs.FOLDER).with_suffix("").as_posix(): file.read_text()
        for file in make_configs.FOLDER.glob("*/*.json")
    }
    assert golden == make_configs.texts(), "after a change on purpose: python tests/golden/make_configs.py"


def test_setting_that_a_file_gives_twice_is_refused(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"seed": 1, "num_steps": 5, "seed": 2}')
    with pytest.raises(ValueError, match=r"mine\.json: the setting 'seed' is given twice"):
        registry.load(str(file))


def test_an_unknown_experiment_names_the_nearest():
    with pytest.raises(ValueError, match="'demo/pretrain'"):
        registry.load("demo_pretrian")


def test_differences_name_what_decides_a_result():
    first = registry.load("demo/pretrain")
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
