"""The commands `pack`, which makes a file of entries, and `keygen`, which makes the key that signs packs."""

from __future__ import annotations

import os
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

from gpucache.cli.common import (
    archs_in,
    check_cached,
    check_kernel,
    command_settings,
    counted,
    scanned,
    tell,
    vetted,
)
from gpucache.cli.options import (
    TIME,
    arch_option,
    is_arch,
    json_option,
    path_of,
    root_option,
)
from gpucache.cli.output_file import stdout_bytes, whole_file
from gpucache.cli.pack_layout import check_alone, layer_row, of_layout, tell_layer
from gpucache.cli.terminal import is_terminal, print_data, print_json, progress, say
from gpucache.cli.transfer_unpack import entry_row
from gpucache.environment import SIGN_KEY, TRUST_KEYS
from gpucache.units import size

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import BinaryIO

    from gpucache.archive.signature import SigningKey
    from gpucache.archive.statement import Statement
    from gpucache.report.cache_report import CacheReport
    from gpucache.report.entries import Entry
    from gpucache.report.selection import Selection
    from gpucache.store.inductor_units import Unit
    from gpucache.transfer.gather import Gathered, LeftOut

_STREAM = "-"
_ENDING = ".tar.zst"
_STREAM_NAME = "pack"
"""The name of a pack that goes to stdout, unless one is given."""


# ---- pack


@click.command()
@click.option(
    "--output",
    "-o",
    metavar="FILE",
    required=True,
    help="Write FILE (.tar.zst), whole or not at all; - is stdout.",
)
@click.option("--kernel", metavar="GLOB", help="Only kernels whose name matches.")
@arch_option
@click.option(
    "--triton-version", metavar="SPEC", help="Only entries of these versions of Triton: '>=3.6'."
)
@click.option(
    "--used-since", type=TIME, metavar="TIME", help="Only entries used within so long (2h, 7d)."
)
@click.option(
    "--inductor", is_flag=True, help="Also TorchInductor's code and graphs that the root has."
)
@click.option(
    "--format",
    "layout",
    type=click.Choice(["gpucache", "mcv"]),
    default="gpucache",
    show_default=True,
    help="mcv: a layer of an image for MCV and GKM (.tar.gz), and its Dockerfile on stdout.",
)
@click.option("--slim", is_flag=True, help="Without .ttir, .ttgir, .llir, .ptx, .source.")
@click.option("--name", metavar="NAME", help="The pack's name (default: FILE's, without .tar.zst).")
@click.option(
    "--number",
    type=click.IntRange(min=0),
    metavar="N",
    help="The pack's number, which is to rise (default: the time of the newest entry, in seconds).",
)
@root_option
@json_option
def pack(
    output: str,
    kernel: str | None,
    arch: str | None,
    triton_version: str | None,
    used_since: float | None,
    inductor: bool,
    layout: Literal["gpucache", "mcv"],
    slim: bool,
    name: str | None,
    number: int | None,
    root: str | None,
    as_json: bool,
) -> int:
    """Pack cached entries into one file, by which another machine compiles nothing.

    Kernels of the store and of stock Triton, libraries, and autotuners' results, each with the recipe by which it can
    be compiled again. The key that GPUCACHE_SIGN_KEY names signs the pack. What has no architecture or version, as a
    library, goes along with --arch and --triton-version. With --inductor a second machine's torch.compile hits too, if
    the pack is signed, or is unpacked by who has packed it.

    \b
    gpucache pack -o kernels.tar.zst
    gpucache pack -o h100.tar.zst --arch sm_90 --used-since 7d --slim
    gpucache pack -o - | ssh node gpucache unpack -
    gpucache pack --format mcv -o layer.tar.gz > Dockerfile
    """
    from gpucache.archive.signature import SigningKey
    from gpucache.disk.vetting import Trust
    from gpucache.report.selection import Selection
    from gpucache.transfer.gather import gathered

    _check_output(output, as_json)
    is_pack = layout == "gpucache"
    if not is_pack:
        check_alone(inductor=inductor, name=name, number=number is not None)
    pack_name = _name_of(output, name) if is_pack else ""
    signing = SigningKey.from_environ(command_settings()) if is_pack else None
    where = vetted(root)
    report = scanned(where)
    if arch is not None and not is_arch(arch):
        check_cached(report.root, "--arch", arch, archs_in(report))
    check_kernel(report, "--kernel", kernel)
    selection = Selection(kernel=kernel, used_since_s=used_since)
    entries = _chosen(report, selection, arch, triton_version)
    if not is_pack:
        entries = of_layout(entries)
    units = _units(where, used_since) if inductor else ()
    trust = Trust.parse(command_settings()).in_root(where)
    with (
        progress("looking") as looking,
        gathered(where, entries, trust, units=units, slim=slim, on_progress=looking) as found,
    ):
        _tell_left_out(found.left_out)
        if not found.collected:
            _tell_of_nothing(where, len(report.entries), len(entries))
            return 1
        if is_pack:
            statement = found.statement(pack_name, number)
            _write_pack(where, output, found, statement, signing, as_json)
        else:
            _write_layer(where, output, found, as_json)
    return 0


