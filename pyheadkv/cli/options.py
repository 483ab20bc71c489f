"""The commands' options. A field is an option, its default the option's, and a docstring the command's help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from pyheadkv.model.shape import MAX_CTX

Model = Annotated[str, typer.Argument(metavar="MODEL", help="GGUF file, demo, or user/repo[:quant].")]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Rows to keep: 10%, 512 (per KV head on average), 64MiB, or full. [default: the profile's, or 25%]",
    ),
]
PolicyText = Annotated[
    str,
    typer.Option(
        "--policy",
        help="What to keep, with settings: snapkv, headkv:beta=1.1, headkv+kvzip, my_policy.py (pyheadkv policies "
        "lists them); auto asks the profile.",
    ),
]
ProfilePath = Annotated[
    Path | None, typer.Option("--profile", help="File with measured head scores. [default: the model's own]")
]
ScoreMix = Annotated[
    str | None,
    typer.Option(
        "--score-mix",
        help="Kinds of scores for policies that name none: retrieval-reasoning=1,reconstruction=1.",
    ),
]
NCtx = Annotated[
    int, typer.Option("-c", "--ctx-size", min=0, max=MAX_CTX, help="Context in tokens; 0 is the model's own.")
]
Threads = Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: all CPUs.")]
GpuLayers = Annotated[int, typer.Option("-ngl", "--gpu-layers", min=-1, help="On the GPU; -1 is all.")]
TypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="Cache type of K: f16, q8_0, q4_0, ...")]
TypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="Cache type of V.")]
Budgets = Annotated[str, typer.Option("--budgets", help="Apart by commas: shares, rows or bytes.")]
Readme = Annotated[
    str | None,
    typer.Option("--readme", metavar="FILE#NAME", help="Write the tables there, after <!-- measured: NAME -->."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@dataclass(frozen=True, kw_only=True)
class ChatOptions:
    """Chat on a compressed cache. /help lists the commands inside."""

    model: Model
    budget: BudgetText = None
    policy: PolicyText = "auto"
    profile: ProfilePath = None
    score_mix: ScoreMix = None
    n_ctx: NCtx = 0
    n_threads: Threads = None
    n_gpu_layers: GpuLayers = 0
    type_k: TypeK = "f16"
    type_v: TypeV = "f16"
    system: Annotated[str | None, typer.Option("-sys", "--system-prompt", help="System prompt.")] = None
    files: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", help="Text for the first message; sample is one of ours; repeatable."),
    ] = None
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="First message; - reads stdin.")] = None
    template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE|NAME",
            help="Jinja file, or one of llama.cpp's: chatml, llama3, ... [default: the model's own]",
        ),
    ] = None
    protect: Annotated[
        list[str] | None,
        typer.Option("--protect", metavar="TEXT", help="Keep this text whole, as the system prompt is; repeatable."),
    ] = None
    lookahead: Annotated[
        int,
        typer.Option("--lookahead", min=0, max=256, help="First tokens of an answer that observe on the whole cache."),
    ] = 0
    is_single_turn: Annotated[bool, typer.Option("-st", "--single-turn", help="Answer once, then leave.")] = False
    n_predict: Annotated[
        int | None, typer.Option("-n", "--n-predict", help="Tokens of an answer; 0: none, -1: no limit. [default: -1]")
    ] = None
    temp: Annotated[
        float | None,
        typer.Option("--temp", help="0 always takes the likeliest token. [default: the model's own, or 0.8]"),
    ] = None
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Draw from so many tokens; 0 is all. [default: the model's own, or 40]"),
    ] = None
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from so much probability. [default: the model's own, or 0.95]"),
    ] = None
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", help="Least probability beside the likeliest's. [default: the model's own, or 0.05]"),
    ] = None
    repeat_penalty: Annotated[
        float | None,
        typer.Option("--repeat-penalty", help="Against repetition; 1 is off. [default: the model's own, or 1]"),
    ] = None
    seed: Annotated[int | None, typer.Option("--seed", help="-1 is random. [default: -1]")] = None
    no_loop_stop: Annotated[
        bool, typer.Option("--no-loop-stop", help="Let an answer go on that says the same over and over.")
    ] = False
    as_json: Annotated[bool, typer.Option("--json", help="Answer once and print one JSON object.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False

    @property
    def sampling(self) -> dict[str, float]:
        """The settings of `pyheadkv.chat.sampling` that were given, by their names there."""
        given = {
            "temp": self.temp,
            "top-k": self.top_k,
            "top-p": self.top_p,
            "min-p": self.min_p,
            "repeat-penalty": self.repeat_penalty,
            "seed": self.seed,
            "n-predict": self.n_predict,
        }
        return {name: value for name, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class InspectOptions:
    """Say what a model's cache costs, whether it can be compressed, and the plan for a prompt of -c tokens."""

    model: Model
    budget: BudgetText = None
    policy: PolicyText = "auto"
    profile: ProfilePath = None
    score_mix: ScoreMix = None
    n_ctx: NCtx = 0
    type_k: TypeK = "f16"
    type_v: TypeV = "f16"
    as_json: AsJson = False
    png: Annotated[Path | None, typer.Option("--png", help="Draw scores and rows by head into this file.")] = None


