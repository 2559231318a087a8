"""The notebook surface: one decoder on arrays, epochs, raw recordings and shards, and errors that say what to do."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.signal import resample_poly

import brainfm
from brainfm import api, finetune, metrics
from brainfm.evaluations.methods import adaptation
from brainfm.modalities import electrodes
from brainfm.models import luna
from brainfm.recording import Events, Recording
from brainfm.shards.write import write_shard
from brainfm.tokens import Facts
from brainfm.training.checkpoint import CheckpointError, Pretrained

SFREQ, SAMPLES = 64.0, 64
NAMES = ["C3", "Cz", "C4", "Pz"]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    facts = Facts(modality=("eeg",), kinds=("eeg",), sfreq=SFREQ, window_s=1.0, channels=4)
    torch.manual_seed(0)
    model = luna.build(facts, **luna.SIZES["test"]).eval()
    config = {"kind": "models", "name": "luna", "keywords": luna.SIZES["test"]}
    return Pretrained(model, config, facts).save(tmp_path_factory.mktemp("models") / "luna_tiny")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> Pretrained:
    return brainfm.load(folder)


def trials(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Trials `(trial, channel, time)` in volts; "left" has a strong rhythm, "right" has none."""
    rng = np.random.default_rng(seed)
    labels = np.array(["left", "right"] * (n // 2))
    signal = rng.normal(0, 5e-6, (n, 4, SAMPLES))
    rhythm = 4e-5 * np.sin(2 * np.pi * 8 * np.arange(SAMPLES) / SFREQ + rng.uniform(0, 1, (n, 1)))
    signal += (labels == "left")[:, None, None] * rhythm[:, None]
    return signal, labels


@pytest.fixture(scope="module")
def fitted(encoder: Pretrained) -> brainfm.Decoder:
    return brainfm.Decoder(encoder).fit(*trials(), channels=NAMES, sfreq=SFREQ)


def test_array(fitted: brainfm.Decoder) -> None:
    signal, labels = trials(seed=1)
    chances = fitted.predict_proba(signal, channels=NAMES, sfreq=SFREQ)
    assert chances.shape == (40, 2)
    np.testing.assert_allclose(chances.sum(1), 1, rtol=1e-6)
    predicted = fitted.predict(signal, channels=NAMES, sfreq=SFREQ)
    assert predicted.tolist() == fitted.classes_[chances.argmax(1)].tolist()
    score = fitted.score(signal, labels, channels=NAMES, sfreq=SFREQ)
    assert score == pytest.approx(metrics.balanced_accuracy(labels, predicted))
    assert score > 0.8
    assert (fitted.classes_.tolist(), fitted.channels_, fitted.samples_) == (["left", "right"], NAMES, SAMPLES)


def test_readout_is_the_logistic_regression_that_was_fitted(encoder: Pretrained) -> None:
    from brainfm.evaluations.protocol import fit_linear

    signal, labels = trials()
    labels = np.where(np.arange(40) % 4 == 3, "rest", labels)
    decoder = brainfm.Decoder(encoder).fit(signal, labels, channels=NAMES, sfreq=SFREQ)
    features = encoder.pooled(decoder._trials(signal, NAMES, SFREQ))
    expected = fit_linear(features, labels, np.full(40, "one"), 0).predict_proba(features)
    np.testing.assert_allclose(decoder.predict_proba(signal, channels=NAMES, sfreq=SFREQ), expected, atol=1e-5)


def test_labels_shuffled_give_chance(encoder: Pretrained) -> None:
    signal, labels = trials(80)
    shuffled = np.random.default_rng(0).permutation(labels)
    decoder = brainfm.Decoder(encoder).fit(signal, shuffled, channels=NAMES, sfreq=SFREQ)
    other, truth = trials(80, seed=1)
    truth = np.random.default_rng(1).permutation(truth)
    assert 0.3 < decoder.score(other, truth, channels=NAMES, sfreq=SFREQ) < 0.7


def test_epochs_are_the_same_as_their_array(fitted: brainfm.Decoder, encoder: Pretrained) -> None:
    import mne

    signal, labels = trials()
    events = np.stack([np.arange(40) * SAMPLES, np.zeros(40, int), np.where(labels == "left", 7, 9)], axis=1)
    info = mne.create_info([*NAMES, "EOG 1"], SFREQ, ["eeg"] * 4 + ["eog"])
    data = np.concatenate((signal, np.ones((40, 1, SAMPLES))), axis=1)
    epochs = mne.EpochsArray(data, info, events, event_id={"left": 7, "right": 9}, verbose="error")
    own = brainfm.Decoder(encoder).fit(epochs)
    assert own.channels_ == NAMES
    expected = fitted.predict_proba(signal, channels=NAMES, sfreq=SFREQ)
    np.testing.assert_allclose(own.predict_proba(epochs), expected, atol=1e-5)
    assert own.score(epochs) == fitted.score(signal, labels, channels=NAMES, sfreq=SFREQ)


def test_raw_is_cut_into_windows(fitted: brainfm.Decoder) -> None:
    import mne

    signal, _ = trials(seed=2)
    joined = np.concatenate(list(signal), axis=1)
    raw = mne.io.RawArray(np.pad(joined, ((0, 0), (0, 10))), mne.create_info(NAMES, SFREQ, "eeg"), verbose="error")
    expected = fitted.predict(signal, channels=NAMES, sfreq=SFREQ)
    assert fitted.predict(raw).tolist() == expected.tolist()
    assert fitted.predict(joined, channels=NAMES, sfreq=SFREQ).tolist() == expected.tolist()
    with pytest.raises(ValueError, match="32 samples at 64 Hz; one window needs 64"):
        fitted.predict(joined[:, :32], channels=NAMES, sfreq=SFREQ)
    with pytest.raises(ValueError, match=r"no trials to fit; cut it with mne\.Epochs"):
        fitted.fit(joined, ["left"], channels=NAMES, sfreq=SFREQ)


def shard(
    folder: Path, subject: str = "1", names: list[str] = NAMES, sfreq: float = SFREQ, n: int = 40, bad: str = ""
) -> Path:
    signal, labels = trials(n, seed=int(subject))
    rows = [NAMES.index(x) for x in names]
    made = Recording(
        "made_up", subject, "eeg", replace(electrodes.named(names), bad=[x == bad for x in names]), sfreq=sfreq,
        signal=np.concatenate(list(signal[:, rows]), axis=1),
        events=Events(np.arange(n) * SAMPLES / sfreq, np.zeros(n), labels.tolist()),
    )  # fmt: skip
    return write_shard(folder / f"sub-{subject}.h5", [made], {})


def test_windows_of_shards(encoder: Pretrained, fitted: brainfm.Decoder, tmp_path: Path) -> None:
    shard(tmp_path)
    windows = brainfm.open_shards(tmp_path).subject("1").trials(0.0, 1.0)
    decoder = brainfm.Decoder(encoder).fit(windows.take(range(30)))
    assert decoder.channels_ == NAMES
    assert decoder.score(windows.take(range(30, 40))) > 0.8
    signal, _ = trials(seed=1)
    np.testing.assert_allclose(
        decoder.predict_proba(windows), decoder.predict_proba(signal, channels=NAMES, sfreq=SFREQ), atol=1e-5
    )


def test_fitted_on_two_montages_it_reads_any(encoder: Pretrained, tmp_path: Path) -> None:
    shard(tmp_path, "1")
    shard(tmp_path, "2", ["C4", "C3"])
    decoder = brainfm.Decoder(encoder).fit(brainfm.open_shards(tmp_path).trials(0.0, 1.0))
    assert decoder.channels_ == []
    signal, _ = trials(seed=1)
    assert decoder.predict(signal, channels=NAMES, sfreq=SFREQ).shape == (40,)


def test_windows_of_another_rate_are_refused(encoder: Pretrained, tmp_path: Path) -> None:
    shard(tmp_path, sfreq=32.0)
    with pytest.raises(ValueError, match=r"windows of \[32\.0\] Hz; the encoder reads 64 Hz"):
        brainfm.Decoder(encoder).fit(brainfm.open_shards(tmp_path).trials(0.0, 1.0))


def test_save_and_load(fitted: brainfm.Decoder, tmp_path: Path) -> None:
    signal, _ = trials(seed=3)
    for _ in range(2):
        assert fitted.save(tmp_path / "deep/decoder") == tmp_path / "deep/decoder"
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["decoder"]
    loaded = brainfm.Decoder.load(tmp_path / "deep/decoder")
    expected = fitted.predict_proba(signal, channels=NAMES, sfreq=SFREQ)
    np.testing.assert_array_equal(loaded.predict_proba(signal, channels=NAMES, sfreq=SFREQ), expected)
    assert (loaded.adapt, loaded.seed, loaded.channels_) == (fitted.adapt, fitted.seed, fitted.channels_)


@pytest.mark.parametrize("name", ["decoder.json", "readout.safetensors", "encoder/model.safetensors"])
def test_a_decoder_that_is_not_whole_is_refused(fitted: brainfm.Decoder, tmp_path: Path, name: str) -> None:
    path = fitted.save(tmp_path / "decoder") / name
    path.write_bytes(path.read_bytes()[:9])
    with pytest.raises(CheckpointError, match=rf"{path.name} is damaged"):
        brainfm.Decoder.load(tmp_path / "decoder")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=rf"{path.name} is missing"):
        brainfm.Decoder.load(tmp_path / "decoder")


def test_missing_channels_are_named_with_those_expected(fitted: brainfm.Decoder) -> None:
    signal, _ = trials()
    with pytest.raises(ValueError, match="2 channels are missing: Cz, Pz; the decoder was fitted on C3, Cz, C4, Pz"):
        fitted.predict(signal, channels=["C3", "FCz", "C4", "Oz"], sfreq=SFREQ)


def test_order_and_number_of_further_channels_do_not_matter(fitted: brainfm.Decoder) -> None:
    signal, _ = trials()
    rows = [3, 0, 2, 1]
    more = np.concatenate((signal[:, rows], np.ones((40, 1, SAMPLES))), axis=1)
    names = [*(NAMES[r] for r in rows), "Oz"]
    np.testing.assert_array_equal(
        fitted.predict_proba(more, channels=names, sfreq=SFREQ),
        fitted.predict_proba(signal, channels=NAMES, sfreq=SFREQ),
    )


@pytest.mark.parametrize("ratio", [(2, 1), (125, 32), (5, 8)])
def test_another_sampling_rate_is_resampled(fitted: brainfm.Decoder, ratio: tuple[int, int]) -> None:
    signal, labels = trials(seed=4)
    other = resample_poly(signal, *ratio, axis=-1)
    before = fitted.score(signal, labels, channels=NAMES, sfreq=SFREQ)
    after = fitted.score(other, labels, channels=NAMES, sfreq=SFREQ * ratio[0] / ratio[1])
    assert after >= before - 0.1


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"y": ["left"] * 40}, r"all trials have the label \['left'\]; a decoder needs two classes"),
        ({"y": ["left", "right"]}, "got 2 labels for 40 trials"),
        ({"y": None}, "an array has no labels; give y"),
        ({"sfreq": None}, r"needs `channels` \(names\) and `sfreq`"),
        ({"channels": None}, r"needs `channels` \(names\) and `sfreq`"),
        ({"channels": ["C3", "C4"]}, r"shape \(40, 4, 64\) for 2 channels"),
        ({"X": "file.fif"}, "got a str; expected windows of shards"),
        ({"X": np.full((40, 4, SAMPLES), np.nan)}, "not finite in 4 channels"),
    ],
)
def test_what_cannot_be_fitted(encoder: Pretrained, keywords: dict, message: str) -> None:
    signal, labels = trials()
    given = {"X": signal, "y": labels, "channels": NAMES, "sfreq": SFREQ, **keywords}
    with pytest.raises(ValueError, match=message):
        brainfm.Decoder(encoder).fit(given.pop("X"), **given)


