"""Numbers that say how good a result is, as pure functions, one per equation: of features, of maps, of
distances, of the pictures themselves.

Which network the features come from is not decided here (see `networks`), nor which metrics there are (see
`evaluate.METRICS`); docs/metrics.md tells what each number means and where it misleads. Values that belong to
pictures leave as one number per picture (B), so that means and spreads can be taken.

Ranges. Pictures in [-1, 1] BCHW; features BE of any length, un-normalised where a function says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from zeroshift.clip.features import normalize, template_features
from zeroshift.clip.model import ClipModel
from zeroshift.clip.text import TemplateBank
from zeroshift.errors import InputError
from zeroshift.models.seeds import rng
from zeroshift.shapes import Feature, Picture


class Spread(NamedTuple):
    """A mean, and the standard deviation of what it is the mean of."""

    mean: float
    deviation: float


# Sets of pictures.


def frechet_distance(first: Feature, second: Feature) -> float:
    """Distance of two sets of features, in float64: 0 for equal sets, never negative.

    Eq. Heusel et al. 2017: |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), C with divisor n - 1.

    Note. Written with centred features X, Y (rows / sqrt(n - 1)), tr (C1 C2)^(1/2) is the sum of the singular
    values of X Y^T: no matrix root, so it holds for fewer samples than features. With few samples the
    distance is biased upwards: compare equal numbers only.
    """
    _two_sets(first, second)
    means = []
    centred = []
    for features in (first.double(), second.double()):
        means.append(features.mean(dim=0))
        centred.append((features - means[-1]) / (len(features) - 1) ** 0.5)
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    spread = centred[0].square().sum() + centred[1].square().sum() - 2 * cross
    return float(((means[0] - means[1]).square().sum() + spread).clamp_min(0))


def kernel_distance(
    first: Feature, second: Feature, subsets: int = 100, size: int = 1000, seed: int = 0
) -> Spread:
    """Unbiased squared distance of two sets of features under the kernel (a.b/E + 1)^3: mean and deviation
    over random subsets.

    Eq. Binkowski et al. 2018 (KID). About 0 for equal distributions, also below. `size` is bounded by both
    sets; where a subset is the whole of both, one evaluation is enough and the deviation is 0.
    """
    from torchmetrics.image.kid import poly_mmd

    _two_sets(first, second)
    size = min(size, len(first), len(second))
    if size == len(first) == len(second):
        return Spread(float(poly_mmd(first.double(), second.double())), 0.0)
    values = []
    for number in range(subsets):
        draw = rng("kernel distance", seed, number)
        rows = [torch.randperm(len(each), generator=draw)[:size] for each in (first, second)]
        values.append(float(poly_mmd(first[rows[0]].double(), second[rows[1]].double())))
    return _spread(torch.tensor(values, dtype=torch.float64))


class Overlap(NamedTuple):
    """Improved precision (how many made pictures look real) and recall (how many real ones are reached), both
    in [0, 1]."""

    precision: float
    recall: float


def precision_recall(real: Feature, made: Feature, neighbours: int = 3) -> Overlap:
    """Share of made pictures within the real ones' manifold, and of real pictures within that of the made
    ones.

    Eq. Kynkaanniemi et al. 2019: a manifold is the union of spheres around its pictures, each as wide as the
    distance to the k-th nearest other picture of its own set (the sphere's border belongs to it).
    """
    if min(len(real), len(made)) <= neighbours or real.shape[1:] != made.shape[1:]:
        raise InputError(
            f"precision needs two sets of more than {neighbours} features of one width, got "
            f"{tuple(real.shape)} and "
            f"{tuple(made.shape)}."
        )
    real, made = real.double(), made.double()
    between = _distances(real, made)
    # The nearest of all is the picture itself.
    radii = [_distances(each, each).kthvalue(neighbours + 1, dim=1).values for each in (real, made)]
    precision = (between <= radii[0][:, None]).any(dim=0).double().mean()
    recall = (between <= radii[1][None, :]).any(dim=1).double().mean()
    return Overlap(float(precision), float(recall))


def inception_score(probabilities: Tensor, splits: int = 10) -> Spread:
    """exp of the mean divergence of every picture's classes BK from their mean: 1 (all alike or unsure) to K,
    over splits.

    Eq. Salimans et al. 2016: exp( mean_x KL( p(y|x) || p(y) ) ), p(y) the mean of the split. Splits are taken
    in order; with few pictures in each the score is biased downwards.
    """
    if len(probabilities) < 2 * splits:
        raise InputError(
            f"an inception score of {splits} splits needs at least {2 * splits} pictures, got "
            f"{len(probabilities)}."
        )
    scores = []
    for part in probabilities.double().tensor_split(splits):
        mean = part.mean(dim=0, keepdim=True)
        # xlogy: a class of probability 0 adds nothing.
        divergence = torch.xlogy(part, part) - torch.xlogy(part, mean)
        scores.append(divergence.sum(dim=1).mean().exp())
    return _spread(torch.stack(scores))


def pairwise_diversity(features: Feature) -> float:
    """Mean of 1 - cosine over all pairs of different pictures: 0 when all look alike. Range [0, 2]."""
    count = len(features)
    if count < 2:
        raise InputError(f"diversity needs at least 2 pictures, got {count}.")
    unit = normalize(features.double())
    total = unit.sum(dim=0).square().sum() - unit.square().sum()
    return float(1 - total / (count * (count - 1)))


def diversity_ratio(made: Feature, other: Feature) -> float:
    """Diversity of adapted pictures over that of others, the source's or the true ones: 1 is as diverse, 0 is
    collapse.

    NaN where the others all look alike.
    """
    base = pairwise_diversity(other)
    return pairwise_diversity(made) / base if base > 1e-9 else float("nan")


# One picture against one or several others.


class Gaussians(NamedTuple):
    """Mean BC and covariance BCC of the positions of each map."""

    mean: Tensor
    covariance: Tensor


def position_gaussians(maps: Tensor) -> Gaussians:
    """Gaussian fit, in float64, of the H * W positions of every map BCHW; covariance with divisor H * W -
    1."""
    points = maps.double().flatten(2)
    mean = points.mean(dim=2)
    centred = points - mean[:, :, None]
    return Gaussians(mean, centred @ centred.transpose(1, 2) / (points.shape[2] - 1))


def single_image_frechet(references: Gaussians, made: Gaussians) -> Tensor:
    """Frechet distances R,B between the positions of each reference's early map and those of each made
    picture's.

    Eq. Shaham et al. 2019 (SIFID). tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2), of symmetric matrices.
    """
    rows = []
    for mean, covariance in zip(*references, strict=True):
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp_min(0).sqrt() @ vectors.T
        cross = torch.linalg.eigvalsh(root @ made.covariance @ root).clamp_min(0).sqrt().sum(dim=1)
        traces = covariance.trace() + made.covariance.diagonal(dim1=1, dim2=2).sum(dim=1)
        rows.append(((mean - made.mean).square().sum(dim=1) + traces - 2 * cross).clamp_min(0))
    return torch.stack(rows)


def structural_consistency(source: Tensor, target: Tensor) -> Tensor:
    """Agreement B of edge maps B1HW >= 0 of source and target: 1 for equal edges, 0 where none coincide.

    Eq. Xiao et al. 2022 (SCS): 2 sum(a b) / (sum(a^2) + sum(b^2)), one value per pair. Two pictures without
    edges agree.
    """
    _same_shape(source, target)
    a, b = source.double().flatten(1), target.double().flatten(1)
    total = a.square().sum(dim=1) + b.square().sum(dim=1)
    return torch.where(total > 0, 2 * (a * b).sum(dim=1) / total.clamp_min(1e-300), 1.0)


def identity_similarity(source: Feature, target: Feature) -> Tensor:
    """Cosine B of the identity features of source and target: 1 for the same person. Differentiable."""
    return (normalize(source) * normalize(target)).sum(dim=-1)


def clip_score(images: Feature, text: Feature) -> Tensor:
    """Cosine B of pictures and one text (E or 1,E)."""
    return (normalize(images) * normalize(text.reshape(1, -1))).sum(dim=-1)


def directional_similarity(source: Feature, target: Feature, text_direction: Feature) -> Tensor:
    """Cosine B of each pair's change and the text's: 1 in the direction, 0 across it or where nothing
    changed.

    Eq. DiffusionCLIP (S_dir): cos( n(E_I(target)) - n(E_I(source)), E_T(target) - E_T(source) ), 1 - L_dir of
    NADA.
    """
    return clip_score(normalize(target) - normalize(source), text_direction)


def distance_to_truth(pictures: Picture, truth: Picture) -> float:
    """Mean absolute difference to the true pictures of the same seeds. Range [0, 2]."""
    return float(pixel_distances(pictures, truth).mean())


def pixel_distances(pictures: Picture, truth: Picture) -> Tensor:
    """Mean absolute difference B of every picture to its true one, in float64. Range [0, 2]."""
    _same_shape(pictures, truth, "pictures", "truth")
    return (pictures.double() - truth.double()).abs().flatten(1).mean(dim=1)


def way_to_truth(made: Tensor, source: Tensor, oracle: float) -> Tensor:
    """How far every picture went towards its true one, B in float64; the mean of it is the way of the set.
    0: as far from the truth as the source's pictures; 1: as near as training on the truth gets; below 0:
    further away than the source. InputError where nothing can be gained.

    Eq. (s_i - d_i) / (mean(s) (1 - oracle)), with mean (1 - mean(d) / mean(s)) / (1 - oracle); d = `made` and
    s = `source` are the distances B to the truth of the adapted pictures and of the source's, and `oracle` is
    mean(d) / mean(s) of a generator trained on the truth.

    Note. Each is divided by the mean of s, not by its own: a picture that is near its truth from the start
    would count without bound.
    """
    _same_shape(made, source, "made", "source")
    made, source = made.double(), source.double()
    if not 0 <= oracle < 1 or not float(source.mean()) > 0:
        raise InputError(
            f"there is no way to the truth where the source's pictures are at a distance of "
            f"{float(source.mean()):g} and training on the truth leaves {oracle:g} of it."
        )
    return (source - made) / (source.mean() * (1 - oracle))


# Detail of single pixels.


def fine_detail(pictures: Picture) -> Tensor:
    """What is finer than about two pixels: pictures less their blur by the binomial filter (1 2 1)/4 along
    rows and columns, at all pixels with eight neighbours: BC,H-2,W-2, in float64."""
    line = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64, device=pictures.device)
    flat = pictures.double().flatten(0, 1)[:, None]
    blurred = F.conv2d(flat, torch.outer(line, line)[None, None]).unflatten(0, pictures.shape[:2])[:, :, 0]
    return pictures.double()[..., 1:-1, 1:-1] - blurred


def grain(pictures: Picture) -> Tensor:
    """Energy of 1-px detail of every picture, B in float64: the mean square of `fine_detail`."""
    return fine_detail(pictures).square().flatten(1).mean(dim=1)


def raster(pictures: Picture, block: int = 4) -> Tensor:
    """Energy of 1-px detail that repeats from block to block of `block` x `block` px, B in float64: the mean
    square, over channels and the places within a block, of the mean of `fine_detail` over all whole blocks.

    Source. What `losses.raster` of a run is to prevent: networks that double pixels, or make blocks of them,
    cover pictures with a raster when they move. Not published.
    """
    detail = fine_detail(pictures)
    rows, columns = (side // block * block for side in detail.shape[-2:])
    places = F.pixel_unshuffle(detail[..., :rows, :columns], block)
    return places.mean(dim=(2, 3)).square().mean(dim=1)


# Perceptual distances, and diversity within clusters.


def perceptual_vectors(maps: Sequence[Tensor], weights: Sequence[Tensor] | None = None) -> Tensor:
    """Rows BN whose squared distances are the perceptual distances of the pictures that the maps BCHW belong
    to.

    Eq. Zhang et al. 2018 (LPIPS): sum_l mean_hw sum_c w_lc (a_lchw - b_lchw)^2 of maps of unit length per
    position; weights (C,) per map, 1 where there are none. As w >= 0, sqrt(w / HW) goes into the rows, and
    all pairs are one product of matrices.
    """
    rows = []
    for number, values in enumerate(maps):
        scale = values.new_ones(values.shape[1]) if weights is None else weights[number].to(values)
        if bool((scale < 0).any()):
            raise InputError(
                f"the weights of perceptual layer {number} are negative in places; LPIPS has none below 0."
            )
        length = torch.linalg.vector_norm(values, dim=1, keepdim=True) + 1e-10
        positions = values.shape[2] * values.shape[3]
        rows.append((values / length * (scale / positions).sqrt()[:, None, None]).flatten(1))
    return torch.cat(rows, dim=1)


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Squared Euclidean distances of all rows BN to all rows MN, in float64, never negative."""
    return _distances(first.double(), second.double()).square()


