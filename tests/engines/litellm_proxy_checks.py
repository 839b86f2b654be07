"""LiteLLM's proxy with the plugin in its YAML and fake models: run by ``router_environment``.

Prints one JSON line. The proxy runs in a thread of this process, so that what the plugin counts can
be seen; clients come by HTTP.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

# ruff: noqa: E402
import aiohttp
import uvicorn
import yaml
from router_workload import TOKEN_S

MODEL = str(Path(__file__).with_name("fake_model.py"))
PLUGIN = "lengthwise.policies.plugins.litellm.plugin"
SECRET = f"sk-{secrets.token_hex(16)}"  # LiteLLM refuses those that are known
KEY = {"Authorization": f"Bearer {SECRET}"}


def config(ports: list[int]) -> dict[str, Any]:
    return {
        "model_list": [
            {
                "model_name": "m", "model_info": {"id": f"replica{i}"},
                "litellm_params": {"model": "openai/m", "api_key": "none",
                                   "api_base": f"http://127.0.0.1:{port}/v1"},
            }
            for i, port in enumerate(ports)
        ],
        "general_settings": {"master_key": SECRET},
        "router_settings": {"plugins": [PLUGIN, "deny.plugin"], "num_retries": 0},
    }  # fmt: skip


DENY = """
class Deny:
    async def run(self, context):
        if any("forbidden" in str(one.get("content")) for one in context.raw_messages):
            context.candidate_models = []
        return context

plugin = Deny()
"""


async def ask(client: aiohttp.ClientSession, **said: Any) -> tuple[int, str]:
    """The status, and which replica answered."""
    body = {"model": "m", "max_tokens": 3, "messages": [{"role": "user", "content": "go"}], **said}
    async with client.post("/v1/chat/completions", json=body) as answer:
        await answer.read()
        return answer.status, answer.headers.get("x-litellm-model-id", "")


async def settled(left: Any) -> int:
    for _ in range(1200):  # as long as a busy machine takes
        if not left():
            break
        await asyncio.sleep(0.1)
    return int(left())


async def drive(url: str, proxy: threading.Thread) -> dict[str, Any]:
    from lengthwise.policies.plugins import litellm as ours

    found: dict[str, Any] = {}
    async with aiohttp.ClientSession(url, headers=KEY) as client:
        while proxy.is_alive():  # until it serves, or has ended
            try:
                async with client.get("/health/liveliness") as answer:
                    if answer.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.1)
        found["first"] = (await ask(client))[0]
        strategy = ours.plugin.strategy

        def left() -> int:
            return sum(strategy.ranking.unfinished(f"replica{i}") for i in range(3))

        answers = await asyncio.gather(*(ask(client) for _ in range(12)))
        found["statuses"] = sorted({status for status, _ in answers})
        served = [name for _, name in answers]
        found["by replica"] = sorted(served.count(f"replica{i}") for i in range(3))
        found["left"] = await settled(left)
        # another plugin of the list still has its say
        denied = [{"role": "user", "content": "forbidden"}]
        found["denied"] = (await ask(client, messages=denied))[0]
        for path, said in (
            ("/v1/chat/completions", {"messages": [{"role": "user", "content": "go"}]}),
            ("/v1/completions", {"prompt": "go"}),
        ):
            body = {"model": "m", "max_tokens": 2000, "stream": True, **said}
            answer = await client.post(path, json=body)
            await answer.content.readany()
            counted = left()
            answer.close()
            found[path] = [answer.status, counted, await settled(left)]
        found["reset"] = []
        print(found, file=sys.stderr, flush=True)
        strategy._router._reset_custom_routing_strategy()
        for _ in range(2):
            found["reset"].append((await ask(client))[0])
        found["again"] = ours.plugin.strategy is strategy and (
            "async_get_available_deployment" in vars(strategy._router)
        )
        print(found, file=sys.stderr, flush=True)
    return found


def refused(folder: Path, settings: str | None) -> str:
    """What a proxy with such settings hears as it starts."""
    from lengthwise.policies.plugins import litellm as ours

    os.environ.pop(ours.ENVIRONMENT, None)
    if settings is not None:
        os.environ[ours.ENVIRONMENT] = settings
    try:
        from litellm.proxy.proxy_server import resolve_routing_plugins

        resolve_routing_plugins([PLUGIN], str(folder / "config.yaml"), "router_settings.plugins")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main() -> None:
    models = [
        subprocess.Popen([sys.executable, MODEL, str(TOKEN_S)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            ports = [int(one.stdout.readline()) for one in models if one.stdout is not None]
            (folder / "config.yaml").write_text(yaml.safe_dump(config(ports)))
            (folder / "deny.py").write_text(DENY)
            found: dict[str, Any] = {
                "refused": [
                    refused(folder, given)
                    for given in (None, "{", '{"policy": "lest-tokens"}', '{"polici": "jsq"}',
                                  '{"policy": "jsq", "predictor": "/nowhere"}')
                ]
            }  # fmt: skip
            os.environ["LENGTHWISE_LITELLM"] = '{"policy": "jsq"}'
            os.environ["CONFIG_FILE_PATH"] = str(folder / "config.yaml")
            from litellm.proxy.proxy_server import app

            with socket.socket() as held:
                held.bind(("127.0.0.1", 0))
                port = held.getsockname()[1]
            server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            found.update(asyncio.run(drive(f"http://127.0.0.1:{port}", thread)))
            server.should_exit = True
            thread.join(5)
        print(json.dumps(found), file=ANSWERS, flush=True)
    finally:
        for one in models:
            one.kill()
    os._exit(0)  # what LiteLLM left running in threads


if __name__ == "__main__":
    main()
