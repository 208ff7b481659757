"""Tacotron 2 on asterisk-en, from characters: the baseline of a model that learns its alignment by attention.

jax-speechlm prepare asterisk-en
jax-speechlm finetune --config asterisk_tts/tacotron --run-dir runs/asterisk_tacotron
jax-speechlm eval runs/asterisk_tacotron --sets asterisk-en

5.6 M parameters. Known to fail at this size: attention does not become intelligible from 24 minutes of one voice, even
at convergence (Chung et al. 2018), and asterisk-en has 20. One utterance a row, because a packed row would run its
steps one after the other.

`--num-steps 500 --optimizer.schedule.warmup-steps 60` took 37 minutes of 2 cores beside other work,
seed 0. By Griffin-Lim; above 100 % Whisper invents words.

Result: asterisk-en test, 500 steps: WER 209.8 % [113.7, 413.3], MCD 8.53 dB [8.30, 8.81]
"""

from jax_speechlm.models.tts.tacotron import TacotronConfig
from jax_speechlm.objectives.tts.attention import AttentionTTS
from jax_speechlm.recipes.asterisk_tts import fastspeech2
from jax_speechlm.recipes.common import bucketed
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return fastspeech2.config().replace(
        data=bucketed(sets=("asterisk-en",), num_buckets=4, max_seconds=20.0),
        objective=AttentionTTS(),
        model=TacotronConfig(),
    )
