"""Recipes of real launches, replayed by the real Triton in another process: the program then compiles nothing.

`GPUCACHE_TEST_TRITON` names another Python, with another Triton, for the processes that compile.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support.corpus_runs import FILES, SUPPORT, launch_corpus
from support.ranks import PLUGIN, Rank, python_with_triton, warm

from gpucache.kernels.recipe import Function, Recipe, to_text
from gpucache.kernels.recipe_lines import FORMAT_LINE, read_recipe_file

pytestmark = pytest.mark.usefixtures("triton")
FEW = (
    "a constant float",
    "a constant tuple",
    "num_warps and num_stages",
    "heuristics below an autotuner",
)
REPLAY = "import replay_recipes; replay_recipes.main()"
Outcomes = list[dict[str, Any]]


def recorded(root: Path, *names: str, target: str = "sm_90", **how: Any) -> Path:
    """The file of the recipes of what a program launches, which caches in ``root``."""
    file = root.with_suffix(".jsonl")
    environ = {"GPUCACHE_RECORD": str(file), **how.pop("env", {})}
    launch_corpus(root, target, *names, env=environ, **how)
    return file


def replayed(root: Path, file: Path, *target: str, env: Any = (), **settings: object) -> Outcomes:
    """The outcomes of the recipes of a file, replayed in a process of its own."""
    settings.setdefault("path", [str(SUPPORT)])
    environ = {**os.environ, **dict(env), "REPLAY_SETTINGS": json.dumps(settings)}
    said = python_with_triton(REPLAY, root, file, *target, env=environ)
    return [json.loads(line) for line in said.splitlines() if line.startswith('{"recipe"')]


def written(file: Path, *lines: Recipe) -> Path:
    file.write_bytes(FORMAT_LINE + b"".join(to_text(line) + b"\n" for line in lines))
    return file


def of_constants(file: Path) -> int:
    """How many recipes of a file are of the module `corpus.constants`."""
    lines = read_recipe_file(str(file))
    return sum(line.function.module == "corpus.constants" for line in lines)


def ends(outcomes: Outcomes) -> dict[str, int]:
    return dict(Counter(one["end"] for one in outcomes))


def whys(outcomes: Outcomes) -> list[tuple[str, str]]:
    return [(one["end"], one["why"]) for one in outcomes]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recipes of `FEW`."""
    return recorded(tmp_path_factory.mktemp("few") / "root", *FEW)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of the program, to be changed."""
    copy = tmp_path / "sources"
    copy.mkdir()
    for name in FILES:
        whole = SUPPORT / name
        if whole.is_dir():
            shutil.copytree(whole, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(whole, copy / name)
    return copy


EXTRA = """
import os

import triton
import triton.language as tl
from corpus.arguments import F32
from corpus.cases import case

{globals}


@triton.jit
def extra(x, {parameters}):
    offsets = tl.arange(0, BLOCK)
    {body}
    tl.store(x + offsets, tl.load(x + offsets) + 1)


@case("extra")
def launch():
    extra[(1,)](F32, BLOCK=64)
