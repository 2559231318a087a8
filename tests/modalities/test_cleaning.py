"""Declared cleaning: steps run in order, stay lazy, say what they did, and a wrong word is an error before any work."""

from __future__ import annotations

import pickle

import mne
import numpy as np
import pytest
from scipy.signal import detrend

from brainfm.modalities import cleaning, eeg
from brainfm.recording import Channels, Recording


class Lazy:
    """A signal that lies elsewhere."""

    def __init__(self, values: np.ndarray) -> None:
        self.values, self.shape = values, values.shape

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, key):
        return self.values[key]


@pytest.fixture(scope="module")
def person() -> Recording:
    """A simulated recording with one flat channel."""
    made = eeg.simulate(np.random.default_rng(0), trials=20)
    made.signal[3] = 0
    return made


def lazy(recording: Recording) -> Recording:
    return Recording(**{**vars(recording), "signal": Lazy(recording.signal)})


STEPS = [
    {"bad_channels": {"share": 0.1}}, {"highpass": {"edge_hz": 0.5}}, {"lowpass": {"edge_hz": 40}},
    {"resample": {"sfreq_hz": 100}}, "interpolate", {"reference": {"to": "average"}}, {"detrend": {"order": 1}},
    {"clamp": {"robust_sd": 6}}, {"scale": {"per": "kind"}},
]  # fmt: skip


def test_lazy_and_in_memory_agree(person: Recording) -> None:
    memory, file = cleaning.clean(person, STEPS), cleaning.clean(lazy(person), STEPS)
    assert isinstance(memory.signal, np.ndarray)
    assert not isinstance(file.signal, np.ndarray)
    got = pickle.loads(pickle.dumps(file.signal))[:, 0 : file.signal.shape[1]]
    np.testing.assert_allclose(got, memory.signal, atol=2e-9)
    np.testing.assert_allclose(file.signal[:, 700:1300], memory.signal[:, 700:1300], atol=2e-9)
    assert file.normaliser is not None
    np.testing.assert_allclose(file.normaliser.scale, memory.normaliser.scale, rtol=1e-4)
    assert file.provenance["steps"] == memory.provenance["steps"]


def test_steps_are_those_of_mne_in_that_order(person: Recording) -> None:
    done = cleaning.clean(person, [STEPS[0], STEPS[1], STEPS[2], "interpolate", {"reference": {"to": "average"}}])
    names = person.channels.name
    raw = mne.io.RawArray(person.signal.copy(), mne.create_info(names, person.sfreq, "eeg"), verbose="error")
    raw.set_montage(
        mne.channels.make_dig_montage(dict(zip(names, person.channels.position, strict=True)), coord_frame="head")
    )
    raw.info["bads"] = [names[3]]
    raw.filter(0.5, 40, verbose="error").interpolate_bads(verbose="error").set_eeg_reference("average", verbose="error")
    np.testing.assert_allclose(done.signal, raw.get_data(), atol=1e-9)
    assert [s["step"] for s in done.provenance["steps"]][1:] == ["bad_channels", "band", "interpolate", "reference"]
    assert set(done.channels.reference) == {"average"}
    assert [(line.name, line.fate) for line in done.channel_log] == [("F3", "bad"), ("F3", "interpolated")]


def test_the_input_is_left_alone(person: Recording) -> None:
    before, steps = person.signal.copy(), len(person.provenance["steps"])
    cleaning.clean(person, STEPS)
    np.testing.assert_array_equal(person.signal, before)
    assert (len(person.provenance["steps"]), person.channels.bad.any(), person.channel_log) == (steps, False, [])


def test_neighbouring_filters_are_one_and_two_of_a_sort_are_two(person: Recording) -> None:
    once = cleaning.clean(person, [{"highpass": {"edge_hz": 1}}, {"lowpass": {"edge_hz": 30}}])
    twice = cleaning.clean(person, [{"highpass": {"edge_hz": 1}}, {"highpass": {"edge_hz": 1}}])
    assert [s["step"] for s in once.provenance["steps"]][1:] == ["band"]
    assert [s["step"] for s in twice.provenance["steps"]][1:] == ["band", "band"]
    assert twice.reach_s == pytest.approx(2 * once.reach_s, rel=0.2)


def test_detrend_is_least_squares_in_each_segment() -> None:
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(3, 900)) + np.arange(900) * 0.01
    made = Recording(
        "toy", "1", "eeg", Channels.make(list("abc"), "eeg"), sfreq=100.0, signal=Lazy(signal),
        segments=np.array([[0, 400], [400, 900]]),
    )  # fmt: skip
    got = cleaning.clean(made, [{"detrend": {"order": 1}}]).signal
    np.testing.assert_allclose(got[:, 0:400], detrend(signal[:, :400]), atol=1e-9)
    np.testing.assert_allclose(got[:, 350:900][:, 50:], detrend(signal[:, 400:]), atol=1e-9)
    mean = cleaning.clean(made, [{"detrend": {"order": 0}}]).signal
    np.testing.assert_allclose(mean[:, 0:400].mean(1), 0, atol=1e-9)


def test_clamp(person: Recording) -> None:
    loud = Recording(**{**vars(person), "signal": person.signal.copy()})
    loud.signal[0, 1000] = 1.0
    done = cleaning.clean(loud, [{"clamp": {"typical": 10}}])
    assert done.signal[0, 1000] == pytest.approx(1e-4)
    robust = cleaning.clean(loud, [{"clamp": {"robust_sd": 20}}])
    assert 1e-5 < robust.signal[0, 1000] < 1e-2
    assert robust.provenance["steps"][-1]["fitted_on"].endswith("this recording alone")
    with pytest.raises(ValueError, match="one of robust_sd"):
        cleaning.clean(loud, ["clamp"])


@pytest.mark.parametrize("per", ["channel", "kind", "recording"])
def test_scale_says_what_it_was_fitted_on_and_leaves_the_signal(person: Recording, per: str) -> None:
    done = cleaning.clean(person, [{"scale": {"per": per}}])
    np.testing.assert_array_equal(done.signal, person.signal)
    assert "windows of 2 s" in done.normaliser.fitted_on
    spread = person.signal.std(axis=1)[[0, 1, 2, 4]]
    if per == "channel":
        np.testing.assert_allclose(done.normaliser.scale[[0, 1, 2, 4]], spread, rtol=0.5)
    else:
        assert len(set(done.normaliser.scale)) == 1
    assert (done.normaliser.scale > 0).all()  # the flat channel too


def test_drop_bad(person: Recording) -> None:
    done = cleaning.clean(person, [STEPS[0], "drop_bad"])
    assert "F3" not in done.channels.name
    assert len(done.signal) == len(done.channels) == len(person.channels) - 1
    assert done.channel_log[-1].fate == "dropped"


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        (["filtre"], "unknown cleaning step 'filtre'"),
        ([{"notch": {"frequency": 50}}], "takes line_hz"),
        ([{"reference": {"too": "average"}}], "no keyword 'too'.*to"),
        ([{"notch": 50}], "needs keywords"),
        ([{"notch": {"line_hz": 50}, "interpolate": {}}], "one name"),
        ([["notch"]], "one name"),
    ],
)
def test_a_wrong_word_is_named(person: Recording, steps: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cleaning.check(steps)
    with pytest.raises(ValueError, match=message):
        cleaning.clean(person, steps)
