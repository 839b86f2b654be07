"""What production teaches: the record of vLLM's real scheduler, and a predictor trained on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.policies.plugins import part, record
from lengthwise.policies.plugins.metrics import Counters
from lengthwise.policies.plugins.part import Part
from lengthwise.policies.plugins.record import Recorder, prompt_id
from lengthwise.policies.plugins.settings import Settings
from lengthwise.predictors import load_predictor
from lengthwise.serving.vllm import VllmUnavailable
from lengthwise.serving.workload import read_prompts
from lengthwise.training.predictor import train_predictor
from lengthwise.workload import Workload
from tests import word_tokenizer
from tests.engines.environments import VERSIONS, run_checks

NEWEST = VERSIONS[-1]
# the first test that needs the environment makes it, which may take long
pytestmark = pytest.mark.timeout(3000)
BOTH = [NEWEST, pytest.param(VERSIONS[0], marks=pytest.mark.slow)]
WORDS = ["hello", "short", "long", "answer", "please", *(f"w{i}" for i in range(40))]
SERVER = {"max_num_seqs": 8, "max_num_batched_tokens": 256, "blocks": 200}
MODEL: Any = SimpleNamespace(model="org/tiny", tokenizer="org/tiny")


def job(index: int, rng: np.random.Generator) -> dict[str, Any]:
    """A prompt of some words; one of them says whether the answer is short or long."""
    long = bool(rng.random() < 0.5)
    words = ["long" if long else "short", *rng.choice(WORDS[3:], 8).tolist(), f"w{index % 40}"]
    return {
        "arrival_s": 0.02 * index, "prompt": len(words), "tokens": [WORDS.index(w) for w in words],
        "output": int(rng.integers(40, 60) if long else rng.integers(3, 9)), "stops": True,
    }  # fmt: skip


def served(version: str, lengthwise: dict[str, Any], jobs: list[Any], tokens: str = "none") -> Any:
    task = {"lengthwise": lengthwise, "jobs": jobs, "tokenizer": tokens, **SERVER}
    try:
        (answer,) = run_checks(version, [("recorded", task)])
    except VllmUnavailable as error:
        pytest.skip(str(error))
    assert answer["ok"], answer.get("error")
    return answer["found"]


@pytest.mark.vllm
@pytest.mark.parametrize("version", BOTH)
def test_a_predictor_is_trained_on_what_an_engine_recorded(version: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    jobs = [job(i, rng) for i in range(300)]
    jobs[7] |= {"stops": False}  # cut short by its limit
    jobs[9] |= {"abort_step": 60, "output": 500}  # its client hangs up
    jobs[11] |= {"extra": {"predicted_tokens": 33}}
    folder = tmp_path / "record"
    settings = {"policy": "fcfs", "record": str(folder), "record_prompts": True}
    found = served(version, settings, jobs, str(word_tokenizer.save(tmp_path / "tokenizer", WORDS)))
    assert found["class"] in ("RecordedScheduler", "RecordedAsyncScheduler")
    assert found["counts"] == {"recorded:written": 300}

    table = pq.read_table(folder).to_pandas().sort_values("request_id", ignore_index=True)
    assert table["output_tokens"].tolist() == [found["generated"][str(i)] for i in range(300)]
    assert table["finish_reason"][[7, 9, 11]].tolist() == ["length", "abort", "stop"]
    assert table["predicted_tokens"].dropna().to_dict() == {11: 33.0}
    assert table["prompt_id"][3] == prompt_id(jobs[3]["tokens"])

    prompts = read_prompts(folder)
    texts = {" ".join(WORDS[t] for t in j["tokens"]) for j in jobs}
    assert set(prompts.prompt) == texts
    assert prompts.censored.sum() == 2
    report = train_predictor(folder, model="ridge", out=tmp_path / "p")
    assert report["metrics"]["kendall_tau"]["low"] > 0.4  # the word tells short from long
    predictor = load_predictor(tmp_path / "p")
    assert predictor is not None
    told = predictor.predict(["long please w3", "short please w3"], prompt_tokens=[3, 3])
    assert told.predicted_tokens[0] > 3 * told.predicted_tokens[1]

    workload = Workload.read(str(folder))  # and the traffic can be simulated again
    assert len(workload) == 300 and workload["arrival_s"].max() == pytest.approx(0.02 * 299)


@pytest.mark.vllm
def test_prompts_stay_out_of_the_record_unless_they_are_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    jobs = [{**job(i, rng), "extra": {"predicted_tokens": 9}} for i in range(20)]
    found = served(NEWEST, {"policy": "sjf", "record": str(tmp_path)}, jobs)
    assert found["counts"] == {"predictions:client": 20, "recorded:written": 20}
    (file,) = tmp_path.iterdir()
    table = pq.read_table(file)
    assert "prompt_token_ids" not in table.column_names
    assert set(table.column("predicted_tokens").to_pylist()) == {9.0}
    with pytest.raises(InputError, match="has no prompt texts"):
        read_prompts(tmp_path)
    # whoever kept the prompts elsewhere can join them
    ids = np.array([prompt_id(j["tokens"]) for j in jobs], dtype=object)
    texts = np.array([f"prompt {i}" for i in range(20)], dtype=object)
    prompts = read_prompts(tmp_path, prompts={"prompt_id": ids, "prompt": texts})
    assert set(prompts.prompt) == set(texts)


# The writer alone


def request(index: int, prompt: int = 4) -> Any:
    return SimpleNamespace(
        request_id=f"r{index}", arrival_time=float(index), prompt_token_ids=list(range(prompt)),
        num_prompt_tokens=prompt, num_output_tokens=index + 1, sampling_params=None,
        status=SimpleNamespace(name="FINISHED_STOPPED"),
    )  # fmt: skip


def recorder(folder: Path, counters: Counters) -> Recorder:
    return Recorder(Settings(policy="fcfs", record=str(folder)), MODEL, counters)


def until(done: Callable[[], bool], most_s: float = 20.0) -> None:
    deadline = time.monotonic() + most_s
    while not done():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)


def test_a_part_file_grows_whole_until_the_next_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "FLUSH_S", 0.05)
    monkeypatch.setattr(part, "PART_ROWS", 10)
    counters = Counters()
    made = recorder(tmp_path, counters)
    seen: set[int] = set()
    for index in range(25):  # a reader at any moment finds whole files and nobody twice
        made.finished(request(index))
        if index == 0:
            until(lambda: bool(list(tmp_path.glob("part-*"))), most_s=60)
        time.sleep(0.02)
        if list(tmp_path.glob("part-*")):
            found = pq.read_table(tmp_path).column("output_tokens").to_pylist()
            assert len(found) == len(set(found)) and seen <= set(found)
            seen = set(found)
    made.close()
    assert seen  # before the end
    parts = sorted(tmp_path.iterdir())
    assert {p.name.startswith("part-") for p in parts} == {True} and 2 <= len(parts) <= 4
    lengths = pq.read_table(tmp_path).column("output_tokens").to_pylist()
    assert sorted(lengths) == list(range(1, 26))
    assert counters.counts == {("recorded", "written"): 25}


def test_what_finished_is_on_the_disk_soon(tmp_path: Path) -> None:
    made = recorder(tmp_path, Counters())
    made.finished(request(0))
    until(lambda: bool(list(tmp_path.glob("part-*"))), most_s=record.FLUSH_S + 5)
    assert pq.read_table(tmp_path).num_rows == 1
    made.close()


def test_a_folder_that_goes_away_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(record, "FLUSH_S", 0.05)
    counters, folder = Counters(), tmp_path / "mount" / "record"
    made = recorder(folder, counters)
    made.finished(request(0))
    until(lambda: counters.counts["recorded", "written"] == 1)
    (tmp_path / "mount").rename(tmp_path / "elsewhere")  # a network drive, say
    made.finished(request(1))
    until(lambda: "the record waits for its folder" in caplog.text)
    made.finished(request(2))
    time.sleep(0.2)
    assert counters.counts == {("recorded", "written"): 1}
    (tmp_path / "elsewhere").rename(tmp_path / "mount")
    until(lambda: counters.counts["recorded", "written"] == 3)
    made.close()
    assert sorted(pq.read_table(folder).column("output_tokens").to_pylist()) == [1, 2, 3]
    assert caplog.text.count("waits for its folder") == 1


def test_what_never_reaches_the_disk_is_counted_at_the_end(tmp_path: Path) -> None:
    counters = Counters()
    made = recorder(tmp_path / "mount" / "record", counters)
    shutil.rmtree(tmp_path / "mount")
    for index in range(3):
        made.finished(request(index))
    made.close()
    assert counters.counts == {("recorded", "dropped"): 3}


def test_a_writer_that_fails_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add, counters = Part.add, Counters()

    def failing(self: Part, row: dict[str, Any]) -> None:
        if row["request_id"] == "r1":
            raise RuntimeError("a bug")
        add(self, row)

    monkeypatch.setattr(Part, "add", failing)
    made = recorder(tmp_path, counters)
    for index in range(4):
        made.finished(request(index))
    made.close()
    assert pq.read_table(tmp_path).column("request_id").to_pylist() == ["r0", "r2", "r3"]
    assert counters.counts["restarts", "record-thread"] == 1
    assert "the record thread failed, and goes on" in caplog.text


def test_memory_is_bounded_and_nobody_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BACKLOG_TOKENS", 1000)
    monkeypatch.setattr(Recorder, "_run", lambda self: None)  # a disk that does nothing
    counters = Counters()
    made = recorder(tmp_path, counters)
    for index in range(50):
        made.finished(request(index, prompt=99))
    assert counters.counts == {("recorded", "dropped"): 40}


def test_what_is_written_makes_room_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten requests fit; a hundred come, each ten after the ones before are on the disk."""
    monkeypatch.setattr(record, "BACKLOG_TOKENS", 1000)
    monkeypatch.setattr(Recorder, "_run", lambda self: None)
    counters = Counters()
    made = recorder(tmp_path, counters)
    for index in range(100):
        made.finished(request(index, prompt=99))
        if index % 10 == 9:
            assert made._backlog == 1000
            while not made._queue.empty():
                row = made._queue.get()
                assert row is not None
                made._part.add(row)
            assert made._flush()
            assert made._backlog == 0
    assert counters.counts == {("recorded", "written"): 100}


