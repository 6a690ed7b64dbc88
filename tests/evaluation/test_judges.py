from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn

from discrete_distill.evaluation import CausalLMJudge, TextJudge, generative_perplexity
from discrete_distill.evaluation.judges import windows

EOS, VOCAB, CONTEXT = 0, 23, 8


def price_one(model: nn.Module, past: Tensor, token: int) -> float:
    """The definition: run the model on the past alone."""
    with torch.no_grad():
        logits = model.eval()(input_ids=past[None]).logits[0, -1]
    return float(-torch.log_softmax(logits.double(), dim=0)[token])


def random_ids(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_prices_are_those_of_each_token_given_its_past(tiny_gpt2: nn.Module) -> None:
    ids = random_ids(3, CONTEXT)
    nats, loss_mask = CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS).token_nats(ids)
    expected = [[price_one(tiny_gpt2, row[:i], int(row[i])) for i in range(1, CONTEXT)] for row in ids]
    torch.testing.assert_close(nats[:, 1:].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
    assert loss_mask.tolist() == [[False] + [True] * (CONTEXT - 1)] * 3
    assert nats[:, 1:].std() > 0.3, "prices that hardly differ would prove nothing"


@settings(deadline=None)
@given(length=st.integers(1, 60), context=st.integers(2, 20), data=st.data())
def test_windows_price_every_token_but_the_first_once(length: int, context: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, context - 1))
    priced: list[int] = []
    for start, first_new, end in windows(length, context, stride):
        assert 0 <= start < first_new < end <= min(start + context, length)
        past = first_new - start
        assert start == 0 or past == context - stride
        priced += range(first_new, end)
    assert priced == list(range(1, length))


def test_text_longer_than_the_context_is_priced_with_the_past_of_its_window(tiny_gpt2: nn.Module) -> None:
    ids = random_ids(2, 19)
    judge = CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS, stride=3)
    nats, loss_mask = judge.token_nats(ids)
    starts = dict.fromkeys(range(1, 8), 0) | {i: -(-(i - 7) // 3) * 3 for i in range(8, 19)}
    expected = [[price_one(tiny_gpt2, row[starts[i] : i], int(row[i])) for i in range(1, 19)] for row in ids]
    torch.testing.assert_close(nats[:, 1:].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)
    assert int(loss_mask.sum()) == 2 * 18


def test_nothing_after_the_first_end_counts(tiny_gpt2: nn.Module) -> None:
    judge = CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS)
    ended = torch.tensor([[5, 6, EOS, 7, 8, EOS, 9, 1]])
    other_tail = torch.tensor([[5, 6, EOS, 1, 1, 1, EOS, 22]])
    first, second = (generative_perplexity(ids, judge) for ids in (ended, other_tail))
    assert first.num_tokens == 2
    assert first.perplexity == pytest.approx(second.perplexity, rel=1e-6)
    by_hand = price_one(tiny_gpt2, ended[0, :1], 6) + price_one(tiny_gpt2, ended[0, :2], EOS)
    assert first.sample_nats[0] == pytest.approx(by_hand, rel=1e-5)


def test_an_end_token_at_the_start_is_context(tiny_gpt2: nn.Module) -> None:
    judge = CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS)
    assert judge.token_nats(torch.tensor([[EOS, 4, 5, EOS, 6]])).loss_mask.tolist() == [
        [False, True, True, True, False]
    ]


class Bigram(nn.Module):
    """Returns bare logits and has no parameters and no config."""

    def __init__(self, table_VV: Tensor) -> None:
        super().__init__()
        self.table_VV = table_VV

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.table_VV[input_ids]


def test_any_module_with_logits_will_do() -> None:
    table = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    judge = CausalLMJudge(Bigram(table), name="bigram", eos_token_id=None, context=64)
    nats = judge.token_nats(torch.tensor([[1, 4, 2]])).nats
    expected = -torch.stack([table[1].log_softmax(0)[4], table[4].log_softmax(0)[2]])
    torch.testing.assert_close(nats[0, 1:], expected)


def test_a_judge_in_training_mode_is_put_in_evaluation_mode(tiny_gpt2: nn.Module) -> None:
    judge = CausalLMJudge(tiny_gpt2.train(), name="tiny", eos_token_id=EOS)
    ids = random_ids(4, 6)
    assert torch.equal(judge.token_nats(ids).nats, judge.token_nats(ids).nats)


