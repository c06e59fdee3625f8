"""FlowNet2's three operations as Triton kernels, forward and backward. Inputs as checked in `ops`: float32, on CUDA."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

PIXELS = 32  # of one row and phase, in a program of the correlation
BLOCK = 256  # elements in a program of the others


@triton.jit
def _correlate(
    a, b, out, C, H, W, HO, WO, margin,
    R: tl.constexpr, S: tl.constexpr, PX: tl.constexpr, PU: tl.constexpr, PC: tl.constexpr,
):  # fmt: skip
    """One row of displacements for PX pixels, S apart: a product [PX, C] @ [C, PU] of which a band is kept."""
    N: tl.constexpr = 2 * R + 1
    batch, row_shift = tl.program_id(2) // N, tl.program_id(2) % N
    y_out, phase, block = tl.program_id(1), tl.program_id(0) % S, tl.program_id(0) // S
    step, u, c = tl.arange(0, PX), tl.arange(0, PU), tl.arange(0, PC)
    x_out = phase + (block * PX + step) * S
    y, x = y_out - margin, x_out - margin
    y_b, x_b = y + (row_shift - R) * S, phase - margin + (block * PX + u - R) * S
    in_a = (y >= 0) & (y < H) & (x >= 0) & (x < W)
    in_b = (y_b >= 0) & (y_b < H) & (x_b >= 0) & (x_b < W)
    total = tl.zeros((PX, PU), tl.float32)
    base = batch.to(tl.int64) * C * H * W
    for c0 in range(0, C, PC):
        at = base + (c0 + c).to(tl.int64) * H * W
        known = c0 + c < C
        first = tl.load(a + at[None, :] + (y * W + x)[:, None], known[None, :] & in_a[:, None], 0.0)
        second = tl.load(b + at[:, None] + (y_b * W + x_b)[None, :], known[:, None] & in_b[None, :], 0.0)
        total += tl.dot(first, second, input_precision="ieee")
    shift = u[None, :] - step[:, None]
    at = ((batch * N * N + row_shift * N + shift).to(tl.int64) * HO + y_out) * WO + x_out[:, None]
    tl.store(out + at, total / C, (shift >= 0) & (shift < N) & (x_out < WO)[:, None])


@triton.jit
def _correlate_back(
    grad, other, out, C, H, W, HO, WO, margin, SIGN: tl.constexpr,
    R: tl.constexpr, S: tl.constexpr, PX: tl.constexpr, PU: tl.constexpr, PC: tl.constexpr,
):  # fmt: skip
    """Gradient to `a` (SIGN 1: other is b, at here + displacement) or to `b` (SIGN -1: other is a, at here - it)."""
    N: tl.constexpr = 2 * R + 1
    n_blocks = tl.cdiv(C, PC)
    batch, c0 = tl.program_id(2) // n_blocks, tl.program_id(2) % n_blocks * PC
    y, phase, block = tl.program_id(1), tl.program_id(0) % S, tl.program_id(0) // S
    step, u, c = tl.arange(0, PX), tl.arange(0, PU), c0 + tl.arange(0, PC)
    x, x_other = phase + (block * PX + step) * S, phase + (block * PX + u - R) * S
    in_other = (x_other >= 0) & (x_other < W)
    shift = SIGN * (u[None, :] - R - step[:, None]) + R
    total = tl.zeros((PX, PC), tl.float32)
    plane = other + (batch * C + c).to(tl.int64)[None, :] * H * W
    for row_shift in range(N):
        y_other = y + SIGN * (row_shift - R) * S
        if SIGN == 1:
            y_out, x_out = y + margin, x[:, None] + margin
        else:
            y_out, x_out = y_other + margin, x_other[None, :] + margin
        banded = (shift >= 0) & (shift < N) & (y_out >= 0) & (y_out < HO) & (x_out >= 0) & (x_out < WO)
        at = ((batch * N * N + row_shift * N + shift).to(tl.int64) * HO + y_out) * WO + x_out
        weights = tl.load(grad + at, banded, 0.0)
        inside = in_other & (y_other >= 0) & (y_other < H)
        values = tl.load(plane + (y_other * W + x_other)[:, None], inside[:, None] & (c < C)[None, :], 0.0)
        total += tl.dot(weights, values, input_precision="ieee")
    at = (batch * C + c).to(tl.int64)[None, :] * H * W + (y * W + x)[:, None]
    tl.store(out + at, total / C, (x < W)[:, None] & (c < C)[None, :])


class _Correlation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, a: Tensor, b: Tensor, pad: int, max_displacement: int, stride: int
    ) -> Tensor:
        a, b = a.contiguous(), b.contiguous()
        n_b, c, h, w = a.shape
        margin, r = pad - max_displacement, max_displacement // stride
        n, height, width = 2 * r + 1, h + 2 * margin, w + 2 * margin
        tile = {"R": r, "S": stride, "PX": PIXELS, "PU": triton.next_power_of_2(PIXELS + 2 * r), "PC": 32}
        out = a.new_empty(n_b, n * n, height, width)
        grid = (_blocks(width, stride), height, n_b * n)
        _correlate[grid](a, b, out, c, h, w, height, width, margin, **tile)
        ctx.save_for_backward(a, b)
        ctx.margin, ctx.tile = margin, tile
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b = ctx.saved_tensors
        (n_b, c, h, w), grad = a.shape, grad.contiguous()
        grid = (_blocks(w, ctx.tile["S"]), h, n_b * triton.cdiv(c, ctx.tile["PC"]))
        found = []
        for other, sign, wanted in zip((b, a), (1, -1), ctx.needs_input_grad[:2], strict=True):
            found.append(torch.empty_like(a) if wanted else None)
            if wanted:
                sizes = (c, h, w, *grad.shape[2:], ctx.margin)
                _correlate_back[grid](grad, other, found[-1], *sizes, sign, **ctx.tile)
        return *found, None, None, None


def _blocks(width: int, stride: int) -> int:
    return stride * triton.cdiv(triton.cdiv(width, stride), PIXELS)


def correlation(a: Tensor, b: Tensor, pad: int, max_displacement: int, stride: int) -> Tensor:
    """See `ops.correlation`."""
    return _Correlation.apply(a, b, pad, max_displacement, stride)


@triton.jit
def _taps(flow, batch, i, inside, H, W):
    """The four neighbours' offsets, and both shares, of the pixels i that the flow leads to."""
    at = flow + batch.to(tl.int64) * 2 * H * W + i
    x, y = i % W + tl.load(at, inside, 0.0), i // W + tl.load(at + H * W, inside, 0.0)
    left, top = tl.floor(x), tl.floor(y)
    a, b = x - left, y - top
    x0, x1 = _inside(left, W), _inside(left + 1, W)
    y0, y1 = _inside(top, H) * W, _inside(top + 1, H) * W
    return y0 + x0, y0 + x1, y1 + x0, y1 + x1, a, b