"""


def write_extra(
    sources: Path, body: str = "", globals: str = "", parameters: str = "BLOCK: tl.constexpr"
) -> None:
    """Give the program another kernel, the launch ``extra``."""
    text = EXTRA.format(body=body or "pass", globals=globals, parameters=parameters)
    (sources / "corpus/extra.py").write_text(text)
    # Python tells what it has compiled by size and second, which two texts may have alike.
    shutil.rmtree(sources / "corpus/__pycache__", ignore_errors=True)


class TestAProgramAfterwards:
    def test_compiles_nothing(self, root, few):
        outcomes = replayed(root, few)
        assert ends(outcomes) == {"made": len(outcomes)}
        assert all(one["key"] == one["recipe"] for one in outcomes)
        assert launch_corpus(root, "sm_90", *FEW).compiled == {}

    def test_for_another_architecture_compiles_nothing_that_this_can_have(
        self, root, sources, tmp_path
    ):
        write_extra(sources, body="tl.static_print(tl.load(x + offsets).to(tl.float8e4nv))")
        file = recorded(tmp_path / "first", *FEW, "extra", support=sources)
        outcomes = replayed(root, file, "sm_80", path=[str(sources)])
        refused = [one for one in outcomes if one["end"] == "not for this target"]
        assert [one["kernel"] for one in refused] == ["extra"]
        said = "type fp8e4nv not supported in this architecture"
        assert said in refused[0]["why"]
        assert ends(outcomes) == {"made": len(outcomes) - 1, "not for this target": 1}
        program = launch_corpus(root, "sm_80", *FEW, support=sources)
        assert (program.compiled, program.failed) == ({}, {})

    def test_for_gpus_of_another_maker_compiles_nothing_that_these_can_have(self, root, tmp_path):
        """The stages that an autotuner asks for are CUDA's default, and not AMD's."""
        names = ("a constant float", "matmul, autotuned, odd sizes")
        file = recorded(tmp_path / "first", *names, "maxnreg", "assembler in a kernel")
        outcomes = replayed(root, file, "gfx942")
        if launch_corpus(tmp_path / "amd", "gfx942", *names).failed:
            # Before 3.9 that takes parts of ROCm, or torch, which are not here.
            assert ends(outcomes).keys() <= {"failed", "not for this target"}
            return
        refused = {one["kernel"]: one["why"] for one in outcomes if one["end"] != "made"}
        assert refused.keys() == {"scaled", "assembled"}
        assert refused["scaled"].endswith("has no option maxnreg for gfx942")
        assert launch_corpus(root, "gfx942", *names).compiled == {}

    def test_finds_the_recipe_of_the_program_in_the_entry(self, root, few):
        replayed(root, few)
        stored = {path.read_bytes() for path in root.glob("gpucache/v1/store/*/*/__recipe__.json")}
        assert {line.rstrip(b"\n") for line in stored} == set(few.read_bytes().splitlines()[1:])

    def test_compiles_what_a_source_made_by_hand_asks_for_and_nothing_else(self, root, tmp_path):
        file = tmp_path / "recipes.jsonl"
        environ = {"GPUCACHE_DIR": str(tmp_path / "first"), "GPUCACHE_RECORD": str(file), **PLUGIN}
        rank = Rank({**os.environ, **environ}, 2)
        rank.go()
        assert rank.said()["compiled"] == 2
        assert not any(recipe.launched for recipe in read_recipe_file(str(file)))
        assert ends(replayed(root, file)) == {"made": 2}
        again = Rank({**os.environ, **PLUGIN, "GPUCACHE_DIR": str(root)}, 2)
        again.go()
        assert again.said()["compiled"] == 0


class TestAnEnd:
    def test_is_there_for_what_the_store_has_and_missing_for_what_a_dry_run_would_make(
        self, root, few
    ):
        assert ends(replayed(root, few, dry_run=True)).keys() == {"missing"}
        assert not list(root.glob("gpucache/v1/store/*/*"))
        made = replayed(root, few)
        for settings in ({}, {"dry_run": True}):
            again = replayed(root, few, **settings)
            assert ends(again) == {"there": len(made)}
            assert [one["key"] for one in again] == [one["key"] for one in made]

    def test_is_not_there_for_an_entry_that_is_damaged(self, root, few):
        first = replayed(root, few)[0]["key"]
        (binary,) = root.glob(f"gpucache/v1/store/*/{first}/*.cubin")
        content = bytearray(binary.read_bytes())
        content[100] ^= 1
        times = binary.stat()
        binary.write_bytes(content)
        os.utime(binary, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert replayed(root, few, dry_run=True)[0]["end"] == "missing"
        assert replayed(root, few)[0]["end"] == "made"
        assert replayed(root, few)[0]["end"] == "there"

    def test_is_there_for_a_kernel_that_a_rank_compiles_meanwhile(self, root, tmp_path):
        file = tmp_path / "recipes.jsonl"
        environ = {**os.environ, **PLUGIN, "GPUCACHE_DIR": str(root), "GPUCACHE_RECORD": str(file)}
        rank = Rank({**environ, "KERNELS_AT": "make_ptx:block"})
        rank.go()
        rank.expect("at make_ptx")
        replay = warm().start(REPLAY, root, file, env={**environ, "REPLAY_SETTINGS": "{}"})
        wait_until_waited_for(root)
        rank.go()
        assert rank.said()["compiled"] == 1
        out, err = replay.communicate(timeout=120)
        assert json.loads(out.splitlines()[-1])["end"] == "there", err

    def test_says_that_the_source_has_changed_and_the_edited_program_compiles_nothing(
        self, root, sources, tmp_path
    ):
        file = recorded(tmp_path / "first", *FEW)
        module = sources / "corpus/constants.py"
        module.write_text("# moved down by a line\n" + module.read_text())
        outcomes = replayed(root, file, path=[str(sources)])
        edited = of_constants(file)
        assert ends(outcomes) == {"made (source changed)": edited, "made": len(outcomes) - edited}
        assert launch_corpus(root, "sm_90", *FEW, support=sources).compiled == {}

    def test_says_that_the_source_has_changed_of_what_exact_does_not_compile(
        self, root, sources, tmp_path
    ):
        file = recorded(tmp_path / "first", *FEW)
        module = sources / "corpus/constants.py"
        module.write_text("# moved down by a line\n" + module.read_text())
        outcomes = replayed(root, file, path=[str(sources)], exact=True)
        edited = of_constants(file)
        assert ends(outcomes) == {"source changed": edited, "made": len(outcomes) - edited}

    def test_says_which_parameters_no_longer_fit(self, root, sources, tmp_path):
        write_extra(sources)
        file = recorded(tmp_path / "first", "extra", support=sources)
        write_extra(sources, parameters="n, BLOCK: tl.constexpr")
        ((end, why),) = whys(replayed(root, file, path=[str(sources)]))
        said = "its parameters are now (x, n, BLOCK) and were (x, BLOCK)"
        if "BLOCK" not in next(iter(read_recipe_file(str(file)))).signature:
            said = "its parameter BLOCK is new, and has no default"  # Triton 3.2 keeps no constants' names
        assert (end, why) == ("source changed", said)

    def test_takes_a_new_parameter_that_has_a_default(self, root, sources, tmp_path):
        write_extra(sources)
        file = recorded(tmp_path / "first", "extra", support=sources)
        write_extra(sources, parameters="BLOCK: tl.constexpr, MORE: tl.constexpr = 3")
        assert ends(replayed(root, file, path=[str(sources)])) == {"made (source changed)": 1}
        assert launch_corpus(root, "sm_90", "extra", support=sources).compiled == {}

    def test_names_the_global_that_differs_on_a_machine_without_the_gpu(
        self, root, sources, tmp_path
    ):
        """In Triton 3.4 it is not in the key: this kernel would be taken for that of the program."""
        globals_ = "FAST = tl.constexpr(os.environ.get('HAS_GPU') == '1')"
        write_extra(sources, body="if FAST:\n        offsets += 1", globals=globals_)
        file = recorded(tmp_path / "first", "extra", support=sources, env={"HAS_GPU": "1"})
        said = 'corpus.extra.FAST is {"constexpr": false} here, and was {"constexpr": true}'
        assert whys(replayed(root, file, path=[str(sources)])) == [("differs here", said)]
        same = replayed(root, file, path=[str(sources)], env={"HAS_GPU": "1"})
        assert whys(same) == [("made", "")]

    def test_is_made_with_a_global_that_was_edited_if_that_is_in_the_key(
        self, root, sources, tmp_path
    ):
        body = "offsets += STEP"
        write_extra(sources, body=body, globals="STEP = tl.constexpr(1)")
        file = recorded(tmp_path / "first", "extra", support=sources)
        write_extra(sources, body=body, globals="STEP = tl.constexpr(2)")
        (outcome,) = replayed(root, file, path=[str(sources)])
        assert (
            outcome["why"] == 'corpus.extra.STEP is {"constexpr": 2} here, and was {"constexpr": 1}'
        )
        ((edited, _),) = launch_corpus(
            root / "edited", "sm_90", "extra", support=sources
        ).keys.items()
        if edited == outcome["recipe"]:
            # In Triton 3.4 and before a global is no part of the key, and the program has the kernel it had.
            assert outcome["end"] == "differs here"
            return
        assert (outcome["end"], outcome["key"]) == ("made (source changed)", edited)

    def test_tells_that_a_module_asks_for_a_gpu(self, root, sources, tmp_path):
        write_extra(sources)
        file = recorded(tmp_path / "first", "extra", support=sources)
        asks = "N = triton.runtime.driver.active.utils.get_device_properties(0)"
        write_extra(sources, globals=asks)
        said = "NoGpuError: utils of a GPU was asked for, and recipes are compiled without one"
        assert whys(replayed(root, file, path=[str(sources)])) == [
            ("cannot be imported", f"corpus.extra: {said}")
        ]

    @pytest.mark.torch
    def test_tells_that_a_module_asks_torch_for_a_gpu_and_lets_it_ask_whether_there_is_one(
        self, root, sources, tmp_path
    ):
        asks = "import torch\nassert not torch.cuda.is_available()\n"
        write_extra(sources, globals=f"{asks}assert torch.cuda.device_count() == 0")
        file = recorded(tmp_path / "first", "extra", support=sources)
        assert ends(replayed(root, file, path=[str(sources)])) == {"made": 1}
        write_extra(sources, globals=f"{asks}EMPTY = torch.empty(1, device='cuda')")
        ((end, why),) = whys(replayed(root, file, path=[str(sources)]))
        assert end == "cannot be imported"
        assert why.startswith("corpus.extra: ")

    def test_tells_what_triton_says_of_a_kernel_that_fails(self, root, sources, tmp_path):
        write_extra(sources)
        file = recorded(tmp_path / "first", "extra", support=sources)
        write_extra(sources, body="tl.static_assert(BLOCK == 65, 'an odd block')")
        ((end, why),) = whys(replayed(root, file, path=[str(sources)]))
        assert end == "failed"
        assert "an odd block" in why

    def test_tells_why_a_kernel_is_not_in_the_store_though_it_was_compiled(self, root, few):
        shard = root / "gpucache/v1/store"
        shard.mkdir(parents=True)
        (first, *_) = read_recipe_file(str(few))
        (shard / first.key[:2]).write_text("")
        ((end, why), *others) = whys(replayed(root, few))
        assert (end, why.startswith("compiled, but not published: ")) == ("failed", True)
        assert {end for end, _ in others} == {"made"}

    def test_is_told_of_a_kernel_of_the_programs_own_file(self, root, tmp_path):
        file = recorded(tmp_path / "first", "a kernel of the script")
        ((end, why),) = whys(replayed(root, file))
        assert (end, "only if --main names it" in why) == ("cannot be imported", True)
        main = str(SUPPORT / "run_corpus.py")
        assert ends(replayed(root, file, main=main)) == {"made": 1}
        assert launch_corpus(root, "sm_90", "a kernel of the script").compiled == {}


class TestVariables:
    def test_are_as_recorded_for_one_recipe_and_as_before_for_the_next(self, root, tmp_path):
        plain = recorded(tmp_path / "plain", "a constant float")
        without = {"TRITON_DISABLE_LINE_INFO": "1"}
        other = recorded(tmp_path / "without", "a constant float", env=without)
        lines = [*read_recipe_file(str(other)), *read_recipe_file(str(plain))]
        file = written(tmp_path / "both.jsonl", *lines)
        for environ in ({}, without, {"DISABLE_LLVM_OPT": "1"}):
            outcomes = replayed(root / "".join(environ), file, env=environ)
            assert [one["key"] for one in outcomes] == [line.key for line in lines]

    def test_that_name_a_file_are_never_set(self, root, few, tmp_path):
        (first, *_) = read_recipe_file(str(few))
        library = {"LLVM_PASS_PLUGIN_PATH": str(tmp_path / "library.so")}
        file = written(tmp_path / "named.jsonl", first._replace(variables=library))
        ((end, why),) = whys(replayed(root, file))
        assert end == "differs here"
        assert why.startswith("the variable LLVM_PASS_PLUGIN_PATH names a file, and is not changed")


class TestAHostileRecipe:
    @pytest.fixture
    def outcome(self, root, tmp_path, few):
        """Replays a recipe, which is a good one but for what a test changes."""
        (first, *_) = read_recipe_file(str(few))

        def replay(**changed: Any) -> tuple[str, str]:
            file = written(tmp_path / "hostile.jsonl", first._replace(**changed))
            ((end, why),) = whys(replayed(root, file))
            return end, why

        return replay

    def value(self, outcome: Any, value: object) -> tuple[str, str]:
        return outcome(constants=(((1,), value), ((2,), 64)))

    @pytest.mark.parametrize("module", ["..os", "/etc/passwd", "os;x"])
    def test_names_no_module(self, outcome, module):
        said = f"{module!r} is no name of a module"
        assert outcome(function=Function(module, "add", None, "")) == ("cannot be imported", said)

    def test_calls_no_function_of_python(self, outcome, tmp_path):
        system = Function("os", "system", None, "")
        said = "os.system is no function of Triton's now"
        assert outcome(function=system) == ("cannot be imported", said)
        named = {"function": ["os", "system", None, ""]}
        assert self.value(outcome, named) == ("cannot be imported", said)

    @pytest.mark.parametrize(
        ("value", "said"),
        [
            ({"enum": ["subprocess", "Popen", "x"]}, "subprocess.Popen is no enum now"),
            ({"enum": ["signal", "Signals", "SIGNOT"]}, "signal.Signals has no member SIGNOT now"),
            (
                {"namedtuple": ["subprocess", "Popen", ["touch"]]},
                "subprocess.Popen is no named tuple now",
            ),
            ({"namedtuple": ["os", "system", ["touch"]]}, "os.system is no class now"),
            (
                {"dataclass": ["subprocess", "Popen", [["args", "x"]]]},
                "subprocess.Popen is no dataclass now",
            ),
            (
                {"dataclass": ["corpus.constants", "AtItsEnd", [["path", "x"]]]},
                "corpus.constants.AtItsEnd does something at its end, and is made by no recipe",
            ),
            ({"torch_dtype": "load"}, "torch has no dtype load, or is not imported"),
        ],
    )
    def test_calls_no_class_of_anybodys(self, outcome, value, said):
        assert self.value(outcome, value) == ("cannot be imported", said)

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                {"ir_override": "/tmp/x.ptx"},
                "the option ir_override is none that a recipe may give",
            ),
            ({"extern_libs": "/tmp/x.bc"}, "the option extern_libs is none that a recipe may give"),
            ({"ptx_options": "-o /etc/passwd"}, "its options for ptxas name a file"),
            ({"ptx_options": "--options-file=x"}, "its options for ptxas name a file"),
        ],
    )
    def test_names_no_file_to_load_or_to_write(self, outcome, options, said):
        assert outcome(options=options) == ("failed", said)

    def test_has_types_of_which_no_argument_is_made(self, outcome):
        types = {
            "out": "tensordesc<fp32[1, 1], Layout()>",
            "VALUE": "constexpr",
            "BLOCK": "constexpr",
        }
        ((end, why)) = outcome(signature=types)
        assert end == "failed"
        assert "no argument can be made for the recorded type" in why

    def test_has_paths_to_nothing(self, outcome):
        end, why = outcome(constants=(((7,), 3),))
        assert end in ("source changed", "failed"), why


def wait_until_waited_for(root: Path) -> None:
    """Until a process sleeps in the lock of a key that another one holds."""
    import time

    (lock,) = root.glob("gpucache/v1/locks/*.lock")
    inode = f":{lock.stat().st_ino} "
    until = time.monotonic() + 60
    while time.monotonic() < until:
        waiting = [line for line in Path("/proc/locks").read_text().splitlines() if "->" in line]
        if any(inode in line for line in waiting):
            return
        time.sleep(0.01)
    raise AssertionError("nobody waits")
