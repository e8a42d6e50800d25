"""Where the functions of recipes are found, what is executed for that, and what is refused.

Triton is stood in for by a class: what counts here is whose code is executed, and which of its functions is meant.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

import pytest
from support import recipes
from support.users import ADA

from gpucache import DeviceCacheRegistry
from gpucache.disk.vetting import Trust
from gpucache.kernels.recipe import Function
from gpucache.warm.replay.functions import Functions, Place, places
from gpucache.warm.replay.source_files import CannotImportError

KERNEL = "from test_functions_kernel import jit\n"
SUPPORT = """
class Kernel:
    def __init__(self, fn):
        self.fn = fn
        self.module = self.__module__ = fn.__module__
        self.cache_key = fn.__doc__ or ""


def jit(fn):
    return Kernel(fn)


class Wrapped:
    def __init__(self, fn):
        self.fn = fn
"""


class Home:
    """A directory on ``sys.path`` in which modules are written, and the functions of one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write("test_functions_kernel", SUPPORT)
        self.functions = self.of_process()

    def of_process(self, **settings: object) -> Functions:
        return Functions(_is_kernel, _all_kernels, Trust(), **settings)  # type: ignore[arg-type]

    def write(self, name: str, text: str) -> str:
        file = self.path / f"{name}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return str(file)

    def find(
        self,
        module: str,
        qualname: str = "add",
        file: str | None = None,
        key: str = "",
        **more: str,
    ) -> object:
        return self.functions.find(Function(module, qualname, file, key), **more)


def _is_kernel(value: object) -> bool:
    return type(value).__name__ == "Kernel"


def _all_kernels() -> list[object]:
    """Those of this test: what other tests have made may still be there."""
    module = sys.modules.get("test_functions_kernel")
    return [value for value in gc.get_objects() if type(value) is getattr(module, "Kernel", None)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path / "path"), *sys.path])
    before = dict(sys.modules)
    yield Home(tmp_path / "path")
    for name in sys.modules.keys() - before.keys():
        del sys.modules[name]


def refusal(home: Home, *words: str, **more: str) -> str:
    with pytest.raises(CannotImportError) as caught:
        home.find(*words, **more)
    return caught.value.reason


ADD = KERNEL + "@jit\ndef add(x):\n    'aa'\n"


class TestAModule:
    def test_is_imported_from_the_path_of_the_caller(self, home):
        home.write("mine/kernels", ADD)
        assert home.find("mine.kernels").fn.__qualname__ == "add"
        assert "mine.kernels" in sys.modules

    def test_is_executed_once_whatever_it_did(self, home):
        home.write("broken", "import sys\nsys.tries = getattr(sys, 'tries', 0) + 1\n1 / 0\n")
        for _ in range(3):
            assert refusal(home, "broken") == "broken: ZeroDivisionError: division by zero"
        assert sys.tries == 1
        del sys.tries

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("raise SystemExit(3)", "SystemExit: 3"),
            ("raise KeyboardInterrupt", "KeyboardInterrupt"),
            ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
            ("import gone_too", "ModuleNotFoundError: No module named 'gone_too'"),
            ("class E(Exception):\n    def __str__(self): 1 / 0\nraise E", "E"),
            ("(", "SyntaxError: '(' was never closed (odd.py, line 1)"),
        ],
    )
    def test_may_raise_anything_and_that_is_told_in_a_line(self, home, text, said):
        file = home.write("odd", text)
        assert refusal(home, "odd", file=file) == f"odd: {said}"

    @pytest.mark.parametrize("name", ["..os", "a..b", "/etc/passwd", "a/b", "a b", "os;x"])
    def test_with_a_name_that_is_none_is_not_looked_for(self, home, name):
        assert refusal(home, name) == f"{name!r} is no name of a module"

    def test_that_was_moved_is_found_where_it_is_now(self, home):
        home.write("mine", ADD)
        assert home.find("mine", file="/gone/mine.py").fn.__qualname__ == "add"


