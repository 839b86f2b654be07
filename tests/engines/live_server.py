"""Real vLLM servers on the CPU and their clients: run in the environment of ``whole_environment``.

    python -m tests.engines.live_server CASE FOLDER MODEL PREDICTOR

starts one server, goes through the checks of CASE in their order, and prints a line of JSON for
each, ``{"check": ..., "error": null}``; a check that fails does not stop those after it. FOLDER is
for what the server writes: its log and its record.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.engines.whole_engine import CLASS, OPTIONS, asked_for

STAMP = r"INFO \d\d-\d\d \d\d:\d\d:\d\d \[\S+:\d+\] "  # vLLM's own format
LIMITS = {
    **{k: v for k, v in OPTIONS.items() if k != "skip_tokenizer_init"},
    "max_model_len": 512, "num_gpu_blocks_override": 64,
}  # fmt: skip
BAD = Path(__file__).with_name("bad_policies.py")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def wait_for(done: Callable[[], Any], most_s: float = 60.0) -> Any:
    deadline = time.monotonic() + most_s
    while not (found := done()):
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.1)
    return found


def until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    """Waits for a server that begins; raises ``AssertionError`` with the end of its log."""
    deadline = time.monotonic() + 900
    while True:
        said = log.read_text(errors="replace")[-3000:]
        assert process.poll() is None, f"the server ended: {said}"
        assert time.monotonic() < deadline, f"it did not start: {said}"
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except OSError:
            time.sleep(0.5)


class Live:
    """``vllm serve`` on loopback, its log in a file."""

    def __init__(
        self, folder: Path, model: str, lengthwise: dict[str, Any], *more: str, **variables: str
    ) -> None:
        self.port, self.log, self.record = free_port(), folder / "log", folder / "record"
        line = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", model]
        for name, value in LIMITS.items():
            flag = "--" + name.replace("_", "-")
            line += [flag] if value is True else [flag, str(value)]
        line += ["--scheduler-cls", CLASS, "--host", "127.0.0.1", "--port", str(self.port)]
        line += ["--additional-config", json.dumps({"lengthwise": lengthwise}), *more]
        line += ["--served-model-name", "tiny"]
        variables = {**os.environ, **variables, "VLLM_LOGGING_LEVEL": "INFO"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                line, start_new_session=True, stdout=log, stderr=log, env=variables
            )
        until_healthy(self.process, self.url, self.log)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def ours(self) -> list[str]:
        """The plugin's lines of the log; vLLM prints the settings too."""
        return [line for line in self.said().splitlines() if "] lengthwise" in line]

    def kill(self) -> None:
        """SIGKILL to all its processes: nobody says goodbye."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def children(self, word: str) -> list[int]:
        """Ids of the server's processes whose command line has the word."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                group = os.getpgid(int(entry.name))
            except OSError:
                continue
            if group == self.process.pid and word in line:
                found.append(int(entry.name))
        return found


@contextmanager
def live(*given: Any, **variables: str) -> Iterator[Live]:
    server = Live(*given, **variables)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


def metrics(url: str) -> dict[str, float]:
    """The plugin's metrics at a page of metrics."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    rows = [line.rsplit(" ", 1) for line in lines if line.startswith("lengthwise_")]
    return {name: float(value) for name, value in rows if "_created" not in name}


def total(found: dict[str, float], name: str) -> float:
    """The sum of a counter over its labels."""
    return sum(value for key, value in found.items() if key.startswith(f"lengthwise_{name}{{"))


def rows(folder: Path) -> list[dict[str, Any]]:
    """The record as anybody reads it: every file is whole, and nobody is in it twice."""
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("part-*.parquet")):
        found += pq.read_table(path).to_pylist()
    ids = [row["request_id"] for row in found]
    assert len(ids) == len(set(ids)), "a request is in the record twice"
    return found


def client(server: Live, kind: str = "OpenAI", timeout_s: float = 120.0) -> Any:
    import openai

    return getattr(openai, kind)(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=timeout_s
    )


def chat(server: Live, text: str, tokens: int, timeout_s: float = 120.0, **more: Any) -> Any:
    return client(server, timeout_s=timeout_s).chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": text}], max_tokens=tokens,
        **{"temperature": 0, **more},
    )  # fmt: skip


IGNORE = {"ignore_eos": True}


# The checks of a server with everything on: srtf, a predictor, a record, a port that is taken


def it_says_what_runs(server: Live) -> None:
    """One line of INFO and one warning, in the engine's own format."""
    warning, info = server.ours()
    assert re.search(STAMP + r"lengthwise \S+ in vLLM \S+: policy srtf ", info), info
    for part in ("preemption recompute", "guard 1.5", "predictor /", "record /"):
        assert part in info, info
    assert re.search(STAMP.replace("INFO", "WARNING"), warning), warning
    assert "no metrics are served: can't listen on metrics_host '127.0.0.1'" in warning


