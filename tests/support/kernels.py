"""Real Triton kernels that compile without a GPU, for many processes at once.

``python kernels.py COUNT ARCH…`` compiles COUNT kernels for the architectures, from a barrier on stdin: it prints
``ready``, waits for a line, and prints one JSON object: what was compiled, what was hit, the digests of the binaries.
`KERNELS_AT=make_ptx:block` prints ``at make_ptx`` when the first compile gets there, and waits for another line;
``make_ptx:raise`` fails there instead, and the exception is kept until the end.
Works with Triton 3.2 to 3.9; before 3.4 there is no listener, and a compile is a call of the backend's last stage.
"""

import hashlib
import inspect
import json
import os
import resource
import sys
import time
import warnings

warnings.simplefilter("ignore", UserWarning)

import triton  # noqa: E402
import triton.language as tl  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402


@triton.jit
def scaled(x, out, n, SCALE: tl.constexpr, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = offsets < n
    value = tl.load(x + offsets, mask)
    for step in tl.static_range(8):
        value = tl.exp(value * SCALE + step) + tl.sqrt(value)
    tl.store(out + offsets, value, mask)


def source(number):
    types = {"x": "*fp32", "out": "*fp32", "n": "i32"}
    constants = {"SCALE": number + 1, "BLOCK": 512}
    if "constexprs" in inspect.signature(ASTSource.__init__).parameters:  # since 3.3
        return ASTSource(
            fn=scaled,
            signature={**types, "SCALE": "constexpr", "BLOCK": "constexpr"},
            constexprs=constants,
        )
    return ASTSource(fn=scaled, signature=types, constants=constants)


def hash_triton():
    """Let Triton hash its own files, as each process does that compiles; it keeps the result."""
    from triton.compiler import compiler
    from triton.runtime import cache

    (cache.triton_key if hasattr(cache, "triton_key") else compiler.triton_key)()


def count_compiles():
    """A list that grows by one with each real compile."""
    compiled = []
    if hasattr(triton, "knobs"):
        triton.knobs.compilation.listener = lambda **seen: (
            None if seen["cache_hit"] else compiled.append(1)
        )
    else:
        backend = triton.backends.backends["nvidia"].compiler
        make, static = backend.make_cubin, isinstance(vars(backend)["make_cubin"], staticmethod)

        def counted(*words):
            compiled.append(1)
            return make(*words)

        backend.make_cubin = staticmethod(counted) if static else counted
    return compiled


def stop_at():
    """Do what `KERNELS_AT` says in the first compile that gets there."""
    stage, _, act = os.environ.get("KERNELS_AT", "").partition(":")
    if not stage:
        return
    backend = triton.backends.backends["nvidia"].compiler
    make, static = getattr(backend, stage), isinstance(vars(backend)[stage], staticmethod)

    def stopped(*words):
        setattr(backend, stage, staticmethod(make) if static else make)
        sys.stdout.write(f"at {stage}\n")
        sys.stdout.flush()
        if act == "raise":
            raise RuntimeError(stage)
        sys.stdin.readline()
        return make(*words)

    setattr(backend, stage, staticmethod(stopped) if static else stopped)


def compiled_or_failed(number, arch, failures):
    try:
        return triton.compile(source(number), target=GPUTarget("cuda", arch, 32))
    except RuntimeError as error:
        failures.append(error)  # and with it the frames of the compile
        sys.stdout.write("failed\n")
        sys.stdout.flush()
        sys.stdin.readline()
        return None


def main():
    count, architectures = int(sys.argv[1]), [int(word) for word in sys.argv[2:]] or [90]
    compiled = count_compiles()
    stop_at()
    failures = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    began, spent = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_utime
    digests, paths = {}, []
    for number in range(count):
        for arch in architectures:
            kernel = compiled_or_failed(number, arch, failures)
            if kernel is None:
                continue
            digests[f"{number}-{arch}"] = hashlib.sha256(kernel.asm["cubin"]).hexdigest()
            paths += list(getattr(kernel, "metadata_group", {}).values())
    used = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    said = {
        "pid": os.getpid(),
        "compiled": len(compiled),
        "digests": digests,
        "wall_s": time.monotonic() - began,
        "cpu_s": used.ru_utime + used.ru_stime - spent + children.ru_utime + children.ru_stime,
        "dangling": [path for path in paths if not os.path.exists(path)],
    }
    sys.stdout.write(json.dumps(said) + "\n")


if __name__ == "__main__":
    main()
