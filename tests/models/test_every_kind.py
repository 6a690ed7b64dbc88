"""Every part of the library on every kind of model: it works, or says in one sentence what is missing."""

import copy
import inspect
from typing import Any

import pytest
import torch
from every_kind import KINDS, MASKED_LMS, NETWORKS, bare, teacher
from external import LENGTH, MASK, REAL, V, example
from torch import Tensor, nn

from discrete_distill import (
    AncestralSampler,
    ConfidenceSampler,
    DiDiInstruct,
    DiDiInstructConfig,
    Discriminator,
    MaskedDiffusion,
    RGASampler,
    StepConditioned,
    as_denoiser,
    make_networks,
)
from discrete_distill.distillation.methods import (
    AlphaLossConfig,
    BlockHalves,
    CertaintyForcingConfig,
    FeatureMMDConfig,
    FrozenFeatures,
    OnPolicyConfig,
    OnPolicyDistillation,
    Regularization,
    TrajectoryStates,
)
from discrete_distill.distillation.networks import Networks
from discrete_distill.evaluation import TextModel
from discrete_distill.models import (
    DiT,
    EmbeddingDenoiser,
    HiddenStatesDenoiser,
    discriminator_loss,
    guide_by_prior,
    prior_log_probs,
)
from discrete_distill.process import FeatureDenoiser
from discrete_distill.samplers.state import SamplerState
from discrete_distill.training import TrajectoryStore

PROCESS = MaskedDiffusion(mask_token_id=MASK)
CONFIG = DiDiInstructConfig.recommended(advantages={"group_size": 2}, regularization=Regularization())


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_model_offers(kind: str) -> None:
    """Gemma 2 caps its logits after the head, and a function has no parts."""
    denoiser = teacher(kind)
    assert isinstance(denoiser, FeatureDenoiser) == (kind not in ("function", "gemma2"))
    for capability in (EmbeddingDenoiser, HiddenStatesDenoiser):
        assert isinstance(denoiser, capability) == (kind != "function")
    assert as_denoiser(denoiser) is denoiser
    assert kind != "function" or denoiser is bare


@pytest.mark.parametrize("capability", [FeatureDenoiser, EmbeddingDenoiser, HiddenStatesDenoiser])
def test_members_of_a_capability_are_in_the_class_of_a_network(capability: Any) -> None:
    """From Python 3.12 on, isinstance does not see what ``nn.Module.__getattr__`` finds, such as submodules."""
    members = [name for name in vars(capability) if not name.startswith("_")]
    assert members
    for kind in NETWORKS:
        if isinstance(teacher(kind), capability):
            assert all(inspect.getattr_static(teacher(kind), name, None) is not None for name in members)


@pytest.mark.parametrize("kind", NETWORKS)
def test_embeddings_of_tokens_stand_for_the_tokens(kind: str) -> None:
    denoiser, (x, t) = teacher(kind), example()
    for given in ({}, {"attention_mask": REAL} if kind != "dream" else {}):
        h = denoiser.embed(x)
        close(denoiser(x, t, inputs_embeds=h, **given), denoiser(x, t, **given))
        last = denoiser.hidden_states(x, t, len(denoiser.blocks) - 1, **given)
        close(denoiser.hidden_states(x, t, len(denoiser.blocks) - 1, inputs_embeds=h, **given), last)
        if isinstance(denoiser, FeatureDenoiser):
            close(denoiser.project(denoiser.features(x, t, inputs_embeds=h, **given)), denoiser(x, t, **given))
    visible = x[:, 0]
    close(denoiser.embedding_weight()[visible], denoiser.embed(x)[:, 0])


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert", "llama", "gemma2"])
def test_hidden_states_are_those_that_the_model_returns(kind: str) -> None:
    denoiser, (x, t) = teacher(kind), example()
    kwargs: dict[str, Any] = {"output_hidden_states": True}
    if kind not in MASKED_LMS:
        kwargs["attention_mask"] = torch.zeros(3, 1, LENGTH, LENGTH)
    expected = denoiser.model(x, **kwargs).hidden_states[1]
    hooks = dict(denoiser.blocks[0]._forward_hooks)  # transformers has its own
    assert torch.equal(denoiser.hidden_states(x, t, 0), expected)
    assert dict(denoiser.blocks[0]._forward_hooks) == hooks


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_batch_of_no_rows_has_no_logits_and_no_gradient(kind: str) -> None:
    """A step of a path may leave no row to evaluate."""
    (x, t), denoiser = example(), teacher(kind)
    none = denoiser(x[:0], t[:0])
    assert none.shape == (0, LENGTH, V)
    assert denoiser.hidden_states(x[:0], t[:0], 0).shape == (0, LENGTH, 16)
    assert denoiser(x[:0], t[:0], inputs_embeds=denoiser.embed(x)[:0]).shape == none.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sampler", [AncestralSampler, ConfidenceSampler])
