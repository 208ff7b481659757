"""Which runs keep their compiled programs in their own folder; that processes share it is tested in tests/launch."""

from pathlib import Path

import jax
import pytest
from jax._src import compiler

from data_pipelines.core.paths import as_path
from jax_speechlm.parallel import compilation_cache
from jax_speechlm.parallel.compilation_cache import compilation_cache_of
from jax_speechlm.parallel.platforms import default_compilation_cache

SETTINGS = (
    *("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs"),
    "jax_persistent_cache_enable_xla_caches",
)


def settings():
    return {name: getattr(jax.config, name) for name in SETTINGS}


@pytest.fixture(autouse=True)
def _settings(monkeypatch):
    """JAX's settings as a command leaves them, and after the test as before."""
    before = settings()
    monkeypatch.delenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS")
    jax.config.update("jax_compilation_cache_dir", str(default_compilation_cache()))
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture
def two_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)


def test_a_run_of_one_process_in_a_folder_has_the_cache_of_the_user(tmp_path):
    before = settings()
    with compilation_cache_of(tmp_path):
        assert settings() == before


def test_a_cache_that_the_user_chose_remains(tmp_path, two_processes):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    before = settings()
    with compilation_cache_of(tmp_path / "run"):
        assert settings() == before


@pytest.mark.parametrize("given", [None, "0.3"])
def test_a_run_of_two_processes_has_its_own(tmp_path, monkeypatch, two_processes, given):
    if given:
        monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", given)
    monkeypatch.chdir(tmp_path)
    before = settings()
    with compilation_cache_of(Path("runs/one")):
        folder = str(tmp_path / "runs" / "one" / "compiled")
        seconds = before[SETTINGS[1]] if given else 0
        assert list(settings().values()) == [folder, seconds, before[SETTINGS[2]]]
        with compilation_cache_of(Path("runs/one")):
            assert settings()[SETTINGS[0]] == folder
        assert settings()[SETTINGS[0]] == folder
    assert settings() == before


def test_xla_does_not_get_the_url_of_a_bucket():
    pytest.importorskip("s3fs", reason="pip install -e '.[dev]'")
    before = settings()
    with compilation_cache_of(as_path("s3://bucket/runs/one")):
        assert list(settings().values()) == ["s3://bucket/runs/one/compiled", 0, "none"]
    assert settings() == before


def test_another_process_writes_what_only_it_compiles(tmp_path, two_processes):
    """On CPUs everything, because JAX's keys contain the process there; JAX is told that it is process 1."""
    jax_function = compiler._compile_and_write_cache
    with compilation_cache_of(tmp_path), pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax._src.distributed.global_state, "process_id", 1)
        assert compiler._compile_and_write_cache is not jax_function
        jax.jit(lambda x: x * 3.25 + 17)(1.0)
    assert compiler._compile_and_write_cache is jax_function
    assert list((tmp_path / "compiled").glob("jit__lambda*"))


def test_a_kill_leaves_no_cut_program(tmp_path, monkeypatch):
    """What is killed is the rename that ends a write: no file of the program's name is there before."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)

    def killed(self, target):
        raise OSError("killed")

    with compilation_cache_of(tmp_path):
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            with pytest.warns(UserWarning, match="killed"):
                jax.jit(lambda x: x * 4.25 + 18)(1.0)
        assert not list((tmp_path / "compiled").iterdir())
        jax.jit(lambda x: x * 5.25 + 18)(1.0)
    assert len(list((tmp_path / "compiled").glob("jit__lambda*"))) == 1


def test_a_jax_that_compiles_differently_is_left_alone(tmp_path, two_processes, monkeypatch):
    def compile_and_write(backend, something_new):
        raise AssertionError

    monkeypatch.setattr(compiler, "_compile_and_write_cache", compile_and_write)
    with compilation_cache_of(tmp_path):
        assert compiler._compile_and_write_cache is compile_and_write
    monkeypatch.delattr(compiler, "_compile_and_write_cache")
    with compilation_cache_of(tmp_path):
        assert not hasattr(compiler, "_compile_and_write_cache")
