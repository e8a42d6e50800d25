"""`pack`, `unpack` and `keygen` as people and scripts call them: what is refused, with which way out."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.packs import CONTENT, Source, key
from support.processes import PATIENCE_S
from support.users import ADA
from tree import make

from gpucache.archive.signature import SigningKey
from gpucache.upkeep.verify import verify


@pytest.fixture
def root(tmp_path: Path, keys: list[str]) -> Path:
    """A root with six kernels."""
    return tmp_path / "root"


@pytest.fixture
def ci(tmp_path, here, monkeypatch):
    """A key, by which packs are signed and believed."""
    monkeypatch.chdir(tmp_path)
    done = here("keygen", "ci")
    assert done.code == 0
    monkeypatch.setenv("GPUCACHE_SIGN_KEY", str(tmp_path / "ci.key"))
    monkeypatch.setenv("GPUCACHE_TRUST_KEYS", done.out.strip())
    return done.out.strip()


@pytest.fixture
def packed(root, here, tmp_path) -> Path:
    """An unsigned pack of the root."""
    pack = tmp_path / "kernels.tar.zst"
    assert here("pack", "-o", pack, "--root", root).code == 0
    return pack


class TestKeygen:
    def test_the_secret_goes_to_a_private_file_and_the_public_key_is_printed(
        self, here, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        done = here("keygen", "ci-2026")
        path = tmp_path / "ci-2026.key"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert done.out == SigningKey.read(str(path)).public_text + "\n"
        assert done.out.startswith("ci-2026:")
        assert "GPUCACHE_SIGN_KEY" in done.err
        assert "GPUCACHE_TRUST_KEYS" in done.err

    def test_a_key_that_is_there_is_never_written_over(self, here, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        here("keygen", "ci")
        before = (tmp_path / "ci.key").read_bytes()
        done = here("keygen", "ci")
        assert (done.code, done.out) == (1, "")
        assert "already" in done.err
        assert (tmp_path / "ci.key").read_bytes() == before

    @pytest.mark.parametrize("name", ["../ci", "/tmp/ci", "", "a b"])
    def test_a_name_that_leads_elsewhere_is_refused(self, name, here, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert here("keygen", name).code == 1
        assert list(tmp_path.rglob("*.key")) == []


class TestPack:
    def test_what_is_packed_is_told_in_json(self, root, here, tmp_path, keys, ci):
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root, "--json")
        said = json.loads(done.out)
        assert (said["name"], said["signer"], said["left_out"]) == ("n", "ci", [])
        assert {row["key"] for row in said["entries"]} == set(keys)
        assert said["bytes"] == sum(row["bytes"] for row in said["entries"])
        assert said["file_bytes"] == (tmp_path / "n.tar.zst").stat().st_size

    def test_an_unsigned_pack_is_told_with_the_way_out(self, root, here, tmp_path):
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        assert "not signed" in done.err
        assert "GPUCACHE_SIGN_KEY" in done.err

    def test_the_same_root_gives_the_same_bytes(self, root, here, tmp_path):
        for directory in ("a", "b"):
            (tmp_path / directory).mkdir()
            here("pack", "-o", tmp_path / directory / "n.tar.zst", "--root", root)
        assert (tmp_path / "a/n.tar.zst").read_bytes() == (tmp_path / "b/n.tar.zst").read_bytes()

    def test_filters_choose(self, root, here, tmp_path, keys):
        def packed(*words: object) -> int:
            done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root, "--json", *words)
            return len(json.loads(done.out)["entries"]) if done.code == 0 else 0

        archs = [packed("--arch", arch) for arch in ("sm_80", "sm_90")]
        assert sum(archs) == len(keys)
        assert packed("--triton-version", "3.9.0") == len(keys)
        assert packed("--triton-version", "<3.9") == 0
        assert packed("--kernel", "*") == len(keys)
        assert packed("--kernel", "nothing-is-called-so") == 0
        assert packed("--used-since", "1s") == 0
        assert packed("--used-since", "61d") == len(keys)

    def test_name_and_number_can_be_given(self, root, here, tmp_path):
        words = ("--name", "nightly", "--number", "7")
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root, "--json", *words)
        assert [json.loads(done.out)[field] for field in ("name", "number")] == ["nightly", 7]

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (("-o", "{tmp}/a b.tar.zst"), "'a b' is no name of a pack"),
            (("-o", "{tmp}/n", "--name", "../n"), "'../n' is no name of a pack"),
            (("-o", "{tmp}/n", "--name", "n" * 101), "is no name of a pack"),
            (("-o", "{tmp}/missing/n.tar.zst"), "No such file or directory"),
            (("-o", "{tmp}"), "Is a directory"),
            (("-o", "{tmp}/n", "--kernel", "none"), "has --kernel 'none'\nhint: there is "),
            (
                ("-o", "{tmp}/n", "--used-since", "1s"),
                "'s 6 entries is chosen\nhint: `gpucache ls`",
            ),
            (("-o", "{tmp}/n", "--arch", "hopper"), "has --arch 'hopper'"),
            (("-o", "{tmp}/n", "--triton-version", "three"), "--triton-version="),
        ],
    )
    def test_what_makes_no_sense_ends_with_1_and_leaves_no_file(
        self, words, said, root, here, tmp_path
    ):
        before = sorted(tmp_path.iterdir())
        done = here("pack", "--root", root, *(word.format(tmp=tmp_path) for word in words))
        is_usage = said.startswith("--")
        assert (done.code, done.out) == (2 if is_usage else 1, "")
        assert said in done.err
        assert sorted(tmp_path.iterdir()) == before

    @pytest.mark.parametrize("words", [(), ("-o", ""), ("-o", "--json"), ("-o", "-", "--json")])
    def test_what_is_no_use_of_it_ends_with_2(self, words, root, here):
        assert here("pack", "--root", root, *words).code == 2

    def test_a_file_that_is_there_stays_as_it_was_where_the_disk_is_full(
        self, root, here, mount, tmp_path
    ):
        point = mount(tmp_path / "small", "-t", "tmpfs", "-o", "size=16k", "none")
        (point / "n.tar.zst").write_bytes(b"old")
        (point / "other").write_bytes(bytes(8192))
        done = here("pack", "-o", point / "n.tar.zst", "--root", root)
        assert done.code == 1
        assert "No space left on device" in done.err
        assert (point / "n.tar.zst").read_bytes() == b"old"
        assert sorted(path.name for path in point.iterdir()) == ["n.tar.zst", "other"]
        assert list((root / "gpucache/v1/tmp").glob("*/*")) == []

    def test_stdout_that_is_full_or_closed_is_told(self, root):
        command = [sys.executable, "-m", "gpucache", "pack", "-o", "-", "--root", str(root)]
        with open("/dev/full", "wb") as full:
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert "could not write to stdout: No space left on device" in done.stderr
        reading, writing = os.pipe()
        os.close(reading)
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
        os.close(writing)
        assert (done.returncode, done.stderr) == (1, "")

    def test_a_root_that_others_may_write_is_refused(self, root, here, tmp_path):
        root.chmod(0o777)
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        assert done.code == 1
        assert "everybody may write it" in done.err
        assert not (tmp_path / "n.tar.zst").exists()


class TestWhatIsLeftOut:
    def test_what_is_damaged_is_a_warning_and_in_json(self, root, here, tmp_path, keys):
        for path in root.rglob("*.cubin"):
            if path.parent.name == keys[0]:
                path.unlink()
                path.write_bytes(b"other")
        words = ("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        done = here(*words)
        assert done.code == 0
        assert "warning: left out " in done.err
        assert "has another content than was published" in done.err
        (row,) = json.loads(here(*words, "--json").out)["left_out"]
        assert (row["key"], row["why"]) == (keys[0], "damaged")

    def test_what_is_of_no_use_elsewhere_is_counted_in_a_note(self, root, here, tmp_path):
        for letter in "AB":
            directory = root / "triton/0" / (letter * 52)
            directory.mkdir()
            (directory / "launcher.so").write_bytes(Path(sys.executable).resolve().read_bytes())
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        assert "warning" not in done.err
        said = "left out 2 entries, each a library that does not tell its processor or Python"
        assert f"note: {said}" in done.err


class TestRootsThatTakeNothing:
    def test_a_program_has_what_was_unpacked_into_its_image(
        self, packed, here, gpucache, mount, tmp_path, monkeypatch
    ):
        """No container has the host name of the build, so that the image has no record of its host."""
        here("unpack", packed, "--unsigned", "--root", tmp_path / "built")
        image = mount(tmp_path / "image", "--bind", tmp_path / "built")
        subprocess.run(["mount", "-o", "remount,bind,ro", image], check=True)
        monkeypatch.setenv("GPUCACHE_DIR", str(image))
        names = {"GPUCACHE_DIR", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"}
        program = f"import os; print(*({names} & set(os.environ)))"
        done = gpucache("run", "--", sys.executable, "-c", program)
        assert done.stdout == "GPUCACHE_DIR\n"
        assert "what is cached there is used, nothing new is kept there\n" in done.stderr
        assert "error" not in done.stderr
        for words in (("--device", "0"), ("--no-plugin",)):
            asked = gpucache("run", *words, "--", "true")
            assert "error: could not make" in asked.stderr

    def test_torch_is_not_sent_to_where_it_could_not_write(
        self, root, gpucache, mount, tmp_path, monkeypatch
    ):
        """Its compile would fail there, and with it the program."""
        monkeypatch.setenv("GPUCACHE_DIR", str(root))
        gpucache("provision")
        image = mount(tmp_path / "image", "--bind", root)
        subprocess.run(["mount", "-o", "remount,bind,ro", image], check=True)
        monkeypatch.setenv("GPUCACHE_DIR", str(image))
        program = (
            "import os; print(*sorted(name for name in os.environ if name.endswith('CACHE_DIR')))"
        )
        done = gpucache("run", "--", sys.executable, "-c", program)
        assert done.stdout == "GPUCACHE_DIR TRITON_CACHE_DIR\n"
        assert f"torch caches where it does by default: it could not write {image}\n" in done.stderr

    def test_a_read_only_root_is_packed(self, root, here, mount, tmp_path, keys):
        point = mount(tmp_path / "image", "--bind", root)
        subprocess.run(["mount", "-o", "remount,bind,ro", point], check=True)
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", point, "--json")
        assert {row["key"] for row in json.loads(done.out)["entries"]} == set(keys)

    def test_a_full_root_is_packed_to_another_disk(self, here, mount, tmp_path):
        point = mount(tmp_path / "small", "-t", "tmpfs", "-o", "mode=0700,size=2m", "none")
        keys = make(f"{point}/root", 6, 2)
        with pytest.raises(OSError, match="No space left"):
            (point / "other").write_bytes(bytes(4 * 2**20))
        assert os.statvfs(point).f_bavail == 0
        done = here("pack", "-o", tmp_path / "n.tar.zst", "--root", point / "root", "--json")
        assert {row["key"] for row in json.loads(done.out)["entries"]} == set(keys)


def test_two_unpacks_at_once_make_each_entry_once(packed, tmp_path, keys):
    command = [sys.executable, "-m", "gpucache", "unpack", str(packed), "--unsigned", "--json"]
    command += ["--root", str(tmp_path / "o")]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    made = []
    for process in started:
        out, _ = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0
        said = json.loads(out)
        assert {row["key"] for row in said["made"] + said["there"]} == set(keys)
        assert said["skipped"] == []
        made += [row["key"] for row in said["made"]]
    assert sorted(made) == sorted(keys)
    assert not verify(str(tmp_path / "o")).findings
    assert list((tmp_path / "o/gpucache/v1/tmp").glob("*/*")) == []


def test_in_a_locale_without_the_letters_of_a_kernel_the_other_kernels_are_moved(tmp_path):
    """Python's identifiers, and so files of kernels, have any letters; the locale of a container may be bare ASCII."""
    content = {f"Ärger{end}": CONTENT[f"add{end}"] for end in (".json", ".cubin")}
    source = Source().add().add(content).add()
    pack, ascii_root, root = tmp_path / "n.tar.zst", tmp_path / "ascii", tmp_path / "utf8"
    pack.write_bytes(source.packed())
    bare = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def said(*words: object, **environ: str) -> dict[str, list[dict[str, str]]]:
        command = [sys.executable, "-m", "gpucache", *map(str, words), "--json"]
        environ = {**os.environ, **environ}
        return json.loads(subprocess.run(command, env=environ, stdout=-1, check=True).stdout)

    done = said("unpack", pack, "--unsigned", "--root", ascii_root, **bare)
    assert [row["key"] for row in done["made"]] == [key(0), key(2)]
    assert [(row["key"], row["why"]) for row in done["skipped"]] == [(key(1), "name")]
    assert not verify(str(ascii_root)).findings
    said("unpack", pack, "--unsigned", "--root", root)
    done = said("pack", "-o", tmp_path / "o.tar.zst", "--root", root, **bare)
    assert {row["key"] for row in done["entries"]} == {key(0), key(2)}
    assert [(row["key"], row["why"]) for row in done["left_out"]] == [(key(1), "odd")]


