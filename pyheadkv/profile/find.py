"""Which profile goes with a model: a file that the user names, the model's own keys, or one that pyheadkv has ready.

Ready profiles lie in pyheadkv/profile/builtin and are known by their fingerprint, so each serves every quantization of
the model that it was measured on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from pyheadkv.errors import ProfileError
from pyheadkv.model.fingerprint import check_fingerprint, fingerprint
from pyheadkv.model.shape import ModelShape
from pyheadkv.profile import Profile, mix_profile, profile_from_body, read_profile
from pyheadkv.profile.gguf_keys import profile_from_metadata


def find_profile(
    path: str | Path,
    metadata: Mapping[str, object],
    shape: ModelShape,
    file: str | Path | None = None,
    mix: str | None = None,
) -> Profile | None:
    """The profile to use with a model: that of `file` if given, else the model's own, else a ready one, else None.

    Parameters
    ----------
    path, metadata, shape
        the model, its GGUF keys and its shape
    file
        *.headkv.json, or a score file of the HeadKV repository
    mix
        kinds of head scores to use, as `parse_mix` reads it; by default the profile's own mix

    Raises
    ------
    ProfileError
        the profile is damaged, was measured on another model (one without fingerprint is taken on trust), or does not
        have what is to be mixed
    """
    profile = read_profile(file, shape) if file is not None else profile_from_metadata(metadata, shape, str(path))
    if profile is None:
        profile = _ready_profile(path, shape)
    elif profile.fingerprint is not None:
        try:
            check_fingerprint(profile.fingerprint, fingerprint(path))
        except ProfileError as error:
            raise ProfileError(f"profile {'in ' if file is None else ''}{profile.source}: {error}") from None
    return None if profile is None else mix_profile(profile, mix)


def _ready_profile(path: str | Path, shape: ModelShape) -> Profile | None:
    of_model = ""
    for file in files("pyheadkv.profile").joinpath("builtin").iterdir():
        if not file.name.endswith(".headkv.json"):
            continue
        body = json.loads(file.read_text(encoding="utf-8"))["headkv"]
        is_alike = body["fingerprint"].startswith(f"{shape.architecture}:")
        if not is_alike or body["n_head_kv"] != list(shape.n_head_kv):
            continue
        of_model = of_model or fingerprint(path)  # reads the vocabulary: only where it may be of use
        if body["fingerprint"] == of_model:
            return profile_from_body(body, shape, f"pyheadkv/profile/builtin/{file.name}")
    return None
