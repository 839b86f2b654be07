"""A probe: what is left of an answer, read off the hidden states of the model that writes it.

TRAIL: Shahout et al., "Don't Stop Me Now: Embedding Based Scheduling for LLMs", ICLR 2025, section
3. A small network sees a middle layer's hidden state, the mean of the prompt's at first and the
last token's then, and says in which of ``bins`` equal bins what remains lies. Between two looks the
last belief moves down as tokens come, and is multiplied by what the network says now.

It needs the model at hand: ``Watch`` hooks a layer of a ``transformers`` model, whoever drives it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from lengthwise.errors import InputError
from lengthwise.predictors.optimize import Schedule, minimize
from lengthwise.writing import whole_folder

DESCRIPTION, WEIGHTS, FORMAT = "probe.json", "weights.safetensors", 1


class Probe:
    """Reads hidden states of ``width`` numbers.

    ``longest`` tokens are cut into ``bins``; who has more to come is in the last one. ``hidden``
    is the network's inner width.
    """

    def __init__(
        self, width: int, *, bins: int = 10, longest: int = 512, hidden: int = 512
    ) -> None:
        for name, value in {"width": width, "bins": bins, "hidden": hidden}.items():
            if value < 1:
                raise InputError(f"a probe's {name} must be 1 or more, not {value}")
        if longest < bins:
            raise InputError(f"{bins} bins need at least as many tokens, not longest={longest}")
        self.width, self.bins, self.longest, self.hidden = width, bins, longest, hidden
        self.net = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, bins))
        self.shift, self.scale = torch.zeros(width), torch.ones(width)

    @property
    def bin_tokens(self) -> float:
        """Tokens in a bin."""
        return self.longest / self.bins

    def fit(
        self, states: ArrayLike, remaining_tokens: ArrayLike, *, seed: int = 0, epochs: int = 30
    ) -> Self:
        """Learns from hidden states (n, width) and what remained then, (n,) tokens.

        A tenth of the rows decides when it stops.
        """
        x = torch.as_tensor(np.asarray(states), dtype=torch.float32)
        left = torch.as_tensor(np.asarray(remaining_tokens), dtype=torch.float32)
        if x.ndim != 2 or x.shape[1] != self.width or left.shape != x.shape[:1] or len(x) < 20:
            raise InputError(
                f"a probe learns from (n, {self.width}) states and (n,) tokens, n at least 20, not "
                f"{tuple(x.shape)} and {tuple(left.shape)}"
            )
        self.shift, self.scale = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
        inputs = (x - self.shift) / self.scale
        labels = (left / self.bin_tokens).long().clamp(0, self.bins - 1)
        order = np.random.default_rng(seed).permutation(len(x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for layer in (self.net[0], self.net[2]):
                layer.reset_parameters()  # type: ignore[operator]
        minimize(
            self.net, lambda rows: functional.cross_entropy(self.net(inputs[rows]), labels[rows]),
            order[len(x) // 10 :], order[: len(x) // 10],
            Schedule(epochs=epochs, patience=5, batch_size=32), seed=seed,
        )  # fmt: skip
        return self

    def probabilities(self, states: torch.Tensor) -> torch.Tensor:
        """P(bin) of hidden states (n, width), (n, bins), on the states' device."""
        with torch.inference_mode():
            seen = (states.to(self.shift.dtype) - self.shift) / self.scale
            return functional.softmax(self.net(seen), dim=-1)

    def expected(self, belief: torch.Tensor) -> torch.Tensor:
        """Expected tokens to come under beliefs (n, bins), (n,): 1 or more."""
        middles = torch.arange(self.bins, device=belief.device) + 0.5
        return (belief @ (middles * self.bin_tokens).to(belief.dtype)).clamp(min=1.0)

    def after(self, belief: torch.Tensor, tokens: int) -> torch.Tensor:
        """Beliefs (n, bins) once so many more tokens have come.

        A remainder that is uniform within its bin falls into the next one with the probability
        tokens / bin_tokens (TRAIL's transition matrix); nobody has less than none to come.
        """
        for _ in range(tokens):
            down = belief / self.bin_tokens
            belief = belief - down
            belief[:, :-1] += down[:, 1:]
            belief[:, 0] += down[:, 0]
        return belief

    def to(self, device: torch.device | str) -> Self:
        """Moves the network; returns itself."""
        self.net.to(device)
        self.shift, self.scale = self.shift.to(device), self.scale.to(device)
        return self

    def save(self, path: str | Path) -> None:
        """Writes a folder of JSON and safetensors that ``Probe.load`` reads."""
        described = {
            "format": FORMAT, "width": self.width, "bins": self.bins, "longest": self.longest,
            "hidden": self.hidden,
        }  # fmt: skip
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        tensors |= {"shift": self.shift, "scale": self.scale}
        with whole_folder(Path(path)) as here:
            (here / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()},
                      here / WEIGHTS)  # fmt: skip

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """The probe in a folder; raises ``InputError`` for anything else."""
        where = Path(path)
        try:
            described = json.loads((where / DESCRIPTION).read_text())
            if described.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            made = cls(**described)
            tensors = load_file(where / WEIGHTS)
            made.shift, made.scale = tensors.pop("shift"), tensors.pop("scale")
            made.net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items()})
        except InputError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError,
                SafetensorError) as error:  # fmt: skip
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(f"{str(path)!r} holds no probe: {first}") from error
        return made


