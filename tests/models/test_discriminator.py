"""The discriminator: what is trained, in what precision, how it is kept, and what it converges to."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from discrete_distill import exact
from discrete_distill.models import (
    CheckpointError,
    Discriminator,
    DiT,
    DiTConfig,
    discriminator_accuracy,
    discriminator_loss,
)
from discrete_distill.models.discriminator import masked_mean
from discrete_distill.process import MaskedDiffusion

SHAPE = {"vocab_size": 6, "max_length": 8, "hidden_size": 16, "num_layers": 3, "num_heads": 2, "cond_size": 8}
CONFIG = DiTConfig(**SHAPE, dropout=0.0)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomised(trainable_blocks: int = 2, config: DiTConfig = CONFIG) -> Discriminator:
    """All gates open: at its own start the network's blocks do nothing."""
    torch.manual_seed(0)
    network = Discriminator(config, trainable_blocks)
    with torch.no_grad():
        for name, parameter in network.backbone.named_parameters():
            if "adaLN" in name:
                parameter.normal_(std=0.3, generator=seeded(1))
    return network.eval()


def example(batch: int = 4, length: int = 7) -> tuple[Tensor, Tensor]:
    return torch.randint(6, (batch, length), generator=seeded(2)), torch.rand(batch, generator=seeded(3))


@pytest.mark.parametrize("trainable_blocks", [0, 1, 3])
def test_only_the_last_blocks_what_follows_them_and_the_head_are_trainable(trainable_blocks) -> None:
    network = Discriminator(CONFIG, trainable_blocks)
    trainable = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    parts = {f"backbone.blocks.{i}." for i in range(3 - trainable_blocks, 3)} | {"head."}
    if trainable_blocks:
        parts |= {"backbone.output_layer.norm_final.", "backbone.output_layer.adaLN_modulation."}
    expected = {name for name, _ in network.named_parameters() if any(name.startswith(part) for part in parts)}
    assert trainable == expected
    assert any(name.startswith("head.") for name in trainable)


def test_every_trainable_parameter_gets_a_gradient() -> None:
    network = randomised()
    network(*example()).sum().backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_both_layers_of_the_head_have_spectral_norm_one_at_most() -> None:
    network = randomised().train()
    with torch.no_grad():
        for layer in (network.head[0], network.head[2]):
            layer.parametrizations.weight.original.mul_(7.0)
    for _ in range(30):
        network(*example())
    network.eval()
    for layer in (network.head[0], network.head[2]):
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1.0, abs=1e-3)
        assert torch.linalg.matrix_norm(layer.parametrizations.weight.original, ord=2).item() > 2.0


def test_logits_are_one_fp32_number_for_each_position_also_under_autocast() -> None:
    network = randomised()
    x_t, t = example()
    plain = network(x_t, t)
    assert (plain.shape, plain.dtype) == ((4, 7), torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = network(x_t, t)
        features = network.backbone.features(x_t, t)
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, atol=0.1, rtol=0.1)
    with torch.no_grad():
        torch.testing.assert_close(mixed, network.head(features.float()).squeeze(-1), atol=1e-6, rtol=1e-5)


def test_a_backbone_in_half_precision_still_gives_fp32_logits() -> None:
    network = randomised()
    plain = network(*example())
    network.backbone.bfloat16()
    assert network(*example()).dtype == torch.float32
    torch.testing.assert_close(network(*example()), plain, atol=0.15, rtol=0.15)


def test_embeddings_of_tokens_give_the_logits_of_the_tokens() -> None:
    network = randomised()
    x_t, t = example()
    one_hot = torch.nn.functional.one_hot(x_t, 6).float()
    real = torch.arange(7)[None, :] < torch.tensor([[7], [5], [3], [7]])
    for cond in ({}, {"attention_mask": real}):
        soft = network(x_t, t, inputs_embeds=one_hot @ network.embedding_weight(), **cond)
        torch.testing.assert_close(soft, network(x_t, t, **cond))


def test_what_padding_holds_does_not_matter() -> None:
    network = randomised()
    x_t, t = example()
    real = (torch.arange(7) < 5)[None, :].expand(4, -1)
    other = torch.where(real, x_t, (x_t + 1) % 6)
    actual, expected = (network(x, t, attention_mask=real)[:, :5] for x in (other, x_t))
    torch.testing.assert_close(actual, expected)
    unmasked = [network(x, t)[:, :5].detach() for x in (other, x_t)]
    assert float((unmasked[0] - unmasked[1]).abs().max()) > 1e-3


