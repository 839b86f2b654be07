"""Spoiled inputs of every kind: what comes back is a result or one line; the longer run's twin.

`make fuzz` tries thousands of each kind in workers of their own; here hypothesis draws a few, and
shrinks what escapes. What once escaped lies in ``tests/fuzz/corpus`` and is tried each time.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.kinds import KINDS, Kind, beside, outcome

CORPUS = Path(__file__).parent / "fuzz" / "corpus"
FEW = 40  # of each kind; loading an encoder takes longer
HEAVY = {"encoder": 5, "command": 15, "bundle": 15}


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What is right, made once a kind."""
    return {"": tmp_path_factory.mktemp("right")}


def _base(right: dict[str, Path], name: str, kind: Kind) -> Path:
    if name not in right:
        base = right[""] / name
        base.mkdir()
        kind.prepare(base)
        right[name] = base
    return right[name]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_only_our_own_errors_come_back(
    name: str, right: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "encoder":
        pytest.importorskip("transformers")
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    kind = KINDS[name]
    base = _base(right, name, kind)
    seen = set()

    @settings(
        max_examples=HEAVY.get(name, FEW), deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False))
    def tried(rng: Random) -> None:
        with tempfile.TemporaryDirectory() as folder:
            seen.add(outcome(kind.run, kind.make(rng, base, Path(folder))))

    tried()
    assert seen  # something came of each


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("found", sorted(CORPUS.iterdir()), ids=lambda found: found.name)
def test_what_once_escaped_is_told_in_one_line(
    found: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``KIND--WHAT``, a folder with the input; the first of its names is what is used."""
    monkeypatch.setitem(os.environ, "HF_HUB_OFFLINE", "1")
    name = found.name.partition("--")[0]
    (source,) = found.iterdir()
    if name in ("spelling", "command"):
        beside(tmp_path)
    given_ = tmp_path / source.name
    given_.write_bytes(source.read_bytes())
    assert outcome(KINDS[name].run, given_) == "refused"
