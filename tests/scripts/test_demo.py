"""The demo of speech recognition, whole, on a minute of audio of our own making and with tiny models; and its page."""

import html.parser
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from jax_speechlm.evaluation.report import EvaluationReport

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import demo
import demo_page

CONFIG = """
from jax_speechlm.recipes.demo import {recipe}

def config():
    shipped = {recipe}.config()
    data = shipped.data.replace(
        sets=("tones",), row_seconds=(4.0,), max_seconds=4.0, seconds_per_batch=32, batch_multiple=8, num_buckets=1
    )
    model = shipped.model.replace(dim=16, num_layers=2, num_heads=2)
    loop = shipped.loop.replace(log_every=2, eval_every=2, checkpoint_every=4)
    return shipped.replace(data=data, model=model, num_steps=4, loop=loop{more})
"""


class Elements(html.parser.HTMLParser):
    """Collects the start tags of a page with their attributes."""

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def finished(tones):
    """Runs the demo; returns its folder."""
    (tones / "pretrain.py").write_text(CONFIG.format(recipe="pretrain", more=""))
    more = ", objective=shipped.objective.replace(intermediate=(1,))"
    (tones / "finetune.py").write_text(CONFIG.format(recipe="finetune", more=more))
    recipes = (str(tones / f"{name}.py") for name in ("pretrain", "finetune"))
    demo.main(tones / "data", tones / "demo", ("tones",), *recipes)
    return tones / "demo"


def test_it_goes_from_recordings_to_an_exported_recognizer_and_a_page(finished):
    for run in ("pretrain", "finetune"):
        logged = [json.loads(line) for line in (finished / run / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in logged if line["part"] == "dev"] == [2, 4]
    assert (finished / "exported" / "model.safetensors").is_file()
    page = (finished / "index.html").read_text()
    reports = [EvaluationReport.load(path) for path in (finished / "finetune" / "eval").glob("*/report.json")]
    assert len(reports) == 1 + bool(importlib.util.find_spec("kenlm"))
    for report in reports:
        assert f"<td>{report.wer}</td><td>{report.cer}</td>" in page
    for utterance in reports[0].utterances:
        assert f"<small>reference</small> {utterance.reference}<br>" in page


def test_the_page_has_sound_pictures_and_curves_and_fetches_nothing(finished):
    page = Elements((finished / "index.html").read_text())
    assert len(page.of("audio")) == 6  # as many as the test split has
    assert all(element["src"].startswith("data:audio/flac;base64,") for element in page.of("audio"))
    assert [element["href"][:22] for element in page.of("image")] == ["data:image/png;base64,"]
    assert len(page.of("polyline")) == 2
    assert len(page.of("circle")) == 4  # validations
    assert len(page.of("rect")) == 5  # words
    outside = {"script", "link", "img", "iframe", "a"}
    assert not outside & {tag for tag, _ in page.found}


def test_it_opens_only_where_there_is_a_display(monkeypatch, tmp_path):
    opened = []
    monkeypatch.setattr(demo.webbrowser, "open", opened.append)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    demo.open_page(tmp_path / "index.html")
    assert not opened
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    demo.open_page(tmp_path / "index.html")
    assert opened == [f"file://{tmp_path}/index.html"]


@pytest.mark.parametrize(("low", "high"), [(0, 6), (0.93, 0.94), (2, 9), (-1e-6, 1e-6), (0, 2400), (3.1, 8.4)])
def test_an_axis_has_a_few_round_values_within_its_range(low, high):
    ticks = demo_page._ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert low - 1e-12 <= ticks[0]
    assert ticks[-1] <= high + 1e-6 * (high - low)
    step = ticks[1] - ticks[0]
    assert f"{step:.0e}"[0] in "125"
    assert step == pytest.approx(float(f"{step:.0e}"))


def test_a_curve_of_equal_losses_is_drawn():
    figure = demo_page._curve(demo_page.Curve("flat", [(1, 2.0), (2, 2.0)], [(2, 2.0)]))
    assert "nan" not in figure
    assert "inf" not in figure
