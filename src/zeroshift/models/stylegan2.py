"""StyleGAN2's generator, with the parameter names of the widely used PyTorch checkpoints.

Karras et al., Analyzing and Improving the Image Quality of StyleGAN (2020). The numbers equal those of the
common PyTorch implementation: the golden tests compare pictures, activations, logits and gradients.
"""

from __future__ import annotations

import copy
import json
import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar, Literal, Self, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from zeroshift.errors import InputError
from zeroshift.models import ops
from zeroshift.models.compression import LatentCompression
from zeroshift.models.mixing import blend
from zeroshift.models.protocol import Layer, LayerKind, Noise, Progress
from zeroshift.models.seeds import check_truncation, truncate, z_from_seeds

Modulation = Literal["auto", "scale", "grouped"]

# Measured on CPUs: grouped takes 1.4 to 2.7 times as long. Elsewhere scaling is what the authors' own
# training code does.
FASTER: dict[str, ops.ModulationPath] = {"cpu": "scale"}


@dataclass(frozen=True, kw_only=True)
class StyleGAN2Config:
    """Architecture of a generator and of the discriminator that belongs to it.

    Channels at side r are min(channel_max, channel_base / r) where `channel_base` is given. Otherwise they
    follow the published table: 512 up to 32 px, then 256, 128, 64, 32, 16 times `channel_multiplier`, each at
    most `channel_max`. `num_classes` above 0 makes the mapping conditional. `conv_clamp` bounds every layer's
    output, as half-precision layers need. `compression_codes` counts the codes of a latent compression, 0 for
    none.
    """

    size: int
    latent_dim: int = 512
    style_dim: int = 512
    mapping_depth: int = 8
    channel_multiplier: int = 2
    channel_max: int = 512
    channel_base: int | None = None
    lr_mlp: float = 0.01
    num_classes: int = 0
    conv_clamp: float | None = None
    compression_codes: int = 0

    def __post_init__(self) -> None:
        if self.size not in (16, 32, 64, 128, 256, 512, 1024):
            raise InputError(f"size must be a power of two from 16 to 1024, got {self.size}.")
        for name in ("latent_dim", "style_dim", "mapping_depth", "channel_multiplier", "channel_max"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if self.channel_base is not None and self.channel_base < self.size:
            raise InputError(f"channel_base must be at least the size {self.size}, got {self.channel_base}.")
        if not self.lr_mlp > 0:
            raise InputError(f"lr_mlp must be positive, got {self.lr_mlp}. The published value is 0.01.")
        if self.num_classes < 0:
            raise InputError(f"num_classes must be at least 0, got {self.num_classes}.")
        if self.compression_codes < 0:
            raise InputError(f"compression_codes must be at least 0, got {self.compression_codes}.")
        if self.conv_clamp is not None and not self.conv_clamp > 0:
            raise InputError(
                f"conv_clamp must be positive, got {self.conv_clamp}. Leave it out for no bound."
            )

    def channels(self, side: int) -> int:
        """Number of channels at a side of 4, 8, ... size pixels."""
        if self.channel_base is not None:
            return min(self.channel_max, max(1, self.channel_base // side))
        published = 512 if side <= 32 else 16384 // side * self.channel_multiplier
        return min(self.channel_max, published)

    def as_text(self) -> str:
        """The architecture as JSON, as files of ours state it. Where there is no latent compression it is not
        named, so that earlier versions read the file."""
        values = asdict(self)
        if not self.compression_codes:
            del values["compression_codes"]
        return json.dumps(values)


def resolve_modulation(modulation: Modulation, device: torch.device) -> ops.ModulationPath:
    """The path that `modulation` means on a device; "auto" is the faster one by
    `benchmarks/bench_modulation.py`."""
    return FASTER.get(device.type, "scale") if modulation == "auto" else modulation


class Resettable(nn.Module):
    """A module that draws its own weights."""

    @abstractmethod
    def reset(self, rng: torch.Generator) -> None:
        """Draws the weights anew; biases stay."""


class EqualLinear(Resettable):
    """Linear layer, weight scaled at run time by learning-rate multiplier / sqrt(fan-in). Keeps the weight's
    precision."""

    def __init__(
        self,
        num_in: int,
        num_out: int,
        *,
        bias_init: float = 0.0,
        lr_mul: float = 1.0,
        activate: bool = False,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.full((num_out,), bias_init))
        self.scale = lr_mul / math.sqrt(num_in)
        self.lr_mul = lr_mul
        self.activate = activate

    def reset(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.weight, std=1.0 / self.lr_mul, generator=rng)

    def forward(self, x: Tensor) -> Tensor:
        """Features (B, num_out) of (B, num_in); with `activate` behind the scaled leaky ReLU."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.weight.dtype)
            if self.activate:
                return ops.scaled_leaky_relu(F.linear(x, self.weight * self.scale), self.bias * self.lr_mul)
            return F.linear(x, self.weight * self.scale, self.bias * self.lr_mul)


class PixelNorm(nn.Module):
    """Mean square 1 over the features of BZ."""

    def forward(self, x: Tensor) -> Tensor:
        return ops.pixel_norm(x)


class Bias(nn.Module):
    """Bias and scaled leaky ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return ops.scaled_leaky_relu(x, self.bias)


class ModulatedConv2d(Resettable):
    """Holds the weight and the style layer of a convolution, see `ops.modulated_conv2d`."""

    kernel: Tensor | None

    def __init__(self, num_in: int, num_out: int, side: int, style_dim: int, *, up: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, num_out, num_in, side, side))
        self.modulation = EqualLinear(style_dim, num_in, bias_init=1.0)
        self.scale = 1.0 / math.sqrt(num_in * side * side)
        self.register_buffer("kernel", ops.fir_kernel(gain=4.0) if up else None, persistent=False)

    def reset(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.weight, generator=rng)

    def forward(self, x: Tensor, w: Tensor, path: ops.ModulationPath) -> tuple[Tensor, Tensor, Tensor]:
        """Output before demodulation, the scaled weight and the style: the last two give the demodulation."""
        weight = self.weight[0] * self.scale
        style = self.modulation(w)
        return ops.modulated_conv2d(x, weight, style, path, self.kernel), weight, style


class NoiseInjection(nn.Module):
    """A noise map (1 or B)1HW times one learned strength, 0 before training."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, noise: Tensor) -> Tensor:
        return self.weight * noise


class StyledConv(nn.Module):
    """Modulated and demodulated 3x3 convolution, noise, bias, activation, bound."""

    def __init__(
        self, num_in: int, num_out: int, style_dim: int, *, up: bool = False, clamp: float | None = None
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv2d(num_in, num_out, 3, style_dim, up=up)
        self.noise = NoiseInjection()
        self.activate = Bias(num_out)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, path: ops.ModulationPath) -> Tensor:
        """BCHW of styles BS, twice as large where the layer enlarges; noise (1 or B)1HW of that side."""
        y, weight, style = self.conv(x, w, path)
        scaled_noise = None if noise is None else self.noise(noise)
        y = ops.styled_activation(y, ops.demodulation(weight, style), self.activate.bias, scaled_noise)
        return y if self.clamp is None else y.clamp(-self.clamp, self.clamp)


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to three channels, added to the enlarged picture of the side below."""

    kernel: Tensor

    def __init__(self, channels: int, style_dim: int, *, clamp: float | None = None) -> None:
        super().__init__()
        self.clamp = clamp
        self.conv = ModulatedConv2d(channels, 3, 1, style_dim)
        self.bias = nn.Parameter(torch.zeros(1, 3, 1, 1))
        self.register_buffer("kernel", ops.fir_kernel(gain=4.0), persistent=False)

    def forward(self, x: Tensor, w: Tensor, below: Tensor | None, path: ops.ModulationPath) -> Tensor:
        """RGB picture B3HW of maps BCHW and styles BS; `below` has half the side, None at 4 px."""
        rgb = self.conv(x, w, path)[0].to(self.bias.dtype) + self.bias
        rgb = rgb if self.clamp is None else rgb.clamp(-self.clamp, self.clamp)
        if below is None:
            return rgb
        with torch.autocast(x.device.type, enabled=False):
            return rgb + ops.fir_upsample(below, self.kernel)


class ConstantInput(Resettable):
    """The learned 4x4 start of every picture."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.input = nn.Parameter(torch.empty(1, channels, 4, 4))

    def reset(self, rng: torch.Generator) -> None:
        nn.init.normal_(self.input, generator=rng)


class StyleGAN2Generator(nn.Module):
    """Noise z -> style w -> picture; weights drawn from `seed` alone.

    Order of computation: constant, conv1 (latent 0), to_rgb1 (latent 1), then per side convs.(2j) enlarging
    (latent 2j+1), convs.(2j+1) (latent 2j+2), to_rgbs.j (latent 2j+3). Where it has a `compression`, every
    style goes through that first.
    """

    kind: Literal["styles"] = "styles"
    file_format: ClassVar[str] = "zeroshift.stylegan2.generator"
    latent_avg: Tensor

    def __init__(self, config: StyleGAN2Config, *, modulation: Modulation = "auto", seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.modulation: Modulation = modulation
        self.image_size = config.size
        self.latent_dim = config.latent_dim
        self.style_dim = config.style_dim
        levels = int(math.log2(config.size)) - 2
        self.num_latents = 2 * levels + 2
        self.embed = EqualLinear(config.num_classes, config.style_dim) if config.num_classes else None
        label_dim = config.style_dim if config.num_classes else 0
        widths = [config.latent_dim + label_dim, *[config.style_dim] * config.mapping_depth]
        mapping = [
            EqualLinear(a, b, lr_mul=config.lr_mlp, activate=True)
            for a, b in zip(widths, widths[1:], strict=False)
        ]
        self.style = nn.Sequential(PixelNorm(), *mapping)
        width = config.style_dim
        clamp = config.conv_clamp
        below = config.channels(4)
        self.input = ConstantInput(below)
        self.conv1 = StyledConv(below, below, width, clamp=clamp)
        self.to_rgb1 = ToRGB(below, width, clamp=clamp)
        self.convs = nn.ModuleList()
        self.to_rgbs = nn.ModuleList()
        self.noises = nn.Module()
        for level in range(1, levels + 1):
            channels = config.channels(4 << level)
            self.convs.append(StyledConv(below, channels, width, up=True, clamp=clamp))
            self.convs.append(StyledConv(channels, channels, width, clamp=clamp))
            self.to_rgbs.append(ToRGB(channels, width, clamp=clamp))
            below = channels
        self.register_buffer("latent_avg", torch.zeros(width))
        count = config.compression_codes
        self.compression = LatentCompression(self.num_latents, width, count) if count else None
        rng = torch.Generator().manual_seed(seed)
        initialise(self, rng)
        for index, shape in enumerate(self.noise_shapes()):
            self.noises.register_buffer(f"noise_{index}", torch.randn(shape, generator=rng))

    def map(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        """Styles BS of noise BZ.

        A generator with classes needs `labels`: class numbers (B,) or rows of weights (B, classes); see also
        `for_class`.
        """
        if z.dim() != 2 or z.shape[1] != self.latent_dim:
            raise InputError(f"z must have shape (batch, {self.latent_dim}), got {tuple(z.shape)}.")
        if self.embed is None:
            if labels is not None:
                raise InputError("labels were given to a generator without classes. Leave them out.")
            return self.style(z)
        known = ops.pixel_norm(self.embed(self._label_rows(labels, z)))
        return self.style[1:](torch.cat([self.style[0](z), known.to(z.dtype)], dim=1))

    def for_class(self, label: int) -> StyleGAN2Generator:
        """A generator without classes that draws what this one draws for the class `label`; itself where
        there are no classes."""
        if self.embed is None:
            return self
        made = StyleGAN2Generator(replace(self.config, num_classes=0), modulation=self.modulation)
        state = self.state()
        weight = state["style.1.weight"]
        width = self.latent_dim
        # The class is constant, so its share of the first layer moves into the bias; the rest is scaled by
        # another fan-in.
        row = self.embed(self._label_rows(torch.tensor([label]), self.latent_avg[None]))
        known = weight[:, width:] @ ops.pixel_norm(row).detach()[0]
        state["style.1.weight"] = weight[:, :width] * math.sqrt(width / weight.shape[1])
        state["style.1.bias"] += known / math.sqrt(weight.shape[1])
        made.load_state_dict({name: value for name, value in state.items() if not name.startswith("embed.")})
        return made.to(self.latent_avg.device, self.latent_avg.dtype).train(self.training)

    @overload
    def synthesize(self, w: Tensor, noise: Noise = ..., *, features: Literal[False] = ...) -> Tensor: ...
    @overload
    def synthesize(
        self, w: Tensor, noise: Noise = ..., *, features: Literal[True]
    ) -> tuple[Tensor, list[Tensor]]: ...
    def synthesize(
        self, w: Tensor, noise: Noise = "buffers", *, features: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Pictures BCHW, about [-1, 1] and not clamped, of styles BS (one for all layers) or BKS (one per
        latent).

        noise: "buffers" the registered maps, "off" none, or one map per convolution as `noise_shapes()` says
        (batch 1 or B). With `features` also the outputs of the styled convolutions (0 = conv1), in order.
        """
        rows = self._rows(w)
        maps = self._noise_maps(noise, w.shape[0])
        path = resolve_modulation(self.modulation, w.device)
        x = self.input.input.expand(w.shape[0], -1, -1, -1)
        if path == "scale" and w.device.type == "cpu":
            # Twice as fast as the default layout, and it carries through all layers.
            x = x.contiguous(memory_format=torch.channels_last)
        x = self.conv1(x, rows[0], maps[0], path)
        rgb = self.to_rgb1(x, rows[1], None, path)
        activations = [x]
        for index, conv in enumerate(self.convs):
            x = conv(x, rows[index + 1], maps[index + 1], path)
            activations.append(x)
            if index % 2 == 1:
                rgb = self.to_rgbs[index // 2](x, rows[index + 2], rgb, path)
        rgb = rgb.contiguous()
        return (rgb, activations) if features else rgb

    def compressed(self, w: Tensor) -> Tensor:
        """Styles BKS by which pictures of styles BS or BKS are made: the same ones, or near to the codes of a
        latent compression."""
        return torch.stack(tuple(self._rows(w)), dim=1)

    def compress(self, codes: Tensor, alpha: Tensor) -> None:
        """Makes every style go through the latent compression by codes NKS with shares alpha (K,), in place
        of one it had."""
        self.compression = LatentCompression.of(codes, alpha).to(self.latent_avg)
        self.config = replace(self.config, compression_codes=len(codes))

    def forward(self, z: Tensor, noise: Noise = "buffers") -> Tensor:
        """Pictures of noise BZ, un-truncated."""
        return self.synthesize(self.map(z), noise)

    @torch.no_grad()
    def sample(
        self,
        seeds: Sequence[int] | range,
        truncation: float = 1.0,
        *,
        steps: int | None = None,
        eta: float | None = None,
        batch: int = 16,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures BCHW in [-1, 1] on the CPU, one per seed, with the registered noise maps. `truncation` 1
        is the full variety, 0 the average picture; `steps` and `eta` are refused."""
        check_truncation(truncation)
        if steps is not None or eta is not None:
            raise InputError("steps and eta are for diffusion models; this generator draws in one step.")
        z = z_from_seeds(seeds, self.latent_dim).to(self.latent_avg)
        pictures: list[Tensor] = []
        for part in z.split(batch):
            w = truncate(self.map(part), self.latent_avg, truncation)
            pictures += self.synthesize(w).float().clamp(-1, 1).cpu()
            if progress is not None:
                progress(len(pictures), len(z))
        return torch.stack(pictures)

    def sample_adapted(
        self,
        source: StyleGAN2Generator,
        seeds: Sequence[int] | range,
        strength: float = 1.0,
        *,
        t0: int = 0,
        truncation: float = 1.0,
        steps: int | None = None,
        eta: float | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Pictures as `sample` gives them, of the weights between the source's (`strength` 0) and these (1)
        or beyond (up to 2). `t0` means nothing here."""
        if self.compression is not None and source.compression is None:
            # The same pictures as ever, in the shape of this one: no share of the compressed style.
            source = source.clone()
            source.compression = self.compression.with_shares(torch.zeros_like(self.compression.alpha))
        between = blend(source, self, strength)
        return between.sample(seeds, truncation, steps=steps, eta=eta, progress=progress)

    def noise_shapes(self) -> list[tuple[int, int, int, int]]:
        """Shapes of the noise maps: one of 4 px, then two per side."""
        shapes = [(1, 1, 4, 4)]
        for level in range(1, self.num_latents // 2):
            side = 4 << level
            shapes += [(1, 1, side, side), (1, 1, side, side)]
        return shapes

    def layers(self) -> tuple[Layer, ...]:
        """Every parameter once, in the order of computation, each group with the latent that drives it."""
        names = [name for name, _ in self.named_parameters()]

        def layer(name: str, latent: int | None, kind: LayerKind) -> Layer:
            return Layer(name, latent, kind, tuple(n for n in names if n.startswith(name + ".")))

        result = [] if self.embed is None else [layer("embed", None, "mapping")]
        result += [layer(f"style.{index}", None, "mapping") for index in range(1, len(self.style))]
        result += [layer("input", None, "const"), layer("conv1", 0, "conv"), layer("to_rgb1", 1, "rgb")]
        for level in range(len(self.to_rgbs)):
            first = 2 * level + 1
            result += [layer(f"convs.{first - 1}", first, "conv"), layer(f"convs.{first}", first + 1, "conv")]
            result += [layer(f"to_rgbs.{level}", first + 2, "rgb")]
        return tuple(result)

    def clone(self) -> Self:
        """An independent copy with equal weights; gradients are not copied."""
        twin = copy.deepcopy(self)
        twin.zero_grad(set_to_none=True)
        return twin

    def state(self) -> dict[str, Tensor]:
        """Copies of all weights, noise maps and the average style, on their device."""
        return {name: tensor.detach().clone() for name, tensor in self.state_dict().items()}

    def file_tensors(self) -> dict[str, Tensor]:
        """Weights, noise maps and the average style under the names of `state`; not copied."""
        return self.state_dict()

    def config_text(self) -> str:
        """The `StyleGAN2Config` as JSON."""
        return self.config.as_text()

    def _label_rows(self, labels: Tensor | None, z: Tensor) -> Tensor:
        """Labels as rows of weights (B, classes)."""
        count = self.config.num_classes
        batch = z.shape[0]
        if labels is None:
            tried = "give labels, choose one with for_class(), or convert it with --label"
            raise InputError(f"this generator draws {count} classes, 0 to {count - 1}: {tried}.")
        if labels.shape == (batch, count):
            return labels.to(z)
        if (
            labels.shape != (batch,)
            or labels.is_floating_point()
            or not bool(((labels >= 0) & (labels < count)).all())
        ):
            raise InputError(
                f"labels must be {batch} whole numbers from 0 to {count - 1}, or weights of shape ({batch}, "
                f"{count})."
            )
        return F.one_hot(labels.long(), count).to(z)

    def _rows(self, w: Tensor) -> Sequence[Tensor]:
        """Styles BS of every latent."""
        single = w.dim() == 2 and w.shape[1] == self.style_dim
        if not single and (w.dim() != 3 or w.shape[1:] != (self.num_latents, self.style_dim)):
            expected = f"(batch, {self.style_dim}) or (batch, {self.num_latents}, {self.style_dim})"
            raise InputError(f"w must have shape {expected}, got {tuple(w.shape)}.")
        if self.compression is not None:
            return self.compression(w).unbind(dim=1)
        return [w] * self.num_latents if single else w.unbind(dim=1)

    def _noise_maps(self, noise: Noise, batch: int) -> Sequence[Tensor | None]:
        shapes = self.noise_shapes()
        if isinstance(noise, str):
            if noise == "off":
                return [None] * len(shapes)
            if noise == "buffers":
                return [self.noises.get_buffer(f"noise_{index}") for index in range(len(shapes))]
            raise InputError(f'noise must be "buffers", "off" or a sequence of maps, got "{noise}".')
        if len(noise) != len(shapes):
            raise InputError(f"noise needs {len(shapes)} maps, got {len(noise)}. See noise_shapes().")
        for given, shape in zip(noise, shapes, strict=True):
            if given.dim() != 4 or given.shape[1:] != shape[1:] or given.shape[0] not in (1, batch):
                raise InputError(
                    f"a noise map must have shape (1 or {batch}, *{shape[1:]}), got {tuple(given.shape)}."
                )
        return list(noise)


def initialise(module: nn.Module, rng: torch.Generator) -> None:
    """Draws every weight of a network anew, in the order of its parts: those with a `reset` know their own
    distribution."""
    for part in module.modules():
        if isinstance(part, Resettable):
            part.reset(rng)
