"""Our CLIP, tokenizer, mapper and static losses against numbers of the official implementations."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from foreign import mapper_from_official
from goldenlib import fill, load, one, params, sentences
from zeroshift.clip.features import normalize, template_features, text_direction
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import TemplateBank, context_sentence, sentence
from zeroshift.files.clip_layouts import from_openai_state, openai_sizes
from zeroshift.methods import directions, losses

TOLERANCE = 1e-5
Arrays = dict[str, np.ndarray]


@lru_cache(maxsize=1)
def banks() -> tuple[TemplateBank, TemplateBank]:
    """The golden folder's own template and part sentences."""
    texts = sentences("imagenet_templates")
    return TemplateBank("golden", texts), TemplateBank("parts", sentences("part_templates"))


@lru_cache(maxsize=1)
def clip_of(run: Path, resize: Any = "antialias") -> ClipModel:
    """The golden CLIP of a run."""
    meta, _ = load(run)
    state = fill(meta["keys"], meta["seed"]) | {"logit_scale": torch.tensor(meta["logit_scale"])}
    heads = {"vision_heads": meta["vision_heads"], "text_heads": meta["config"]["transformer_heads"]}
    clip = from_openai_state(state, **heads, resize=resize)
    clip.mean, clip.std, clip.templates = tuple(meta["clip_mean"]), tuple(meta["clip_std"]), banks()[0]
    return clip


def agrees(ours: Tensor, golden: np.ndarray, tolerance: float = TOLERANCE) -> bool:
    """Largest deviation within the tolerance, relative to the largest element."""
    expected = torch.from_numpy(np.asarray(golden))
    assert ours.shape == expected.shape
    return bool((ours.detach() - expected).abs().max() <= tolerance * expected.abs().max())


CLIPS = params("clip_text_image")


@pytest.mark.parametrize("run", CLIPS)
def test_sizes_read_off_the_weights_are_the_official_ones(run: Path) -> None:
    meta, _ = load(run)
    sizes = openai_sizes(fill(meta["keys"], meta["seed"]))
    # Heads leave no trace in weights.
    assert {name: size for name, size in sizes.items() if "heads" not in name} == {
        name: size for name, size in meta["config"].items() if "heads" not in name
    }


@pytest.mark.parametrize("run", CLIPS)
def test_every_token_id_is_the_official_one(run: Path) -> None:
    meta, arrays = load(run)
    clip, (templates, parts) = clip_of(run), banks()
    pairs = {"prompt_tokens": meta["prompts"]}
    for side in ("source", "target"):
        label = meta[f"{side}_class"]
        pairs[f"soft_tokens_{side}"] = [context_sentence(meta["context"], label, period=False)]
        pairs[f"template_tokens_{side}"] = templates.sentences(label)
        pairs[f"part_tokens_{side}"] = parts.sentences(label)
    for name, texts in pairs.items():
        assert np.array_equal(clip.tokenize(texts).numpy(), arrays[name]), name


