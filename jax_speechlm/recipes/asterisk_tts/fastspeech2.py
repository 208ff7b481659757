"""FastSpeech 2 on asterisk-en, one voice, from characters; durations by an alignment learnt in the same run.

jax-speechlm prepare asterisk-en
jax-speechlm pitch asterisk-en
jax-speechlm finetune --config asterisk_tts/fastspeech2 --run-dir runs/asterisk_fastspeech2
jax-speechlm synthesize runs/asterisk_fastspeech2 "please enter your password" --out password.wav

5.3 M parameters, and 0.2 M of the aligner. 4,000 steps of up to 48 s are 174 passes over the training speech. Seed 0;
84 minutes beside other work, about 70 on idle cores. Intelligibility by Whisper tiny.en on all 60 utterances of the
test split: natural speech has 5.6 %, its copies by Griffin-Lim 6.4 %. docs/results.md has the table of all judges.

Result: asterisk-en test WER 25.1 % [17.5, 36.7] by Griffin-Lim, 24.0 % [16.8, 34.1] by `asterisk_tts/vocos`
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.recipes.common import on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(sets=("asterisk-en",), row_seconds=(8.0, 20.0), max_seconds=20.0),
        objective=TTS(),
        frontend=FrontEnd(mel=SynthesisMel()),
        model=FastSpeech2Config(),
        **on_cpu(4000, peak=1e-3, warmup_steps=400, eval_every=500),
    )
