"""Classification of digits: a head on the frozen encoder of an imported whisper-tiny.en.

jax-speechlm import whisper-tiny.en --out runs/whisper
jax-speechlm prepare --manifest fsdd.jsonl --name fsdd-speakers     # with "split" set to the speaker
jax-speechlm finetune --config fsdd/whisper --from runs/whisper --run-dir runs/digits    # without theo
python scripts/left_out_speakers.py fsdd/whisper --name fsdd-speakers --init-from runs/whisper

Result: not yet measured
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.whisper_mel import WhisperMel
from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.recipes.common import bucketed, on_cpu
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fsdd import digits


def config() -> Experiment:
    parent, training = digits.config(), on_cpu(200, peak=1e-2, warmup_steps=20, log_every=50, eval_every=200)
    return parent.replace(
        data=bucketed(sets=parent.data.sets, seconds_per_batch=32, num_buckets=2, min_seconds=0.1, max_seconds=3.0),
        objective=parent.objective.replace(weighted_layers=True),
        frontend=FrontEnd(mel=WhisperMel(window_seconds=None)),
        model=WhisperEncoderConfig(),  # whisper-tiny
        **training | {"optimizer": training["optimizer"].replace(frozen=("encoder",))},
    )
