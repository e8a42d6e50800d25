"""`artefacts`: the files of an entry by what they are (``ptx``, ``ttgir``, ``cubin``), as commands name them."""

from __future__ import annotations

from gpucache.disk.reading import read
from gpucache.errors import NoArtefactError
from gpucache.kernels.group import AUTOTUNE
from gpucache.report.entries import Entry
from gpucache.store.manifest import RECIPE

DISASSEMBLED = "sass"
"""What is no file: the instructions of a cubin, which a disassembler tells."""
FORMS = ("source", "ttir", "ttgir", "llir", "ptx", "cubin", "amdgcn", "hsaco", "json", "recipe")
"""As a compile makes them; what else there is comes behind."""


def artefacts(entry: Entry) -> dict[str, str]:
    """The path of each file of an entry, by its form: what stands behind the kernel's name and a dot.

    What Triton and gpucache write about the files is left out, but for the recipe. An autotuner's result is ``json``.
    """
    directory = entry.copies[0].path
    found = {}
    for file in entry.files:
        form = _form(file.name, entry.kernel)
        if form is not None:
            found[form] = f"{directory}/{file.name}"
    known = {form: found[form] for form in FORMS if form in found}
    return known | found


def _form(name: str, kernel: str) -> str | None:
    """The form of the file of a kernel; None for a manifest or a group."""
    if name == RECIPE:
        return "recipe"
    if name.startswith("__") and not name.startswith(f"{kernel}."):
        return None
    if name == kernel + AUTOTUNE:
        return "json"
    if name.startswith(f"{kernel}."):
        return name.removeprefix(f"{kernel}.")
    return name.rpartition(".")[2]


def form_of(entry: Entry, said: str) -> str:
    """The form that is meant by a form, or by the name of a file: ``ptx`` by ``PTX``, ``.ptx`` and ``matmul.ptx``."""
    return said.removeprefix(f"{entry.kernel}.").removeprefix(".").lower()


def artefact(entry: Entry, form: str) -> bytes:
    """The content of an entry's file of this form.

    Raises:
        NoArtefactError: the entry has none; the error lists what there is.
        OSError: it cannot be read.
    """
    found = artefacts(entry)
    if form not in found:
        there = tuple(found)
        if "cubin" in found:
            there = (*there, DISASSEMBLED)
        raise NoArtefactError(entry.kernel, entry.key, form, there)
    return read(found[form])
