"""A decoder slid over time: where windows lie, that none crosses a break, what smoothing sees, what makes an event."""

from __future__ import annotations

import numpy as np
import pytest

from brainfm.evaluations import sliding

SFREQ, LENGTH = 10.0, 10


def test_every_window_is_read_once_and_none_crosses_a_break() -> None:
    signal = np.arange(100.0)[None] / 1000
    segments = np.array([[0, 33], [40, 45], [50, 100]])
    where = sliding.places(segments, LENGTH, 4)
    shown: list[np.ndarray] = []
    read: list[tuple[int, int]] = []

    def part(a: int, b: int) -> np.ndarray:
        read.append((a, b))
        return signal[:, a:b]

    def high(windows: np.ndarray) -> np.ndarray:
        shown.append(np.array(windows))
        return np.column_stack([1 - windows.mean(axis=(1, 2)), windows.mean(axis=(1, 2))])

    found = np.concatenate(list(sliding.slide(high, part, where, size=3)))
    expected = [*range(0, 24, 4), *range(50, 91, 4)]
    assert where.start.tolist() == expected
    assert where.part.tolist() == [0] * 6 + [2] * 11
    np.testing.assert_array_equal(np.concatenate(shown)[:, 0, 0] * 1000, expected)
    np.testing.assert_allclose(found[:, 1], [signal[0, a : a + LENGTH].mean() for a in expected])
    assert all(any(a <= low and high <= b for a, b in segments) for low, high in read)
    assert max(b - a for a, b in read) == LENGTH + 2 * 4  # memory is bound by the batch


def test_too_short_a_recording_says_what_is_there() -> None:
    with pytest.raises(ValueError, match="has 9 samples and a window of the decoder has 10"):
        sliding.places(np.array([[0, 4], [10, 19]]), LENGTH, 2)


def test_smoothing_is_a_moving_mean_inside_a_stretch() -> None:
    chances, part = np.random.default_rng(0).random((30, 3)), np.repeat([0, 1], [18, 12])
    wide = ((4, False, 1, 2), (5, False, 2, 2), (1, False, 0, 0), (4, True, 3, 0))  # that many windows in all
    for windows, causal, before, after in wide:
        found = sliding.smoothed(chances, part, windows, causal)
        for i in range(30):
            near = [j for j in range(max(0, i - before), min(30, i + after + 1)) if part[j] == part[i]]
            np.testing.assert_allclose(found[i], chances[near].mean(axis=0))
    np.testing.assert_allclose(sliding.smoothed(chances, part, 0), chances)


def test_causal_smoothing_sees_nothing_of_the_future() -> None:
    rng = np.random.default_rng(0)
    chances, part = rng.random((40, 2)), np.zeros(40, int)
    changed = chances.copy()
    changed[25:] = rng.random((15, 2))
    causal, centred = (
        [sliding.smoothed(x, part, 6, how)[:25] for x in (chances, changed)] for how in (True, False)
    )  # fmt: skip
    np.testing.assert_array_equal(*causal)
    assert np.abs(np.subtract(*centred)).max() > 0.01


def test_times_are_middles_or_when_they_can_be_known() -> None:
    where = sliding.places(np.array([[0, 30]]), LENGTH, 5)
    np.testing.assert_allclose(sliding.times(where, SFREQ), [0.5, 1.0, 1.5, 2.0, 2.5])
    np.testing.assert_allclose(sliding.times(where, SFREQ, causal=True, reach_s=0.2), [1.2, 1.7, 2.2, 2.7, 3.2])


def test_events_are_runs_of_one_class_above_the_threshold() -> None:
    high = np.array([0.1, 0.1, 0.55, 0.9, 0.8, 0.2, 0.2, 0.2])
    chances, part = np.column_stack([1 - high, high]), np.array([0] * 7 + [1])
    time = np.arange(8) * 0.5 + 1
    bounds = np.array([[0.5, 4.25], [4.25, 5.5]])
    found = sliding.events(chances, time, part, ["low", "high"], 0.6, 0.5, bounds)
    assert [(e.label, e.onset, e.duration) for e in found] == [
        ("low", 0.75, 1.0), ("high", 2.25, 1.0), ("low", 3.25, 1.0), ("low", 4.25, 0.5),
    ]  # fmt: skip
    assert found[1].probability == pytest.approx(0.85)
    later = sliding.events(chances, time, part, ["low", "high"], 0.6, 0.5, bounds, causal=True)
    assert [e.onset for e in later] == [1.0, 2.5, 3.5, 4.5]
    assert [e.duration for e in later] == [1.0, 1.0, 0.75, 0.5]
    assert sliding.events(chances, time, part, ["low", "high"], 0.95, 0.5, bounds) == []


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("step", [3, 10, 25])
def test_events_lie_in_their_stretch_and_never_overlap(step: int, causal: bool) -> None:
    """Every window is its own event; steps shorter, as long and longer than a window."""
    segments, reach_s = np.array([[0, 47], [50, 95], [95, 140]]), 0.7
    where = sliding.places(segments, LENGTH, step)
    high = np.arange(len(where.start)) % 2
    time = sliding.times(where, SFREQ, causal, reach_s)
    bounds = sliding.limits(segments, SFREQ, causal, reach_s)
    found = sliding.events(
        np.column_stack([1 - high, high]), time, where.part, ["low", "high"], 0.5, step / SFREQ, bounds, causal
    )
    onset = np.array([e.onset for e in found])
    end = onset + [e.duration for e in found]
    assert (end > onset).all()
    assert (onset[1:] >= end[:-1] - 1e-9).all()
    assert end.max() <= 14.0 + 1e-9
    if causal:
        assert set(onset) <= set(time)  # never before it could be known
        assert (time[-1] < 14.0) == (time[-1] in onset)
    else:
        assert len(found) == len(time)
        outside = [not any(a <= 10 * o + 1e-9 and 10 * e <= b + 1e-9 for a, b in segments)
                   for o, e in zip(onset, end, strict=True)]  # fmt: skip
        assert not any(outside)
