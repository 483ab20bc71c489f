"""Reading tokens layer by layer: the rows of one layer are in memory at a time, those of the others lie in a file.

    memory   | layer 7: K, V of all tokens | hidden states |        file   | layers 0 .. 6 ...... | 7 | ... |

What comes out is what reading them batch by batch gives, bit for bit (native/README.md says how); but for a few tokens
behind many, which attend by a faster kernel that rounds otherwise, unless all is to be exact. Where the archive is
kept, the file stays while the cache is compressed: `Sweep.reopen` makes all of it the cache again, to be read on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from pyheadkv.cache.archive import Archive
from pyheadkv.engine.abi import STATUS_COMPUTE
from pyheadkv.engine.llama import count_read, cut, tokens_of, wants_all_logits
from pyheadkv.engine.native import Compression, Native, Observe
from pyheadkv.errors import ModelError, NativeError, UsageError

if TYPE_CHECKING:
    import llama_cpp

MIN_TOKENS = 512  # fewer take less memory than what is needed beside them
N_FUSED = 63  # upstream's attention on the CPU computes tiles of 64 queries, and fewer one by one


class Sweep:
    """Reads tokens onto the cache of a Llama layer by layer, where that can be done.

    Parameters
    ----------
    llama, native
        the model
    archive
        where the rows lie
    on_notice
        called with one line where it cannot be done
    min_tokens
        fewer are not read so, unless the archive is kept
    is_exact
        a few tokens attend to many as upstream has it too, bit for bit; otherwise by the kernel of hot rows, faster
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        native: Native,
        archive: Archive,
        on_notice: Callable[[str], None],
        min_tokens: int = MIN_TOKENS,
        is_exact: bool = False,
    ) -> None:
        self._llama, self._native = llama, native
        self._archive = archive
        self._notify = on_notice
        self._min_tokens = 1 if archive.is_kept else min_tokens
        self._n_fused = 0 if is_exact else N_FUSED
        self._n_exact: int | None = None  # positions in the archive before those whose rows came of hot rows
        native.keep_archive(archive.is_kept)

    @cached_property
    def _is_possible(self) -> bool:
        reason = "logits of all tokens are wanted" if wants_all_logits(self._llama) else self._native.read_reason()
        if reason:
            self._notify(f"the whole cache exists while a prompt is read, not one layer of it at a time: {reason}")
        return not reason

    def suits(self, n_tokens: int) -> bool:
        """Whether a prompt, of which so many tokens are to be read, is read layer by layer."""
        return n_tokens >= self._min_tokens and self._is_possible

    @property
    def is_open(self) -> bool:
        """Whether the rows lie in a file now: whatever is read then is best read layer by layer."""
        stats = self._native.stats()
        return stats.n_pos_archive > 0 and stats.n_pos_hot == 0

    @property
    def is_parked(self) -> bool:
        """Whether the rows lie in an archive beside a compressed cache."""
        stats = self._native.stats()
        return stats.n_pos_archive > 0 and stats.n_pos_hot > 0

    @property
    def n_exact(self) -> int:
        """Positions in the archive whose rows are those of a whole cache."""
        n = min(self._native.stats().n_pos_archive, int(self._llama.n_tokens))
        return n if self._n_exact is None else min(n, self._n_exact)

    def reopen(self, is_exact: bool) -> list[int]:
        """Make the archive the cache again, which has no hot rows then.

        Parameters
        ----------
        is_exact
            leave out what was generated since, whose rows come of hot rows

        Returns
        -------
        tokens that were left out
        """
        tokens = tokens_of(self._llama)
        n_left = self.n_exact if is_exact else len(tokens)
        if not is_exact:
            self._n_exact = self.n_exact
        self._native.reopen(n_left)
        cut(self._llama, n_left)
        return tokens[n_left:]

    def forget(self) -> None:
        """The conversation, or all of it whose rows came of hot rows, is gone."""
        self._n_exact = None

    def read(
        self,
        tokens: Sequence[int],
        on_progress: Callable[[int, int], None] = lambda n_done, n_total: None,
        observe: Observe | None = None,
        compression: Compression | None = None,
    ) -> bool:
        """Read tokens after those that are there; arguments as of `Native.read`.

        Returns
        -------
        false: there is no room for the file, which was said; nothing was read

        Raises
        ------
        NativeError
            a computation failed; the cache is as it was
        """
        cut(self._llama, self._llama.n_tokens)
        if self._n_exact is not None and self._llama.n_tokens <= self._n_exact:
            self.forget()
        try:
            with self._archive.folder() as folder:
                self._native.read(
                    tokens,
                    observe=observe,
                    n_fused=self._n_fused,
                    folder=folder,
                    compression=compression,
                    on_progress=on_progress,
                )
        except (NativeError, ModelError, UsageError) as error:
            if isinstance(error, NativeError) and error.status == STATUS_COMPUTE:
                raise
            self._notify(f"the whole cache exists while this prompt is read, not one layer of it at a time: {error}")
            return False
        count_read(self._llama, tokens)
        return True
