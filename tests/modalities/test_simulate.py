"""The simulators: physics of the head, determinism, and that what is planted, and nothing else, can be found again."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from brainfm import config, splits
from brainfm.datasets import sim_eeg, sim_hub, sim_meg, sim_spikes
from brainfm.modalities import eeg, head, meg, spikes
from brainfm.recording import TYPICAL, Channels, Recording

CONFIGS = Path(__file__).parents[2] / "configs" / "ingest"
DATASETS = (sim_eeg, sim_meg, sim_spikes, sim_hub)
SHORT = {
    sim_eeg: {"trials": 4},
    sim_meg: {"trials": 4},
    sim_spikes: {"reach_s": 8.0, "hub_s": 5.0, "hub_neurons": 12, "reach_neurons": 9},
    sim_hub: {"duration_s": 5.0, "neurons": 12},
}


def rng(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed or 0)


def content(recording: Recording) -> bytes:
    arrays = [recording.signal, recording.spike_time, recording.spike_neuron, recording.channels.position]
    arrays += [recording.events.onset, *recording.truth.values(), *(x.values for x in recording.aligned.values())]
    return b"".join(np.ascontiguousarray(x).tobytes() for x in arrays if x is not None) + str(recording.events).encode()


def band_power(recording: Recording, first: float = 8, last: float = 14) -> tuple[np.ndarray, np.ndarray]:
    """Log power `(trial, channel)` of the mu band and the labels."""
    length = round(2 * recording.sfreq)
    trials = np.stack(
        [recording.signal[:, s : s + length] for s in (recording.events.onset * recording.sfreq).astype(int)]
    )
    power = np.abs(np.fft.rfft(trials * np.hanning(length))) ** 2
    frequency = np.fft.rfftfreq(length, 1 / recording.sfreq)
    return np.log(power[..., (frequency >= first) & (frequency < last)].mean(-1)), np.array(recording.events.label)


def within(features: np.ndarray, labels: np.ndarray) -> float:
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1))
    return float(cross_val_score(model, features, labels, cv=5).mean())


@pytest.mark.parametrize("array", list(head.ARRAYS))
def test_a_radial_dipole_is_silent_in_meg_and_a_tangential_one_is_not(array):
    person = head.draw_person(rng(1))
    out = head.lattice(20, 0.0)
    place = person.origin + 0.07 * out
    across = np.cross(out, [0.0, 1.0, 0.0])
    info = head.meg_info(array, person, 128.0)
    radial = np.abs(head.leadfield(info, person, place, out)).max()
    tangential = np.abs(head.leadfield(info, person, place, across / np.linalg.norm(across, axis=1)[:, None])).max()
    assert tangential > 0
    assert radial < 1e-9 * tangential


def test_meg_falls_with_depth():
    person = head.draw_person(rng(2))
    place = person.origin + np.outer([0.075, 0.05, 0.02], [0.0, 0.0, 1.0])
    info = head.meg_info("magnetometers", person, 128.0)
    peak = np.abs(head.leadfield(info, person, place, np.tile([0.0, 1.0, 0.0], (3, 1)))).max(0)
    assert peak[0] > 2 * peak[1] > 4 * peak[2]


def test_eeg_of_a_radial_dipole_falls_along_the_scalp_and_is_largest_above_it():
    person = head.draw_person(rng(3))
    names, directions = head.cap(["Cz", "C2", "C4", "C6", "T8"], "easycap-M1")
    up = directions[0]
    field = head.leadfield(
        head.eeg_info(names, directions, person, 128.0), person, (person.origin + 0.07 * up)[None], up[None]
    )[:, 0]
    assert np.isfinite(field).all()
    assert (np.diff(field[:4]) < 0).all()
    assert field[0] > 0
    assert 1 < field[0] * 1e-6 / 1e-5 < 1000, "one microampere-metre makes tens of microvolts to millivolts"


def test_cap_directions_are_right_front_up():
    names, directions = head.cap(None, "biosemi32")
    at = dict(zip(names, directions, strict=True))
    assert at["Cz"][2] > 0.95
    assert at["T8"][0] > 0.95
    assert at["Oz"][1] < -0.95
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)


def test_planar_gradiometers_alternate_and_coil_axes_are_orthonormal():
    for array in head.ARRAYS:
        location = np.array([c["loc"] for c in head.meg_info(array, head.draw_person(rng()), 128.0)["chs"]])
        axes = location[:, 3:].reshape(-1, 3, 3)
        np.testing.assert_allclose(axes @ axes.transpose(0, 2, 1), np.tile(np.eye(3), (len(axes), 1, 1)), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(axes), 1)


def test_references():
    average = eeg.simulate(rng(4), montage="biosemi32", trials=4)
    mastoid = eeg.simulate(rng(4), montage="ten-twenty", trials=4)
    central = eeg.simulate(rng(4), montage="easycap28", trials=4)
    np.testing.assert_allclose(average.truth["leadfield"].mean(0), 0, atol=1e-12)
    assert "Cz" not in central.channels.name
    assert len(central.channels) == 28
    assert mastoid.channels.name == eeg.TEN_TWENTY
    # Next to the reference there is little to measure; far from it there is much.
    size = dict(zip(central.channels.name, central.signal.std(1), strict=True))
    assert size["FC1"] < size["O1"]


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.__name__.split(".")[-1])
def test_same_bytes_in_any_order_and_other_bytes_from_another_seed(dataset, tmp_path):
    first, second = dataset.SUBJECTS[:2]
    both = list(dataset.recordings(tmp_path, subjects=[first, second], **SHORT[dataset]))
    turned = list(dataset.recordings(tmp_path, subjects=[second, first], **SHORT[dataset]))
    other = list(dataset.recordings(tmp_path, subjects=[first], seed=1, **SHORT[dataset]))
    bytes_of = {r.id: content(r) for r in both}
    assert bytes_of == {r.id: content(r) for r in turned}
    assert len(set(bytes_of.values())) == len(both)
    assert not {content(r) for r in other} & set(bytes_of.values())
    assert all(r.simulated and r.dataset == dataset.__name__.split(".")[-1] for r in both)


@pytest.mark.parametrize("dataset", DATASETS, ids=lambda d: d.__name__.split(".")[-1])
def test_contract_and_configuration(dataset, tmp_path):
    key = dataset.__name__.split(".")[-1]
    assert dataset.CARD["simulated"] is True
    assert dataset.CARD["subjects"] == len(dataset.sources(tmp_path))
    assert "simulated" in dataset.fetch(tmp_path / "raw")
    assert json.loads((tmp_path / "raw" / "MANIFEST.json").read_text())["simulated"] is True
    path = CONFIGS / f"{key}.yaml"
    given = config.read(path)
    config.check_blocks(given, ("recordings", "split"), key)
    config.keywords(dataset.recordings, given["recordings"], key, ("root", "seed", "subjects"))
    config.keywords(splits.assign, given["split"], key, ("recordings", "seed"))
    with pytest.raises(KeyError, match="expected one of"):
        next(dataset.recordings(tmp_path, subjects=["nobody"]))


@pytest.mark.parametrize("dataset", [sim_eeg, sim_meg], ids=["sim_eeg", "sim_meg"])
def test_every_device_is_among_the_training_people(dataset):
    devices = {r.subject: r.device for r in dataset.recordings(None, trials=2)}
    key = dataset.__name__.split(".")[-1]
    path = CONFIGS / f"{key}.yaml"
    side = splits.assign([(s, s, "") for s in devices], seed=0, **config.read(path)["split"])
    for which in ("train", "test"):
        assert {devices[s] for s in devices if side[s] == which} == set(devices.values())


@pytest.mark.parametrize("montage", list(eeg.MONTAGES))
def test_eeg_is_finite_and_of_plausible_size(montage):
    recording = eeg.simulate(rng(5), montage=montage, trials=20)
    assert np.isfinite(recording.signal).all()
    assert np.isfinite(recording.channels.position).all()
    assert 5e-6 < np.median(recording.signal.std(1)) < 5e-5
    assert recording.events.label.count("left") == recording.events.label.count("right") == 10
    assert recording.events.onset[-1] + 3 == recording.duration


@pytest.mark.parametrize("array", list(head.ARRAYS))
def test_meg_is_finite_and_of_plausible_size(array):
    recording = meg.simulate(rng(6), array=array, trials=20)
    size = np.median(recording.signal.std(1)) / TYPICAL[recording.channels.kind[0]]
    assert np.isfinite(recording.signal).all()
    assert 0.1 < size < 5
    np.testing.assert_allclose(np.linalg.norm(recording.channels.orientation, axis=1), 1)


def test_unknown_devices_are_named():
    with pytest.raises(ValueError, match="ten-twenty"):
        eeg.simulate(rng(), montage="twenty")
    with pytest.raises(ValueError, match="planar"):
        meg.simulate(rng(), array="planes")


@pytest.mark.parametrize("simulate", [eeg.simulate, meg.simulate], ids=["eeg", "meg"])
def test_labels_are_in_the_band_power_and_nowhere_without_the_effect(simulate):
    strong = replace(head.draw_person(rng(7)), desynchronisation=np.array([0.6, 0.05]), mu=9e-8)
    features, labels = band_power(simulate(rng(8), person=strong, trials=100))
    assert within(features, labels) > 0.8
    shuffled = [within(features, rng(9, i).permutation(labels)) for i in range(5)]
    assert 0.4 < np.mean(shuffled) < 0.6
    nothing = [within(*band_power(simulate(rng(10, i), person=strong, trials=100, effect=0.0))) for i in range(3)]
    assert 0.38 < np.mean(nothing) < 0.62


def test_labels_transfer_to_another_person_under_the_same_cap():
    recordings = list(sim_eeg.recordings(None, subjects=["s02", "s05", "s08", "s11"]))
    assert len({r.device for r in recordings}) == 1
    parts = [band_power(r) for r in recordings]
    scores = []
    for left_out in range(4):
        rest = [parts[i] for i in range(4) if i != left_out]
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01))
        model.fit(np.concatenate([x for x, _ in rest]), np.concatenate([y for _, y in rest]))
        scores.append(model.score(*parts[left_out]))
    assert 0.62 < np.mean(scores) < 0.97


def test_imagining_the_right_hand_weakens_the_left_motor_cortex():
    person = replace(head.draw_person(rng(11)), desynchronisation=np.array([0.7, 0.0]), mu=1e-7)
    events, duration = head.trial_events(rng(12), 60, 2.0, 1.0)
    course = head.source_courses(rng(13), person, events, round(duration * 128), 128.0)
    carrier = Recording(
        "x", "s", "eeg", Channels.make(["l", "r"], "eeg"), sfreq=128.0, signal=course[:2], events=events
    )
    power, labels = band_power(carrier)
    right = power[labels == "right"].mean(0) - power[labels == "left"].mean(0)
    assert right[0] < -0.7
    assert right[1] > 0.7


def test_hub_network_recovers_its_hubs():
    recording = spikes.hub_network(rng(14), neurons=60, hubs=3, duration_s=120.0)
    weights, hub = recording.truth["connectivity"], recording.truth["hub"]
    assert weights.shape == recording.truth["delay"].shape == (60, 60)
    assert hub.sum() == 3
    assert not weights.diagonal().any()
    rate = len(recording.spike_time) / 60 / recording.duration
    assert 4 < rate < 8
    fired = np.zeros((24001, 60))
    fired[(recording.spike_time / 0.005).astype(int), recording.spike_neuron] = 1
    z = (fired - fired.mean(0)) / fired.std(0)
    later = sum(z[k:].T @ z[:-k] for k in (1, 2)) / len(z)
    assert set(np.argsort(later.sum(0))[-3:]) == set(np.flatnonzero(hub))
    pair = ~np.eye(60, dtype=bool)
    edge = hub[None] & (weights > 0.1)
    assert roc_auc_score(edge[pair], later[pair]) > 0.95
    assert (later > later.T)[edge & (weights.T == 0)].mean() > 0.95, "the direction is seen"


def test_hub_network_at_its_published_size_fires_as_it_should():
    recording = spikes.hub_network(rng(20), duration_s=20.0)
    weights, hub, delay = (recording.truth[k] for k in ("connectivity", "hub", "delay"))
    assert weights.shape == (300, 300)
    assert np.flatnonzero(hub).tolist() == [50, 150, 250]
    assert set(np.unique(delay)) == {0.005, 0.01}
    rate = np.bincount(recording.spike_neuron, minlength=300) / recording.duration
    assert 3.5 < np.median(rate) < 7.5
    own, rest = weights[40:60, 50], weights[:, ~hub]
    assert own[own != 0].min() > 0
    assert weights[0:100, 50].sum() > 20 * np.abs(weights[101:, 50]).sum() / 2
    assert rest[rest != 0].std() == pytest.approx(0.05, rel=0.1)
    assert (rest != 0).mean() == pytest.approx(0.1, abs=0.01)


def test_hub_network_rests_after_a_spike_and_keeps_its_weights():
    first = spikes.hub_network(rng(15), neurons=12, duration_s=10.0, network=rng(1))
    second = spikes.hub_network(rng(16), neurons=12, duration_s=10.0, network=rng(1))
    np.testing.assert_array_equal(first.truth["connectivity"], second.truth["connectivity"])
    assert not np.array_equal(first.spike_time, second.spike_time)
    for neuron in range(12):
        assert np.diff(first.spike_time[first.spike_neuron == neuron]).min() > 0.005
    np.testing.assert_array_equal(first.truth["delay"], second.truth["delay"])


def test_cosine_tuning_is_recovered_from_the_spikes():
    recording = spikes.reaching(rng(17), neurons=30, duration_s=150.0)
    velocity, truth = recording.aligned["velocity"], recording.truth
    lead = round(float(truth["lag_s"]) * velocity.sfreq)
    edges = np.arange(len(velocity.values) + 1) / velocity.sfreq
    counts = np.stack([np.histogram(recording.spike_time[recording.spike_neuron == n], edges)[0] for n in range(30)], 1)
    design = np.column_stack([velocity.values[lead:], np.ones(len(velocity.values) - lead)])
    slope = np.linalg.lstsq(design, counts[: len(counts) - lead] * velocity.sfreq, rcond=None)[0]
    found = np.arctan2(slope[1], slope[0])
    off = np.abs(np.angle(np.exp(1j * (found - truth["preferred"]))))
    tuned = truth["depth"] > np.median(truth["depth"])
    assert np.degrees(np.median(off[tuned])) < 15
    assert np.corrcoef(np.hypot(slope[0], slope[1]), truth["depth"])[0, 1] > 0.8


def test_hand_moves_smoothly_to_its_targets():
    position, velocity, events = spikes.reach_kinematics(rng(18), 60.0, 1000.0)
    np.testing.assert_allclose(np.gradient(position, 0.001, axis=0)[5:-5], velocity[5:-5], atol=2e-3)
    end = ((events.onset + events.duration) * 1000).astype(int) + 1
    for at, label in zip(end, events.label, strict=True):
        expected = 0.0 if label == "centre" else 0.08
        assert np.linalg.norm(position[at]) == pytest.approx(expected, abs=1e-6)
    assert set(events.label) >= {"centre", "target0"}
    assert (end < 60000).all()


def test_reaching_sessions_of_an_animal_share_their_neurons():
    one, two, *hubs = sim_spikes.recordings(None, subjects=["a2"], **SHORT[sim_spikes])
    np.testing.assert_array_equal(one.truth["preferred"], two.truth["preferred"])
    assert one.channels.name == two.channels.name
    assert [h.session for h in hubs] == ["hub1", "hub2"]
    assert not set(one.channels.name) & {name for h in hubs for name in h.channels.name}
    assert not np.array_equal(one.aligned["velocity"].values, two.aligned["velocity"].values)
    assert all(r.tracked for r in (one, two, *hubs))
    assert not spikes.reaching(rng(3), neurons=4, duration_s=2.0).tracked, "drawn for this session alone"
    assert not spikes.hub_network(rng(3), neurons=8, hubs=1, duration_s=1.0).tracked


def test_refractory_agrees_with_a_loop():
    draw = rng(19)
    time, neuron = np.sort(draw.uniform(0, 1, 800)), draw.integers(0, 4, 800)
    last, keep = {}, []
    for t, n in zip(time, neuron, strict=True):
        keep.append(t - last.get(n, -1.0) >= 0.01)
        last[n] = t if keep[-1] else last[n]
    kept_time, kept_neuron = spikes.refractory(time, neuron, 0.01)
    np.testing.assert_array_equal(kept_time, time[keep])
    np.testing.assert_array_equal(kept_neuron, neuron[keep])


def test_clean_drops_silent_neurons_with_their_truth_and_says_so():
    recording = Recording(
        "x",
        "a",
        "spikes",
        Channels.make(["n0", "n1", "n2"], "neuron"),
        spike_time=np.array([0.1, 0.1002, 0.5, 0.7, 0.9]),
        spike_neuron=np.array([0, 0, 0, 2, 2]),
        duration=1.0,
        truth={"connectivity": np.arange(9).reshape(3, 3), "lag_s": np.array(0.1)},
    )
    cleaned = spikes.clean(recording)
    assert cleaned.channels.name == ["n0", "n2"]
    assert cleaned.spike_time.tolist() == [0.1, 0.5, 0.7, 0.9]
    assert cleaned.spike_neuron.tolist() == [0, 0, 1, 1]
    assert cleaned.truth["connectivity"].tolist() == [[0, 2], [6, 8]]
    assert cleaned.truth["lag_s"] == 0.1
    assert [s["step"] for s in cleaned.provenance["steps"]] == ["refractory", "silent neurons"]
    assert recording.provenance["steps"] == []
    assert len(recording.spike_time) == 5
    with pytest.raises(ValueError, match="lower min_rate_hz"):
        spikes.clean(recording, min_rate_hz=100.0)
