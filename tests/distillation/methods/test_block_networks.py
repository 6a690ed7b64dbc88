"""Methods train networks that read by blocks: each block given the clean ones before it."""

from dataclasses import replace

import pytest
import torch

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, MaskedDiffusion, as_denoiser, make_networks
from discrete_distill.distillation.methods import (
    IDLM,
    AlphaLoss,
    AlphaLossConfig,
    CertaintyForcing,
    FeatureMMD,
    IDLMConfig,
    Regularization,
    RolloutMMD,
    SDTTConfig,
    VocabularyCredit,
)
from discrete_distill.distillation.methods.parts import tokens_per_part
from discrete_distill.distillation.networks import Networks
from discrete_distill.models import DiT, DiTConfig, guide_by_prior

MASK, LENGTH, BLOCK = 7, 10, 4
PROCESS = MaskedDiffusion(MASK)


def network(kind):
    torch.manual_seed(0)
    if kind in ("dit", "both ways"):
        shape = {"vocab_size": 8, "max_length": 12, "hidden_size": 16, "num_layers": 4, "num_heads": 2, "cond_size": 8}
        made = DiT(DiTConfig(**shape, block_length=BLOCK if kind == "dit" else None))
    else:
        transformers = pytest.importorskip("transformers")
        size = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}
        tied = shifted = kind == "tied shifted llama"
        llama = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=8, max_position_embeddings=12, tie_word_embeddings=tied, attention_dropout=0.1, **size
            )
        )
        made = as_denoiser(llama.eval(), attention="full", shifted=shifted, block_length=BLOCK)
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
            log_probs = PROCESS.masked_log_probs(method.student.denoiser(alone, torch.zeros(1))[0])
            places = masked[start:end].nonzero()[:, 0] + start
            assert len(places)  # Each block has a mask.
            losses.append((1.0 - (2.0 * log_probs[places, x_0[places]].mean()).exp()) / 2.0)
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(method.student_loss(rollout).loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["dit", "both ways"])
def test_parts_of_a_batch_with_unequal_numbers_of_blocks_have_its_alpha_loss(kind, seeded) -> None:
    """A half with two sequences, or five blocks, and one with four sequences of three blocks each."""
    method = method_of(kind, AlphaLoss, AlphaLossConfig(k=2.0))
    real = torch.ones(6, LENGTH, dtype=torch.bool)
    real[0, :3] = False
    whole = method.rollout(reference=reference(seeded), attention_mask=real, generator=seeded(0))
    parts = []
    for rows in (slice(0, 2), slice(2, 6)):
        cut = {
            name: value[rows] for name, value in vars(whole).items() if isinstance(value, torch.Tensor) and value.dim()
        }
        kwargs = {name: value[rows] for name, value in whole.model_kwargs.items()}
        num_parts = method.masks_of_parts(replace(whole, **cut))[1].count_nonzero()
        parts.append(replace(whole, **cut, model_kwargs=kwargs, num_parts=num_parts))
    divisor = tokens_per_part(parts)
    assert [int(each.num_parts) for each in (whole, *parts)] == ([17, 5, 12] if kind == "dit" else [6, 2, 4])
    losses = [method.loss("student", each, num_tokens=divisor).loss for each in parts]
    expected = method.loss("student", whole).loss
    torch.testing.assert_close(sum(losses) / 2, expected)
    weights = [each for each in method.student.parameters() if each.requires_grad]
    gradients = [torch.autograd.grad(each, weights, allow_unused=True) for each in (sum(losses) / 2, expected)]
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert any(each is not None and bool(each.any()) for each in gradients[0])


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


IN_BLOCKS = {"paths": {"step_conditioning": False, "num_steps": (3,)}, "advantages": {"group_size": 2}}
AUXILIARY = {"log_ratio": {"step_conditioning": False, "warmup": 0}}


def path_method(kind, seeded, method=DiDiInstruct, config=DiDiInstructConfig, **changes):
    """With a student that is no longer its teacher."""
    networks = make_networks(network(kind), step_conditioning=False)
    with torch.no_grad():
        for parameter in networks.student.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(5)))
    return method(networks, PROCESS, config.recommended(**IN_BLOCKS, **AUXILIARY, **changes))


