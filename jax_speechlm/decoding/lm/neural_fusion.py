"""A neural language model as a scorer of a beam search: shallow fusion, as in Gulcehre et al. 2015."""

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

_WIDTH = 32  # prefixes extended in a call of the model
_SHORTEST = 64  # least length of the cache in tokens


@runtime_checkable
class Sessions(Protocol):
    """Interface that the scorer needs, which `jax_speechlm.inference.lm.causal.LanguageModel` implements."""

    context: int

    def session(self, slots: int, length: int, width: int) -> Any:
        """Returns a session of `slots` prefixes of up to `length` tokens, `width` of them extended at a time."""


class NeuralScorer:
    """Scorer of every token, and of the end, with a language model over the same tokens.

    A state is a slot of the model's session. The model processes one token for every prefix that the search keeps,
    however many extensions are scored later. Shapes are rounded up, so that few programs are compiled.

    A prefix longer than the context restarts from its last half, as if the text began there.

    Args:
      ids: the model's id of every token of the recognizer.
      boundary: id that ends a text.
    """

    rows_at_once = 8  # every prefix needs memory for keys and values of all its tokens

    def __init__(self, lm: Sessions, ids: Int[np.ndarray, " vocab"], boundary: int):
        self._lm, self._ids, self._boundary = lm, ids, boundary
        self.alpha, self.beta = 1.0, 0.0
        self._shape: tuple[int, int] | None = None

    def start(self, prefixes: int, max_tokens: int) -> int:
        # Twice as many slots, because extended prefixes are written before old ones become free.
        length = 1 << (max(max_tokens, _SHORTEST) - 1).bit_length()
        shape = 1 << (2 * prefixes - 1).bit_length(), min(self._lm.context, length)
        if shape != self._shape:
            self._shape, self._length = shape, shape[1]
            self._session = self._lm.session(*shape, _WIDTH)
            self._log_probs = np.zeros((shape[0], self._boundary + 1), np.float32)
            self._history: list[tuple[int, ...]] = [()] * shape[0]
        self._log_probs[0], self._history[0] = self._session.start(0), ()
        return 0

    def score(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        return self.alpha * self._log_probs[states, self._ids[tokens]].astype(np.float64) + self.beta

    def advance(self, states: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        after, grown = states.copy(), np.flatnonzero(tokens)
        # Rows may share a state, as at the start, and extend it by the same token.
        extensions, which = np.unique(np.stack([states[grown], tokens[grown]]), axis=1, return_inverse=True)
        free = np.setdiff1d(np.arange(len(self._history)), states)[: extensions.shape[1]]
        self._extend(extensions[0].tolist(), self._ids[extensions[1]].tolist(), free.tolist())
        after[grown] = free[which.reshape(-1)]
        return after

    def final(self, states: np.ndarray) -> np.ndarray:
        return self.alpha * self._log_probs[states, self._boundary].astype(np.float64)

    def _extend(self, parents: list[int], tokens: list[int], slots: list[int]) -> None:
        full = [index for index, parent in enumerate(parents) if len(self._history[parent]) >= self._length]
        for index in full:  # restart in the new slot
            tail = self._history[parents[index]][-(self._length // 2) :]
            slot = parents[index] = slots[index]
            self._session.start(slot)
            self._history[slot] = ()
            for token in tail:
                self._run([slot], [token], [slot])
        for first in range(0, len(slots), _WIDTH):
            part = slice(first, first + _WIDTH)
            self._run(parents[part], tokens[part], slots[part])

    def _run(self, parents: list[int], tokens: list[int], slots: list[int]) -> None:
        self._log_probs[slots] = self._session.extend(parents, tokens, slots)
        for parent, token, slot in zip(parents, tokens, slots, strict=True):
            self._history[slot] = (*self._history[parent], token)
