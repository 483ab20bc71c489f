"""A model as chat and serve open it: all that its options ask for is checked before its weights are loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pyheadkv.chat.session import HeadKV, load
from pyheadkv.cli.fit import choose_fit, fit_words, parse_size
from pyheadkv.cli.options import ModelOptions
from pyheadkv.cli.render import note
from pyheadkv.engine.native import builtin_chat_names
from pyheadkv.engine.sources import resolve_model
from pyheadkv.engine.template import check_template
from pyheadkv.errors import ProfileError, UsageError
from pyheadkv.files.plain_text import read_text, typed_text
from pyheadkv.model.file import check_has_vocabulary, read_gguf_metadata
from pyheadkv.model.support import supported_shape
from pyheadkv.policy.budget import Budget
from pyheadkv.policy.plan import check_budget, choose_budget
from pyheadkv.policy.policy import PolicyChoice
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile
from pyheadkv.profile.find import find_profile


@dataclass(frozen=True)
class ModelChoice:
    """The options, read; no model is fetched yet."""

    options: ModelOptions
    policy: PolicyChoice
    budget: Budget | None
    template: str | None
    protect: list[str]
    fit: int | None = None

    @classmethod
    def read(cls, options: ModelOptions) -> ModelChoice:
        """Read what can be read without the model.

        Raises
        ------
        PolicyError, BudgetError, UsageError, ModelError
            an option cannot be understood, or its file is none
        """
        policy = parse_policy(options.policy)
        policy = replace(policy, lookahead=options.lookahead or policy.lookahead)
        budget = Budget.parse(options.budget) if options.budget else None
        protect = [typed_text(text, "--protect") for text in options.protect or ()]
        fit = parse_size(options.fit) if options.fit else None
        return cls(options, policy, budget, chosen_template(options.template), protect, fit)

    def find(self) -> FoundModel:
        """Find the file, and refuse what its keys tell.

        Raises
        ------
        HeadKVError
            it cannot be had or compressed, or the options do not fit it
        """
        options = self.options
        path = resolve_model(options.model, note)
        metadata = read_gguf_metadata(path)
        shape = supported_shape(metadata, path)
        check_has_vocabulary(metadata, path)
        shape.bytes_per_token(options.type_k, options.type_v)  # refuses unknown types and those that do not fit
        profile = find_profile(path, metadata, shape, options.profile, options.score_mix)
        if self.policy.needs_profile and profile is None:
            raise ProfileError(
                f"policy {self.policy.name} needs measured head scores: --profile FILE, or pyheadkv calibrate"
            )
        choice = self
        if self.fit:
            fit = choose_fit(options, self.fit, path, metadata, shape, self.policy, profile)
            note(fit_words(fit, str(options.fit)))
            options = replace(options, n_ctx=fit.n_ctx, type_k=fit.type_k, type_v=fit.type_v)
            choice = replace(self, options=options, budget=fit.budget)
        types = {"type_k": options.type_k, "type_v": options.type_v}
        n_ctx = options.n_ctx or shape.n_ctx_train
        check_budget(shape, self.policy, choose_budget(choice.budget, profile), n_ctx, profile=profile, **types)
        own_template = metadata.get("tokenizer.chat_template")
        if self.template is None and isinstance(own_template, str):
            check_template(own_template)
        if n_ctx > shape.n_ctx_train:
            note(f"the context of {n_ctx} tokens is above the {shape.n_ctx_train} that this model was trained for")
        return FoundModel(choice, path, profile, n_ctx)


@dataclass(frozen=True)
class FoundModel:
    """A model's file that fits the options; its weights are not loaded yet."""

    choice: ModelChoice
    path: Path
    profile: Profile | None
    n_ctx: int

    def load(self) -> Any:
        """The model as a llama_cpp.Llama, whose errors come as exceptions only, unless all of its log is asked for.

        Raises
        ------
        ModelError
            the file cannot be loaded
        """
        options = self.choice.options
        llama = load(
            self.path,
            n_ctx=options.n_ctx,
            n_threads=options.n_threads,
            n_gpu_layers=options.n_gpu_layers,
            type_k=options.type_k,
            type_v=options.type_v,
            verbose=options.verbose,
            on_notice=note,
            chat_template=self.choice.template,
        )
        if not options.verbose:
            logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
        return llama

    def compressing(
        self,
        llama: Any,
        *,
        protect: Sequence[str] = (),
        on_progress: Callable[[int, int], None] | None = None,
    ) -> HeadKV:
        """A HeadKV on the loaded model, as the options ask for it; `protect` comes before their texts."""
        return HeadKV(
            llama,
            policy=self.choice.policy,
            budget=self.choice.budget,
            profile=self.profile,
            protect=[*protect, *self.choice.protect],
            on_notice=note,
            on_progress=on_progress,
            sweep=not self.choice.options.no_sweep,
            archive=self.choice.options.archive,
            rereads_answers=not self.choice.options.as_generated,
            exact=self.choice.options.exact,
        )


def chosen_template(choice: str | None) -> str | None:
    """A chat template that was asked for: a name of llama.cpp's, or the text of a file."""
    if choice is None or choice in builtin_chat_names():
        return choice
    if choice != "-" and not Path(choice).expanduser().exists():
        names = ", ".join(builtin_chat_names())
        raise UsageError(f"--chat-template {choice} is no file, and llama.cpp has no such template; it has {names}")
    source = read_text(choice)
    check_template(source)
    return source
