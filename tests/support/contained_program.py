"""A program in a container, ``serve.py``: it launches kernels as Triton does, and prints how many were compiled.

``python serve.py SEED…`` launches one kernel for each word. What a compile would take is not spent.
"""

import base64
import hashlib
import json
import sys

from gpucache.triton.manager import DeviceCacheManager


def launched(seed: str) -> bool:
    """Launch a kernel; whether it had to be compiled."""
    digest = hashlib.sha256(seed.encode())
    key = base64.b32encode(digest.digest()).decode().rstrip("=")
    target = {"backend": "cuda", "arch": 90}
    said = {"name": "add", "target": target, "hash": digest.hexdigest(), "triton_version": "3.9.0"}
    files = {"add.json": json.dumps(said).encode(), "add.ptx": seed.encode() * 100}
    try:
        manager = DeviceCacheManager(key)
    except KeyError:
        return True  # Triton's own manager has it, and this program has not imported Triton
    found = manager.get_group("add.json")
    if found is None:
        made = {name: manager.put(data, name) for name, data in files.items()}
        manager.put_group("add.json", made)
        found = made
        missed = True
    else:
        missed = False
    for name, path in found.items():
        with open(path, "rb") as file:
            assert file.read() == files[name]
    return missed


seeds = sys.argv[1:] or ["first", "second", "third"]
print(json.dumps({"compiled": sum(map(launched, seeds)), "kernels": len(seeds)}))
