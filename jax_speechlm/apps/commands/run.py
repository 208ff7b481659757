"""`jax-speechlm commands`: spoken commands by a grammar and any run that transcribes."""

import functools
import itertools
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tyro.conf import Positional

from data_pipelines.core.errors import DataError
from data_pipelines.core.tokenizer import Tokenizer
from data_pipelines.storage import index as indexes
from jax_speechlm.apps.commands.grammar import MAX_STATES, Grammar, normal
from jax_speechlm.apps.commands.nearest import nearest_sentence
from jax_speechlm.core.batch import Batch
from jax_speechlm.decoding.automaton import TokenAutomaton, TooManyStatesError
from jax_speechlm.decoding.lm.ngram import SPACE
from jax_speechlm.evaluation import base
from jax_speechlm.evaluation.intent import CommandReport, NoiseSet, Ratios, in_conditions
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.intent import Command, command_audio, described
from jax_speechlm.inference.load import open_transcriber
from jax_speechlm.inference.predictor import print_lines
from jax_speechlm.inference.segmentation import Recording, in_batches

Method = Literal["constrained", "nearest"]

THRESHOLDS: dict[Method, float] = {"constrained": 0.3, "nearest": 0.75}
"""Default confidence below which a recording is no command."""

_NOTHING = Command(None, {}, 0.0)


class CommandRecognizer:
    """Recognises the commands of a grammar, by one of two methods.

    `constrained` holds the decoding to the sentences of the grammar; its confidence is the likelihood of the sentence
    relative to free recognition, per token. `nearest` recognises freely and takes the sentence with the fewest edits;
    its confidence is their similarity.
    """

    def __init__(self, grammar: Grammar, transcriber: Transcriber, method: Method | None = None):
        """
        Args:
          method: None is `constrained` for runs whose decoding can be held to a grammar, `nearest` for others.

        Raises:
          DataError: the recognizer cannot produce a word of the grammar.
        """
        self.grammar, self.transcriber = grammar, transcriber
        self.method: Method = method or ("constrained" if transcriber.can_be_held else "nearest")
        if self.method == "constrained":
            self._automaton = token_automaton(grammar, transcriber.tokenizer)

    def recognize(self, recordings: Sequence[Recording]) -> list[Command]:
        """Returns the command of each recording; silence is no command.

        Raises:
          AudioError: a recording cannot be read, or is too long for a command.
        """
        rate = self.transcriber.experiment.sample_rate
        audio = [command_audio(recording, rate) for recording in recordings]
        found = self.of_batches(in_batches([samples for samples in audio if samples is not None]))
        place = itertools.count()
        return [_NOTHING if samples is None else found[next(place)] for samples in audio]

    def of_batches(self, batches: Iterable[Batch]) -> dict[int, Command]:
        """Returns the commands of the rows of batches by `example_id`, without filler rows."""
        if self.method == "constrained":
            rows = self.transcriber.within(batches, self._automaton).items()
            decode = self.transcriber.tokenizer.decode
            return {
                row: _NOTHING if tokens is None else self._command(decode(tokens), math.exp(min(margin, 0.0)))
                for row, (tokens, margin) in rows
            }
        return {row: self._nearest(text) for row, text in self.transcriber.recognize(batches).items()}

    def _nearest(self, text: str) -> Command:
        sentence, similarity = nearest_sentence(normal(text, self.grammar.intents.language), self.grammar.words)
        return self._command(sentence, similarity)._replace(text=" ".join(text.split()))

    def _command(self, sentence: str, confidence: float) -> Command:
        sentence = " ".join(sentence.split())
        understood = self.grammar.understand(sentence)
        return _NOTHING if understood is None else Command(*understood, confidence, sentence)


