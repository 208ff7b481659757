"""The programs of docs/text_models.md, on a tiny random encoder and a dictionary of three entries."""

import base64
import gzip
from pathlib import Path

from data_pipelines.sources import debian
from jax_speechlm.interop.hf.import_ import import_run
from tests.interop.foreign_folders import SPECIAL, write_text_model
from tests.pages import blocks, read

ENTRIES = ("worm\n\n  A program that spreads.", "quicksort\n\n  Sorts lists.", "bit\n\n  The smallest unit.")


def write_dictionary(root: Path) -> None:
    """Writes a dictionary in dictd's format: offsets and lengths in base 64, and a compressed file."""

    def digits(value: int) -> str:
        return base64.b64encode(value.to_bytes(6, "big")).decode().lstrip("A") or "A"

    text, lines = "".join(ENTRIES), []
    for entry in ENTRIES:
        lines.append(f"{entry.partition(chr(10))[0]}\t{digits(text.index(entry))}\t{digits(len(entry))}")
    folder = root / "usr/share/dictd"
    folder.mkdir(parents=True)
    (folder / "foldoc.index").write_text("\n".join(lines))
    (folder / "foldoc.dict.dz").write_bytes(gzip.compress(text.encode()))


def test_the_search_prints_the_nearest_entries(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_text_model(tmp_path / "theirs", "bert", architecture="BertModel", **SPECIAL["bert"])
    import_run(tmp_path / "theirs", tmp_path / "runs" / "minilm")
    write_dictionary(tmp_path / "foldoc")
    monkeypatch.setattr(debian, "fetch", lambda name, cache: debian.Package(name, "1", tmp_path / "foldoc"))
    (program,) = blocks(read("text_models.md"), "python")
    capsys.readouterr()
    exec(compile(program, "text_models.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines) == sorted(entry.partition("\n")[0] for entry in ENTRIES)