@pytest.mark.parametrize("step_conditioning", [False, True])
def test_made_of_a_denoiser_it_reads_the_denoisers_own_features(step_conditioning) -> None:
    torch.manual_seed(0)
    denoiser = DiT(DiTConfig(**SHAPE, dropout=0.0, step_conditioning=step_conditioning)).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.normal_(std=0.2, generator=seeded(5))
    network = Discriminator.from_denoiser(denoiser, trainable_blocks=1).eval()
    x_t, t = example()
    with torch.no_grad():
        expected = network.head(denoiser.features(x_t, t)).squeeze(-1)
        torch.testing.assert_close(network(x_t, t), expected)
        network.backbone.blocks[-1].attn_out.weight.add_(1.0)
        torch.testing.assert_close(network.head(denoiser.features(x_t, t)).squeeze(-1), expected)


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    network = randomised(trainable_blocks=1)
    network.save_pretrained(tmp_path)
    loaded = Discriminator.from_pretrained(tmp_path).eval()
    assert loaded.config == CONFIG
    assert loaded.trainable_blocks == 1
    assert bool((loaded(*example()) == network(*example())).all())
    trainable = [[p.requires_grad for p in each.parameters()] for each in (loaded, network)]
    assert trainable[0] == trainable[1]


def test_a_missing_weight_is_not_left_random(tmp_path: Path) -> None:
    randomised().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["head.0.parametrizations.weight.original"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"missing: head\.0\.parametrizations\.weight\.original"):
        Discriminator.from_pretrained(tmp_path)


@pytest.mark.parametrize("trainable_blocks", [-1, 4])
def test_more_trainable_blocks_than_there_are_are_refused(trainable_blocks) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 3\] for this backbone, got {trainable_blocks}"):
        Discriminator(CONFIG, trainable_blocks)


def test_the_loss_by_hand() -> None:
    student = torch.tensor([[0.0, 2.0, 9.0], [1.0, 1.0, 1.0]])
    reference = torch.tensor([[-1.0, 5.0, 5.0], [0.5, 9.0, 9.0]])
    loss_mask = torch.tensor([[True, True, False], [False, False, True]])
    reference_counted = torch.tensor([[True, False, False], [True, False, False]])
    softplus = lambda v: torch.nn.functional.softplus(torch.tensor(v)).item()  # noqa: E731
    of_student = 0.5 * (0.5 * (softplus(0.0) + softplus(-2.0)) + softplus(-1.0))
    of_reference = 0.5 * (softplus(-1.0) + softplus(0.5))
    actual = discriminator_loss(student, reference, loss_mask, reference_counted)
    assert actual.item() == pytest.approx(0.5 * (of_student + of_reference), abs=1e-6)
    # Smoothing moves s/2 of each label: log(1 + e^v) - label v.
    smoothed = discriminator_loss(student, reference, loss_mask, reference_counted, label_smoothing=0.2)
    more = 0.5 * (0.1 * 0.5 * (0.5 * (0.0 + 2.0) + 1.0) - 0.1 * 0.5 * (-1.0 + 0.5))
    assert smoothed.item() == pytest.approx(actual.item() + more, abs=1e-6)


def test_a_sequence_counts_once_however_many_of_its_positions_do() -> None:
    logits = torch.tensor([[3.0, 3.0, 3.0], [-3.0, 0.0, 0.0]])
    loss_mask = torch.tensor([[True, True, True], [True, False, False]])
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    actual = discriminator_loss(logits, logits, loss_mask, nobody)
    softplus = torch.nn.functional.softplus(torch.tensor([-3.0, 3.0]))
    assert actual.item() == pytest.approx(0.5 * softplus.mean().item(), abs=1e-6)
    assert masked_mean(logits, nobody).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_minimum_is_the_log_ratio_pulled_in_by_smoothing(smoothing) -> None:
    """One state, seen three times from the student and once from the reference."""
    logit = torch.zeros((), requires_grad=True)
    optimiser = torch.optim.LBFGS([logit], max_iter=50)
    one = torch.ones(4, 1, dtype=torch.bool)
    student_sees = torch.tensor([[True], [True], [True], [False]])

    def closure() -> Tensor:
        optimiser.zero_grad()
        logits = logit.expand(4, 1)
        loss = discriminator_loss(logits, logits, one & student_sees, one & ~student_sees, label_smoothing=smoothing)
        loss.backward()
        return loss

    optimiser.step(closure)
    share = (3 * (1 - smoothing / 2) + smoothing / 2) / 4
    assert logit.item() == pytest.approx(torch.tensor(share).logit().item(), abs=1e-3)


