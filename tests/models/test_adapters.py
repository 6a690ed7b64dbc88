"""External models as denoisers: equal to plain calls of the model, whatever is passed through, and in a sampler."""

from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
import transformers
from external import (
    KINDS,
    LENGTH,
    MASK,
    REAL,
    SIZE,
    HubNetwork,
    ResearchNetwork,
    TinyDream,
    TinyLLaDA,
    V,
    example,
    masked_lm,
    randomised,
)
from torch import Tensor, nn

from discrete_distill import AncestralSampler, LogLinearSchedule, MaskedDiffusion, as_denoiser
from discrete_distill.process import FeatureDenoiser, logits_at

TRANSFORMERS = int(transformers.__version__.partition(".")[0])

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("kind", KINDS)
def test_masked_language_models_equal_plain_calls(kind: str) -> None:
    model = randomised(masked_lm(kind))
    denoiser = as_denoiser(model)
    x, t = example()
    assert torch.equal(denoiser(x, t), model(input_ids=x).logits)
    padded = denoiser(x, t, attention_mask=REAL)
    if kind != "esm-2" or TRANSFORMERS >= 5:  # Before 5 padding of ESM-2 enters its share of masked tokens.
        assert torch.equal(padded, model(input_ids=x, attention_mask=REAL.long()).logits)
    for row, length in enumerate(REAL.sum(1).tolist()):
        alone = model(input_ids=x[row : row + 1, :length]).logits[0]
        torch.testing.assert_close(padded[row, :length], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(padded[REAL], denoiser(x, t)[REAL])
    other = torch.where(REAL, x, 3)
    torch.testing.assert_close(denoiser(other, t, attention_mask=REAL)[REAL], padded[REAL], atol=1e-5, rtol=1e-5)
    positions = torch.arange(LENGTH).flip(0).expand(3, -1).contiguous()
    if kind not in ("distilbert", "esm", "esm-2"):
        assert torch.equal(denoiser(x, t, position_ids=positions), model(x, position_ids=positions).logits)


@pytest.mark.parametrize("kind", KINDS)
def test_their_heads_can_be_run_alone(kind: str) -> None:
    model = randomised(masked_lm(kind))
    denoiser = as_denoiser(model)
    assert isinstance(denoiser, FeatureDenoiser)
    x, t = example()
    state = list(model.state_dict())
    for cond in ({}, {"attention_mask": REAL}):
        features = denoiser.features(x, t, **cond)
        assert features.shape == (3, LENGTH, 16)
        torch.testing.assert_close(denoiser.project(features), denoiser(x, t, **cond), atol=1e-5, rtol=1e-5)
        rows = torch.tensor([2, 9, 20])
        expected = denoiser(x, t, **cond).flatten(0, 1)[rows]
        torch.testing.assert_close(logits_at(denoiser, x, t, rows, model_kwargs=cond), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(denoiser(x, t), model(x).logits)  # the head is back in its place
    assert list(model.state_dict()) == state


def test_gradients_through_features_are_the_models_own() -> None:
    model = randomised(masked_lm("bert"))
    denoiser, (x, t) = as_denoiser(model), example()
    gradients = []
    for logits in (denoiser(x, t), denoiser.project(denoiser.features(x, t))):
        model.zero_grad()
        logits.square().sum().backward()
        gradients.append(
            {
                name: parameter.grad.clone()
                for name, parameter in denoiser.named_parameters()
                if parameter.grad is not None
            }
        )
    assert gradients[0].keys() == gradients[1].keys()
    for name in gradients[0]:
        torch.testing.assert_close(gradients[0][name], gradients[1][name], atol=1e-3, rtol=1e-4)


def test_the_head_is_back_after_an_error() -> None:
    model = randomised(masked_lm("bert"))
    denoiser, (x, t) = as_denoiser(model), example()
    with pytest.raises(IndexError):
        denoiser.features(torch.full_like(x, V), t)
    assert torch.equal(denoiser(x, t), model(x).logits)


@pytest.mark.parametrize("kind", ["bert", "modernbert", "esm"])
def test_a_sampler_runs_on_them_and_computes_logits_only_where_tokens_are_revealed(kind: str) -> None:
    model = randomised(masked_lm(kind))
    denoiser, process = as_denoiser(model), MaskedDiffusion(mask_token_id=MASK)
    rows, project = [], denoiser.project

    def counting(features: Tensor) -> Tensor:
        rows.append(len(features))
        return project(features)

    denoiser.project = counting
    prompt = torch.where(torch.arange(LENGTH) < 3, torch.tensor([1, 5, 6, 0, 0, 0, 0]), MASK).expand(3, -1)
    options = {"x_init": prompt, "attention_mask": REAL}
    out = AncestralSampler(process, num_steps=3)(denoiser, **options, generator=torch.Generator().manual_seed(3))
    assert sum(rows) == int(((prompt == MASK) & REAL).sum())
    plain = AncestralSampler(process, num_steps=3)(
        lambda x, t, attention_mask: model(input_ids=x, attention_mask=attention_mask.long()).logits,
        **options,
        generator=torch.Generator().manual_seed(3),
    )
    assert torch.equal(out.sequences, plain.sequences)
    assert not (out.sequences[REAL] == MASK).any()
    assert torch.equal(out.sequences[:, :3], prompt[:, :3])


def test_esm_2_is_defined_where_no_token_is_visible() -> None:
    """It zeroes masks and scales what is visible by its share: of nothing, zero remains, whatever the scale."""
    model = randomised(masked_lm("esm-2"))
    denoiser, process = as_denoiser(model), MaskedDiffusion(mask_token_id=MASK)
    x = torch.full((3, LENGTH), MASK)
    x[1, 3] = 5
    t = torch.ones(3)
    assert model(x).logits[0].isnan().all()  # its own rule is 0 / 0
    logits = denoiser(x, t)
    nothing = model(inputs_embeds=torch.zeros(1, LENGTH, SIZE["hidden_size"])).logits
    torch.testing.assert_close(logits[::2], nothing.expand(2, -1, -1))
    assert torch.equal(logits[1], model(x).logits[1])
    assert denoiser(x, t, attention_mask=REAL)[REAL].isfinite().all()
    denoiser.project(denoiser.features(x, t)).square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    assert model.esm.embeddings.token_dropout
    assert not model.esm.embeddings.word_embeddings._forward_hooks
    out = AncestralSampler(process, num_steps=4)(
        denoiser, shape=(2, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    assert not process.is_masked(out.sequences).any()


def test_llada() -> None:
    model = randomised(TinyLLaDA())
    denoiser, (x, t) = as_denoiser(model), example()
    assert isinstance(denoiser, FeatureDenoiser)
    for cond, plain in (({}, {}), ({"attention_mask": REAL}, {"attention_mask": REAL.long()})):
        assert torch.equal(denoiser(x, t, **cond), model(x, **plain).logits)
        features = denoiser.features(x, t, **cond)
        torch.testing.assert_close(denoiser.project(features), model(x, **plain).logits, atol=1e-5, rtol=1e-5)
    later = x.clone()
    later[:, -1] = (x[:, -1] + 1) % V
    assert not torch.allclose(denoiser(x, t)[:, 0], denoiser(later, t)[:, 0])
    for entangled in ({"weight_tying": True}, {"scale_logits": True}):
        assert not isinstance(as_denoiser(TinyLLaDA(**entangled)), FeatureDenoiser)


def test_dream_whose_logits_are_one_place_early() -> None:
    model = randomised(TinyDream())
    denoiser, (x, t) = as_denoiser(model), example()
    raw = model(x, "full").logits
    shifted = torch.cat([raw[:, :1], raw[:, :-1]], dim=1)
    assert torch.equal(denoiser(x, t), shifted)
    torch.testing.assert_close(denoiser.project(denoiser.features(x, t)), shifted, atol=1e-5, rtol=1e-5)
    # Prompts of different lengths, padded on the left, as its own generation code has it.
    real = REAL.flip(1)
    positions = (real.long().cumsum(-1) - 1).masked_fill(~real, 1)
    pairs = torch.logical_and(real[:, None, None, :], real[:, None, :, None]) | torch.eye(LENGTH, dtype=torch.bool)
    raw = model(x, pairs, positions).logits
    padded = denoiser(x, t, attention_mask=real)
    assert torch.equal(model.positions, positions)
    reliable = real & real.roll(1, 1)
    reliable[:, 0] = real[:, 0]
    torch.testing.assert_close(
        padded[reliable], torch.cat([raw[:, :1], raw[:, :-1]], 1)[reliable], atol=1e-5, rtol=1e-5
    )
    other = torch.where(real, x, 3)
    torch.testing.assert_close(denoiser(other, t, attention_mask=real)[reliable], padded[reliable])
    torch.testing.assert_close(padded[1, 4:], denoiser(x[1:2, 3:], t[1:2])[0, 1:], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_of_causal_code_is_made_to_read_both_ways(attention: str) -> None:
    config = transformers.LlamaConfig(**SIZE, max_position_embeddings=16, attn_implementation=attention)
    model = randomised(transformers.LlamaForCausalLM(config))
    with pytest.raises(ValueError, match=r'reads from left to right: pass attention="full"'):
        as_denoiser(model)
    denoiser = as_denoiser(model, attention="full", head="lm_head")
    x, t = example()
    expected = model(input_ids=x, attention_mask=torch.zeros(3, 1, LENGTH, LENGTH)).logits
    torch.testing.assert_close(denoiser(x, t), expected)
    torch.testing.assert_close(denoiser.project(denoiser.features(x, t)), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(denoiser(x, t), model(x).logits)
    padded = denoiser(x, t, attention_mask=REAL)
    torch.testing.assert_close(padded[1, :4], denoiser(x[1:2, :4], t[1:2])[0], atol=1e-4, rtol=1e-4)
    shifted = as_denoiser(model, attention="full", shifted=True)
    assert isinstance(shifted, FeatureDenoiser)  # the head is found by the model's own method
    torch.testing.assert_close(shifted(x, t)[:, 1:], expected[:, :-1])
    torch.testing.assert_close(shifted.project(shifted.features(x, t)), shifted(x, t))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        (None, False),
        (SimpleNamespace(time_conditioning=False), False),
        (SimpleNamespace(time_conditioning=True), True),  # as MDLM has it
        (SimpleNamespace(algo=SimpleNamespace(time_conditioning=True)), True),  # as DUO has it
    ],
)
def test_the_research_networks_and_their_zeroed_sigma(config: Any, told: bool) -> None:
    dit = published.denoiser(published.network(), time_conditioning=True)
    model = ResearchNetwork(dit, config).eval()
    denoiser, x, t = as_denoiser(model), torch.arange(6).view(2, 3), torch.tensor([0.3, 0.9])
    logits = denoiser(x, t)
    sigma = LogLinearSchedule().sigma(t) if told else torch.zeros(2)
    torch.testing.assert_close(model.sigmas[-1], sigma)
    assert torch.equal(logits, model(x, model.sigmas[-1]))
    torch.testing.assert_close(logits, dit(x, t if told else 0 * t), atol=1e-5, rtol=1e-5)
    assert torch.equal(denoiser.project(denoiser.features(x, t)), logits)
    with pytest.raises(ValueError, match="cannot leave padding out: give sequences of one length"):
        denoiser(x, t, attention_mask=torch.ones(2, 3, dtype=torch.bool))
    forced = as_denoiser(model, time_conditioning=not told)
    assert not torch.allclose(forced(x, t), logits)


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("told", [False, True])
def test_the_hub_classes_of_mdlm(told: bool, pack: bool) -> None:
    network = ResearchNetwork(published.denoiser(published.network(), time_conditioning=True))
    denoiser = as_denoiser(HubNetwork(network, told, pack))
    x, t = torch.arange(6).view(2, 3), torch.tensor([0.3, 0.9])
    sigma = LogLinearSchedule().sigma(t) if told else torch.zeros(2)
    torch.testing.assert_close(denoiser(x, t), network(x, sigma))
    torch.testing.assert_close(denoiser.project(denoiser.features(x, t)), network(x, sigma))
    process = MaskedDiffusion(mask_token_id=published.VOCABULARY - 1)
    out = AncestralSampler(process, num_steps=2)(denoiser, shape=(2, 5), generator=torch.Generator().manual_seed(0))
    assert not process.is_masked(out.sequences).any()


def test_what_already_is_a_denoiser_stays_as_it_is() -> None:
    dit = published.denoiser(published.network())
    assert as_denoiser(dit) is dit
    adapted = as_denoiser(randomised(masked_lm("bert")), head=None)
    assert not isinstance(adapted, FeatureDenoiser)
    assert as_denoiser(adapted) is adapted
    with pytest.raises(TypeError, match="a DiT is a denoiser already"):
        as_denoiser(dit, shifted=True)


def test_models_that_are_not_known_are_refused_with_the_remedy() -> None:
    with pytest.raises(TypeError, match=r"a Linear is no model that is known: say how it is called"):
        as_denoiser(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"a BertForMaskedLM has no head at 'nowhere'; name it by head="):
        as_denoiser(masked_lm("bert"), head="nowhere")
    x, t = example()
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    mine = as_denoiser(lambda tokens, level: {"logits": table[tokens] + level.sum()}, ids="tokens", time="level")
    torch.testing.assert_close(mine(x, t), table[x])


def test_its_parameters_are_the_models_and_it_trains_as_a_student() -> None:
    model = randomised(masked_lm("bert"))
    denoiser = as_denoiser(model)
    assert {id(parameter) for parameter in denoiser.parameters()} == {id(parameter) for parameter in model.parameters()}
    process, (x, _) = MaskedDiffusion(mask_token_id=MASK), example()
    clean = torch.where(x == MASK, 4, x)
    optimizer = torch.optim.AdamW(denoiser.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        loss = process.nelbo(denoiser, clean, by="count", generator=torch.Generator().manual_seed(5)).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("kind", ["bert", "esm"])
def test_a_mask_that_the_model_does_not_know_is_refused_before_it_is_called(kind: str) -> None:
    denoiser = as_denoiser(randomised(masked_lm(kind)))
    with pytest.raises(ValueError, match=f"token id {V} is outside the {V} classes"):
        AncestralSampler(MaskedDiffusion(V), num_steps=2)(denoiser, (2, LENGTH))
