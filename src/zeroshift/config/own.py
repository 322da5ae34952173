"""Options that only some methods need: a section each.

A method brings its options as a class of its own here and a field of `OwnConfig`, so that they are
`config.own.METHOD.NAME` in the package and `--METHOD.NAME` on the command line.
"""

from typing import Annotated, Literal

import tyro
from pydantic import Field

from zeroshift.config.few_shot import ShotsConfig
from zeroshift.config.options import ModelName
from zeroshift.config.options import config_class as _config

FACES = (0.0, 0.0, 0.0, 0.05, 0.05, 0.05, 0.05, 0.45, 0.45, 0.65, 0.65, 0.85, 0.85, 0.85)
"""RSSA's published share of the compressed style per latent, for faces of 256 px."""


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


@_config(section="own.adversarial.augment")
class AugmentConfig:
    """Augmentation of what the discriminator sees, real and made, in every step: with few pictures it learns
    them by heart, and then there is nothing more to learn from it."""

    kind: Annotated[Literal["auto", "none", "diffaugment", "ada"], tyro.conf.arg(aliases=("--augment",))] = (
        "auto"
    )
    """diffaugment: every picture, always. ada: each transform with chance `p`. auto: ada, with a fixed chance
    for fewer than 50 pictures, of which an adaptive one would know too little, else an adaptive one; none for
    the control, `tgan`."""
    p: Annotated[float, Field(ge=0, le=1)] = 0.4
    """ada: chance of every transform; where it is adaptive, at the start. Above 0.8 transforms are learned as
    if they were of the domain."""
    adaptive: bool = False
    """ada: moves `p` by how surely the discriminator knows the real pictures."""
    parts: Annotated[tuple[Literal["blit", "geom", "color"], ...], Field(min_length=1)] = (
        "blit",
        "geom",
        "color",
    )
    """ada: blit is flips, turns by quarters and whole pixels; geom sizes, any turns and places; color
    brightness, contrast, luma, hue and saturation. Where things stand in one place, such as aligned faces,
    color alone costs least."""
    policy: Annotated[tuple[Literal["color", "translation", "cutout"], ...], Field(min_length=1)] = (
        "color",
        "translation",
        "cutout",
    )
    """diffaugment: what is changed."""
    target: Annotated[float, Field(gt=-1, lt=1)] = 0.6
    """Adaptive: mean sign of the logits of real pictures at which `p` stays as it is."""
    ramp: Annotated[int, Field(ge=1)] = 100_000
    """Adaptive: real pictures in which `p` may go from 0 to 1, so 1000 steps of 4 move it by at most 0.04.
    Published for training that goes on from a trained network; from scratch: 500000."""
    every: Annotated[int, Field(ge=1)] = 4
    """Adaptive: steps from one change of `p` to the next."""


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
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of what the discriminator sees."""


@_config(section="own.cr")
class ConsistencyConfig:
    """CR, bCR and zCR: the discriminator's judgement stays where little has changed. Defaults as published
    for training from scratch; nobody has published any for a few pictures."""

    real: Annotated[float, Field(ge=0)] = 10.0
    """cr and bcr: weight of the distance of its logits of a real picture and of the same, moved."""
    made: Annotated[float, Field(ge=0)] = 10.0
    """bcr: the same of made pictures."""
    shift: Annotated[float, Field(ge=0, le=0.5)] = 0.125
    """cr and bcr: how far a picture is moved at most, of its side; half of them are flipped as well."""
    radius: Annotated[float, Field(gt=0)] = 0.05
    """zcr: deviation of a latent's neighbour from it."""
    latent: Annotated[float, Field(ge=0)] = 20.0
    """zcr: weight of the distance of the discriminator's logits of the pictures of neighbours."""
    apart: Annotated[float, Field(ge=0)] = 0.5
    """zcr: weight by which the generator holds these pictures apart."""