class Intra(NamedTuple):
    """Mean distance within clusters, its deviation over clusters, and how many clusters had enough pictures
    to count."""

    mean: float
    deviation: float
    clusters: int


def intra_distance(distances: Tensor, labels: Tensor, most: int = 50) -> Intra:
    """Mean distance of the pairs within each cluster, then over clusters. `distances` BB, `labels` B.

    Eq. Ojha et al. 2021 (Intra-LPIPS): of a cluster, the first `most` pictures count; clusters of fewer than
    2 do not.
    """
    values = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:most, 0]
        if len(rows) > 1:
            inside = distances[rows][:, rows].double()
            values.append((inside.sum() - inside.diagonal().sum()) / (len(rows) * (len(rows) - 1)))
    if not values:
        raise InputError(
            "no cluster has 2 pictures, so there is no distance within clusters; evaluate more pictures."
        )
    return Intra(*_spread(torch.stack(values)), len(values))


def medoid_distance(distances: Tensor, medoids: Tensor, labels: Tensor) -> Intra:
    """Mean distance of each cluster's other pictures to its medoid, then over clusters.

    Eq. the code of AIR, which calls this Intra-LPIPS too; it is another number than `intra_distance` of the
    same clusters.
    """
    values = []
    for label, medoid in enumerate(medoids.tolist()):
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            values.append(distances[medoid, rows].double().sum() / (len(rows) - 1))
    if not values:
        raise InputError(
            "no cluster has 2 pictures, so there is no distance to a medoid; evaluate more pictures."
        )
    return Intra(*_spread(torch.stack(values)), len(values))


