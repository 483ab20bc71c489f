"""Writing a profile into a model file, and taking it out again.

The keys headkv.* are put behind the model's other keys (`header`); every tensor and every other key keeps its bytes.
Taking them out gives the original file back, byte for byte. Of a model in several files the keys go into the first,
where llama.cpp looks for them. Files are written beside their place and renamed when they are whole (`files`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from pyheadkv.errors import ExportError
from pyheadkv.export.files import Copy, OnProgress, check_targets, copy_all
from pyheadkv.export.header import new_header
from pyheadkv.model.fingerprint import check_fingerprint, fingerprint
from pyheadkv.model.gguf_header import Header, open_header, part_name, split_paths, split_stem
from pyheadkv.model.shape import shape_from_metadata
from pyheadkv.profile import Profile
from pyheadkv.profile.gguf_keys import PREFIX, MetadataValue, profile_from_metadata, profile_to_metadata

__all__ = ["check_output", "export_model", "remove_profile"]


def export_model(
    model: str | Path,
    out: str | Path | None,
    profile: Profile,
    *,
    keep_ratio: float | None = None,
    in_place: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Write a copy of a model that carries a profile; one that is there already is replaced.

    Parameters
    ----------
    model
        GGUF file; of a split model, the first part
    out
        file to write; of a split model, the other parts are written beside it. None with `in_place`
    profile
        checked against the model, its fingerprint too if it has one
    keep_ratio
        default budget to store, a share of the rows; None is the profile's own
    in_place
        write over the model
    force
        write over an existing `out`
    on_progress
        called with bytes written and bytes in all

    Returns
    -------
    list of Path
        the files written

    Raises
    ------
    ModelError
        the model cannot be read
    ProfileError
        the profile is not one of this model; names the key
    ExportError
        `out` exists, is the model itself, or cannot be written, or there is no room for it
    """
    model = Path(model)
    if keep_ratio is not None:
        profile = replace(profile, keep_ratio=keep_ratio)
    if profile.fingerprint is not None:
        check_fingerprint(profile.fingerprint, fingerprint(model))
    with open_header(model) as header:
        values = profile_to_metadata(profile)
        # nothing is written that would not be accepted when it is read
        profile_from_metadata(values, shape_from_metadata(header.metadata()), str(model))
        return _write(header, values, out, in_place, force, on_progress)


def remove_profile(
    model: str | Path,
    out: str | Path | None,
    *,
    in_place: bool = False,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> list[Path]:
    """Write a copy of a model without the keys headkv.*; parameters as of `export_model`.

    Raises
    ------
    ModelError
        the model cannot be read
    ExportError
        it has no such keys, or as of `export_model`
    """
    with open_header(model) as header:
        if not any(key.startswith(PREFIX) for key in header.entries):
            raise ExportError(f"{model} carries no profile: it has no key {PREFIX}*")
        return _write(header, {}, out, in_place, force, on_progress)


def check_output(model: str | Path, out: str | Path | None, *, force: bool = False) -> None:
    """Refuse a place where `export_model` would refuse to write, before work is done; None is in place.

    Raises
    ------
    ModelError
        the model cannot be read
    ExportError
        `out` exists, is the model itself, or is in no folder
    """
    with open_header(model) as header:
        _places(header, out, force)


def _write(
    header: Header,
    values: Mapping[str, MetadataValue],
    out: str | Path | None,
    in_place: bool,
    force: bool,
    on_progress: OnProgress | None,
) -> list[Path]:
    if (out is None) != in_place:
        raise ExportError("expected either a file to write or in_place")
    copies = _places(header, out, force)
    copies[0] = replace(copies[0], head=new_header(header, values), start=header.data_start)
    copy_all(copies, on_progress)
    return [copy.target for copy in copies]


def _places(header: Header, out: str | Path | None, force: bool) -> list[Copy]:
    """Which files become which: all parts of the model, or in place the first only."""
    sources = split_paths(header)
    if out is None:
        return [Copy(sources[0], sources[0].resolve())]  # a link to a model stays a link
    out = Path(out)
    names = [part_name(split_stem(out.name), no, len(sources)) for no in range(len(sources))]
    targets = [out.with_name(name) for name in names] if len(sources) > 1 else [out]
    check_targets(targets, sources, force)
    return [Copy(source, target) for source, target in zip(sources, targets, strict=True)]
