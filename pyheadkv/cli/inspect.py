"""`pyheadkv inspect`: shape, support, bytes per token and the plan, from the GGUF's keys alone."""

from __future__ import annotations

import json
import statistics
from typing import Any

from pyheadkv.budget import Budget
from pyheadkv.cli.app import CacheOptions
from pyheadkv.cli.render import mib, note
from pyheadkv.errors import ModelError
from pyheadkv.models import resolve_model
from pyheadkv.native import read_gguf_metadata
from pyheadkv.plan import Plan, make_plan
from pyheadkv.policy import parse_policy
from pyheadkv.profile import read_profile
from pyheadkv.shape import ModelShape, shape_from_metadata, unsupported_reason


def run_inspect(options: CacheOptions, as_json: bool) -> None:
    """Print the report as text, or as one JSON object."""
    report = inspect_model(options)
    print(json.dumps(report) if as_json else "\n".join(_lines(report)))


def inspect_model(options: CacheOptions) -> dict[str, Any]:
    """Collect what is known of a model.

    Raises
    ------
    HeadKVError
        the file cannot be read, or the options do not fit it
    """
    policy, budget = parse_policy(options.policy_text), Budget.parse(options.budget)
    path = resolve_model(options.model, note)
    metadata = read_gguf_metadata(path)
    reason = unsupported_reason(metadata)
    report: dict[str, Any] = {
        "model": str(path),
        "architecture": metadata.get("general.architecture"),
        "name": metadata.get("general.name"),
        "is_supported": reason is None,
        "reason": reason,
        "has_chat_template": "tokenizer.chat_template" in metadata,
    }
    try:
        shape = shape_from_metadata(metadata)
    except ModelError as error:
        if reason is None:
            raise
        return {**report, "shape": None, "shape_error": str(error)}
    report |= _shape_report(shape, options)
    if reason is not None:
        return report

    if policy.needs_profile and options.profile is None:
        return {**report, "plan": None, "plan_note": f"policy {policy.name} needs --profile FILE"}
    n_prompt = options.n_ctx or shape.n_ctx_train
    types = {"type_k": options.type_k, "type_v": options.type_v}
    budget.check(shape, n_prompt, policy.floor_rows, **types, floor_words=policy.floor_words)
    profile = read_profile(options.profile, shape) if options.profile else None
    plan = make_plan(shape, policy, budget, n_prompt, profile=profile, **types)
    return {
        **report,
        "plan": _plan_report(plan) if plan else None,
        "plan_note": None if plan else "the cache stays whole",
    }


def _shape_report(shape: ModelShape, options: CacheOptions) -> dict[str, Any]:
    return {
        "n_ctx_train": shape.n_ctx_train,
        "shape": {
            "n_layer": shape.n_layer,
            "n_head": [layer.n_head for layer in shape.layers],
            "n_head_kv": list(shape.n_head_kv),
            "n_embd_head_k": sorted({layer.n_embd_head_k for layer in shape.layers}),
            "n_embd_head_v": sorted({layer.n_embd_head_v for layer in shape.layers}),
        },
        "type_k": options.type_k,
        "type_v": options.type_v,
        "bytes_per_token": shape.bytes_per_token(options.type_k, options.type_v),
    }


def _plan_report(plan: Plan) -> dict[str, Any]:
    heads = [n for layer in plan.rows for n in layer]
    spread = {"min": min(heads), "median": statistics.median(heads), "max": max(heads)}
    return {**plan.to_json(), "rows_spread": spread}


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"model            {report['model']}",
        f"architecture     {report['architecture']} ({report['name'] or 'no name'})",
        f"supported        {'yes' if report['is_supported'] else 'no: ' + report['reason']}",
        f"chat template    {'yes' if report['has_chat_template'] else 'no: text is continued as it is'}",
    ]
    shape = report["shape"]
    if shape is None:
        return [*lines, f"shape            unknown: {report['shape_error']}"]
    lines += [
        f"context          {report['n_ctx_train']} tokens in training",
        f"layers           {shape['n_layer']} with a KV cache",
        f"query heads      {_span(shape['n_head'])} in a layer",
        f"KV heads         {_span(shape['n_head_kv'])} in a layer, {sum(shape['n_head_kv'])} in all",
        f"head size        K {_span(shape['n_embd_head_k'])}, V {_span(shape['n_embd_head_v'])}",
        f"KV per token     {report['bytes_per_token']} bytes ({report['type_k']}/{report['type_v']})",
    ]
    plan = report.get("plan")
    if plan:
        spread, budget = plan["rows_spread"], plan["budget"]
        lines += [
            f"plan             {plan['policy']}, budget {budget['request']}, prompt of {plan['n_prompt']} tokens",
            f"rows kept        {plan['rows_kept']} of {plan['rows_full']} ({100 * budget['keep_ratio']:.3g} %)",
            f"rows per head    min {spread['min']}, median {spread['median']:g}, max {spread['max']}",
            f"KV bytes         {mib(plan['bytes_kept'])} of {mib(plan['bytes_full'])} MiB",
        ]
    elif report.get("plan_note"):
        lines.append(f"plan             none: {report['plan_note']}")
    return lines


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
