"""Numbers about pictures against slow formulas, known answers and, where it has them, torchmetrics."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

import tiny
from zeroshift.clip.text import TemplateBank
from zeroshift.errors import InputError
from zeroshift.measure import metrics
from zeroshift.measure.metrics import distance_to_truth, frechet_distance, pairwise_diversity, recognised
from zeroshift.models.seeds import rng


def draws(count: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
    return shift + scale * torch.randn(
        count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp_min(0).sqrt()) @ vectors.T


def slow_frechet(a: Tensor, b: Tensor) -> float:
    """The formula with covariances written out: tr (C1 C2)^(1/2) = tr (C1^(1/2) C2 C1^(1/2))^(1/2)."""
    first, second = torch.cov(a.T), torch.cov(b.T)
    cross = root(root(first) @ second @ root(first))
    return float((a.mean(0) - b.mean(0)).square().sum() + (first + second - 2 * cross).trace())


@pytest.mark.parametrize(("count", "width"), [(200, 5), (6, 12)])
def test_the_frechet_distance_equals_the_slow_formula_with_many_and_with_few_samples(
    count: int, width: int
) -> None:
    a, b = draws(count, width, 0), draws(count + 3, width, 1, scale=1.7, shift=0.3)
    assert math.isclose(frechet_distance(a, b), slow_frechet(a, b), rel_tol=1e-6)
    assert math.isclose(frechet_distance(a, b), frechet_distance(b, a), rel_tol=1e-9)


def test_the_frechet_distance_is_zero_for_equal_sets_and_known_for_a_shift() -> None:
    a = draws(50, 8, 2)
    assert frechet_distance(a, a) < 1e-9
    assert math.isclose(frechet_distance(a, a + 0.5), 8 * 0.25, rel_tol=1e-9)
    assert math.isclose(frechet_distance(a, 2 * a - a.mean(0)), float(torch.cov(a.T).trace()), rel_tol=1e-9)


class Given(nn.Module):
    """Features that are given as pictures."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def test_the_frechet_distance_is_that_of_torchmetrics_where_samples_are_many() -> None:
    a, b = draws(300, 6, 0), draws(200, 6, 1, scale=1.3, shift=0.2)
    theirs = FrechetInceptionDistance(feature=Given(6)).set_dtype(torch.float64)
    theirs.update(a, real=True)
    theirs.update(b, real=False)
    assert math.isclose(frechet_distance(a, b), float(theirs.compute()), rel_tol=1e-6)


