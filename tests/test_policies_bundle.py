"""Bundles: the round trip, and what a malformed or hostile one is told. No bundle runs code."""

import dataclasses
import json
import logging
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lengthwise import registry
from lengthwise.errors import InputError
from lengthwise.policies import load_policy, load_router
from lengthwise.policies.blend import blend
from lengthwise.policies.bundle import read_bundle, write_bundle
from lengthwise.policies.learned import MLP
from lengthwise.policy import Admission, Preemption, RoutingPolicy, SchedulingPolicy, Score
from lengthwise.trained import TrainedOn

NAMES = ("predicted_tokens", "generated_tokens")


def network(seed: int = 0) -> MLP:
    rng = np.random.default_rng(seed)
    return MLP(
        rng.normal(size=2), rng.uniform(0.5, 2, size=2), np.array([True, False]),
        ((rng.normal(size=(8, 2)), rng.normal(size=8)), (rng.normal(size=(1, 8)), np.zeros(1))),
    )  # fmt: skip


def learned(seed: int = 0) -> SchedulingPolicy:
    return SchedulingPolicy(
        Score("net", network(seed), NAMES),
        Preemption(mode="recompute", margin=3.0, protect_after=float("inf")),
        Admission(reserve=0.5),
    )


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(learned(), tmp_path / "bundle")