def token_automaton(grammar: Grammar, tokenizer: Tokenizer) -> TokenAutomaton:
    """Returns the automaton over a recognizer's tokens of the sentences of a grammar.

    Raises:
      DataError: the tokenizer lacks a character of a word, or splits words differently by their neighbours, or the
        automaton is too large.
    """
    graph = grammar.with_skip_words()
    words = sorted({word for arcs in graph.arcs for word, _ in arcs})
    for word in words:
        if unknown := tokenizer.unknown(word):
            raise DataError(
                f"{grammar.where(word)}: the recognizer has no {', '.join(map(repr, unknown))}, as in {word!r}: write "
                "the word as it is spoken, in the recognizer's letters"
            )
    first = tokenizer.encode(words[0])

    if SPACE in tokenizer.pieces:  # which a recognizer of characters may put after the last word
        end = graph.add_state()
        for state in graph.final:
            graph.add_arc(state, SPACE, end)
        graph.final.add(end)

    @functools.cache
    def encode(word: str, is_first: bool) -> Sequence[int]:
        if word == SPACE:
            return [tokenizer.pieces.index(SPACE)]
        if is_first:
            return tokenizer.encode(word)
        both = tokenizer.encode(f"{words[0]} {word}")
        if both[: len(first)] != first:
            raise DataError(
                f"{grammar.path}: the recognizer's tokens of {words[0]!r} depend on the next word ({word!r}), so that "
                "its decoding cannot be held to a grammar: take --method nearest"
            )
        return both[len(first) :]

    try:
        return TokenAutomaton.of_words(graph, encode, MAX_STATES)
    except TooManyStatesError as error:
        raise DataError(f"{grammar.path}: too many sentences ({error}): shorten its lists or permutations") from error


def recognize_commands(
    files: Positional[tuple[str, ...]] = (),
    *,
    grammar: str,
    asr: Path,
    method: Method | None = None,
    threshold: float | None = None,
    sets: base.Sets = (),
    split: base.Split = "test",
    data_dir: base.DataDir = Path("data"),
    out: base.Out = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
    noise_set: NoiseSet = None,
    snr: Ratios = (20.0, 10.0, 5.0, 0.0),
) -> None:
    """Recognises spoken commands by a grammar; prints one line of JSON for each file, or measures prepared sets.

    Args:
      files: audio files of any format, rate and number of channels, of one command each.
      grammar: YAML file of intents in hassil's format, as Home Assistant has them; or a shipped one: coffee.
      asr: a run that transcribes.
      method: "constrained" produces nothing outside the grammar, with runs trained by ctc or transducer; "nearest"
        takes the sentence nearest to what any run transcribes. By default constrained, if the run can be.
      threshold: confidence below which a recording is no command: its intent is null. By default 0.3 constrained, 0.75
        nearest.
    """
    if bool(files) == bool(sets):
        raise ValueError("name audio files, or prepared sets with --sets; one of the two")
    loaded = Grammar.load(grammar)
    for warning in loaded.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    transcriber = open_transcriber(asr)
    recognizer = CommandRecognizer(loaded, transcriber, method)
    least = THRESHOLDS[recognizer.method] if threshold is None else threshold
    if files:
        print_lines(files, functools.partial(_describe, recognizer, least))
        return

    index = indexes.read_sets(data_dir, sets, split, transcriber.experiment.sample_rate)
    conditions = {"noise_set": noise_set, "snr": snr, "data_dir": data_dir, "seconds_per_batch": seconds_per_batch}
    report = CommandReport(
        checkpoint=str(transcriber.checkpoint),
        sets=sets,
        split=split,
        method=f"{recognizer.method}, {loaded.path.name}, threshold {least:g}",
        intents=len(loaded.intents.intents),
        noise_set=noise_set or "",
        scores=in_conditions(_above(recognizer, least), index, transcriber.experiment.frame_samples, **conditions),
    )
    report.publish(out or base.report_folder(asr, sets, split, "commands", recognizer.method), report.checkpoint)


def _describe(recognizer: CommandRecognizer, threshold: float, file: str) -> dict[str, Any]:
    (command,) = recognizer.recognize([file])
    return {"file": file, **described(command.above(threshold))}


def _above(recognizer: CommandRecognizer, threshold: float) -> Callable[[Iterable[Batch]], dict[int, Command]]:
    def predict(batches: Iterable[Batch]) -> dict[int, Command]:
        return {row: command.above(threshold) for row, command in recognizer.of_batches(batches).items()}

    return predict
