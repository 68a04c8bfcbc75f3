"""Every layout that CLIP and SigLIP towers are published in, from one set of weights.

A tensor's canonical name is that of transformers' CLIPModel or SiglipModel, and its values follow from that name alone,
so that all layouts of one ``Clip`` must give the same tensors. ``SAVED`` has one model of each class, for the names.
"""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.checkpoints import TINY, Clip, Text, Vision
from tests.clip_checkpoints import write_clip, write_tower
from tests.llava_checkpoints import Llava
from tests.open_clip_checkpoints import write_open_clip
from tests.siglip_checkpoints import write_siglip, write_siglip_llava, write_siglip_tower

# One block beside two, so that the fixture with saved names stays small and numbering still shows.
NAMES = Clip(TINY.text, Vision(48, 96, 1, 4, image_size=28, patch_size=14), TINY.projection_dim)

NAMES_SIGLIP = Vision(48, 96, 1, 4, image_size=28, patch_size=7)
NAMES_SIGLIP_TEXT = Text(48, 96, 1, 4, vocab_size=99, max_position_embeddings=16)
NAMES_LLAVA = Llava(vision=NAMES_SIGLIP, feature_layer=-1)

# By a model's class, and how it came about: the writer of a small one. tests/fixtures/saved_names.json has the names
# and shapes that transformers 5.23 and OpenCLIP 3.3 save for the same class and config.
SAVED: dict[str, Callable[[Path], Path]] = {
    "CLIPModel": lambda d: write_clip(d, NAMES),
    "CLIPVisionModel": lambda d: write_tower(d, "vision", NAMES, prefix=""),
    "CLIPVisionModel, loaded": lambda d: write_tower(d, "vision", NAMES),
    "CLIPVisionModelWithProjection": lambda d: write_tower(d, "vision", NAMES, projection=True),
    "CLIPTextModel": lambda d: write_tower(d, "text", NAMES, prefix=""),
    "CLIPTextModel, loaded": lambda d: write_tower(d, "text", NAMES),
    "CLIPTextModelWithProjection": lambda d: write_tower(d, "text", NAMES, projection=True),
    "SiglipModel": lambda d: write_siglip(d, NAMES_SIGLIP, NAMES_SIGLIP_TEXT),
    "SiglipVisionModel": lambda d: write_siglip_tower(d, NAMES_SIGLIP, prefix=False),
    "SiglipVisionModel, loaded": lambda d: write_siglip_tower(d, NAMES_SIGLIP),
    "SiglipVisionModel, no head": lambda d: write_siglip_tower(d, NAMES_SIGLIP, prefix=False, head=False),
    "LlavaForConditionalGeneration": lambda d: write_siglip_llava(d, NAMES_LLAVA, spelling="5"),
    "LlavaForConditionalGeneration, loaded": lambda d: write_siglip_llava(d, NAMES_LLAVA, spelling="4"),
    "CLIP": lambda d: write_open_clip(d, NAMES),
    "CustomTextCLIP": lambda d: write_open_clip(d, NAMES, custom_text=True),
}


def write_cache(root: Path, model: Path) -> Path:
    """Move a model directory into a Hugging Face cache, and return the snapshot: a directory of symbolic links."""
    repository = root / f"models--me--{model.name}"
    snapshot = repository / "snapshots" / hashlib.sha1(model.name.encode()).hexdigest()
    blobs = repository / "blobs"
    blobs.mkdir(parents=True)
    for file in sorted(path for path in model.rglob("*") if path.is_file()):
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(model)
        link.parent.mkdir(parents=True, exist_ok=True)
        ups = len(link.relative_to(repository).parts) - 1
        link.symlink_to(Path(*[".."] * ups, "blobs", blob.name))
        shutil.move(file, blob)
    return snapshot