def change(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    described = json.loads((bundle / "policy.json").read_text())
    edit(described)
    (bundle / "policy.json").write_text(json.dumps(described))


def change_weights(bundle: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(bundle / "weights.safetensors")
    edit(tensors)
    save_file(tensors, bundle / "weights.safetensors")


def test_a_learned_policy_comes_back_bit_for_bit(bundle: Path) -> None:
    back, made = read_bundle(bundle), learned()
    assert isinstance(back, SchedulingPolicy)
    assert (back.preemption, back.admission) == (made.preemption, made.admission)
    assert back.score.features == NAMES
    x = np.arange(20.0), np.arange(20.0) ** 2
    assert np.array_equal(back.score(*x), made.score(*x))
    assert back.score(3.0, 4.0) == made.score(3.0, 4.0)


def test_the_network_is_what_torch_computes() -> None:
    torch = pytest.importorskip("torch")
    mlp = network()
    (w0, b0), (w1, b1) = (tuple(map(torch.tensor, layer)) for layer in mlp.layers)
    x = torch.tensor([[3.0, 4.0], [0.0, 700.0]], dtype=torch.float64)
    seen = torch.stack([torch.log1p(x[:, 0]), x[:, 1]], dim=1)
    seen = (seen - torch.tensor(mlp.shift)) / torch.tensor(mlp.scale)
    out = torch.nn.functional.linear(torch.tanh(torch.nn.functional.linear(seen, w0, b0)), w1, b1)
    np.testing.assert_allclose(mlp(x[:, 0].numpy(), x[:, 1].numpy()), out[:, 0].numpy(), rtol=1e-12)


@pytest.mark.parametrize("name", registry.names("policy"))
def test_every_registered_policy_comes_back(tmp_path: Path, name: str) -> None:
    policy = load_policy(f"{name}+preempt:margin=7+admit:reserve=0.5+guard:ratio=3")
    back = read_bundle(write_bundle(policy, tmp_path / "b"))
    assert isinstance(back, SchedulingPolicy)
    assert back.score == policy.score
    for part in ("preemption", "admission", "guard", "queue"):
        assert getattr(back, part) == getattr(policy, part)


@pytest.mark.parametrize("name", registry.names("router"))
def test_every_registered_router_comes_back(tmp_path: Path, name: str) -> None:
    router = load_router(f"{name}:choices=3")
    back = load_router(str(write_bundle(router, tmp_path / "b")))
    assert (back.score, back.choices) == (router.score, 3)


def test_writing_again_replaces_the_policy_and_keeps_the_predictor(bundle: Path) -> None:
    (bundle / "predictor").mkdir()
    (bundle / "predictor" / "predictor.json").write_text("{}")
    write_bundle(load_policy("sjf"), bundle)
    assert sorted(os.listdir(bundle)) == ["README.md", "policy.json", "predictor"]
    assert load_policy(str(bundle)).score.name == "sjf"
    assert os.listdir(bundle.parent) == ["bundle"]  # no temporary folder stays behind


def test_a_python_function_can_t_be_exported(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a bundle holds no code"):
        write_bundle(load_policy(lambda prompt_tokens: prompt_tokens), tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_an_unwritable_target_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="can't write the bundle"):
        write_bundle(load_policy("sjf"), tmp_path / "file" / "b")


EDITS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda d: d.update(format=5), "has format 5; this version reads 1 to 4"),
    (lambda d: d["features"][0].update(name="output_tokens"), "unknown feature 'output_tokens'"),
    (lambda d: d["features"][0].update(unit="s"), "is in 's'; lengthwise has it in 'tokens'"),
    (lambda d: d["features"][0].pop("unit"), "malformed"),
    (lambda d: d["features"][0].update(name=["x"]), "malformed"),
    (lambda d: d["features"].pop(), "does not fit 1 features"),
    (lambda d: d.update(features=[]), "reads no feature"),
    (lambda d: d.update(kind="shell"), "unknown bundle kind 'shell'"),
    (lambda d: d.update(kind=["x"]), "unknown bundle kind"),
    (lambda d: d.update(name=3), "malformed"),
    (lambda d: d["score"].update(type="pickle"), "unknown score type 'pickle'"),
    (lambda d: d["score"].update(layers=3), "bad weights"),
    (lambda d: d["score"].update(layers=0), "does not fit"),
    (lambda d: d["score"].update(layers="2"), "malformed"),
    (lambda d: d["score"].update(layers=1e9), "malformed"),
    (lambda d: d["score"].update(type="registered", name="os:system"), "unknown policy"),
    (lambda d: d["score"].update(type="registered", name="../sjf"), "unknown policy"),
    (lambda d: d["score"].update(type="registered", name="sjf"), "sjf reads predicted_tokens"),
    (lambda d: d["score"].update(type="registered", name=["sjf"]), "malformed"),
    (lambda d: d["preemption"].update(code="1"), "malformed"),
    (lambda d: d["preemption"].update(mode="swop"), "did you mean 'swap'"),
    (lambda d: d["preemption"].update(mode=1), "malformed"),
    (lambda d: d["preemption"].update(margin=-1), "must be 0 or more"),
    (lambda d: d["preemption"].update(margin="0"), "malformed"),
    (lambda d: d["preemption"].update(max_per_step=0), "must be 1 or more"),
    (lambda d: d["preemption"].update(max_per_step=1.5), "malformed"),
    (lambda d: d["preemption"].update(margin=float("nan")), "NaN"),
    (lambda d: d.pop("preemption"), "malformed"),
    (lambda d: d["admission"].update(reserve=[1]), "malformed"),
]


@pytest.mark.parametrize(("edit", "message"), EDITS)
def test_a_malformed_bundle_is_one_clear_line(
    bundle: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(bundle, edit)
    with pytest.raises(InputError, match=message) as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_a_registered_bundle_with_wrong_tunables_is_named(tmp_path: Path) -> None:
    bundle = write_bundle(load_policy("mlfq"), tmp_path / "b")
    change(bundle, lambda d: d["tunables"].update(quantum="64"))
    with pytest.raises(InputError, match="takes int, not '64'"):
        read_bundle(bundle)
    change(bundle, lambda d: d["tunables"].update(quantum=64, quanta=1))
    with pytest.raises(InputError, match="unknown tunable"):
        read_bundle(bundle)
    change(bundle, lambda d: d.update(tunables=[1]))
    with pytest.raises(InputError, match="malformed"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "not JSON"), ("[1]", "malformed"), ("{}", "malformed"), ("[" * 100_000, "not JSON"),
     ('{"format": 1, "format"', "not JSON"), ("\x00\x01", "not JSON")],
)  # fmt: skip
def test_a_policy_json_that_is_none(bundle: Path, text: str, message: str) -> None:
    (bundle / "policy.json").write_text(text)
    with pytest.raises(InputError, match=message):
        read_bundle(bundle)


TENSORS: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (lambda t: t.update({"layers.0.weight": np.zeros((8, 3))}), "does not fit"),
    (lambda t: t.update({"layers.0.bias": np.zeros(7)}), "does not fit"),
    (lambda t: t.update({"layers.0.weight": np.zeros(())}), "does not fit"),
    (lambda t: t.update({"layers.1.weight": np.zeros((2, 8)), "layers.1.bias": np.zeros(2)}),
     "does not fit"),
    (lambda t: t.update(shift=np.zeros(3)), "does not fit"),
    (lambda t: t.update(shift=np.zeros(())), "does not fit"),
    (lambda t: t.update(log=np.zeros(1, bool)), "does not fit"),
    (lambda t: t.update(scale=np.zeros(2)), "scale of 0"),
    (lambda t: t.update(shift=np.array([0.0, np.nan])), "NaN or infinite"),
    (lambda t: t.update({"layers.0.weight": np.full((8, 2), np.inf)}), "NaN or infinite"),
    (lambda t: t.pop("log"), "bad weights"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "message"), TENSORS)
