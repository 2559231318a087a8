"""Alignment: closed forms, pyRiemann and planted effects."""

from __future__ import annotations

import numpy as np
import pytest
from pyriemann.geometry.covariance import covariances as reference_covariances
from pyriemann.transfer import TLCenter

from brainfm.evaluations.methods import alignment

SFREQ = 128.0


def signals(people: int = 3, windows: int = 12, channels: int = 5, samples: int = 200, seed: int = 0):  # type: ignore[no-untyped-def]
    """Noise that each person mixes otherwise."""
    rng = np.random.default_rng(seed)
    mixed = [
        rng.normal(size=(channels, channels)) @ rng.normal(size=(windows, channels, samples)) for _ in range(people)
    ]
    return np.concatenate(mixed).astype(np.float32), np.repeat([f"s{i}" for i in range(people)], windows)


def test_oas_equals_pyriemann() -> None:
    x, _ = signals()
    np.testing.assert_allclose(alignment.covariances(x), reference_covariances(x.astype(float), "oas"), rtol=1e-9)
    few = x[:, :, :3]  # more channels than samples
    ours = alignment.covariances(few)
    np.testing.assert_allclose(ours, reference_covariances(few.astype(float), "oas"), rtol=1e-9)
    assert np.linalg.eigvalsh(ours).min() > 0


def test_euclidean_makes_the_mean_covariance_the_identity() -> None:
    x, people = signals()
    out = alignment.euclidean(x, people)
    assert out.dtype == np.float32
    for name in set(people):
        mean = alignment.covariances(out[people == name], shrunk=False).mean(axis=0)
        np.testing.assert_allclose(mean, np.eye(5), atol=1e-4)


def test_only_known_rows_count_and_a_person_depends_on_no_other() -> None:
    x, people = signals()
    known = np.flatnonzero(np.arange(len(x)) % 3 == 0)
    other = x.copy()
    other[people == "s1"] *= 3
    other[np.setdiff1d(np.flatnonzero(people == "s0"), known)[1:]] = 7
    for align in (alignment.euclidean, alignment.riemannian):
        a, b = align(x, people, known), align(other, people, np.isin(np.arange(len(x)), known))
        np.testing.assert_array_equal(a[known][:4], b[known][:4])
        np.testing.assert_array_equal(a[1], b[1])
        np.testing.assert_allclose(a[people == "s1"], b[people == "s1"], rtol=1e-3, atol=1e-3)


