"""Conversations of a HeadKV to and from capsule files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pyheadkv.cache.archive import Archive
from pyheadkv.cache.stats import TurnTimer
from pyheadkv.cache.turns import Turns
from pyheadkv.capsule.format import Header, Message
from pyheadkv.capsule.identity import check_identity, identity_of
from pyheadkv.capsule.reader import Contents, FileId, open_capsule, read_contents
from pyheadkv.capsule.restore import restore_rows
from pyheadkv.capsule.writer import Saved, append_turn, is_own, now, write_capsule
from pyheadkv.engine.library import LLAMA_CPP_COMMIT
from pyheadkv.engine.llama import context_length, count_read, tokens_of
from pyheadkv.engine.native import Native
from pyheadkv.errors import CapsuleError, UsageError

if TYPE_CHECKING:
    import llama_cpp

_ROOM = 512  # tokens of a question and its answer, where a context is recommended


class Saving:
    """Saves and loads; `HeadKV.save` and `HeadKV.load` say what and what is raised.

    Parameters
    ----------
    llama, native, turns
        of the HeadKV
    archive
        where loaded rows lie
    model
        its name, for people
    on_notice
        called with one line
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        native: Native,
        turns: Turns,
        archive: Archive,
        model: str,
        on_notice: Callable[[str], None],
    ) -> None:
        self._llama, self._native, self._turns = llama, native, turns
        self._archive, self._model, self._notify = archive, model, on_notice
        self._own: FileId | None = None  # that the conversation was saved to or loaded from

    def forget(self) -> None:
        """The conversation is gone: the next one has another file."""
        self._own = None

    def save(
        self,
        path: str | Path,
        name: str,
        messages: Sequence[Message],
        attachments: Sequence[str],
        *,
        n_rows_max: int | None,
        overwrite: bool,
    ) -> Contents:
        """Write a new file, or one more turn into the conversation's own."""
        path, tokens, n_exact = Path(path), tokens_of(self._llama), self._turns.n_exact
        n_rows = n_exact if n_rows_max is None else min(n_exact, n_rows_max)
        if not tokens:
            raise UsageError("nothing was read yet, there is nothing to save")
        if n_rows == 0:
            raise UsageError("no archive of all rows was kept, and chosen rows alone cannot be saved")
        saved = Saved(tokens, n_rows, self._native.rows_get, messages, attachments)
        if self._own and not overwrite and is_own(path, self._own):
            append_turn(path, self._own, self._header(name), saved)
        else:
            self._own = write_capsule(path, self._header(name), saved, overwrite=overwrite)
        return read_contents(path)

    def load(self, path: str | Path, *, is_shared: bool) -> Contents:
        """Begin with what a file holds, once all of it is known to be right."""
        with open_capsule(path) as capsule:
            contents = capsule.contents
            self.check(contents)
            capsule.verify()
            self._forget_all()
            try:
                with self._archive.folder() as folder:
                    restore_rows(capsule, self._native, folder)
            except BaseException:
                self._forget_all()
                raise
            self._own = None if is_shared else capsule.file_id
        count_read(self._llama, contents.tokens[: contents.n_rows].tolist(), has_logits=False)
        if contents.n_dropped:
            self._notify(f"{contents.path}: {contents.n_dropped} bytes of a turn that was broken off are left out")
        return contents

    def check(self, contents: Contents) -> None:
        """Refuse what `load` would, its rows aside."""
        check_identity(contents.path, contents.header, self._header(""))
        self._check_tokens(contents)

    def _forget_all(self) -> None:
        self.forget()
        self._turns.prefill.forget()
        self._turns.prefill.turn = TurnTimer()

    def _check_tokens(self, contents: Contents) -> None:
        n_tokens, n_ctx = len(contents.tokens), context_length(self._llama)
        if n_tokens >= n_ctx:
            raise CapsuleError(no_room(f"{contents.path} has {n_tokens} tokens", n_tokens, n_ctx))
        if contents.n_rows == 0 or contents.tokens.min() < 0 or contents.tokens.max() >= self._llama.n_vocab():
            raise CapsuleError(f"{contents.path} is damaged: it has no rows, or tokens that this model does not have")

    def _header(self, name: str) -> Header:
        return Header(
            name=name,
            model=self._model,
            created=now(),
            llama_cpp=LLAMA_CPP_COMMIT,
            identity=self._identity,
            cell_bytes=self._native.cell_bytes(),
        )

    @cached_property
    def _identity(self) -> dict[str, str]:
        return identity_of(self._llama, self._native)


def no_room(what: str, n_tokens: int, n_ctx: int) -> str:
    """The refusal of so many tokens, with the context that has room for them and for more."""
    return f"{what}, the context of {n_ctx} has no room for them and an answer: -c {n_tokens + _ROOM} (n_ctx) has"