def test_weights_that_don_t_fit_are_named(
    bundle: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    change_weights(bundle, edit)
    with pytest.raises(InputError, match=message):
        read_bundle(bundle)


class Bomb:
    """Unpickling this would create the file ``owned``."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("name", ["weights.safetensors", "policy.json"])
def test_a_pickle_in_place_of_a_file_is_not_run(bundle: Path, tmp_path: Path, name: str) -> None:
    (bundle / name).write_bytes(pickle.dumps(Bomb(tmp_path / "owned")))
    with pytest.raises(InputError):
        read_bundle(bundle)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("cut", [0, 7, 64, -1])
def test_truncated_weights_are_named(bundle: Path, cut: int) -> None:
    whole = (bundle / "weights.safetensors").read_bytes()
    (bundle / "weights.safetensors").write_bytes(whole[:cut])
    with pytest.raises(InputError, match="bad weights"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["weights.safetensors", "policy.json"])
@pytest.mark.parametrize("target", ["../elsewhere", "/dev/zero"])
def test_a_file_that_points_outside_the_bundle_is_refused(
    bundle: Path, tmp_path: Path, name: str, target: str
) -> None:
    (bundle / name).rename(tmp_path / "elsewhere")
    (bundle / name).symlink_to(target)
    with pytest.raises(InputError, match="outside the bundle"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (os.mkfifo, "is a pipe or a device"),
        (lambda file: file.symlink_to(file.name), "can't be read|no bundle"),
        (Path.mkdir, "is a folder"),
    ],
)
def test_a_file_that_is_none_is_refused_at_once(
    bundle: Path, name: str, make: Any, message: str
) -> None:
    (bundle / name).unlink()
    make(bundle / name)
    with pytest.raises(InputError, match=message):
        read_bundle(bundle)


HUGE = 10**400


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("preemption", "overhead_tokens", HUGE), ("preemption", "overhead_tokens", 2**40),
        ("preemption", "max_per_step", 2**63), ("preemption", "price", HUGE),
        ("admission", "reserve", HUGE), ("guard", "ratio", HUGE), ("guard", "floor_s", HUGE),
    ],
)  # fmt: skip
def test_numbers_beyond_the_engine_s_are_refused(
    bundle: Path, part: str, name: str, value: int
) -> None:
    given = {"guard": {"ratio": 1.5, "floor_s": 0.5}}

    def edit(described: dict[str, Any]) -> None:
        described[part] = {**(described[part] or given[part]), name: value}

    change(bundle, edit)
    with pytest.raises(InputError, match=name):
        read_bundle(bundle)


@pytest.mark.parametrize("choices", [-1, 2**31, -(2**63) - 1, HUGE])
def test_a_router_samples_no_more_replicas_than_are_counted(tmp_path: Path, choices: int) -> None:
    router = write_bundle(load_router("power-of-two"), tmp_path / "router")
    change(router, lambda described: described.update(choices=choices))
    with pytest.raises(InputError, match="choices must be"):
        read_bundle(router)


def test_the_ground_of_a_bundle_has_numbers_that_are_floats(bundle: Path) -> None:
    ground = {"ranges": {"prompt_tokens": [HUGE, 4]}, "workloads": ["azure-conv-2023"]}
    change(bundle, lambda described: described.update(trained_on=ground))
    with pytest.raises(InputError, match="low must be"):
        read_bundle(bundle)


def test_a_missing_bundle_and_missing_weights_are_named(tmp_path: Path, bundle: Path) -> None:
    with pytest.raises(InputError, match="no bundle at"):
        read_bundle(tmp_path / "nowhere")
    (bundle / "weights.safetensors").unlink()
    with pytest.raises(InputError, match="bad weights"):
        read_bundle(bundle)


def test_a_bundle_too_large_to_be_a_policy_is_refused(bundle: Path) -> None:
    with open(bundle / "weights.safetensors", "r+b") as file:
        file.truncate(65 * 2**20)  # sparse: takes no disk
    with pytest.raises(InputError, match=f"has {65 * 2**20} bytes; {64 * 2**20} are the most"):
        read_bundle(bundle)


GROUND = TrainedOn.of({"prompt_tokens": (1, 4096), "nodes": (4, 4)}, ["azure-conv-2023"])


@pytest.mark.parametrize("kind", [SchedulingPolicy, RoutingPolicy])
def test_a_blend_and_what_it_was_trained_on_come_back(tmp_path: Path, kind: Any) -> None:
    terms = {"predicted": 1.0, "prompt": 0.1 + 0.2} if kind is SchedulingPolicy else {"kv": 1 / 3}
    made = kind(blend(terms), trained_on=GROUND)
    back = read_bundle(write_bundle(made, tmp_path / "b"))
    assert back.score == made.score and back.trained_on == GROUND
    assert sorted(os.listdir(tmp_path / "b")) == ["README.md", "policy.json"]


def test_the_card_says_what_a_bundle_reads_and_was_trained_on(tmp_path: Path) -> None:
    write_bundle(SchedulingPolicy(blend({"predicted": 1.0}), trained_on=GROUND), tmp_path / "b")
    text = (tmp_path / "b" / "README.md").read_text("utf-8")
    front = yaml.safe_load(text.split("---")[1])
    assert front == {
        "library_name": "lengthwise",
        "tags": ["lengthwise", "llm-serving", "scheduling"],
    }
    assert "| predicted_tokens | tokens | predicted length of the whole answer |" in text
    for name, low, high in GROUND.ranges:
        assert f"- {name}: {low:.6g} to {high:.6g}" in text
    assert "Not measured" in text


def test_a_network_with_a_linear_part_comes_back(tmp_path: Path) -> None:
    net = dataclasses.replace(network(), skip=np.array([0.1, -3.0]))
    back = read_bundle(write_bundle(SchedulingPolicy(Score("net", net, NAMES)), tmp_path / "b"))
    assert back.score.function == net
    change_weights(tmp_path / "b", lambda t: t.update({"skip": np.zeros(3)}))
    with pytest.raises(InputError, match="does not fit"):
        read_bundle(tmp_path / "b")


@pytest.mark.parametrize("number", [1, 2])
def test_bundles_of_older_formats_load(bundle: Path, number: int) -> None:
    def older(described: dict[str, Any]) -> None:
        described["format"] = number
        del described["score"]["skip"]

    change(bundle, older)
    back = read_bundle(bundle)
    assert back.score == learned().score and back.trained_on is None


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["score"]["terms"][0].update(name="predictd"), "predicted"),
        (lambda d: d["score"]["terms"][0].update(weight="1"), "malformed"),
        (lambda d: d["score"]["terms"][0].update(weight=True), "malformed"),
        (lambda d: d["score"]["terms"][0].update(weight=1e999), "finite number"),
        (lambda d: d["score"].update(terms=[]), "0 terms"),
        (lambda d: d["score"]["terms"].pop(), "its terms read"),
        (lambda d: d["trained_on"]["ranges"].update(nodes=[4]), "malformed"),
        (lambda d: d["trained_on"]["ranges"].update(nodes=[4, "5"]), "malformed"),
        (lambda d: d["trained_on"]["ranges"].update(nodes=[5, 4]), "that is no range"),
        (lambda d: d["trained_on"].update(workloads=[1]), "malformed"),
    ],
)
def test_a_malformed_blend_is_told(tmp_path: Path, edit: Any, message: str) -> None:
    made = SchedulingPolicy(blend({"predicted": 1, "prompt": 0.1}), trained_on=GROUND)
    folder = write_bundle(made, tmp_path / "b")
    change(folder, edit)
    with pytest.raises(InputError, match=message):
        read_bundle(folder)


def test_leaving_the_ground_is_said_once(tmp_path: Path) -> None:
    from lengthwise.eval.compare import compare
    from lengthwise.eval.simulate import simulate
    from lengthwise.policies.plugins.metrics import Counters
    from lengthwise.policies.plugins.scorer import Scorer
    from lengthwise.workload import Workload

    made = SchedulingPolicy(blend({"prompt": 1.0}), trained_on=GROUND)
    folder = str(write_bundle(made, tmp_path / "b"))
    columns = {"arrival_s": [0.0, 1.0], "prompt_tokens": [9, 5000], "output_tokens": [2, 2]}
    workload = Workload({name: np.array(values) for name, values in columns.items()})
    (said,) = simulate(workload, folder, replicas=2).notices
    assert said == (
        f"{folder} is used beyond what it was trained on: prompt_tokens 9 to 5,000 "
        "(trained on 1 to 4,096), nodes 2 (trained on 4)"
    )
    assert not simulate(workload.head(1), folder, replicas=4).notices
    compared = compare(workload, [folder], [None], replicas=2, seeds=2, rates=(1.0, 2.0))
    assert compared.notices.count(said) == 1
    assert sum("trained on" in line for line in compared.notices) == 1

    counters = Counters()
    heard: list[str] = []
    counters.log.addHandler(handler := _Hears(heard))
    try:
        scorer = Scorer(made.score, counters, 1.0, GROUND)
        assert scorer.one({"prompt_tokens": 4000}) == 4000 and not heard
        for tokens in (5000, 6000):
            assert scorer.one({"prompt_tokens": tokens}) == tokens
            assert scorer.many({"prompt_tokens": np.array([tokens])}, 1) == [tokens]
    finally:
        counters.log.removeHandler(handler)
    assert len(heard) == 1 and "5,000 (trained on 1 to 4,096)" in heard[0]


class _Hears(logging.Handler):
    def __init__(self, heard: list[str]) -> None:
        super().__init__()
        self.heard = heard

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
