"""Features of samples: the last hidden state at the end of the text, whatever the batch."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from discrete_distill.evaluation import CausalLMJudge, encode_with_judge


def test_features_are_the_states_at_the_last_counted_token(seeded) -> None:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    judge = CausalLMJudge(network, name="small", eos_token_id=0)
    x = torch.randint(1, 9, (5, 8), generator=seeded(0))
    x[2, 4] = 0  # The text of this one ends here.
    features = encode_with_judge(judge, x, batch_size=2)
    with torch.no_grad():
        hidden = network.transformer(input_ids=x).last_hidden_state
    expected = torch.stack([hidden[row, 4 if row == 2 else 7] for row in range(5)])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)


def test_text_beyond_the_context_is_left_out_and_one_token_has_a_state(seeded) -> None:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    judge = CausalLMJudge(network, name="small", eos_token_id=0)
    x = torch.randint(1, 9, (3, 12), generator=seeded(0))
    torch.testing.assert_close(encode_with_judge(judge, x), encode_with_judge(judge, x[:, :8]))
    with torch.no_grad():
        single = network.transformer(input_ids=x[:, :1]).last_hidden_state[:, 0]
    torch.testing.assert_close(encode_with_judge(judge, x[:, :1]), single)


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"sequences_NL": torch.zeros(0, 3, dtype=torch.long)}])
def test_what_has_no_features_is_refused(settings: dict) -> None:
    network = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    judge = CausalLMJudge(network, name="small", eos_token_id=0)
    with pytest.raises(ValueError, match="0"):
        encode_with_judge(judge, **{"sequences_NL": torch.ones(2, 3, dtype=torch.long), **settings})
