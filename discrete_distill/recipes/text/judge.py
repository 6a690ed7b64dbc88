"""The judge stage: train the small autoregressive model that prices samples, on text of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_model
from torch import Tensor, nn

from ...checks import check_all_counts, check_number
from ...digests import file_digest
from ...evaluation import CausalLMJudge, generative_perplexity
from ...evaluation.pretrained import check_claims
from ...files import read_json_object
from ...process import evaluation_mode
from ...training import LoopConfig, OptimizerConfig
from ..common.corpus import TokenStream
from ..common.likelihood import MeasuredLikelihoodConfig, from_scratch, train_by_likelihood
from ..common.quiet import without_bars

if TYPE_CHECKING:
    from transformers import GPT2Config

WEIGHTS_FILE = "model.safetensors"


@dataclass(kw_only=True)
class JudgeConfig(MeasuredLikelihoodConfig):
    """The judge: a GPT-2 in small, over the recipe's own tokens.

    Args:
        path: folder of a trained judge, or 'bundled'.
        vocab_size: classes, mask included.
        eos_token_id: the end-of-text id.
        context: tokens that it reads at once.
        hidden_size: width.
        num_layers: blocks.
        num_heads: attention heads, which divide the width.
        dropout: everywhere, while it is trained.
        saved_dtype: precision of the weights on disk; it computes in fp32.
        loop: how long it is trained.
        optimizer: how.
        batch_size: sequences per update.
        evaluate_every: updates between measurements of held-out nats per token.
    """

    stage: ClassVar[str] = "judge"

    path: str = "bundled"
    vocab_size: int = 2048
    eos_token_id: int = 0
    context: int = 64
    hidden_size: int = 136
    num_layers: int = 4
    num_heads: int = 4
    dropout: float = 0.1
    saved_dtype: Literal["float16", "bfloat16"] = "float16"
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(num_steps=4500, log_every=50, checkpoint_every=500, keep_checkpoints=1)
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: from_scratch(warmup_steps=200, ema_decay=0.995))
    batch_size: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        check_all_counts(self, "vocab_size", "context", "hidden_size", "num_layers", "num_heads", flag="--judge")
        check_number("--judge.dropout", self.dropout, minimum=0.0, exclusive_maximum=1.0)
        if self.hidden_size % self.num_heads:
            raise ValueError(f"num_heads {self.num_heads} does not divide hidden_size {self.hidden_size}")
        if not 0 <= self.eos_token_id < self.vocab_size:
            raise ValueError(f"eos_token_id {self.eos_token_id} is outside the {self.vocab_size} classes")

    def network_config(self) -> GPT2Config:
        """What transformers builds the judge from."""
        from transformers import GPT2Config

        return GPT2Config(
            vocab_size=self.vocab_size,
            n_positions=self.context,
            n_embd=self.hidden_size,
            n_layer=self.num_layers,
            n_head=self.num_heads,
            activation_function="gelu_pytorch_tanh",
            resid_pdrop=self.dropout,
            embd_pdrop=self.dropout,
            attn_pdrop=self.dropout,
            bos_token_id=self.eos_token_id,
            eos_token_id=self.eos_token_id,
            use_cache=False,
        )


def train_judge(
    config: JudgeConfig, streams: dict[str, TokenStream], accelerator: Accelerator, directory: Path
) -> CausalLMJudge:
    """Train on the ``judge`` split by next-token likelihood, on fresh random crops.

    The network (its moving average, where there is one) is written to ``directory`` in half precision, and
    the judge returned is the one that was written. Held-out nats per token go to ``metrics.jsonl``.
    """
    from transformers import GPT2LMHeadModel

    length = streams["judge"].length
    if length > config.context:
        raise ValueError(f"sequences of {length} tokens do not fit a judge context of {config.context}")
    torch.manual_seed(config.loop.seed)
    network = GPT2LMHeadModel(config.network_config()).to(accelerator.device)
    heldout = streams["heldout"].packed(1024)
    averaged = train_by_likelihood(
        config,
        network,
        streams["judge"],
        lambda network, x, _: next_token_loss(network, x),
        lambda network: heldout_nats(network, config, heldout),
        accelerator,
        directory,
        made_with=streams["train"].settings(),
    )
    if accelerator.is_main_process:
        save_judge(averaged, config, directory)
    accelerator.wait_for_everyone()
    return load_judge(directory, device=accelerator.device)


def next_token_loss(network: nn.Module, x: Tensor) -> Tensor:
    """``-log p(x_i | x_1 .. x_{i-1})``, mean over all but the first tokens of ``x`` ``[B, L]``, in nats."""
    logits_BLV = network(input_ids=x).logits
    return F.cross_entropy(logits_BLV[:, :-1].flatten(0, 1).float(), x[:, 1:].flatten())


def heldout_nats(network: nn.Module, config: JudgeConfig, heldout: Tensor) -> float:
    """Nats per token of held-out sequences, in fp32, over every token but the first of each."""
    with evaluation_mode(network):
        judge = CausalLMJudge(network, name="in training", eos_token_id=None, context=config.context)
        return generative_perplexity(heldout, judge, batch_size=128).nats_per_token


def save_judge(network: Any, config: JudgeConfig, directory: Path) -> None:
    """``model.safetensors`` in half precision and ``config.json``, as ``save_pretrained`` writes them."""
    from transformers import GPT2LMHeadModel

    copy = GPT2LMHeadModel(config.network_config())
    copy.load_state_dict(network.state_dict())
    with without_bars():
        copy.to(getattr(torch, config.saved_dtype)).save_pretrained(directory)


def load_gpt2(directory: Path) -> Any:
    """Load a GPT-2 that ``save_pretrained`` wrote; strictly, in fp32, in evaluation mode."""
    from transformers import GPT2Config, GPT2LMHeadModel

    weights = directory / WEIGHTS_FILE
    if not weights.exists() or not (directory / "config.json").exists():
        raise FileNotFoundError(f"no GPT-2 in {directory}: {WEIGHTS_FILE} or config.json is missing")
    if read_json_object(directory / "config.json").get("model_type") != "gpt2":
        raise ValueError(f"{directory} is no GPT-2 by its config.json; give the folder of one")
    check_claims(directory)
    try:
        network = GPT2LMHeadModel(GPT2Config.from_pretrained(directory))
        load_model(network, weights, strict=True)
    except Exception as error:  # A config file or weights that are damaged raise errors of many kinds.
        raise ValueError(f"the weights in {weights} do not fit its config.json: {error}") from error
    return network.float().eval()


def load_judge(directory: Path, *, device: torch.device | str = "cpu") -> CausalLMJudge:
    """A judge that `train_judge` wrote. Its name holds its size and the first digits of its weights' SHA-256."""
    weights = Path(directory) / WEIGHTS_FILE
    if not weights.exists():
        raise FileNotFoundError(f"no judge in {directory}: {WEIGHTS_FILE} is missing; train one with the judge stage")
    network = load_gpt2(Path(directory))
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    name = f"gpt2-{millions:.1f}M@{file_digest(weights)[:8]}"
    return CausalLMJudge(network.to(device), name=name, eos_token_id=network.config.eos_token_id)
