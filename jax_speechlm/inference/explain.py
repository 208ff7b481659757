"""Saliency of recognised words: which times and frequencies of the features made a CTC model predict each word.

Integrated gradients (Sundararajan et al. 2017): the gradient of a word's log-probability, averaged over the straight
path from the recording's background to its features, times the difference. The background is the 5th percentile of each
feature over time: quiet frames. Features of 0 would not do, since encoders that normalise their input are constant
along the path from there. The values of a word add up to what its log-probability gains on the path (completeness),
which is how their accuracy is known.
"""

import base64
import dataclasses
import functools
import html
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from pydantic import PositiveInt
from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from data_pipelines.core.errors import DataError
from jax_speechlm.decoding.ctc.alignment import Word, words_of
from jax_speechlm.decoding.ctc.posteriors import Frames, path_spans
from jax_speechlm.frontend.frontend import features
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.segmentation import Recording, cut_at_pauses, in_batches, name_of
from jax_speechlm.nn import functional
from jax_speechlm.nn.functional import Params
from jax_speechlm.training.pictures import to_png

MAX_SECONDS = 30.0
"""Longest recording; longer ones have to be cut."""

NEAR_SECONDS = 0.2
"""Distance from a word up to which features count as near it."""

_BACKGROUND = 5  # percentile
STYLE = """body{font:15px system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}figure{margin:1rem 0}
.picture{position:relative}img{width:100%;height:120px}
.mark{position:absolute;top:0;bottom:4px;border:2px solid #e66;border-width:0 2px}"""
"""Of pages with `figures`."""

LEGEND = (
    "Integrated gradients of a word's log-probability with respect to the features, absolute values, low frequencies "
    "at the bottom; the red lines are the word's beginning and end."
)


