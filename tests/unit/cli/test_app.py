"""The command line: options as llama.cpp's users type them, exit codes, and one line for what is wrong."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pyheadkv.chat.sampling import SETTINGS
from pyheadkv.cli import chat, first_message, inspect, model
from pyheadkv.cli.app import app
from pyheadkv.cli.options import EXAMPLES, OPTIONS, ChatOptions
from pyheadkv.errors import NativeError
from pyheadkv.profile import find as lookup

METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "tokenizer.chat_template": "{{ messages }}",
    "llama.block_count": 2,
    "llama.context_length": 2048,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": [2, 1],
    "llama.attention.value_length": 80,
}

Run = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in an empty folder with a file model.gguf whose keys are METADATA."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADKV_DEBUG", raising=False)
    Path("model.gguf").write_bytes(b"GGUF")
    for module in (model, inspect):
        monkeypatch.setattr(module, "read_gguf_metadata", lambda _: METADATA)
    monkeypatch.setattr(lookup, "fingerprint", lambda _: "llama:another:model:here")
    monkeypatch.setattr(inspect, "weight_types", lambda _: {"Q4_1": 0.9, "F32": 0.1})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    return lambda *arguments, stdin="": CliRunner().invoke(app, arguments, input=stdin)


@pytest.fixture
def parsed(run: Run, monkeypatch: pytest.MonkeyPatch) -> Callable[..., ChatOptions]:
    seen: list[ChatOptions] = []
    monkeypatch.setattr(chat, "run", seen.append)

    def parse(*arguments: str) -> ChatOptions:
        result = run("chat", *arguments)
        assert result.exit_code == 0, result.output
        return seen[-1]

    return parse


def test_every_option_as_typed(parsed: Callable[..., ChatOptions]) -> None:
    line = (
        "-c 4096 -t 3 -ngl 99 -ctk q8_0 -ctv q4_0 -st -n 64 --temp 0 --seed 7 --top-k 20 --top-p 0.9 --min-p 0.1"
        " --repeat-penalty 1.1 --no-loop-stop --json --verbose --lookahead 8"
        " --budget 1.5% --policy headkv:beta=1.1 --profile heads.json -f a.txt -f b.txt m.gguf"
    )
    options = parsed(*line.split(), "-sys", "be brief", "-p", "-hello")
    assert options == ChatOptions(
        model="m.gguf",
        budget="1.5%",
        policy="headkv:beta=1.1",
        profile=Path("heads.json"),
        n_ctx=4096,
        n_threads=3,
        n_gpu_layers=99,
        type_k="q8_0",
        type_v="q4_0",
        system="be brief",
        files=[Path("a.txt"), Path("b.txt")],
        prompt="-hello",
        lookahead=8,
        is_single_turn=True,
        n_predict=64,
        temp=0,
        top_k=20,
        top_p=0.9,
        min_p=0.1,
        repeat_penalty=1.1,
        seed=7,
        no_loop_stop=True,
        as_json=True,
        verbose=True,
    )
    assert options.sampling.keys() == SETTINGS.keys()


def test_defaults(parsed: Callable[..., ChatOptions]) -> None:
    options = parsed("m.gguf", "-p", "-", "-n", "-1", "-ngl", "-1")
    assert options == ChatOptions(model="m.gguf", prompt="-", n_predict=-1, n_gpu_layers=-1)
    assert options.sampling == {"n-predict": -1}


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_has_help_and_runs_with_its_options(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(import_module(f"pyheadkv.cli.{command}"), "run", seen.append)
    assert run(command, "m.gguf").exit_code == 0
    assert type(seen[0]) is OPTIONS[command]
    assert OPTIONS[command].__doc__ in " ".join(run(command, "--help").stdout.split())


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_has_an_example_that_can_be_run(run: Run, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setattr(import_module(f"pyheadkv.cli.{command}"), "run", lambda options: None)
    name, *arguments = shlex.split(EXAMPLES[command])
    assert name == "pyheadkv" and arguments[0] == command
    assert run(*arguments).exit_code == 0
    assert f"Example: {EXAMPLES[command]}" in " ".join(run(command, "--help").stdout.split())


def test_help_lists_exit_codes(run: Run) -> None:
    words = " ".join(run("--help").stdout.split())
    assert all(code in words for code in ("0 done", "1 an error", "2 a command line", "130 Ctrl-C", "143 SIGTERM"))


def test_narrow_terminals(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "44")
    for arguments in ([], *([command] for command in OPTIONS)):
        shown = CliRunner().invoke(app, [*arguments, "--help"], terminal_width=50)  # the least that it wraps for
        assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 52
    for arguments in ([], ["headkv"]):
        shown = run("policies", *arguments)
        assert shown.exit_code == 0 and max(map(len, shown.stdout.splitlines())) <= 44


@pytest.mark.parametrize(
    "arguments",
    [
        ["chat"],
        ["--verbose"],
        ["--verbose", "chat", "m"],
        [],
        ["chat", "m", "--foo"],
        ["chat", "m", "-t", "0"],
        ["chat", "m", "-c", "x"],
        ["nothing"],
        ["chat", "m", "-n"],
    ],
)
def test_usage_errors_are_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Error: " in result.stderr and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.gguf"], "missing.gguf: no such file"),
        (["model.gguf", "--budget", "0"], "budget 0 must be above 0"),
        (["model.gguf", "--budget", "101%"], "budget 101% is above 100%"),
        (["model.gguf", "--budget", "8"], "budget 8 is below the floor of 20 rows per KV head (4 sinks + 16 observed)"),
        (["model.gguf", "--policy", "nope"], "unknown policy 'nope', known are auto, snapkv, headkv"),
        (["model.gguf", "--policy", "headkv"], "--profile FILE"),
        (["model.gguf", "--profile", "no.json"], "profile no.json cannot be read: No such file or directory"),
        (["model.gguf", "-ctk", "q9"], "unknown cache type 'q9'"),
        (
            ["model.gguf", "-ctv", "q8_0"],
            "cache type q8_0 stores blocks of 32 elements, but this model's V vectors have 80",
        ),
        (["model.gguf", "-f", "no.txt"], "no.txt cannot be read: No such file or directory"),
        (["model.gguf", "-f", "model.bin"], "model.bin is not text: it has a NUL byte at offset 1"),
        (["model.gguf", "-f", "empty.txt"], "empty.txt is empty"),
        (["model.gguf", "-f", "/dev/zero"], "/dev/zero is not text: it has a NUL byte at offset 0"),
        (["model.gguf", "-f", "long.txt"], "long.txt has 524.3 kB, the limit is 524.3 kB (256 for each of the 2048"),
        (["model.gguf", "--temp", "nan"], "temp is nan, expected a number from 0 to 100"),
        (["model.gguf", "--top-p", "2"], "top-p is 2.0, expected a number from 0 to 1"),
        (["model.gguf", "-p", " "], "the prompt is empty"),
        (["model.gguf", "-p", "hello \udcff there"], "-p is not UTF-8 text: byte 0xff at offset 6"),
        (["model.gguf", "-sys", "\udce9"], "-sys is not UTF-8 text: byte 0xe9 at offset 0"),
        (["model.gguf", "--protect", "a\udce9"], "--protect is not UTF-8 text: byte 0xe9 at offset 1"),
        (["model.gguf", "-p", "-"], "standard input is empty"),
        (["model.gguf", "--memory", "a", "--memory", "b"], "2 times --memory: rows hold for the positions"),
        (["model.gguf", "--memory", "a", "-sys", "x"], "-sys does not go with --memory"),
        (["model.gguf", "--memory", "no.hkv"], "no.hkv cannot be read: No such file or directory"),
    ],
)
def test_known_errors_are_1_and_one_line(
    run: Run, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    Path("model.bin").write_bytes(b"a\0b")
    Path("empty.txt").touch()
    Path("long.txt").write_text("a" * (256 * 2048 + 1))
    monkeypatch.setattr(model, "load", None)
    result = run("chat", "-p", "hello", *arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert result.stderr.count("\n") == 1 and result.stdout == ""


def test_standard_input_is_one_text(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run("chat", "model.gguf", stdin=b"hello \xff\xfe there")
    assert result.stderr == "error: standard input is not UTF-8 text: byte 0xff at offset 6\n"
    monkeypatch.setattr(first_message.TextSource, "takes_stdin", lambda _: True)
    Path("a.txt").write_text("a")
    result = run("chat", "model.gguf", "-f", "a.txt", stdin="hello")
    assert result.stderr.startswith("error: a.txt is standard input, where the prompt is expected too")
    monkeypatch.undo()
    result = run("chat", "model.gguf", "-f", "-", "-p", "-", stdin="hello")
    assert result.stderr.startswith("error: - is standard input, where the prompt is expected too")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("chat model.gguf -p x --profile -", "profile -: "),
        ("chat model.gguf -p x --chat-template -", "the chat template, line 1: "),
        ("serve model.gguf --api-key-file -", "--api-key-file - has no key"),
        ("eval model.gguf --text -", "- has 11 characters, at least"),
        ("eval model.gguf --data -", "-, line 1: Expecting property name"),
    ],
)
def test_a_dash_is_standard_input_wherever_a_text_is_read(run: Run, arguments: str, words: str) -> None:
    text = "# no key here" if "key" in arguments else "{% for %}#\n"
    result = run(*arguments.split(), stdin=text)
    assert result.exit_code == 1 and words in result.stderr, result.output


def test_a_context_above_the_trained_one_is_said(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise NativeError("loaded", -5)

    monkeypatch.setattr(model, "load", stop)
    words = "note: the context of 2049 tokens is above the 2048 that this model was trained for\n"
    assert run("chat", "model.gguf", "-p", "hello", "-c", "2049").stderr == f"{words}error: loaded\n"
    assert run("chat", "model.gguf", "-p", "hello", "-c", "2048").stderr == "error: loaded\n"


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_without_standard_streams(closed: str) -> None:
    """As a service may start it: their numbers are never those of a file, and errors do not go to stdout."""
    code = (
        "import os, sys, types\nfrom pyheadkv.cli import app\nfrom pyheadkv.errors import PolicyError\n"
        "def refuse(_): raise PolicyError(\"unknown policy 'nope'\")\n"
        "sys.modules['pyheadkv.cli.policies'] = types.SimpleNamespace(run=refuse)\n"  # a light one
        "sys.argv[1:] = ['policies', 'nope']\n"
        "try:\n    app.main()\nexcept SystemExit as end:\n    os._exit(100 * (os.dup(0) < 3) + end.code)\n"
    )
    command = ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: unknown policy 'nope'") or "2>&-" in closed


def test_unsupported_architecture_is_named_with_the_reason(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "read_gguf_metadata", lambda _: {"general.architecture": "mamba"})
    result = run("chat", "model.gguf", "-p", "hello")
    assert result.exit_code == 1
    assert "model.gguf cannot be compressed: architecture mamba is recurrent" in result.stderr


def test_debug_shows_the_traceback(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADKV_DEBUG", "1")
    assert run("chat", "missing.gguf", "-p", "x").exc_info[1].args[0].startswith("missing.gguf: no such file")


@pytest.mark.parametrize(("problem", "code"), [(KeyboardInterrupt(), 130), (NativeError("broken", -5), 1)])
def test_exit_codes_of_a_run(run: Run, monkeypatch: pytest.MonkeyPatch, problem: BaseException, code: int) -> None:
    def fail(*_: object) -> None:
        raise problem

    monkeypatch.setattr(chat, "run", fail)
    assert run("chat", "model.gguf").exit_code == code


def test_inspect_as_json(run: Run) -> None:
    report = json.loads(run("inspect", "model.gguf", "--json", "--budget", "10%", "-c", "1000", "-ctk", "q8_0").stdout)
    assert report["is_supported"] and report["has_chat_template"]
    assert report["shape"]["n_head_kv"] == [2, 1]
    assert report["bytes_per_token"] == 3 * (2 * 34 + 80 * 2)
    assert report["plan"]["rows_kept"] == 300 == sum(map(sum, report["plan"]["rows_per_head"]))
    assert report["plan"]["rows_spread"] == {"min": 100, "median": 100, "max": 100}
    row = 2 * 34 + 80 * 2
    kept, peaks = 300 * row, report["plan"]["peak_bytes"]
    assert peaks["by_layers"] == 1000 * 2 * row + kept  # the larger of its layers has two heads
    assert peaks["whole"] == 1000 * 3 * row + kept
    assert peaks["hidden_states"] % (1000 * 4) == 0 < peaks["hidden_states"]


def test_inspect_as_text(run: Run) -> None:
    text = run("inspect", "model.gguf").stdout
    assert "KV heads         1 to 2 in a layer, 3 in all" in text
    assert "rows kept        1536 of 6144 (25 %)" in text
    assert "MiB with --no-sweep\n" in text
    assert "supported        yes" in text
    assert "weights          Q4_1 90 %, F32 10 %\n                 Q4_1 has no fast matrix kernel" in text


def test_inspect_whole_cache_and_missing_profile(run: Run) -> None:
    assert "none: the cache stays whole" in run("inspect", "model.gguf", "--budget", "full").stdout
    assert "none: policy headkv needs --profile FILE" in run("inspect", "model.gguf", "--policy", "headkv").stdout


@pytest.mark.parametrize("extra", [{}, {"mamba.block_count": 2}])
def test_inspect_says_why_not(run: Run, monkeypatch: pytest.MonkeyPatch, extra: dict[str, object]) -> None:
    monkeypatch.setattr(inspect, "read_gguf_metadata", lambda _: {"general.architecture": "mamba", **extra})
    result = run("inspect", "model.gguf")
    assert result.exit_code == 0
    assert "supported        no: architecture mamba is recurrent and has no KV cache" in result.stdout
    assert json.loads(run("inspect", "model.gguf", "--json").stdout)["is_supported"] is False


def test_help_imports_nothing_heavy() -> None:
    heavy = "{'numpy', 'llama_cpp', 'rich', 'jinja2', 'matplotlib'}"
    code = f"import sys, pyheadkv.cli.app; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
