"""The commands. What a command does is in its own module, imported only when it runs."""

from __future__ import annotations

import inspect
import os
import signal
import sys
from dataclasses import fields
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from pyheadkv.cli.options import EXAMPLES, OPTIONS
from pyheadkv.cli.stdout import OutputError, guarded_stdout
from pyheadkv.errors import HeadKVError

app = typer.Typer(
    epilog="Exit codes: 0 done; 1 an error, said in one line; 2 a command line that cannot be understood; 130 Ctrl-C; "
    "143 SIGTERM. pyheadkv COMMAND -h has an example of each command.",
    rich_markup_mode=None,  # plain help and one-line usage errors, also where there is no terminal
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _pyheadkv(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print versions and leave.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", help="With --version: devices, packages, folders and their sizes too.")
    ] = False,
) -> None:
    """Chat with a local model whose key/value cache keeps only the rows that each head needs."""
    if version:
        facts = import_module("pyheadkv.cli.facts")
        print("\n".join([facts.version_line(), *(facts.fact_lines() if verbose else ())]))
        raise typer.Exit
    if verbose:
        context.fail("--verbose goes with --version here; a command's own stands behind its name")
    if context.invoked_subcommand is None:
        context.fail("Missing command.")


def _add_command(name: str, options: type) -> None:
    """A command whose options are the fields of a dataclass; `run` in the module of its name gets them.

    A known error is one line and exit code 1, Ctrl-C is 130 and quiet.
    """

    def command(**values: Any) -> None:
        try:
            import_module(f"pyheadkv.cli.{name}").run(options(**values))
        except OutputError:
            raise  # said when all has ended
        except HeadKVError as error:
            if os.environ.get("HEADKV_DEBUG") == "1":
                raise
            print(f"error: {error}", file=sys.stderr)
            raise typer.Exit(1) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    signature = inspect.signature(options, eval_str=True)
    parameters = [
        it.replace(annotation=Annotated[it.annotation, field.metadata["typer"]])
        for it, field in zip(signature.parameters.values(), fields(options), strict=True)
    ]
    vars(command)["__signature__"] = signature.replace(parameters=parameters)
    app.command(name, help=inspect.getdoc(options), epilog=f"Example: {EXAMPLES[name]}")(command)


for _name, _options in OPTIONS.items():
    _add_command(_name, _options)


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
