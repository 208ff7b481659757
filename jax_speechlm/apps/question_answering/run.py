"""`jax-speechlm index-text` and `ask`: questions answered from texts or facts, typed or spoken."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from data_pipelines.audio.decode import AudioError
from data_pipelines.audio.player import find_player, play_sound
from data_pipelines.audio.wav import write_wav
from jax_speechlm.apps.question_answering.graph import FACTS
from jax_speechlm.apps.question_answering.index import PassageIndex
from jax_speechlm.apps.question_answering.passages import of_files, of_sets
from jax_speechlm.apps.question_answering.reading import PassageAnswers
from jax_speechlm.apps.question_answering.reply import Answerer
from jax_speechlm.apps.question_answering.templates import GraphAnswers
from jax_speechlm.evaluation.answers import evaluate_answers, read_questions
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.inference.predictor import print_lines
from jax_speechlm.inference.synthesize import Synthesizer
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.inference.text_tokens import Reader
from jax_speechlm.inference.vocode import GRIFFIN_LIM


def index_text(
    files: Positional[tuple[str, ...]] = (),
    *,
    out: Path,
    sets: tuple[str, ...] = (),
    data_dir: Path = Path("data"),
    encoder: Path | None = None,
    language: str = "en",
    encoding: str = "utf-8",
) -> None:
    """Indexes passages of at most 100 words of texts, for `jax-speechlm ask`.

    Args:
      files: .txt, .jsonl and .parquet files, or patterns of their names in quotes; plain or compressed.
      out: folder of the index.
      sets: names of prepared sets of text, whose splits are all indexed.
      data_dir: folder of the prepared sets.
      encoder: a run that embeds texts, such as an imported MiniLM; without one passages are found by their words alone.
      language: two-letter code, of stems and stop words.
      encoding: of .txt and .jsonl files.
    """
    if not files and not sets:
        raise ValueError("there is nothing to index: name files, or prepared sets with --sets")
    passages = [*(of_files(files, encoding) if files else ()), *of_sets(data_dir, sets)]
    index = PassageIndex.build(passages, language, None if encoder is None else TextEmbedder.load(encoder))
    index.save(out)
    sources = len({passage.source for passage in passages})
    print(f"{out}: {len(passages):,} passages of {sources:,} texts")


def ask(
    knowledge: Positional[Path],
    question: Positional[tuple[str, ...]] = (),
    *,
    templates: str = "general",
    reader: Path | None = None,
    encoder: Path | None = None,
    threshold: float | None = None,
    asr: Path | None = None,
    tts: Path | None = None,
    vocoder: str = GRIFFIN_LIM,
    questions: Path | None = None,
    out: Path | None = None,
) -> None:
    """Answers questions; prints one line of JSON for each. An answer that is not known is null.

    Args:
      knowledge: an index that `index-text` has made, or a file of facts: .csv (subject,relation,object) or .ttl.
      question: questions in quotes; with --asr audio files, of one question each.
      templates: YAML file of the questions that a file of facts is asked, or the shipped one, general.
      reader: a run of question_answering, which finds the words of the answer in passages; otherwise it is a sentence.
      encoder: where the run of the index's encoder is now, if it was moved.
      threshold: confidence below which there is no answer; by default 0.5 for sentences, 0.3 with a reader, and 0.8,
        the similarity of names, for facts.
      asr: a run that transcribes, for spoken questions.
      tts: a voice, which speaks the answers.
      vocoder: directory of the voice's vocoder's run, or griffin-lim.
      questions: JSON lines with question, audio or both, and answer: measures how many are answered right.
      out: file of the spoken answer, .wav; it is played without one. With --questions, the folder of the report; by
        default <knowledge>-questions.
    """
    if bool(question) == (questions is not None):
        raise ValueError("ask a question, or measure many with --questions; one of the two")
    if out is not None and questions is None and (tts is None or len(question) > 1):
        raise ValueError("--out is the file of one spoken answer: ask one question, and name a voice with --tts")
    answerer = _open(knowledge, templates, reader, encoder, threshold)
    transcriber = None if asr is None else open_transcriber(asr)
    hear = None if transcriber is None else functools.partial(_hear, transcriber)
    if questions is not None:
        asked = read_questions(questions)
        report = evaluate_answers(asked, lambda text: answerer.ask(text).answer, hear, answerer.method)
        report.publish(out or knowledge.with_name(f"{knowledge.stem}-questions"), str(questions))
        return
    say = None if tts is None else _speaker(tts, vocoder, out)
    print_lines(question, functools.partial(_describe, answerer, hear, say))


def _open(
    knowledge: Path, templates: str, reader: Path | None, encoder: Path | None, threshold: float | None
) -> Answerer:
    """Opens what questions are asked of."""
    if knowledge.suffix.lower() not in FACTS or knowledge.is_dir():
        index = PassageIndex.open(knowledge, encoder)
        return PassageAnswers(index, None if reader is None else Reader.load(reader), threshold)
    if reader is not None or encoder is not None:
        raise ValueError(f"--reader and --encoder are for indexes of passages, and {knowledge} is a file of facts")
    return GraphAnswers(knowledge, templates, threshold)


def _hear(transcriber: Transcriber, file: str | Path) -> str:
    """Transcribes a question; '' of silence. Raises `AudioError` if the file cannot be read."""
    (transcript,) = transcriber.transcribe([file])
    if transcript.error is not None:
        raise AudioError(str(file), transcript.error, "name a file of audio")
    return transcript.text


def _describe(
    answerer: Answerer, hear: Callable[[str], str] | None, say: Callable[[str], None] | None, asked: str
) -> dict[str, Any]:
    question = asked if hear is None else hear(asked)
    reply = answerer.ask(question)
    if say is not None:
        say(reply.say)
    line = reply._asdict() | {"confidence": round(reply.confidence, 4)}
    shown = {name: value for name, value in line.items() if value != ""}
    return ({} if hear is None else {"file": asked}) | {"question": question} | shown


def _speaker(run: Path, vocoder: str, out: Path | None) -> Callable[[str], None]:
    """Returns what speaks an answer, to a file or the loudspeaker."""
    voice = Synthesizer.load(run, vocoder)
    player = find_player("speaking", "name a file with --out") if out is None else []

    def say(text: str) -> None:
        (speech,) = voice.synthesize([text])
        if out is None:
            play_sound(player, speech.samples, speech.sample_rate)
        else:
            write_wav(out, speech.samples, speech.sample_rate)

    return say