def test_adapt_and_fit_first(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"adapt='finetun' is not known; did you mean 'finetune'\?"):
        brainfm.Decoder(folder, adapt="finetun")
    with pytest.raises(ValueError, match="not fitted; call fit first"):
        brainfm.Decoder(folder).predict(trials()[0], channels=NAMES, sfreq=SFREQ)
    with pytest.raises(FileNotFoundError, match=r"luna_tinny is not a model.*did you mean 'luna_tiny'\?"):
        brainfm.load(folder.with_name("luna_tinny"))


def test_public_names() -> None:
    assert brainfm.list_models() == sorted(brainfm.list_models())
    assert {"luna", "brainomni", "neuroformer", "roi_mae"} <= set(brainfm.list_models())
    assert {"eegmat", "sim_eeg"} <= set(brainfm.list_datasets())
    with pytest.raises(AttributeError, match="'lod'"):
        _ = brainfm.lod


def test_finetune_subject_scores_the_last_trials(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shard(tmp_path / "shards", n=60)
    result = finetune.run(folder, tmp_path / "shards", "1", tmp_path / "out", 0.0, 1.0, 0.3, "probe", 0)
    assert (result["n_trials"], result["chance"]) == (18, 0.5)
    assert result["ci"][0] <= result["score"] <= result["ci"][1]
    loaded = brainfm.Decoder.load(tmp_path / "out")
    later = brainfm.open_shards(tmp_path / "shards").trials(0.0, 1.0).take(range(42, 60))
    assert loaded.score(later) == result["score"]
    assert "pretraining" not in capsys.readouterr().out


def test_finetune_subject_says_whom_the_model_met(
    encoder: Pretrained, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    shard(tmp_path / "shards", n=60)
    rest = ("1", tmp_path / "out", 0.0, 1.0, 0.3, "probe", 0)
    for side in ("train", "finetuned"):
        known = Pretrained(encoder.model, encoder.config, encoder.facts, {"subjects": {side: ["made_up/1"]}})
        known.save(tmp_path / side)
    result = finetune.run(tmp_path / "train", tmp_path / "shards", *rest)
    assert "made_up/1 was in this model's pretraining" in capsys.readouterr().out
    assert "made_up/1 was in this model's pretraining" in result["note"]
    with pytest.raises(ValueError, match="made_up/1 has taught this model labelled trials already"):
        finetune.run(tmp_path / "finetuned", tmp_path / "shards", *rest)


def test_finetune(encoder: Pretrained, tmp_path: Path) -> None:
    signal, labels = trials(60)
    given = {"channels": NAMES, "sfreq": SFREQ}
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    trained, card = [p.requires_grad for p in encoder.model.parameters()], dict(encoder.card)
    first = brainfm.Decoder(encoder, "finetune", steps=1, learning_rate=3e-3).fit(signal, labels, **given)
    tuned = brainfm.Decoder(encoder, "finetune", steps=40, learning_rate=3e-3).fit(signal, labels, **given)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    assert [p.requires_grad for p in encoder.model.parameters()] == trained
    changed = [k for k, v in tuned.encoder_.model.state_dict().items() if not torch.equal(v, before[k])]
    assert len(changed) > len(before) / 2
    accuracy = tuned.score(signal, labels, **given)
    assert accuracy > max(0.9, first.score(signal, labels, **given))
    said = tuned.encoder_.card["finetuned"]
    assert (said["trials"], said["spared"], said["adapt"]) == (60, 12, "finetune")
    assert tuned.encoder_.card["subjects"] == {"finetuned": ["one"]}
    assert encoder.card == card
    assert tuned.notes_ == ["12 of 60 trials, the last of each class, say when to stop."]
    assert not tuned.encoder_.model.training
    loaded = brainfm.Decoder.load(tuned.save(tmp_path / "decoder"))
    np.testing.assert_array_equal(loaded.predict_proba(signal, **given), tuned.predict_proba(signal, **given))


GIVEN = {"channels": NAMES, "sfreq": SFREQ}


def two_people(n: int = 40) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Trials of two people, the second at twice the amplitude."""
    (one, labels), (two, more) = trials(n), trials(n, seed=5)
    return np.concatenate([one, 2 * two]), np.concatenate([labels, more]), ["a"] * n + ["b"] * n


@pytest.mark.parametrize("adapt", api.ADAPT)
def test_every_word_fits_predicts_saves_and_loads(encoder: Pretrained, tmp_path: Path, adapt: str) -> None:
    signal, labels, people = two_people()
    before = {k: v.clone() for k, v in encoder.model.state_dict().items()}
    decoder = brainfm.Decoder(encoder, adapt, steps=30).fit(signal, labels, **GIVEN, people=people)
    assert decoder.score(signal, labels, **GIVEN, people=people) > 0.8
    other, truth = trials(seed=7)
    expected = decoder.predict_proba(other, **GIVEN)
    np.testing.assert_allclose(expected.sum(1), 1, rtol=1e-6)
    assert decoder.score(other, truth, **GIVEN) > 0.7
    loaded = brainfm.Decoder.load(decoder.save(tmp_path / "decoder"))
    np.testing.assert_allclose(loaded.predict_proba(other, **GIVEN), expected, atol=1e-6)
    assert (loaded.adapt, loaded.notes_) == (adapt, decoder.notes_)
    assert set(loaded.encoder.model.state_dict()) == set(before)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    spoilt = tmp_path / "decoder/readout.safetensors"
    from safetensors.torch import load_file, save_file

    weights = load_file(spoilt)
    weights.pop(sorted(k for k in weights if k.startswith("readout."))[0])
    save_file(weights, spoilt)
    with pytest.raises(CheckpointError, match=r"readout\.safetensors"):
        brainfm.Decoder.load(tmp_path / "decoder")


@pytest.mark.parametrize("adapt", api.ADAPT)
def test_a_new_person_teaches_a_few_trials(encoder: Pretrained, adapt: str) -> None:
    signal, labels, people = two_people(20)
    decoder = brainfm.Decoder(encoder, adapt, steps=5).fit(signal, labels, **GIVEN, people=people)
    other, truth = trials(seed=7)
    before = decoder.predict_proba(other, **GIVEN)
    mine = decoder.adapted(other[:8], truth[:8], **GIVEN)
    assert not np.allclose(mine.predict_proba(other, **GIVEN), before)
    np.testing.assert_array_equal(decoder.predict_proba(other, **GIVEN), before)
    with pytest.raises(ValueError, match=r"conditions \['up'\] are none of \['left', 'right'\]; fit again"):
        decoder.adapted(other[:8], ["up"] * 8, **GIVEN)


@pytest.mark.parametrize("adapt", ["euclidean", "riemannian", "statistics"])
def test_rest_of_a_new_person_calibrates(encoder: Pretrained, tmp_path: Path, adapt: str) -> None:
    signal, labels, people = two_people()
    decoder = brainfm.Decoder(encoder, adapt).fit(signal, labels, **GIVEN, people=people)
    rest, _ = trials(20, seed=8)
    other, _ = trials(seed=7)
    alone = decoder.predict_proba(other, **GIVEN)
    assert decoder.calibrate(rest, **GIVEN) is decoder
    calibrated = decoder.predict_proba(other, **GIVEN)
    assert not np.allclose(calibrated, alone)
    for rows in (slice(0, 1), slice(5, 20)):  # no longer depends on what else is predicted
        np.testing.assert_allclose(decoder.predict_proba(other[rows], **GIVEN), calibrated[rows], atol=1e-5)
    loaded = brainfm.Decoder.load(decoder.save(tmp_path / "decoder"))
    np.testing.assert_allclose(loaded.predict_proba(other, **GIVEN), calibrated, atol=1e-6)
    with pytest.raises(ValueError, match="adapt='probe' uses no trials without labels; those that do: euclidean"):
        brainfm.Decoder(encoder).calibrate(rest, **GIVEN)


def test_an_array_is_of_the_one_person_it_was_fitted_on(encoder: Pretrained, tmp_path: Path) -> None:
    shard(tmp_path)
    windows = brainfm.open_shards(tmp_path).trials(0.0, 1.0)
    decoder = brainfm.Decoder(encoder, "euclidean").fit(windows.take(range(30)))
    signal, _ = trials(seed=1)
    expected = decoder.predict_proba(windows.take(range(30, 40)))
    np.testing.assert_allclose(decoder.predict_proba(signal[30:], **GIVEN), expected, atol=1e-4)


def test_whom_a_network_was_tuned_on_is_recorded(encoder: Pretrained, tmp_path: Path) -> None:
    """So that no evaluation scores them as strangers later."""
    from brainfm.evaluations import protocol

    shard(tmp_path)
    windows = brainfm.open_shards(tmp_path).trials(0.0, 1.0)
    decoder = brainfm.Decoder(encoder, "lora", steps=2).fit(windows)
    kept = brainfm.load(decoder.save(tmp_path / "decoder") / "encoder")
    assert kept.card["windows"]["finetuned"] == windows.intervals()
    with pytest.raises(ValueError, match=r"made_up/1.* in pretraining; split by subject"):
        protocol.strangers(windows.take([]), windows, kept.card)


def test_shared_channels_of_two_montages(encoder: Pretrained, tmp_path: Path) -> None:
    shard(tmp_path, "1")
    shard(tmp_path, "2", ["C4", "Pz", "C3"])
    windows = brainfm.open_shards(tmp_path).trials(0.0, 1.0)
    decoder = brainfm.Decoder(encoder, "riemannian").fit(windows)
    assert decoder.channels_ == ["C3", "C4", "Pz"]
    assert decoder.score(windows) > 0.7
    with pytest.raises(ValueError, match="1 channels are missing: Pz; the decoder was fitted on C3, C4, Pz"):
        decoder.predict(trials()[0][:, :3], channels=["C3", "Cz", "C4"], sfreq=SFREQ)
    shard(tmp_path / "other", "3", ["Cz", "C3", "Pz"])
    with pytest.raises(ValueError, match=r"made_up/3.*: 1 channels are missing: C4; the decoder was fitted"):
        decoder.predict(brainfm.open_shards(tmp_path / "other").trials(0.0, 1.0))


@pytest.mark.parametrize("adapt", adaptation.SHARED_MONTAGE)
def test_a_bad_channel_of_the_one_montage_is_not_read(encoder: Pretrained, tmp_path: Path, adapt: str) -> None:
    shard(tmp_path, bad="Cz")
    windows = brainfm.open_shards(tmp_path).trials(0.0, 1.0)
    decoder = brainfm.Decoder(encoder, adapt, steps=2).fit(windows)
    assert decoder.channels_ == ["C3", "C4", "Pz"]
    signal, _ = trials(seed=1)
    np.testing.assert_allclose(
        decoder.predict_proba(windows), decoder.predict_proba(signal[:, [0, 2, 3]], channels=["C3", "C4", "Pz"],
                                                              sfreq=SFREQ), atol=1e-4
    )  # fmt: skip


@pytest.mark.parametrize("adapt", ["finetune", "lora"])
def test_whom_a_network_learnt_later_is_recorded_too(encoder: Pretrained, tmp_path: Path, adapt: str) -> None:
    shard(tmp_path, "1")
    shard(tmp_path, "2")
    corpus = brainfm.open_shards(tmp_path)
    one, two = (corpus.subject(name).trials(0.0, 1.0) for name in "12")
    decoder = brainfm.Decoder(encoder, adapt, steps=2).fit(one)
    card = decoder.adapted(two.take(range(6))).encoder_.card
    assert card["subjects"]["finetuned"] == ["made_up/1", "made_up/2"]
    assert card["windows"]["finetuned"] == {**one.intervals(), **two.take(range(6)).intervals()}
    assert decoder.encoder_.card["subjects"]["finetuned"] == ["made_up/1"]


@pytest.mark.parametrize("adapt", api.ADAPT)
def test_torch_s_generator_decides_nothing_and_stays(encoder: Pretrained, adapt: str) -> None:
    signal, labels, people = two_people(20)
    other, truth = trials(12, seed=7)
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.random.get_rng_state()
        decoder = brainfm.Decoder(encoder, adapt, steps=3).fit(signal, labels, **GIVEN, people=people)
        found.append(decoder.adapted(other[:8], truth[:8], **GIVEN).predict_proba(other, **GIVEN))
        assert torch.equal(torch.random.get_rng_state(), state)
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["left", None] * 20, r"20 of 40 labels are missing \(trials 1, 3, 5, 7, 9\); leave these trials out"),
        (np.array([0.0, np.nan] * 20), "20 of 40 labels are missing"),
        (["left", float("nan")] * 20, "20 of 40 labels are missing"),
        (["left", ""] * 20, "20 of 40 labels are missing"),
        (["left", 1] * 20, r"labels of two types \(numbers and words\), the first 'left'; give words or numbers"),
        ([True, 1] * 20, "two types .booleans and numbers"),
        ([0.5, 1.5] * 20, r"labels such as 0\.5 are measures and not classes"),
        (["left"], "got 1 labels for 40 trials"),
    ],
)
def test_labels_that_are_none(encoder: Pretrained, labels: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        brainfm.Decoder(encoder).fit(trials()[0], labels, **GIVEN)


@pytest.mark.parametrize("labels", [[3, 1] * 20, [True, False] * 20, [3.0, 1.0] * 20])
def test_numbers_stay_numbers(encoder: Pretrained, tmp_path: Path, labels: list) -> None:
    signal, _ = trials()
    decoder = brainfm.Decoder(encoder).fit(signal, labels, **GIVEN)
    assert decoder.classes_.tolist() == sorted(set(labels))
    assert decoder.classes_.dtype.kind in "ib"
    assert decoder.score(signal, labels, **GIVEN) > 0.8
    loaded = brainfm.Decoder.load(decoder.save(tmp_path / "decoder"))
    assert loaded.predict(signal, **GIVEN).dtype == decoder.classes_.dtype
    with pytest.raises(ValueError, match="labels such as 'left' for a decoder of"):
        decoder.score(signal, ["left", "right"] * 20, **GIVEN)


def test_a_class_that_was_not_fitted_counts_as_missed(fitted: brainfm.Decoder) -> None:
    signal, labels = trials(seed=1)
    other = np.where(np.arange(40) < 8, "up", labels)
    assert fitted.score(signal, other, **GIVEN) == pytest.approx(
        2 / 3 * fitted.score(signal[8:], labels[8:], **GIVEN), abs=1e-9
    )


@pytest.mark.parametrize("adapt", ["probe", "finetune"])
def test_few_trials(encoder: Pretrained, adapt: str) -> None:
    """One of each class is enough to fit; then nothing is spared, and the decoder says so. One alone is not."""
    signal, labels = trials(10)
    decoder = brainfm.Decoder(encoder, adapt, steps=2)
    with pytest.raises(
        ValueError, match=r"label \['left'\]; a decoder needs two classes or more, and there is one trial"
    ):
        decoder.fit(signal[:1], labels[:1], **GIVEN)
    assert decoder.fit(signal[:2], labels[:2], **GIVEN).predict(signal, **GIVEN).shape == (10,)
    if adapt == "finetune":
        assert "2 trials are too few to spare some of each class: all train, and all steps" in decoder.notes_[0]


def test_four_people_spare_one_of_them(encoder: Pretrained) -> None:
    signal, labels = trials(40)
    people = np.repeat(["a", "b", "c", "d"], 10)
    decoder = brainfm.Decoder(encoder, "attentive", steps=2).fit(signal, labels, **GIVEN, people=people)
    assert "10 of 40 trials, those of 1 people" in decoder.notes_[0]
    with pytest.raises(ValueError, match="got 3 names of people for 40 trials; expected one each"):
        decoder.predict(signal, **GIVEN, people=["a"] * 3)


def test_one_person_cannot_be_told_from_others(encoder: Pretrained) -> None:
    with pytest.raises(ValueError, match="needs two people or more to fit on, got 1"):
        brainfm.Decoder(encoder, "erase_subject").fit(*trials(), **GIVEN)


def test_it_says_that_it_resampled(encoder: Pretrained) -> None:
    signal, labels = trials()
    decoder = brainfm.Decoder(encoder).fit(signal, labels, channels=NAMES, sfreq=SFREQ / 2)
    assert decoder.notes_ == [
        "Trials of 32 Hz were resampled to the 64 Hz that the encoder reads; they hold nothing above 16 Hz."
    ]


def test_channels_without_a_place_are_read_all_the_same(encoder: Pretrained) -> None:
    """LUNA describes a place that it does not know; networks with sensors warn, see tests/models/test_bad_input.py."""
    signal, labels = trials()
    decoder = brainfm.Decoder(encoder).fit(signal, labels, channels=["one", "two", "three", "four"], sfreq=SFREQ)
    assert np.isfinite(decoder.predict_proba(signal, channels=["one", "two", "three", "four"], sfreq=SFREQ)).all()


@pytest.mark.parametrize("adapt", ["probe", "attentive", "lora", "subject_layer", "statistics"])
def test_a_fitted_decoder_can_be_pickled(encoder: Pretrained, adapt: str) -> None:
    signal, labels = trials(20)
    decoder = brainfm.Decoder(encoder, adapt, steps=2).fit(signal, labels, **GIVEN)
    again = pickle.loads(pickle.dumps(decoder))
    np.testing.assert_allclose(again.predict_proba(signal, **GIVEN), decoder.predict_proba(signal, **GIVEN))


def test_a_second_fit_starts_from_the_encoder_again(encoder: Pretrained) -> None:
    signal, labels = trials(20)
    decoder = brainfm.Decoder(encoder, "finetune", steps=3).fit(signal, labels, **GIVEN)
    first = decoder.predict_proba(signal, **GIVEN)
    np.testing.assert_array_equal(decoder.fit(signal, labels, **GIVEN).predict_proba(signal, **GIVEN), first)


@pytest.mark.parametrize("sfreq", [0, -5.0, float("nan"), "64"])
def test_a_rate_that_is_none(encoder: Pretrained, sfreq: object) -> None:
    with pytest.raises(ValueError, match="expected samples per second, above 0"):
        brainfm.Decoder(encoder).fit(*trials(), channels=NAMES, sfreq=sfreq)


def test_nothing_to_fit_by(encoder: Pretrained, fitted: brainfm.Decoder) -> None:
    with pytest.raises(ValueError, match=r"steps=0, .* expected one step or more"):
        brainfm.Decoder(encoder, "finetune", steps=0)
    with pytest.raises(ValueError, match="learning_rate=0; expected"):
        brainfm.Decoder(encoder, "finetune", learning_rate=0)
    for shape in ((0, 4, SAMPLES), (40, 4, 0)):
        with pytest.raises(ValueError, match="expected a trial and a sample at least"):
            brainfm.Decoder(encoder).fit(np.zeros(shape), ["x", "y"] * 20, **GIVEN)
    with pytest.raises(ValueError, match="expected a trial and a sample at least"):
        fitted.predict(np.zeros((0, 4, SAMPLES)), **GIVEN)


def test_numbers_in_another_unit_are_refused(encoder: Pretrained) -> None:
    """As ingest and `brainfm decode` do; flat channels say nothing of the unit."""
    import mne

    signal, labels = trials()
    with pytest.raises(ValueError, match=r"microvolt read as volt \(factor 1e-6\); multiply an array by 1e-6"):
        brainfm.Decoder(encoder).fit(1e6 * signal, labels, **GIVEN)
    with pytest.raises(ValueError, match=r"volt read as microvolt .*multiply an array by 1e6"):
        brainfm.Decoder(encoder).fit(1e-6 * signal, labels, **GIVEN)
    events = np.stack([np.arange(40) * SAMPLES, np.zeros(40, int), np.where(labels == "left", 7, 9)], axis=1)
    epochs = mne.EpochsArray(1e6 * signal, mne.create_info(NAMES, SFREQ, "eeg"), events, verbose="error")
    with pytest.raises(ValueError, match="microvolt read as volt"):
        brainfm.Decoder(encoder).fit(epochs, labels)
    signal[:, 1:] = 0
    decoder = brainfm.Decoder(encoder).fit(signal, labels, **GIVEN)
    decoder.predict(100 * signal[:1], **GIVEN)  # a trial of artefacts
    with pytest.raises(ValueError, match="microvolt read as volt"):
        decoder.predict(1e6 * signal, **GIVEN)


def test_channels_that_nobody_can_place(encoder: Pretrained) -> None:
    signal, labels = trials()
    with pytest.warns(UserWarning, match=r"4 of 4 channels have no position \(E0, E1, E2, E3\)"):
        decoder = brainfm.Decoder(encoder).fit(signal, labels, channels=["E0", "E1", "E2", "E3"], sfreq=SFREQ)
    assert "no position (E0, E1, E2, E3)" in decoder.notes_[0]


def test_sensors_that_the_encoder_never_saw(encoder: Pretrained) -> None:
    import mne

    signal, labels = trials()
    events = np.stack([np.arange(40) * SAMPLES, np.zeros(40, int), np.where(labels == "left", 7, 9)], axis=1)
    info = mne.create_info(["MEG 0111", "MEG 0121", "MEG 0131", "MEG 0141"], SFREQ, "mag")
    epochs = mne.EpochsArray(1e-7 * signal, info, events, verbose="error")
    with pytest.warns(UserWarning, match="Channels of kind mag; the encoder was trained on eeg and never saw such"):
        decoder = brainfm.Decoder(encoder).fit(epochs, labels)
    assert any("trained on eeg" in note for note in decoder.notes_)


def test_windows_of_another_length_are_refused(fitted: brainfm.Decoder, encoder: Pretrained, tmp_path: Path) -> None:
    signal, _ = trials()
    with pytest.raises(ValueError, match=r"got trials of 0\.5 s; fitted on 1 s: cut them to that length"):
        fitted.predict(signal[..., : SAMPLES // 2], **GIVEN)
    shard(tmp_path)
    corpus = brainfm.open_shards(tmp_path)
    own = brainfm.Decoder(encoder).fit(corpus.trials(0.0, 1.0))
    with pytest.raises(ValueError, match=r"got trials of 0\.5 s; fitted on 1 s"):
        own.predict(corpus.trials(0.0, 0.5))
