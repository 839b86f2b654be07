"""Our package beside the engines that it plugs into: what fits, and what then still holds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lengthwise.serving.vllm import VllmUnavailable
from tests.engines import numba_versions, resolving, whole_environment
from tests.engines.environments import ROOT
from tests.engines.installed import installed
from tests.engines.resolving import NoNetwork, Unresolvable

# what needs no extra, and installed code less than anything else
OLDEST = (
    "tests/test_policies_agree.py", "tests/test_policies_bundle.py", "tests/test_workload.py",
    "tests/test_prediction.py", "tests/test_serving_engine.py", "tests/test_eval_metrics.py",
    "tests/test_serving_workload_load.py", "tests/test_serving_workload_readers.py",
    "tests/test_predictors_censoring.py",
    "tests/test_cli.py::test_every_command_has_help",
)  # fmt: skip

# of the fast engine: what another numba or LLVM makes of scores and of it shows in a few of them
VARIANTS = (
    "tests/test_serving_kernel.py::test_two_thousand_trials_agree_to_the_bit[seeds0]",
    "tests/test_serving_kernel.py::test_ten_thousand_arrivals_at_once",
    "tests/test_serving_kernel.py::test_a_guarded_policy_in_python",
)  # fmt: skip


@pytest.mark.parametrize("engine", resolving.ENGINES)
def test_no_version_of_an_engine_has_to_change(engine: str) -> None:
    try:
        taken = resolving.pins(engine)
    except NoNetwork as error:
        pytest.skip(f"the package index can't be reached: {error}")
    except Unresolvable as error:
        pytest.skip(f"can't be installed on this Python even alone: {error}")
    try:
        # raises Unresolvable with uv's explanation
        together = resolving.beside(engine, taken)
    except NoNetwork as error:
        pytest.skip(f"the package index can't be reached: {error}")
    assert set(taken.split()) <= set(together.split())


def test_the_pinned_versions_are_allowed_and_numba_is_the_newest_that_is() -> None:
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = dict(line.lower().replace("_", "-").split("==") for line in lines)
    needs = {need.name: need.specifier for need in numba_versions.needs()}
    assert [name for name, allowed in needs.items() if pinned[name] not in allowed] == []
    (above,) = (bound.version for bound in needs["numba"] if bound.operator == "<")
    major, minor, *_ = map(int, pinned["numba"].split("."))
    assert above == f"{major}.{minor + 1}"
    assert all(version in needs["numba"] for version in numba_versions.PINNED)


def passes(environment: Callable[[], tuple[str, dict[str, str]]], *arguments: str) -> None:
    try:
        python, variables = environment()
    except VllmUnavailable as error:
        pytest.skip(f"the package index can't be reached: {error}")
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *arguments],
        env=variables, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


# The newest numba is that of these tests themselves.
@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("numba", numba_versions.PINNED)
def test_the_fast_engine_equals_the_reference_under_the_numba_of_engines(numba: str) -> None:
    passes(
        lambda: numba_versions.overlay(numba),
        "tests/test_policies_agree.py", *VARIANTS,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(
    sys.version_info >= (3, 13), reason="numpy 1.26 and pandas 2.2.0 have no wheels for this Python"
)
def test_the_lower_bounds_are_true() -> None:
    passes(numba_versions.oldest, *OLDEST)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.timeout(3000)  # the first test that needs vLLM's environment makes it
def test_the_wheel_changes_no_version_beside_vllm_and_serves_there(tmp_path: Path) -> None:
    try:
        found = installed(tmp_path)
    except VllmUnavailable as error:
        pytest.skip(str(error))
    assert found.before <= found.after
    ours = {line.split("==")[0] for line in found.after - found.before}
    assert "lengthwise" in ours and "numba" not in ours
    tests = tmp_path / "tests alone"
    tests.mkdir()
    (tests / "tests").symlink_to(ROOT / "tests")
    lines = whole_environment.run(["tokens", "srtf"], installed=(found.python, tests))
    assert any(line.startswith("srtf: the same tokens") for line in lines)
