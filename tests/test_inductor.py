from __future__ import annotations

import base64
import hashlib
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from gpucache.layout.inductor import (
    BUNDLE,
    bucket,
    carried_unit,
    is_cache,
    is_graph,
    is_temporary,
)

HASH = base64.b32encode(hashlib.sha256(b"graph").digest()).decode()[:51].lower()
CODE = f"c{HASH}"
HEX = hashlib.sha256(b"system").hexdigest()

COMPILE = """
import os, threading, torch
from torch._inductor import codecache

@torch.compile
def mixed(x, y):
    return (torch.sin(x) + y @ y).relu().sum(0)

mixed(torch.randn(8, 8), torch.randn(8, 8))
model = torch.compile(torch.nn.Linear(4, 4))
model(torch.randn(2, 4)).sum().backward()
codecache.LocalCache().set_value("key", value=1)  # as max-autotune does for what it has timed
"""


def files(base: Path) -> list[str]:
    return sorted(str(path.relative_to(base)) for path in base.rglob("*") if not path.is_dir())


@pytest.mark.torch
def test_all_that_a_real_compile_leaves_is_known(tmp_path):
    """On the CPU. Headers that it compiles for itself go to the default directory, whatever directory was chosen."""
    chosen, temporary = tmp_path / "chosen", tmp_path / "tmp"
    temporary.mkdir()
    environ = {
        **os.environ,
        "TORCHINDUCTOR_CACHE_DIR": str(chosen),
        "TMPDIR": str(temporary),
        "USER": "somebody",
    }
    done = subprocess.run(
        [sys.executable, "-c", COMPILE], env=environ, capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr
    found = files(chosen)
    assert [path for path in found if not is_cache(path)] == []
    assert {bucket(path.split("/")[0]) for path in found} == {
        "code",
        "fxgraph",
        "aotautograd",
        "locks",
        "cache",
    }
    beside = files(temporary / "torchinductor_somebody")
    assert [path for path in beside if not is_cache(path)] == []
    assert {path.split("/")[0] for path in beside} == {"precompiled_headers"}


@pytest.mark.torch
def test_what_a_killed_write_of_torchs_leaves_is_known(tmp_path):
    """`write_atomic` dies between its write and its rename."""
    code = (
        "import os, pathlib, sys; from torch._inductor import codecache\n"
        "pathlib.Path.rename = pathlib.Path.replace = os.rename = os.replace = lambda *_, **__: os._exit(0)\n"
        "codecache.write_atomic(sys.argv[1], 'x', make_dirs=True)"
    )
    subprocess.run(
        [sys.executable, "-c", code, f"{tmp_path}/{CODE[1:3]}/{CODE}.py"], check=True, timeout=120
    )
    (left,) = files(tmp_path)
    assert is_temporary(left)
    assert is_cache(left)


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{CODE[1:3]}/{CODE}{end}"
            for end in ("", ".py", ".cpp", ".main.so", ".best_config", ".cubin")
        ),
        *(f"fxgraph/{HASH[1:3]}/{HASH}/{HASH}", f"aotautograd/a{HASH}/{HASH}", f"cache/{HEX}"),
        *(
            f"locks/{CODE}.lock",
            f"precompiled_headers/{CODE}.h.gch",
            f"precompiled_headers/locks/{CODE}.lock",
        ),
        *(
            f"{CODE[1:3]}/.123.140022.tmp",
            f"fxgraph/ab/{HASH}/.1.2.tmp",
            f"aotautograd/{HASH}/.1.2.tmp",
            "cache/.1.2.tmp",
        ),
    ],
)
def test_names_of_inductors(path):
    assert is_cache(path)


@pytest.mark.parametrize(
    "path",
    [
        *(
            "notes.py",
            "cache/README",
            "cache/results.json",
            "locks/x",
            "locks/x.lock",
            "ab/notes.py",
            "ab/c/d.py",
            "",
        ),
        *(
            "fxgraph/notes",
            "fxgraph/ab/notes/x",
            "aotautograd/x/y",
            "precompiled_headers/mine.h",
            "models/net.pt",
        ),
        *(
            ".1.2.tmp",
            "models/.1.2.tmp",
            f"models/{CODE[1:3]}/{CODE}.py",
            f"zz/{CODE}.py",
            f"{CODE}.py",
        ),
        *(
            f"{CODE[1:3]}/{CODE}.py\n",
            f"{CODE[1:3]}/../{CODE}.py",
            f"cache/{HEX}.bak",
            f"fxgraph/ab/{HASH}/{HASH}/x",
        ),
        *("triton/0/x", "gpucache/v1/devices/host.json", "CACHEDIR.TAG"),
    ],
)
def test_names_that_a_user_might_have(path):
    assert not is_cache(path)
    assert not is_temporary(path)


GRAPHS = [f"fxgraph/{HASH[1:3]}/{HASH}/{HASH}", f"aotautograd/a{HASH}/{HASH}"]


@pytest.mark.parametrize("end", ["", ".py", ".cpp", ".main.so", ".best_config", ".cubin"])
def test_archives_carry_the_code_of_one_hash_as_one_unit(end):
    assert carried_unit(f"{CODE[1:3]}/{CODE}{end}") == CODE
    assert not is_graph(f"{CODE[1:3]}/{CODE}{end}")


@pytest.mark.parametrize("path", GRAPHS)
def test_archives_carry_each_graph_by_itself(path):
    assert carried_unit(path) == path
    assert is_graph(path)


@pytest.mark.parametrize(
    "path",
    [
        *(
            f"{CODE[1:3]}/{CODE}{end}"
            for end in (".h", ".h.gch", ".lock", ".", "..", "..py", ".py.")
        ),
        *(f"{CODE[1:3]}/{CODE}{end}" for end in (".py\n", ".py\0", "/x", "/..", f".{'x' * 60}")),
        *(f"locks/{CODE}.lock", f"locks/{CODE}", f"cache/{HEX}", f"precompiled_headers/{CODE}.h"),
        *(f"{CODE[1:3]}/.1.2.tmp", f"/{CODE[1:3]}/{CODE}.py", f"./{CODE[1:3]}/{CODE}.py", "", "/"),
        *(f"../{GRAPHS[0]}", f"/{GRAPHS[0]}", f"{GRAPHS[0]}/..", "fxgraph/../x", "triton/0/x"),
        *(GRAPHS[0].replace("/", "//"), "gpucache/v1/store/x", f"aotautograd/../{HASH}", HASH),
    ],
)
def test_archives_carry_nothing_else(path):
    """Whatever a hostile archive says."""
    assert carried_unit(path) is None


def test_the_directories_of_code_are_one_bucket():
    names = ["ab", "2z", "fxgraph", "locks", "abc", "AB", "0a"]
    assert [bucket(name) for name in names] == [
        "code",
        "code",
        "fxgraph",
        "locks",
        "abc",
        "AB",
        "0a",
    ]


def test_where_a_bundle_is_unpacked():
    assert BUNDLE.fullmatch(f"tmp.{uuid.uuid4()}")
    for name in (
        "tmp.deadbeef-cafe-my-holiday",
        f"tmp.{uuid.uuid4()}.old",
        f"x.tmp.{uuid.uuid4()}",
        "tmp.",
    ):
        assert not BUNDLE.fullmatch(name)
