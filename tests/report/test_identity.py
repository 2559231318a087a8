"""The section on what was learnt: its words, table and figures, and what it makes of results without them."""

import made_up
import numpy as np

from brainfm.report import identity, page


def entry(score, chance, **more):
    return {**made_up.interval(score, 0.05), "chance": chance, "p": 0.004, "p_over": "stretches", **more}


def diagnostics():
    read = {"label": entry(0.58, 0.5), "label_later": entry(0.71, 0.5), "subject": entry(0.83, 0.1)}
    part = {"share": 0.4, "ci": [0.3, 0.5], "nulls": {"permuted": {"mean": 0.0, "p": 0.005}}}
    pair = {"label": entry(0.55, 0.5), "subject": entry(0.3, 0.1)}
    known = {**pair, "subject_known": entry(0.41, 0.1)}
    layer = {f"{what}{end}": entry(0.6, 0.1) for what in ("label", "subject") for end in ("", "_untrained")}
    change = {"change": 0.4, "change_ci": [0.3, 0.5], "drop": 0.02, "drop_ci": [0.0, 0.04]}
    return {
        "probes": {"pretrained": read, "untrained": read, "log_band_power": read},
        "variance": {"pretrained": {"subject": part, "label": part, "rest": {"share": 0.2, "ci": None, "nulls": {}}}},
        "consistency": {"pretrained": {**made_up.interval(0.21, 0.1), "own": 0.74}},
        "confounded": True,
        "erasure": {"axes": 9, "before": known, "after": known, "random": known},
        "aperiodic": {"before": pair, "after": pair, "alone": pair},
        "layers": [{"layer": name, **layer} for name in ("input", "blocks.0", "blocks.1")],
        "perturbation": [
            {"axis": axis, "name": f"{axis} {i}", **change, "p_holm": 0.01 if i else 0.6}
            for axis in ("time", "space", "band")
            for i in range(3)
        ],
        "says": ["Identity without the label: <who> a person is can be read."],
    }


def result(**more):
    made = made_up.classification(np.random.default_rng(0), "identity", "arithmetic", ["rest", "task"], 0.58)
    return {**made, "evaluation": "identity", "identity": {**diagnostics(), **more}}


def test_the_section_shows_words_table_and_five_figures():
    text = identity.section([result(), {"key": "another"}])
    assert "Identity without the label: &lt;who&gt; a person" in text
    assert text.count('class="figure half"') == 5
    for word in ("9 axes of the training people erased", "0.83 [0.78, 0.88]", "0.41 [0.36, 0.46]", "0.21 [0.11, 0.31]"):
        assert word in text, word
    assert "p 0.004, stretches<" in text
    assert "the readout of the label loses without band 1, band 2" in text
    assert "a difference between recordings counts as label here" in text


def test_results_without_diagnostics_or_with_parts_of_them_are_no_error():
    assert identity.section([{"key": "plain"}]) == ""
    text = identity.section([{"key": "odd", "identity": {"probes": {"pretrained": {"label": {"score": None}}}}}])
    assert 'class="figure' not in text.replace('class="figures"', "")
    assert "–" in text


def test_the_page_has_the_section():
    text = page.render("t", [result()], [], None, made_up.PROVENANCE)
    assert '<section id="identity">' in text
    assert "fig-identity-1-layers" in text
