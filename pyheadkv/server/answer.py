"""One answer, token by token, from `Llama.generate` of a HeadKV.

Not from `Llama.create_completion`: that needs the logits of a whole context for log probabilities, decodes all of the
answer anew with each token, and cannot be left between two tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pyheadkv.chat.loops import LoopWatch
from pyheadkv.chat.sampling import Sampling
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.grammar import Grammar
from pyheadkv.engine.llama import context_length, is_end, logits
from pyheadkv.errors import NativeError, UsageError
from pyheadkv.server.log_probs import TokenLogProbs, log_probs
from pyheadkv.server.stop_words import StopWords


@dataclass(frozen=True)
class Question:
    """What the model is asked, and how its answer is chosen.

    Parameters
    ----------
    tokens
        of the prompt
    stop
        words that end the answer and are no part of it
    n_top
        log probabilities of each token, and of so many of the likeliest beside; None: of none
    grammar
        that the answer follows
    frequency_penalty, presence_penalty
        taken from the logits of tokens that were said, for each time, and once
    """

    tokens: list[int]
    sampling: Sampling
    stop: tuple[str, ...] = ()
    n_top: int | None = None
    grammar: Grammar | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0


@dataclass(frozen=True)
class Piece:
    """Text of an answer, and the tokens that were said since the piece before, where they are asked for."""

    text: str
    log_probs: tuple[TokenLogProbs, ...] = ()


class Answer:
    """The answer to a question.

    Parameters
    ----------
    headkv
        wraps the Llama that answers
    is_cancelled
        asked often, from any thread: whether nobody waits for the answer any more
    stop_loops
        end an answer that says the same over and over
    on_progress
        called with (tokens read, tokens to read) while the prompt is read

    Attributes
    ----------
    finish
        why it ended: "stop" or "length"; None while it goes on, and where it was broken off
    n_generated
        tokens said
    """

    def __init__(
        self,
        headkv: HeadKV,
        question: Question,
        is_cancelled: Callable[[], bool],
        *,
        stop_loops: bool = True,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self.finish: str | None = None
        self.n_generated = 0
        self._headkv, self._question = headkv, question
        self._llama: Any = headkv.llama
        self._is_cancelled, self._on_progress = is_cancelled, on_progress
        self._watch = LoopWatch()
        self._stop_loops = stop_loops

    def pieces(self) -> Iterator[Piece]:
        """Read the prompt, and give the answer as it comes.

        Raises
        ------
        UsageError
            the prompt has no room in the context, or no token fits the grammar
        NativeError
            the model could not be evaluated
        """
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        words = StopWords(self._question.stop)
        said: list[TokenLogProbs] = []
        for token in self._tokens():
            text = words.feed(decoder.decode(self._llama.detokenize([token])))
            if self._question.n_top is not None:
                said.append(log_probs(self._llama, logits(self._llama), token, self._question.n_top))
            if text or words.is_found:
                yield Piece(text, tuple(said))
                said = []
            if words.is_found:
                self.finish = "stop"
                break
        if self.finish and not words.is_found and ((text := words.flush()) or said):
            yield Piece(text, tuple(said))

    def _tokens(self) -> Iterator[int]:
        """The tokens of the answer, without the one that ends it; sets `finish` when it ends."""
        n_prompt, n_max = len(self._question.tokens), self._question.sampling.max_tokens
        n_room = context_length(self._llama) - n_prompt
        n_left = n_room if n_max < 0 else min(n_max, n_room)
        with closing(self._generate()) as stream:
            for token in stream:
                if self._is_cancelled():
                    return
                if is_end(self._llama, token):
                    self.finish = "stop"
                    return
                if n_left > 0:
                    self.n_generated += 1
                    yield token
                n_left -= 1
                if n_left <= 0:
                    break
            if not self._is_cancelled():
                self.finish = "length"  # of what it may be, of the context, or it goes round in a loop

    def _generate(self) -> Generator[int, None, None]:
        """`Llama.generate`, which can be cancelled while it reads the prompt; it ends then."""
        question, headkv = self._question, self._headkv
        options = question.sampling.options()
        self._llama.set_seed(options["seed"])
        headkv.stop_when = self._watch if self._stop_loops else None
        headkv.on_progress = self._progress
        with question.grammar.following(self._llama) if question.grammar else nullcontext() as follower:
            stream = self._llama.generate(
                question.tokens,
                temp=options["temperature"],
                **{name: options[name] for name in ("top_k", "top_p", "min_p", "repeat_penalty")},
                frequency_penalty=question.frequency_penalty,
                presence_penalty=question.presence_penalty,
                logits_processor=[follower] if follower else None,
            )
            with closing(stream):
                try:
                    with headkv.native.abortable(self._is_cancelled):
                        first = next(stream)
                except _LeftError:
                    return
                except NativeError:
                    if not self._is_cancelled():  # else it is the failure of what was stopped
                        raise
                    return
                for token in chain([first], stream):
                    if follower and follower.is_stuck:
                        raise UsageError(f"no token fits the JSON schema behind {self.n_generated} of the answer")
                    yield token

    def _progress(self, n_done: int, n_total: int) -> None:
        if self._is_cancelled():  # a GPU computes its batch to the end
            raise _LeftError
        self._on_progress(n_done, n_total)


class _LeftError(Exception):
    """Nobody waits for the answer any more."""
