"""`ls` as the author of a kernel and an operator read it, at every width."""

from __future__ import annotations

import json
import os
import pwd
from pathlib import Path

import pytest
from support.recipes import key_of, recipe
from support.terminals import WIDTHS, assert_fits, assert_whole, at_width, put_terminal, table_of
from tree import KERNELS

from gpucache.cli.entry_rows import print_entries, ranges
from gpucache.cli.tables import Choice
from gpucache.disk.files import write_new
from gpucache.kernels.recipe import encode, to_text
from gpucache.layout.paths import RECIPE
from gpucache.report.entries import Copy, Entry, File
from gpucache.store.manifest import MANIFEST, Facts, Manifest, Published, entry_path, write_manifest

NOW = 1_700_000_000.0
LONG = "triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1"
FROZEN = f"import time; time.time = lambda: {NOW}"
SIGNATURE = {"a": "*fp16", "c": "*fp32", "n": "i32"}
NAMES = ("BLOCK_M", "BLOCK_N", "BLOCK_K", "ACTIVATION")
AUTHORS = [
    ("matmul", (64, 64, 32, "relu"), 4, 3, 16384, 60.0),
    ("matmul", (128, 64, 32, "relu"), 4, 4, 32768, 3600.0),
    ("matmul", (128, 128, 64, "relu"), 8, 3, 98816, 86400.0),
    (LONG, (1024, 1, 1, None), 8, 1, 0, 2 * 86400.0),
]


def entry(root: Path, key: str, kernel: str, values: tuple, **said: object) -> None:
    """Put an entry with a recipe into the store, used as long ago as ``age_s`` says."""
    home = Path(entry_path(str(root), key))
    home.mkdir(parents=True)
    signature = {**SIGNATURE, **dict.fromkeys(NAMES, "constexpr")}
    constants = tuple(((len(SIGNATURE) + n,), encode(value)) for n, value in enumerate(values))
    made = recipe(key=key, kernel=kernel, signature=signature, constants=constants, options={})
    (home / RECIPE).write_bytes(to_text(made))
    target = {"backend": "cuda", "arch": 90, "warp_size": 32}
    options = {"num_warps": said["warps"], "num_stages": said["stages"]}
    metadata = {"target": target, **options, "triton_version": "3.9.0", "shared": said["shared"]}
    data = json.dumps({**metadata, "name": kernel}).encode()
    write_new(f"{home}/{kernel}.json", data)
    made_at = NOW - 30 * 86400
    for name in (f"{kernel}.json", RECIPE):
        os.utime(home / name, (made_at, made_at))
    facts = Facts(kernel, f"{kernel}.json", "cuda:90", "3.9.0", 1.0)
    files = {f"{kernel}.json": Published(len(data), int(made_at * 1e9), "0" * 64)}
    write_manifest(str(home), Manifest(facts, files, "host", key, None, "0" * 64))
    used = NOW - said["age_s"]
    os.utime(home / MANIFEST, (used, used))


def views(root: Path, key: str, kernel: str, devices: range) -> None:
    for number in devices:
        home = root / "triton" / str(number) / key
        home.mkdir(parents=True)
        store = Path(entry_path(str(root), key))
        for name in (MANIFEST, f"{kernel}.json"):
            os.link(store / name, home / name)


@pytest.fixture(scope="module")
def authors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three configurations of one kernel, and one of Inductor's, on eight devices."""
    root = tmp_path_factory.mktemp("authors") / "root"
    (root / "gpucache/v1").mkdir(parents=True)
    for number, (kernel, values, warps, stages, shared, age_s) in enumerate(AUTHORS):
        key = key_of(number)
        said = {"warps": warps, "stages": stages, "shared": shared, "age_s": age_s}
        entry(root, key, kernel, values, **said)
        views(root, key, kernel, range(8))
    return root


def seen(root: Path, columns: int, *words: object) -> str:
    return at_width(["ls", "--root", root, *words], columns, before=FROZEN)


