"""Whatever clients send, no hook of a plugin raises and no request is lost; a bounded number here.

``python -m tests.engines.odd_requests`` is the same for 100,000 requests.
"""

from __future__ import annotations

import pytest

from tests.engines import odd_requests


@pytest.mark.parametrize("name", odd_requests.PLUGINS)
def test_no_request_is_so_odd_that_a_hook_raises_or_loses_it(name: str) -> None:
    assert odd_requests.tried(odd_requests.PLUGINS[name], 80) >= 80
