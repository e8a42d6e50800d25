"""What every test stands on: no way to the real home or the real caches, and a machine with GPUs to put in front."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from ctypes.util import find_library
from pathlib import Path
from typing import Any

import pytest
import support.ranks
from hypothesis import HealthCheck, settings
from support import jit_wheels, servers, tuning
from support.cli import Command, Done
from support.every_call import EveryCall
from support.fuse import mounted
from support.ranks import KERNELS, PLUGIN, Rank
from support.slurm import Slurm, slurm
from support.slurm import missing as missing_of_slurm
from support.templates import Template, made_by_a_rank
from support.trees import KEY, Stock
from support.users import ADA, BOB
from tree import make

from gpucache import log, once
from gpucache.cli import main
from gpucache.configuration import places
from gpucache.directories.local_rank import RANK_VARIABLES
from gpucache.disk import lock_token
from gpucache.disk.within import Straight
from gpucache.machine import device_files

TESTS = Path(__file__).parent
FAKENVML = TESTS / "fakenvml"
_OURS = (
    "GPUCACHE_",
    "TRITON_",
    "TORCHINDUCTOR_",
    "CUDA_",
    "FAKENVML_",
    "FAKECUDA_",
    "SLURM_",
    "OMPI_",
    "MPI_",
    "PMI_",
    "PMIX_",
    "PALS_",
    "MV2_",
    "FLUX_",
    "JSM_",
    "AWS_",
    "AZURE_",
    "GOOGLE_",
    "XDG_",
    "HF_",
    "WEBDAV_",
    "REDISCLI_",
)
_RANKS = ("RANK", "WORLD_SIZE", *RANK_VARIABLES)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults", "the campaign of tests/faults")
    add = group.addoption
    add("--faults", type=int, default=12, help="so many faults for each operation")
    add("--faults-seed", default="1", help="which of them")
    add("--all-faults", action="store_true", help="every fault: hours")
    add("--fault", action="append", help="only this one, as a failing test names it")
    add("--soak", type=float, default=30.0, help="seconds of readers, compilers, removals, kills")
    group = parser.getgroup("fleet", "tests of a fleet of machines")
    group.addoption("--all-kernels", action="store_true", help="all kernels with each remote")


settings.register_profile(
    "gpucache", deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile(
    "gpucache"
)  # a busy machine takes long for anything; the tree is left as it is


def pytest_configure() -> None:
    """Set this process up as tests expect it, whoever has started it.

    Signals that ``nohup`` or a shell's ``&`` has ignored are heeded, since a process hands that on to what tests start.
    Each process that a test plays within this one leaves descriptors open: in all more than 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))
    for heeded in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
        if signal.getsignal(heeded) is signal.SIG_IGN:
            signal.signal(heeded, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def guard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home cannot be written at all, and the default cache lies in the session's temporary directory."""
    _refuse_real_settings()
    base = tmp_path_factory.mktemp("guard")
    (base / "home-is-out-of-reach").write_text("a test must choose its own directory")
    temporary = base / "tmp"
    temporary.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(_OURS) or name in _RANKS]:
            patch.delenv(name)
        patch.setenv("HOME", str(base / "home-is-out-of-reach" / "home"))
        patch.setenv("TMPDIR", str(temporary))
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(places, "SYSTEM_FILE", str(base / "etc" / "gpucache.toml"))
        patch.setattr(places, "home_of_user", lambda: os.environ["HOME"])
        yield base
    for user in (os.geteuid(), ADA, BOB):  # tests become the last two, as root
        markers = Path("/dev/shm", f"gpucache-told-{user}")
        # Whoever else has told something, tells it again.
        shutil.rmtree(markers, ignore_errors=True)
        for locks in Path("/dev/shm").glob(f"gpucache-{user}-*"):
            with suppress(OSError), Straight() as disk:  # whoever still uses one makes it again
                lock_token._remove_unused(str(locks), disk)


def _refuse_real_settings() -> None:
    """Processes that tests start without `HOME` would read the settings of this machine and user."""
    at_home = f"{places.home_of_user()}/.config/gpucache/gpucache.toml"
    for path in (places.SYSTEM_FILE, at_home):
        if os.path.lexists(path):
            pytest.exit(f"tests would go by {path}: move it away meanwhile", returncode=2)