@pytest.mark.parametrize("mask", [None, padded()], ids=["whole", "padded"])
@pytest.mark.parametrize("kind", ["dit", "llama", "tied shifted llama"])
def test_a_path_walks_each_block_behind_the_clean_blocks_before_it(kind, mask, seeded) -> None:
    method = path_method(kind, seeded)
    method.student.train()  # Paths are drawn in evaluation mode all the same.
    clean, network = reference(seeded).repeat_interleave(2, 0), method.student.denoiser
    real = torch.ones(12, LENGTH, dtype=torch.bool) if mask is None else mask.repeat_interleave(2, 0)
    rollout = method.rollout(12, LENGTH, reference=clean, attention_mask=mask if mask is None else real,
                             generator=seeded(0))  # fmt: skip
    expected = torch.zeros(12)
    for step in rollout.steps:
        for row in range(12):
            x_0, x_t, x_s = (each[row, real[row]] for each in (clean, step.x_t, step.x_s))
            for start in range(0, len(x_0), BLOCK):
                end = min(start + BLOCK, len(x_0))
                alone = torch.cat((x_0[:start], x_t[start:end]))[None]
                log_probs = PROCESS.masked_log_probs(network.eval()(alone, torch.zeros(1))[0])
                places = (x_t != x_s)[start:end].nonzero()[:, 0] + start
                expected[row] += log_probs[places, x_s[places]].sum()
    torch.testing.assert_close(rollout.log_prob(), expected, atol=1e-4, rtol=1e-4)
    assert method.update_plan.rollout_reads_reference


def test_the_samples_of_a_group_follow_the_same_data(seeded) -> None:
    method = path_method("dit", seeded)
    data = reference(seeded)
    clean = method.rollout(6, LENGTH, reference=data, generator=seeded(0)).model_kwargs["clean"]
    assert torch.equal(clean, data[[0, 0, 2, 2, 4, 4]])


@pytest.mark.parametrize(
    ("method", "config", "changes"),
    [
        (DiDiInstruct, DiDiInstructConfig, {}),
        (DiDiInstruct, DiDiInstructConfig, {"credit": VocabularyCredit()}),
        (DiDiInstruct, DiDiInstructConfig, {"regularization": Regularization()}),
        (IDLM, IDLMConfig, {}),
    ],
    ids=["recommended", "vocabulary", "no regulariser", "idlm"],
)
def test_losses_on_one_block_are_those_of_the_network_that_attends_both_ways(method, config, changes, seeded) -> None:
    """A single block has nothing before it."""
    data, found = torch.randint(7, (8, BLOCK), generator=seeded(1)), []
    for block_length in (BLOCK, None):
        shape = DiTConfig(vocab_size=8, max_length=12, hidden_size=16, num_layers=2, num_heads=2, cond_size=8,
                          time_conditioning=False, block_length=block_length)  # fmt: skip
        networks = make_networks(DiT(shape).eval(), step_conditioning=False)
        for number, each in enumerate(networks.named().values()):
            if each is not None:
                for name, parameter in each.named_parameters():
                    torch.nn.init.normal_(parameter.data, std=0.3, generator=seeded(number + len(name)))
        made = method(networks, PROCESS, config.recommended(**IN_BLOCKS, **AUXILIARY, **changes))
        rollout = made.rollout(8, BLOCK, reference=data, generator=seeded(0))
        whole = data[::2].repeat_interleave(2, 0)  # What a group follows is what its samples are compared with.
        losses = []
        for name in ("auxiliary", "student"):
            loss = made.loss(name, rollout, reference=whole, generator=seeded(2)).loss
            gradients = torch.autograd.grad(loss, made.student.parameters(), allow_unused=True)
            losses += [loss.detach(), *(each for each in gradients if each is not None)]
        found.append((rollout.sequences, losses))
    assert torch.equal(found[0][0], found[1][0])
    assert any(bool(each.any()) for each in found[0][1])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-4)


