"""`pyheadkv policies`: what --policy takes, as tables or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from pyheadkv.cli.options import PoliciesOptions
from pyheadkv.policy.catalogue import Entry, Settings, allocator_entries, policy_entries, scorer_entries
from pyheadkv.policy.text import parse_policy

_ABOUT_SETTINGS = """\
Settings follow the name: --policy headkv:beta=1.1,n_obs=32. Every policy has n_sink, n_recent, lookahead, score_mix, \
n_obs, pool_kernel, pool, fold, reduce, retrieval_share, retrieval_kernel and vote_share, beside its allocator's own; \
pyheadkv policies NAME shows them. ALLOCATOR+SCORER is a policy too, and so is a file: --policy my_policy.py."""


def run(options: PoliciesOptions) -> None:
    """Print what there is, or all about the policies that are named.

    Raises
    ------
    PolicyError
        a name is unknown, or a file registers no policy
    """
    names = options.names
    tables = {"policies": policy_entries([parse_policy(name) for name in names] if names else None)}
    if not names:
        tables |= {"allocators": allocator_entries(), "scorers": scorer_entries()}
    if options.as_json:
        print(json.dumps({title: [asdict(entry) for entry in entries] for title, entries in tables.items()}))
        return
    console = Console(highlight=False, markup=False)
    if names:
        for entry in tables["policies"]:
            console.print(_card(entry))
        return
    for title, entries in tables.items():
        console.print(_table(title, entries))
    console.print(_ABOUT_SETTINGS)


def _table(title: str, entries: Sequence[Entry]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("name", no_wrap=True)
    for heading in ("what is kept", "needs", "arXiv"):
        table.add_column(heading)
    for entry in entries:
        table.add_row(entry.name, entry.summary, _listed(entry.needs), "\n".join(entry.sources) or "-")
    return table


def _card(entry: Entry) -> Table:
    card = Table(title=entry.name, title_justify="left", show_header=False, box=None, pad_edge=False)
    card.add_row("keeps", entry.summary)
    card.add_row("needs", _listed(entry.needs))
    card.add_row("arXiv", _listed(entry.sources))
    card.add_row("settings", _of_effect(entry.settings))
    return card


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words) or "-"


def _of_effect(settings: Settings) -> str:
    """Settings as they are typed, without those that are switched off, which say nothing."""
    off = {key for key in ("lookahead", "n_recent") if not settings.get(key)}
    if not settings.get("retrieval_share"):
        off |= {"retrieval_share", "retrieval_kernel", "vote_share"}
    if settings.get("pool_kernel") == 1:
        off |= {"pool", "pool_kernel"}
    return " ".join(f"{key}={value}" for key, value in settings.items() if key not in off) or "-"
