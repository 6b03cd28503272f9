"""Files that are whole or not there."""

import os
import stat

import pytest
import torch

from odenet import artifacts
from odenet.errors import RunError


def test_what_is_written_is_read(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    path = artifacts.write_json(tmp_path / "deep" / "er" / "x.json", value)
    assert artifacts.read_json(path) == value
    assert artifacts.write_text(tmp_path / "t", "ü").read_text(encoding="utf-8") == "ü"
    state = {"w": torch.randn(3), "n": 3, "nested": {"list": [torch.ones(2)]}}
    loaded = artifacts.load_checkpoint(artifacts.save_checkpoint(tmp_path / "c.pt", state))
    assert torch.equal(loaded["w"], state["w"]) and torch.equal(loaded["nested"]["list"][0], torch.ones(2))


def test_nan_and_infinity_become_null_and_numbers_keep_every_digit(tmp_path):
    path = artifacts.write_json(tmp_path / "x.json", {1: [float("nan"), -float("inf"), (0.1 + 0.2,)]})
    assert artifacts.read_json(path) == {"1": [None, None, [0.1 + 0.2]]}


def test_a_write_that_fails_half_way_leaves_the_old_file_and_no_scraps(tmp_path, monkeypatch):
    path = artifacts.write_text(tmp_path / "x", "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    for broken in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, broken, full)
            with pytest.raises(RunError, match="cannot write .*No space left"):
                artifacts.write_text(path, "new")
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == ["x"]


def test_files_get_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        path = artifacts.write_text(tmp_path / "x", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_corrupt_checkpoint_is_said_to_be_one(tmp_path, content):
    path = tmp_path / "c.pt"
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"c\.pt is corrupt"):
        artifacts.load_checkpoint(path)
    whole = artifacts.save_checkpoint(tmp_path / "d.pt", {"w": torch.randn(100)}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"c\.pt is corrupt"):
        artifacts.load_checkpoint(path)


def test_a_checkpoint_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "trapped"),)

    torch.save({"x": Trap()}, tmp_path / "c.pt")
    with pytest.raises(RunError, match="corrupt"):
        artifacts.load_checkpoint(tmp_path / "c.pt")
    assert not (tmp_path / "trapped").exists()


def test_what_is_missing_or_of_another_kind_is_said(tmp_path):
    with pytest.raises(RunError, match="no checkpoint at"):
        artifacts.load_checkpoint(tmp_path / "none.pt")
    torch.save([1], tmp_path / "list.pt")
    with pytest.raises(RunError, match="holds a list, not a dict"):
        artifacts.load_checkpoint(tmp_path / "list.pt")
    with pytest.raises(RunError, match="cannot read .*No such file"):
        artifacts.read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": ')
    with pytest.raises(RunError, match="not valid JSON"):
        artifacts.read_json(tmp_path / "bad.json")
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot write to the output folder"):
        artifacts.make_folder(tmp_path / "file" / "below")
    with pytest.raises(RunError, match="cannot write"):
        artifacts.write_text(tmp_path / "file" / "below", "")
