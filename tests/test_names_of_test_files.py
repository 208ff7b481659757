"""Every test file has a name of its own: pytest imports files of folders that are no packages by their names alone."""

from collections import Counter
from pathlib import Path


def test_no_two_test_files_share_a_name():
    tests = Path(__file__).parent
    loose = [path.name for path in tests.rglob("test_*.py") if not (path.parent / "__init__.py").exists()]
    assert not [name for name, count in Counter(loose).items() if count > 1]
