"""Token losses alone in the distillation of a tiny BERT into a smaller one. ``python -m examples.distil_bert``

`token_losses` reads student and teacher logits once and gives both divergences, entropy and log-probability of each
row,
differentiable, on CPU and GPU; `token_divergence` has the other kinds.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForMaskedLM

from discrete_distill import token_divergence
from discrete_distill.kernels import token_losses
from examples.toy import CHAIN, LENGTH, PROCESS


def tiny_bert(layers: int, size: int) -> BertForMaskedLM:
    shape = {"num_hidden_layers": layers, "hidden_size": size, "num_attention_heads": 2, "intermediate_size": 2 * size}
    return BertForMaskedLM(BertConfig(vocab_size=9, max_position_embeddings=LENGTH, **shape))


def main(steps: int = 200) -> dict[str, float]:
    """The teacher learns from text, then the student from the teacher alone, at masked positions."""
    torch.manual_seed(0)
    teacher, student = tiny_bert(2, 48), tiny_bert(1, 24)
    g = torch.Generator().manual_seed(0)
    gap, first = 0.0, None
    for network, rate in ((teacher, 2e-3), (student, 5e-3)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=rate)
        for _ in range(steps):
            x = CHAIN.sample(64, LENGTH, generator=g)
            x_t = PROCESS.corrupt(x, torch.rand(64, generator=g), generator=g)
            masked = PROCESS.is_masked(x_t)
            logits_NV = network(input_ids=x_t).logits[masked]
            with torch.no_grad():
                teacher_NV = teacher.eval()(input_ids=x_t).logits[masked] if network is student else None
            out = token_losses(logits_NV, teacher_NV, x[masked], mask_token_id=8)
            loss = -out.log_prob.mean() if teacher_NV is None else out.forward_kl.mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if teacher_NV is not None:
                gap = float(loss.detach())
                first = gap if first is None else first
    both = (PROCESS.masked_log_probs(logits) for logits in (logits_NV.detach(), teacher_NV))
    shannon = float(token_divergence(*both, kind="js", beta=0.5).mean())
    print(f"KL(teacher || student) fell from {first:.3f} to {gap:.3f} nats a token; Jensen-Shannon {shannon:.4f}")
    print(f"parameters: teacher {teacher.num_parameters()}, student {student.num_parameters()}")
    return {"first": first or 0.0, "last": gap}


if __name__ == "__main__":
    main()
