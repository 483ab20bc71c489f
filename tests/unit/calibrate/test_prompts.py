"""Which tokens a part of a prompt has, for tokenizers of several habits."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyheadkv.calibrate.prompts import Prompter, align
from pyheadkv.errors import CalibrationError, UsageError
from pyheadkv.evaluate.cases import Case
from pyheadkv.evaluate.prompted import AFTER, CasePrompter
from tests.unit.fake_vocabulary import CONTROL, NORMAL

BOS = 0
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}</s>{% endfor %}<|assistant|>"


class FakeTokenizer:
    """Words with the space before them, single digits, and markers in angle brackets; token ids are made as needed."""

    def __init__(self, template: str | None, adds_space: bool = False) -> None:
        self.metadata = {} if template is None else {"tokenizer.chat_template": template}
        self.adds_space = adds_space
        self.pieces: list[bytes] = [b"<s>"]
        self._model = self

    def detokenize(self, tokens: list[int], special: bool = False) -> bytes:
        return b"".join(self.pieces[token] for token in tokens)

    def token_get_text(self, token: int) -> str:
        return self.pieces[token].decode()

    def token_get_attr(self, token: int) -> int:
        return CONTROL if self.pieces[token].startswith(b"<") else NORMAL

    def vocab_type(self) -> int:
        return 1

    def add_bos_token(self) -> bool:
        return "tokenizer.chat_template" not in self.metadata

    def token_bos(self) -> int:
        return BOS

    def token_eos(self) -> int:
        return -1

    def tokenize(self, text: bytes, add_bos: bool = True, special: bool = False) -> list[int]:
        words = re.findall((rb"<[^>]+>|" if special else b"") + rb"\d| ?[a-zA-Z]+| |[^a-zA-Z\d ]", text)
        if self.adds_space and words:
            words[0] = b" " + words[0]
        for word in words:
            if word not in self.pieces:
                self.pieces.append(word)
        return [BOS] * add_bos + [self.pieces.index(word) for word in words]


def parts_of(llama: Any, prompt: Any, part: str) -> list[bytes]:
    return [llama.pieces[prompt.tokens[i]] for i in prompt.positions(part)]


def test_positions_with_a_chat_template() -> None:
    llama = FakeTokenizer(TEMPLATE)
    prompter: Any = Prompter(llama)
    prompt = prompter.prompt("The code is 4711. Which code?", "The code is")
    assert prompt.text == "<|user|>The code is 4711. Which code?</s><|assistant|>The code is"
    assert BOS not in prompt.tokens
    assert parts_of(llama, prompt, "4711") == [b"4", b"7", b"1", b"1"]
    assert parts_of(llama, prompt, "Which code") == [b" Which", b" code"]
    assert parts_of(llama, prompt, "Whi") == [b" Which"]


@pytest.mark.parametrize("adds_space", [False, True])
def test_positions_without_a_template(adds_space: bool) -> None:
    llama = FakeTokenizer(None, adds_space)
    prompter: Any = Prompter(llama)
    prompt = prompter.prompt("The code is 4711. Which?", "The code")
    assert prompt.text == "The code is 4711. Which?\nThe code"
    assert prompt.tokens[0] == BOS
    assert parts_of(llama, prompt, "4711") == [b"4", b"7", b"1", b"1"]
    assert prompt.positions("The code is").tolist() == [1, 2, 3]


def test_a_part_must_stand_there_once() -> None:
    prompter: Any = Prompter(FakeTokenizer(None))
    prompt = prompter.prompt("one two two", "")
    for part in ("two", "three"):
        with pytest.raises(ValueError, match="expected once"):
            prompt.positions(part)


@given(st.text(alphabet="ab1 é\n", min_size=1, max_size=40), st.data())
def test_positions_are_those_of_the_bytes(text: str, data: st.DataObject) -> None:
    """Cut anywhere, even inside a character: a token belongs to a part exactly if they share a byte."""
    raw = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(raw) - 1)))) & set(range(1, len(raw))))
    pieces = [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    starts, ends = align(pieces, raw)
    assert starts.tolist() == [0, *cuts] and ends.tolist() == [*cuts, len(raw)]


@pytest.mark.parametrize(
    ("pieces", "starts", "ends"),
    [
        ([b"", b" one", b" two"], [0, 0, 3], [0, 3, 7]),  # one for the beginning, and a space put before
        ([b"one", b"two"], [0, 4], [3, 7]),  # a special token that swallows the space behind it
        ([b"one", b" ", b" two"], [0, 3, 4], [3, 4, 7]),  # a space put in behind a special token
    ],
)
def test_spaces_that_tokenizers_add_and_swallow(pieces: list[bytes], starts: list[int], ends: list[int]) -> None:
    found = align(pieces, b"one two")
    assert [list(column) for column in found] == [starts, ends]


@pytest.mark.parametrize("pieces", [[b"one", b" twe"], [b"one"], [b"One", b" two"], [b"one", b" two", b"!"]])
def test_a_tokenizer_that_changes_the_text_is_refused(pieces: list[bytes]) -> None:
    with pytest.raises(CalibrationError, match="the tokenizer changes the text"):
        align(pieces, b"one two")


def test_a_template_that_fails_is_one_line() -> None:
    llama: Any = FakeTokenizer("{{ raise_exception('no\nroles') }}")
    with pytest.raises(UsageError, match=r"^the chat template refuses the messages: no roles$"):
        Prompter(llama).prompt("Who?", "")


def test_count_is_of_the_text_alone() -> None:
    prompter: Any = Prompter(FakeTokenizer(None))
    assert prompter.count("The code is 47.") == 7
    assert np.array_equal(prompter.prompt("a", "").positions("a"), [1])


def test_a_question_comes_after_a_text_that_the_template_trims() -> None:
    llama: Any = FakeTokenizer("{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}</s>{% endfor %}")
    case = Case("1", "t", "k", "\n the code is 4711.", "Which code?", ("4711",), "all_substr", 4)
    prompted = CasePrompter(llama).prompt(case, AFTER)
    assert b"".join(llama.pieces[token] for token in prompted.tokens) == b"<|user|>the code is 4711."
    assert b"".join(llama.pieces[token] for token in prompted.rest) == b"\n\nWhich code?</s>"
