"""The networks by their own promises: sizes, paths, precision, noise, refusals. Their numbers are in
test_golden_stylegan2."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from zeroshift.errors import InputError
from zeroshift.models.discriminator import StyleGAN2Discriminator
from zeroshift.models.protocol import Generator
from zeroshift.models.seeds import draw_noise, rng, z_from_seeds
from zeroshift.models.stylegan2 import StyleGAN2Config, StyleGAN2Generator


def config(size: int = 32, **options: int) -> StyleGAN2Config:
    defaults = {"latent_dim": 6, "style_dim": 10, "mapping_depth": 2, "channel_max": 8}
    return StyleGAN2Config(size=size, **{**defaults, **options})


def noisy(**options: int) -> StyleGAN2Generator:
    """A generator whose noise strengths are not zero."""
    generator = StyleGAN2Generator(config(**options), seed=1)
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("noise.weight"):
                parameter.fill_(0.5)
    return generator


def z(*seeds: int) -> Tensor:
    return z_from_seeds(seeds, 6)


@pytest.mark.parametrize("size", [16, 32, 64, 128, 256, 512, 1024])
def test_every_size_gives_pictures_and_logits_of_its_size(size: int) -> None:
    small = StyleGAN2Config(size=size, latent_dim=3, style_dim=4, mapping_depth=1, channel_max=2)
    with torch.no_grad():
        image = StyleGAN2Generator(small)(torch.ones(1, 3))
        logits = StyleGAN2Discriminator(small)(image)
    assert image.shape == (1, 3, size, size) and logits.shape == (1, 1)


@pytest.mark.parametrize("size", [0, 8, 24, 100, 2048, -64])
def test_other_sizes_are_refused_by_value(size: int) -> None:
    with pytest.raises(InputError, match=f"got {size}"):
        StyleGAN2Config(size=size)


@pytest.mark.parametrize(
    "name", ["latent_dim", "style_dim", "mapping_depth", "channel_multiplier", "channel_max", "channel_base"]
)
def test_empty_widths_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=f"{name} must be at least"):
        StyleGAN2Config(size=32, **{name: 0})


def test_channels_follow_the_published_table() -> None:
    sides = (4, 32, 64, 128, 256, 512, 1024)
    full = StyleGAN2Config(size=1024)
    assert [full.channels(side) for side in sides] == [512, 512, 512, 256, 128, 64, 32]
    assert [StyleGAN2Config(size=256, channel_multiplier=1).channels(side) for side in sides[:5]] == [
        512,
        512,
        256,
        128,
        64,
    ]


def test_channels_follow_the_base_where_it_is_given() -> None:
    small = StyleGAN2Config(size=64, channel_base=512, channel_max=48)
    assert [small.channels(side) for side in (4, 8, 16, 32, 64)] == [48, 48, 32, 16, 8]


def test_the_generator_meets_the_protocol() -> None:
    generator = StyleGAN2Generator(config())
    assert isinstance(generator, Generator)
    assert (generator.image_size, generator.latent_dim, generator.style_dim, generator.num_latents) == (
        32,
        6,
        10,
        8,
    )
    assert generator.latent_avg.shape == (10,)


def test_equal_seeds_give_equal_networks() -> None:
    first, second, other = (StyleGAN2Generator(config(), seed=seed).state() for seed in (5, 5, 6))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["conv1.conv.weight"], other["conv1.conv.weight"])


def test_random_weights_have_unit_variance_at_run_time() -> None:
    wide = StyleGAN2Generator(
        StyleGAN2Config(size=16, latent_dim=64, style_dim=64, mapping_depth=4, channel_max=64)
    )
    w = wide.map(torch.randn(64, 64, generator=rng("w")))
    assert 0.7 < w.square().mean().item() < 1.4


def test_one_style_for_all_layers_equals_the_same_style_in_every_row() -> None:
    generator = noisy()
    w = generator.map(z(1, 2))
    rows = w.unsqueeze(1).repeat(1, generator.num_latents, 1)
    torch.testing.assert_close(generator.synthesize(w), generator.synthesize(rows))


def test_every_latent_row_changes_the_picture() -> None:
    generator = noisy()
    rows = generator.map(z(1)).unsqueeze(1).repeat(1, generator.num_latents, 1)
    plain = generator.synthesize(rows)
    for k in range(generator.num_latents):
        changed = rows.clone()
        changed[:, k] += 1
        assert not torch.equal(plain, generator.synthesize(changed)), k


def test_both_modulation_paths_give_the_same_picture_and_gradients() -> None:
    results = []
    for path in ("scale", "grouped"):
        generator = noisy().double()
        generator.modulation = path
        generator(z(1, 2).double()).square().sum().backward()
        gradients = {name: p.grad for name, p in generator.named_parameters()}
        results.append({"picture": generator(z(1, 2).double()), **gradients})
    for name in results[0]:
        torch.testing.assert_close(
            results[0][name], results[1][name], msg=lambda text, name=name: f"{name}: {text}"
        )


def test_one_picture_alone_equals_itself_in_a_batch() -> None:
    generator = noisy()
    together = generator(z(1, 2, 3))
    for row, seed in zip(together, (1, 2, 3), strict=True):
        torch.testing.assert_close(generator(z(seed))[0], row, rtol=0, atol=1e-5)


def test_registered_noise_equals_the_same_maps_given_and_off_equals_zero_maps() -> None:
    generator = noisy()
    w = generator.map(z(1))
    shapes = generator.noise_shapes()
    maps = [generator.get_buffer(f"noises.noise_{index}") for index in range(len(shapes))]
    assert [tuple(each.shape) for each in maps] == shapes
    assert torch.equal(generator.synthesize(w), generator.synthesize(w, maps))
    torch.testing.assert_close(
        generator.synthesize(w, "off"), generator.synthesize(w, [torch.zeros(shape) for shape in shapes])
    )
    assert not torch.equal(generator.synthesize(w), generator.synthesize(w, "off"))


def test_own_noise_per_sample_equals_one_call_per_sample() -> None:
    generator = noisy()
    maps = draw_noise(generator.noise_shapes(), 2, 0, "test", 0)
    together = generator.synthesize(generator.map(z(1, 2)), maps)
    for b, seed in enumerate((1, 2)):
        alone = generator.synthesize(generator.map(z(seed)), [each[b : b + 1] for each in maps])
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=1e-5)


def test_features_are_the_outputs_of_the_styled_convolutions() -> None:
    generator = noisy()
    caught: list[Tensor] = []
    for module in (generator.conv1, *generator.convs):
        module.register_forward_hook(lambda *call: caught.append(call[-1]))  # pyright: ignore[reportArgumentType]  # hooks are untyped
    image, features = generator.synthesize(generator.map(z(1)), features=True)
    assert torch.equal(image, generator.synthesize(generator.map(z(1))))
    assert all(torch.equal(one, other) for one, other in zip(features, caught[: len(features)], strict=True))
    assert [each.shape[-1] for each in features] == [4, 8, 8, 16, 16, 32, 32]


def test_double_precision_agrees_with_single_precision() -> None:
    generator = noisy()
    single = generator(z(1))
    double = generator.clone().double()(z(1).double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(single.double(), double, rtol=0, atol=1e-5)


def test_bfloat16_autocast_stays_near_and_gives_full_precision_pictures() -> None:
    generator = noisy()
    discriminator = StyleGAN2Discriminator(config())
    with torch.autocast("cpu", torch.bfloat16):
        image = generator(z(1, 2))
        logits = discriminator(image)
    assert image.dtype == torch.float32 and logits.dtype == torch.float32
    full = generator(z(1, 2))
    assert (image - full).abs().max().item() < 0.03 * full.abs().max().item()
    assert (logits - discriminator(full)).abs().max().item() < 0.1


def test_a_clone_has_equal_weights_and_its_own_life() -> None:
    generator = noisy()
    twin = generator.clone()
    with torch.no_grad():
        twin.input.input.add_(1)
    assert torch.equal(generator.clone()(z(1)), generator(z(1)))
    assert not torch.equal(twin(z(1)), generator(z(1)))


def test_state_is_a_copy_that_loads_strictly() -> None:
    generator = noisy()
    state = generator.state()
    with torch.no_grad():
        generator.conv1.conv.weight.zero_()
    fresh = StyleGAN2Generator(config())
    fresh.load_state_dict(state)
    assert torch.equal(fresh(z(1)), noisy()(z(1)))


@pytest.mark.parametrize("shape", [(2, 9), (2, 7, 10), (10,), (2, 8, 9)])
def test_styles_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="w must have shape"):
        noisy().synthesize(torch.zeros(shape))


def test_latents_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(batch, 6\), got \(2, 5\)"):
        noisy().map(torch.zeros(2, 5))


def test_noise_that_does_not_fit_is_refused() -> None:
    generator = noisy()
    w = generator.map(z(1))
    maps = draw_noise(generator.noise_shapes(), 1, 0, "test", 0)
    for wrong in (maps[:-1], [*maps[:-1], torch.zeros(1, 1, 5, 5)], [torch.zeros(3, 1, 4, 4), *maps[1:]]):
        with pytest.raises(InputError, match="noise"):
            generator.synthesize(w, wrong)
    with pytest.raises(InputError, match="live"):
        generator.synthesize(w, "live")  # pyright: ignore[reportArgumentType]  # the point of the test


def test_the_discriminator_refuses_other_sizes() -> None:
    with pytest.raises(InputError, match=r"\(batch, 3, 32, 32\)"):
        StyleGAN2Discriminator(config())(torch.zeros(1, 3, 64, 64))


def test_r1_gradients_equal_finite_differences_of_the_penalty() -> None:
    discriminator = StyleGAN2Discriminator(config(16)).double()
    image = torch.randn(2, 3, 16, 16, generator=rng("r1"), dtype=torch.float64)
    bias = discriminator.get_parameter("convs.1.conv1.0.weight")

    def penalty() -> Tensor:
        picture = image.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminator(picture).sum(), picture, create_graph=True)
        return gradient.square().sum()

    (exact,) = torch.autograd.grad(penalty(), bias)
    step = torch.randn(bias.shape, generator=rng("step"), dtype=torch.float64)
    with torch.no_grad():
        bias.add_(1e-6 * step)
    above = penalty().item()
    with torch.no_grad():
        bias.sub_(2e-6 * step)
    torch.testing.assert_close(
        (above - penalty().item()) / 2e-6, (exact * step).sum().item(), rtol=1e-4, atol=1e-9
    )


def test_discriminator_features_come_twice_per_block() -> None:
    discriminator = StyleGAN2Discriminator(config())
    image = noisy()(z(1, 2))
    logits, maps = discriminator(image, features=True)
    assert torch.equal(logits, discriminator(image))
    assert [each.shape[-1] for each in maps] == [32, 16, 16, 8, 8, 4]
