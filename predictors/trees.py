"""Gradient-boosted trees as arrays: taken over from scikit-learn, evaluated by numpy.

scikit-learn's HistGradientBoosting is LightGBM's algorithm (Ke et al., NeurIPS 2017).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FIELDS = ("feature", "threshold", "left", "right", "value", "root", "output", "baseline")


@dataclass(frozen=True)
class Trees:
    """All trees of an ensemble, their nodes in one row each; a leaf's children are itself.

    Node arrays have shape (nodes,): the column compared, the threshold (left if value <= it), the
    children's node numbers, the leaf's value. ``root`` and ``output`` (trees,) say where each tree
    starts and which output it adds to; ``baseline`` (outputs,) is what the sum starts from.
    """

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    value: Floats
    root: Ints
    output: Ints
    baseline: Floats

    @classmethod
    def of(cls, ensemble: Any) -> Trees:
        """The trees of a fitted HistGradientBoostingRegressor or -Classifier, no missing values.

        Reads scikit-learn's private ``_predictors`` and ``_baseline_prediction``: there is no
        public way to the trees.
        """
        parts: list[dict[str, Any]] = []
        root, output, at = [], [], 0
        for stage in ensemble._predictors:
            for k, tree in enumerate(stage):
                nodes = tree.nodes
                own = np.arange(len(nodes))
                leaf = nodes["is_leaf"].astype(bool)
                parts.append(
                    {
                        "feature": np.where(leaf, 0, nodes["feature_idx"]),
                        "threshold": np.where(leaf, 0.0, nodes["num_threshold"]),
                        "left": np.where(leaf, own, nodes["left"]) + at,
                        "right": np.where(leaf, own, nodes["right"]) + at,
                        "value": np.where(leaf, nodes["value"], 0.0),
                    }
                )
                root.append(at)
                output.append(k)
                at += len(nodes)
        joined = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return cls(
            feature=joined["feature"].astype(np.int64),
            threshold=joined["threshold"].astype(np.float64),
            left=joined["left"].astype(np.int64),
            right=joined["right"].astype(np.int64),
            value=joined["value"].astype(np.float64),
            root=np.array(root),
            output=np.array(output),
            baseline=np.ravel(ensemble._baseline_prediction).astype(np.float64),
        )

    def __call__(self, columns: Floats) -> Floats:
        """Sums of the trees, (n, outputs), for rows of features (n, columns)."""
        rows = np.arange(len(columns))[:, None]
        node = np.repeat(self.root[None, :], len(columns), axis=0)  # (n, trees)
        while True:
            goes_left = columns[rows, self.feature[node]] <= self.threshold[node]
            below = np.where(goes_left, self.left[node], self.right[node])
            if (below == node).all():
                break
            node = below
        out = np.repeat(self.baseline[None, :], len(columns), axis=0)
        leaves = self.value[node]
        for tree, k in enumerate(self.output):  # one by one, in the order of scikit-learn's sum
            out[:, k] += leaves[:, tree]
        return out

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """The arrays under names that start with ``prefix``, to be saved."""
        return {f"{prefix}.{name}": getattr(self, name) for name in FIELDS}

    @classmethod
    def restored(cls, prefix: str, arrays: Any, columns: int) -> Trees:
        """What ``arrays(prefix)`` gave, for rows of so many features.

        Raises ``ValueError`` for arrays that are no trees: they could not end, or read elsewhere.
        """
        made = cls(**{name: arrays[f"{prefix}.{name}"] for name in FIELDS})
        nodes = len(made.feature)
        own = np.arange(nodes)
        sound = (
            all(len(getattr(made, name)) == nodes for name in FIELDS[:5])
            and len(made.root) == len(made.output)
            # children come after their parent, so that every path ends
            and all(((child >= own) & (child < nodes)).all() for child in (made.left, made.right))
            and _within(made.feature, columns)
            and _within(made.root, nodes)
            and _within(made.output, len(made.baseline))
        )
        if not sound:
            raise ValueError(f"the arrays {prefix} do not form trees")
        return made


def _within(numbers: Ints, limit: int) -> bool:
    return bool(((numbers >= 0) & (numbers < limit)).all())
