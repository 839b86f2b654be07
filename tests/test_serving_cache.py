"""Machine code on disk: what is damaged, foreign or can't be written costs time, nothing else."""

import ast
import os
import resource
import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from lengthwise.serving.fast.compiler import build, cache, score

CODE = bytes(range(256)) * 20
RUN = """
import sys, warnings
warnings.simplefilter("always")
import numpy as np, lengthwise as lw
from lengthwise.policies import load_policy, load_router
from lengthwise.serving import Node, System, run
ones = np.ones(9, int)
w = lw.Workload({"arrival_s": np.arange(9.0), "prompt_tokens": ones, "output_tokens": ones})
node = Node(lw.Engine(num_gpu_blocks=9), lw.LinearTiming(base_s=0.5), load_policy("sjf"))
r = run(w, System((node,), load_router("jsq")), ones * 1.0, backend="fast")
assert r.finish_ps.tolist() == [(2 * i + 1) * 10**12 // 2 for i in range(9)]
print("numba" in sys.modules)
"""


@pytest.fixture
def kernels(tmp_path, monkeypatch):
    """The folder of machine code of a fresh user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache.folder.cache_clear()
    cache._SAID.clear()
    yield tmp_path / "lengthwise" / "kernels"
    cache.folder.cache_clear()
    cache._SAID.clear()


def simulate(base, **options):
    """A run in a process of its own: whether it compiled, and what it said."""
    env = {**os.environ, "XDG_CACHE_HOME": str(base)}
    done = subprocess.run(
        [sys.executable, "-c", RUN], env=env, capture_output=True, text=True, check=True, **options
    )
    said = [line for line in done.stderr.splitlines() if "lengthwise: " in line]
    return done.stdout.strip() == "True", said


def test_what_is_written_is_read(kernels):
    cache.write("code", CODE)
    assert cache.read("code") == CODE
    assert os.listdir(kernels) == ["code.o"]
    assert cache.read("other") is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda code: b"",
        lambda code: code[:10],
        lambda code: code[:-1],
        lambda code: code[1:],
        lambda code: code + b"\0",
        lambda code: code[:700] + bytes([code[700] ^ 1]) + code[701:],
        lambda code: b"\0" * len(code),
    ],
)
def test_a_damaged_file_is_not_read(kernels, damage):
    cache.write("code", CODE)
    path = kernels / "code.o"
    path.write_bytes(damage(path.read_bytes()))
    assert cache.read("code") is None


def test_damaged_machine_code_is_compiled_again_and_replaced(tmp_path):
    assert simulate(tmp_path) == (True, [])
    made = {p: p.read_bytes() for p in (tmp_path / "lengthwise" / "kernels").glob("*.o")}
    assert {path.name.split("_")[0] for path in made} == {"run", "sjf"}
    # what a fresh user has then is machine code and nothing else
    assert set((tmp_path / "lengthwise" / "kernels").iterdir()) == set(made)
    for part, (path, whole) in zip((0, 0.5), sorted(made.items()), strict=True):
        path.write_bytes(whole[: int(part * len(whole))])
    assert simulate(tmp_path) == (True, [])
    assert simulate(tmp_path) == (False, [])
    assert all(len(path.read_bytes()) == len(whole) for path, whole in made.items())


def test_a_file_that_others_may_write_is_replaced_with_a_notice(kernels):
    cache.write("code", CODE)
    (kernels / "code.o").chmod(0o666)
    with pytest.warns(UserWarning, match=r"code.o can be written to by other users .chmod go-w"):
        assert cache.read("code") is None
    cache.write("code", CODE)
    assert cache.read("code") == CODE


def test_another_user_s_file_and_a_link_are_not_read(kernels, monkeypatch):
    cache.write("code", CODE)
    (kernels / "link.o").symlink_to(kernels / "code.o")
    assert cache.read("link") is None
    monkeypatch.setattr(cache.os, "geteuid", lambda: os.getuid() + 1)
    with pytest.warns(UserWarning, match="belongs to another user"):
        assert cache.read("code") is None


def test_a_pipe_or_a_folder_in_place_of_code_is_not_waited_for(kernels):
    cache.write("code", CODE)
    (kernels / "code.o").unlink()
    os.mkfifo(kernels / "code.o")
    assert cache.read("code") is None
    cache.write("code", CODE)
    assert cache.read("code") == CODE
    (kernels / "more.o").mkdir()
    assert cache.read("more") is None


@pytest.mark.parametrize("mode", [0o777, 0o770])
def test_a_folder_that_others_may_write_holds_no_machine_code(kernels, mode):
    kernels.mkdir(parents=True)
    kernels.chmod(mode)
    with pytest.warns(UserWarning, match="no machine code is kept: .* by other users") as said:
        cache.write("code", CODE)
        cache.write("more", CODE)
    assert cache.read("code") is None
    assert len(said) == 1 and os.listdir(kernels) == []


def test_a_home_that_can_t_be_written_is_one_notice(tmp_path):
    (tmp_path / "file").write_text("")
    compiled, said = simulate(tmp_path / "file")
    assert compiled and len(said) == 1 and "can't be made: Not a directory" in said[0]


def test_a_full_disk_is_one_notice_and_leaves_nothing_behind(tmp_path):
    def little():  # no file may become larger: what a quota does
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    compiled, said = simulate(tmp_path, preexec_fn=little)
    assert compiled and len(said) == 1 and "can't keep machine code in" in said[0]
    assert os.listdir(tmp_path / "lengthwise" / "kernels") == []


def test_the_folder_is_the_user_s_alone_whatever_the_umask(kernels):
    before = os.umask(0)
    try:
        cache.write("code", CODE)
    finally:
        os.umask(before)
    assert kernels.stat().st_mode & 0o777 == 0o700
    assert (kernels / "code.o").stat().st_mode & 0o777 == 0o600
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cache.read("code") == CODE


class Asked(Exception):
    """For the code under a name, which is not there yet."""


@pytest.fixture
def stem(monkeypatch):
    """The name that the fast engine's code has now."""

    def ask(stem, names):
        raise Asked(stem)

    def stem():
        with pytest.raises(Asked) as asked:
            build.compiled.__wrapped__(PREFIX=True, STOPS=True)
        return str(asked.value)

    monkeypatch.setattr(build, "load", ask)
    return stem


