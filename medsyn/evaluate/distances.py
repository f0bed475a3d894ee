"""Distances between two sets of features, rows of Table I: FID (Heusel et al. 2017) and MMD (Gretton et al. 2012).

Beside them stand precision, recall, density and coverage (`medsyn.evaluate.neighbours`). All functions take float
arrays (n, F) and (m, F), one row a volume, and return numbers without unit. FID and MMD are computed
as in HA-GAN's evaluation, on which the paper relies: covariances with N - 1; unbiased MMD^2 with a Gaussian kernel
exp(-d^2 / sigma^2) whose sigma is the median of all pairwise distances, the zero diagonal included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from medsyn.evaluate.neighbours import NEIGHBOUR_MEASURES, neighbour_measures

Features = NDArray[np.floating]
Distance = Callable[[Features, Features], float | NDArray[np.float64]]
"""Of real and synthetic features; one number, or several as an array."""


def frechet_distance(real: Features, synthetic: Features) -> float:
    """Return |m1 - m2|^2 + tr(S1 + S2 - 2 sqrt(S1 S2)).

    With A and B the centred features, S1 = A'A/(n-1) and S2 = B'B/(m-1), the eigenvalues of S1 S2 are the squared
    singular values of A B' over (n-1)(m-1), so the trace of the root is a nuclear norm: exact, real and never negative
    even where both covariances are singular (fewer volumes than features). The estimate is biased upwards for small
    samples: compare only at equal numbers. Raises ValueError for fewer than two rows or unequal widths.
    """
    a, b = _pair(real, synthetic)
    centred_a, centred_b = a - a.mean(axis=0), b - b.mean(axis=0)
    root_a, root_b = _square_root(centred_a), _square_root(centred_b)
    trace_of_root = np.linalg.svd(root_a @ root_b.T, compute_uv=False).sum()
    offset = a.mean(axis=0) - b.mean(axis=0)
    return float(offset @ offset + (root_a**2).sum() + (root_b**2).sum() - 2.0 * trace_of_root)


def median_distance(real: Features, synthetic: Features) -> float:
    """Return the lower median of the distances of all ordered pairs of the pooled rows, with the zero diagonal."""
    a, b = _pair(real, synthetic)
    pooled = np.concatenate([a, b])
    flat = cdist(pooled, pooled).ravel()
    middle = (flat.size - 1) // 2
    return float(np.partition(flat, middle)[middle])


def maximum_mean_discrepancy(real: Features, synthetic: Features, sigma: float | None = None) -> float:
    """Return the unbiased MMD^2 with the kernel exp(-d^2 / sigma^2); may be slightly negative.

    `sigma`: bandwidth, default the median distance of the pooled samples. Raises ValueError for fewer than two rows,
    unequal widths, or features that are all equal (no bandwidth).
    """
    a, b = _pair(real, synthetic)
    sigma = median_distance(a, b) if sigma is None else sigma
    if sigma <= 0:
        raise ValueError("more than half of all pairs of features are identical, the kernel has no bandwidth")
    within = sum(_kernel_sum_off_diagonal(x, sigma) / (len(x) * (len(x) - 1)) for x in (a, b))
    between = np.exp(-(cdist(a, b) ** 2) / sigma**2).mean()
    return float(within - 2.0 * between)


def half_split(
    distance: Distance, real: Features, synthetic: Features | None, *, seed: int, num_draws: int = 10
) -> NDArray[np.float64]:
    """Return the mean `distance` over random draws of half of `real` against as many rows of something else.

    Against `synthetic`, or, where that is None, against the other half of `real`: the value that volumes of the very
    same kind reach at this sample size, below which no difference can be seen. Raises ValueError for fewer than four
    real rows.
    """
    half = len(real) // 2
    if half < 2 or (synthetic is not None and len(synthetic) < half):
        raise ValueError("a split into halves needs at least 4 real rows and as many synthetic rows as a half")
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(num_draws):
        order = generator.permutation(len(real))
        if synthetic is None:
            other = real[order[half : 2 * half]]
        else:
            other = synthetic[generator.permutation(len(synthetic))[:half]]
        values.append(distance(real[order[:half]], other))
    return np.asarray(np.mean(np.array(values), axis=0))


def jackknife_variance(
    distance: Distance, real: Features, synthetic: Features, *, seed: int, num_groups: int = 10
) -> NDArray[np.float64]:
    """Return the squared standard error of a distance from a delete-a-group jackknife over both samples.

    Resampling with replacement would repeat rows, which itself raises FID and MMD and shrinks the balls of the nearest
    neighbours; leaving groups out does neither. Raises ValueError for fewer than four rows.
    """
    a, b = _pair(real, synthetic)
    if min(len(a), len(b)) < 4:
        raise ValueError("an interval needs at least 4 rows in both samples")
    generator = np.random.default_rng(seed)
    variance = np.zeros(())
    for which in (0, 1):
        rows = (a, b)[which]
        groups = np.array_split(generator.permutation(len(rows)), min(num_groups, len(rows) // 2))
        values = []
        for group in groups:
            kept = np.delete(rows, group, axis=0)
            values.append(distance(kept, b) if which == 0 else distance(a, kept))
        variance = variance + (len(groups) - 1) * np.var(np.array(values), axis=0)
    return variance


def share_interval(share: float, variance: float, count: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of `count` volumes whose squared standard error is `variance`.

    Wilson's formula (1927) is for independent volumes. It is used with the number of independent volumes that would
    have this variance, at most `count`. Near 0 and 1 the interval share +- 1.96 SE misses the true value too often.
    """
    spread = share * (1 - share)
    number = min(spread / variance, count) if variance > 0 and spread > 0 else count
    z2 = 1.96**2
    centre = (share + z2 / (2 * number)) / (1 + z2 / number)
    width = np.sqrt(z2) / (1 + z2 / number) * np.sqrt(spread / number + z2 / (4 * number**2))
    return max(0.0, min(share, centre - width)), min(1.0, max(share, centre + width))


