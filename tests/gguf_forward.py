"""Run the models in a GGUF file in plain numpy, so that a conversion is judged by what it computes.

Metadata and tensors are looked up by the names that clip.cpp and llama.cpp look up (``KEY_*`` and ``TN_*`` in
llama.cpp's ``tools/mtmd/clip-impl.h``), and the towers and projectors are those of CLIP, LLaVA, Yi-VL and MobileVLM.
Nothing is taken from ``clipgguf``. GELU is the exact one, as in the models, where llama.cpp approximates it.

Pixels are (3, S, S) float32, already normalized.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.gguf_reading import read

Floats = NDArray[np.float32]

_erf = np.vectorize(math.erf, otypes=[np.float32])


@dataclass(frozen=True)
class GGUFModel:
    """A GGUF file's metadata by key, and its tensors by name, dequantized, with the axes in numpy's order."""

    metadata: dict[str, Any]
    tensors: dict[str, Floats]

    @classmethod
    def read(cls, path: Path) -> "GGUFModel":
        contents = read(path)
        tensors = {
            name: gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32).reshape(tensor.shape[::-1])
            for name, tensor in contents.tensors.items()
        }
        return cls(contents.metadata, tensors)

    def image_features(self, pixels: Floats) -> Floats:
        """Return what CLIP compares with a text: (projection_dim,)."""
        x = self._vision_tower(pixels, self.metadata["clip.vision.block_count"])
        pooled = self._norm(x[0], "v.post_ln", self.metadata["clip.vision.attention.layer_norm_epsilon"])
        return self._linear(pooled, "visual_projection")

    def text_features(self, tokens: Sequence[int]) -> Floats:
        """Return what CLIP compares with an image, for tokens that end in end-of-text: (projection_dim,)."""
        x = self.tensors["t.token_embd.weight"][list(tokens)]
        x = x + self.tensors["t.position_embd.weight"][: len(tokens)]
        for block in range(self.metadata["clip.text.block_count"]):
            x = self._block(x, "text", block)
        pooled = self._norm(x[-1], "t.post_ln", self.metadata["clip.text.attention.layer_norm_epsilon"])
        return self._linear(pooled, "text_projection")

    def llava_features(self, pixels: Floats) -> Floats:
        """Return what LLaVA's language model gets for one square image: (tokens, width of the language model)."""
        x = self._vision_tower(pixels, self.blocks_run())
        if "v.post_ln.weight" in self.tensors:
            x = self._norm(x, "v.post_ln", self.metadata["clip.vision.attention.layer_norm_epsilon"])
        return _PROJECTORS[self.metadata["clip.projector_type"]](self, x[1:])

    def siglip_features(self, pixels: Floats) -> Floats:
        """Return what the language model gets of a file with a SigLIP tower: (tokens, width of the language model).

        The features of several layers lie side by side in the order of depth.
        """
        patch, width = self.metadata["clip.vision.patch_size"], self.metadata["clip.vision.embedding_length"]
        grid = pixels.shape[1] // patch
        patches = pixels.reshape(3, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        x: Floats = patches @ self.tensors["v.patch_embd.weight"].reshape(width, -1).T
        x = x + self.tensors["v.patch_embd.bias"] + self.tensors["v.position_embd.weight"]
        layers = []
        for block in range(self.blocks_run()):
            x = self._block(x, "vision", block)
            if block + 1 in self.metadata["clip.vision.feature_layer"]:
                layers.append(x)
        return self._mlp(np.concatenate(layers, axis=-1))

    def llava_next_features(self, tiles: Sequence[Floats], size: tuple[int, int]) -> Floats:
        """Return what LLaVA 1.6's language model gets for an image of (width, height) pixels that is a grid pinpoint.

        The first of the ``tiles`` is the whole image made small, the others are its parts row by row. Their patches are
        joined to one picture, each row of which ends in the newline.
        """
        pinpoints = self.metadata["clip.vision.image_grid_pinpoints"]
        assert size in zip(pinpoints[::2], pinpoints[1::2], strict=True)
        across, down = (pixels // self.metadata["clip.vision.image_size"] for pixels in size)
        whole, *parts = [self.llava_features(tile) for tile in tiles]
        side, width = math.isqrt(len(whole)), whole.shape[-1]
        picture = np.stack(parts).reshape(down, across, side, side, width).transpose(0, 2, 1, 3, 4)
        picture = picture.reshape(down * side, across * side, width)
        newline = np.broadcast_to(self.tensors["model.image_newline"], (down * side, 1, width))
        return np.concatenate([whole, np.concatenate([picture, newline], axis=1).reshape(-1, width)])

    def blocks_run(self) -> int:
        """Return how many of the vision tower's blocks llama.cpp runs (``build_llava`` in tools/mtmd)."""
        layers = [layer for layer in self.metadata.get("clip.vision.feature_layer", []) if layer >= 0]
        return int(max(layers, default=self.metadata["clip.vision.block_count"] - 1))

    def _vision_tower(self, pixels: Floats, blocks: int) -> Floats:
        """Return the hidden states after a number of blocks: (1 + patches, width)."""
        patch = self.metadata["clip.vision.patch_size"]
        assert pixels.shape == (3, *[self.metadata["clip.vision.image_size"]] * 2)
        grid = pixels.shape[1] // patch
        kernel = self.tensors["v.patch_embd.weight"].reshape(-1, 3 * patch * patch)
        patches = pixels.reshape(3, grid, patch, grid, patch).transpose(1, 3, 0, 2, 4).reshape(grid * grid, -1)
        x = np.concatenate([self.tensors["v.class_embd"].reshape(1, -1), patches @ kernel.T])
        x = x + self.tensors["v.position_embd.weight"].reshape(x.shape)
        x = self._norm(x, "v.pre_ln", self.metadata["clip.vision.attention.layer_norm_epsilon"])
        for block in range(blocks):
            x = self._block(x, "vision", block)
        return x

    def _block(self, x: Floats, tower: str, number: int) -> Floats:
        name = f"{tower[0]}.blk.{number}"
        epsilon = self.metadata[f"clip.{tower}.attention.layer_norm_epsilon"]
        heads = self.metadata[f"clip.{tower}.attention.head_count"]
        positions, width = x.shape
        h = self._norm(x, f"{name}.ln1", epsilon)
        q, k, v = (
            self._linear(h, f"{name}.attn_{part}").reshape(positions, heads, -1).transpose(1, 0, 2) for part in "qkv"
        )
        scores = q @ k.transpose(0, 2, 1) / np.float32(math.sqrt(width // heads))
        if tower == "text":
            scores = np.where(np.tri(positions, dtype=bool), scores, np.float32(-np.inf))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + self._linear((weights @ v).transpose(1, 0, 2).reshape(positions, width), f"{name}.attn_out")
        h = self._norm(x, f"{name}.ln2", epsilon)
        # "ffn_down" is the projection that widens: clip.cpp takes it as it is, llama.cpp swaps the two by this test.
        first, second = f"{name}.ffn_up", f"{name}.ffn_down"
        if self.tensors[f"{second}.weight"].shape[1] == width:
            first, second = second, first
        return x + self._linear(self._activation(self._linear(h, first)), second)

    def _activation(self, x: Floats) -> Floats:
        return _gelu(x) if self.metadata.get("clip.use_gelu") else x / (1 + np.exp(np.float32(-1.702) * x))

    def _linear(self, x: Floats, name: str) -> Floats:
        y: Floats = x @ self.tensors[f"{name}.weight"].T
        return y + self.tensors[f"{name}.bias"] if f"{name}.bias" in self.tensors else y

    def _norm(self, x: Floats, name: str, epsilon: float = 1e-5) -> Floats:
        centered = x - x.mean(-1, keepdims=True)
        variance = np.square(centered).mean(-1, keepdims=True)
        y: Floats = centered / np.sqrt(variance + np.float32(epsilon))
        return y * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def _mlp(self, x: Floats) -> Floats:
        """LLaVA's projector, or Yi-VL's, which llama.cpp tells by mm.3."""
        x = self._linear(x, "mm.0")
        if "mm.3.weight" not in self.tensors:
            return self._linear(_gelu(x), "mm.2")
        return self._norm(self._linear(_gelu(self._norm(x, "mm.1")), "mm.3"), "mm.4")

    def _ldp(self, x: Floats) -> Floats:
        """MobileVLM's projector: two of MobileNetV3's inverted residual blocks, the second of which halves the grid."""
        x = _to_grid(self._linear(_gelu(self._linear(x, "mm.model.mlp.1")), "mm.model.mlp.3"))
        for number, stride in ((1, 1), (2, 2)):
            name = f"mm.model.mb_block.{number}.block"
            h = _hard_swish(
                self._norm(_depthwise(x, self.tensors[f"{name}.0.0.weight"])[::stride, ::stride], f"{name}.0.1")
            )
            squeezed = np.maximum(self._linear(h.mean((0, 1)), f"{name}.1.fc1"), 0)
            h = h * _hard_sigmoid(self._linear(squeezed, f"{name}.1.fc2"))
            h = self._norm(self._linear(h, f"{name}.2.0"), f"{name}.2.1")
            x = x + h if stride == 1 else h
        return x.reshape(-1, x.shape[-1])

    def _ldpv2(self, x: Floats) -> Floats:
        """MobileVLM V2's projector: the mean of each 2 x 2 patches, plus a convolution that tells where they are."""
        x = _to_grid(self._linear(_gelu(self._linear(x, "mm.model.mlp.0")), "mm.model.mlp.2"))
        side, width = x.shape[0] // 2, x.shape[-1]
        x = x.reshape(side, 2, side, 2, width).mean((1, 3))
        x = x + _depthwise(x, self.tensors["mm.model.peg.0.weight"]) + self.tensors["mm.model.peg.0.bias"]
        return x.reshape(-1, width)


_PROJECTORS = {"mlp": GGUFModel._mlp, "ldp": GGUFModel._ldp, "ldpv2": GGUFModel._ldpv2}


def _gelu(x: Floats) -> Floats:
    y: Floats = np.float32(0.5) * x * (1 + _erf(x / np.float32(math.sqrt(2))))
    return y


def _hard_sigmoid(x: Floats) -> Floats:
    y: Floats = np.clip(x + 3, 0, 6) / np.float32(6)
    return y


def _hard_swish(x: Floats) -> Floats:
    return x * _hard_sigmoid(x)


def _to_grid(x: Floats) -> Floats:
    side = math.isqrt(len(x))
    return x.reshape(side, side, -1)


def _depthwise(x: Floats, kernel: Floats) -> Floats:
    """Convolve each channel of (height, width, channels) with its own 3 x 3 kernel, padded with zeros."""
    height, width, channels = x.shape
    kernel = kernel.reshape(channels, 3, 3)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    y = np.zeros_like(x)
    for i in range(3):
        for j in range(3):
            y += padded[i : i + height, j : j + width] * kernel[:, i, j]
    return y
