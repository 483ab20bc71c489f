"""HeadKV: a llama_cpp.Llama whose cache is compressed after each long prompt.

`HeadKV` wraps `generate` and `eval` of one Llama instance (and refuses to save states), so create_chat_completion,
streaming, stop words, grammars and samplers of llama-cpp-python go on working.

    eval(prompt):   prompt[:-n_last] in batches | arm scoring | prompt[-n_last:] | plan -> compress
    eval(token):    as it was, on the compressed cache

The last n_last tokens are those that the scorer observes: the window, or all of the prompt.

With a lookahead of m tokens, scoring stays armed while the first m tokens of the answer are generated on the whole
cache, and compression comes after them.

Positions never change, so `Llama.generate` may go on reusing a matching prefix: what it keeps reaches into the tail, or
the native side refuses to cut, and generate then evaluates everything anew from position 0. Three rules follow:

- a prompt that only adds to a compressed conversation is evaluated on top of it, in the tail;
- a prompt that differs before the tail, or that is longer than all before it, is read whole again and compressed again;
- a prompt shorter than `min_prompt` tokens is left alone: it has next to nothing to save, and much to lose.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pyheadkv._abi import STATUS_COMPUTE, STATUS_NO_MEMORY
from pyheadkv.budget import Budget
from pyheadkv.compression import arm, compress
from pyheadkv.errors import ModelError, NativeError, UsageError
from pyheadkv.loading import load
from pyheadkv.lookup import find_profile
from pyheadkv.native import Native, read_gguf_metadata
from pyheadkv.plan import Plan, check_budget, choose_budget, make_plan
from pyheadkv.policy import AUTO, Policy, parse_policy
from pyheadkv.profile import Profile, parse_mix
from pyheadkv.shape import CACHE_TYPES, ModelShape
from pyheadkv.stats import SessionStats, TurnTimer, kv_report

if TYPE_CHECKING:
    import llama_cpp

__all__ = ["HeadKV", "load"]

MIN_PROMPT = 256
_WRAPPED = ("generate", "eval", "set_cache", "save_state", "load_state")
_NO_STATES = "a prompt cache (Llama.set_cache) saves whole states, which a compressed cache does not have"
_DECODE_FAILURES = {
    1: "no cell is free for the new tokens",
    2: "the computation was aborted",
    -1: "the batch is invalid",
    -2: "memory for the computation could not be allocated",
    -3: "the computation failed",
}


class HeadKV:
    """Compress the cache of a Llama after each long prompt, a number of rows for every KV head.

    A context manager; `close` takes the wrappers off again.

    Parameters
    ----------
    llama
        made by the caller with flash_attn=True, best by `load`
    policy
        name with settings, as `parse_policy` reads it, or a Policy; "auto" is what the profile says,
        and snapkv without one
    budget
        "25%", "512" (rows per KV head on average), "64MiB", "full", or a Budget; by default what the
        profile says, and 25% without
    profile
        measured head scores, a Profile or its file; by default the model file's own, or the ready one
        that pyheadkv has for this model
    mix
        kinds of head scores to use, as `parse_mix` reads it: "retrieval-reasoning=1,reconstruction=1"
    min_prompt
        prompts of fewer tokens are not compressed
    on_notice
        called with one line when something the user should know happened
    on_progress
        called with (tokens read, tokens to read) while a prompt is read

    Raises
    ------
    ModelError
        this model, cache or Llama cannot be compressed; says why
    BudgetError, PolicyError, ProfileError
        the settings do not fit the model
    """

    def __init__(
        self,
        llama: llama_cpp.Llama,
        *,
        policy: Policy | str = "auto",
        budget: Budget | str | None = None,
        profile: Profile | str | Path | None = None,
        mix: str | None = None,
        min_prompt: int = MIN_PROMPT,
        on_notice: Callable[[str], None] | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.policy = parse_policy(policy) if isinstance(policy, str) else policy
        self.min_prompt = min_prompt
        self.on_notice = on_notice
        self.on_progress = on_progress
        self.llama = llama
        _refuse_unfit(llama, self.policy)
        self.type_k, self.type_v = (_type_name(llama.context_params, which) for which in ("type_k", "type_v"))
        self.native = Native(llama)
        self.shape = _native_shape(llama, self.native)
        self.profile = self._find_profile(profile, mix)
        self.budget = choose_budget(budget, self.profile)
        self._check_settings()
        self._plan: Plan | None = None
        self._waiting: Plan | None = None  # until its lookahead is generated
        self._turn = TurnTimer()
        self._is_generating = False
        self._wrap()

    def _find_profile(self, profile: Profile | str | Path | None, mix: str | None) -> Profile | None:
        if not isinstance(profile, Profile):
            path = self.llama.model_path
            profile = find_profile(path, read_gguf_metadata(path), self.shape, profile)
        if profile is None:
            if self.policy.name == AUTO:
                self._notify(
                    "no head scores are known for this model: policy snapkv (pyheadkv calibrate measures them)"
                )
            return None
        if profile.fingerprint is None:
            self._notify(f"profile {profile.source} does not say which model it was measured on")
        return profile if mix is None else profile.with_mix(parse_mix(mix))

    def _check_settings(self) -> None:
        """Refuse now what would be refused when the first long prompt is read."""
        n_ctx = self.llama.n_ctx()
        types = {"type_k": self.type_k, "type_v": self.type_v}
        check_budget(self.shape, self.policy, self.budget, n_ctx, profile=self.profile, **types)
        self._make_plan(n_ctx)

    # ---- what the caller asks ----

    @property
    def is_compressed(self) -> bool:
        """Whether a compressed prefix exists now."""
        return self.native.stats().n_pos_prefix > 0

    @property
    def plan(self) -> Plan | None:
        """The plan that the cache follows now; None while it is whole."""
        return self._plan if self.is_compressed else None

    def stats(self) -> SessionStats:
        """Rows and bytes as they are now, times of the last turn."""
        return self._turn.stats(self.native.stats(), self.shape.bytes_per_token(self.type_k, self.type_v))

    def kv_json(self) -> dict[str, Any]:
        """Objects "budget", "kv", "ms" and "tok_s" of the last turn, ready for JSON."""
        return kv_report(self.stats(), self.plan, self.budget, self.shape, self.type_k, self.type_v)

    def clear(self) -> None:
        """Forget the conversation and give its memory back."""
        self._stop_looking_ahead()
        self.llama.reset()  # type: ignore[no-untyped-call]
        self.llama._ctx.kv_cache_seq_rm(-1, 0, -1)

    def close(self) -> None:
        """Take the wrappers off the Llama. A compressed prefix stays until the Llama drops it."""
        for name in _WRAPPED:
            vars(self.llama).pop(name, None)

    def __enter__(self) -> HeadKV:
        """Nothing to do: the wrappers are on since the constructor."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Take the wrappers off."""
        self.close()

    # ---- wrappers ----

    def _wrap(self) -> None:
        llama: Any = self.llama
        self._stock = {name: getattr(llama, name) for name in _WRAPPED}
        for name in _WRAPPED:
            setattr(llama, name, getattr(self, f"_{name}"))

    def _generate(self, tokens: Sequence[int], *args: Any, **options: Any) -> Generator[int, Any, None]:
        """Llama.generate, counted: its first eval reads the prompt, later ones are drafts and single tokens."""
        self._turn = TurnTimer(n_prompt=len(tokens))
        self._is_generating = False
        with closing(self._stock["generate"](tokens, *args, **options)) as stock:
            sent = None
            while True:
                try:
                    token = stock.send(sent)
                except StopIteration:
                    return
                finally:
                    self._is_generating = False
                self._turn.n_generated += 1
                sent = yield token
                self._is_generating = True

    def _eval(self, tokens: Sequence[int]) -> None:
        tokens = list(tokens)
        is_answer = self._is_generating or not tokens
        if not is_answer and (len(tokens) > 1 or self._starts_in_prefix()):
            self._read_prompt(tokens)
        else:
            with self._turn.decode(len(tokens)):
                self._stock_eval(tokens)
            if self._waiting:
                self._look_ahead(self._waiting)

    def _set_cache(self, cache: Any) -> None:
        if cache is not None:
            raise UsageError(_NO_STATES)
        self._stock["set_cache"](cache)

    def _save_state(self) -> Any:
        if self.is_compressed:
            raise UsageError("the state of a compressed cache cannot be saved")
        return self._stock["save_state"]()

    def _load_state(self, state: Any) -> None:
        if self.is_compressed:
            self.clear()
        self.native.reserve(max(1, state.n_tokens))
        self._stock["load_state"](state)

    # ---- reading a prompt ----

    def _read_prompt(self, tokens: list[int]) -> None:
        n_prompt, n_ctx = self.llama.n_tokens + len(tokens), self.llama.n_ctx()
        if n_prompt > n_ctx:
            raise UsageError(f"prompt of {n_prompt} tokens is longer than the context of {n_ctx}")
        if self._turn.is_used:  # a caller's own loop of eval and sample, without generate
            self._turn = TurnTimer()
        self._turn.n_prompt = n_prompt
        self._stop_looking_ahead()
        with self._turn.prefill():
            if not self.is_compressed:
                self._read_whole(tokens)
            elif self._must_read_again(tokens):
                tokens = self.llama.input_ids[: self.llama.n_tokens].tolist() + tokens
                self.clear()
                self._read_whole(tokens)
            else:
                self._read(tokens)

    def _read_whole(self, tokens: list[int]) -> None:
        """Read a prompt onto a cache that is not compressed, and compress it if there is something to gain."""
        n_prompt = self.llama.n_tokens + len(tokens)
        plan = self._make_plan(n_prompt) if n_prompt >= self.min_prompt else None
        self.native.reserve(n_prompt)
        if plan is None:
            self._read(tokens)
        else:
            self._read_and_compress(self._with_last(tokens, plan.n_last), plan)

    def _starts_in_prefix(self) -> bool:
        """Whether the next token would overwrite a position that is compressed: generate() was refused a cut there."""
        return self.llama.n_tokens < self.native.stats().n_pos_prefix

    def _must_read_again(self, tokens: list[int]) -> bool:
        n_past = self.llama.n_tokens
        if self._starts_in_prefix():
            n_pos_prefix = self.native.stats().n_pos_prefix
            self._notify(f"the conversation changed before position {n_pos_prefix}: reading it again")
            return True
        if len(tokens) > max(n_past, self.min_prompt):
            self._notify(f"{len(tokens)} new tokens after {n_past}: reading all again to compress them together")
            return True
        return False

    def _make_plan(self, n_prompt: int) -> Plan | None:
        return make_plan(
            self.shape,
            self.policy,
            self.budget,
            n_prompt,
            type_k=self.type_k,
            type_v=self.type_v,
            profile=self.profile,
        )

    def _with_last(self, tokens: list[int], n_last: int) -> list[int]:
        """Take back the last tokens of a whole cache where the new ones are fewer than those that observe."""
        n_past = self.llama.n_tokens
        n_back = max(0, n_last - len(tokens))
        self.llama.n_tokens = n_past - n_back  # the next eval cuts the cache there
        return [*self.llama.input_ids[n_past - n_back : n_past].tolist(), *tokens]

    def _read_and_compress(self, tokens: list[int], plan: Plan) -> None:
        n_head = len(tokens) - plan.n_last
        self._read(tokens[:n_head], n_total=len(tokens))
        try:
            arm(self.native, plan)
            self._read(tokens[n_head:], n_done=n_head, n_total=len(tokens))
            if plan.policy.lookahead:
                self._waiting = plan
            else:
                self._compress(plan)
        except BaseException as error:
            with suppress(NativeError):
                self.native.score_arm(0)
            if not (isinstance(error, NativeError) and error.status == STATUS_NO_MEMORY):
                raise
            self._notify(f"the chat goes on uncompressed: {error}")
            self._read(tokens[len(tokens) - (plan.n_prompt - self.llama.n_tokens) :])

    def _stop_looking_ahead(self) -> None:
        if self._waiting:
            self._waiting = None
            self.native.score_arm(0)

    def _look_ahead(self, plan: Plan) -> None:
        """Compress when the last observing token of the answer is in the cache."""
        if self.llama.n_tokens < plan.n_prompt + plan.policy.lookahead:
            return
        self._waiting = None
        try:
            self._compress(plan)
        except NativeError as error:
            with suppress(NativeError):
                self.native.score_arm(0)
            self._notify(f"the chat goes on uncompressed: {error}")

    def _compress(self, plan: Plan) -> None:
        n_threads = int(self.llama.n_threads_batch)
        with self._turn.select():
            self._plan = compress(self.native, plan, n_threads)

    def _read(self, tokens: list[int], n_done: int = 0, n_total: int | None = None) -> None:
        n_total = len(tokens) if n_total is None else n_total
        for start in range(0, len(tokens), self.llama.n_batch):
            batch = tokens[start : start + self.llama.n_batch]
            self._stock_eval(batch)
            self._turn.n_read += len(batch)
            n_done += len(batch)
            if self.on_progress:
                self.on_progress(n_done, n_total)

    def _stock_eval(self, tokens: list[int]) -> None:
        try:
            self._stock["eval"](tokens)
            self.native.synchronize()
        except RuntimeError as error:
            raise _decode_error(error, self.llama.n_tokens) from error

    def _notify(self, line: str) -> None:
        if self.on_notice:
            self.on_notice(line)


def _refuse_unfit(llama: llama_cpp.Llama, policy: Policy) -> None:
    if any(name in vars(llama) for name in _WRAPPED):
        raise UsageError("this Llama has a HeadKV already: close that one first")
    if llama.cache is not None:
        raise UsageError(_NO_STATES)
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
        n_ctx_train=llama._model.n_ctx_train(),
        layers=native.layers(),
    )


def _decode_error(error: RuntimeError, n_tokens: int) -> Exception:
    words = str(error).split()
    if words[:2] != ["llama_decode", "returned"]:
        return error
    reason = _DECODE_FAILURES.get(int(words[2]), "unknown failure")
    return NativeError(
        f"llama_decode failed after position {n_tokens}: {reason} (status {words[2]})",
        STATUS_COMPUTE,
    )
