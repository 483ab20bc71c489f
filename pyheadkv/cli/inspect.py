"""`pyheadkv inspect`: shape, support, bytes per token, head scores and the plan, from the GGUF's header alone."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from pyheadkv.cache.stats import mib
from pyheadkv.cli.fit import choose_fit, fit_words, parse_size
from pyheadkv.cli.options import InspectOptions
from pyheadkv.cli.render import note
from pyheadkv.engine.sources import resolve_model
from pyheadkv.errors import ModelError, ProfileError, UsageError
from pyheadkv.model.beside import bytes_beside
from pyheadkv.model.file import read_gguf_metadata
from pyheadkv.model.shape import ModelShape, shape_from_metadata
from pyheadkv.model.support import unsupported_reason
from pyheadkv.model.weights import slow_weights_note, weight_types
from pyheadkv.plots.heatmap import HeatMap
from pyheadkv.policy.peak import peak
from pyheadkv.policy.plan import Plan, check_budget, choose_budget, make_plan
from pyheadkv.policy.text import parse_policy
from pyheadkv.profile import Profile, format_mix, mix_profile
from pyheadkv.profile.find import find_profile

_PROMPTS, _KEPT = (8192, 32768, 131072), 10  # tokens, and % of the rows, of which is told what compressing them frees


@dataclass
class Inspection:
    """Facts about a model: plain values, and their sources."""

    report: dict[str, Any]
    shape: ModelShape | None = None
    profile: Profile | None = None
    plan: Plan | None = None

    def heat_map(self) -> HeatMap | None:
        """The profile's scores and the plan's rows; None without a profile."""
        if self.shape is None or self.profile is None:
            return None
        layers = [layer.il for layer in self.shape.layers]
        if self.plan is None:
            return HeatMap(layers, self.profile.scores)
        title = f"{self.plan.policy}, budget {self.plan.budget.request}, prompt of {self.plan.n_prompt} tokens"
        return HeatMap(layers, self.profile.scores, self.plan.rows, title)


def run(options: InspectOptions) -> None:
    """Print the report as text, or as one JSON object; draw the head scores into a file if asked.

    Raises
    ------
    HeadKVError
        the file cannot be read, the options do not fit it, or there is nothing to draw
    """
    inspection = inspect_model(options)
    heat_map = inspection.heat_map()
    if (png := options.png) is not None:
        if heat_map is None:
            raise UsageError(f"{png}: nothing to draw, the model carries no profile and there is no --profile FILE")
        heat_map.write_png(png)
    if options.as_json:
        print(json.dumps(inspection.report))
        return
    print("\n".join(_lines(inspection.report)))
    if heat_map is None:
        return
    console = Console(highlight=False, soft_wrap=True)
    print()
    if not console.no_color and console.color_system in ("256", "truecolor"):  # the 16 colours of others are no scale
        console.print(heat_map.shaded())
    else:
        print("\n".join(heat_map.lines()))


def inspect_model(options: InspectOptions) -> Inspection:
    """Collect what is known of a model.

    Raises
    ------
    HeadKVError
        the file cannot be read, or the options do not fit it
    """
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
        "profile": None,
        "weights": (weights := weight_types(path)),
        "weights_note": slow_weights_note(weights),
    }
    try:
        shape = shape_from_metadata(metadata)
    except ModelError as error:
        if reason is None:
            raise
        return Inspection({**report, "shape": None, "shape_error": str(error)})
    inspection = Inspection(report, shape)
    _add_profile(inspection, options, path, metadata)
    if reason is None and options.fit:
        policy, limit = parse_policy(options.policy), parse_size(options.fit)
        fit = choose_fit(options, limit, path, metadata, shape, policy, inspection.profile)
        report["fit"] = {"options": str(fit), "bytes_reading": fit.reading, "bytes_answering": fit.answering}
        report["fit"]["words"] = fit_words(fit, options.fit)
        options = replace(options, n_ctx=fit.n_ctx, type_k=fit.type_k, type_v=fit.type_v, budget=fit.budget.request)
    report |= _shape_report(shape, options)
    if reason is None:
        n_ctx = options.n_ctx or shape.n_ctx_train
        report["beside"] = asdict(bytes_beside(metadata, n_ctx, options.type_k, options.type_v))
        _add_plan(inspection, options, int(str(metadata[f"{shape.architecture}.embedding_length"])))
    return inspection


def _add_profile(inspection: Inspection, options: InspectOptions, path: Path, metadata: dict[str, object]) -> None:
    """The profile asked for, else the model's own. One that cannot be used is an error only if it was asked for."""
    assert inspection.shape is not None
    try:
        profile = find_profile(path, metadata, inspection.shape, options.profile)
    except ProfileError as error:
        if options.profile:
            raise
        inspection.report["profile_note"] = str(error)
        return
    if profile:
        inspection.profile = mix_profile(profile, options.score_mix)
        inspection.report["profile"] = asdict(inspection.profile)


def _add_plan(inspection: Inspection, options: InspectOptions, n_embd: int) -> None:
    shape, profile, report = inspection.shape, inspection.profile, inspection.report
    assert shape is not None
    policy, budget = parse_policy(options.policy), choose_budget(options.budget, profile)
    report |= {"plan": None, "plan_note": None}
    if policy.needs_profile and profile is None:
        report["plan_note"] = f"policy {policy.name} needs --profile FILE"
        return
    n_prompt = options.n_ctx or shape.n_ctx_train
    types: dict[str, Any] = {"type_k": options.type_k, "type_v": options.type_v}
    check_budget(shape, policy, budget, n_prompt, profile=profile, **types)
    inspection.plan = make_plan(shape, policy, budget, n_prompt, profile=profile, **types)
    if inspection.plan:
        peaks = peak(shape, inspection.plan, **types, n_embd=n_embd)
        report["plan"] = {**_plan_report(inspection.plan), "peak_bytes": asdict(peaks)}
    else:
        report["plan_note"] = "the cache stays whole"