@pytest.fixture(autouse=True)
def told_by_nobody(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is told once in a job was not told before this test; and each process of `python` or `gpucache` is a job."""
    monkeypatch.setattr(once, "PLACES", (str(tmp_path_factory.mktemp("told")),))
    # A command that an earlier test has called says so.
    monkeypatch.setattr(log, "_tells_alone", False)


@pytest.fixture(scope="session")
def fakenvml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of the freshly built fake libnvidia-ml.so.1 and libcuda.so.1."""
    directory = tmp_path_factory.mktemp("fakenvml")
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("needs a C compiler to build the fake libnvidia-ml.so.1")
    for source, library in (("fakenvml.c", "libnvidia-ml.so.1"), ("fakecuda.c", "libcuda.so.1")):
        command = [
            compiler,
            "-std=c11",
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fPIC",
            "-shared",
            "-pthread",
        ]
        subprocess.run(
            [*command, f"-Wl,-soname,{library}", "-o", directory / library, FAKENVML / source],
            check=True,
        )
    return directory


@pytest.fixture
def conf(tmp_path: Path) -> Callable[[str], Path]:
    """Write a machine's description; a bare name is one of those in ``tests/fakenvml/conf``."""

    def write(text: str) -> Path:
        if "\n" not in text:
            return FAKENVML / "conf" / f"{text}.conf"
        path = tmp_path / f"machine-{abs(hash(text))}.conf"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def machine(fakenvml: Path, conf: Callable[[str], Path]) -> Callable[[str], dict[str, str]]:
    """The environment of a process that runs on the described machine (for subprocesses)."""

    def environment(text: str) -> dict[str, str]:
        return {**os.environ, "LD_LIBRARY_PATH": str(fakenvml), "FAKENVML_CONFIG": str(conf(text))}

    return environment


@pytest.fixture
def on_machine(
    fakenvml: Path, conf: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], None]:
    """Put the described machine under this very process: glibc finds the loaded library by its SONAME."""
    ctypes.CDLL(str(fakenvml / "libnvidia-ml.so.1"))

    def put(text: str) -> None:
        monkeypatch.setenv("FAKENVML_CONFIG", str(conf(text)))

    return put


Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def python() -> Run:
    """Run Python code in a fresh process."""

    def run(
        code: str, *args: object, env: Mapping[str, str] | None = None, **options: object
    ) -> object:
        command = [sys.executable, "-c", code, *map(str, args)]
        options = {"start_new_session": True, **options}
        return subprocess.run(
            command, env=env, text=True, capture_output=True, timeout=120, **options
        )

    return run


@pytest.fixture
def gpucache() -> Run:
    """Run the command line in a fresh process."""

    def run(*args: object, env: Mapping[str, str] | None = None, **options: object) -> object:
        command = [sys.executable, "-m", "gpucache", *map(str, args)]
        options = {"start_new_session": True, **options}
        return subprocess.run(
            command, env=env, text=True, capture_output=True, timeout=120, **options
        )

    return run


@pytest.fixture
def as_root() -> None:
    """The test mounts a file system or becomes another user."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system or to become another user")


Mount = Callable[..., Path]


@pytest.fixture(scope="session")
def can_mount(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Here a file system can be mounted: a container's root may not."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system")
    point = tmp_path_factory.mktemp("mount")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "none", point], check=False, capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount here: {done.stderr.strip()}")
    subprocess.run(["umount", point], check=True)


@pytest.fixture
def mount(can_mount: None) -> Iterator[Mount]:
    """Mount something for the length of a test."""
    points: list[Path] = []

    def put(point: Path, *arguments: str) -> Path:
        point.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *arguments, point], check=True)
        points.append(point)
        return point

    yield put
    for point in reversed(points):
        subprocess.run(["umount", "-l", point], check=True)


@pytest.fixture(scope="session")
def fuse() -> None:
    """The test mounts a file system of a process's own, and has the marker `fuse`."""
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse, and root to mount")
    if importlib.util.find_spec("mfusepy") is None:
        pytest.skip("needs mfusepy: pip install '.[test]' on Linux")
    if not (find_library("fuse3") and shutil.which("bindfs")):
        pytest.skip("needs libfuse and bindfs: apt-get install fuse3 bindfs")


