"""Whole or not at all, and for whoever the umask lets read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.bundle import write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policy import SchedulingPolicy, Score
from lengthwise.predictors import load_predictor, make_predictor
from lengthwise.writing import whole_file, whole_folder


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Permissions of a folder and of all that is in it."""
    found = {"": folder, **{str(p.relative_to(folder)): p for p in folder.rglob("*")}}
    return {name: stat.S_IMODE(path.stat().st_mode) for name, path in found.items()}


def test_predictors_and_bundles_have_the_modes_of_any_other_file(
    umask: int, tmp_path: Path
) -> None:
    prompts = [f"{'word ' * n}please" for n in range(1, 41)]
    make_predictor("ridge").fit(prompts, np.arange(1, 41) * 5).save(tmp_path / "p")
    net = MLP(np.zeros(1), np.ones(1), np.array([False]), ((np.array([[-1.0]]), np.zeros(1)),))
    bundle = SchedulingPolicy(Score("net", net, ("prompt_tokens",)))
    for _ in range(2):  # the second takes the place of the first
        write_bundle(bundle, tmp_path / "b")
    for folder, files in ((tmp_path / "p", 3), (tmp_path / "b", 3)):
        found = modes(folder)
        assert len(found) == 1 + files  # its description, its arrays, and its card
        assert found.pop("") == 0o777 & ~umask
        assert set(found.values()) == {0o666 & ~umask}, found


def test_a_file_keeps_its_content_until_the_new_one_is_whole(umask: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(RuntimeError), whole_file(path) as fresh:
        fresh.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    with whole_file(path) as fresh:
        fresh.write_text("new")
        fresh.chmod(0o600)  # as libraries do
    assert path.read_text() == "new"
    assert modes(tmp_path).pop("file") == 0o666 & ~umask
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_keeps_its_content_until_the_new_one_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "in" / "folder"
    with whole_folder(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), whole_folder(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    assert list(target.parent.iterdir()) == [target]


def test_weights_that_can_t_be_read_say_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = [f"{'word ' * n}please" for n in range(1, 41)]
    make_predictor("ridge").fit(prompts, np.arange(1, 41) * 5).save(tmp_path / "p")

    def forbidden(path: Path) -> None:  # as safetensors raises it: without an errno
        raise PermissionError("Permission denied (os error 13)")

    monkeypatch.setattr("safetensors.numpy.load_file", forbidden)
    with pytest.raises(InputError, match=r"can't read .*/p': Permission denied"):
        load_predictor(tmp_path / "p")