def memorised(made: Tensor, true: Tensor, share: float = 0.99) -> Tensor:
    """1 for every picture that is nearer to a shot than `share` of the true pictures are, else 0: B, in
    float64; about 1 - `share` of them where the pictures are as the true ones. `made` BN and `true` MN are
    the distances of both to N shots.

    Eq. mean_k [ min_j d(x_i, s_j) < min_j d(t_k, s_j) ] >= share.

    Note. Of fewer true pictures than 1 / (1 - share) all must be further away. Shots that are among the true
    pictures are at distance 0 from themselves, which counts as near. Not published.
    """
    nearest = [each.double().amin(dim=1) for each in (made, true)]
    nearer = (nearest[0][:, None] < nearest[1][None, :]).double().mean(dim=1)
    # A mean of ones over a set may lie a rounding below the share that it is.
    return (nearer >= share - 1e-9).double()


class Clusters(NamedTuple):
    """Index of every cluster's medoid K, and the cluster B of every picture."""

    medoids: Tensor
    labels: Tensor


def k_medoids(distances: Tensor, clusters: int = 10) -> Clusters:
    """Clusters of pictures by their distances BB, without chance.

    Medoids are added where they help most (Kaufman and Rousseeuw 1990, first phase of PAM), then moved until
    nothing changes.
    """
    count = len(distances)
    if not 0 < clusters <= count:
        raise InputError(f"{clusters} clusters cannot be made of {count} pictures; evaluate more pictures.")
    distances = distances.double()
    chosen = [int(distances.sum(dim=0).argmin())]
    while len(chosen) < clusters:
        nearest = distances[:, chosen].amin(dim=1)
        gain = (nearest[:, None] - distances).clamp_min(0).sum(dim=0)
        gain[chosen] = -1
        chosen.append(int(gain.argmax()))
    medoids = torch.tensor(chosen)
    labels = torch.zeros(count, dtype=torch.long)
    for _ in range(100):
        labels = distances[:, medoids].argmin(dim=1)
        labels[medoids] = torch.arange(clusters)
        moved = medoids.clone()
        for label in range(clusters):
            rows = (labels == label).nonzero()[:, 0]
            moved[label] = rows[distances[rows][:, rows].sum(dim=0).argmin()]
        if torch.equal(moved, medoids):
            break
        medoids = moved
    return Clusters(medoids, labels)


