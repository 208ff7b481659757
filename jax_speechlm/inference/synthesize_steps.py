"""Speech synthesis by an autoregressive acoustic model, which decides itself how long a text takes."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int

from jax_speechlm.inference.synthesize import PADDED_TOKENS, SynthesisError, Synthesizer, padded
from jax_speechlm.models.tts.tacotron import Tacotron
from jax_speechlm.models.tts.text import boundary_id, num_ids
from jax_speechlm.nn import functional
from jax_speechlm.objectives.tts.attention import AttentionTTS

FRAMES_PER_TOKEN = 12
"""A sentence ends after so many frames a token, 0.19 s at a hop of 16 ms, if the model does not stop before."""


class StepSynthesizer(Synthesizer):
    """Synthesises speech with a model trained by `tacotron`, a sentence at a time.

    The durations of `Speech` are of the tokens that attention reads most. There is one speed.
    """

    objective = AttentionTTS

    def programs(self) -> Sequence[Callable[[], Any]]:
        return [functools.partial(self.spectrogram, [0] * (size - 2), 0, 1.0) for size in PADDED_TOKENS[:5]]

    def _checked_speed(self, speed: float) -> float:
        if speed != 1:
            raise SynthesisError(
                f"a speed of {speed:g} is not possible: {self.checkpoint} is a Tacotron, which has no durations to "
                "change; leave the speed at 1"
            )
        return 1.0

    def spectrogram(
        self, ids: Sequence[int], speaker: int = 0, speed: float = 1.0
    ) -> tuple[Float32[np.ndarray, "frames bins"], Int[np.ndarray, " tokens"]]:
        del speed
        boundary = boundary_id(self.run.tokenizer)
        rows = padded(np.array([boundary, *ids, boundary], np.int32))
        made = jax.device_get(self._generate(self.run.params, *rows, np.array([speaker], np.int32)))
        reduction = self.experiment.model.reduction
        steps = int(made.length[0]) // reduction
        counts = reduction * np.bincount(made.token[0, :steps], minlength=len(ids) + 2)
        return made.mel[0, : steps * reduction], counts

    @functools.cached_property
    def _generate(self):
        model, ids = self.experiment.model, num_ids(self.run.tokenizer)
        num_speakers = self.experiment.objective.num_speakers
        graphdef = functional.declare(lambda rngs: Tacotron(model, ids, num_speakers, rngs=rngs)).graphdef

        @jax.jit
        def generate(params, tokens_1xS, length_1, speaker_1):
            max_steps = -(-FRAMES_PER_TOKEN * tokens_1xS.shape[1] // model.reduction)
            keys = jax.random.split(jax.random.key(0), 1)
            return functional.bind(graphdef, params).generate(tokens_1xS, length_1, max_steps, keys, speaker_1)

        return generate
