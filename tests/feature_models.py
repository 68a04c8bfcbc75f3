"""The models whose features are known from transformers, and the image and the tokens that they get."""

from tests.llava_checkpoints import VISION_24, Floats, Llava
from tests.weights import random_array

# The models whose features ``tests/make_llava_golden.py`` computes and ``tests/test_features.py`` compares, for these
# layers (the kinds of projectors that transformers does not have: only for -2), pixels and tokens.
FEATURE_LAYERS = (-1, -2, -3)
FEATURE_MODELS = {
    "CLIP + projector": Llava(),
    "HF LLaVA": Llava(hidden_act="gelu", text_width=24),
    "LLaVA 1.6": Llava(text_width=40, has_newline=True),
    "mlp_norm": Llava(hidden_act="gelu", projector="mlp_norm"),
    "ldp": Llava(VISION_24, projector="ldp", text_width=16),
    "ldpv2": Llava(VISION_24, projector="ldpv2", text_width=16),
}
TOKENS = (97, 5, 61, 33, 5, 80, 98)


def image(llava: Llava, tile: int = 0) -> Floats:
    """Return normalized pixels, (3, S, S), for a model; each ``tile`` has others."""
    return random_array(f"tile {tile}", (3, llava.vision.image_size, llava.vision.image_size))