def _shape_report(shape: ModelShape, options: InspectOptions) -> dict[str, Any]:
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
        "bytes_per_token": (n_bytes := shape.bytes_per_token(options.type_k, options.type_v)),
        "bytes_freed": {str(n_tokens): n_bytes * n_tokens * (100 - _KEPT) // 100 for n_tokens in _PROMPTS},
    }


def _plan_report(plan: Plan) -> dict[str, Any]:
    heads = [n for layer in plan.rows for n in layer]
    spread = {"min": min(heads), "median": statistics.median(heads), "max": max(heads)}
    return {**plan.to_json(), "rows_spread": spread}


def _peak_line(peaks: dict[str, int], beside: int) -> str:
    if beside:  # such models are read batch by batch
        return f"while reading    {mib(peaks['whole'])} MiB, and {mib(beside)} MiB beside"
    by_layers = f"{mib(peaks['by_layers'])} MiB layer by layer, with {mib(peaks['hidden_states'])} MiB of hidden states"
    return f"while reading    {by_layers}; {mib(peaks['whole'])} MiB with --no-sweep"


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [
        f"model            {report['model']}",
        f"architecture     {report['architecture']} ({report['name'] or 'no name'})",
        f"supported        {'yes' if report['is_supported'] else 'no: ' + report['reason']}",
        f"chat template    {'yes' if report['has_chat_template'] else 'no: text is continued as it is'}",
    ]
    shares = [f"{name} {100 * share:.3g} %" for name, share in report["weights"].items()]
    lines.append(f"weights          {', '.join(shares)}")
    if report["weights_note"]:
        lines.append(f"                 {report['weights_note']}")
    shape = report["shape"]
    if shape is None:
        return [*lines, f"shape            unknown: {report['shape_error']}"]
    lines += [
        f"context          {report['n_ctx_train']} tokens in training",
        f"layers           {shape['n_layer']} with a KV cache of all positions",
        f"query heads      {_span(shape['n_head'])} in a layer",
        f"KV heads         {_span(shape['n_head_kv'])} in a layer, {sum(shape['n_head_kv'])} in all",
        f"head size        K {_span(shape['n_embd_head_k'])}, V {_span(shape['n_embd_head_v'])}",
        f"KV per token     {report['bytes_per_token']} bytes ({report['type_k']}/{report['type_v']})",
    ]
    lines += _beside_lines(report)
    freed = ", ".join(f"{mib(n)} of {int(tokens) // 1024}k" for tokens, n in report["bytes_freed"].items())
    lines.append(f"freed at {_KEPT} %    {freed} (MiB)")
    lines += _profile_lines(report)
    if "fit" in report:
        lines.append(f"fit              {report['fit']['words']}")
    plan = report.get("plan")
    if plan:
        spread, budget = plan["rows_spread"], plan["budget"]
        lines += [
            f"plan             {plan['policy']}, budget {budget['request']}, prompt of {plan['n_prompt']} tokens",
            f"rows kept        {plan['rows_kept']} of {plan['rows_full']} ({100 * budget['keep_ratio']:.3g} %)",
            f"rows per head    min {spread['min']}, median {spread['median']:g}, max {spread['max']}",
            f"KV bytes         {mib(plan['bytes_kept'])} of {mib(plan['bytes_full'])} MiB",
            _peak_line(plan["peak_bytes"], report["beside"]["windows"] + report["beside"]["states"]),
        ]
    elif report.get("plan_note"):
        lines.append(f"plan             none: {report['plan_note']}")
    return lines


def _beside_lines(report: dict[str, Any]) -> list[str]:
    """What layers have whose rows are not compressed."""
    if not (beside := report.get("beside")):
        return []
    return [
        f"{name:<17}{mib(beside[what])} MiB beside, kept whole, in {beside[n_layers]} layers{words}"
        for name, what, n_layers, words in (
            ("windows", "windows", "n_window_layers", f" of the last {beside['n_window']} tokens"),
            ("states", "states", "n_state_layers", ""),
        )
        if beside[n_layers]
    ]


def _profile_lines(report: dict[str, Any]) -> list[str]:
    profile = report["profile"]
    if profile is None:
        return [f"profile          none{': ' + report['profile_note'] if 'profile_note' in report else ''}"]
    lines = [
        f"profile          {profile['method']}, from {profile['source']}",
        f"fingerprint      {profile['fingerprint'] or 'none: which model it was measured on is not known'}",
    ]
    if profile["kinds"]:
        lines.append(
            f"kinds of scores  {', '.join(profile['kinds'])}; in use: {format_mix(profile['mix']) or 'no mix'}"
        )
    if profile["keep_ratio"] is not None:
        lines.append(f"default budget   {100 * profile['keep_ratio']:g}%")
    for setting in profile["settings"]:
        mix, figures = format_mix(setting["mix"]), [f"{name} {value:g}" for name, value in setting["figures"].items()]
        words = "; ".join(filter(None, (setting["policy"], mix, ", ".join(figures))))
        lines.append(f"up to {100 * setting['max_keep_ratio']:6.4g}%    {words}")
    return lines


def _span(values: list[int]) -> str:
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low} to {high}"