class TestAName:
    def test_may_lead_into_a_class(self, home):
        home.write("m", KERNEL + "class C:\n    @staticmethod\n    @jit\n    def add(x): pass\n")
        assert home.find("m", "C.add").fn.__qualname__ == "C.add"

    def test_leads_through_what_is_wrapped_around_a_kernel(self, home):
        text = KERNEL + "from test_functions_kernel import Wrapped\n"
        home.write("m", text + "@Wrapped\n@Wrapped\n@jit\ndef add(x): pass\n")
        assert _is_kernel(home.find("m"))

    def test_that_is_wrapped_in_itself_ends(self, home):
        home.write("m", "class W: pass\nadd = W()\nadd.fn = add\n")
        assert refusal(home, "m") == "m.add is no function of Triton's now"

    @pytest.mark.parametrize("qualname", ["system", "path.join", "environ", "name"])
    def test_of_anything_else_is_refused_and_not_called(self, home, qualname):
        assert refusal(home, "os", qualname) == f"os.{qualname} is no function of Triton's now"

    def test_that_is_gone_is_told(self, home):
        home.write("m", "")
        assert refusal(home, "m", "gone.there") == "m has no gone.there now"

    def test_of_two_kernels_means_the_one_with_the_recorded_digest(self, home):
        two = "@jit\ndef add(x):\n    'aa'\nfirst = add\n@jit\ndef add(x):\n    'bb'\n"
        home.write("m", KERNEL + two)
        assert home.find("m", key="aa").cache_key == "aa"
        assert home.find("m", key="bb").cache_key == "bb"
        assert home.find("m", key="cc").cache_key == "bb"  # the one by that name, edited

    def test_of_a_kernel_that_only_a_dictionary_holds_is_found(self, home):
        home.write("m", KERNEL + "def add(x):\n    'aa'\nHELD = {1: [jit(add)]}\n")
        assert home.find("m", key="other").cache_key == "aa"

    def test_of_a_kernel_that_a_function_made_is_found_if_an_import_makes_it(self, home):
        made = "def make(n):\n    @jit\n    def add(x):\n        'aa'\n    return add\n"
        home.write("m", KERNEL + made + "kept = make(1)\n")
        home.write("n", KERNEL + made)
        assert home.find("m", "make.<locals>.add", key="aa") is sys.modules["m"].kept
        said = "make.<locals>.add is made inside a function, and an import does not make it"
        assert refusal(home, "n", "make.<locals>.add", key="aa") == said

    def test_of_several_that_a_function_made_means_none_but_by_digest(self, home):
        made = "def make(n):\n    def add(x): pass\n    add.__doc__ = n\n    return jit(add)\n"
        home.write("m", KERNEL + made + "a, b = make('aa'), make('bb')\n")
        assert home.find("m", "make.<locals>.add", key="bb") is sys.modules["m"].b
        assert "made inside a function" in refusal(home, "m", "make.<locals>.add", key="cc")


