"""Nothing is ever unpickled: a pickle can run any code, and files come from buckets, shared folders and strangers."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "shelve"}
# Calls by their last names: `load` and `loads` of the modules above cannot be without an import.
CALLS = {"eval", "exec", "read_pickle", "full_load", "unsafe_load", "load_all", "load_pickle", "deserialize_and_load"}
LOADS = {("yaml", "load"), ("torch", "load"), ("keras", "load_model")}


def faults(source: str) -> list[str]:
    """Where a program could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            found += [f"line {node.lineno}: {name}" for name in names if tuple(name.split(".")[-2:]) in LOADS]
        found += [f"line {node.lineno}: {name}" for name in names if MODULES.intersection(name.split("."))]
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func).split(".")
            is_bare = len(call) == 1
            if (call[-1] in CALLS and (is_bare or call[-1] not in ("eval", "exec"))) or tuple(call[-2:]) in LOADS:
                found.append(f"line {node.lineno}: {'.'.join(call)}")
            allowed = [word.value for word in node.keywords if word.arg == "allow_pickle"]
            if any(not (isinstance(value, ast.Constant) and value.value is False) for value in allowed):
                found.append(f"line {node.lineno}: allow_pickle")
            is_import = call[-1] in ("import_module", "__import__")
            if is_import and any(isinstance(each, ast.Constant) and each.value in MODULES for each in node.args):
                found.append(f"line {node.lineno}: {'.'.join(call)}")
    return found


@pytest.mark.parametrize("folder", ["jax_speechlm", "data_pipelines", "scripts", "benchmarks", "launch"])
def test_nothing_is_unpickled_in_the_product(folder):
    found = {str(path.relative_to(ROOT)): faults(path.read_text("utf-8")) for path in (ROOT / folder).rglob("*.py")}
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import loads",
        "import multiprocessing.dill as d",
        "def f():\n    from joblib import load",
        "import importlib\nimportlib.import_module('pickle')",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.load(path)",
        "from torch import load",
        "yaml.load(text, Loader=yaml.Loader)",
        "pd.read_pickle(path)",
        "eval(text)",
        "serialize_executable.deserialize_and_load(blob)",
    ],
)
def test_what_would_unpickle_is_found(source):
    assert faults(source)


def test_what_would_not_is_not():
    assert not faults("model.eval()\nnp.load(path, allow_pickle=False)\nyaml.safe_load(text)\njson.loads(text)")
