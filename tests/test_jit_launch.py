"""What `launch_environ`, `registry.environ` and `gpucache run --caches` do with the JIT caches of a node."""

from __future__ import annotations

import os
import stat
import sys
import tempfile
from pathlib import Path

import pytest

from gpucache import ConfigurationError, DeviceCacheRegistry, launch_environ
from gpucache.directories import jit_directories, jit_environ, jit_level
from gpucache.layout.jit_caches import JIT_CACHES, by_name

pytestmark = pytest.mark.usefixtures("bare_dev")

BY_SHELL = {"deepgemm", "trtllm-deepgemm", "sglang", "vllm"}
ON = [cache for cache in JIT_CACHES if cache.kind == "on"]


@pytest.fixture(autouse=True)
def root_elsewhere(tmp_path, monkeypatch):
    """The temporary directory is none in which the root lies, and torch is a CPU build."""
    monkeypatch.setattr(tempfile, "tempdir", f"{tmp_path}/elsewhere")
    monkeypatch.setattr(jit_level, "torch_version", lambda path: "2.13.0+cu130")


@pytest.fixture
def base(tmp_path) -> dict[str, str]:
    """The environment of a user with one H100, who has set nothing, and whose home is empty."""
    environ = {"GPUCACHE_DIR": str(tmp_path / "root"), "PATH": "/bin", "HOME": str(tmp_path)}
    return {**environ, "GPUCACHE_FAKE_DEVICES": "1xH100:9.0"}


def outcomes(report) -> dict[str, str]:
    return {place.cache.name: place.outcome for place in report.jit.places}


def launched(base, *names, **options):
    return launch_environ(base, caches=names, **options)


