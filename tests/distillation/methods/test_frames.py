"""Methods that learn from corrupted data take a frame in the place of a length: its tokens are given."""

import pytest
import torch

from discrete_distill import SDTT, Frame, MaskedDiffusion, make_networks
from discrete_distill.distillation.methods import AlphaLoss, CertaintyForcing, FeatureMMD, SDTTConfig
from discrete_distill.models import DiT, DiTConfig

MASK, CLS, SEP = 9, 7, 8
PROCESS = MaskedDiffusion(MASK, forbidden_token_ids=[CLS, SEP])
FRAME = Frame(6, prefix=[CLS], suffix=[SEP])


def method_of(kind):
    torch.manual_seed(0)
    teacher = DiT(DiTConfig(vocab_size=10, max_length=8, hidden_size=16, num_layers=4, num_heads=2, cond_size=8))
    networks = make_networks(teacher, log_ratio=None, step_conditioning=False)
    if kind is SDTT:
        return SDTT(networks, PROCESS, SDTTConfig(teacher_steps=4, rounds=1))
    return kind(networks, PROCESS)


@pytest.mark.parametrize("kind", [SDTT, AlphaLoss, FeatureMMD, CertaintyForcing])
def test_a_frame_is_given_and_never_masked(kind, seeded) -> None:
    method = method_of(kind)
    method.begin_step(0, 1)
    data = torch.randint(7, (16, 6), generator=seeded(1))
    reference = FRAME.around(data)
    assert reference[:, 0].eq(CLS).all()
    assert reference[:, -1].eq(SEP).all()
    framed = method.rollout(16, FRAME, reference=reference, generator=seeded(0))
    x_init = FRAME.x_init(16, mask_token_id=MASK)
    given = method.rollout(x_init=x_init, reference=reference, generator=seeded(0))
    assert torch.equal(framed.x_t, given.x_t)
    assert not framed.loss_mask[:, [0, -1]].any()
    assert framed.x_t[:, 0].eq(CLS).all()
    assert framed.x_t[:, -1].eq(SEP).all()
    assert framed.loss_mask.any()
    with pytest.raises(ValueError, match="reference"):
        method.rollout(16, Frame(5, prefix=[CLS], suffix=[SEP]), reference=reference, generator=seeded(0))
