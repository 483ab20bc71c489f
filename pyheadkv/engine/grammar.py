"""Answers that hold to a JSON schema, by a grammar of llama.cpp that is followed in a safe way.

`Llama.generate(grammar=)` may end the process: its sampler takes a grammar that cannot be read as a null pointer, and
aborts where no token may come next. So it is read here first, and followed as a logits processor, which tells.
"""

from __future__ import annotations

import ctypes
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import prod
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyheadkv.engine.llama import is_end, log_lines, vocabulary_of
from pyheadkv.errors import UsageError, one_line

if TYPE_CHECKING:
    import llama_cpp

MAX_SCHEMA = 1 << 16  # characters; what is longer takes seconds to be read
MAX_TIMES = 2000  # llama.cpp's own; each is written out before it can refuse them
MAX_PATTERN_TIMES = 256  # what may be left out so often takes seconds for each token
_ANY_OBJECT: Mapping[str, Any] = {}
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems")
_TIMES = re.compile(r"\{(\d*)(?:,(\d*))?\}")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r"})
_TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data
_log = Lock()  # of llama.cpp, which is one for the process


@dataclass(frozen=True)
class Grammar:
    """A grammar that llama.cpp can read, in GBNF."""

    gbnf: str

    @contextmanager
    def following(self, llama: llama_cpp.Llama) -> Iterator[GrammarFollower]:
        """A logits processor for one answer."""
        from llama_cpp import llama_cpp as bindings

        sampler = _make_sampler(llama, self.gbnf)
        try:
            yield GrammarFollower(sampler)
        finally:
            bindings.llama_sampler_free(sampler)


class GrammarFollower:
    """Takes all tokens from the logits that the grammar does not let through.

    Attributes
    ----------
    is_stuck
        no token may come next, and the last one was not held to the grammar
    """

    def __init__(self, sampler: Any) -> None:
        self.is_stuck = False
        self._sampler = sampler
        self._n_seen = -1  # tokens, the prompt's among them

    def __call__(self, tokens: npt.NDArray[np.intc], logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Logits f32 [n_vocab] for the token behind `tokens`, with -inf where none may be drawn."""
        from llama_cpp import llama_cpp as bindings

        if self._n_seen >= 0 and not self.is_stuck:
            for token in tokens[self._n_seen :]:
                bindings.llama_sampler_accept(self._sampler, int(token))
        self._n_seen = len(tokens)
        data = np.zeros(len(logits), _TOKEN)
        data["id"], data["logit"] = np.arange(len(logits)), logits
        array = bindings.llama_token_data_array(
            data=data.ctypes.data_as(bindings.llama_token_data_p), size=len(data), selected=-1, sorted=False
        )
        bindings.llama_sampler_apply(self._sampler, ctypes.byref(array))
        kept: npt.NDArray[np.float32] = data["logit"]
        self.is_stuck = self.is_stuck or bool(np.isneginf(kept).all())
        return logits if self.is_stuck else kept


def schema_grammar(llama: llama_cpp.Llama, schema: Mapping[str, Any] = _ANY_OBJECT) -> Grammar:
    """The grammar of all JSON that fits a schema; of any object by default.

    Raises
    ------
    UsageError
        the schema has none; the model has no token that ends an answer
    """
    if not is_end(llama, llama.token_eos()):
        raise UsageError("this model has no token that ends an answer, which a JSON schema needs")
    try:
        text = json.dumps(schema)
        if len(text) > MAX_SCHEMA:
            raise UsageError(f"the JSON schema has {len(text)} characters, the limit is {MAX_SCHEMA}")
        _check_counts(schema)
        gbnf = _gbnf_of(json.loads(text))
    except UsageError:
        raise
    except RecursionError:
        raise UsageError("the JSON schema is nested too deep") from None
    except Exception as error:  # whatever its translator stumbles over
        raise UsageError(f"the JSON schema cannot be followed: {one_line(error)[:200]}") from error
    grammar = Grammar(gbnf)
    with grammar.following(llama):
        return grammar


def _check_counts(value: Any) -> None:
    """Refuse what would be written out more often than there is memory for."""
    if isinstance(value, Mapping):
        for name in _COUNTS:
            if isinstance(value.get(name), int) and value[name] > MAX_TIMES:
                raise UsageError(f"the JSON schema has {name} {value[name]}, the limit is {MAX_TIMES}")
        if isinstance(value.get("pattern"), str):
            _check_pattern(value["pattern"])
        for item in value.values():
            _check_counts(item)
    elif isinstance(value, list):
        for item in value:
            _check_counts(item)


def _check_pattern(pattern: str) -> None:
    """Refuse what is no regular expression, and too many repetitions: some may be inside of others, so all count."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise UsageError(f"the JSON schema's pattern {pattern[:40]} is no regular expression: {error}") from None
    times = prod(max(1, *(int(n) for n in found if n)) for found in _TIMES.findall(pattern) if any(found))
    if times > MAX_PATTERN_TIMES:
        raise UsageError(f"the JSON schema's pattern repeats up to {times:.3g} times, the limit is {MAX_PATTERN_TIMES}")


def _gbnf_of(schema: Any) -> str:
    """GBNF by llama-cpp-python's translator, which gets literals with backslashes and beyond ASCII wrong."""
    from llama_cpp.llama_grammar import SchemaConverter

    class Converter(SchemaConverter):
        def _format_literal(self, literal: str) -> str:
            with suppress(ValueError):  # else it is no JSON, but a part of it
                literal = json.dumps(json.loads(literal), ensure_ascii=False)
            return f'"{literal.translate(_ESCAPES)}"'

    make: Any = Converter
    converter = make(prop_order={}, allow_fetch=False, dotall=False, raw_pattern=False)
    converter.visit(converter.resolve_refs(schema, "schema"), "")
    gbnf: str = converter.format_grammar()
    return gbnf


def _make_sampler(llama: llama_cpp.Llama, gbnf: str) -> Any:
    from llama_cpp import llama_cpp as bindings

    lines: list[str] = []
    with _log, log_lines(lines):
        sampler = bindings.llama_sampler_init_grammar(vocabulary_of(llama).vocab, gbnf.encode(), b"root")
    if not sampler:
        reason = lines[0] if lines else "llama.cpp cannot read it"
        raise UsageError(f"the JSON schema has no grammar: {reason[:200]}")
    return sampler
