"""What does it cost to carry a cache to another machine by a pack, beside `rsync -a` and `tar` of the same tree?

Two trees: 500 kernels of `tree.py` (3,500 files beside the manifests), and a *diverse sample*, which the real Triton
compiles from the package `tests/support/corpus` for three architectures without a GPU, each entry with its recipe.
*Unpack* is the whole process `gpucache unpack` of a signed pack into a root that is not there: start-up, the signature,
every digest, every entry published. *rsync* and *tar* (two of them, and a pipe) copy the store's directory of the same
tree, and check nothing. All take turns in each round, each into a new directory; what they made is removed outside of
the time. *Pack* is the whole process `gpucache pack`, in which every file is read twice; beside it is `tar`, through
`zstd -9` where there is one. The size is that of the pack, signature and statement included, beside the bytes of the
files of its entries.

Does not measure: a network, a cold page cache, what the disk does after a process has ended, kernels larger than those
(those of attention are), nor how much of a pack a program then uses. The contents of `tree.py` are repeated
text, so that the size of its pack says nothing, and is not printed. ext4 makes files slowly for minutes after many were
deleted: ``--root /dev/shm`` is steadier.

Repeat: python benchmarks/bench_transfer.py [--smoke] [--root DIRECTORY]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tree
from process import Spent, line, run
from report import environment, options_of

from gpucache.archive.signature import make_key

CORPUS = Path(__file__).parent.parent / "tests/support/run_corpus.py"
ARCHS = ("sm_80", "sm_90", "sm_100")
FEW = ("softmax", "vector add", "layer norm, helpers of another module, one not inlined")
PLUGIN = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
GPUCACHE = [sys.executable, "-m", "gpucache"]


def compile_corpus(root: str, smoke: bool) -> None:
    """Compile a diverse sample of real kernels into a root."""
    archs = ARCHS[:1] if smoke else ARCHS
    device = {"GPUCACHE_DIR": root, "TRITON_CACHE_DIR": f"{root}/triton/0"}
    for arch in archs:
        command = [sys.executable, str(CORPUS), arch, *(FEW if smoke else ())]
        environ = {**os.environ, **PLUGIN, **device}
        subprocess.run(command, env=environ, check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(f"{root}/triton")


class Carrying:
    """One tree, its pack, and the ways to bring it to a new directory."""

    def __init__(self, root: str, work: str, key: str) -> None:
        self.store = f"{root}/gpucache/v1/store"
        self.pack = f"{work}/pack.tar.zst"
        self.target = f"{work}/target"
        public = make_key("bench", key).public_text
        self.environ = {
            **os.environ,
            "GPUCACHE_SIGN_KEY": key,
            "GPUCACHE_TRUST_KEYS": public,
            "GPUCACHE_MAX_SIZE": "0",
        }
        self.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # installed packages have their bytecode
        self._packing = [*GPUCACHE, "pack", "--root", root, "-o", self.pack]
        said = subprocess.run(
            [*self._packing, "--json"], env=self.environ, check=True, stdout=subprocess.PIPE
        )
        row = json.loads(said.stdout)
        self.entries, self.size_bytes = len(row["entries"]), row["bytes"]
        self.packed_bytes = row["file_bytes"]

    def rsync(self) -> Spent:
        os.mkdir(self.target)
        return run(["rsync", "-a", f"{self.store}/", self.target], self.environ)

    def tar(self) -> Spent:
        os.mkdir(self.target)
        piped = f'tar -C "{self.store}" -c . | tar -C "{self.target}" -x'
        return run(["sh", "-c", piped], self.environ)

    def unpack(self) -> Spent:
        command = [*GPUCACHE, "unpack", self.pack, "--root", self.target]
        return run(command, self.environ)

    def packing(self) -> Spent:
        return run(self._packing, self.environ)

    def tarring(self) -> Spent:
        through = "| zstd -9 -q" if shutil.which("zstd") else ""
        piped = f'tar -C "{self.store}" -c . {through} > "{self.target}"'
        return run(["sh", "-c", piped], self.environ)

    def files_made(self) -> int:
        """How many files a way has brought, to see that all did the same; the target is removed."""
        if os.path.isfile(self.target):
            os.unlink(self.target)
            return 0
        store = f"{self.target}/gpucache/v1/store"
        top = store if os.path.isdir(store) else self.target
        count = sum(len(names) for _, _, names in os.walk(top))
        shutil.rmtree(self.target)
        return count


Way = Callable[[], Spent]


def take_turns(carrying: Carrying, ways: dict[str, Way], rounds: int) -> dict[str, list[Spent]]:
    """Let each way have its turn in each round."""
    spent: dict[str, list[Spent]] = {name: [] for name in ways}
    made = set()
    for _ in range(rounds):
        for name, way in ways.items():
            spent[name].append(way())
            if os.path.lexists(carrying.target):
                made.add(carrying.files_made())
    assert len(made) <= 1, f"the ways brought different numbers of files: {made}"
    return spent


def compare(carrying: Carrying, rounds: int) -> None:
    """Print what each way takes."""
    ways: dict[str, Way] = {"tar | tar": carrying.tar, "gpucache unpack": carrying.unpack}
    first = "tar | tar"
    if shutil.which("rsync"):
        ways = {"rsync -a": carrying.rsync, **ways}
        first = "rsync -a"
    else:
        print("  rsync -a: skipped, there is no rsync here; ratios are to tar | tar")
    spent = take_turns(carrying, ways, rounds)
    for name, samples in spent.items():
        print("  " + line(name, samples, spent[first]))
    name = "tar | zstd -9" if shutil.which("zstd") else "tar"
    packing: dict[str, Way] = {name: carrying.tarring, "gpucache pack": carrying.packing}
    spent = take_turns(carrying, packing, rounds)
    for one, samples in spent.items():
        print("  " + line(one, samples, spent[name]))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--root", help="where to make the caches (default: a temporary directory)")
    options = parser.parse_args()
    entries, rounds = (20, 2) if options.smoke else (500, 15)
    print(environment())
    with tempfile.TemporaryDirectory(dir=options.root) as work:
        root = f"{work}/root"
        tree.make(root, entries, 0)
        carrying = Carrying(root, work, f"{work}/tree.key")
        print(f"{carrying.entries} entries of tree.py, {carrying.size_bytes / 2**20:.1f} MiB")
        compare(carrying, rounds)
        shutil.rmtree(root)
        compile_corpus(root, options.smoke)
        carrying = Carrying(root, work, f"{work}/corpus.key")
        share = carrying.packed_bytes / carrying.size_bytes
        print(
            f"{carrying.entries} real entries, {carrying.size_bytes / 2**20:.1f} MiB;"
            f" the pack has {carrying.packed_bytes / 2**20:.2f} MiB, {share:.3f} of their bytes"
        )
        compare(carrying, rounds)


if __name__ == "__main__":
    main()
