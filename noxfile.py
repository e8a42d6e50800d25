"""Every command that a change must pass. `nox -l` lists them, `.ci/run` runs them on a fresh machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.options.sessions = ["lint", "fast"]
nox.options.reuse_existing_virtualenvs = True

SHARED = Path(os.environ.get("GPUCACHE_NOX_SHARED", ".nox/shared")).absolute()
"""The environment of all sessions that need Triton, which takes a gigabyte."""
CONTRACT = [
    "tests/test_triton.py",
    "tests/test_report.py",
    "tests/test_slim.py",
    "tests/test_transfer.py",
    "tests/test_metadata.py",
    "tests/test_difference.py",
    "tests/test_why_missed.py",
    "tests/test_remember_key.py",
    "tests/test_capture.py",
    "tests/test_recipes_kept.py",
    "tests/test_corpus.py",
    "tests/test_replay.py",
    "tests/test_upgrade.py",
    "tests/test_own_process.py",
]
"""Where the tests of what Triton's versions do differently are."""
BENCHMARKS = sorted(
    path.stem.removeprefix("bench_") for path in Path("benchmarks").glob("bench_*.py")
)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types and contracts."""
    session.install("-e", ".[dev]")
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")
    session.run("mypy")
    session.run("lint-imports")


def _python(session: nox.Session, *packages: str, extras: str = "test") -> str:
    """The Python of the shared environment, with gpucache, its extras and these packages.

    gpucache is named once: pip takes it for two conflicting projects where it is named twice.
    """
    python = f"{SHARED}/bin/python"
    if not Path(python).exists():
        session.run("python3", "-m", "venv", str(SHARED), external=True)
    tree = ("-e", f".[{extras}]")
    session.run(python, "-m", "pip", "install", "-q", *tree, *packages, external=True)
    return python


@nox.session(venv_backend="none")
def fast(session: nox.Session) -> None:
    """The tests without compiles and kills: under two minutes."""
    python = _python(session)
    chosen = ("-m", "not compiles and not kills", *session.posargs)
    session.run(python, "-m", "pytest", "-q", *chosen)


@nox.session(venv_backend="none")
def tests(session: nox.Session) -> None:
    """Every test; with the branch coverage of all processes unless some are named."""
    python = _python(session)
    if session.posargs:
        session.run(python, "-m", "pytest", *session.posargs)
        return
    session.run(python, "-m", "coverage", "run", "-m", "pytest")
    session.run(python, "-m", "coverage", "combine", "-q")
    session.run(python, "-m", "coverage", "report")


@nox.session(python=["3.10", "3.12", "3.13"])
def pythons(session: nox.Session) -> None:
    """The tests that start neither compilers nor servers on each other Python that is installed: 10 minutes each."""
    session.install("-e", ".[test]")
    chosen = "not compiles and not kills and not faults and not servers and not slurm"
    session.run("python", "-m", "pytest", "-q", "-m", chosen, *session.posargs)


@nox.session(venv_backend="none")
def faults(session: nox.Session) -> None:
    """Every fault at every call of every operation, and an hour of soak: a day; or as the words say."""
    python = _python(session)
    chosen = session.posargs or ("--all-faults", "--soak", "3600", "--timeout", "0")
    session.run(python, "-m", "pytest", "-q", "-s", "tests/faults", *chosen)


@nox.session
def oldest(session: nox.Session) -> None:
    """What touches Triton's contract, on the oldest Triton that the plug-in supports."""
    _on_triton(session, "3.2.0", *session.posargs)


@nox.session
def versions(session: nox.Session) -> None:
    """The same between the oldest and the newest, or on the versions that are named."""
    for version in session.posargs or ("3.4.0", "3.6.0"):
        _on_triton(session, version)


def _on_triton(session: nox.Session, version: str, *more: str) -> None:
    # Triton 3.2 imports setuptools to build its launcher.
    session.install(".", f"triton=={version}", "setuptools")
    python = _python(session)
    compiling = {"GPUCACHE_TEST_TRITON": f"{session.virtualenv.bin}/python"}
    words = ("-m", "pytest", "-q", "-m", "compiles", *CONTRACT, *more)
    session.run(python, *words, env=compiling, external=True)


