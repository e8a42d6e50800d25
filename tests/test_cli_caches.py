"""`ls`, `du`, `prune`, `clean` and `verify` as their users meet them."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
from support.cli import Done, check, documented, on_a_terminal, table
from support.trees import everything_below
from walk import bare_walk

from gpucache import units
from gpucache.escapes import printable
from gpucache.store.foreign import remember
from gpucache.store.manifest import MANIFEST, entry_path

DESCRIBED = dict.fromkeys(
    ("constants", "dtypes", "set_options", "stages", "registers", "spills"), object
)
"""What an entry without a recipe, or without a binary, leaves unsaid."""
CHANGING = [["prune", "--max-entries", "0"], ["clean"]]


@pytest.fixture
def root(tmp_path: Path, keys: list[str]) -> Path:
    return tmp_path / "root"


# ---- --json is what the page on it says


class TestJson:
    def test_ls(self, here, root):
        (outer, inner), values = documented("ls")
        said = here("ls", "--json", "--root", root).json
        check(said, outer, entries=list)
        assert len(said["entries"]) == 6
        for entry in said["entries"]:
            check(entry, inner, **DESCRIBED)
            assert entry["kind"] in values["kind"]
        assert said["root"] == str(root)

    def test_ls_of_an_empty_root(self, here, tmp_path):
        done = here("ls", "--json", "--root", tmp_path)
        assert done.json == {"root": str(tmp_path), "findings": [], "entries": []}

    def test_ls_key(self, here, root, keys):
        """What was said of it in the list comes first, and is the same, but for the files, which get names."""
        (more,), inner = documented("ls KEY")
        said = here("ls", keys[0], "--json", "--root", root).json
        (_, fields), _ = documented("ls")
        (row,) = [
            row
            for row in here("ls", "--json", "--root", root).json["entries"]
            if row["key"] == keys[0]
        ]
        check(
            said,
            list(dict.fromkeys([*fields, *more])),
            **{**DESCRIBED, "files": dict, "stack_bytes": object},
            options=dict,
            environment=dict,
            paths=dict,
            function=object,
            tuning=object,
        )
        assert {**said, "files": len(said["files"])} == {
            **{name: said[name] for name in more},
            **row,
        }
        for copy in said["copies"]:
            check(copy, inner["copies"], directory=(str, type(None)))
        assert [copy["kind"] for copy in said["copies"]] == ["store", "view", "view"]
        assert {type(size) for size in said["files"].values()} == {int}

    def test_stats(self, here, root):
        (outer, inner), parts = documented("stats")
        (Path(root) / "gpucache/v1/stats").mkdir(exist_ok=True)
        counted = {"device": "0", "values": {"hits": 2, "saved_s": 1.5}}
        (Path(root) / "gpucache/v1/stats/folded.json").write_text(json.dumps([counted]))
        said = here("stats", "--json", "--root", root).json
        none = type(None)
        check(said, outer, since=none, host=none, devices=dict, all=dict, levels=dict, pulled=dict)
        assert list(said["levels"]) == parts["levels"]
        assert said["levels"]["own"]["hits"] == 2
        assert said["pulled"] == dict.fromkeys(parts["pulled"], 0)
        for row in (said["all"], *said["devices"].values()):
            assert list(row) == inner
            assert {type(value) for value in row.values()} <= {int, float}
        assert said["devices"]["0"]["saved_s"] == 1.5

    @pytest.mark.parametrize("by", ["bucket", "device", "arch", "kernel"])
    def test_du(self, by, here, root):
        (outer, inner, room), _ = documented("du")
        said = here("du", "--by", by, "--json", "--root", root).json
        check(said, [*outer, *room], all=dict, **dict.fromkeys(room, int))
        assert said["by"] == by
        for row in (*said["rows"], said["all"]):
            check(row, inner)

    @pytest.mark.parametrize("command", CHANGING, ids=["prune", "clean"])
    def test_prune_and_clean(self, command, here, root, keys):
        """The same fields for a dry run, for what was done, and where nothing is left to do."""
        (planned, last, removed), inner = documented("prune")
        planned += last
        fields, whole = (
            {"kept": list, "parts": list, "removed": (dict, type(None))},
            [*command, "--json", "--root", root],
        )
        os.utime(entry_path(str(root), keys[0]) + f"/{MANIFEST}")
        dry = here(*whole, "--dry-run").json
        done = here(*whole, "--yes").json
        nothing = here(*whole, "--yes").json
        for said in (dry, done, nothing):
            check(said, planned, **fields)
            for kept in said["kept"]:
                check(kept, inner["kept"])
            for part in said["parts"]:
                check(part, inner["parts"], what=str, which=str)
        check(done["removed"], removed)
        for said in (dry, done):
            said["kept"] = [
                kept["key"] for kept in said["kept"]
            ]  # their ages differ by the time between the two
        assert (dry["dry_run"], dry["removed"]) == (True, None)
        assert {**done, "dry_run": True, "removed": None} == dry
        assert (nothing["dry_run"], nothing["removed"], nothing["keys"]) == (False, None, [])
        assert [kept["key"] for kept in nothing["kept"]] == [keys[0]]

    def test_what_is_skipped_while_removing_is_told_as_what_is_kept(
        self, here, root, keys, monkeypatch
    ):
        def used_meanwhile(*_: object) -> bool:
            os.utime(entry_path(str(root), keys[0]) + f"/{MANIFEST}")
            return True

        monkeypatch.setattr("gpucache.cli.carry_out.confirmed", used_meanwhile)
        monkeypatch.setattr("gpucache.cli.carry_out.check_answerable", lambda: None)
        said = here("clean", "--json", "--root", root).json
        assert said["removed"]["entries"] == 5
        assert said["removed"]["skipped"] == [
            {"key": keys[0], "why": "it was used or replaced meanwhile"}
        ]

    def test_verify(self, here, root, keys):
        (outer, inner), _ = documented("verify")
        (
            root / "triton/0" / keys[0] / next((root / "triton/0" / keys[0]).glob("*.ptx")).name
        ).write_text("damaged")
        done = here("verify", "--json", "--root", root)
        check(done.json, outer)
        assert done.code == 1
        assert done.json["findings"] != []
        for finding in done.json["findings"]:
            check(finding, inner)


# ---- ls


class Kernel(NamedTuple):
    """What is on disk of a key, found with nothing but system calls."""

    key: str
    kernel: str
    arch: str
    size: int
    used: float
    created: float
    directories: list[str]


@pytest.fixture
def kernels(root: Path, keys: list[str]) -> list[Kernel]:
    """Those of the root, each with something of its own."""
    for number, key in enumerate(keys):
        if number % 2:
            shutil.rmtree(root / "triton/1" / key)
        os.utime(
            entry_path(str(root), key) + f"/{kernel_of(root, key)}.ptx",
            (0, time.time() - 1000 * (number + 7) % 5000),
        )
    return [kernel(root, key) for key in keys]


def kernel_of(root: Path, key: str) -> str:
    return next(Path(entry_path(str(root), key)).glob("*.cubin")).stem


def kernel(root: Path, key: str) -> Kernel:
    entry, name = Path(entry_path(str(root), key)), kernel_of(root, key)
    views = sorted(root.glob(f"triton/*/{key}"))
    files = [path for directory in (entry, *views) for path in directory.iterdir()]
    inodes = {path.stat().st_ino: path.stat() for path in files}
    return Kernel(
        key=key,
        kernel=name,
        arch=f"sm_{json.loads((entry / f'{name}.json').read_text())['target']['arch']}",
        size=sum(found.st_size for found in inodes.values()),
        used=(entry / MANIFEST).stat().st_mtime,
        created=max(
            path.stat().st_mtime for path in entry.iterdir() if not path.name.startswith("__")
        ),
        directories=[view.parent.name for view in views],
    )


class TestLs:
    @pytest.mark.parametrize(
        ("order", "by"),
        [
            ("used", lambda one: -one.used),
            ("created", lambda one: -one.created),
            ("size", lambda one: -one.size),
            ("kernel", lambda one: one.kernel),
            ("key", lambda one: one.key),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_sorts_by_each_order(self, order, by, here, root, kernels):
        known = {one.key: one for one in kernels}
        shown = [known[row[0]] for row in here("ls", "--sort", order, "--root", root).rows]
        assert sorted(shown) == sorted(kernels)
        assert list(map(by, shown)) == sorted(map(by, kernels))

    def test_says_of_each_entry_what_is_on_disk(self, here, root, kernels):
        """Piped: bytes and not KiB, whole keys, times in UTC, no head; new columns come last."""
        done = here("ls", "--root", root)
        assert [row[:9] for row in done.rows] == [
            [
                *(one.key, one.kernel, one.arch, "3.9.0", "8", str(one.size), utc(one.used)),
                *(" ".join(one.directories), "kernel"),
            ]
            for one in reversed(kernels)
        ]
        assert (done.code, done.err) == (0, "")

    @pytest.mark.parametrize(
        ("words", "wanted"),
        [
            (["--kernel", "*_*"], lambda one, _: "_" in one.kernel),
            (["--older-than", "9999d"], lambda *_: False),
            (["--arch", "sm_90"], lambda one, _: one.arch == "sm_90"),
            (["--directory", "1"], lambda one, _: "1" in one.directories),
            (["--older-than", "20d"], lambda one, now: now - one.used > 20 * 86400),
            (["--larger-than", "38kB"], lambda one, _: one.size > 38000),
            (
                [
                    "--kernel",
                    "*_*",
                    "--arch",
                    "sm_90",
                    "--directory",
                    "0",
                    "--older-than",
                    "1w",
                    "--larger-than",
                    "1",
                ],
                lambda one, now: (
                    "_" in one.kernel and one.arch == "sm_90" and now - one.used > 7 * 86400
                ),
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_filters(self, words, wanted, here, root, kernels):
        now = time.time()
        expected = [one.key for one in reversed(kernels) if wanted(one, now)]
        done = here("ls", *words, "--root", root)
        assert [row[0] for row in done.rows] == expected
        assert done.code == 0
        assert done.err == ("" if expected else f"note: none of 6 entries in {root} is like that\n")
        assert [
            entry["key"] for entry in here("ls", *words, "--json", "--root", root).json["entries"]
        ] == expected
        assert [
            row[0] for row in here("ls", *words, "--limit", 2, "--root", root).rows
        ] == expected[:2]

    def test_the_filters_of_this_test_tell_entries_apart(self, kernels):
        assert {one.arch for one in kernels} == {"sm_80", "sm_90"}
        assert {len(one.directories) for one in kernels} == {1, 2}
        assert min(one.size for one in kernels) < 38000 < max(one.size for one in kernels)

    @pytest.mark.parametrize(
        ("words", "said"),
        [
            (
                ["--older-than", "5 parsecs"],
                "--older-than: '5 parsecs' is not a time like 30d, 12h",
            ),
            (
                ["--larger-than", "-1"],
                "--larger-than: '-1' is not a size like 20GiB",
            ),
            (["--limit", "0"], "--limit: '0' is not a whole number from 1 on"),
            (
                ["--sort", "colour"],
                "--sort: 'colour' is not one of 'used', 'created', 'size'",
            ),
            (
                ["KEY", "--arch", "sm_90"],
                "KEY shows one entry, and nothing of a list: leave the filters and --limit out",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_refuses_what_makes_no_sense(self, words, said, here, root):
        done = here("ls", *words, "--root", root)
        assert (done.code, done.out) == (2, "")
        assert f"error: {said}" in done.err

    def test_the_beginning_of_a_key_is_enough_and_says_when_it_is_not(self, here, root, keys):
        assert here("ls", keys[2][:9], "--root", root).rows[0] == ["key", keys[2]]
        done = here("ls", "", "--root", root)
        assert (done.code, done.out) == (1, "")
        found = re.fullmatch(
            rf"error: 6 entries in {root} have keys that begin with '', such as (\w+), (\w+), (\w+)\n"
            "hint: say more of the key\n",
            done.err,
        )
        assert found
        assert set(found.groups()) < set(keys)
        assert here("ls", "nothing", "--root", root) == Done(
            1,
            "",
            f"error: no entry in {root} has a key that begins with 'nothing'\n"
            "hint: `gpucache ls` lists keys, and `gpucache ls --kernel '*nothing*'` looks for a kernel's name; "
            "--root, GPUCACHE_DIR choose another root\n",
        )

    def test_a_terminal_gets_a_table_with_short_keys_and_rounded_figures(self, root, kernels):
        code, seen = on_a_terminal("ls", "--sort", "size", "--limit", 2, "--root", root)
        largest = sorted(kernels, key=lambda one: -one.size)[:2]
        assert code == 0
        names = "--columns", "key,kernel,arch,triton,files,size,used,directories"
        assert table(seen)[0][:2] == ["key", "kernel"]
        _, seen = on_a_terminal("ls", "--sort", "size", "--limit", 2, *names, "--root", root)
        assert table(seen) == [
            ["key", "kernel", "arch", "triton", "files", "size", "used", "directories"],
            *(
                [
                    *(one.key[:12], one.kernel, one.arch, "3.9.0", "8", units.size(one.size)),
                    *(f"{units.age(time.time() - one.used)} ago", "-".join(one.directories)),
                ]
                for one in largest
            ),
            ["2 of 6", "2 kernels", units.size(sum(one.size for one in largest))],
        ]

    def test_a_narrow_terminal_keeps_keys_and_sizes_whole(self, root, keys):
        _, seen = on_a_terminal("ls", "--root", root, env={"COLUMNS": "70"})
        lines = seen.splitlines()[1:-2]
        assert {line[:12] for line in lines} == {key[:12] for key in keys}
        assert seen.count(" KiB\n") == 6 + 1


def utc(when: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(when))


class TestAWholeEntry:
    def test_of_the_real_triton_has_all_that_one_asks(self, compiled, here):
        root, key = compiled
        stored, view = Path(entry_path(str(root), key)), root / "triton/1" / key
        said = here("ls", key, "--json", "--root", root).json
        metadata = json.loads((stored / "scaled.json").read_text())
        assert said["kernel"] == "scaled"
        assert (said["target"], said["arch"]) == ("cuda:90", "sm_90")
        assert said["triton_version"] == metadata["triton_version"]
        assert said["files"] == {path.name: path.stat().st_size for path in stored.iterdir()}
        assert said["copies"] == [
            {"path": str(stored), "kind": "store", "directory": None},
            {"path": str(view), "kind": "view", "directory": "1"},
        ]
        assert said["cubin"] == str(stored / "scaled.cubin")
        assert Path(said["cubin"]).read_bytes()[:4] == b"\x7fELF"
        assert said["warps"] == metadata["num_warps"]
        assert said["shared_bytes"] == metadata["shared"]
        assert 8 <= said["registers"] <= 255
        assert said["stack_bytes"] == 0
        assert said["options"].items() <= metadata.items()
        assert said["options"].keys() >= {"num_warps", "num_stages", "num_ctas", "enable_fp_fusion"}
        assert said["environment"] == {}

    def test_piped_is_a_line_for_each_field_with_the_numbers_of_the_json(self, compiled, here):
        root, key = compiled
        said = here("ls", key, "--json", "--root", root).json
        rows = here("ls", key, "--root", root).rows
        plain = ("key", "kind", "kernel", "target", "arch", "triton_version", "cubin")
        plain += (
            "logical_bytes",
            "physical_bytes",
            "held_bytes",
            "registers",
            "stack_bytes",
            "shared_bytes",
            "warps",
        )
        assert [row for row in rows if row[0] in plain] == [
            [name, str(said[name])] for name in said if name in plain
        ]
        assert [row[1] for row in rows if row[0] == "file"] == [
            f"{name} {size}" for name, size in said["files"].items()
        ]
        assert [row for row in rows if row[0] in ("store", "view")] == [
            [one["kind"], one["path"]] for one in said["copies"]
        ]
        options = dict(row[1].split("=", 1) for row in rows if row[0] == "option")
        assert options.keys() == said["options"].keys()
        assert (options["num_warps"], options["debug"], options["maxnreg"]) == ("4", "false", "-")
        assert [row[1] for row in rows if row[0] in ("created", "used")] == [
            utc(said["created"]),
            utc(said["used"]),
        ]

    def test_of_stock_triton_counts_no_use(self, compiled, here, tmp_path):
        """What we read leaves no access time, which is all that tells of the last use there."""
        root, key = compiled
        shutil.copytree(
            root / "triton/1" / key,
            tmp_path / "stock" / key,
            ignore=shutil.ignore_patterns("__entry__*"),
        )
        for path in (tmp_path / "stock").rglob("*"):
            os.utime(path, (1e9, 1e9))
        for words in (
            ["ls"],
            ["du"],
            ["verify"],
            ["prune", "--dry-run"],
            ["clean", "--dry-run"],
            ["ls"],
        ):
            assert here(*words, "--root", tmp_path / "stock").code in (0, 1)
        assert here("ls", "--root", tmp_path / "stock").rows[0][6] == "2001-09-09T01:46:40Z"

    def test_of_a_kernel_whose_metadata_is_gone_says_what_is_left(self, here, root, keys):
        (Path(entry_path(str(root), keys[0])) / f"{kernel_of(root, keys[0])}.json").unlink()
        said = here("ls", keys[0], "--json", "--root", root).json
        assert [
            said[name] for name in ("registers", "stack_bytes", "shared_bytes", "warps", "options")
        ] == [None] * 5


# ---- du


class TestDu:
    def test_the_buckets_add_up_to_what_an_independent_walk_finds(self, here, root):
        (root / "ab").mkdir()
        (root / "ab/notes.txt").write_text("mine")
        os.link(root / "ab/notes.txt", root / "ab/again")
        everything = here("du", "--json", "--root", root).json["all"]
        files, logical = bare_walk(str(root))
        inodes = {
            path.stat().st_ino: path.stat().st_size for path in root.rglob("*") if path.is_file()
        }
        assert everything == {
            "name": "all",
            "files": files,
            "logical_bytes": logical,
            "physical_bytes": sum(inodes.values()),
        }

    @pytest.mark.parametrize("by", ["device", "arch", "kernel"])
    def test_every_other_sum_is_that_of_the_entries(self, by, here, root):
        said = here("du", "--by", by, "--json", "--root", root).json
        walks = [bare_walk(str(root / path)) for path in ("gpucache/v1/store", "triton")]
        entries = [*root.glob("gpucache/v1/store/*/*/*"), *root.glob("triton/*/*/*")]
        assert said["all"] == {
            "name": "all",
            "files": sum(files for files, _ in walks),
            "logical_bytes": sum(size for _, size in walks),
            "physical_bytes": sum(
                {path.stat().st_ino: path.stat().st_size for path in entries}.values()
            ),
        }
        for column in ("files", "logical_bytes", "physical_bytes"):
            assert sum(row[column] for row in said["rows"]) == said["all"][column]

    def test_by_device_the_store_has_the_physical_bytes(self, here, root):
        rows = {row[0]: row[1:] for row in here("du", "--by", "device", "--root", root).rows}
        assert list(rows) == ["store", "0", "1", "all"]
        groups = sum(path.stat().st_size for path in root.glob("triton/0/*/__grp__*"))
        assert int(rows["0"][2]) == groups
        assert int(rows["0"][1]) == bare_walk(str(root / "triton/0"))[1]

    def test_piped_is_bytes_and_a_terminal_gets_rounded_ones_largest_first(self, here, root):
        *piped, everything = here("du", "--root", root).rows
        _, seen = on_a_terminal("du", "--root", root)
        head, *shown = table(seen)
        assert head == ["name", "files", "logical", "physical", "%"]
        piped.sort(key=lambda row: int(row[3]), reverse=True)
        assert shown[:-1] == [
            [name, files, units.size(int(logical)), units.size(int(physical)), share]
            for name, files, logical, physical, share in (*piped, everything)
        ]
        assert everything[-1] == "100.0"

    def test_says_what_the_store_may_have_and_what_is_free(self, here, root, monkeypatch):
        monkeypatch.setenv("GPUCACHE_MAX_SIZE", "1MiB")
        _, seen = on_a_terminal("du", "--root", root)
        said = here("du", "--json", "--root", root).json
        share = f"{100 * said['store_bytes'] / 2**20:.1f}"
        store = f"{units.size(said['store_bytes'])} of the 1.0 MiB that it may have ({share} %)"
        (note,) = [line for line in seen.splitlines() if line.startswith("note: ")]
        assert note.startswith(f"note: the store has {store}; of its file system ")
        assert said["limit_bytes"] == 2**20
        (store,) = [row for row in said["rows"] if row["name"] == "store"]
        assert said["store_bytes"] == store["physical_bytes"]
        disk = os.statvfs(root)
        assert said["file_system_bytes"] == disk.f_blocks * disk.f_frsize
        assert 0 < said["free_bytes"] <= said["file_system_bytes"]

    def test_without_a_limit_it_says_so(self, root):
        _, seen = on_a_terminal("du", "--root", root, env={"GPUCACHE_MAX_SIZE": "0"})
        assert " and no limit; " in seen


# ---- prune and clean


class TestRemoving:
    @pytest.mark.parametrize(
        "command", [*CHANGING, ["clean", "--force"], ["prune", "--keep-binaries"], ["prune"]]
    )
    def test_a_dry_run_changes_nothing(self, command, here, root):
        before = everything_below(root)
        assert here(*command, "--dry-run", "--root", root).code == 0
        assert here(*command, "--dry-run", "--json", "--root", root).code == 0
        assert everything_below(root) == before

    @pytest.mark.parametrize("command", CHANGING, ids=["prune", "clean"])
    def test_where_nobody_can_be_asked_it_refuses_before_it_looks(self, command, here, root):
        before = everything_below(root)
        for words in (command, [*command, "--json"]):
            done = here(*words, "--root", root)
            assert (done.code, bool(done.out)) == (2, "--json" in words)
            assert done.err.startswith(
                "error: nobody can be asked here\nhint: say --yes, or --dry-run to look only\n"
            )
        assert everything_below(root) == before

    @pytest.mark.parametrize("command", CHANGING, ids=["prune", "clean"])
    @pytest.mark.parametrize(
        ("answer", "code", "last", "left"),
        [
            (b"y\n", 0, "note: freed ", 0),
            (b"n\n", 1, "note: nothing was removed", 6),
            (b"\n", 1, "note: nothing was removed", 6),
            (b"\x03", 130, "", 6),
        ],
        ids=["yes", "no", "nothing", "interrupt"],
    )
    def test_asks_a_person(self, command, answer, code, last, left, root, here):
        ended, seen = on_a_terminal(*command, "--root", root, answer=answer)
        assert ended == code
        assert re.search(r"\nRemove 6 entries, \d+\.\d KiB\? \[y/N\]: ", seen)
        assert len(table(seen)[0]) == 5
        assert seen.splitlines()[-1].startswith(last)
        assert "Traceback" not in seen
        assert len(here("ls", "--root", root).rows) == left

    def test_with_json_on_a_terminal_it_asks_on_stderr(self, root):
        command = [sys.executable, "-m", "gpucache", "clean", "--json", "--root", root]
        main, secondary = pty.openpty()
        with subprocess.Popen(
            command, stdin=secondary, stdout=subprocess.PIPE, stderr=secondary
        ) as process:
            os.close(secondary)
            os.write(main, b"y\n")
            out, _ = process.communicate(timeout=60)
        os.close(main)
        assert json.loads(out)["removed"]["entries"] == 6

    @pytest.mark.parametrize(
        "command", [["prune", "--max-entries", "2"], ["clean"]], ids=["prune", "clean"]
    )
    def test_what_is_freed_is_what_du_shows_less(self, command, gpucache, root):
        """As processes."""

        def physical() -> int:
            return int(
                json.loads(gpucache("du", "--json", "--root", root).stdout)["all"]["physical_bytes"]
            )

        before = physical()
        planned = json.loads(gpucache(*command, "--dry-run", "--json", "--root", root).stdout)
        done = json.loads(gpucache(*command, "--yes", "--json", "--root", root).stdout)
        assert (
            done["removed"]["physical_bytes"]
            == before - physical()
            == planned["physical_bytes"]
            > 0
        )
        assert done["removed"]["logical_bytes"] == planned["logical_bytes"]

    def test_says_what_goes_piped_with_whole_keys_and_bytes(self, here, root, kernels):
        done = here("prune", "--max-entries", 4, "--yes", "--root", root)
        gone = kernels[:2]
        assert done.rows == [
            ["remove", one.key, one.kernel, str(one.size), utc(one.used)] for one in gone
        ]
        held = sum(one.size for one in gone)
        assert done.err.startswith(f"note: freed {units.size(held)} (")
        assert done.err.endswith(" with hard links)\n")
        assert {path.name for path in root.glob("triton/*/*")} == {one.key for one in kernels[2:]}

    def test_names_each_directory_outside_the_root(self, here, root, tmp_path, kernels):
        outside = tmp_path / "vllm"
        key = kernels[0].key
        shutil.copytree(
            root / f"gpucache/v1/store/{key[:2]}/{key}", outside / key, copy_function=os.link
        )
        (root / "gpucache/v1/tmp").mkdir(exist_ok=True)
        remember(str(root), str(outside))
        done = here("prune", "--max-entries", 5, "--dry-run", "--root", root)
        told, asked = done.err.splitlines()
        assert told == f"note: 1 view in {outside}, outside the root, would go with these"
        assert asked.startswith("note: 1 entry, 1 view outside the root, ")
        said = here("prune", "--max-entries", 5, "--yes", "--json", "--root", root).json
        assert said["foreign"] == [{"path": str(outside), "views": 1}]
        assert not (outside / key).exists()

    def test_says_what_of_torchinductors_stays_unless_it_is_asked_for(self, here, root, kernels):
        graph = root / f"aotautograd/a{'b' * 51}/{'c' * 51}"
        graph.parent.mkdir(parents=True)
        graph.write_bytes(bytes(2048))
        os.utime(graph, (1e9, 1e9))
        bounded = ("prune", "--max-age", "1000d", "--root", root)
        assert here(*bounded, "--yes") == Done(
            0,
            "",
            "note: TorchInductor's files (2.0 KiB) neither count nor go without --inductor\n"
            f"note: nothing to remove in {root}\n",
        )
        done = here(*bounded, "--inductor", "--yes")
        assert [row[:3] for row in done.rows] == [["remove", "inductor", str(graph)]]
        assert done.err == "note: freed 2.0 KiB (2.0 KiB with hard links)\n"
        assert not graph.exists()

    def test_says_that_there_is_nothing_to_do(self, here, root):
        assert here("prune", "--yes", "--root", root) == Done(
            0, "", f"note: nothing to remove in {root}\n"
        )

    def test_says_what_stays_because_it_is_in_use(self, here, root, keys):
        for key in keys:
            os.utime(entry_path(str(root), key) + f"/{MANIFEST}")
        said = "note: 6 more would go, but were used too recently or are in use\n"
        assert here("clean", "--yes", "--root", root) == Done(
            0, "", f"{said}note: nothing to remove in {root}\n"
        )
        assert here("clean", "--force", "--yes", "--root", root).code == 0
        assert here("ls", "--root", root).rows == []

    @pytest.mark.parametrize(
        ("words", "code", "said"),
        [
            (
                ["--max-size", "lots"],
                2,
                "error: --max-size: 'lots' is not a size like 20GiB",
            ),
            (
                ["--max-age", "x"],
                2,
                "error: --max-age: 'x' is not a time like 30d",
            ),
            (
                ["--max-entries", "-1"],
                2,
                "error: --max-entries: '-1' is not a whole number from 0 on",
            ),
            (
                ["--triton-version", "new"],
                2,
                "error: --triton-version='new' is not a version specifier like '<3.6'\nhint: ",
            ),
            (
                ["--inductor", "--arch", "sm_90"],
                2,
                "error: --inductor='on' is not to be combined with what is about entries: --kernel, ",
            ),
            (
                ["--grace", "1s"],
                2,
                "error: --grace='1s' is not at least 600s, which is twice GPUCACHE_STAMP_S",
            ),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_prune_refuses_what_makes_no_sense(self, words, code, said, here, root):
        before = everything_below(root)
        done = here("prune", *words, "--yes", "--root", root)
        assert (done.code, done.out) == (code, "")
        assert said in done.err
        assert everything_below(root) == before

    @pytest.mark.parametrize(
        ("words", "gone"),
        [
            (["--max-size", "0"], lambda one, now: True),
            (["--max-age", "20d"], lambda one, now: now - one.used > 20 * 86400),
            (["--max-entries", "6"], lambda one, now: False),
            (["--arch", "sm_90"], lambda one, now: one.arch == "sm_90"),
            (["--triton-version", "<3.6"], lambda one, now: False),
            (["--triton-version", ">=3.9"], lambda one, now: True),
            (["--max-age", "20d", "--grace", "4w"], lambda one, now: now - one.used > 28 * 86400),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_prune_takes_each_option(self, words, gone, here, root, kernels):
        now = time.time()
        assert here("prune", *words, "--yes", "--root", root).code == 0
        left = [row[0] for row in here("ls", "--root", root).rows]
        assert left == [one.key for one in reversed(kernels) if not gone(one, now)]

    def test_keep_binaries_makes_entries_smaller(self, here, root, keys):
        done = here("prune", "--keep-binaries", "--max-age", "1s", "--yes", "--root", root)
        assert [row[0] for row in done.rows] == ["slim"] * 6
        assert [row[4] for row in here("ls", "--root", root).rows] == ["3"] * 6
        assert {path.suffix for path in root.glob("triton/0/*/*")} == {".json", ".cubin"}

    def test_repair_mends_and_then_nothing_is_wrong(self, here, root, keys):
        group = next((root / "triton/0" / keys[0]).glob("__grp__*"))
        group.write_text(group.read_text().replace("triton/0", "elsewhere"))
        found = here("verify", "--root", root)
        assert found.code in (0, 1)
        assert [row[0:3] for row in found.rows if row[1].startswith("group")] != []
        assert (
            found.err
            == f"note: 6 entries checked in {root}, {len(found.rows)} finding{'s' * (len(found.rows) != 1)}\n"
        )
        assert here("verify", "--repair", "--root", root).code == 0
        assert here("verify", "--root", root) == Done(
            0, "", f"note: 6 entries checked in {root}, 0 findings\n"
        )


# ---- roots


REFUSED = [["prune", "--yes"], ["prune", "--dry-run"], ["clean", "--yes"], ["verify", "--repair"]]


class TestRoots:
    @pytest.mark.parametrize("command", REFUSED, ids=" ".join)
    @pytest.mark.parametrize("below", ["", "gpucache/v1", "triton"])
    def test_what_everybody_may_write_is_looked_at_but_never_changed(
        self, command, below, here, root
    ):
        (root / below).chmod(0o777)
        before = everything_below(root)
        done = here(*command, "--root", root)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(
            f"error: {root / below}: everybody may write it (mode 0777)".rstrip("/")
        )
        chmod = f"`chmod o-w {root / below}`".replace("/`", "`")
        assert f"\nhint: {chmod}, or set GPUCACHE_TRUST_WORLD_WRITABLE=1" in done.err
        assert everything_below(root) == before
        assert len(here("ls", "--root", root).rows) == 6
        assert here("du", "--root", root).code == here("verify", "--root", root).code == 0

    @pytest.mark.parametrize("command", REFUSED[2:], ids=" ".join)
    def test_another_users_is_looked_at_but_never_changed(self, command, as_root, here, root):
        os.chown(root, 54321, 54321)
        before = everything_below(root)
        done = here(*command, "--root", root)
        assert (done.code, done.out) == (1, "")
        assert done.err.startswith(f"error: {root}: belongs to uid 54321, not to uid 0")
        assert (
            "\nhint: set GPUCACHE_DIR to a directory of your own, or GPUCACHE_TRUST_UIDS=54321"
            in done.err
        )
        assert everything_below(root) == before
        assert len(here("ls", "--root", root).rows) == 6

    def test_one_of_stock_triton_has_keys_directly_below(self, here, root, keys, tmp_path):
        stock = tmp_path / "stock"
        shutil.copytree(root / "triton/0", stock, ignore=shutil.ignore_patterns(MANIFEST))
        for path in stock.rglob("*"):
            os.utime(path, (1e9, 1e9))
        rows = here("ls", "--root", stock, "--sort", "key").rows
        assert [row[0] for row in rows] == sorted(keys)
        assert {tuple(row[3:5]) + tuple(row[6:8]) for row in rows} == {
            ("3.9.0", "8", "2001-09-09T01:46:40Z", ".")
        }
        assert [row[0] for row in here("du", "--root", stock).rows] == ["triton", "all"]
        assert here("prune", "--max-entries", 4, "--yes", "--root", stock).code == 0
        assert len(list(stock.iterdir())) == 4
        assert here("clean", "--yes", "--root", stock).code == 0
        assert list(stock.iterdir()) == []

    @pytest.mark.parametrize(
        "name",
        [
            "a b",
            'it\'s "so"',
            "é",
            "tab\there",
            "line\nbreak",
            "[red]x[blue]",
            "[",
            "\x1b[31m",
            b"\xff",
        ],
    )
    def test_names_with_odd_characters_do_no_harm(self, name, here, root, tmp_path):
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + os.fsencode(name)))
        root.rename(odd)
        assert len(here("ls", "--root", odd).rows) == 6
        assert os.fsdecode(json.loads(here("ls", "--json", "--root", odd).out)["root"]) == str(odd)
        (odd / "left").touch()
        key = here("ls", "--root", odd).rows[0][0]
        assert ["store", _one_line(entry_path(str(odd), key))] in here(
            "ls", key, "--root", odd
        ).rows
        code, seen = on_a_terminal("clean", "--root", odd, answer=b"y\n", env={"COLUMNS": "400"})
        assert code == 0
        assert "/left is no cache, and stays\n" in seen
        assert "\x1b[31m" not in seen
        assert here("ls", "--root", odd).rows == []

    def test_paths_of_any_bytes_are_escaped_in_a_table_and_whole_in_json(
        self, here, root, tmp_path
    ):
        odd = os.fsencode(tmp_path) + b"/n\xc3\xbc-\xff"
        os.rename(root, odd)
        (stray := Path(os.fsdecode(odd)) / "triton/0" / "tmp.gpucache-\udcfe").mkdir()
        os.utime(stray, (1e9, 1e9))
        assert here("prune", "--dry-run", "--root", odd).rows[0][:3] == [
            "sweep",
            "aside",
            printable(str(stray)),
        ]
        assert os.fsencode(here("prune", "-n", "--json", "--root", odd).json["root"]) == odd


def _one_line(text: str) -> str:
    return printable(text)


# ---- the process


@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_reader_that_goes_away_after_the_first_line_is_no_defect(unbuffered, tmp_path):
    """As ``gpucache ls | head -n 1``, through a pipe that holds less than all."""
    for number in range(100):
        (tmp_path / f"{number:064x}").mkdir()
        (tmp_path / f"{number:064x}" / "cuda_utils.so").touch()
    mine, theirs = os.pipe()
    fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, 4096)
    command = [sys.executable, "-m", "gpucache", "ls", "--root", tmp_path]
    environ = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE, env=environ) as process:
        os.close(theirs)
        assert b"\tcuda_utils.so\t" in os.read(mine, 200)
        os.close(mine)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (1, b"")


@pytest.mark.parametrize("where", [">&-", "2>&-", "<&-", ">&- 2>&-", ">/dev/full", "2>/dev/full"])
@pytest.mark.parametrize("command", ["ls", "clean --yes", "--help", "--version"])
def test_whatever_became_of_the_standard_streams_there_is_no_traceback(command, where, root, keys):
    script = f"{sys.executable} -m gpucache {command} --root {root} {where}"
    # Buffered, what could not be written is still there when Python ends.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, env=environ
    )
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert done.returncode == (1 if where == ">/dev/full" else 0)
    assert (root / "triton/0").is_dir()


@pytest.mark.parametrize(
    ("words", "loaded"),
    [
        (["path", "0"], []),
        (["--help"], ["cli.caches", "cli.removals", "cli.diagnosis", "cli.cache_rows"]),
        (["ls"], ["cli.caches", "cli.cache_rows", "report", "kernels.cubin"]),
        (["config"], ["cli.diagnosis", "diagnosis.config"]),
    ],
    ids=lambda words: (
        " ".join(words) if words and words[0] in ("path", "--help", "ls", "config") else ""
    ),
)
def test_modules_are_imported_by_the_commands_that_need_them(words, loaded, python, root):
    """So that what ran before these commands were there starts as fast as it did."""
    later = [
        "cli.caches",
        "cli.removals",
        "cli.diagnosis",
        "cli.cache_rows",
        "report",
        "upkeep.prune",
        "upkeep.clean",
        "upkeep.slim",
        "upkeep.plan",
        "upkeep.execution",
        "upkeep.inductor_files",
    ]
    later += [
        "upkeep.verify",
        "upkeep.workers",
        "diagnosis.doctor",
        "diagnosis.difference",
        "diagnosis.why_missed",
        "diagnosis.config",
    ]
    later += ["kernels.cubin", "layout.inductor"]
    code = f"""if True:
        import sys
        from gpucache.cli.main import main
        code = main(sys.argv[1:])
        found = [name for name in {later!r} if "gpucache." + name in sys.modules]
        print(found, "rich" in sys.modules, file=sys.stderr)
        sys.exit(code)
    """
    done = python(
        code, *words, env={**os.environ, "GPUCACHE_DIR": str(root), "GPUCACHE_FAKE_DEVICES": "2"}
    )
    assert done.returncode in (0, 1)
    seen = done.stderr.splitlines()[-1]
    if words in (["ls"], ["config"]):  # whether the root is a cache
        loaded = [*loaded, "layout.inductor"]
    assert seen == f"{sorted(loaded, key=later.index)} False"


@pytest.mark.parametrize(
    "command", [("verify", "--repair"), ("prune", "--yes"), ("clean", "--yes")]
)
def test_a_device_directory_is_not_taken_for_a_root(here, root, command):
    """Its locks and its store are the root's."""
    done = here(*command, "--root", f"{root}/triton/0")
    assert done.code == 1
    assert f"is not a root, but the directory of device 0 in {root}" in done.err
