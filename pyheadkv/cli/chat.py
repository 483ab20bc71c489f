"""`pyheadkv chat`: load, then answer once or talk until the user leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from prompt_toolkit import PromptSession
from prompt_toolkit.output import create_output

from pyheadkv.capsule.reader import read_contents
from pyheadkv.chat import demo
from pyheadkv.chat.conversation import Conversation
from pyheadkv.chat.sampling import SETTINGS, Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.cli.first_message import open_first, shown_name, with_text
from pyheadkv.cli.model import ModelChoice
from pyheadkv.cli.options import ChatOptions
from pyheadkv.cli.render import ReadingBar, error, footer, note, stats_text
from pyheadkv.cli.welcome import welcome_lines
from pyheadkv.cli.wrap import wrap_for_stdout
from pyheadkv.engine.llama import context_length
from pyheadkv.errors import HeadKVError, UsageError
from pyheadkv.files.plain_text import Limit, is_terminal, open_text, typed_text

_HELP = {
    "/read FILE": "put a text file into the next message",
    "/set NAME VALUE": "change a setting of the answers; alone, show all",
    "/save FILE": "save the conversation, or what is new of it",
    "/load FILE": "go on with one that was saved",
    "/stats": "show rows, memory and times",
    "/clear": "start a new conversation",
    "/exit": "leave (as Ctrl-D)",
    "/help": "show this list",
    "//TEXT": "send a message that begins with /",
}


def run(chat: ChatOptions) -> None:
    """Do what the command line asks.

    Raises
    ------
    HeadKVError
        anything that the user can mend
    KeyboardInterrupt
        Ctrl-C while nothing is being answered
    """
    choice = ModelChoice.read(chat)
    chat = with_text(chat)
    _check_memories(chat)
    first = open_first(chat)  # before a model is fetched
    Sampling().having(chat.sampling)  # refuses what is out of range
    found = choice.find()
    files, prompt = first.read(Limit.of_context(found.n_ctx))

    start = time.perf_counter()
    llama = found.load()
    ms_load = (time.perf_counter() - start) * 1000
    bar = ReadingBar()
    with found.compressing(llama, protect=[chat.system] if chat.system else [], on_progress=bar.update) as headkv:
        talk = Talk(headkv, chat, bar, files)
        if chat.as_json:
            print(json.dumps(talk.answer_json(prompt or "", ms_load)))
        else:
            talk.run(prompt)


def _check_memories(chat: ChatOptions) -> None:
    """Refuse what can be refused before a model is looked for."""
    memories = chat.memories or []
    if len(memories) > 1:
        raise UsageError(
            f"{len(memories)} times --memory: rows hold for the positions at which they were read, so a chat begins "
            "with one (ingest takes several texts)"
        )
    if memories and chat.system is not None:
        raise UsageError("-sys does not go with --memory, whose system text was read before it: ingest -sys")
    for memory in memories:
        read_contents(memory)


class Talk:
    """One run of the command: a conversation, and what the user types and sees.

    Parameters
    ----------
    headkv
        wraps the loaded model
    chat
        the command's options
    bar
        shows that a prompt is being read
    files
        names and texts that go into the first message
    """

    def __init__(
        self, headkv: HeadKV, chat: ChatOptions, bar: ReadingBar, files: Sequence[tuple[str, str]] = ()
    ) -> None:
        self.headkv = headkv
        self.bar = bar
        self.is_single_turn = chat.is_single_turn or not is_terminal()
        sampling = demo.sampling_of(headkv.llama, note).having(chat.sampling)
        system = demo.system_of(headkv.llama, chat.system)
        self.conversation = Conversation(headkv, system, sampling, not chat.no_loop_stop)
        if self.conversation.template is None:
            note("this model has no chat template: text is continued as it is")
        self.ms_memory: float | None = None
        for memory in chat.memories or ():
            start = time.perf_counter()
            contents = self.conversation.load(memory, is_shared=True)
            self.ms_memory = (time.perf_counter() - start) * 1000
            if not chat.as_json:
                note(f"{memory}: {len(contents.tokens)} tokens that were read before")
        for name, text in files:
            self.conversation.attach(name, text)

    def answer_json(self, prompt: str, ms_load: float) -> dict[str, Any]:
        """Answer once; the answer and everything measured."""
        text = "".join(self.conversation.answer(prompt))
        self.bar.stop()
        stats, report = self.headkv.stats(), self.headkv.report()
        memory = {} if self.ms_memory is None else {"memory": round(self.ms_memory, 3)}
        report["ms"] = {"load": round(ms_load, 3), **memory, **report["ms"]}
        return {
            "text": text,
            "n_prompt": stats.n_prompt,
            "n_generated": stats.n_generated,
            "finish": self.conversation.finish,
            "policy": str((self.headkv.plan or self.headkv).policy),
            **report,
        }

    def run(self, prompt: str | None) -> None:
        """Answer the first prompt, then, unless once is enough, whatever is typed."""
        if prompt is not None and self.is_single_turn:
            self._print_answer(prompt)  # errors are the command's
            return
        if prompt is not None:
            print(f"> {prompt}")
            self._answer(prompt)
        session: PromptSession[str] = PromptSession("> ", output=create_output(always_prefer_tty=True))
        if not self.is_single_turn:
            for words in welcome_lines(self.headkv):
                note(words)
            note("/help lists commands, Ctrl-C stops an answer, Ctrl-D leaves")
        while (line := _ask(session)) is not None:
            if line.startswith("/") and not line.startswith("//"):
                if not self._command(line):
                    return
            elif line:
                self._answer(line.removeprefix("/"))
                if self.is_single_turn:
                    return

    def _answer(self, text: str) -> None:
        try:
            self._print_answer(typed_text(text, "the message"))
        except HeadKVError as problem:
            error(problem)
        except KeyboardInterrupt:
            print()
            note(
                "stopped" + ("; the attached text waits for the next message" if self.conversation.attachments else "")
            )

    def _print_answer(self, text: str) -> None:
        wrap, said = wrap_for_stdout(), ""
        try:
            try:
                with closing(self.conversation.answer(text)) as pieces:
                    for piece in pieces:
                        said += piece
                        print(wrap.feed(piece), end="", flush=True)
            finally:
                print(wrap.flush(), end="", flush=True)
            if said.strip():
                print()
            elif self.conversation.sampling.max_tokens != 0:
                note("an empty answer")
        finally:
            self.bar.stop()
        footer(self.headkv.stats())
        if self.conversation.finish == "loop":
            note("stopped: the answer said the same over and over (--no-loop-stop lets it go on)")
        if self.conversation.is_full:
            note(f"the context of {context_length(self.headkv.llama)} tokens is full: /clear starts anew")

    def _command(self, line: str) -> bool:
        """Do a slash command; False means leave."""
        name, _, argument = line.partition(" ")
        if name == "/exit":
            return False
        if name == "/read":
            self._read(argument.strip())
        elif name in ("/save", "/load"):
            self._keep(name, argument.strip())
        elif name == "/set":
            self._set(argument.split())
        elif name == "/stats":
            plan = self.headkv.plan
            words = f"{plan.policy}, budget {plan.budget.request}" if plan else "the cache is whole"
            print(stats_text(self.headkv.stats(), words, self.headkv.bytes_checkpoints))
        elif name == "/clear":
            self.conversation.clear()
            note("a new conversation")
        elif name == "/help":
            print("\n".join(f"{command:15} {what}" for command, what in _HELP.items()))
        else:
            error(UsageError(f"unknown command {name}, known are {', '.join(_HELP)}"))
        return True

    def _keep(self, name: str, file: str) -> None:
        """Save the conversation, or go on with another."""
        try:
            if not file:
                raise UsageError(f"{name} needs a file name")
            act = self.conversation.save if name == "/save" else self.conversation.load
            contents = act(Path(file).expanduser())
        except HeadKVError as problem:
            error(problem)
            return
        again = len(contents.tokens) - contents.n_rows
        words = f", of which {again} are read again with the next message" if again else ""
        note(f"{file}: {len(contents.tokens)} tokens{words}")

    def _set(self, words: list[str]) -> None:
        """Change a setting of the answers, or show all."""
        if words:
            try:
                name, value = words if len(words) == 2 else (words[0], "missing")
                self.conversation.sampling = self.conversation.sampling.having({name: value})
            except UsageError as problem:
                error(problem)
            return
        for name, setting in SETTINGS.items():
            print(f"{name:15} {self.conversation.sampling.value(name):<8g} {setting.words}")

    def _read(self, file: str) -> None:
        if not file:
            error(UsageError("/read needs a file name"))
            return
        try:
            text = open_text(demo.named_file(file)).read(Limit.of_context(context_length(self.headkv.llama)))
        except UsageError as problem:
            error(problem)
            return
        self.conversation.attach(shown_name(demo.named_file(file)), text)
        note(f"{file}: {len(text)} characters go into the next message")


def _ask(session: PromptSession[str]) -> str | None:
    """Next line that the user types; None at Ctrl-D. Ctrl-C twice raises KeyboardInterrupt."""
    is_interrupted = False
    while True:
        try:
            return session.prompt().strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            if is_interrupted:
                raise
            is_interrupted = True
            note("Ctrl-C again or Ctrl-D leaves")
