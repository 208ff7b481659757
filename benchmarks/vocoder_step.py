"""One training step of a vocoder with discriminators (forward, backward, AdamW for both): ours against torch.

    python benchmarks/vocoder_step.py
    python benchmarks/vocoder_step.py --vocoder hifigan

The step of `asterisk_tts/vocos_gan`: Vocos or our default HiFi-GAN, multi-period and multi-resolution discriminators,
8 utterances of 64 frames (1.02 s), float32. Ours is the whole step of the task, its moving average and its mel
spectrograms included. The peer is the same model in torch: the Vocos below or transformers' `SpeechT5HifiGan`, the same
losses, by `torch.stft`, and each discriminator once on recorded and twice on generated audio, as ours. It needs the
[parity] extra.
"""

import argparse

import numpy as np
from interleave import load, medians, pin
from steps import task_step

ROWS, FRAMES, HOP = 8, 64, 256


def draw_audio() -> np.ndarray:
    """Returns samples, int16 [ROWS, samples]."""
    return (3000 * np.random.default_rng(0).normal(size=(ROWS, FRAMES * HOP))).astype(np.int16)


def settings(vocoder: str):
    """Returns the experiment of a vocoder with discriminators."""
    from jax_speechlm.models.vocoders.hifigan import HifiGanConfig
    from jax_speechlm.recipes.asterisk_tts import vocos_gan

    experiment = vocos_gan.config()
    return experiment.replace(model=HifiGanConfig()) if vocoder == "hifigan" else experiment


def ours(vocoder: str):
    """Returns our step as `() -> None`, and the numbers of parameters of the vocoder and of the discriminators."""
    batch = {
        "audio": draw_audio(),
        "audio_length": np.full(ROWS, FRAMES * HOP, np.int32),
        "weight": np.ones(ROWS, np.float32),
        "example_id": np.arange(ROWS, dtype=np.int32),
    }
    run, sizes = task_step(settings(vocoder), None, batch)
    return run, [sizes[name] for name in ("generator", "discriminators")]


