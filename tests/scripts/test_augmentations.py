"""The arms of `scripts/augmentations.py` are experiments that differ from the first by one augmentation."""

import runpy
import sys
from pathlib import Path

from jax_speechlm.recipes.experiment import differences

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_every_arm_has_one_augmentation_more(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(SCRIPTS), *sys.path])
    script = runpy.run_path(str(SCRIPTS / "augmentations.py"))
    make, arms = script["arm_experiment"], list(script["ARMS"])
    plain = make("none", 0, Path("data"))
    assert plain.data.sets == ("queen-en",)
    for arm in arms[1:]:
        (changed,) = differences(plain, make(arm, 0, Path("data")))
        assert changed.startswith(("frontend.augment.", "data.joined"))
