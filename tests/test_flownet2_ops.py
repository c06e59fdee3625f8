"""Correlation, warp and channel norm: golden vectors, edges, gradients; Triton against PyTorch."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from third_party.flownet2 import torch_ops
from third_party.flownet2.ops import channel_norm, correlation, resample2d
from util.errors import ShapeError

REPO = Path(__file__).resolve().parents[1]
VECTORS = REPO.parent / "shared" / "parity" / "flownet2" / "vectors_ops.npz"
CORRELATIONS = {  # pad, max_displacement, stride
    "corr_default": (20, 20, 2),
    "corr_b2": (20, 20, 2),
    "corr_small_p4_d4_s2": (4, 4, 2),
    "corr_p3_d2_s1": (3, 2, 1),
}
RESAMPLES = ["resample_sc0.7", "resample_sc3", "resample_sc20"]


@pytest.fixture(scope="module")
def vectors() -> dict[str, Tensor]:
    if not VECTORS.is_file():
        pytest.skip(f"no parity vectors at {VECTORS}")
    with np.load(VECTORS) as held:
        return {key: torch.from_numpy(held[key]) for key in held}


def agrees(vectors: dict[str, Tensor], case: str, op, *names: str) -> None:
    """Output and every gradient are the golden ones."""
    inputs = [vectors[f"{case}/{n}"].clone().requires_grad_() for n in names]
    out = op(*inputs)
    out.backward(vectors[f"{case}/grad_out"])
    for actual, name in [(out, "out"), *((x.grad, f"grad_{n}") for x, n in zip(inputs, names, strict=True))]:
        torch.testing.assert_close(actual, vectors[f"{case}/{name}"], rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CORRELATIONS)
def test_correlation_is_the_public_one(vectors, case):
    agrees(vectors, case, lambda a, b: correlation(a, b, *CORRELATIONS[case]), "in1", "in2")


@pytest.mark.parametrize("case", RESAMPLES)
def test_warp_is_the_public_one(vectors, case):
    agrees(vectors, case, resample2d, "img", "flow")


def test_channel_norm_is_the_public_one(vectors):
    agrees(vectors, "channelnorm", channel_norm, "x")


def plain_correlation(a: Tensor, b: Tensor, pad: int, reach: int, stride: int) -> Tensor:
    """The definition, one displacement after the other."""
    a, b = (torch.nn.functional.pad(x, (pad,) * 4) for x in (a, b))
    height, width = (side - 2 * reach for side in a.shape[2:])
    middle = a[:, :, reach : reach + height, reach : reach + width]
    shifts = [reach + stride * t for t in range(-(reach // stride), reach // stride + 1)]
    return torch.stack(
        [(middle * b[:, :, y : y + height, x : x + width]).mean(1) for y in shifts for x in shifts], 1
    )


SETTINGS = [(20, 20, 2), (4, 4, 2), (3, 2, 1), (2, 4, 2), (5, 5, 2), (3, 6, 3), (7, 4, 3), (0, 1, 1)]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("shape", [(2, 3, 9, 12), (1, 5, 10, 9)])
def test_correlation_is_its_definition(setting, shape):
    a, b = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(correlation(a, b, *setting), plain_correlation(a, b, *setting))
    swapped = [x.to(memory_format=torch.channels_last) for x in (a, b)]
    torch.testing.assert_close(correlation(*swapped, *setting), plain_correlation(a, b, *setting))


def test_gradients_are_exact():
    g = torch.Generator().manual_seed(2)
    a, b, flow = (torch.randn(1, c, 4, 5, generator=g, dtype=torch.float64) for c in (2, 2, 2))
    inputs = [x.requires_grad_() for x in (a, b, flow)]
    assert torch.autograd.gradcheck(lambda x, y: correlation(x, y, 2, 2, 2), inputs[:2])
    assert torch.autograd.gradcheck(resample2d, (inputs[0], inputs[2]))
    assert torch.autograd.gradcheck(channel_norm, inputs[:1])
    assert torch.autograd.gradgradcheck(lambda x, y: correlation(x, y, 2, 2, 2), inputs[:2])


def test_zero_flow_changes_nothing_and_far_flow_repeats_the_border():
    image = torch.rand(2, 3, 5, 7)
    assert resample2d(image, torch.zeros(2, 2, 5, 7)).equal(image)
    for far, expected in ((1e30, image[..., -1:, -1:]), (-1e30, image[..., :1, :1])):
        assert resample2d(image, torch.full((2, 2, 5, 7), far)).equal(expected.expand_as(image))


def test_flow_without_a_number_gives_none_and_does_not_crash():
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, 0, 1, 2], flow[0, 1, 3, 3] = torch.nan, torch.inf
    out = resample2d(torch.rand(1, 3, 4, 4), flow)
    assert out.isnan().any(1).nonzero().tolist() == [[0, 1, 2], [0, 3, 3]]


def test_norm_of_nothing_has_no_gradient():
    x = torch.zeros(1, 3, 2, 2, requires_grad=True)
    channel_norm(x).sum().backward()
    assert x.grad.equal(torch.zeros_like(x))


def test_batch_of_two_is_two_of_one():
    a, b = torch.rand(2, 2, 4, 8, 8)
    torch.testing.assert_close(correlation(a, b)[1:], correlation(a[1:], b[1:]))


def test_shapes_that_do_not_fit_are_named():
    image = torch.zeros(1, 3, 4, 5)
    with pytest.raises(ShapeError, match="of the correlation: shape"):
        correlation(image, image[..., :4])
    with pytest.raises(ShapeError, match="flow: shape"):
        resample2d(image, torch.zeros(1, 2, 5, 4))


def check_triton(device: str, settings: list[tuple[int, int, int]], shape: tuple[int, ...]) -> None:
    """Triton's outputs and gradients are PyTorch's."""
    from third_party.flownet2 import triton_ops

    n, _, h, w = shape
    g = torch.Generator().manual_seed(3)
    a, b = (torch.randn(shape, generator=g).to(device) for _ in "ab")
    flow = (torch.randn(n, 2, h, w, generator=g) * 4 + 0.3).to(device)
    cases = [("correlation", (a, b), s) for s in settings]
    cases += [("resample2d", (a, flow), ()), ("channel_norm", (a,), ())]
    for name, inputs, setting in cases:
        found = []
        for module in (torch_ops, triton_ops):
            own = [x.clone().requires_grad_() for x in inputs]
            out = getattr(module, name)(*own, *setting)
            found.append(
                [
                    out,
                    *torch.autograd.grad(
                        out, own, torch.cos(torch.arange(1.0, out.numel() + 1)).to(out).view_as(out)
                    ),
                ]
            )
        for expected, actual in zip(*found, strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")
@pytest.mark.parametrize("shape", [(2, 256, 32, 32), (1, 40, 17, 70), (2, 3, 9, 12)])
def test_triton_agrees_on_the_gpu(shape):
    pytest.importorskip("triton")
    torch.backends.cuda.matmul.allow_tf32 = False
    check_triton("cuda", SETTINGS, shape)


@pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed (it comes with CUDA builds of torch)"
)
def test_triton_agrees_in_its_interpreter():
    code = (
        "from tests.test_flownet2_ops import check_triton\n"
        "check_triton('cpu', [(4, 4, 2), (3, 2, 1)], (2, 3, 3, 7))"
    )
    env = {
        **os.environ,
        "TRITON_INTERPRET": "1",
    }  # read when the kernels are defined, so in a process of its own
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