@pytest.mark.parametrize("window", [{"context": 1}, {"stride": 0}, {"stride": CONTEXT}])
def test_impossible_windows_are_refused(tiny_gpt2: nn.Module, window: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(window.values())))):
        CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS, **window)


def test_an_unknown_context_is_asked_for() -> None:
    with pytest.raises(ValueError, match="pass context"):
        CausalLMJudge(Bigram(torch.zeros(2, 2)), name="bigram", eos_token_id=None)


def test_foreign_ids_are_refused() -> None:
    judge = CausalLMJudge(lambda_model(lambda ids: torch.zeros(*ids.shape, 4)), name="four", eos_token_id=0, context=8)
    with pytest.raises(ValueError, match="id 4 is outside the 4 classes of judge 'four'"):
        judge.token_nats(torch.tensor([[1, 4]]))


def lambda_model(forward: Callable[[Tensor], Tensor]) -> nn.Module:
    module = nn.Module()
    module.forward = lambda input_ids: forward(input_ids)  # type: ignore[method-assign,assignment]
    return module


def spell(ids: list[int]) -> str:
    return "".join(chr(ord("a") + i) for i in ids)


def encode_letters(text: str) -> list[int]:
    """The letters from l on are a single token."""
    pairs = [(1 + ord(letter) - ord("a"), 20) for letter in text]
    return [token for pair in pairs for token in (pair if pair[0] <= 11 else pair[:1])]


JUDGE_EOS = 22


@pytest.fixture
def text_judge(tiny_gpt2: nn.Module) -> TextJudge:
    return TextJudge(
        tiny_gpt2,
        name="text",
        decode=spell,
        encode=encode_letters,
        eos_token_id=EOS,
        judge_eos_token_id=JUDGE_EOS,
    )


def test_a_text_judge_prices_its_own_tokens_of_the_decoded_text(text_judge: TextJudge, tiny_gpt2: nn.Module) -> None:
    nats, loss_mask = text_judge.token_nats(torch.tensor([[3, 4, 5]]))
    encoded = torch.tensor([4, 20, 5, 20, 6, 20])
    expected = [price_one(tiny_gpt2, encoded[:i], int(encoded[i])) for i in range(1, 6)]
    assert loss_mask.tolist() == [[False] + [True] * 5]
    torch.testing.assert_close(nats[0, 1:].double(), torch.tensor(expected).double(), rtol=1e-5, atol=1e-5)


def test_samples_of_different_lengths_do_not_disturb_each_other(text_judge: TextJudge) -> None:
    rows = [[3, 4, 5, 6], [7, 8, EOS, 2], [EOS, 1, 2, EOS], [9, EOS, 3, 3], [11, 12, 13, 14]]
    together = generative_perplexity(torch.tensor(rows), text_judge)
    alone = [generative_perplexity(torch.tensor([row]), text_judge) for row in rows]
    assert together.sample_tokens == tuple(log_ratio_output.num_tokens for log_ratio_output in alone) == (7, 4, 5, 2, 3)
    assert together.sample_nats == pytest.approx(
        [log_ratio_output.sample_nats[0] for log_ratio_output in alone], rel=1e-5
    )


def test_ends_become_the_judges_ends_and_no_tail_is_decoded(tiny_gpt2: nn.Module) -> None:
    decoded: list[list[int]] = []
    seen: list[Tensor] = []

    def decode(ids: list[int]) -> str:
        decoded.append(ids)
        return spell(ids)

    def forward(ids: Tensor) -> Tensor:
        seen.append(ids)
        return torch.zeros(*ids.shape, VOCAB)

    judge = TextJudge(
        lambda_model(forward),
        name="spy",
        decode=decode,
        encode=encode_letters,
        eos_token_id=EOS,
        judge_eos_token_id=JUDGE_EOS,
        context=64,
    )
    loss_mask = judge.token_nats(torch.tensor([[EOS, 3, EOS, 9], [5, EOS, 9, 9]])).loss_mask
    assert decoded == [[3], [5]]
    assert seen[0].tolist() == [[JUDGE_EOS, 4, 20, JUDGE_EOS], [6, 20, JUDGE_EOS, JUDGE_EOS]]
    assert loss_mask.tolist() == [[False, True, True, True], [False, True, True, False]]


def test_a_sample_that_decodes_to_nothing_counts_nothing(text_judge: TextJudge) -> None:
    judge = TextJudge(
        text_judge._inner.model,
        name="mute",
        decode=lambda ids: "",
        encode=encode_letters,
        eos_token_id=None,
        judge_eos_token_id=JUDGE_EOS,
    )
    assert int(judge.token_nats(torch.tensor([[3, 4]])).loss_mask.sum()) == 0


