"""The first message of a chat as the command line gives it: files, and a prompt that is typed or on standard input.

All of it is opened before a model is fetched or loaded, so that what is wrong is said at once, and read once, when
it is known how much the context can hold.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pyheadkv.chat.demo import named_file
from pyheadkv.cli.options import ChatOptions
from pyheadkv.errors import UsageError
from pyheadkv.files.plain_text import Limit, TextSource, is_terminal, open_stdin, open_text, typed_text

NamedText = tuple[str, str]  # name of a file, and its text


def with_text(chat: ChatOptions) -> ChatOptions:
    """The same options, once all that was typed is known to be text; else a UsageError that names the option."""
    return replace(
        chat,
        prompt=None if chat.prompt is None else typed_text(chat.prompt, "-p"),
        system=None if chat.system is None else typed_text(chat.system, "-sys"),
    )


@dataclass(frozen=True)
class FirstMessage:
    """Files, and a prompt that is there, is to be read from standard input, or is to be asked for (None)."""

    files: Sequence[tuple[Path, TextSource]]
    prompt: str | TextSource | None

    def read(self, limit: Limit) -> tuple[list[NamedText], str | None]:
        """The files, and the prompt as far as it does not have to be asked for.

        Raises
        ------
        UsageError
            a text is too long, blank, or no text; beside files the prompt on standard input may be blank
        """
        files = [(shown_name(path), source.read(limit)) for path, source in self.files]
        if isinstance(self.prompt, TextSource):
            return files, self.prompt.read(limit, may_be_blank=bool(files))
        return files, self.prompt


def open_first(chat: ChatOptions) -> FirstMessage:
    """Open everything that the options name.

    Raises
    ------
    UsageError
        it cannot be opened or is no text, there is no prompt, or two texts on standard input
    """
    files = [(file, open_text(file)) for file in map(named_file, chat.files or ())]
    is_on_stdin = chat.prompt == "-" or (chat.prompt is None and not is_terminal())
    for file, source in files:
        if is_on_stdin and source.takes_stdin():
            raise UsageError(f"{file} is standard input, where the prompt is expected too: give it with -p")
    prompt = open_stdin() if is_on_stdin else chat.prompt
    if prompt is None and chat.as_json:
        raise UsageError("--json answers one prompt: give it with -p or on stdin")
    if isinstance(prompt, str) and not prompt.strip() and not files:
        raise UsageError("the prompt is empty")
    return FirstMessage(files, prompt)


def shown_name(path: Path) -> str:
    """A file's name as text, whatever bytes it has."""
    return os.fsencode(path.name).decode("utf-8", "replace")