@dataclass(frozen=True, kw_only=True)
class PoliciesOptions:
    """List what --policy takes: what each keeps, where it comes from, what it needs, its settings."""

    names: Annotated[
        list[str] | None, typer.Argument(metavar="[POLICY]...", help="As --policy takes them. [default: all]")
    ] = None
    as_json: AsJson = False


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Write a copy of a model that carries its head scores, so that chat needs one file."""

    model: Model
    output: Annotated[Path | None, typer.Option("-o", "--output", help="GGUF file to write.")] = None
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Head scores to put in. [default: MODEL.headkv.json]")
    ] = None
    is_calibrating: Annotated[bool, typer.Option("--calibrate", help="Measure the head scores now.")] = False
    score_mix: Annotated[
        str | None, typer.Option("--score-mix", help="Kinds of scores to use: retrieval=1,reconstruction=1.")
    ] = None
    budget: Annotated[str | None, typer.Option("--budget", help="Default budget to store, a share: 10%.")] = None
    is_removing: Annotated[bool, typer.Option("--remove", help="Take head scores out instead.")] = False
    in_place: Annotated[bool, typer.Option("--in-place", help="Write over MODEL.")] = False
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False
    is_inspecting: Annotated[bool, typer.Option("--inspect", help="Only show what MODEL carries.")] = False


@dataclass(frozen=True, kw_only=True)
class CalibrateOptions:
    """Measure which heads a model needs, and write their scores to a file. Ctrl-C stops, the same command goes on."""

    model: Model
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Profile to write. [default: MODEL.headkv.json]")
    ] = None
    n_examples: Annotated[int, typer.Option("--examples", min=1, help="Questions to ask.")] = 72
    lengths: Annotated[str, typer.Option("--lengths", help="Lengths of the texts, in tokens.")] = "512,1024,2048"
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of texts and questions.")] = 0
    fold: Annotated[str, typer.Option("--fold", help="Query heads into KV heads: sum or max.")] = "sum"
    score_mix: Annotated[
        str | None,
        typer.Option("--score-mix", help="Kinds of scores. [default: retrieval-reasoning=1,reconstruction=1]"),
    ] = None
    n_threads: Threads = None
    n_gpu_layers: GpuLayers = 0
    force: Annotated[bool, typer.Option("--force", help="Begin anew over what another calibration left.")] = False
    is_choosing: Annotated[
        bool, typer.Option("--choose", help="Also measure which settings are best at which budget, for auto.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Measure what policies and budgets are worth on a model. Ctrl-C stops, the same command goes on."""

    model: Model
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="needles (single, multikey, multivalue, multiquery), open (single, its answer not begun), reasoning, "
            "tracking, kl, all. [default: needles,kl]",
        ),
    ] = None
    policies: Annotated[
        str,
        typer.Option("--policies", help="Apart by commas, with settings: auto,headkv:beta=2,vote_share=0.5,snapkv."),
    ] = "auto,snapkv"
    budgets: Budgets = "50%,25%,10%,5%,1.5%"
    lengths: Annotated[str, typer.Option("--ctx", help="Lengths of the prompts: 2k,4k or tokens.")] = "2k"
    questions: Annotated[
        str, typer.Option("--question", help="in the prompt that is compressed, after its compression, or in,after.")
    ] = "in"
    n_cases: Annotated[int, typer.Option("--cases", min=1, help="Of each task and length; of files the first.")] = 10
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Results. [default: MODEL.eval]")
    ] = None
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="A file with cases, pyheadkv's or LongBench's, LooGLE's, RULER's, BABILong's, or one at the hub: "
            "longbench:hotpotqa, loogle:longdep_qa, ruler:4096, babilong:qa1/4k. Repeatable; instead of --tasks, "
            "or beside.",
        ),
    ] = None
    versus: Annotated[
        str | None,
        typer.Option("--versus", help="Cache types to do all of it with as well, the whole cache included: q8_0,q4_0."),
    ] = None
    kvpress: Annotated[
        str | None,
        typer.Option("--kvpress", help="Methods of kvpress to measure beside, where it is installed: snapkv,adakv."),
    ] = None
    text: Annotated[Path | None, typer.Option("--text", help="Prose for the tasks. [default: pyheadkv's own]")] = None
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the cases.")] = 0
    profile: ProfilePath = None
    score_mix: ScoreMix = None
    type_k: TypeK = "f16"
    type_v: TypeV = "f16"
    n_threads: Threads = None
    n_gpu_layers: GpuLayers = 0
    readme: Readme = None


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """Measure speed and memory against llama.cpp's own cache, in turns. Prompts are random: only times count."""

    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="GGUF file, demo, or user/repo[:quant].", show_default=False)
    ] = None
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="Instead of MODEL: random weights of a well-known shape, as llama-8b, qwen2-1.5b."
        ),
    ] = None
    n_layer: Annotated[int | None, typer.Option("--layers", min=1, help="Of the shape. [default: all]")] = None
    weights: Annotated[str, typer.Option("--weights", help="Type of the shape's weights: q4_0, q8_0, f16.")] = "q4_0"
    lengths: Annotated[str, typer.Option("-c", "--ctx", help="Lengths of the prompts: 2k,8k or tokens.")] = "512,2k,4k"
    budgets: Budgets = "10%"
    policies: Annotated[str, typer.Option("--policies", help="Apart by commas, with settings.")] = "auto"
    equal_rows: Annotated[
        bool, typer.Option("--equal-rows", help="Keep every row, as stock does: the layout and the kernel alone.")
    ] = False
    profile: ProfilePath = None
    score_mix: ScoreMix = None
    type_k: TypeK = "f16"
    type_v: TypeV = "f16"
    n_threads: Threads = None
    n_gpu_layers: GpuLayers = 0
    n_rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each side.")] = 5
    n_tokens: Annotated[int, typer.Option("--tokens", min=1, help="Decoded in one turn.")] = 24
    with_memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Of processes too: each policy reads its prompts in its own.")
    ] = True
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the prompts.")] = 0
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write bench.jsonl and bench.png there.")
    ] = None
    as_json: AsJson = False
    readme: Readme = None


OPTIONS = {  # by command, in the order of --help
    "chat": ChatOptions,
    "inspect": InspectOptions,
    "policies": PoliciesOptions,
    "export": ExportOptions,
    "calibrate": CalibrateOptions,
    "eval": EvalOptions,
    "bench": BenchOptions,
}
