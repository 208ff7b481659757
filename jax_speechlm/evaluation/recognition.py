"""Evaluates recognizers and translators on prepared data sets."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int16
from pydantic import NonNegativeInt
from tyro.conf import OmitArgPrefixes

from data_pipelines.batching.speech import Batches
from data_pipelines.core.errors import DataError
from data_pipelines.core.paths import as_path
from data_pipelines.storage import index as indexes
from jax_speechlm.core.energy import EnergyMeter
from jax_speechlm.core.errors import CheckpointError
from jax_speechlm.evaluation import base, translation
from jax_speechlm.evaluation import report as reports
from jax_speechlm.evaluation.batches import item_ids, speech_batches
from jax_speechlm.evaluation.normalizers import NormalizerName
from jax_speechlm.evaluation.recognition_page import as_html
from jax_speechlm.evaluation.report import EvaluationReport, Utterance
from jax_speechlm.evaluation.streaming import Streaming, StreamingReport, evaluate_streams, times_of_words
from jax_speechlm.evaluation.translation import TranslationReport
from jax_speechlm.evaluation.tuning import tune_weights
from jax_speechlm.inference.asr.aed import AttentionRecognizer
from jax_speechlm.inference.asr.base import Transcriber
from jax_speechlm.inference.asr.ctc import Recognizer
from jax_speechlm.inference.asr.decoder import Decoding
from jax_speechlm.inference.asr.transducer import TransducerRecognizer
from jax_speechlm.inference.explain import MAX_SECONDS, Explainer, Explanation
from jax_speechlm.inference.load import open_transcriber


class EvaluationSpeech:
    """One split of prepared sets, or its first utterances, `limit` many, batched for a recognizer."""

    def __init__(
        self,
        recognizer: Transcriber,
        sets: tuple[str, ...],
        split: str,
        data_dir: Path,
        seconds_per_batch: float,
        limit: int | None = None,
    ):
        self.sets, self._references = sets, "translation" if recognizer.task == "translate" else "text"
        self.index = indexes.read_sets(data_dir, sets, split, recognizer.experiment.sample_rate)
        self._batching, self._limit = (recognizer.experiment.frame_samples, seconds_per_batch), limit

    def batches(self) -> Batches:
        """Reads every utterance once, in batches of similar length."""
        return speech_batches(self.index, *self._batching, batch_multiple=8, limit=self._limit)

    def recordings(self) -> dict[int, Int16[np.ndarray, " samples"]]:
        """Returns the samples of every utterance by row, in the order of the rows."""
        recordings = {}
        for batch in self.batches():
            rows = zip(batch["example_id"].tolist(), batch["audio"], batch["audio_length"].tolist(), strict=True)
            recordings |= {row: samples[:length].copy() for row, samples, length in rows if row >= 0}
        return dict(sorted(recordings.items()))

    def utterances(self, texts: Mapping[int, str]) -> list[Utterance]:
        """Returns every utterance with its reference and its hypothesis (`texts`, by row), in the order of the sets."""
        index = self.index
        names = self._references, "speaker", "language"
        references, speakers, languages = (index.column(name).to_pylist() for name in names)
        return [
            Utterance(
                id=name,
                reference=references[row],
                hypothesis=texts[row],
                speaker=speakers[row] or None,
                duration=index.num_samples[row] / index.sample_rate,
                language=languages[row] if self._references == "text" else "en",
            )
            for row, name in enumerate(item_ids(index)[: self._limit])
        ]


def evaluate_run(
    checkpoint: base.Checkpoint,
    sets: base.Sets,
    split: base.Split = "test",
    decoding: OmitArgPrefixes[Decoding] = Decoding(),  # noqa: B008  frozen
    ensemble: tuple[Path, ...] = (),
    tune: bool = False,
    streaming: OmitArgPrefixes[Streaming] = Streaming(),  # noqa: B008  frozen
    normalizer: NormalizerName = "basic",
    explain: NonNegativeInt = 0,
    data_dir: base.DataDir = Path("data"),
    out: Path | None = None,
    seconds_per_batch: base.BatchSeconds = 120.0,
    adapter: base.Adapter = None,
    limit: base.Limit = None,
) -> EvaluationReport | TranslationReport | StreamingReport:
    """Measures WER and CER of a checkpoint on prepared data sets, with 95 % bootstrap intervals.

    Writes `report.json`, the input of `jax-speechlm compare`, and `alignments.txt`: the alignments of all utterances,
    most errors first. For runs trained to translate it measures BLEU and chrF instead.

    Args:
      decoding: how to decode.
      ensemble: further runs with the same tokenizer and frame rate; probabilities are averaged over all models.
      tune: first choose the weights of the language models on the sets' dev splits. Also done if a language model is
        given without weights.
      normalizer: applied to reference and hypothesis before they are compared.
      explain: write `index.html` too, a page that shows of this number of utterances, those with the most errors, which
        times and frequencies each word depends on (as `jax-speechlm explain`); for runs trained by ctc.
      out: folder of the report; by default <checkpoint>/eval/<sets>-<split>-<decoder, language models, ensemble>.
    """
    if tune and not (decoding.lm or decoding.rescore):
        raise DataError("--tune chooses the weights of language models: name one with --lm or --rescore")
    energy = EnergyMeter()
    recognizer = open_transcriber(checkpoint, decoding, ensemble, adapter)
    if explain and (not isinstance(recognizer, Recognizer) or streaming.stream):
        raise DataError("--explain draws the words of CTC recognizers, without --stream: leave one of them out")
    tuned_on = ""
    searches = isinstance(recognizer, Recognizer | TransducerRecognizer | AttentionRecognizer)
    decoder = recognizer.decoder if searches else None
    if decoder is not None and (tune or decoding.untuned):
        names = tuple(dict.fromkeys(name.partition(":")[0] for name in sets))
        dev = EvaluationSpeech(recognizer, names, "dev", data_dir, seconds_per_batch)
        references = dev.index.column("text").to_pylist()
        decoder = tune_weights(decoder, recognizer.search_inputs(dev.batches()), references, normalizer)
        recognizer = dataclasses.replace(recognizer, decoder=decoder)
        tuned_on = f", weights tuned on dev of {', '.join(names)}"
    speech = EvaluationSpeech(recognizer, sets, split, data_dir, seconds_per_batch, limit)
    first = () if limit is None else (f"first-{limit}",)
    others = [folder.name for folder in (*ensemble, *([adapter] if adapter else ()))]
    if streaming.stream:
        report = _evaluate_streams(recognizer, speech, streaming, normalizer)
        report = report.replace(checkpoint=str(recognizer.checkpoint), sets=sets, split=split)
        used = "+with-".join(("streams", *others)), *first
        return report.publish(out or base.report_folder(checkpoint, sets, split, *used), str(recognizer.checkpoint))
    measure = translation.evaluate if recognizer.task == "translate" else reports.evaluate
    utterances = speech.utterances(recognizer.recognize(speech.batches()))
    report = measure(utterances, normalizer, decoder=recognizer.decoding_description + tuned_on)
    used = "+with-".join((decoding.name, *others)), *first
    part = f", the first {len(utterances)} utterances" if limit else ""
    source = f"decoder: {report.decoder}\n{recognizer.checkpoint} on {', '.join(sets)} {split}{part}"
    folder = as_path(out or base.report_folder(checkpoint, sets, split, *used))
    report = report.publish(folder, source)
    if line := energy.describe(sum(utterance.duration or 0 for utterance in utterances) / 3600):
        print(line)
    if explain:
        page = as_html(report, f"{', '.join(sets)} {split}", _explanations(recognizer, speech, report, explain))
        (folder / "index.html").write_text(page, encoding="utf-8")
        print(folder / "index.html")
    return report


def _explanations(
    recognizer: Recognizer, speech: EvaluationSpeech, report: EvaluationReport, num: int
) -> dict[int, Explanation]:
    """Explains the utterances with the most errors, of those that are neither too long nor too short."""
    longest = MAX_SECONDS * speech.index.sample_rate
    fits = [
        place
        for place, _ in report.most_errors()
        if speech.index.num_samples[place] <= longest and report.utterances[place].hypothesis
    ]
    recordings, explainer = speech.recordings(), Explainer(recognizer)
    return {place: explainer.explain(recordings[place]) for place in fits[:num]}


def _evaluate_streams(
    recognizer: Transcriber, speech: EvaluationSpeech, streaming: Streaming, normalizer: NormalizerName
) -> StreamingReport:
    """Measures streams of the utterances of a split, which are all held in memory."""
    if not isinstance(recognizer, Recognizer | TransducerRecognizer):
        raise DataError(
            "--stream measures recognizers that were trained to stream, by ctc or transducer (docs/guide.md)"
        )
    full_context = speech.utterances(recognizer.recognize(speech.batches()))
    return evaluate_streams(
        recognizer,
        speech.recordings(),
        full_context,
        streaming,
        normalizer,
        _word_times(recognizer, speech, full_context),
    )


def _word_times(
    recognizer: Recognizer | TransducerRecognizer, speech: EvaluationSpeech, utterances: list[Utterance]
) -> dict[int, list[tuple[float, float]]]:
    """Aligns the references with the run's CTC head; returns no times for a transducer that has none."""
    try:
        aligner = recognizer if isinstance(recognizer, Recognizer) else Recognizer.load(recognizer.checkpoint)
    except CheckpointError:
        return {}
    return times_of_words(aligner, aligner.posteriors(speech.batches()), utterances)
