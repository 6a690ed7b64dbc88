"""LLaDA's `generate` at temperature 0 (arXiv 2502.09992), one sequence at a time, after the published algorithm."""

from __future__ import annotations

import torch
from torch import Tensor


def tokens_of_each_step(masks: int, steps: int) -> list[int]:
    """`get_num_transfer_tokens`: as equal as they can be, the first ones greater."""
    return [masks // steps + (step < masks % steps) for step in range(steps)]


def generate(
    network,
    prompt: list[int],
    gen_length: int,
    block_length: int,
    steps_per_block: int,
    mask: int,
    cfg_scale: float = 0.0,
) -> list[int]:
    """Low-confidence remasking, block after block from the end of the prompt; the last block may be shorter."""
    x = torch.tensor([prompt + [mask] * gen_length])
    end, is_prompt = x.shape[1], x != mask
    for low in range(len(prompt), end, block_length):
        high = min(low + block_length, end)
        for amount in tokens_of_each_step(int((x[:, low:high] == mask).sum()), steps_per_block):
            logits = network(x)
            if cfg_scale > 0.0:
                empty = network(torch.where(is_prompt, mask, x))
                logits = empty + (cfg_scale + 1.0) * (logits - empty)
            logits[..., mask] = -torch.inf
            best = logits.softmax(-1).max(-1)
            confidence = torch.where(x == mask, best.values, -torch.inf)
            confidence[:, high:] = -torch.inf
            chosen = confidence[0].topk(amount).indices
            x[0, chosen] = best.indices[0, chosen]
    return x[0].tolist()


class Convolution:
    """Random logits, fp64, by the tokens at each distance: moved with the sequence, and blind to padding."""

    def __init__(self, num_ids: int, reach: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.reach = reach
        self.weights = torch.randn(2 * reach + 1, num_ids, num_ids, generator=generator, dtype=torch.float64)
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor | None = None, attention_mask: Tensor | None = None) -> Tensor:
        self.calls += 1
        place = torch.arange(x.shape[1])
        distance = place - place[:, None] + self.reach
        answers = self.weights[distance[None], x[:, None, :]]
        if attention_mask is not None:
            answers = answers * attention_mask[:, None, :, None]
        return answers.sum(2)


def decode_by_threshold(
    network, prompt: list[int], gen_length: int, block_length: int, mask: int, threshold: float
) -> tuple[list[int], int]:
    """Fast-dLLM's parallel decoding (arXiv 2505.22618) of one sequence, and its calls: every token above the threshold,
    and the surest."""
    x, calls = torch.tensor([prompt + [mask] * gen_length]), 0
    for low in range(len(prompt), x.shape[1], block_length):
        high = min(low + block_length, x.shape[1])
        while bool((x[:, low:high] == mask).any()):
            logits, calls = network(x)[0], calls + 1
            logits[:, mask] = -torch.inf
            best = logits.softmax(-1).max(-1)
            hidden = [i for i in range(low, high) if int(x[0, i]) == mask]
            surest = max(hidden, key=lambda i: float(best.values[i]))
            for i in hidden:
                if i == surest or float(best.values[i]) >= threshold:
                    x[0, i] = best.indices[i]
    return x[0].tolist(), calls


def decode_by_factor(network, length: int, mask: int, factor: float) -> list[int]:
    """Fast-dLLM's dynamic rule: the longest prefix, by confidence, with ``(n + 1) (1 - c_n) <= factor``, or one."""
    x = torch.full((1, length), mask)
    while bool((x == mask).any()):
        logits = network(x)[0]
        logits[:, mask] = -torch.inf
        best = logits.softmax(-1).max(-1)
        hidden = sorted((i for i in range(length) if int(x[0, i]) == mask), key=lambda i: -float(best.values[i]))
        for n, i in enumerate(hidden, start=1):
            if n > 1 and (n + 1) * (1.0 - float(best.values[i])) > factor:
                break
            x[0, i] = best.indices[i]
    return x[0].tolist()
