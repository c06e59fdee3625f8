"""Weights on disk, and files that are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from util.checkpoints import checkpoint_path, load_module, load_tensors, save_tensors
from util.errors import UserError


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "a.safetensors"
    save_tensors(
        path, {"w": torch.arange(6.0).reshape(2, 3), "b": np.float32([1, 2])}, {"epoch": 3, "name": "é"}
    )
    return path


def test_tensors_and_note_come_back(saved):
    tensors, note = load_tensors(saved, "--name", {"w": (2, 3), "b": (2,)})
    assert note == {"epoch": 3, "name": "é"}
    assert tensors["w"].equal(torch.arange(6.0).reshape(2, 3))
    assert tensors["b"].numpy().tolist() == [1, 2]
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]


def test_views_halves_and_shared_memory_are_saved(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save_tensors(tmp_path / "a.safetensors", {"t": base.T, "same": base, "half": base.to(torch.bfloat16)})
    tensors, note = load_tensors(tmp_path / "a.safetensors")
    assert note == {}
    assert tensors["t"].equal(base.T)
    assert tensors["half"].dtype == torch.bfloat16


def test_module_comes_back_the_same(tmp_path):
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    save_tensors(tmp_path / "m.safetensors", module.state_dict(), {"epoch": 1})
    assert load_module(other, tmp_path / "m.safetensors") == {"epoch": 1}
    assert other.weight.equal(module.weight)


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ({"w": (2, 3)}, "has b that are not used"),
        ({"w": (2, 3), "b": (2,), "c": (1,)}, "lacks c"),
        ({"w": (3, 3), "b": (2,)}, "w differ in shape (w: (2, 3), needed (3, 3))"),
        ({f"k{i}": (1,) for i in range(9)}, "lacks k0, k1, k2 and 6 more; has b, w that are not used"),
    ],
)
def test_other_names_and_shapes_are_named(saved, shapes, words):
    with pytest.raises(UserError) as caught:
        load_tensors(saved, "--which_epoch", shapes)
    assert str(caught.value).startswith(f"--which_epoch {saved}: {words}; it was made with other options")


class _Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was opened",))


def test_a_pickle_is_refused_and_never_opened(tmp_path):
    for zipped in (True, False):
        torch.save({"w": _Bomb()}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
        with pytest.raises(
            UserError, match=r"a\.pth: is a pickle \(a \.pth or \.pt file\), which is never opened"
        ):
            load_tensors(tmp_path / "a.pth", "--name")


def test_missing_empty_cut_and_other_files_are_refused_in_one_line(saved, tmp_path):
    whole = saved.read_bytes()
    cases = {
        "none": None,
        "empty": b"",
        "cut": whole[:-3],
        "cut_head": whole[:20],
        "text": b"no weights\n" * 9,
    }
    words = {"none": "no such file", "empty": "the file is empty"}
    for name, content in cases.items():
        path = tmp_path / f"{name}.safetensors"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            load_tensors(path, "--name")
        assert str(caught.value).startswith(
            f"--name {path}: {words.get(name, 'is damaged or no checkpoint')}"
        )
        assert "\n" not in str(caught.value)


def test_checkpoint_path_is_beside_the_code(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert checkpoint_path("a.safetensors").parent.parent.joinpath("util", "checkpoints.py").is_file()