# What a judge reads in pictures.


@torch.no_grad()
def recognised(
    judge: ClipModel,
    images: Feature,
    label: str,
    labels: Sequence[str],
    templates: TemplateBank | None = None,
) -> Tensor:
    """1 for every picture whose feature (BE, of the judge) is closer to `label` than to any other of
    `labels`, each by the mean over the judge's templates, else 0: B, in float64. InputError where `label` is
    not among the labels."""
    if label not in labels or len(labels) < 2:
        raise InputError(f"labels must hold {label!r} and at least one other, got {list(labels)}.")
    words = torch.stack([template_features(judge, each, templates).mean(dim=0) for each in labels])
    best = (normalize(images) @ normalize(words).to(images).T).argmax(dim=1)
    return (best == list(labels).index(label)).double()


def attribute_accuracy(images: Feature, texts: Feature, truth: Tensor) -> float:
    """Share of pictures whose nearest text (one per choice, KE) is that of the true choice (B, long)."""
    return share_right((normalize(images) @ normalize(texts).to(images).T).argmax(dim=1), truth)


def share_right(read: Tensor, truth: Tensor) -> float:
    """Share of pictures from which an attribute was read (B, long) as it is (B, long). Range [0, 1]."""
    return float(read.eq(truth.to(read.device)).double().mean())


# Helpers.


def _two_sets(first: Tensor, second: Tensor) -> None:
    if min(len(first), len(second)) < 2 or first.shape[1:] != second.shape[1:]:
        raise InputError(
            f"need two sets of at least 2 features of one width, got {tuple(first.shape)} and "
            f"{tuple(second.shape)}."
        )


def _same_shape(first: Tensor, second: Tensor, one: str = "source", other: str = "target") -> None:
    if first.shape != second.shape:
        raise InputError(f"{one} {tuple(first.shape)} and {other} {tuple(second.shape)} differ in shape.")


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Euclidean distances; differences themselves where rows are few, so that equal rows are at exactly 0."""
    mode: Literal["donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"]
    small = first.shape[1] <= 4096
    mode = "donot_use_mm_for_euclid_dist" if small else "use_mm_for_euclid_dist"
    return torch.cdist(first, second, compute_mode=mode)


def _spread(values: Tensor) -> Spread:
    """Mean and standard deviation (divisor n)."""
    return Spread(float(values.mean()), float(values.std(correction=0)))
