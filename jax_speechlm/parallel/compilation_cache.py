"""JAX's cache of compiled programs for runs of several processes and runs in buckets: one folder, in that of the run.

Of several processes JAX lets process 0 alone write the cache, and all read it, so a cache on each host's own disk is of
use to one host only; and a disk may be gone with its machine. In the folder of the run every process finds the
programs, on any machine on which the run is started again.
"""

import contextlib
import functools
import inspect
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import compilation_cache as programs
from jax._src import compiler
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from data_pipelines.core.files import write_bytes
from data_pipelines.core.paths import AnyPath, absolute, as_path, is_url
from jax_speechlm.parallel.platforms import default_compilation_cache

COMPILED = "compiled"
"""Name of the cache's folder in the folder of a run."""

_MIN_SECONDS = "jax_persistent_cache_min_compile_time_secs"
_PARAMETERS = (
    *("backend", "computation", "executable_devices", "compile_options"),
    *("host_callbacks", "module_name", "cache_key"),
)


@contextlib.contextmanager
def compilation_cache_of(run_dir: AnyPath) -> Iterator[None]:
    """Keeps compiled programs in the folder of a run that has several processes or is in a bucket.

    Every program is kept, however fast it was compiled, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says
    otherwise. A cache that the user has chosen (JAX_COMPILATION_CACHE_DIR) remains, and that of the user for a run of
    one process in a local folder.
    """
    chosen = jax.config.jax_compilation_cache_dir not in (None, str(default_compilation_cache()))
    if chosen or not (jax.process_count() > 1 or is_url(run_dir)):
        yield
        return
    settings = {"jax_compilation_cache_dir": str(absolute(run_dir) / COMPILED)}
    if _MIN_SECONDS.upper() not in os.environ:
        settings[_MIN_SECONDS] = 0.0
    if is_url(run_dir):  # XLA's own caches are written by C++ code, to file systems
        settings["jax_persistent_cache_enable_xla_caches"] = "none"
    before = {name: getattr(jax.config, name) for name in settings}
    _configure(settings)
    try:
        with _own_programs_written(), _whole_files():
            yield
    finally:
        _configure(before)


def _configure(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    reset_cache()  # JAX opens it at the first compilation and keeps it


@contextlib.contextmanager
def _own_programs_written() -> Iterator[None]:
    """Lets the processes other than 0 write programs under keys that no other process has.

    JAX has no setting for it. The key of a program contains its devices, so programs for the devices of one process
    alone, such as the slices that a process saves, have a key of their own; not so on GPUs, where the number of the
    device is left out and two processes would write one file. On CPUs every key contains the process.
    """
    compile_and_write = getattr(compiler, "_compile_and_write_cache", None)  # private: other versions may lack it
    is_known = compile_and_write and tuple(inspect.signature(compile_and_write).parameters) == _PARAMETERS
    if jax.process_index() == 0 or not is_known:
        yield
        return

    def compile_and_write_own(backend, computation, devices, options, host_callbacks, module_name, cache_key):
        start = time.monotonic()
        program = compile_and_write(backend, computation, devices, options, host_callbacks, module_name, cache_key)
        seconds = time.monotonic() - start
        is_own = all(device.process_index == jax.process_index() for device in devices)
        has_own_key = backend.platform == "cpu" or (backend.platform == "tpu" and is_own)
        if has_own_key and not host_callbacks and seconds >= getattr(jax.config, _MIN_SECONDS):
            try:
                programs.put_executable_and_time(cache_key, module_name, program, backend, int(seconds))
            except Exception as error:  # each file system and client raises its own; as JAX does for process 0
                warnings.warn(f"the compiled {module_name} could not be cached: {error}", stacklevel=2)
        return program

    compiler._compile_and_write_cache = compile_and_write_own
    try:
        yield
    finally:
        compiler._compile_and_write_cache = compile_and_write


@contextlib.contextmanager
def _whole_files() -> Iterator[None]:
    """Lets the files of a local folder be written completely or not at all.

    JAX writes them in place, and never again: a kill meanwhile would leave a program that every restart compiles.
    """
    open_cache = getattr(programs, "get_file_cache", None)  # private, as above

    def open_whole(path: str) -> tuple[Any, str] | None:
        opened = open_cache(path)
        folder = as_path(path)
        # Files in buckets are whole anyway, and with a limit of its size a cache has further files.
        if opened and not is_url(folder) and not getattr(opened[0], "eviction_enabled", True):
            opened[0].put = functools.partial(_put_whole, folder)
        return opened

    if open_cache is None:
        yield
        return
    programs.get_file_cache = open_whole
    try:
        yield
    finally:
        programs.get_file_cache = open_cache


def _put_whole(folder: Path, key: str, program: bytes) -> None:
    file = folder / f"{key}-cache"
    if not file.exists():
        write_bytes(file, program)