def test_what_was_made_under_a_umask_of_0_can_be_packed(tmp_path, here):
    """As in some containers: nobody believes a file that everybody may write."""
    pack, root, again = tmp_path / "n.tar.zst", tmp_path / "root", tmp_path / "again"
    pack.write_bytes(Source().add(recipe=b"{}").packed())
    before = os.umask(0)
    try:
        make(str(again), 1, 1)
        pack.chmod(0o600)
        assert here("unpack", pack, "--unsigned", "--root", root).code == 0
        done = [
            here("pack", "-o", tmp_path / "o", "--root", where, "--json") for where in (root, again)
        ]
    finally:
        os.umask(before)
    assert [json.loads(one.out)["left_out"] for one in done] == [[], []]


class TestTrust:
    def test_a_pack_of_a_trusted_key_is_taken_and_its_signer_told(
        self, root, here, tmp_path, keys, ci
    ):
        here("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        done = here("unpack", tmp_path / "n.tar.zst", "--root", tmp_path / "o", "--json")
        said = json.loads(done.out)
        assert (said["signer"], {row["key"] for row in said["made"]}) == ("ci", set(keys))

    @pytest.mark.parametrize("unsigned", [False, True])
    def test_a_bad_signature_of_a_trusted_name_is_never_taken(
        self, unsigned, root, here, tmp_path, monkeypatch, ci
    ):
        here("pack", "-o", tmp_path / "n.tar.zst", "--root", root)
        (tmp_path / "ci.key").rename(tmp_path / "old.key")
        other = here("keygen", "ci").out.strip()
        monkeypatch.setenv("GPUCACHE_TRUST_KEYS", other)
        words = ["--unsigned"] * unsigned
        done = here("unpack", tmp_path / "n.tar.zst", "--root", tmp_path / "o", *words)
        assert done.code == 1
        assert "its signature is not that of ci" in done.err
        assert not (tmp_path / "o").exists()

    def test_an_unsigned_pack_is_refused_with_the_way_out(self, packed, here, tmp_path):
        done = here("unpack", packed, "--root", tmp_path / "o")
        assert done.code == 1
        assert "nobody has signed it" in done.err
        assert "--unsigned" in done.err
        assert not (tmp_path / "o").exists()

    def test_without_a_trusted_key_a_signed_pack_needs_one_or_unsigned(
        self, root, here, tmp_path, monkeypatch, ci
    ):
        pack = tmp_path / "n.tar.zst"
        here("pack", "-o", pack, "--root", root)
        monkeypatch.delenv("GPUCACHE_TRUST_KEYS")
        done = here("unpack", pack, "--root", tmp_path / "o")
        assert done.code == 1
        assert "it is signed by ci, and no key is trusted" in done.err
        assert "GPUCACHE_TRUST_KEYS" in done.err
        assert here("unpack", pack, "--root", tmp_path / "o", "--unsigned").code == 0

    @pytest.mark.parametrize("what", ["owner", "mode", "directory"])
    def test_unsigned_is_not_for_a_file_that_somebody_else_could_have_written(
        self, what, as_root, packed, here, tmp_path
    ):
        if what == "owner":
            os.chown(packed, ADA, ADA)
        elif what == "mode":
            packed.chmod(0o666)
        else:
            (tmp_path / "open").mkdir()
            packed = packed.rename(tmp_path / "open" / packed.name)
            (tmp_path / "open").chmod(0o777)
        done = here("unpack", packed, "--unsigned", "--root", tmp_path / "o")
        assert done.code == 1
        assert "and" in done.err
        assert not (tmp_path / "o").exists()

    @pytest.mark.parametrize("owner", [0, ADA])
    def test_in_a_directory_like_tmp_the_owner_of_an_unsigned_pack_counts(
        self, owner, as_root, packed, here, tmp_path
    ):
        (tmp_path / "open").mkdir()
        packed = packed.rename(tmp_path / "open" / packed.name)
        (tmp_path / "open").chmod(0o1777)
        os.chown(packed, owner, owner)
        done = here("unpack", packed, "--unsigned", "--root", tmp_path / "o")
        assert done.code == (0 if owner == 0 else 1)

    def test_a_file_of_another_user_on_stdin_is_refused_too(self, as_root, packed, tmp_path):
        os.chown(packed, ADA, ADA)
        command = [sys.executable, "-m", "gpucache", "unpack", "-", "--unsigned"]
        with packed.open("rb") as file:
            done = subprocess.run(
                [*command, "--root", str(tmp_path / "o")],
                stdin=file,
                capture_output=True,
                text=True,
            )
        assert done.returncode == 1
        assert f"belongs to uid {ADA}" in done.stderr

    def test_an_older_pack_than_one_that_was_seen_is_told(self, root, here, tmp_path, ci):
        pack = tmp_path / "n.tar.zst"
        for number in (9, 8):
            here("pack", "-o", pack, "--root", root, "--number", str(number))
            done = here("unpack", pack, "--root", tmp_path / "o")
            assert done.code == 0
        assert "number 8 of n" in done.err
        assert "number 9 was seen here" in done.err


class TestUnpack:
    def test_a_root_that_is_not_there_is_made_private(self, packed, here, tmp_path):
        assert here("unpack", packed, "--unsigned", "--root", tmp_path / "o").code == 0
        assert stat.S_IMODE((tmp_path / "o").stat().st_mode) == 0o700

    def test_nothing_above_a_root_is_made(self, packed, here, tmp_path):
        done = here("unpack", packed, "--unsigned", "--root", tmp_path / "typo" / "o")
        assert done.code == 1
        assert "mkdir -p" in done.err
        assert not (tmp_path / "typo").exists()

    @pytest.mark.parametrize("part", ["", "gpucache/v1/store"])
    def test_a_root_that_others_may_write_is_refused(self, part, packed, root, here):
        (root / part).chmod(0o777)
        before = sorted(root.rglob("*"))
        done = here("unpack", packed, "--unsigned", "--root", root)
        assert done.code == 1
        assert "everybody may write it" in done.err
        assert sorted(root.rglob("*")) == before

    def test_a_directory_that_is_no_cache_is_refused(self, packed, here, tmp_path):
        (tmp_path / "home").mkdir()
        (tmp_path / "home/letter.txt").write_text("dear")
        done = here("unpack", packed, "--unsigned", "--root", tmp_path / "home")
        assert done.code == 1
        assert [path.name for path in (tmp_path / "home").iterdir()] == ["letter.txt"]

    def test_a_device_directory_is_refused(self, packed, root, here):
        done = here("unpack", packed, "--unsigned", "--root", root / "triton/0")
        assert done.code == 1
        assert f"name the root, {root}" in done.err

    def test_a_dry_run_tells_and_makes_nothing(self, packed, here, tmp_path, keys):
        done = here("unpack", packed, "--unsigned", "--root", tmp_path / "o", "--dry-run")
        assert done.code == 0
        assert f"would take {len(keys)} entries" in done.err
        assert not (tmp_path / "o").exists()

    def test_what_is_there_already_is_told(self, packed, here, tmp_path, keys):
        for said in (
            f"took {len(keys)} entries",
            f"took 0 entries, 0 B; {len(keys)} there already",
        ):
            done = here("unpack", packed, "--unsigned", "--root", tmp_path / "o")
            assert f"note: {said}" in done.err

    def test_a_store_that_is_over_its_limit_then_is_told(self, packed, root, here, monkeypatch):
        from gpucache.store.size import set_total

        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "1KiB")
        set_total(str(root), 5000)
        done = here("unpack", packed, "--unsigned", "--root", root)
        assert "more than GPUCACHE_MAX_SIZE allows (1.0 KiB)" in done.err

    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"", "kernels"),
            (b"no pack", "kernels"),
            (b"\x28\xb5\x2f\xfd", "kernels"),
            (None, "No such"),
        ],
    )
    def test_what_is_no_pack_is_refused(self, content, said, here, tmp_path):
        path = tmp_path / "kernels.tar.zst"
        if content is not None:
            path.write_bytes(content)
        done = here("unpack", path, "--unsigned", "--root", tmp_path / "o")
        assert (done.code, done.out) == (1, "")
        assert said in done.err
        assert "hint: " in done.err
        assert not (tmp_path / "o").exists()

    def test_what_is_wrong_with_a_stream_is_told_of_stdin(self, packed, tmp_path):
        command = [sys.executable, "-m", "gpucache", "unpack", "-", "--unsigned"]
        done = subprocess.run(
            [*command, "--root", str(tmp_path / "o")],
            input=packed.read_bytes()[:-1],
            capture_output=True,
        )
        assert done.returncode == 1
        assert done.stderr.startswith(b"error: stdin: it ends in the middle\nhint: ")

    def test_without_a_file_on_stdin_it_says_so(self, here):
        done = here("unpack", "-", "--unsigned")
        assert done.code == 2
        assert "stdin has no pack" in done.err