def labels_are_there_at_zero(server: Live) -> None:
    """With PROMETHEUS_MULTIPROC_DIR the server's own page has them."""
    found = metrics(server.url)
    for reason in ("policy", "predictor-timeout", "predictor-error", "predictor-off"):
        name = f'lengthwise_fallbacks_total{{engine="0",reason="{reason}"}}'
        assert found[name] == 0.0, name
    for source in ("client", "predictor", "default"):
        assert found[f'lengthwise_predictions_total{{engine="0",source="{source}"}}'] == 0.0
    assert found['lengthwise_guarded_total{by="wait",engine="0"}'] == 0.0
    assert found['lengthwise_predictor_up{engine="0",part="predictor"}'] == 1.0


def clients_of_every_kind_are_served(server: Live) -> None:
    """Sync, async, streams, two answers, a JSON schema; some hang up in the middle."""
    before = asked_for(metrics(server.url))
    done = client(server).completions.create(
        model="tiny", prompt="Hello", max_tokens=7, extra_body=IGNORE
    )
    assert done.usage.completion_tokens == 7
    two = chat(server, "Say two things", 5, n=2, temperature=1.0, extra_body=IGNORE)
    assert len(two.choices) == 2 and two.usage.completion_tokens == 10
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"],
              "additionalProperties": False}  # fmt: skip
    shaped = chat(
        server, "Yes?", 60,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
    )  # fmt: skip
    assert set(json.loads(shaped.choices[0].message.content)) == {"yes"}

    async def concurrent() -> list[int]:
        several = client(server, "AsyncOpenAI")

        async def one(index: int) -> int:
            stream = await several.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": f"Count to {index}"}],
                max_tokens=20 + index, temperature=0, stream=True,
                extra_body={**IGNORE, "return_token_ids": True},
            )  # fmt: skip
            count = 0
            async for chunk in stream:
                for choice in chunk.choices:
                    count += len(getattr(choice, "token_ids", None) or [])
                if index % 4 == 3 and count > 3:
                    await stream.close()
                    return -1
            return count

        counts = await asyncio.gather(*(one(i) for i in range(12)))
        await several.close()
        return counts

    wanted = [-1 if i % 4 == 3 else 20 + i for i in range(12)]
    assert (found := asyncio.run(concurrent())) == wanted, found
    # 1 + 2 + 1 + 12 requests: each one's length is settled once, those that hung up too
    wait_for(lambda: asked_for(metrics(server.url)) - before == 16)
    time.sleep(1.0)
    assert asked_for(metrics(server.url)) - before == 16


def nonsense_harms_nobody(server: Live) -> None:
    """Whatever a client sends as its length, it is served, and so is the next one."""
    sent: list[Any] = [
        "120", "9" * 400, "nan", "-inf", -5, 0, [7], [], "", "many", 1e300, True, 10**18,
    ]  # fmt: skip
    before = metrics(server.url)
    for value in sent:
        body = {**IGNORE, "vllm_xargs": {"predicted_tokens": value, "deadline_s": value}}
        try:
            done = chat(server, f"With {value!r:.20}", 3, extra_body=body)
        except Exception as error:  # vLLM itself may refuse it
            assert getattr(error, "status_code", 0) in (400, 422), (value, error)
        else:
            assert done.usage.completion_tokens == 3
    assert chat(server, "And now?", 3, extra_body=IGNORE).usage.completion_tokens == 3
    found = metrics(server.url)
    assert total(found, "ignored_total") > total(before, "ignored_total")
    name = 'lengthwise_predictions_total{engine="0",source="client"}'
    assert found[name] - before[name] >= 3  # "120", 1e300, 10**18


