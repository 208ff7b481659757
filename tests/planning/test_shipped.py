"""The table of all shipped experiments."""

from jax_speechlm.planning import run
from jax_speechlm.planning.ahead_of_time import PlanningError
from jax_speechlm.recipes import registry


def test_all_are_planned_but_the_runs_of_others(monkeypatch, tmp_path):
    def no_compiler(experiment, topology, **settings):
        raise PlanningError("no compiler")

    monkeypatch.setattr(run, "make_plan", no_compiler)
    lines = []
    table = run.plan_shipped(tmp_path, lines.append)
    assert len(table.splitlines()) == 2
    left_out = {line.split(":")[0] for line in lines if line.endswith("left out: no compiler")}
    assert left_out == {name for name in registry.names() if not name.startswith("validation/")}
