"""Write tests/fixtures/saved_names.json and layout_features.npz anew: what transformers and OpenCLIP save and compute.

    pip install -e .[reference] open_clip_torch && python -m tests.make_layout_names

The files there are of torch 2.13.0, transformers 5.23.0 and open_clip_torch 3.3.0. The names are those of models made
from the config that ``tests/layouts.py`` writes, and saved at once; "loaded" are those of models that were loaded from
its weights, and saved. Loading, for the features too, must take all of its tensors and miss none.
"""

import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file

from tests.feature_models import TOKENS, image
from tests.layouts import SAVED
from tests.llava_checkpoints import Llava
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import GRANITE_VISION, SIGLIP_LLAVA, write_siglip_llava

# A requirement of this script alone.
open_clip: Any = importlib.import_module("open_clip")

FIXTURES = Path(__file__).parent / "fixtures"


def load(model_class: Any, directory: Path) -> Any:
    model, info = model_class.from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def saved_names(title: str, directory: Path) -> dict[str, list[int]]:
    """Return the names and shapes of a model, as its own program saves it."""
    name, _, how = title.partition(", ")
    if name in ("CLIP", "CustomTextCLIP"):
        model_cfg = json.loads((directory / "open_clip_config.json").read_text())["model_cfg"]
        custom = model_cfg.pop("custom_text", False)
        model = (open_clip.CustomTextCLIP if custom else open_clip.CLIP)(**model_cfg)
        return {key: list(value.shape) for key, value in sorted(model.state_dict().items())}
    model_class = getattr(transformers, name)
    if how == "loaded":
        model = load(model_class, directory)
    else:
        model = model_class(model_class.config_class.from_pretrained(directory))
    model.save_pretrained(directory / "saved")
    with safe_open(directory / "saved" / "model.safetensors", "pt") as file:
        return {key: file.get_slice(key).get_shape() for key in sorted(file.keys())}


def open_clip_features(directory: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What OpenCLIP itself computes from its layout."""
    for activation in ("quick_gelu", "gelu"):
        llava = Llava(hidden_act=activation)
        path = write_open_clip(directory / activation, llava.clip)
        model_cfg = json.loads((path / "open_clip_config.json").read_text())["model_cfg"]
        model = open_clip.CLIP(**model_cfg).eval()
        model.load_state_dict(load_file(path / "open_clip_model.safetensors"), strict=True)
        # End-of-text is the token with the highest id, and the tokens are padded with 0 to the whole context.
        tokens = [*TOKENS, *[0] * (llava.clip.text.max_position_embeddings - len(TOKENS))]
        yield f"OpenCLIP {activation}/text", model.encode_text(torch.tensor([tokens]))[0].numpy()
        yield f"OpenCLIP {activation}/image", model.encode_image(torch.tensor(image(llava)[None]))[0].numpy()


def siglip_features(directory: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What the language model of a LLaVA with a SigLIP tower gets."""
    path = write_siglip_llava(directory / "siglip llava", SIGLIP_LLAVA)
    model = load(transformers.LlavaForConditionalGeneration, path)
    for layer in (-1, -2):
        pixels = torch.tensor(image(SIGLIP_LLAVA)[None])
        output = model.get_image_features(pixels, vision_feature_layer=layer, vision_feature_select_strategy="full")
        yield f"SigLIP/{layer}", output.pooler_output[0].numpy()


def granite_vision_features(directory: Path) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """What the language model of a LLaVA 1.6 gets that takes the features of several layers, of one tile."""
    path = write_siglip_llava(directory / "granite vision", GRANITE_VISION)
    model = load(transformers.LlavaNextForConditionalGeneration, path)
    tile = torch.tensor(image(GRANITE_VISION)[None, None]).repeat(1, 2, 1, 1, 1)
    side = GRANITE_VISION.vision.image_size
    output = model.get_image_features(tile, torch.tensor([[side, side]]))
    # The whole picture comes first, then the same as the only one of its parts.
    yield "Granite Vision", output.pooler_output[0][:16].numpy()


def main() -> None:
    """Write the files."""
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        directory = Path(temporary)
        names = {title: saved_names(title, write(directory / title)) for title, write in SAVED.items()}
        features = dict(open_clip_features(directory)) | dict(siglip_features(directory))
        features |= dict(granite_vision_features(directory))
    # A line for each tensor, which is how a difference shows.
    text = json.dumps(names, indent=0).replace("[\n", "[").replace(",\n", ", ")
    text = text.replace(', "', ',\n"').replace("\n]", "]")
    (FIXTURES / "saved_names.json").write_text(text + "\n", encoding="utf-8")
    np.savez_compressed(FIXTURES / "layout_features.npz", **features)  # type: ignore[arg-type] # Names are no options.
    for title, value in features.items():
        sys.stdout.write(f"{title}: {value.shape}, standard deviation {value.std():.3f}\n")


if __name__ == "__main__":
    main()