def test_samplers(kind: str, sampler: Any) -> None:
    prompt = torch.tensor([[1, 5] + [MASK] * 5, [1] + [MASK] * 6])
    out = sampler(PROCESS, num_steps=3)(teacher(kind), x_init=prompt, generator=seeded(0)).sequences
    assert not (out == MASK).any()
    assert torch.equal(out[prompt != MASK], prompt[prompt != MASK])


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_denoiser_is_told_its_step_without_a_change_of_its_first_outputs(kind: str) -> None:
    (x, t), plain = example(), teacher(kind)
    told: Any = make_networks(plain, log_ratio=None).student
    s = 0.5 * t
    assert told.accepts_step
    assert not getattr(plain, "accepts_step", False)
    assert isinstance(told, DiT if kind == "dit" else StepConditioned)
    for capability in (FeatureDenoiser, EmbeddingDenoiser, HiddenStatesDenoiser):
        assert isinstance(told, capability) == isinstance(plain, capability)
    close(told(x, t, s=s), plain(x, t))
    close(told(x, t, s=s, inputs_embeds=told.embed(x)), plain(x, t))
    nn.init.normal_(told.step_map.mlp[-1].weight)
    assert not torch.allclose(told(x, t, s=s), told(x, t, s=0.9 * t))
    assert torch.equal(told(x, t), plain(x, t))