def decoder_layer(model: nn.Module, layer: int | None = None) -> nn.Module:
    """A layer of a ``transformers`` model's longest stack; by default the middle one."""
    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise InputError(f"{type(model).__name__} has no stack of layers to hook")
    stack = max(stacks, key=len)
    at = len(stack) // 2 if layer is None else layer
    if not -len(stack) <= at < len(stack):
        raise InputError(f"layer {at} of {len(stack)}: there is no such layer")
    return stack[at]


class Watch:
    """Watches a batch of sequences that a model writes together, as ``generate`` does.

    Within ``with Watch(model, probe) as watch`` every forward pass is seen: one of several tokens
    is the prompts (``mask`` (batch, tokens) leaves padding out), one of a single token goes on.
    ``expected_remaining_tokens`` (batch,) is then what is left, looked at every ``every`` tokens
    and one less for each in between.
    """

    def __init__(
        self,
        model: nn.Module,
        probe: Probe,
        *,
        layer: int | None = None,
        every: int = 1,
        mask: torch.Tensor | None = None,
    ) -> None:
        if every < 1:
            raise InputError(f"a probe looks every 1 or more tokens, not {every}")
        self.probe, self.every, self.mask = probe, every, mask
        self._layer = decoder_layer(model, layer)
        self._hook: Any = None
        self._belief: torch.Tensor | None = None
        self.generated = 0  # tokens since the prompts, of which the last is not seen yet

    def __enter__(self) -> Self:
        self._hook = self._layer.register_forward_hook(self._see)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()

    @property
    def expected_remaining_tokens(self) -> NDArray[np.float64]:
        """Tokens expected to come after the last one that was fed to the model, (batch,)."""
        if self._belief is None:
            raise InputError("the probe has seen no prompt yet")
        since = self.generated % self.every
        left = self.probe.expected(self._belief).double().cpu().numpy() - since
        return np.asarray(np.maximum(left, 1.0))

    def _see(self, module: nn.Module, given: Any, output: Any) -> None:
        hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] > 1:
            self.generated = 0
            self._belief = self.probe.probabilities(prompt_state(hidden, self.mask))
            return
        self.generated += 1
        if self.generated % self.every or self._belief is None:
            return
        told = self.probe.probabilities(hidden[:, -1])
        with torch.inference_mode():
            belief = self.probe.after(self._belief.clone(), self.every) * told
            total = belief.sum(dim=1, keepdim=True)
            # a belief that what is seen contradicts altogether begins anew
            self._belief = torch.where(total > 1e-12, belief / total.clamp(min=1e-12), told)


def prompt_state(hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean hidden state of prompts (batch, tokens, width), padding left out; (batch, width)."""
    if mask is None:
        return hidden.mean(dim=1)
    weight = mask[:, -hidden.shape[1] :, None].to(hidden.dtype)
    return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def collected(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    layer: int | None = None,
    every: int = 1,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What a probe is fitted to: hidden states (n, width) and the tokens that remained, (n,).

    Each answer is fed to the model behind its prompt; states are those that ``Watch`` would see.
    """
    states: list[torch.Tensor] = []
    left: list[int] = []
    seen: list[torch.Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hook = decoder_layer(model, layer).register_forward_hook(keep)
    device = next(model.parameters()).device
    try:
        with torch.inference_mode():
            for prompt, answer in zip(prompts, answers, strict=True):
                model(input_ids=torch.tensor([[*prompt, *answer]], device=device))
                hidden = seen.pop()[0].float().cpu()
                states.append(hidden[: len(prompt)].mean(dim=0))
                left.append(len(answer))
                for done in range(every, len(answer) + 1, every):
                    states.append(hidden[len(prompt) + done - 1])
                    left.append(len(answer) - done)
    finally:
        hook.remove()
    return torch.stack(states).numpy(), np.array(left)
