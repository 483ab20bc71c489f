"""The demo: how its small model is asked best, and a text to ask it about.

System text and sampling are the best of what was tried on twenty everyday questions (README.md here); the text of the
model's own template lets it invent more and answer less.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyheadkv.chat.sampling import Sampling, sampling_of_file
from pyheadkv.engine.sources import DEMO_FAST_GGUF, DEMO_GGUF

if TYPE_CHECKING:
    import llama_cpp

SYSTEM = "You are a helpful assistant. Answer briefly."
SAMPLING = Sampling(temp=0, repeat_penalty=1.1)
QUESTION = "What is the secret number of the stone hut?"  # of the sample
WORDS = (
    f"this small model finds things in a text that you give it, and knows few facts; try /read sample, then {QUESTION}"
)

_SAMPLE = "sample"


def is_demo(model_path: str | Path) -> bool:
    """Whether a file is the demo model that pyheadkv fetches, as it comes or as Q8_0."""
    return Path(model_path).name in (DEMO_GGUF, DEMO_FAST_GGUF)


def system_of(llama: llama_cpp.Llama, asked: str | None) -> str | None:
    """The system text: what was asked for, else the demo's own on the demo model."""
    return SYSTEM if asked is None and is_demo(llama.model_path) else asked


def sampling_of(llama: llama_cpp.Llama, on_notice: Callable[[str], None]) -> Sampling:
    """Settings of answers where nobody asks for others: of the model's file, of the demo, or llama-cli's."""
    return sampling_of_file(SAMPLING if is_demo(llama.model_path) else Sampling(), llama.metadata, on_notice)


def named_file(file: str | Path) -> Path:
    """The file that a user means: "sample" is the text that comes with the package, where no such file exists."""
    path = Path(file)
    return Path(__file__).parent / "samples" / "log.txt" if str(path) == _SAMPLE and not path.exists() else path
