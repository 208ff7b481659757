"""A voice of speech units on asterisk-en: `asterisk_tts/fastspeech2` from the numbers of k-means units.

jax-speechlm prepare asterisk-en queen-en
jax-speechlm pitch asterisk-en
jax-speechlm units fit --sets asterisk-en queen-en --out data/units-100 --num-units 100
jax-speechlm units label data/units-100 --sets asterisk-en queen-en
jax-speechlm finetune --config asterisk_tts/unit_voice --run-dir runs/unit_voice
jax-speechlm synthesize runs/unit_voice "12 5 9 47 3" --out units.wav
jax-speechlm eval runs/unit_voice --sets asterisk-en --vocoders griffin-lim runs/vocos
jax-speechlm eval runs/unit_voice --sets queen-en --limit 60 --vocoders runs/vocos
jax-speechlm generate runs/debian_unit_lm --audio-prompts question.wav --modality units --out answers \\
  --voice runs/unit_voice --vocoder runs/vocos

The units are those of `debian/unit_lm`, without repeats: how long each lasts is predicted. Whoever spoke, the voice is
that of asterisk-en.

Measured in the size of `demo/voice`, 1.9 M parameters: 1,000 steps, 13 minutes of 2 cores beside other work, seed 0.
docs/results.md has the command.

Result: asterisk-en test by Griffin-Lim: WER 87.4 % [76.5, 106.7], MCD 5.54 dB [5.44, 5.64], 210 bits a second
"""

from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.recipes.asterisk_tts import fastspeech2
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    base = fastspeech2.config()
    return base.replace(objective=TTS(text="units"), data=base.data.replace(units="data/units-100"))
