"""Prose, needles and pages: every answer stands in its page once, and what is drawn is drawn from the seed alone."""

from __future__ import annotations

import itertools
import json
import random
import re
from pathlib import Path

import pytest

from pyheadkv.calibrate import phrases
from pyheadkv.calibrate.haystack import paragraphs, sentences, shuffled
from pyheadkv.calibrate.needles import COPY_KINDS, KINDS, REASONING, Supply, make_needle
from pyheadkv.calibrate.pages import NEEDLES, Page, make_page, n_questions
from pyheadkv.calibrate.reconstruction import make_excerpts

SEEDS = range(40)
PROSE = "\n\n".join(paragraphs())


def count_words(text: str) -> int:
    return len(text.split())


def page_of(seed: int, n_words: int = 600) -> Page:
    return make_page(random.Random(seed), n_words, count_words)


def test_prose_is_long_plain_and_without_names_or_numbers() -> None:
    assert len(paragraphs()) >= 40 and count_words(PROSE) > 5500
    assert all(100 <= count_words(paragraph) <= 200 for paragraph in paragraphs())
    assert len(set(paragraphs())) == len(paragraphs())
    assert PROSE.isascii() and not re.search(r"\d", PROSE)
    assert not set(re.findall(r"\w+", PROSE)) & set(phrases.PEOPLE)


def test_sentences_give_their_paragraph_back() -> None:
    for paragraph in paragraphs():
        assert " ".join(sentences(paragraph)) == paragraph
        assert len(sentences(paragraph)) >= 4


def test_every_round_of_prose_has_all_paragraphs_in_another_order() -> None:
    n = len(paragraphs())
    rounds = list(itertools.islice(shuffled(random.Random(5)), 2 * n))
    assert sorted(rounds[:n]) == sorted(rounds[n:]) == sorted(paragraphs())
    assert rounds[:n] != rounds[n:]
    assert rounds == list(itertools.islice(shuffled(random.Random(5)), 2 * n))


def test_no_value_is_a_part_of_anything_else() -> None:
    patterns = [part for kind in phrases.COPY.values() for p in kind for part in (p.sentence, p.question, p.prefix)]
    patterns += [trait for relation in phrases.RELATIONS for trait in relation.values]
    patterns += [part for thing in phrases.THINGS for part in (thing.sentence, thing.question, thing.prefix)]
    values = [*phrases.WORDS, *(value for kind in phrases.COPY.values() for p in kind for value in p.values)]
    values += [f"{adjective} {noun}" for adjective in phrases.ADJECTIVES for noun in phrases.NOUNS]
    for value in values:
        others = [*patterns, *(other for other in values if other != value), PROSE]
        assert not any(value in other for other in others), value


@pytest.mark.parametrize("seed", SEEDS)
def test_each_answer_stands_in_its_page_once(seed: int) -> None:
    page = page_of(seed)
    for question in page.questions:
        assert page.text.count(question.answer) == 1, question
        assert question.answer not in question.text + question.prefix
        assert question.text.endswith("?") and "{" not in question.text + question.prefix
    for question in page.questions:
        is_reasoning = question.kind == REASONING
        assert (question.wrong is not None) == is_reasoning == bool(question.facts)
        if question.wrong is not None:
            assert page.text.count(question.wrong) == 1
            assert all(page.text.count(fact) == 1 for fact in question.facts)


def test_no_value_of_a_page_is_in_another() -> None:
    supply = Supply(random.Random(0))
    values = [supply.digits(2, 4) for _ in range(50)] + [supply.word() for _ in range(60)]
    assert not any(one in other for one, other in itertools.permutations(values, 2))
    people = [supply.person() for _ in phrases.PEOPLE]
    assert len(set(people)) == len(people)


