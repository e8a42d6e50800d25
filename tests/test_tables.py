"""Tables on terminals of any width: what is left out, and that nothing is cut."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import partial

import pytest
from support.terminals import Terminal, put_terminal

from gpucache.cli.tables import MATTERS, Choice, Column, print_codes, print_table
from gpucache.cli.terminal import OutputError
from gpucache.escapes import printable

NAME = (Column("name"),)
THREE = (Column("key"), Column("kernel", weight=20), Column("size", weight=30, right=True))


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Terminal]:
    """Put a terminal in the place of stdout, from inside the test: pytest puts its own there before."""
    return partial(put_terminal, monkeypatch, "stdout")


def lines(terminal: Terminal) -> list[str]:
    return terminal.seen.splitlines()


def rows(*names: str) -> list[Sequence[str]]:
    return [("KEY", name, "1 B") for name in names]


class TestWidths:
    def test_a_terminal_gets_aligned_columns_with_a_head_and_a_total(self, show):
        stdout = show()
        columns = (Column("name"), Column("size", right=True))
        print_table(columns, [("a", "1 B"), ("long", "20 B")], ("all", "21 B"))
        assert lines(stdout) == ["name  size", "a      1 B", "long  20 B", "all   21 B"]

    def test_what_is_lightest_is_left_out_first_and_told_once(self, show, capsys):
        stdout = show(columns=20)
        print_table(THREE, rows("k" * 20, "k" * 3))
        assert lines(stdout) == ["key  size", "KEY   1 B", "KEY   1 B"]
        said = "note: 20 columns wide: without kernel; a wider terminal or --json shows all\n"
        assert capsys.readouterr().err == said

    def test_a_column_that_never_fits_takes_no_other_with_it(self, show):
        """What is lighter than a wide column is shown after all, where the wide one is not."""
        stdout = show(columns=20)
        columns = (Column("key"), Column("wide", weight=50), Column("thin", weight=10))
        print_table(columns, [("KEY", "w" * 40, "t")])
        assert lines(stdout) == ["key  thin", "KEY  t"]

    def test_where_all_fits_nothing_is_said(self, show, capsys):
        show(columns=14)
        print_table(THREE, rows("k"))
        assert capsys.readouterr().err == "note: 14 columns wide: without kernel; a wider" + (
            " terminal or --json shows all\n"
        )
        show(columns=19)
        print_table(THREE, rows("k"))
        assert capsys.readouterr().err == ""

    def test_a_name_too_long_for_its_terminal_stays_whole_and_pushes_the_rest(self, show):
        stdout = show(columns=20)
        columns = (Column("kernel"), Column("size", right=True))
        print_table(columns, [("k" * 18, "1 B"), ("short", "20 B")])
        assert lines(stdout) == [
            "kernel          size",
            "k" * 18,
            "                 1 B",
            "short           20 B",
        ]

    def test_a_few_long_names_leave_nothing_out_that_matters(self, show):
        stdout = show(columns=24)
        columns = (Column("key"), Column("kernel"), Column("size", weight=MATTERS, right=True))
        print_table(columns, rows(*["short"] * 20, "k" * 17))
        assert lines(stdout)[0] == "key  kernel         size"
        assert lines(stdout)[-3:] == [
            "KEY  short           1 B",
            "KEY  " + "k" * 17,
            " " * 21 + "1 B",
        ]

    def test_many_long_names_leave_it_out(self, show):
        stdout = show(columns=24)
        columns = (Column("key"), Column("kernel"), Column("size", weight=MATTERS, right=True))
        print_table(columns, rows(*["short"] * 3, *["k" * 17] * 3))
        assert lines(stdout)[-1] == "KEY  " + "k" * 17

    def test_a_few_long_names_leave_out_what_matters_less(self, show):
        stdout = show(columns=24)
        print_table(
            (Column("key"), Column("kernel"), Column("size", weight=MATTERS - 1, right=True)),
            rows(*["short"] * 20, "k" * 17),
        )
        assert lines(stdout)[0] == "key  kernel"

    def test_prose_goes_on_in_the_next_line_at_a_blank(self, show):
        stdout = show(columns=30)
        columns = (Column("code"), Column("meaning", whole=False))
        print_table(columns, [("a", "one two three four five six seven"), ("b", "x")])
        assert lines(stdout) == [
            "code  meaning",
            "a     one two three four five",
            "      six seven",
            "b     x",
        ]

    def test_of_a_list_whole_items_are_shown_and_the_rest_counted(self, show, capsys):
        stdout = show(columns=24)
        columns = (Column("key"), Column("constants", weight=50, items=True))
        print_table(columns, [("KEY", "BLOCK_M=128 BLOCK_N=64 BLOCK_K=32"), ("K", "A=1 B=2 C=3")])
        assert lines(stdout) == ["key  constants", "KEY  BLOCK_M=128 +2", "K    A=1 B=2 C=3"]
        assert "+N for N more" in capsys.readouterr().err

    def test_letters_that_take_two_columns_are_counted_so(self, show):
        stdout = show()
        columns = (Column("name"), Column("size"))
        print_table(columns, [("漢字", "1"), ("abcd", "2")])
        assert lines(stdout) == ["name  size", "漢字  1", "abcd  2"]

    def test_without_rows_there_is_no_head(self, show):
        stdout = show()
        print_table(NAME, [], ("all",))
        assert stdout.seen == ""


class TestChoice:
    def test_wide_shows_all_columns_on_a_narrow_terminal(self, show, capsys):
        stdout = show(columns=20)
        print_table(THREE, rows("k" * 20), choice=Choice(wide=True))
        assert lines(stdout)[1] == f"KEY  {'k' * 20}   1 B"
        assert capsys.readouterr().err == ""

    def test_what_is_chosen_is_shown_in_that_order(self, show):
        stdout = show(columns=20)
        print_table(THREE, rows("k"), choice=Choice(names=("size", "key")))
        assert lines(stdout) == ["size  key", " 1 B  KEY"]

    def test_what_is_chosen_is_piped(self, capfdbinary):
        print_table(THREE, rows("k"), choice=Choice(names=("size", "key")))
        assert capfdbinary.readouterr().out == b"1 B\tKEY\n"

    def test_the_note_names_the_options_of_a_command_that_has_them(self, show, capsys):
        show(columns=14)
        print_table(THREE, rows("k"), choice=Choice())
        assert "; --wide shows all, --columns a,b some\n" in capsys.readouterr().err


class TestPiped:
    def test_each_row_is_one_line_that_commands_no_terminal(self, capfdbinary):
        """The next program of the pipe may be `cat`."""
        columns = (Column("name"), Column("path"))
        print_table(columns, [("é", "n\udcff"), ("a\tb", "c\nd\r\x1b[2J\u202e")], ("all", ""))
        said = b"n\\udcff\n" + b"a\\tb\tc\\nd\\r\\x1b[2J\\u202e\n"
        assert capfdbinary.readouterr().out == "é\t".encode() + said

    def test_no_rows_are_no_output(self, capfdbinary):
        print_table(NAME, [])
        assert capfdbinary.readouterr().out == b""

    def test_the_order_may_be_another_one(self, capfdbinary):
        print_table(THREE, rows("k"), piped=("size", "kernel", "key"))
        assert capfdbinary.readouterr().out == b"1 B\tk\tKEY\n"


class TestLetters:
    @pytest.mark.parametrize(
        ("cell", "shown"),
        [
            ("[red]x[/red] [/] [0]", "[red]x[/red] [/] [0]"),
            ("\x1b[31mred", "\\x1b[31mred"),
            ("a\nb\tc", "a\\nb\\tc"),
            ("n\udcff", "n\\udcff"),
            ("é 漢", "é 漢"),
        ],
    )
    def test_whatever_a_name_is_the_terminal_shows_it_and_obeys_nothing(self, cell, shown, show):
        stdout = show()
        print_table(NAME, [(cell,)])
        assert lines(stdout)[1] == shown
        assert printable(cell) == shown

    def test_letters_that_the_locale_lacks_are_escaped(self, show):
        stdout = show("ascii")
        print_table(NAME, [("é",)])
        assert lines(stdout)[1] == "\\xe9"

    def test_a_terminal_that_is_gone_is_no_defect(self, monkeypatch):
        class Gone(Terminal):
            def write(self, text: str) -> int:
                raise OSError(5, "Input/output error")

        monkeypatch.setattr(sys, "stdout", Gone())
        with pytest.raises(OutputError) as caught:
            print_table(NAME, [("a",)])
        assert caught.value.cause.errno == 5


def test_codes_are_a_table(show):
    stdout = show()
    assert print_codes({"one-code": "what it means"}, as_json=False) == 0
    assert lines(stdout) == ["code      meaning", "one-code  what it means"]
