"""First lines of a chat: the model, and the meaning of the budget at this context."""

from __future__ import annotations

from pyheadkv.cache.stats import mib
from pyheadkv.chat import demo
from pyheadkv.chat.session import HeadKV
from pyheadkv.engine.llama import context_length, n_params


def welcome_lines(headkv: HeadKV) -> list[str]:
    """Two lines on any model, and one more on the demo."""
    llama = headkv.llama
    n_ctx, plan = context_length(llama), headkv.plan_for(context_length(llama))
    whole = mib(n_ctx * headkv.shape.bytes_per_token(headkv.type_k, headkv.type_v))
    name = headkv.shape.name or headkv.shape.architecture
    kept = f"up to {mib(plan.bytes_kept)} MiB of keys and values, whole cache {whole} MiB" if plan else f"{whole} MiB"
    lines = [
        f"{name}, {_count(n_params(llama))} parameters, context {n_ctx} tokens",
        f"budget {headkv.budget.request}: {kept} at this context",
    ]
    return [*lines, demo.WORDS] if demo.is_demo(llama.model_path) else lines


def _count(n: int) -> str:
    return f"{n / 1e9:.2g} billion" if n >= 1e9 else f"{n / 1e6:.3g} million"