def _tell_of_nothing(root: str, there: int, chosen: int) -> None:
    """Say why nothing is packed: nothing is there, nothing was chosen, or all was left out."""
    if there == 0 or chosen:
        say(f"error: there is nothing to pack in {root}")
        return
    say(f"error: there is nothing to pack: none of {root}'s {there} entries is chosen")
    say("hint: `gpucache ls` shows kernel, architecture, Triton and last use of each")


def _write_pack(
    root: str,
    output: str,
    found: Gathered,
    statement: Statement,
    signing: SigningKey | None,
    as_json: bool,
) -> None:
    """Write what was gathered as a pack, and say so."""
    with _opened_output(output) as (out, written_bytes), progress("packing") as packing:
        found.write(out, statement, signing, packing)
    packed_bytes = written_bytes()
    signer = None if signing is None else signing.name
    if as_json:
        row = {"root": root, "file": output, **_pack_row(statement, signer)}
        print_json({**row, "file_bytes": packed_bytes, "left_out": _left_out_rows(found.left_out)})
        return
    many = counted(len(statement.entries), "entry", "entries")
    signed = f"signed by {signer}" if signer else "not signed"
    sizes = f"{size(statement.size_bytes)} as {size(packed_bytes)}"
    say(f"note: packed {many}, {sizes}: {statement.name}, number {statement.number}, {signed}")
    if signer is None:
        say(
            f"hint: who unpacks it has to say --unsigned; {SIGN_KEY.name} signs (`gpucache keygen`)"
        )


def _write_layer(root: str, output: str, found: Gathered, as_json: bool) -> None:
    """Write what was gathered as a layer of an image, and say so."""
    from gpucache.transfer.mcv import write_layer

    with _opened_output(output) as (out, written_bytes), progress("packing") as packing:
        layer = write_layer(out, found.collected, packing)
    packed_bytes = written_bytes()
    if not as_json:
        tell_layer(layer, output, packed_bytes, output == _STREAM)
        return
    row = {"root": root, "file": output, **layer_row(layer), "file_bytes": packed_bytes}
    print_json({**row, "left_out": _left_out_rows(found.left_out)})


def _check_output(output: str, as_json: bool) -> None:
    if output != _STREAM:
        path_of(click.get_current_context(), click.Option(["--output"]), output)
        return
    if as_json:
        raise click.UsageError("--json and the pack cannot both go to stdout: name a FILE")
    if is_terminal():
        raise click.UsageError("stdout is a terminal: name a FILE, or send the pack on (`| …`)")


def _name_of(output: str, name: str | None) -> str:
    """The name of the pack.

    Raises:
        PackNameError: it is none.
    """
    from gpucache.archive.statement import PackNameError, is_name

    chosen = name
    if chosen is None:
        chosen = os.path.basename(output).removesuffix(_ENDING)
        if output == _STREAM:
            chosen = _STREAM_NAME
    if not is_name(chosen):
        raise PackNameError(chosen, "say --name NAME, or name another FILE")
    return chosen


