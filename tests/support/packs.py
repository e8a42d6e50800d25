"""Packs as tests make them: small entries, a key, and what `write_pack` makes of them."""

from __future__ import annotations

import hashlib
import io

from gpucache.archive.read import PackReader
from gpucache.archive.statement import ArchivedEntry, ArchivedFile, Statement
from gpucache.archive.write import write_pack
from gpucache.layout.inductor import carried_unit
from gpucache.store.manifest import RECIPE, Facts

METADATA = b'{"name":"add","target":{"backend":"cuda","arch":90},"triton_version":"3.9.0"}'
CONTENT = {"add.cubin": b"\x7fcubin" * 300, "add.json": METADATA, "add.ptx": b""}


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def archived(name: str, content: bytes) -> ArchivedFile:
    return ArchivedFile(name, len(content), digest(content))


def key(number: int) -> str:
    """A key as Triton's are, a different one for each number."""
    return f"{number:052d}".translate(str.maketrans("0189", "ABCD"))


class Source:
    """The statement of a pack, and the content of its files."""

    def __init__(self, *entries: ArchivedEntry, name: str = "nightly", number: int = 1) -> None:
        self.statement = Statement(name, number, entries)
        self.content: dict[tuple[str, str], bytes] = {}

    def add(self, content: dict[str, bytes] | None = None, recipe: bytes | None = None) -> Source:
        """Add a kernel's entry with these files."""
        content = CONTENT if content is None else content
        number = len(self.statement.entries)
        files = tuple(archived(name, content[name]) for name in sorted(content))
        group = next(name for name in sorted(content) if name.endswith(".json"))
        facts = Facts(group.removesuffix(".json"), group, "cuda:90", "3.9.0", 0.25)
        recipe_file = None if recipe is None else archived(RECIPE, recipe)
        entry = ArchivedEntry(key(number), "kernel", facts, files, recipe_file)
        self.statement = self.statement._replace(entries=(*self.statement.entries, entry))
        for name, data in content.items():
            self.content[entry.key, name] = data
        if recipe is not None:
            self.content[entry.key, RECIPE] = recipe
        return self

    def add_unit(self, content: dict[str, bytes]) -> Source:
        """Add a unit of TorchInductor's, of these files by their paths below a root."""
        files = tuple(archived(name, content[name]) for name in sorted(content))
        unit = carried_unit(files[0].name)
        assert unit is not None
        entry = ArchivedEntry("", "inductor", Facts(unit, None), files)
        self.statement = self.statement._replace(entries=(*self.statement.entries, entry))
        for name, data in content.items():
            self.content["", name] = data
        return self

    def opened(self, entry: ArchivedEntry, file: ArchivedFile) -> io.BytesIO:
        return io.BytesIO(self.content[entry.key, file.name])

    def packed(self, signing=None, **options) -> bytes:
        out = io.BytesIO()
        write_pack(out, self.statement, signing, self.opened, **options)
        return out.getvalue()


def read_all(data, judge, **options) -> tuple[PackReader, dict[tuple[str, str], bytes]]:
    """Read a pack to its end; return the reader, and the content of each file by key and name."""
    source = io.BytesIO(data) if isinstance(data, bytes) else data
    found = {}
    with PackReader(source, judge, source_name="a pack", **options) as reader:
        for entry, file, pieces in reader.files():
            found[entry.key, file.name] = b"".join(pieces)
    return reader, found
