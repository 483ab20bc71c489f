"""The commands and their options. What a command does is in its own module, imported only when it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from pyheadkv import __version__
from pyheadkv.cli.options import BenchOptions, CacheOptions, CalibrateOptions, ChatOptions, EvalOptions, ExportOptions
from pyheadkv.cli.stdout import OutputError, guarded_stdout
from pyheadkv.errors import HeadKVError, LibraryError
from pyheadkv.model.shape import MAX_CTX

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,  # plain help and one-line usage errors, also where there is no terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
ProfileMix = Annotated[
    str | None,
    typer.Option(
        "--profile-mix",
        help="Kinds of scores for policies that name none: retrieval-reasoning=1,reconstruction=1.",
    ),
]
NCtx = Annotated[
    int, typer.Option("-c", "--ctx-size", min=0, max=MAX_CTX, help="Context in tokens; 0 is the model's own.")
]
TypeK = Annotated[str, typer.Option("-ctk", "--cache-type-k", help="Cache type of K: f16, q8_0, q4_0, ...")]
TypeV = Annotated[str, typer.Option("-ctv", "--cache-type-v", help="Cache type of V.")]
Readme = Annotated[
    str | None,
    typer.Option("--readme", metavar="FILE#NAME", help="Write the tables there, after <!-- measured: NAME -->."),
]


def _known_errors(command: Callable[..., None]) -> Callable[..., None]:
    """End with one line and exit code 1 on a known error, and quietly with 130 on Ctrl-C."""

    @wraps(command)
    def run(*args: Any, **options: Any) -> None:
        try:
            command(*args, **options)
        except OutputError:
            raise  # said when all has ended
        except HeadKVError as error:
            if os.environ.get("HEADKV_DEBUG") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def _print_version(is_asked: bool) -> None:
    if not is_asked:
        return
    from pyheadkv.engine.library import LLAMA_CPP_COMMIT
    from pyheadkv.engine.native import abi_version

    try:
        native = f"ABI {abi_version()}"
    except LibraryError as error:
        native = f"no native library ({error})"
    print(f"pyheadkv {__version__}, llama.cpp {LLAMA_CPP_COMMIT}, {native}")
    raise typer.Exit


@app.callback()
def _pyheadkv(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print versions and leave.")
    ] = False,
) -> None:
    """Chat with a local model whose key/value cache keeps only the rows that each head needs."""


@app.command()
@_known_errors
def chat(
    model: Model,
    budget: BudgetText = None,
    policy: PolicyText = "auto",
    profile: ProfilePath = None,
    profile_mix: ProfileMix = None,
    ctx_size: NCtx = 0,
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: all CPUs.")] = None,
    gpu_layers: Annotated[int, typer.Option("-ngl", "--gpu-layers", min=-1, help="On the GPU; -1 is all.")] = 0,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    system: Annotated[str | None, typer.Option("-sys", "--system-prompt", help="System prompt.")] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option("-f", "--file", help="Text for the first message; sample is one of ours; repeatable."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="First message; - reads stdin.")] = None,
    chat_template: Annotated[
        str | None,
        typer.Option(
            "--chat-template",
            metavar="FILE|NAME",
            help="Jinja file, or one of llama.cpp's: chatml, llama3, ... [default: the model's own]",
        ),
    ] = None,
    protect: Annotated[
        list[str] | None,
        typer.Option("--protect", metavar="TEXT", help="Keep this text whole, as the system prompt is; repeatable."),
    ] = None,
    lookahead: Annotated[
        int,
        typer.Option("--lookahead", min=0, max=256, help="First tokens of an answer that observe on the whole cache."),
    ] = 0,
    single_turn: Annotated[bool, typer.Option("-st", "--single-turn", help="Answer once, then leave.")] = False,
    n_predict: Annotated[
        int | None, typer.Option("-n", "--n-predict", help="Tokens of an answer; 0: none, -1: no limit. [default: -1]")
    ] = None,
    temp: Annotated[
        float | None,
        typer.Option("--temp", help="0 always takes the likeliest token. [default: the model's own, or 0.8]"),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option("--top-k", help="Draw from so many tokens; 0 is all. [default: the model's own, or 40]"),
    ] = None,
    top_p: Annotated[
        float | None,
        typer.Option("--top-p", help="Draw from so much probability. [default: the model's own, or 0.95]"),
    ] = None,
    min_p: Annotated[
        float | None,
        typer.Option("--min-p", help="Least probability beside the likeliest's. [default: the model's own, or 0.05]"),
    ] = None,
    repeat_penalty: Annotated[
        float | None,
        typer.Option("--repeat-penalty", help="Against repetition; 1 is off. [default: the model's own, or 1]"),
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="-1 is random. [default: -1]")] = None,
    no_loop_stop: Annotated[
        bool, typer.Option("--no-loop-stop", help="Let an answer go on that says the same over and over.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Answer once and print one JSON object.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show llama.cpp's own log.")] = False,
) -> None:
    """Chat on a compressed cache. /help lists the commands inside."""
    from pyheadkv.cli.chat import run_chat

    sampling = {
        "temp": temp,
        "top-k": top_k,
        "top-p": top_p,
        "min-p": min_p,
        "repeat-penalty": repeat_penalty,
        "seed": seed,
        "n-predict": n_predict,
    }
    run_chat(
        CacheOptions(model, budget, policy, profile, profile_mix, ctx_size, cache_type_k, cache_type_v),
        ChatOptions(
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            system=system,
            files=tuple(file or ()),
            prompt=prompt,
            is_single_turn=single_turn,
            sampling={name: value for name, value in sampling.items() if value is not None},
            as_json=as_json,
            verbose=verbose,
            lookahead=lookahead,
            protect=tuple(protect or ()),
            stop_loops=not no_loop_stop,
            template=chat_template,
        ),
    )


@app.command()
@_known_errors
def inspect(
    model: Model,
    budget: BudgetText = None,
    policy: PolicyText = "auto",
    profile: ProfilePath = None,
    profile_mix: ProfileMix = None,
    ctx_size: NCtx = 0,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    png: Annotated[Path | None, typer.Option("--png", help="Draw scores and rows by head into this file.")] = None,
) -> None:
    """Say what a model's cache costs, whether it can be compressed, and the plan for a prompt of -c tokens."""
    from pyheadkv.cli.inspect import run_inspect

    run_inspect(
        CacheOptions(model, budget, policy, profile, profile_mix, ctx_size, cache_type_k, cache_type_v), as_json, png
    )


