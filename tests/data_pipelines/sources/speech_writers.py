"""Writes the same clips in every format that `prepare` reads, as the tools of each format write them."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import soundfile

RATE = 16_000


@dataclass(frozen=True)
class Spoken:
    """A clip to write; its id begins with its speaker, four digits."""

    id: str
    speaker: str
    text: str
    gender: str
    split: str
    seed: int
    centiseconds: int

    @property
    def samples(self) -> np.ndarray:
        return np.random.default_rng(self.seed).integers(-3000, 3000, self.centiseconds * RATE // 100).astype(np.int16)

    @property
    def seconds(self) -> float:
        return self.centiseconds / 100


@dataclass(frozen=True)
class Written:
    """How a format writes clips, and what it keeps of them.

    Attributes:
      write: writes clips below a folder and returns the path to give to `prepare`.
      fields: of the clips that the format states; others are empty, or a default.
      language: that the format states.
    """

    write: Callable[[Path, Sequence[Spoken]], Path]
    fields: frozenset[str]
    language: str = ""


FORMATS: dict[str, Written] = {}


def format_of(name: str, *fields: str, language: str = ""):
    def register(write):
        FORMATS[name] = Written(write, frozenset(fields), language)
        return write

    return register


def sound(samples: np.ndarray, kind: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, format=kind, subtype="PCM_16")
    return buffer.getvalue()


def put(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(path: Path, rows: Sequence[Any]) -> Path:
    """Writes rows, of JSON unless they are strings, which gzip compresses if the name says so."""
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    return put(path, gzip.compress(text.encode()) if path.suffix == ".gz" else text)


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def by_split(clips: Sequence[Spoken]) -> dict[str, list[Spoken]]:
    return {split: [clip for clip in clips if clip.split == split] for split in sorted({clip.split for clip in clips})}


def joined(clips: Sequence[Spoken]) -> tuple[np.ndarray, list[float]]:
    """Returns the clips as one recording, with 0.05 s of silence after each, and the start of each in seconds."""
    starts, parts, position = [], [], 0
    for clip in clips:
        starts.append(position / 100)
        parts += [clip.samples, np.zeros(RATE // 20, np.int16)]
        position += clip.centiseconds + 5
    return np.concatenate(parts), starts


def about(clip: Spoken) -> dict[str, str]:
    return {"id": clip.id, "text": clip.text, "speaker": clip.speaker, "gender": clip.gender, "split": clip.split}


@format_of("manifest", "speaker", "gender", "split")
def manifest(folder, clips):
    for clip in clips:
        put(folder / f"wav/{clip.id}.wav", sound(clip.samples))
    rows = [about(clip) | {"audio": f"wav/{clip.id}.wav", "duration": clip.seconds} for clip in clips]
    return lines(folder / "my.jsonl", rows)


@format_of("manifest of stretches", "speaker", "gender", "split")
def stretches(folder, clips):
    samples, starts = joined(clips)
    put(folder / "long.flac", sound(samples, "FLAC"))
    places = [{"offset": start, "duration": clip.seconds} for clip, start in zip(clips, starts, strict=True)]
    rows = [about(clip) | {"audio_filepath": "long.flac"} | place for clip, place in zip(clips, places, strict=True)]
    return lines(folder / "nemo.json", rows)


@format_of("nemo", "speaker", "gender", "split")
def nemo(folder, clips):
    """As convert_to_tarred_audio_dataset.py with two shards, the second in stretches of one file."""
    half = len(clips) // 2
    whole = {f"data_{clip.id}.wav": sound(clip.samples) for clip in clips[:half]}
    tar(folder / "audio_0.tar", whole)
    rows = [
        about(clip) | {"audio_filepath": name, "duration": clip.seconds, "shard_id": 0}
        for clip, name in zip(clips[:half], whole, strict=True)
    ]
    samples, starts = joined(clips[half:])
    tar(folder / "audio_1.tar", {"data_long.wav": sound(samples)})
    for number, (clip, start) in enumerate(zip(clips[half:], starts, strict=True)):
        name = f"data_long-sub{number}.wav" if number else "data_long.wav"
        rows.append(about(clip) | {"audio_filepath": name, "offset": start, "duration": clip.seconds, "shard_id": 1})
    lines(folder / "tarred_audio_manifest.json", rows)
    return folder


def supervision(clip: Spoken, recording: str, start: float) -> dict:
    row = {"id": clip.id, "recording_id": recording, "start": start, "duration": clip.seconds, "channel": 0}
    return row | {"text": clip.text, "language": "English", "speaker": clip.speaker, "gender": clip.gender[0]}


def recording(name: str, source: dict, seconds: float) -> dict:
    about_samples = {"sampling_rate": RATE, "num_samples": round(seconds * RATE), "duration": seconds}
    return {"id": name, "sources": [{"channels": [0]} | source], **about_samples, "channel_ids": [0]}


@format_of("lhotse recordings", "speaker", "gender", "split", language="en")
def lhotse_recordings(folder, clips):
    """A recording of all clips of a split, with the paths of where the tool ran."""
    for split, part in by_split(clips).items():
        samples, starts = joined(part)
        put(folder / f"audio/{split}.wav", sound(samples))
        source = {"type": "file", "source": f"audio/{split}.wav"}
        rows = [recording(split, source, len(samples) / RATE)]
        lines(folder / f"manifests/my_recordings_{split}.jsonl.gz", rows)
        rows = [supervision(clip, split, start) for clip, start in zip(part, starts, strict=True)]
        lines(folder / f"manifests/my_supervisions_{split}.jsonl.gz", rows)
    return folder / "manifests"


@format_of("lhotse cuts", "speaker", "gender", language="en")
def lhotse_cuts(folder, clips):
    samples, starts = joined(clips)
    put(folder / "long.wav", sound(samples))
    whole = recording("long", {"type": "file", "source": str(folder / "long.wav")}, len(samples) / RATE)
    cuts = []
    for clip, start in zip(clips, starts, strict=True):
        inner = [supervision(clip, "long", 0.0)]
        cut = {"id": f"cut-{clip.id}", "start": start, "duration": clip.seconds, "channel": 0, "supervisions": inner}
        cuts.append(cut | {"recording": whole, "type": "MonoCut"})
    return lines(folder / "cuts.jsonl.gz", cuts)


@format_of("lhotse shar", "speaker", "gender", language="en")
def lhotse_shar(folder, clips):
    for shard, part in enumerate((clips[: len(clips) // 2], clips[len(clips) // 2 :])):
        members, cuts = {}, []
        for clip in part:
            inner = recording(clip.id, {"type": "shar", "source": ""}, clip.seconds)
            members[f"{clip.id}.flac"], members[f"{clip.id}.json"] = sound(clip.samples, "FLAC"), b"{}"
            cut = {"id": clip.id, "start": 0, "duration": clip.seconds, "channel": 0, "type": "MonoCut"}
            cuts.append(cut | {"supervisions": [supervision(clip, clip.id, 0.0)], "recording": inner})
        lines(folder / f"cuts.{shard:06d}.jsonl.gz", cuts)
        tar(folder / f"recording.{shard:06d}.tar", members)
    return folder


def kaldi_lists(folder: Path, clips: Sequence[Spoken]) -> None:
    clips = sorted(clips, key=lambda clip: clip.id)
    lines(folder / "text", [f"{clip.id} {clip.text}" for clip in clips])
    lines(folder / "utt2spk", [f"{clip.id} {clip.speaker}" for clip in clips])
    lines(folder / "spk2gender", sorted({f"{clip.speaker} {clip.gender[0]}" for clip in clips}))
    lines(folder / "utt2lang", [f"{clip.id} en" for clip in clips])


@format_of("kaldi", "speaker", "gender", "split", language="en")
def kaldi(folder, clips):
    for split, part in by_split(clips).items():
        scp = []
        for number, clip in enumerate(sorted(part, key=lambda clip: clip.id)):
            path = put(folder / f"flac/{clip.id}.flac", sound(clip.samples, "FLAC"))
            scp.append(f"{clip.id} {f'flac -c -d -s {path} |' if number % 2 else f'flac/{clip.id}.flac'}")
        lines(folder / f"data/{split}/wav.scp", scp)
        kaldi_lists(folder / f"data/{split}", part)
    return folder / "data"


@format_of("kaldi segments", "speaker", "gender", language="en")
def kaldi_segments(folder, clips):
    samples, starts = joined(clips)
    put(folder / "long.wav", sound(samples))
    lines(folder / "wav.scp", [f"call {folder / 'long.wav'}"])
    ends = [start + clip.seconds for clip, start in zip(clips, starts, strict=True)]
    rows = [f"{clip.id} call {start:.2f} {end:.2f}" for clip, start, end in zip(clips, starts, ends, strict=True)]
    lines(folder / "segments", sorted(rows))
    kaldi_lists(folder, clips)
    return folder


@format_of("espnet archive", "speaker", "gender", language="en")
def espnet(folder, clips):
    """WAV in an archive as Kaldi writes it, FLAC as kaldiio does."""
    archive, scp = bytearray(), []
    for number, clip in enumerate(clips):
        archive += f"{clip.id} ".encode()
        scp.append(f"{clip.id} dump/data.ark:{len(archive)}")
        content = sound(clip.samples, "FLAC" if number % 2 else "WAV")
        archive += b"AUDIO\4" + len(content).to_bytes(4, "little") + content if number % 2 else content
    put(folder / "dump/data.ark", bytes(archive))
    lines(folder / "dump/raw/train/wav.scp", sorted(scp))
    kaldi_lists(folder / "dump/raw/train", clips)
    return folder / "dump/raw/train"


@format_of("audiofolder", "speaker", "gender", "split")
def audiofolder(folder, clips):
    for split, part in by_split(clips).items():
        for clip in part:
            put(folder / f"{split}/{clip.id}.wav", sound(clip.samples))
        rows = [f'{clip.id}.wav,{clip.id},"{clip.text}",{clip.speaker},{clip.gender}' for clip in part]
        lines(folder / f"{split}/metadata.csv", ["file_name,id,transcription,speaker_id,gender", *rows])
    return folder


@format_of("parquet", "speaker", "gender", "split")
def parquet(folder, clips):
    names = {"names": ["female", "male"], "_type": "ClassLabel"}
    features = {"info": {"features": {"audio": {"_type": "Audio"}, "gender": names}}}
    for split, part in by_split(clips).items():
        audio = [{"bytes": sound(clip.samples, "FLAC"), "path": f"{clip.id}.flac"} for clip in part]
        columns = {"audio": audio, "id": [clip.id for clip in part], "text": [clip.text for clip in part]}
        columns |= {"speaker_id": [int(clip.speaker) for clip in part]}
        table = pa.table(columns | {"gender": [names["names"].index(clip.gender) for clip in part]})
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
        (folder / "data").mkdir(parents=True, exist_ok=True)
        pq.write_table(table, folder / f"data/{split}-00000-of-00001.parquet", row_group_size=2)
    return folder


@format_of("webdataset", "speaker", "gender", "split")
def webdataset(folder, clips):
    for split, part in by_split(clips).items():
        members = {}
        for clip in part:
            members[f"{clip.id}.flac"] = sound(clip.samples, "FLAC")
            members[f"{clip.id}.json"] = json.dumps({"speaker": clip.speaker, "gender": clip.gender}).encode()
            members[f"{clip.id}.txt"] = clip.text.encode()
        tar(folder / f"{split}-000000.tar", members)
    return folder


@format_of("common_voice", "speaker", "gender", "split", language="en")
def common_voice(folder, clips):
    header = "client_id\tpath\tsentence\tup_votes\tage\tgender\taccents\tlocale"
    genders = {"male": "male_masculine", "female": "female"}
    rows = {clip: f"{clip.speaker}\t{clip.id}.mp3\t{clip.text}\t2\t\t{genders[clip.gender]}\t\ten" for clip in clips}
    for clip in clips:
        put(folder / f"clips/{clip.id}.mp3", sound(clip.samples))
    for split, part in by_split(clips).items():
        lines(folder / f"{split}.tsv", [header, *(rows[clip] for clip in part)])
    lines(folder / "validated.tsv", [header, *rows.values()])
    return folder


@format_of("librispeech", "speaker", "gender", "split", language="en")
def librispeech(folder, clips):
    for split, part in by_split(clips).items():
        for speaker in {clip.speaker for clip in part}:
            chapter, own = folder / split / speaker / "7", [clip for clip in part if clip.speaker == speaker]
            lines(chapter / f"{speaker}-7.trans.txt", [f"{clip.id} {clip.text}" for clip in own])
            for clip in own:
                put(chapter / f"{clip.id}.flac", sound(clip.samples, "FLAC"))
    speakers = sorted({f"{clip.speaker} | {clip.gender[0].upper()} | train | 25.0 | Name" for clip in clips})
    lines(folder / "SPEAKERS.TXT", [";ID  |SEX| SUBSET |MINUTES| NAME", *speakers])
    return folder


@format_of("mls", "speaker", "gender", "split", language="en")
def mls(folder, clips):
    folder = folder / "mls_english"
    for split, part in by_split(clips).items():
        lines(folder / f"{split}/transcripts.txt", [f"{clip.id}\t{clip.text}" for clip in part])
        for clip in part:
            speaker, book, _ = clip.id.split("_")
            put(folder / f"{split}/audio/{speaker}/{book}/{clip.id}.flac", sound(clip.samples, "FLAC"))
    rows = sorted({f"  {clip.speaker}  |    {clip.gender[0].upper()}   | train | 1.0 | 7 | T | C" for clip in clips})
    lines(folder / "metainfo.txt", ["SPEAKER | GENDER | PARTITION | MINUTES | BOOK ID | TITLE | CHAPTER", *rows])
    return folder


@format_of("voxpopuli", "speaker", "gender", "split", language="en")
def voxpopuli(folder, clips):
    folder = folder / "en"
    header = "id\traw_text\tnormalized_text\tspeaker_id\tsplit\tgender\tis_gold_transcript\taccent"
    for split, part in by_split(clips).items():
        rows = [f"{clip.id}\t\t{clip.text}\t{clip.speaker}\t{split}\t{clip.gender}\tTrue\tNone" for clip in part]
        lines(folder / f"asr_{split}.tsv", [header, *rows])
        for clip in part:
            put(folder / f"{clip.id[:4]}/{clip.id}.ogg", sound(clip.samples))
    return folder


@format_of("vctk", "speaker", "gender", language="en")
def vctk(folder, clips):
    for clip in clips:
        put(folder / f"wav48_silence_trimmed/{clip.speaker}/{clip.id}_mic1.flac", sound(clip.samples, "FLAC"))
        put(folder / f"wav48_silence_trimmed/{clip.speaker}/{clip.id}_mic2.flac", b"another microphone")
        put(folder / f"txt/{clip.speaker}/{clip.id}.txt", f"{clip.text}\n")
    rows = sorted({f"{clip.speaker}  -  {clip.gender[0].upper()}  -" for clip in clips})
    lines(folder / "speaker-info.txt", ["ID  AGE  GENDER  ACCENTS  REGION COMMENTS", *rows])
    return folder


@format_of("ljspeech", language="en")
def ljspeech(folder, clips):
    folder = folder / "LJSpeech-1.1"
    lines(folder / "metadata.csv", [f"{clip.id}|with 5 digits|{clip.text}" for clip in clips])
    for clip in clips:
        put(folder / f"wavs/{clip.id}.wav", sound(clip.samples))
    return folder


@format_of("aishell", "speaker", "gender", "split", language="zh")
def aishell(folder, clips):
    lines(folder / "data_aishell/transcript/aishell_transcript_v0.8.txt", [f"{c.id} {' '.join(c.text)}" for c in clips])
    lines(folder / "resource_aishell/speaker.info", sorted({f"{c.speaker} {c.gender[0].upper()}" for c in clips}))
    for clip in clips:
        put(folder / f"data_aishell/wav/{clip.split}/{clip.speaker}/{clip.id}.wav", sound(clip.samples))
    return folder


@format_of("files", "split")
def files(folder, clips):
    for clip in clips:
        put(folder / f"{clip.split}/{clip.id}.wav", sound(clip.samples))
        put(folder / f"{clip.split}/{clip.id}.txt", clip.text)
    return folder