@pytest.fixture
def judge_folder(tiny_gpt2: nn.Module, tmp_path: Path) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: index for index, letter in enumerate("abcdefghijklmnopqrstuv")}
    backend = Tokenizer(models.WordLevel({**letters, "<end>": JUDGE_EOS}, unk_token="a"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>").save_pretrained(tmp_path)
    tiny_gpt2.save_pretrained(tmp_path)  # type: ignore[operator]
    return tmp_path


def test_a_pretrained_judge_is_loaded_once_and_prices_as_its_parts_do(
    judge_folder: Path, tiny_gpt2: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    loads: list[str] = []
    real = transformers.AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForCausalLM,
        "from_pretrained",
        lambda name, **settings: loads.append(name) or real(name, **settings),
    )
    judge = TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None)
    ids = random_ids(5, 6).clamp(max=21)
    log_ratio_outputs = [generative_perplexity(ids, judge, batch_size=2) for _ in range(3)]
    assert loads == [str(judge_folder)]
    assert judge.judge_eos_token_id == JUDGE_EOS
    direct = generative_perplexity(ids, CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=None))
    assert [v.perplexity for v in log_ratio_outputs] == pytest.approx([direct.perplexity] * 3, rel=1e-5)


def test_a_judge_in_half_precision_says_so(judge_folder: Path) -> None:
    judge = TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None, dtype=torch.bfloat16)
    assert judge.name.endswith(" (bfloat16)")
    assert judge.token_nats(random_ids(1, 4)).nats.dtype == torch.float32


def test_a_judge_from_a_folder_is_named_by_its_weights(judge_folder: Path, tmp_path_factory: Any) -> None:
    """By no path of one machine, and by other digits where other weights stand in the folder."""

    def name(folder: Path) -> str:
        return TextJudge.from_pretrained(str(folder), decode=spell, eos_token_id=None).name

    first = name(judge_folder)
    digest = hashlib.sha256((judge_folder / "model.safetensors").read_bytes()).hexdigest()
    assert first == f"{judge_folder.name}@{digest[:8]}"
    moved = tmp_path_factory.mktemp("other") / judge_folder.name
    shutil.copytree(judge_folder, moved)
    assert name(moved) == first
    model = transformers.AutoModelForCausalLM.from_pretrained(moved)
    model.save_pretrained(moved, max_shard_size="3KB")
    (moved / "model.safetensors").unlink(missing_ok=True)
    sharded = name(moved)
    next(iter(model.parameters())).data += 0.01
    model.save_pretrained(moved, max_shard_size="3KB")
    assert len({first, sharded, name(moved)}) == 3


def test_a_judge_in_the_older_layout_is_read_as_strictly(judge_folder: Path) -> None:
    """From a pickle of tensors: the same prices, no code is run, and no size believed that its weights do not fill."""
    expected = TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None)
    weights, ids = load_file(judge_folder / "model.safetensors"), random_ids(2, 6).clamp(max=21)
    (judge_folder / "model.safetensors").unlink()
    torch.save(weights, judge_folder / "pytorch_model.bin")
    judge = TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None)
    assert torch.equal(judge.token_nats(ids).nats, expected.token_nats(ids).nats)
    assert judge.name != expected.name
    config = json.loads((judge_folder / "config.json").read_text())
    (judge_folder / "config.json").write_text(json.dumps({**config, "n_layer": 10**6}))
    with pytest.raises(ValueError, match="claims 1000000 layers"):
        TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None)
    torch.save({**weights, "code": print}, judge_folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="names code"):
        TextJudge.from_pretrained(str(judge_folder), decode=spell, eos_token_id=None)


def test_a_judge_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"nowhere.*pass its folder"):
        TextJudge.from_pretrained(str(tmp_path / "nowhere"), decode=spell, eos_token_id=None)


@pytest.mark.parametrize("index", [VOCAB, -1])
def test_ids_outside_the_vocabulary_are_refused_before_the_model_reads_them(tiny_gpt2: nn.Module, index: int) -> None:
    judge = CausalLMJudge(tiny_gpt2, name="tiny", eos_token_id=EOS)
    with pytest.raises(ValueError, match=str(index)):
        judge.token_nats(torch.tensor([[1, index]]))
    with pytest.raises(ValueError, match=str(index)):
        judge.prepare(torch.tensor([[1, index]]))
