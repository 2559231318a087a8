"""What a card says of cleaning becomes steps again, and the same signal."""

from __future__ import annotations

import numpy as np
import pytest

from brainfm.datasets.same_cleaning import cleaning_of, sees_whole, within
from brainfm.modalities import cleaning, electrodes
from brainfm.recording import Recording

SFREQ = 64.0
STEPS = [
    {"step": "bad_channels", "found": 0, "deviation": 5.0, "correlation": None, "flat": 0.01, "share": 0.1},
    {"step": "band", "highpass_hz": 1.0, "lowpass_hz": 20.0, "phase": "zero", "mne": "1"},
    {"step": "resample", "from_hz": 128.0, "to_hz": 64.0, "up": 1, "down": 2},
]
CARD = {"datasets": [{"name": "made_up", "modality": "eeg", "subjects": 3, "steps": STEPS}]}


@pytest.mark.parametrize(
    "steps",
    [
        [{"notch": {"line_hz": 50}}, {"highpass": {"edge_hz": 1}}, {"lowpass": {"edge_hz": 30}},
         {"resample": {"sfreq_hz": 64}}],
        [{"bad_channels": {"correlation": None}}, {"highpass": {"edge_hz": 1}}, {"resample": {"sfreq_hz": 64}},
         {"reference": {"to": "average"}}, {"detrend": {"order": 1}}, {"clamp": {"typical": 3}}],
    ],
    ids=["filters", "all"],
)  # fmt: skip
def test_the_cards_cleaning_is_done_again(steps: list) -> None:
    """Provenance of one recording → steps → another recording is cleaned exactly as by the steps that were declared."""
    times = np.arange(20 * 256) / 256
    first, second = (
        Recording(
            "x",
            "1",
            "eeg",
            electrodes.named(["C3", "Cz", "C4", "Pz"]),
            sfreq=256.0,
            signal=np.random.default_rng(i).normal(0, 1e-5, (4, len(times))).cumsum(axis=1) / 10,
        )
        for i in range(2)
    )
    provenance = cleaning.clean(first, steps).provenance["steps"]
    again, remarks = cleaning_of(
        {"datasets": [{"name": "x", "modality": "eeg", "subjects": 1, "steps": provenance}]}, "eeg", 64.0
    )
    assert remarks == []
    expected, found = cleaning.clean(second, steps), cleaning.clean(second, again)
    assert found.sfreq == expected.sfreq == 64.0
    np.testing.assert_array_equal(found.signal, expected.signal)


def test_causal_leaves_out_what_sees_the_whole_recording_and_nothing_else() -> None:
    clamps = [
        {"step": "clamp", "robust_sd": 20.0, "typical": None},
        {"step": "clamp", "robust_sd": None, "typical": 3.0},
    ]
    card = {"datasets": [{"name": "x", "modality": "eeg", "subjects": 1, "steps": [*STEPS, *clamps]}]}
    steps, remarks = cleaning_of(card, "eeg", SFREQ, causal=True)
    assert [step for step in steps if "clamp" in step] == [{"clamp": {"robust_sd": None, "typical": 3.0}}]
    assert not any("bad_channels" in step for step in steps)
    assert remarks == ["left out, for they see the whole recording: bad_channels, clamp"]
    signal = np.random.default_rng(0).normal(0, 1e-4, (4, 2560))
    longer = [
        Recording("x", "1", "eeg", electrodes.named(["C3", "Cz", "C4", "Pz"]), sfreq=256.0, signal=signal[:, :n])
        for n in (1280, 2560)
    ]
    short, whole = (np.asarray(cleaning.clean(recording, steps[-1:]).signal) for recording in longer)
    np.testing.assert_array_equal(short, whole[:, :1280])
    assert np.abs(short).max() < np.abs(signal).max()


def test_provenance_of_what_sees_the_whole_recording() -> None:
    made = Recording(
        "x", "1", "eeg", electrodes.named(["C3", "Cz"]), sfreq=100 * np.pi,
        signal=np.random.default_rng(0).normal(0, 1e-5, (2, 4000)),
    )  # fmt: skip
    cleaned = cleaning.clean(made, [{"clamp": {"typical": 3}}, {"resample": {"sfreq_hz": 64.0}}, {"scale": {}}])
    assert [s["step"] for s in cleaned.provenance["steps"] if sees_whole(s["step"], s)] == ["resample", "scale"]
    assert not sees_whole("resample", STEPS[2])
    assert not sees_whole("scale", {"factor": 1e-6})
    assert sees_whole("infer_events", {"decay_s": 0.5})


def test_a_card_that_says_nothing_or_several_things() -> None:
    steps, remarks = cleaning_of({"datasets": [{"name": "s", "steps": [{"step": "simulate"}]}]}, "eeg", 64.0)
    assert {"resample": {"sfreq_hz": 64.0}} in steps
    assert {"highpass": {"edge_hz": 0.5}} in steps
    assert not any("lowpass" in step for step in steps if isinstance(step, dict))  # 45 Hz is above half of 64 Hz
    assert "does not say how its data was cleaned" in remarks[0]
    other = {
        "name": "b",
        "modality": "eeg",
        "subjects": 9,
        "steps": [{"step": "band", "highpass_hz": 2.0, "lowpass_hz": None}],
    }
    steps, remarks = cleaning_of({"datasets": [*CARD["datasets"], other]}, "eeg", SFREQ)
    assert steps == [{"highpass": {"edge_hz": 2.0}}, {"resample": {"sfreq_hz": SFREQ}}]
    assert "cleaned in several ways; as b here, others by highpass 1 Hz, lowpass 20 Hz" in remarks[0]
    inside = cleaning_of({"tokenizer": CARD}, "eeg", SFREQ)[0]
    assert inside == cleaning_of(CARD, "eeg", SFREQ)[0]
    assert inside[0] == {"bad_channels": {"deviation": 5.0, "correlation": None, "flat": 0.01, "share": 0.1}}


def test_filters_above_half_the_rate_are_left_out_and_those_without_a_frequency_stay() -> None:
    steps = [
        {"lowpass": {"edge_hz": 32.0}}, {"notch": {"line_hz": 50}}, {"highpass": {"edge_hz": 40}},
        {"lowpass": None}, {"lowpass": {"edge_hz": None}}, {"notch": {"line_hz": None}}, {"lowpass": {"edge_hz": 20}},
    ]  # fmt: skip
    assert within(steps, 32.0) == steps[2:]
