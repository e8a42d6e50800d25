"""What a kernel reads that is no part of Triton's key: a replay that has another value of it publishes nothing.

The machine that replays stands in for one without a GPU: there a variable of the environment is not set.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.corpus_runs import copy_program, record_corpus, warm_corpus

pytestmark = pytest.mark.compiles

EXTRA = """
import os

import triton
import triton.language as tl
from corpus import facts
from corpus.arguments import F32
from corpus.cases import case

{definitions}


@triton.jit
def extra(x, BLOCK: tl.constexpr, MORE: tl.constexpr = 0):
    offsets = tl.arange(0, BLOCK)
    {body}
    tl.store(x + offsets, tl.load(x + offsets) + 1)


@case("extra")
def launch():
    {first}
    extra[(1,)](F32, BLOCK=64, MORE={more})
"""
WITH_GPU = "os.environ.get('HAS_GPU') == '1'"


class Program:
    """A program with one kernel, which can be recorded with a GPU and replayed without."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.sources = copy_program(base / "sources")
        self.write()

    def write(
        self,
        body: str = "pass",
        definitions: str = "",
        facts: str = "",
        first: str = "pass",
        more: str = "0",
    ) -> None:
        text = EXTRA.format(body=body, definitions=definitions, first=first, more=more)
        (self.sources / "corpus/extra.py").write_text(text)
        module = f"import os\nimport triton\nimport triton.language as tl\n{facts}\n"
        (self.sources / "corpus/facts.py").write_text(module)

    def recorded(self) -> Path:
        """The recipes of a run of the program."""
        base = self.base / "recorded"
        recorded = record_corpus(base, "sm_90", "extra", support=self.sources)
        assert not recorded.said.failed
        assert len(recorded.said.keys) == 1
        return recorded.recipes

    def replayed(self, recipes: Path, *words: str) -> tuple[str, str]:
        """How a replay ends, and why."""
        (outcome,) = warm_corpus(self.base / "warm", recipes, *words, support=self.sources)
        return outcome["end"], outcome["why"]


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


