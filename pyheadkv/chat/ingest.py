"""Texts that are read once and kept, for chats that begin with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pyheadkv.capsule.reader import Contents
from pyheadkv.capsule.writer import check_place
from pyheadkv.chat.conversation import Conversation
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.errors import UsageError

if TYPE_CHECKING:
    import llama_cpp


def ingest(
    llama: llama_cpp.Llama,
    texts: Sequence[tuple[str, str]],
    path: str | Path,
    *,
    name: str = "",
    system: str | None = None,
    archive: str = "auto",
    overwrite: bool = False,
    on_notice: Callable[[str], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Contents:
    """Read texts as the first message of a chat begins with them, and save all rows as a capsule.

    >>> llama = pyheadkv.load("model.gguf", n_ctx=8192)
    >>> pyheadkv.ingest(llama, [("book.txt", text)], "book.hkv").n_rows
    5210

    Parameters
    ----------
    llama
        without a HeadKV; its conversation is lost
    texts
        name of each, as the model sees it, and what it says
    path
        of the file to write
    name
        that `pyheadkv capsules` shows, by default the names of the texts
    system
        system prompt of the chats to come
    archive
        as of `HeadKV`: where rows lie meanwhile
    overwrite
        replace a file that is there
    on_notice, on_progress
        as of `HeadKV`

    Returns
    -------
    what the file holds, rows aside

    Raises
    ------
    UsageError
        there is no text, or more than the context has room for
    CapsuleError
        there is such a file, or it cannot be written
    ModelError
        this model's cache cannot be compressed
    """
    if not texts:
        raise UsageError("there is no text to read")
    check_place(Path(path), overwrite=overwrite)  # before minutes of reading
    with HeadKV(
        llama, policy="snapkv", budget="full", archive=archive, on_notice=on_notice, on_progress=on_progress
    ) as headkv:
        conversation = Conversation(headkv, system, Sampling())
        for text_name, text in texts:
            conversation.attach(text_name, text)
        conversation.read_attachments()
        shown = name or ", ".join(text_name for text_name, _ in texts)
        contents = conversation.save(path, name=shown, overwrite=overwrite)
        headkv.clear()
    return contents
