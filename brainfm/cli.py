"""`brainfm VERB`: every stage as a command that also runs without DVC, and the verbs people use by hand.

Nothing heavy is imported until a verb needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from brainfm import faults

app = typer.Typer(
    no_args_is_help=True, add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Foundation models for brain recordings: ingest, tokenize, pretrain, decode, transfer, audit, report.\n\n"
    "Stages read configs/pipeline.yaml (who feeds whom) and configs/<stage>/<key>.yaml (the knobs), relative to the "
    "folder you stand in. `make repro` runs them all through DVC; each also runs by itself:\n\n"
    "  brainfm fetch scp1 && brainfm ingest scp1\n\n"
    "  brainfm pretrain luna_tiny\n\n"
    "  brainfm info data/models/luna_tiny",
)  # fmt: skip

Key = Annotated[str, typer.Argument(help="A key of this stage in configs/pipeline.yaml; see `brainfm list`.")]
Seed = Annotated[int | None, typer.Option(help="Seed; that of configs/pipeline.yaml if not given.")]


def _seed(given: int | None) -> int:
    from brainfm import config

    return given if given is not None else int(config.read("configs/pipeline.yaml").get("seed", 0))


@app.command()
def fetch(
    key: Annotated[str, typer.Argument(help="A dataset; see `brainfm list datasets`.")],
    from_: Annotated[Path | None, typer.Option("--from", help="A folder with a copy of the dataset's files.")] = None,
) -> None:
    """Bring a dataset's files to data/raw/KEY and check them against their pinned checksums."""
    from brainfm.stages import fetch as stage

    stage.run(key, from_)


@app.command()
def ingest(
    what: Annotated[str, typer.Argument(help="A dataset (see `brainfm list datasets`), or a path to recordings.")],
    out: Annotated[Path | None, typer.Option(help="Folder of a path's shards; data/shards/NAME if not given.")] = None,
    subject: Annotated[
        str | None,
        typer.Option(help="Where ids stand in file names, as 'Subject{subject}_{session}'; or the id of all of them."),
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV or TSV: file or subject, session, run, label, age ...")
    ] = None,
    modality: Annotated[str | None, typer.Option(help="eeg, meg, ieeg, fmri, spikes or calcium.")] = None,
    montage: Annotated[str | None, typer.Option(help="MNE template for positions that the files lack.")] = None,
    unit: Annotated[str | None, typer.Option(help="Unit of the numbers, if files say it wrong: uV, mV ...")] = None,
    reference: Annotated[str, typer.Option(help="What potentials are measured against, if files do not say.")] = "",
    label: Annotated[str, typer.Option(help="Condition of the whole of every recording.")] = "",
    rate_hz: Annotated[float | None, typer.Option(help="Samples, volumes, bins a second, if files do not say.")] = None,
    atlas: Annotated[Path | None, typer.Option(help="fMRI: label image of the regions.")] = None,
    mask: Annotated[Path | None, typer.Option(help="fMRI: image of the voxels to keep.")] = None,
    variable: Annotated[str | None, typer.Option(help="Variable of .mat, .npz, .h5 or NWB files.")] = None,
    tracked: Annotated[bool, typer.Option("--tracked", help="Neurons keep their names over sessions.")] = False,
    sfreq_hz: Annotated[
        float | None, typer.Option(help="Of shards; 128 for EEG, MEG; 512 for iEEG; 0 keeps it.")
    ] = None,
    highpass_hz: Annotated[float | None, typer.Option(help="Lower edge; 0.5 for EEG, MEG, iEEG; 0 for none.")] = None,
    lowpass_hz: Annotated[float | None, typer.Option(help="Upper edge; 45 for EEG, MEG, 170 for iEEG; or 0.")] = None,
    notch_hz: Annotated[float | None, typer.Option(help="Power line (50, 60) and multiples; none by default.")] = None,
    steps: Annotated[
        Path | None, typer.Option(help="YAML with an ordered list of cleaning `steps`, instead of the filters above.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, or int16 with a scale for each second and channel.")] = "float32",
    test_subjects: Annotated[
        float | None, typer.Option(help="People of a path to hold out for testing: a number, or a share below 1.")
    ] = None,
    val_subjects: Annotated[float, typer.Option(help="The same for validation; with --test-subjects.")] = 0,
    licence: Annotated[str, typer.Option(help="Terms of the recordings, kept in the shards.")] = "unknown",
    jobs: Annotated[int | None, typer.Option(help="Processes; one per core if not given.")] = None,
    scheduler: Annotated[
        str | None, typer.Option(help="Dask scheduler (tcp://...); its workers see these folders.")
    ] = None,
    corpus: Annotated[
        str | None, typer.Option(help="Of a dataset: folder under data/shards; that of the wiring if not given.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the split.")] = None,
) -> None:
    """Clean recordings and write one HDF5 shard per subject; what is whole already is kept.

    A dataset of ours takes its knobs from configs/ingest/KEY.yaml. A path may be a file, a folder of files or a BIDS
    dataset, of EEG, MEG, iEEG (every format that MNE reads, NWB), fMRI (NIfTI, GIFTI, CIFTI, region tables), spikes
    (NWB, npz, mat) or calcium (NWB, suite2p):

      brainfm ingest recordings/ --out data/shards/mine --subject "Subject{subject}_{session}" --notch-hz 50

    A file that cannot be read is named with what mends it, all others are ingested, and the exit status is 1.
    """
    from brainfm.stages import ingest as stage

    if not stage.is_path(what):
        stage.run(what, _seed(seed), jobs, corpus, scheduler, dtype)
        return
    said = {
        "subject": subject, "table": table, "modality": modality, "montage": montage, "unit": unit, "label": label,
        "reference": reference, "sfreq_hz": rate_hz, "atlas": atlas, "mask": mask, "variable": variable,
        "tracked": tracked,
    }  # fmt: skip
    asked = {"sfreq_hz": sfreq_hz, "highpass_hz": highpass_hz, "lowpass_hz": lowpass_hz, "notch_hz": notch_hz}
    given = {word: value or None for word, value in asked.items() if value is not None}
    split = None if test_subjects is None else {"test_subjects": test_subjects, "val_subjects": val_subjects}
    card = {"licence": licence, "citation": ""}
    stage.run_path(Path(what), out, said, given, steps, split, card, seed or 0, jobs, scheduler, dtype)