@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_label_smoothing_outside_its_range_is_refused(smoothing) -> None:
    logits, loss_mask = torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool)
    with pytest.raises(ValueError, match=rf"label_smoothing must be .*below 1.*got {smoothing}"):
        discriminator_loss(logits, logits, loss_mask, loss_mask, label_smoothing=smoothing)


def test_trained_to_convergence_it_reaches_the_exact_log_ratio() -> None:
    """One-step student against a chain of three words, length 3; weighted by how often a state is met."""
    chain, process = exact.random_chain(3, seeded(1), 0.7), MaskedDiffusion(3)
    reference = chain.distribution(3)
    student = exact.sampler_distribution(chain.denoiser(3), process, [1.0, 0.0], 3, 3)
    torch.manual_seed(5)
    network = Discriminator(
        DiTConfig(vocab_size=4, max_length=3, hidden_size=32, num_layers=2, num_heads=2, cond_size=8, dropout=0.0), 2
    )
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=4e-3, weight_decay=0.0)
    updates, generator = 600, seeded(4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=updates)
    # A batch meets the 64 states again and again; the network reads each once, at three times.
    every_state, times = exact.enumerate_sequences(4, 3).repeat(3, 1), torch.tensor([0.25, 0.5, 0.75])
    distributions = [
        torch.cat([exact.forward_distribution(distribution, process, t).flatten() for t in times.tolist()])
        for distribution in (student, reference)
    ]
    for _ in range(updates):
        every_logit = network(every_state, times.repeat_interleave(64))
        drawn = [
            torch.multinomial(distribution, 8192, replacement=True, generator=generator)
            for distribution in distributions
        ]
        loss_mask = [every_state[rows] == 3 for rows in drawn]
        loss = discriminator_loss(*(every_logit[rows] for rows in drawn), *loss_mask)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()

    states = exact.enumerate_sequences(4, 3)
    states = states[(states == 3).any(1)]
    t = torch.full((len(states),), 0.5)
    with torch.no_grad():
        learned = network.eval()(states, t)
    truth = exact.discriminator_logits(student, reference, process, states)
    met = 0.5 * sum(
        exact.look_up(exact.forward_distribution(distribution, process, 0.5), states)
        for distribution in (student, reference)
    )
    weight = (met[:, None] * (states == 3)).flatten()
    x, y = truth.flatten(), learned.double().flatten()
    weight = weight / weight.sum()
    x, y = x - (weight * x).sum(), y - (weight * y).sum()
    slope = (weight * x * y).sum() / (weight * x * x).sum()
    correlation = (weight * x * y).sum() / ((weight * x * x).sum() * (weight * y * y).sum()).sqrt()
    assert float((weight * x * x).sum().sqrt()) > 0.2
    assert float(correlation) > 0.98
    assert 0.9 < float(slope) < 1.1


def test_what_does_not_count_reaches_neither_loss_nor_gradient_nor_accuracy() -> None:
    """NaN in padding, and a sequence that is all padding."""
    loss_mask = torch.tensor([[True, True, False], [True, False, False], [False, False, False]])
    logits = torch.randn(2, 3, 3, generator=seeded(0))
    whole = torch.where(loss_mask, logits, float("nan")).requires_grad_()
    weight = torch.tensor([0.25, 0.75, 0.0])
    loss = discriminator_loss(*whole, loss_mask, loss_mask, weight_B=weight)
    loss.backward()
    means = [
        0.25 * torch.nn.functional.softplus(sign * side[0, :2]).mean()
        + 0.75 * torch.nn.functional.softplus(sign * side[1, 0])
        for sign, side in ((-1.0, logits[0]), (1.0, logits[1]))
    ]
    torch.testing.assert_close(loss.detach(), 0.5 * (means[0] + means[1]))
    assert bool(whole.grad.isfinite().all())
    assert bool((whole.grad[:, ~loss_mask] == 0).all())
    right = [
        (sign * side[0, :2].mean() > 0).float() + (sign * side[1, 0] > 0).float()
        for sign, side in ((1.0, logits[0]), (-1.0, logits[1]))
    ]
    accuracy = discriminator_accuracy(*whole, loss_mask, loss_mask)
    torch.testing.assert_close(accuracy, 0.25 * (right[0] + right[1]))


def test_it_grows_from_a_network_of_this_library_alone() -> None:
    with pytest.raises(TypeError, match="Linear"):
        Discriminator.from_denoiser(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
