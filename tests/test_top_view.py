from __future__ import annotations

import pytest
from support.snippets import HERE, snippets
from support.terminals import WIDTHS

from gpucache.cli import top_view
from gpucache.cli.top_view import head_lines, screen_lines
from gpucache.values import replace
from gpucache.watch.compiling import Compile
from gpucache.watch.live import Activity, Live, StoreNow
from gpucache.watch.remote_now import RemoteNow

LONG = "triton_poi_fused__to_copy_add_mul_native_layer_norm_12"
NOW = 1_800_000_000.0


def activity(name: str, own: float = 0.0, *compiles: Compile) -> Activity:
    rates = {"own": own, "store": own / 8, "fallback": 0.0, "remote": 0.0, "compiled": 0.0}
    return Activity(directory=name, rates=rates, degraded=0.0, compiles=compiles)


def a_compile(kernel: str, began: float, pid: int, waiting: int | None = 0) -> Compile:
    return Compile("A" * 52, kernel, "0", pid, NOW - began, waiting)


def live(*devices: Activity, **changes: object) -> Live:
    going_on = tuple(one for device in devices for one in device.compiles)
    made = Live(
        root="/tmp/torchinductor_me",
        host="node7",
        at=NOW,
        window_s=10.0,
        devices=devices,
        all=activity("all", sum(one.rates["own"] for one in devices), *going_on),
        store=StoreNow(3 * 2**30, 20 * 2**30, 0.0, 0.0),
        remote=None,
    )
    return replace(made, **changes)


EIGHT = live(
    activity("0", 1204.0, a_compile("matmul", 3, 12345, 7)),
    activity("1", 0.0, a_compile(LONG, 75, 4012346, 0), a_compile("softmax", 2, 4012346, None)),
    *(activity(str(number), 12.5 * number) for number in range(2, 8)),
)


def seen(live: Live, columns: int, lines: int = 24, order: top_view.Order = "directory") -> str:
    return "\n".join(line.text for line in screen_lines(live, order, columns, lines))


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top_view.time, "localtime", lambda at: top_view.time.gmtime(at))


OF_PAGE = live(
    replace(activity("0", 120.0, a_compile("matmul", 3, 12345, 6)), degraded=0.0),
    activity("1", 118.4, a_compile(LONG, 12, 12346, 0)),
    activity("2", 119.2),
    root="/scratch/kernels",
)
"""What the screen on the page shows."""

AT_80 = """\
/tmp/torchinductor_me  on node7  rates of the last 10 s  08:00:00
compiling 3, waiting ? (some of other containers)
store 3.0 GiB, limit 20.0 GiB (15%)  evicted 0.0/s (0 B/s)  degraded 0.0/s

directory  own/s  store/s  compiled/s  since      pid  waiting  compiling
0           1204    150.5         0.0    3 s    12345        7  matmul
1            0.0      0.0         0.0   75 s  4012346        0
    triton_poi_fused__to_copy_add_mul_native_layer_norm_12
                                         2 s  4012346        ?  softmax
2           25.0      3.1         0.0
3           37.5      4.7         0.0
4           50.0      6.2         0.0
5           62.5      7.8         0.0
6           75.0      9.4         0.0
7           87.5     10.9         0.0
all         1542    192.7         0.0
sort: *d directory, o own, s store, c compiling, w waiting  q quit"""


def test_a_screen_of_80_columns_and_24_lines_has_eight_devices_whole() -> None:
    assert seen(EIGHT, 80) == AT_80


def test_the_screen_on_the_page_is_what_is_drawn() -> None:
    (block,) = [one for one in snippets(HERE / "docs/watching.md") if one.language == "text"]
    assert seen(OF_PAGE, 80) + "\n" == block.text


@pytest.mark.parametrize("columns", WIDTHS)
def test_no_line_is_wider_than_the_terminal_and_no_name_is_cut(columns: int) -> None:
    text = seen(EIGHT, columns)
    assert max(map(len, text.splitlines())) <= columns
    for whole in (LONG, "matmul", "softmax", "1204", "/tmp/torchinductor_me"):
        assert whole in text.split()


def test_a_wide_terminal_has_all_columns_and_each_kernel_beside_its_numbers() -> None:
    lines = seen(EIGHT, 200).splitlines()
    head = "directory own/s store/s fallback/s remote/s compiled/s since pid waiting compiling"
    assert lines[4].split() == head.split()
    assert lines[6].split()[-1] == LONG


