"""What TorchInductor leaves in a root: files of its names, of any age."""

from __future__ import annotations

import base64
import hashlib
import os
import time
from pathlib import Path

NOW = time.time()
HOUR = 3600.0


def digest(text: str) -> str:
    return base64.b32encode(hashlib.sha256(text.encode()).digest()).decode()[:51].lower()


def wrote(root: Path, name: str, size: int, age_s: float) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(size))
    used = time.time() - age_s
    os.utime(path, (used, used))
    return path


def code(text: str) -> str:
    """The hash of a piece of code."""
    return f"c{digest(text)}"


def library(root: Path, text: str, age_s: float) -> list[Path]:
    """What a C++ kernel leaves: 1,000 bytes in three files, and a lock."""
    name = code(text)
    place = name[1:3]
    return [
        wrote(root, f"{place}/{name}.main.cpp", 100, age_s),
        wrote(root, f"{place}/{name}.main.so", 800, age_s),
        wrote(root, f"{place}/{name}.py", 100, age_s),
        wrote(root, f"locks/{name}.lock", 0, age_s),
    ]


def graph(root: Path, text: str, age_s: float) -> Path:
    """1,000 bytes."""
    key = f"f{digest(text)}"
    return wrote(root, f"fxgraph/{key[1:3]}/{key}/{digest(text)}", 1000, age_s)


def autograd(root: Path, text: str, age_s: float) -> Path:
    """1,000 bytes."""
    return wrote(root, f"aotautograd/a{digest(text)}/{digest(text)}", 1000, age_s)
