"""The command `gpucache report`, which writes a page of HTML about a cache, to hand to a colleague."""

from __future__ import annotations

import click

from gpucache.cli.cache_rows import described
from gpucache.cli.common import command_settings, existing, naming, scanned
from gpucache.cli.options import json_option, root_option
from gpucache.cli.output_file import whole_file
from gpucache.cli.terminal import log_to_stderr, print_json, say
from gpucache.units import size


@click.command()
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default="cache.html",
    show_default=True,
    help="The page; what is there already is replaced.",
)
@click.option(
    "--redact", is_flag=True, help="Leave out paths, hosts and the values of kernels' constants."
)
@root_option
@json_option
def report(output: str, redact: bool, root: str | None, as_json: bool) -> None:
    """Write a page about the cache to hand to a colleague: sums, a chart, what `doctor` finds, and a table of entries.

    The page is one file, and asks no server for anything; its table can be searched and sorted. Needs the extra
    `watch`.

    \b
    gpucache report -o cache.html
    gpucache report --redact -o for-an-issue.html
    """
    from gpucache.diagnosis.doctor import examine
    from gpucache.layout.paths import host_name
    from gpucache.watch.page.html import check_installed, to_html
    from gpucache.watch.page.values import page_of

    check_installed()
    log_to_stderr("CRITICAL")  # the findings tell what the log would
    where = existing(root)
    cache = scanned(where)
    examined = examine(where, command_settings(), named=naming(root))
    findings = [*cache.findings, *examined.findings]
    page = page_of(cache, findings, described, host=host_name(), redact=redact)
    data = to_html(page).encode()
    with whole_file(output) as file:
        file.write(data)
    if as_json:
        counts = {"entries": len(cache.entries), "listed": len(page.entries.rows)}
        print_json({"root": cache.root, "file": output, "bytes": len(data), **counts})
        return
    say(f"note: {output}: {len(cache.entries)} entries, {size(len(data))}")