def test_self_distillation_through_time_reads_each_block_behind_data(seeded) -> None:
    networks = make_networks(network("dit"), log_ratio=None, step_conditioning=False)
    method = SDTT(networks, PROCESS, SDTTConfig(teacher_steps=8, rounds=2, step_conditioning=False))
    data, teachers = reference(seeded), []
    for step in range(4):
        method.begin_step(step, 4, average=networks.student)
        targets = method.rollout(reference=data, generator=seeded(step))
        teachers.append(method.teacher)
        # What the teacher predicts in the state that it began with, where its first step reveals nothing else.
        others = data.clone()
        others[:, BLOCK:] = data.flip(0)[:, BLOCK:]
        moved = method.teacher(targets.x_t, targets.t, clean=others) - method.teacher(
            targets.x_t, targets.t, clean=data
        )
        assert not moved[:, : 2 * BLOCK].any()  # Later blocks are not read.
        method.loss("student", targets).loss.backward()
    assert teachers[0] is teachers[1] is not teachers[2]
    gradients = [each.grad for each in networks.student.parameters() if each.grad is not None]
    assert any(bool(each.any()) for each in gradients)


def test_what_blocks_cannot_have_is_refused(seeded) -> None:
    networks = make_networks(network("dit"), step_conditioning=False)
    with pytest.raises(ValueError, match=r"auxiliary reads by blocks.*step_conditioning=False"):
        DiDiInstruct(networks, PROCESS, DiDiInstructConfig.recommended(paths={"step_conditioning": False}))
    with pytest.raises(ValueError, match=r"walks whole sequences.*blocks of 4"):
        RolloutMMD(networks, PROCESS)
    with pytest.raises(ValueError, match="discriminator reads whole sequences"):
        DiDiInstruct(make_networks(network("dit"), log_ratio="discriminator", step_conditioning=False), PROCESS)
    for wrapped in (lambda: make_networks(network("llama"), step_conditioning=True),
                    lambda: guide_by_prior(network("llama"), 0.5, MASK, length=LENGTH)):  # fmt: skip
        with pytest.raises(ValueError, match="reads by blocks of 4"):
            wrapped()
    config = DiTConfig(vocab_size=8, max_length=12, hidden_size=16, num_layers=1, num_heads=2, cond_size=8)
    with pytest.raises(ValueError, match="does not read by blocks"):
        SDTT(replace(networks, teacher=DiT(config)), PROCESS, SDTTConfig(step_conditioning=False))
    with pytest.raises(ValueError, match="pass reference="):
        path_method("dit", seeded).rollout(4, LENGTH)


def test_networks_that_condition_on_other_blocks_are_refused() -> None:
    """What a token is predicted from differs, so that a log-ratio of both is none of one state."""
    shape = {"vocab_size": 8, "max_length": 12, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
    four, five, whole = (DiT(DiTConfig(**shape, block_length=length)) for length in (4, 5, None))
    config = SDTTConfig(step_conditioning=False)
    with pytest.raises(ValueError, match=r"teacher reads by blocks of 5.*student reads by blocks of 4"):
        SDTT(Networks(four, five), PROCESS, config)
    with pytest.raises(ValueError, match=r"teacher reads by blocks of 4.*student does not"):
        SDTT(Networks(whole, four), PROCESS, config)
    recommended = DiDiInstructConfig.recommended(**IN_BLOCKS, **AUXILIARY)
    with pytest.raises(ValueError, match=r"auxiliary reads by blocks of 5"):
        DiDiInstruct(Networks(four, four, auxiliary=five), PROCESS, recommended)
    AlphaLoss(Networks(four, five), PROCESS)  # The teacher is not read.


@pytest.mark.parametrize("what", ["x_init", "attention_mask"])
def test_rows_of_a_group_with_other_prompts_or_padding_are_refused(what, seeded) -> None:
    """They would follow the prompt of the first."""
    data = reference(seeded)
    x_init = torch.full_like(data, MASK)
    x_init[:, :BLOCK] = data[:, :BLOCK]
    given = {"x_init": x_init} if what == "x_init" else {"batch_size": 6, "length": LENGTH, "attention_mask": padded()}
    method = path_method("dit", seeded)
    with pytest.raises(ValueError, match=rf"{what} differs within groups of 2"):
        method.rollout(**given, reference=data, generator=seeded(0))
    alike = {name: value[::2].repeat_interleave(2, 0) for name, value in given.items() if torch.is_tensor(value)}
    assert method.rollout(**{**given, **alike}, reference=data, generator=seeded(0)).group_size == 2