@app.command()
def tokenize(
    what: Annotated[str, typer.Argument(help="A key of configs/pipeline.yaml; with --with a folder of shards.")],
    with_: Annotated[
        Path | None, typer.Option("--with", help="A saved tokenizer, or a model with one inside: nothing is trained.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the codes; needed with --with.")] = None,
    features: Annotated[bool, typer.Option("--features", help="Also store what codes stand for, as vectors.")] = False,
    dtype: Annotated[str, typer.Option(help="Of the features: float16 or float32.")] = "float16",
    overlap: Annotated[
        float | None, typer.Option(help="Share by which windows overlap; that of the model or configuration, or 0.")
    ] = None,
    window_s: Annotated[
        float | None, typer.Option(help="With --with: seconds that the tokenizer sees at once; as in its training.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Stretches of --window-s in a batch; by the channels if not given.")
    ] = None,
    seed: Seed = None,
) -> None:
    """Train a tokenizer on a corpus and write its codes as shards; or write codes by a saved tokenizer.

      brainfm tokenize data/shards/mine --with data/models/braintokenizer_tiny --out data/codes/mine

    Codes that are whole and current are kept, and a run that was killed goes on at the next shard. A recording that the
    tokenizer cannot take is named with what mends it, all others are done, and the exit status is 1.
    """
    from brainfm.stages import tokenize as stage

    stored = dtype if features else None
    if with_ is None:
        if Path(what).exists():
            raise ValueError(f"{what} is a path; say `--with MODEL --out FOLDER` to write the codes of its recordings")
        if out is not None or window_s is not None:
            raise ValueError("--out and --window-s go with --with MODEL; a key has both from its configuration")
        stage.run(what, _seed(seed), overlap, stored, batch_size)
    elif out is None:
        raise ValueError("--with needs --out FOLDER for the codes")
    else:
        stage.run_path(Path(what), with_, out, window_s, overlap, stored, batch_size)


