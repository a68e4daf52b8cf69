"""Token vectors of a layer -> its entropy in bits, the paper's measure of how much a layer holds.

K-means over whole token vectors; p_k is the share of tokens in cluster k and H = -sum p_k log2 p_k. One run
of K-means moves the value by as much as neighbouring layers differ, so it is averaged over seeds.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from luq_gguf.artifacts import EntropyRow

CLUSTERS = 100
SEEDS = (0, 1, 2, 3, 4)
MAX_VECTORS = 4000
TOKENS_PER_CLUSTER = 10


def token_rank(sample: str, positions: int, seed: int = 0) -> NDArray[np.uint64]:
    """A pseudo-random rank for each position of a sample, (positions,): a function of its id, position and `seed`."""
    digest = hashlib.sha256(f"{seed}\n{sample}".encode()).digest()
    bits = np.random.PCG64(int.from_bytes(digest[:16], "little")).random_raw(positions)
    return np.asarray(bits, dtype=np.uint64)


def choose_tokens(ranks: NDArray[np.uint64], limit: int = MAX_VECTORS) -> NDArray[np.intp]:
    """Indices of the `limit` tokens of lowest rank, by rising rank."""
    return np.argsort(ranks, kind="stable")[:limit]


def measure_entropy(vectors: NDArray[np.floating], seeds: Sequence[int] = SEEDS, *, threads: int = 0) -> EntropyRow:
    """Entropy of finite token vectors (tokens, width), at most log2(100) bits: the paper's, by seed of K-means.

    Below 1,000 tokens there are only a tenth as many clusters as tokens; `EntropyRow.clusters` tells. `threads` 0 takes
    one for each core.
    """
    points = np.ascontiguousarray(vectors, dtype=np.float32)
    clusters = cluster_count(len(points))
    values = [_entropy(labels) for labels in _cluster_all(points, clusters, seeds, threads)]
    return EntropyRow(
        mean=float(np.mean(values)),
        spread=float(np.std(values)),
        by_seed=tuple(values),
        vectors=len(points),
        clusters=clusters,
    )


def cluster_count(tokens: int) -> int:
    """How many clusters so many tokens bear."""
    return max(1, min(CLUSTERS, tokens // TOKENS_PER_CLUSTER))


def entropy_warning(key: str, row: EntropyRow) -> str | None:
    """What to tell the user of an entropy that rests on too few tokens; None where it does not."""
    if row.clusters >= CLUSTERS:
        return None
    return (
        f"{key}: only {row.vectors} tokens, so {row.clusters} clusters instead of {CLUSTERS}: "
        "calibrate with more samples"
    )


def _cluster_all(
    points: NDArray[np.float32], clusters: int, seeds: Sequence[int], threads: int
) -> list[NDArray[np.int32]]:
    """K-means once a seed, one thread a seed.

    More threads in one run wait for each other: on a busy machine that takes ten times as long. One
    also makes the result independent of the number of cores.
    """
    import sklearn.cluster  # noqa: F401 - loaded here: loading a library while a thread looks for them can deadlock
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController()
    with libraries.limit(limits=threads or None):
        distances = squared_distances(points)

    def one_thread() -> None:
        """OpenMP keeps its number of threads for each calling thread."""
        libraries.limit(limits=1, user_api="openmp")

    with (
        libraries.limit(limits=1),
        warnings.catch_warnings(),
        ThreadPoolExecutor(threads or _cores(), initializer=one_thread) as pool,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct vectors than clusters: some stay empty
        return list(pool.map(lambda seed: _cluster(points, distances, clusters, seed), seeds))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cluster(
    points: NDArray[np.float32], distances: NDArray[np.float64], clusters: int, seed: int
) -> NDArray[np.int32]:
    from sklearn.cluster import KMeans

    centers = points[choose_centers(distances, clusters, seed)]
    model = KMeans(n_clusters=clusters, n_init=1, init=centers, random_state=seed, algorithm="lloyd").fit(points)
    labels: NDArray[np.int32] = model.labels_
    return labels


def squared_distances(points: NDArray[np.float32]) -> NDArray[np.float64]:
    """Squared distances (tokens, tokens) of vectors (tokens, width), which all seeds share."""
    wide = points.astype(np.float64)
    wide -= wide.mean(axis=0)
    squares = np.einsum("ij,ij->i", wide, wide)
    found = wide @ wide.T
    found *= -2
    found += squares[:, None]
    found += squares
    np.maximum(found, 0, out=found)
    np.fill_diagonal(found, 0)
    return found


def choose_centers(distances: NDArray[np.float64], clusters: int, seed: int) -> NDArray[np.intp]:
    """The vectors that K-means begins with: scikit-learn's choice (`kmeans_plusplus`, greedy k-means++) for a seed.

    There every center's distances are worked out anew, which took longer than K-means itself.
    """
    random = np.random.RandomState(seed)
    trials = 2 + int(np.log(clusters))
    chosen = [int(random.choice(len(distances), p=np.full(len(distances), 1 / len(distances))))]
    closest = distances[chosen[0]].copy()
    for _ in range(clusters - 1):
        drawn = random.uniform(size=trials) * closest.sum()
        candidates = np.minimum(np.searchsorted(np.cumsum(closest), drawn), len(closest) - 1)
        nearer = np.minimum(distances[candidates], closest)
        best = int(nearer.sum(axis=1).argmin())
        closest = nearer[best]
        chosen.append(int(candidates[best]))
    return np.array(chosen)


def _entropy(labels: NDArray[np.int32]) -> float:
    share = np.bincount(labels) / len(labels)
    present = share[share > 0]
    return abs(float(-(present * np.log2(present)).sum()))  # abs: no -0.0


def order_stability(rows: Sequence[EntropyRow]) -> float:
    """Mean Kendall's tau between the orders of the layers that two seeds give; 1 for a single layer or seed.

    A pair of which one order has no difference at all counts as 0.
    """
    from scipy.stats import kendalltau

    by_seed = np.array([row.by_seed for row in rows]).T
    pairs = list(itertools.combinations(by_seed, 2))
    if len(rows) < 2 or not pairs:
        return 1.0
    taus = [kendalltau(one, other).statistic for one, other in pairs]
    return float(np.mean(np.nan_to_num(taus)))