def peer(vocoder: str, threads: int):
    """Returns the step in torch as `() -> None`, and the numbers of parameters as of `ours`."""
    try:
        import torch
        import transformers
        from torch import nn
        from torch.nn import functional as F
    except ImportError as error:
        raise SystemExit(f"{error.name} is missing: pip install '.[parity]'") from error

    from jax_speechlm.interop.hf.hifigan import config_to_hugging_face

    torch.set_num_threads(threads)
    experiment = settings(vocoder)
    shape, mel_settings, objective = experiment.model, experiment.frontend.mel, experiment.objective
    form = objective.adversarial.discriminators

    def spectrum(audio, window):
        hann = torch.hann_window(window)
        return torch.stft(audio, window, window // 4, window=hann, pad_mode="constant", return_complex=True)

    filters = torch.tensor(mel_settings.filters(), dtype=torch.float32)

    def log_mel(audio, floor):
        window = torch.hann_window(mel_settings.window)
        found = torch.stft(audio, mel_settings.n_fft, HOP, window=window, return_complex=True).abs()
        return torch.log((found[..., : audio.shape[1] // HOP].transpose(1, 2) @ filters).clamp(min=floor))

    class Block(nn.Module):
        def __init__(self, dim, inner, taps):
            super().__init__()
            self.depthwise = nn.Conv1d(dim, dim, taps, padding=taps // 2, groups=dim)
            self.norm, self.expand, self.contract = nn.LayerNorm(dim), nn.Linear(dim, inner), nn.Linear(inner, dim)
            self.scale = nn.Parameter(torch.full((dim,), 1 / shape.num_layers))

        def forward(self, x):
            y = self.norm(self.depthwise(x.transpose(1, 2)).transpose(1, 2))
            return x + self.scale * self.contract(F.gelu(self.expand(y), approximate="tanh"))

    class Vocos(nn.Module):
        def __init__(self):
            super().__init__()
            dim, taps, self.window = shape.dim, shape.kernel_size, torch.hann_window(shape.window)
            self.embed, self.embed_norm = nn.Conv1d(shape.input_dim, dim, taps, padding=taps // 2), nn.LayerNorm(dim)
            inner = shape.ffn_multiple * dim
            self.layers = nn.Sequential(*(Block(dim, inner, taps) for _ in range(shape.num_layers)))
            self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, shape.window + 2)

        def forward(self, mel):
            x = self.embed_norm(self.embed(mel.transpose(1, 2)).transpose(1, 2))
            log_magnitude, phase = self.head(self.norm(self.layers(x))).transpose(1, 2).chunk(2, dim=1)
            spectrum = torch.polar(log_magnitude.clamp(max=4.6).exp(), phase)
            spectrum = F.pad(spectrum, (0, 1))  # the frame at the last sample
            return torch.istft(spectrum, shape.window, HOP, window=self.window, length=mel.shape[1] * HOP)

    class Discriminator(nn.Module):
        """Of a period of samples, or, without one, of the magnitudes of a Fourier transform."""

        def __init__(self, period=None, window=None):
            super().__init__()
            self.period, self.window, last = period, window, len(form.channels) - 1
            if period:
                sizes, kernel, ends = (1, *form.channels), (5, 1), (3, 1)
                strides = [(3, 1) if i < last else (1, 1) for i in range(last + 1)]
            else:
                sizes, kernel, ends = (1,) + (form.spectral_channels,) * form.spectral_layers, (3, 9), (3, 3)
                strides = [(1, 2) if i else (1, 1) for i in range(form.spectral_layers)]

            def convolution(one, other, taps, stride):
                return nn.Conv2d(one, other, taps, stride, padding=tuple(tap // 2 for tap in taps))

            pairs = zip(sizes, sizes[1:], strides, strict=False)
            self.layers = nn.ModuleList(convolution(one, other, kernel, stride) for one, other, stride in pairs)
            self.out = convolution(sizes[-1], 1, ends, 1)

        def forward(self, audio):
            if self.period:
                x = F.pad(audio, (0, -audio.shape[1] % self.period)).view(len(audio), 1, -1, self.period)
            else:
                parts = torch.view_as_real(spectrum(audio, self.window).transpose(1, 2))
                x = parts.square().sum(-1).add(1e-9).sqrt()[:, None]
            hidden = []
            for layer in self.layers:
                x = F.leaky_relu(layer(x), 0.1)
                hidden.append(x)
            return self.out(x), hidden

    def judge(audio):
        scores, hidden = zip(*(part(audio) for part in discriminators), strict=True)
        return scores, [state for states in hidden for state in states]

    def mean(terms):
        terms = list(terms)
        return sum(term.mean() for term in terms) / len(terms)

    if vocoder == "vocos":
        generator = Vocos()
    else:
        values = config_to_hugging_face(shape, mel_settings.sample_rate)
        generator = transformers.SpeechT5HifiGan(transformers.SpeechT5HifiGanConfig(**values)).train()
    discriminators = nn.ModuleList(
        [Discriminator(period=each) for each in form.periods] + [Discriminator(window=each) for each in form.windows]
    )
    optimizers = [torch.optim.AdamW(part.parameters(), lr=2e-4) for part in (generator, discriminators)]
    real = torch.tensor(draw_audio(), dtype=torch.float32) / 2**15

    def distances(fake):
        total = (log_mel(real, 1e-5) - log_mel(fake, 1e-5)).abs().mean()
        for window in objective.windows:
            one, other = (
                torch.view_as_real(spectrum(audio, window)).square().sum(-1).clamp(min=1e-7).sqrt()
                for audio in (real, fake)
            )
            convergence = ((one - other).norm(dim=(1, 2)) / one.norm(dim=(1, 2))).mean()
            total = total + (convergence + (one.log() - other.log()).abs().mean()) / len(objective.windows)
        return total

    def run():
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        fake = generator(log_mel(real, 1e-10) / np.log(10))
        discriminators.requires_grad_(True)
        scores_real, hidden_real = judge(real)
        scores_fake, _ = judge(fake.detach())
        (mean(F.relu(1 - x) for x in scores_real) + mean(F.relu(1 + x) for x in scores_fake)).backward()
        discriminators.requires_grad_(False)
        scores, hidden = judge(fake)
        features = mean((one.detach() - other).abs() for one, other in zip(hidden_real, hidden, strict=True))
        weights = objective.adversarial
        loss = distances(fake) + weights.weight * mean(F.relu(1 - x) for x in scores)
        (loss + weights.feature_weight * features).backward()
        for optimizer in optimizers:
            optimizer.step()

    return run, [sum(value.numel() for value in part.parameters()) for part in (generator, discriminators)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocoder", choices=("vocos", "hifigan"), default="vocos")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, with --threads 1: for a busy machine")
    args = parser.parse_args()
    pin(args.threads)

    steps = {"ours": ours(args.vocoder), "torch": peer(args.vocoder, args.threads)}
    seconds = medians({name: run for name, (run, _) in steps.items()}, args.rounds, args.cpu_time)
    print(f"{'training step':14} {'vocoder':>10} {'discriminators':>15} {'seconds':>8} {'of torch':>9}")
    for name, (_, (vocoder, discriminators)) in steps.items():
        ratio = seconds[name] / seconds["torch"]
        print(f"{name:14} {vocoder:10,} {discriminators:15,} {seconds[name]:8.3f} {ratio:9.2f}")
    print(f"{args.vocoder}, {args.threads} threads, medians of {args.rounds} interleaved rounds; {load()}")


if __name__ == "__main__":
    main()
