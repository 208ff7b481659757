"""Files that lie: whatever they say, the answer is a model or an error that names the file; nothing is allocated."""

import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load, save

from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError
from jax_speechlm.interop.hf.import_ import Imported, read_folder
from jax_speechlm.interop.hf.registry import package, write_model
from jax_speechlm.interop.hf.safetensors import open_arrays
from jax_speechlm.interop.hf.sentence_transformers import module_files
from jax_speechlm.interop.hf.weights import INDEX, read_weights, write_weights
from jax_speechlm.objectives.text_encoder import TextEncoding
from jax_speechlm.training.runs import tokenizer_files
from tests.interop.foreign_folders import SPECIAL as TEXT_SPECIAL
from tests.interop.foreign_folders import write_recognizer, write_sample_encoder, write_text_model, write_whisper
from tests.interop.tiny_runs import tiny_run
from tests.training.tiny import WAV2VEC2

ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.c": np.ones((4, 1, 2), np.float16),
    "d": np.zeros(3, np.float32),
}
WHOLE = save(ARRAYS)
HEADER = json.loads(WHOLE[8 : 8 + int.from_bytes(WHOLE[:8], "little")])
BYTES = WHOLE[8 + int.from_bytes(WHOLE[:8], "little") :]
ANY = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FEW = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])


def with_header(header: object, content: bytes = BYTES) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def test_what_the_library_writes_is_read_alike(tmp_path):
    (tmp_path / "x").write_bytes(WHOLE)
    found = open_arrays(tmp_path / "x")
    assert found.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype
        assert not found[name].flags.writeable
        np.testing.assert_array_equal(found[name], array)


@FEW
@given(data=st.data())
def test_a_file_that_is_accepted_is_one_that_the_library_reads_to_the_same_arrays(tmp_path, data):
    content = bytearray(WHOLE)
    for place, byte in data.draw(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), max_size=4)):
        content[place] = byte
    content = bytes(content[: data.draw(st.integers(0, len(content)))]) + data.draw(st.binary(max_size=3))
    (tmp_path / "x").write_bytes(content)
    try:
        found = open_arrays(tmp_path / "x")
    except ExportError:
        return
    expected = load(content)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].tobytes() == array.tobytes()


@FEW
@given(name=st.sampled_from(["a", "b.c", "d"]), field=st.sampled_from(["dtype", "shape", "data_offsets"]), value=ANY)
def test_a_field_of_a_header_can_hold_anything(tmp_path, name, field, value):
    (tmp_path / "x").write_bytes(with_header(HEADER | {name: HEADER[name] | {field: value}}))
    if value != HEADER[name][field]:
        with pytest.raises(ExportError, match=r"x cannot be read as safetensors|is of type"):
            open_arrays(tmp_path / "x")


