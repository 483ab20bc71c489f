"""The pin of upstream and the sdist that it names: found, checked, unpacked. Used by patches.py.

The sdist comes from HEADKV_SDIST (a local file), from this user's cache, or from pip by name and version; its sha256 is
checked every time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

PIN_KEYS = ("name", "version", "sha256", "commit")
VENDORED = "vendor/llama.cpp/"  # inside the sdist's top folder


class PinError(Exception):
    """No sdist, or not the pinned one; its message is one line for the user."""


@dataclass(frozen=True)
class Pin:
    """patches/UPSTREAM."""

    name: str
    version: str
    sha256: str
    commit: str


def read_pin(patches: Path) -> Pin:
    """Read `key = value` lines; raises PinError naming a missing key."""
    values: dict[str, str] = {}
    for line in (patches / "UPSTREAM").read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            key, _, value = line.partition("=")
            values[key.strip()] = value.strip()
    missing = [key for key in PIN_KEYS if not values.get(key)]
    if missing:
        raise PinError(f"patches/UPSTREAM has no {', '.join(missing)}")
    return Pin(**{key: values[key] for key in PIN_KEYS})


def cache_dir() -> Path:
    """This user's cache folder for pyheadkv (the one that platformdirs names, without needing it here)."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "pyheadkv"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "pyheadkv" / "pyheadkv" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pyheadkv"


def file_sha256(path: Path) -> str:
    """sha256 of a file as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def find_sdist(pin: Pin) -> Path:
    """Path of the pinned sdist: HEADKV_SDIST, the cache, or pip; raises PinError unless its sha256 is the pin's."""
    given = os.environ.get("HEADKV_SDIST")
    if given:
        if not Path(given).is_file():
            raise PinError(f"HEADKV_SDIST={given}: no such file")
        found = file_sha256(Path(given))
        if found != pin.sha256:
            raise PinError(f"HEADKV_SDIST={given}: sha256 is {found}, the pin says {pin.sha256}")
        return Path(given)
    # pip reads name and version from the file name, so the hash names the folder
    cached = cache_dir() / "sdist" / pin.sha256 / f"{pin.name}-{pin.version}.tar.gz"
    if not cached.is_file() or file_sha256(cached) != pin.sha256:
        download_sdist(pin, cached)
    return cached


def download_sdist(pin: Pin, target: Path) -> None:
    """Fetch the sdist by name and version through pip; `target` appears whole and checked, or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        # pip reads the package's metadata with its build backend as well (seconds); it has no switch to leave that out
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", pin.name, "--dest", folder, f"{pin.name}=={pin.version}"]
        done = subprocess.run(command, capture_output=True, text=True)
        files = list(Path(folder).glob("*.tar.gz"))
        if done.returncode != 0 or len(files) != 1:
            said = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise PinError(
                f"pip could not fetch {pin.name}=={pin.version}: {said} (HEADKV_SDIST may name a local file)"
            )
        found = file_sha256(files[0])
        if found != pin.sha256:
            raise PinError(f"{files[0].name}: sha256 is {found}, the pin says {pin.sha256}")
        files[0].replace(target)


def unpack(sdist: Path, tree: Path) -> None:
    """Write the vendored llama.cpp to `tree`.

    Files get the time of unpacking and not the archive's: a build folder that outlives a change of pin must take
    them as new.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            _, _, name = member.name.partition(f"/{VENDORED}")
            parts = Path(name).parts
            if not member.isfile() or not parts or ".git" in parts:  # the sdist holds a submodule's .git file
                continue
            if ".." in parts or Path(name).is_absolute():
                raise PinError(f"{sdist.name} holds a path outside its folder: {member.name}")
            data = archive.extractfile(member)
            assert data is not None
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                shutil.copyfileobj(data, file)
            path.chmod(0o755 if member.mode & 0o100 else 0o644)
    if not (tree / "CMakeLists.txt").is_file():
        raise PinError(f"{sdist.name} holds no {VENDORED}")
