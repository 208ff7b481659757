"""Classification of digits by a transformer, Whisper's encoder in small, trained as `fsdd/cnn`.

jax-speechlm finetune --config fsdd/transformer --run-dir runs/transformer     # without theo
python scripts/left_out_speakers.py fsdd/transformer   # without each speaker in turn

Result: not yet measured
"""

from jax_speechlm.models.whisper import WhisperEncoderConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fsdd import cnn


def config() -> Experiment:
    parent = cnn.config()
    mel = cnn.MEL.replace(stack=1)  # the encoder subsamples them
    return parent.replace(
        frontend=parent.frontend.replace(mel=mel),
        model=WhisperEncoderConfig(
            input_dim=mel.input_dim, dim=96, num_layers=4, num_heads=4, ffn_dim=384, max_frames=150, dropout=0.1
        ),
    )
