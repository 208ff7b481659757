"""A unit language model and the codec of its units, both exported: speech by classes of transformers alone."""

import re

import numpy as np
import pytest

import jax_speechlm
from jax_speechlm.decoding.lm.generate import GREEDY
from jax_speechlm.inference.lm.units import UnitModel
from jax_speechlm.interop.hf.export import write_checked
from jax_speechlm.objectives.lm.unit_lm import UnitLM
from jax_speechlm.recipes.experiment import Experiment, UnitText
from jax_speechlm.training.runs import LoadedRun
from jax_speechlm.units.features import units_of_codec
from tests.evaluation.runs import save_run
from tests.interop.tiny_runs import CHARACTERS, CODEC, QWEN, save, tiny_run

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity


def test_units_generated_there_are_decoded_there(tmp_path):
    codec = save(tmp_path / "codec", tiny_run("codec"))
    folder = units_of_codec(codec)
    data = UnitText(sets=("tones",), units=str(folder.path), context=64, tokens_per_batch=64)
    model = QWEN.replace(query_key_norm=False, tied=False)
    experiment = Experiment(data=data, objective=UnitLM(num_units=CODEC.codebook_size), model=model)
    save_run(tmp_path / "lm", experiment, CHARACTERS, folder.fingerprint)
    for name in ("codec", "lm"):
        assert write_checked(LoadedRun.read(tmp_path / name), tmp_path / "out" / name).is_full
    assert "WavTokenizerModel.decode" in (tmp_path / "out" / "lm" / "README.md").read_text()

    ours = UnitModel.load(tmp_path / "lm")
    prompt = np.array([3, 3, 1, 4])
    ((continuation,),) = ours.generate([[prompt]], GREEDY, modality="units", max_tokens=12)
    expected = np.concatenate([prompt, *(part["units"] for part in continuation.parts)])
    (samples,) = jax_speechlm.load(codec).decode_codes([expected])

    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out" / "lm")
    lm = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "out" / "lm")
    vocoder = transformers.WavTokenizerModel.from_pretrained(tmp_path / "out" / "codec")
    text = "<speech>" + "".join(f"<unit_{unit}>" for unit in prompt)
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    units = {id_ for token, id_ in tokenizer.get_vocab().items() if re.fullmatch(r"<unit_\d+>", token)}
    others = [id_ for id_ in range(lm.config.vocab_size) if id_ not in units]
    written = lm.generate(ids, max_new_tokens=12, do_sample=False, suppress_tokens=others)
    codes = [int(unit) for unit in re.findall(r"<unit_(\d+)>", tokenizer.decode(written[0]))]
    assert codes == expected.tolist()
    with torch.no_grad():
        audio = vocoder.decode(torch.tensor([[codes]])).audio_values[0, 0].numpy()
    np.testing.assert_allclose(np.clip(audio, -1, 1), samples, atol=1e-4)