AT_60 = """\
key           kernel        constants         warps     size
L7WOWZX7ZBXT  matmul        BLOCK_M=64 +3         4  1.2 KiB
NODLE477GT6O  matmul        BLOCK_M=128 +3        4  1.2 KiB
2RZV4ORGLYLO  matmul        BLOCK_M=128 +3        8  1.2 KiB
JYDUBBLCX3NY  triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1
                            BLOCK_M=1024 +3       8  1.4 KiB
4 entries     2 kernels                              5.0 KiB
note: 60 columns wide: without stages, smem, used, directories, arch, dtypes, triton, files, created; \
+N for N more; --wide shows all, --columns a,b some
"""
AT_80 = """\
key           kernel      constants                               warps     size
L7WOWZX7ZBXT  matmul      BLOCK_M=64 BLOCK_N=64 BLOCK_K=32 +1         4  1.2 KiB
NODLE477GT6O  matmul      BLOCK_M=128 BLOCK_N=64 BLOCK_K=32 +1        4  1.2 KiB
2RZV4ORGLYLO  matmul      BLOCK_M=128 BLOCK_N=128 BLOCK_K=64 +1       8  1.2 KiB
JYDUBBLCX3NY  triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1
                          BLOCK_M=1024 BLOCK_N=1 BLOCK_K=1 +1         8  1.4 KiB
4 entries     2 kernels                                                  5.0 KiB
note: 80 columns wide: without stages, smem, used, directories, arch, dtypes, triton, files, created; \
+N for N more; --wide shows all, --columns a,b some
"""
AT_100 = """\
key           kernel       constants                               warps  stages     size       used
L7WOWZX7ZBXT  matmul       BLOCK_M=64 BLOCK_N=64 BLOCK_K=32 +1         4       3  1.2 KiB  1 min ago
NODLE477GT6O  matmul       BLOCK_M=128 BLOCK_N=64 BLOCK_K=32 +1        4       4  1.2 KiB    1 h ago
2RZV4ORGLYLO  matmul       BLOCK_M=128 BLOCK_N=128 BLOCK_K=64 +1       8       3  1.2 KiB    1 d ago
JYDUBBLCX3NY  triton_red_fused__to_copy_add_mean_mul_pow_rsqrt_1
                           BLOCK_M=1024 BLOCK_N=1 BLOCK_K=1 +1         8       1  1.4 KiB    2 d ago
4 entries     2 kernels                                                           5.0 KiB
note: 100 columns wide: without smem, directories, arch, dtypes, triton, files, created; \
+N for N more; --wide shows all, --columns a,b some
"""
AT_200 = """\
key           kernel    constants                                           warps  stages      \
smem     size       used  directories  arch   dtypes           triton  files   created
L7WOWZX7ZBXT  matmul    BLOCK_M=64 BLOCK_N=64 BLOCK_K=32 ACTIVATION=relu        4       3    16\
 KiB  1.2 KiB  1 min ago  0-7          sm_90  *fp16 *fp32 i32  3.9.0       3  30 d ago
NODLE477GT6O  matmul    BLOCK_M=128 BLOCK_N=64 BLOCK_K=32 ACTIVATION=relu       4       4    32\
 KiB  1.2 KiB    1 h ago  0-7          sm_90  *fp16 *fp32 i32  3.9.0       3  30 d ago
2RZV4ORGLYLO  matmul    BLOCK_M=128 BLOCK_N=128 BLOCK_K=64 ACTIVATION=relu      8       3  96.5\
 KiB  1.2 KiB    1 d ago  0-7          sm_90  *fp16 *fp32 i32  3.9.0       3  30 d ago
3 entries     1 kernel                                                                               3.6 KiB
"""


class TestWidths:
    """Whole outputs, with eight devices: what a column takes from others is seen here."""

    @pytest.mark.parametrize(("columns", "whole"), [(60, AT_60), (80, AT_80), (100, AT_100)])
    def test_narrow(self, columns, whole, authors):
        assert seen(authors, columns) == whole

    def test_what_all_fits_has_no_note(self, authors):
        assert seen(authors, 200, "--kernel", "matmul") == AT_200

    def test_wide_shows_all_on_any_terminal(self, authors):
        assert seen(authors, 60, "--kernel", "matmul", "--wide") == AT_200

    def test_chosen_columns_stand_in_their_order(self, authors):
        names = "smem,key,constants"
        assert seen(authors, 60, "--kernel", "matmul", "--limit", 1, "--columns", names) == (
            "  smem  key           constants\n"
            "16 KiB  L7WOWZX7ZBXT  BLOCK_M=64 BLOCK_N=64 BLOCK_K=32 ACTIVATION=relu\n"
            "        1 of 3\n"
        )