@pytest.mark.parametrize("seed", SEEDS)
def test_reasoning_is_asked_both_ways_and_needs_the_facts(seed: int) -> None:
    needle = make_needle(REASONING, Supply(random.Random(seed)))
    one, other = needle.questions
    assert (one.answer, one.wrong) == (other.wrong, other.answer)
    assert one.facts == other.facts
    # the sentence of an answer says who has it by the trait alone: the name leads there only through the facts
    text = " ".join(needle.parts)
    for question, fact in zip(needle.questions, one.facts, strict=True):
        name = fact.split()[0]
        assert name in question.text and name in question.prefix
        assert re.findall(rf"[^.]*{name}[^.]*\.", text) == [next(s for s in re.findall(r"[^.]+\.", text) if name in s)]
        trait = re.split(r" a | the | from ", fact.rstrip("."))[-1].removesuffix(" scarf")
        [answer] = [s for s in re.findall(r"[^.]+\.", text) if question.answer in s]
        assert trait in answer and name not in answer


def test_order_of_facts_and_answers_and_their_places_vary() -> None:
    needles = [make_needle(REASONING, Supply(random.Random(seed))) for seed in SEEDS]
    assert {len(needle.parts) for needle in needles} == {1, 2}
    texts = [(" ".join(needle.parts), needle.questions) for needle in needles]
    first = [text.find(qs[0].answer) < text.find(qs[1].answer) for text, qs in texts]
    facts_first = [text.find(qs[0].facts[0]) < text.find(qs[0].answer) for text, qs in texts]
    assert len(set(first)) == len(set(facts_first)) == 2


@pytest.mark.parametrize("kind", COPY_KINDS)
def test_kinds_of_values(kind: str) -> None:
    answers = [make_needle(kind, Supply(random.Random(seed))).questions[0].answer for seed in range(200)]
    shape = {
        "digits": r"[1-9]{5,8}",
        "words": r"[a-z]+( [a-z]+)?",
        "codes": r"(?=.*\d)(?=.*[A-Z])[A-Z2-9]{3}-?[A-Z2-9]{2,4}",
        "facts": r"[A-Za-z ]{10,}",
    }[kind]
    assert all(re.fullmatch(shape, answer) for answer in answers)
    assert len(set(answers)) > 15


def test_page_is_of_the_length_asked_for_and_of_its_seed() -> None:
    for n_words in (300, 600, 9000):  # the last is longer than all prose
        assert n_words - 70 < count_words(page_of(1, n_words).text) <= n_words
    assert page_of(1) == page_of(1) != page_of(2)
    assert sorted({question.kind for question in page_of(1).questions}) == sorted(KINDS)
    assert len(page_of(1).questions) == n_questions() == len(NEEDLES) + NEEDLES.count(REASONING)


def test_needles_alone_where_there_is_no_room_for_prose() -> None:
    page = page_of(3, 0)
    assert all(question.answer in page.text for question in page.questions)
    assert not any(sentence in page.text for sentence in sentences(paragraphs()[0]))


def test_depths_are_spread_over_the_page() -> None:
    depths = [
        page.text.find(question.answer) / len(page.text)
        for page in map(page_of, SEEDS)
        for question in page.questions
        if question.kind == "digits"
    ]
    tenths = {int(10 * depth) for depth in depths}
    assert tenths == set(range(10))


def test_excerpts_share_no_sentence() -> None:
    excerpts = make_excerpts(0, 3, 500, count_words)
    taken = [{sentence for paragraph in text.split("\n\n") for sentence in sentences(paragraph)} for text in excerpts]
    assert not taken[0] & taken[1] and not taken[1] & taken[2] and not taken[0] & taken[2]
    assert all(430 < count_words(text) <= 500 for text in excerpts)
    assert excerpts == make_excerpts(0, 3, 500, count_words) != make_excerpts(1, 3, 500, count_words)


def test_sentences_are_others_than_those_of_the_development_data(shared: Path) -> None:
    """What is measured with them must not have been calibrated on."""
    rows = [json.loads(line) for line in (shared / "data" / "needles.jsonl").read_text().splitlines()]
    theirs = " ".join(f"{row['question']} {row.get('answer_prefix', '')}" for row in rows).lower()
    patterns = [p.sentence for kind in phrases.COPY.values() for p in kind] + [t.sentence for t in phrases.THINGS]
    for pattern in patterns:
        words = re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", pattern.lower()))
        for i in range(len(words) - 3):
            assert " ".join(words[i : i + 4]) not in theirs
    assert "access number" not in " ".join(patterns)
