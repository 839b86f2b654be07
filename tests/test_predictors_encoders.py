"""Encoders and what is trained on them, by hand: a fake encoder of two numbers, no training."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lengthwise.errors import InputError, UnknownNameError
from lengthwise.predictors import encoder, folder, heads, load_predictor, targets, transformer
from lengthwise.predictors.encoder import Encoder, _readable
from lengthwise.predictors.features import SHAPE, shape_of
from lengthwise.predictors.learned import folds_of
from lengthwise.predictors.optimize import Schedule, _batches, _groups, minimize, mixed
from lengthwise.predictors.transformer import MiniLM, Transformer

RNG = np.random.default_rng(2)
PROMPTS = [f"{'word ' * (k % 7)}number {k}" for k in range(40)]
LENGTHS = np.ceil(np.exp(RNG.normal(3, 1, 40)))


def table_of(prompts: Sequence[str], ids: Any = None) -> Any:
    """What the fake encoder says of prompts, (n, 2), by their token ids."""
    found = [[len(p) / 4, len(p.split())] for p in prompts] if ids is None else ids
    return np.array(found, dtype=np.float32)


class Fake:
    """An encoder: two numbers a prompt, which a run of training doubles if it may."""

    width = 2

    def __init__(self) -> None:
        self.backbone = nn.Linear(1, 1, bias=False)
        nn.init.ones_(self.backbone.weight)
        self.device = torch.device("cpu")
        self.done: list[Any] = []

    def tokens(self, prompts: Sequence[str]) -> list[list[float]]:
        return [[len(p) / 4, len(p.split())] for p in prompts]

    def pooled(self, ids: Any) -> torch.Tensor:
        return torch.tensor(ids, dtype=torch.float32) * self.backbone.weight

    def embedded(self, ids: Any, advance: Any = None) -> torch.Tensor:
        self.done.append(("embedded", len(ids), advance is not None))
        return self.pooled(ids).detach()

    def save(self, path: Path) -> None:
        path.mkdir()
        (path / "config.json").write_text("{}")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The encoder, how it was asked for, and the runs of training."""
    seen = SimpleNamespace(encoder=Fake(), asked=[], runs=[], doubles=False)

    def pretrained(model: str, **more: Any) -> Any:
        seen.asked.append((model, more))
        return seen.encoder

    def new(prompts: Sequence[str], **more: Any) -> Any:
        seen.asked.append((len(prompts), more))
        return seen.encoder

    def run(net: Any, loss: Any, train: Any, unseen: Any, schedule: Any, **more: Any) -> None:
        seen.runs.append((net, loss, train, unseen, schedule, more))
        if "backbone" in net:
            with torch.no_grad():
                net["backbone"].weight.mul_(2)

    monkeypatch.setattr(encoder, "pretrained", pretrained)
    monkeypatch.setattr(encoder, "new", new)
    monkeypatch.setattr(transformer, "minimize", run)
    return seen


def standard_of(table: Any, centre: Any, scale: Any) -> Any:
    found = (table - centre) / scale
    found[:, 2:] = np.clip(found[:, 2:], -8, 8)
    return found


