"""Cells of tables over seeds; used by the scripts of studies."""

import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats


def mean_cell(values: Sequence[float], digits: int = 1) -> str:
    """Formats the mean over seeds, with each seed's value in brackets."""
    alone = f" ({', '.join(f'{value:.{digits}f}' for value in values)})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{alone}"


def gain_cell(gains: Sequence[float], digits: int = 1) -> str:
    """Formats the mean of paired differences over two seeds or more, with its 95 % interval (Student's t)."""
    half = stats.t.ppf(0.975, len(gains) - 1) * stats.sem(gains)
    mean = np.mean(gains)
    return f"{mean:+.{digits}f} [{mean - half:+.{digits}f}, {mean + half:+.{digits}f}]"
