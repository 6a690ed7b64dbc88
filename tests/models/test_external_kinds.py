"""What is known of an external model before it is called: its head, its wrappers, its keywords, its kind."""

import warnings
from types import SimpleNamespace
from typing import Any

import published
import pytest
import torch
from external import LENGTH, REAL, SIZE, HubNetwork, ResearchNetwork, V, example, masked_lm, randomised, transformers
from torch import Tensor, nn

from discrete_distill import StepConditioned, as_denoiser
from discrete_distill.models import EmbeddingDenoiser, HiddenStatesDenoiser
from discrete_distill.process import FeatureDenoiser, logits_at


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


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ({"attention": "ful"}, ValueError),
        ({"time_conditioning": True}, ValueError),
        ({"shifted": "yes"}, TypeError),
        ({"head": 3}, TypeError),
    ],
)
def test_what_is_said_of_a_model_must_mean_something(said: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error, match=next(iter(said))):
        as_denoiser(masked_lm("bert"), **said)


def test_a_denoiser_in_a_wrapper_is_not_called_in_another_way() -> None:
    dit = nn.DataParallel(published.denoiser(published.network()))
    assert as_denoiser(dit) is dit
    with pytest.raises(TypeError, match="DiT"):
        as_denoiser(dit, ids="positional", time="positional")


@pytest.mark.parametrize("attention", ["padding", "full", "pairs"])
def test_masks_of_padding_of_another_shape_or_kind_are_refused(attention: Any) -> None:
    denoiser, (x, t) = as_denoiser(causal(), attention=attention, head=None), example()
    with pytest.raises(TypeError, match="float32"):
        denoiser(x, t, attention_mask=torch.zeros(3, LENGTH))  # additive: 0 would mean padding
    for wrong in (REAL[:2], REAL[:, :-1], REAL[:, None, None]):
        with pytest.raises(ValueError, match="attention_mask"):
            denoiser(x, t, attention_mask=wrong)


class Averaging(nn.Module):
    """Adds the mean embedding of all tokens, padding or not, to each."""

    def __init__(self, obeys: bool = False, bypasses: bool = False) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(V, 8), nn.Linear(8, V)
        self.obeys, self.bypasses = obeys, bypasses

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        h = self.table.weight[input_ids] if self.bypasses else self.table(input_ids)
        real = attention_mask if attention_mask is not None and self.obeys else torch.ones_like(input_ids)
        return self.head(h + (h * real[..., None]).sum(1, keepdim=True) / real.sum(1)[:, None, None])


@pytest.mark.parametrize("obeys", [False, True])
def test_a_mask_that_the_model_ignores_is_refused(obeys: bool) -> None:
    model, (x, t) = Averaging(obeys), example()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        denoiser = as_denoiser(model, attention="padding")
    assert len(caught) == (not obeys)
    if obeys:
        denoiser(x, t, attention_mask=REAL)
    else:
        assert "padding" in str(caught[0].message)
        with pytest.raises(ValueError, match="Averaging"):
            denoiser(x, t, attention_mask=REAL)
    trusted = as_denoiser(model, attention="padding", verify=False)
    assert torch.equal(trusted(x, t, attention_mask=REAL), model(x, REAL.long()))


def test_a_model_that_reads_from_left_to_right_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="left to right"):
        as_denoiser(causal(), attention="padding")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        as_denoiser(causal(), attention="full")
        as_denoiser(causal(), attention="padding", verify=False)
        as_denoiser(Averaging(obeys=True), attention="padding")


def test_a_table_that_the_model_does_not_call_is_not_set_aside() -> None:
    model, (x, t) = Averaging(obeys=True), example()
    assert isinstance(as_denoiser(model, attention="padding"), EmbeddingDenoiser)
    with pytest.warns(UserWarning, match="EmbeddingDenoiser"):
        denoiser = as_denoiser(Averaging(obeys=True, bypasses=True), attention="padding")
    assert not isinstance(denoiser, EmbeddingDenoiser)
    with pytest.raises(TypeError, match=r"EmbeddingDenoiser.*embedding="):
        StepConditioned(denoiser)  # type: ignore[arg-type]
    assert denoiser(x, t).shape == (*x.shape, V)


def test_a_denoiser_is_returned_as_it_is() -> None:
    class Own(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
            return nn.functional.one_hot(x_t, V).float()

    def function(x_t: Tensor, t: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return nn.functional.one_hot(x_t, V).float()

    own = Own()
    assert as_denoiser(own) is own
    assert as_denoiser(function) is function
    for wrong in (lambda x_t: x_t, nn.Identity(), 3):
        with pytest.raises(TypeError, match="no model that is known"):
            as_denoiser(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["data parallel", "peft", "compile"])
def test_embeddings_and_blocks_are_found_inside_what_wraps_a_model(kind: str) -> None:
    plain = randomised(masked_lm("bert"))
    model = wrapped_by(kind, plain).eval()
    denoiser, (x, t) = as_denoiser(model), example()
    assert isinstance(denoiser, EmbeddingDenoiser)
    assert isinstance(denoiser, HiddenStatesDenoiser)
    torch.testing.assert_close(denoiser(x, t, inputs_embeds=denoiser.embed(x)), denoiser(x, t), atol=1e-4, rtol=1e-4)
    expected = plain(x, output_hidden_states=True).hidden_states[1]
    torch.testing.assert_close(denoiser.hidden_states(x, t, 0), expected, atol=1e-4, rtol=1e-4)
