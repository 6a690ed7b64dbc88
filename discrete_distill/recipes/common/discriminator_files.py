"""Discriminators as files: whole for a `DiT`; on any other trunk what was trained, over the weights of the teacher."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ...distillation.networks import SharedBase
from ...models import CheckpointError, Discriminator, DiT, TrunkDiscriminator, load_discriminator
from ...models.io.weights import read_safetensors
from ...training import ModuleOptimizer
from .files import read_json_object, write_text

WEIGHTS_FILE = "model.safetensors"
TRUNK_FILE = "trunk.json"


def save_discriminator(discriminator: ModuleOptimizer, directory: Path) -> None:
    """Write the averaged discriminator; all processes call it, the first one writes."""
    network: Any = discriminator.module
    (directory / TRUNK_FILE).unlink(missing_ok=True)
    if isinstance(network, Discriminator):
        save_network(Discriminator(network.config, network.trainable_blocks), discriminator, directory)
    elif discriminator.accelerator.is_main_process:
        directory.mkdir(parents=True, exist_ok=True)
        ranks = [len(weight) for name, weight in network.named_parameters() if ".lora_A." in name]
        blocks = [any(weight.requires_grad for weight in block.parameters()) for block in network.backbone.blocks]
        made_with = {"rank": ranks[0]} if ranks else {"trainable_blocks": sum(blocks)}
        state = {name: value.detach().cpu().contiguous() for name, value in _trained(discriminator.averaged).items()}
        save_file(state, directory / WEIGHTS_FILE)
        write_text(directory / TRUNK_FILE, json.dumps(made_with) + "\n")


def save_network(whole: DiT | Discriminator, module_optimizer: ModuleOptimizer, directory: Path) -> None:
    """The module_optimizer's averaged weights, gathered into ``whole``; all processes call it, the first one writes."""
    weights = module_optimizer.averaged_weights()
    if module_optimizer.accelerator.is_main_process:
        whole.load_state_dict(weights)
        whole.save_pretrained(directory)


def read_discriminator(directory: Path, teacher: Any) -> TrunkDiscriminator | None:
    """Read what `save_discriminator` wrote, in evaluation mode on the CPU or the device of its trunk; None if there is
    nothing.
    """
    if not (directory / WEIGHTS_FILE).exists():
        return None
    if not (directory / TRUNK_FILE).exists():
        return load_discriminator(directory).eval()
    made_with, trunk = read_json_object(directory / TRUNK_FILE), teacher()
    if "rank" in made_with:
        made = TrunkDiscriminator(SharedBase(rank=made_with["rank"]).adapted(trunk))
    else:
        made = Discriminator.from_denoiser(trunk, made_with["trainable_blocks"])
    state, own = read_safetensors(directory / WEIGHTS_FILE), _trained(made)
    if {name: value.shape for name, value in state.items()} != {name: value.shape for name, value in own.items()}:
        raise CheckpointError(f"{directory} holds no discriminator on the trunk of --teacher.path; fit it again")
    made.load_state_dict(state, strict=False)
    return made.eval()


def _trained(network: nn.Module) -> dict[str, Any]:
    """Weights without the frozen ones of the trunk, and without its buffers."""
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    return {name: value for name, value in network.state_dict().items() if name in trained or name.startswith("head.")}
