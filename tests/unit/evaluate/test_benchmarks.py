"""Files in the layouts of known benchmarks: fields, metrics, limits, what is refused. All texts are made here."""

from __future__ import annotations

import json
import os
import threading
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from pyheadkv.errors import EvaluationError, UsageError
from pyheadkv.evaluate.benchmarks import fit_cases, load_cases, rows
from pyheadkv.evaluate.benchmarks.longbench import TASKS
from pyheadkv.evaluate.cases import Case, write_cases
from pyheadkv.evaluate.metrics import score
from pyheadkv.evaluate.tasks import Sizes

LONGBENCH = {
    "input": "Who left?",
    "context": "Ann stayed. Bob left.",
    "answers": ["Bob", "Robert"],
    "length": 5,
    "dataset": "hotpotqa",
    "language": "en",
    "all_classes": None,
    "_id": "x1",
}
LOOGLE_ROW = {
    "context": "Ann stayed. Bob left.",
    "question": "Who left?",
    "answer": "Bob did",
    "evidence": ["Bob left."],
    "title": "T",
    "doc_id": "d1",
    "task": "longdep_qa",
    "id": "q1",
}
RULER = {
    "index": 3,
    "input": "A number is hidden here.\nThe number of the cat is 1234567.\nWhat is the number of the cat?",
    "outputs": ["1234567"],
    "length": 30,
    "answer_prefix": " The number of the cat is",
}
KVPRESS_RULER = {
    "context": "The number of the cat is 1234567.\n",
    "question": "What is the number of the cat?",
    "answer_prefix": "It is",
    "answer": ["1234567"],
    "task": "niah_single_1",
    "max_new_tokens": 12,
}
BABILONG = {"input": "Mary went to the garden. It rained.", "question": "Where is Mary? ", "target": "garden"}


def write(path: Path, *found: object) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return str(path)


def check_parts(case: Case) -> None:
    """Context, question and their order in what the user sends."""
    assert case.context in case.document() and case.question not in case.document()
    assert case.message.endswith(case.question)


def test_longbench(tmp_path: Path) -> None:
    (case,) = load_cases(write(tmp_path / "hotpotqa_e.jsonl", LONGBENCH | {"dataset": "hotpotqa_e"}))
    assert (case.id, case.task, case.metric, case.max_new_tokens) == (
        "hotpotqa_x1",
        "longbench hotpotqa",
        "qa_f1",
        32,
    )
    assert case.answers == ("Bob", "Robert") and case.n_tokens == 0 and "Who left?" in case.question
    check_parts(case)
    assert score(case.metric, "robert", case.answers) == 1


@pytest.mark.parametrize("name", list(TASKS))
def test_every_task_of_longbench_can_be_asked_and_scored(tmp_path: Path, name: str) -> None:
    answer = "Paragraph 7" if name.startswith("passage") else "Other number"
    row = LONGBENCH | {"dataset": name, "answers": [answer], "all_classes": ["Number", "Other number"]}
    (case,) = load_cases(write(tmp_path / f"{name}.jsonl", row))
    check_parts(case)
    is_asked = name not in ("gov_report", "multi_news", "passage_count")
    assert ("Who left?" in case.message) is is_asked and "{" not in case.message
    said = f"{answer}\nWho else?" if case.first_line else answer
    assert score(case.metric, said, case.answers, case.first_line, case.classes) == pytest.approx(1)
    assert score(case.metric, "xyz", case.answers, case.first_line, case.classes) < 0.3


