"""MOABB's evaluations run the classifier: within session, across sessions and across subjects, on arrays and on epochs.

MOABB is no dependency. Where it cannot be imported, nothing here runs: `make reference`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from brainfm.models import luna
from brainfm.sklearn import BrainFMClassifier, moabb_pipeline
from brainfm.tokens import Facts
from brainfm.training.checkpoint import Pretrained

pytest.importorskip("moabb", reason="MOABB is no dependency: make reference")

from moabb.analysis.results import get_pipeline_digest
from moabb.datasets.fake import FakeDataset
from moabb.evaluations import CrossSessionEvaluation, CrossSubjectEvaluation, WithinSessionEvaluation
from moabb.evaluations.protocols import CrossSubjectMode
from moabb.paradigms import LeftRightImagery
from sklearn.pipeline import make_pipeline

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.slow,
    pytest.mark.reference,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

SFREQ = 64.0
EVALUATIONS = [WithinSessionEvaluation, CrossSessionEvaluation, CrossSubjectEvaluation]


class WithRhythm(FakeDataset):
    """MOABB's noise with a rhythm of 10 Hz in half of the trials."""

    def _generate_raw(self, n_events: int, duration: float) -> Any:
        raw = super()._generate_raw(n_events, duration)
        codes = raw.get_data()[-1]
        seconds = np.arange(3 * int(self.sfreq)) / self.sfreq
        for start in np.flatnonzero(codes == self.event_id["left_hand"]):
            raw._data[:3, start : start + len(seconds)] += 4e-5 * np.sin(2 * np.pi * 10 * seconds)
        return raw


def dataset(kind: type[FakeDataset]) -> FakeDataset:
    return kind(
        event_list=("left_hand", "right_hand"), n_sessions=2, n_runs=1, n_subjects=3, n_events=30, duration=120, seed=1,
        code=kind.__name__,
    )  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> Pretrained:
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=3.0, channels=3)
    torch.manual_seed(0)
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    return Pretrained(luna.build(facts, **luna.SIZES["test"]).eval(), config, facts)


@pytest.fixture(scope="module")
def paradigm() -> LeftRightImagery:
    return LeftRightImagery(resample=SFREQ)


def scores(evaluation: type, paradigm: Any, data: FakeDataset, pipeline: Any, folder: Path, **more: Any) -> Any:
    made = evaluation(paradigm, [data], overwrite=True, hdf5_path=str(folder), random_state=0, **more)
    return made.process({"brainfm": pipeline})


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_a_rhythm_is_found(evaluation: type, encoder: Pretrained, paradigm: Any, tmp_path: Path) -> None:
    data = dataset(WithRhythm)
    pipeline = moabb_pipeline(BrainFMClassifier(encoder), paradigm, data)
    found = scores(evaluation, paradigm, data, pipeline, tmp_path)
    print(evaluation.__name__, found.score.round(3).tolist())
    assert set(found.subject) == {"1", "2", "3"}
    assert found.score.mean() > 0.9


@pytest.mark.parametrize("evaluation", EVALUATIONS)
def test_noise_gives_chance(evaluation: type, encoder: Pretrained, paradigm: Any, tmp_path: Path) -> None:
    data = dataset(FakeDataset)
    pipeline = moabb_pipeline(BrainFMClassifier(encoder), paradigm, data)
    found = scores(evaluation, paradigm, data, pipeline, tmp_path)
    print(evaluation.__name__, found.score.round(3).tolist())
    assert 0.35 < found.score.mean() < 0.65


def test_epochs_need_no_telling(encoder: Pretrained, paradigm: Any, tmp_path: Path) -> None:
    data = dataset(WithRhythm)
    told = scores(CrossSubjectEvaluation, paradigm, data,
                  moabb_pipeline(BrainFMClassifier(encoder), paradigm, data), tmp_path / "a")  # fmt: skip
    own = scores(CrossSubjectEvaluation, paradigm, data, make_pipeline(BrainFMClassifier(encoder)), tmp_path / "b",
                 return_epochs=True)  # fmt: skip
    np.testing.assert_allclose(own.score, told.score, atol=0.02)


def test_the_pipeline_reads_the_dataset_in_volts(encoder: Pretrained, paradigm: Any) -> None:
    data = dataset(FakeDataset)
    told = moabb_pipeline(BrainFMClassifier(encoder, adapt="probe"), paradigm, data).steps[0][1]
    assert told.channels.name == ["C3", "Cz", "C4"]
    assert (told.sfreq, told.scale) == (SFREQ, 1e-6)
    assert np.isfinite(told.channels.position).all()


def test_results_of_two_models_are_kept_apart(encoder: Pretrained, paradigm: Any) -> None:
    """MOABB finds results by a digest of the pipeline's text; the same network with other weights is another one."""
    data = dataset(FakeDataset)
    models = (encoder, encoder.copy(), encoder.untrained(1))
    first, same, other = (
        get_pipeline_digest(None, moabb_pipeline(BrainFMClassifier(m), paradigm, data)) for m in models
    )
    assert first == same != other


def test_it_asks_for_people_and_for_trials_without_labels(encoder: Pretrained, paradigm: Any, tmp_path: Path) -> None:
    """A word that needs several people runs, so their names arrived; and calibration changes what is predicted."""
    data = dataset(WithRhythm)
    erased = moabb_pipeline(BrainFMClassifier(encoder, adapt="erase_subject"), paradigm, data)
    mode = CrossSubjectMode.TRAIN_AND_TARGET_UNLABELED_20P
    assert len(scores(CrossSubjectEvaluation, paradigm, data, erased, tmp_path / "a", cs_mode=mode)) == 6
    aligned = moabb_pipeline(BrainFMClassifier(encoder, adapt="euclidean"), paradigm, data)
    found = scores(CrossSubjectEvaluation, paradigm, data, aligned, tmp_path / "b", cs_mode=mode)
    print("euclidean, 20 % without labels", found.score.round(3).tolist())
    assert found.score.mean() > 0.9
    asked = aligned.steps[0][1].get_metadata_routing().fit.requests
    assert asked == {"groups": "subjects", "calibration": "X_target_unlabeled"}
    assert erased.steps[0][1].get_metadata_routing().fit.requests == {"groups": "subjects", "calibration": None}
