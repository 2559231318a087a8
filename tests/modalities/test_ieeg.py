"""Intracranial EEG: physics of a dipole, geometry of implants, and a label effect that can be turned off."""

import numpy as np
import pytest

from brainfm.modalities import head, ieeg
from brainfm.recording import TYPICAL, Recording


def simulated(seed: int = 0, **changed: object) -> Recording:
    return ieeg.simulate(np.random.default_rng(seed), **{"trials": 30, "pause_s": 0.5, **changed})


def gamma_effect(found: Recording) -> np.ndarray:
    """Difference of log power in 70 to 150 Hz between right and left, over its spread, `(channel,)`."""
    rate = int(found.sfreq)
    starts = ((found.events.onset + 0.2) * rate).astype(int)
    trials = np.stack([found.signal[:, s : s + round(1.8 * rate)] for s in starts])
    power = np.abs(np.fft.rfft(trials * np.hanning(trials.shape[-1]))) ** 2
    frequency = np.fft.rfftfreq(trials.shape[-1], 1 / rate)
    band = np.log(power[..., (frequency > 70) & (frequency < 150)].mean(-1))
    right = np.array(found.events.label) == "right"
    return (band[right].mean(0) - band[~right].mean(0)) / band.std(0)


@pytest.mark.parametrize("implant", ieeg.IMPLANTS)
def test_what_a_session_holds(implant: str) -> None:
    found = simulated(trials=4, implant=implant)
    assert (found.modality, found.simulated, found.device) == ("ieeg", True, implant)
    table = found.channels
    assert set(table.kind) == {implant}
    assert set(table.unit) == {ieeg.UNIT}
    assert set(table.placed) == {"simulated"}
    assert set(table.reference) == {"average"}
    assert "motor cortex" in table.area
    assert found.truth["leadfield"].shape == (len(table), len(found.truth["dipole_position"]))
    np.testing.assert_allclose(found.signal.mean(0), 0, atol=5e-6)
    assert 0.1 < np.median(found.signal.std(1)) / TYPICAL[implant] < 10
    assert found.signal.std(1).max() < 2e-3


def test_a_dipoles_potential_falls_with_the_square_of_distance_and_vanishes_beside_it() -> None:
    place = np.array([[0.0, 0, 0.01], [0, 0, 0.02], [0, 0, -0.01], [0.01, 0, 0], [0, 0, 0.0001]])
    seen = ieeg.potential(place, np.zeros((1, 3)), np.array([[0.0, 0, 1]]))[:, 0]
    assert seen[0] == pytest.approx(1 / (4 * np.pi * ieeg.CONDUCTIVITY * 1e-4))
    assert seen[1] == pytest.approx(seen[0] / 4)
    assert seen[2] == pytest.approx(-seen[0])
    assert seen[3] == pytest.approx(0)
    assert np.isfinite(seen[4])


def test_shafts_are_straight_and_inside_the_brain() -> None:
    rng = np.random.default_rng(1)
    person = head.draw_person(rng)
    hand = head.dipoles(person)[0][:2]
    names, place = ieeg.shafts(rng, person, hand)
    assert len(names) == len(set(names)) == len(place)
    assert np.linalg.norm(place - person.origin, axis=1).max() < ieeg.SURFACE * person.radius
    for letter in {n[0] for n in names}:
        line = place[[n[0] == letter for n in names]]
        np.testing.assert_allclose(np.linalg.norm(np.diff(line, axis=0), axis=1), 0.0035)
        assert np.linalg.svd(line - line.mean(0))[1][1] < 1e-9
    for side in hand:
        assert np.linalg.norm(place - side, axis=1).min() < 0.012


def test_a_grid_lies_on_the_surface_over_a_hand_area() -> None:
    rng = np.random.default_rng(2)
    person = head.draw_person(rng)
    hand = head.dipoles(person)[0][:2]
    names, place = ieeg.grid(rng, person, hand)
    assert len(set(names)) == 64
    np.testing.assert_allclose(np.linalg.norm(place - person.origin, axis=1), ieeg.SURFACE * person.radius)
    assert np.linalg.norm(place[1] - place[0]) == pytest.approx(0.006, rel=0.15)
    assert min(np.linalg.norm(place - side, axis=1).min() for side in hand) < 0.015


@pytest.mark.parametrize("implant", ieeg.IMPLANTS)
def test_high_gamma_tells_the_hands_apart_only_where_there_is_an_effect(implant: str) -> None:
    with_effect, without = (gamma_effect(simulated(5, implant=implant, effect=e, trials=60)) for e in (1.0, 0.0))
    assert np.abs(with_effect).max() > 1.0
    assert np.abs(with_effect).max() > np.abs(without).max() + 0.25


def test_sides_of_the_head_differ_in_sign() -> None:
    found = simulated(5)
    effect, motor = gamma_effect(found), np.array(found.channels.area) == "motor cortex"
    left = motor & (found.channels.position[:, 0] < 0)
    right = motor & (found.channels.position[:, 0] > 0)
    assert effect[left].max() > 0.5  # the right hand excites the left hemisphere
    assert effect[right].min() < -0.5


def test_implants_differ_between_subjects_and_seeds_repeat() -> None:
    first, again, other = simulated(1, trials=2), simulated(1, trials=2), simulated(2, trials=2)
    np.testing.assert_array_equal(first.signal, again.signal)
    assert first.channels.position.shape != other.channels.position.shape or not np.allclose(
        first.channels.position, other.channels.position
    )


def test_cleaning_is_that_of_eeg() -> None:
    found = simulated(trials=4)
    cleaned = ieeg.clean(found, sfreq_hz=256.0, highpass_hz=1.0, lowpass_hz=100.0, notch_hz=50.0)
    assert cleaned.sfreq == 256.0
    assert np.shape(cleaned.signal)[1] == found.signal.shape[1] // 2
    frequency = np.fft.rfftfreq(2048, 1 / 256)
    power = np.abs(np.fft.rfft(np.asarray(cleaned.signal[:, 256:2304]))) ** 2
    before = np.abs(np.fft.rfft(found.signal[:, 512:4608])) ** 2
    hum = np.abs(frequency - 50) < 0.3
    assert power[:, hum].sum() < 0.05 * before[:, np.abs(np.fft.rfftfreq(4096, 1 / 512) - 50) < 0.3].sum()


@pytest.mark.parametrize(
    ("wrong", "says"), [({"implant": "grid"}, "expected one of seeg, ecog"), ({"sfreq_hz": 128.0}, "needs 300")]
)
def test_impossible_sessions_are_refused(wrong: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        simulated(**wrong)