@app.command("decode-codes")
def decode_codes(
    codes: Annotated[Path, typer.Argument(help="A folder of codes with their tokenizer, or a part of it.")],
    out: Annotated[Path, typer.Option(help="Folder of the FIF files.")],
    against: Annotated[Path | None, typer.Option(help="Shards that were tokenized: print and keep the error.")] = None,
    scale_of_source: Annotated[
        bool, typer.Option("--scale-of-source", help="SI units by the mean and deviation of each window of --against.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="The error as one JSON line per recording and kind.")] = False,
) -> None:
    """Turn codes back into signals: one FIF file per recording, which MNE opens.

    The numbers are z-scores, each channel and window in units of its own deviation, and not volts. With --against the
    error is printed by recording and kind of channel (mean Pearson correlation, R2, NRMSE) and kept as error.json.
    """
    from brainfm import decode_codes as verb

    verb.run(codes, out, against, scale_of_source, json)


@app.command()
def pretrain(key: Key, seed: Seed = None) -> None:
    """Pretrain a model; an interrupted run goes on from its last checkpoint."""
    from brainfm.stages import pretrain as stage

    stage.run(key, _seed(seed))


@app.command()
def decode(
    what: Annotated[
        str, typer.Argument(help="A key of configs/pipeline.yaml; before recordings, the folder of a fitted decoder.")
    ],
    files: Annotated[
        list[Path] | None, typer.Argument(help="Continuous recordings, shards, or folders of them, to decode in time.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Of recordings: folder of the tables and figures.")] = Path("decoded"),
    step_s: Annotated[float, typer.Option(help="Seconds from one window to the next.")] = 0.5,
    smooth_s: Annotated[float, typer.Option(help="Width of the moving mean of probabilities; 0 for none.")] = 2.0,
    threshold: Annotated[float, typer.Option(help="Lowest smoothed probability of an event.")] = 0.5,
    causal: Annotated[bool, typer.Option("--causal", help="Use nothing after the time that is spoken of.")] = False,
    montage: Annotated[str | None, typer.Option(help="MNE template for positions that the files lack.")] = None,
    seed: Seed = None,
) -> None:
    """Decode with a pretrained model and its baselines, and write data/results/decode/KEY.json.

    Or slide a fitted decoder over continuous recordings, cleaned as its model's training data was:

      brainfm decode data/decoders/mine recording.edf --out decoded

    writes NAME_probabilities.tsv, NAME_events.tsv in BIDS form, their sidecars, and NAME.png. A recording that cannot
    be decoded is named with what mends it, all others are done, and the exit status is 1.
    """
    if files:
        from brainfm import decode_file

        decode_file.run(Path(what), files, out, step_s, smooth_s, threshold, causal, montage)
        return
    if Path(what).is_dir() and "/" in what:
        raise ValueError(f"{what} is a folder; say which recordings to decode: brainfm decode {what} FILE...")
    from brainfm.stages import decode as stage

    _print_result(stage.run(what, _seed(seed)))


@app.command()
def transfer(key: Key, seed: Seed = None) -> None:
    """Measure transfer to people, sites or neurons that the model never saw."""
    from brainfm.stages import transfer as stage

    _print_result(stage.run(key, _seed(seed)))


@app.command()
def audit(key: Annotated[str, typer.Argument(help="A wiring: default, eegmat ...")] = "default") -> None:
    """Check every model and result of a wiring for leakage; any leak fails the run."""
    from brainfm.stages import audit as stage

    stage.run(key)


@app.command()
def report(key: Annotated[str, typer.Argument(help="A wiring: default, eegmat ...")] = "default") -> None:
    """Write the report of a wiring: one HTML page that opens offline."""
    from brainfm.stages import report as stage

    print(f"report: {stage.run(key).resolve()}")


@app.command()
def compare(
    results: Annotated[list[Path], typer.Argument(help="Result files, or folders of them: data/results/transfer ...")],
    out: Annotated[Path | None, typer.Option(help="Also write one HTML page that opens offline.")] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line per row, and one of the ranking.")] = False,
    against: Annotated[
        str | None,
        typer.Option(help="The method that others are compared with; the first file's first pretrained if not given."),
    ] = None,
) -> None:
    """Put the methods of result files side by side: scores, paired differences, ranks over tasks, cost, provenance.

      brainfm compare data/results/transfer/eegmat_luna.json data/results/transfer/eegmat_brainomni.json

      brainfm compare data/results --against "CSP + LDA" --out compared.html

    Methods are told apart within people (Wilcoxon, Holm over the rows of a task), and only where split and people are
    the same; a row that is not compared says why. With six people or fewer no p below 0.03 can come out, however large
    the difference. The ranking needs two methods on two tasks. Say what you compare with before you see the scores.
    """
    from brainfm import compare as verb

    verb.run(results, out, json, against)


@app.command()
def info(path: Annotated[Path, typer.Argument(help="A shard, a folder of shards, a model, or a result.")]) -> None:
    """Say what is in a shard, a model or a result."""
    from brainfm import describe

    describe.show(path)


@app.command()
def check(
    path: Annotated[Path | None, typer.Argument(help="Shards or codes to check; all of ./data if not given.")] = None,
    deep: Annotated[bool, typer.Option("--deep", help="Also recompute the checksum of every recording.")] = False,
) -> None:
    """Is this installation whole, and are the data, models and results in ./data? Or the shards at a path?

    Of shards headers alone are read, unless --deep.
    """
    from brainfm import check as verb

    whole = verb.everything(Path(), deep) if path is None else verb.shards(path, deep)
    raise typer.Exit(0 if whole else 1)


@app.command()
def finetune(
    model: Annotated[Path, typer.Argument(help="A pretrained model's folder.")],
    shards: Annotated[Path, typer.Option(help="Shards that hold the new subject.")],
    subject: Annotated[str, typer.Option(help="Subject id, or dataset/subject.")],
    out: Annotated[Path, typer.Option(help="Folder for the fitted decoder.")],
    window_s: Annotated[
        float | None,
        typer.Option(help="Cut windows of so many seconds inside blocks and labels of whole recordings, not trials."),
    ] = None,
    tmin_s: Annotated[float, typer.Option(help="Start of a trial relative to its event, seconds.")] = 0.0,
    tmax_s: Annotated[float, typer.Option(help="End of a trial relative to its event, seconds.")] = 1.0,
    test: Annotated[float, typer.Option(help="Share of the last trials kept for the score.")] = 0.3,
    adapt: Annotated[
        str,
        typer.Option(
            help="What is fitted. The network frozen: probe, attentive, subject_layer, or a probe after euclidean, "
            "riemannian or statistics alignment without labels, or after erase_subject. The network trained: finetune "
            "(all weights) or lora (low-rank adapters)."
        ),
    ] = "finetune",
    seed: Annotated[int, typer.Option(help="Seed.")] = 0,
) -> None:
    """Fit a pretrained model to a new subject's labelled trials, score it on later ones, and keep the decoder.

    Beside the score stand the network untrained under the same --adapt, the commonest class and a regression on the
    signals. `--window-s 2` is for labels that last, such as those of `brainfm ingest --label`.
    """
    from brainfm import finetune as verb

    _print_result(verb.run(model, shards, subject, out, tmin_s, tmax_s, test, adapt, seed, window_s))


@app.command("import-weights")
def import_weights(
    system: Annotated[str, typer.Argument(help="Whose layout it is: brainomni.")],
    folder: Annotated[
        str, typer.Argument(help="With model_cfg.json and BrainOmni.pt or BrainTokenizer.pt; or hf://owner/name/tiny.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    rope: Annotated[
        str,
        typer.Option(
            help="regenerated: whole rotations, what the network was trained with. as_released: their cosines alone, "
            "what the released files make of the released program. A tokenizer alone has none."
        ),
    ] = "regenerated",
    check: Annotated[
        Path | None,
        typer.Option(help="A .npz of golden numbers: compare, print one line of JSON, save only what passes."),
    ] = None,
) -> None:
    """Bring a published checkpoint into a model folder: every weight is used and filled, or it is refused.

    With --check the exit status is 1 where codes differ or a float differs by more than 1e-4, under either policy of
    --rope; other text goes to standard error.
    """
    from brainfm.training import released

    raise typer.Exit(0 if released.bring(system, folder, out, rope, check) else 1)


@app.command("export-weights")
def export_weights(
    model: Annotated[str, typer.Argument(help="A model's folder: BrainOmni, or BrainTokenizer, built as released.")],
    out: Annotated[Path, typer.Option(help="Folder for model_cfg.json and BrainOmni.pt or BrainTokenizer.pt.")],
    layout: Annotated[str, typer.Option(help="Whose layout: brainomni.")] = "brainomni",
) -> None:
    """Write a model in the layout of the published checkpoints; import-weights gives back the same weights."""
    from brainfm import api
    from brainfm.training import released

    for path in released.export_weights(api.load(model), out, layout):
        print(path)


@app.command("list")
def list_(
    what: Annotated[
        str | None, typer.Argument(help="models, codebooks, datasets, objectives or evaluations; all if absent.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON line per entry.")] = False,
) -> None:
    """List what there is: models with their sizes, datasets, objectives, evaluations."""
    from brainfm import describe

    describe.list_entries(what, json)


def _print_result(result: dict) -> None:
    from brainfm import describe

    describe.show_result(result)


def main() -> None:
    """Run a verb. What the user can mend is one message and exit status 2; a leak, a failed subject or a bug is 1."""
    # At these sizes a second thread costs more than it brings (on a shared machine up to ten times), and sums over
    # threads change the last digits with the number of cores. Set OMP_NUM_THREADS for larger models.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    faults.guard(app)
