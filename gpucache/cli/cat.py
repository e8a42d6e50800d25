"""The command `gpucache cat`, which prints a file of an entry, or the instructions of its cubin."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING

import click

from gpucache.cli.common import command_settings, existing, one_entry
from gpucache.cli.options import root_option
from gpucache.cli.terminal import is_terminal, print_bytes
from gpucache.errors import GpuCacheError

if TYPE_CHECKING:
    from gpucache.report.entries import Entry


@click.command()
@click.argument("key")
@click.argument("form", metavar="[FORM]", required=False)
@root_option
def cat(key: str, form: str | None, root: str | None) -> None:
    """Print a file of an entry: ttir, ttgir, llir, ptx, cubin, json, source, recipe; or sass, its cubin disassembled.

    KEY is a key, or what only one key begins with. FORM is what stands behind the dot of the file's name (`gpucache ls
    KEY` lists all, with their paths); an entry of one file needs none. The disassembler is the one that ships in
    Triton, or CUDA's.

    \b
    gpucache cat JRCHT7QYPGJA ttgir
    gpucache cat JRCHT7QYPGJA sass | less
    gpucache cat JRCHT7QYPGJA cubin > matmul.cubin
    """
    from gpucache.report.artefacts import form_of

    entry = one_entry(existing(root), key)
    form = _only_form(entry) if form is None else form_of(entry, form)
    data = content(entry, form)
    if is_terminal() and b"\0" in data[:4096]:
        problem = f"{entry.kernel}.{form} is no text, and would garble this terminal"
        file = quote(f"{entry.kernel[:40]}.{form}")
        hint = f"redirect it: `gpucache cat {entry.key[:12]} {quote(form)} > {file}`"
        raise GpuCacheError(problem, hint)
    print_bytes(data)


def _only_form(entry: Entry) -> str:
    """The form of the only file of an entry.

    Raises:
        click.UsageError: it has several.
    """
    from gpucache.report.artefacts import DISASSEMBLED, artefacts

    forms = list(artefacts(entry))
    if len(forms) == 1:
        return forms[0]
    if "cubin" in forms:
        forms.append(DISASSEMBLED)
    raise click.UsageError(f"say which file of {entry.kernel}: {', '.join(forms)}")


def content(entry: Entry, form: str) -> bytes:
    """A file of an entry, or its cubin disassembled.

    Raises:
        NoArtefactError: there is no such file.
        GpuCacheError: there is no disassembler, or it refuses the cubin.
    """
    from gpucache.report.artefacts import DISASSEMBLED, artefact

    if form != DISASSEMBLED:
        return artefact(entry, form)
    from gpucache.diagnosis.disassembly import disassemble

    return disassemble(artefact(entry, "cubin"), command_settings()).encode()