@nox.session(venv_backend="none")
def torch(session: nox.Session) -> None:
    """The tests beside the real torch and its launchers, and with kernels of Liger and flash-linear-attention."""
    kernels = ("liger-kernel==0.8.5", "fla-core==0.6.0")
    launchers = ("accelerate==1.15.0",)
    python = _python(session, "torch==2.13.0", *kernels, *launchers)
    session.run(python, "-m", "pytest", "-q", "-m", "torch", *session.posargs)


@nox.session(venv_backend="none")
def ray(session: nox.Session) -> None:
    """The tests that start a real Ray."""
    python = _python(session, "ray==2.60.0")
    session.run(python, "-m", "pytest", "-q", "-m", "ray", *session.posargs)


JIT = (
    *("ninja==1.13.0", "apache-tvm-ffi==0.1.12", "warp-lang==1.19.0", "numba==0.68.1"),
    *("jax==0.10.2", "cuda-core==1.2.2", "cuda-bindings==13.5.0", "nvidia-cuda-nvrtc==13.5.37"),
    *("nvidia-cutlass-dsl==4.8.1", "kernels==0.17.2"),
)
JIT_OF_TORCH = ("tilelang==0.1.15", "quack-kernels==0.6.5", "helion==1.5.1", "fla-core==0.6.0")
JIT_WHEELS = ("cupy-cuda13x==14.2.0", "flashinfer-python==0.7.2.post1", "sglang==0.5.23")
JIT_WHEELS += ("vllm==0.33.0", "flash-attn-4==4.0.0b36")


@nox.session(venv_backend="none")
def jit(session: nox.Session) -> None:
    """The tests with real JIT compilers beside Triton; what needs torch is there if torch is."""
    python = _python(session, *JIT)
    has_torch = "import importlib.util as u; print(u.find_spec('torch') is not None)"
    if "True" in session.run(python, "-c", has_torch, external=True, silent=True):
        session.run(python, "-m", "pip", "install", "-q", *JIT_OF_TORCH, external=True)
    download = ("-m", "pip", "download", "-q", "--no-deps", "-d", f"{SHARED}/wheels")
    session.run(python, *download, *JIT_WHEELS, external=True)
    session.run(python, "-m", "pytest", "-q", "-m", "jit", *session.posargs)


@nox.session(venv_backend="none")
def bench(session: nox.Session) -> None:
    """A smoke run of every benchmark, or those named in full."""
    python = _python(session)
    for name in session.posargs or BENCHMARKS:
        if name == "path":
            quick = () if session.posargs else ("--benchmark-disable",)
            session.run(python, "-m", "pytest", "-q", "benchmarks/bench_path.py", *quick)
        else:
            quick = () if session.posargs else ("--smoke",)
            session.run(python, f"benchmarks/bench_{name}.py", *quick)


@nox.session(venv_backend="none")
def docs(session: nox.Session) -> None:
    """The pages as a site in build/site; each warning, such as a link that leads nowhere, is an error."""
    python = _python(session, extras="test,docs")
    # Material for MkDocs otherwise advertises what comes after MkDocs 1.
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    session.run(f"{SHARED}/bin/mkdocs", "build", "--strict", env=quiet, external=True)
    path = {"PATH": f"{SHARED}/bin{os.pathsep}{os.environ['PATH']}", **quiet}
    session.run(
        python, "-m", "pytest", "-q", "-m", "docs", *session.posargs, env=path, external=True
    )


@nox.session
def release(session: nox.Session) -> None:
    """Build sdist and wheel, install each from nothing, and do the main job with it."""
    session.install("build", "twine")
    shutil.rmtree("dist", ignore_errors=True)
    session.run("python", "-m", "build")
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    for ending in ("*.whl", "*.tar.gz"):
        (made,) = Path("dist").glob(ending)
        _use_from_nothing(session, made)


def _use_from_nothing(session: nox.Session, made: Path) -> None:
    """Install a distribution in an environment of its own, away from this tree, and provision by it."""
    distribution = str(made.absolute())
    with tempfile.TemporaryDirectory() as work, session.chdir(work):
        session.run("python3", "-m", "venv", "user", external=True)
        session.run("user/bin/pip", "install", "-q", distribution, external=True)
        root = {"GPUCACHE_DIR": f"{work}/root"}
        for words in (("provision",), ("run", "--", "true"), ("ls",)):
            session.run("user/bin/gpucache", *words, external=True, env=root)
