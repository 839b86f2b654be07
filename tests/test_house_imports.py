"""The light path stays light: a serving process must not import the training libraries."""

import subprocess
import sys

import pytest

import lengthwise

HEAVY = {
    "torch",
    "transformers",
    "sklearn",
    "stable_baselines3",
    "gymnasium",
    "matplotlib",
    "pandas",
    "numba",
}
LIGHT = [
    "lengthwise",
    "lengthwise.workload",
    "lengthwise.registry",
    "lengthwise.policies",
    "lengthwise.policies.sjf",
    "lengthwise.policies.plugins.vllm",
    "lengthwise.predictors",
    "lengthwise.serving",
    "lengthwise.serving.timing",
]


@pytest.mark.parametrize("module", LIGHT)
def test_light(module: str) -> None:
    code = f"import sys, {module}; print(*(m.partition('.')[0] for m in sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert not HEAVY & set(out.split())


def test_every_public_name_loads() -> None:
    for name in lengthwise.__all__:
        assert getattr(lengthwise, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        lengthwise.simulat  # noqa: B018
