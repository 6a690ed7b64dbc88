"""Keywords of networks: those that are not taken are named, and the library's own names are kept apart."""

from typing import Any

import pytest
import torch
from torch import nn

from discrete_distill import (
    SDTT,
    AncestralSampler,
    AuxiliaryDenoiserLogRatio,
    DiscriminatorLogRatio,
    ExactLogRatio,
    MaskedDiffusion,
    ScoreFunctionIntegralKL,
)
from discrete_distill.distillation.methods import MMDLogRatio
from discrete_distill.distillation.networks import Networks
from discrete_distill.process import logits_at
from discrete_distill.process.conditions import RESERVED, check_conditions, check_keywords

X, T, ROWS = torch.tensor([[0, 1, 4]]), torch.tensor([0.3]), torch.tensor([1])


def plain(x_t, t):
    return torch.zeros(*x_t.shape, 5)


def willing(x_t, t, **_):
    return torch.zeros(*x_t.shape, 5)


class Module(nn.Module):
    def forward(self, x_t, t, topic=None):
        return plain(x_t, t)


class InParts(Module):
    def features(self, x_t, t):
        return plain(x_t, t)

    def project(self, features):
        return features


@pytest.mark.parametrize("denoiser", [plain, Module(), InParts()], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("name", ["attention_mask", "colour"])
def test_a_keyword_that_a_denoiser_does_not_take_is_named(denoiser, name) -> None:
    owner = getattr(denoiser, "__name__", type(denoiser).__name__)
    with pytest.raises(TypeError, match=f"{owner} takes no keyword '{name}'"):
        logits_at(denoiser, X, T, ROWS, model_kwargs={name: torch.ones(1, 3, dtype=torch.bool)})
    logits_at(willing, X, T, ROWS, model_kwargs={name: torch.ones(1, 3, dtype=torch.bool)})


def test_errors_inside_a_denoiser_are_left_as_they_are() -> None:
    def broken(x_t, t, **_):
        raise TypeError("its own")

    with pytest.raises(TypeError, match="its own"):
        logits_at(broken, X, T, ROWS, model_kwargs={"topic": 1})


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(TypeError, match="str is not callable"):
        logits_at("bert", X, T, ROWS)


def test_a_signature_that_nobody_knows_passes() -> None:
    check_keywords(None, dict, ["anything"])
    check_keywords(Module(), Module(), ["topic"])
    check_keywords(Module(), torch.compile(Module(), backend="eager"), ["topic"])


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_names_of_the_library_are_refused_as_conditions(name) -> None:
    with pytest.raises(TypeError, match=repr(name)):
        check_conditions({name: 1}, willing)


@pytest.mark.parametrize("name", ["s", "t", "attention_mask", "atention_mask"])
def test_a_sampler_passes_no_name_of_its_own_and_no_misspelt_one(name) -> None:
    """A denoiser with ``**kwargs`` would take them all."""
    with pytest.raises(TypeError, match=repr(name)):
        AncestralSampler(MaskedDiffusion(4))(willing, (2, 3), model_kwargs={name: 1})


@pytest.mark.parametrize("name", ["temperature", "num_steps", "firstrow", "topic"])
def test_a_sampler_takes_conditions_in_one_argument_alone(name) -> None:
    with pytest.raises(TypeError, match=repr(name)):
        AncestralSampler(MaskedDiffusion(4))(willing, (2, 3), **{name: 1})


@pytest.mark.parametrize("value", ["topic", {1: 2}, torch.ones(2)])
def test_keyword_arguments_are_a_mapping_from_names(value) -> None:
    with pytest.raises(TypeError, match="model_kwargs is a mapping"):
        AncestralSampler(MaskedDiffusion(4))(willing, (2, 3), model_kwargs=value)


def test_conditions_of_other_names_pass_and_so_does_a_near_one_that_the_denoiser_states() -> None:
    heard = []

    def denoiser(x_t, t, topic, attention_masks):
        heard.append((topic, attention_masks))
        return plain(x_t, t)

    AncestralSampler(MaskedDiffusion(4), num_steps=1)(denoiser, (2, 3), model_kwargs={"topic": 3, "attention_masks": 5})
    assert heard == [(3, 5)]


@pytest.mark.parametrize("name", ["x_t", "rows"])
def test_paths_and_bounds_refuse_them_too(name) -> None:
    from discrete_distill import IntermediateStateMatcher

    process = MaskedDiffusion(4)
    with pytest.raises(TypeError, match=repr(name)):
        process.nelbo(willing, X, model_kwargs={name: 1})
    with pytest.raises(TypeError, match=repr(name)):
        IntermediateStateMatcher(process, (2,))(willing, (2, 3), model_kwargs={name: 1})


@pytest.mark.parametrize("name", ["atention_mask", "attention_mask", "label"])
def test_no_function_takes_an_argument_that_it_does_not_name(name) -> None:
    """Keyword arguments of the networks are in ``model_kwargs`` alone, so a misspelt option is seen."""
    process, zero, flags = MaskedDiffusion(4), torch.zeros(1), torch.ones(1, 3, dtype=torch.bool)
    given = {name: flags}
    discriminator = DiscriminatorLogRatio(process, lambda x_t, t, **_: torch.zeros(x_t.shape))
    estimator = ScoreFunctionIntegralKL(process, discriminator)
    sdtt = SDTT(Networks(nn.Linear(1, 1), willing), process)
    calls = [
        lambda: logits_at(willing, X, T, ROWS, **given),
        lambda: process.nelbo(willing, X, **given),
        lambda: discriminator(X, T, **given),
        lambda: AuxiliaryDenoiserLogRatio(process, willing, willing)(X, T, x=X, **given),
        lambda: ExactLogRatio(process, lambda x_t, t: zero)(X, T, **given),
        lambda: MMDLogRatio(willing, 1)(X, T, x=X, reference=X, **given),
        lambda: estimator(X, torch.zeros(1, 3), **given),
        lambda: estimator.score(X, **given),
        lambda: sdtt.targets(X, T, zero, **{("label" if name == "attention_mask" else name): flags}),
    ]
    for call in calls:
        with pytest.raises(TypeError):
            call()


def test_keyword_arguments_reach_the_networks_of_a_log_ratio() -> None:
    heard: list[tuple[str, Any]] = []

    def network(kind: str) -> Any:
        def answer(x_t, t, *, s=None, topic):
            heard.append((kind, topic))
            return torch.zeros(x_t.shape) if kind == "discriminator" else plain(x_t, t)

        return answer

    process, x = MaskedDiffusion(4), torch.zeros(4, 3, dtype=torch.long)
    for ratio in (
        DiscriminatorLogRatio(process, network("discriminator")),
        AuxiliaryDenoiserLogRatio(process, network("auxiliary"), network("teacher")),
    ):
        estimator = ScoreFunctionIntegralKL(process, ratio)
        estimator(x, torch.zeros(4, 3), group_size=2, model_kwargs={"topic": 3})
    process.nelbo(network("bound"), x, model_kwargs={"topic": 3})
    assert heard == [(kind, 3) for kind in ("discriminator", "auxiliary", "teacher", "bound")]
