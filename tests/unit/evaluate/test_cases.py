"""Cases: files of them, and those that are made."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from pyheadkv.calibrate import phrases as calibration
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.benchmarks import load_cases
from pyheadkv.evaluate.cases import Case, write_cases
from pyheadkv.evaluate.tasks import GROUPS, TASKS, Prose, Sizes, make_cases, parse_tasks
from pyheadkv.evaluate.tasks import phrases as own
from pyheadkv.files.plain_text import TextSource

SIZES = Sizes(lambda text: len(re.findall(r"\w+|[^\w\s]", text)), 10)
ROW = {
    "id": "a",
    "task": "t",
    "context": "Long.",
    "question": "Which?",
    "answers": ["x"],
    "metric": "all_substr",
    "max_new_tokens": 4,
}


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_development_sets_load_as_they_are(shared: Path) -> None:
    for name, n in (("needles", 84), ("documents", 30), ("babilong", 28)):
        cases = load_cases(str(shared / "data" / f"{name}.jsonl"))
        assert len(cases) == n
        for case in cases:
            assert case.message.startswith(case.document()) and case.question in case.message
            assert case.question not in case.document() and case.context in case.document()


def test_cases_written_are_read_again(tmp_path: Path) -> None:
    cases = [case for task in TASKS for case in make_cases(task, 2, 400, 0, Prose(), SIZES)]
    write_cases(tmp_path / "c.jsonl", cases)
    assert load_cases(str(tmp_path / "c.jsonl")) == cases


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metric": "bleu"}, "unknown metric 'bleu', known are all_substr"),
        ({"answers": []}, "at least one"),
        ({"answers": [3]}, "answers must be strings"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"id": None}, "id is missing"),
        ({"context": 3}, "context is 3, expected str"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = write(tmp_path / "c.jsonl", ROW, ROW | {"id": "b"} | change)
    with pytest.raises(EvaluationError, match=rf"c\.jsonl, row 2 .*{words}"):
        load_cases(str(path))


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="row 2: id 'a' is there twice"):
        load_cases(str(write(tmp_path / "twice", ROW, ROW)))
    with pytest.raises(EvaluationError, match="none is empty"):
        load_cases(str(write(tmp_path / "none")))
    with pytest.raises(EvaluationError, match="cannot be read"):
        load_cases(str(tmp_path / "missing"))
    (tmp_path / "text").write_text("hello\n")
    with pytest.raises(EvaluationError, match="text is no list of JSON objects: it begins with 'hello'"):
        load_cases(str(tmp_path / "text"))


def test_what_begins_as_no_json_is_not_read_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless").write_text("y\n" * 10**5)
    monkeypatch.setattr(TextSource, "read", None)
    with pytest.raises(EvaluationError, match=r"endless is no list of JSON objects: it begins with 'y'$"):
        load_cases(str(tmp_path / "endless"))


def test_question_cannot_come_after_a_prompt_without_its_context() -> None:
    case = Case("a", "t", "t", "Long.", "Which?", ("x",), "all_substr", 4)
    assert case.message == "Long.\n\nWhich?" and case.document() == "Long."
    with pytest.raises(EvaluationError, match="case a cannot be asked after its text"):
        Case("a", "t", "t", "Long.", "Which?", ("x",), "all_substr", 4, prompt="Short. Which?").document()


@pytest.mark.parametrize("task", [task for task, draw in TASKS.items() if draw])
def test_answers_stand_in_the_text_once_and_are_asked_for(task: str) -> None:
    cases = make_cases(task, 12, 500, 3, Prose(), SIZES)
    assert len({case.context for case in cases}) == 12
    assert len({case.kind for case in cases}) >= (1 if task == "tracking" else 3)
    for case in cases:
        assert all(case.context.count(answer) >= 1 for answer in case.answers)
        assert not any(answer in case.question + case.answer_prefix for answer in case.answers)
        assert 420 <= SIZES.count(case.message + case.answer_prefix) + SIZES.n_frame <= 500
        assert "{" not in case.message + case.answer_prefix and all(0 <= depth < 1 for depth in case.depths)


def test_numbers_of_other_keys_are_no_answers() -> None:
    for case in make_cases("multikey", 10, 500, 0, Prose(), SIZES):
        numbers = re.findall(r"\d{7}", case.context)
        assert len(numbers) == 5 and numbers.count(case.answers[0]) == 1
        sentence = next(s for s in re.split(r"(?<=[.]) |\n\n", case.context) if case.answers[0] in s)
        key = re.search(r"the (\w+ \w+)", case.question.partition("alarm of ")[2] or case.question)
        assert key and key[1].split()[-1] in sentence


def test_chain_of_drawers() -> None:
    for case in make_cases("tracking", 6, 500, 0, Prose(), SIZES):
        number = re.findall(r"\d{5}", case.question)[0]
        holds = dict(re.findall(r"Drawer (\w+) holds (\d+)\.", case.context))
        same = re.findall(r"Drawer (\w+) holds the same as drawer (\w+)\.", case.context)
        for _ in same:
            holds |= {after: holds[before] for after, before in same if before in holds}
        assert {drawer for drawer, n in holds.items() if n == number} == set(case.answers)
        assert len(holds) == 6


def test_reasoning_needs_both_places() -> None:
    for case in make_cases("reasoning", 6, 500, 0, Prose(), SIZES):
        who = next(name for name in own.NAMES if name in case.question)
        said = next(fact for fact, _ in own.TRAITS if fact.format(who=who) in case.context)
        someone = dict(own.TRAITS)[said]
        assert re.search(rf"{someone} [^.]*{case.answers[0]}\.", case.context)
        assert who not in case.context.replace(said.format(who=who), "")
        assert len(re.findall(r"\d{5}", case.context)) == 2


def test_cases_are_drawn_again_alike() -> None:
    first = make_cases("single", 3, 400, 7, Prose(), SIZES)
    assert make_cases("single", 5, 400, 7, Prose(), SIZES)[:3] == first
    assert make_cases("single", 3, 400, 8, Prose(), SIZES) != first


def test_open_cases_leave_the_whole_answer_to_the_model() -> None:
    assert all(case.answer_prefix for case in make_cases("single", 5, 400, 0, Prose(), SIZES))
    assert not any(case.answer_prefix for case in make_cases("open", 5, 400, 0, Prose(), SIZES))


def test_prose_of_a_file_stays_in_its_order(tmp_path: Path) -> None:
    text = "\n\n".join(
        f"Paragraph {'abcdefghijklmnopqrstuvwxyz'[i]} has\nits words." + " And more." * 20 for i in range(20)
    )
    (tmp_path / "t.txt").write_text(text)
    prose = Prose(tmp_path / "t.txt")
    (case,) = make_cases("kl", 1, 1500, 0, prose, SIZES)
    letters = re.findall(r"Paragraph (\w) has its", case.context)
    start = ord(letters[0]) - ord("a")
    assert letters == [chr(ord("a") + (start + i) % 20) for i in range(len(letters))] and len(letters) > 20
    assert SIZES.count(case.context) >= 1500 + case.max_new_tokens
    assert prose.mark and not Prose().mark
    (tmp_path / "t.txt").write_bytes(text.replace("\n", "\r\n").encode("utf-16"))
    assert Prose(tmp_path / "t.txt").mark == prose.mark
    (tmp_path / "t.txt").write_bytes(b"a\0")
    with pytest.raises(EvaluationError, match=r"t.txt is not text: it has a NUL byte at offset 1"):
        Prose(tmp_path / "t.txt")
    (tmp_path / "short.txt").write_text("Hello.")
    with pytest.raises(EvaluationError, match="has 6 characters, at least 2000"):
        Prose(tmp_path / "short.txt")


def test_no_room() -> None:
    with pytest.raises(EvaluationError, match="task multikey does not fit into 60 tokens, it needs"):
        make_cases("multikey", 1, 60, 0, Prose(), SIZES)


def test_task_names() -> None:
    assert parse_tasks("kl, needles,single") == ("kl", *GROUPS["needles"])
    assert parse_tasks("all") == tuple(TASKS)
    with pytest.raises(EvaluationError, match="unknown task 'x', known are needles, all, single"):
        parse_tasks("kl,x")


def test_sentences_differ_from_those_of_calibration() -> None:
    """Neither their words at the beginning, nor names, nor questions: what is measured must not be what was learned."""
    learned = [pattern for patterns in calibration.COPY.values() for pattern in patterns]
    for form in own.FORMS:
        assert form.sentence not in {pattern.sentence for pattern in learned}
        assert form.question not in {pattern.question for pattern in learned}
    assert not set(own.NAMES) & set(calibration.PEOPLE)
    assert not {fact for fact, _ in own.TRAITS} & {relation.fact for relation in calibration.RELATIONS}