@pytest.mark.parametrize("columns", WIDTHS)
def test_of_2000_entries_no_name_and_no_number_is_cut(columns, monkeypatch, tmp_path):
    """On eight devices, with the names of Inductor's kernels; none of their files is there to be read."""
    entries = []
    for number in range(2000):
        entries.append(listed(number, KERNELS[number % len(KERNELS)], tmp_path))
    stdout = put_terminal(monkeypatch, "stdout", columns=columns)
    print_entries(str(tmp_path), entries, len(entries), Choice(), NOW)
    shown = stdout.seen
    if columns >= 80:
        assert_fits(shown, columns)
    assert_whole(shown, KERNELS)
    assert_whole(shown, [entry.key[:12] for entry in entries])
    assert table_of(shown)[-1].startswith(f"2000 entries  {len(set(KERNELS))} kernels")


def listed(number: int, kernel: str, base: Path) -> Entry:
    """An entry as a scan has it, on eight devices."""
    key = key_of(number)
    copies = [Copy(str(base / "store" / key), "store", None, 70_000, 70_000, (1, 1))]
    for name in map(str, range(8)):
        copies.append(Copy(str(base / name / key), "view", name, 70_000, 0, (1, 1)))
    return Entry(
        key=key,
        kind="kernel",
        kernel=kernel,
        target="cuda:90",
        triton_version="3.9.0",
        files=(File(f"{kernel}.cubin", 70_000),),
        copies=tuple(copies),
        logical_bytes=9 * 70_000,
        physical_bytes=70_000,
        held_bytes=0,
        created=NOW - 60 * 86400.0,
        used=NOW - 3600.0 * number,
    )


class TestOptions:
    def test_ascending_turns_an_order(self, authors, here):
        forward = [row[0] for row in here("ls", "--sort", "used", "--root", authors).rows]
        turned = here("ls", "--sort", "used", "--asc", "--root", authors).rows
        assert [row[0] for row in turned] == forward[::-1]
        same = here("ls", "--sort", "used", "--desc", "--root", authors).rows
        assert [row[0] for row in same] == forward

    def test_kind_chooses(self, here, tmp_path):
        root = tmp_path / "root"
        for key, name in ((key_of(1), "a.autotune.json"), (key_of(2), "cuda_utils.so")):
            (root / "triton/0" / key).mkdir(parents=True)
            (root / "triton/0" / key / name).write_bytes(b"{}")
        names = "--columns", "key,kind"
        rows = here("ls", "--kind", "autotune", *names, "--root", root).rows
        assert rows == [[key_of(1), "autotune"]]
        rows = here("ls", "--kind", "library", *names, "--root", root).rows
        assert rows == [[key_of(2), "library"]]

    def test_unused_is_what_nobody_used_after_the_first_minutes(self, here, tmp_path):
        root = tmp_path / "root"
        for number, age_s in enumerate((30 * 86400, 30 * 86400 - 290, 30 * 86400 - 310, 60)):
            said = {"warps": 4, "stages": 3, "shared": 0, "age_s": age_s}
            entry(root, key_of(number), "matmul", (1, 1, 1, None), **said)
        rows = here("ls", "--unused", "--sort", "used", "--columns", "key", "--root", root).rows
        assert rows == [[key_of(1)], [key_of(0)]]

    @pytest.mark.parametrize("columns", ["nothing", "key,Kernel", "unit", "", ","])
    def test_a_column_that_is_none_is_refused_with_those_that_are(self, columns, here, authors):
        done = here("ls", "--columns", columns, "--root", authors)
        assert (done.code, done.out) == (2, "")
        assert "key, kernel, constants" in done.err

    def test_only_what_is_shown_is_read(self, authors, here, monkeypatch):
        asked = []

        def described(entry: Entry) -> None:
            asked.append(entry.key)

        monkeypatch.setattr("gpucache.cli.entry_rows.described", described)
        here("ls", "--columns", "key,size", "--root", authors)
        assert asked == []
        here("ls", "--limit", 1, "--root", authors)
        assert len(asked) == 1


