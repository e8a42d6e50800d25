"""Launch every kernel of the package `corpus` on a stand-in driver: ``python run_corpus.py TARGET [CASE…]``.

Prints one JSON object: for each launch the kernels that it asked for, each with its key and whether that was a hit, or
how it failed. `corpus` is imported from beside this file.
"""

from __future__ import annotations

import json
import sys
import threading
import warnings
from typing import Any

warnings.simplefilter("ignore")

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends import backends  # noqa: E402
from triton.runtime.cache import get_cache_manager  # noqa: E402

from stand_in import stand_in, target_of  # noqa: E402  # isort: skip


@triton.jit
def of_main(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 30)


class Watch:
    """What Triton gives to each launch that asks for a kernel, in all its versions alike."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self._compiling = threading.local()
        self._watch_kernels()
        for backend in backends.values():
            self._watch_stages(backend.compiler)

    def clear(self) -> None:
        """Forget what was asked for, and a compile that failed."""
        self.asked = []
        self._compiling.now = False

    def _watch_kernels(self) -> None:
        compiled = triton.compiler.compiler.CompiledKernel
        made = compiled.__init__

        def noted(kernel: Any, src: Any, group: Any, digest: str) -> None:
            key = get_cache_manager(digest).key
            self.asked.append(
                {"kernel": src.name, "key": key, "hit": not getattr(self._compiling, "now", False)}
            )
            self._compiling.now = False
            made(kernel, src, group, digest)

        compiled.__init__ = noted

    def _watch_stages(self, backend: Any) -> None:
        add_stages = backend.add_stages

        def noted(made: Any, *words: Any) -> None:
            self._compiling.now = True
            add_stages(made, *words)

        backend.add_stages = noted


def main() -> None:
    """Launch what the arguments name, or everything."""
    target = target_of(sys.argv[1])
    stand_in(target)
    from corpus.arguments import F32
    from corpus.cases import case, every

    case("a kernel of the script")(lambda: of_main[(1,)](F32, BLOCK=64))
    watch = Watch()
    said = {}
    for one in every(target.backend):
        if sys.argv[2:] and one.name not in sys.argv[2:]:
            continue
        watch.clear()
        failure = None
        try:
            one.launch()
        except Exception as error:
            failure = f"{type(error).__name__}: {error}"[-600:]
        said[one.name] = {"asked": watch.asked, "failure": failure}
    sys.stdout.write(json.dumps({"triton": triton.__version__, "cases": said}) + "\n")


if __name__ == "__main__":
    main()
