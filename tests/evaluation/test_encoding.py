"""Features of samples: the mean of last hidden states over counted tokens, whatever the batch."""

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from discrete_distill.evaluation import CausalLMJudge, encode_with_judge


def test_features_are_means_over_counted_tokens(seeded) -> None:
    torch.manual_seed(0)
    network = GPT2LMHeadModel(GPT2Config(vocab_size=9, n_positions=8, n_embd=16, n_layer=1, n_head=2)).eval()
    judge = CausalLMJudge(network, name="small", eos_token_id=0)
    x = torch.randint(1, 9, (5, 8), generator=seeded(0))
    x[2, 4] = 0  # The text of this one ends here.
    features = encode_with_judge(judge, x, batch_size=2)
    with torch.no_grad():
        hidden = network.transformer(input_ids=x).last_hidden_state
    expected = torch.stack([hidden[row, 1 : (5 if row == 2 else 8)].mean(0) for row in range(5)])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-4)
