"""What pyproject.toml asks for: a CUDA compiler comes with what developers install, and with nothing else."""

from __future__ import annotations

import re

from prepare import requirements


def cuda_packages(dev: bool) -> dict[str, str]:
    """Versions of NVIDIA's packages, by name."""
    found = (re.match(r"(nvidia-[\w-]+)([^;]*)", each) for each in requirements(dev))
    return {match[1]: match[2] for match in found if match}


def test_users_do_not_install_a_cuda_compiler() -> None:
    assert not cuda_packages(dev=False)


def test_the_compiler_and_its_parts_are_of_one_release() -> None:
    packages = cuda_packages(dev=True)
    assert {"nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-cuda-runtime", "nvidia-nvvm"} <= set(packages)
    assert set(packages.values()) == {"==13.0.*"}