HUGE = {"dtype": "F32", "shape": [0, 2**59, 2**59], "data_offsets": [0, 0]}
ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
LIES = {
    "a header longer than the file": ((2**40).to_bytes(8, "little") + b"{}", "header would have"),
    "an endless header": ((2**63).to_bytes(8, "little") + b"{" * 100, "header would have"),
    "no header": (b"\x01", "header would have"),
    "nested without end": (with_header(b"[" * 100_000), "cannot be read"),
    "a list": (with_header([1, 2]), "no JSON object"),
    "a shape beyond the file": (with_header({"a": ENTRY | {"shape": [2**40]}}, bytes(8)), "cannot have 8 bytes"),
    "offsets beyond the file": (with_header({"a": ENTRY | {"data_offsets": [0, 2**41], "shape": [2**39]}}), "bytes"),
    "two arrays in one place": (with_header({"a": ENTRY, "b": ENTRY}, bytes(8)), "overlap or leave gaps"),
    "a gap": (with_header({"a": ENTRY, "b": ENTRY | {"data_offsets": [12, 20]}}, bytes(20)), "overlap or leave gaps"),
    "bytes left over": (with_header({"a": ENTRY}, bytes(9)), "behind the header"),
    "a name twice": (with_header(b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2)), "'a' stands in"),
    "a negative shape": (with_header({"a": ENTRY | {"shape": [-2]}}, bytes(8)), "no possible shape"),
    "a boolean shape": (with_header({"a": ENTRY | {"shape": [2, True]}}, bytes(8)), "no possible shape"),
    "many axes": (with_header({"a": ENTRY | {"shape": [2] + [1] * 99}}, bytes(8)), "no possible shape"),
    "empty axes beside huge ones": (with_header({"a": HUGE}, b""), "larger than any array"),
    "the same beside a whole array": (
        with_header({"a": ENTRY, "b": HUGE | {"data_offsets": [8, 8]}}, bytes(8)), "larger than any array"
    ),
    "a long name": (with_header({"a" * 9999: ENTRY}, bytes(8)), "has 9,999 characters"),
    "an entry that is a list": (with_header({"a": [1, 2]}), "is not described by"),
    "an entry without an end": (with_header(b'{"a": [' + b"[]," * 5000 + b"[]]}"), "is not described by"),
    "something behind the header": (with_header(b'{"a": %s} {}' % json.dumps(ENTRY).encode(), bytes(8)), "goes on"),
    "metadata that is no text": (with_header({"__metadata__": {"a": {}}, "a": ENTRY}, bytes(8)), "no string at"),
    "an unknown type": (with_header({"a": ENTRY | {"dtype": "F33"}}, bytes(8)), "unknown type"),
    "whole numbers": (with_header({"a": ENTRY | {"dtype": "I32"}}, bytes(8)), "is of type I32.*quantised"),
    "a pickle": (b"\x80\x02}q\x00." + bytes(8), "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused_without_an_allocation(tmp_path, lie):
    content, message = LIES[lie]
    (tmp_path / "x").write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ExportError, match=message):
            open_arrays(tmp_path / "x")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def peak(run):
    """The most memory that Python held while `run` raised an ExportError, in bytes, and the error."""
    tracemalloc.start()
    try:
        with pytest.raises(ExportError) as caught:
            run()
        return tracemalloc.get_traced_memory()[1], str(caught.value)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [6 << 20, 31 << 20])
