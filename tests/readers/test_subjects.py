import pytest

from brainfm.readers.subjects import assign, clean, entities, participant, rows, run_id


def ids(stems, subject=None, table=None, strict=False):
    return [(i.subject, i.session, i.run) for i in assign(stems, subject, table, strict)[0]]


@pytest.mark.parametrize(
    ("stems", "expected"),
    [
        (["Subject00_1", "Subject00_2", "Subject01_1"], [("Subject00", "1"), ("Subject00", "2"), ("Subject01", "1")]),
        (["S01", "S02"], [("S01", ""), ("S02", "")]),
        (["anna", "ben"], [("anna", ""), ("ben", "")]),
        (["S001R01", "S001R02", "S002R01"], [("S001", "R01"), ("S001", "R02"), ("S002", "R01")]),
        (["sub_01_rest", "sub_02_rest"], [("sub_01", "rest"), ("sub_02", "rest")]),
        (["S1_eyes_open", "S1_rest"], [("S1", "eyes_open"), ("S1", "rest")]),
        (["eeg_07", "eeg_08"], [("eeg_07", ""), ("eeg_08", "")]),
        (["AB12-1", "AB12-2", "CD34-1", "EF56-1"], [("AB12", "1"), ("AB12", "2"), ("CD34", "1"), ("EF56", "1")]),
        (["1_1", "1_2", "2_1", "3_1"], [("1", "1"), ("1", "2"), ("2", "1"), ("3", "1")]),
        (["recording"], [("recording", "")]),
        (["Subject00_1"], [("Subject00", "1")]),
        (["S01/rest", "S01/task", "S02/rest"], [("S01", "rest"), ("S01", "task"), ("S02", "rest")]),
    ],
)
def test_people_in_the_names_of_files(stems, expected):
    assert [(s, r) for s, _, r in ids(stems)] == expected