class TestAFile:
    def test_is_executed_where_no_module_has_the_name(self, home, tmp_path):
        file = tmp_path / "elsewhere.py"
        file.write_text(ADD)
        found = home.find("not_on_the_path", file=str(file))
        assert found.fn.__module__ == "not_on_the_path"
        assert sys.modules["not_on_the_path"].__file__ == str(file)

    def test_is_executed_where_the_module_of_that_name_is_another_one(self, home, tmp_path):
        home.write("mine", "MARK = 1\n")
        file = tmp_path / "mine.py"
        file.write_text(ADD)
        assert home.find("mine", file=str(file)).fn.__qualname__ == "add"
        assert sys.modules["mine"].MARK == 1

    def test_is_not_executed_where_the_module_is_there_and_raises(self, home, tmp_path):
        home.write("mine", "import gone_too\n")
        file = tmp_path / "mine.py"
        file.write_text(ADD)
        assert "gone_too" in refusal(home, "mine", file=str(file))

    def refused(self, home: Home, file: Path) -> str:
        reason = refusal(home, "not_on_the_path", file=str(file))
        assert "not_on_the_path" not in sys.modules
        return reason

    def test_that_everybody_may_write_is_not_executed(self, home, tmp_path):
        file = tmp_path / "open.py"
        file.write_text(ADD)
        file.chmod(0o666)
        way_out = "`chmod o-w` forbids that"
        reason = f"{file} may be written by everybody ({way_out}), and is not executed"
        assert self.refused(home, file) == reason

    def test_in_a_directory_that_everybody_may_write_is_not_executed(self, home, tmp_path):
        directory = tmp_path / "open"
        directory.mkdir()
        directory.chmod(0o777)
        (directory / "mine.py").write_text(ADD)
        assert "everybody may write it (mode 0777)" in self.refused(home, directory / "mine.py")

    @pytest.mark.root
    def test_of_another_user_is_not_executed(self, home, tmp_path):
        file = tmp_path / "foreign.py"
        file.write_text(ADD)
        os.chown(file, ADA, ADA)
        way_out = f"`GPUCACHE_TRUST_UIDS={ADA}` trusts it"
        reason = f"{file} belongs to uid {ADA} ({way_out}), and is not executed"
        assert self.refused(home, file) == reason

    @pytest.mark.root
    def test_of_a_member_is_executed_in_the_root_that_a_group_shares_and_nowhere_else(
        self, home, tmp_path
    ):
        """TorchInductor writes its kernels' sources there."""
        root = tmp_path / "root"
        DeviceCacheRegistry(str(root), environ={"GPUCACHE_FAKE_DEVICES": "1"}).provision(
            sharing="group"
        )
        inside, outside = root / "ab" / "cab.py", tmp_path / "home" / "mine.py"
        for file in (inside, outside):
            file.parent.mkdir()
            file.write_text(ADD)
            for path in (file, file.parent):
                os.chown(path, ADA, root.stat().st_gid)
                path.chmod(0o660 if path == file else 0o2770)
        home.functions = home.of_process(root=str(root))
        assert f"belongs to uid {ADA}" in self.refused(home, outside)
        assert home.find("not_on_the_path", file=str(inside)).fn.__qualname__ == "add"

    @pytest.mark.root
    def test_behind_a_link_of_another_user_is_not_executed(self, home, tmp_path):
        (tmp_path / "mine.py").write_text(ADD)
        link = tmp_path / "link.py"
        link.symlink_to(tmp_path / "mine.py")
        os.chown(link, ADA, ADA, follow_symlinks=False)
        assert "a link of another user's" in self.refused(home, link)

    def test_that_is_none_is_told(self, home, tmp_path):
        assert self.refused(home, tmp_path) == f"{tmp_path}: Is a directory"
        pipe = tmp_path / "pipe.py"
        os.mkfifo(pipe)
        assert self.refused(home, pipe) == f"{pipe} is no plain file, and is not executed"

    def test_that_is_gone_with_its_module_is_told_with_where_modules_are_looked_for(
        self, home, tmp_path
    ):
        assert self.refused(home, tmp_path / "gone.py") == (
            "no module not_on_the_path is on PYTHONPATH or in the current directory, "
            f"and {tmp_path}/gone.py is gone"
        )

    @pytest.mark.parametrize("file", ["<stdin>", "<ipython-input-1>", "/tmp/ipykernel_7/1.py"])
    def test_that_was_typed_is_told_as_such(self, home, file):
        assert "in a notebook, on stdin or from a text" in refusal(home, "typed", file=file)
        assert "in a notebook, on stdin or from a text" in refusal(home, "__main__", file=file)