def test_code_is_kept_under_a_name_that_every_number_in_it_changes(stem, monkeypatch):
    """Those that stand in other modules, too: an upgrade must not run what it replaced."""
    before, seen = stem(), []
    assert stem() == before
    for node in ast.parse(build.source({})).body:
        if not isinstance(node, ast.ImportFrom) or not node.module.startswith("lengthwise."):
            continue
        for name in (one.name for one in node.names):
            value = getattr(import_module(node.module), name)
            if isinstance(value, int | float) and not node.module.endswith("fast.state"):
                seen.append(name)
                with monkeypatch.context() as changed:
                    changed.setattr(import_module(node.module), name, -1 - value)
                    assert stem() != before, name
    assert {"PS", "LAST_PS", "HOLD", "FAIL", "FRACTION", "WINDOW", "LN2_HIGH"} <= set(seen)


def test_code_is_kept_under_a_name_that_every_source_of_it_changes(stem, monkeypatch, tmp_path):
    before, plain = stem(), build._file
    (tmp_path / "other.py").write_text("")
    for name in (*build.PARTS, *build.TYPES, build.TABLES, "compiler/build"):
        monkeypatch.setattr(
            build, "_file", lambda n, name=name: tmp_path / "other.py" if n == name else plain(n)
        )
        assert stem() != before, name
    one = score._stem("srtf", {}, "")
    assert one != score._stem("srtf", {}, "x") and one.startswith("srtf_")
    for i in range(len(score.COMPILER)):
        other = [*score.COMPILER[:i], tmp_path / "other.py", *score.COMPILER[i + 1 :]]
        monkeypatch.setattr(score, "COMPILER", other)
        assert score._stem("srtf", {}, "") != one
        monkeypatch.undo()
