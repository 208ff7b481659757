"""Intent and slots of commands to a coffee machine, from the frozen encoder of an imported Whisper.

Result: not yet measured
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.recipes.coffee import intent
from jax_speechlm.recipes.common import bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    parent, training = intent.config(), on_cpu(300, peak=1e-2, warmup_steps=20, log_every=50, eval_every=150)
    return parent.replace(
        data=bucketed(sets=("coffee",), seconds_per_batch=32, num_buckets=2, max_seconds=16.0),
        objective=parent.objective.replace(weighted_layers=True),
        frontend=FrontEnd(mel=WhisperMel(window_seconds=None)),
        model=WhisperEncoderConfig(),  # whisper-tiny
        **training | {"optimizer": training["optimizer"].replace(frozen=("encoder",))},
    )