@pytest.fixture
def with_gpu(program: Program, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Records the program where there is a GPU, and replays it where there is none and where there is one."""

    def ends() -> tuple[tuple[str, str], str]:
        with monkeypatch.context() as patch:
            patch.setenv("HAS_GPU", "1")
            recipes = program.recorded()
        assert "HAS_GPU" not in os.environ
        without = program.replayed(recipes)
        with monkeypatch.context() as patch:
            patch.setenv("HAS_GPU", "1")
            return without, program.replayed(recipes)[0]

    return ends


class TestNothingIsPublishedWhereThereDiffers:
    def test_a_constant_of_another_module(self, program, with_gpu):
        program.write(
            body="offsets += facts.STEP", facts=f"STEP = tl.constexpr(1 if {WITH_GPU} else 2)"
        )
        said = 'corpus.facts.STEP is {"constexpr": 2} here, and was {"constexpr": 1}'
        assert with_gpu() == (("differs here", said), "made")

    def test_a_constant_of_a_class_of_another_module(self, program, with_gpu):
        program.write(
            body="offsets += facts.Facts.STEP",
            facts=f"class Facts:\n    STEP = 1 if {WITH_GPU} else 2",
        )
        said = "corpus.facts.Facts.STEP is 2 here, and was 1"
        assert with_gpu() == (("differs here", said), "made")

    @pytest.mark.parametrize("member", ["facts.Mode.FAST", "MORE.value"])
    def test_a_member_of_an_enum(self, program, with_gpu, member):
        """The key has its name."""
        program.write(
            body=f"offsets += {member}.value",
            facts=f"import enum\n\n\nclass Mode(enum.Enum):\n    FAST = 1 if {WITH_GPU} else 2",
            more="facts.Mode.FAST",
        )
        said = "corpus.facts.Mode.FAST is 2 here, and was 1"
        assert with_gpu() == (("differs here", said), "made")

    def test_a_default_of_a_function_that_it_calls(self, program, with_gpu):
        program.write(
            body="offsets = moved(offsets)",
            definitions=f"N = 1 if {WITH_GPU} else 2\n\n\n"
            "@triton.jit\ndef moved(offsets, n: tl.constexpr = N):\n    return offsets + n",
        )
        said = "corpus.extra.moved(n) is 2 here, and was 1"
        assert with_gpu() == (("differs here", said), "made")

    def test_a_constant_that_the_program_sets(self, program):
        program.write(
            body="offsets += STEP",
            definitions="STEP = tl.constexpr(1)",
            first="globals()['STEP'] = tl.constexpr(2)",
        )
        assert program.replayed(program.recorded())[0] in ("differs here", "made (source changed)")

    def test_a_plain_variable_that_the_program_sets(self, program, monkeypatch):
        monkeypatch.setenv("TRITON_ALLOW_NON_CONSTEXPR_GLOBALS", "1")
        program.write(
            body="offsets += STEP",
            definitions="STEP = 1",
            first="globals()['STEP'] = 2",
        )
        said = "corpus.extra.STEP is 1 here, and was 2"
        assert program.replayed(program.recorded()) == ("differs here", said)

    def test_a_constant_of_a_class(self, program, with_gpu):
        program.write(
            body="offsets += step()",
            definitions=f"class Facts:\n    STEP = 1 if {WITH_GPU} else 2\n\n\n"
            "@triton.constexpr_function\ndef step():\n    return Facts.STEP",
        )
        said = "corpus.extra.Facts.STEP is 2 here, and was 1"
        assert with_gpu() == (("differs here", said), "made")

    def test_a_value_that_no_recipe_can_tell(self, program, with_gpu):
        program.write(
            body="offsets += step()",
            definitions="import types\n\n"
            f"FACTS = types.SimpleNamespace(step=1 if {WITH_GPU} else 2)\n\n\n"
            "@triton.constexpr_function\ndef step():\n    return FACTS.step",
        )
        said = "corpus.extra.FACTS is a types.SimpleNamespace"
        (end, why), with_it = with_gpu()
        assert (end, why.startswith(said), with_it) == ("differs here", True, "differs here")

    def test_whether_a_number_is_a_truth(self, program, with_gpu, monkeypatch):
        monkeypatch.setenv("TRITON_ALLOW_NON_CONSTEXPR_GLOBALS", "1")
        program.write(
            body="if STEP is True:\n        offsets += 1",
            definitions=f"STEP = True if {WITH_GPU} else 1",
        )
        assert with_gpu() == (("differs here", "corpus.extra.STEP is 1 here, and was true"), "made")


class TestTheSourceHasChanged:
    def test_of_a_default_of_a_function_that_it_calls(self, program):
        helper = "@triton.jit\ndef moved(offsets, n: tl.constexpr = {}):\n    return offsets + n"
        program.write(body="offsets = moved(offsets)", definitions=helper.format(1))
        recipes = program.recorded()
        program.write(body="offsets = moved(offsets)", definitions=helper.format(2))
        said = "corpus.extra.moved(n) is 2 here, and was 1"
        assert program.replayed(recipes) == ("made (source changed)", said)

    def test_of_a_constant_of_another_module(self, program):
        program.write(body="offsets += facts.STEP", facts="STEP = tl.constexpr(1)")
        recipes = program.recorded()
        program.write(body="offsets += facts.STEP", facts="STEP = tl.constexpr(2)")
        end, why = program.replayed(recipes)
        assert (end, why) == (
            "differs here",
            'corpus.facts.STEP is {"constexpr": 2} here, and was {"constexpr": 1}',
        )


class TestOnAnotherTarget:
    def test_is_a_kernel_made_with_a_member_of_an_enum(self, program):
        program.write(
            body="offsets += MORE.value.value",
            facts="import enum\n\n\nclass Mode(enum.Enum):\n    FAST = enum.auto()",
            more="facts.Mode.FAST",
        )
        assert program.replayed(program.recorded(), "--arch", "sm_80") == ("made", "")

    def test_is_a_kernel_made_whose_values_the_source_says(self, program):
        program.write(
            body="offsets = moved(offsets) + facts.STEP + facts.Facts.SIZE + int(math.pi)",
            definitions="import math\n\n\n"
            "@triton.jit\ndef moved(offsets, n: tl.constexpr = 1):\n    return offsets + n",
            facts="STEP = tl.constexpr(1)\n\n\nclass Facts:\n    SIZE = 2",
        )
        assert program.replayed(program.recorded(), "--arch", "sm_80") == ("made", "")

    @pytest.mark.parametrize(
        ("name", "body", "facts"),
        [
            ("STEP", "offsets += facts.STEP", "STEP = tl.constexpr(len(os.sep))"),
            ("Facts.STEP", "offsets += facts.Facts.STEP", "class Facts:\n    STEP = len(os.sep)"),
            (
                "moved(n)",
                "offsets = facts.moved(offsets)",
                "N = len(os.sep)\n\n\n@triton.jit\n"
                "def moved(offsets, n: tl.constexpr = N):\n    return offsets + n",
            ),
        ],
    )
    def test_is_no_kernel_made_with_a_value_that_is_computed(self, program, name, body, facts):
        program.write(body=body, facts=facts)
        end, why = program.replayed(program.recorded(), "--arch", "sm_80")
        said = f"corpus.facts.{name} "
        assert (end, why.startswith(said)) == ("differs here", True), why


class TestADigest:
    def test_is_of_the_functions_that_are_called_once_all_modules_are_imported(self, program):
        """A module that is imported after the kernel's gives it another helper; the program's launches come later."""
        program.write(
            body="offsets = moved(offsets)",
            definitions="@triton.jit\ndef moved(offsets):\n    return offsets + 1",
        )
        (program.sources / "corpus/later.py").write_text(LATER)
        recorded = record_corpus(
            program.base / "recorded", "sm_90", "extra", "later", support=program.sources
        )
        assert not recorded.said.failed
        outcomes = warm_corpus(program.base / "warm", recorded.recipes, support=program.sources)
        assert [(one["kernel"], one["end"]) for one in outcomes] == [
            ("extra", "made"),
            ("later", "made"),
        ]


LATER = """
import triton
import triton.language as tl
from corpus import extra
from corpus.arguments import F32
from corpus.cases import case


@triton.jit
def moved(offsets):
    return offsets + 2


extra.moved = moved


@triton.jit
def later(x, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(x + offsets, tl.load(x + offsets) + 2)


@case("later")
def launch():
    later[(1,)](F32, BLOCK=64)
"""
