"""Vocos on the one voice of asterisk-en, by the distances of spectra; 1.65 M parameters.

jax-speechlm prepare asterisk-en
jax-speechlm pretrain --config asterisk_tts/vocos --run-dir runs/vocos
jax-speechlm vocode runs/vocos in.wav --out out.wav

A second of each utterance a step. `asterisk_tts/vocos_gan` continues with discriminators.

3,175 steps of it and, from there with --from, --num-steps 3000 and --optimizer.schedule.peak 8e-4, 3,000 more; seed 0.
Whisper tiny.en transcribes natural speech as well as its copies: WER 5.6 % [2.4, 11.2].

Result: copies of asterisk-en test WER 5.6 % [2.4, 10.9], MCD 1.59 dB [1.56, 1.61], log F0 0.031 [0.023, 0.043]
"""

from jax_speechlm.frontend.frontend import FrontEnd
from jax_speechlm.frontend.synthesis_mel import SynthesisMel
from jax_speechlm.models.vocoders.vocos import VocosConfig
from jax_speechlm.objectives.tts.vocoder import Vocoding
from jax_speechlm.optim.optimizers import Optimizer, WarmupCosine
from jax_speechlm.recipes.common import bucketed
from jax_speechlm.recipes.experiment import Experiment, LoopConfig


def config() -> Experiment:
    return Experiment(
        data=bucketed(sets=("asterisk-en",), num_buckets=4, max_seconds=32.0),
        objective=Vocoding(crop_frames=64),
        frontend=FrontEnd(mel=SynthesisMel()),
        model=VocosConfig(),
        optimizer=Optimizer(schedule=WarmupCosine(peak=1e-3, warmup_steps=200), b2=0.99, ema_decay=0.998),
        num_steps=10_000,
        topology="cpu-1",
        loop=LoopConfig(log_every=50, eval_every=1000, checkpoint_every=1000),
    )
