"""What Qwen3-TTS's decoder makes of codes, from a checkpoint's tensors, in numpy.

After Qwen's Qwen3TTSTokenizerV2Decoder: everything is causal, so that zeros stand before the first frame.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = Mapping[str, NDArray[Any]]
_HEADS, _WINDOW, _ROPE_BASE, _EPSILON = 16, 72, 10000.0, 1e-5
RATES = (8, 5, 4, 3)


def decoded(weights: Weights, codes: NDArray[np.int64]) -> Floats:
    """Return the samples of codes, which are (frames, 16); the names of tensors are without ``decoder.``."""
    x = _codebooks(weights, "quantizer.rvq_first", codes[:, :1]) + _codebooks(
        weights, "quantizer.rvq_rest", codes[:, 1:]
    )
    x = _convolved(weights, "pre_conv", x)
    x = _transformed(weights, x)
    for number in range(2):
        x = _doubled(weights, f"upsample.{number}", x)
    x = _convolved(weights, "decoder.0", x)
    for number, rate in enumerate(RATES):
        block = f"decoder.{number + 1}.block"
        x = _transposed(weights, f"{block}.1", _snake(weights, f"{block}.0", x), rate)
        for unit, dilation in ((2, 1), (3, 3), (4, 9)):
            y = _convolved(weights, f"{block}.{unit}.conv1", _snake(weights, f"{block}.{unit}.act1", x), dilation)
            x = x + _convolved(weights, f"{block}.{unit}.conv2", _snake(weights, f"{block}.{unit}.act2", y))
    x = _convolved(weights, "decoder.6", _snake(weights, "decoder.5", x))
    return np.clip(x[:, 0], -1, 1)


def _codebooks(weights: Weights, name: str, codes: NDArray[np.int64]) -> Floats:
    total = 0.0
    for number, column in enumerate(codes.T):
        book = f"{name}.vq.layers.{number}._codebook"
        usage = np.maximum(weights[f"{book}.cluster_usage"].astype(np.float64), 1e-5)
        total = total + (weights[f"{book}.embedding_sum"] / usage[:, None])[column]
    return np.asarray(total @ weights[f"{name}.output_proj.weight"][:, :, 0].T, np.float64)


def _convolved(weights: Weights, name: str, x: Floats, dilation: int = 1) -> Floats:
    """Return a convolution of (frames, channels); the kernel is (out, in, length), or (channels, 1, length)."""
    kernel, bias = weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"]
    reach = (kernel.shape[2] - 1) * dilation
    before = np.concatenate([np.zeros((reach, x.shape[1])), x])
    taps = [before[n * dilation :][: len(x)] for n in range(kernel.shape[2])]
    if kernel.shape[1] == 1 != x.shape[1]:
        return sum(tap * kernel[:, 0, n] for n, tap in enumerate(taps)) + bias
    return sum(tap @ kernel[:, :, n].T for n, tap in enumerate(taps)) + bias


def _transposed(weights: Weights, name: str, x: Floats, rate: int) -> Floats:
    kernel = weights[f"{name}.conv.weight"]
    made = np.zeros((len(x) * rate + kernel.shape[2], kernel.shape[1]))
    for number, frame in enumerate(x):
        made[number * rate :][: kernel.shape[2]] += np.einsum("i,iok->ko", frame, kernel)
    return made[: len(x) * rate] + weights[f"{name}.conv.bias"]


def _transformed(weights: Weights, x: Floats) -> Floats:
    name = "pre_transformer"
    x = x @ weights[f"{name}.input_proj.weight"].T + weights[f"{name}.input_proj.bias"]
    for number in range(8):
        layer = f"{name}.layers.{number}"
        attended = _attended(weights, f"{layer}.self_attn", _normed(x, weights[f"{layer}.input_layernorm.weight"]))
        x = x + attended * weights[f"{layer}.self_attn_layer_scale.scale"]
        y = _normed(x, weights[f"{layer}.post_attention_layernorm.weight"])
        gate, up = (y @ weights[f"{layer}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        down = (gate / (1 + np.exp(-gate)) * up) @ weights[f"{layer}.mlp.down_proj.weight"].T
        x = x + down * weights[f"{layer}.mlp_layer_scale.scale"]
    x = _normed(x, weights[f"{name}.norm.weight"])
    return np.asarray(x @ weights[f"{name}.output_proj.weight"].T + weights[f"{name}.output_proj.bias"])


def _normed(x: Floats, weight: NDArray[Any]) -> Floats:
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON) * weight)


def _attended(weights: Weights, name: str, x: Floats) -> Floats:
    frames = len(x)
    q, k, v = ((x @ weights[f"{name}.{part}_proj.weight"].T).reshape(frames, _HEADS, -1) for part in "qkv")
    half = q.shape[2] // 2
    angles = np.arange(frames)[:, None, None] / _ROPE_BASE ** (np.arange(half) / half)

    def turned(y: Floats) -> Floats:
        left, right = y[..., :half], y[..., half:]
        cosines, sines = np.cos(angles), np.sin(angles)
        return np.concatenate([left * cosines - right * sines, right * cosines + left * sines], -1)

    scores = np.einsum("qhd,khd->hqk", turned(q), turned(k)) / np.sqrt(2 * half)
    back = np.subtract.outer(np.arange(frames), np.arange(frames))
    scores = np.where((back >= 0) & (back < _WINDOW), scores, -np.inf)
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    found = np.einsum("hqk,khd->qhd", scores / scores.sum(-1, keepdims=True), v).reshape(frames, -1)
    return np.asarray(found @ weights[f"{name}.o_proj.weight"].T)


def _doubled(weights: Weights, name: str, x: Floats) -> Floats:
    """Return twice as many frames, through a transposed convolution and one of ConvNeXt's blocks."""
    x = _transposed(weights, f"{name}.0", x, 2)
    y = _convolved(weights, f"{name}.1.dwconv", x)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = y * weights[f"{name}.1.norm.weight"] + weights[f"{name}.1.norm.bias"]
    y = y @ weights[f"{name}.1.pwconv1.weight"].T + weights[f"{name}.1.pwconv1.bias"]
    y = y / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    y = y @ weights[f"{name}.1.pwconv2.weight"].T + weights[f"{name}.1.pwconv2.bias"]
    return np.asarray(x + y * weights[f"{name}.1.gamma"])


def _snake(weights: Weights, name: str, x: Floats) -> Floats:
    alpha, beta = (np.exp(weights[f"{name}.{part}"].astype(np.float64)) for part in ("alpha", "beta"))
    return np.asarray(x + np.sin(x * alpha) ** 2 / (beta + 1e-9))
