"""The commands' options. A field is an option, its default the option's, and a docstring the command's help.

`EXAMPLES` has a line of each for the end of its help. Completions are made when a shell asks, and import what they need
then.
"""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import typer

from pyheadkv.cli import completion
from pyheadkv.model.shape import MAX_CTX


def _option(default: Any, words: str, *flags: str, **settings: Any) -> Any:
    """A field that is an option: its flag is its name, unless flags are given; `words` are its help."""
    return field(default=default, metadata={"typer": typer.Option(*flags, help=words, **settings)})


def _argument(default: Any, words: str, metavar: str, **settings: Any) -> Any:
    return field(default=default, metadata={"typer": typer.Argument(help=words, metavar=metavar, **settings)})


_MODEL = "GGUF file, demo, or user/repo[:quant]."
_model = partial(_argument, MISSING, _MODEL, "MODEL", autocompletion=completion.models)
_budget = partial(
    _option,
    None,
    "Rows to keep: 10%, 512 (per KV head on average), 64MiB, or full. [default: the profile's, or 25%]",
    autocompletion=completion.budgets,
)
_policy = partial(
    _option,
    "auto",
    "What to keep, with settings: snapkv, headkv:beta=1.1, headkv+kvzip, my_policy.py (pyheadkv policies "
    "lists them); auto asks the profile.",
    autocompletion=completion.policies,
)
_budgets = partial(_option, words="Apart by commas: shares, rows or bytes.")
_profile = partial(_option, None, "File with measured head scores. [default: the model's own]")
_score_mix = partial(
    _option, None, "Kinds of scores for policies that name none: retrieval-reasoning=1,reconstruction=1."
)
_n_ctx = partial(_option, 0, "Context in tokens; 0 is the model's own.", "-c", "--ctx-size", min=0, max=MAX_CTX)
_n_threads = partial(_option, None, "Default: all CPUs.", "-t", "--threads", min=1)
_n_gpu_layers = partial(_option, 0, "On the GPU; -1 is all.", "-ngl", "--gpu-layers", min=-1)
_type_k = partial(
    _option,
    "f16",
    "Cache type of K: f16, q8_0, q4_0, ...",
    "-ctk",
    "--cache-type-k",
    autocompletion=completion.cache_types,
)
_type_v = partial(_option, "f16", "Cache type of V.", "-ctv", "--cache-type-v", autocompletion=completion.cache_types)
_readme = partial(_option, None, "Write the tables there, after <!-- measured: NAME -->.", metavar="FILE#NAME")
_fit = partial(
    _option,
    None,
    "Choose -c, cache types and --budget, where they are not given, to fit into so much memory: 8GiB.",
    metavar="SIZE",
)
_template = partial(
    _option,
    None,
    "Jinja file, or one of llama.cpp's: chatml, llama3, ... [default: the model's own]",
    "--chat-template",
    metavar="FILE|NAME",
)
_archive = partial(
    _option,
    "auto",
    "Where all rows lie, so that every question chooses anew: disk, ram (beside a GPU), a folder; none loses what is "
    "not kept.",
    metavar="auto|disk|ram|none|DIR",
)
_verbose = partial(_option, False, "Show llama.cpp's own log.", "--verbose")
_as_json = partial(_option, False, "Print one JSON object.", "--json")


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Which model, and how its cache is kept."""

    model: str = _model()
    budget: str | None = _budget()
    policy: str = _policy()
    profile: Path | None = _profile()
    score_mix: str | None = _score_mix()
    n_ctx: int = _n_ctx()
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    type_k: str = _type_k()
    type_v: str = _type_v()
    fit: str | None = _fit()
    template: str | None = _template()
    protect: list[str] | None = _option(
        None, "Keep this text whole, as the system prompt of chat is; repeatable.", metavar="TEXT"
    )
    lookahead: int = _option(0, "First tokens of an answer that observe on the whole cache.", min=0, max=256)
    no_sweep: bool = _option(
        False, "Read prompts batch by batch: the whole cache of a prompt exists before it is compressed.", "--no-sweep"
    )
    archive: str = _archive()
    exact: bool = _option(False, "Read short questions as llama.cpp does, bit for bit: slower, on the CPU.", "--exact")
    as_generated: bool = _option(
        False,
        "Keep the rows of answers as they were generated; by default answers are read again with the next question.",
        "--as-generated",
    )
    verbose: bool = _verbose()


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How the next token is chosen, and when an answer ends."""

    n_predict: int | None = _option(
        None, "Tokens of an answer; 0: none, -1: no limit. [default: -1]", "-n", "--n-predict"
    )
    temp: float | None = _option(None, "0 always takes the likeliest token. [default: the model's own, or 0.8]")
    top_k: int | None = _option(None, "Draw from so many tokens; 0 is all. [default: the model's own, or 40]")
    top_p: float | None = _option(None, "Draw from so much probability. [default: the model's own, or 0.95]")
    min_p: float | None = _option(None, "Least probability beside the likeliest's. [default: the model's own, or 0.05]")
    repeat_penalty: float | None = _option(None, "Against repetition; 1 is off. [default: the model's own, or 1]")
    seed: int | None = _option(None, "-1 is random. [default: -1]")
    no_loop_stop: bool = _option(False, "Let an answer go on that says the same over and over.", "--no-loop-stop")

    @property
    def sampling(self) -> dict[str, float]:
        """The settings of `pyheadkv.chat.sampling` that were given, by their names there."""
        names = ("temp", "top-k", "top-p", "min-p", "repeat-penalty", "seed", "n-predict")
        given = {name: getattr(self, name.replace("-", "_")) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class ChatOptions(SamplingOptions, ModelOptions):
    """Chat on a compressed cache. /help lists the commands inside."""

    system: str | None = _option(None, "System prompt.", "-sys", "--system-prompt")
    files: list[Path] | None = _option(
        None, "Text for the first message; sample is one of ours, - is stdin; repeatable.", "-f", "--file"
    )
    prompt: str | None = _option(None, "First message; - reads stdin.", "-p", "--prompt")
    memories: list[Path] | None = _option(
        None, "Begin with what pyheadkv ingest, or /save, kept there, and read nothing of it.", "--memory"
    )
    is_single_turn: bool = _option(False, "Answer once, then leave.", "-st", "--single-turn")
    as_json: bool = _option(False, "Answer once and print one JSON object.", "--json")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(SamplingOptions, ModelOptions):
    """Answer programs over HTTP as OpenAI's API does. Settings of answers hold where a request has none of its own."""

    host: str = _option("127.0.0.1", "Address to listen at; 0.0.0.0 is all of this machine's.")
    port: int = _option(8080, "0 takes one that is free.", min=0, max=65535)
    api_key_file: Path | None = _option(None, "Keys of those who may ask, one a line.", metavar="FILE")
    allow_origin: list[str] | None = _option(
        None, "Pages of this origin may ask too: https://chat.example.org, * is all; repeatable.", metavar="ORIGIN"
    )
    memory: Path | None = _option(
        None, "Keep conversations there, so that each goes on where it was, also after a restart.", metavar="DIR"
    )
    memory_size: str = _option("20GiB", "Of the files there; those that were not used for longest go.", metavar="SIZE")
    limit_memory: str | None = _option(
        None, "Of the whole process: chooses as --fit does, and ends what takes more with status 503.", metavar="SIZE"
    )
    max_waiting: int = _option(64, "Requests that may wait for the model; more are sent away.", min=1, max=4096)
    log_prompts: bool = _option(False, "Write prompts and answers to the log.", "--log-prompts")


@dataclass(frozen=True, kw_only=True)
class IngestOptions:
    """Read texts once and keep all rows in a file, for chat --memory."""

    model: str = _model()
    files: list[Path] | None = _option(None, "Text; sample is one of ours, - is stdin; repeatable.", "-f", "--file")
    output: Path | None = _option(None, "File to write.", "-o", "--output")
    name: str = _option("", "What pyheadkv capsules shows. [default: the names of the texts]")
    system: str | None = _option(None, "System prompt of the chats to come.", "-sys", "--system-prompt")
    n_ctx: int = _n_ctx()
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    type_k: str = _type_k()
    type_v: str = _type_v()
    template: str | None = _template()
    archive: str = _archive()
    force: bool = _option(False, "Write over an existing file.", "--force")
    verbose: bool = _verbose()


@dataclass(frozen=True, kw_only=True)
class CapsulesOptions:
    """List the files in a folder that ingest and /save made: name, model, tokens, bytes, date."""

    folder: Path = _argument(Path(), "Where they lie.", "[DIR]")
    as_json: bool = _as_json()


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Say what a model's cache costs, whether it can be compressed, and the plan for a prompt of -c tokens."""

    model: str = _model()
    budget: str | None = _budget()
    policy: str = _policy()
    profile: Path | None = _profile()
    score_mix: str | None = _score_mix()
    n_ctx: int = _n_ctx()
    type_k: str = _type_k()
    type_v: str = _type_v()
    fit: str | None = _fit()
    as_json: bool = _as_json()
    png: Path | None = _option(None, "Draw scores and rows by head into this file.")


@dataclass(frozen=True, kw_only=True)
class PoliciesOptions:
    """List what --policy takes: what each keeps, where it comes from, what it needs, its settings."""

    names: list[str] | None = _argument(
        None, "As --policy takes them. [default: all]", "[POLICY]...", autocompletion=completion.policies
    )
    as_json: bool = _as_json()


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a copy of a model that carries its head scores, so that chat needs one file."""

    model: str = _model()
    output: Path | None = _option(None, "GGUF file to write.", "-o", "--output")
    profile: Path | None = _option(None, "Head scores to put in. [default: MODEL.headkv.json]")
    is_calibrating: bool = _option(False, "Measure the head scores now.", "--calibrate")
    score_mix: str | None = _option(None, "Kinds of scores to use: retrieval=1,reconstruction=1.")
    budget: str | None = _option(None, "Default budget to store, a share: 10%.")
    is_removing: bool = _option(False, "Take head scores out instead.", "--remove")
    in_place: bool = _option(False, "Write over MODEL.", "--in-place")
    force: bool = _option(False, "Write over an existing file.", "--force")
    is_inspecting: bool = _option(False, "Only show what MODEL carries.", "--inspect")


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Measure which heads a model needs, and write their scores to a file. Ctrl-C stops, the same command goes on."""

    model: str = _model()
    output: Path | None = _option(None, "Profile to write. [default: MODEL.headkv.json]", "-o", "--output")
    n_examples: int = _option(72, "Questions to ask.", "--examples", min=1)
    lengths: str = _option("512,1024,2048", "Lengths of the texts, in tokens.")
    seed: int = _option(0, "Of texts and questions.", min=0)
    fold: str = _option("sum", "Query heads into KV heads: sum or max.")
    score_mix: str | None = _option(None, "Kinds of scores. [default: retrieval-reasoning=1,reconstruction=1]")
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    force: bool = _option(False, "Begin anew over what another calibration left.", "--force")
    is_choosing: bool = _option(False, "Also measure which settings are best at which budget, for auto.", "--choose")


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure what policies and budgets are worth on a model. Ctrl-C stops, the same command goes on."""

    model: str = _model()
    tasks: str | None = _option(
        None,
        "needles (single, multikey, multivalue, multiquery), open (single, its answer not begun), reasoning, "
        "tracking, kl, all. [default: needles,kl]",
    )
    policies: str = _option("auto,snapkv", "Apart by commas, with settings: auto,headkv:beta=2,vote_share=0.5,snapkv.")
    budgets: str = _budgets("50%,25%,10%,5%,1.5%")
    lengths: str = _option("2k", "Lengths of the prompts: 2k,4k or tokens.", "--ctx")
    questions: str = _option(
        "in", "in the prompt that is compressed, after its compression, or in,after.", "--question"
    )
    n_turns: int = _option(
        0,
        "Instead of tasks: chats of so many questions about one text, asked one after the other.",
        "--turns",
        min=0,
        max=5,
    )
    archives: str = _option(
        "archive,none",
        "What chats are measured with, apart by commas: archive (answers are read again), as-generated (their rows "
        "stay), none.",
    )
    n_cases: int = _option(10, "Of each task and length; of files the first.", "--cases", min=1)
    output: Path | None = _option(None, "Results. [default: MODEL.eval]", "-o", "--output", metavar="DIR")
    data: list[str] | None = _option(
        None,
        "A file with cases, pyheadkv's or LongBench's, LooGLE's, RULER's, BABILong's, or one at the hub: "
        "longbench:hotpotqa, loogle:longdep_qa, ruler:4096, babilong:qa1/4k. Repeatable; instead of --tasks, "
        "or beside.",
    )
    versus: str | None = _option(None, "Cache types to do all of it with as well, the whole cache included: q8_0,q4_0.")
    kvpress: str | None = _option(None, "Methods of kvpress to measure beside, where it is installed: snapkv,adakv.")
    text: Path | None = _option(None, "Prose for the tasks. [default: pyheadkv's own]")
    seed: int = _option(0, "Of the cases.", min=0)
    profile: Path | None = _profile()
    score_mix: str | None = _score_mix()
    type_k: str = _type_k()
    type_v: str = _type_v()
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    readme: str | None = _readme()


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure speed and memory against llama.cpp's own cache, in turns. Prompts are random: only times count."""

    model: str | None = _argument(None, _MODEL, "[MODEL]", show_default=False, autocompletion=completion.models)
    shape: str | None = _option(
        None, "Instead of MODEL: random weights of a well-known shape, as llama-8b, qwen2-1.5b."
    )
    n_layer: int | None = _option(None, "Of the shape. [default: all]", "--layers", min=1)
    weights: str = _option("q4_0", "Type of the shape's weights: q4_0, q8_0, f16.")
    lengths: str = _option("512,2k,4k", "Lengths of the prompts: 2k,8k or tokens.", "-c", "--ctx")
    budgets: str = _budgets("10%")
    policies: str = _option("auto", "Apart by commas, with settings.")
    equal_rows: bool = _option(False, "Keep every row, as stock does: the layout and the kernel alone.", "--equal-rows")
    profile: Path | None = _profile()
    score_mix: str | None = _score_mix()
    type_k: str = _type_k()
    type_v: str = _type_v()
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    is_prefill: bool = _option(
        False,
        "Read prompts in turns instead, layer by layer and batch by batch: time, and K and V at their peak.",
        "--prefill",
    )
    follow_ups: str | None = _option(
        None,
        "Ask second questions of so many tokens in turns instead, as 10,30,60: time to the first token of the answer.",
        metavar="LENGTHS",
    )
    capsules: str | None = _option(
        None,
        "Open capsules of the prompts instead, and ask questions of so many tokens: time to the first token.",
        metavar="LENGTHS",
    )
    n_rounds: int = _option(5, "Turns of each side.", "--rounds", min=1)
    n_tokens: int = _option(24, "Decoded in one turn.", "--tokens", min=1)
    with_memory: bool = _option(
        True, "Of processes too: each policy reads its prompts in its own.", "--memory/--no-memory"
    )
    seed: int = _option(0, "Of the prompts.", min=0)
    output: Path | None = _option(None, "Write bench.jsonl and bench.png there.", "-o", "--output", metavar="DIR")
    as_json: bool = _as_json()
    readme: str | None = _readme()


@dataclass(frozen=True, kw_only=True)
class SelftestOptions:
    """Check in half a minute that this installation computes what it should here, and print a report to paste."""

    model: str = _argument("demo", _MODEL, "[MODEL]", autocompletion=completion.models)
    n_threads: int | None = _n_threads()
    n_gpu_layers: int = _n_gpu_layers()
    type_k: str = _type_k()
    type_v: str = _type_v()


OPTIONS = {  # by command, in the order of --help
    "chat": ChatOptions,
    "serve": ServeOptions,
    "ingest": IngestOptions,
    "capsules": CapsulesOptions,
    "inspect": InspectOptions,
    "policies": PoliciesOptions,
    "export": ExportOptions,
    "calibrate": CalibrateOptions,
    "eval": EvalOptions,
    "bench": BenchOptions,
    "selftest": SelftestOptions,
}

EXAMPLES = {
    "chat": "pyheadkv chat demo -f report.txt -p 'What was decided?' --budget 10% -st",
    "serve": "pyheadkv serve demo --budget 10% -c 8192 --port 8080",
    "ingest": "pyheadkv ingest demo -f book.txt -o book.hkv",
    "capsules": "pyheadkv capsules",
    "inspect": "pyheadkv inspect demo -c 8192 --budget 10%",
    "policies": "pyheadkv policies headkv snapkv",
    "export": "pyheadkv export MODEL.gguf -o OUT.gguf --budget 10%",
    "calibrate": "pyheadkv calibrate MODEL.gguf --choose",
    "eval": "pyheadkv eval demo --tasks single --budgets 10%,5% --cases 20",
    "bench": "pyheadkv bench demo -c 2k --budgets 10%,5%",
    "selftest": "pyheadkv selftest demo -ngl -1",
}
