"""Evaluates recognizers and translators on prepared data sets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from tyro.conf import OmitArgPrefixes, Positional

from data_pipelines.batching import plan as plans
from data_pipelines.batching.speech import Batches, open_batches
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.evaluation import report as reports
from jax_speechlm.evaluation import translation
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.report import EvaluationReport, Utterance
from jax_speechlm.evaluation.translation import TranslationReport
from jax_speechlm.evaluation.tuning import tune_weights
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.load import open_transcriber


class EvaluationSpeech:
    """One split of prepared sets, batched for a recognizer."""

    def __init__(
        self, recognizer: Transcriber, sets: tuple[str, ...], split: str, data_dir: Path, seconds_per_batch: float
    ):
        self.sets, self._references = sets, "translation" if recognizer.task == "translate" else "text"
        rate = recognizer.experiment.sample_rate
        self.index = indexes.read_sets(data_dir, sets, split, rate)
        self._plan = plans.make_eval_plan(
            self.index.num_samples,
            seconds_per_batch=seconds_per_batch,
            frame_samples=recognizer.experiment.frame_samples,
            sample_rate=rate,
        )

    def batches(self) -> Batches:
        """Reads every utterance once, in batches of similar length."""
        return open_batches(self.index, self._plan, num_steps=self._plan.steps_per_epoch)

    def utterances(self, texts: Mapping[int, str]) -> list[Utterance]:
        """Returns every utterance with its reference and its hypothesis (`texts`, by row), in the order of the sets."""
        index = self.index
        names = "id", self._references, "speaker", "language"
        ids, references, speakers, languages = (index.column(name).to_pylist() for name in names)
        return [
            Utterance(
                # Sets may share ids; within a set they are unique.
                id=ids[row] if len(self.sets) == 1 else f"{index.locate(row)[0].set_dir.name}/{ids[row]}",
                reference=references[row],
                hypothesis=texts[row],
                speaker=speakers[row] or None,
                duration=index.num_samples[row] / index.sample_rate,
                language=languages[row] if self._references == "text" else "en",
            )
            for row in range(len(index))
        ]


def evaluate_run(
    checkpoint: Positional[Path],
    sets: tuple[str, ...],
    split: str = "test",
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    tune: bool = False,
    normalizer: NormalizerName = "basic",
    data_dir: Path = Path("data"),
    out: Path | None = None,
    seconds_per_batch: float = 120.0,
) -> EvaluationReport | TranslationReport:
    """Measures WER and CER of a checkpoint on prepared data sets, with 95 % bootstrap intervals.

    Writes `report.json`, the input of `jax-speechlm compare`, and `alignments.txt`: the alignments of all utterances,
    most errors first. For runs trained to translate it measures BLEU and chrF instead.

    Args:
      checkpoint: a finetuned run's directory, or one of its checkpoints/<step> folders.
      sets: names of prepared data sets; "name:split" selects another split than --split.
      split: "test", "dev" or "train".
      decoding: how to decode.
      ensemble: further runs with the same tokenizer and frame rate; probabilities are averaged over all models.
      tune: first choose the weights of the language models on the sets' dev splits. Also done if a language model is
        given without weights.
      normalizer: applied to reference and hypothesis before they are compared.
      data_dir: folder of the prepared data sets.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>-<decoder, language models, ensemble>.
      seconds_per_batch: padded audio per batch, in seconds; affects memory and speed only.
    """
    if tune and not (decoding.lm or decoding.rescore):
        raise DataError("--tune chooses the weights of language models: name one with --lm or --rescore")
    recognizer = open_transcriber(checkpoint, decoding, ensemble)
    tuned_on = ""
    if isinstance(recognizer, Recognizer) and recognizer.decoder is not None and (tune or decoding.untuned):
        names = tuple(dict.fromkeys(name.partition(":")[0] for name in sets))
        dev = EvaluationSpeech(recognizer, names, "dev", data_dir, seconds_per_batch)
        references = dev.index.column("text").to_pylist()
        decoder = tune_weights(recognizer.decoder, recognizer.posteriors(dev.batches()), references, normalizer)
        recognizer = dataclasses.replace(recognizer, decoder=decoder)
        tuned_on = f", weights tuned on dev of {', '.join(names)}"
    speech = EvaluationSpeech(recognizer, sets, split, data_dir, seconds_per_batch)
    measure = translation.evaluate if recognizer.task == "translate" else reports.evaluate
    utterances = speech.utterances(recognizer.recognize(speech.batches()))
    report = measure(utterances, normalizer, decoder=recognizer.decoding_description + tuned_on)
    helped = "+".join((decoding.name, *(f"with-{run.name}" for run in ensemble)))
    out = as_path(out or checkpoint / "eval" / "-".join(("+".join(sets), split, helped)))
    report.save(out)
    console = Console(highlight=False)
    console.print(report.table())
    console.print(f"decoder: {report.decoder}", markup=False, soft_wrap=True)
    console.print(f"{recognizer.checkpoint} on {', '.join(sets)} {split}; {out / 'report.json'}")
    return report


def compare_reports(first: Positional[Path], second: Positional[Path]) -> None:
    """Compares two evaluations of the same utterances by paired bootstrap.

    Args:
      first: a report.json of `jax-speechlm eval`.
      second: another; the difference is second minus first, so a negative value favours the second.
    """
    print(reports.compare(EvaluationReport.load(as_path(first)), EvaluationReport.load(as_path(second))))
