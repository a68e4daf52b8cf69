"""Entropy in closed form, and what it must not depend on."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from sklearn.cluster import KMeans, kmeans_plusplus

from luq_gguf.artifacts import EntropyRow
from luq_gguf.entropy import (
    CLUSTERS,
    MAX_VECTORS,
    _cluster,
    choose_centers,
    choose_tokens,
    cluster_count,
    entropy_warning,
    measure_entropy,
    order_stability,
    squared_distances,
    token_rank,
)


def far_points(counts: list[int], width: int = 16, noise: float = 0.0, seed: int = 0) -> np.ndarray:
    """As many vectors around the n-th of some far-apart centers as the n-th count says, shuffled."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((len(counts), width)) * 1000
    points = np.repeat(centers, counts, axis=0) + noise * rng.standard_normal((sum(counts), width))
    return rng.permutation(points).astype(np.float32)


@pytest.mark.parametrize("clusters", [2, 8, 64])
def test_equal_groups_of_one_vector_give_the_logarithm_of_their_number(clusters):
    row = measure_entropy(far_points([1600 // clusters] * clusters))
    assert row.mean == pytest.approx(math.log2(clusters), abs=1e-9)
    assert row.spread == pytest.approx(0, abs=1e-12)
    assert row.clusters == CLUSTERS


def test_a_hundred_equal_clouds_reach_the_limit():
    row = measure_entropy(far_points([20] * 100, noise=0.01))
    assert row.mean == pytest.approx(math.log2(100), abs=0.15)
    assert row.mean <= math.log2(100) + 1e-12


def test_equal_vectors_have_no_entropy():
    row = measure_entropy(np.full((1200, 8), 3.5, dtype=np.float32))
    assert row.by_seed == (0.0,) * 5
    assert math.copysign(1, row.mean) == 1


def test_a_known_mixture_gives_its_own_entropy():
    share = [0.5, 0.25, 0.125, 0.0625, 0.0625]
    row = measure_entropy(far_points([round(part * 1600) for part in share]))
    assert row.mean == pytest.approx(-sum(part * math.log2(part) for part in share), abs=1e-9)
    assert row.vectors == 1600


def test_clusters_are_a_tenth_of_few_tokens():
    assert [cluster_count(tokens) for tokens in (1, 9, 10, 29, 999, 1000, 4000)] == [1, 1, 1, 2, 99, 100, 100]
    row = measure_entropy(far_points([30] * 4))
    assert row.clusters == 12
    assert row.mean == pytest.approx(2)


def test_few_tokens_are_told_of():
    few = EntropyRow(mean=1, spread=0, by_seed=(1,), vectors=120, clusters=12)
    enough = few.model_copy(update={"vectors": 1000, "clusters": 100})
    assert entropy_warning("output_text", enough) is None
    message = entropy_warning("output_text", few)
    assert message is not None
    assert "output_text" in message
    assert "120 tokens" in message


def test_more_spread_vectors_have_more_entropy():
    flat = measure_entropy(far_points([100] * 16))
    steep = measure_entropy(far_points([850, *[50] * 15]))
    assert flat.mean > steep.mean + 0.5


def test_scale_and_place_do_not_matter():
    points = np.random.default_rng(1).standard_normal((1500, 12)).astype(np.float32)
    assert measure_entropy(points * 64).by_seed == measure_entropy(points).by_seed
    assert measure_entropy(points.astype(np.float64)).by_seed == measure_entropy(points).by_seed


def test_seeds_differ_and_are_repeated():
    points = np.random.default_rng(2).standard_normal((1500, 12)).astype(np.float32)
    row = measure_entropy(points)
    assert row == measure_entropy(points) == measure_entropy(points, threads=1) == measure_entropy(points, threads=3)
    assert len(set(row.by_seed)) > 1
    assert row.mean == pytest.approx(sum(row.by_seed) / 5)
    assert row.spread == pytest.approx(np.std(row.by_seed))


def test_fewer_distinct_vectors_than_clusters_warn_nobody():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        measure_entropy(far_points([400, 400, 400]))
    assert not caught


def test_threads_do_not_matter():
    code = (
        "import numpy as np; from luq_gguf.entropy import measure_entropy;"
        "print(measure_entropy(np.random.default_rng(3).standard_normal((2000, 32))).by_seed)"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "4")
    }
    assert len(answers) == 1


def test_ranks_depend_on_sample_position_and_seed_only():
    ranks = token_rank("a", 50)
    assert (token_rank("a", 20) == ranks[:20]).all()
    assert (
        len(set(ranks.tolist()) | set(token_rank("b", 50).tolist()) | set(token_rank("a", 50, seed=1).tolist())) == 150
    )


def test_the_order_of_samples_does_not_change_the_choice():
    lengths = {f"sample {number}": 40 + number % 7 for number in range(150)}

    def choose(names: list[str]) -> list[tuple[str, int]]:
        owners = [(name, position) for name in names for position in range(lengths[name])]
        ranks = np.concatenate([token_rank(name, lengths[name]) for name in names])
        return [owners[index] for index in choose_tokens(ranks)]

    chosen = choose(list(lengths))
    assert len(chosen) == len(set(chosen)) == MAX_VECTORS
    assert choose(list(reversed(lengths))) == chosen
    positions = [position for _, position in chosen]
    assert np.mean(positions) == pytest.approx(np.mean([np.mean(range(n)) for n in lengths.values()]), abs=1)


def rows_of(*layers: tuple[float, ...]) -> list[EntropyRow]:
    return [EntropyRow(mean=0, spread=0, by_seed=layer, vectors=1, clusters=1) for layer in layers]


def test_stability_is_kendalls_tau_between_seeds():
    assert order_stability(rows_of((1, 2), (2, 3), (3, 4))) == pytest.approx(1)
    assert order_stability(rows_of((1, 3), (2, 2), (3, 1))) == pytest.approx(-1)
    assert order_stability(rows_of((1, 1, 3), (2, 3, 2), (3, 2, 1))) == pytest.approx((1 / 3 - 1 - 1 / 3) / 3)


def test_stability_where_there_is_nothing_to_compare():
    assert order_stability(rows_of((1, 2, 3))) == 1
    assert order_stability(rows_of((1,), (2,))) == 1
    assert order_stability(rows_of((0, 0), (0, 0))) == 0


@pytest.mark.parametrize("kind", ["cloud", "far groups", "equal vectors", "few distinct"])
@pytest.mark.parametrize("seed", [0, 3])
def test_k_means_begins_where_scikit_learn_does(kind, seed):
    """The same centers for a seed, hence the same clusters as its own K-means gives."""
    rng = np.random.default_rng(7)
    points = {
        "cloud": lambda: rng.standard_normal((1500, 48)) * rng.lognormal(size=48) + 5,
        "far groups": lambda: far_points([30] * 40, noise=1.0),
        "equal vectors": lambda: np.full((300, 8), 3.5),
        "few distinct": lambda: np.repeat(rng.standard_normal((12, 8)), 50, axis=0),
    }[kind]().astype(np.float32)
    chosen = choose_centers(squared_distances(points), 30, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = KMeans(n_clusters=30, n_init=1, random_state=seed, algorithm="lloyd").fit(points)
        labels = _cluster(points, squared_distances(points), 30, seed)
    if kind in ("cloud", "far groups"):
        _, expected = kmeans_plusplus(points.astype(np.float64), 30, random_state=seed)
        assert chosen.tolist() == expected.tolist()
    found = np.unique(labels, return_counts=True)[1]
    assert sorted(found) == sorted(np.unique(model.labels_, return_counts=True)[1])


def test_distances_are_those_of_the_vectors():
    points = (np.random.default_rng(0).standard_normal((50, 20)) + 100).astype(np.float32)
    differences = points[:, None].astype(np.float64) - points[None]
    found = squared_distances(points)
    np.testing.assert_allclose(found, np.square(differences).sum(axis=2), rtol=1e-9, atol=1e-9)
    assert (np.diag(found) == 0).all()
