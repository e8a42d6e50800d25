"""The metadata file of a kernel, as the real Triton writes it.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the process that compiles.
"""

from __future__ import annotations

import base64
import json
import os

import pytest
from support.ranks import compile_kernels, python_with_triton

from gpucache.kernels.metadata import (
    KEY_VARIABLES,
    Metadata,
    arch_of,
    brief,
    key_environment,
    target_and_version,
)

needs_triton = pytest.mark.usefixtures("triton")
HIP = {
    "hash": "00",
    "target": {"backend": "hip", "arch": "gfx942", "warp_size": 64},
    "name": "k",
    "arch": "gfx942",
}


def asked(code, **environ):
    return json.loads(python_with_triton(code, env={**os.environ, **environ}))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory, guard, triton):
    """The metadata files of a kernel compiled by the real Triton for sm_80 and sm_90, by key."""
    directory = tmp_path_factory.mktemp("compiled")
    compile_kernels(
        {"TRITON_CACHE_DIR": str(directory), "TRITON_DISABLE_LINE_INFO": "On"}, 1, 80, 90
    )
    return {path.parent.name: path for path in directory.glob("*/scaled.json")}


def test_the_real_metadata_are_told_apart(compiled):
    """Options, variables of the environment and results stand beside each other, without a mark."""
    found = sorted(
        (Metadata.parse(path.read_text()) for path in compiled.values()), key=lambda one: one.arch
    )
    assert [(one.arch, one.target) for one in found] == [("sm_80", "cuda:80"), ("sm_90", "cuda:90")]
    version = asked("import json, triton; print(json.dumps(triton.__version__))")
    for one in found:
        assert one.name == "scaled"
        assert one.triton_version == (None if version.startswith("3.2") else version)
        assert one.environment == {"TRITON_DISABLE_LINE_INFO": "true"}
        assert (one.options["num_warps"], one.shared_bytes) == (4, 0)
        assert {"enable_fp_fusion", "debug", "extern_libs"} <= one.options.keys()
        assert not {"hash", "target", "triton_version", "shared", "name"} & one.options.keys()
        assert {"shared", "name"} <= one.results.keys()


def test_the_hash_is_the_key(compiled):
    """In base 32 without padding; in Triton 3.2, base 64."""
    for key, path in compiled.items():
        number = bytes.fromhex(Metadata.parse(path.read_text()).hash)
        assert key in [
            encode(number).decode().rstrip("=")
            for encode in (base64.b32encode, base64.urlsafe_b64encode)
        ]


def test_the_short_way_says_the_same(compiled):
    for path in compiled.values():
        whole = Metadata.parse(path.read_text())
        assert (
            brief(str(path))
            == target_and_version(path.read_text())
            == (whole.target, whole.triton_version)
        )


@needs_triton
def test_the_variables_that_are_part_of_the_key_are_those_of_the_real_triton():
    """Each upper-case word in its library is set in turn: in what is loaded of it and is no code, a fifth."""
    code = """if True:
        import json, os, re, struct
        from triton._C import libtriton
        library = open(libtriton.__file__, "rb").read()
        (headers,), (size, count) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<HH", library, 54)
        words = set()
        for header in range(headers, headers + size * count, size):
            kind, flags, offset, _, _, length = struct.unpack_from("<IIQQQQ", library, header)
            if kind == 1 and not flags & 1:
                piece = library[offset : offset + length]
                words |= set(re.findall(rb"(?<![A-Za-z0-9_])[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+(?=\\0)", piece))
        found = set()
        for word in words:
            os.putenv(word, b"1")
            found |= set(libtriton.get_cache_invalidating_env_vars())
            os.unsetenv(word)
        print(json.dumps(sorted(found)))
    """
    found = set(asked(code))
    assert len(found) > 15
    assert found <= KEY_VARIABLES


@needs_triton
def test_an_environment_has_the_form_that_the_real_triton_gives_it():
    values = ["", "0", "1", "on", "OFF", "True", "false", "yes", "2", " 1", "/a/path"]
    code = f"""if True:
        import json, os
        from triton._C.libtriton import get_cache_invalidating_env_vars as get
        print(json.dumps([(os.environ.__setitem__("MLIR_ENABLE_DUMP", one), get())[1] for one in {values}]))
    """
    assert asked(code) == [
        key_environment({"MLIR_ENABLE_DUMP": one, "HOME": "/"}) for one in values
    ]


def test_another_makers_kernel_is_read():
    found = Metadata.parse(
        json.dumps({**HIP, "waves_per_eu": 2, "triton_version": "3.9.0", "shared": 64, "new": 1})
    )
    assert (found.target, found.arch, found.shared_bytes) == ("hip:gfx942", "gfx942", 64)
    assert found.options == {"arch": "gfx942", "waves_per_eu": 2}
    assert found.results == {"name": "k", "shared": 64, "new": 1}, (
        "what follows the version is a result"
    )


def test_the_architecture_is_that_of_the_code():
    """`TRITON_OVERRIDE_ARCH` compiles for another than the target's."""
    target = {"backend": "cuda", "arch": 90, "warp_size": 32}
    found = Metadata.parse(
        json.dumps({**HIP, "target": target, "arch": "sm80", "TRITON_OVERRIDE_ARCH": "sm80"})
    )
    assert (found.target, found.arch) == ("cuda:90", "sm_80")
    assert [arch_of(text) for text in ("cuda:120", "sm100", "sm_90a", "hip:gfx1100")] == [
        "sm_120",
        "sm_100",
        "sm_90a",
        "gfx1100",
    ]


NONSENSE = [
    "",
    "{",
    "null",
    "[]",
    '"text"',
    "{}",
    '{"target": 3, "name": "k"}',
    "[" * 100_000,
    '{"target": {}}',
]


@pytest.mark.parametrize("text", [*NONSENSE, b"\xff\xfe\xff"], ids=lambda text: repr(text[:12]))
def test_what_is_no_metadata_is_refused_and_told_by_nones(text, tmp_path):
    with pytest.raises(ValueError):
        Metadata.parse(text)
    assert target_and_version(text) == (None, None)
    (tmp_path / "k.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert (
        brief(str(tmp_path / "k.json"))
        == brief(str(tmp_path / "absent"))
        == brief(str(tmp_path))
        == (None, None)
    )


def test_a_half_of_the_short_facts_is_better_than_none():
    assert target_and_version('{"triton_version": "3.9.0"}') == (None, "3.9.0")
    assert target_and_version(
        '{"target": {"backend": "cuda", "arch": 90}, "triton_version": 3}'
    ) == ("cuda:90", None)