def _chosen(
    report: CacheReport, selection: Selection, arch: str | None, triton_version: str | None
) -> list[Entry]:
    """The entries that the filters choose. What has no architecture or version goes along.

    Raises:
        ConfigurationError: the version specifier is none.
    """
    from gpucache.report.versions import is_of, versions

    now = time.time()
    entries = [entry for entry in report.entries if selection.has(entry, now)]
    if arch is not None:
        entries = [one for one in entries if one.kind != "kernel" or one.arch == arch]
    if triton_version is not None:
        matches = versions(triton_version)
        entries = [one for one in entries if one.kind != "kernel" or is_of(one, matches)]
    return entries


def _units(root: str, used_since_s: float | None) -> Sequence[Unit]:
    """TorchInductor's, used within so many seconds."""
    from gpucache.archive.inductor import units_in

    since = None if used_since_s is None else time.time() - used_since_s
    return units_in(os.path.realpath(root), since)


@contextmanager
def _opened_output(output: str) -> Iterator[tuple[BinaryIO, Callable[[], int]]]:
    """The stream that the pack goes to, and a function that says how many bytes have gone."""
    opened = stdout_bytes() if output == _STREAM else whole_file(output)
    with opened as out:
        counting = _Counting(out)
        yield counting, lambda: counting.size_bytes  # type: ignore[misc]  # all that is called


class _Counting:
    """A stream that counts what is written to it."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.size_bytes = 0

    def write(self, data: bytes) -> int:
        self.size_bytes += len(data)
        return self._out.write(data)

    def flush(self) -> None:
        self._out.flush()


_OF_NO_USE_ELSEWHERE = {
    "kind": "no kernel, library or autotuner's result",
    "unknown device": "measured on a device of unknown kind",
    "unknown library": "a library that does not tell its processor or Python",
}
"""Why an entry is left out of which nothing is wrong, in words."""


def _tell_left_out(left_out: Sequence[LeftOut]) -> None:
    """Warn of what is damaged or unsafe, and note how much is of no use on another machine."""
    warnings = []
    others: dict[str, int] = {}
    for one in left_out:
        reason = _OF_NO_USE_ELSEWHERE.get(one.why)
        if reason is None:
            warnings.append(f"warning: left out {one.kernel}: {one.fact}")
        else:
            others[reason] = others.get(reason, 0) + 1
    tell(warnings)
    for reason, count in others.items():
        say(f"note: left out {counted(count, 'entry', 'entries')}, each {reason}")


def _left_out_rows(left_out: Sequence[LeftOut]) -> list[dict[str, str]]:
    rows = []
    for one in left_out:
        said = {"key": one.key, "kernel": one.kernel}
        rows.append({**said, "why": one.why, "fact": one.fact})
    return rows


def _pack_row(statement: Statement, signer: str | None) -> dict[str, Any]:
    return {
        "name": statement.name,
        "number": statement.number,
        "signer": signer,
        "bytes": statement.size_bytes,
        "entries": list(map(entry_row, statement.entries)),
    }


# ---- keygen


@click.command()
@click.argument("name", metavar="NAME")
def keygen(name: str) -> None:
    """Make a key that signs packs: write the secret NAME.key here, and print the public one.

    Who packs names the file by GPUCACHE_SIGN_KEY, and keeps it; who unpacks has the printed text in
    GPUCACHE_TRUST_KEYS.

    \b
    gpucache keygen ci-2026
    """
    from gpucache.archive.signature import make_key

    path = f"{name}.key"
    made = make_key(name, path)
    print_data(made.public_text)
    say(f"note: {path} has the secret key, for {SIGN_KEY.name} where packs are made")
    say(f"note: whoever is to believe it has the printed line in {TRUST_KEYS.name}")
