"""Maximum mean discrepancy between tokens of student and data in the features of a frozen network.

    MMD^2 = E k(f, f') - 2 E k(f, g) + E k(g, g'),     f, f' of two student sequences, g, g' of two of data

with ``f`` the feature of a uniformly drawn token of a sequence (Gretton et al., "A Kernel Two-Sample Test", 2012). Its
gradient is that of a cost: ``grad MMD^2 = E[ R(x) grad log p(x) ]`` with ``R(x) = 2 mean_i w(f_i)`` and the witness
``w(.) = E k(., f') - E k(., g)``. So it goes where a log-ratio goes, with no network to train.

Shape suffixes: B student sequences, M reference sequences, L length, D width of features, N tokens.
"""

from __future__ import annotations

import torch
from einops import reduce
from torch import Tensor

from ...checks import check_count, check_floats, check_mask, check_number

ROWS_AT_ONCE = 4096
TOKENS_FOR_BANDWIDTH = 512
SMALLEST_BANDWIDTH = 1e-18  # of which the square is a number in fp32


def rbf_kernel(first_ND: Tensor, second_MD: Tensor, bandwidth: Tensor) -> Tensor:
    """``exp(-|f - g|^2 / (2 bandwidth^2))``, ``[N, M]``; the distance through one matrix product.

    In the precision of the features, whatever the autocast setting: the distance is a small difference of large
    numbers.

    Raises:
        ValueError: if the bandwidth is not positive, looked at on a CPU alone, or the features are not ``[N, D]`` and
            ``[M, D]`` with a ``D`` of 1 or more.
        TypeError: if the features are no floating-point numbers.

    Examples:
        >>> rbf_kernel(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0]]), torch.tensor(1.0))  # 1 and exp(-2)
        tensor([[1.0000],
                [0.1353]])
    """
    check_floats("first_ND", first_ND)
    check_floats("second_MD", second_MD)
    if first_ND.dim() != 2 or second_MD.dim() != 2 or not first_ND.shape[1] == second_MD.shape[1] > 0:
        raise ValueError(f"features must be [N, D] and [M, D], got {list(first_ND.shape)} and {list(second_MD.shape)}")
    if first_ND.dtype != second_MD.dtype:
        raise TypeError(f"features of one precision are compared, got {first_ND.dtype} and {second_MD.dtype}")
    check_bandwidth(bandwidth)
    with torch.autocast(first_ND.device.type, enabled=False):
        return _rbf_kernel(first_ND, second_MD, bandwidth)


def check_bandwidth(bandwidth: float | Tensor) -> None:
    """Refuse a bandwidth that is not positive and finite, or whose square is not; one on another device than a CPU is
    not looked at.
    """
    if isinstance(bandwidth, Tensor):
        if bandwidth.device.type != "cpu":
            return
        if bandwidth.numel() != 1:
            raise ValueError(f"the bandwidth of a kernel is one number, got shape {list(bandwidth.shape)}")
        bandwidth = float(bandwidth.detach())
    check_number("bandwidth", bandwidth, minimum=SMALLEST_BANDWIDTH, maximum=1.0 / SMALLEST_BANDWIDTH)


def _rbf_kernel(first_ND: Tensor, second_MD: Tensor, bandwidth: Tensor) -> Tensor:
    square = first_ND.square().sum(1)[:, None] + second_MD.square().sum(1) - 2.0 * first_ND @ second_MD.T
    return torch.exp(-0.5 * square.clamp(min=0.0) / bandwidth.square())


