"""A speech-language model that transcribes, for the four-way table: the encoder of `four_way/ctc`, a character LM.

jax-speechlm finetune --config four_way/speech_lm --data.tokenizer runs/four_way/ctc-neither-0 \\
  --from runs/four_way/ctc-neither-0

`scripts/four_way.py` runs it on encoders trained from scratch and from speech pretraining, with language models
initialised at random and from `demo/lm` on prose alone. The encoder is frozen; adapter and language model learn in
every case. One CPU core: 6 minutes. Greedy; docs/results.md has the table.

Result: asterisk-en test CER, means of seeds 0 to 2: 54.1 % without pretraining, 62.5 % from audio and prose
"""

from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import CHARACTER_LM
from jax_speechlm.recipes.experiment import Experiment
from jax_speechlm.recipes.four_way import ctc


def config() -> Experiment:
    recognizer = ctc.config()
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(freeze=("encoder",)),
        model=SpeechLMConfig(
            encoder=recognizer.model,
            adapter=Stacking(frames=2, hidden_dim=384),
            transformer=CHARACTER_LM,
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=100)),
        num_steps=1000,
    )
