"""A chat on a Llama without a model: what is sent, what is kept when something goes wrong, what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyheadkv.chat.conversation import Conversation
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.cli import chat
from pyheadkv.cli.chat import Talk
from pyheadkv.cli.model import chosen_template
from pyheadkv.cli.options import ChatOptions
from pyheadkv.cli.render import ReadingBar, footer_text, stats_text
from pyheadkv.errors import ModelError, UsageError
from tests.unit.fake_llama import FakeLlama, without_library
from tests.unit.fake_vocabulary import CONTROL, FakeVocabulary

OPTIONS = ChatOptions(model="m.gguf", n_predict=3, temp=0)
TEMPLATE = "{% for message in messages %}<{{ message.role }}>{{ message.content }}{% endfor %}"
ROLES = ("system", "user", "assistant")
METHODS = ("tokenize", "token_get_text", "token_get_attr", "add_bos_token", "vocab_type", "detokenize")


class ChatLlama(FakeLlama):
    """Answers every message with max_tokens words; one token a character of the conversation so far."""

    chat_handler = None
    chat_format = "chat_template.default"

    def __init__(self, n_ctx: int = 4096) -> None:
        super().__init__(n_ctx)
        self.vocabulary = FakeVocabulary({f"<{role}>": CONTROL for role in ROLES})
        for name in ("tokenize", "token_bos", "token_eos"):
            setattr(self, name, getattr(self.vocabulary, name))
        self._model = SimpleNamespace(
            n_ctx_train=self._model.n_ctx_train,
            n_params=self._model.n_params,
            **{name: getattr(self.vocabulary, name) for name in METHODS},
        )
        self.metadata["tokenizer.chat_template"] = TEMPLATE
        self.requests: list[Any] = []
        self.stop_after = -1

    def create_completion(self, prompt: list[int], **options: Any) -> Iterator[dict[str, Any]]:
        self.requests.append(self._request(prompt))
        if len(prompt) >= self.n_ctx():
            raise ValueError(f"Requested tokens ({len(prompt)}) exceed context window of {self.n_ctx()}")
        criteria = options["stopping_criteria"]
        for i, token in enumerate(self.generate([token % 997 for token in prompt], stopping_criteria=criteria)):
            if i == self.stop_after:
                raise KeyboardInterrupt
            yield {"choices": [{"text": f"w{token} ", "finish_reason": None}]}
            if i + 1 == options["max_tokens"]:
                break
        yield {"choices": [{"text": "", "finish_reason": "stop" if criteria else "length"}]}

    def _request(self, prompt: list[int]) -> Any:
        """The messages of a prompt; its text where it has none."""
        messages: list[dict[str, str]] = []
        for token in prompt:
            if token < len(ROLES):
                messages.append({"role": ROLES[token], "content": ""})
            elif messages:
                messages[-1]["content"] += self.vocabulary.detokenize([token]).decode()
        return messages or self.vocabulary.detokenize(prompt).decode()


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Talk]:
    without_library(monkeypatch)
    with HeadKV(ChatLlama(n_ctx=1000)) as headkv:
        yield Talk(headkv, OPTIONS, ReadingBar())


def requests(talk: Talk) -> list[Any]:
    return talk.headkv.llama.requests


def test_turns_are_remembered(talk: Talk) -> None:
    first = "".join(talk.conversation.answer("one"))
    list(talk.conversation.answer("two"))
    assert requests(talk)[1] == [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": first},
        {"role": "user", "content": "two"},
    ]


def test_files_go_into_the_next_message_under_their_names(talk: Talk, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("first\n\n")
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfsecond")
    for name in ("a.txt", "b.txt"):
        talk._command(f"/read {tmp_path / name}")
    list(talk.conversation.answer("compare"))
    list(talk.conversation.answer("again"))
    sent = requests(talk)[0][0]["content"]
    assert sent == "--- File: a.txt ---\nfirst\n\n--- File: b.txt ---\nsecond\n\ncompare"
    assert requests(talk)[1][-1]["content"] == "again"


def test_too_long_a_prompt_loses_nothing(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.conversation.attach("a.txt", "attached")
    before = list(talk.conversation.messages)
    talk._answer("x" * 2000)
    words = "error: the prompt has 2031 tokens, the context holds 1000: shorten it"
    assert f"{words}, the model was trained for no more\n" in capsys.readouterr().err
    talk.headkv.shape = replace(talk.headkv.shape, n_ctx_train=2000)
    talk._answer("x" * 2000)
    assert f"{words} or raise -c\n" in capsys.readouterr().err
    assert talk.conversation.messages == before
    assert talk.headkv.llama.memory.tokens == []
    talk._answer("short")
    assert "attached" in requests(talk)[-1][-1]["content"]


def test_ctrl_c_keeps_what_was_said(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.headkv.llama.stop_after = 2
    talk._answer("hello")
    assert "note: stopped" in capsys.readouterr().err
    roles = [message["role"] for message in talk.conversation.messages]
    assert roles == ["user", "assistant"]
    assert len(talk.conversation.messages[1]["content"].split()) == 2
    talk.headkv.llama.stop_after = 0
    talk.conversation.attachments = ["a document"]
    talk._answer("nothing came")
    assert len(talk.conversation.messages) == 2
    assert "note: stopped; the attached text waits for the next message" in capsys.readouterr().err
    talk.headkv.llama.stop_after = -1
    talk._answer("again")
    assert "a document" in requests(talk)[-1][-1]["content"]


def test_commands(talk: Talk, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert talk._command("/help") and talk._command("/stats")
    out = capsys.readouterr().out
    assert "/read FILE" in out and "KV memory" in out
    (tmp_path / "x.bin").write_bytes(b"\0")
    for line, words in (
        (
            "/foo bar",
            "known are /read FILE, /set NAME VALUE, /save FILE, /load FILE, /stats, /clear, /exit, /help, //TEXT",
        ),
        ("/read", "/read needs a file name"),
        ("/save", "/save needs a file name"),
        (f"/save {tmp_path}/a.hkv", "nothing was read yet, there is nothing to save"),
        (f"/load {tmp_path}/none.hkv", "none.hkv cannot be read: No such file or directory"),
        (f"/load {tmp_path}/x.bin", "x.bin is no capsule of pyheadkv"),
        ("/read /none.txt", "/none.txt cannot be read: No such file or directory"),
        (f"/read {tmp_path}/x.bin", "has a NUL byte at offset 0"),
    ):
        assert talk._command(line)
        assert words in capsys.readouterr().err
    list(talk.conversation.answer("one"))
    assert talk._command("/clear")
    assert talk.conversation.messages == [] and talk.headkv.llama.memory.tokens == []
    assert not talk._command("/exit")


def test_json_holds_what_was_measured(talk: Talk) -> None:
    report = talk.answer_json("x" * 400, 12.3456)
    assert list(report) == [
        "text",
        "n_prompt",
        "n_generated",
        "finish",
        "policy",
        "budget",
        "kv",
        "archive",
        "turn",
        "ms",
        "tok_s",
        "beside",
    ]
    assert report["beside"] == {"bytes": 0, "checkpoint_bytes": 0}
    keys = "type_k type_v rows_full rows_kept rows_per_head bytes_full bytes_kept bytes_measured peak_bytes"
    assert " ".join(report["kv"]) == keys
    assert list(report["budget"]) == ["request", "rows", "keep_ratio", "bytes"]
    assert list(report["ms"]) == ["load", "prefill", "reconstruction", "select", "decode"]
    assert report["ms"]["load"] == 12.346
    assert list(report["tok_s"]) == ["prefill", "decode"]
    assert (report["n_prompt"], report["n_generated"], report["policy"]) == (401, 3, "snapkv")
    assert report["kv"]["rows_kept"] < report["kv"]["rows_full"]


def test_no_tokens_read_the_prompt_alone(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk._command("/set n-predict 0")
    report = talk.answer_json("x" * 400, 0)
    assert (report["text"], report["n_generated"], report["finish"]) == ("", 0, "length")
    assert report["n_prompt"] > 400 and talk.headkv.is_compressed
    talk._answer("and more")
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("[ prompt ") and "note" not in shown.err


def test_footer_counts_memory_against_a_whole_cache(talk: Talk) -> None:
    list(talk.conversation.answer("x" * 800))
    text = footer_text(talk.headkv.stats())
    assert text.startswith("[ prompt ") and " | generation " in text and text.endswith("KV 0.2 of 0.8 MiB (27 %) ]")
    stats = talk.headkv.stats()
    stats = replace(stats, n_prompt=900, n_read=100, native=replace(stats.native, bytes_archive=3 << 20))
    text = footer_text(stats)
    assert " t/s, 800 tokens reused | " in text and text.endswith(" | archive 3.0 MiB on disk ]")
    beside = replace(stats, native=replace(stats.native, bytes_beside=5 << 20))
    assert " MiB (27 %) + 5.0 MiB windows and states | archive " in footer_text(beside)
    assert "beside       5.0 MiB windows and states, 2.0 MiB checkpoints\n" in stats_text(beside, "", 2 << 20)
    assert "windows" not in stats_text(stats, "") + text
    talk.conversation.clear()
    assert footer_text(talk.headkv.stats()).endswith(" | KV 0.0 MiB ]")


def test_full_context_is_said(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk._answer("x" * 995)
    assert "the context of 1000 tokens is full" not in capsys.readouterr().err
    talk.conversation.clear()
    talk._answer("x" * 998)
    assert "the context of 1000 tokens is full: /clear starts anew" in capsys.readouterr().err


class LoopLlama(ChatLlama):
    """Says two words in turns, without end."""

    def generate(self, tokens: list[int], reset: bool = True, stopping_criteria: Any = None) -> Iterator[int]:
        return (7 + i % 2 for i, _ in enumerate(super().generate(tokens, reset, stopping_criteria)))


@pytest.mark.parametrize(
    ("stop_loops", "n_predict", "n_words", "finish"),
    [(True, -1, 128, "loop"), (True, 127, 127, "length"), (False, 200, 200, "length")],
)
def test_a_loop_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stop_loops: bool,
    n_predict: int,
    n_words: int,
    finish: str,
) -> None:
    without_library(monkeypatch)
    options = replace(OPTIONS, n_predict=n_predict, temp=None, no_loop_stop=not stop_loops)
    talk = Talk(HeadKV(LoopLlama(n_ctx=4000)), options, ReadingBar())
    for _ in range(2):  # each answer is watched anew
        talk._answer("hello")
        printed = capsys.readouterr()
        assert len(printed.out.split()) == n_words
        assert ("note: stopped: the answer said the same over and over" in printed.err) == (finish == "loop")
        assert talk.conversation.finish == finish
    assert talk.answer_json("again", 0)["finish"] == finish


def test_without_a_template_text_is_continued(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without_library(monkeypatch)
    llama = ChatLlama()
    del llama.metadata["tokenizer.chat_template"]
    talk = Talk(HeadKV(llama), OPTIONS, ReadingBar())
    assert "no chat template" in capsys.readouterr().err
    answer = "".join(talk.conversation.answer("Once"))
    list(talk.conversation.answer("and"))
    assert llama.requests == ["Once", f"Once\n{answer}\nand"]


def test_set_changes_the_next_answer(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    assert talk._command("/set top-k 5") and talk._command("/set n-predict 1")
    assert len("".join(talk.conversation.answer("one")).split()) == 1
    assert talk.conversation.sampling == Sampling(temp=0, max_tokens=1, top_k=5)
    for line, words in (
        ("/set heat 1", "no setting heat, known are temp, top-k"),
        ("/set temp", "temp is missing, expected a number from 0 to 100"),
        ("/set top-p high", "top-p is high, expected a number from 0 to 1"),
    ):
        assert talk._command(line)
        assert words in capsys.readouterr().err
    assert talk._command("/set")
    shown = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert ["temp", "0"] in shown and ["top-k", "5"] in shown and ["seed", "-1"] in shown


def test_a_models_own_sampling_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    llama = ChatLlama()
    llama.metadata |= {"general.sampling.top_p": "0.500000", "general.sampling.temp": "0.700000"}
    assert Talk(HeadKV(llama), OPTIONS, ReadingBar()).conversation.sampling == Sampling(0, None, 3, top_p=0.5)


def test_a_message_may_begin_with_a_slash(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(["//etc/hosts has a line", "/etc/hosts", "/exit"])
    monkeypatch.setattr(chat, "_ask", lambda _: next(lines))
    monkeypatch.setattr(chat, "PromptSession", lambda *_, **__: None)
    talk.is_single_turn = False
    talk.run(None)
    assert [message[-1]["content"] for message in requests(talk)] == ["/etc/hosts has a line"]
    assert "unknown command /etc/hosts" in capsys.readouterr().err


def test_bytes_that_are_no_text_are_not_sent(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk._answer("caf\udce9")
    assert "error: the message is not UTF-8 text: byte 0xe9 at offset 3\n" in capsys.readouterr().err
    assert not requests(talk) and not talk.conversation.messages


def test_an_empty_answer_is_said(talk: Talk, capsys: pytest.CaptureFixture[str]) -> None:
    talk.conversation.answer = lambda _: (piece for piece in ("", "\n"))
    talk._answer("hello")
    shown = capsys.readouterr()
    assert not shown.out.strip() and "note: an empty answer\n" in shown.err


def test_system_prompt_survives_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    conversation = Conversation(HeadKV(ChatLlama()), "be brief", Sampling(max_tokens=2))
    list(conversation.answer("hi"))
    conversation.clear()
    assert conversation.messages == [{"role": "system", "content": "be brief"}]


def test_a_chosen_template_is_a_name_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "t.jinja").write_text("{{ messages[0].content }}")
    (tmp_path / "broken.jinja").write_text("{% for %}")
    assert chosen_template(None) is None
    assert chosen_template("chatml") == "chatml"
    assert chosen_template(str(tmp_path / "t.jinja")) == "{{ messages[0].content }}"
    for choice, error, words in (
        (
            "nonsense",
            UsageError,
            "nonsense is no file, and llama.cpp has no such template; it has .*gemma",
        ),
        (str(tmp_path / "broken.jinja"), ModelError, "the chat template, line 1: "),
        (str(tmp_path), UsageError, "Is a directory"),
    ):
        with pytest.raises(error, match=words):
            chosen_template(choice)


def test_a_broken_template_is_said_before_the_talk(monkeypatch: pytest.MonkeyPatch) -> None:
    without_library(monkeypatch)
    llama = ChatLlama()
    llama.metadata["tokenizer.chat_template"] = "{% for %}"
    with HeadKV(llama) as headkv, pytest.raises(ModelError, match="--chat-template"):
        Talk(headkv, OPTIONS, ReadingBar())
