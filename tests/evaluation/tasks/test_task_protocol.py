"""Every task under every kind of model, verifiers that contradict their data, and other vocabularies."""

from dataclasses import dataclass

import pytest
import torch
from torch import Generator, Tensor

from discrete_distill import AncestralSampler, FirstHittingSampler, MaskedDiffusion, as_denoiser
from discrete_distill.evaluation.tasks import (
    Arithmetic,
    BalancedBrackets,
    Countdown,
    Examples,
    Permutations,
    Prompts,
    Sudoku,
    SymbolTask,
    Task,
    TokenizedTask,
    check_task,
    measure_task,
)
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.samplers import SamplerOutput

TASKS = [
    Arithmetic(2, mask_token_id=14),
    BalancedBrackets(3, 2, mask_token_id=4),
    Countdown(3, 1, mask_token_id=18),
    Permutations(5, mask_token_id=5),
    Sudoku(4, num_clues=6, mask_token_id=6),
    Sudoku(4, unique=True, mask_token_id=4),
]


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def tokenized(task: SymbolTask) -> TokenizedTask:
    """The task in other ids, between two given tokens at the start and one at the end."""
    ids = [5 + 2 * token for token in reversed(range(len(task.symbols)))]
    return TokenizedTask(task=task, token_ids=ids, mask_token_id=3, prefix=(1, 2), suffix=(4,))


def named(task: Task) -> str:
    return type(getattr(task, "task", task)).__name__


ALL = [*TASKS, *map(tokenized, TASKS)]


