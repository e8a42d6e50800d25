"""What TorchInductor leaves in a root, with content as far as somebody looks at that."""

from __future__ import annotations

from pathlib import Path

from gpucache.kernels.elf import HEAD_BYTES
from support.inductor import code, digest

LIBRARY = code("library")
SOURCE = code("source")
GRAPH = f"fxgraph/ab/f{digest('graph')}/{digest('content')}"
CPU_GRAPH = f"fxgraph/cd/f{digest('another')}/{digest('content')}"
AUTOGRAD = f"aotautograd/a{digest('graph')}/{digest('content')}"


def code_path(name: str, end: str) -> str:
    return f"{name[1:3]}/{name}{end}"


FILES = {
    code_path(LIBRARY, ".main.cpp"): b"int main;",
    code_path(LIBRARY, ".main.so"): b"\x7fELF\x02".ljust(HEAD_BYTES, b"\0") + b"code",
    code_path(SOURCE, ".py"): b"answer = 42\n",
    code_path(SOURCE, ".best_config"): b'{"num_warps": 4}',
    GRAPH: b"a pickle of a graph for a GPU",
    CPU_GRAPH: b"a pickle with async_compile.cpp_pybinding(...)",
    AUTOGRAD: b"a pickle",
}
UNITS = {LIBRARY, SOURCE, GRAPH, CPU_GRAPH, AUTOGRAD}


def leave(root: Path, files: dict[str, bytes] | None = None) -> None:
    """Have torch leave files in a root, which is made."""
    root.mkdir(mode=0o700, exist_ok=True)
    for name, content in (files or FILES).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def inductor_files(root: Path) -> dict[str, bytes]:
    """All that a root has but what is gpucache's own, and locks."""
    found = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_file() and not name.startswith(("gpucache/", "triton/", "locks/", "CACHEDIR")):
            found[name] = path.read_bytes()
    return found
