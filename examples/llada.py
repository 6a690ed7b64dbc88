"""A model of LLaDA's calling convention: distilled with adapters on one base, saved, loaded and sampled in blocks.

``python -m examples.llada``. The weights are tiny and trained here on chats of one kind: the user says a direction, the
assistant counts from some digit to the end. As in LLaDA (arXiv 2502.09992), the prompt is a chat template, answers are
filled up with the end-of-sequence token, and shorter prompts are padded on the left with it.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from discrete_distill import (
    BlockwiseSampler,
    ConfidenceSampler,
    DiDiInstruct,
    DiDiInstructConfig,
    MaskedDiffusion,
    SharedBase,
    as_denoiser,
    make_networks,
)
from discrete_distill.models import load_denoiser, load_sampling, save_adapters, save_sampling

TEMPLATE = ("<|startoftext|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "user", "assistant")
WORDS = ("<|mdm_mask|>", "<|endoftext|>", *TEMPLATE, "please", "up", "down", *"0123456789")
MASK, EOS, DIGIT = 0, 1, WORDS.index("0")
PROMPT, ANSWER, BLOCK, STEPS = 10, 12, 6, 2  # tokens, and steps of each block of the answer


class TinyLLaDAConfig(PretrainedConfig):
    model_type = "llada"

    def __init__(self, vocab_size: int = len(WORDS), d_model: int = 48, n_layers: int = 2, **kwargs: Any) -> None:
        self.vocab_size, self.d_model, self.n_layers = vocab_size, d_model, n_layers
        super().__init__(**kwargs)


class Block(nn.Module):
    """Attention both ways with rotary positions, then an MLP; it returns its output and a cache, as LLaDA's do."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attn_norm, self.ff_norm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q_proj, self.k_proj, self.v_proj, self.attn_out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.ff_proj, self.ff_out = nn.Linear(width, 2 * width, bias=False), nn.Linear(2 * width, width, bias=False)

    def forward(self, h: Tensor, allowed: Tensor | None) -> tuple[Tensor, None]:
        x = self.attn_norm(h)
        q, k, v = (part(x).unflatten(-1, (2, -1)).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        attended = F.scaled_dot_product_attention(rotated(q), rotated(k), v, attn_mask=allowed)
        h = h + self.attn_out(attended.transpose(1, 2).flatten(2))
        return h + self.ff_out(F.silu(self.ff_proj(self.ff_norm(h)))), None


def rotated(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    angle = torch.arange(x.shape[-2])[:, None] * 100.0 ** (-torch.arange(half) / half)
    sine, cosine = angle.sin().to(x), angle.cos().to(x)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cosine - b * sine, a * sine + b * cosine), dim=-1)


class TinyLLaDA(PreTrainedModel):
    """Modules and call of LLaDA's own code: ``model.transformer`` with ``wte``, ``blocks``, ``ln_f``, ``ff_out``."""

    config_class = TinyLLaDAConfig

    def __init__(self, config: TinyLLaDAConfig) -> None:
        super().__init__(config)
        width = config.d_model
        parts = {
            "wte": nn.Embedding(config.vocab_size, width),
            "blocks": nn.ModuleList(Block(width) for _ in range(config.n_layers)),
            "ln_f": nn.RMSNorm(width),
            "ff_out": nn.Linear(width, config.vocab_size, bias=False),
        }
        self.model = nn.Module()
        self.model.transformer = nn.ModuleDict(parts)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.model.transformer["wte"]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        parts: Any = self.model.transformer
        allowed = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        h = parts["wte"](input_ids)
        for block in parts["blocks"]:
            h, _ = block(h, allowed)
        return SimpleNamespace(logits=parts["ff_out"](parts["ln_f"](h)))


AutoConfig.register("llada", TinyLLaDAConfig)  # the published weights bring their own: trust_remote_code=True
AutoModel.register(TinyLLaDAConfig, TinyLLaDA)