@app.command()
@_known_errors
def policies(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[POLICY]...", help="As --policy takes them. [default: all]")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what --policy takes: what each keeps, where it comes from, what it needs, its settings."""
    from pyheadkv.cli.policies import run_policies

    run_policies(names or (), as_json)


@app.command()
@_known_errors
def export(
    model: Model,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="GGUF file to write.")] = None,
    profile: Annotated[
        Path | None, typer.Option("--profile", help="Head scores to put in. [default: MODEL.headkv.json]")
    ] = None,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Measure the head scores now.")] = False,
    profile_mix: Annotated[
        str | None, typer.Option("--profile-mix", help="Kinds of scores to use: retrieval=1,reconstruction=1.")
    ] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Default budget to store, a share: 10%.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take head scores out instead.")] = False,
    in_place: Annotated[bool, typer.Option("--in-place", help="Write over MODEL.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write over an existing file.")] = False,
    inspect: Annotated[bool, typer.Option("--inspect", help="Only show what MODEL carries.")] = False,
) -> None:
    """Write a copy of a model that carries its head scores, so that chat needs one file."""
    if inspect:
        from pyheadkv.cli.inspect import run_inspect

        run_inspect(CacheOptions(model, budget, "auto", profile, None, 0, "f16", "f16"), as_json=False)
        return
    from pyheadkv.cli.export import run_export

    run_export(ExportOptions(model, output, profile, calibrate, profile_mix, budget, remove, in_place, force))


@app.command()
@_known_errors
def calibrate(
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Profile to write. [default: MODEL.headkv.json]")
    ] = None,
    examples: Annotated[int, typer.Option("--examples", min=1, help="Questions to ask.")] = 72,
    lengths: Annotated[str, typer.Option("--lengths", help="Lengths of the texts, in tokens.")] = "512,1024,2048",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of texts and questions.")] = 0,
    fold: Annotated[str, typer.Option("--fold", help="Query heads into KV heads: sum or max.")] = "sum",
    profile_mix: Annotated[
        str | None,
        typer.Option("--profile-mix", help="Kinds of scores. [default: retrieval-reasoning=1,reconstruction=1]"),
    ] = None,
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: all CPUs.")] = None,
    gpu_layers: Annotated[int, typer.Option("-ngl", "--gpu-layers", min=-1, help="On the GPU; -1 is all.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Begin anew over what another calibration left.")] = False,
    choose: Annotated[
        bool, typer.Option("--choose", help="Also measure which settings are best at which budget, for auto.")
    ] = False,
) -> None:
    """Measure which heads a model needs, and write their scores to a file. Ctrl-C stops, the same command goes on."""
    from pyheadkv.cli.calibrate import run_calibrate

    run_calibrate(
        CalibrateOptions(model, output, examples, lengths, seed, fold, profile_mix, threads, gpu_layers, force, choose)
    )


