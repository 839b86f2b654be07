"""The plugin with a predictor that misbehaves, as an environment variable says how."""

import os
import sys
from pathlib import Path
from typing import Any

from lengthwise.policies.plugins.vllm import lengths
from lengthwise.policies.plugins.vllm import scheduler as plugin

FAKE = Path(__file__).with_name("fake_predictor.py")


def scheduler(*args: Any, **kwargs: Any) -> Any:
    fault = os.environ["LENGTHWISE_TEST_FAULT"]
    lengths.command = lambda *_, **__: [sys.executable, str(FAKE), fault]
    return plugin(*args, **kwargs)