def test_riemannian_equals_pyriemann() -> None:
    x, people = signals()
    matrices = alignment.covariances(x)
    domain = np.array([f"{p}/a" for p in people])
    expected = TLCenter(target_domain="s0", metric="riemann").fit_transform(matrices, domain)
    np.testing.assert_allclose(alignment.recentred(matrices, people), expected, rtol=1e-6, atol=1e-8)
    mean = alignment.riemannian_mean(alignment.recentred(matrices[people == "s2"], people[people == "s2"]))
    np.testing.assert_allclose(mean, np.eye(5), atol=1e-6)
    # signals are whitened by the same matrix
    root = alignment.inverse_root(alignment.riemannian_mean(matrices[people == "s1"]))
    plain = alignment.covariances(x[people == "s1"], shrunk=False)
    aligned = alignment.covariances(alignment.riemannian(x, people)[people == "s1"], shrunk=False)
    np.testing.assert_allclose(aligned, root @ plain @ root, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("align", [alignment.euclidean, alignment.riemannian])
def test_flat_channels_one_row_and_average_reference_stay_finite(align) -> None:  # type: ignore[no-untyped-def]
    x, people = signals(people=2)
    x[people == "s0", 2] = 4.0
    x[people == "s1"] -= x[people == "s1"].mean(axis=1, keepdims=True)
    x[-1] = 0
    out = align(x, people, [0, 12])
    assert np.isfinite(out).all()
    assert 0.2 < out[people == "s1"][:-1].std() < 5
    assert np.isfinite(align(x[:, :, :3], people)).all()


def test_what_cannot_be_aligned_is_named() -> None:
    x, people = signals(people=2)
    with pytest.raises(ValueError, match="no known row of s1, who has 12"):
        alignment.euclidean(x, people, [0, 1])
    with pytest.raises(ValueError, match="no known row of s0"):
        alignment.statistics(x[:, :, 0], people, np.zeros(0))
    with pytest.raises(ValueError, match="shape"):
        alignment.euclidean(x, people, np.ones(3, bool))
    x[3] = np.nan
    with pytest.raises(ValueError, match="s0: 1 of 12 rows"):
        alignment.riemannian(x, people)
    with pytest.raises(ValueError, match="no variance"):
        alignment.euclidean(np.ones((2, 3, 50)), np.array(["a", "a"]))


def test_statistics() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(["a", "b", "c"], [30, 30, 1])
    x = rng.normal(size=(61, 4)) * np.where(people == "a", 5, 1)[:, None] + np.where(people == "b", 9, 0)[:, None]
    x[:, 3] = 1e6 / 3
    out = alignment.statistics(x, people)
    for name in "ab":
        np.testing.assert_allclose(out[people == name].mean(axis=0), 0, atol=1e-9)
        np.testing.assert_allclose(out[people == name, :3].std(axis=0), 1)
    np.testing.assert_allclose(out[:, 3], 0, atol=1e-9)
    assert np.isfinite(out).all()
    assert np.all(out[-1, :3] != 0)


def encodings(seed: int = 0, rows: int = 40, features: int = 12):  # type: ignore[no-untyped-def]
    """Who and what are planted on different axes; one of the people has one class far more often."""
    rng = np.random.default_rng(seed)
    people = np.repeat(["a", "b", "c", "d"], rows)
    labels = (rng.random(len(people)) < np.where(people == "a", 0.9, 0.5)).astype(int)
    x = rng.normal(size=(len(people), features)) @ rng.normal(size=(features, features))
    x += 3 * rng.normal(size=(4, features))[np.unique(people, return_inverse=True)[1]]
    return x + 4 * labels[:, None] * rng.normal(size=features), people, labels


def test_erasure_equals_the_closed_form_and_leaves_no_difference_of_means() -> None:
    x, people, _ = encodings()
    erasure = alignment.Erasure.fit(x, people)
    out = erasure.apply(x)
    assert erasure.axes.shape == (12, 3)
    assert np.all((erasure.strength > 0.5) & (erasure.strength <= 1))
    for name in "abcd":
        np.testing.assert_allclose(out[people == name].mean(axis=0), x.mean(axis=0), atol=1e-8)
    # Belrose et al.: x - W^+ P W (x - mean), P the projection onto the columns of W cov(x, z)
    z = (people[:, None] == np.unique(people)).astype(float)
    centred = x - x.mean(axis=0)
    covariance = alignment.oas(np.cov(x.T, bias=True)[None], len(x))[0]
    white = alignment.inverse_root(covariance)
    q = np.linalg.svd(white @ centred.T @ (z - z.mean(axis=0)))[0][:, :3]
    expected = x - centred @ (np.linalg.inv(white) @ q @ q.T @ white).T
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_erasure_keeps_labels_that_are_spread_unevenly() -> None:
    x, people, labels = encodings()
    means = lambda y: np.stack([y[labels == c].mean(axis=0) for c in (0, 1)])  # noqa: E731
    gap = np.linalg.norm(np.diff(means(x), axis=0))
    within = [
        np.linalg.norm(np.diff(means(alignment.Erasure.fit(x, people, given).apply(x)), axis=0))
        for given in (labels, None)
    ]
    assert within[0] > 0.6 * gap
    assert alignment.Erasure.fit(x[:, :3], people).axes.shape == (3, 1)
    assert alignment.Erasure.fit(x, people, at_most=2).axes.shape == (12, 2)
    with pytest.raises(ValueError, match="two people"):
        alignment.Erasure.fit(x, np.full(len(x), "a"))


def test_erasure_with_fewer_rows_than_features() -> None:
    rng = np.random.default_rng(0)
    people = np.repeat(["a", "b"], 8)
    x = rng.normal(size=(16, 50)).astype(np.float32) + 3 * (people == "a").astype(np.float32)[:, None]
    out = alignment.Erasure.fit(x, people).apply(x)
    assert out.dtype == np.float32
    np.testing.assert_allclose(out[:8].mean(axis=0), out[8:].mean(axis=0), atol=1e-4)
    assert np.isfinite(out).all()


def coloured(exponent: np.ndarray, seconds: float = 4.0, seed: int = 0) -> np.ndarray:
    """`(window, 1, time)` noise with a power density of 4 / hertz^exponent, cut from longer signals."""
    rng = np.random.default_rng(seed)
    n, samples = int(4 * seconds * SFREQ), int(seconds * SFREQ)
    spectrum = np.fft.rfft(rng.normal(size=(len(exponent), 1, n)))
    hertz = np.fft.rfftfreq(n, 1 / SFREQ)
    hertz[0] = hertz[1]
    spectrum *= 2 * np.sqrt(SFREQ / 2) * hertz ** (-exponent[:, None, None] / 2)
    return np.fft.irfft(spectrum, n)[..., n // 2 : n // 2 + samples].astype(np.float32)


@pytest.mark.parametrize("peak", [0.0, 1.5])
def test_aperiodic_finds_exponent_and_offset_beside_a_peak(peak: float) -> None:
    exponent = np.repeat([0.5, 1.0, 1.5], 60)
    x = coloured(exponent) + (peak * np.sin(2 * np.pi * 10 * np.arange(512) / SFREQ)).astype(np.float32)
    offset, found = alignment.aperiodic(x, SFREQ)[:, 0].T
    for value in (0.5, 1.0, 1.5):
        assert found[exponent == value].mean() == pytest.approx(value, abs=0.12)
    assert offset.mean() == pytest.approx(np.log10(4), abs=0.12)


def test_without_aperiodic_is_white_and_keeps_a_peak() -> None:
    exponent = np.repeat([0.6, 1.4], 40)
    tone = np.sin(2 * np.pi * 10 * np.arange(512) / SFREQ)
    noise = coloured(exponent)
    plain = alignment.without_aperiodic(noise, SFREQ)
    # nothing is left to tell the two apart by
    flat = alignment.aperiodic(plain, SFREQ)[:, 0, 1]
    assert abs(flat[exponent == 0.6].mean() - flat[exponent == 1.4].mean()) < 0.1
    assert plain.std() == pytest.approx(1, abs=0.1)
    power = np.abs(np.fft.rfft(alignment.without_aperiodic(noise + tone, SFREQ)[:, 0])).mean(axis=0)
    assert power[1:181].argmax() + 1 == 40
    # the phase stays
    spectrum = np.fft.rfft(noise[0, 0].astype(float))[1:-1]
    turned = np.fft.rfft(plain[0, 0].astype(float))[1:-1]
    assert np.abs(np.angle(spectrum * turned.conj())).max() < 1e-2


def test_aperiodic_of_flat_channels_and_short_windows() -> None:
    x = coloured(np.array([1.0, 1.0]))
    x[1] = 3.0
    assert np.isfinite(alignment.without_aperiodic(x, SFREQ)).all()
    assert np.all(alignment.without_aperiodic(x, SFREQ)[1] == 0)
    assert alignment.aperiodic(x, SFREQ)[1, 0].tolist() == [-np.inf, 0.0]
    with pytest.raises(ValueError, match=r"windows of 0\.0625 s at 128 Hz"):
        alignment.aperiodic(x[..., :8], SFREQ)
