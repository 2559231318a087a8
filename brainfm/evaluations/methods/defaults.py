"""What a comparison runs where its configuration names nothing: every method that fits the recordings.

| recordings | without a network | from scratch |
|---|---|---|
| EEG, MEG, iEEG | `RHYTHMS` | all of `scratch.READOUTS` that their windows are long enough for |
| others, such as fMRI and calcium | `SLOW` | none: those networks are made for voltages and fields |

A configuration that names methods of its own says which it leaves out and why, for example the time that they take.
"""

from __future__ import annotations

from brainfm.evaluations.methods import scratch
from brainfm.evaluations.methods.trials import Trials

ELECTRIC = ("eeg", "meg", "ieeg")
RHYTHMS = ("majority", "log_band_power", "csp_lda", "tangent_space", "tangent_space recentred")
SLOW = ("majority", "pca", "functional_connectivity", "tangent_space")


def baselines(trials: Trials, protocol: str) -> list[str]:
    """Names for `classical.classical`; those that look at a new person's windows are not among them in `zero-shot`."""
    found = RHYTHMS if _electric(trials) else SLOW
    return [name for name in found if not (protocol == "zero-shot" and "recentred" in name)]


def networks(trials: Trials) -> tuple[list[str], str]:
    """Names for `scratch.methods`, and a sentence on those that need longer windows."""
    if not _electric(trials):
        return [], ""
    found = [name for name in scratch.READOUTS if scratch.fits(trials, name)]
    short = [name for name in scratch.READOUTS if name not in found]
    samples = trials.signals().values.shape[-1]
    said = f" Left out, for windows of {samples} samples are too short: {', '.join(short)}."
    return found, said if short else ""


def _electric(trials: Trials) -> bool:
    return all(stored.modality in ELECTRIC for stored in trials.windows.used)