class TestWhatIsSet:
    def test_nothing_unless_asked(self, base, tmp_path):
        environ, report = launch_environ(base)
        assert report.jit is None
        assert not (tmp_path / "root/jit").exists()
        assert not {name for cache in JIT_CACHES for name, _ in cache.variables} & environ.keys()

    def test_all_sets_every_variable_of_the_rows_that_are_on_and_no_other(self, base):
        environ, report = launched(base, "all")
        assert outcomes(report) == {cache.name: "placed" for cache in ON}
        for cache in JIT_CACHES:
            for name, _ in cache.variables:
                assert (name in environ) == (cache.kind == "on"), name

    def test_every_directory_is_absolute_there_and_closed_to_others(self, base, tmp_path):
        before = os.umask(0)
        try:
            environ, report = launched(base, "all")
        finally:
            os.umask(before)
        for place in report.jit.places:
            directory = Path(environ[place.cache.variable])
            assert directory.is_absolute()
            assert directory == Path(place.directory)
            for step in (
                directory,
                tmp_path / "root/jit",
                tmp_path / "root/jit" / place.cache.name,
            ):
                assert stat.S_IMODE(step.stat().st_mode) == 0o700

    def test_a_row_that_switches_something_on_is_set_by_its_name_with_its_companion(self, base):
        environ, _ = launched(base, "all", "jax")
        assert environ["JAX_COMPILATION_CACHE_DIR"].endswith("/root/jit/jax")
        assert environ["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"

    def test_levels_name_what_the_software_leaves_out(self, base):
        environ, _ = launched(base, "torch-extensions", "vllm", "aiter", "tilelang")
        python = f"cp{sys.version_info.major}{sys.version_info.minor}"
        level = environ["TORCH_EXTENSIONS_DIR"].rpartition("/")[2]
        assert level == f"{python}-torch2.13.0+cu130-sm_90"
        assert environ["VLLM_CACHE_ROOT"].endswith("/jit/vllm/sm_90")
        assert environ["AITER_JIT_DIR"].endswith("/jit/aiter/sm_90")
        assert environ["TILELANG_CACHE_DIR"].endswith("/jit/tilelang")

    def test_sglang_finds_deepgemms_kernels_where_deepgemm_does(self, base):
        environ, _ = launched(base, "all")
        assert environ["SGLANG_DG_CACHE_DIR"] == environ["DG_JIT_CACHE_DIR"]

    def test_sglang_alone_finds_deepgemms_directory_which_deepgemm_does_not_make(self, base):
        environ, _ = launched(base, "sglang")
        assert stat.S_IMODE(os.stat(environ["SGLANG_DG_CACHE_DIR"]).st_mode) == 0o700

    def test_the_variable_chooses_as_the_option_does_and_the_option_wins(self, base):
        environ, _ = launch_environ({**base, "GPUCACHE_CACHES": "warp"})
        assert "WARP_CACHE_PATH" in environ
        environ, _ = launched({**base, "GPUCACHE_CACHES": "warp"}, "tilelang")
        assert "WARP_CACHE_PATH" not in environ
        assert environ["GPUCACHE_CACHES"] == "tilelang"
        environ, report = launched({**base, "GPUCACHE_CACHES": "warp"}, "none")
        assert report.jit.places == ()
        assert "WARP_CACHE_PATH" not in environ


class TestWhatTheUserHasSet:
    @pytest.mark.parametrize("cache", ON, ids=lambda cache: cache.name)
    def test_stays_with_every_other_variable_of_the_row_unset(self, base, cache):
        given = {**base, cache.variable: "/mine"}
        environ, report = launched(given, cache.name)
        assert environ[cache.variable] == "/mine"
        assert outcomes(report) == {cache.name: "yours"}
        for name, _ in cache.variables[1:]:
            assert name not in environ
        (kept,) = [setting for setting in report.settings if setting.name == cache.variable]
        assert (kept.action, kept.by) == ("kept", "user")

    def test_of_deepgemms_place_holds_for_sglang_too(self, base):
        environ, _ = launched({**base, "DG_JIT_CACHE_DIR": "/mine"}, "all")
        assert environ["SGLANG_DG_CACHE_DIR"] == "/mine"

    def test_of_deepgemms_place_is_forced_for_sglang_too_if_deepgemm_is_chosen(self, base):
        given = {**base, "DG_JIT_CACHE_DIR": "/mine", "SGLANG_CACHE_DIR": "/mine"}
        environ, _ = launched(given, "all", force=True)
        assert environ["SGLANG_DG_CACHE_DIR"] == environ["DG_JIT_CACHE_DIR"] != "/mine"
        environ, _ = launched(given, "sglang", force=True)
        assert environ["SGLANG_DG_CACHE_DIR"] == environ["DG_JIT_CACHE_DIR"] == "/mine"

    def test_by_another_name_counts_as_well(self, base):
        environ, report = launched({**base, "DJ_JIT_CACHE_DIR": "/mine"}, "deepgemm")
        assert outcomes(report) == {"deepgemm": "yours"}
        assert "DG_JIT_CACHE_DIR" not in environ

    def test_empty_counts_as_unset(self, base):
        environ, _ = launched({**base, "WARP_CACHE_PATH": ""}, "warp")
        assert environ["WARP_CACHE_PATH"].endswith("/jit/warp")

    def test_is_replaced_by_force(self, base):
        environ, report = launched({**base, "WARP_CACHE_PATH": "/mine"}, "warp", force=True)
        assert environ["WARP_CACHE_PATH"].endswith("/jit/warp")
        assert outcomes(report) == {"warp": "placed"}

    def test_a_companion_of_the_users_stays(self, base):
        name = "JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"
        environ, _ = launched({**base, name: "all"}, "jax")
        assert environ[name] == "all"
        assert environ["JAX_COMPILATION_CACHE_DIR"].endswith("/jit/jax")


class TestNested:
    def test_an_inner_call_finds_the_outer_ones_choice_and_replaces_its_values(
        self, base, tmp_path
    ):
        outer, _ = launched({**base, "GPUCACHE_FAKE_DEVICES": "1xA100:8.0"}, "vllm", "warp")
        inner, _ = launch_environ(
            {**outer, "GPUCACHE_FAKE_DEVICES": "1xH100:9.0"}, root=f"{tmp_path}/other"
        )
        assert outer["VLLM_CACHE_ROOT"] == f"{tmp_path}/root/jit/vllm/sm_80"
        assert inner["VLLM_CACHE_ROOT"] == f"{tmp_path}/other/jit/vllm/sm_90"
        assert inner["WARP_CACHE_PATH"] == f"{tmp_path}/other/jit/warp"

    def test_an_inner_call_with_other_names_takes_the_outer_ones_away(self, base):
        outer, _ = launched(base, "vllm", "warp")
        inner, _ = launched(outer, "tilelang")
        assert {"VLLM_CACHE_ROOT", "WARP_CACHE_PATH"}.isdisjoint(inner)
        assert "TILELANG_CACHE_DIR" in inner

    def test_what_the_user_has_changed_in_between_stays(self, base):
        outer, _ = launched(base, "warp")
        inner, report = launch_environ({**outer, "WARP_CACHE_PATH": "/mine"})
        assert inner["WARP_CACHE_PATH"] == "/mine"
        assert outcomes(report) == {"warp": "yours"}

    def test_a_third_call_still_knows_them_as_its_own(self, base):
        environ, _ = launched(base, "warp")
        environ, _ = launch_environ(environ)
        environ, report = launched(environ, "none")
        assert "WARP_CACHE_PATH" not in environ
        assert report.jit.places == ()


class TestWhatCannotBeHad:
    def test_an_unknown_name_is_an_error_with_the_nearest(self, base):
        with pytest.raises(ConfigurationError, match="the nearest is flashinfer"):
            launched(base, "flashinfr")

    def test_in_the_variable_it_is_a_warning_and_the_rest_goes_on(self, base):
        environ, report = launch_environ({**base, "GPUCACHE_CACHES": "flashinfr"})
        assert report.jit is None
        assert any("the nearest is flashinfer" in warning for warning in report.warnings)
        assert environ["TRITON_CACHE_DIR"].endswith("/triton/0")

    def test_no_level_without_an_architecture_or_with_several(self, base):
        _, report = launched({**base, "GPUCACHE_FAKE_DEVICES": "1"}, "vllm", "torch-extensions")
        assert set(outcomes(report).values()) == {"no-arch"}
        registry = DeviceCacheRegistry(environ={**base, "GPUCACHE_FAKE_DEVICES": "2xH100:9.0"})
        here = jit_environ.Here(registry.root, ("sm_80", "sm_90"), {})
        (place,) = jit_environ.places([by_name("vllm")], here)
        assert (place.outcome, place.variables) == ("several-archs", ())
        assert "--device" in place.why

    def test_no_level_for_extensions_where_gpucache_has_no_torch(self, base, monkeypatch):
        monkeypatch.setattr(jit_level, "torch_version", lambda path: None)
        environ, report = launched(base, "torch-extensions")
        assert outcomes(report) == {"torch-extensions": "no-torch"}
        assert "TORCH_EXTENSIONS_DIR" not in environ

    def test_sglang_stays_unset_below_the_temporary_directory(self, base, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        environ, report = launched(base, "all")
        assert {name: word for name, word in outcomes(report).items() if word != "placed"} == {
            "sglang": "in-tmp"
        }
        assert not {name for name in environ if name.startswith("SGLANG")}

    def test_what_needs_a_local_file_system_stays_unset_on_a_network_one(self, base, monkeypatch):
        monkeypatch.setattr(jit_environ, "network_file_system", lambda path: "nfs4")
        environ, report = launched(base, "all")
        unset = {name for name, word in outcomes(report).items() if word == "network"}
        assert unset == {cache.name for cache in ON if cache.needs_local}
        assert "FLASHINFER_WORKSPACE_BASE" not in environ
        assert "TILELANG_CACHE_DIR" in environ

    @pytest.mark.parametrize(
        ("name", "unset"),
        [
            ("a b", {"flashinfer", "tvm-ffi"} | BY_SHELL),
            ("a$b", {"flashinfer", "tvm-ffi"} | BY_SHELL),
            ("a:b", {"flashinfer"}),
            ("a(b", BY_SHELL),
            ("a\udcff", {cache.name for cache in ON}),
            ("a+b,c=d%ä", set()),
        ],
    )
    def test_a_path_that_breaks_a_software_is_not_given_to_it(self, base, tmp_path, name, unset):
        root = tmp_path / name / "root"
        root.parent.mkdir()
        environ, report = launched({**base, "GPUCACHE_DIR": str(root)}, "all")
        assert {cache for cache, word in outcomes(report).items() if word == "odd-path"} == unset
        assert ("TVM_FFI_CACHE_DIR" in environ) == ("tvm-ffi" not in unset)

    def test_a_directory_that_others_may_write_is_not_used(self, base, tmp_path):
        launched(base, "warp", "tilelang")
        (tmp_path / "root/jit/warp").chmod(0o777)
        environ, report = launched(base, "warp", "tilelang")
        assert outcomes(report) == {"warp": "unsafe", "tilelang": "placed"}
        assert "WARP_CACHE_PATH" not in environ

    def test_a_file_in_the_way_leaves_the_cache_where_it_was(self, base, tmp_path):
        launch_environ(base)
        (tmp_path / "root/jit").mkdir(mode=0o700)
        (tmp_path / "root/jit/warp").write_text("in the way")
        environ, report = launched(base, "warp", "tilelang")
        assert outcomes(report) == {"warp": "not-writable", "tilelang": "placed"}
        assert "WARP_CACHE_PATH" not in environ

    def test_what_no_variable_moves_is_told_to_whoever_names_it(self, base):
        environ, report = launched(base, "cuda-core")
        (place,) = report.jit.places
        assert place.outcome == "by-hand"
        assert "FileStreamProgramCache(path=" in place.why
        assert "XDG_CACHE_HOME" not in environ


class TestWhatIsLeftBehind:
    @pytest.fixture
    def warm(self, tmp_path) -> Path:
        """A home with a warm cache of TileLang's, which moves, and of tvm-ffi's, which does not."""
        for path in (".tilelang/cache/0.1.15/x/kernels/K/k.so", ".cache/tvm-ffi/m_1/m.so"):
            file = tmp_path / path
            file.parent.mkdir(parents=True)
            file.write_bytes(b"x" * 1000)
        return tmp_path

    def test_the_first_run_finds_it_and_no_later_one_does(self, base, warm):
        _, report = launched(base, "all")
        found = {behind.cache.name: behind for behind in report.jit.left}
        assert found.keys() == {"tilelang", "tvm-ffi"}
        assert found["tilelang"].path == f"{warm}/.tilelang/cache"
        assert found["tilelang"].logical_bytes == 1000
        _, report = launched(base, "all")
        assert report.jit.left == ()

    def test_of_two_first_runs_at_once_one_finds_it(self, base, warm, tmp_path, monkeypatch):
        vet_child = jit_directories.vet_child

        def another_is_faster(path, trust):
            there = vet_child(path, trust)
            if path == f"{tmp_path}/root/jit/tilelang" and not there:
                os.mkdir(path, 0o700)
            return there

        monkeypatch.setattr(jit_directories, "vet_child", another_is_faster)
        _, report = launched(base, "tilelang")
        assert outcomes(report) == {"tilelang": "placed"}
        assert report.jit.left == ()

    def test_not_of_caches_that_the_user_keeps(self, base, warm):
        _, report = launched({**base, "TILELANG_CACHE_DIR": "/mine"}, "tilelang")
        assert report.jit.left == ()

    def test_not_where_a_link_leads_to_the_root_already(self, base, tmp_path):
        (tmp_path / "root/jit/tilelang").mkdir(parents=True, mode=0o700)
        (tmp_path / ".tilelang").mkdir()
        (tmp_path / ".tilelang/cache").symlink_to(tmp_path / "root/jit/tilelang")
        (tmp_path / "root/jit/tilelang/file").write_text("x")
        (place,) = jit_environ.places(
            [by_name("tilelang")], jit_environ.Here(base["GPUCACHE_DIR"], (), base)
        )
        assert jit_directories.left_behind(base["GPUCACHE_DIR"], place, base) is None

    def test_helions_configurations_in_the_root_itself_count(self, base, tmp_path):
        launch_environ(base)
        (tmp_path / "root/helion").mkdir()
        (tmp_path / "root/helion/k.best_config").write_text("{}")
        _, report = launched(base, "helion")
        (behind,) = report.jit.left
        assert behind.path == f"{tmp_path}/root/helion"


class TestRegistry:
    def test_environ_adds_the_caches_and_makes_their_directories(self, base, tmp_path):
        registry = DeviceCacheRegistry(environ=base)
        registry.provision()
        variables = registry.environ(0, caches=["warp", "jax"], given=base)
        assert registry.environ(0, caches="warp,jax", given=base) == variables
        assert variables["WARP_CACHE_PATH"] == f"{tmp_path}/root/jit/warp"
        assert variables["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"
        assert (tmp_path / "root/jit/warp").is_dir()
        assert "WARP_CACHE_PATH" not in registry.environ(0)

    def test_environ_leaves_out_what_is_given(self, base):
        registry = DeviceCacheRegistry(environ=base)
        registry.provision()
        given = {**base, "WARP_CACHE_PATH": "/mine"}
        assert "WARP_CACHE_PATH" not in registry.environ(0, caches=["warp"], given=given)


class TestTorchVersion:
    @pytest.mark.parametrize(
        ("text", "version"),
        [
            ("__version__ = '2.14.1+cu130'\ncuda = '13.0'\n", "2.14.1+cu130"),
            ('from x import y\n__version__ = "2.13.0+cpu"\n', "2.13.0+cpu"),
            ("__version__ = '../../x'\n", None),
            ("", None),
        ],
    )
    def test_is_read_without_an_import(self, tmp_path, monkeypatch, text, version):
        monkeypatch.undo()
        (tmp_path / "torch").mkdir()
        (tmp_path / "torch/version.py").write_text(text)
        assert jit_level.torch_version([str(tmp_path / "none"), str(tmp_path)]) == version


def test_run_says_once_what_is_left_behind_and_what_stays_unset(gpucache, base, tmp_path):
    """And the command that is named takes the cache along."""
    kept = tmp_path / ".tilelang/cache/0.1.15/linux/kernels/K/kernel_lib.so"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"library")
    lost = tmp_path / ".cache/tvm-ffi/m_1/m.so"
    lost.parent.mkdir(parents=True)
    lost.write_bytes(b"library")
    environ = {**os.environ, **base, "TMPDIR": str(tmp_path)}
    first = gpucache("run", "--caches", "tilelang,tvm-ffi,sglang", "--", "true", env=environ)
    assert first.returncode == 0
    said = [line for line in first.stderr.splitlines() if line.startswith("note: ")]
    stays, moves, rebuilt = said
    assert stays.startswith(
        "note: sglang is not put into the root, and SGLANG_CACHE_DIR stays as it is"
    )
    assert f"tilelang had 7 B in {tmp_path}/.tilelang/cache, which is used no more; `cp " in moves
    assert "tvm-ffi" in rebuilt
    assert "cannot be moved (build.ninja holds absolute paths)" in rebuilt
    command = moves.split("`")[1]
    assert os.system(command) == 0
    copied = tmp_path / "root/jit/tilelang/0.1.15/linux/kernels/K/kernel_lib.so"
    assert copied.read_bytes() == b"library"
    again = gpucache("run", "--caches", "tilelang,tvm-ffi,sglang", "--", "true", env=environ)
    assert "used no more" not in again.stderr


def test_env_prints_the_caches_variables_once_more_alike(gpucache, base, tmp_path):
    environ = {**os.environ, **base}
    assert gpucache("provision", env=environ).returncode == 0
    done = gpucache("env", "0", "--caches", "warp", "--format", "dotenv", env=environ)
    lines = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert lines["WARP_CACHE_PATH"].strip("'\"") == f"{tmp_path}/root/jit/warp"
    named = gpucache("env", "0", "--caches", "wrap", env=environ)
    assert named.returncode == 2
    assert "the nearest is warp" in named.stderr


def test_what_several_caches_lack_is_said_in_one_line(gpucache, base, tmp_path):
    environ = {**os.environ, **base, "TMPDIR": str(tmp_path / "elsewhere")}
    assert gpucache("run", "--", "true", env=environ).returncode == 0
    (tmp_path / "root/jit").write_text("in the way")
    said = gpucache("run", "--caches", "warp,tilelang,quack", "--", "true", env=environ).stderr
    (line,) = [line for line in said.splitlines() if line.startswith("note: ")]
    assert line.startswith("note: tilelang, quack, warp are not put into the root, and their ")
    assert "Not a directory" in line


def test_du_shows_only_caches_that_hold_something(gpucache, base, tmp_path):
    environ = {**os.environ, **base}
    words = ("run", "--caches", "warp,tilelang", "--", "true")
    assert gpucache(*words, env=environ).returncode == 0
    (tmp_path / "root/jit/warp/module").write_bytes(b"x" * 1000)
    rows = gpucache("du", env=environ).stdout.splitlines()
    assert [row.split("\t")[:4] for row in rows if row.startswith("jit/")] == [
        ["jit/warp", "1", "1000", "1000"]
    ]
