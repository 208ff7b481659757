"""Classification of digits by a bidirectional GRU, trained as `fsdd/cnn`.

jax-speechlm finetune --config fsdd/gru --run-dir runs/gru     # without theo
python scripts/left_out_speakers.py fsdd/gru   # without each speaker in turn

Result: not yet measured
"""

from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fsdd import cnn


def config() -> Experiment:
    return cnn.config().replace(model=RNNConfig(input_dim=cnn.MEL.input_dim, cell="gru", dim=192))