def test_of_an_autotuners_result_the_fastest_configuration_is_shown(here, tmp_path):
    root = tmp_path / "root"
    home = root / "triton/0" / key_of(1)
    home.mkdir(parents=True)
    timings = [
        [{"kwargs": {"BLOCK": 64}, "num_warps": 4, "num_stages": 2}, [0.5, 0.4, 0.6]],
        [{"kwargs": {"BLOCK": 128}, "num_warps": 8, "num_stages": 3}, [0.25, 0.2, 0.3]],
    ]
    (home / "matmul.autotune.json").write_text(json.dumps({"key": [], "configs_timings": timings}))
    names = "--columns", "kernel,kind,constants,warps,stages,options"
    rows = here("ls", *names, "--root", root).rows
    assert rows == [["matmul", "autotune", "BLOCK=128", "8", "3", "fastest=0.25ms tried=2"]]
    timings = [[{"kwargs": {"BLOCK": 64}, "num_warps": 4}, [float("inf")] * 3]]
    (home / "matmul.autotune.json").write_text(json.dumps({"key": [], "configs_timings": timings}))
    rows = here("ls", *names, "--root", root).rows
    assert rows == [["matmul", "autotune", "BLOCK=64", "4", "-", "fastest=none tried=1"]]
    (home / "matmul.autotune.json").write_text("{}")
    rows = here("ls", *names, "--root", root).rows
    assert rows == [["matmul", "autotune", "-", "-", "-", "-"]]


def test_piped_lists_are_whole_and_new_columns_last(authors, here):
    row = here("ls", "--kernel", "matmul", "--limit", 1, "--root", authors).rows[0]
    assert row[:3] == [key_of(0), "matmul", "sm_90"]
    assert row[7:17] == [
        *("0 1 2 3 4 5 6 7", "kernel", "BLOCK_M=64 BLOCK_N=64 BLOCK_K=32 ACTIVATION=relu"),
        *("*fp16 *fp32 i32", "-", "4", "3", "-", "-", "16384"),
    ]


def test_json_has_what_the_table_has(authors, here):
    row = here("ls", "--kernel", "matmul", "--limit", 1, "--json", "--root", authors).json
    (one,) = row["entries"]
    assert one["constants"] == dict(zip(NAMES, ("64", "64", "32", "relu"), strict=True))
    assert one["dtypes"] == SIGNATURE
    assert (one["warps"], one["stages"], one["shared_bytes"]) == (4, 3, 16384)
    assert (one["registers"], one["spills"], one["set_options"]) == (None, None, {})
    assert one["uid"] == os.getuid()


class TestOwners:
    def test_are_shown_in_a_root_of_a_group_and_in_no_other(self, here, tmp_path):
        root = tmp_path / "root"
        said = {"warps": 4, "stages": 3, "shared": 0, "age_s": 0.0}
        entry(root, key_of(1), "matmul", (1, 1, 1, None), **said)
        names = "--columns", "owner"
        assert here("ls", *names, "--root", root).rows == [[""]]
        os.chmod(root / "gpucache/v1", 0o2770)
        owner = pwd.getpwuid(os.getuid()).pw_name
        assert here("ls", *names, "--root", root).rows == [[owner]]


class TestConstants:
    def test_what_tells_entries_apart_comes_first(self, here, tmp_path):
        root = tmp_path / "root"
        said = {"warps": 4, "stages": 3, "shared": 0, "age_s": 0.0}
        entry(root, key_of(1), "matmul", (64, 64, 32, "relu"), **said)
        entry(root, key_of(2), "matmul", (64, 64, 64, "relu"), **said)
        rows = here("ls", "--columns", "constants", "--root", root).rows
        assert {row[0].split()[0] for row in rows} == {"BLOCK_K=32", "BLOCK_K=64"}

    def test_a_long_value_is_left_to_json(self, here, tmp_path):
        root = tmp_path / "root"
        said = {"warps": 4, "stages": 3, "shared": 0, "age_s": 0.0}
        entry(root, key_of(1), "matmul", (64, tuple(range(100)), 32, "two words"), **said)
        rows = here("ls", "--columns", "constants", "--root", root).rows
        assert rows == [["BLOCK_M=64 BLOCK_N=... BLOCK_K=32 ACTIVATION='two_words'"]]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (map(str, range(8)), "0-7"),
        (["0", "1", "2", "5", "1.2"], "0-2 5 1.2"),
        (["10", "9", "8"], "8-10"),
        (["0", "2"], "0 2"),
        (["0", "00", "٣"], "0 00 ٣"),
        ([], ""),
    ],
)
def test_directories_in_a_row_are_a_range(names, text):
    assert ranges(names) == text