def no_length_exceeds_max_tokens(server: Live) -> None:
    for said in (145, None):
        body = {**IGNORE, "vllm_xargs": {"predicted_tokens": said}} if said else IGNORE
        done = chat(server, "At most ten, please", 10, extra_body=body)
        row = wait_for(lambda i=done.id: [r for r in rows(server.record) if i in r["request_id"]])
        assert row[0]["max_tokens"] == 10 and row[0]["output_tokens"] == 10
        assert row[0]["predicted_tokens"] is None or row[0]["predicted_tokens"] <= 10.0
        if said:
            assert (row[0]["predicted_tokens"], row[0]["predicted_by"]) == (10.0, "client")


def a_killed_predictor_costs_nobody_an_answer(server: Live) -> None:
    up = 'lengthwise_predictor_up{engine="0",part="predictor"}'
    (child,) = server.children("plugins.predicting")
    os.kill(child, signal.SIGKILL)
    for _ in range(3):
        assert chat(server, "Still there?", 4, extra_body=IGNORE).usage.completion_tokens == 4
    wait_for(lambda: server.children("plugins.predicting") not in ([child], []))
    wait_for(lambda: metrics(server.url)[up] == 1.0, 120)
    restarts = 'lengthwise_restarts_total{engine="0",part="predictor"}'
    assert metrics(server.url)[restarts] == 1.0
    assert sum("the predictor's process ended" in line for line in server.ours()) == 1


