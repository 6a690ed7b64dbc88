"""The teacher stage: train a masked diffusion model by its likelihood bound."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from huggingface_hub.errors import HfHubHTTPError
from torch import Generator, Tensor, nn

from ...models import DiT, DiTConfig, load_denoiser
from ...models.call_signature import Attention
from ...models.io.loading import transformers_config
from ...process import MaskedDiffusion, evaluation_mode
from ...process.outputs import NelboOutput
from ...training import LoopConfig, OptimizerConfig, fold_seed
from .assets import BUNDLED
from .corpus import SequenceStream
from .likelihood import MeasuredLikelihoodConfig, from_scratch, train_by_likelihood
from .quiet import without_bars


@dataclass(kw_only=True)
class TeacherConfig(MeasuredLikelihoodConfig):
    """The masked diffusion teacher.

    Args:
        path: folder, file of weights or hub name of a trained teacher in any layout that `load_denoiser` reads, or
            'bundled'. A Hugging Face model comes with its tokenizer.
        attention: of a Hugging Face model, where its files do not say: 'full' for causal code that was trained to read
            both ways; see `CallSignature`.
        shifted: of such a model: its logits speak of the next token.
        trust_remote_code: of such a model: run the Python of its repository (LLaDA, Dream).
        init: a network to train further (as ``path``): of the shape ``model`` but for its length, or a Hugging Face
            model with its tokenizer, which keeps its shape; empty to start anew.
        model: its shape, where it starts from random weights or those of a network of MDLM's kind.
        loop: how long it is trained.
        optimizer: how.
        batch_size: sequences per update (paper: 512).
        evaluate_every: updates between measurements of the held-out bound.
        half_precision: write the weights in fp16 (they are read back into fp32).
    """

    stage: ClassVar[str] = "teacher"

    path: str = "bundled"
    attention: Attention | None = None
    shifted: bool | None = None
    trust_remote_code: bool = False
    init: str = ""
    model: DiTConfig = field(
        default_factory=lambda: DiTConfig(
            vocab_size=2048,
            max_length=128,
            hidden_size=192,
            num_layers=6,
            num_heads=3,
            cond_size=32,
            dropout=0.0,
        )
    )
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(num_steps=8000, log_every=50, checkpoint_every=250, keep_checkpoints=1)
    )
    optimizer: OptimizerConfig = field(default_factory=lambda: from_scratch(warmup_steps=300, ema_decay=0.998))
    batch_size: int = 64
    half_precision: bool = True

    def called(self) -> dict[str, Any]:
        """Arguments of `load_denoiser` that the settings state."""
        stated = {"attention": self.attention, "shifted": self.shifted, "trust_remote_code": self.trust_remote_code}
        return {name: value for name, value in stated.items() if value}


def train_teacher(
    config: TeacherConfig,
    streams: Mapping[str, SequenceStream],
    process: MaskedDiffusion,
    accelerator: Accelerator,
    directory: Path,
    *,
    init: str | None = None,
    network: nn.Module | None = None,
) -> Any:
    """Train on the ``train`` split by the likelihood bound, that of block diffusion for a network that reads by blocks.

    Args:
        config: how.
        streams: token streams of the splits.
        process: mask and schedule.
        accelerator: device, precision and processes.
        directory: where the averaged network is written.
        init: where the initial weights are; ``config.init`` by default.
        network: where to start, in the place of ``config``'s initial network.

    Returns:
        The network as written.
    """
    torch.manual_seed(config.loop.seed)
    heldout = streams["heldout"].packed(512).to(accelerator.device)
    text_L = streams["train"].text_mask().to(accelerator.device)

    def bound(network: nn.Module, x_0: Tensor, generator: Generator) -> NelboOutput:
        return process.nelbo(network, x_0, by="count", generation_mask=text_L.expand_as(x_0), generator=generator)

    averaged = train_by_likelihood(
        config,
        (initial_network(config, init) if network is None else network).to(accelerator.device),
        streams["train"],
        lambda network, x_0, generator: bound(network, x_0, generator).loss,
        lambda network: heldout_nelbo(network, bound, heldout, accelerator),
        accelerator,
        directory,
        made_with=streams["train"].settings(),
    )
    if accelerator.is_main_process:
        trained: Any = copy.deepcopy(averaged)
        with without_bars():
            (trained.half() if config.half_precision else trained).save_pretrained(directory)
    accelerator.wait_for_everyone()
    return load_network(str(directory)).to(accelerator.device)


def initial_network(config: TeacherConfig, init: str | None = None) -> Any:
    """A fresh network, one with the weights of a teacher, or a Hugging Face model behind `as_denoiser`.

    Args:
        config: shape, and the teacher to start from.
        init: where its weights are; ``config.init`` by default.

    Raises:
        FileNotFoundError: if they cannot be had.
        ValueError: if they do not fit ``model``.
    """
    init = config.init if init is None else init
    if external_config(init) is not None:
        return load_network(init, **config.called()).train()
    network = DiT(config.model)
    if init:
        try:
            network.load_state_dict(load_teacher(init).state_dict())
        except RuntimeError as error:
            raise ValueError(
                f"the weights of --teacher.init {config.init} are not of the shape --teacher.model"
            ) from error
    return network


def external_config(path: str) -> dict[str, Any] | None:
    """The ``config.json`` of a Hugging Face teacher; None for a network of MDLM's kind, and where nothing is found.

    Args:
        path: see `TeacherConfig`.
    """
    if not path or path == BUNDLED:
        return None
    try:
        return transformers_config(path)
    except (OSError, HfHubHTTPError, ValueError):  # Whoever loads the weights says what is wrong.
        return None


def load_network(path: str, *, flag: str = "--teacher.path", **called: Any) -> Any:
    """Load a denoiser in any layout that `load_denoiser` reads; in fp32, in evaluation mode.

    Args:
        path: folder, file of weights, or hub name.
        flag: that names it, for messages.
        **called: of a Hugging Face model, what its files do not say; see `load_denoiser`.

    Raises:
        FileNotFoundError: if it cannot be had, with the flag that names another.
        ValueError: if it is damaged, or nothing says how it is called.
    """
    missing = f"no network at {path!r}: give {flag} a folder with config.json and model.safetensors"
    if not path:
        raise FileNotFoundError(f"{missing}, or train one with the teacher stage")
    try:
        # Of a name on the hub, bars show what is fetched.
        with without_bars(expected=external_config(path) is not None) if Path(path).is_dir() else nullcontext():
            return load_denoiser(path, **called)
    except (OSError, HfHubHTTPError) as error:
        raise FileNotFoundError(missing) from error
    except TypeError as error:
        raise ValueError(f"{path} cannot be read as {flag}: {error}") from error


def load_teacher(path: str) -> DiT:
    """Load a teacher of MDLM's kind; see `load_network`.

    Raises:
        FileNotFoundError: if it cannot be had, with the flag that names another.
        ValueError: if it is damaged, or no network of MDLM's kind.
    """
    loaded = load_network(path)
    if not isinstance(loaded, DiT):
        raise ValueError(f"{path} is a {type(loaded).__name__}; give --teacher.path a network of MDLM's kind")
    return loaded


@torch.no_grad()
def heldout_nelbo(
    denoiser: nn.Module,
    bound: Callable[[nn.Module, Tensor, Generator], NelboOutput],
    x_0: Tensor,
    accelerator: Accelerator,
    repeats: int = 4,
) -> float:
    """Likelihood bound of held-out sequences, nats per token, on masks that are the same at every call."""
    generator = Generator(device=x_0.device).manual_seed(fold_seed("heldout"))
    total, tokens = 0.0, 0
    with evaluation_mode(denoiser), accelerator.autocast():
        for chunk in x_0.repeat(repeats, 1).split(128):
            out = bound(denoiser, chunk, generator)
            total += float(out.nats.sum())
            tokens += int(out.num_tokens.sum())
    return total / tokens