@triton.jit
def _inside(position, size):
    """Clamped as a float: so neither NaN nor infinity becomes a wild address."""
    kept = tl.where(position > 0, position, 0.0)
    return tl.where(kept < size - 1, kept, size - 1.0).to(tl.int32)


@triton.jit
def _resample(image, flow, out, C, H, W, BLOCK: tl.constexpr):
    i, batch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = i < H * W
    nw, ne, sw, se, a, b = _taps(flow, batch, i, inside, H, W)
    for c in range(C):
        at = (batch * C + c).to(tl.int64) * H * W
        upper = (1 - a) * (1 - b) * tl.load(image + at + nw) + a * (1 - b) * tl.load(image + at + ne)
        lower = (1 - a) * b * tl.load(image + at + sw) + a * b * tl.load(image + at + se)
        tl.store(out + at + i, upper + lower, inside)


@triton.jit
def _resample_back(image, flow, grad, to_image, to_flow, C, H, W, BLOCK: tl.constexpr):
    i, batch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    inside = i < H * W
    nw, ne, sw, se, a, b = _taps(flow, batch, i, inside, H, W)
    to_x, to_y = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32)
    for c in range(C):
        at = (batch * C + c).to(tl.int64) * H * W
        g = tl.load(grad + at + i, inside, 0.0)
        p, q = tl.load(image + at + nw), tl.load(image + at + ne)
        r, s = tl.load(image + at + sw), tl.load(image + at + se)
        to_x += g * ((1 - b) * (q - p) + b * (s - r))
        to_y += g * ((1 - a) * (r - p) + a * (s - q))
        tl.atomic_add(to_image + at + nw, g * (1 - a) * (1 - b), inside)
        tl.atomic_add(to_image + at + ne, g * a * (1 - b), inside)
        tl.atomic_add(to_image + at + sw, g * (1 - a) * b, inside)
        tl.atomic_add(to_image + at + se, g * a * b, inside)
    at = batch.to(tl.int64) * 2 * H * W + i
    tl.store(to_flow + at, to_x, inside)
    tl.store(to_flow + at + H * W, to_y, inside)