def a_sigterm_under_load_keeps_the_record(server: Live) -> None:
    """vLLM's default: no time to shut down. What had finished two seconds ago is on the disk."""
    known = [f"Tell me {'so ' * i}please" for i in range(6)]  # of others the predictor abstains
    served = [chat(server, text, 3 + i, extra_body=IGNORE).id for i, text in enumerate(known)]
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            try:
                # vLLM's front end outlives its engine for as long as clients keep waiting
                chat(server, "A long one", 300, timeout_s=15.0, extra_body=IGNORE)
            except Exception:  # the server is gone
                return

    threads = [threading.Thread(target=load, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    time.sleep(4.0)  # twice what the record may take
    server.process.send_signal(signal.SIGTERM)
    server.process.wait(timeout=120)
    stop.set()
    found = rows(server.record)
    for place, name in enumerate(served):
        (row,) = [row for row in found if name in row["request_id"]]
        assert (row["output_tokens"], row["finish_reason"]) == (3 + place, "length")
        assert row["prompt_token_ids"] and row["arrival_s"] > 1.7e9
    judged = [row for row in found if row["predicted_by"] == "predictor"]
    assert len(judged) >= 6 and all(r["predicted_tokens"] <= r["max_tokens"] for r in judged)
    modes = {path.stat().st_mode & 0o777 for path in server.record.glob("part-*")}
    assert modes == {0o644}, modes
    wait_for(lambda: not server.children("plugins.predicting"))  # nobody is left behind


EVERYTHING = (
    it_says_what_runs, labels_are_there_at_zero, clients_of_every_kind_are_served,
    nonsense_harms_nobody, no_length_exceeds_max_tokens, a_killed_predictor_costs_nobody_an_answer,
    a_sigterm_under_load_keeps_the_record,
)  # fmt: skip


def everything(folder: Path, model: str, predictor: str) -> None:
    shared = folder / "prometheus"
    shared.mkdir()
    os.umask(0o022)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = {
            "policy": "srtf", "predictor": predictor, "record": str(folder / "record"),
            "record_prompts": True, "metrics_port": taken.getsockname()[1],
            "predict_timeout_s": 20.0,  # of a machine that is busy with other things
        }  # fmt: skip
        # noise likes blanks too well
        terse = json.dumps({"backend": "xgrammar", "disable_any_whitespace": True})
        with live(
            folder, model, settings, "--structured-outputs-config", terse,
            PROMETHEUS_MULTIPROC_DIR=str(shared),
        ) as server:  # fmt: skip
            go(EVERYTHING, server)


# Shadow mode, on two data-parallel engines, each with a port of metrics


def both_engines_have_a_page_on_loopback(server: Live, ports: list[int]) -> None:
    for rank, port in enumerate(ports):
        found = metrics(f"http://127.0.0.1:{port}")
        assert found[f'lengthwise_predictor_up{{engine="{rank}",part="predictor"}}'] == 1.0
        listening = [line.split()[1] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
                     if line.split()[3] == "0A"]  # fmt: skip
        assert f"0100007F:{port:04X}" in listening and f"00000000:{port:04X}" not in listening
    assert sum("shadow mode" in line for line in server.ours()) == 2


def predictions_are_judged_and_order_is_stock(server: Live, ports: list[int]) -> None:
    async def many() -> None:
        several = client(server, "AsyncOpenAI")
        await asyncio.gather(
            *(
                several.chat.completions.create(
                    model="tiny", messages=[{"role": "user", "content": f"Tell me {'so ' * i}"}],
                    max_tokens=5 + i, temperature=0, extra_body=IGNORE,
                )
                for i in range(16)
            )
        )  # fmt: skip
        await several.close()

    asyncio.run(many())
    pages = [metrics(f"http://127.0.0.1:{port}") for port in ports]
    assert sum(asked_for(page) for page in pages) == 16
    answered = sum(
        page[f'lengthwise_predictions_total{{engine="{rank}",source="predictor"}}']
        for rank, page in enumerate(pages)
    )
    judged = sum(
        page[f'lengthwise_error_log2_count{{engine="{rank}",source="predictor"}}']
        for rank, page in enumerate(pages)
    )
    assert answered == judged > 0
    waits = sum(v for p in pages for k, v in p.items() if k.startswith("lengthwise_wait_seconds_c"))
    assert waits <= 16
    assert total(pages[0], "guarded_total") == total(pages[0], "preemptions_total") == 0


def a_sigkill_keeps_the_record(server: Live, ports: list[int]) -> None:
    time.sleep(3.0)
    server.kill()
    found = rows(server.record)
    assert sorted(row["output_tokens"] for row in found) == [5 + i for i in range(16)]
    assert any(row["predicted_by"] == "predictor" for row in found)
    assert len(list(server.record.glob("part-*"))) >= 1


SHADOW = (
    both_engines_have_a_page_on_loopback, predictions_are_judged_and_order_is_stock,
    a_sigkill_keeps_the_record,
)  # fmt: skip


def shadow(folder: Path, model: str, predictor: str) -> None:
    port = free_port()
    settings = {
        "policy": "fcfs", "predictor": predictor, "record": str(folder / "record"),
        "metrics_port": port, "predict_timeout_s": 20.0,
    }  # fmt: skip
    with live(folder, model, settings, "--data-parallel-size", "2") as server:
        go(SHADOW, server, [port, port + 1])


# A policy that gives NaN, behind two API servers


def everybody_is_served_and_it_is_said_once(server: Live) -> None:
    for i in range(8):
        assert chat(server, f"Hello {i}", 4, extra_body=IGNORE).usage.completion_tokens == 4
    (said,) = [line for line in server.ours() if "WARNING" in line]
    assert "policy 'not_a_number' gave nan for a score" in said


def two_servers_have_one_page_of_metrics(server: Live) -> None:
    """vLLM sets PROMETHEUS_MULTIPROC_DIR itself then; whichever of the two answers."""
    name = 'lengthwise_fallbacks_total{engine="0",reason="policy"}'
    for _ in range(6):
        assert metrics(server.url)[name] == 8.0


NAN = (everybody_is_served_and_it_is_said_once, two_servers_have_one_page_of_metrics)


def nan(folder: Path, model: str, predictor: str) -> None:
    settings = {"policy": f"{BAD}:not_a_number"}
    with live(folder, model, settings, "--api-server-count", "2") as server:
        go(NAN, server)


CASES = {"everything": everything, "shadow": shadow, "nan": nan}
CHECKS = {"everything": EVERYTHING, "shadow": SHADOW, "nan": NAN}


def go(checks: tuple[Callable[..., None], ...], server: Live, *more: Any) -> None:
    for check in checks:
        error = None
        begin = time.monotonic()
        try:
            check(server, *more)
        except Exception:
            error = f"{traceback.format_exc()[-3000:]}\n{server.said()[-3000:]}"
        took_s = round(time.monotonic() - begin, 1)
        print(json.dumps({"check": check.__name__, "error": error, "took_s": took_s}), flush=True)


if __name__ == "__main__":
    CASES[sys.argv[1]](Path(sys.argv[2]), sys.argv[3], sys.argv[4])
