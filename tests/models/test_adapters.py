"""Foreign models as denoisers: equal to plain calls of the model, whatever is passed through, and in a sampler."""

import warnings
from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
from foreign import KINDS, LENGTH, MASK, SIZE, TinyDream, TinyLLaDA, V, masked_lm, randomised
from torch import Tensor, nn

from discrete_distill import AncestralSampler, LogLinearSchedule, MaskedDiffusion, as_denoiser
from discrete_distill.models import DiT
from discrete_distill.process import FeatureDenoiser, logits_at

transformers = pytest.importorskip("transformers")

REAL = torch.arange(LENGTH) < torch.tensor([[LENGTH], [4], [6]])


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(1, V, (3, LENGTH), generator=generator)
    x[:, 2] = MASK
    return x, torch.rand(3, generator=generator)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_language_models_equal_plain_calls(kind: str) -> None:
    model = randomised(masked_lm(kind))
    denoiser = as_denoiser(model)
    x, t = example()
    assert torch.equal(denoiser(x, t), model(input_ids=x).logits)
    padded = denoiser(x, t, attention_mask=REAL)
    assert torch.equal(padded, model(input_ids=x, attention_mask=REAL.long()).logits)
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
        torch.testing.assert_close(logits_at(denoiser, x, t, rows, **cond), expected, atol=1e-5, rtol=1e-5)
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
    assert not isinstance(shifted, FeatureDenoiser)
    torch.testing.assert_close(shifted(x, t)[:, 1:], expected[:, :-1])


class ResearchNetwork(nn.Module):
    """The transformer of the MDLM, DUO, SDTT and DiDi-Instruct code: called with ids and sigma, by position."""

    def __init__(self, dit: DiT, config: Any = None) -> None:
        super().__init__()
        self.vocab_embed, self.output_layer = dit.vocab_embed, dit.output_layer
        self.inner, self.config = [dit], config
        self.sigmas: list[Tensor] = []

    def forward(self, indices: Tensor, sigma: Tensor) -> Tensor:
        self.sigmas.append(sigma)
        t = -torch.expm1(-sigma) / (1.0 - 1e-3)
        h, cond = self.inner[0].trunk(self.vocab_embed(indices), t)
        return self.output_layer.linear(self.output_layer.features(h, cond))


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


class HubNetwork(nn.Module):
    """The class in the hub repositories of MDLM and DUO: by keyword, and logits as they come, or in a tuple."""

    def __init__(self, network: ResearchNetwork, time_conditioning: bool, pack: bool) -> None:
        super().__init__()
        self.backbone, self.pack = network, pack
        self.config = SimpleNamespace(model_type="mdlm", time_conditioning=time_conditioning)

    def forward(self, input_ids: Tensor, timesteps: Tensor) -> Any:
        logits = self.backbone(input_ids, timesteps)
        return (logits, []) if self.pack else logits


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


def causal(kind: str = "Llama", **config: Any) -> Any:
    made = getattr(transformers, f"{kind}Config")(**SIZE, num_key_value_heads=1, head_dim=8, **config)
    return randomised(getattr(transformers, f"{kind}ForCausalLM")(made))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize(("kind", "apart"), [("Llama", True), ("Cohere", True), ("Granite", True), ("Gemma2", False)])
def test_the_head_is_run_apart_only_where_nothing_comes_after_it(kind: str, apart: bool, trained: bool) -> None:
    """Gemma 2 caps its logits, which at small ones, before it is trained, is hardly seen; scales are no matter."""
    model = causal(kind, **({"logit_scale": 0.5} if kind == "Cohere" else {}))
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(30.0 if trained else 1e-3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        denoiser = as_denoiser(model.train(), attention="full", head="lm_head")
    assert model.training
    assert isinstance(denoiser, FeatureDenoiser) == apart
    assert any("Gemma2ForCausalLM" in str(each.message) for each in caught) != apart
    model.eval()
    x, t = example()
    expected = model(input_ids=x, attention_mask=torch.zeros(3, 1, LENGTH, LENGTH)).logits
    torch.testing.assert_close(logits_at(denoiser, x, t, torch.arange(x.numel())), expected.flatten(0, 1))


def test_making_a_denoiser_moves_no_random_state() -> None:
    state = torch.get_rng_state()
    model = masked_lm("bert")
    torch.set_rng_state(state)
    as_denoiser(model)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "DUO"},
        {"model_type": "duo"},
        {"model_type": "udlm"},
        {"model_type": "mdlm", "diffusion": "uniform"},
    ],
)
def test_models_of_uniform_noise_are_refused(config: dict[str, str]) -> None:
    network = HubNetwork(ResearchNetwork(published.denoiser(published.network())), False, False)
    network.config = SimpleNamespace(**config)
    with pytest.raises(ValueError, match="uniform"):
        as_denoiser(network)