def test_loogle_a_question_a_row(tmp_path: Path) -> None:
    found = load_cases(
        write(
            tmp_path / "data.jsonl",
            LOOGLE_ROW,
            LOOGLE_ROW | {"id": "q2", "task": "shortdep_cloze", "answer": {"<mask-0>": "Bob"}, "question": "<mask-0>?"},
            LOOGLE_ROW | {"id": "q3", "task": "summarization", "answer": "Bob left Ann", "question": ""},
        )
    )
    assert [(case.task, case.metric, case.max_new_tokens) for case in found] == [
        ("loogle longdep_qa", "rouge_l_recall", 500),
        ("loogle shortdep_cloze", "cloze", 50),
        ("loogle longdep_summarization", "rouge_l_recall", 500),
    ]
    for case in found:
        check_parts(case)
    assert score("cloze", "{'<mask-0>': 'Bob'}", found[1].answers) == 1


def test_loogle_a_document_a_row(tmp_path: Path) -> None:
    pairs = [{"Q": "Who left?", "A": "Bob", "S": ["Bob left."]}, {"Q": "Who stayed?", "A": "Ann", "S": []}]
    document = {"input": "Ann stayed. Bob left.", "title": "T", "qa_pairs": str(pairs), "output": "none"}
    found = load_cases(write(tmp_path / "longdep_qa.jsonl", document, document | {"qa_pairs": pairs}))
    assert [case.id for case in found] == [f"longdep_qa_{n}" for n in ("1_0", "1_1", "2_0", "2_1")]
    assert [case.answers for case in found[:2]] == [("Bob",), ("Ann",)]
    summary = document | {"qa_pairs": "none", "output": "Bob left Ann"}
    (case,) = load_cases(write(tmp_path / "other.jsonl", summary))
    assert case.task == "loogle longdep_summarization" and case.answers == ("Bob left Ann",)


def test_ruler(tmp_path: Path) -> None:
    (case,) = load_cases(write(tmp_path / "niah_single_1" / "validation.jsonl", RULER))
    assert (case.task, case.metric, case.max_new_tokens) == ("ruler niah_single_1", "all_substr", 128)
    assert case.question == "What is the number of the cat?" and case.answer_prefix == "The number of the cat is"
    assert case.message == RULER["input"]
    check_parts(case)
    (case,) = load_cases(write(tmp_path / "qa_1.jsonl", RULER | {"outputs": ["Bob", "Robert"]}))
    assert (case.metric, case.max_new_tokens) == ("any_substr", 32)
    with pytest.raises(EvaluationError, match=r"validation.jsonl, row 1 \(RULER\): the task is unknown"):
        load_cases(write(tmp_path / "x" / "validation.jsonl", RULER))


def test_ruler_as_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "test.parquet"
    table = pyarrow.Table.from_pylist([KVPRESS_RULER, KVPRESS_RULER | {"task": "qa_1"}])
    parquet.write_table(table, path)
    first, second = load_cases(str(path))
    assert first.message == "The number of the cat is 1234567.\nWhat is the number of the cat?"
    assert (first.metric, second.metric, first.max_new_tokens) == ("all_substr", "any_substr", 12)
    check_parts(first)
    path.write_bytes(b"PAR1 no more")
    with pytest.raises(EvaluationError, match=r"test.parquet cannot be read: "):
        load_cases(str(path))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'pyheadkv\[bench\]'"):
        load_cases(str(path))


