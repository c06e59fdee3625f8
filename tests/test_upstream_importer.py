"""models/upstream/importer.py: public files, true to format and not."""

from __future__ import annotations

import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.upstream import (
    DiscriminatorConfig,
    UpstreamConfig,
    UpstreamDiscriminator,
    import_upstream,
    load_upstream,
)
from scripts import import_upstream as script
from tests.upstream_parity import made_input, small_generator
from util.checkpoints import load_tensors, save_tensors
from util.errors import UserError, run_script

TINY = UpstreamConfig(n_shot=2, ngf=4, nff=4, n_blocks_flow=1)
HOSTILE = b"cposix\nsystem\n(S'touch %s'\ntR."  # what pickle runs on loading


def public_file(path: Path, state: dict[str, Tensor], zipped: bool = False) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return small_generator(TINY)


@pytest.fixture
def edited(tmp_path: Path, net: nn.Module) -> Callable[..., Path]:
    """edited(key=tensor or None, ...) is a public file with these keys (dots as __) replaced or left out."""

    def make(**changes: Tensor | None) -> Path:
        changed = {key.replace("__", "."): value for key, value in changes.items()}
        state = OrderedDict(net.state_dict()) | changed
        kept = OrderedDict((key, value) for key, value in state.items() if value is not None)
        return public_file(tmp_path / "face8_vox_new" / "latest_net_G.pth", kept)

    return make


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_generator_file_comes_back_as_the_same_network(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    state = net.state_dict()
    assert hasattr(state, "_metadata")
    weights = public_file(tmp_path / "latest_net_G.pth", state, zipped)
    made = import_upstream(weights, tmp_path / "g.safetensors")
    assert made.config == TINY
    assert made.dropped == ()
    _, note = load_tensors(made.path)
    assert (note["format"], note["network"], note["source"]) == ("upstream", "G", "latest_net_G.pth")
    loaded = load_upstream(made.path)
    assert loaded.config == TINY
    assert not loaded.training
    given = made_input(TINY)
    with torch.no_grad():
        torch.testing.assert_close(loaded(given).fake_image, net(given).fake_image)


def test_discriminator_file_comes_back_as_the_same_network(tmp_path: Path) -> None:
    net = UpstreamDiscriminator(DiscriminatorConfig(ndf=4)).eval()
    made = import_upstream(
        public_file(tmp_path / "latest_net_D.pth", net.state_dict()), tmp_path / "d.safetensors"
    )
    assert "discriminator of 8 input channels" in str(made)
    x = torch.rand(1, 8, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(load_upstream(made.path)(x), net(x))


def test_what_the_weights_do_not_tell_can_be_said(tmp_path: Path, edited: Callable[..., Path]) -> None:
    made = import_upstream(
        edited(), tmp_path / "g.safetensors", warped=False, add_raw_loss=False, align_corners=True
    )
    config = load_upstream(made.path).config
    assert (config.warped, config.add_raw_loss, config.align_corners) == (False, False, True)
    assert "--no_warp" in str(made)


def test_left_over_keys_are_dropped_with_a_remark(
    tmp_path: Path, edited: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    made = import_upstream(
        edited(netG__image_encoder__conv1__conv__bias=torch.zeros(4)), tmp_path / "g.safetensors"
    )
    assert made.dropped == ("netG.image_encoder.conv1.conv.bias",)
    assert capsys.readouterr().err == "note: left over netG.image_encoder.conv1.conv.bias\n"
    assert load_upstream(made.path).config.use_new


@pytest.mark.parametrize(
    ("change", "line", "message"),
    [
        (None, "missing netG.up_5.conv_0.bias: (128,) float32", "1 missing (netG.up_5.conv_0.bias"),
        (
            torch.zeros(7),
            "different netG.up_5.conv_0.bias: (7,) float32, needed (128,) float32",
            "1 different",
        ),
        (torch.zeros(128).half(), "different netG.up_5.conv_0.bias: (128,) float16", "1 different"),
    ],
)
def test_keys_that_do_not_fit_are_listed_and_refused(
    tmp_path: Path,
    edited: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    change: Tensor | None,
    line: str,
    message: str,
) -> None:
    with pytest.raises(UserError) as caught:
        import_upstream(edited(netG__up_5__conv_0__bias=change), tmp_path / "g.safetensors")
    assert message in str(caught.value)
    assert f"note: {line}" in capsys.readouterr().err
    assert not (tmp_path / "g.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"netG__conv_img__weight": None}, "lacks netG.conv_img.weight"),
        ({"netG__conv_img__weight": torch.tensor(1.0)}, r"has shape \(\), which is no convolution's"),
        ({"netG__conv_img__weight": torch.zeros(3, 9000, 1, 1)}, "ngf 9000: needs 1 to 512"),
        (
            {"netG__conv_img__bias": torch.full((3,), torch.nan)},
            "netG.conv_img.bias holds values that are no numbers",
        ),
        ({"netG__conv_img__bias": [1, 2]}, "'netG.conv_img.bias' is no plain tensor"),
        ({"netG__conv_img__bias": torch.zeros(3).to_sparse()}, "is no plain tensor"),
    ],
)
def test_state_that_is_no_network_is_refused(
    edited: Callable[..., Path], changes: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        import_upstream(edited(**changes))


@pytest.mark.parametrize("content", [[1, 2], {}, torch.zeros(3)])
def test_file_without_named_weights_is_refused(tmp_path: Path, content: object) -> None:
    weights = public_file(tmp_path / "a.pth", content)
    with pytest.raises(UserError, match="holds no named weights"):
        import_upstream(weights)


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
@pytest.mark.parametrize("part", [0.001, 0.3, 0.99])
def test_truncated_file_is_refused(tmp_path: Path, net: nn.Module, zipped: bool, part: float) -> None:
    weights = public_file(tmp_path / "a.pth", net.state_dict(), zipped)
    weights.write_bytes(weights.read_bytes()[: int(part * weights.stat().st_size)])
    with pytest.raises(UserError, match="is damaged, cut off or no weight file") as caught:
        import_upstream(weights)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("zipped", [False, True], ids=["legacy", "zip"])
def test_hostile_pickle_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    victim, weights = tmp_path / "victim", tmp_path / "latest_net_G.pth"
    payload = HOSTILE % str(victim).encode()
    if zipped:
        with zipfile.ZipFile(weights, "w") as box:
            box.writestr("archive/data.pkl", payload)
            box.writestr("archive/version", "3\n")
    else:
        weights.write_bytes(payload)
    with pytest.raises(UserError, match=r"asks for (posix|os)\.system, .* nothing of it was run") as caught:
        import_upstream(weights)
    assert "\n" not in str(caught.value)
    assert not victim.exists()


@pytest.mark.parametrize(("content", "message"), [(b"", "0 bytes"), (b"GIF89a" * 50, "no weight file")])
def test_other_file_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(UserError, match=message):
        import_upstream(tmp_path / "a.pth")


def test_checkpoint_of_another_kind_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"format": "ours"})
    with pytest.raises(
        UserError, match=r"is no imported public network; make one with scripts/import_upstream\.py"
    ):
        load_upstream(tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    ("note", "message"),
    [
        ({}, "its note is damaged"),
        ({"config": {"ngf": "x"}}, "its note is damaged"),
        ({"config": {"unheard_of": 1}}, "its note is damaged"),
        ({"config": {}}, "does not fit its own note"),
    ],
)
def test_damaged_checkpoint_is_refused(tmp_path: Path, note: dict[str, object], message: str) -> None:
    save_tensors(
        tmp_path / "a.safetensors", {"x": torch.zeros(1)}, {"format": "upstream", "network": "G"} | note
    )
    with pytest.raises(UserError, match=message):
        load_upstream(tmp_path / "a.safetensors")


def test_script_prints_what_the_file_was_trained_with(
    tmp_path: Path,
    edited: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "models.upstream.importer.checkpoint_path", lambda name: tmp_path / "checkpoints" / name
    )
    monkeypatch.setattr(sys, "argv", ["import_upstream.py", "--weights", str(edited())])
    run_script(script.main)
    flags = "--adaptive_spade --warp_ref --warp_ani --spade_combine --add_raw_loss --use_new --n_shot 2"
    path = tmp_path / "checkpoints" / "face8_vox_new" / "upstream_G.safetensors"
    assert capsys.readouterr().out == f"{path}: generator trained with {flags}\n"
    assert path.is_file()


def test_script_refuses_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["import_upstream.py", "--weights", str(tmp_path / "none.pth")])
    with pytest.raises(SystemExit) as caught:
        run_script(script.main)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
