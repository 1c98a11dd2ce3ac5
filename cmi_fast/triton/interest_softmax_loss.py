"""``interest_softmax_loss`` in Triton."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from cmi_fast.triton.kernels.interest_softmax_loss import (
    Inputs,
    Tile,
    candidate_gradient_kernel,
    forward_kernel,
    user_gradient_kernel,
    weight_kernel,
)
from cmi_fast.triton.launch import half_range, launch, tile_sizes
from cmi_fast.triton.rows import as_pointer, unwanted
from cmi_fast.triton.tuning import run_tuned

# Of products in the type of that many bytes: rows of interests and candidates that autotuning tries.
TILES_TO_TRY = {2: ((32, 64), (64, 64), (128, 32)), 4: ((16, 32), (32, 32), (64, 16)), 8: ()}


def forward(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None,
    candidate_bias: Tensor | None,
    exclude: Tensor | None,
    candidate_ids: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    fp32_precision: str,
) -> tuple[Tensor, Tensor]:
    """Losses [B], and the log-sum-exp over the candidates that count beside the target [B]."""
    x, tiles = _prepare(
        interests,
        candidates,
        targets,
        general,
        candidate_bias,
        exclude,
        candidate_ids,
        temperature,
        temperature_tensor,
        fp32_precision,
    )
    losses = interests.new_empty(x.users, dtype=x.temperature.dtype)
    log_sum = torch.empty_like(losses)

    def run(tile: Tile) -> None:
        launch(forward_kernel, (triton.cdiv(x.users, tile.USERS),), x, log_sum, losses, TILE=tile)

    run_tuned(("interest_softmax_loss", *_kind(x, tiles)), tiles, run)
    return losses, log_sum


def backward(
    losses_grad: Tensor,
    log_sum: Tensor,
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None,
    candidate_bias: Tensor | None,
    exclude: Tensor | None,
    candidate_ids: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    fp32_precision: str,
    interests_grad: bool,
    candidates_grad: bool,
    general_grad: bool,
    candidate_bias_grad: bool,
    temperature_grad: bool,
) -> tuple[Tensor, ...]:
    x, tiles = _prepare(
        interests,
        candidates,
        targets,
        general,
        candidate_bias,
        exclude,
        candidate_ids,
        temperature,
        temperature_tensor,
        fp32_precision,
    )
    losses_grad, unscale = half_range(losses_grad, interests.dtype)
    weight = torch.empty_like(log_sum)
    tile = tiles[0][0]
    chunks = triton.cdiv(tile.D, tile.CHUNK)
    grid = (triton.cdiv(x.users, tile.USERS),)
    launch(weight_kernel, grid, x, losses_grad.contiguous(), log_sum, weight, TILE=tile)

    def empty(like: Tensor | None, wanted: bool) -> Tensor | None:
        return torch.empty_like(like, memory_format=torch.contiguous_format) if like is not None and wanted else None

    of_interests, of_general = empty(interests, interests_grad), empty(general, general_grad)
    along = empty(log_sum, temperature_grad)
    if interests_grad or general_grad or temperature_grad:
        results = of_interests, of_general, along

        def run_users(tile: Tile) -> None:
            grid = triton.cdiv(x.users, tile.USERS), chunks
            launch(user_gradient_kernel, grid, x, log_sum, weight, unscale, *results, TILE=tile)

        run_tuned(("interest_softmax_loss users", *_kind(x, tiles)), tiles, run_users)
    of_candidates, of_bias = empty(candidates, candidates_grad), empty(candidate_bias, candidate_bias_grad)
    if candidates_grad or candidate_bias_grad:

        def run_candidates(tile: Tile) -> None:
            grid = triton.cdiv(x.candidate_count, tile.CANDIDATES), chunks
            launch(candidate_gradient_kernel, grid, x, log_sum, weight, unscale, of_candidates, of_bias, TILE=tile)

        run_tuned(("interest_softmax_loss candidates", *_kind(x, tiles)), tiles, run_candidates)
    of_temperature = None if along is None else along.sum()
    gradients = of_interests, of_candidates, of_general, of_bias, of_temperature
    return tuple(unwanted(interests) if gradient is None else gradient for gradient in gradients)


def _prepare(
    interests: Tensor,
    candidates: Tensor,
    targets: Tensor,
    general: Tensor | None,
    candidate_bias: Tensor | None,
    exclude: Tensor | None,
    candidate_ids: Tensor | None,
    temperature: float,
    temperature_tensor: Tensor | None,
    fp32_precision: str,
) -> tuple[Inputs, list[tuple[Tile]]]:
    """Inputs; tiles, the rule's first."""
    users, m, d = interests.shape
    rows, columns, chunk = tile_sizes(interests.dtype, d)
    padded = triton.next_power_of_2(m)
    inputs = Inputs(
        interests.contiguous(),
        candidates.contiguous(),
        targets.contiguous(),
        None if general is None else general.contiguous(),
        None if candidate_bias is None else candidate_bias.contiguous(),
        None if exclude is None else exclude.contiguous().view(torch.uint8),
        None if candidate_ids is None else candidate_ids.contiguous(),
        as_pointer(temperature, temperature_tensor, interests),
        users,
        len(candidates),
    )
    sizes = (rows, max(16, columns // 2)), *TILES_TO_TRY[interests.dtype.itemsize]
    return inputs, [
        (Tile(fp32_precision, m, d, max(1, rows // padded), padded, columns, chunk),) for rows, columns in sizes
    ]


def _kind(x: Inputs, tiles: list[tuple[Tile]]) -> tuple[object, ...]:
    """What the fastest tile depends on, for autotuning."""
    counts = triton.next_power_of_2(x.users), triton.next_power_of_2(x.candidate_count)
    return x.interests.dtype, x.interests.device, *counts, tiles[0], x.general is None