def test_what_is_unlike_a_request_breaks_nothing(tmp_path: Path) -> None:
    counters = Counters()
    made = recorder(tmp_path, counters)
    made.finished(SimpleNamespace())
    made.close()
    assert counters.counts == {("recorded", "dropped"): 1}
    assert not list(tmp_path.iterdir())


def test_a_folder_that_can_t_be_written_is_named_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write to"):
        recorder(tmp_path / "file" / "record", Counters())
    with pytest.raises(InputError, match=r"can't write to .*: embedded null byte"):
        recorder(tmp_path / "\0", Counters())


def test_what_no_table_holds_costs_its_own_row_and_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "BACKLOG_TOKENS", 30)  # six requests
    monkeypatch.setattr(record, "FLUSH_S", 3600.0)
    counters = Counters()
    made = recorder(tmp_path, counters)
    odd = request(0)
    odd.prompt_token_ids = [2**31]
    for _ in range(100):
        made.finished(odd)
    assert counters.counts == {("recorded", "dropped"): 100}
    long, named = request(1), request(2)
    long.num_prompt_tokens = 2**63
    named.request_id = "\ud800"
    for one in (long, named, request(3)):
        made.finished(one)
    made.close()
    assert counters.counts == {("recorded", "dropped"): 101, ("recorded", "written"): 2}
    (file,) = tmp_path.iterdir()
    assert pq.read_table(file)["request_id"].to_pylist() == ["?", "r3"]
