"""Learned words that stand in place of a prompt's context words: a mapper from styles for IPL, the same for
all for CoOp.

Sources: IPL (Guo et al., CVPR 2023), section 3.2 and its published code; CoOp (Zhou et al., IJCV 2022).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift import __version__
from zeroshift.clip.model import ClipModel
from zeroshift.errors import InputError
from zeroshift.files.writing import write_tensors
from zeroshift.shapes import Style, Words

PromptStart = Literal["random", "tokens"]

# All layers of the mapper, and gamma, learn at a hundredth of the given rate.
RATE = 0.01
SLOPE = 0.2


class _ScaledLinear(nn.Module):
    """sqrt(2) leaky_relu(W x / sqrt(fan-in) * RATE + b * RATE); weights start at standard deviation 1 /
    RATE."""

    def __init__(self, width_in: int, width_out: int, source: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width_out, width_in, generator=source) / RATE)
        self.bias = nn.Parameter(torch.zeros(width_out))
        self.scale = RATE / math.sqrt(width_in)

    def forward(self, x: Tensor) -> Tensor:
        return math.sqrt(2) * F.leaky_relu(F.linear(x, self.weight * self.scale, self.bias * RATE), SLOPE)


class LatentMapper(nn.Module):
    """Words B,M,D from styles B,S, for one text encoder.

    The style is normalised to mean square 1, then `depth` layers follow, the last one activated too. With
    `context` vectors M,D the words start near those tokens: context + gamma F(w), gamma learned; without,
    they are F(w) alone, as published, with an RMS near 1 where CLIP's tokens have about 0.02. `hidden` None
    means 512 (the published width), but no more than the style's.
    """

    def __init__(
        self,
        style_dim: int,
        num_words: int,
        text_width: int,
        hidden: int | None = None,
        depth: int = 4,
        *,
        context: Tensor | None = None,
        gamma: float = 0.1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if num_words < 1 or depth < 1:
            raise InputError(f"a mapper needs at least one word and one layer, got {num_words} and {depth}.")
        hidden = hidden or min(512, style_dim)
        self.num_words, self.text_width = num_words, text_width
        source = torch.Generator().manual_seed(seed)
        widths = [style_dim, *[hidden] * (depth - 1), num_words * text_width]
        self.layers = nn.ModuleList(
            _ScaledLinear(*pair, source) for pair in zip(widths, widths[1:], strict=False)
        )
        self.context: Tensor | None
        self.register_buffer("context", None if context is None else context.detach().clone())
        if context is not None:
            if context.shape != (num_words, text_width):
                raise InputError(
                    f"context vectors are {tuple(context.shape)}, expected {(num_words, text_width)}."
                )
            self.scaled_gamma = nn.Parameter(torch.tensor(gamma / RATE))

    @property
    def gamma(self) -> Tensor:
        """Strength of the learned part beside the context; only where words start at tokens."""
        return self.scaled_gamma * RATE

    def forward(self, w_BS: Style) -> Words:
        """Words B,M,D of each style."""
        x = w_BS * torch.rsqrt(w_BS.square().mean(dim=1, keepdim=True) + 1e-8)
        for layer in self.layers:
            x = layer(x)
        words_BMD = x.view(len(x), self.num_words, self.text_width)
        return words_BMD if self.context is None else self.context + self.gamma * words_BMD


class SharedWords(nn.Module):
    """CoOp's words M,D for one text encoder, the same for every style: B,M,D from styles B,S.

    They start at normal draws of deviation 0.02, as published, or at the vectors `context` M,D of tokens.
    """

    def __init__(
        self, num_words: int, text_width: int, *, context: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        if num_words < 1:
            raise InputError(f"a prompt needs at least one word, got {num_words}.")
        self.num_words, self.text_width = num_words, text_width
        start = context
        if start is None:
            start = 0.02 * torch.randn(num_words, text_width, generator=torch.Generator().manual_seed(seed))
        self.scaled = nn.Parameter(start.detach() / RATE)

    def forward(self, w_BS: Style) -> Words:
        """The words, once for each style."""
        return (self.scaled * RATE).expand(len(w_BS), -1, -1)


class PromptMapper(nn.Module):
    """One head per text encoder: CLIPs differ in width and in what their tokens mean, so they cannot share
    words."""

    def __init__(self, heads: Sequence[LatentMapper | SharedWords]) -> None:
        super().__init__()
        self.heads = nn.ModuleList(heads)

    def forward(self, codes: Style | Sequence[Style]) -> list[Words]:
        """Words B,M,D for every text encoder, in the order of the CLIPs, of styles BS or of one code per
        encoder."""
        every = [codes] * len(self.heads) if isinstance(codes, Tensor) else codes
        return [head(code) for head, code in zip(self.heads, every, strict=True)]


def prompt_mapper(
    clips: Sequence[ClipModel],
    context: str,
    style_dim: int,
    *,
    start: PromptStart = "random",
    shared: bool = False,
    words: int = 0,
    hidden: int | None = None,
    depth: int = 4,
    gamma: float = 0.1,
    seed: int = 0,
) -> PromptMapper:
    """A fresh mapper with a head for every CLIP, as many words as the context has tokens there unless `words`
    says otherwise. `start` "tokens" begins at the context's own vectors; `shared` gives all pictures the same
    words. Raises InputError on an empty context, and on a start at tokens with another number of words.
    """
    if start not in ("random", "tokens"):
        raise InputError(f'unknown start of the prompts "{start}". Use "random" (published) or "tokens".')
    heads = []
    for number, clip in enumerate(clips):
        tokens_TD = clip.embed_tokens(context).detach()
        if not len(tokens_TD):
            raise InputError('the context is empty, so there are no words to learn. Try "a photo of a".')
        if start == "tokens" and words not in (0, len(tokens_TD)):
            raise InputError(
                f'{words} words cannot start at the {len(tokens_TD)} tokens of "{context}". Give a context '
                "of that "
                'length, or prompt_init "random".'
            )
        size = words or len(tokens_TD)
        given = tokens_TD if start == "tokens" else None
        if shared:
            head = SharedWords(size, clip.text_width, context=given, seed=seed + number)
        else:
            head = LatentMapper(
                style_dim,
                size,
                clip.text_width,
                hidden,
                depth,
                context=given,
                gamma=gamma,
                seed=seed + number,
            )
        heads.append(head.to(tokens_TD.device))
    return PromptMapper(heads)


def save_mapper(path: Path, mapper: PromptMapper) -> None:
    """Writes a mapper with the shape of each of its heads."""
    heads: list[Any] = list(mapper.heads)
    shapes = [
        {"num_words": head.num_words, "text_width": head.text_width}
        if isinstance(head, SharedWords)
        else {
            "style_dim": head.layers[0].weight.shape[1],
            "num_words": head.num_words,
            "text_width": head.text_width,
            "hidden": head.layers[0].weight.shape[0],
            "depth": len(head.layers),
            "tokens": head.context is not None,
        }
        for head in heads
    ]
    write_tensors(path, mapper.state_dict(), {"heads": json.dumps(shapes), "version": __version__})


def load_mapper(path: Path) -> PromptMapper:
    """The mapper that `save_mapper` wrote."""
    import torch
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        shapes = json.loads(file.metadata()["heads"])
        state = {key: file.get_tensor(key) for key in file.keys()}
    heads = []
    for shape in shapes:
        if "style_dim" not in shape:
            heads.append(SharedWords(**shape))
            continue
        words = torch.zeros(shape["num_words"], shape["text_width"]) if shape.pop("tokens") else None
        heads.append(LatentMapper(**shape, context=words))
    mapper = PromptMapper(heads).to(next(iter(state.values())).dtype)
    mapper.load_state_dict(state)
    return mapper
