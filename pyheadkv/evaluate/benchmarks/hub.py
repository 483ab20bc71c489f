"""Benchmarks at the hub, by short names; their files stay in huggingface-hub's own cache."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyheadkv.engine.sources import fetch_problem
from pyheadkv.errors import EvaluationError
from pyheadkv.evaluate.benchmarks.rows import Source

Notice = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a benchmark is.

    Parameters
    ----------
    file, member
        of the repository, and in it if it is an archive; {0} and {1} stand for the parts of a name, apart by "/"
    example
        a name that is there
    """

    repo: str
    file: str
    member: str
    example: str

    @property
    def n_parts(self) -> int:
        """Parts that a name must have; a further one is a task."""
        return 2 if "{1}" in self.file else 1


PLACES = {
    "longbench": Place("THUDM/LongBench", "data.zip", "data/{0}.jsonl", "hotpotqa"),
    "loogle": Place("bigai-nlco/LooGLE", "data/{0}.jsonl", "", "longdep_qa"),
    "ruler": Place("simonjegou/ruler", "{0}/test-00000-of-00001.parquet", "", "4096 or 4096/niah_single_1"),
    "babilong": Place("RMT-team/babilong", "data/{0}/{1}.json", "", "qa1/4k"),
}
_NAME = re.compile(rf"(?P<benchmark>{'|'.join(PLACES)}):(?P<name>[\w./-]*)")


def fetch(text: str, on_notice: Notice | None = None) -> Source | None:
    """The file of BENCHMARK:NAME, from the cache or downloaded; None if the text is not of this form.

    Raises
    ------
    EvaluationError
        it cannot be had
    """
    match = _NAME.fullmatch(text)
    if match is None:
        return None
    import huggingface_hub

    place, parts = PLACES[match["benchmark"]], match["name"].split("/")
    if len(parts) not in (place.n_parts, 2) or not all(parts):
        raise EvaluationError(f"{text} cannot be read, expected as in {match['benchmark']}:{place.example}")
    file, member = place.file.format(*parts), place.member.format(*parts)
    # the hub library raises the exceptions of its HTTP client, which differ from version to version
    try:
        cached = huggingface_hub.try_to_load_from_cache(place.repo, file, repo_type="dataset")
        if on_notice and not isinstance(cached, str):
            on_notice(f"fetching {file} of {place.repo}")
        path = huggingface_hub.hf_hub_download(place.repo, file, repo_type="dataset")
    except Exception as error:
        raise EvaluationError(f"{text}: {file} of {place.repo} cannot be fetched: {fetch_problem(error)}") from error
    task = parts[1] if len(parts) > place.n_parts else ""
    return Source(Path(path), member, task)
