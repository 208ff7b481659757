"""Passages, their index by words and meaning, and answers from them."""

import itertools
import json
import math
import shutil
from collections import Counter

import numpy as np
import pytest

from data_pipelines.core.errors import DataError
from jax_speechlm.apps.question_answering.index import PassageIndex, fused, terms, unit_vectors
from jax_speechlm.apps.question_answering.passages import MOST_WORDS, Passage, of_files, passages_of
from jax_speechlm.apps.question_answering.reading import PassageAnswers
from jax_speechlm.inference.text_embed import TextEmbedder
from jax_speechlm.inference.text_tokens import Reader
from jax_speechlm.interop.hf.import_ import import_run
from tests.interop.foreign_folders import SPECIAL, write_text_model

TEXTS = (
    "Quicksort is a sorting algorithm. It was invented by Tony Hoare in 1959.",
    "A worm is a program that spreads itself over a network. The first worm was released in 1988.",
    "Merge sort is a sorting algorithm that was invented by John von Neumann.",
    "The cat sat on the mat. The mat was blue.",
)
PASSAGES = [Passage(text, f"notes.txt:{number}") for number, text in enumerate(TEXTS, 1)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A random text encoder and a random reader."""
    folder = tmp_path_factory.mktemp("runs")
    for name, architecture in (("encoder", "BertModel"), ("reader", "BertForQuestionAnswering")):
        write_text_model(folder / f"their-{name}", "bert", architecture=architecture, **SPECIAL["bert"])
        import_run(folder / f"their-{name}", folder / name)
    return folder


@pytest.fixture(scope="module")
def encoder(runs):
    return TextEmbedder.load(runs / "encoder")


def test_passages_are_whole_sentences_of_at_most_so_many_words():
    sentences = [f"Word{number} " + "word " * (number % 37) + "end." for number in range(60)]
    text = "\n".join(sentences)
    passages = list(passages_of(text, "a"))
    assert " ".join(passage.text for passage in passages) == " ".join(text.split())
    for passage, following in itertools.pairwise(passages):
        first = following.text.partition("end.")[0].split()
        assert len(passage.text.split()) <= MOST_WORDS < len(passage.text.split()) + len(first) + 1
        assert passage.text.endswith("end.")
    long = " ".join(f"w{number}" for number in range(250))
    assert [len(passage.text.split()) for passage in passages_of(long, "a")] == [100, 100, 50]
    assert not list(passages_of(" \n ", "a"))


def test_passages_of_files_name_their_places(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("One line\nof two.\n\nAnother. Paragraph.\n")
    (tmp_path / "rows.jsonl").write_text('{"id": "q", "text": "A row."}\n{"text": 3}\n')
    passages = list(of_files([str(tmp_path / "*.txt"), str(tmp_path / "rows.jsonl")], "utf-8"))
    assert passages == [
        Passage("One line of two.", "notes.txt:1"),
        Passage("Another. Paragraph.", "notes.txt:4"),
        Passage("A row.", "q"),
    ]
    assert "rows.jsonl:2" in capsys.readouterr().err


def test_scores_of_words_are_those_of_the_formula():
    """Lucene's BM25 with k1 1.5 and b 0.75 (Kamphuis et al. 2020)."""
    index = PassageIndex.build(PASSAGES)
    documents = [terms(text, "en") for text in TEXTS]
    mean = sum(map(len, documents)) / len(documents)
    for question in ("who invented the sorting algorithm?", "the first worm of 1988", "nothing here is known"):
        expected = []
        for document in documents:
            counts, score = Counter(document), 0.0
            for term in terms(question, "en"):
                holding = sum(term in other for other in documents)
                idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
                length = 1.5 * (1 - 0.75 + 0.75 * len(document) / mean)
                score += idf * counts[term] / (counts[term] + length)
            expected.append(score)
        np.testing.assert_allclose(index.word_scores(question), expected, rtol=1e-5)


def test_rankings_are_fused_by_hand():
    # 1: 1/62 + 1/61, 0: 1/61 + 1/63, 2: 1/62, 3: 1/63; of equal ones the lower number
    assert fused([[0, 1, 3], [1, 2, 0]]) == [1, 0, 2, 3]
    assert fused([[2, 1], [1, 2]]) == [1, 2]
    assert fused([[], []]) == []


def test_a_question_finds_its_passage_and_the_answer_cites_it():
    answers = PassageAnswers(PassageIndex.build(PASSAGES))
    reply = answers.ask("When was the first worm released?")
    assert reply.answer == "The first worm was released in 1988."
    assert (reply.source, reply.passage) == ("notes.txt:2", TEXTS[1])
    assert reply.confidence == pytest.approx(1.0)
    assert answers.ask("Who invented quicksort?").source == "notes.txt:1"
    assert answers.ask("Who invented quicksort?") == answers.ask("who invented quicksort")


@pytest.mark.parametrize(
    "question", ["", " ", "?!", "who is it", "How heavy is the moon?", "Sorting the moon of Jupiter"]
)
def test_what_is_not_known_is_not_answered(question):
    reply = PassageAnswers(PassageIndex.build(PASSAGES)).ask(question)
    assert (reply.answer, reply.say, reply.source) == (None, "I do not know.", "")


def test_the_threshold_decides(runs):
    index = PassageIndex.build(PASSAGES)
    question = "Who invented the sorting of apples?"
    confidence = PassageAnswers(index, threshold=0.0).ask(question).confidence
    assert 0 < confidence < 1
    assert PassageAnswers(index, threshold=confidence).ask(question).answer is not None
    assert PassageAnswers(index, threshold=confidence + 1e-6).ask(question).answer is None


def test_meaning_ranks_beside_words(encoder):
    index = PassageIndex.build(PASSAGES, encoder=encoder)
    question = "the cat of the network"
    cosines = unit_vectors(encoder, TEXTS) @ unit_vectors(encoder, [question])[0]
    np.testing.assert_allclose(index.vectors @ unit_vectors(encoder, [question])[0], cosines, atol=1e-5)
    scores = index.word_scores(question)
    words = sorted((number for number in range(4) if scores[number] > 0), key=lambda number: -scores[number])
    assert index.search(question) == fused([words, np.argsort(-cosines, kind="stable").tolist()])
    shares = [index.coverage(question, text) for text in TEXTS]
    expected = (np.array(shares) + np.clip(cosines, 0, 1)) / 2
    np.testing.assert_allclose(index.similarities(question, TEXTS), expected, atol=1e-5)
    assert index.search("") == []


def test_a_reader_answers_with_a_part_of_a_passage(runs):
    answers = PassageAnswers(PassageIndex.build(PASSAGES), Reader.load(runs / "reader"), threshold=0.0)
    reply = answers.ask("Who invented the algorithm for sorting?")
    assert reply.answer in reply.passage
    assert reply.passage in (TEXTS[0], TEXTS[2])  # which share a word with the question
    assert reply.source == f"notes.txt:{TEXTS.index(reply.passage) + 1}"
    spans = answers.reader.answer("Who invented the algorithm for sorting?", [TEXTS[0], TEXTS[2]])
    assert reply.confidence == pytest.approx(max(span.probability for span in spans))
    assert answers.ask("?").answer is None
    strict = PassageAnswers(answers.index, answers.reader, threshold=1.0)
    assert strict.ask("Who invented the algorithm for sorting?").answer is None


def test_an_index_is_the_same_after_it_was_stored(tmp_path, runs, encoder):
    for folder, made in ((tmp_path / "words", None), (tmp_path / "meaning", encoder)):
        index = PassageIndex.build(PASSAGES, encoder=made)
        index.save(folder)
        index.save(folder)  # in its own place
        read = PassageIndex.open(folder)
        assert read.passages == PASSAGES
        for question in ("who invented sorting?", "the mat"):
            assert read.search(question) == index.search(question)
            assert PassageAnswers(read).ask(question) == PassageAnswers(index).ask(question)
    assert not [file for file in tmp_path.rglob("*") if file.suffix in (".pkl", ".pickle")]
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    before = {file: file.read_bytes() for file in files}
    PassageIndex.build(PASSAGES, encoder=encoder).save(tmp_path / "meaning")
    PassageIndex.build(PASSAGES).save(tmp_path / "words")
    assert {file: file.read_bytes() for file in files} == before


def test_an_encoder_may_move_and_another_one_is_noticed(tmp_path, runs, encoder):
    PassageIndex.build(PASSAGES, encoder=encoder).save(tmp_path / "index")
    shutil.copytree(runs / "encoder", tmp_path / "moved")
    assert PassageIndex.open(tmp_path / "index", tmp_path / "moved").search("cat")
    write_text_model(tmp_path / "theirs", "distilbert", architecture="DistilBertModel", **SPECIAL["distilbert"])
    import_run(tmp_path / "theirs", tmp_path / "another")
    with pytest.raises(DataError, match="another encoder"):
        PassageIndex.open(tmp_path / "index", tmp_path / "another")
    PassageIndex.build(PASSAGES).save(tmp_path / "words")
    with pytest.raises(DataError, match="without an encoder"):
        PassageIndex.open(tmp_path / "words", runs / "encoder")


def test_damaged_folders_are_errors_that_name_them(tmp_path, encoder):
    good = tmp_path / "good"
    PassageIndex.build(PASSAGES, encoder=encoder).save(good)
    files = [file.relative_to(good) for file in sorted(good.rglob("*")) if file.is_file()]
    assert len(files) >= 7
    for number, name in enumerate(files):
        for kind in ("missing", "cut", "changed"):
            folder = tmp_path / f"{number}-{kind}"
            shutil.copytree(good, folder)
            content = (folder / name).read_bytes()
            if kind == "missing":
                (folder / name).unlink()
            else:
                middle = len(content) // 2
                changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
                (folder / name).write_bytes(content[:middle] if kind == "cut" else changed)
            if (kind, name.name) == ("changed", "index.json"):
                continue  # may be another place of the encoder
            with pytest.raises(DataError, match=folder.name) as caught:
                PassageIndex.open(folder)
            assert "index-text" in str(caught.value)
    for content in (
        "[]",
        '{"version": 2, "sha256": {}}',
        '{"version": 1, "sha256": {}, "language": "en", "encoder": null}',
    ):
        folder = tmp_path / f"other-{len(content)}"
        folder.mkdir()
        (folder / "index.json").write_text(content)
        with pytest.raises(DataError, match="index-text"):
            PassageIndex.open(folder)
    with pytest.raises(DataError, match=r"index\.json is missing"):
        PassageIndex.open(tmp_path / "nowhere")


def test_what_is_there_already_is_kept(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    for place in (tmp_path / "mine", tmp_path / "mine/notes.txt"):
        with pytest.raises(DataError, match="no index of passages"):
            PassageIndex.build(PASSAGES).save(place)
    assert (tmp_path / "mine/notes.txt").read_text() == "mine"


@pytest.mark.parametrize("texts", [[], [""], ["!!!", "..."], ["the of a"]])
def test_nothing_to_find_is_an_error(texts):
    with pytest.raises(DataError, match="no passages"):
        PassageIndex.build([Passage(text, "a") for text in texts])


def test_an_unknown_language_is_an_error():
    with pytest.raises(DataError, match="--language xx"):
        PassageIndex.build(PASSAGES, "xx")
    german = PassageIndex.build([Passage("Die Häuser stehen am Fluss.", "a")], "de")
    assert PassageAnswers(german).ask("Wo ist das Haus am Fluss?").source == "a"


def test_the_description_is_valid_json(tmp_path):
    PassageIndex.build(PASSAGES).save(tmp_path / "index")
    assert json.loads((tmp_path / "index/index.json").read_text())["encoder"] is None
