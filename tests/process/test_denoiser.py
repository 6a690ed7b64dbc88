"""The denoiser protocol: rows asked for are rows computed, and only willing networks hear of the step."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from discrete_distill.models import DiT, DiTConfig
from discrete_distill.process import FeatureDenoiser, MaskedDiffusion, logits_at, step_kwargs
from discrete_distill.process.denoiser import feature_parts, logits_in_parts


class TwoPart(nn.Module):
    """A denoiser in two parts that notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 5)
        self.projected_rows: list[int] = []
        self.heard: list[dict[str, Any]] = []

    def features(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        self.heard.append(model_kwargs)
        return self.embedding(x_t) * t[:, None, None]

    def project(self, features: Tensor) -> Tensor:
        self.projected_rows.append(features.shape[:-1].numel())
        return self.head(features)

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        return self.project(self.features(x_t, t, **model_kwargs))


X = torch.tensor([[0, 1, 4], [2, 4, 3]])
T = torch.tensor([0.3, 0.8])
ROWS = torch.tensor([1, 3, 5])


def test_both_paths_give_the_rows_of_the_full_logits() -> None:
    network = TwoPart()
    full = network(X, T).flatten(0, 1)[ROWS]
    torch.testing.assert_close(logits_at(network, X, T, ROWS), full)
    assert torch.equal(logits_at(lambda x, t: network(x, t), X, T, ROWS), full)


def test_a_feature_denoiser_projects_the_chosen_rows_only() -> None:
    network = TwoPart()
    logits_at(network, X, T, ROWS)
    assert network.projected_rows == [3]


def test_no_rows_give_no_logits() -> None:
    assert logits_at(TwoPart(), X, T, torch.zeros(0, dtype=torch.long)).shape == (0, 5)


@pytest.mark.parametrize("accepts", [True, False])
def test_the_end_of_the_step_is_told_to_those_who_accept_it(accepts: bool) -> None:
    network = TwoPart()
    network.accepts_step = accepts  # type: ignore[assignment]
    s = torch.tensor([0.1, 0.2])
    logits_at(network, X, T, ROWS, s=s, model_kwargs={"prompt": "kept"})
    expected = {"prompt": "kept", **({"s": s} if accepts else {})}
    assert network.heard == [expected]
    assert step_kwargs(network, None) == {}


def test_a_plain_callable_is_no_feature_denoiser() -> None:
    assert isinstance(TwoPart(), FeatureDenoiser)
    assert not isinstance(nn.Linear(2, 2), FeatureDenoiser)


class Wrong:
    """A denoiser whose answer is changed on its way."""

    def __init__(self, change: Any) -> None:
        self.change, self.network = change, TwoPart()

    def __call__(self, x_t: Tensor, t: Tensor) -> Any:
        return self.change(self.network(x_t, t))


class WrongFeatures(Wrong):
    def features(self, x_t: Tensor, t: Tensor) -> Any:
        return self.change(self.network.features(x_t, t))

    def project(self, features: Tensor) -> Tensor:
        return self.network.project(features)


SHAPES = {
    "length first": lambda values: values.transpose(0, 1),
    "one position more": lambda values: torch.cat((values, values[:, :1]), 1),
    "one position less": lambda values: values[:, 1:],
    "more sequences": lambda values: torch.cat((values, values)),
    "flattened": lambda values: values.flatten(0, 1),
    "no classes": lambda values: values[..., :0],
    "a fourth dimension": lambda values: values[None],
}
TYPES = {
    "an output object": lambda values: {"logits": values},
    "numpy": lambda values: values.detach().numpy(),
    "integers": lambda values: values.long(),
    "nothing": lambda values: None,
}


@pytest.mark.parametrize("kind", [Wrong, WrongFeatures])
@pytest.mark.parametrize("how", SHAPES)
def test_logits_and_features_of_another_shape_are_refused_and_both_shapes_named(kind, how) -> None:
    wrong = SHAPES[how](torch.zeros(2, 3, 8 if kind is WrongFeatures else 5))
    shapes = f"{re.escape(str(list(wrong.shape)))}.*{re.escape(str(list(X.shape)))}"
    with pytest.raises(ValueError, match=shapes):
        logits_at(kind(SHAPES[how]), X, T, ROWS)
    with pytest.raises(ValueError, match=shapes):
        MaskedDiffusion(4).nelbo(kind(SHAPES[how]), X, by="count")


@pytest.mark.parametrize("kind", [Wrong, WrongFeatures])
@pytest.mark.parametrize("how", TYPES)
def test_what_is_no_floating_tensor_is_refused(kind, how) -> None:
    with pytest.raises(TypeError):
        logits_at(kind(TYPES[how]), X, T, ROWS)


def test_a_head_that_returns_another_number_of_rows_is_refused() -> None:
    network = TwoPart()
    network.project = lambda features: network.head(features)[:-1]  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"\[2, 5\].*\[3, 8\]"):
        logits_at(network, X, T, ROWS)


