"""A speech-language model that transcribes, for the four-way table: the encoder of `four_way_ctc`, a character LM.

jax-speechlm finetune --config four_way_speech_lm --data.tokenizer runs/four_way/ctc-neither-0 \\
  --from runs/four_way/ctc-neither-0

`scripts/four_way.py` runs it on encoders that began from scratch and from speech pretraining, with language models that
begin at random and from `demo_lm` on prose alone. The encoder stays as it is; adapter and language model learn in
every case.
"""

from jax_speechlm.configs import demo_lm, four_way_ctc
from jax_speechlm.models.adapter import Stacking
from jax_speechlm.models.speech_lm import SpeechLMConfig
from jax_speechlm.objectives.speech_text.speech_lm import SpeechLM
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    recognizer = four_way_ctc.config()
    return recognizer.replace(
        data=recognizer.data.replace(shortest_first_epochs=0),
        objective=SpeechLM(freeze=("encoder",)),
        model=SpeechLMConfig(
            encoder=recognizer.model,
            adapter=Stacking(frames=2, hidden_dim=384),
            transformer=demo_lm.config().model,
        ),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=100)),
        num_steps=1000,
    )