def test_models_of_uniform_noise_are_known_by_their_class_and_algorithm() -> None:
    network = ResearchNetwork(published.denoiser(published.network()))
    with pytest.raises(ValueError, match="DUO"):
        as_denoiser(type("DUO", (ResearchNetwork,), {})(published.denoiser(published.network())))
    network.config = SimpleNamespace(algo=SimpleNamespace(name="duo"))
    with pytest.raises(ValueError, match="duo"):
        as_denoiser(network)


class Lenient(nn.Module):
    """Takes any keyword and forgets it."""

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, **kwargs: Any) -> Tensor:
        return nn.functional.one_hot(input_ids, V).float() + (0.0 if labels is None else labels.float()[:, None, None])


@pytest.mark.parametrize(
    ("model", "keyword"),
    [
        (masked_lm("bert"), "atention_mask"),
        (masked_lm("bert"), "class_label"),
        (Lenient(), "atention_mask"),
        (Lenient(), "label"),
        (lambda input_ids: torch.zeros(*input_ids.shape, V), "labels"),
    ],
)
def test_a_condition_that_would_be_ignored_is_refused(model: Any, keyword: str) -> None:
    denoiser, (x, t) = as_denoiser(model, attention="padding", head=None), example()
    denoiser(x, t)
    with pytest.raises(TypeError, match=keyword):
        denoiser(x, t, **{keyword: torch.ones(3)})


def test_conditions_that_a_model_takes_reach_it() -> None:
    denoiser, (x, t) = as_denoiser(Lenient(), attention="padding"), example()
    assert not torch.equal(denoiser(x, t, labels=torch.ones(3)), denoiser(x, t))
    denoiser(x, t, temperature_of_the_day=3.0)  # nothing says that this is wrong
    as_denoiser(masked_lm("bert"))(x, t, output_attentions=False)


def test_only_a_network_that_is_told_the_time_depends_on_it() -> None:
    assert as_denoiser(masked_lm("bert")).time_conditioned is False
    network = ResearchNetwork(published.denoiser(published.network()))
    assert as_denoiser(network).time_conditioned is False
    assert as_denoiser(network, time_conditioning=True).time_conditioned is True


def wrapped_by(kind: str, model: nn.Module) -> Any:
    if kind == "compile":
        return torch.compile(model, backend="eager")
    if kind == "data parallel":
        return nn.DataParallel(model)
    peft = pytest.importorskip("peft", reason="LoRA is an optional extra")
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=["query"], init_lora_weights=False))


@pytest.mark.parametrize("kind", ["compile", "data parallel", "peft"])
def test_known_models_are_known_inside_what_wraps_them(kind: str) -> None:
    plain = randomised(masked_lm("bert"))
    model = wrapped_by(kind, plain).eval()
    denoiser, (x, t) = as_denoiser(model), example()
    assert isinstance(denoiser, FeatureDenoiser)
    for cond in ({}, {"attention_mask": REAL}):
        expected = plain(x, **{name: value.long() for name, value in cond.items()}).logits  # with its adapters
        torch.testing.assert_close(denoiser(x, t, **cond), expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(denoiser.project(denoiser.features(x, t, **cond)), expected, atol=1e-4, rtol=1e-4)
    with pytest.raises(TypeError, match="atention_mask"):
        denoiser(x, t, atention_mask=REAL)
    causal_lm = wrapped_by(kind, causal()) if kind != "peft" else causal()
    with pytest.raises(ValueError, match="full"):
        as_denoiser(causal_lm)
    dit = published.denoiser(published.network())
    if kind != "peft":
        around = wrapped_by(kind, dit)
        assert as_denoiser(around) is around


def test_its_forward_is_compiled_whole() -> None:
    model = randomised(masked_lm("bert"))
    denoiser, (x, t) = as_denoiser(model), example()
    compiled = torch.compile(denoiser, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, t, attention_mask=REAL), denoiser(x, t, attention_mask=REAL))


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
