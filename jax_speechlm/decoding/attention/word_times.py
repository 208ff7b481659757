"""Times of tokens from the attention of a decoder to the frames, by dynamic time warping (Radford et al. 2022).

The heads of attention that follow the speech are normalised, smoothed and averaged, and the path through tokens and
frames with the greatest sum says at which frame each token is reached.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Float, Int

_SMOOTHED = 7  # frames of the median filter
_LEAST = 1e-9  # of a standard deviation


def first_frames(weights_AxTxS: Float[np.ndarray, "heads tokens time"]) -> Int[np.ndarray, " tokens"]:
    """Returns the frame at which each token is reached; the first one's is 0.

    Args:
      weights_AxTxS: weights of attention of all tokens of a text, in order, to the frames of its speech.
    """
    weights = weights_AxTxS.astype(np.float64)
    # Over tokens, so that frames that all of them attend to, as a window's edges, have no part.
    weights = (weights - weights.mean(axis=1, keepdims=True)) / np.maximum(weights.std(axis=1, keepdims=True), _LEAST)
    if weights.shape[2] > _SMOOTHED // 2:
        weights = scipy.ndimage.median_filter(weights, (1, 1, _SMOOTHED), mode="mirror")
    tokens, frames = warping_path(-weights.mean(axis=0))
    return frames[np.flatnonzero(np.diff(tokens, prepend=-1))]


def warping_path(cost_TxS: Float[np.ndarray, "rows columns"]) -> tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]:
    """Finds the path of least cost from the first row and column to the last ones (dynamic time warping).

    Returns:
      Row and column of each step; a step advances the row, the column or both by 1. Of steps of the same cost it is the
      one that advances the column alone.
    """
    rows, columns = cost_TxS.shape
    total = np.full((rows + 1, columns + 1), np.inf)
    total[0, 0] = 0.0
    steps = np.zeros((rows, columns), np.int8)
    for diagonal in range(rows + columns - 1):  # the cells of one depend on those of the two before
        row = np.arange(max(0, diagonal - columns + 1), min(rows, diagonal + 1))
        column = diagonal - row
        choices = np.stack([total[row + 1, column], total[row, column], total[row, column + 1]])
        steps[row, column] = step = np.argmin(choices, axis=0)
        total[row + 1, column + 1] = cost_TxS[row, column] + choices[step, np.arange(len(row))]
    path, row, column = [], rows - 1, columns - 1
    while row >= 0 and column >= 0:
        path.append((row, column))
        step = steps[row, column]
        row, column = row - (step > 0), column - (step < 2)
    found_rows, found_columns = np.array(path[::-1]).T
    return found_rows, found_columns