@dataclasses.dataclass(frozen=True)
class Saliency:
    """What a word depends on.

    Attributes:
      word: with its times.
      values: contribution of each feature to the log-probability of the word's frames, in nats.
      gain: what the log-probability gains from the background to the recording, which `values` add up to.
      near: share of the absolute values at most `NEAR_SECONDS` from the word.
    """

    word: Word
    values: Float[np.ndarray, "time bins"]
    gain: float
    near: float


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The words of a recording and what they depend on.

    Attributes:
      features: of the recording, in time order, one vector every `vector_seconds`.
      words: the saliency of each word.
    """

    name: str
    features: Float[np.ndarray, "time bins"]
    vector_seconds: float
    words: tuple[Saliency, ...]

    @property
    def text(self) -> str:
        """The transcript."""
        return " ".join(each.word.word for each in self.words)


@dataclasses.dataclass(frozen=True, eq=False)
class Explainer:
    """Computes saliency for a CTC run; recordings of similar length share compiled programs."""

    recognizer: Recognizer

    def explain(self, recording: Recording, steps: int = 64) -> Explanation:
        """Computes the saliency of each word of the best path.

        Args:
          steps: points of the path; more are more accurate.

        Raises:
          AudioError: the recording cannot be read, or is too short or longer than `MAX_SECONDS`.
        """
        experiment = self.recognizer.experiment
        mel, rate = experiment.frontend.mel, experiment.sample_rate
        parts = cut_at_pauses(recording, MAX_SECONDS, rate)
        if len(parts) != 1:
            raise AudioError(name_of(recording), f"longer than {MAX_SECONDS:g} s", "cut it into parts first")
        num_vectors = int(mel.num_frames(len(parts[0])))
        if not num_vectors:
            raise AudioError(name_of(recording), "too short for a single frame", "leave it out")
        (batch,) = in_batches(parts)
        x_1xTxF, length_1 = self._features({name: jnp.asarray(array[:1]) for name, array in batch.items()})
        log_probs_TxV = np.asarray(self._log_probs(self.recognizer.run.params, x_1xTxF, length_1))
        num_frames, frame_seconds = int(experiment.model.num_frames(num_vectors)), experiment.frame_samples / rate
        path_T = log_probs_TxV.argmax(-1)
        spans = path_spans(Frames.of(log_probs_TxV[:num_frames]))
        words = words_of(spans, self.recognizer.tokenizer.pieces, frame_seconds)
        frames_WxT = np.zeros((len(words), len(path_T)), np.float32)
        for row, word in zip(frames_WxT, words, strict=True):
            row[round(word.start / frame_seconds) : round(word.end / frame_seconds)] = 1
        background_F = np.percentile(np.asarray(x_1xTxF[0, :num_vectors]), _BACKGROUND, axis=0)
        inputs = self.recognizer.run.params, x_1xTxF, length_1, jnp.asarray(background_F), jnp.asarray(path_T)

        def by_window(x: Float[np.ndarray, "vectors features"]) -> Float[np.ndarray, "time bins"]:
            return x[:num_vectors].reshape(num_vectors * mel.stack, -1)

        seconds = mel.frame_samples / rate / mel.stack
        saliencies = []
        for word, frames_T in zip(words, frames_WxT, strict=True):
            values_TxF, gain = self._integrate(*inputs, jnp.asarray(frames_T), jnp.arange(steps))
            saliencies.append(_saliency(word, by_window(np.asarray(values_TxF)), float(gain), seconds))
        return Explanation(name_of(recording), by_window(np.asarray(x_1xTxF[0])), seconds, tuple(saliencies))

    @functools.cached_property
    def _features(self):
        return jax.jit(functools.partial(features, config=self.recognizer.experiment.frontend, key=None))

    @functools.cached_property
    def _log_probs(self):
        """Maps parameters, features and their number to log-probabilities [frames, vocab]."""
        experiment = self.recognizer.experiment
        objective = experiment.objective.build(experiment.model, experiment.frontend, self.recognizer.tokenizer)
        graphdef = functional.declare(objective.make).graphdef

        def compute(
            params: Params, x: Float[Array, "1 time features"], length: Int[Array, " 1"]
        ) -> Float[Array, "frames vocab"]:
            logits, *_ = functional.bind(graphdef, params)(x, length)
            return jax.nn.log_softmax(logits[0].astype(jnp.float32))

        return jax.jit(compute)

    @functools.cached_property
    def _integrate(self):
        """Returns integrated gradients of a word's log-probability, by the midpoint rule, and its gain."""

        def integrate(params, x_1xTxF, length_1, background_F, path_T, frames_T, steps_S):
            def of_word(x: Float[Array, "1 time features"]) -> Float[Array, ""]:
                return frames_T @ self._log_probs(params, x, length_1)[jnp.arange(len(path_T)), path_T]

            difference = x_1xTxF - background_F

            def add(total, step):
                alpha = (step + 0.5) / len(steps_S)
                return total + jax.grad(of_word)(background_F + alpha * difference), None

            total = jax.lax.scan(add, jnp.zeros_like(x_1xTxF), steps_S)[0]
            background = jnp.broadcast_to(background_F, x_1xTxF.shape)
            return (total / len(steps_S) * difference)[0], of_word(x_1xTxF) - of_word(background)

        return jax.jit(integrate)


def _saliency(word: Word, values: Float[np.ndarray, "time bins"], gain: float, seconds: float) -> Saliency:
    middle = (np.arange(len(values)) + 0.5) * seconds
    near = (middle >= word.start - NEAR_SECONDS) & (middle <= word.end + NEAR_SECONDS)
    size = np.abs(values).sum(1)
    return Saliency(word, values, gain, float(size[near].sum() / max(size.sum(), 1e-9)))


