"""Options that only some methods need: a section each.

A method brings its options as a class of its own here and a field of `OwnConfig`, so that they are
`config.own.METHOD.NAME` in the package and `--METHOD.NAME` on the command line.
"""

from typing import Annotated

from pydantic import Field

from zeroshift.config.few_shot import ShotsConfig
from zeroshift.config.options import ModelName
from zeroshift.config.options import config_class as _config


@_config(section="own.air")
class AirConfig:
    """AIR: anchors on the way, from which the direction is estimated anew."""

    start: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the steps of stage 2 after which the first anchor is made; before, it is NADA."""
    interval: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the steps from one anchor to the next."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the direction from the anchor, beside that of the direction from the source."""
    offset_pictures: Annotated[int, Field(ge=1)] = 256
    """Pictures over which the offset between two anchors is averaged; published: 1000."""
    offset_truncation: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Truncation of these pictures, of generators with styles."""
    prompt_steps: Annotated[int, Field(ge=1)] = 200
    """Steps in which the words of an anchor are learned."""
    prompt_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Learning rate of these words (Adam, betas 0.9 and 0.999)."""


@_config(section="own.svl")
class SvlConfig:
    """SVL: semantic variations of the target text, whose spread the directions of pictures are to have."""

    variations: Annotated[int, Field(ge=2)] = 6
    """Variations of the target text."""
    steps: Annotated[int, Field(ge=1)] = 2000
    """Steps of stage 1, which finds them."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of stage 1 (Adam, betas 0 and 0.99)."""
    apart: Annotated[float, Field(ge=0)] = 1.0
    """Weight in stage 1 of holding variations apart, beside staying near the target text."""
    covariance: Annotated[float, Field(ge=0)] = 1e3
    """Weight of the second moments of directions, beside their mean."""
    centred: bool = False
    """Takes the mean off before second moments; published: not."""
    elastic: Annotated[float, Field(ge=0)] = 1e7
    """Weight of holding those weights that matter to the source's pictures."""
    elastic_pictures: Annotated[int, Field(ge=1)] = 64
    """Pictures by which it is known how much a weight matters."""
    consistency: Annotated[float, Field(ge=0)] = 1e2
    """Weight of keeping the similarities between pictures of a batch."""


@_config(section="own.adversarial")
class AdversarialConfig:
    """Training against a discriminator, by methods that learn from pictures. Defaults as published for 256
    px (rosinality's StyleGAN2, on which CDC, RSSA and AdAM build)."""

    discriminator: ModelName = ""
    """Discriminator to begin with: a file in any layout that is read, also of a whole training, or a hub id.
    Empty: the one that belongs to the generator, in its own file or the built-in world's; where there is
    none, a new one, which knows nothing yet."""
    lr: Annotated[float, Field(gt=0)] = 0.002
    """Learning rate of the discriminator, before the factor n / (n + 1) of a penalty every n steps (Adam,
    betas 0 and 0.99 to that power)."""
    freeze: Annotated[int | None, Field(ge=0)] = None
    """Blocks of the discriminator that are frozen, counted from the picture's side: the first turns colours
    into features, each further one halves the side. Unset: none; method freezed: all down to 16 px."""
    r1: Annotated[float, Field(ge=0)] = 10.0
    """Weight of R1, the gradient penalty of the discriminator on real pictures. 0: none."""
    r1_every: Annotated[int, Field(ge=1)] = 16
    """Steps from one R1 to the next; it weighs as many times more."""
    path: Annotated[float, Field(ge=0)] = 2.0
    """Weight of path length regularisation of the generator. 0: none."""
    path_every: Annotated[int, Field(ge=1)] = 4
    """Steps from one path length regularisation to the next; it weighs as many times more."""
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Chance that the pictures of a batch have two styles each, the second from a random layer on."""
    flip: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Chance that a real picture is shown with left and right exchanged."""


@_config(section="own.adam")
class AdamConfig:
    """AdAM: filters that matter to the target are kept and modulated, all others move. Defaults as published
    for near domains at 256 px."""

    steps: Annotated[int, Field(ge=1)] = 500
    """Steps of stage 1, which probes how much every filter matters, at the rates of stage 2."""
    batches: Annotated[int, Field(ge=1)] = 250
    """Batches of pictures by which it is known how much a filter matters."""
    quantile: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the filters of every group, those that matter least, whose weights move; 0.75 as published for
    distant domains. 0: all are kept and modulated, 1: all move."""
    scrambled: bool = False
    """Modulates as the published code does, whose outer product is read in the wrong order."""


@_config(section="own.ewc")
class EwcConfig:
    """EWC: weights that matter to the source are held where they are."""

    weight: Annotated[float, Field(ge=0)] = 1e4
    """Weight of the mean, over all weights that may move, of their squared change, each by how much it
    matters, on average 1."""
    pictures: Annotated[int, Field(ge=1)] = 64
    """Pictures by which it is known how much a weight matters."""


@_config(section="own")
class OwnConfig:
    """What only some methods need."""

    shots: ShotsConfig = ShotsConfig()
    """Pictures of the target, beside its words or in place of them."""
    adversarial: AdversarialConfig = AdversarialConfig()
    """Methods that learn from pictures: training against a discriminator."""
    air: AirConfig = AirConfig()
    """Method `air`: anchors on the way, from which the direction is estimated anew. Defaults as published,
    but for `offset_pictures`."""
    svl: SvlConfig = SvlConfig()
    """Method `svl`: semantic variations of the target text, whose spread the directions of pictures are to
    have. Defaults as published."""
    adam: AdamConfig = AdamConfig()
    """Method `adam`: filters that matter to the target are kept and modulated, all others move. Defaults as
    published for near domains at 256 px."""
    ewc: EwcConfig = EwcConfig()
    """Method `ewc`: weights that matter to the source are held where they are."""