@pytest.mark.parametrize("target", ["exact", "rank", "bucket", "quantile"])
def test_a_frozen_encoder_has_a_head_for_each_fold(fake: SimpleNamespace, target: str) -> None:
    made = Transformer(target, model="m", seed=3, device="cpu", hidden=5, max_tokens=64)
    made.fit(PROMPTS, LENGTHS)
    assert fake.asked == [("m", {"max_tokens": 64, "drop_layers": 1})]
    assert fake.encoder.done == [("embedded", 40, True)]  # once, for all heads
    folds = folds_of(PROMPTS, 3)
    shapes = np.array([shape_of(prompt) for prompt in PROMPTS])
    table = np.concatenate((table_of(PROMPTS), shapes), axis=1)
    np.testing.assert_allclose(made.shift_, table.mean(axis=0), rtol=1e-6)
    spread = table.std(axis=0)
    np.testing.assert_allclose(made.scale_, np.where(spread > 1e-9, spread, 1.0), rtol=1e-6)
    assert (spread < 1e-9).any()  # some columns never change here
    seen = torch.tensor(standard_of(table, made.shift_, made.scale_), dtype=torch.float32)
    goal = targets.make_target(target, LENGTHS)
    held = np.empty((40, goal.outputs))
    assert len(fake.runs) == len(made.heads_) == len(made.centers_) == 5
    for k, (net, loss, train, unseen, schedule, more) in enumerate(fake.runs):
        assert list(net) == ["head"] and net["head"] is made.heads_[k]
        assert train.tolist() == np.flatnonzero(folds != k).tolist()
        assert unseen.tolist() == np.flatnonzero(folds == k).tolist()
        assert more["seed"] == 3 + k and more["checkpoint"] is None
        assert (schedule.epochs, schedule.patience, schedule.backbone_rate) == (100, 15, 1e-3)
        rows = np.arange(12)
        labels = torch.tensor(transformer._labels(goal, LENGTHS)[:12], dtype=torch.float32)
        wanted = heads.loss_of(None, goal, "listmle", "cpu")(net["head"](seen[:12]), labels)
        assert float(loss(rows).detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
        dropouts = [one.p for one in net["head"].modules() if isinstance(one, nn.Dropout)]
        assert dropouts == [0.5, 0.5]
        scores = transformer._scores(net["head"], seen)
        shift, scale = transformer._center(goal, LENGTHS, scores[folds != k])
        np.testing.assert_allclose(made.centers_[k], (shift, scale))
        raw = heads.read(None, scores, goal)
        held[folds == k] = (raw if target == "bucket" else raw * scale + shift)[folds == k]
        with torch.random.fork_rng():
            torch.manual_seed(mixed(3, 1_000_000 + k))
            first = heads.new_head(None, goal, 2 + len(SHAPE), 5, 0.5)
        for one, other in zip(first.parameters(), net["head"].parameters(), strict=True):
            assert torch.equal(one, other)
    calibrated = goal.calibrated(held, LENGTHS)
    some = table_of(PROMPTS[:3])
    assert made.target_ is not None
    np.testing.assert_allclose(
        made.target_.prediction(held).predicted_tokens,
        calibrated.prediction(held).predicted_tokens, rtol=1e-6,
    )  # fmt: skip
    # what is said of a prompt is the mean of what the heads say
    again = np.concatenate((some, shapes[:3]), axis=1)
    read = torch.tensor(standard_of(again, made.shift_, made.scale_), dtype=torch.float32)
    each = [
        made._finished(transformer._scores(head, read), (shift, scale), goal)
        for head, (shift, scale) in zip(made.heads_, made.centers_, strict=True)
    ]
    np.testing.assert_allclose(made._raw(PROMPTS[:3]), np.mean(each, axis=0), rtol=1e-6)


def test_odd_shapes_are_held_in_and_what_the_encoder_says_is_not(fake: SimpleNamespace) -> None:
    made = Transformer(model="m", device="cpu")
    hidden = 3 * len(SHAPE)
    made.shift_ = np.full(hidden + len(SHAPE), 1.0)
    made.scale_ = np.full(hidden + len(SHAPE), 0.5)
    seen = made._standard(np.array([[101.0], [-99.0], [2.0]]) + 0 * made.shift_).numpy()
    assert (seen[:, :hidden] == [[200.0], [-200.0], [2.0]]).all()
    assert (seen[:, hidden:] == [[8.0], [-8.0], [2.0]]).all()
    assert seen.dtype == np.float32


def test_an_encoder_that_learns_has_one_head_and_is_embedded_anew(fake: SimpleNamespace) -> None:
    made = Transformer(model="m", frozen=False, seed=3, device="cpu").fit(PROMPTS, LENGTHS)
    assert fake.asked == [("m", {"max_tokens": 128, "drop_layers": 0})]
    ((net, loss, train, unseen, schedule, _),) = fake.runs
    assert set(net) == {"head", "backbone"} and net["backbone"] is fake.encoder.backbone
    folds = folds_of(PROMPTS, 3)
    assert unseen.tolist() == np.flatnonzero(folds == 0).tolist() and len(train) == 40 - len(unseen)
    assert (schedule.epochs, schedule.patience, schedule.backbone_rate) == (5, 2, 5e-5)
    assert net["head"][0].p == 0.1
    # the hidden columns do not count before training: an encoder that learns changes
    assert made.shift_[:2].tolist() == [0.0, 0.0] and made.scale_[:2].tolist() == [1.0, 1.0]
    shapes = np.array([shape_of(prompt) for prompt in PROMPTS])
    wide = np.concatenate((2 * table_of(PROMPTS), shapes), axis=1)
    seen = torch.tensor(standard_of(wide, made.shift_, made.scale_), dtype=torch.float32)
    goal = targets.make_target("exact", LENGTHS)
    labels = torch.tensor(transformer._labels(goal, LENGTHS)[:12], dtype=torch.float32)
    wanted = heads.loss_of(None, goal, "listmle", "cpu")(net["head"](seen[:12]), labels)
    assert float(loss(np.arange(12)).detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert len(made.centers_) == len(made.heads_) == 1
    scores = transformer._scores(net["head"], seen)
    raw = scores * made.centers_[0][1] + made.centers_[0][0]
    out = folds == 0
    calibrated = goal.calibrated(raw[out], LENGTHS[out])
    np.testing.assert_allclose(
        made._fitted().prediction(raw).predicted_tokens,
        calibrated.prediction(raw).predicted_tokens, rtol=1e-5,
    )  # fmt: skip
    new = Transformer(seed=4, device="cpu", max_tokens=32).fit(PROMPTS, LENGTHS)
    assert fake.asked[-1] == (40, {"max_tokens": 32, "seed": 4})
    schedule = fake.runs[-1][4]
    assert (schedule.epochs, schedule.patience, schedule.backbone_rate) == (30, 5, 1e-3)
    assert len(new.heads_) == 1


def test_what_is_asked_for_goes_before_what_suits(fake: SimpleNamespace) -> None:
    own = {"epochs": 3, "patience": 4, "batch_size": 5, "learning_rate": 0.01,
           "backbone_rate": 0.02, "dropout": 0.0}  # fmt: skip
    made = Transformer(model="m", device="cpu", **own).fit(PROMPTS, LENGTHS)  # type: ignore[arg-type]
    assert fake.runs[0][4] == Schedule(3, 4, 5, 0.01, 0.02)
    assert made.heads_[0][0].p == 0.0  # type: ignore[index]
    assert {name: made._options()[name] for name in own} == own
    plain = Transformer(model="m")
    assert (plain.max_tokens, plain.hidden, plain.batch_size) == (128, 128, 32)
    assert (plain.rank_loss, plain.learning_rate, plain.progress) == ("listmle", 1e-3, True)
    assert set(plain._options()) == {
        "target", "buckets", "levels", "seed", "model", "frozen", "rank_loss", "head",
        "max_tokens", "hidden", "dropout", "epochs", "patience", "batch_size", "learning_rate",
        "backbone_rate",
    }  # fmt: skip
    assert MiniLM().model == "minilm" and MiniLM(model="other").model == "other"
    assert Transformer().model is None


def test_options_are_checked_at_their_limits() -> None:
    assert Transformer(max_tokens=8, hidden=1, dropout=0.0).max_tokens == 8
    Transformer(max_tokens=9.0, dropout=0.999)  # type: ignore[arg-type]
    for wrong in ({"max_tokens": 7}, {"max_tokens": 8.5}, {"hidden": 0}, {"hidden": 1.5}):
        with pytest.raises(InputError, match=r"must be a whole number, [18] or more"):
            Transformer(**wrong)
    for dropout in (1.0, -0.1):
        with pytest.raises(InputError, match=r"dropout must lie in \[0, 1\)"):
            Transformer(dropout=dropout)
    with pytest.raises(UnknownNameError, match="rank loss"):
        Transformer(rank_loss="listmlee")


def test_devices_and_what_is_frozen_there(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    made, new = Transformer(model="m"), Transformer()
    assert made._freezes(cpu) and not made._freezes(cuda)
    assert Transformer(model="m", frozen=True)._freezes(cuda)
    assert not Transformer(model="m", frozen=False)._freezes(cpu)
    assert not new._freezes(cpu)
    with pytest.raises(InputError, match="random weights can't be frozen"):
        Transformer(frozen=True)._freezes(cpu)
    for gpu in (False, True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda gpu=gpu: gpu)
        assert transformer._device(None).type == ("cuda" if gpu else "cpu")
        assert transformer._device("cpu").type == "cpu"
        with pytest.raises(UnknownNameError, match="device"):
            transformer._device("tpu")
        if gpu:
            assert transformer._device("cuda:1").index == 1
        else:
            with pytest.raises(InputError, match="this machine has no GPU"):
                transformer._device("cuda:1")


def test_labels_centres_and_spreads_by_hand() -> None:
    length = np.array([2.0, 8.0, 4.0])
    for target in ("bucket", "rank"):
        made = targets.make_target(target, LENGTHS, buckets=[10.0, 30.0])
        found = transformer._labels(made, LENGTHS)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, made.labels(LENGTHS))  # type: ignore[union-attr]
    logs = np.log(length)
    exact = targets.make_target("exact", length)
    np.testing.assert_allclose(
        transformer._labels(exact, length), (logs - logs.mean()) / logs.std()
    )
    scores = np.array([[1.0], [3.0], [8.0]])
    rank, bucket = targets.make_target("rank", LENGTHS), targets.make_target("bucket", LENGTHS)
    shift, scale = transformer._center(rank, length, scores)
    moved = scores * scale + shift
    assert moved.mean() == pytest.approx(0) and moved.std() == pytest.approx(1)
    assert transformer._center(rank, length, np.ones((3, 1))) == (-1.0, 1.0)
    assert transformer._center(bucket, length, scores) == (0.0, 1.0)
    assert transformer._center(exact, length, scores) == pytest.approx((logs.mean(), logs.std()))
    table = np.array([[1.0, 5.0, 1.0], [3.0, 5.0, 1.0 + 1e-10]])
    assert transformer._spread(table).tolist() == [1.0, 1.0, 1.0]
    assert transformer._spread(table * [2, 1, 1]).tolist() == [2.0, 1.0, 1.0]
    head = nn.Sequential(nn.Dropout(0.9), nn.Identity()).train()
    assert transformer._scores(head, torch.ones(2, 1)).tolist() == [[1.0], [1.0]]


def test_checkpoints_lie_in_a_folder_of_their_data_and_options(
    fake: SimpleNamespace, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"

    def made(**more: Any) -> Transformer:
        return Transformer(model="m", checkpoint=kept, device="cpu", **more)

    whole = np.exp(np.log(LENGTHS))  # as it is learned from
    first = made()._record(PROMPTS, whole, True)
    assert first is not None and first.parent == kept and first.is_dir()
    assert made(progress=False)._record(PROMPTS, whole, True) == first
    others = [made()._record(PROMPTS, whole, False), made(seed=1)._record(PROMPTS, whole, True),
              made()._record(PROMPTS[1:], whole, True),
              made()._record(PROMPTS, whole + 1, True)]  # fmt: skip
    assert len({first, *others}) == 5
    assert Transformer(model="m")._record(PROMPTS, LENGTHS, True) is None
    made().fit(PROMPTS, LENGTHS)
    assert not first.exists() and kept.is_dir()  # others still go on from theirs
    assert [run[5]["checkpoint"] for run in fake.runs] == [first / f"head-{k}.pt" for k in range(5)]
    for other in others:
        assert other is not None
        other.rmdir()
    made().fit(PROMPTS, LENGTHS)
    assert not kept.exists()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="can't write checkpoints to"):
        Transformer(checkpoint=tmp_path / "file")._record(PROMPTS, LENGTHS, True)
    calls: list[int] = []

    def make() -> torch.Tensor:
        calls.append(1)
        return torch.tensor([float(len(calls))])

    path = tmp_path / "deep" / "hidden.pt"
    assert [float(transformer._kept(path, make)) for _ in range(2)] == [1.0, 1.0]
    assert [float(transformer._kept(None, make)) for _ in range(2)] == [2.0, 3.0]


def test_saved_with_its_encoder_and_restored_without_noise(
    fake: SimpleNamespace, tmp_path: Path
) -> None:
    made = Transformer("quantile", model="m", device="cpu", hidden=3, dropout=0.4, max_tokens=16)
    made.fit(PROMPTS, LENGTHS).save(tmp_path / "p")
    saved = folder.read(tmp_path / "p")
    assert saved.state["heads"] == 5 and (tmp_path / "p" / "encoder" / "config.json").is_file()
    back = load_predictor(tmp_path / "p")
    assert isinstance(back, Transformer)
    assert fake.asked[-1] == (str(tmp_path / "p" / "encoder"), {"max_tokens": 16})
    assert not fake.encoder.backbone.training
    assert all(not head.training for head in back.heads_)
    said, again = made.predict(PROMPTS).quantiles, back.predict(PROMPTS).quantiles
    assert said is not None and again is not None
    np.testing.assert_allclose(again, said, rtol=1e-6)
    assert (
        "checkpoint" not in json.loads((tmp_path / "p" / "predictor.json").read_text())["options"]
    )


def test_bars_are_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import rich.progress

    made: list[Any] = []

    class Bars:
        def __init__(self, **options: Any) -> None:
            made.append(options["disable"])

        def __enter__(self) -> Bars:
            return self

        def __exit__(self, *error: object) -> None: ...

        def add_task(self, label: str, total: int) -> str:
            made.append((label, total))
            return "task"

        def update(self, task: str, **more: Any) -> None:
            made.append((task, more))

    monkeypatch.setattr(rich.progress, "Progress", Bars)
    for terminal in (True, False):
        monkeypatch.setattr("sys.stderr", SimpleNamespace(isatty=lambda t=terminal: t))
        for progress in (True, False):
            with transformer._bars(progress) as show:
                advance = show("label", 7)
                advance(3)
                advance(4, 9, 0.25)
    assert [one for one in made if isinstance(one, bool)] == [False, True, True, True]
    assert made[1:4] == [
        ("label", 7), ("task", {"completed": 3, "total": None, "description": "label"}),
        ("task", {"completed": 4, "total": 9, "description": "label: validation loss 0.2500"}),
    ]  # fmt: skip


def test_progress_is_told_by_epoch(fake: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    from contextlib import contextmanager

    @contextmanager
    def bars(progress: bool) -> Any:
        def show(label: str, total: int) -> Any:
            told.append((label, total, progress))
            return lambda *done: told.append(done)

        yield show

    monkeypatch.setattr(transformer, "_bars", bars)
    Transformer(model="m", device="cpu", progress=False).fit(PROMPTS, LENGTHS)
    assert told[:2] == [("encoding prompts", 40, False), ("training, part 1 of 5", 0, False)]
    fake.runs[1][5]["advance"](4, 0.5)
    assert told[-1] == (5, 100, 0.5)


# Encoders


def token_ids(count: int) -> Any:
    """A tokenizer whose ids are 0, 1, ... of so many."""
    seen: list[str] = []

    def read(text: str, verbose: bool) -> dict[str, list[int]]:
        assert verbose is False
        seen.append(text)
        return {"input_ids": list(range(count))}

    return SimpleNamespace(read=read, seen=seen)


class Reads:
    """A tokenizer of one id a word."""

    pad_token_id, eos_token_id, bos_token_id = None, 7, 8

    def __call__(self, text: str, verbose: bool) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


def test_long_prompts_are_their_first_three_quarters_and_their_end() -> None:
    made = Encoder(None, Reads(), 8)
    prompts = [" ".join(map(str, range(n))) for n in (0, 8, 9, 30)]
    assert made.tokens(prompts) == [
        [7], list(range(8)), [0, 1, 2, 3, 4, 5, 7, 8], [0, 1, 2, 3, 4, 5, 28, 29],
    ]  # fmt: skip
    assert Encoder(None, Reads(), 9).tokens(prompts[3:]) == [[0, 1, 2, 3, 4, 5, 6, 28, 29]]

    class Panics(Reads):
        def __call__(self, text: str, verbose: bool) -> Any:
            raise type("PanicException", (BaseException,), {})("index out of range")

    class Fails(Reads):
        def __call__(self, text: str, verbose: bool) -> Any:
            raise KeyError("input_ids")

    with pytest.raises(InputError, match="tokenizer is damaged: index out of range"):
        Encoder(None, Panics(), 8).tokens(["1"])
    with pytest.raises(KeyError):
        Encoder(None, Fails(), 8).tokens(["1"])


@pytest.mark.parametrize(
    ("pad", "eos", "bos", "filler"),
    [(0, 7, 8, 0), (None, 7, 8, 7), (None, None, 8, 8), (None, None, None, 0), (5, 7, 8, 5)],
)
def test_what_fills_up_is_padding_or_an_end(pad: Any, eos: Any, bos: Any, filler: int) -> None:
    tokenizer = SimpleNamespace(pad_token_id=pad, eos_token_id=eos, bos_token_id=bos)
    assert Encoder(None, tokenizer, 8)._filler == filler
    assert Encoder(None, SimpleNamespace(), 8)._filler == 0


def test_both_ends_of_a_text_are_read() -> None:
    assert _readable("a" * 256, 8) == "a" * 256
    text = "a" * 128 + "x" + "b" * 128
    assert _readable(text, 8) == "a" * 128 + "b" * 128
    assert _readable("a\ud800b", 8) == "a?b"


def test_transformers_is_quiet_while_it_loads_and_talks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[Any] = []
    for bar in (True, False):
        log = SimpleNamespace(
            get_verbosity=lambda: 20, is_progress_bar_enabled=lambda bar=bar: bar,
            set_verbosity_error=lambda: done.append("error"),
            set_verbosity=done.append, disable_progress_bar=lambda: done.append("off"),
            enable_progress_bar=lambda: done.append("on"),
        )  # fmt: skip
        fake = SimpleNamespace(utils=SimpleNamespace(logging=log))
        monkeypatch.setattr(encoder, "transformers", fake)
        with pytest.raises(ValueError), encoder._quiet():
            raise ValueError
    assert done == ["error", "off", 20, "on", "error", "off", 20]


class Found:
    """Configurations, models and tokenizers as ``transformers`` would find them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[Any] = []
        self.config = SimpleNamespace(
            hidden_size=4, num_hidden_layers=3, model_type="bert", max_position_embeddings=66,
            is_encoder_decoder=False,
        )  # fmt: skip
        self.missing: list[str] = ["pooler.dense.weight"]
        self.vocabulary = {"a": 0, "b": 9}
        self.fails: BaseException | None = None
        table = SimpleNamespace(num_embeddings=10)
        self.backbone = SimpleNamespace(get_input_embeddings=lambda: table)
        self.tokenizer = SimpleNamespace(get_vocab=lambda: self.vocabulary)
        for name in ("AutoConfig", "_AutoModel", "AutoTokenizer"):
            monkeypatch.setattr(encoder, name, SimpleNamespace(from_pretrained=self.of(name)))

    def of(self, name: str) -> Any:
        def found(source: str, **more: Any) -> Any:
            self.asked.append((name, source, more))
            if self.fails is not None:
                raise self.fails
            model = (self.backbone, {"missing_keys": self.missing})
            return {"AutoConfig": self.config, "_AutoModel": model}.get(name, self.tokenizer)

        return found


def test_a_pretrained_encoder_is_looked_at_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = Found(monkeypatch)
    made = encoder.pretrained("org/m", max_tokens=128)
    assert (made.backbone, made.tokenizer) == (found.backbone, found.tokenizer)
    assert made.max_tokens == 64 and found.config.num_hidden_layers == 3
    safe = {"trust_remote_code": False}
    assert found.asked == [
        ("AutoConfig", "org/m", safe),
        ("_AutoModel", "org/m", {
            "config": found.config, "dtype": torch.float32, "use_safetensors": True,
            "output_loading_info": True, **safe,
        }),
        ("AutoTokenizer", "org/m", safe),
    ]  # fmt: skip
    for positions, asked, most in ((66, 64, 64), (66, 63, 63), (5, 64, 8), (None, 64, 62),
                                   (0, 64, 62)):  # fmt: skip
        found.config.max_position_embeddings = positions
        assert encoder.pretrained("org/m", max_tokens=asked).max_tokens == most
    del found.config.max_position_embeddings
    assert encoder.pretrained("org/m", max_tokens=64).max_tokens == 62
    for layers, drop, left in ((3, 1, 2), (1, 1, 1), (2, 5, 1)):
        found.config.num_hidden_layers = layers
        encoder.pretrained("org/m", max_tokens=16, drop_layers=drop)
        assert found.config.num_hidden_layers == left
    found.vocabulary = {"a": 10}
    with pytest.raises(InputError, match="its tokenizer has ids beyond 10"):
        encoder.pretrained("org/m", max_tokens=16)
    found.vocabulary = {}
    encoder.pretrained("org/m", max_tokens=16)
    found.missing = ["layer.1", "layer.0", "pooler.x"]
    with pytest.raises(InputError, match=r"its weights lack layer\.0$"):
        encoder.pretrained("org/m", max_tokens=16)
    found.config.is_encoder_decoder = True
    with pytest.raises(InputError, match="is no text encoder"):
        encoder.pretrained("org/m", max_tokens=16)
    found.config.is_encoder_decoder = False
    del found.config.hidden_size
    with pytest.raises(InputError, match=r"is no text encoder \(model type 'bert'\)"):
        encoder.pretrained("org/m", max_tokens=16)
    panic = type("PanicException", (BaseException,), {})
    for error, said in ((OSError("\nno such\nmore"), "no such$"), (ValueError(), "ValueError$"),
                        (panic("index"), "index$")):  # fmt: skip
        found.fails = error
        with pytest.raises(InputError, match=f"no pretrained encoder 'org/m': {said}"):
            encoder.pretrained("org/m", max_tokens=16)
    found.fails = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        encoder.pretrained("org/m", max_tokens=16)


def test_an_encoder_is_as_narrow_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Found(monkeypatch)
    encoder.pretrained("org/m", max_tokens=16, narrow=True)
    assert found.asked[1][2]["dtype"] == torch.bfloat16
    for told, can in (({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({}, False),
                      ({"avx512_bf16": False, "amx_bf16": False}, False)):  # fmt: skip
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda told=told: told, raising=False)
        assert encoder.computes_bfloat16() is can
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert encoder.computes_bfloat16() is False


def test_a_folder_is_checked_and_minilm_is_a_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = Found(monkeypatch)
    checked: list[Any] = []
    monkeypatch.setattr(encoder, "check_folder", lambda path, own: checked.append((path, own)))
    encoder.pretrained(str(tmp_path), max_tokens=16)
    assert checked == [(tmp_path, True)]
    encoder.pretrained("org/m", max_tokens=16)
    assert len(checked) == 1
    (tmp_path / "model").mkdir()
    spec = SimpleNamespace(origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: {encoder.MINILM_PACKAGE: spec}[name],
    )
    assert encoder.minilm_folder() == str(tmp_path / "model")
    encoder.pretrained("minilm", max_tokens=16)
    assert found.asked[-1][1] == str(tmp_path / "model")
    for none in (None, SimpleNamespace(origin=None), SimpleNamespace(origin="/nowhere/x.py")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, none=none: none)
        with pytest.raises(InputError, match="minilm needs the package"):
            encoder.minilm_folder()


def test_a_new_encoder_is_of_its_seed_and_reads_its_prompts() -> None:
    before = torch.get_rng_state()
    made = encoder.new(PROMPTS, max_tokens=16, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    config = made.backbone.config
    assert (config.hidden_size, config.num_hidden_layers) == (128, 2)
    assert (config.num_attention_heads, config.intermediate_size) == (4, 256)
    assert config.max_position_embeddings == 18 and made.max_tokens == 16
    tokenizer = made.tokenizer
    assert len(tokenizer) == config.vocab_size <= 8000
    special = tokenizer.convert_tokens_to_ids(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    assert special == [0, 1, 2, 3] and tokenizer.pad_token_id == 0
    ids = tokenizer("word number")["input_ids"]
    assert ids[0] == 2 and ids[-1] == 3 and len(ids) == 4  # words that came often are one token
    assert tokenizer.decode(ids, skip_special_tokens=True).strip() == "word number"
    other = encoder.new(PROMPTS, max_tokens=16, seed=2).backbone.state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    weights = made.backbone.state_dict()
    assert not torch.equal(weights[name], other[name])


# Training


class Slope(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def test_an_epoch_is_adam_w_on_shuffled_batches() -> None:
    """The rows, the gradient's norm of 1, decay and rates, against AdamW's own formula."""
    net, seen = Slope(), []

    def loss(rows: Any) -> torch.Tensor:
        if net.training:
            seen.append(list(map(int, rows)))
            return 50.0 * net.weight.sum()
        return net.weight.sum().detach()

    schedule = Schedule(epochs=2, batch_size=4, learning_rate=0.5)
    minimize(net, loss, np.arange(10, 20), np.arange(3), schedule, seed=9)
    wanted, weight, m, v = [], 0.0, 0.0, 0.0
    step = 0
    for epoch in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(mixed(9, epoch))
            order = np.arange(10, 20)[torch.randperm(10).numpy()]
        for rows in np.array_split(order, 2):
            wanted.append(rows.tolist())
            step += 1
            weight -= 0.5 * 0.1 * weight
            m, v = 0.9 * m + 0.1, 0.999 * v + 0.001  # the gradient, cut to a norm of 1
            weight -= 0.5 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)) ** 0.5 + 1e-8)
    assert seen == wanted and len({tuple(rows) for rows in seen}) == 4
    assert float(net.weight.detach()) == pytest.approx(weight, rel=1e-4)


def test_the_validation_loss_is_the_mean_over_all_unseen_rows() -> None:
    net = Slope()
    told: list[Any] = []

    def loss(rows: Any) -> torch.Tensor:
        if net.training:
            return net.weight.sum()
        return torch.tensor(float(np.mean(rows)))

    minimize(net, loss, np.arange(4), np.arange(700), Schedule(epochs=1), seed=0,
             advance=lambda epoch, best: told.append((epoch, best)))  # fmt: skip
    assert told == [(0, pytest.approx(349.5))]


@pytest.mark.parametrize(
    ("losses", "best"),
    [([1.0, 0.99995, 0.5], 2), ([1.0, 0.99995, 0.99995], 0), ([1.0, 0.9998, 1.0], 1),
     ([-1.0, -1.00005, -1.0], 0), ([-1.0, -1.0002, -1.0], 1), ([0.0, 0.0, -1e-9], 2),
     ([float("nan"), 1.0, 2.0], 0)],
)  # fmt: skip
def test_better_is_better_by_a_ten_thousandth(losses: list[float], best: int) -> None:
    net, weights = Slope(), []

    def loss(rows: Any) -> torch.Tensor:
        if net.training:
            return net.weight.sum()
        weights.append(float(net.weight.detach()))
        return torch.tensor(losses[len(weights) - 1], dtype=torch.float64)

    minimize(net, loss, np.arange(4), np.arange(2), Schedule(epochs=3), seed=0)
    assert float(net.weight.detach()) == weights[best]


def test_defaults_of_a_schedule_and_its_limits() -> None:
    assert Schedule() == Schedule(100, 15, 32, 1e-3, 5e-5, 0.1)
    assert Schedule(epochs=1, patience=1, batch_size=1).epochs == 1
    for name in ("epochs", "patience", "batch_size"):
        for wrong in (0, 1.5, True, "3"):
            with pytest.raises(InputError, match=f"{name} must be a whole number, 1 or more"):
                Schedule(**{name: wrong})  # type: ignore[arg-type]
    for name in ("learning_rate", "backbone_rate"):
        for bad in (0, 1, -0.1, "x"):
            with pytest.raises(InputError, match=f"{name} must lie between 0 and 1"):
                Schedule(**{name: bad})  # type: ignore[arg-type]
    assert [len(rows) for rows in _batches(np.arange(11), 4)] == [6, 5]
    assert [len(rows) for rows in _batches(np.arange(12), 4)] == [4, 4, 4]
    assert [len(rows) for rows in _batches(np.arange(1), 4)] == [1]
    assert len(_groups(Slope(), Schedule())) == 1
    assert mixed(-1, 0) == mixed(2**63 - 1, 0)
    wanted = np.random.SeedSequence([5, 7]).generate_state(1)[0]
    assert mixed(5, 7) == wanted != mixed(5, 8)
