"""CTC recognizers of other writers become runs: the blank moves to 0, and letters keep their rows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.tokenizers.base import CharTokenizer
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf import weights
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.interop.hf.import_ import import_run, read_folder
from jax_speechlm.recipes.experiment import InitFrom
from jax_speechlm.training.runs import LoadedRun, read_tokenizer
from jax_speechlm.training.warm_start import take_over
from tests.interop.foreign_folders import CTC_SPECIAL, VOCAB, change_json, load, write_json, write_recognizer
from tests.interop.tiny_runs import tiny_run


def test_a_recognizers_blank_comes_to_0_and_goes_back(tmp_path):
    arrays = write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    import_run(tmp_path / "theirs", tmp_path / "run")
    run = LoadedRun.read(tmp_path / "run")
    head = run.params["head"]
    np.testing.assert_array_equal(head["bias"][0], arrays["lm_head.bias"][VOCAB["[PAD]"]])
    np.testing.assert_array_equal(head["kernel"][:, 0], arrays["lm_head.weight"][VOCAB["[PAD]"]])
    for letter in "abö'":
        (number,) = run.tokenizer.encode(letter)
        np.testing.assert_array_equal(head["kernel"][:, number], arrays["lm_head.weight"][VOCAB[letter]])
        assert run.tokenizer.pieces[number] == letter
    assert run.tokenizer.vocab_size == len(VOCAB)
    assert run.tokenizer.decode(run.tokenizer.encode("öab b'a")) == "öab b'a"
    assert run.tokenizer.unknown("a z") == ["z"]
    everything = range(run.tokenizer.vocab_size)
    assert sorted(run.tokenizer.decode(everything)) == sorted(" abö'")
    write_checked(run, tmp_path / "again")
    assert load(tmp_path / "again", "vocab.json") == VOCAB
    assert load(tmp_path / "again", "config.json")["pad_token_id"] == VOCAB["[PAD]"]
    for name, array in weights.read_weights(tmp_path / "again").items():
        np.testing.assert_array_equal(array, arrays[name])
    assert Recognizer.load(tmp_path / "run").tokenizer.fingerprint == run.tokenizer.fingerprint


def test_a_front_end_and_letters_as_transformers_5_writes_them(tmp_path):
    """Inside the processor's file; and with the space between words, and letters added later, listed as added."""
    folder = tmp_path / "theirs"
    write_recognizer(folder, VOCAB, **CTC_SPECIAL)
    alone = read_folder(folder)
    front_end = load(folder, "preprocessor_config.json")
    (folder / "preprocessor_config.json").unlink()
    write_json(folder, "processor_config.json", {"feature_extractor": front_end})
    added = {"0": {"content": "|", "special": True}, "3": {"content": "ö", "special": False}}
    change_json(folder, "tokenizer_config.json", added_tokens_decoder=added)
    found = read_folder(folder)
    assert found.experiment == alone.experiment
    assert found.tokenizer.decode(found.tokenizer.encode("öa b")) == "öa b"


def test_characters_with_the_blank_at_0_become_our_own(tmp_path):
    vocab = {"<pad>": 0, "|": 1, "a": 2, "b": 3}
    write_recognizer(tmp_path / "theirs", vocab, pad="<pad>")
    assert read_folder(tmp_path / "theirs").tokenizer == CharTokenizer(" ab")


def test_another_run_starts_from_an_imported_one(tmp_path):
    arrays = write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    import_run(tmp_path / "theirs", tmp_path / "run")
    fresh = tiny_run("ctc")
    params = jax.tree.map(jnp.asarray, fresh.params)
    start = InitFrom(checkpoint=str(tmp_path / "run"))
    found = take_over(start, params, fresh.tokenizer)
    name = "wav2vec2_bert.feature_projection.projection.weight"
    np.testing.assert_array_equal(found["encoder"]["input"]["kernel"], arrays[name].T)
    np.testing.assert_array_equal(found["head"]["bias"], params["head"]["bias"])
    assert read_tokenizer(str(tmp_path / "run")).fingerprint == LoadedRun.read(tmp_path / "run").tokenizer.fingerprint


def test_a_recognizer_without_a_blank_is_refused(tmp_path):
    write_recognizer(tmp_path / "theirs", VOCAB, **CTC_SPECIAL)
    change_json(tmp_path / "theirs", "config.json", pad_token_id=0)
    with pytest.raises(ExportError, match=r"pad_token_id of config.json is \[0\], and .* which is 6"):
        read_folder(tmp_path / "theirs")
    change_json(tmp_path / "theirs", "config.json", pad_token_id=None)
    change_json(tmp_path / "theirs", "tokenizer_config.json", pad_token=None)
    with pytest.raises(ExportError, match="which is the blank"):
        read_folder(tmp_path / "theirs")


def test_links_out_of_the_folder_and_pickles_are_refused(tmp_path):
    folder = tmp_path / "theirs"
    write_recognizer(folder, VOCAB, **CTC_SPECIAL)
    (folder / "model.safetensors").rename(tmp_path / "elsewhere")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ExportError, match="a link that leaves the folder"):
        read_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")
    with pytest.raises(ExportError, match=r"pytorch_model.bin is a pickle, which could run any code"):
        read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ExportError, match=r"config.json is missing"):
        read_folder(folder)
