"""How an autotuner's result is shown: its configurations with their timings, the fastest first, the winner marked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpucache.cli.tables import Column, print_table
from gpucache.cli.terminal import say
from gpucache.escapes import printable

if TYPE_CHECKING:
    from gpucache.cli.cache_rows import Row
    from gpucache.kernels.autotune import Configuration, TuningResult
    from gpucache.report.entries import Entry

_NEVER = "does not run"


def tuning_of(entry: Entry) -> TuningResult | None:
    """What an autotuner has measured, where the entry is its result and can be read; else None."""
    from gpucache.kernels.autotune import tuning_result_in

    if entry.kind != "autotune":
        return None
    return tuning_result_in(entry.copies[0].path, entry.kernel)


def tuning_row(entry: Entry) -> Row | None:
    """An autotuner's result for JSON: what it was tuned for, and each configuration, in the order of the trials."""
    result = tuning_of(entry)
    if result is None:
        return None
    winner = result.winner
    rows = [_row(one, one is winner) for one in result.configurations]
    return {"tuned_for": list(result.key), "configurations": rows}


def _row(configuration: Configuration, wins: bool) -> Row:
    return {
        "values": dict(configuration.values),
        "options": dict(configuration.options),
        "milliseconds": list(configuration.milliseconds) if configuration.runs else None,
        "wins": wins,
    }


def field_cells(tuning: Row | None) -> Iterator[tuple[str, str]]:
    """The same for the next program: a line for each configuration."""
    if tuning is None:
        return
    yield "tuned_for", " ".join(tuning["tuned_for"]) or "-"
    for row in tuning["configurations"]:
        yield "winner" if row["wins"] else "configuration", _line(row)


def _line(row: Row) -> str:
    names = {**row["values"], **row["options"]}
    timings = row["milliseconds"]
    median = _NEVER if timings is None else f"{timings[0]:.6g} ms"
    return " ".join([*(f"{name}={value}" for name, value in names.items()), median])


def _differing(result: TuningResult) -> list[str]:
    """The options that do not have one value in all configurations."""
    seen: dict[str, set[str]] = {}
    for one in result.configurations:
        for name in one.options:
            seen.setdefault(name, set())
    for name, values in seen.items():
        values.update(str(one.options.get(name)) for one in result.configurations)
    return [name for name, values in seen.items() if len(values) > 1]


# ---- for people


def print_tuning(result: TuningResult) -> None:
    """Print the configurations as a table, the fastest first."""
    values = _names(result)
    options = _differing(result)
    winner = result.winner
    ordered = sorted(result.configurations, key=lambda one: one.milliseconds)
    rows = [_cells(one, winner, values, options) for one in ordered]
    columns = [Column("", 100), Column("ms", 95, right=True), Column("times", 40, right=True)]
    columns += [Column(printable(name), 90, right=True) for name in values]
    columns += [Column(printable(name), 60, right=True) for name in options]
    print_table(columns, rows)
    tuned_for = " ".join(result.key) or "any arguments"
    same = [name for name in winner.options if name not in options]
    alike = ", ".join(f"{name} {winner.options[name]}" for name in same)
    say(f"note: tuned for {tuned_for}" + (f"; all have {alike}" if alike else ""))


def _names(result: TuningResult) -> list[str]:
    names: dict[str, None] = {}
    for one in result.configurations:
        names.update(dict.fromkeys(one.values))
    return list(names)


def _cells(
    one: Configuration, winner: Configuration, values: Sequence[str], options: Sequence[str]
) -> tuple[str, ...]:
    mark = "winner" if one is winner else ""
    median, best = one.milliseconds[0], winner.milliseconds[0]
    timing = f"{median:.4g}" if one.runs else _NEVER
    times = f"{median / best:.2f}x" if one.runs and best > 0 else "-"
    of_values = [str(one.values.get(name, "-")) for name in values]
    of_options = [str(one.options.get(name, "-")) for name in options]
    return mark, timing, times, *of_values, *of_options
