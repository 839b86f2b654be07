"""What endpoints say of themselves: Prometheus metrics of vLLM, SGLang and TensorRT-LLM."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from lengthwise.policies.plugins import client
from lengthwise.policies.plugins.gateways.endpoints import Endpoint

MOST_BYTES = 8 * 2**20
# A feature's names, each with what its labels must say. Values of several engines behind one
# address are summed, shares averaged.
NAMES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "running_requests": (
        ("vllm:num_requests_running", ""),
        ("sglang:num_running_reqs", ""),
        ("nv_trt_llm_request_metrics", 'request_type="scheduled"'),
        ("trtllm_num_requests_running", ""),
    ),
    "waiting_requests": (
        ("vllm:num_requests_waiting", ""),
        ("sglang:num_queue_reqs", ""),
        ("nv_trt_llm_request_metrics", 'request_type="waiting"'),
        ("trtllm_num_requests_waiting", ""),
    ),
    "kv_utilization": (
        ("vllm:kv_cache_usage_perc", ""),
        ("vllm:gpu_cache_usage_perc", ""),  # before 0.11
        ("sglang:token_usage", ""),
        ("nv_trt_llm_kv_cache_block_metrics", 'kv_cache_block_type="fraction"'),
        ("trtllm_kv_cache_utilization", ""),
    ),
}
SHARES = ("kv_utilization",)
# The prefix cache's block, in tokens: a label of vLLM's and SGLang's, a value of TensorRT-LLM's
BLOCK = re.compile(
    r'^(?:vllm:cache_config_info\{.*?\bblock_size="|sglang:cache_config_info\{.*?\bpage_size="'
    r'|nv_trt_llm_kv_cache_block_metrics\{.*?kv_cache_block_type="tokens_per".*?\} '
    r"|trtllm_kv_cache_tokens_per_block(?:\{.*?\})? )(\d{1,6})",
    re.MULTILINE,
)
LINE = re.compile(
    r"^({})(?:\{{(.*)\}})?\s+(\S+)".format(
        "|".join(sorted({re.escape(name) for names in NAMES.values() for name, _ in names}))
    ),
    re.MULTILINE,
)


@dataclass(frozen=True)
class Seen:
    """What a scrape found: features, and the prefix cache's block size if it is told."""

    features: Mapping[str, float]
    block_size: int | None = None


def read(text: str) -> Seen:
    """Features from Prometheus's text format; what is missing or no number is left out."""
    values: dict[tuple[str, str], list[float]] = {}
    for name, labels, said in LINE.findall(text):
        number = client.number(said)
        if number is not None and number >= 0:
            for names in NAMES.values():
                for known, label in names:
                    if known == name and label in labels:
                        values.setdefault((known, label), []).append(number)
    features = {}
    for feature, names in NAMES.items():
        found = next((values[one] for one in names if one in values), None)
        if found is None:
            continue
        if feature in SHARES:
            if max(found) <= 1.0001:  # a share above one is none
                features[feature] = min(sum(found) / len(found), 1.0)
        else:
            features[feature] = sum(found)
    block = BLOCK.search(text)
    return Seen(features, int(block[1]) if block and int(block[1]) else None)


class Unreachable(Exception):
    """Nobody listens there."""


class Scraper:
    """Asks endpoints for their metrics; a context manager of one event loop."""

    def __init__(self, path: str = "/metrics", timeout_s: float = 1.0) -> None:
        self._path = path
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def __aenter__(self) -> Scraper:
        self._session = aiohttp.ClientSession(
            timeout=self._timeout, connector=aiohttp.TCPConnector(limit=0), trust_env=False
        )
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._session.close()

    async def seen(self, endpoint: Endpoint) -> Seen:
        """Raises ``Unreachable`` where nobody listens, ``ValueError`` for no metrics in time."""
        try:
            async with self._session.get(
                f"http://{endpoint.address}{self._path}", allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise ValueError(f"status {answer.status}")
                text = bytearray()
                async for chunk in answer.content.iter_any():
                    text += chunk
                    if len(text) > MOST_BYTES:
                        raise ValueError(f"more than {MOST_BYTES} bytes")
        except TimeoutError:
            raise ValueError("no answer in time") from None
        except aiohttp.ClientConnectorError as error:
            raise Unreachable(error.strerror or "no connection") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ValueError(type(error).__name__) from None
        found = await asyncio.to_thread(read, text.decode("utf-8", "replace"))
        if not found.features:
            raise ValueError("no metrics of an engine that is known")
        return found