def prompts(count: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Chat templates, padded on the left with the end-of-sequence token, and the attention mask of them and the answers
    behind them, bool ``[count, L]``."""
    rows = []
    for up, polite in torch.randint(2, (count, 2), generator=generator).tolist():
        said = ["up" if up else "down", *(["please"] if polite else [])]
        chat = ["<|startoftext|>", "<|start_header_id|>", "user", "<|end_header_id|>", *said, "<|eot_id|>"]
        ids = [WORDS.index(word) for word in (*chat, "<|start_header_id|>", "assistant", "<|end_header_id|>")]
        rows.append([EOS] * (PROMPT - len(ids)) + ids)
    prompt = torch.tensor(rows)
    return prompt, F.pad(prompt != EOS, (0, ANSWER), value=True)


def counted(prompt: Tensor, first: Tensor) -> Tensor:
    """Answers ``[count, ANSWER]`` that count from the digits ``first`` ``[count, 1]`` in the direction of a prompt."""
    direction = torch.where((prompt == WORDS.index("up")).any(1, keepdim=True), 1, -1)
    digit = first + direction * torch.arange(ANSWER)
    return torch.where((digit >= 0) & (digit <= 9), digit + DIGIT, EOS)


def answered(prompt: Tensor, generator: Generator) -> Tensor:
    """Prompts with answers, int64 ``[count, L]``."""
    first = torch.randint(1, 9, (len(prompt), 1), generator=generator)
    return torch.cat((prompt, counted(prompt, first)), dim=1)


def share_right(x: Tensor) -> float:
    """Share of answers that count by one, in the asked direction, to the end."""
    first = x[:, PROMPT : PROMPT + 1] - DIGIT
    right = (x[:, PROMPT:] == counted(x[:, :PROMPT], first)).all(1)
    return float((right & (first >= 0).squeeze(1)).float().mean())


def spoken(row: Tensor) -> str:
    """A chat as text, without the end-of-sequence tokens that fill it up."""
    return " ".join(WORDS[index] for index in row.tolist() if index != EOS)


def train_teacher(process: MaskedDiffusion, steps: int, g: Generator) -> Any:
    """A denoiser that was trained on answers, given their prompts."""
    teacher: Any = as_denoiser(TinyLLaDA(TinyLLaDAConfig()).eval())
    optimizer = torch.optim.AdamW(teacher.parameters(), lr=3e-3)
    for _ in range(steps):
        prompt, real = prompts(64, g)
        x = answered(prompt, g)
        answers = (torch.arange(x.shape[1]) >= PROMPT).expand_as(x)
        kwargs = {"generation_mask": answers, "model_kwargs": {"attention_mask": real}}
        process.nelbo(teacher, x, by="count", generator=g, **kwargs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return teacher


def main(steps: int = 60, teacher_steps: int = 400) -> dict[str, float]:
    """Return the shares of right answers of the teacher, the student, and the student that was saved and loaded; and of
    answers in which teacher and loaded student agree with the student."""
    torch.manual_seed(0)
    g = Generator().manual_seed(0)
    process = MaskedDiffusion(MASK, forbidden_token_ids=range(EOS + 1, DIGIT))
    teacher = train_teacher(process, teacher_steps, g)

    networks = make_networks(teacher, sharing=SharedBase(rank=8), generator=g)
    config = DiDiInstructConfig.recommended(advantages={"group_size": 8}, paths={"num_steps": (2 * STEPS,)})
    # Answers are drawn to their full length, as LLaDA's are; what stands behind the first end is in no loss.
    paths = replace(config.paths.matcher(process), end_token_id=EOS, end_policy="padding")
    method = DiDiInstruct(networks, process, config, matcher=paths)
    rates, parameters = {"student": 2e-3, "auxiliary": 4e-3}, networks.trainable_parameters()
    optimizers = {name: torch.optim.AdamW(each, lr=rates[name]) for name, each in parameters.items()}
    for step in range(steps):
        prompt, real = (each.repeat_interleave(8, dim=0) for each in prompts(8, g))
        x_init = F.pad(prompt, (0, ANSWER), value=MASK)
        rollout = method.rollout(x_init=x_init, attention_mask=real, generator=g)
        for name in method.update_plan.networks(step):
            method.loss(name, rollout, reference=answered(prompt, g), generator=g).loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters[name], 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()

    with tempfile.TemporaryDirectory() as folder:
        teacher.save_pretrained(f"{folder}/base")  # of published weights, their name on the hub
        save_adapters(f"{folder}/student", networks.student, base=f"{folder}/base")
        save_sampling(f"{folder}/student", process, (STEPS,))
        size, whole = (os.path.getsize(f"{folder}/{name}.safetensors") for name in ("student/adapters", "base/model"))
        loaded = load_denoiser(f"{folder}/student")
        process, (num_steps,), _ = load_sampling(f"{folder}/student")
    print(f"adapters of {size} bytes on a base of {whole}")

    prompt, real = prompts(256, Generator().manual_seed(1))
    x_init = F.pad(prompt, (0, ANSWER), value=MASK)
    sampler = BlockwiseSampler(ConfidenceSampler(process, num_steps=num_steps), block_length=BLOCK)
    found, drawn = {}, {}
    for name, denoiser in (("teacher", networks.teacher), ("student", networks.student), ("loaded", loaded)):
        out = sampler(denoiser, x_init=x_init, attention_mask=real, generator=Generator().manual_seed(2))
        drawn[name], found[name] = out.sequences, share_right(out.sequences)
        print(f"{name}: {found[name]:.3f} right in {out.nfe} evaluations, such as: {spoken(out.sequences[0])}")
    for name in ("teacher", "loaded"):
        found[f"{name}_as_student"] = float((drawn[name] == drawn["student"]).all(1).float().mean())
    return found


if __name__ == "__main__":
    main()
