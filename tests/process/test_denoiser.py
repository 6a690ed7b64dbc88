"""The denoiser protocol: rows asked for are rows computed, and only willing networks hear of the step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from discrete_distill.process import FeatureDenoiser, logits_at, step_kwargs


class TwoPart(nn.Module):
    """A denoiser in two parts that notes what it is asked."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(5, 8)
        self.head = nn.Linear(8, 5)
        self.projected_rows: list[int] = []
        self.heard: list[dict[str, Any]] = []

    def features(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        self.heard.append(cond)
        return self.embedding(x_t) * t[:, None, None]

    def project(self, features: Tensor) -> Tensor:
        self.projected_rows.append(features.shape[:-1].numel())
        return self.head(features)

    def forward(self, x_t: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return self.project(self.features(x_t, t, **cond))


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
    logits_at(network, X, T, ROWS, s=s, prompt="kept")
    expected = {"prompt": "kept", **({"s": s} if accepts else {})}
    assert network.heard == [expected]
    assert step_kwargs(network, None) == {}


def test_a_plain_callable_is_no_feature_denoiser() -> None:
    assert isinstance(TwoPart(), FeatureDenoiser)
    assert not isinstance(nn.Linear(2, 2), FeatureDenoiser)