@app.command("eval")
@_known_errors
def evaluate(
    model: Model,
    tasks: Annotated[
        str | None,
        typer.Option(
            "--tasks",
            help="needles (single, multikey, multivalue, multiquery), open (single, its answer not begun), reasoning, "
            "tracking, kl, all. [default: needles,kl]",
        ),
    ] = None,
    policies: Annotated[
        str, typer.Option("--policies", help="Apart by commas, with settings: auto,headkv:beta=2,vote=0.5,snapkv.")
    ] = "auto,snapkv",
    budgets: Annotated[str, typer.Option("--budgets", help="Apart by commas: shares, rows or bytes.")] = (
        "50%,25%,10%,5%,1.5%"
    ),
    ctx: Annotated[str, typer.Option("--ctx", help="Lengths of the prompts: 2k,4k or tokens.")] = "2k",
    questions: Annotated[
        str, typer.Option("--question", help="in the prompt that is compressed, after its compression, or in,after.")
    ] = "in",
    cases: Annotated[int, typer.Option("--cases", min=1, help="Of each task and length; of files the first.")] = 10,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Results. [default: MODEL.eval]")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="A file with cases, pyheadkv's or LongBench's, LooGLE's, RULER's, BABILong's, or one at the hub: "
            "longbench:hotpotqa, loogle:longdep_qa, ruler:4096, babilong:qa1/4k. Repeatable; instead of --tasks, "
            "or beside.",
        ),
    ] = None,
    versus: Annotated[
        str | None,
        typer.Option("--versus", help="Cache types to do all of it with as well, the whole cache included: q8_0,q4_0."),
    ] = None,
    kvpress: Annotated[
        str | None,
        typer.Option("--kvpress", help="Methods of kvpress to measure beside, where it is installed: snapkv,adakv."),
    ] = None,
    text: Annotated[Path | None, typer.Option("--text", help="Prose for the tasks. [default: pyheadkv's own]")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the cases.")] = 0,
    profile: ProfilePath = None,
    profile_mix: ProfileMix = None,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: all CPUs.")] = None,
    gpu_layers: Annotated[int, typer.Option("-ngl", "--gpu-layers", min=-1, help="On the GPU; -1 is all.")] = 0,
    readme: Readme = None,
) -> None:
    """Measure what policies and budgets are worth on a model. Ctrl-C stops, the same command goes on."""
    from pyheadkv.cli.eval import run_eval

    run_eval(
        EvalOptions(
            model=model,
            tasks=tasks,
            policies=policies,
            budgets=budgets,
            lengths=ctx,
            questions=questions,
            n_cases=cases,
            output=output,
            data=tuple(data or ()),
            text=text,
            seed=seed,
            profile=profile,
            profile_mix=profile_mix,
            type_k=cache_type_k,
            type_v=cache_type_v,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            versus=versus,
            kvpress=kvpress,
            readme=readme,
        )
    )


@app.command()
@_known_errors
def bench(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="GGUF file, demo, or user/repo[:quant].", show_default=False)
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", help="Instead of MODEL: random weights of a well-known shape, as llama-8b, qwen2-1.5b."
        ),
    ] = None,
    layers: Annotated[int | None, typer.Option("--layers", min=1, help="Of the shape. [default: all]")] = None,
    weights: Annotated[str, typer.Option("--weights", help="Type of the shape's weights: q4_0, q8_0, f16.")] = "q4_0",
    ctx: Annotated[str, typer.Option("-c", "--ctx", help="Lengths of the prompts: 2k,8k or tokens.")] = "512,2k,4k",
    budgets: Annotated[str, typer.Option("--budgets", help="Apart by commas: shares, rows or bytes.")] = "10%",
    policies: Annotated[str, typer.Option("--policies", help="Apart by commas, with settings.")] = "auto",
    equal_rows: Annotated[
        bool, typer.Option("--equal-rows", help="Keep every row, as stock does: the layout and the kernel alone.")
    ] = False,
    profile: ProfilePath = None,
    profile_mix: ProfileMix = None,
    cache_type_k: TypeK = "f16",
    cache_type_v: TypeV = "f16",
    threads: Annotated[int | None, typer.Option("-t", "--threads", min=1, help="Default: all CPUs.")] = None,
    gpu_layers: Annotated[int, typer.Option("-ngl", "--gpu-layers", min=-1, help="On the GPU; -1 is all.")] = 0,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of each side.")] = 5,
    tokens: Annotated[int, typer.Option("--tokens", min=1, help="Decoded in one turn.")] = 24,
    memory: Annotated[
        bool, typer.Option("--memory/--no-memory", help="Of processes too: each policy reads its prompts in its own.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the prompts.")] = 0,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Write bench.jsonl and bench.png there.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    readme: Readme = None,
) -> None:
    """Measure speed and memory against llama.cpp's own cache, in turns. Prompts are random: only times count."""
    from pyheadkv.cli.bench import run_bench_command

    run_bench_command(
        BenchOptions(
            model=model,
            shape=shape,
            n_layer=layers,
            weights=weights,
            lengths=ctx,
            policies=policies,
            budgets="100%" if equal_rows else budgets,
            profile=profile,
            profile_mix=profile_mix,
            type_k=cache_type_k,
            type_v=cache_type_v,
            n_threads=threads,
            n_gpu_layers=gpu_layers,
            n_rounds=rounds,
            n_tokens=tokens,
            with_memory=memory,
            seed=seed,
            output=output,
            as_json=as_json,
            readme=readme,
        )
    )


def _open_missing_streams() -> None:
    """Have something behind the numbers 0 to 2, or a file gets one of them, and with it what libraries write there."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    if sys.stderr is None:  # print(file=None) would write to stdout
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115


def main() -> None:
    """Entry point of the `pyheadkv` command.

    SIGTERM, as a service or a container is stopped with, unwinds like Ctrl-C: no half file stays. It exits with 143.
    """
    _open_missing_streams()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with guarded_stdout():
        app(prog_name="pyheadkv")


if __name__ == "__main__":
    main()