@pytest.mark.parametrize("unit", [b"[],", b'{"":0},', b'"ab",'])
def test_a_header_takes_no_multiple_of_its_length_before_it_is_refused(tmp_path, unit, size):
    """A header that is one large value: decoded as a whole it took up to thirty times as much."""
    (tmp_path / "x").write_bytes(with_header(b'{"a": [' + unit * (size // len(unit)) + b"0]}"))
    held, message = peak(lambda: open_arrays(tmp_path / "x"))
    assert "cannot be read as safetensors" in message
    assert held < 4 * size if size < 8 << 20 else held < 1 << 20


def test_metadata_is_text_and_takes_no_memory_to_skip(tmp_path):
    """Some writers keep megabytes of settings there; lists and objects are not of the format."""
    metadata = {f"key {n}": '}{"[' * 9 for n in range(2_000)}
    (tmp_path / "x").write_bytes(with_header({"__metadata__": metadata, "a": ENTRY}, bytes(8)))
    assert open_arrays(tmp_path / "x").keys() == load((tmp_path / "x").read_bytes()).keys() == {"a"}


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'"ab",'])
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_takes_no_multiple_of_its_length_before_it_is_refused(tmp_path, name, unit):
    size = 24 << 20
    (tmp_path / name).write_bytes(b"[" + unit * (size // len(unit)) + b"0]")
    held, message = peak(lambda: folders.read_json(tmp_path, name))
    assert "more than any such file" in message
    assert held < 3 * size


def test_an_overlong_header_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("jax_speechlm.interop.hf.safetensors._LONGEST_HEADER", 64)
    (tmp_path / "x").write_bytes(WHOLE)
    with pytest.raises(ExportError, match="more than the 64"):
        open_arrays(tmp_path / "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weight_map": {"a": "../a.safetensors"}}, "no safetensors of the folder: refused"),
        ({"weight_map": {"a": "/etc/passwd"}}, "no safetensors of the folder: refused"),
        ({"weight_map": {"a": "pytorch_model.bin"}}, "no safetensors of the folder: refused"),
        ({"weight_map": {"a": ".."}}, "no safetensors of the folder: refused"),
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors is missing"),
        ({"weight_map": {"a": 3}}, "has no weight_map"),
        ({"weight_map": {}}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_points_elsewhere_is_refused(tmp_path, change, message):
    write_weights(tmp_path, ARRAYS, 1)
    (tmp_path / INDEX).write_text(json.dumps(change))
    with pytest.raises(ExportError, match=message):
        read_weights(tmp_path)


def test_arrays_that_are_there_twice_or_in_another_file_are_refused(tmp_path):
    write_weights(tmp_path, ARRAYS, 1)
    index = json.loads((tmp_path / INDEX).read_text())
    one, other, *_ = sorted(set(index["weight_map"].values()))
    shutil.copy(tmp_path / one, tmp_path / other)
    with pytest.raises(ExportError, match=r"another file has too|disagree about"):
        read_weights(tmp_path)


def test_links_pipes_and_overlarge_files_are_refused(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("{}")
    (folder / "config.json").symlink_to(tmp_path / "secret")
    with pytest.raises(ExportError, match="a link that leaves the folder"):
        folders.read_json(folder, "config.json")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")  # opening it would wait for ever
    with pytest.raises(ExportError, match="not a regular file"):
        folders.read_json(folder, "config.json")
    (folder / "config.json").unlink()
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ExportError, match="not readable JSON"):
        folders.read_json(folder, "config.json")
    monkeypatch.setattr(folders, "_LARGEST_SETTINGS", 1000)
    with pytest.raises(ExportError, match="more than any such file"):
        folders.read_json(folder, "config.json")
    (folder / "inner.json").write_text("{}")
    (folder / "link.json").symlink_to("inner.json")
    assert folders.read_json(folder, "link.json") == {}


SPECIAL = {"bos": "<s>", "eos": "</s>", "pad": "<pad>"}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "texts"
    write_text_model(folder, "modernbert", **SPECIAL, cls="<s>", sep="</s>", mask="<mask>")
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz") / "speech"
    write_recognizer(folder, {"<s>": 0, "</s>": 1, "|": 2, "a": 3, "<pad>": 4}, **SPECIAL)
    return folder


def tampered(folder, file, draw):
    """The folder's model after a change to one of its files, or the error."""
    before = (folder / file).read_bytes()
    values = json.loads(before)
    part, key = values, draw(st.sampled_from(sorted(values)))
    while isinstance(part[key], dict) and part[key] and draw(st.booleans()):
        part = part[key]
        key = draw(st.sampled_from(sorted(part)))
    if draw(st.booleans()):
        part[key] = draw(ANY)
    else:
        del part[key]
    try:
        (folder / file).write_text(json.dumps(values))
        return read_folder(folder)
    except ExportError as error:
        return error
    finally:
        (folder / file).write_bytes(before)


FILES = ["config.json", "tokenizer_config.json", "tokenizer.json"]


@FEW
@given(file=st.sampled_from(FILES), data=st.data())
def test_settings_of_a_language_model_can_hold_anything(texts, file, data):
    assert isinstance(tampered(texts, file, data.draw), Imported | ExportError)


@FEW
@given(
    file=st.sampled_from(["config.json", "tokenizer_config.json", "vocab.json", "preprocessor_config.json"]),
    data=st.data(),
)
def test_settings_of_a_recognizer_can_hold_anything(speech, file, data):
    assert isinstance(tampered(speech, file, data.draw), Imported | ExportError)


SAMPLES = {
    "wav2vec2": (WAV2VEC2.replace(relative=None), "ForXVector"),
    "pretraining": (WAV2VEC2.replace(relative=None), "ForPreTraining"),
    "hubert": (WAV2VEC2.replace(relative=None, family="hubert", input_norm=False), "ForSequenceClassification"),
    "wavlm": (WAV2VEC2, "ForCTC"),
    "data2vec": (WAV2VEC2.replace(relative=None, position_layers=2, convolution_norm="layer"), "Model"),
}
TEXT_CLASSES = {
    "sentences": ("bert", "BertModel"),
    "gpt2": ("gpt2", "GPT2LMHeadModel"),
    "roberta classes": ("roberta", "RobertaForSequenceClassification"),
    "distilbert tags": ("distilbert", "DistilBertForTokenClassification"),
    "modernbert spans": ("modernbert", "ModernBertForQuestionAnswering"),
}
KINDS = ["qwen3", "bert", "text classification", "classification", "speaker", "fast_conformer", "whisper"]
KINDS += TEXT_CLASSES
KINDS += SAMPLES


@pytest.fixture(scope="module")
def folders_of_kinds(tmp_path_factory):
    """Folders as others write them, without our record, and their arrays."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp("fuzz")
        if kind == "whisper":
            found[kind] = folder / kind, write_whisper(folder / kind)
            continue
        if kind in TEXT_CLASSES:
            family, architecture = TEXT_CLASSES[kind]
            special = TEXT_SPECIAL[family]
            arrays = write_text_model(folder / kind, family, architecture=architecture, **special)
            for file in (folder / kind).glob("*.safetensors*"):
                file.unlink()
            write_weights(folder / kind, arrays)
            found[kind] = folder / kind, arrays
            continue
        if kind in SAMPLES:
            found[kind] = folder / "samples", write_sample_encoder(folder / "samples", *SAMPLES[kind])
            continue
        made = package(tiny_run(kind))
        write_model(folder, made)
        found[kind] = folder, made.arrays
    return found


SIZES = st.sampled_from([0, 1, 2, 3, 16, 48, 2**20, 2**40])


@FEW
@given(data=st.data())
def test_settings_of_an_encoder_of_samples_can_hold_anything(folders_of_kinds, data):
    folder, _ = folders_of_kinds[data.draw(st.sampled_from(sorted(SAMPLES)))]
    file = data.draw(st.sampled_from(["config.json", "preprocessor_config.json"]))
    assert isinstance(tampered(folder, file, data.draw), Imported | ExportError)


@settings(max_examples=16, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_arrays_can_have_any_shapes(folders_of_kinds, kind, data):
    """Scalars, empty axes beside long ones, one axis more or less: an error, and nothing that is multiplied out."""
    folder, arrays = folders_of_kinds[kind]
    changed = dict(arrays)
    for name in data.draw(st.lists(st.sampled_from(sorted(arrays)), min_size=1, max_size=2, unique=True)):
        shape = data.draw(st.lists(SIZES, max_size=3) | st.permutations(arrays[name].shape) | st.just([2**18, 1]))
        if data.draw(st.booleans()):
            shape = [*arrays[name].shape[:-1], *shape[:1]]
        count = int(np.prod([float(size) for size in shape]))
        changed[name] = (shape, bytes(4 * count)) if count < 2**20 else ([0, *shape], b"")
    header, content = {}, bytearray()
    for name, value in changed.items():
        shape, raw = value if isinstance(value, tuple) else (list(value.shape), value.tobytes())
        dtype = "I64" if name.endswith("num_batches_tracked") and not isinstance(value, tuple) else "F32"
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(content), len(content) + len(raw)]}
        content += raw
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(with_header(header, bytes(content)))
    tracemalloc.start()
    try:
        assert isinstance(read_folder(folder), Imported)
    except ExportError:
        pass
    finally:
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
        tracemalloc.stop()
        (folder / "model.safetensors").write_bytes(before)


@settings(max_examples=14, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(kind=st.sampled_from(KINDS), data=st.data())
def test_settings_of_every_kind_can_hold_anything(folders_of_kinds, kind, data):
    assert isinstance(tampered(folders_of_kinds[kind][0], "config.json", data.draw), Imported | ExportError)


@pytest.fixture(scope="module")
def sentences(tmp_path_factory):
    """A folder of sentence-transformers."""
    folder = tmp_path_factory.mktemp("fuzz") / "sentences"
    special = TEXT_SPECIAL["bert"]
    write_text_model(folder, "bert", architecture="BertModel", **special)
    for name, value in module_files(TextEncoding(normalize=True), 16, 24).items():
        folders.write_json(folder, name, value)
    assert read_folder(folder).experiment.objective.normalize
    return folder


@FEW
@given(file=st.sampled_from(["modules.json", "1_Pooling/config.json", "sentence_bert_config.json"]), data=st.data())
def test_settings_of_sentence_transformers_can_hold_anything(sentences, file, data):
    """A list of modules is changed below its first level."""
    if file != "modules.json":
        assert isinstance(tampered(sentences, file, data.draw), Imported | ExportError)
        return
    before = (sentences / file).read_bytes()
    values = json.loads(before)
    module = data.draw(st.sampled_from(range(len(values))))
    if data.draw(st.booleans()):
        values[module] = data.draw(ANY)
    else:
        values[module][data.draw(st.sampled_from(["path", "type"]))] = data.draw(ANY)
    (sentences / file).write_text(json.dumps(values))
    try:
        assert isinstance(read_folder(sentences), Imported)
    except ExportError:
        pass
    finally:
        (sentences / file).write_bytes(before)


WHISPER_FILES = ["generation_config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"]


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(file=st.sampled_from(WHISPER_FILES), data=st.data())
def test_settings_of_a_whisper_can_hold_anything(folders_of_kinds, file, data):
    assert isinstance(tampered(folders_of_kinds["whisper"][0], file, data.draw), Imported | ExportError)


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_folder_of_every_kind_is_read(folders_of_kinds, kind):
    """Or the fuzzing above could pass by refusing everything."""
    assert isinstance(read_folder(folders_of_kinds[kind][0]), Imported)


@pytest.mark.parametrize("shapes", [([2**14, 1], [1, 2**14]), ([16, 0], [0, 2**20]), ([16, 1], [1, 2**17])])
def test_a_head_that_would_be_multiplied_out_to_gigabytes_is_refused(folders_of_kinds, tmp_path, shapes):
    """Two thin arrays, whose product is as long as one and as wide as the other."""
    folder, arrays = folders_of_kinds["classification"]
    names = "projector.weight", "classifier.weight"  # of out by in
    thin = {name: np.zeros(shape[::-1], np.float32) for name, shape in zip(names, shapes, strict=True)}
    folder = shutil.copytree(folder, tmp_path / "folder")
    write_weights(folder, arrays | thin)
    held, message = peak(lambda: read_folder(folder))
    assert "classifier.weight" in message
    assert held < 16 << 20


def test_a_name_in_a_record_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    for name in ("../x", "/x", "a/../../x"):
        with pytest.raises(ExportError, match="no name of a file inside"):
            folders.write_text(tmp_path / "folder", name, "")
    assert [path.name for path in tmp_path.rglob("*")] == ["folder"]


@pytest.fixture(scope="module")
def ours(tmp_path_factory):
    """As the export writes it, but for the check and the model card."""
    folder, run = tmp_path_factory.mktemp("fuzz"), tiny_run("ctc")
    write_model(folder, package(run))
    record = {"target": "hf", "units": None, "experiment": run.experiment.model_dump(mode="json")}
    (folder / folders.RECORD).write_text(json.dumps(record | {"tokenizer": tokenizer_files(run.tokenizer)}))
    assert read_folder(folder).experiment == run.experiment
    return folder


@FEW
@given(data=st.data())
def test_a_record_can_hold_anything(ours, data):
    assert isinstance(tampered(ours, folders.RECORD, data.draw), Imported | ExportError)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"_attn_implementation": "someone/kernel"}, "attn_implementation"),
        ({"model_type": []}, r"model_type=\[\] is not possible"),
    ],
)
def test_impossible_settings_and_those_that_would_run_or_fetch_something_are_refused(texts, tmp_path, changes, message):
    folder = shutil.copytree(texts, tmp_path / "folder")
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | changes))
    with pytest.raises(ExportError, match=message):
        read_folder(folder)


def test_an_adapter_is_refused(speech, tmp_path):
    folder = shutil.copytree(speech, tmp_path / "folder")
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(ExportError, match="an adapter"):
        read_folder(folder)


def test_a_whole_folder_is_read(texts, speech):
    """Or the fuzzing above could pass by refusing everything."""
    assert isinstance(read_folder(texts), Imported)
    assert isinstance(read_folder(speech), Imported)