def test_sessions_in_folders_and_in_bids_names():
    assert ids(["subject3/session1/a", "subject3/session2/a"]) == [
        ("subject3", "session1", "a"), ("subject3", "session2", "a"),
    ]  # fmt: skip
    assert ids(["x/sub-01_ses-b_task-rest_run-2_eeg", "sub-02_task-rest_eeg"]) == [
        ("01", "b", "rest-2"), ("02", "", "rest"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "stems",
    [
        ["rest_S01", "rest_S02", "task_S01", "task_S02"],
        ["rest/S01", "task/S01"],
        ["session1_S01", "session2_S01"],
        ["run_1", "run_2"],
        ["rest", "task"],
        ["run1", "run2"],
        ["S01", "S01_2"],
        ["S01R01", "S02"],
        ["anna_1", "anna_2", "ben_1"],
        ["2018_03", "2018_04", "2019_05", "2019_06"],
        ["sub-01_eeg", "S02"],
        ["S01/a", "b"],
    ],
)
def test_what_may_put_a_person_on_both_sides_is_an_error(stems):
    with pytest.raises(ValueError, match="--subject"):
        assign(stems, None, None, False)


def test_notes_say_what_was_derived():
    _, notes = assign([f"Subject{i:02d}_{j}" for i in range(20) for j in (1, 2)], None, None, False)
    assert "20 people and 40 recordings from file names such as Subject00_1" in notes[0]
    assert "--subject" in notes[0]


def test_patterns():
    assert ids(["Subject00_1"], "Subject{subject}_{session}") == [("00", "1", "")]
    assert ids(["sub-1_a_b", "sub-2_c"], "sub-{subject}_*") == [("1", "", "a_b"), ("2", "", "c")]
    assert ids(["rest/S01", "task/S01"], "*/{subject}") == [("S01", "", "rest"), ("S01", "", "task")]
    assert ids(["S1/S1_2"], "{subject}/{subject}_{run}") == [("S1", "", "2")]
    assert ids(["rest", "b/task"], "P 1") == [("P-1", "", "rest"), ("P-1", "", "b_task")]
    assert assign(["S1_rest"], "{subject}_{label}", None, False)[0][0].label == "rest"


@pytest.mark.parametrize(
    ("stems", "pattern", "said"),
    [
        (["S1_2", "T1"], "S{subject}_{run}", "fits 1 of 2 files and not T1"),
        (["S1"], "S*", "where the subject stands"),
        (["S1"], "S{subject}{day}", "unknown field {day}"),
        (["S1_a", "S1_b"], "S{subject}_{label}", "S1_a and S1_b get the same ids"),
        (["S1/S2_1"], "{subject}/{subject}_{run}", "fits 0 of 1"),
        (["###"], "{subject}", "id is empty"),
    ],
)
def test_patterns_that_do_not_fit(stems, pattern, said):
    with pytest.raises(ValueError) as error:
        assign(stems, pattern, None, False)
    assert said in str(error.value)


def test_ids_that_differ_in_case_or_signs_alone_collide():
    for stems in (["a b", "a.b"], ["S1", "s1"], ["S 1", "S#1"]):
        with pytest.raises(ValueError, match="get the same ids"):
            assign(stems, None, None, False)


def test_a_table_of_files(tmp_path):
    table = tmp_path / "who.csv"
    table.write_text(
        "filename;participant_id;session;condition;Age;Gender\na.edf;p1;1;rest;31;F\nx/b;p1;2;task;31;n/a\nc;p3;;;;\n"
    )
    found, notes = assign(["a", "x/b"], None, table, True)
    assert [(i.subject, i.session, i.run, i.label) for i in found] == [("p1", "1", "", "rest"), ("p1", "2", "", "task")]
    assert found[0].participant == {"age": "31", "sex": "F"}
    assert found[1].participant == {"age": "31"}
    assert any("1 rows of who.csv name files that are not here: c" in note for note in notes)
    with pytest.raises(ValueError, match=r"no row for d"):
        assign(["a", "d"], None, table, True)
    with pytest.raises(ValueError, match=r"line 4.*'c' fits 1/c, 2/c"):
        assign(["a", "x/b", "1/c", "2/c"], None, table, True)


def test_a_table_of_subjects_finds_them_in_names_and_folders(tmp_path):
    table = tmp_path / "subjects.tsv"
    table.write_text("participant_id\tage\tgroup\nsub-anna\t31\tpatient\nsub-ben\tn/a\tcontrol\nsub-carla\t4\tn/a\n")
    found, notes = assign(["anna_1", "anna_2", "ben/x_1"], None, table, True)
    assert [(i.subject, i.run) for i in found] == [("anna", "1"), ("anna", "2"), ("ben", "x_1")]
    assert found[0].participant == {"age": "31", "group": "patient"}
    assert found[2].participant == {"group": "control"}
    assert any("1 rows of subjects.tsv are about people who are not here: carla" in note for note in notes)
    with pytest.raises(ValueError, match=r"names the subjects of 1 files and not those of dora_1"):
        assign(["anna_1", "dora_1"], None, table, True)
    with pytest.raises(ValueError, match=r"no file is named after one of its subjects"):
        assign(["S1", "S2"], None, table, True)
    assert [(i.subject, i.participant) for i in assign(["S1", "S2"], None, table, False)[0]] == [("S1", {}), ("S2", {})]


def test_a_prefix_of_an_id_is_another_person(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("subject,age\nS1,20\nS10,30\n")
    found, _ = assign(["S1_a", "S10_a"], None, table, True)
    assert [(i.subject, i.participant["age"]) for i in found] == [("S1", "20"), ("S10", "30")]


def test_a_pattern_joins_a_table_whose_ids_have_a_word_before(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("Subject,Age\nSubject00,21\nSubject10,22\n")
    found, _ = assign(["Subject00_1", "Subject10_1"], "Subject{subject}_{session}", table, True)
    assert [i.participant["age"] for i in found] == ["21", "22"]


def test_a_subject_with_two_rows_is_an_error(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("subject,age\nS1,20\nS1,30\n")
    with pytest.raises(ValueError, match=r"t\.csv line 3: subject 'S1' has a row already"):
        assign(["S1_a"], None, table, True)


def test_rows(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes("\ufeffonset\tvalue\n1\tN/A\n\n2\n".encode())
    assert rows(path) == {2: {"onset": "1", "value": ""}, 4: {"onset": "2", "value": ""}}
    path.write_text("a\tb\n1\t2\t3\n")
    with pytest.raises(ValueError, match=r"a\.tsv line 2: 3 cells for 2 columns"):
        rows(path)
    path.write_text("a\ta\n1\t2\n")
    with pytest.raises(ValueError, match="column 'a' stands twice"):
        rows(path)
    path.write_bytes(b"name\tunits\nFz\t\xb5V\n")
    with pytest.raises(ValueError, match="not UTF-8"):
        rows(path)
    path.write_bytes(b"")
    assert rows(path) == {}


def test_words():
    assert clean(" a/b c.d ") == "a-b-c-d"
    assert entities("sub-01_task-rest_eeg.edf") == {"sub": "01", "task": "rest"}
    assert run_id({"run": "01", "task": "rest", "acq": "hi"}) == "rest-01-hi"
    assert participant({"participant_id": "sub-1", "Gender": "F", "Recording year": "2010", "hand": ""}) == {
        "sex": "F", "recording_year": "2010",
    }  # fmt: skip


def test_ids_that_are_known_are_shown():
    for stems, said in (
        (["sub-01_ses-b_task-rest_eeg", "sub-02_ses-b_task-rest_eeg"], "(subject '01', session 'b', run 'rest')"),
        (["S01", "S02"], "(subject 'S01')"),
    ):
        assert said in assign(stems, None, None, False)[1][0]
