"""Measure how important every KV head of a model is: questions about hidden needles, and repeated prose.

    llama = pyheadkv.load("model.gguf", n_ctx=2304)
    profile = calibrate(llama, CalibrationSettings(n_examples=72))

`haystack`, `needles` and `pages` make texts and questions, `prompts` tokenizes them, `observer` watches the model,
`retrieval` and `reconstruction` measure one question or excerpt, `scores` are the formulas, `part` keeps what is done,
`run` does it all and `result` makes a profile of it.
"""

from __future__ import annotations

from pyheadkv.calibrate.run import calibrate
from pyheadkv.calibrate.settings import CalibrationSettings

__all__ = ["CalibrationSettings", "calibrate"]
