"""HeadKV: a llama_cpp.Llama whose cache is compressed after each long prompt.

`HeadKV` wraps `generate` and `eval` of one Llama instance (and refuses to save states), so create_chat_completion,
streaming, stop words, grammars and samplers of llama-cpp-python go on working. It wraps `close` too: a call of a freed
model would crash, and is a UsageError instead.

    eval(prompt):   the prompt's last n_last tokens observe | plan -> compress
    eval(token):    as it was, on the compressed cache

The last n_last tokens are those that the scorer looks at: the window, or all of the prompt.

With a lookahead of m tokens, the observation goes on while the first m tokens of the answer are generated on the whole
cache, and compression comes after them.

Positions never change, so `Llama.generate` may go on reusing a matching prefix: what it keeps reaches into the tail, or
the native side refuses to cut, and generate then evaluates everything anew from position 0. Three rules follow:

- a prompt that only adds to a compressed conversation is evaluated on top of it, in the tail;
- a prompt that differs before the tail, or that is longer than all before it, is read whole again and compressed again;
- a prompt shorter than `min_prompt` tokens is left alone: it has next to nothing to save, and much to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv.cache.archive import Archive, parse_archive
from pyheadkv.cache.prefill import Prefill, Stage
from pyheadkv.cache.stats import SessionStats, TurnTimer, kv_report
from pyheadkv.cache.sweep import Sweep
from pyheadkv.cache.turns import Turns
from pyheadkv.capsule.format import Message
from pyheadkv.capsule.reader import Contents
from pyheadkv.chat.saving import Saving, no_room
from pyheadkv.engine.beginning import n_same
from pyheadkv.engine.llama import context_length, is_on_gpu, n_ctx_train, piece, replace_freed, tokens_of
from pyheadkv.engine.load import load
from pyheadkv.engine.native import Native
from pyheadkv.engine.template import protect_chat_completion
from pyheadkv.errors import ModelError, UsageError
from pyheadkv.files.plain_text import typed_text
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import CACHE_TYPES, ModelShape
from pyheadkv.policy.budget import BudgetLike
from pyheadkv.policy.plan import DraftPlan, Plan, check_budget, choose_budget, draft_plan, make_plan
from pyheadkv.policy.policy import Auto, PolicyChoice
from pyheadkv.policy.spans import Span, find_spans, short_text
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile, mix_profile
from pyheadkv.profile.find import find_profile

if TYPE_CHECKING:
    import llama_cpp

__all__ = ["HeadKV", "load"]

MIN_PROMPT = 256
_WRAPPED = ("generate", "eval", "set_cache", "save_state", "load_state", "close")
_NO_STATES = "a prompt cache (Llama.set_cache) saves whole states, which a compressed cache does not have: HeadKV.save"


class HeadKV:
    """Compress the cache of a Llama after each long prompt, a number of rows for every KV head.

    A context manager; `close` takes the wrappers off again. `create_chat_completion` reads special tokens in what the
    model's chat template writes, and never in messages; a `chat_handler` or `chat_format` of the caller's own goes on
    as it was, since llama-cpp-python's formats give one string in which nobody can tell them apart.

    >>> llama = pyheadkv.load("model.gguf", n_ctx=8192)
    >>> with HeadKV(llama, budget=0.1) as headkv:
    ...     answer = llama.create_chat_completion(messages=[{"role": "user", "content": question}])
    ...     print(headkv.stats().bytes_measured, "bytes of", headkv.stats().bytes_full)

    Parameters
    ----------
    llama
        made by the caller with flash_attn=True, best by `load`
    policy
        name with settings, as `parse_policy` reads it, or a Policy; "auto" is what the profile says,
        and snapkv without one
    budget
        "25%", "512" (rows per KV head on average), "64MiB", "full", a Budget, or a number: an int is rows per KV head,
        a float in (0, 1] a share of the prompt's rows; by default what the profile says, and 25% without
    profile
        measured head scores, a Profile or its file; by default the model file's own, or the ready one
        that pyheadkv has for this model
    score_mix
        kinds of head scores to use, as `parse_mix` reads it: "retrieval-reasoning=1,reconstruction=1"
    min_prompt
        prompts of fewer tokens are not compressed
    protect
        texts whose tokens every KV head keeps where they stand in a prompt, the most important first. Half of the
        rows that a head has beside sinks and window may go to them; one without room is not protected, with a notice
    on_notice
        called with one line when something the user should know happened
    on_progress
        called with (tokens read, tokens to read) while a prompt is read
    stop_when
        called with each token of an answer; what it says is true of is the last one. `pyheadkv.chat.loops.LoopWatch`
        watches one answer; the attribute of this name can be set before each
    sweep
        read prompts layer by layer, so that one layer of the whole cache exists at a time, beside an archive of all
        rows; otherwise the whole cache exists while a prompt is read
    archive
        what becomes of the archive when the cache is compressed. It stays, so that every question chooses anew: "disk",
        in the cache folder, or a folder; "ram", in main memory; "auto", on disk, or in main memory beside a GPU. It
        goes, and what was not kept is lost for later questions: "none"
    rereads_answers
        with an archive: answers are read again with the next question, exactly; otherwise their rows stay as they
        were generated
    exact
        with an archive: short questions attend to it with llama.cpp's own kernel, so that what is read is what it
        would read, bit for bit; otherwise with ours, which is faster on the CPU and rounds otherwise

    Raises
    ------
    ModelError
        this model, cache or Llama cannot be compressed; says why
    BudgetError, PolicyError, ProfileError
        the settings do not fit the model
    UsageError
        this Llama is closed, has a HeadKV or a prompt cache, or was made for embeddings; a text to protect is none
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        *,
        policy: PolicyChoice | str = "auto",
        budget: BudgetLike | None = None,
        profile: Profile | str | Path | None = None,
        score_mix: str | None = None,
        min_prompt: int = MIN_PROMPT,
        protect: Sequence[str] = (),
        on_notice: Callable[[str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
        stop_when: Callable[[int], bool] | None = None,
        sweep: bool = True,
        archive: str = "auto",
        rereads_answers: bool = True,
        exact: bool = False,
    ) -> None:
        self.policy = parse_policy(policy) if isinstance(policy, str) else policy
        self.protect = tuple(typed_text(text, "protect") for text in protect if text.strip())
        self.on_notice = on_notice or (lambda line: None)
        self.on_progress = on_progress
        self.stop_when = stop_when
        self.llama = llama
        _refuse_unfit(llama, self.policy)
        self.type_k, self.type_v = (_type_name(llama.context_params, which) for which in ("type_k", "type_v"))
        self.native = Native(llama)
        self.shape = _native_shape(llama, self.native)
        self.profile = self._find_profile(profile, score_mix)
        self.budget = choose_budget(budget, self.profile)
        self._check_settings()
        self._n_text = int(llama.n_tokens)  # tokens that were there when this side read last
        self._image_at: int | None = None  # where something begins that others read, of no tokens
        self._is_generating: bool | None = None  # None outside of generate(), which a caller's own loop does without
        self._stock = {name: getattr(llama, name) for name in _WRAPPED}
        self._place = place = self._archive(archive)
        by_layers = Sweep(llama, self.native, place, self.on_notice, is_exact=exact) if sweep else None
        self._prefill = Prefill(llama, self.native, self._stock["eval"], self._progress, by_layers)
        self._turns = Turns(
            self._prefill,
            self._make_plan,
            min_prompt=min_prompt,
            on_notice=self.on_notice,
            sweep=by_layers,
            rereads_answers=rereads_answers,
        )
        self._saving = Saving(llama, self.native, self._turns, place, self.shape.name, self.on_notice)
        for name in _WRAPPED:
            setattr(llama, name, getattr(self, f"_{name}"))
        self._unprotect = protect_chat_completion(llama, self.on_notice)

    def _find_profile(self, profile: Profile | str | Path | None, score_mix: str | None) -> Profile | None:
        if not isinstance(profile, Profile):
            path = self.llama.model_path
            profile = find_profile(path, read_gguf_metadata(path), self.shape, profile)
        if profile is None:
            if isinstance(self.policy, Auto):
                self.on_notice(
                    "no head scores are known for this model: policy snapkv (pyheadkv calibrate measures them)"
                )
            return None
        if profile.fingerprint is None:
            self.on_notice(f"profile {profile.source} does not say which model it was measured on")
        return mix_profile(profile, score_mix)

    def _archive(self, text: str) -> Archive:
        n_bytes = context_length(self.llama) * self.shape.bytes_per_token(self.type_k, self.type_v)
        return parse_archive(text, is_on_gpu(self.llama), n_bytes)

    def _check_settings(self) -> None:
        """Refuse now what would be refused when the first long prompt is read."""
        n_ctx = context_length(self.llama)
        check_budget(self.shape, self.policy, self.budget, n_ctx, **self._planning)
        self.plan_for(n_ctx)

    @property
    def _planning(self) -> dict[str, Any]:
        return {"type_k": self.type_k, "type_v": self.type_v, "profile": self.profile}

    # ---- what the caller asks ----

    @property
    def is_compressed(self) -> bool:
        """Whether the cache is compressed now."""
        return self._prefill.stage is Stage.COMPRESSED

    @property
    def plan(self) -> Plan | None:
        """The plan that the cache follows now; None while it is whole."""
        return self._prefill.plan

    def plan_for(self, n_prompt: int) -> Plan | None:
        """The plan of a prompt of so many tokens, protected texts aside; None keeps all of it."""
        return make_plan(self.shape, self.policy, self.budget, n_prompt, **self._planning)

    def stats(self) -> SessionStats:
        """Rows and bytes as they are now, times of the last turn."""
        bytes_per_token = self.shape.bytes_per_token(self.type_k, self.type_v)
        return self._prefill.turn.stats(self.native.stats(), bytes_per_token, str(self._place))

    @property
    def bytes_checkpoints(self) -> int:
        """Main memory that copies of windows and states take, for going back; 0 of models that have neither."""
        return self._prefill.checkpoints.n_bytes if self.native.stats().bytes_beside else 0

    def report(self) -> dict[str, Any]:
        """Objects "budget", "kv", "beside", "archive", "turn", "ms" and "tok_s" of the last turn, ready for JSON."""
        stats = self.stats()
        return {
            **kv_report(stats, self.plan, self.budget, self.shape, self.type_k, self.type_v),
            "beside": {"bytes": stats.native.bytes_beside, "checkpoint_bytes": self.bytes_checkpoints},
        }

    def clear(self) -> None:
        """Forget the conversation and give its memory back."""
        self._saving.forget()
        self._prefill.forget()

    def read_whole(self, tokens: Sequence[int]) -> None:
        """Begin a conversation with these tokens, and choose nothing: that comes with the prompt that begins so.

        Raises
        ------
        UsageError
            they are as many as the context has room for, or more; the conversation is as it was
        NativeError
            a computation failed
        """
        n_ctx = context_length(self.llama)
        if len(tokens) >= n_ctx:
            raise UsageError(no_room(f"the text has {len(tokens)} tokens", len(tokens), n_ctx))
        self.clear()
        self._prefill.turn = TurnTimer(n_prompt=len(tokens))
        with self._prefill.turn.prefill():
            self._prefill.read_whole(tokens)
        self._n_text = int(self.llama.n_tokens)

    def save(
        self,
        path: str | Path,
        *,
        name: str = "",
        messages: Sequence[Message] = (),
        attachments: Sequence[str] = (),
        n_rows: int | None = None,
        overwrite: bool = False,
    ) -> Contents:
        """Save the conversation as a capsule: a new file, or one more turn in the file that it was saved to before.

        All rows of what was read are saved; those of answers that were generated over chosen rows are not, and are
        read again with the next prompt.

        Parameters
        ----------
        name
            of a new file
        messages, attachments
            of a chat, which `load` gives back: {"role", "content"} each, and texts that wait for the next message
        n_rows
            rows of no more than so many tokens are saved; by default all there are
        overwrite
            replace a file that is there

        Returns
        -------
        what the file holds now, rows aside

        Raises
        ------
        UsageError
            nothing was read yet, no archive of all rows was kept, or there is an image among them
        CapsuleError
            there is such a file, or it cannot be written; what was there is there
        """
        if self._has_image():
            raise UsageError(
                "a conversation with an image or sound cannot be saved: its tokens do not tell what came in"
            )
        return self._saving.save(path, name, messages, attachments, n_rows_max=n_rows, overwrite=overwrite)

    def check_capsule(self, contents: Contents) -> None:
        """Refuse a capsule that `load` would refuse, with the same CapsuleError; its rows are not looked at."""
        self._saving.check(contents)

    def load(self, path: str | Path, *, is_shared: bool = False) -> Contents:
        """Go on with a conversation that was saved; the one that there is, is forgotten. Nothing of the model is read.

        The next prompt reads what differs from ``tokens[:n_rows]`` of what is returned.

        Parameters
        ----------
        is_shared
            others begin with this file too: `save` does not write to it

        Raises
        ------
        CapsuleError
            it cannot be read, is damaged, or was made by another model or other settings; or the context has no room:
            the conversation is as it was then
        NativeError
            there is no room for the rows; the conversation is empty then
        """
        try:
            return self._saving.load(path, is_shared=is_shared)
        finally:
            self._n_text, self._image_at = int(self.llama.n_tokens), None

    def close(self) -> None:
        """Take the wrappers off the Llama. Hot rows stay until the Llama drops it."""
        for name in _WRAPPED:
            vars(self.llama).pop(name, None)
        self._unprotect()

    def __repr__(self) -> str:
        """Policy, budget, and rows kept of those that a whole cache would have now."""
        try:
            native, policy = self.native.stats(), (self.plan or self).policy
        except UsageError:
            return f"<HeadKV policy={self.policy}, budget={self.budget.request}, its Llama is closed>"
        kept = native.n_rows_hot + native.n_rows_tail
        return f"<HeadKV policy={policy}, budget={self.budget.request}, {kept} of {native.n_rows_full} rows kept>"

    def __enter__(self) -> HeadKV:
        """Nothing to do: the wrappers are on since the constructor."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the wrappers off."""
        self.close()

    # ---- wrappers ----

    def _generate(self, tokens: Sequence[int], *args: Any, **options: Any) -> Generator[int, Any, None]:
        """Llama.generate, counted: its first eval reads the prompt, later ones are drafts and single tokens."""
        self._prefill.turn = TurnTimer(n_prompt=len(tokens))
        self._is_generating = False
        tokens = list(tokens)
        self._go_back_to(tokens)
        with closing(self._stock["generate"](tokens, *args, **options)) as stock:
            sent = None
            while True:
                try:
                    token = stock.send(sent)
                except StopIteration:
                    return
                finally:
                    self._is_generating = None
                self._prefill.turn.n_generated += 1
                sent = yield token
                if self.stop_when and self.stop_when(token):
                    return
                self._is_generating = True

    def _go_back_to(self, tokens: list[int]) -> None:
        """Cut where a prompt differs first, which upstream tries too, and reads all again where it cannot be done."""
        if not self._prefill.checkpoints.n_bytes:
            return
        known = tokens_of(self.llama)
        n_left = n_same(known, tokens)
        if n_left < len(known):
            self._prefill.checkpoints.cut(min(n_left, len(tokens) - 1))

    def _eval(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens)
        try:
            if self._has_image():
                self._prefill.stop_observing()
                self._prefill.decode(tokens)
            elif tokens and self._is_prompt(tokens):
                self._turns.read_prompt(tokens)
            else:
                self._turns.read_answer(tokens)
        finally:
            self._n_text = int(self.llama.n_tokens)

    def _has_image(self) -> bool:
        """Whether the conversation holds an image or sound, whose rows nobody could read again from tokens.

        A chat_handler for images evaluates them itself, and moves the Llama on.
        """
        n_tokens = int(self.llama.n_tokens)
        if self._image_at is not None and n_tokens <= self._image_at:
            self._image_at = None
        if n_tokens > self._n_text and self._image_at is None:
            self._image_at = self._n_text
            self.on_notice("an image or sound came in: it is kept whole, as is what follows it")
        return self._image_at is not None

    def _is_prompt(self, tokens: list[int]) -> bool:
        if self._is_generating is None:
            return len(tokens) > 1 or self._turns.starts_in_hot_rows()
        return not self._is_generating

    def _set_cache(self, cache: Any) -> None:
        if cache is not None:
            raise UsageError(_NO_STATES)
        self._stock["set_cache"](cache)

    def _save_state(self) -> Any:
        if self.is_compressed:
            raise UsageError("the state of a compressed cache cannot be saved: HeadKV.save keeps the conversation")
        return self._stock["save_state"]()

    def _load_state(self, state: Any) -> None:
        if self.is_compressed:
            self.clear()
        self._prefill.stop_observing()
        self.native.reserve(max(1, state.n_tokens))
        self._stock["load_state"](state)
        self._n_text, self._image_at = int(self.llama.n_tokens), None

    def _close(self) -> None:
        """Llama.close; whatever asks for the model or its context afterwards gets an error."""
        self._stock["close"]()
        replace_freed(self.llama)

    # ---- for the turns ----

    def _make_plan(self, tokens: list[int]) -> DraftPlan | None:
        spans = self._protected_spans(tokens)
        draft = draft_plan(self.shape, self.policy, self.budget, len(tokens), protected=spans, **self._planning)
        for first, end in draft.expected.unprotected if draft else ():
            self.on_notice(f"{end - first} tokens from position {first} on are not protected: the budget has no room")
        return draft

    def _protected_spans(self, tokens: list[int]) -> list[Span]:
        """Where the protected texts stand in a prompt."""
        if not self.protect:
            return []
        words = cache(lambda token: piece(self.llama, token))
        spans = find_spans(tokens, self.protect, words)
        for text, span in zip(self.protect, spans, strict=True):
            if span is None:
                self.on_notice(f"nothing to protect: {short_text(text)} is not in the prompt")
        return [span for span in spans if span is not None]

    def _progress(self, n_done: int, n_total: int) -> None:
        if self.on_progress:
            self.on_progress(n_done, n_total)


def _refuse_unfit(llama: llama_cpp.Llama, policy: PolicyChoice) -> None:
    if any(name in vars(llama) for name in _WRAPPED):
        raise UsageError("this Llama has a HeadKV already: close that one first")
    if llama.cache is not None:
        raise UsageError(_NO_STATES)
    if llama.context_params.embeddings:
        raise UsageError(
            "embedding=True makes a context of many short sequences, which has nothing to compress: "
            "load the model a second time for embeddings, and this one without embedding=True"
        )
    if policy.lookahead and getattr(llama, "draft_model", None) is not None:
        raise UsageError("lookahead observes one token after the other: it does not go with a draft model")


def _type_name(params: Any, which: str) -> str:
    ggml_type = int(getattr(params, which))
    for cache_type in CACHE_TYPES.values():
        if cache_type.ggml_type == ggml_type:
            return cache_type.name
    raise ModelError(f"{which} is ggml type {ggml_type}, known cache types are {', '.join(CACHE_TYPES)}")


def _native_shape(llama: llama_cpp.Llama, native: Native) -> ModelShape:
    return ModelShape(
        architecture=llama.metadata.get("general.architecture", ""),
        name=llama.metadata.get("general.name", ""),
        n_ctx_train=n_ctx_train(llama),
        layers=native.layers(),
    )