def equal_numbers(real: Features, synthetic: Features, limit: int, seed: int) -> tuple[Features, Features]:
    """Return random subsets of both samples with the same number of rows, at most `limit`, in a reproducible draw."""
    count = min(len(real), len(synthetic), limit)
    generator = np.random.default_rng(seed)
    chosen = [np.sort(generator.permutation(len(x))[:count]) for x in (real, synthetic)]
    return real[chosen[0]], synthetic[chosen[1]]


def _pair(real: Features, synthetic: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(real, dtype=np.float64), np.asarray(synthetic, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features must be (n, F) and (m, F), got {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise ValueError(f"two rows at least are needed in each sample, got {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("features hold values that are not finite")
    return a, b


def _square_root(centred: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return R with R'R = S: the scaled rows or, where they outnumber the features, their triangular factor."""
    scaled = centred / np.sqrt(len(centred) - 1)
    if scaled.shape[0] > scaled.shape[1]:
        return np.linalg.qr(scaled).R
    return scaled


def _kernel_sum_off_diagonal(x: NDArray[np.float64], sigma: float) -> float:
    return float(np.exp(-(cdist(x, x) ** 2) / sigma**2).sum() - len(x))


def checked_neighbour_measures(real: Features, synthetic: Features) -> NDArray[np.float64]:
    """Return `medsyn.evaluate.neighbours.neighbour_measures` of features that are usable; others are a ValueError."""
    return neighbour_measures(*_pair(real, synthetic))


METRICS: tuple[tuple[tuple[str, ...], Distance], ...] = (
    (("fid",), frechet_distance),
    (("mmd",), maximum_mean_discrepancy),
    (NEIGHBOUR_MEASURES, checked_neighbour_measures),
)
"""Names of numbers, and the function that returns them."""
SHARES = ("precision", "recall", "coverage")
METRIC_NAMES = tuple(name for names, _ in METRICS for name in names)


def distance_columns(
    real: NDArray, synthetic: NDArray | None, *, max_volumes: int, seed: int
) -> dict[str, float | int | str | None]:
    """Return all METRICS of features (n, F) to the real ones, with jackknife bounds, under the names of Table I.

    They are taken between equally many real and synthetic volumes (`n_fid`, at most `max_volumes`), and `<name>_half`
    at half of that number. Without `synthetic`: the mean over random halves of the real volumes against each other.
    Where there are too few volumes for a metric, `note` says so instead.
    """
    half = len(real[:max_volumes]) // 2
    row: dict[str, float | int | str | None] = {"n_half": half}
    limited = real[np.sort(np.random.default_rng(seed).permutation(len(real))[:max_volumes])]
    reasons: dict[str, list[str]] = {}
    for names, distance in METRICS:
        try:
            if synthetic is not None:
                a, b = equal_numbers(real, synthetic, max_volumes, seed)
                values, note = metric_columns(names, distance, a, b, seed)
                row |= values | {"n_fid": len(a)}
                if note:
                    reasons.setdefault(note, []).extend(f"bounds of {name}" for name in names)
            halves = np.atleast_1d(half_split(distance, limited, synthetic, seed=seed))
            row |= {f"{name}_half": float(value) for name, value in zip(names, halves, strict=True)}
            if synthetic is None:
                row |= {name: row[f"{name}_half"] for name in names} | {"n_fid": half}
        except ValueError as error:
            missing = [name for name in names if name not in row] or [f"{name}_half" for name in names]
            reasons.setdefault(str(error), []).extend(missing)
    notes = [f"no {', '.join(missing)}: {reason}" for reason, missing in reasons.items()]
    if synthetic is None and "n_fid" in row:
        notes.append(
            f"distance between random halves of the real volumes, {half} against {half}; compare with the columns"
            " *_half"
        )
    return row | ({"note": "; ".join(notes)} if notes else {})


def metric_columns(
    names: Sequence[str], distance: Distance, real: Features, synthetic: Features, seed: int
) -> tuple[dict[str, float], str | None]:
    """Return each number with its bounds `<name>_ci_low` and `<name>_ci_high`, or without bounds and why.

    Bounds below 0 are set to 0 (not those of MMD), and bounds of shares above 1 to 1.
    """
    values = list(map(float, np.atleast_1d(distance(real, synthetic))))
    row: dict[str, float] = dict(zip(names, values, strict=True))
    try:
        variances = list(map(float, np.atleast_1d(jackknife_variance(distance, real, synthetic, seed=seed))))
    except ValueError as error:
        return row, f"the intervals need more volumes ({error})"
    for name, value, variance in zip(names, values, variances, strict=True):
        if name in SHARES:
            low, high = share_interval(value, variance, len(real))
        else:
            low, high = value - 1.96 * np.sqrt(variance), value + 1.96 * np.sqrt(variance)
        row |= {f"{name}_ci_low": low if name == "mmd" else max(0.0, low), f"{name}_ci_high": high}
    return row, None
