"""The FlowNet2 family against the public networks' numbers, and its checkpoints against the public format."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models.flow_teacher import FlowNet2Teacher, squared_error
from third_party.flownet2.convert import convert, differences, empty_network, load_network, read_public
from third_party.flownet2.flownet2 import MODELS, normalise
from util.checkpoints import load_tensors
from util.errors import ShapeError, UserError

PARITY = Path(__file__).resolve().parents[2] / "shared" / "parity" / "flownet2"
TOLERANCE = 1e-4
SMALL = "FlowNet2S"  # the fewest parameters


@pytest.fixture(scope="module")
def manifest() -> dict:
    if not PARITY.is_dir():
        pytest.skip(f"no parity vectors at {PARITY}")
    return json.loads((PARITY / "manifest.json").read_text())["models"]


@pytest.fixture(scope="module")
def vectors(manifest) -> dict[str, np.ndarray]:
    with np.load(PARITY / "vectors_nets.npz") as held:
        return dict(held)


@pytest.fixture(scope="module")
def pairs(vectors) -> Tensor:
    return torch.from_numpy(vectors["pairs_u8"]).float().permute(0, 4, 1, 2, 3)


def ruled(keys: list) -> dict[str, Tensor]:
    """The weights that the parity README's rule gives."""
    found = {}
    for key, shape, _ in keys:
        z = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(shape)
        z *= 1.2 / np.sqrt(np.prod(shape[1:])) if len(shape) > 1 else 0.01
        found[key] = torch.from_numpy(z.astype(np.float32))
    return found


@pytest.fixture(scope="module")
def ruled_weights(manifest):
    """ruled_weights(model): made once; CS and CSS are parts of FlowNet2."""
    made = {}

    def weights(model: str) -> dict[str, Tensor]:
        whole = "FlowNet2" if model.startswith("FlowNet2CS") else model
        if whole not in made:
            made[whole] = ruled(manifest[whole]["keys"])
        return {key: made[whole][key] for key, _, _ in manifest[model]["keys"]}

    yield weights
    made.clear()


@pytest.fixture
def network(ruled_weights):
    def build(model: str, rgb_max: float = 255.0) -> nn.Module:
        net = empty_network(model)
        net.load_state_dict(ruled_weights(model), assign=True)
        net.rgb_max = rgb_max
        return net.requires_grad_(False)

    return build


def near(actual: Tensor, expected: np.ndarray) -> None:
    torch.testing.assert_close(actual, torch.from_numpy(expected), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_parameters_are_the_public_ones(manifest, model):
    held = empty_network(model).state_dict()
    assert [[k, list(v.shape), str(v.dtype)[6:]] for k, v in held.items()] == manifest[model]["keys"]
    assert sum(v.numel() for v in held.values()) == manifest[model]["params"]


@pytest.mark.parametrize("model", MODELS)
def test_rule_gives_the_manifests_weights(manifest, ruled_weights, model):
    total = hashlib.sha256()
    for key, value in ruled_weights(model).items():
        total.update(key.encode() + b"\0")
        total.update(memoryview(value.numpy()).cast("B"))
    assert total.hexdigest() == manifest[model]["sha256_rule_weights"]


@pytest.mark.parametrize("model", [m for m in MODELS if m != "FlowNet2"])
def test_flow_is_the_public_one(network, vectors, pairs, model):
    near(network(model)(pairs), vectors[f"{model}/flow"])


@pytest.mark.parametrize("model", ["FlowNet2C", "FlowNet2S", "FlowNet2SD"])
def test_training_gives_the_public_levels(network, vectors, pairs, model):
    flows = network(model).train()(pairs[:1])
    assert len(flows) == 5
    for level, flow in enumerate(flows, 2):
        near(flow, vectors[f"{model}/train_flow{level}"])


def test_flownet2_is_the_public_one_inside_and_out(network, vectors, pairs):
    net, seen = network("FlowNet2"), {}
    for name in ("flownetc", "flownets_1", "flownets_2", "flownets_d"):
        layer = getattr(net, name)
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.update({f"{name}_flow2": out[0]}))
    for name in ("flownets_1", "flownetfusion"):
        layer = getattr(net, name)
        layer.register_forward_pre_hook(lambda _m, x, name=name: seen.update({f"{name}_input": x[0][:1]}))
    near(net(pairs), vectors["FlowNet2/flow"])
    for name in ("flownetc", "flownets_1", "flownets_2", "flownets_d"):
        near(seen[f"{name}_flow2"], vectors[f"FlowNet2/{name}_flow2"])
    near(seen["flownets_1_input"][:, 6:], vectors["FlowNet2/flownets_1_input_b0_ch6to11"])
    near(seen["flownetfusion_input"], vectors["FlowNet2/fusion_input_b0"])