def small_dit(**fields: Any) -> DiT:
    torch.manual_seed(0)
    shape = {"max_length": 6, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
    network = DiT(DiTConfig(**{"vocab_size": 6, "dropout": 0.0, **shape, **fields}))
    torch.nn.init.normal_(network.output_layer.linear.weight)
    return network.eval()


def test_a_mask_outside_the_vocabulary_is_refused_before_the_network_is_called() -> None:
    with pytest.raises(ValueError, match="token id 6 "):
        MaskedDiffusion(6).nelbo(small_dit(), X, by="count")
    with pytest.raises(ValueError, match="token id 5 "):
        logits_in_parts(lambda x, t: torch.zeros(*x.shape, 5), X, T, ROWS, largest_id=5)


class Counting:
    """A backend of `torch.compile` that counts graphs and runs them as they are."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, _inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("step_conditioning", [False, True])
def test_a_compiled_denoiser_is_compiled_and_its_head_runs_on_the_chosen_rows(step_conditioning) -> None:
    torch.compiler.reset()
    network, backend = small_dit(step_conditioning=step_conditioning), Counting()
    projected: list[int] = []
    network.output_layer.linear.register_forward_hook(lambda _m, inputs, _o: projected.append(inputs[0].shape[0]))
    compiled = torch.compile(network, backend=backend)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    s = torch.tensor([0.1, 0.2])
    expected = logits_at(network, X, T, ROWS, s=s, model_kwargs={"attention_mask": mask})
    actual = logits_at(compiled, X, T, ROWS, s=s, model_kwargs={"attention_mask": mask})
    assert backend.graphs == 1
    assert projected == [len(ROWS)] * 2
    torch.testing.assert_close(actual, expected)
    logits_at(compiled, X, T, ROWS, s=s, model_kwargs={"attention_mask": mask})
    assert backend.graphs == 1


def test_every_use_of_a_compiled_denoiser_compiles_and_changes_no_result() -> None:
    from discrete_distill import AncestralSampler, IntermediateStateMatcher

    process, network = MaskedDiffusion(5), small_dit()
    uses = {
        "sampler": lambda net: AncestralSampler(process, num_steps=2)(net, (2, 6), generator=seeded(0)).sequences,
        "rollout": lambda net: IntermediateStateMatcher(process, (2,))(net, (2, 6), generator=seeded(0)).log_prob(),
        "nelbo": lambda net: process.nelbo(net, X, by="count", generator=seeded(0)).nats,
    }
    for name, use in uses.items():
        torch.compiler.reset()
        backend = Counting()
        torch.testing.assert_close(use(torch.compile(network, backend=backend)), use(network))
        assert backend.graphs > 0, name


def test_gradients_pass_a_compiled_denoiser() -> None:
    torch.compiler.reset()
    network, backend = small_dit(), Counting()
    gradients = []
    for each in (network, torch.compile(network, backend=backend)):
        network.zero_grad()
        logits_at(each, X, T, ROWS).square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None])
    assert backend.graphs == 1
    torch.testing.assert_close(gradients[1], gradients[0])


def test_a_compiled_plain_module_is_called_as_a_whole() -> None:
    torch.compiler.reset()

    class Plain(nn.Module):
        def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(x_t, 5) * t[:, None, None]

    backend = Counting()
    compiled = torch.compile(Plain(), backend=backend)
    assert feature_parts(compiled) is None
    assert torch.equal(logits_at(compiled, X, T, ROWS), Plain()(X, T).flatten(0, 1)[ROWS])
    assert backend.graphs == 1


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
