"""Every option of every sampler: it does what it says, or is refused when the sampler is made."""

import inspect
from dataclasses import fields

import pytest
import torch
from counting import seeded

from discrete_distill import (
    AnalyticSampler,
    AncestralSampler,
    BlockwiseSampler,
    ConfidenceSampler,
    CudaGraphSampler,
    EntropyBoundedSampler,
    FirstHittingSampler,
    GeometricSchedule,
    MaskedDiffusion,
    PathPlanningSampler,
    ReMaskingSampler,
    RGASampler,
)
from discrete_distill.samplers import Sampler

V, MASK, LENGTH = 5, 4, 6
PROCESS, SCORES = MaskedDiffusion(MASK), MaskedDiffusion(MASK, GeometricSchedule(0.1, 3.0))
BEST = torch.tensor([0, 1, 2, 3, 0, 1])
TABLE = torch.full((LENGTH, V), 0.2).scatter(1, BEST[:, None], 1.0)
TABLE[:, MASK] = 0.0


class Network:
    """The same logits in every state, with a head of its own; a topic moves them."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.masks: list[torch.Tensor | None] = []
        self.calls = 0

    def features(self, x, t, attention_mask=None, topic=None):
        self.calls += 1
        self.masks.append(attention_mask)
        # Where the topic is told, word 3 comes near the best; guidance makes it the best.
        told = 0.0 if topic is None else 0.6 * torch.nn.functional.one_hot(torch.tensor(3), V)
        return (TABLE + told).expand(len(x), -1, -1)

    def project(self, features):
        self.rows.append(len(features))
        return features


def reward(x_t, t, attention_mask=None, topic=None):
    return torch.zeros(len(x_t))


# How each sampler is made; blocks and graphs hand the options on to another.
KINDS = {
    "ancestral": lambda **options: AncestralSampler(PROCESS, **options),
    "analytic": lambda **options: AnalyticSampler(PROCESS, **options),
    "analytic, scores": lambda **options: AnalyticSampler(SCORES, outputs="log_scores", **options),
    "confidence": lambda **options: ConfidenceSampler(PROCESS, **options),
    "entropy-bounded": lambda **options: EntropyBoundedSampler(PROCESS, **options),
    "first-hitting": lambda **options: FirstHittingSampler(PROCESS, **options),
    "path planning": lambda **options: PathPlanningSampler(PROCESS, **options),
    "remasking": lambda **options: ReMaskingSampler(PROCESS, **options),
    "remasking, conf": lambda **options: ReMaskingSampler(PROCESS, strategy="conf", **options),
    "guided": lambda **options: RGASampler(PROCESS, reward=reward, **options),
    "blocks": lambda **options: BlockwiseSampler(AncestralSampler(PROCESS, **options), block_length=3),
    "blocks of confidence": lambda **options: BlockwiseSampler(ConfidenceSampler(PROCESS, **options), block_length=4),
    "blocks of guided": lambda **options: BlockwiseSampler(
        RGASampler(PROCESS, reward=reward, **options), block_length=4
    ),
    "graph": lambda **options: CudaGraphSampler(AncestralSampler(PROCESS, **options)),
}
# What is refused at construction, and where an option is none of the sampler's.
REFUSED = {
    ("analytic, scores", "cfg_scale"),
    ("graph", "cfg_scale"),
    ("graph", "progress"),
    ("graph", "check"),
    ("blocks", "noise_removal"),
    ("blocks of confidence", "noise_removal"),
    ("blocks of guided", "noise_removal"),
}
WITHOUT_GRID = ("entropy-bounded", "first-hitting")


def draw(sampler, network=None, **call):
    call = {"shape": (8, LENGTH), "generator": seeded(0), **call}
    return sampler(Network() if network is None else network, **call)


def made(name, **options):
    """The sampler, or None where it refuses an option."""
    if not any((name, option) in REFUSED for option in options):
        return KINDS[name](**options)
    (value, *_) = [value for option, value in options.items() if (name, option) in REFUSED]
    with pytest.raises(ValueError, match=str(value)):
        KINDS[name](**options)
    return None


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{"temperature": 1e-3}, {"top_k": 1}, {"top_p": 1e-6}], ids=str)
def test_tokens_are_drawn_as_they_are_restricted(name, options) -> None:
    assert bool((draw(made(name, **options)).sequences == BEST).all())
    assert not bool((draw(made(name)).sequences == BEST).all())


@pytest.mark.parametrize("name", KINDS)
def test_the_precision_of_the_draw_is_that_of_the_logits(name) -> None:
    """At 1e9 differences of 0.8 are lost in fp32, and kept in fp64."""

    def network(x, t, **_):
        return (TABLE.double() + 1e9).expand(len(x), -1, -1)

    drawn = {each: draw(made(name, precision=each), network) for each in (torch.float32, torch.float64)}
    flat, exact = (drawn[each].log_probs for each in (torch.float32, torch.float64))
    assert torch.equal(flat, torch.full_like(flat, 0.25).log())
    expected = TABLE[:, :MASK].log_softmax(1).expand(8, -1, -1).gather(2, drawn[torch.float64].sequences[..., None])
    torch.testing.assert_close(exact, expected[..., 0])


@pytest.mark.parametrize("name", KINDS)
def test_guidance_moves_the_distribution_and_costs_twice(name) -> None:
    """Of 1.0 + 0 and 0.2 + 0.6 the first is greater; at scale 5 the second, 0.2 + 3.0."""
    sampler = made(name, cfg_scale=5.0, top_k=1)
    if sampler is None:
        return
    x_init = torch.full((8, LENGTH), MASK)
    network, topic = Network(), torch.zeros(8)
    out = draw(sampler, network, shape=None, x_init=x_init, model_kwargs={"topic": topic})
    assert bool((out.sequences == 3).all())
    assert out.nfe == network.calls
    plain = draw(made(name, top_k=1), shape=None, x_init=x_init, model_kwargs={"topic": topic})
    assert bool((plain.sequences == BEST).all())


@pytest.mark.parametrize("name", KINDS)
def test_no_more_rows_than_a_chunk_pass_the_head_at_once(name) -> None:
    network = Network()
    draw(made(name, chunk_rows=5), network)
    assert 0 < max(network.rows) <= 5


@pytest.mark.parametrize("name", KINDS)
def test_a_bar_is_shown(name, capsys) -> None:
    sampler = made(name, progress=True)
    if sampler is not None:
        draw(sampler)
        assert "sampling" in capsys.readouterr().err


@pytest.mark.parametrize("name", KINDS)
def test_a_check_names_the_step(name) -> None:
    sampler = made(name, check=True)
    if sampler is not None:
        with pytest.raises(ValueError, match=r"step \d+, sequence \d"):
            draw(sampler, lambda x, t: torch.full((*x.shape, V), torch.nan))


@pytest.mark.parametrize("name", sorted(set(KINDS) - set(WITHOUT_GRID)))
def test_a_grid_is_walked_and_what_it_leaves_is_left_or_removed(name) -> None:
    sampler = made(name, num_steps=3, end=0.7, noise_removal="none")
    # Scores as great as these reveal all in the first step.
    if sampler is not None and name != "analytic, scores":
        assert bool((draw(sampler).sequences == MASK).any())
    assert bool((draw(made(name, num_steps=3, end=0.7)).sequences != MASK).all())
    greedy = draw(KINDS[name](grid=[1.0, 0.999], num_steps=1, noise_removal="greedy"))
    assert name == "analytic, scores" or float((greedy.sequences == BEST).float().mean()) > 0.9


@pytest.mark.parametrize("name", WITHOUT_GRID)
@pytest.mark.parametrize("option", ["num_steps", "grid", "end", "noise_removal"])
def test_a_sampler_without_a_grid_takes_none_of_its_options(name, option) -> None:
    with pytest.raises(TypeError, match=option):
        KINDS[name](**{option: 1})


@pytest.mark.parametrize("name", sorted(set(KINDS) - {"graph"}))
def test_a_call_passes_padding_on_keeps_given_tokens_and_shows_its_states(name) -> None:
    x_init = torch.full((3, LENGTH), MASK)
    x_init[1, :2] = 2
    real = torch.ones(3, LENGTH, dtype=torch.bool)
    real[2, 4:] = False
    generation_mask = torch.ones(3, LENGTH, dtype=torch.bool)
    generation_mask[0, 5] = False
    seen, network = [], Network()
    out = draw(
        made(name),
        network,
        shape=None,
        x_init=x_init,
        attention_mask=real,
        generation_mask=generation_mask,
        return_history=True,
        callback=lambda step, state: seen.append((step, state)),
    )
    moved = (x_init == MASK) & real & generation_mask
    assert bool((out.sequences[~moved] == x_init[~moved]).all())
    assert bool((out.sequences[moved] != MASK).all())
    assert all(mask is not None for mask in network.masks)
    assert out.history is not None
    assert [step for step, _ in seen] == list(range(len(seen)))
    assert len(out.history) == len(seen) + 1
    assert all(torch.equal(state, kept) for (_, state), kept in zip(seen, out.history[1:], strict=True))
    other = draw(made(name), shape=(3, LENGTH), first_row=3)
    assert not torch.equal(draw(made(name), shape=(3, LENGTH)).sequences, other.sequences)


def test_steps_that_do_not_fit_the_given_times_are_refused() -> None:
    with pytest.raises(ValueError, match="5"):
        AncestralSampler(PROCESS, num_steps=5, grid=[1.0, 0.5, 0.0])
    assert AncestralSampler(PROCESS, grid=[1.0, 0.5, 0.0]).times == [1.0, 0.5, 0.0]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("x_init", torch.full((8, LENGTH), MASK)),
        ("attention_mask", torch.ones(8, LENGTH, dtype=torch.bool)),
        ("generation_mask", torch.ones(8, LENGTH, dtype=torch.bool)),
        ("model_kwargs", {"topic": 1}),
        ("callback", print),
        ("first_row", 3),
        ("return_history", True),
    ],
)
def test_a_graph_refuses_what_it_does_not_honour(name, value) -> None:
    with pytest.raises(ValueError, match=f"{name}.*not honoured"):
        draw(KINDS["graph"](), **{name: value})


@pytest.mark.parametrize("name", KINDS)
def test_all_samplers_have_one_call_signature_and_options_by_keyword_alone(name) -> None:
    sampler = KINDS[name]()
    assert inspect.signature(type(sampler).__call__) == inspect.signature(Sampler.__call__)
    positional = [each.name for each in fields(sampler) if not each.kw_only and each.init]
    assert positional in (["process"], ["sampler"])