@pytest.mark.parametrize(
    "config",
    [AlphaLossConfig(k=0.1), FeatureMMDConfig(), CertaintyForcingConfig(corruption=BlockHalves(block_length=3))],
)
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_on_corrupted_data(kind: str, config: Any) -> None:
    networks = make_networks(teacher(kind), log_ratio=None, step_conditioning=False)
    method, (x_0, _) = config.method_class(networks, PROCESS, config), example()
    x_0 = x_0.masked_fill(x_0 == MASK, 3)
    given = {} if kind == "dream" else {"attention_mask": REAL}
    rollout = method.rollout(reference=x_0, generator=seeded(0), **given)
    assert not given or not bool((rollout.loss_mask & ~REAL.repeat(len(rollout.x_t) // 3, 1)).any())
    out = method.loss("student", rollout, generator=seeded(1))
    out.loss.backward()
    gradients = [p.grad for p in networks.student.parameters() if p.grad is not None]
    assert all(bool(each.isfinite().all()) for each in [out.loss, *gradients])
    assert any(bool((each != 0).any()) for each in gradients)
    assert all(parameter.grad is None for parameter in teacher(kind).parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_trajectories_are_recorded_once_and_read_by_a_method(kind: str, tmp_path: Any) -> None:
    x_init = torch.tensor([[1, 5] + [MASK] * 5, [1] + [MASK] * 6, [MASK] * 7])
    given: dict[str, Any] = (
        {"x_init": x_init} if kind in ("dream", "function") else {"x_init": x_init, "attention_mask": REAL}
    )
    stored = {**given, "teacher_id": "bare" if kind == "function" else None, "batch_size": 2}
    sampler = ConfidenceSampler(PROCESS, num_steps=3)
    store = TrajectoryStore.record(tmp_path, sampler, teacher(kind), **stored)
    drawn = store.rows(torch.arange(3))
    assert not bool((drawn.x_0[drawn.generation_mask] == MASK).any())
    assert torch.equal(drawn.generation_mask, (x_init == MASK) & given.get("attention_mask", torch.tensor(True)))
    student = teacher("dit" if kind == "function" else kind)
    config = CertaintyForcingConfig(corruption=TrajectoryStates(block_length=(3, 3), mask_ratio=(0.8, 0.8)))
    networks = make_networks(student, log_ratio=None, step_conditioning=False)
    method = config.method_class(networks, PROCESS, config)
    method.loss("student", method.rollout(reference=drawn, generator=seeded(0))).loss.backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in networks.student.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_of_text(kind: str) -> None:
    """One token: the bound is the model's own log-probability."""
    model = TextModel(
        PROCESS,
        teacher(kind),
        ConfidenceSampler(PROCESS, num_steps=2),
        encode=lambda text: [int(each) for each in text.split()],
        decode=lambda ids: " ".join(map(str, ids)),
        max_length=LENGTH,
        prefix=(1,),
        suffix=(2,),
        num_samples=3,
    )
    x_t, t = torch.tensor([[1, 5, 6, MASK, 2]]), PROCESS.time_of_count(torch.tensor([1]), torch.tensor([1]))
    with torch.no_grad():
        expected = PROCESS.masked_log_probs(teacher(kind)(x_t, t))[0, 3, 7]
    assert model.log_likelihood("5 6", " 7")[0] == pytest.approx(float(expected), abs=1e-4)
    assert all(len(text.split()) == 3 for text in model.complete(["5", "6 7", "8"], max_new_tokens=3))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_on_policy(kind: str) -> None:
    student = make_networks(
        teacher("dit" if kind == "function" else kind), log_ratio=None, step_conditioning=False
    ).student
    config = OnPolicyConfig(num_steps=(3,), teacher_steps=3, temperature=1.0)
    method = OnPolicyDistillation(Networks(student, teacher(kind)), PROCESS, config)
    prompts = torch.tensor([[1, 5] + [MASK] * 5, [1] + [MASK] * 6, [MASK] * 7])
    given = {} if kind in ("dream", "function") else {"attention_mask": REAL}
    rollout = method.rollout(x_init=prompts, generator=seeded(0), **given)
    assert not bool((rollout.loss_mask & (prompts != MASK)).any())
    assert not given or not bool((rollout.loss_mask & ~REAL).any())
    method.loss("student", rollout).loss.backward()
    gradients = [p.grad for p in student.parameters() if p.grad is not None]
    assert any(bool((each != 0).any()) for each in gradients)
    assert all(bool(each.isfinite().all()) for each in gradients)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_step_of_distillation(kind: str) -> None:
    networks = make_networks(teacher(kind))
    assert networks.teacher is teacher(kind)
    with torch.no_grad():
        for parameter in networks.trainable_parameters()["auxiliary"]:  # or all rewards would be zero
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=seeded(2)))
    method = DiDiInstruct(networks, PROCESS, CONFIG)
    rollout = method.rollout(4, LENGTH, generator=seeded(0))
    assert set(networks.trainable_parameters()) == {"student", "auxiliary"}
    for name, parameters in networks.trainable_parameters().items():
        method.loss(name, rollout, generator=seeded(1)).loss.backward()
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        assert gradients
        assert all(bool(each.isfinite().all()) for each in gradients)
        step_map = networks.trained()[name].step_map.mlp[-1].weight.grad  # type: ignore[union-attr]
        assert bool((step_map != 0).any())
    assert all(parameter.grad is None for parameter in teacher(kind).parameters())


def test_a_function_teaches_a_network_and_is_not_copied() -> None:
    made = make_networks(teacher("dit")).named()
    method = DiDiInstruct(Networks(**{**made, "teacher": bare}), PROCESS, CONFIG)
    rollout = method.rollout(4, LENGTH, generator=seeded(0))
    assert bool(method.loss("student", rollout, generator=seeded(1)).loss.isfinite())
    for refused in (
        lambda: make_networks(bare),
        lambda: DiDiInstruct.make_student(bare, CONFIG),
        lambda: StepConditioned(bare),  # type: ignore[arg-type]
        lambda: Discriminator.from_denoiser(bare),
        lambda: FrozenFeatures(bare),  # type: ignore[arg-type]
        lambda: RGASampler(PROCESS, reward=bare, tilt_fraction=1.0),
    ):
        with pytest.raises(TypeError, match=r"bare|function"):
            refused()


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_discriminator_trains_its_last_block_and_shares_the_rest(kind: str) -> None:
    denoiser, (x, t) = teacher(kind), example()
    judge = Discriminator.from_denoiser(denoiser, trainable_blocks=1)
    everywhere = torch.ones_like(x, dtype=torch.bool)
    discriminator_loss(judge(x, t), judge(x.flip(0), t), everywhere, everywhere).backward()
    last = {id(parameter) for parameter in list(judge.backbone.blocks)[-1].parameters()}
    after = ("head.", "backbone.output_layer.norm", "backbone.output_layer.adaLN")  # a DiT's own last norm is trained
    frozen = 0
    theirs = {parameter.data_ptr() for parameter in denoiser.parameters()}
    for name, parameter in judge.named_parameters():
        trained = id(parameter) in last or name.startswith(after)
        assert parameter.requires_grad == trained, name
        if not trained:
            assert parameter.grad is None
            frozen += kind == "dit" or parameter.data_ptr() in theirs
    assert frozen == sum(not parameter.requires_grad for parameter in judge.parameters())
    assert any(bool((p.grad != 0).any()) for p in list(judge.backbone.blocks)[-1].parameters() if p.grad is not None)
    assert all(parameter.grad is None for parameter in denoiser.parameters())
    with pytest.raises(ValueError, match="3"):
        Discriminator.from_denoiser(denoiser, trainable_blocks=3)


@pytest.mark.parametrize("kind", NETWORKS)
def test_a_discriminator_tilts_a_sampler(kind: str) -> None:
    """The gradient of the reward at soft tokens is that of finite differences, and the sampler follows it."""
    judge = copy.deepcopy(Discriminator.from_denoiser(teacher(kind), trainable_blocks=1)).eval().double()
    judge.logits_of_features = lambda h: judge.head(h).squeeze(-1)  # type: ignore[method-assign]
    sampler = RGASampler(PROCESS, reward=judge, num_steps=2, tilt_fraction=1.0)
    x_init = torch.tensor([[1, 5, MASK, 3, 4, MASK, 2]])
    state = SamplerState(PROCESS, bare, x_init=x_init, generator=seeded(0))
    rows, t = torch.tensor([2, 5]), torch.full((1,), 0.5)
    logits = torch.randn(2, V, dtype=torch.float64, generator=seeded(1))
    gradient = sampler.reward_gradient(state, rows, logits, t)
    start = PROCESS.masked_log_probs(logits)

    def reward(log_probs: Tensor) -> float:
        h = judge.embed(x_init).flatten(0, 1).index_copy(0, rows, log_probs.softmax(-1) @ judge.embedding_weight())
        return -float(judge(x_init, t, inputs_embeds=h[None])[0, rows].mean())

    push, step = torch.zeros_like(start).flatten(), 1e-2  # large enough for models that compute norms in fp32
    steepest = int(gradient.abs().argmax())
    push[steepest] = step
    with torch.no_grad():
        slope = (reward(start + push.view_as(start)) - reward(start - push.view_as(start))) / (2 * step)
    assert slope == pytest.approx(float(gradient.flatten()[steepest]), rel=5e-2)


@pytest.mark.parametrize("kind", NETWORKS)
def test_features_for_a_comparison_of_samples(kind: str) -> None:
    x, t = example()
    features = FrozenFeatures(teacher(kind))(x, t)
    close(features.norm(dim=-1), torch.ones(3, LENGTH))
    expected = nn.functional.normalize(teacher(kind).hidden_states(x, t, 0), dim=-1)
    close(features, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_by_the_prior(kind: str) -> None:
    x, t = example()
    guided = guide_by_prior(teacher(kind), 0.5, MASK, length=LENGTH)
    prior = prior_log_probs(teacher(kind), MASK, length=LENGTH)
    expected = 1.5 * teacher(kind)(x, t) - 0.5 * prior
    close(guided(x, t).log_softmax(-1), expected.log_softmax(-1))