def explain_files(
    checkpoint: Positional[Path],
    files: Positional[tuple[Path, ...]],
    out: Path = Path("explained"),
    steps: PositiveInt = 64,
) -> None:
    """Draws which times and frequencies made a recognizer predict each word: a page with pictures.

    Writes `index.html`, and the values as `N.npz` for each file. What features contribute to a prediction is no proof
    of why: an explanation shows where to look.

    Args:
      checkpoint: a run trained by ctc: its directory, or one of its checkpoints/<step> folders.
      files: audio files of at most 30 s.
      out: folder of the page.
      steps: points of the integrated path; the page shows what is missing to completeness.
    """
    if not files:
        raise DataError("there is nothing to explain: name audio files")
    recognizer = Recognizer.load(checkpoint)
    explainer = Explainer(recognizer)
    explanations = [explainer.explain(file, steps) for file in files]
    out.mkdir(parents=True, exist_ok=True)
    for number, each in enumerate(explanations):
        arrays = {f"{place}_{saliency.word.word}": saliency.values for place, saliency in enumerate(each.words)}
        np.savez_compressed(out / f"{number}.npz", features=each.features, **arrays)
        print(f"{each.name}: {each.text}")
    (out / "index.html").write_text(as_html(explanations, str(recognizer.checkpoint)), encoding="utf-8")
    print(f"{_summary(explanations)}\n{out / 'index.html'}")


def _summary(explanations: Sequence[Explanation]) -> str:
    """Describes how near to their words the contributions are, and how complete."""
    near, time, missing = [], [], []
    for each in explanations:
        seconds = len(each.features) * each.vector_seconds
        for saliency in each.words:
            word = saliency.word
            near.append(saliency.near)
            time.append(min(1.0, (word.end - word.start + 2 * NEAR_SECONDS) / seconds))
            missing.append(_missing(saliency))
    if not near:
        return "no words"
    return (
        f"{len(near)} words: {np.mean(near):.0%} of the contributions are within {NEAR_SECONDS:g} s of the word, "
        f"{np.mean(time):.0%} of the time; not accounted for: median {np.median(missing):.1%}, "
        f"90th percentile {np.percentile(missing, 90):.1%}"
    )


def _missing(saliency: Saliency) -> float:
    """Returns the share of a word's gain that its values do not account for."""
    return abs(float(saliency.values.sum()) - saliency.gain) / max(abs(saliency.gain), 1e-9)


def as_html(explanations: Sequence[Explanation], source: str) -> str:
    """Returns a self-contained page: features, and below them the saliency of each word with its time marked."""
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Words and what they depend on</title>'
        f"<style>{STYLE}</style><h1>Words and what they depend on</h1><p>{html.escape(source)}. {LEGEND}</p>"
    ]
    for each in explanations:
        parts.append(f"<h2>{html.escape(each.name)}</h2><p>{html.escape(each.text)}</p>{figures(each)}")
    return "".join(parts) + "</html>\n"


def figures(explanation: Explanation) -> str:
    """Returns pictures of the features, and of the saliency of each word, as HTML for a page with `STYLE`."""
    parts = [_figure(explanation.features, "features", None, explanation)]
    for saliency in explanation.words:
        caption = (
            f"<b>{html.escape(saliency.word.word)}</b>: {saliency.word.start:.2f} to {saliency.word.end:.2f} s, "
            f"{saliency.near:.0%} within {NEAR_SECONDS:g} s of it; gain {saliency.gain:.1f} nats, "
            f"{_missing(saliency):.1%} not accounted for"
        )
        parts.append(_figure(np.abs(saliency.values), caption, saliency.word, explanation))
    return "".join(parts)


def _figure(values: Float[np.ndarray, "time bins"], caption: str, word: Word | None, whole: Explanation) -> str:
    picture = base64.b64encode(to_png(values.T[::-1])).decode()
    mark, total = "", len(whole.features) * whole.vector_seconds
    if word is not None:
        left, width = 100 * word.start / total, 100 * (word.end - word.start) / total
        mark = f'<div class="mark" style="left:{left:.2f}%;width:{width:.2f}%"></div>'
    image = f'<img alt="" src="data:image/png;base64,{picture}">'
    return f'<figure><div class="picture">{image}{mark}</div><figcaption>{caption}</figcaption></figure>'
