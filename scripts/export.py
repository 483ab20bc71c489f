#!/usr/bin/env python3
"""`pyheadkv export` from a checkout: scripts/export.py MODEL -o OUT.gguf [--profile P | --calibrate] [--budget 10%]."""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    command = Path(__file__).resolve().with_name("pyheadkv")
    os.execv(command, [str(command), "export", *sys.argv[1:]])
