"""Methods on corrupted data train networks that read by blocks: each block given the clean ones before it."""

from dataclasses import replace

import pytest
import torch

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, as_denoiser, make_networks
from discrete_distill.distillation.methods import AlphaLoss, AlphaLossConfig, CertaintyForcing, FeatureMMD, SDTTConfig
from discrete_distill.models import DiT, DiTConfig

MASK, LENGTH, BLOCK = 7, 10, 4
PROCESS = MaskedDiffusion(MASK)


def network(kind):
    torch.manual_seed(0)
    if kind == "dit":
        shape = {"vocab_size": 8, "max_length": 12, "hidden_size": 16, "num_layers": 4, "num_heads": 2, "cond_size": 8}
        made = DiT(DiTConfig(**shape, block_length=BLOCK))
    else:
        transformers = pytest.importorskip("transformers")
        size = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=8, max_position_embeddings=12, **size)
        )
        made = as_denoiser(llama.eval(), attention="full", shifted=False, block_length=BLOCK)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def method_of(kind, method, config=None):
    networks = make_networks(network(kind), log_ratio=None, step_conditioning=False)
    return method(networks, PROCESS, *([] if config is None else [config]))


def reference(seeded):
    return torch.randint(7, (6, LENGTH), generator=seeded(1))


def padded():
    """Rows of 10, 7 and 9 real tokens; the padding stands on the left, on the right, or nowhere."""
    real = torch.ones(6, LENGTH, dtype=torch.bool)
    real[1, :3], real[2, 9:] = False, False
    return real


@pytest.mark.parametrize("mask", [None, padded()], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ["dit", "llama"])
def test_the_alpha_loss_of_each_block_is_that_of_its_own_pass(kind, mask, seeded) -> None:
    method = method_of(kind, AlphaLoss, AlphaLossConfig(k=2.0))
    rollout = method.rollout(reference=reference(seeded), attention_mask=mask, generator=seeded(0))
    losses = []
    for row in range(6):
        real = torch.ones(LENGTH, dtype=torch.bool) if mask is None else mask[row]
        x_0, x_t, masked = (each[row, real] for each in (rollout.x_0, rollout.x_t, rollout.loss_mask))
        for start in range(0, len(x_0), BLOCK):
            end = min(start + BLOCK, len(x_0))
            alone = torch.cat((x_0[:start], x_t[start:end]))[None]  # The clean blocks before it, and itself.
            log_probs = PROCESS.masked_log_probs(method.student(alone, torch.zeros(1))[0])
            places = masked[start:end].nonzero()[:, 0] + start
            assert len(places)  # Each block has a mask.
            losses.append((1.0 - (2.0 * log_probs[places, x_0[places]].mean()).exp()) / 2.0)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(method.student_loss(rollout).loss, expected, atol=1e-5, rtol=1e-5)


def test_each_block_has_a_number_of_masks_of_its_own(seeded) -> None:
    method = method_of("dit", AlphaLoss)
    data, free = torch.zeros(4000, 8, dtype=torch.long), torch.ones(4000, 8, dtype=torch.bool)
    free[:, 4] = False  # A given token of the second block.
    x_init = torch.where(free, MASK, data)
    rollout = method.rollout(x_init=x_init, reference=data, generator=seeded(0))
    assert not rollout.loss_mask[:, 4].any()
    counts = rollout.loss_mask.view(-1, 2, 4).sum(2)
    for block, size in ((0, 4), (1, 3)):
        seen = torch.bincount(counts[:, block], minlength=size + 1)
        assert seen[0] == 0
        # Stratified over all blocks: each number has an equal share, up to what the two blocks trade.
        torch.testing.assert_close(
            seen[1:].double() / 4000, torch.full((size,), 1.0 / size).double(), atol=0.03, rtol=0
        )
    correlation = torch.corrcoef(counts.T.double())[0, 1]
    assert abs(float(correlation)) < 0.06  # Four standard errors.


@pytest.mark.parametrize("method", [AlphaLoss, FeatureMMD, CertaintyForcing])
@pytest.mark.parametrize("kind", ["dit", "llama"])
def test_every_method_on_corrupted_data_moves_a_network_that_reads_by_blocks(kind, method, seeded) -> None:
    made = method_of(kind, method)
    made.begin_step(0, 1)
    rollout = made.rollout(reference=reference(seeded), generator=seeded(0))
    made.loss("student", rollout, generator=seeded(2)).loss.backward()
    gradients = [each.grad for each in made.student.parameters() if each.grad is not None]
    assert gradients
    assert all(bool(each.isfinite().all()) for each in gradients)
    assert any(bool(each.any()) for each in gradients)


def test_methods_that_walk_whole_sequences_refuse_it() -> None:
    networks = make_networks(network("dit"), step_conditioning=False)
    config = DiDiInstructConfig.recommended(
        paths={"step_conditioning": False}, log_ratio={"step_conditioning": False}, advantages={"group_size": 2}
    )
    with pytest.raises(ValueError, match="blocks of 4"):
        DiDiInstruct(networks, PROCESS, config)
    with pytest.raises(ValueError, match="blocks of 4"):
        SDTT(replace(networks, auxiliary=None), PROCESS, SDTTConfig(step_conditioning=False))