class _Resample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, image: Tensor, flow: Tensor) -> Tensor:
        image, flow = image.contiguous(), flow.contiguous()
        n_b, c, h, w = image.shape
        out = torch.empty_like(image)
        _resample[(triton.cdiv(h * w, BLOCK), n_b)](image, flow, out, c, h, w, BLOCK)
        ctx.save_for_backward(image, flow)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor]:
        image, flow = ctx.saved_tensors
        n_b, c, h, w = image.shape
        to_image, to_flow = torch.zeros_like(image), torch.empty_like(flow)
        grid = (triton.cdiv(h * w, BLOCK), n_b)
        _resample_back[grid](image, flow, grad.contiguous(), to_image, to_flow, c, h, w, BLOCK)
        return to_image, to_flow


def resample2d(image: Tensor, flow: Tensor) -> Tensor:
    """See `ops.resample2d`."""
    return _Resample.apply(image, flow)


@triton.jit
def _norm(x, out, C, HW, BLOCK: tl.constexpr):
    i, batch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    total = tl.zeros((BLOCK,), tl.float32)
    for c in range(C):
        value = tl.load(x + (batch * C + c).to(tl.int64) * HW + i, i < HW, 0.0)
        total += value * value
    tl.store(out + batch.to(tl.int64) * HW + i, tl.sqrt_rn(total), i < HW)


@triton.jit
def _norm_back(x, norm, grad, out, C, HW, BLOCK: tl.constexpr):
    i, batch = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK), tl.program_id(1)
    one = batch.to(tl.int64) * HW + i
    scale = tl.load(grad + one, i < HW, 0.0) / (tl.load(norm + one, i < HW, 1.0) + 1e-9)
    for c in range(C):
        at = (batch * C + c).to(tl.int64) * HW + i
        tl.store(out + at, scale * tl.load(x + at, i < HW, 0.0), i < HW)


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        x = x.contiguous()
        n_b, c, h, w = x.shape
        out = x.new_empty(n_b, 1, h, w)
        _norm[(triton.cdiv(h * w, BLOCK), n_b)](x, out, c, h * w, BLOCK)
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        x, norm = ctx.saved_tensors
        n_b, c, h, w = x.shape
        out = torch.empty_like(x)
        grid = (triton.cdiv(h * w, BLOCK), n_b)
        _norm_back[grid](x, norm, grad.contiguous(), out, c, h * w, BLOCK)
        return out


def channel_norm(x: Tensor) -> Tensor:
    """See `ops.channel_norm`."""
    return _ChannelNorm.apply(x)
