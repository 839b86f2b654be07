"""Training losses of the neural predictors; each takes raw scores and labels of one batch."""

from __future__ import annotations

import torch
from torch.nn import functional

MARGIN_GAP = 0.1


def squared(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean squared error of (n, 1) against (n,)."""
    return functional.mse_loss(scores[:, 0], labels)


def cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of logits (n, buckets) against buckets (n,)."""
    return functional.cross_entropy(scores, labels.long())


def list_mle(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """ListMLE over the batch as one list: scores (n, 1), labels (n,), larger = longer; per item.

    The negative log likelihood of the true order under Plackett–Luce (Xia et al., ICML 2008); the
    loss of vLLM-LTR (Fu et al., NeurIPS 2024). Equal labels count in the order they come.
    """
    ordered = scores[:, 0][torch.argsort(labels, descending=True, stable=True)]
    rest = torch.logcumsumexp(ordered.flip(0), dim=0).flip(0)
    return (rest - ordered).mean()


def margin_ranking(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean hinge of all pairs in the batch, after PARS: the longer should score 1 more.

    Scores (n, 1); labels are places in (0, 1), and pairs within ``MARGIN_GAP`` of each other are
    left out: which of two such answers is longer is mostly chance.
    """
    gap = labels[:, None] - labels[None, :]
    longer = gap > MARGIN_GAP
    lead = scores[:, 0][:, None] - scores[:, 0][None, :]
    if not longer.any():
        return scores.sum() * 0.0
    return functional.relu(1.0 - lead)[longer].mean()


def pairwise(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Mean logistic loss of all pairs in the batch whose labels differ: the longer is the likelier.

    RankNet (Burges et al., ICML 2005); scores (n, 1), labels (n,).
    """
    longer = labels[:, None] > labels[None, :]
    lead = scores[:, 0][:, None] - scores[:, 0][None, :]
    if not longer.any():
        return scores.sum() * 0.0
    return functional.softplus(-lead[longer]).mean()


def cumulative_link(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Negative log likelihood of buckets (n,) under logits of exceeding each inner edge.

    Logits (n, buckets - 1) descend along the row; P(bucket k) = P(> k - 1) - P(> k).
    """
    end = torch.full_like(logits[:, :1], torch.inf)
    edges = torch.cat((end, logits, -end), dim=1)
    rows, k = torch.arange(len(labels), device=labels.device), labels.long()
    above, below = edges[rows, k], edges[rows, k + 1]
    # log(s(a) - s(b)) = log s(a) + log s(-b) + log(1 - exp(b - a)), s the logistic function
    gap = torch.log(-torch.expm1(torch.clamp(below - above, max=-1e-6)))
    return -(functional.logsigmoid(above) + functional.logsigmoid(-below) + gap).mean()


def student_t(
    location: torch.Tensor, scale: torch.Tensor, df: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Negative log density of labels (n,) under a Student t; all (n,)."""
    z = (labels - location) / scale
    norm = torch.lgamma((df + 1) / 2) - torch.lgamma(df / 2) - 0.5 * torch.log(df * torch.pi)
    return (torch.log(scale) - norm + (df + 1) / 2 * torch.log1p(z * z / df)).mean()


def pinball(scores: torch.Tensor, labels: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Pinball loss of quantiles (n, levels) against (n,) (Koenker and Bassett, 1978)."""
    missed = labels[:, None] - scores
    return torch.maximum(levels * missed, (levels - 1) * missed).mean()