ObjectStores = Callable[..., Path]


@pytest.fixture
def object_store(fuse: None, tmp_path: Path) -> Iterator[ObjectStores]:
    """Mount a directory as an object store would be, without what is named: ``rename="EPERM"``."""
    with ExitStack() as stack:

        def put(point: Path, backing: Path | None = None, **refused: str) -> Path:
            shown = backing or tmp_path / f"behind-{point.name}"
            return stack.enter_context(mounted(shown, point, refused))

        yield put


@pytest.fixture
def everyones() -> Iterator[Path]:
    """A directory that any user can reach (pytest's own belong to the user alone)."""
    directory = Path(tempfile.mkdtemp(prefix="gpucache-test-", dir="/tmp"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where a root may be made; nothing is there."""
    return tmp_path / "root"


@pytest.fixture
def shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What stands for ``/dev/shm``, in which everybody may make directories of his own."""
    made = tmp_path / "shm"
    made.mkdir()
    made.chmod(0o1777)
    monkeypatch.setattr(lock_token, "_parent", lambda: str(made))
    return made


@pytest.fixture
def disk() -> Iterator[Straight]:
    """By which removals act."""
    with Straight() as disk:
        yield disk


@pytest.fixture(scope="session")
def strace() -> str:
    """The path of a strace that may trace."""
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-o", "/dev/null", "true"], check=False).returncode:
        pytest.skip("needs strace, and the permission to trace")
    return found


@pytest.fixture
def every_call(strace: str, tmp_path: Path) -> EveryCall:
    """Kill a script before each system call by which it changes the disk or a lock."""
    return EveryCall(strace, tmp_path)


@pytest.fixture
def stock(monkeypatch: pytest.MonkeyPatch) -> Stock:
    """Triton's own manager of `KEY` in a device directory."""
    runtime = pytest.importorskip("triton.runtime.cache")

    def manager(directory: Path) -> Any:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(directory))
        return runtime.FileCacheManager(KEY)

    return manager


@pytest.fixture(scope="session")
def triton() -> None:
    """The test compiles real kernels, and has the marker `compiles`."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton: pip install '.[test]' on Linux")


@pytest.fixture(scope="session")
def one_kernel(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Template:
    """A kernel compiled through the plug-in; do not change it."""
    return made_by_a_rank(tmp_path_factory.mktemp("one") / "root", 1)


@pytest.fixture(scope="session")
def one_stock_kernel(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Template:
    """A kernel compiled by stock Triton; do not change it."""
    return made_by_a_rank(tmp_path_factory.mktemp("one") / "root", 1, plugin=False)


@pytest.fixture
def ranks(root: Path, triton: None) -> Iterator[Callable[..., Rank]]:
    """Start ranks that are killed at the end of the test, whatever happens."""
    started = []

    def start(directory: str = "triton/0", plugin: bool = True, **options: Any) -> Rank:
        more = options.pop("env", {})
        env = {
            **os.environ,
            "GPUCACHE_DIR": str(root),
            "TRITON_CACHE_DIR": str(root / directory),
            **more,
        }
        started.append(Rank({**env, **PLUGIN} if plugin else env, **options))
        return started[-1]

    yield start
    for rank in started:
        rank.process.end()


@pytest.fixture(scope="session")
def two_node_slurm() -> Iterator[Slurm]:
    """A Slurm with the nodes ``one`` and ``two``, which are two daemons on this machine."""
    missing = missing_of_slurm()
    if missing or os.geteuid() != 0:
        pytest.skip(f"needs root, and Slurm (slurmctld, slurmd, slurm-client, munge): {missing}")
    with slurm({"one": (), "two": ()}) as started:
        yield started


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.S3Server]:
    """A SeaweedFS, which takes seconds to start."""
    with servers.seaweed(tmp_path_factory.mktemp("seaweed")) as started:
        yield started


@pytest.fixture(scope="session")
def dav_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.DavServer]:
    """An nginx with WebDAV."""
    with servers.nginx(tmp_path_factory.mktemp("nginx")) as started:
        yield started


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.RedisServer]:
    """A Redis."""
    with servers.redis(tmp_path_factory.mktemp("redis")) as started:
        yield started


@pytest.fixture(scope="session")
def oci_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Registry]:
    """A Docker registry."""
    with servers.registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def bare_dev(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev of this test's own, so that a real GPU beside it changes nothing."""
    dev = tmp_path / "dev"
    dev.mkdir()
    monkeypatch.setattr(device_files, "DEV", str(dev))
    monkeypatch.setattr(device_files, "PROC", str(dev / "proc"))
    return dev


@pytest.fixture
def here(capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run the command line in this process, with nobody to be asked."""

    def run(*words: object) -> Done:
        code = main.main(
            [os.fsdecode(word) if isinstance(word, (bytes, Path)) else str(word) for word in words]
        )
        out, err = capfdbinary.readouterr()
        return Done(code, os.fsdecode(out), os.fsdecode(err))

    monkeypatch.setattr(sys, "stdin", None)
    return run


@pytest.fixture
def keys(tmp_path: Path) -> list[str]:
    """A root with six kernels in the store and in two device directories; their keys, oldest first."""
    return make(str(tmp_path / "root"), 6, 2)


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory, triton: None) -> tuple[Path, str]:
    """A root in which the real Triton has compiled one kernel through the plug-in, and that kernel's key."""
    root = tmp_path_factory.mktemp("compiled") / "root"
    environ = {**os.environ, "GPUCACHE_FAKE_DEVICES": "2xH100:9.0"}
    words = ["run", "--root", root, "--device", "1", "--", sys.executable, KERNELS, "1", "90"]
    command = [sys.executable, "-m", "gpucache", *words]
    done = subprocess.run(
        command, env=environ, input="\n", capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    (entry,) = root.glob("gpucache/v1/store/*/*/scaled.json")
    return root, entry.parent.name


@pytest.fixture(scope="session")
def tuned(tmp_path_factory: pytest.TempPathFactory, guard: Path, triton: None) -> tuning.Tuned:
    """A root in which the real Triton has compiled one kernel in ten ways through the plug-in; do not change it."""
    return tuning.tuned(tmp_path_factory.mktemp("tuned"))


# Markers whose tests may skip; a skip for anything else is then a failure. Unset: everything may.
_MAY_SKIP = os.environ.get("GPUCACHE_TEST_MAY_SKIP")


# What a fixture stands for, as a marker: what takes long can then be left out (`-m "not compiles and not kills"`).
_MARKED = {
    "triton": "compiles",
    "mount": "mounts",
    "every_call": "kills",
    "fuse": "fuse",
    "two_node_slurm": "slurm",
    "s3_server": "servers",
    "dav_server": "servers",
    "redis_server": "servers",
    "oci_registry": "servers",
}


@pytest.hookimpl(tryfirst=True)  # before tests are chosen by their markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture, marker in _MARKED.items():
            if fixture in getattr(item, "fixturenames", ()):
                item.add_marker(marker)
    missing = {}
    if not Path("/dev/nvidiactl").exists():
        missing["gpu"] = "needs an NVIDIA GPU: there is no /dev/nvidiactl"
    if importlib.util.find_spec("torch") is None:
        missing["torch"] = "needs torch: pip install torch==2.13.0"
    if importlib.util.find_spec("ray") is None:
        missing["ray"] = "needs Ray: nox -s ray"
    if importlib.util.find_spec("tvm_ffi") is None or not jit_wheels.PLACE.is_dir():
        missing["jit"] = "needs real JIT compilers: nox -s jit"
    for item in items:
        for marker, reason in missing.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    support.ranks.marked = item.get_closest_marker("compiles") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Under `GPUCACHE_TEST_MAY_SKIP` (continuous integration) no other skip hides a gap."""
    report = yield
    allowed = _MAY_SKIP is None or any(
        item.get_closest_marker(name) for name in _MAY_SKIP.split(",") if name
    )
    if report.skipped and not allowed and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, where nothing may be: {report.longrepr}"
    return report
