"""Whisper in the hands of plain transformers, in and out, on a tiny random model."""

import jax.numpy as jnp
import numpy as np
import pytest

from jax_speechlm.frontend.whisper_mel import WhisperMel, whisper_mel
from jax_speechlm.inference.asr.aed import AttentionRecognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run
from jax_speechlm.training.runs import LoadedRun
from tests.interop.foreign_folders import write_whisper

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("multilingual", [False, True])
def test_a_folder_passes_its_whole_check_in_and_out(tmp_path, multilingual):
    write_whisper(tmp_path / "theirs", multilingual=multilingual)
    verdict = import_run(tmp_path / "theirs", tmp_path / "run")
    assert verdict.is_full
    assert not verdict.failed
    verdict = write_checked(LoadedRun.read(tmp_path / "run"), tmp_path / "again")
    assert verdict.is_full
    assert {"front end", "ids", "logits", "greedy text"} < {check.name for check in verdict.checks}


@pytest.mark.parametrize("timestamps", [False, True])
def test_words_have_the_times_of_transformers(tmp_path, timestamps):
    write_whisper(tmp_path / "theirs", multilingual=False)
    import_run(tmp_path / "theirs", tmp_path / "run")
    ours = AttentionRecognizer.load(tmp_path / "run", Decoding(decoder="greedy", timestamps=timestamps))
    theirs = transformers.WhisperForConditionalGeneration.from_pretrained(
        tmp_path / "theirs", attn_implementation="eager"
    ).eval()
    extractor = transformers.WhisperFeatureExtractor.from_pretrained(tmp_path / "theirs")
    prompt, whisper = (
        ours.experiment.objective.prompt_ids(ours.tokenizer, timestamps),
        ours.experiment.objective.whisper,
    )
    rng, worst = np.random.default_rng(0), 0
    for length in (16_000, 9100, 5000):
        clip = rng.normal(0, 2000, length).astype(np.int16)
        ids = ours.tokenizer.encode("the cat sat on the mat")
        if timestamps:
            ids = [whisper.first_timestamp, *ids, whisper.first_timestamp + 9]
        batch = ours._windowed({"audio": clip[None], "audio_length": np.array([length], np.int32)})
        source = ours._programs.read(ours.params, *ours._frames(batch))
        answers = [ours._answer(ids, -1.0, True, 0.0, 0.0)]
        (answer,) = ours._timed(answers, source, ours._programs.prompts([()]), batch["audio_length"])
        features = extractor(
            clip / np.float32(32768), sampling_rate=16_000, return_tensors="pt", return_attention_mask=True
        )
        rows = torch.tensor([ours.tokenizer.places.theirs[[*prompt, *ids]].tolist()])
        with torch.no_grad():
            output = theirs(features["input_features"], decoder_input_ids=rows, output_attentions=True)
        # Without times among the ids OpenAI's `find_alignment` begins with the prompt's last id.
        given = len(prompt) - (not timestamps)
        generated = transformers.generation.utils.GenerateEncoderDecoderOutput(
            sequences=rows, cross_attentions=(output.cross_attentions,)
        )
        (times,) = theirs._extract_token_timestamps(
            generated,
            theirs.generation_config.alignment_heads,
            num_frames=features["attention_mask"].sum(-1),
            num_input_ids=given,
        ).numpy()
        spoken = ours.tokenizer.encode("the cat sat on the mat")
        first = rows.shape[1] - len(ids) + timestamps
        starts, ends = times[first - 1 :], times[first:]
        pieces = [ours.tokenizer.pieces[id_] for id_ in spoken]
        begins = [place for place, piece in enumerate(pieces) if place == 0 or piece.startswith("\u2581")]
        for word, begin, end in zip(answer.phrases[0].words, begins, [*begins[1:], len(spoken)], strict=True):
            spaces = pieces[begin] == "\u2581"  # a space alone is no part of a word here
            np.testing.assert_allclose(word.start, starts[begin + spaces], atol=1e-4)
            np.testing.assert_allclose(word.end, max(ends[end - 1], word.start + 0.02), atol=1e-4)
            worst = max(worst, word.end)
    assert worst > 0.1


@pytest.mark.parametrize("bins", [80, 128])
def test_features_are_those_of_the_extractor(bins):
    rng = np.random.default_rng(0)
    clips = [rng.normal(0, scale, length).astype(np.int16) for scale, length in ((3000, 50_000), (30, 480_000))]
    extractor = transformers.WhisperFeatureExtractor(feature_size=bins)
    for clip in clips:
        expected = extractor(clip / np.float32(32768), sampling_rate=16_000, return_tensors="np")["input_features"][0]
        found, _ = whisper_mel(jnp.asarray(clip)[None], jnp.array([len(clip)]), WhisperMel(num_mel_bins=bins))
        np.testing.assert_allclose(found[0], expected.T, atol=1e-4)