@pytest.mark.parametrize("run", CLIPS)
def test_text_features_and_the_text_direction_are_the_official_ones(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(run)
    with torch.no_grad():
        assert agrees(clip.encode_text(meta["prompts"]), arrays["text_features"])
        for side in ("source", "target"):
            ours = template_features(clip, meta[f"{side}_class"])
            assert agrees(ours, arrays[f"template_features_normalized_{side}"])
        ours = text_direction(clip, meta["source_class"], meta["target_class"])
    assert agrees(ours, arrays["text_direction"])


@pytest.mark.parametrize("run", CLIPS)
def test_pictures_of_every_size_are_prepared_and_encoded_as_officially(run: Path) -> None:
    _, arrays = load(run)
    seen = 0
    for name in arrays:
        if not name.startswith("clip_input_"):
            continue
        size, _, resize = name.removeprefix("clip_input_").partition("_")
        clip = clip_of(run)
        clip.resize = "noantialias" if resize == "noantialias" else "antialias"
        images = torch.from_numpy(arrays[f"image_{size}"])
        with torch.no_grad():
            assert agrees(clip.preprocess(images), arrays[name]), name
            assert agrees(clip.encode_image(images), arrays[name.replace("clip_input", "image_features")]), (
                name
            )
        clip.resize = "antialias"
        seen += 1
    assert seen >= 3


@pytest.mark.parametrize("run", CLIPS)
def test_the_gradient_to_a_picture_and_the_logits_are_the_official_ones(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(run)
    images = torch.from_numpy(arrays["image_native"]).requires_grad_()
    features = clip.encode_image(images)
    (features * torch.from_numpy(arrays["image_grad_output"])).sum().backward()
    assert images.grad is not None and agrees(images.grad, arrays["grad_image_native"])
    unit = normalize(features.detach())
    logits = clip.logit_scale * unit @ normalize(clip.encode_text(meta["prompts"])).T
    assert agrees(logits, arrays["logits_per_image"])


@pytest.mark.parametrize("run", CLIPS)
def test_learned_words_give_the_official_features_and_gradient(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(run)
    words = torch.from_numpy(arrays["soft_prompts"]).requires_grad_()
    assert words.shape[1] == meta["n_ctx"]
    source, target = (
        clip.encode_prompts(words, context_sentence(meta["context"], meta[f"{side}_class"], period=False))
        for side in ("source", "target")
    )
    assert agrees(source, arrays["soft_text_features_source"])
    assert agrees(target, arrays["soft_text_features_target"])
    (target * torch.from_numpy(arrays["soft_grad_output"])).sum().backward()
    assert words.grad is not None and agrees(words.grad, arrays["grad_soft_prompts_target"])


@pytest.mark.parametrize("run", params("ipl_mapper"))
def test_the_mapper_and_its_gradients_are_the_official_ones(run: Path) -> None:
    meta, arrays = load(run)
    mapper = mapper_from_official(fill(meta["keys"], meta["seed"]), meta["config"]["n_ctx"])
    w = torch.from_numpy(arrays["w"]).requires_grad_()
    words = mapper(w)
    assert agrees(words, arrays["prompts"]) and agrees(words.flatten(1), arrays["output"])
    (words.flatten(1) * torch.from_numpy(arrays["grad_output"])).sum().backward()
    # Single kinks of the leaky ReLU may flip: norm-wise, as the golden README says.
    assert w.grad is not None
    expected = torch.from_numpy(arrays["grad_w"])
    assert (w.grad - expected).norm() <= 1e-2 * expected.norm()
    for name, parameter in mapper.named_parameters():
        _, number, kind = name.split(".")
        assert parameter.grad is not None
        golden = meta["grad_norms"][f"mapping.mapping.{int(number) + 1}.{kind}"]
        assert float(parameter.grad.norm()) == pytest.approx(golden, rel=1e-3)


def repeat(grid: np.ndarray, times: int, pad: int) -> Tensor:
    """The large picture of a coarse grid: every cell repeated, the border repeated `pad` pixels further."""
    images = torch.from_numpy(grid).repeat_interleave(times, dim=-1).repeat_interleave(times, dim=-2)
    return torch.nn.functional.pad(images, (pad,) * 4, mode="replicate")


NADA = params("nada_losses")


@pytest.mark.parametrize("run", NADA)
def test_the_losses_of_nada_and_their_gradients_are_the_official_ones(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(one("clip_text_image", meta["clip"]))
    label = meta["target_class"]
    raw, named = (normalize(clip.encode_text([text])) for text in (label, f"a {label}"))
    means = [
        template_features(clip, meta[f"{side}_class"]).mean(dim=0, keepdim=True)
        for side in ("source", "target")
    ]
    means = [normalize(mean) for mean in means]
    assert agrees(means[0], arrays["src_text_features_mean_normalized"])
    assert agrees(means[1], arrays["target_text_features_mean_normalized"])
    text = text_direction(clip, meta["source_class"], label)
    assert agrees(text, arrays["text_direction"])
    images = torch.from_numpy(arrays["target_images"]).requires_grad_()
    source = normalize(clip.encode_image(torch.from_numpy(arrays["source_images"]))).detach()

    def features() -> Tensor:
        return normalize(clip.encode_image(images))

    cosine = (means[0] * means[1]).sum()
    assert agrees(cosine, arrays["manifold_text_cosine"])
    scale = clip.logit_scale / 100

    def loss_of(name: str) -> Tensor:
        if name == "directional":
            return losses.directional(directions.image_direction(source, features(), floor=0), text)
        if name == "manifold":
            return losses.manifold(source, features(), cosine)
        return losses.global_clip(features(), raw if name == "global_raw_target" else named, scale)

    for name in ("directional", "manifold", "global_a_target", "global_raw_target"):
        loss = loss_of(name)
        assert agrees(loss, arrays[name]), name
        if f"grad_{name}" in arrays:
            (gradient,) = torch.autograd.grad(loss, images)
            assert agrees(gradient, arrays[f"grad_{name}"]), name
    weights = meta["combined_weights"]
    combined = sum(
        weights[f"lambda_{kind}"] * loss_of(name)
        for kind, name in (
            ("direction", "directional"),
            ("global", "global_a_target"),
            ("manifold", "manifold"),
        )
    )
    assert isinstance(combined, Tensor) and agrees(combined, arrays["combined"])


@pytest.mark.parametrize("run", NADA)
def test_the_texture_loss_of_nada_is_the_official_one(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(one("clip_text_image", meta["texture_clip"]))
    assert clip.convolutional
    wanted, image = (
        clip.encode_image(torch.from_numpy(arrays[f"{side}_images"])) for side in ("source", "target")
    )
    assert agrees(losses.texture(wanted, image), arrays["texture"])


@pytest.mark.parametrize("run", NADA)
def test_the_patch_loss_of_nada_is_the_official_one(run: Path) -> None:
    meta, arrays = load(run)
    clip = clip_of(one("clip_text_image", meta["clip"]))
    parts = [
        text_direction(clip, sentence(part, meta["source_class"]), sentence(part, meta["target_class"]))
        for part in banks()[1].templates
    ]
    assert agrees(torch.cat(parts), arrays["patch_text_directions"])
    centers = torch.from_numpy(arrays["patch_directional_centers_xy"])
    source, target = (
        clip.encode_image(
            losses.crop_patches(
                repeat(arrays[f"patch_grid_{side}"], meta["patch_upscale"], meta["patch_pad"]),
                centers,
                meta["patch_size"],
            )
        )
        for side in ("source", "target")
    )
    ours = losses.patch(directions.image_direction(source, target, floor=0), torch.cat(parts))
    assert agrees(ours, arrays["patch_directional"])
