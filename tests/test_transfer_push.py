"""`gpucache push`: readers will believe what is put, nothing is replaced unasked, and a repeated push is harmless."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from support.cli import check, documented, told
from support.launches import another_process, kernel, launched
from support.pulled_packs import Packs

from gpucache.archive.errors import BadPack
from gpucache.environment import PACK
from gpucache.remote.opening import open_remote
from gpucache.remote.shared_directory import SharedDirectory
from gpucache.remote.url import RemoteUrl
from gpucache.transfer.push import PackThere, push_pack, signed_by

SEEDS = [f"kernel {number}" for number in range(3)]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Packs:
    packs = Packs.signed(tmp_path)
    for name, value in packs.environ.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GPUCACHE_SIGN_KEY", str(tmp_path / "ci.key"))
    return packs


@pytest.fixture(autouse=True)
def here(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPUCACHE_DIR", str(root))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(root / "triton/0"))
    another_process(monkeypatch)


@pytest.fixture
def pack(remote: Packs, tmp_path: Path) -> Path:
    path = tmp_path / "llama.tar.zst"
    path.write_bytes(remote.packed("llama", SEEDS, number=7))
    return path


def pushed(path: Path, **options: object) -> str:
    url = RemoteUrl.configured(os.environ)
    assert url is not None
    opened = open_remote(url.for_writing(), os.environ)
    return push_pack(opened, str(path), signed_by, **options).did


class TestAPack:
    def test_it_lies_byte_for_byte_under_the_name_that_is_signed(self, pack, remote):
        assert pushed(pack.rename(pack.with_name("anything"))) == "put"
        assert remote.path("llama").read_bytes() == remote.packed("llama", SEEDS, number=7)

    def test_to_push_it_again_is_harmless(self, pack, remote):
        pushed(pack)
        before = remote.path("llama").stat()
        assert pushed(pack) == "there"
        assert remote.path("llama").stat().st_mtime_ns == before.st_mtime_ns

    def test_another_of_that_name_stays_unless_it_is_to_be_replaced(self, pack, remote):
        remote.put("llama", SEEDS[:1], number=6)
        with pytest.raises(PackThere) as refused:
            pushed(pack)
        assert (refused.value.number, refused.value.there) == (7, 6)
        assert pushed(pack, replace=True) == "replaced"
        assert remote.path("llama").read_bytes() == pack.read_bytes()

    def test_what_is_there_and_is_no_pack_stays_as_well(self, pack, remote):
        remote.path("llama").write_bytes(b"something")
        with pytest.raises(PackThere) as refused:
            pushed(pack)
        assert refused.value.there is None
        assert remote.path("llama").read_bytes() == b"something"

    def test_another_writer_who_was_faster_is_not_overwritten(self, pack, remote, monkeypatch):
        put_new = SharedDirectory.put_new

        def beaten(self, name, path, replace=False):
            remote.put("llama", SEEDS[:1], number=9)
            return put_new(self, name, path, replace)

        monkeypatch.setattr(SharedDirectory, "put_new", beaten)
        with pytest.raises(PackThere):
            pushed(pack)
        assert remote.path("llama").read_bytes() == remote.packed("llama", SEEDS[:1], number=9)

    def test_a_dry_run_puts_nothing(self, pack, remote):
        assert pushed(pack, dry_run=True) == "put"
        assert not remote.path("llama").exists()

    def test_a_torn_file_is_not_put(self, pack, remote):
        pack.write_bytes(pack.read_bytes()[:-20])
        with pytest.raises(BadPack):
            pushed(pack)
        assert not remote.path("llama").exists()

    def test_the_longest_name_that_a_pack_may_have_is_put_and_pulled(
        self, remote, tmp_path, gpucache
    ):
        """Who packs, who pushes, who pulls and `GPUCACHE_PACK` have one rule for names."""
        name = "n" * 100
        launched(*kernel(SEEDS[0]))
        path = tmp_path / f"{name}.tar.zst"
        for words in (("pack", "-o", path), ("push", path), ("pull", name)):
            done = gpucache(*map(str, words))
            assert done.returncode == 0, done.stderr
        assert PACK.parse(name) == (name,)

    def test_a_single_entry_has_no_name_to_be_put_under(self, remote, tmp_path, gpucache):
        (tmp_path / "entry").write_bytes(remote.packed("", SEEDS[:1]))
        done = gpucache("push", str(tmp_path / "entry"))
        assert done.returncode == 1
        assert f"{tmp_path}/entry: it is a single entry" in done.stderr

    def test_a_pack_that_nobody_has_signed_is_not_put(self, remote, tmp_path):
        path = tmp_path / "unsigned.tar.zst"
        path.write_bytes(Packs(tmp_path / "other", None).packed("llama", SEEDS))
        with pytest.raises(BadPack) as refused:
            pushed(path)
        assert refused.value.code == "unsigned"


class TestTheCommand:
    def test_a_pack_is_put_and_found_there(self, pack, remote, gpucache):
        done = gpucache("push", pack)
        assert (done.returncode, done.stdout) == (0, "")
        assert f"put: llama, number 7, to {remote.url}" in done.stderr
        again = gpucache("push", pack)
        assert again.returncode == 0
        assert "found there: llama" in again.stderr

    def test_another_pack_of_that_name_is_an_error_with_a_way_out(self, pack, remote, gpucache):
        remote.put("llama", SEEDS[:1], number=6)
        done = gpucache("push", pack)
        assert done.returncode == 1
        assert "has the pack llama of number 6, and this is number 7" in done.stderr
        assert "hint: say --replace" in done.stderr
        assert gpucache("push", pack, "--replace").returncode == 0

    def test_a_lower_number_in_the_place_of_a_higher_one_is_told(self, pack, remote, gpucache):
        remote.put("llama", SEEDS[:1], number=9)
        done = gpucache("push", pack, "--replace")
        assert done.returncode == 0
        assert "warning: number 7 is lower than 9, which was there" in done.stderr

    def test_its_json_of_a_pack_is_as_documented(self, pack, gpucache):
        said = told(gpucache("push", pack, "--json").stdout)
        (fields,), _ = documented("push PACK")
        check(
            said,
            fields,
            file=str,
            remote=str,
            number=int,
            signer=str,
            did=str,
            entries=list,
            file_bytes=int,
        )
        assert len(said["entries"]) == 3

    def test_entries_are_put_one_by_one_and_are_then_there(self, remote, root, gpucache):
        for seed in SEEDS:
            launched(*kernel(seed))
        tried = gpucache("push", "--since", "1h", "-n")
        assert "note: would put 3 entries, as far as they are not there\n" in tried.stderr
        assert not list(remote.directory.glob("v1/3.9.0/*/*"))
        said = told(gpucache("push", "--since", "1h", "--json").stdout)
        (fields,), inner = documented("push --since")
        check(said, fields, remote=str, sent_bytes=int)
        assert inner["left_out"] == ["kernel", "fact"]
        assert len(said["put"]) == 3
        assert len(list(remote.directory.glob("v1/3.9.0/*/*"))) == 3
        counted = json.loads(gpucache("stats", "--json").stdout)["all"]
        assert (counted["pushed"], counted["pushed_bytes"]) == (3, said["sent_bytes"])
        again = gpucache("push", "--since", "1h")
        assert "put 0 entries, 0 B; 3 there already" in again.stderr

    def test_those_of_a_read_only_root_and_of_stock_triton_are_put(
        self, remote, root, gpucache, mount, tmp_path
    ):
        """As they are packed; nothing is made there."""
        launched(*kernel(SEEDS[0]))
        image = mount(tmp_path / "image", "--bind", root)
        subprocess.run(["mount", "-o", "remount,bind,ro", image], check=True)
        done = gpucache("push", "--since", "1h", "--root", image)
        assert (done.returncode, "note: put 1 entry, " in done.stderr) == (0, True), done.stderr
        shutil.rmtree(remote.directory / "v1/3.9.0")
        stock = tmp_path / "stock"
        shutil.copytree(root / "triton/0", stock)
        before = sorted(stock.iterdir())
        done = gpucache("push", "--since", "1h", "--root", stock)
        assert (done.returncode, "note: put 1 entry, " in done.stderr) == (0, True), done.stderr
        assert sorted(stock.iterdir()) == before

    def test_only_what_was_used_since(self, remote, root, gpucache):
        launched(*kernel(SEEDS[0]))
        for path in root.glob("**/__entry__.json"):
            os.utime(path, (0, 0))
        launched(*kernel(SEEDS[1]))
        gpucache("push", "--since", "1h")
        (entry,) = remote.directory.glob("v1/3.9.0/*/*")
        assert entry.name == kernel(SEEDS[1])[0]

    def test_what_another_node_takes_of_them_are_hits(
        self, remote, root, tmp_path, gpucache, monkeypatch
    ):
        for seed in SEEDS:
            launched(*kernel(seed))
        gpucache("push", "--since", "1h")
        monkeypatch.setenv("GPUCACHE_DIR", str(tmp_path / "second"))
        monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "second/triton/0"))
        assert gpucache("pull").returncode == 0
        another_process(monkeypatch)
        assert all(launched(*kernel(seed))[0] for seed in SEEDS)

    @pytest.mark.parametrize(
        ("words", "environ", "said"),
        [
            (["PACK"], {"GPUCACHE_REMOTE": ""}, "error: no remote is named"),
            (["/nowhere"], {}, "could not look at /nowhere"),
            (["--since", "1h"], {"GPUCACHE_SIGN_KEY": ""}, "error: nothing signs what is put to"),
            (["PACK", "--remote", "hf://me/kernels"], {}, "cannot be written by gpucache"),
        ],
    )
    def test_what_cannot_be_is_an_error_with_a_way_out(
        self, words, environ, said, pack, root, gpucache
    ):
        launched(*kernel(SEEDS[0]))
        words = [str(pack) if word == "PACK" else word for word in words]
        done = gpucache("push", *words, env={**os.environ, **environ})
        assert done.returncode == 1
        assert said in done.stderr
        assert "hint: " in done.stderr
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize(
        "words", [[], ["-"], ["PACK", "--since", "1h"], ["--since", "1h", "--replace"]]
    )
    def test_wrong_usage(self, words, pack, gpucache):
        assert gpucache("push", *words).returncode == 2