def test_the_path_of_a_directory_elsewhere_stands_above_its_numbers() -> None:
    path = "/home/somebody/projects/attention/.cache/triton"
    lines = seen(live(activity("0"), activity(path, 3.0)), 80).splitlines()
    assert path in lines
    assert lines[lines.index(path) + 1].split()[:2] == ["3.0", "0.4"]


def test_what_has_no_room_is_counted_and_the_keys_stay() -> None:
    text = seen(EIGHT, 80, lines=12).splitlines()
    assert len(text) == 12
    assert text[-2] == "and 6 more lines: a higher terminal shows them"
    assert text[-1].startswith("sort:")


@pytest.mark.parametrize("columns", [1, 5, 20, 40])
@pytest.mark.parametrize("lines", [1, 2, 5])
def test_the_smallest_terminals_break_nothing(columns: int, lines: int) -> None:
    text = seen(EIGHT, columns, lines)
    assert len(text.splitlines()) <= lines
    assert max(map(len, text.splitlines())) <= max(columns, len("directory"))


@pytest.mark.parametrize(
    ("order", "first"),
    [("directory", "0"), ("own", "2"), ("store", "2"), ("compiling", "1"), ("waiting", "0")],
)
def test_the_directories_are_sorted_by_what_a_key_says(order: top_view.Order, first: str) -> None:
    some = live(
        activity("0", 1.0, a_compile("matmul", 3, 1, 7)),
        activity("1", 2.0, a_compile("a", 3, 1), a_compile("b", 3, 1)),
        activity("2", 3.0),
    )
    assert seen(some, 80, order=order).splitlines()[5].split()[0] == first


def test_before_the_second_look_there_are_no_rates() -> None:
    lines = seen(live(activity("0"), window_s=0.0), 80).splitlines()
    assert "first look" in lines[0]
    assert lines[5].split() == ["0", "-", "-", "-", "-"]


def test_a_root_without_directories_says_what_to_do() -> None:
    assert "no device directory here yet: `gpucache provision` makes them" in seen(live(), 80)


@pytest.mark.parametrize(
    ("store", "said"),
    [
        (StoreNow(None, 2**30, 0.0, 0.0), "store not counted yet, limit 1.0 GiB"),
        (StoreNow(5, 0, 0.0, 0.0), "store 5 B, no limit"),
        (StoreNow(5, None, 0.0, 0.0), "store 5 B, limit not known"),
        (StoreNow(2**30, 2**30, 1.5, 2048.0), "evicted 1.5/s (2.0 KiB/s)"),
    ],
)
def test_the_store_is_told_in_words(store: StoreNow, said: str) -> None:
    assert said in seen(live(store=store), 80)


def test_a_store_that_is_nearly_full_stands_out() -> None:
    styles = {}
    for taken in (17, 19):
        full = live(store=StoreNow(taken, 20, 0.0, 0.0))
        (line,) = [line for line in head_lines(full, 80) if line.text.startswith("store")]
        styles[taken] = line.style
    assert styles == {17: "", 19: "yellow"}


def remote(**changes: object) -> RemoteNow:
    made = RemoteNow("s3://kernels/team", "asked", "", 0.0, 1.5, 0.5, 0.0, 4096.0, 0)
    return replace(made, **changes)


def test_a_remote_is_told_with_what_it_gives() -> None:
    text = seen(live(remote=remote()), 80)
    assert "remote s3://kernels/team  asked  1.5 hits/s  0.5 misses/s  0.0 errors/s" in text


def test_a_remote_that_is_left_alone_says_why_and_until_when() -> None:
    paused = remote(state="paused", said="it did not answer in 2 s", again_in_s=23.4, to_push=5)
    text = seen(live(remote=paused), 200)
    assert "paused  again in 23 s  it did not answer in 2 s" in text
    assert "5 to push" in text


def test_a_hostile_name_commands_no_terminal() -> None:
    evil = a_compile("\x1b[2J\r\nevil", 1, 2)
    text = seen(live(activity("\x1b]0;x\x07", 0.0, evil), root="/tmp/\x1b[31m"), 80)
    assert text.replace("\n", "").isprintable()
    assert "evil" in text
