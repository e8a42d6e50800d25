"""The commands that tell why: `doctor`, `explain`, `config`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import click

from gpucache.cli.common import (
    command_settings,
    counted,
    existing,
    finding_rows,
    naming,
    one_entry,
    remember_findings,
    vetted,
)
from gpucache.cli.failures import complain, failure_row
from gpucache.cli.findings import all_option, print_findings, say_filled
from gpucache.cli.options import codes_option, json_option, root_option
from gpucache.cli.tables import MATTERS, Column, print_codes, print_table
from gpucache.cli.terminal import (
    is_terminal,
    log_to_stderr,
    print_data,
    print_json,
    say,
)
from gpucache.configuration import in_force
from gpucache.errors import GpuCacheError
from gpucache.layout.paths import resolve_root

if TYPE_CHECKING:
    from gpucache.report.entries import Entry


@click.command()
@all_option
@codes_option
@root_option
@click.option(
    "--probe", is_flag=True, help="Try again what the root's mount can do, and keep the answer."
)
@json_option
def doctor(all_: bool, codes: bool, root: str | None, probe: bool, as_json: bool) -> int:
    """Tell what will hurt before it hurts: GPUs, disk, owners, environment, versions, locks, clocks.

    Exit code 1 when there is an error, 0 with warnings only.

    \b
    gpucache doctor
    gpucache doctor --root /scratch/kernels --json
    """
    from gpucache.diagnosis.doctor import CODES, examine

    if codes:
        return print_codes(CODES, as_json)
    log_to_stderr("CRITICAL")  # the findings tell what the log would
    settings = in_force(root=root).environ  # what is wrong in files is a finding
    where = resolve_root(root, settings)
    found, well = examine(where, settings, probe, naming(root))
    remember_findings(where, "doctor", found)
    if as_json:
        print_json({"root": where, "well": list(well), "findings": finding_rows(found)})
    else:
        print_findings(found, codes=CODES, each=all_)
        number = "no findings"
        if found:
            number = counted(len(found), "finding", "findings")
        say(f"note: {where}: {number}")
        if well:
            say_filled(f"well: {', '.join(well)}")
    has_errors = any(finding.level == "error" for finding in found)
    return 1 if has_errors else 0


@click.command()
@click.argument("key", metavar="KEY", required=False)  # not with --codes
@click.argument("other", metavar="[KEY]", required=False)
@all_option
@codes_option
@root_option
@json_option
def explain(
    key: str | None,
    other: str | None,
    all_: bool,
    codes: bool,
    root: str | None,
    as_json: bool,
) -> int:
    """Tell why two entries of one kernel differ, or why one entry is no hit for this environment.

    KEY is a key, or what only one key begins with, as `gpucache ls` shows it. A hit is asked for with this shell's
    environment: under `gpucache run` it is that of its command. No finding means that a process which compiles all the
    same asks for another key: `gpucache why` tells how that differs. `gpucache compare` shows two entries side by side.

    \b
    gpucache explain JRCHT7QYPGJA 3OBGYLUHQ4TL
    gpucache run -- gpucache explain JRCHT7QYPGJA
    """
    from gpucache.diagnosis.where_looked import is_outside_of_run
    from gpucache.diagnosis.why_missed import CODES, why_missed

    if codes:
        return print_codes(CODES, as_json)
    if key is None:
        raise click.MissingParameter(param_hint="'KEY'", param_type="argument")
    where = existing(root)
    entry = one_entry(where, key)
    if other is not None:
        _print_differences(entry, one_entry(where, other), as_json)
        return 0
    root = os.path.realpath(where)
    environ = command_settings()
    found = why_missed(entry.key, root, environ)
    if as_json:
        print_json({"key": entry.key, "findings": finding_rows(found)})
        return 0
    print_findings(found, codes=CODES, each=all_)
    if not found:
        say(f"note: {entry.kernel} {entry.key} is a hit here")
    elif is_outside_of_run(environ):
        say(
            "note: this shell's environment has no cache directory, and was asked; `gpucache run -- gpucache explain "
            f"{entry.key[:12]}` asks that of a program, `gpucache why {entry.key[:12]}` tells why this one was compiled"
        )
    return 0


def _print_differences(a: Entry, b: Entry, as_json: bool) -> None:
    """Print in what the first copies of two entries differ."""
    from gpucache.diagnosis.difference import difference

    path_of_a = a.copies[0].path
    path_of_b = b.copies[0].path
    found = difference(path_of_a, path_of_b)
    if as_json:
        rows = [each._asdict() for each in found]
        print_json({"a": a.key, "b": b.key, "differences": rows})
        return
    lines = []
    for each in found:
        values = (_or_dash(each.a), _or_dash(each.b))
        lines.append((each.kind, each.name, *values))
    of_each = [Column(one.key[:12], whole=False) for one in (a, b)]
    print_table((Column("what"), Column("name"), *of_each), lines)
    if not found:
        say("note: their files tell of no difference")


@click.command()
@click.option("--init", is_flag=True, help="Write a file of settings, in which all is a comment.")
@click.option("--user", is_flag=True, help="With --init: your own file, as without --root.")
@root_option
@json_option
def config(init: bool, user: bool, root: str | None, as_json: bool) -> int:
    """Show every setting in force, its value, and who set it or where it stands. Exit code 1 when the root is none.

    With --init, write a file of settings to begin with: your own, or with --root that of a root.

    \b
    gpucache config
    gpucache config --json
    gpucache config --init
    gpucache config --init --root /scratch/kernels
    """
    from gpucache.diagnosis.config import settings, unknown_variables

    if user and not init:
        raise click.UsageError("--user is for --init")
    if init:
        return _write_settings(user, root, as_json)
    command_settings()  # says what is wrong in files
    found = settings(os.environ, root)
    if as_json:
        rows = [setting.as_json() for setting in found]
        return _print_settings({"files": list(in_force(root=root).files), "settings": rows}, root)
    lines = []
    for setting in found:
        if setting.value is None and is_terminal():
            continue  # people see the settings with a value only
        value = _or_dash(setting.value)
        lines.append((setting.name, value, setting.set_by))
    columns = (Column("name"), Column("value"), Column("set by", weight=MATTERS))
    print_table(columns, lines)
    for setting in found:
        if setting.problem is not None:
            say(f"warning: {setting.name}: {setting.problem}")
        if setting.for_all is not None:
            own = f"{setting.name}: the root's own settings say {setting.for_all}"
            say(f"note: {own}, which bounds it for all processes")
    for name, near in unknown_variables(os.environ).items():
        meant = "" if near is None else f"; {near} may be meant"
        say(f"warning: {name} is no variable of gpucache's{meant}")
    existing(root)  # raises for a root that is none
    return 0


def _print_settings(fields: dict[str, Any], root: str | None) -> int:
    """Print the settings in one object, with the error of a root that is none; returns the exit code."""
    try:
        existing(root)
    except GpuCacheError as error:
        failure = failure_row(error.error_kind, error.problem, error.hint)
        print_json({**fields, "error": failure})
        complain(error)
        return 1
    print_json(fields)
    return 0


def _write_settings(user: bool, root: str | None, as_json: bool) -> int:
    """Write the file that `config --init` asks for, and say where."""
    from gpucache.configuration.beginning import write_for_root, write_for_user

    if user and root is not None:
        raise click.UsageError(
            "--user is your own file, and --root that of a root: say one of them"
        )
    path = write_for_user(os.environ) if root is None else write_for_root(vetted(root))
    if as_json:
        print_json({"file": path})
    else:
        print_data(path)
        say("note: each line in it is a comment: take the # from those that are to hold")
    return 0


def _or_dash(value: str | None) -> str:
    return "-" if value is None else value
