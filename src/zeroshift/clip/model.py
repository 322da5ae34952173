"""CLIP: features of pictures, texts and learned words, by any model of `files.clips` or a small untrained
one; frozen.

Pictures come in as BCHW in [-1, 1]; CLIP's own range and size exist only in this file. Features leave
un-normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zeroshift.clip.text import IMAGENET, TemplateBank, Tokenizer, WordTokenizer
from zeroshift.errors import InputError

# Constants of the processor published with OpenAI CLIP.
OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Resize = Literal["antialias", "noantialias"]
Vision = Literal["resnet", "convnext", "regnet"]


@dataclass(frozen=True)
class Lengths:
    """How far the pictures of two domains lie apart in a CLIP, by how far their labels do, both by unit
    features."""

    scale: float = 1.0
    power: float = 1.0
    """Both 1 where nobody measured them. With a power above 1 near domains are nearer than their labels
    say."""

    def of(self, apart: float) -> float:
        """scale * apart ** power."""
        return self.scale * apart**self.power


AS_LABELS = Lengths()
"""Pictures lie as far apart as their labels: what is assumed where nobody measured it."""


class ClipModel(nn.Module):
    """One CLIP: a CLIPModel or VisionTextDualEncoderModel of transformers or a ResNetClip, with its tokenizer
    and constants.

    Frozen and in evaluation mode unless `frozen=False`, which training a built-in CLIP needs. Half-precision
    models give float32 features.
    """

    first_word = 1
    """Position of a text's first word: behind the start token."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        resolution: int,
        name: str = "clip",
        mean: Sequence[float] = OPENAI_MEAN,
        std: Sequence[float] = OPENAI_STD,
        templates: TemplateBank = IMAGENET,
        context: str = "a photo of a",
        resize: Resize = "antialias",
        lengths: Lengths = AS_LABELS,
        frozen: bool = True,
    ) -> None:
        super().__init__()
        if resize not in ("antialias", "noantialias"):
            raise InputError(
                f'unknown resize filter "{resize}". Use "antialias" or, for old results, "noantialias".'
            )
        # Sub-modules have no declared type in torch; transformers' towers are reached by name.
        self.model: Any = model
        self.tokenizer = tokenizer
        self.name = name
        self.resolution = resolution
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.templates = templates
        self.context = context
        self.resize: Resize = resize
        self.lengths = lengths
        self.embed_dim: int = self._text_projection.out_features
        self.text_width: int = self._text_projection.in_features
        self.context_length: int = self.model.text_model.config.max_position_embeddings
        # A vision transformer has one convolution, which cuts the patches.
        self.convolutional = (
            sum(isinstance(each, nn.Conv2d) for each in self.model.vision_model.modules()) > 1
        )
        # Convolutional towers run up to a third faster in this layout.
        self.memory_format = torch.channels_last if self.convolutional else torch.contiguous_format
        self.model.vision_model.to(memory_format=self.memory_format)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
        self.train(not frozen)

    def train(self, mode: bool = True) -> ClipModel:
        """Training mode, which a frozen CLIP never enters: its batch statistics must not move."""
        return super().train(mode and not self.frozen)

    @property
    def logit_scale(self) -> float:
        """Factor on cosines in the contrastive loss: exp of the stored logarithm, 100 for released models."""
        return math.exp(float(self.model.logit_scale.detach()))

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights; features of half-precision weights are float32 all the same."""
        return self._text_projection.weight.dtype

    @property
    def _text_projection(self) -> nn.Linear:
        return self.model.text_projection

    def preprocess(self, images: Tensor) -> Tensor:
        """CLIP's input from pictures BCHW in [-1, 1]: shorter side to the resolution, centre crop, mean and
        deviation.

        Differentiable, in the pictures' own precision (float32 at least).
        """
        images = images.float() if images.dtype in (torch.float16, torch.bfloat16) else images
        images = _centre_crop(_resize((images + 1) / 2, self.resolution, self.resize), self.resolution)
        mean, std = (images.new_tensor(each).view(1, 3, 1, 1) for each in (self.mean, self.std))
        return (images - mean) / std

    def encode_image(self, images: Tensor) -> Tensor:
        """Features B,E of pictures BCHW in [-1, 1], un-normalised, differentiable."""
        return self.encode_pixels(self.preprocess(images))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Features B,E of already preprocessed pictures, un-normalised."""
        pixels = pixels.to(self.dtype).contiguous(memory_format=self.memory_format)
        pooled = self.model.vision_model(pixel_values=pixels).pooler_output.flatten(1)
        return _at_least_float32(self._project(pooled))

    def tokenize(self, texts: str | Sequence[str]) -> Tensor:
        """Ids B,T on the model's device, padded to the context length. InputError where a text is longer."""
        texts = [texts] if isinstance(texts, str) else texts
        return self.tokenizer(texts, self.context_length).to(self._text_projection.weight.device)

    def encode_text(self, texts: Sequence[str] | Tensor) -> Tensor:
        """Features B,E of texts or token ids B,T, un-normalised, read at the end token."""
        ids_BT = texts if isinstance(texts, Tensor) else self.tokenize(texts)
        end_B = self._ends(ids_BT)
        return self._text_feature(
            self.model.text_model.embeddings.token_embedding(self._needed_ids(ids_BT, end_B)), end_B
        )

    def encode_prompts(self, prompts: Tensor, text: str, replaced: int | None = None) -> Tensor:
        """Features B,E of `text` with the embeddings of its first words replaced by `prompts` B,M,D,
        un-normalised.

        As many tokens are `replaced` as there are prompts, unless said otherwise. Positions are added after
        the replacement; the feature is read at the end token.
        """
        batch, num_words, width = prompts.shape
        if width != self.text_width:
            raise InputError(
                f"prompts are {width} wide, the text tower of {self.name} {self.text_width}. Make one head "
                "per CLIP."
            )
        ids_1T = self.tokenize(text)
        first = self.first_word
        end_1 = self._ends(ids_1T)
        replaced = num_words if replaced is None else replaced
        if replaced > (known := int(end_1) - first):
            raise InputError(
                f'"{text}" has {known} tokens, fewer than {replaced} learned words. Use a longer context.'
            )
        most = self.model.text_model.embeddings.position_embedding.num_embeddings
        if int(end_1) + num_words - replaced >= most:
            raise InputError(
                f'"{text}" with {num_words} learned words is longer than the {most} tokens that {self.name} '
                "reads."
            )
        tokens = self.model.text_model.embeddings.token_embedding(self._needed_ids(ids_1T, end_1)).expand(
            batch, -1, -1
        )
        tokens_BTD = torch.cat(
            [tokens[:, :first], prompts.to(tokens.dtype), tokens[:, first + replaced :]], dim=1
        )
        return self._text_feature(tokens_BTD, (end_1 + num_words - replaced).expand(batch))

    def embed_tokens(self, text: str) -> Tensor:
        """Token embeddings T,D of a text's words, without start and end."""
        ids_1T = self.tokenize(text)
        return self.model.text_model.embeddings.token_embedding(
            ids_1T[0, self.first_word : int(self._ends(ids_1T))]
        )

    def _ends(self, ids_BT: Tensor) -> Tensor:
        found_BT = ids_BT == self.tokenizer.end_id
        if not bool(found_BT.any(dim=1).all()):
            raise InputError(
                f"token ids without the end token {self.tokenizer.end_id}. Tokenise with this model's "
                "tokenizer."
            )
        return found_BT.int().argmax(dim=1)

    def _project(self, pooled: Tensor) -> Tensor:
        return self.model.visual_projection(pooled)

    def _needed_ids(self, ids_BT: Tensor, end_B: Tensor) -> Tensor:
        """The ids that matter: attention is causal, so what follows the longest text changes nothing."""
        return ids_BT[:, : int(end_B.max()) + 1]

    def _text_feature(self, tokens_BTD: Tensor, end_B: Tensor) -> Tensor:
        """Text feature B,E from token embeddings: positions, causal blocks, last norm and projection of row
        `end_B`."""
        from transformers.masking_utils import create_causal_mask

        tower = self.model.text_model
        hidden_BTD = tower.embeddings(inputs_embeds=tokens_BTD)
        mask = create_causal_mask(
            config=tower.config, inputs_embeds=hidden_BTD, attention_mask=None, past_key_values=None
        )
        hidden_BTD = tower.encoder(
            inputs_embeds=hidden_BTD, attention_mask=mask, is_causal=True
        ).last_hidden_state
        rows_BD = hidden_BTD[torch.arange(len(hidden_BTD), device=end_B.device), end_B]
        return _at_least_float32(self.model.text_projection(tower.final_layer_norm(rows_BD)))


