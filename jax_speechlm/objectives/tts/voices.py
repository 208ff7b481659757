"""Parts that all objectives of text to speech share: speakers, checks of settings, texts of a batch."""

from typing import Annotated, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from pydantic import AfterValidator

from data_pipelines.core.tokenizer import Tokenizer
from jax_speechlm.core.batch import Batch, text_places
from jax_speechlm.core.config import Config
from jax_speechlm.core.segments import Segments
from jax_speechlm.frontend.augment import Augment
from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.tts.text import BOUNDARIES, TextRows, pack_text, with_boundaries
from jax_speechlm.objectives.base import ObjectiveConfig
from jax_speechlm.objectives.heads.base import distinct


class Voices(ObjectiveConfig):
    """Base of the settings of text to speech.

    Attributes:
      classes: names of the speakers in the order of their ids; with fewer than two the model has no speaker embedding.
    """

    classes: Annotated[tuple[str, ...], AfterValidator(distinct)] = ()

    def check_data(self, data: Config) -> None:
        """Raises ValueError if speed perturbation would change the voice."""
        if getattr(data, "speeds", (1.0,)) != (1.0,):
            raise ValueError("a voice is learnt at its own speed: set data.speeds to 1.0")

    def added_tokens(self, tokenizer: Tokenizer | None) -> int:
        """Returns the number of tokens that the boundaries add to a transcript."""
        del tokenizer
        return BOUNDARIES

    @property
    def num_speakers(self) -> int:
        """Speakers of the model's embedding."""
        return max(1, len(self.classes))


def check_tokenizer(tokenizer: Tokenizer | None) -> None:
    """Raises ValueError without a tokenizer."""
    if tokenizer is None:
        raise ValueError("speech synthesis needs a tokenizer: train on sets that have transcripts")


def check_frontend(frontend: FrontEnd, num_mel_bins: int) -> None:
    """Raises ValueError unless a model of synthesis can compute the front end's features as they are."""
    if not isinstance(frontend.mel, SynthesisMel):
        raise ValueError(
            f"no vocoder can turn features of variant {frontend.mel.variant} into speech: set "
            "--frontend.mel.variant speecht5"
        )
    if frontend.mel.input_dim != num_mel_bins:
        raise ValueError(
            f"the front end gives {frontend.mel.input_dim} values a frame, model.num_mel_bins is {num_mel_bins}; set "
            f"--model.num-mel-bins {frontend.mel.input_dim}"
        )
    if frontend.augment != Augment():
        raise ValueError("a voice would learn the augmentation of its audio: leave frontend.augment at its default")


class Texts(NamedTuple):
    """Texts of a batch. Utterances with fewer frames than tokens have no text and no segment."""

    rows: TextRows
    segments: Segments  # in frames
    feasible: Bool[Array, "batch utterances"]


def texts_of(batch: Batch, segments: Segments, boundary: int, num_frames: int) -> Texts:
    """Returns the texts of a batch with a dimension for utterances (`by_utterance`), between boundaries.

    Args:
      segments: utterances of the rows in frames.
    """
    tokens, count = with_boundaries(batch["tokens"], batch["token_length"], boundary)
    feasible = segments.length >= count
    count = jnp.where(feasible, count, 0)
    segments = Segments(segments.start, jnp.where(feasible, segments.length, 0))
    places = min(text_places(batch, BOUNDARIES), num_frames)
    return Texts(pack_text(tokens, count, places), segments, feasible)


def mel_picture(
    is_frame_T: Bool[Array, " time"], mels: tuple[Float[Array, "time bins"], Float[Array, "time bins"]]
) -> Float[Array, "height time"]:
    """Returns a picture of the log-mel of a recording above the computed one."""
    low = jnp.where(is_frame_T, jnp.min(mels[0]), jnp.nan)
    above, below = (jnp.where(is_frame_T, mel.T[::-1], jnp.nan) for mel in mels)
    return jnp.concatenate([above, low[None], below])
