"""Checkpoints whose weights are quantized, which are refused where it is those that are wanted."""

from collections.abc import Iterable, Mapping
from typing import Any

from clipgguf.errors import ConfigError
from clipgguf.sources import File
from clipgguf.tensor import DTYPES, View


def refuse_quantized(config: Mapping[str, Any], path: File, tensors: Iterable[View]) -> None:
    """Raise ConfigError when a config.json says that the checkpoint is quantized, and one of the wanted tensors is."""
    quantization = config.get("quantization_config")
    # Often the language model alone is quantized: its tower and its projector can be converted.
    tensor = next((t for t in tensors if t.dtype not in (*DTYPES, "I64")), None)
    if quantization and tensor is not None:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        by = method if isinstance(method, str) and method else "quantization_config"
        raise ConfigError(
            f"{path}: the checkpoint is quantized ({by}; {tensor.name!r} is of type {tensor.dtype}), supported are "
            f"weights in {', '.join(DTYPES)}"
        )
