"""In the studies of pretraining, the runs of a seed differ by what they start from alone."""

import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from jax_speechlm.evaluation.judges.catalogue import JudgeSettings
from jax_speechlm.recipes.experiment import differences

SCRIPTS = Path(__file__).parents[2] / "scripts"


def trained(monkeypatch, tmp_path, name, make_tasks):
    """Returns the experiments that a study trains, by the name of the run."""
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = runpy.run_path(str(SCRIPTS / name))
    experiments, measured = {}, []
    script["main"].__globals__.update(
        train_to_end=lambda experiment, run: experiments.__setitem__(run.name, experiment),
        evaluate_run=lambda run, *_, **__: measured.append(run.name),
    )
    tasks = make_tasks(script, tmp_path)
    for run, task in tasks.items():
        if run not in ("tokens", "subsets", "transcripts"):
            task.finish(tmp_path / run)
    assert sorted(set(measured)) == sorted(run for run in experiments if run[-1].isdigit())  # each voice or recognizer
    for run, task in tasks.items():  # what a run starts from is finished before
        used = [start.checkpoint for start in getattr(experiments.get(run), "init_from", ())]
        assert {Path(checkpoint).name for checkpoint in used} <= set(task.needs)
    return experiments


@pytest.mark.parametrize("seed", [0, 1])
def test_voices_differ_by_their_start(monkeypatch, tmp_path, seed):
    def tasks(script, runs):
        return script["VoicePretraining"](runs, Path("data"), JudgeSettings(judges=()), None).tasks((0, 1))

    runs = trained(monkeypatch, tmp_path, "voice_pretraining.py", tasks)
    random = runs[f"random-{seed}"]
    assert random.seed == seed
    assert not random.init_from
    allowed = {"decoder": (), "languages": ("data.tokenizer", "objective.classes"), "text_lm": ("data.tokenizer",)}
    for arm, names in allowed.items():
        own = runs[f"{arm}-{seed}"].replace(init_from=())
        changed = [line for line in differences(random, own) if not line.startswith(names or ("init_from",))]
        assert all(line.startswith(("model.text_lm", "optimizer.frozen")) for line in changed), (arm, changed)
        assert bool(changed) == (arm == "text_lm")
    assert runs[f"longer-{seed}"] == random.replace(num_steps=2 * random.num_steps)
    assert runs["voices"].data.sets != random.data.sets
    assert runs["decoder"].data.sets == ("queen-en",)


def test_recognizers_differ_by_their_start_and_minutes(monkeypatch, tmp_path):
    def tasks(script, runs):
        return script["LabelEfficiency"](runs, Path("data"), Path("whisper"), 5).tasks((2, 20), (0, 1))

    runs = trained(monkeypatch, tmp_path, "label_efficiency.py", tasks)
    for start in ("best_rq", "joint", "whisper"):
        for minutes in (2, 20):
            own, random = runs[f"{start}-{minutes}-1"], runs[f"random-{minutes}-1"]
            assert own.init_from
            assert own.replace(init_from=()) == random
            assert random.data.sets == (f"asterisk-en-{minutes}min",)
            assert random.num_steps == 5
            assert random.seed == 1
    assert runs["whisper"].data.sets == ("whisper-asterisk-en", "whisper-queen-en")


def test_text_to_text_models_differ_by_their_start(monkeypatch, tmp_path):
    def tasks(script, runs):
        return script["TextTasks"](runs, Path("data")).tasks((0, 1))

    runs = trained(monkeypatch, tmp_path, "text_tasks.py", tasks)
    for seed in (0, 1):
        own, random = runs[f"spans-{seed}"], runs[f"random-{seed}"]
        assert own.replace(init_from=()) == random
        assert own.init_from
        assert random.seed == seed
        assert random.model == runs["spans"].model


def test_the_figure_of_label_efficiency_has_every_run():
    row = {"2": [(90.0, 60.0), (88.0, 57.0)], "20": [(50.0, 20.0), (52.0, 23.0)]}
    errors = {"random": row, "joint": row}
    draw = runpy.run_path(str(SCRIPTS.parent / "docs" / "draw_label_efficiency.py"))["draw"]
    drawing = ElementTree.fromstring(draw(errors))
    names = [each.tag.rpartition("}")[2] for each in drawing]
    assert names.count("polyline") == 2
    assert names.count("circle") == 4
    texts = [each.text for each in drawing if each.tag.endswith("text")]
    assert {"2", "20", "60", "random parameters", "BEST-RQ and masked text"} <= set(texts)
