"""The tables of JIT caches as docs/jit-caches.md has them; a test compares, and prints them where they differ."""

from __future__ import annotations

from gpucache.layout.jit_cache import JitCache
from gpucache.layout.jit_caches import JIT_CACHES

_WHERE = ("name", "read by (versions)", "variables", "chosen by", "without them", "holds")
_HOW = (
    "name",
    "level",
    "variable read",
    "removed alone",
    "cold ranks",
    "moved",
    "damage",
    "source",
)
_DAMAGE = {True: "mended", False: "stays", None: "not known"}
_LEVELS = {"none": "", "arch": "`sm_90`", "python-cuda-arch": "`cp311-torch2.13.0+cu130-sm_90`"}


def documented_tables() -> str:
    """Both tables: where caches are, and how they behave."""
    where = [_line(_WHERE), _rule(_WHERE), *(_line(_where(cache)) for cache in JIT_CACHES)]
    how = [_line(_HOW), _rule(_HOW), *(_line(_how(cache)) for cache in JIT_CACHES)]
    return "\n".join(where) + "\n\n" + "\n".join(how) + "\n"


def _where(cache: JitCache) -> tuple[str, ...]:
    values = []
    for name, value in cache.variables:
        plain = value in ("{directory}",)
        values.append(f"`{name}`" if plain else f"`{name}={value}`")
    chosen = "`all`"
    if cache.kind != "on":
        chosen = f"its name: {cache.reason}" if cache.variables else f"nothing: {cache.reason}"
    default = cache.default.replace("{home}", "~").replace("{cache}", "~/.cache")
    default = default.strip("()") if default.startswith("(") else f"`{default}`"
    read_by = f"{cache.software} ({cache.versions})"
    return (f"`{cache.name}`", read_by, ", ".join(values), chosen, default, cache.holds)


def _how(cache: JitCache) -> tuple[str, ...]:
    units = ", ".join(f"`{unit.pattern}`" for unit in cache.units)
    bounded = f"nothing; the software keeps `{cache.bounded_by}`" if cache.bounded_by else "nothing"
    return (
        f"`{cache.name}`",
        _LEVELS[cache.level],
        {"import": "at import", "use": "at use"}.get(cache.read_at, cache.read_at),
        units or bounded,
        cache.cold_start,
        "hit" if cache.moves else f"compiled again: {cache.moves_because}",
        _DAMAGE[cache.mends_itself],
        "; ".join([cache.source, *_needs(cache)]),
    )


def _needs(cache: JitCache) -> list[str]:
    """What a software needs of its directory, in words."""
    words = []
    if cache.needs_directory:
        words.append("caches nothing where the directory is missing")
    if cache.needs_local:
        words.append("needs a file system of this node")
    return words


def _line(cells: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _rule(cells: tuple[str, ...]) -> str:
    return "|" + "---|" * len(cells)


if __name__ == "__main__":  # cd tests && python -m support.jit_table
    print(documented_tables(), end="")
