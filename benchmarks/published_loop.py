"""One training step of DiDi-Instruct as its authors' repository computes it, for comparison of cost.

Written from the description of the method (arXiv 2509.25035, Algorithm 1) and from what their loop evaluates: the
student
runs twice in every state of the path (to sample, then for the gradient), the all-mask state is evaluated for every
row, the chain of softmax and draws runs over all ``[B, L, V]``, and the discriminator runs again for the reward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from discrete_distill.distillation.methods import DiDiInstructConfig
from discrete_distill.distillation.rewards import group_advantages
from discrete_distill.models import masked_mean
from discrete_distill.process import MaskedDiffusion


def substituted_log_probs(process: MaskedDiffusion, network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """Log-probabilities over all positions and tokens, ``[B, L, V]``."""
    return process.log_probs(network(x_t, t), x_t)


def joint_draw(process: MaskedDiffusion, log_probs: Tensor, x_t: Tensor, t: Tensor, s: Tensor, g: Generator) -> Tensor:
    """Mask and token in one categorical over the whole vocabulary, by exponential noise."""
    move, stay = (process.unmask_probability(t, s), 1.0 - process.unmask_probability(t, s))
    joint = log_probs.exp() * move[:, None, None]
    joint[..., process.mask_token_id] = stay[:, None]
    noise = torch.empty_like(joint).exponential_(generator=g)
    return torch.where(process.is_masked(x_t), (joint / noise).argmax(-1), x_t)


class PublishedLoop:
    """Losses of one step; the caller runs the backward passes and the optimisers."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        discriminator: nn.Module,
        process: MaskedDiffusion,
        config: DiDiInstructConfig,
    ) -> None:
        self.student, self.teacher, self.discriminator = student, teacher, discriminator
        self.process, self.config = process, config

    @torch.no_grad()
    def sample(self, batch: int, length: int, g: Generator) -> tuple[list[Tensor], Tensor]:
        """States ``m, z_tau, x`` and ``tau``."""
        tau = 0.02 + 0.96 * torch.rand(batch // self.config.advantages.group_size, generator=g)
        tau = tau.repeat_interleave(self.config.advantages.group_size)
        states = [torch.full((batch, length), self.process.mask_token_id)]
        for t, s in ((torch.ones(batch), tau), (tau, torch.zeros(batch))):
            log_probs = substituted_log_probs(self.process, self.student, states[-1], t)
            states.append(joint_draw(self.process, log_probs, states[-1], t, s, g))
        return states, tau

    def discriminator_loss(self, x: Tensor, reference: Tensor, tau: Tensor, g: Generator) -> tuple[Tensor, Tensor]:
        """Loss, and the corrupted student samples that the reward is read from."""
        x_t, real = (self.process.corrupt(tokens, tau, generator=g) for tokens in (x, reference))
        loss = torch.zeros(())
        for tokens, label in ((x_t, 0.95), (real, 0.05)):
            logits = self.discriminator(tokens, tau)
            nats = F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, label), reduction="none")
            loss = loss + 0.5 * masked_mean(nats, self.process.is_masked(tokens)).mean()
        return loss, x_t

    def student_loss(self, states: list[Tensor], x_t: Tensor, tau: Tensor) -> Tensor:
        """Score function, KL to the teacher in both directions and entropy, over all positions."""
        with torch.no_grad():
            logits = self.discriminator(x_t, tau)
            reward = -masked_mean(logits, self.process.is_masked(x_t)).clamp(-8.0, 8.0)
            advantage = group_advantages(reward, self.config.advantages.group_size, clip=3.0)
        batch = len(tau)
        loss = torch.zeros(())
        for before, after, t in ((states[0], states[1], torch.ones(batch)), (states[1], states[2], tau)):
            log_p = substituted_log_probs(self.process, self.student, before, t)
            with torch.no_grad():
                log_q = substituted_log_probs(self.process, self.teacher, before, t)
            revealed = self.process.is_masked(before) & ~self.process.is_masked(after)
            drawn = log_p.gather(-1, after[..., None]).squeeze(-1).masked_fill(~revealed, 0.0)
            finite_p, finite_q = log_p.clamp_min(-100.0), log_q.clamp_min(-100.0)
            jeffreys = 0.5 * ((log_p.exp() - log_q.exp()) * (finite_p - finite_q)).sum(-1)
            entropy = -(log_p.exp() * finite_p).sum(-1)
            per_token = -advantage[:, None] * drawn + (0.02 * jeffreys - 5e-4 * entropy) * revealed
            loss = loss + per_token.mean()
        return loss