@_config(section="own.dag")
class DagConfig:
    """DAG: transforms with a head each."""

    transforms: Literal["rotation", "fliprot", "cropping", "flipcrop"] = "flipcrop"
    """rotation: by 0, 90, 180 and 270 degrees. fliprot: none, left and right, above and below, a quarter of a
    turn. cropping: none and four corners. flipcrop: none, left and right, four corners; it turns nothing
    upside down. Each adds two passes of the discriminator: with six a step takes four times as long."""
    form: Literal["shared", "own"] = "shared"
    """Who judges pictures without a transform. shared: the discriminator's own head alone, in the mean too.
    own: in the mean a further one."""
    weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the mean over transforms, beside the plain losses of discriminator and generator."""


@_config(section="own.cdc")
class CdcConfig:
    """CDC, and what RSSA has of it: anchors, patches, and pictures that keep their distances."""

    anchors: Annotated[int, Field(ge=0)] = 0
    """Latents around which whole pictures are judged; 0: as many as there are pictures of the target, as
    published."""
    spread: Annotated[float, Field(ge=0)] = 0.1
    """How far from an anchor latents are drawn: its deviation, where latents have 1."""
    every: Annotated[int, Field(ge=1)] = 4
    """Steps from one that judges whole pictures to the next; the others judge patches. 1: no patches."""
    patch_maps: Annotated[int, Field(ge=1, le=4)] = 1
    """Maps inside the discriminator, from the finest, of which one is drawn to judge patches by."""
    weight: Annotated[float, Field(ge=0)] = 1000.0
    """Method cdc: weight of keeping the distances between pictures."""
    batch: Annotated[int, Field(ge=2)] = 4
    """Pictures that are compared with each other, of latents of their own."""


@_config(section="own.rssa")
class RssaConfig:
    """RSSA: correlations within and between pictures are kept, and styles drawn near to the pictures'."""

    correlation: Annotated[float, Field(ge=0)] = 0.8
    """Weight of keeping what belongs together within a picture (self-correlation)."""
    sides: tuple[int, ...] = ()
    """Sides, in pixels, of the maps within which it is kept. Empty: the three largest of the generator, up to
    the published 64, 128 and 256."""
    disturbance: Annotated[float, Field(ge=0)] = 0.4
    """Weight of keeping what belongs together between neighbouring pictures (disturbance correlation)."""
    disturbance_every: Annotated[int, Field(ge=1)] = 6
    """Steps from one of these to the next."""
    disturbed: Annotated[float, Field(gt=0, le=1)] = 0.15
    """Share of a latent by which neighbouring pictures differ, as in the paper; 1: pictures of independent
    latents, as in its code."""
    compression: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Factor on `shares`. 0: styles stay as they are, and no codes are sought."""
    shares: Annotated[tuple[float, ...], Field(min_length=2)] = FACES
    """Share of the compressed style per latent, spread over as many as the generator has. The published ones
    are for faces; those for churches end in .35 .35 .55 .55 .75 .75 .75."""
    codes: Annotated[int, Field(ge=1)] = 10
    """Pictures of the target, the first ones, near whose styles styles are drawn."""
    steps: Annotated[int, Field(ge=1)] = 4000
    """Steps in which these styles are sought (stage 1)."""
    lr: Annotated[float, Field(gt=0)] = 0.1
    """Learning rate of these styles (Adam), halved after every quarter of the steps."""
    lpips: ModelName = ""
    """File of LPIPS's VGG16 or AlexNet, as published, by which pictures are compared there; empty: maps of
    the discriminator."""


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
    cr: ConsistencyConfig = ConsistencyConfig()
    """Methods `cr`, `bcr` and `zcr`: consistency of the discriminator's judgement."""
    dag: DagConfig = DagConfig()
    """Method `dag`: transforms with a head each."""
    cdc: CdcConfig = CdcConfig()
    """Methods `cdc` and `rssa`: anchors, patches, and distances between pictures. Defaults as published."""
    rssa: RssaConfig = RssaConfig()
    """Method `rssa`: correlations within and between pictures, latent compression. Defaults as published."""
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
