"""CTC probes: a layer that tells letters spells them, one that does not cannot, and neither knows of the other."""

import json

import jax.numpy as jnp
import numpy as np

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm import cli
from jax_speechlm.core.exit_status import USER_ERROR
from jax_speechlm.evaluation import ctc_probe
from jax_speechlm.evaluation.probing import _features
from jax_speechlm.inference.embed import SpeechEncoder
from jax_speechlm.inference.segmentation import in_batches
from tests.data_pipelines.prepared import write_prepared
from tests.evaluation.runs import write_run
from tests.inference.test_encoder import check_measures
from tests.trained_tones import random_text, speak, trained_run
from tests.training import tiny

TOKENIZER = CharTokenizer("abcd")
FRAMES, LETTERS, DIM = 24, 6, 8


def batches(num: int, seed: int = 0):
    """Rows of letters; the audio says, frame by frame, which letter is said: each for two to four frames, no pause."""
    rng = np.random.default_rng(seed)
    for number in range(num):
        tokens, audio = np.zeros((8, LETTERS), np.int32), np.zeros((8, FRAMES), np.int16)
        length, token_length = np.zeros(8, np.int32), rng.integers(2, LETTERS + 1, 8).astype(np.int32)
        for row, count in enumerate(token_length):
            letters = [int(rng.integers(1, 5))]
            while len(letters) < count:
                letters.append((letters[-1] + int(rng.integers(0, 3))) % 4 + 1)  # none twice in a row
            spoken = np.repeat(letters, rng.integers(2, 5, count))
            tokens[row, :count], audio[row, : len(spoken)], length[row] = letters, spoken, len(spoken)
            audio[row, len(spoken) :] = rng.integers(1, 5)  # what lies behind a row must not matter
        rows = {"example_id": np.arange(8, dtype=np.int32) + 8 * number, "weight": np.ones(8, np.float32)}
        yield rows | {"audio": audio, "audio_length": length, "tokens": tokens, "token_length": token_length}


def telling(params, batch):
    """[1, B, T, D]: an image of the letter, far from standard."""
    return 5 + 30 * jnp.eye(5, DIM)[batch["audio"]][None], batch["audio_length"]


def noise(params, batch):
    phases = jnp.arange(FRAMES)[:, None] * jnp.arange(1, DIM + 1)
    return jnp.broadcast_to(jnp.sin(phases), (1, *batch["audio"].shape, DIM)), batch["audio_length"]


def both(params, batch):
    return jnp.concatenate([telling(params, batch)[0], noise(params, batch)[0]]), batch["audio_length"]


def test_each_layer_learns_what_it_would_alone():
    together = ctc_probe.fit(both, {}, batches(60), 60, TOKENIZER.vocab_size)
    for layer, alone in enumerate((telling, noise)):
        one = ctc_probe.fit(alone, {}, batches(60), 60, TOKENIZER.vocab_size)
        for name, value in one.items():
            np.testing.assert_allclose(together[name][layer], value[0], rtol=2e-4, atol=2e-5, err_msg=name)


def test_letters_are_spelled_from_the_layer_that_tells_them():
    probe = ctc_probe.fit(both, {}, batches(150), 150, TOKENIZER.vocab_size)
    tested = list(batches(4, seed=1))
    references = [
        TOKENIZER.decode(ids[:count].tolist())
        for batch in tested
        for ids, count in zip(batch["tokens"], batch["token_length"], strict=True)
    ]
    told, guessed = ctc_probe.texts(both, {}, probe, iter(tested), len(references) + 1, TOKENIZER)
    assert told[:-1] == references
    assert told[-1] == guessed[-1] == ""  # of a row that was in no batch
    assert sum(one == other for one, other in zip(guessed, references, strict=False)) < len(references) / 4


def test_characters_of_a_run(tmp_path, capsys):
    rng, clips = np.random.default_rng(0), []
    for seed in range(40):
        text = random_text(rng, 3)
        clips.append((speak(text, seed)[0], text))
    untranscribed = (clips[0][0], "")
    write_prepared(
        tmp_path / "data" / "tones", {"train": [*clips[:32], untranscribed], "test": [*clips[32:], untranscribed]}
    )
    options = ["--sets", "tones", "--target=characters", f"--data-dir={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"]
    assert cli.main(["probe", str(trained_run()), *options]) == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    found = {(each["source"], each["layer"]): each for each in report["probes"]}
    assert set(found) == {("encoder", 0), ("encoder", 1), ("log-mel", 0)}
    assert found["encoder", 1]["accuracy"] > 0.8  # it has learnt to spell
    for each in found.values():
        assert each["interval"] is None  # of eight utterances
        assert each["accuracy"] <= 1
    assert (report["classes"], report["utterances"]) == (4, 8)
    check_measures(tmp_path / "out" / "report.json", {key: each["accuracy"] for key, each in found.items()})
    printed = capsys.readouterr()
    assert "less the character error rate" in " ".join(printed.out.split())  # a caption is wrapped
    assert "training leaves out" in printed.err
    assert "(1 no_tokens)" in printed.err
    assert cli.main(["probe", str(trained_run()), *options, "--leave-out=speaker"]) == USER_ERROR
    assert "--leave-out is for classes" in capsys.readouterr().err


def test_log_mel_has_the_frames_of_an_encoder_that_subsamples(tmp_path):
    clips = [(speak("ab abc", seed)[0], "ab abc") for seed in range(4)]
    write_prepared(tmp_path / "data" / "tones", {"train": clips, "test": [*clips, (clips[0][0], "ab abc " * 20)]})
    run = write_run(tmp_path / "fast", tiny.experiment("fast_conformer"), tiny.CharTokenizer("abc "))
    encoder = SpeechEncoder.load(run)
    batch = {name: jnp.asarray(value) for name, value in next(in_batches([clips[0][0]])).items()}
    hidden, lengths = encoder.all_layers(encoder.params, batch)
    found, same = _features(encoder.frontend, encoder.model.subsampling, {}, batch)
    assert abs(int(same[0]) - int(lengths[0])) <= 1
    assert abs(found.shape[2] - hidden.shape[2]) <= 1
    assert found.shape[3] == 8 * encoder.model.input_dim
    options = ["--sets", "tones", "--target=characters", f"--data-dir={tmp_path / 'data'}"]
    assert cli.main(["probe", str(run), *options]) == 0
    report = json.loads((run / "probe" / "tones-characters" / "report.json").read_text())
    assert (report["unspellable"], len(report["probes"])) == (1, 4)


def test_without_transcripts_there_is_nothing_to_spell(tmp_path, capsys):
    clip = speak("ab")[0]
    write_prepared(tmp_path / "data" / "mute", {"train": [(clip, "ab")], "test": [(clip, "")]})
    options = ["--sets", "mute", "--target=characters", f"--data-dir={tmp_path / 'data'}"]
    assert cli.main(["probe", str(trained_run()), *options]) == USER_ERROR
    assert "characters need transcripts" in capsys.readouterr().err
