"""Grouped advantages alone in a GRPO-like loop on a tiny causal model. ``python -m
examples.grouped_advantages_in_grpo``

Nothing of diffusion here: prompts, groups of completions, a reward of one's own, and `group_advantages` in between.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from discrete_distill import group_advantages

PROMPTS, GROUP, NEW, WORDS = 8, 8, 8, 10


@torch.no_grad()
def complete(model: GPT2LMHeadModel, prompts: Tensor, g: torch.Generator) -> Tensor:
    """Prompts with ``NEW`` tokens drawn after them."""
    ids = prompts
    for _ in range(NEW):
        probs = model(input_ids=ids).logits[:, -1].softmax(-1)
        ids = torch.cat([ids, torch.multinomial(probs, 1, generator=g)], dim=1)
    return ids


def main(steps: int = 60) -> dict[str, float]:
    """Reward: how often the completion repeats the first token of its own prompt."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_positions=16, n_embd=32, n_layer=2, n_head=2, **ends))
    model.eval()  # no dropout: the model that draws is the model that is scored
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    g = torch.Generator().manual_seed(0)
    means = []
    for step in range(steps):
        prompts = torch.randint(WORDS, (PROMPTS, 2), generator=g).repeat_interleave(GROUP, dim=0)
        ids = complete(model, prompts, g)
        rewards = (ids[:, 2:] == ids[:, :1]).float().mean(1)
        advantages = group_advantages(rewards, GROUP, baseline="leave_one_out", scale="batch", clip=3.0)
        log_probs = model(input_ids=ids).logits[:, 1:-1].log_softmax(-1).gather(-1, ids[:, 2:, None]).squeeze(-1)
        (-(advantages[:, None] * log_probs).mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
        means.append(float(rewards.mean()))
        if step % 10 == 0:
            print(f"step {step}: reward {means[-1]:.3f}, greatest advantage {float(advantages.max()):.2f}")
    print(f"reward of the last step {means[-1]:.3f}; by chance {1 / WORDS:.3f}")
    return {"first": means[0], "last": means[-1]}


if __name__ == "__main__":
    main()
