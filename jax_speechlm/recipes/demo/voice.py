"""A small FastSpeech 2 on asterisk-en, one voice, from characters: the voice of `make demo-tts`.

jax-speechlm prepare asterisk-en
jax-speechlm pitch asterisk-en:train asterisk-en:dev
jax-speechlm finetune --config demo/voice --run-dir runs/voice
jax-speechlm synthesize runs/voice "please enter your password" --out password.wav

600 steps of up to 24 s are 13 passes over the training speech: enough to see how a voice is made, and too few for
Whisper tiny.en to understand it (WER 97.2 %). With --num-steps 1200 it has 39.9 %; `asterisk_tts/fastspeech2` has the
size and the steps for a better one.

2 otherwise idle CPU cores (AMD EPYC), seed 0: 5.4 of the 7.3 minutes of `make demo-tts` are training. Test: the first
30 utterances by Griffin-Lim, whose copies of the recordings have MCD 1.21 dB, log F0 0.017, voicing error 5.2 %.

Result: asterisk-en test MCD 6.35 dB [6.11, 6.56], log F0 0.156 [0.135, 0.172], voicing error 13.0 % [10.7, 14.7]
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.tts.fastspeech2 import FastSpeech2Config, Layers, Postnet
from jax_speechlm.objectives.tts.acoustic import TTS
from jax_speechlm.recipes.common import on_cpu, small_batches
from jax_speechlm.recipes.experiment import Experiment


def config() -> Experiment:
    return Experiment(
        data=small_batches(
            sets=("asterisk-en",), row_seconds=(8.0, 24.0), num_buckets=2, max_seconds=24.0, seconds_per_batch=24
        ),
        objective=TTS(binarisation_start=200, binarisation_ramp=100),
        frontend=FrontEnd(mel=SynthesisMel()),
        model=FastSpeech2Config(
            dim=96,
            encoder=Layers(num_layers=2, ffn_dim=192, kernel_size=7),
            decoder=Layers(num_layers=2, ffn_dim=192, kernel_size=15),
            postnet=Postnet(num_layers=3, channels=128),
        ),
        **on_cpu(600, peak=2e-3, warmup_steps=60, eval_every=300),
    )
