"""GRPO of a masked language model: a reward of one's own, groups of paths, the clipped ratio of PPO. ``python -m
examples.grpo``

The model is a tiny BERT of transformers, whose texts stand in a frame ``[CLS] ... [SEP]``. Paths are drawn without a
graph; every update asks the model for the probabilities of the stored paths again (`Rollout.token_log_probs`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

from discrete_distill import Frame, IntermediateStateMatcher, MaskedDiffusion, as_denoiser, group_advantages

PAD, CLS, SEP, MASK, END = 0, 1, 2, 3, 4
WORDS, LENGTH, PROMPTS, GROUP = 12, 8, 4, 8
CLIP, KL = 0.2, 0.01


def tiny_bert() -> BertForMaskedLM:
    shape = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForMaskedLM(BertConfig(vocab_size=WORDS, max_position_embeddings=16, pad_token_id=PAD, **shape))


def reward(x: Tensor, loss_mask: Tensor) -> Tensor:
    """Share of each text that is the word 7, ``[B]``."""
    return ((x == 7) & loss_mask).sum(1) / loss_mask.sum(1)


def main(steps: int = 30, updates: int = 2) -> dict[str, float]:
    """Return the mean reward of the first and of the last step, and the ratio before an update, which is 1."""
    torch.manual_seed(0)
    policy, reference = as_denoiser(tiny_bert()), as_denoiser(tiny_bert())
    reference.load_state_dict(policy.state_dict())
    process = MaskedDiffusion(MASK, forbidden_token_ids=[PAD, CLS, SEP])
    matcher = IntermediateStateMatcher(process, num_steps=(4,), end_token_id=END, end_policy="stop")
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(0)
    means, unchanged = [], 1.0
    for step in range(steps):
        with torch.no_grad():
            frame = Frame(LENGTH, prefix=[CLS], suffix=[SEP])
            rollout = matcher(policy, (PROMPTS * GROUP, frame), group_size=GROUP, generator=g)
            before, other = rollout.token_log_probs(), rollout.token_log_probs(reference)
        mask = rollout.loss_mask
        rewards = reward(rollout.sequences, mask)
        advantages = group_advantages(rewards, GROUP)[:, None]
        for update in range(updates):
            log_probs = rollout.token_log_probs(policy)
            ratio = (log_probs - before).exp()
            if update == 0:
                unchanged = float(ratio.detach().max())
            gain = torch.minimum(ratio * advantages, ratio.clamp(1.0 - CLIP, 1.0 + CLIP) * advantages)
            away = (other - log_probs).exp() - (other - log_probs) - 1.0  # k3, an unbiased estimate of the KL
            loss = ((KL * away - gain) * mask).sum() / mask.sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        means.append(float(rewards.mean()))
        if step % 10 == 0:
            kl = float((away.detach() * mask).sum(1).mean())
            print(f"step {step}: reward {means[-1]:.3f}, KL to the reference {kl:.3f}")
    print(f"reward of the last step {means[-1]:.3f}; greatest ratio before an update {unchanged}")
    return {"first": means[0], "last": means[-1], "unchanged": unchanged}


if __name__ == "__main__":
    main()
