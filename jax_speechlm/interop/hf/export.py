"""`jax-speechlm export RUN --to hf`: writes a checkpoint as a Hugging Face folder and checks it."""

from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jax_speechlm.interop import folders
from jax_speechlm.interop.folders import ExportError, FailedCheck
from jax_speechlm.interop.hf.import_ import read_folder
from jax_speechlm.interop.hf.mapping import read
from jax_speechlm.interop.hf.model_card import model_card
from jax_speechlm.interop.hf.registry import Package, package, write_model
from jax_speechlm.interop.hf.verify.check import check_export
from jax_speechlm.interop.hf.verify.verdict import Verdict
from jax_speechlm.training.runs import LoadedRun, tokenizer_files

CARD = "README.md"


def export_run(
    run: Positional[Path],
    out: Path | None = None,
    check: Path | None = None,
    audio: tuple[Path, ...] = (),
    text: tuple[str, ...] = (),
    vocoder: Path | None = None,
) -> Verdict:
    """Writes a run's model as a folder that plain transformers opens, or checks such a folder.

    With --out: the folder appears once it has been checked; where something differs, nothing appears and the exit
    status is 1. With --check: an exported folder is checked, and the result is written into the folder. The check
    is by transformers where torch and transformers are installed; else the folder is read back by this project, and
    --check does the rest later, on another machine.

    Args:
      run: a run's directory, or one of its checkpoints/<step> folders.
      out: the folder to write; an earlier export there is replaced.
      check: the exported folder to check, instead of writing one.
      audio: files to compare on, in addition to synthetic clips.
      text: texts to compare on, in addition to built-in ones.
      vocoder: for a voice: the exported folder of its vocoder, to compare the samples of transformers' pipeline too.
    """
    if (out is None) == (check is None):
        raise ExportError("give either --out FOLDER, to write one, or --check FOLDER, to check one that was written")
    if out is not None:
        return write_checked(LoadedRun.read(run), out, audio, text, vocoder)
    record = folders.read_record(check)
    if record.get("target") != "hf":
        raise ExportError(f"{check} was exported to {record.get('target')}: --to hf cannot check it")
    trained = LoadedRun.read(run)
    player = _vocoder_of(trained, vocoder)
    made = package(trained)
    verdict = check_export(check, trained, made, audio, text, vocoder=player)
    _describe(check, trained, made, record | {"check": verdict.to_json()})
    if verdict.failed:
        raise FailedCheck(f"{check}: {verdict.line}\nThe folder is marked as failed; do not use it.")
    print(f"{check}: {verdict.line}")
    return verdict


def write_checked(
    trained: LoadedRun,
    out: Path,
    audio: tuple[Path, ...] = (),
    text: tuple[str, ...] = (),
    vocoder: Path | None = None,
) -> Verdict:
    """Writes a model's folder and checks it; the folder appears at `out` only if nothing differs.

    Raises:
      ExportError: the model cannot be exported, or `out` holds something that no export wrote.
      FailedCheck: the written model differs; it is kept as `<out>.rejected`.
    """
    folders.require_free(out)
    player = _vocoder_of(trained, vocoder)
    made = package(trained)
    record = {"target": "hf", "checkpoint": str(trained.checkpoint), "step": trained.step}
    record |= {"architecture": made.architecture, "units": trained.units}
    record |= {
        "experiment": trained.experiment.model_dump(mode="json"),
        "tokenizer": tokenizer_files(trained.tokenizer),
    }
    with folders.written(out, record) as folder:
        write_model(folder, made)
        verdict = check_export(folder, trained, made, audio, text, vocoder=player)
        _describe(folder, trained, made, record | {"check": verdict.to_json()})
        if verdict.failed:
            raise FailedCheck(f"{trained.checkpoint}: {verdict.line}")
    print(f"{out}: {made.architecture}, {verdict.line}")
    if not verdict.is_full:
        print(
            "It was not opened by transformers: torch and transformers are not installed here (pip install "
            "'jax_speechlm[parity]'). Where they are, this does it:\n"
            f"  jax-speechlm export {trained.checkpoint} --to hf --check {out}"
        )
    return verdict


def _vocoder_of(voice: LoadedRun, folder: Path | None) -> LoadedRun | None:
    """Returns the vocoder of an exported folder as a run. Raises `ExportError` if the voice cannot be played by it."""
    if folder is None:
        return None
    if voice.experiment.objective.kind != "tts":
        raise ExportError(
            f"{voice.checkpoint}: --vocoder is for voices, and this was trained by {voice.experiment.objective.kind}"
        )
    imported, mel = read_folder(folder), voice.experiment.frontend.mel
    vocoder = imported.experiment
    if vocoder.objective.kind != "vocoder":
        raise ExportError(f"{folder} holds no vocoder, but a run of kind {vocoder.objective.kind}")
    if vocoder.frontend.mel != mel:
        raise ExportError(
            f"{folder} takes spectrograms of the form {vocoder.frontend.mel!r}, and {voice.checkpoint} computes "
            f"{mel!r}: export a vocoder that was trained with the front end of the voice"
        )
    return LoadedRun(folder, 0, vocoder, None, read(imported.sources))


def _describe(folder: Path, trained: LoadedRun, made: Package, record: dict[str, Any]) -> None:
    (folder / CARD).write_text(model_card(trained, made, record), encoding="utf-8")
    folders.write_json(folder, folders.RECORD, record)
