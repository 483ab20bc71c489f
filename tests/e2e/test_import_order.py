"""Whatever is imported first, llama_cpp or pyheadkv, the library that set-up made is the one that is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import prepare

ROOT = Path(__file__).parents[2]
ORDERS = ("import llama_cpp, pyheadkv", "import pyheadkv, llama_cpp")


@pytest.fixture
def site(library: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Site-packages with a llama_cpp of its own, as set-up leaves them."""
    site = tmp_path / "lib" / "python3" / "site-packages"
    shutil.copytree(Path(find_spec("llama_cpp").origin).parent, site / "llama_cpp", ignore=lambda *_: ["lib"])
    monkeypatch.setattr(prepare, "VENV", tmp_path)
    prepare.link_library()
    return site


@pytest.mark.parametrize("order", ORDERS)
def test_either_order_works(site: Path, order: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LLAMA_CPP", "HEADKV"))}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (site, ROOT)))
    code = f"{order}; from pyheadkv.engine.native import abi_version; abi_version(); print(llama_cpp.__file__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(site)