@pytest.mark.parametrize("task", ALL, ids=named)
def test_every_task_agrees_with_itself_and_repeats_by_seed(task: Task) -> None:
    assert isinstance(task, Task)
    check_task(task, seeded(3))
    one, same, other = (task.sample_solutions(6, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.sequences, same.sequences)
    assert torch.equal(one.generation_mask, same.generation_mask)
    assert not torch.equal(one.sequences, other.sequences)
    prompts = task.sample_prompts(6, seeded(1))
    assert torch.equal(prompts.x_init, one.prompts(task.mask_token_id).x_init)
    assert one.sequences.shape == (6, task.length)
    assert int(one.sequences.max()) < task.vocab_size
    assert task.mask_token_id < task.vocab_size
    # Another prompt's answer is wrong, unless there is one prompt alone.
    shifted = Prompts(*(part.roll(1, 0) for part in prompts))
    kept = (prompts.x_init == shifted.x_init).all(1)
    assert not bool(task.verify(one.sequences, shifted)[~kept].any())


def models(task: Task) -> dict:
    """One of each kind, of small random weights."""
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    dit = DiTConfig(vocab_size=task.vocab_size, max_length=64, hidden_size=8, num_layers=1, num_heads=2, cond_size=8)
    masked = BertForMaskedLM(BertConfig(vocab_size=task.vocab_size, max_position_embeddings=64, **size))
    causal = LlamaForCausalLM(LlamaConfig(vocab_size=task.vocab_size, max_position_embeddings=64, **size))
    return {
        "DiT": DiT(dit),
        "masked": as_denoiser(masked.eval()),
        "shifted": as_denoiser(causal.eval(), attention="full", shifted=True),
        "function": lambda x_t, t, **_: torch.zeros(*x_t.shape, task.vocab_size),
    }


@pytest.mark.parametrize("task", [TASKS[4], tokenized(TASKS[3])], ids=named)
@pytest.mark.parametrize("kind", ["DiT", "masked", "shifted", "function"])
def test_every_model_is_measured(task: Task, kind: str) -> None:
    model = models(task)[kind]
    process = MaskedDiffusion(task.mask_token_id)

    def sample(prompts: Prompts, generator: Generator | None) -> SamplerOutput:
        x_init, generation_mask = prompts
        sampler = AncestralSampler(process, num_steps=5)
        return sampler(model, x_init=x_init, generation_mask=generation_mask, generator=generator)

    figures = measure_task(task, sample, num_prompts=10, batch_size=4, generator=seeded())
    generated = float(task.sample_prompts(1, seeded()).generation_mask.sum())
    assert figures.tokens_per_forward == pytest.approx(generated / 5)
    assert 0.0 <= figures.accuracy.low <= figures.accuracy.value <= figures.accuracy.high <= 1.0
    assert figures.accuracy.num_samples == 10


def test_the_right_sampler_has_an_accuracy_of_one_and_covers_all_answers() -> None:
    task = Permutations(4, mask_token_id=4)

    def unused_letters(x_t: Tensor, t: Tensor, **_: object) -> Tensor:
        used = torch.nn.functional.one_hot(x_t, 5)[..., :4].any(1)
        logits = torch.zeros(len(x_t), 1, 5).masked_fill(torch.nn.functional.pad(used, (0, 1))[:, None], -1e9)
        return logits.expand(-1, 4, -1)

    def sample(prompts: Prompts, generator: Generator | None) -> SamplerOutput:
        sampler = FirstHittingSampler(MaskedDiffusion(4))
        return sampler(unused_letters, x_init=prompts.x_init, generator=generator)

    figures = measure_task(task, sample, num_prompts=3000, generator=seeded())
    assert figures.accuracy.value == 1.0
    assert figures.tokens_per_forward == 1.0
    assert figures.coverage is not None
    assert figures.coverage.num_distinct == 24
    assert abs(figures.coverage.excess_kl) < 5 * math_deviation(24, 3000)

    def repeat(prompts: Prompts, generator: Generator | None) -> SamplerOutput:
        ordered = torch.arange(4).expand(len(prompts.x_init), -1)
        return SamplerOutput(ordered, 1, 1, torch.zeros(ordered.shape), torch.full((len(ordered),), 4))

    collapsed = measure_task(task, repeat, num_prompts=3000, generator=seeded())
    assert collapsed.accuracy.value == 1.0
    assert collapsed.tokens_per_forward == 4.0
    assert collapsed.coverage is not None
    assert collapsed.coverage.excess_kl > 3.0


def math_deviation(total: int, n: int) -> float:
    """Standard deviation of the plug-in divergence of uniform samples: half of a chi-square variable over ``n``."""
    return (2 * (total - 1)) ** 0.5 / (2 * n)


@dataclass(frozen=True)
class Even(SymbolTask):
    """Write an even number of ones; ``broken`` says in which way the task contradicts itself."""

    broken: str = ""

    @property
    def symbols(self) -> str:
        return "01"

    @property
    def length(self) -> int:
        return 4

    def sample_solutions(self, n: int, generator: Generator | None = None) -> Examples:
        sequences = torch.randint(2, (n, 4), generator=generator)
        if self.broken != "data":
            sequences[:, 3] = sequences[:, :3].sum(1) % 2
        generation_mask = torch.ones_like(sequences, dtype=torch.bool)
        return Examples(sequences, generation_mask)

    def is_solution(self, sequences: Tensor) -> Tensor:
        return sequences.sum(1) % 2 == 0

    def verify(self, sequences: Tensor, prompts: Prompts) -> Tensor:
        everything = torch.ones(len(sequences), dtype=torch.bool)
        return everything if self.broken == "verifier" else super().verify(sequences, prompts)


def test_a_task_of_ones_own_is_checked_against_its_data() -> None:
    check_task(Even(mask_token_id=2), seeded())
    for broken, said in (("data", "rejects"), ("verifier", "accepts")):
        with pytest.raises(ValueError, match=said):
            check_task(Even(broken, mask_token_id=2), seeded())
        with pytest.raises(ValueError, match=said):
            measure_task(Even(broken, mask_token_id=2), lambda *_: pytest.fail("sampled"), num_prompts=2)


def test_answers_that_do_not_fit_the_prompts_are_refused() -> None:
    task = Permutations(3, mask_token_id=3)
    prompts = task.sample_prompts(2, seeded())
    with pytest.raises(ValueError, match="shape"):
        task.verify(torch.zeros(3, 3, dtype=torch.long), prompts)
    with pytest.raises(TypeError, match="integer"):
        task.verify(torch.zeros(2, 3), prompts)
    with pytest.raises(TypeError, match="bool"):
        task.verify(prompts.x_init, Prompts(prompts.x_init, prompts.generation_mask.long()))
    longer = Permutations(4, mask_token_id=4).sample_prompts(2, seeded())
    with pytest.raises(ValueError, match="4 tokens"):
        task.verify(longer.x_init, longer)
    with pytest.raises(ValueError, match="num_prompts"):
        measure_task(task, lambda *_: pytest.fail("sampled"), num_prompts=0)


def test_tokens_outside_the_symbols_are_wrong_and_shown() -> None:
    inner = Permutations(3, mask_token_id=3)
    task = TokenizedTask(task=inner, token_ids=(10, 20, 30), mask_token_id=7, prefix=(1,))
    prompts = task.sample_prompts(1, seeded())
    sequences = torch.tensor([[1, 30, 10, 20], [1, 30, 10, 11], [1, 30, 10, 7], [2, 30, 10, 20]])
    batch = Prompts(*(part.expand(4, -1) for part in prompts))
    assert task.verify(sequences, batch).tolist() == [True, False, False, False]
    assert [task.render(row) for row in sequences[:3]] == ["cab", "ca?", "ca_"]
    assert torch.equal(task.prompts(inner.sample_prompts(1, seeded())).x_init, prompts.x_init)


@pytest.mark.parametrize(
    "wrong",
    [
        {"token_ids": (1, 2)},
        {"token_ids": (1, 1, 2)},
        {"token_ids": (1, 2, 9)},
        {"token_ids": (1, 2, -1)},
        {"prefix": (9,)},
    ],
)
def test_vocabularies_that_do_not_fit_are_refused(wrong: dict) -> None:
    inner = Permutations(3, mask_token_id=3)
    with pytest.raises(ValueError, match=r"token_ids|different ids|prefix"):
        TokenizedTask(**{"task": inner, "token_ids": (1, 2, 3), "mask_token_id": 9, **wrong})


def test_rotary_positions_alone_need_a_prefix_to_tell_cells_of_an_empty_prompt_apart() -> None:
    torch.manual_seed(0)
    network = DiT(DiTConfig(vocab_size=8, max_length=8, hidden_size=8, num_layers=2, num_heads=2, cond_size=8)).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter)
    inner = Permutations(4, mask_token_id=4)
    framed = TokenizedTask(task=inner, token_ids=(0, 1, 2, 3), mask_token_id=4, prefix=(7,))
    bare_L, framed_L = (network(task.sample_prompts(1).x_init, torch.ones(1))[0, -4:] for task in (inner, framed))
    assert torch.allclose(bare_L, bare_L[:1].expand_as(bare_L), atol=1e-4)
    assert not torch.allclose(framed_L, framed_L[:1].expand_as(framed_L), atol=1e-2)