def median_bandwidth(features_ND: Tensor) -> Tensor:
    """Median distance between different tokens, of at most 512 of them, evenly spaced; a scalar above 0.

    Taken of the reference alone: a bandwidth of student samples would make their rewards dependent.

    Raises:
        TypeError: if the features are no floating-point numbers.
        ValueError: if they are not ``[N, D]`` with a ``D`` of 1 or more, or there are none.

    Examples:
        >>> median_bandwidth(torch.tensor([[0.0], [1.0], [2.0]]))  # Distances are 1, 1 and 2.
        tensor(1.)
    """
    check_floats("features_ND", features_ND)
    if features_ND.dim() != 2 or not features_ND.numel():
        raise ValueError(f"features must be [N, D] of one token or more, got {list(features_ND.shape)}")
    stride = max(1, len(features_ND) // TOKENS_FOR_BANDWIDTH)
    chosen_ND = features_ND[::stride][:TOKENS_FOR_BANDWIDTH]
    distance = torch.pdist(chosen_ND) if len(chosen_ND) > 1 else chosen_ND.new_ones(1)
    return distance.median().clamp(min=1e-6)


def token_witness(
    student_BLD: Tensor,
    reference_MLD: Tensor,
    *,
    group_size: int = 1,
    loss_mask_BL: Tensor | None = None,
    bandwidth: float | Tensor | None = None,
) -> Tensor:
    """``w(f_i)`` at every token of the student, ``[B, L]``; positive where the student has more mass than the data.

    The student's distribution is estimated from the sequences of *other groups*. A pair of tokens of one sequence is
    thus never counted (the U-statistic: ``w`` is unbiased), and what a sequence is compared with in its own group,
    the mean of the others, does not depend on it: REINFORCE with a leave-one-out baseline stays unbiased. Comparing
    with all other sequences would not be: each is then in the reward of the others.

    Args:
        student_BLD: features of student sequences, groups of consecutive rows.
        reference_MLD: features of data.
        group_size: must divide B, and leave two groups.
        loss_mask_BL: bool, tokens of the student that count (all, by default); the same positions count in the
            reference when it has as many rows. Each sequence counts alike, however many of its tokens do; one of which
            none does is left out.
        bandwidth: of the kernel; `median_bandwidth` of the reference by default.

    Raises:
        ValueError: if shapes do not fit, or there are no two groups.

    Examples:
        >>> student, reference = torch.zeros(4, 2, 1), torch.full((4, 2, 1), 100.0)
        >>> token_witness(student, reference, bandwidth=1.0)[0]  # Only student tokens are near.
        tensor([1., 1.])
    """
    _check(student_BLD, reference_MLD, group_size)
    batch, length, width = student_BLD.shape
    check_mask("loss_mask_BL", loss_mask_BL, (batch, length), of="features")
    loss_mask = torch.ones(batch, length, dtype=torch.bool, device=student_BLD.device)
    loss_mask = loss_mask if loss_mask_BL is None else loss_mask_BL
    loss_mask_reference = loss_mask if len(reference_MLD) == batch else torch.ones_like(reference_MLD[..., 0]).bool()
    reference_ND = reference_MLD[loss_mask_reference].float()
    if bandwidth is not None:
        check_bandwidth(bandwidth)
    scale = median_bandwidth(reference_ND) if bandwidth is None else torch.as_tensor(bandwidth).to(reference_ND)
    tokens_ND = torch.where(loss_mask[..., None], student_BLD, 0.0).reshape(-1, width).float()
    groups = batch // group_size
    weight_N, sequences = _token_weights(loss_mask)
    weight_N = torch.zeros(batch * length, device=weight_N.device).masked_scatter(loss_mask.flatten(), weight_N)
    reference_N, references = _token_weights(loss_mask_reference)
    in_group = reduce(sequences, "(n g) -> n", "sum", g=group_size)
    others = (in_group.sum() - in_group).clamp(min=1.0).repeat_interleave(group_size * length)
    rows = []
    for start in range(0, len(tokens_ND), ROWS_AT_ONCE):
        chunk_ND = tokens_ND[start : start + ROWS_AT_ONCE]
        alike = rbf_kernel(chunk_ND, tokens_ND, scale) * weight_N
        by_group = reduce(alike, "i (n j) -> i n", "sum", n=groups)
        own = torch.arange(start, start + len(chunk_ND), device=by_group.device) // (group_size * length)
        student = (by_group.sum(1) - by_group.gather(1, own[:, None]).squeeze(1)) / others[start : start + len(own)]
        against = rbf_kernel(chunk_ND, reference_ND, scale) @ reference_N
        rows.append(student - against / references.sum().clamp(min=1.0))
    return torch.where(loss_mask, torch.cat(rows).view(batch, length), 0.0)


def _token_weights(loss_mask_BL: Tensor) -> tuple[Tensor, Tensor]:
    """Weight of every counted token, ``1 / n`` in a sequence of ``n``, ``[N]``; and 1 for every sequence that has one,
    ``[B]``."""
    size_B = loss_mask_BL.sum(1).float()
    weight_B = 1.0 / size_B.clamp(min=1.0)
    return weight_B[:, None].expand(loss_mask_BL.shape)[loss_mask_BL], (size_B > 0).float()


def mmd_squared(student_BLD: Tensor, reference_MLD: Tensor, *, bandwidth: float | Tensor | None = None) -> Tensor:
    """Unbiased estimate of ``MMD^2`` between tokens, a scalar; negative values are noise around zero.

    Raises:
        ValueError: if shapes do not fit, or either side has fewer than two sequences.

    Examples:
        >>> student, reference = torch.zeros(4, 2, 1), torch.full((4, 2, 1), 100.0)
        >>> mmd_squared(student, reference, bandwidth=1.0)  # Alike within a set, and nothing in common: 1 + 1 - 0.
        tensor(2.)
    """
    _check(student_BLD, reference_MLD, 1)
    if len(reference_MLD) < 2:
        raise ValueError(f"MMD needs two reference sequences or more, got {len(reference_MLD)}")
    if bandwidth is not None:
        check_bandwidth(bandwidth)
    scale = median_bandwidth(reference_MLD.flatten(0, 1).float()) if bandwidth is None else bandwidth
    against_reference = token_witness(student_BLD, reference_MLD, bandwidth=scale).mean()
    against_student = token_witness(reference_MLD, student_BLD, bandwidth=scale).mean()
    return against_reference + against_student


def _check(student_BLD: Tensor, reference_MLD: Tensor, group_size: int) -> None:
    check_floats("student_BLD", student_BLD)
    check_floats("reference_MLD", reference_MLD)
    empty = not student_BLD.numel() or not reference_MLD.numel()
    if {student_BLD.dim(), reference_MLD.dim()} != {3} or student_BLD.shape[2] != reference_MLD.shape[2] or empty:
        raise ValueError(
            f"features must be [B, L, D] and [M, L, D], got {list(student_BLD.shape)} and {list(reference_MLD.shape)}"
        )
    check_count("group_size", group_size)
    if len(student_BLD) % group_size or len(student_BLD) < 2 * group_size:
        raise ValueError(
            f"a witness needs two whole groups or more: {len(student_BLD)} sequences in groups of {group_size}; "
            "give a larger batch or smaller groups"
        )
