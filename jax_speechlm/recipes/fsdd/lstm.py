"""Classification of digits by a bidirectional LSTM, trained as `fsdd/cnn`; `--model.cell gru` is a GRU.

jax-speechlm finetune --config fsdd/lstm --run-dir runs/lstm     # without theo
python scripts/left_out_speakers.py fsdd/lstm   # without each speaker in turn

Result: not yet measured
"""

from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fsdd import cnn


def config() -> Experiment:
    return cnn.config().replace(model=RNNConfig(input_dim=cnn.MEL.input_dim, dim=192))