def test_babilong(tmp_path: Path) -> None:
    path = tmp_path / "data" / "qa1" / "4k.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps([BABILONG, BABILONG | {"question": "Is the garden or the office where Mary is?"}]))
    first, second = load_cases(str(path))
    assert (first.task, first.metric, first.id) == ("babilong qa1", "only_label", "qa1_1")
    assert set(first.classes) == {"bathroom", "bedroom", "garden", "hallway", "kitchen", "office"}
    assert set(second.classes) == {"bathroom", "bedroom", "hallway", "kitchen"}  # what the question names is no answer
    check_parts(first)
    assert score("only_label", "In the garden. Then the office", first.answers, classes=first.classes) == 1
    with pytest.raises(EvaluationError, match=r"row 1 .BABILong.: the task is unknown: name the file"):
        load_cases(write(tmp_path / "4k.json", BABILONG))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"one": 1, "two": 2}, "rows with the fields one, two are no cases; known are pyheadkv, LongBench, LooGLE"),
        (LONGBENCH | {"dataset": "dureader"}, "row 1 .LongBench.: task 'dureader' is not one of narrativeqa"),
        (LONGBENCH | {"answers": None}, "row 1 .LongBench.: "),
        (LOOGLE_ROW | {"answer": " "}, "the answer is empty"),
        (LOOGLE_ROW | {"task": "other"}, "task 'other' is not one of shortdep_qa"),
        ({"input": "a", "qa_pairs": "[{'Q'"}, "row 1 .LooGLE, a document a row.: "),
        ({"input": "a", "qa_pairs": [{"Q": "b"}]}, "no 'A'"),
        (KVPRESS_RULER | {"answer": []}, "there are no answers"),
    ],
)
def test_other_rows_are_refused_in_one_line(tmp_path: Path, row: dict[str, Any], words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as error:
        load_cases(write(tmp_path / "d.jsonl", row))
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none.jsonl cannot be read: No such file"):
        load_cases(str(tmp_path / "none.jsonl"))
    with pytest.raises(EvaluationError, match="id 'longdep_qa_q1' is there twice"):
        load_cases(write(tmp_path / "twice.jsonl", LOOGLE_ROW, LOOGLE_ROW))
    with pytest.raises(EvaluationError, match="is no list of JSON objects"):
        load_cases(write(tmp_path / "list.json", ["a"]))
    (tmp_path / "half.json").write_text('[{"a": 1}')
    with pytest.raises(EvaluationError, match=r"half.json, line 1: Expecting"):
        load_cases(str(tmp_path / "half.json"))
    (tmp_path / "bytes.jsonl").write_bytes(b'{"\xff')
    with pytest.raises(EvaluationError, match=r"bytes.jsonl is not UTF-8 text: byte 0xff at offset 2$"):
        load_cases(str(tmp_path / "bytes.jsonl"))
    with pytest.raises(EvaluationError, match=r"none.jsonl is empty"):
        load_cases(write(tmp_path / "none.jsonl"))
    (tmp_path / "none.json").write_text("[]")
    with pytest.raises(EvaluationError, match=r"none.json has no cases"):
        load_cases(str(tmp_path / "none.json"))
    for name in ("zip", "parquet"):
        pytest.importorskip("pyarrow")
        with pytest.raises(EvaluationError, match=rf"no.{name}.* cannot be read: "):
            rows.read_rows(rows.Source(tmp_path / f"no.{name}", "data/a.jsonl" if name == "zip" else ""))


def test_own_cases_however_they_come(tmp_path: Path) -> None:
    own = [Case(name, "t", "t", "Long.", "Which?", ("x",), "all_substr", 4) for name in "ab"]
    path = tmp_path / "own.jsonl"
    write_cases(path, own)
    lines = path.read_text()
    assert load_cases(str(path)) == own
    path.write_bytes(lines.replace("\n", "\r\n").encode("utf-16"))
    assert load_cases(str(path)) == own
    (tmp_path / "own.json").write_text(json.dumps([json.loads(line) for line in lines.splitlines()]))
    assert load_cases(str(tmp_path / "own.json")) == own
    os.mkfifo(tmp_path / "fifo")
    writer = threading.Thread(target=(tmp_path / "fifo").write_text, args=(lines,))
    writer.start()
    assert load_cases(str(tmp_path / "fifo")) == own
    writer.join()
    path.write_text(lines.replace("Which?", "\\ud800"))
    with pytest.raises(EvaluationError, match=r"own.jsonl, row 1 .pyheadkv.: .* surrogates not allowed"):
        load_cases(str(path))


# ---- the hub ----


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A hub that has one file of each benchmark; gives the list of what was asked for."""
    asked: list[tuple[str, str]] = []
    archive = tmp_path / "data.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("data/hotpotqa.jsonl", json.dumps(LONGBENCH))
    places = {
        ("THUDM/LongBench", "data.zip"): archive,
        ("bigai-nlco/LooGLE", "data/longdep_qa.jsonl"): write(tmp_path / "longdep_qa.jsonl", LOOGLE_ROW),
        ("RMT-team/babilong", "data/qa1/4k.json"): write(tmp_path / "data" / "qa1" / "4k.json", BABILONG),
    }

    def download(repo: str, file: str, repo_type: str) -> str:
        assert repo_type == "dataset"
        asked.append((repo, file))
        if (repo, file) not in places:
            raise OSError("404 for that\nmore")
        return str(places[repo, file])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file, repo_type: None)
    return asked


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("longbench:hotpotqa", "longbench hotpotqa"),
        ("loogle:longdep_qa", "loogle longdep_qa"),
        ("babilong:qa1/4k", "babilong qa1"),
    ],
)
def test_from_the_hub(hub: list[tuple[str, str]], name: str, task: str) -> None:
    notices: list[str] = []
    (case,) = load_cases(name, notices.append)
    assert case.task == task and len(hub) == 1
    assert notices == [f"fetching {hub[0][1]} of {hub[0][0]}"]


def test_one_task_of_a_file_of_many(hub: list[tuple[str, str]], tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(EvaluationError, match=r"ruler:4096/qa_1: 4096/test-00000-of-00001.parquet of simonjegou/ruler"):
        load_cases("ruler:4096/qa_1")
    source = rows.Source(
        Path(write(tmp_path / "r.jsonl", KVPRESS_RULER, KVPRESS_RULER | {"task": "qa_1"})), task="qa_1"
    )
    assert [row["task"] for row in rows.read_rows(source)] == ["qa_1"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("longbench:nothing", "data.zip has no data/nothing.jsonl, it has hotpotqa"),
        ("loogle:nothing", "data/nothing.jsonl of bigai-nlco/LooGLE cannot be fetched: 404 for that"),
        ("babilong:qa1", "babilong:qa1 cannot be read, expected as in babilong:qa1/4k"),
        ("longbench:", "longbench: cannot be read, expected as in longbench:hotpotqa"),
        ("other:x", "other:x cannot be read: No such file"),
    ],
)
def test_what_the_hub_does_not_have(hub: list[tuple[str, str]], name: str, words: str) -> None:
    with pytest.raises(EvaluationError, match=words) as error:
        load_cases(name)
    assert "\n" not in str(error.value)


# ---- lengths ----

SIZES = Sizes(lambda text: len(text.split()), 10)


def long_case(n_words: int, **more: Any) -> Case:
    context = " ".join(f"w{i}" for i in range(n_words))
    return Case(
        "a", "t", "t", context, "Which word?", ("x",), "qa_f1", 4, prompt=f"Read.\n{context}\nWhich word?", **more
    )


def test_lengths_are_counted_and_the_middle_is_cut() -> None:
    short, medium, long = (long_case(n) for n in (50, 150, 1000))
    known = long_case(5000, n_tokens=4000, bucket="4k")
    fitted, n_cut = fit_cases([short, medium, long, known], [100, 200], SIZES)
    assert n_cut == 1
    assert [(case.n_tokens, case.bucket) for case in fitted[:2]] == [(63, "100"), (163, "200")]
    assert fitted[0].context == short.context and fitted[3] is known
    cut = fitted[2]
    assert 195 <= cut.n_tokens <= 200 and cut.bucket == "200"
    assert cut.message.startswith("Read.\nw0 w1") and cut.message.endswith("w998 w999\nWhich word?")
    assert " ... " in cut.context and cut.context in cut.document()
    assert cut.mark != long.mark != short.mark
    with pytest.raises(EvaluationError, match=r"what stands around its text alone is longer than 12 tokens"):
        fit_cases([long], [12], SIZES)
