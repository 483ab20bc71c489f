"""The bytes before a model's data, with other headkv.* keys.

Such keys are put behind the model's other keys, and everything else stays as it is:

    preamble | other keys, in their order | headkv.* | tensor descriptions | zeros up to the alignment | data
    ~~~~~~~~                                ~~~~~~~~                         ~~~~~
    the number of keys                      new                              other length

Offsets of tensors count from the start of the data, so their descriptions stay true.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

import numpy as np

from pyheadkv.model.gguf_header import ARRAY, F32, MAGIC, PREAMBLE, STRING, U32, Header
from pyheadkv.profile.gguf_keys import PREFIX, MetadataValue


def new_header(header: Header, values: Mapping[str, MetadataValue]) -> bytes:
    """Everything before the data: the header with its keys headkv.* replaced by `values`."""
    kept = [header.data[entry.start : entry.end] for key, entry in header.entries.items() if not key.startswith(PREFIX)]
    preamble = PREAMBLE.pack(MAGIC, header.version, len(header.tensors), len(kept) + len(values))
    new = [_entry(key, value) for key, value in values.items()]
    head = b"".join((preamble, *kept, *new, header.data[header.kv_end : header.infos_end]))
    padding = -len(head) % header.alignment if header.tensors else 0
    return head + bytes(padding)


def _entry(key: str, value: MetadataValue) -> bytes:
    return _string(key) + _value(value)


def _value(value: MetadataValue) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", ARRAY, F32, len(value)) + np.asarray(value, dtype="<f4").tobytes()
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    return struct.pack("<II", U32, value)


def _string(text: str) -> bytes:
    raw = text.encode("utf-8")
    return struct.pack("<Q", len(raw)) + raw
