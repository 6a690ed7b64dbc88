"""What the terminal shows while sequences are drawn."""

import torch
from rich.console import Console
from rich.text import Text

from discrete_distill import AncestralSampler, BlockwiseSampler, MaskedDiffusion
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.watch import watch

MASK, BLOCK, LENGTH = 4, 3, 8
PROCESS = MaskedDiffusion(MASK)
WITHIN = AncestralSampler(PROCESS, num_steps=2)


def network(block_length):
    torch.manual_seed(0)
    shape = {"vocab_size": 5, "max_length": LENGTH, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 4}
    return DiT(DiTConfig(**shape, block_length=block_length)).eval()


def watched(sampler, denoiser, x_init, seeded):
    """What the sampler returned, the states that were shown, what was drawn by then, and the recorded terminal."""
    shown, passes = [], []
    features = denoiser.features
    denoiser.features = lambda *inputs, **given: (passes.append(1), features(*inputs, **given))[1]

    def frame(state, before, title):
        shown.append((title, state.clone(), before.clone(), len(passes)))
        rows = ["".join("." if token == MASK else str(token) for token in row) for row in state.tolist()]
        return Text(f"<{title}> {' '.join(rows)}")

    console = Console(record=True, force_terminal=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    out = watch(sampler, denoiser, x_init, frame=frame, console=console, pause=0.0, generator=seeded(0))
    return out, shown, console.export_text()


def test_each_block_is_shown_when_it_is_finished(seeded) -> None:
    """The first token is given; the network is called before each block is shown, and not all at once."""
    x_init = torch.full((2, LENGTH), MASK)
    x_init[:, 0] = 1
    sampler = BlockwiseSampler(WITHIN, block_length=BLOCK, align="start")
    out, shown, text = watched(sampler, network(BLOCK), x_init, seeded)
    expected = sampler(network(BLOCK), x_init=x_init, generator=seeded(0))
    assert torch.equal(out.sequences, expected.sequences)
    assert out.network_evaluations == expected.network_evaluations
    assert [title for title, *_ in shown[1:]] == ["tokens 1 to 3 of 8", "tokens 4 to 6 of 8", "tokens 7 to 8 of 8"]
    for number, (title, state, before, passes) in enumerate(shown):
        end = min(number * BLOCK, LENGTH)
        assert torch.equal(state[:, :end], expected.sequences[:, :end])
        assert torch.equal(state[:, max(end, 1) :], x_init[:, max(end, 1) :])
        assert torch.equal(before, shown[max(number - 1, 0)][1])
        # Two steps of each block, of which one may reveal nothing: later blocks are not drawn yet.
        assert passes - (shown[number - 1][3] if number else 0) in ({1, 2} if number else {0})
        rows = ["".join("." if token == MASK else str(token) for token in row) for row in state.tolist()]
        assert f"<{title}> {' '.join(rows)}" in text


def test_whole_sequences_are_shown_step_by_step(seeded) -> None:
    out, shown, text = watched(WITHIN, network(None), torch.full((2, LENGTH), MASK), seeded)
    assert [title for title, *_ in shown] == ["step 0 of 2", "step 1 of 2", "step 2 of 2"]
    assert bool((shown[0][1] == MASK).all())
    assert torch.equal(shown[-1][1], out.sequences)
    assert "<step 2 of 2>" in text
