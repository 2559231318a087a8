"""Simulated V1: fields, gains and gaze are in the responses as the truth says, and images are what they claim."""

from dataclasses import replace

import numpy as np
import pytest

from brainfm.datasets import sim_v1
from brainfm.modalities import gabor_population as v1


def made(seed: int = 0, **changed: object):
    return v1.simulate(np.random.default_rng(seed), **{"neurons": 12, "trials": 60, **changed})


def test_receptive_fields_have_length_one_no_mean_and_lie_where_they_should() -> None:
    population = v1.draw_population(np.random.default_rng(0), 50)
    even, odd = v1.receptive_fields(population, 36, 64)
    np.testing.assert_allclose(np.linalg.norm(even, axis=(1, 2)), 1)
    np.testing.assert_allclose([even.sum((1, 2)), odd.sum((1, 2))], 0, atol=1e-9)
    y, x = np.mgrid[:36, :64]
    power = even**2 + odd**2
    middle = np.stack([(power * x).sum((1, 2)), (power * y).sum((1, 2))], 1) / power.sum((1, 2))[:, None]
    inside = np.abs(population.centre).max(1) < 0.5
    expected = (population.centre + 1) / 2 * [63, 35]
    np.testing.assert_allclose(middle[inside], expected[inside], atol=1.0)
    assert np.abs(np.einsum("nhw,nhw->n", even, odd)).max() < 0.3, "the pair is in quadrature"


def test_neighbours_in_cortex_see_neighbouring_places() -> None:
    population = v1.draw_population(np.random.default_rng(1), 200)
    design = np.column_stack([population.place[:, :2], np.ones(200)])
    fitted = design @ np.linalg.lstsq(design, population.centre, rcond=None)[0]
    assert np.corrcoef(fitted.ravel(), population.centre.ravel())[0, 1] > 0.95


def test_images_have_edges_at_all_scales() -> None:
    images = v1.dead_leaves(np.random.default_rng(0), 100)
    np.testing.assert_allclose(images.mean((1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(images.std((1, 2)), 1, rtol=1e-4)
    power = (np.abs(np.fft.rfft(images[:, :, :36], axis=2)) ** 2).mean((0, 1))[1:17]
    slope = np.polyfit(np.log(np.arange(1, 17)), np.log(power), 1)[0]
    assert -3 < slope < -1, "power falls as that of natural images, about the square of the frequency"


def test_simple_cells_follow_their_fields_and_complex_cells_do_not_mind_contrast_reversal() -> None:
    population = v1.draw_population(np.random.default_rng(2), 40)
    images = v1.dead_leaves(np.random.default_rng(3), 80)
    still = np.zeros((80, 3)), np.zeros((80, 2))
    rate, reversed_ = (v1.expected_response(population, sign * images, *still) for sign in (1, -1))
    np.testing.assert_allclose(rate[:, population.energy], reversed_[:, population.energy], rtol=1e-6)
    simple = ~population.energy
    assert np.abs(rate - reversed_)[:, simple].max(0).min() > 0.1
    both = np.minimum(rate, reversed_)[:, simple] - population.baseline[simple]
    np.testing.assert_allclose(both, 0, atol=1e-9)


def test_running_pupil_and_gaze_change_responses_as_they_should() -> None:
    population = v1.draw_population(np.random.default_rng(2), 30)
    images = v1.dead_leaves(np.random.default_rng(3), 20)
    rest = v1.expected_response(population, images, np.zeros((20, 3)), np.zeros((20, 2)))
    runs = v1.expected_response(population, images, np.tile([0.0, 0.0, 2.0], (20, 1)), np.zeros((20, 2)))
    np.testing.assert_allclose(runs / rest, np.broadcast_to(1 + 2 * population.running, rest.shape))
    wide = v1.expected_response(population, images, np.tile([1.0, 0.0, 0.0], (20, 1)), np.zeros((20, 2)))
    np.testing.assert_allclose(wide / rest, np.broadcast_to(np.exp(population.pupil), rest.shape))
    # an image that moves by whole pixels and fields that move with it
    moved = replace(population, centre=population.centre + np.array([2 * 2 / 63, 2 / 35]))
    gaze = np.tile([2 * 2 / 63, 2 / 35], (20, 1))
    follows = v1.expected_response(moved, images, np.zeros((20, 3)), gaze)
    inside = np.abs(population.centre).max(1) < 0.4
    np.testing.assert_allclose(follows[:, inside], rest[:, inside], rtol=0.02, atol=0.02)


def test_a_recording_repeats_its_images_and_knows_its_rates() -> None:
    images = v1.dead_leaves(np.random.default_rng(4), 5)
    found = made(images=images, stimulus=list("abcde"), repeats=40)
    assert (found.modality, found.simulated, found.sfreq) == ("calcium", True, 1.0)
    assert found.signal.shape == found.truth["rate"].shape == (12, 200)
    shown = np.array(found.events.stimulus)
    assert {s: int((shown == s).sum()) for s in "abcde"} == dict.fromkeys("abcde", 40)
    pixels = found.aligned["stimulus"].values
    for i, name in enumerate("abcde"):
        assert (pixels[shown == name] == images[i].ravel()).all()
    np.testing.assert_allclose(found.signal.mean(1), found.truth["rate"].mean(1), rtol=0.25)
    assert np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(found.signal, found.truth["rate"], strict=True)]) > 0.4


def test_it_is_seeded_and_refuses_images_without_ids() -> None:
    np.testing.assert_array_equal(made().signal, made().signal)
    assert not np.array_equal(made().signal, made(1).signal)
    with pytest.raises(ValueError, match="2 ids and 1 repeats of images"):
        made(images=np.zeros((3, 36, 64)), stimulus=["a", "b"])


def test_no_test_image_is_in_training_and_mice_share_the_test_images() -> None:
    small = {"neurons": 4, "images": 6, "test_images": 3, "repeats": 2}
    found = list(sim_v1.recordings(None, subjects=["m1", "m2"], **small))
    single, repeats = found[0::2], found[1::2]
    assert [r.session for r in found] == ["single", "repeats"] * 2
    ids = [set(r.events.stimulus) for r in single]
    assert not ids[0] & ids[1]
    assert set(repeats[0].events.stimulus) == set(repeats[1].events.stimulus)
    assert not (ids[0] | ids[1]) & set(repeats[0].events.stimulus)
    seen = {x.tobytes() for r in single for x in r.aligned["stimulus"].values}
    assert not seen & {x.tobytes() for r in repeats for x in r.aligned["stimulus"].values}
    np.testing.assert_array_equal(single[0].truth["centre"], repeats[0].truth["centre"])
    assert not np.array_equal(single[0].truth["centre"], single[1].truth["centre"])
    with pytest.raises(KeyError, match="no subject 'm9' in sim_v1"):
        list(sim_v1.recordings(None, subjects=["m9"]))
