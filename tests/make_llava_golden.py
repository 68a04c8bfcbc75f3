"""Write tests/fixtures/features.npz and llava.projector anew: what the source models compute, and torch's own file.

    pip install -e .[reference] && python -m tests.make_llava_golden

Needs torch and transformers; the files there are of torch 2.13.0 and transformers 5.23.0. Every model is read from the
checkpoint that ``tests/llava_checkpoints.py`` makes, and must take all of its tensors and have no other: so
transformers says that the names there are the real ones. It has no class for the original LLaVA, Yi-VL and MobileVLM,
whose names and projectors are written out here.

The values are under "<model>/<feature layer>", and under "CLIP <activation>/{image,text}".
"""

import io
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import nn
from transformers import (
    CLIPModel,
    CLIPVisionModel,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from tests.clip_checkpoints import write_clip, write_tower
from tests.feature_models import FEATURE_LAYERS, FEATURE_MODELS, TOKENS, image
from tests.llava_checkpoints import SPELLINGS, Llava, write_hf, write_original
from tests.weights import tensor_values

FIXTURES = Path(__file__).parent / "fixtures"

Features = dict[str, NDArray[np.float32]]

# The original LLaVA's names, and where transformers has the same parameter; the first that fits.
ORIGINAL_NAMES = (
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower."),
    ("model.mm_projector.0.", "model.multi_modal_projector.linear_1."),
    ("model.mm_projector.2.", "model.multi_modal_projector.linear_2."),
    ("model.image_newline", "model.image_newline"),
    ("model.", "model.language_model."),
    ("lm_head.", "lm_head."),
)


def load(model_class: Any, directory: Path) -> Any:
    """Load a checkpoint, which must have exactly the model's parameters."""
    model, info = model_class.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def clip(directory: Path) -> Features:
    features: Features = {}
    for activation in ("quick_gelu", "gelu"):
        llava = Llava(hidden_act=activation)
        model = load(CLIPModel, write_clip(directory / activation, llava.clip))
        # config.json leaves the token to the default, which is beyond the tiny vocabulary.
        model.text_model.eos_token_id = TOKENS[-1]
        outputs = {
            "image": model.get_image_features(torch.tensor(image(llava)[None])),
            "text": model.get_text_features(torch.tensor([TOKENS])),
        }
        features |= {f"CLIP {activation}/{what}": output.pooler_output[0].numpy() for what, output in outputs.items()}
    return features


def hf(directory: Path) -> Features:
    """Transformers' own LLaVA, from every spelling of its names."""
    llava = FEATURE_MODELS["HF LLaVA"]
    pixels = torch.tensor(image(llava)[None])
    by_spelling = []
    for spelling in SPELLINGS:
        model = load(
            LlavaForConditionalGeneration, write_hf(directory / f"spelling {spelling}", llava, spelling=spelling)
        )
        by_spelling.append(
            {
                layer: model.get_image_features(pixels, vision_feature_layer=layer).pooler_output[0].numpy()
                for layer in FEATURE_LAYERS
            }
        )
    assert all(
        np.array_equal(others[layer], by_spelling[0][layer]) for others in by_spelling for layer in FEATURE_LAYERS
    )
    return {f"HF LLaVA/{layer}": value for layer, value in by_spelling[0].items()}


def llava_next(directory: Path) -> Features:
    """An original LLaVA 1.6, as transformers' LlavaNext: two tiles beside each other, and the newlines."""
    llava = FEATURE_MODELS["LLaVA 1.6"]
    for spelling in SPELLINGS:
        load(LlavaNextForConditionalGeneration, write_hf(directory / f"next {spelling}", llava, spelling=spelling))
    model = LlavaNextForConditionalGeneration(LlavaNextConfig.from_pretrained(directory / "next 4")).eval()
    original = write_original(directory / "original", llava, tower="inside")
    state = {}
    for name, value in load_file(original / "model.safetensors").items():
        old, new = next((old, new) for old, new in ORIGINAL_NAMES if name.startswith(old))
        state[new + name.removeprefix(old)] = torch.tensor(value)
    model.load_state_dict(state, strict=True)
    tiles = torch.tensor(np.stack([image(llava, tile) for tile in range(3)]))[None]
    side = llava.vision.image_size
    sizes = torch.tensor([[side, 2 * side]])  # (height, width)
    return {
        f"LLaVA 1.6/{layer}": model.get_image_features(tiles, sizes, vision_feature_layer=layer)
        .pooler_output[0]
        .numpy()
        for layer in FEATURE_LAYERS
    }


def others(directory: Path) -> Features:
    """A tower of transformers with a projector of LLaVA's, Yi-VL's or MobileVLM's beside it."""
    features: Features = {}
    for name, llava in FEATURE_MODELS.items():
        if name in ("HF LLaVA", "LLaVA 1.6"):
            continue
        if name == "CLIP + projector":
            tower = load(CLIPModel, write_clip(directory / "clip", llava.clip)).vision_model
        else:
            tower = load(CLIPVisionModel, write_tower(directory / f"tower {name}", "vision", llava.clip))
        outputs = tower(torch.tensor(image(llava)[None]), output_hidden_states=True)
        project = Projector(llava)
        for layer in FEATURE_LAYERS if llava.projector == "mlp" else (-2,):
            features[f"{name}/{layer}"] = project(outputs.hidden_states[layer][:, 1:])[0].numpy()
    return features


class Projector:
    """A projector of a kind that transformers does not have, from its tensors."""

    def __init__(self, llava: Llava) -> None:
        self.state = projector_state(llava)
        self.kind = llava.projector

    def __call__(self, x: Any) -> Any:
        return {"mlp": self.mlp, "mlp_norm": self.mlp_norm, "ldp": self.ldp, "ldpv2": self.ldpv2}[self.kind](x)

    def module(self, prefix: str, module: Any) -> Any:
        """Give a module the tensors whose names begin so, all of which it must take."""
        prefix = f"model.mm_projector.{prefix}"
        state = {name.removeprefix(prefix): v for name, v in self.state.items() if name.startswith(prefix)}
        module.load_state_dict(state, strict=True)
        return module

    def width(self, name: str) -> tuple[int, int]:
        out, into = self.state[f"model.mm_projector.{name}.weight"].shape
        return into, out

    def mlp(self, x: Any) -> Any:
        return self.module("", nn.Sequential(nn.Linear(*self.width("0")), nn.GELU(), nn.Linear(*self.width("2"))))(x)

    def mlp_norm(self, x: Any) -> Any:
        """Yi-VL's "mlp2x_gelu_Norm"."""
        into, out = self.width("0")
        layers = (nn.Linear(into, out), nn.LayerNorm(out), nn.GELU(), nn.Linear(out, out), nn.LayerNorm(out))
        return self.module("", nn.Sequential(*layers))(x)

    def ldp(self, x: Any) -> Any:
        """MobileVLM's LDPBlock (mobilevlm/model/vision_projector.py), made of torchvision's InvertedResidual."""
        into, out = self.width("model.mlp.1")
        mlp = nn.Sequential(nn.Identity(), nn.Linear(into, out), nn.GELU(), nn.Linear(out, out))
        x = self.module("model.mlp.", mlp)(x)
        x = x.transpose(1, 2).reshape(1, out, 24, 24)
        for number, stride in ((1, 1), (2, 2)):
            block = f"model.mb_block.{number}.block"
            h = self.module(f"{block}.0.0.", nn.Conv2d(out, out, 3, stride, 1, groups=out, bias=False))(x)
            h = nn.functional.hardswish(self.norm_2d(f"{block}.0.1.", h))
            s = self.module(f"{block}.1.fc1.", nn.Conv2d(out, out // 4, 1))(nn.functional.adaptive_avg_pool2d(h, 1))
            s = self.module(f"{block}.1.fc2.", nn.Conv2d(out // 4, out, 1))(nn.functional.relu(s))
            h = h * nn.functional.hardsigmoid(s)
            h = self.norm_2d(f"{block}.2.1.", self.module(f"{block}.2.0.", nn.Conv2d(out, out, 1, bias=False))(h))
            x = x + h if stride == 1 else h
        return x.flatten(2).transpose(1, 2)

    def norm_2d(self, prefix: str, x: Any) -> Any:
        """timm's LayerNormAct2d without an activation: a LayerNorm over the channels."""
        return self.module(prefix, nn.LayerNorm(x.shape[1]))(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def ldpv2(self, x: Any) -> Any:
        """MobileVLM V2's LDPNetV2Projector: FeatureIRLayer, TokenDownLayer, PosInjectLayer."""
        into, out = self.width("mlp.mlp.0")
        x = self.module("mlp.mlp.", nn.Sequential(nn.Linear(into, out), nn.GELU(), nn.Linear(out, out)))(x)
        x = nn.functional.adaptive_avg_pool2d(x.transpose(1, 2).reshape(1, out, 24, 24), 12)
        x = x + self.module("peg.peg.0.", nn.Conv2d(out, out, 3, 1, 1, groups=out))(x)
        return x.flatten(2).transpose(1, 2)


def projector_state(llava: Llava) -> Mapping[str, Any]:
    return {name: torch.tensor(tensor_values(name, shape)) for name, shape in llava.projector_shapes().items()}


def main() -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as directory, torch.inference_mode():
        path = Path(directory)
        features = clip(path) | others(path) | hf(path) | llava_next(path)
    np.savez_compressed(FIXTURES / "features.npz", **features)  # type: ignore[arg-type] # Names are no options.
    target = io.BytesIO()  # Not the path, whose stem would go into the file.
    torch.save(projector_state(FEATURE_MODELS["CLIP + projector"]), target)
    (FIXTURES / "llava.projector").write_bytes(target.getvalue())
    for name, value in features.items():
        sys.stdout.write(f"{name}: {value.shape}, standard deviation {value.std():.3f}\n")


if __name__ == "__main__":
    main()
