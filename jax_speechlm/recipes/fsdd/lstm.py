"""Classification of digits by a bidirectional LSTM, trained as `fsdd/cnn`; `--model.cell gru` is a GRU.

jax-speechlm finetune --config fsdd/lstm --run-dir runs/lstm     # without theo
python scripts/left_out_speakers.py fsdd/lstm   # without each speaker in turn

One CPU core beside other work: one to two minutes a speaker, 2.7 hours of audio seen (8 passes), seed 0; the interval
is over the speakers.

Result: accuracy over the six speakers 68.8 % [60.2, 78.0]
"""

from jax_speechlm.models.rnn import RNNConfig
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.fsdd import cnn


def config() -> Experiment:
    return cnn.config().replace(model=RNNConfig(input_dim=cnn.MEL.input_dim, dim=192))
