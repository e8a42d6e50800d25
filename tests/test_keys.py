from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest

from gpucache.layout.keys import (
    KEY,
    STORE_KEY,
    device_directories,
    is_key_of,
    shards,
    unlinked,
    view_key,
)
from gpucache.store.manifest import single_key

DIGESTS = [hashlib.sha256(str(number).encode()) for number in range(200)]
HEX = [digest.hexdigest() for digest in DIGESTS]
BASE64 = [base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=") for digest in DIGESTS]
BASE32 = [base64.b32encode(digest.digest()).decode().rstrip("=") for digest in DIGESTS]


class TestKey:
    """Keys as `_base64` of Triton 3.2, `_base32` of 3.3 and later, and the plain digest of 3.0 and 3.1 make them."""

    @pytest.mark.parametrize("keys", [HEX, BASE64, BASE32], ids=["hexadecimal", "base64", "base32"])
    def test_every_key_is_one(self, keys):
        assert all(map(KEY.fullmatch, keys))
        assert all(map(STORE_KEY.fullmatch, keys))
        assert [view_key(key) for key in keys] == keys

    @pytest.mark.parametrize("keys", [HEX, BASE64, BASE32], ids=["hexadecimal", "base64", "base32"])
    def test_a_file_that_stands_for_itself_has_the_view_of_its_key(self, keys):
        for key in keys:
            stored = single_key(key, "cuda_utils.so", "cpython-311")
            assert STORE_KEY.fullmatch(stored)
            assert not KEY.fullmatch(stored)
            assert view_key(stored) == key

    def test_a_base64_key_that_ends_like_a_single_files_is_itself(self):
        key = "A" * 26 + "-" + "0123456789abcde8"
        assert KEY.fullmatch(key)
        assert view_key(key) == key

    @pytest.mark.parametrize(
        "name",
        [
            *(
                "0",
                "1.2",
                "gpu0",
                "fxgraph",
                "aotautograd",
                "precompiled_headers",
                "tmp.pid_1_x",
                "CACHEDIR.TAG",
                "",
            ),
            *(
                HEX[0].upper(),
                HEX[0][1:],
                BASE32[0].lower(),
                BASE32[0] + "A",
                BASE64[0] + "=",
                f"{HEX[0]}\n",
            ),
            "x" * 42 + "b",  # 43 letters, and not a SHA-256
            single_key(BASE32[0], "cuda_utils.so", ""),
        ],
    )
    def test_other_names_are_none(self, name):
        assert not KEY.fullmatch(name)


def make(path: Path) -> Path:
    path.mkdir(parents=True)
    return path


class TestDeviceDirectories:
    def test_those_of_a_root_by_name(self, root):
        for name in ("10", "0", "1.2"):
            make(root / "triton" / name)
        found = device_directories(str(root))
        assert found == [(name, f"{root}/triton/{name}") for name in ("0", "1.2", "10")]

    def test_tritons_default_directory_is_one_itself(self, root):
        make(root / BASE32[0])
        assert device_directories(str(root)) == [(".", str(root))]

    def test_so_is_that_of_fresh_cache(self, root):
        make(root / "triton" / BASE32[0])
        assert device_directories(str(root)) == [("triton", f"{root}/triton")]

    def test_all_three_at_once(self, root):
        for path in (root / BASE32[0], root / "triton" / BASE64[0], root / "triton" / "0"):
            make(path)
        assert [name for name, _ in device_directories(str(root))] == [".", "triton", "0"]

    def test_files_links_and_what_is_being_made_are_none(self, root):
        make(root / "triton" / "tmp.gpucache-new")
        (root / "triton" / "notes").write_text("")
        (root / BASE32[0]).write_text("")
        elsewhere = make(root.parent / "elsewhere")
        make(elsewhere / BASE32[1])
        (root / "triton" / "0").symlink_to(elsewhere)
        (root / BASE32[1]).symlink_to(elsewhere / BASE32[1])
        assert device_directories(str(root)) == []

    def test_a_linked_triton_has_none(self, root):
        make(root)
        make(root.parent / "elsewhere" / "0")
        (root / "triton").symlink_to(root.parent / "elsewhere")
        assert device_directories(str(root)) == []

    def test_there_are_none_where_there_is_no_root(self, root):
        assert device_directories(str(root)) == []
        root.write_text("")
        assert device_directories(str(root)) == []


class TestShards:
    def test_the_parts_of_the_store_in_order(self, root):
        for name in ("ZZ", "AA"):
            make(root / "gpucache/v1/store" / name)
        (root / "gpucache/v1/store/notes").write_text("")
        assert shards(str(root)) == [f"{root}/gpucache/v1/store/{name}" for name in ("AA", "ZZ")]

    @pytest.mark.parametrize(
        "linked", ["gpucache", "gpucache/v1", "gpucache/v1/store", "gpucache/v1/store/AA"]
    )
    def test_a_link_anywhere_on_the_way_has_none(self, root, linked):
        make(root / "gpucache/v1/store/AA")
        os.rename(root / linked, root.parent / "elsewhere")
        (root / linked).symlink_to(root.parent / "elsewhere")
        assert shards(str(root)) == []
        assert os.listdir(root / "gpucache/v1/store") == ["AA"]


def test_a_path_of_ours_is_told_from_one_that_a_link_leads_to(root):
    assert unlinked(str(root)) == f"{root}/gpucache/v1"
    assert unlinked(str(root), "stats") == f"{root}/gpucache/v1/stats"
    make(root / "gpucache/v1")
    (root / "gpucache/v1/stats").symlink_to("/")
    assert unlinked(str(root), "stats") is None
    assert unlinked(str(root), "tmp") == f"{root}/gpucache/v1/tmp"


def test_a_key_is_that_of_a_hash_in_any_form_of_tritons():
    digest = hashlib.sha256(b"kernel").hexdigest()
    raw = bytes.fromhex(digest)
    forms = (
        digest,
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
        base64.b32encode(raw).decode().rstrip("="),
    )
    assert all(KEY.fullmatch(form) and is_key_of(form, digest) for form in forms)
    other = hashlib.sha256(b"another").hexdigest()
    assert not any(is_key_of(form, other) for form in forms)
    assert is_key_of("aside", digest)  # nobody can tell
    assert is_key_of(digest, "None")


def test_a_directory_under_two_names_is_one(mount, tmp_path):
    (tmp_path / "triton/0").mkdir(parents=True)
    mount(tmp_path / "triton/1", "--bind", str(tmp_path / "triton/0"))
    assert device_directories(str(tmp_path)) == [("0", f"{tmp_path}/triton/0")]