class SiglipClip(ClipModel):
    """SigLIP: no start token, words that attend to all words and to the padding, and a feature read at the
    last position.

    Its sigmoid loss has a bias beside the scale, which shifts all logits alike and is not needed here.
    """

    first_word = 0

    @property
    def _text_projection(self) -> nn.Linear:
        return self.model.text_model.head

    def _project(self, pooled: Tensor) -> Tensor:
        return pooled

    def _needed_ids(self, ids_BT: Tensor, end_B: Tensor) -> Tensor:
        return ids_BT

    def _text_feature(self, tokens_BTD: Tensor, end_B: Tensor) -> Tensor:
        tower = self.model.text_model
        hidden_BTD = tower.embeddings(inputs_embeds=tokens_BTD)
        hidden_BTD = tower.encoder(inputs_embeds=hidden_BTD, attention_mask=None).last_hidden_state
        return _at_least_float32(tower.head(tower.final_layer_norm(hidden_BTD[:, -1])))


def _at_least_float32(features: Tensor) -> Tensor:
    return features.float() if features.dtype in (torch.float16, torch.bfloat16) else features


def _resize(images: Tensor, resolution: int, filter_: Resize) -> Tensor:
    """Bicubic, shorter side to `resolution`, the other truncated to an integer; the same picture where it
    fits already."""
    height, width = images.shape[-2:]
    short, long = min(height, width), max(height, width)
    if short == resolution:
        return images
    other = int(resolution * long / short)
    size = (resolution, other) if height <= width else (other, resolution)
    return F.interpolate(
        images, size=size, mode="bicubic", align_corners=False, antialias=filter_ == "antialias"
    )


