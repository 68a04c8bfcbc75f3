"""InternVL's towers with RMS norms, which are too large for a fixture, and what llama.cpp would compute wrongly."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from clipgguf import ConfigError, plan
from clipgguf.families import internvl
from tests.family_fixtures import Fixture, fixtures

RMS_NORMS = {"norm_type": "rms_norm", "use_qk_norm": True}


def changed(name: str, tower: dict[str, Any], shapes: Any, **config: Any) -> Fixture:
    fixture = next(fixture for fixture in fixtures() if fixture.name == name)
    old = fixture.files["config.json"]
    new = {**old, **config, "vision_config": {**old["vision_config"], **tower}}
    return replace(fixture, files={**fixture.files, "config.json": new}, shapes=shapes(fixture.shapes))


def rms_normed(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a tower with RMS norms, also of queries and keys, in either layout."""
    norms = ("norm1.bias", "norm2.bias", "before.bias", "after.bias")
    queries = {name: "attn." for name in shapes if name.endswith("attn.proj.bias")}
    queries |= {name: "attention." for name in shapes if name.endswith("attention.projection_layer.bias")}
    added = {
        f"{name.rpartition(start)[0]}{start}{x}_norm.weight": shapes[name]
        for name, start in queries.items()
        for x in "qk"
    }
    return {**{name: shape for name, shape in shapes.items() if not name.endswith(norms)}, **added}


@pytest.mark.parametrize("name", ["internvl", "internvl--hf"])
def test_rms_norms(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(internvl, "RMS_NORMED", (64, 4))
    names = {t.name for t in plan(changed(name, RMS_NORMS, rms_normed).write(tmp_path / "m")).tensors}
    assert not names & {f"v.blk.{block}.ln{n}.bias" for block in range(4) for n in (1, 2)}
    assert names >= {f"v.blk.{block}.attn_{x}_norm.weight" for block in range(4) for x in "qk"}


@pytest.mark.parametrize("tower", [{"norm_type": "rms_norm"}, {"use_qk_norm": True}])
def test_norms_that_no_model_has(tower: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="should be 'layer_norm' and false, or 'rms_norm' and true"):
        plan(changed("internvl--hf", tower, dict).write(tmp_path / "m"))


def test_norms_that_llama_cpp_takes_for_others(tmp_path: Path) -> None:
    (warning,) = plan(changed("internvl--hf", RMS_NORMS, rms_normed).write(tmp_path / "m")).warnings
    assert "llama.cpp goes by the sizes, 64 and 4, and takes 'layer_norm'" in warning


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"min_dynamic_patch": 7, "max_dynamic_patch": 6}, "min_dynamic_patch is 7, larger than max_dynamic_patch, 6"),
        ({"min_dynamic_patch": 13}, "min_dynamic_patch is 13, larger than max_dynamic_patch, 12"),
        ({"downsample_ratio": 2.0}, "downsample_ratio is 2.0, should be between 1/8 and 1"),
        ({"downsample_ratio": 0.12}, "downsample_ratio is 0.12, should be between 1/8 and 1"),
        ({"ps_version": "v1"}, "ps_version is 'v1'"),
        ({"vision_feature_layer": -2}, "vision_feature_layer is -2"),
    ],
)
def test_settings_that_llama_cpp_does_not_know(setting: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        plan(changed("internvl--hf", {}, dict, **setting).write(tmp_path / "m"))
