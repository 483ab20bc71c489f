"""Which conversation is in the cache, and where the others are.

One is hot: its rows are in the cache. All others are parked: capsules in a folder. A prompt is given the one that
begins most like it, so a chat that comes back after others reads only what is new. It is saved behind each answer, and
not when another takes its place: a server that is killed loses the answer that it was giving, parking is forgetting.

Saved are the rows of the prompt and not of its answer. So a prompt that begins with all rows of a file goes on with
that conversation, in its file; one that differs before their end is another conversation, which gets its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import tokens_of
from pyheadkv.errors import CapsuleError, HeadKVError, UsageError
from pyheadkv.server.folder import Folder, Kept, n_equal

MIN_TOKENS = 64  # prompts of fewer are read again sooner than they are found on a disk
_MIN_GAIN, _LOADED_PER_READ = 32, 16  # tokens; and those that are loaded in the time in which one is read, at least
_BYTES_BESIDE = 1 << 17  # of a turn, beside its rows


class Conversations:
    """The conversations of one HeadKV; all methods are called on the thread that lets the model answer.

    Parameters
    ----------
    folder
        where they are parked; those that fit are known already
    on_notice
        called with one line when something went wrong, and answers go on without it

    Raises
    ------
    UsageError
        the rows of this model, or those that its budget keeps, are not all that a conversation is made of
    """

    def __init__(self, headkv: HeadKV, folder: Folder, on_notice: Callable[[str], None]) -> None:
        _refuse_unsaved(headkv)
        self._headkv, self._folder, self._notify = headkv, folder, on_notice
        self._llama: Any = headkv.llama
        self._own: Kept | None = None  # the file of the hot one
        self.n_loaded = 0  # times that one was taken from the folder

    @property
    def n_parked(self) -> int:
        """How many can be gone on with."""
        return self._folder.n_kept

    @property
    def n_bytes(self) -> int:
        """Of their files."""
        return self._folder.n_bytes

    def take(self, prompt: list[int]) -> None:
        """Have the conversation in the cache that begins most like a prompt."""
        tokens = np.asarray(prompt, dtype=np.int32)
        n_here = n_equal(np.asarray(tokens_of(self._llama), dtype=np.int32), tokens)
        found, n = self._folder.longest(tokens)
        if found is None or found is self._own or not _is_worth_loading(found, n, n_here):
            if self._own and n_here < len(self._own.tokens):
                self._own = None  # it branches off
            if self._own:
                self._folder.touch(self._own)
            return
        self._load(found, goes_on=n == len(found.tokens))

    def keep(self, n_prompt: int) -> None:
        """Save the conversation in the cache, whose last prompt had so many tokens, if it was read to its end."""
        if n_prompt < MIN_TOKENS or self._llama.n_tokens < n_prompt:
            return
        n_saved = len(self._own.tokens) if self._own else 0
        headkv = self._headkv
        n_bytes = (n_prompt - n_saved) * headkv.shape.bytes_per_token(headkv.type_k, headkv.type_v) + _BYTES_BESIDE
        if not self._folder.make_room(n_bytes, self._own):
            self._notify(f"a conversation of {n_prompt} tokens has no room in {self._folder.path}: --memory-size")
            return
        try:
            contents = headkv.save(self._own.path if self._own else self._folder.new_path(), n_rows=n_prompt)
            self._own = self._folder.add(contents)
            self._folder.touch(self._own)
        except (HeadKVError, OSError) as error:
            self._notify(f"a conversation was not saved: {error}")
            self._own = None  # what is in its file is right; the next answer gets another one

    def forget(self) -> None:
        """The cache was emptied."""
        self._own = None

    def _load(self, found: Kept, *, goes_on: bool) -> None:
        own = found if goes_on and found.is_ours else None
        self._own = None
        try:
            self._headkv.load(found.path, is_shared=own is None)
        except HeadKVError as error:
            self._notify(f"a conversation is read again: {error}")
            if isinstance(error, CapsuleError):
                found.spoil()
            return
        self._own = own
        self._folder.touch(found)
        self.n_loaded += 1


def _refuse_unsaved(headkv: HeadKV) -> None:
    """What cannot be read layer by layer has no archive, so that a compressed cache cannot be saved."""
    reason = headkv.native.read_reason()
    if reason and (headkv.native.stats().bytes_beside > 0 or headkv.budget.kind != "full"):
        raise UsageError(f"--memory cannot keep conversations of this model: {reason}")


def _is_worth_loading(found: Kept, n: int, n_here: int) -> bool:
    """Whether n tokens of a file are worth more than n_here that are in the cache."""
    if found.is_ours and n == len(found.tokens):  # its own file: else all of it would be written once more
        return n >= max(n_here, 1)
    return n - n_here >= max(_MIN_GAIN, len(found.tokens) // _LOADED_PER_READ)
