"""How large the keys and values of a timing's model are."""

from __future__ import annotations

from lengthwise.protocols import TimingModel
from lengthwise.serving.timing.config import model_names, model_shape


def kv_bytes_per_token(timing: TimingModel) -> int | None:
    """Bytes of keys and values that one token leaves in the cache of the timing's model.

    A timing may say it itself (``kv_bytes_per_token``); that of a known model, measured or
    estimated, has the model's, in 16 bits. None where neither is known.
    """
    said: int | None = getattr(timing, "kv_bytes_per_token", None)
    if said is not None:
        return said
    inner = getattr(timing, "timing", None)  # at another speed
    if inner is not None:
        return kv_bytes_per_token(inner)
    model = getattr(timing, "model", None) or getattr(timing, "about", {}).get("model")
    shape = model_shape(model) if model in model_names() else model
    size: int | None = getattr(shape, "kv_bytes_per_token", None)
    return size