class TestACarriedRecipe:
    """One whose file is relative, since it was recorded on another machine."""

    def test_finds_its_module_wherever_that_is_here(self, home):
        home.write("mine/kernels", ADD)
        assert home.find("mine.kernels", file="mine/kernels.py").fn.__qualname__ == "add"

    def test_without_its_module_is_told_with_where_modules_are_looked_for(self, home):
        looked = "is on PYTHONPATH or in the current directory"
        said = f"no module mine.kernels, and no mine/kernels.py, {looked}"
        assert refusal(home, "mine.kernels", file="mine/kernels.py") == said

    def test_of_a_file_that_no_module_can_be_is_found_in_the_current_directory(
        self, home, tmp_path, monkeypatch
    ):
        (tmp_path / "my-kernels.py").write_text(ADD)
        monkeypatch.chdir(tmp_path)
        assert home.find("my-kernels", file="my-kernels.py").fn.__qualname__ == "add"

    def test_of_a_file_to_which_no_name_leads_is_found_on_the_path(self, home):
        file = home.write("apart", ADD)
        assert home.find("loaded_by_its_path", file="apart.py").fn.__qualname__ == "add"
        assert sys.modules["loaded_by_its_path"].__file__ == file

    def test_of_a_program_means_the_file_of_that_name(self, home):
        home.functions = home.of_process(main=home.write("train", ADD))
        assert home.find("__main__", file="train.py").fn.__qualname__ == "add"

    def test_of_a_notebook_is_told_as_such(self, home):
        assert "in a notebook, on stdin" in refusal(home, "__main__", file="<notebook>")

    def test_with_a_kept_source_is_executed_and_inspect_finds_its_lines(self, home):
        import inspect

        home.functions = home.of_process(sources=True)
        found = home.find("torch.gone.c1", file="c1.py", source=ADD)
        assert inspect.getsource(found.fn) == "@jit\ndef add(x):\n    'aa'\n"


class TestTheProgramsOwnFile:
    def test_is_not_executed_unless_it_is_named(self, home):
        file = home.write("train", "raise SystemExit\n")
        said = (
            f"it is of the program's own file, {file}, and that is executed only if --main names it"
        )
        assert refusal(home, "__main__", file=file) == said
        assert refusal(home, "__mp_main__", file=file) == said

    def test_is_executed_beside_its_neighbours_and_not_as_a_program(self, home, tmp_path):
        main = tmp_path / "scripts/train.py"
        main.parent.mkdir()
        (main.parent / "neighbour.py").write_text("VALUE = 3\n")
        text = ADD + "import neighbour\nif __name__ == '__main__':\n    raise SystemExit\n"
        main.write_text(text)
        home.functions = home.of_process(main=str(main))
        found = home.find("__main__", file="/elsewhere/train.py")
        # as the program calls it: this is part of some keys
        assert (found.module, found.fn.__module__) == ("__main__", "__main__")
        assert found.fn.__globals__["__name__"] == "__main__"
        assert sys.modules["__main__"].__dict__ is not found.fn.__globals__

    def test_of_another_name_is_not_taken_for_it(self, home):
        home.functions = home.of_process(main=home.write("serve", ADD))
        said = f"it is of /work/train.py, and --main names {home.path}/serve.py"
        assert refusal(home, "__main__", file="/work/train.py") == said


class TestAKeptSource:
    def test_is_not_executed_unless_recipes_are_vetted(self, home):
        assert "somebody else may have written" in refusal(home, "gone", source=ADD)

    def test_is_executed_and_inspect_finds_its_lines(self, home, tmp_path):
        import inspect

        home.functions = home.of_process(sources=True)
        found = home.find("torch.gone.c1", file=str(tmp_path / "gone.py"), source=ADD)
        assert inspect.getsource(found.fn) == "@jit\ndef add(x):\n    'aa'\n"
        assert inspect.getsourcelines(found.fn)[1] == 2


def test_all_that_a_recipe_names_is_told_before_it_is_imported():
    named = recipes.recipe(
        constants=(
            ((1,), {"tuple": [{"function": ["a.b", "f", "/x.py", ""]}, {"enum": ["c", "E", "M"]}]}),
            ((2,), {"namedtuple": ["d", "T", [{"dataclass": ["e", "D", [["f", 1]]]}]]}),
        ),
        options={"o": {"function": ["g", "h", None, ""]}},
    )
    assert places(named)[0] == Place(named.function.module, named.function.file, None)
    assert set(places(named)[1:]) == {
        Place("a.b", "/x.py"),
        Place("c"),
        Place("d"),
        Place("e"),
        Place("g"),
    }
    assert Place("a.b").package == "a"
    assert Place("__main__").package == Place("a.b", None, "source").package == ""