def slow_kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased: pairs of different pictures within a set, all pairs between the sets."""

    def kernel(x: Tensor, y: Tensor) -> float:
        return (float(x @ y) / len(x) + 1) ** 3

    def within(rows: Tensor) -> float:
        return sum(kernel(x, y) for i, x in enumerate(rows) for j, y in enumerate(rows) if i != j) / (
            len(rows) * (len(rows) - 1)
        )

    between = sum(kernel(x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * between


def test_the_kernel_distance_of_whole_sets_equals_the_slow_formula() -> None:
    a, b = draws(12, 5, 0), draws(12, 5, 1, shift=0.4)
    found = metrics.kernel_distance(a, b)
    assert math.isclose(found.mean, slow_kernel_distance(a, b), rel_tol=1e-9) and found.deviation == 0.0


def test_the_kernel_distance_of_larger_sets_is_the_mean_over_random_subsets() -> None:
    a, b = draws(15, 4, 2), draws(9, 4, 3)
    values = []
    for number in range(5):
        draw = rng("kernel distance", 7, number)
        rows = [torch.randperm(count, generator=draw)[:6] for count in (15, 9)]
        values.append(slow_kernel_distance(a[rows[0]], b[rows[1]]))
    found = metrics.kernel_distance(a, b, subsets=5, size=6, seed=7)
    mean = sum(values) / 5
    assert math.isclose(found.mean, mean, rel_tol=1e-9)
    assert math.isclose(
        found.deviation, (sum((value - mean) ** 2 for value in values) / 5) ** 0.5, rel_tol=1e-9
    )
    assert metrics.kernel_distance(a, b, subsets=5, size=6, seed=8).mean != found.mean


def slow_share_within(points: Tensor, manifold: Tensor, k: int) -> float:
    inside = 0
    for point in points:
        hits = []
        for row, centre in enumerate(manifold):
            others = sorted(
                float((centre - each).norm()) for number, each in enumerate(manifold) if number != row
            )
            hits.append(float((point - centre).norm()) <= others[k - 1])
        inside += any(hits)
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_slow_formula(k: int) -> None:
    real, made = draws(25, 3, 4), draws(20, 3, 5, scale=0.6, shift=0.5)
    found = metrics.precision_recall(real, made, k)
    assert found.precision == slow_share_within(made, real, k) and found.recall == slow_share_within(
        real, made, k
    )
    assert found.precision != found.recall


def test_precision_and_recall_tell_collapse_from_falsehood() -> None:
    real = draws(40, 4, 6)
    assert metrics.precision_recall(real, real) == (1.0, 1.0)
    collapsed = metrics.precision_recall(real, real[:1] + draws(40, 4, 7, scale=1e-3))
    assert collapsed.precision == 1.0 and collapsed.recall < 0.1
    assert metrics.precision_recall(real, real + 100) == (0.0, 0.0)


def test_the_inception_score_equals_the_slow_formula_and_torchmetrics() -> None:
    logits = draws(24, 5, 8, scale=2)
    probabilities = logits.softmax(dim=1)
    scores = []
    for part in (probabilities[:12], probabilities[12:]):
        mean = [float(part[:, k].mean()) for k in range(5)]
        terms = [sum(float(p) * math.log(float(p) / mean[k]) for k, p in enumerate(row)) for row in part]
        scores.append(math.exp(sum(terms) / 12))
    found = metrics.inception_score(probabilities, splits=2)
    assert math.isclose(found.mean, sum(scores) / 2, rel_tol=1e-9)
    assert math.isclose(found.deviation, abs(scores[0] - scores[1]) / 2, rel_tol=1e-6)
    theirs = InceptionScore(feature=Given(5), splits=1)
    theirs.update(logits)
    assert math.isclose(
        metrics.inception_score(probabilities, splits=1).mean, float(theirs.compute()[0]), rel_tol=1e-5
    )


def test_the_inception_score_is_the_number_of_classes_at_best_and_one_at_worst() -> None:
    sure = torch.eye(4).repeat(5, 1)
    assert math.isclose(metrics.inception_score(sure, splits=1).mean, 4.0)
    assert math.isclose(metrics.inception_score(sure[:1].expand(20, -1)).mean, 1.0)


def test_diversity_equals_the_mean_over_all_pairs() -> None:
    features = draws(7, 5, 3)
    pairs = [(i, j) for i in range(7) for j in range(7) if i != j]
    slow = sum(
        1 - float(torch.nn.functional.cosine_similarity(features[i], features[j], dim=0)) for i, j in pairs
    ) / len(pairs)
    assert math.isclose(pairwise_diversity(features), slow, rel_tol=1e-9)


def test_diversity_is_zero_for_one_look_and_two_for_opposites() -> None:
    one = draws(1, 4, 4)
    assert abs(pairwise_diversity(one.expand(5, -1))) < 1e-12
    assert math.isclose(pairwise_diversity(torch.cat([one, -one])), 2.0)


def test_the_diversity_ratio_compares_two_sets() -> None:
    narrow, wide = draws(20, 4, 0, scale=0.1, shift=1), draws(30, 4, 1)
    expected = pairwise_diversity(narrow) / pairwise_diversity(wide)
    assert math.isclose(metrics.diversity_ratio(narrow, wide), expected) and expected < 0.1
    assert math.isnan(metrics.diversity_ratio(wide, narrow[:1].expand(3, -1)))


def test_the_single_image_distance_is_the_frechet_distance_of_positions() -> None:
    references, made = (
        draws(2, 5 * 36, 0).view(2, 5, 6, 6),
        draws(3, 5 * 36, 1, scale=1.4, shift=0.2).view(3, 5, 6, 6),
    )
    found = metrics.single_image_frechet(
        metrics.position_gaussians(references), metrics.position_gaussians(made)
    )
    for (i, reference), (j, picture) in itertools.product(enumerate(references), enumerate(made)):
        expected = frechet_distance(reference.flatten(1).T, picture.flatten(1).T)
        assert math.isclose(float(found[i, j]), expected, rel_tol=1e-8)


def test_the_single_image_distance_of_a_picture_to_itself_moved_about_is_zero() -> None:
    maps = draws(1, 4 * 25, 2).view(1, 4, 5, 5)
    gaussians = [metrics.position_gaussians(each) for each in (maps, maps.flip(-1).roll(2, -2))]
    assert float(metrics.single_image_frechet(*gaussians)) < 1e-10


def test_structural_consistency_equals_the_slow_formula() -> None:
    a, b = draws(3, 16, 0).abs().view(3, 1, 4, 4), draws(3, 16, 1).abs().view(3, 1, 4, 4)
    for found, x, y in zip(metrics.structural_consistency(a, b), a.flatten(1), b.flatten(1), strict=True):
        top = sum(2 * float(p) * float(q) for p, q in zip(x, y, strict=True))
        assert math.isclose(
            float(found), top / sum(float(p) ** 2 + float(q) ** 2 for p, q in zip(x, y, strict=True))
        )


def test_structural_consistency_is_one_for_equal_edges_and_zero_for_edges_apart() -> None:
    left, right = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
    left[..., 0], right[..., 3] = 1.0, 1.0
    assert float(metrics.structural_consistency(left, left)) == 1.0
    assert float(metrics.structural_consistency(left, right)) == 0.0
    assert float(metrics.structural_consistency(left * 0, left * 0)) == 1.0


def test_scores_of_pairs_and_texts_are_cosines() -> None:
    source, target, text = draws(4, 6, 0), draws(4, 6, 1), draws(1, 6, 2)
    for row in range(4):
        s, t = source[row] / source[row].norm(), target[row] / target[row].norm()
        assert math.isclose(
            float(metrics.identity_similarity(source, target)[row]), float(s @ t), abs_tol=1e-12
        )
        assert math.isclose(
            float(metrics.clip_score(target, text)[row]), float(t @ text[0] / text.norm()), abs_tol=1e-12
        )
        change = (t - s) / (t - s).norm()
        expected = float(change @ text[0] / text.norm())
        assert math.isclose(
            float(metrics.directional_similarity(source, target, text)[row]), expected, abs_tol=1e-12
        )
    assert metrics.directional_similarity(source, source, text).abs().max() == 0


def test_perceptual_distances_equal_the_slow_formula() -> None:
    shapes = [(4, 3, 5), (6, 2, 2)]
    maps = [
        torch.stack([draws(1, c * h * w, 10 * n + c).view(c, h, w) for n in range(3)]) for c, h, w in shapes
    ]
    weights = [draws(1, c, c)[0].abs() for c, _, _ in shapes]
    for given in (weights, None):
        vectors = metrics.perceptual_vectors(maps, given)
        found = metrics.squared_distances(vectors, vectors)
        for i, j in itertools.product(range(3), repeat=2):
            total = 0.0
            for number, values in enumerate(maps):
                _, channels, height, width = values.shape
                for y, x in itertools.product(range(height), range(width)):
                    a, b = (values[k, :, y, x] / values[k, :, y, x].norm() for k in (i, j))
                    w = torch.ones(channels, dtype=torch.float64) if given is None else given[number]
                    total += float((w * (a - b).square()).sum()) / (height * width)
            assert math.isclose(float(found[i, j]), total, rel_tol=1e-7, abs_tol=1e-12)


def test_perceptual_weights_below_zero_are_refused() -> None:
    with pytest.raises(InputError, match="layer 0 are negative"):
        metrics.perceptual_vectors([torch.ones(1, 2, 2, 2)], [torch.tensor([1.0, -1.0])])


def groups() -> tuple[Tensor, Tensor]:
    """Squared distances of three groups far apart, of 5, 4 and 1 pictures, shuffled; and their groups."""
    truth = torch.tensor([0] * 5 + [1] * 4 + [2])
    points = truth[:, None] * 50 + draws(10, 3, 0)
    order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    return metrics.squared_distances(points[order], points[order]), truth[order]


def test_k_medoids_finds_the_groups_and_the_best_middle_of_each() -> None:
    distances, truth = groups()
    medoids, labels = metrics.k_medoids(distances, 3)
    assert sorted(map(int, labels.bincount())) == [1, 4, 5]
    for label, medoid in enumerate(medoids.tolist()):
        rows = (labels == label).nonzero()[:, 0].tolist()
        assert len({int(truth[row]) for row in rows}) == 1
        assert medoid == min(rows, key=lambda row: sum(float(distances[row, other]) for other in rows))


def test_k_medoids_of_equal_pictures_gives_every_cluster_its_medoid() -> None:
    medoids, labels = metrics.k_medoids(torch.zeros(6, 6), 3)
    assert len(set(medoids.tolist())) == 3 and set(labels.tolist()) == {0, 1, 2}


def test_distances_within_clusters_equal_the_slow_means() -> None:
    distances, truth = groups()
    found = metrics.intra_distance(distances, truth, most=4)
    means = []
    for label in (0, 1):
        rows = [row for row in range(10) if int(truth[row]) == label][:4]
        pairs = list(itertools.permutations(rows, 2))
        means.append(sum(float(distances[i, j]) for i, j in pairs) / len(pairs))
    assert found.clusters == 2
    assert math.isclose(found.mean, sum(means) / 2) and math.isclose(
        found.deviation, abs(means[0] - means[1]) / 2
    )


@pytest.mark.parametrize("count", [50, 400])
def test_a_picture_is_memorised_where_99_of_100_true_ones_are_further_from_the_shots(count: int) -> None:
    shots, true = draws(3, 2, 0), draws(count, 2, 1)
    made = shots.repeat(100, 1) + draws(300, 2, 2, scale=0.2)
    distances = [torch.cdist(each, shots) for each in (made, true)]
    slow = []
    for row in distances[0].tolist():
        further = sum(min(row) < min(other) for other in distances[1].tolist())
        slow.append(100 * further >= 99 * count)
    found = metrics.memorised(distances[0], distances[1])
    assert [bool(each) for each in found] == slow and 0 < sum(slow) < 300
    of_the_truth = metrics.memorised(distances[1], distances[1])
    assert float(of_the_truth.sum()) == count // 100, "a hundredth of the truth itself"


def test_the_distance_to_the_medoid_is_another_number_than_the_distance_of_pairs() -> None:
    distances, _ = groups()
    clusters = metrics.k_medoids(distances, 3)
    found = metrics.medoid_distance(distances, *clusters)
    means = []
    for label, medoid in enumerate(clusters.medoids.tolist()):
        others = [row for row in range(10) if int(clusters.labels[row]) == label and row != medoid]
        means += [sum(float(distances[medoid, row]) for row in others) / len(others)] if others else []
    assert found.clusters == 2 and math.isclose(found.mean, sum(means) / 2)
    assert found.mean < metrics.intra_distance(distances, clusters.labels).mean


def test_attribute_accuracy_counts_the_nearest_texts() -> None:
    texts = torch.eye(3)
    images = torch.tensor([[5.0, 1, 0], [0, 2, 1], [0, 3, 1], [0, 0, 1]])
    assert metrics.attribute_accuracy(images, texts, torch.tensor([0, 1, 2, 2])) == 0.75


def test_recognised_are_the_pictures_nearest_to_their_label() -> None:
    judge = tiny.clip(1)
    labels = ["photo", "zombie", "sketch", "statue"]
    pictures = draws(40, 3 * 16 * 16, 5).reshape(40, 3, 16, 16).float().clamp(-1, 1)
    bank = TemplateBank("two", ("a {}", "the {} of a face"))
    shares = {}
    for label in labels:
        hits = 0
        for picture in pictures:
            image = judge.encode_image(picture[None])[0]
            scores = []
            for each in labels:
                texts = [judge.encode_text([t.replace("{}", each)])[0] for t in bank.templates]
                mean = torch.stack([text / text.norm() for text in texts]).mean(0)
                scores.append(float(image @ mean / image.norm() / mean.norm()))
            hits += scores.index(max(scores)) == labels.index(label)
        shares[label] = hits / 40
        found = recognised(judge, judge.encode_image(pictures), label, labels, bank)
        assert float(found.mean()) == shares[label]
    assert math.isclose(sum(shares.values()), 1.0)


def test_distance_to_truth_is_the_mean_absolute_difference() -> None:
    a = torch.zeros(2, 3, 4, 4)
    b = a.clone()
    b[0, 0, 0, 0] = 0.96
    assert math.isclose(distance_to_truth(a, b), 0.96 / 96, rel_tol=1e-6)
    assert distance_to_truth(b, b) == 0.0


def test_the_way_to_the_truth_is_that_of_the_slow_formula() -> None:
    made, source = [0.3, 0.1, 0.45], [0.6, 0.2, 0.4]
    means = [sum(each) / 3 for each in (made, source)]
    found = metrics.way_to_truth(torch.tensor(made), torch.tensor(source), 0.25)
    assert float(found.mean()) == pytest.approx((1 - means[0] / means[1]) / (1 - 0.25), rel=1e-6)
    for value, d, s in zip(found.tolist(), made, source, strict=True):
        assert value == pytest.approx((s - d) / (means[1] * 0.75), rel=1e-6)


def test_the_way_is_0_at_the_source_1_at_the_oracle_and_below_0_beyond_the_source() -> None:
    source = torch.tensor([0.5, 0.7, 0.3], dtype=torch.float64)
    ways = [float(metrics.way_to_truth(share * source, source, 0.4).mean()) for share in (1.0, 0.4, 1.6, 0.0)]
    assert ways == pytest.approx([0.0, 1.0, -1.0, 1 / 0.6])


@pytest.mark.parametrize(("source", "oracle"), [(0.5, 1.0), (0.5, -0.1), (0.0, 0.4), (0.5, math.nan)])
def test_there_is_no_way_where_nothing_can_be_gained(source: float, oracle: float) -> None:
    with pytest.raises(InputError, match="no way to the truth"):
        metrics.way_to_truth(torch.zeros(2), torch.full((2,), source), oracle)


def slow_detail(picture: Tensor) -> list[list[list[float]]]:
    """A picture CHW less its binomial blur, pixel by pixel, without the border."""
    weights = {-1: 1, 0: 2, 1: 1}
    channels, rows, columns = picture.shape
    return [
        [
            [
                float(picture[c, y, x])
                - sum(
                    weights[i] * weights[j] * float(picture[c, y + i, x + j]) / 16
                    for i in weights
                    for j in weights
                )
                for x in range(1, columns - 1)
            ]
            for y in range(1, rows - 1)
        ]
        for c in range(channels)
    ]


def test_grain_is_the_mean_square_of_what_a_binomial_blur_takes() -> None:
    pictures = draws(2, 3 * 7 * 9, 5).view(2, 3, 7, 9)
    for found, picture in zip(metrics.grain(pictures).tolist(), pictures, strict=True):
        values = [x**2 for plane in slow_detail(picture) for row in plane for x in row]
        assert found == pytest.approx(sum(values) / len(values), rel=1e-9)


def test_grain_does_not_see_slopes_and_sees_single_pixels() -> None:
    slope = torch.linspace(-1, 1, 12).expand(1, 3, 12, 12)
    board = 0.1 * (-1.0) ** (torch.arange(12)[:, None] + torch.arange(12))
    assert float(metrics.grain(slope)) < 1e-12
    # A chessboard vanishes in the blur: all of it is detail.
    assert float(metrics.grain(slope + board)) == pytest.approx(0.01, rel=1e-5)


def test_raster_is_the_mean_square_of_the_mean_block_of_the_detail() -> None:
    pictures = draws(2, 3 * 11 * 15, 6).view(2, 3, 11, 15)
    for found, picture in zip(metrics.raster(pictures, 4).tolist(), pictures, strict=True):
        squares = []
        for plane in slow_detail(picture):  # 9 x 13, of which 8 x 12 are whole blocks
            for i, j in itertools.product(range(4), range(4)):
                values = [plane[y][x] for y in range(i, 8, 4) for x in range(j, 12, 4)]
                squares.append((sum(values) / len(values)) ** 2)
        assert found == pytest.approx(sum(squares) / len(squares), rel=1e-9)


def test_raster_tells_what_repeats_from_noise_of_the_same_energy() -> None:
    noise = 0.1 * draws(1, 3 * 66 * 66, 7).view(1, 3, 66, 66)
    repeated = noise[..., :4, :4].repeat(1, 1, 17, 17)[..., :66, :66]
    assert float(metrics.raster(repeated)) == pytest.approx(float(metrics.grain(repeated)), rel=1e-9)
    # Of 16 x 16 independent blocks the mean has a 256th of the energy.
    assert float(metrics.raster(noise)) < 0.02 * float(metrics.grain(noise))


def test_sets_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(InputError, match="at least 2 features"):
        frechet_distance(draws(1, 4, 0), draws(5, 4, 0))
    with pytest.raises(InputError, match="of one width"):
        frechet_distance(draws(5, 3, 0), draws(5, 4, 0))
    with pytest.raises(InputError, match="at least 2 pictures, got 1"):
        pairwise_diversity(draws(1, 4, 0))
    with pytest.raises(InputError, match="labels must hold 'neon'"):
        recognised(tiny.clip(1), torch.zeros(1, 24), "neon", ["photo", "zombie"])
    with pytest.raises(InputError, match="differ in shape"):
        distance_to_truth(torch.zeros(1, 3, 4, 4), torch.zeros(2, 3, 4, 4))
    with pytest.raises(InputError, match="more than 3 features"):
        metrics.precision_recall(draws(3, 4, 0), draws(9, 4, 0))
    with pytest.raises(InputError, match="at least 20 pictures, got 19"):
        metrics.inception_score(torch.ones(19, 2) / 2)
    with pytest.raises(InputError, match="10 clusters cannot be made of 4"):
        metrics.k_medoids(torch.zeros(4, 4))
    for measure in (metrics.intra_distance, lambda d, n: metrics.medoid_distance(d, n, n)):
        with pytest.raises(InputError, match="no cluster has 2 pictures"):
            measure(torch.zeros(3, 3), torch.arange(3))
