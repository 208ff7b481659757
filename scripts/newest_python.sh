#!/usr/bin/env bash
# newest_python.sh COMMAND...: runs a command with PYTHON set to the newest Python here that the project supports.
#
# Pythons are looked for on PATH and among pyenv's. The command's VENV is one of that Python's own. Where none is found
# that is newer than `python3`'s oldest supported version, says so and runs nothing.
set -euo pipefail
for version in 3.13 3.12; do
  for python in "python$version" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python; do
    # An interpreter of pyenv's that is on PATH, but not chosen, ends with an error: it is no Python.
    if found=$("$python" -c 'import sys, venv, ensurepip; print(sys.executable)' 2>/dev/null); then
      echo "The newest Python here is $found"
      export PYTHON="$found" VENV=".venv-$version"
      exec "$@"
    fi
  done
done
echo "NOT RUN: $*"
echo "It needs Python 3.12 or 3.13, with venv, on PATH or in pyenv: pyenv install 3.13"
