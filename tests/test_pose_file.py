"""Pose files: both formats, interpolation, and one clear line for every kind of bad file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from face.pose_file import PoseCurve, read_pose_file, write_pose_file
from util.errors import ShapeError, UserError


def csv(folder: Path, text: str, name: str = "pose.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def npy(folder: Path, array: np.ndarray) -> Path:
    path = folder / "pose.npy"
    np.save(path, array)
    return path


def test_keyframes_are_met_held_and_joined_without_overshoot(tmp_path):
    path = csv(tmp_path, "frame,yaw,pitch,roll\n10,0,0,0\n20,20,-5,2\n30,20,-5,2\n")
    curve = read_pose_file(path, 50)
    assert curve.angles.shape == (50, 3)
    assert curve.angles.dtype == np.float32
    assert np.allclose(curve.angles[[10, 20, 30]], [[0, 0, 0], [20, -5, 2], [20, -5, 2]], atol=1e-6)
    assert (curve.angles[:10] == curve.angles[10]).all()
    assert np.allclose(curve.angles[30:], [20, -5, 2])
    yaw = curve.angles[:, 0]
    assert yaw.max() <= 20 + 1e-5
    assert (np.diff(yaw) >= -1e-5).all()
    assert np.abs(np.diff(yaw)).max() < 4  # 20 degrees in 10 frames, eased
    assert not curve.shift.any()
    assert not curve.log_scale.any()


def test_seven_columns_carry_shift_and_scale(tmp_path):
    curve = read_pose_file(csv(tmp_path, "frame,yaw,pitch,roll,x,y,scale\n0,1,2,3,0.1,-0.2,1.1\n"), 3)
    assert np.allclose(curve.shift, [[0.1, -0.2]] * 3)
    assert np.allclose(curve.log_scale, np.log(1.1))


@pytest.mark.parametrize(
    "text",
    [
        "frame,yaw,pitch,roll\n0,1,2,3\n4,5,6,7\n",
        "0,1,2,3\n4,5,6,7",
        "\ufeffFrame, Yaw, Pitch, Roll\r\n0, 1, 2, 3\r\n\r\n4, 5, 6, 7\r\n",
    ],
)
def test_header_blank_lines_and_byte_order_mark_do_not_matter(tmp_path, text):
    assert np.allclose(
        read_pose_file(csv(tmp_path, text, "tête 'x'.csv"), 5).angles[[0, 4]], [[1, 2, 3], [5, 6, 7]]
    )


def test_npy_poses_per_frame_and_keyframes(tmp_path):
    poses = np.random.default_rng(0).uniform(-20, 20, (8, 3))
    assert np.allclose(read_pose_file(npy(tmp_path, poses), 8).angles, poses, atol=1e-5)
    six = np.column_stack([poses, np.full((8, 2), 0.1), np.full(8, 0.9)])
    assert np.allclose(read_pose_file(npy(tmp_path, six), 8).log_scale, np.log(0.9))
    keys = np.array([[0, 0, 0, 0], [7, 7, -7, 0]])
    assert np.allclose(read_pose_file(npy(tmp_path, keys), 8).angles[[0, 7]], keys[:, 1:])


@pytest.mark.parametrize("name", ["pose.csv", "pose.npy"])
def test_written_files_read_back(tmp_path, name):
    rng = np.random.default_rng(1)
    curve = PoseCurve(
        rng.uniform(-20, 20, (12, 3)).astype(np.float32),
        rng.uniform(-0.2, 0.2, (12, 2)).astype(np.float32),
        rng.uniform(-0.05, 0.05, 12).astype(np.float32),
    )
    write_pose_file(tmp_path / name, curve)
    again = read_pose_file(tmp_path / name, 12)
    for a, b in zip(vars(curve).values(), vars(again).values(), strict=True):
        assert np.allclose(a, b, atol=2e-5)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_curve_whose_parts_differ_in_length_is_refused(tmp_path):
    with pytest.raises(ShapeError, match="shift"):
        write_pose_file(tmp_path / "a.csv", PoseCurve(np.zeros((3, 3)), np.zeros((2, 2)), np.zeros(3)))
    assert not list(tmp_path.iterdir())


HEAD = "frame,yaw,pitch,roll\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "empty"),
        ("\n \n", "empty"),
        (HEAD, "no row after the header"),
        ("frame,pitch,yaw,roll\n0,1,2,3\n", "columns are frame,pitch,yaw,roll"),
        ("0,1,2\n", "line 1 has 3 columns"),
        (HEAD + "0,1,2,3\n1,2,3\n", "line 3 has 3 columns"),
        (HEAD + "0,1,two,3\n", "line 2: 'two' is not a number"),
        (HEAD + "0,1,nan,3\n", "row 2: a value that is not finite"),
        (HEAD + "0,1,inf,3\n", "not finite"),
        (HEAD + "0,0,0,0\n5,0,0,0\n3,0,0,0\n", "row 4: frame 3 does not come after"),
        (HEAD + "0,0,0,0\n0,1,0,0\n", "row 3: frame 0 does not come after"),
        (HEAD + "-1,0,0,0\n", "row 2: frame -1"),
        (HEAD + "0.5,0,0,0\n", "frame 0.5"),
        (HEAD + "0,0,0,0\n1,31,0,0\n", "row 3: yaw 31, pitch 0, roll 0"),
        ("frame,yaw,pitch,roll,x,y,scale\n0,0,0,0,2,0,1\n", "x 2"),
        ("frame,yaw,pitch,roll,x,y,scale\n0,0,0,0,0,0,0\n", "scale 0"),
    ],
)
def test_bad_csv_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(UserError, match="--head_motion") as caught:
        read_pose_file(csv(tmp_path, text), 10)
    assert message in str(caught.value)
    assert "pose.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((4, 5)), "shape (4, 5)"),
        (np.zeros(4), "shape (4,)"),
        (np.zeros((0, 4)), "empty"),
        (np.array([["a", "b", "c"]]), "type"),
        (np.zeros((2, 3), complex), "type complex"),
        (np.array([[0, np.nan, 0, 0]]), "row 0: a value that is not finite"),
        (np.array([[0, 0, 0], [0, -40, 0]]), "row 1: yaw 0, pitch -40"),
        (np.array([[2, 0, 0, 0], [1, 0, 0, 0]]), "row 1: frame 1 does not come after"),
        (np.array([[{}, 1, 2]], object), "holds Python objects"),
    ],
)
def test_bad_npy_is_refused_in_one_line(tmp_path, array, message):
    with pytest.raises(UserError, match="--head_motion") as caught:
        read_pose_file(npy(tmp_path, array), 10)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# A header that promises 8 TB.
_HUGE = b"\x93NUMPY\x01\x00\x76\x00" + (
    b"{'descr': '<f8', 'fortran_order': False, 'shape': (333333333333, 3), }".ljust(117) + b"\n"
)


@pytest.mark.parametrize(
    "content", [b"\x93NUMPY\x01\x00rubbish", b"text", _HUGE, b"PK\x03\x04", b"\x80\x04."]
)
def test_damaged_npy_is_refused(tmp_path, content):
    path = tmp_path / "pose.npy"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"--head_motion .*pose\.npy"):
        read_pose_file(path, 10)


def test_an_npz_named_npy_and_a_binary_csv_are_refused(tmp_path):
    path = tmp_path / "pose.npy"
    with path.open("wb") as file:
        np.savez(file, a=np.zeros((3, 3)))
    with pytest.raises(UserError, match="archive"):
        read_pose_file(path, 10)
    binary = tmp_path / "pose.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="not a text file"):
        read_pose_file(binary, 10)


def test_missing_file_and_folder_are_refused(tmp_path):
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(UserError, match="--head_motion"):
            read_pose_file(path, 10)