@pytest.mark.parametrize("case", ["sq128", "resize100x140"])
def test_teacher_is_the_public_wrapper(network, manifest, case):
    with np.load(PARITY / "vectors_flow_conf.npz") as held:
        v = {key.split("/")[1]: held[key] for key in held if key.startswith(case)}
    target, source = (
        (torch.from_numpy(v[f"img_{n}_u8"]).float().permute(2, 0, 1)[None] / 255 - 0.5) / 0.5 for n in "ab"
    )
    teacher, seen = FlowNet2Teacher(network("FlowNet2", rgb_max=1.0)), {}
    teacher.net.register_forward_hook(lambda _m, pair, flow: seen.update(pair=pair[0], flow=flow))
    flow, sure = teacher(target, source)
    near(seen["flow"], v["flow_net"])
    error = squared_error(*seen["pair"].unbind(2), seen["flow"])
    near(error, v["sqerr"])
    assert ((error < 0.02).numpy() == v["conf_net"])[abs(v["sqerr"] - 0.02) > TOLERANCE].all()
    ratio = [full / net for full, net in zip(flow.shape[2:], seen["flow"].shape[2:], strict=True)]
    width_mended = np.float32([ratio[1] / ratio[0], 1])[:, None, None]  # upstream: heights' ratio for both
    near(flow, v["flow"] * width_mended)
    assert set(sure.unique().tolist()) == {0.0, 1.0}
    if (
        case == "sq128"
    ):  # upstream resizes the other's confidence, which gives fractions; ours compares at full size
        assert (sure.numpy() == v["conf"])[abs(v["sqerr"] - 0.02) > TOLERANCE].all()


@pytest.mark.parametrize("shape", [(1, 3, 2, 64, 100), (1, 3, 2, 0, 64), (1, 3, 64, 64), (1, 2, 3, 64, 64)])
def test_pair_of_another_shape_is_named(shape):
    with pytest.raises(ShapeError, match=r"image pair: shape .* multiples of 64"):
        normalise(torch.zeros(shape), 1.0)


@pytest.fixture(scope="module")
def public() -> dict:
    """What a public file holds, with made-up weights that take no room."""
    shapes = {name: value.shape for name, value in empty_network(SMALL).state_dict().items()}
    values = {
        name: torch.full((1,), i / 64.0).expand(shape) for i, (name, shape) in enumerate(shapes.items())
    }
    return {"epoch": 0, "state_dict": OrderedDict(values), "best_EPE": 1e10}


@pytest.mark.parametrize("zipped", [True, False])
def test_public_file_is_converted(tmp_path, public, zipped):
    source, out = tmp_path / "FlowNet2-S_checkpoint.pth.tar", tmp_path / "s.safetensors"
    torch.save({**public, "arch": SMALL}, source, _use_new_zipfile_serialization=zipped)
    convert(source, out, SMALL)
    tensors, note = load_tensors(out)
    assert note == {"model": SMALL, "source": source.name}
    assert tensors.keys() == public["state_dict"].keys()
    net = load_network(out, SMALL)
    assert not net.training
    assert not any(p.requires_grad for p in net.parameters())
    assert all(value.equal(public["state_dict"][name]) for name, value in net.state_dict().items())


def saved(path: Path, held: object, **kw: bool) -> Path:
    torch.save(held, path, **kw)
    return path


def test_parameters_that_do_not_fit_are_listed(tmp_path, public):
    weights = dict(public["state_dict"])
    weights["conv9.weight"] = weights.pop("conv1.0.bias")
    weights["conv2.0.bias"] = torch.zeros(7)
    path = saved(tmp_path / "a.pth.tar", {"state_dict": weights})
    with pytest.raises(UserError) as caught:
        convert(path, tmp_path / "a.safetensors", SMALL)
    assert str(caught.value) == (
        f"--file {path}: does not fit FlowNet2S: 1 missing (conv1.0.bias); 1 left over (conv9.weight); "
        "1 other shape (conv2.0.bias (7,) not (128,)); give FlowNet2S's own file"
    )
    assert not (tmp_path / "a.safetensors").exists()


def test_many_faults_are_cut_short():
    needed = {f"w{i}": (1,) for i in range(10)}
    assert differences({}, needed) == ["10 missing (w0, w1, w2, w3, w4, w5, w6, w7 and 2 more)"]
    whole = {"w0": torch.zeros(1, dtype=torch.int64)}
    assert differences(whole, {"w0": (1,)}) == ["1 not floating point (w0)"]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickle_is_refused_and_does_nothing(tmp_path, zipped):
    mark = tmp_path / "owned"
    held = {"state_dict": {"w": torch.zeros(1)}, "epoch": Hostile(mark)}
    path = saved(tmp_path / "a.pth.tar", held, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=r"is refused: its pickle asks for \S*mkdir") as caught:
        read_public(path)
    assert "\n" not in str(caught.value)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("held", "words"),
    [
        (b"<!DOCTYPE html><title>Quota exceeded</title>", "is a web page, not a checkpoint"),
        (b"", "the file is empty"),
        (b"PK\x03\x04 and then nothing", "is damaged or cut off"),
        ({"epoch": 0}, "holds no `state_dict` of tensors"),
        ({"state_dict": {"w": 1}}, "holds no `state_dict` of tensors"),
        ([1], "holds no `state_dict` of tensors"),
        ({"state_dict": {}, "best_EPE": np.float64(3)}, "is refused: its pickle asks for numpy"),
    ],
)
def test_file_that_is_no_checkpoint_is_named(tmp_path, held, words):
    path = tmp_path / "a.pth.tar"
    path.write_bytes(held) if isinstance(held, bytes) else torch.save(held, path)
    with pytest.raises(UserError) as caught:
        read_public(path)
    assert str(caught.value).startswith(f"--file {path}: {words}")
