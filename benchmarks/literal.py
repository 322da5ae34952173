"""The published IPL procedure, written out literally from its formulas: the yardstick of
`benchmarks/adapt.py`.

What costs its authors time is kept: the template sentences of both labels encoded at every step of stage 1,
prompts encoded one by one at full length, gradients of every CLIP and generator weight, layers selected with
a batch of their own at every step, convolutions with one group per sample, the average taken over the whole
state. Where the published program is unclear the cheaper reading is taken: constants are encoded without
gradient, and so are the prompts of stage 2. What is computed follows our own defaults (residual, layer map,
bounded image direction), so that the losses must equal those of the product.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.clip.model import ClipModel
from zeroshift.config.schema import AdaptConfig
from zeroshift.methods.prompts import PromptMapper
from zeroshift.models.ops import fir_kernel
from zeroshift.models.stylegan2 import StyleGAN2Generator


def unit(x: Tensor) -> Tensor:
    """Rows of length 1."""
    return x / x.norm(dim=-1, keepdim=True)


def modulated(conv: Any, x: Tensor, w: Tensor, up: bool = False, demodulate: bool = True) -> Tensor:
    """Modulated convolution as published: every sample its own weights, one group per sample."""
    batch, _, height, width = x.shape
    _, out, channels, side, _ = conv.weight.shape
    style = conv.modulation(w).view(batch, 1, channels, 1, 1)
    weight = conv.weight * style / math.sqrt(channels * side * side)
    if demodulate:
        weight = weight * torch.rsqrt(weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
    x = x.reshape(1, batch * channels, height, width)
    if not up:
        return F.conv2d(x, weight.view(-1, channels, side, side), padding=side // 2, groups=batch).view(
            batch, out, height, width
        )
    weight = weight.transpose(1, 2).reshape(batch * channels, out, side, side)
    x = F.conv_transpose2d(x, weight, stride=2, groups=batch).view(
        batch * out, 1, 2 * height + 1, 2 * width + 1
    )
    return F.conv2d(x, fir_kernel(4.0).to(x)[None, None], padding=1).view(batch, out, 2 * height, 2 * width)


def styled(layer: Any, x: Tensor, w: Tensor, noise: Tensor, up: bool = False) -> Tensor:
    """Styled convolution: modulated convolution, noise, bias, scaled leaky ReLU."""
    x = modulated(layer.conv, x, w, up) + layer.noise.weight * noise
    return math.sqrt(2) * F.leaky_relu(x + layer.activate.bias.view(1, -1, 1, 1), 0.2)


def to_rgb(layer: Any, x: Tensor, w: Tensor, below: Tensor | None) -> Tensor:
    """Picture of one side, added to the enlarged picture of the side below."""
    rgb = modulated(layer.conv, x, w, demodulate=False) + layer.bias
    if below is None:
        return rgb
    batch, _, height, width = below.shape
    zeros = below.new_zeros(batch, 3, height, 2, width, 2)
    zeros[:, :, :, 0, :, 0] = below
    padded = F.pad(zeros.view(batch * 3, 1, 2 * height, 2 * width), (2, 1, 2, 1))
    return rgb + F.conv2d(padded, fir_kernel(4.0).to(below)[None, None]).view(batch, 3, 2 * height, 2 * width)


def pictures(generator: StyleGAN2Generator, rows: Tensor) -> Tensor:
    """Pictures of W+ rows BKS with the registered noise maps."""
    noises = [generator.noises.get_buffer(f"noise_{index}") for index in range(len(generator.convs) + 1)]
    x = generator.input.input.repeat(len(rows), 1, 1, 1)
    x = styled(generator.conv1, x, rows[:, 0], noises[0])
    rgb = to_rgb(generator.to_rgb1, x, rows[:, 1], None)
    for index, conv in enumerate(generator.convs):
        x = styled(conv, x, rows[:, index + 1], noises[index + 1], up=index % 2 == 0)
        if index % 2:
            rgb = to_rgb(generator.to_rgbs[index // 2], x, rows[:, index + 2], rgb)
    return rgb


def read(clip: ClipModel, tokens_BTD: Tensor, end_B: Tensor) -> Tensor:
    """Text features B,E of token embeddings at full length."""
    from transformers.masking_utils import create_causal_mask

    tower = clip.model.text_model
    hidden = tower.embeddings(inputs_embeds=tokens_BTD)
    mask = create_causal_mask(
        config=tower.config, inputs_embeds=hidden, attention_mask=None, past_key_values=None
    )
    hidden = tower.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    return clip.model.text_projection(tower.final_layer_norm(hidden)[torch.arange(len(end_B)), end_B])


def encode(clip: ClipModel, texts: Sequence[str]) -> Tensor:
    """Text features B,E at full length, without gradient."""
    with torch.no_grad():
        ids_BT = clip.tokenize(texts)
        end_B = (ids_BT == clip.tokenizer.end_id).int().argmax(dim=1)
        return read(clip, clip.model.text_model.embeddings.token_embedding(ids_BT), end_B)


class Literal:
    """Both stages of the published procedure, one step at a time. The models are changed in place."""

    def __init__(
        self,
        generator: StyleGAN2Generator,
        clips: Sequence[ClipModel],
        mapper: PromptMapper,
        config: AdaptConfig,
    ):
        self.config, self.clips, self.mapper = config, clips, mapper
        self.source, self.target, self.ema = (copy.deepcopy(generator) for _ in range(3))
        for clip in clips:
            clip.memory_format = torch.contiguous_format
            clip.model.to(memory_format=torch.contiguous_format).requires_grad_(True)
        self.source.requires_grad_(False)
        rate = config.train.lr * 4 / 5
        self.optimisers = (
            torch.optim.Adam(mapper.parameters(), lr=config.mapper.lr),
            torch.optim.Adam(self.target.parameters(), lr=rate, betas=(0.0, 0.99**0.8)),
        )

    def rows(self, w: Tensor) -> Tensor:
        """W+ of styles."""
        return w.unsqueeze(1).repeat(1, self.source.num_latents, 1)

    def context(self, clip: ClipModel) -> str:
        """Words that the learned ones replace."""
        return self.config.mapper.context or clip.context

    def prompts(self, clip: ClipModel, words_BMD: Tensor, label: str) -> Tensor:
        """Unit features of every picture's prompt with a label, encoded one by one, plus the residual."""
        ids_1T = clip.tokenize(f"{self.context(clip)} {label}")
        end_1 = (ids_1T == clip.tokenizer.end_id).int().argmax(dim=1)
        tokens = clip.model.text_model.embeddings.token_embedding(ids_1T)
        count, features = words_BMD.shape[1], []
        for words_MD in words_BMD:
            features.append(
                read(clip, torch.cat([tokens[:, :1], words_MD[None], tokens[:, 1 + count :]], dim=1), end_1)
            )
        return unit(torch.cat(features) + encode(clip, [f"{self.context(clip)} {label}."]))

    def stage1(self, z: Tensor) -> float:
        """Loss of one step of the mapper."""
        mapper, total = self.config.mapper, 0.0
        with torch.no_grad():
            w = self.source.map(z)
            images = pictures(self.source, self.rows(w))
        for weight, clip, words in zip(self.config.weights, self.clips, self.mapper(w), strict=True):
            with torch.no_grad():
                seen = unit(clip.encode_image(images))
            source, target = (
                self.prompts(clip, words, label) for label in (self.config.source, self.config.target)
            )
            means = [
                unit(encode(clip, clip.templates.sentences(label))).mean(dim=0)
                for label in (self.config.source, self.config.target)
            ]
            logits, pairs = clip.logit_scale * seen @ source.T, torch.arange(len(seen))
            loss = (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
            far = [
                (1 - F.cosine_similarity(each, mean[None])).mean()
                for each, mean in zip((source, target), means, strict=True)
            ]
            total = total + weight * (loss + mapper.lambda_domain * (far[1] + mapper.lambda_source * far[0]))
        return self._learn(0, total)

    def stage2(self, z: Tensor, select_z: Tensor) -> float:
        """Loss of one step of the generator, after the selection of layers."""
        self._select(select_z)
        with torch.no_grad():
            w = self.source.map(z)
            every = self.mapper(w)
            before = pictures(self.source, self.rows(w))
        after, total = pictures(self.target, self.rows(w)), 0.0
        for weight, clip, words in zip(self.config.weights, self.clips, every, strict=True):
            with torch.no_grad():
                source, target = (
                    self.prompts(clip, words, label) for label in (self.config.source, self.config.target)
                )
                seen = unit(clip.encode_image(before))
            moved = unit(clip.encode_image(after)) - seen
            moved = moved / moved.norm(dim=-1, keepdim=True).clamp_min(self.config.quirks.image_floor)
            total = total + weight * (1 - (moved * unit(target - source)).sum(dim=-1)).mean()
        loss = self._learn(1, total)
        with torch.no_grad():
            now = self.target.state_dict()
            for name, mean in self.ema.state_dict().items():
                mean.mul_(self.config.train.ema).add_(now[name], alpha=1 - self.config.train.ema)
        return loss

    def _select(self, z: Tensor) -> None:
        """Frees the layers whose latents one step on the label's loss moves most, after it computed all
        gradients there are."""
        self.target.requires_grad_(True)
        with torch.no_grad():
            rows = self.rows(self.source.map(z))
        rows.requires_grad_()
        images, loss = pictures(self.target, rows), 0.0
        for weight, clip in zip(self.config.weights, self.clips, strict=True):
            label = unit(encode(clip, [self.config.target]))
            loss = loss + weight * (1 - (unit(clip.encode_image(images)) * label).sum(dim=-1)).mean()
        torch.as_tensor(loss).backward()
        assert rows.grad is not None
        scores = (0.01 * rows.grad).abs().mean(dim=(0, 2))
        best = scores.topk(
            self.config.train.adaptive.top_k or 2 * self.target.num_latents // 3
        ).indices.tolist()
        free = {name for layer in self.target.layers() if layer.latent in best for name in layer.parameters}
        for name, parameter in self.target.named_parameters():
            parameter.requires_grad_(name in free)
        self.optimisers[1].zero_grad()

    def _learn(self, stage: int, loss: Any) -> float:
        self.optimisers[stage].zero_grad()
        loss.backward()
        self.optimisers[stage].step()
        return float(loss.detach())
