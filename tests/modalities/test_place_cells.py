"""Place cells: fields are found where the truth has them, direction and rest included, and position can be decoded."""

import numpy as np
import pytest

from brainfm.modalities import place_cells


@pytest.fixture(scope="module")
def recording():
    return place_cells.simulate(np.random.default_rng(0), neurons=30, duration_s=400.0)


def at_spikes(recording, name: str) -> np.ndarray:
    series = recording.aligned[name]
    return series.values[np.minimum((recording.spike_time * series.sfreq).astype(int), len(series.values) - 1), 0]


def test_spikes_lie_in_their_fields(recording) -> None:
    place, speed = at_spikes(recording, "position"), np.abs(at_spikes(recording, "velocity"))
    moving = speed > 0.1
    for neuron in np.flatnonzero(np.abs(recording.truth["centre"] - 1) < 0.7):
        own = place[moving & (recording.spike_neuron == neuron)]
        assert np.median(own) == pytest.approx(recording.truth["centre"][neuron], abs=0.06)


def test_direction_matters_to_those_that_mind_it(recording) -> None:
    velocity = at_spikes(recording, "velocity")
    minds = recording.truth["direction"]
    assert set(minds) == {-1, 0, 1}
    for neuron in range(30):
        own = velocity[(recording.spike_neuron == neuron) & (np.abs(velocity) > 0.1)]
        forward = (own > 0).mean()
        if minds[neuron]:
            assert (forward > 0.85) == (minds[neuron] > 0)
            assert (forward < 0.15) == (minds[neuron] < 0)
        else:
            assert 0.2 < forward < 0.8


def test_they_are_silent_at_rest(recording) -> None:
    velocity = recording.aligned["velocity"]
    resting = np.abs(velocity.values[:, 0]) < place_cells.REST_M_S
    fired = np.abs(at_spikes(recording, "velocity")) < place_cells.REST_M_S
    rate = fired.sum() / (resting.sum() / velocity.sfreq) / 30
    assert rate < 0.5
    assert (~fired).sum() / ((~resting).sum() / velocity.sfreq) / 30 > 2 * rate


def test_a_naive_bayes_decoder_with_the_true_fields_finds_the_animal(recording) -> None:
    fields = place_cells.Fields(**recording.truth)
    grid = np.linspace(0, 2, 81)
    both = [fields.rate(grid, np.full(81, v)) for v in (0.4, -0.4)]
    velocity, position = recording.aligned["velocity"].values[:, 0], recording.aligned["position"].values[:, 0]
    edges = np.arange(0, 400.01, 0.25)
    counts = np.stack([np.histogram(recording.spike_time[recording.spike_neuron == n], edges)[0] for n in range(30)], 1)
    middle = ((edges[:-1] + 0.125) * 50).astype(int)
    moving = np.abs(velocity[middle]) > 0.15
    score = np.stack([counts @ np.log(r.T * 0.25) - r.sum(1) * 0.25 for r in both])
    best = grid[score.max(0).argmax(1)]
    assert np.median(np.abs(best - position[middle])[moving]) < 0.06
    shuffled = np.random.default_rng(1).permutation(best[moving])
    assert np.median(np.abs(shuffled - position[middle][moving])) > 0.3


def test_runs_go_to_and_fro(recording) -> None:
    assert recording.simulated
    assert recording.events.label[:4] == ["outbound", "inbound", "outbound", "inbound"]
    position = recording.aligned["position"]
    assert (position.values.min(), position.values.max()) == pytest.approx((0, 2))
    for onset, lasts, label in zip(
        recording.events.onset, recording.events.duration, recording.events.label, strict=True
    ):
        start, end = position.values[np.round(np.array([onset, onset + lasts]) * 50).astype(int).clip(max=19999), 0]
        assert (end > start) == (label == "outbound")
        assert abs(end - start) > 1.9


def test_it_is_seeded_and_keeps_given_fields() -> None:
    fields = place_cells.draw_fields(np.random.default_rng(9), 6)
    one, same, other = (
        place_cells.simulate(np.random.default_rng(s), duration_s=20.0, fields=fields) for s in (0, 0, 1)
    )
    np.testing.assert_array_equal(one.spike_time, same.spike_time)
    assert not np.array_equal(one.spike_time, other.spike_time)
    np.testing.assert_array_equal(one.truth["centre"], other.truth["centre"])
    with pytest.raises(ValueError, match="give 10 s or more"):
        place_cells.simulate(np.random.default_rng(0), duration_s=1.0)