def _centre_crop(images: Tensor, resolution: int) -> Tensor:
    """The middle square; an odd surplus puts the first row at the half rounded to even, as torchvision
    does."""
    top, left = (round((side - resolution) / 2) for side in images.shape[-2:])
    return images[..., top : top + resolution, left : left + resolution]


@contextmanager
def own_randomness(seed: int) -> Iterator[None]:
    """Transformers initialises from the global generator: lend it a seed and put its state back."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def build_dual_encoder(
    vocab_size: int,
    *,
    vision: Vision = "resnet",
    widths: Sequence[int] = (32, 64, 128, 256),
    depths: Sequence[int] = (1, 2, 2, 1),
    activation: str = "silu",
    embed_dim: int = 128,
    text_width: int = 128,
    text_layers: int = 3,
    text_heads: int = 4,
    context_length: int = 48,
    resolution: int = 64,
    seed: int = 0,
) -> Any:
    """A small untrained VisionTextDualEncoderModel: convolutional vision tower, CLIP text tower for a
    WordTokenizer's ids.

    The first stage works at a quarter of the side, every later one at half of that before. The defaults cost
    60 MFLOP a 64 px picture (a multiplication and an addition are two).

    Note. Pictures/s on one core, 64 px, batch 32, channels last, training and gradient to the picture,
    float32 (bf16 autocast): ResNet 32-256, depths 1 2 2 1, 60 MFLOP: 396 (553) and 516 (801); ConvNeXt
    48-192, depths 1 2 2, 56 MFLOP: 273 (356) and 486 (735); RegNet 32-256, depths 1 2 2 1, 41 MFLOP: 300
    (501) and 627 (902). Depth-wise convolutions make ConvNeXt slow to train. ResNet keeps a max pool and
    inner ReLUs whatever the activation; the other two are smooth throughout.
    """
    import transformers

    text = transformers.CLIPTextConfig(
        vocab_size=vocab_size,
        hidden_size=text_width,
        intermediate_size=4 * text_width,
        num_hidden_layers=text_layers,
        num_attention_heads=text_heads,
        max_position_embeddings=context_length,
        projection_dim=embed_dim,
        pad_token_id=0,
        bos_token_id=WordTokenizer.start_id,
        eos_token_id=WordTokenizer.end_id,
    )
    tower = _vision_config(vision, list(widths), list(depths), activation, resolution)
    config = transformers.VisionTextDualEncoderConfig.from_vision_text_configs(
        tower, text, projection_dim=embed_dim
    )
    with own_randomness(seed):
        model: Any = transformers.VisionTextDualEncoderModel(config)
        if vision == "convnext":
            # The stock deviation of 0.02 is meant for wide towers and long trainings.
            for module in model.vision_model.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    return model


def _vision_config(
    vision: Vision, widths: list[int], depths: list[int], activation: str, resolution: int
) -> Any:
    import transformers

    # transformers' dual encoder asks the vision config for hidden_size, which convolutional configs do not
    # set themselves.
    shared: Any = {"hidden_sizes": widths, "depths": depths, "hidden_act": activation}
    shared |= {"image_size": resolution, "hidden_size": widths[-1]}
    if vision == "convnext":
        return transformers.ConvNextConfig(
            num_stages=len(widths), patch_size=4, layer_scale_init_value=0.5, **shared
        )
    if vision == "resnet":
        return transformers.ResNetConfig(embedding_size=widths[0], layer_type="basic", **shared)
    if vision == "regnet":
        # One group: grouped 3x3 convolutions cost more time than they save at these widths.
        return transformers.RegNetConfig(
            embedding_size=widths[0], layer_type="x", groups_width=2 * max(widths), **shared
        )
    raise InputError(f'unknown vision tower "{vision}". Use "resnet", "convnext" or "regnet".')
