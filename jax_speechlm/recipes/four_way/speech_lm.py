"""A speech-language model that transcribes, for the four-way table: the encoder of `four_way/ctc`, a character LM.

jax-speechlm finetune --config four_way/speech_lm --data.tokenizer runs/four_way/ctc-neither-0 \\
  --from runs/four_way/ctc-neither-0

`scripts/four_way.py` runs it on encoders trained from scratch and from speech pretraining, with language models
initialised at random and from `demo/lm` on prose alone. The encoder is frozen; adapter and language model learn in
every case. One CPU core: 6 minutes. Greedy; docs/results.md has the table.

Result: asterisk-en test CER, means of seeds 0 to 2: 54.1 % without pretraining, 62.5 % from audio and prose
"""

from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.recipes.common import SPEECH_LM_XS, on_cpu
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.four_way import ctc


def config() -> Experiment:
    recognizer = ctc.config()
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(freeze=("encoder",)),
        model=SPEECH_LM_XS,
        **on_cpu(1000, peak=1e-3, warmup_steps=100, log_every=100, eval_every=500),
    )
