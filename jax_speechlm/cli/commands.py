"""The commands of `jax-speechlm`: function, summary, example."""

from typing import NamedTuple


class Command(NamedTuple):
    """One command.

    Attributes:
      group: its place in the list of commands, one of `GROUPS`.
      run: its function as "module:name", imported when the command is called.
      summary: one line of help.
      example: command lines that close its help; the list of commands has the first.
      config: the default of --config, for functions of an experiment.
      parses: whether the function takes (argv, prog); otherwise tyro parses the command line into its arguments.
      extra: the extra of the package that the function needs.
    """

    group: str
    run: str
    summary: str
    example: str
    config: str = ""
    parses: bool = False
    extra: str = ""


GROUPS = {
    "data": "Data",
    "train": "Training",
    "use": "Using models",
    "measure": "Measuring",
    "exchange": "Exchange with other software",
    "scale": "Larger machines",
}
"""Headings of the list of commands."""

COMMANDS = {
    "prepare": Command(
        "data",
        "data_pipelines.prepare.job:main",
        "fetch or read speech and write it as a data set",
        "jax-speechlm prepare asterisk-en queen-en\njax-speechlm prepare --manifest my.jsonl",
        parses=True,
    ),
    "train-tokenizer": Command(
        "data",
        "jax_speechlm.cli.tokenizer:train_tokenizer",
        "train a tokenizer of characters, words, phones or SentencePiece on transcripts or text",
        "jax-speechlm train-tokenizer --sets queen-en --kind unigram --vocab-size 500 --out data/unigram-500",
    ),
    "train-ngram": Command(
        "data",
        "jax_speechlm.decoding.lm.train_ngram:train_ngram",
        "estimate an n-gram language model for decoding",
        "jax-speechlm train-ngram --sets text-en asterisk-en --order 4 --unit word --out data/en-4.arpa.gz",
    ),
    "pitch": Command(
        "data",
        "data_pipelines.prepare.pitch:pitch",
        "measure the pitch of prepared speech at every frame, for speech synthesis",
        "jax-speechlm pitch asterisk-en --hop 256",
    ),
    "index-text": Command(
        "data",
        "jax_speechlm.apps.question_answering.run:index_text",
        "index passages of texts by words and, with a text encoder, by meaning, for `ask`",
        "jax-speechlm index-text notes/*.txt --out indexes/notes\n"
        "jax-speechlm index-text --sets foldoc --out indexes/foldoc",
        extra="apps",
    ),
    "units": Command(
        "data",
        "jax_speechlm.cli.units:units",
        "fit speech units (k-means), label data sets with them, report what they are",
        "jax-speechlm units fit --sets queen-en --out data/units/mfcc-100 --num-units 100",
        parses=True,
    ),
    "recipes": Command(
        "train",
        "jax_speechlm.cli.recipes:list_recipes",
        "list the shipped experiments with their results",
        "jax-speechlm recipes",
    ),
    "pretrain": Command(
        "train",
        "jax_speechlm.cli.train:train",
        "train an encoder on audio alone",
        "jax-speechlm pretrain --config demo/pretrain --run-dir runs/pretrain --num-steps 2000",
        config="demo/pretrain",
    ),
    "finetune": Command(
        "train",
        "jax_speechlm.cli.train:train",
        "train on transcripts, from a pretrained encoder or from scratch",
        "jax-speechlm finetune --config demo/finetune --from runs/pretrain --run-dir runs/finetune",
        config="demo/finetune",
    ),
    "lr-range": Command(
        "train",
        "jax_speechlm.cli.tune:lr_range",
        "find learning rates that train, in one short run with a rising rate",
        "jax-speechlm lr-range --config demo/finetune --steps 100",
        config="demo/finetune",
    ),
    "sweep": Command(
        "train",
        "jax_speechlm.cli.tune:sweep",
        "train with many combinations of settings and show the best",
        "jax-speechlm sweep --config demo/finetune --vary optimizer.schedule.peak=1e-4..1e-2:log --out sweeps/peak",
        config="demo/finetune",
        extra="sweep",
    ),
    "self-train": Command(
        "train",
        "jax_speechlm.apps.self_training:self_train",
        "transcribe untranscribed audio, keep what the model is sure of, and train on it",
        "jax-speechlm self-train runs/finetune --sets queen-en --out pseudo --run-dir runs/self",
    ),
    "average": Command(
        "train",
        "jax_speechlm.compression.average:average_runs",
        "average checkpoints of one run, or of several, into one",
        "jax-speechlm average runs/finetune --last 2 --out runs/average\n"
        "jax-speechlm average runs/a runs/b --out runs/soup",
    ),
    "quantize": Command(
        "train",
        "jax_speechlm.compression.quantize:quantize_run",
        "round a trained model's weights to 8 or 4 bits",
        "jax-speechlm quantize runs/finetune --kind int8 --out runs/int8",
    ),
    "transcribe": Command(
        "use",
        "jax_speechlm.cli.transcribe:transcribe_files",
        "turn audio files into text",
        "jax-speechlm transcribe runs/finetune interview.mp3 --format srt",
    ),
    "translate": Command(
        "use",
        "jax_speechlm.cli.transcribe:translate_files",
        "turn audio files of other languages into English text, with a speech-language model",
        "jax-speechlm translate runs/translate interview.mp3",
    ),
    "serve": Command(
        "use",
        "jax_speechlm.serving.run:serve_run",
        "answer requests for transcripts and speech over HTTP, in OpenAI's form, and show a page to try runs on",
        "jax-speechlm serve runs/finetune --port 8000\njax-speechlm serve runs/finetune runs/voice",
        extra="serve",
    ),
    "chat": Command(
        "use",
        "jax_speechlm.apps.dialogue.run:chat",
        "hold a dialogue that a YAML file declares, typed or spoken, here or on a page",
        "jax-speechlm chat coffee\njax-speechlm chat coffee --asr runs/finetune --tts runs/voice --serve",
        extra="apps",
    ),
    "tutor": Command(
        "use",
        "jax_speechlm.apps.tutoring.run:tutor",
        "compare a text read aloud with the text, score short answers, and practise what was missed",
        "jax-speechlm tutor read runs/finetune text.txt reading.wav\njax-speechlm tutor practice Ada --forgot through",
        parses=True,
        extra="apps",
    ),
    "ask": Command(
        "use",
        "jax_speechlm.apps.question_answering.run:ask",
        "answer questions, typed or spoken, from an index of passages or a graph of facts",
        "jax-speechlm ask indexes/foldoc 'Who invented quicksort?'\n"
        "jax-speechlm ask facts.ttl question.wav --asr runs/asr",
        extra="apps",
    ),
    "synthesize": Command(
        "use",
        "jax_speechlm.cli.synthesize:synthesize_texts",
        "say texts with a trained voice: audio files, or the loudspeaker",
        'jax-speechlm synthesize runs/voice "Hello there." --out hello.wav --vocoder runs/vocos',
    ),
    "vocode": Command(
        "use",
        "jax_speechlm.inference.vocode:vocode_file",
        "write what a vocoder makes of the mel spectrogram of a recording",
        "jax-speechlm vocode runs/vocos in.wav --out out.wav",
    ),
    "enhance": Command(
        "use",
        "jax_speechlm.inference.enhance:enhance_files",
        "remove noise and hum from recordings, set their loudness and tempo",
        "jax-speechlm enhance in.wav out.wav --method wiener\njax-speechlm enhance in/ out/ --loudness -23",
    ),
    "classify": Command(
        "use",
        "jax_speechlm.cli.by_task:run",
        "classify audio files or texts, or find entities in texts",
        "jax-speechlm classify runs/digits *.wav\njax-speechlm classify runs/sources 'In the beginning'",
        parses=True,
    ),
    "intent": Command(
        "use",
        "jax_speechlm.inference.intent:understand_files",
        "find intent and slots of recordings of commands, with a model trained on audio without transcripts",
        "jax-speechlm intent runs/coffee order.wav",
    ),
    "commands": Command(
        "use",
        "jax_speechlm.apps.commands.run:recognize_commands",
        "recognise spoken commands by a grammar of intents, with any run that transcribes",
        "jax-speechlm commands order.wav --grammar coffee --asr runs/finetune",
        extra="apps",
    ),
    "answer": Command(
        "use",
        "jax_speechlm.cli.by_task:run",
        "find the answer to a question in text files",
        "jax-speechlm answer runs/squad 'Who wrote it?' book.txt",
        parses=True,
    ),
    "generate": Command(
        "use",
        "jax_speechlm.cli.by_task:run",
        "continue texts, or speech as units, with a language model; answer audio files with a speech-language model",
        'jax-speechlm generate runs/lm "In the beginning" --temperature 0.8 --top-p 0.95',
        parses=True,
    ),
    "embed": Command(
        "use",
        "jax_speechlm.cli.by_task:run",
        "write an encoder's vectors of audio files, one per file or frame, or of texts",
        "jax-speechlm embed runs/pretrain *.wav --out vectors.npz\n"
        "jax-speechlm embed runs/minilm 'a text' --out vectors.npz",
        parses=True,
    ),
    "words": Command(
        "use",
        "jax_speechlm.cli.words:words",
        "find the nearest words, similarities and analogies by vectors of words",
        "jax-speechlm words nearest runs/skip_gram king\njax-speechlm words analogy runs/skip_gram man king woman",
        parses=True,
    ),
    "segment": Command(
        "use",
        "jax_speechlm.inference.segment:segment_files",
        "detect speech in audio files, with a voice activity model",
        "jax-speechlm segment runs/voice meeting.mp3",
    ),
    "align": Command(
        "use",
        "jax_speechlm.cli.by_task:run",
        "find the times of the words of known transcripts, or with a voice the durations of their tokens",
        "jax-speechlm align runs/finetune --sets asterisk-en --format ctm\n"
        "jax-speechlm align runs/voice --sets asterisk-en",
        parses=True,
    ),
    "explain": Command(
        "use",
        "jax_speechlm.inference.explain:explain_files",
        "draw which times and frequencies made a recognizer predict each word",
        "jax-speechlm explain runs/finetune interview.wav --out explained",
    ),
    "eval": Command(
        "measure",
        "jax_speechlm.cli.by_task:run",
        "measure a checkpoint as it was trained for: WER, bits per byte or per second, accuracy, similar words",
        "jax-speechlm eval runs/finetune --sets asterisk-en --split test",
        parses=True,
    ),
    "judge": Command(
        "measure",
        "jax_speechlm.evaluation.judged_folders:judge_folders",
        "measure synthesised speech beside natural speech by independent judges: one table, and a page with the audio",
        "jax-speechlm judge mine=speech/mine --vocoders griffin-lim --sets asterisk-en --whisper whisper-tiny.en",
    ),
    "score-pairs": Command(
        "measure",
        "jax_speechlm.cli.by_task:run",
        "ask a language model which of a minimal pair is the good one: of sentences (BLiMP), or recordings (sWUGGY)",
        "jax-speechlm score-pairs runs/lm blimp/*.jsonl\njax-speechlm score-pairs runs/units lexical/dev",
        parses=True,
    ),
    "few-shot": Command(
        "measure",
        "jax_speechlm.cli.by_task:run",
        "measure a language model by prompts with 0, 1, 2, 4 and 8 solved examples: accuracy of the best candidate",
        "jax-speechlm few-shot runs/lm test.jsonl --train train.jsonl --shots 0 1 4    # question, answer, choices",
        parses=True,
    ),
    "compare": Command(
        "measure",
        "jax_speechlm.evaluation.comparison:compare_reports",
        "paired bootstrap between two evaluations",
        "jax-speechlm compare runs/a/eval/*/report.json runs/b/eval/*/report.json",
    ),
    "fairness": Command(
        "measure",
        "jax_speechlm.evaluation.fairness:measure_fairness",
        "compare error rates between groups of speakers or recordings, and test the largest gap",
        "jax-speechlm fairness runs/finetune/eval/my-test-greedy/report.json --by gender --sets my",
    ),
    "membership": Command(
        "measure",
        "jax_speechlm.evaluation.membership:measure_membership",
        "measure how well a run's loss tells what it was trained on from other utterances or texts",
        "jax-speechlm membership runs/finetune --split dev",
    ),
    "rover": Command(
        "measure",
        "jax_speechlm.evaluation.rover:rover_reports",
        "join the transcripts of several evaluations by a vote on every word",
        "jax-speechlm rover runs/*/eval/asterisk-en-test-greedy/report.json --out runs/rover",
    ),
    "probe": Command(
        "measure",
        "jax_speechlm.evaluation.probing:probe_run",
        "train linear maps of an encoder's frozen layers to speaker, language, words or characters",
        "jax-speechlm probe runs/pretrain --sets fsdd --target text --leave-out speaker",
    ),
    "baseline": Command(
        "measure",
        "jax_speechlm.evaluation.baselines:baseline",
        "train classical classifiers of MFCCs (SVM, nearest neighbours, trees), beside encoders, in one table",
        "jax-speechlm baseline --sets fsdd --target text --leave-out speaker --runs runs/pretrain",
        extra="baselines",
    ),
    "export": Command(
        "exchange",
        "jax_speechlm.cli.export:export",
        "turn a checkpoint into a format that others read, and prove it equal",
        "jax-speechlm export runs/finetune --to hf --out exported/finetune",
        parses=True,
    ),
    "import": Command(
        "exchange",
        "jax_speechlm.interop.hf.import_:import_run",
        "make a run of a folder of Hugging Face's, and prove it equal",
        "jax-speechlm import downloads/qwen3-0.6b --out runs/qwen3",
    ),
    "plan": Command(
        "scale",
        "jax_speechlm.cli.plan:plan",
        "compile a run for accelerators that are not here: what it needs, what it costs, whether it fits",
        "jax-speechlm plan --config librispeech/best_rq_960_v5e16 --topology v5e-16 --price 1.2",
        config="librispeech/best_rq_960_v5e16",
    ),
    "launch": Command(
        "scale",
        "jax_speechlm.cli.launch:launch",
        "start, watch and stop a job on Cloud TPU, GKE, Slurm, SkyPilot's clouds or this machine",
        "jax-speechlm launch gke --job job.json --dry-run -- pretrain --config librispeech/best_rq_960_v5e16",
        parses=True,
    ),
}

OLD_COMMANDS = {"configs": "recipes"}
"""Earlier names of commands, accepted for one version."""
