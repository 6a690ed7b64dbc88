"""Files as others publish them, at tiny width: key names, shapes and layouts of the MDLM, DUO, SDTT and DiDi-Instruct
code, written out here by hand and independently of the package's own maps."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from discrete_distill.models import DiT, DiTConfig

VOCABULARY, WIDTH, BLOCKS, HEADS, COND = 11, 24, 2, 3, 5


def names_of_the_network() -> list[str]:
    """Parameters of the transformer that these repositories share, in the order in which they register them."""
    block = (
        *("norm1.weight", "attn_qkv.weight", "attn_out.weight", "norm2.weight"),
        *("mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias"),
        *("adaLN_modulation.weight", "adaLN_modulation.bias"),
    )
    return [
        "vocab_embed.embedding",
        *(f"sigma_map.mlp.{i}.{part}" for i in (0, 2) for part in ("weight", "bias")),
        *(f"blocks.{i}.{name}" for i in range(BLOCKS) for name in block),
        *("output_layer.norm_final.weight", "output_layer.linear.weight", "output_layer.linear.bias"),
        *("output_layer.adaLN_modulation.weight", "output_layer.adaLN_modulation.bias"),
    ]


def shape_of(name: str) -> tuple[int, ...]:
    """Shape of a parameter, from its name."""
    end = name.split(".", 2)[-1] if name.startswith("blocks.") else name
    return {
        "vocab_embed.embedding": (VOCABULARY, WIDTH),
        "sigma_map.mlp.0.weight": (COND, 256),
        "sigma_map.mlp.0.bias": (COND,),
        "sigma_map.mlp.2.weight": (COND, COND),
        "sigma_map.mlp.2.bias": (COND,),
        "norm1.weight": (WIDTH,),
        "attn_qkv.weight": (3 * WIDTH, WIDTH),
        "attn_out.weight": (WIDTH, WIDTH),
        "norm2.weight": (WIDTH,),
        "mlp.0.weight": (4 * WIDTH, WIDTH),
        "mlp.0.bias": (4 * WIDTH,),
        "mlp.2.weight": (WIDTH, 4 * WIDTH),
        "mlp.2.bias": (WIDTH,),
        "adaLN_modulation.weight": (6 * WIDTH, COND),
        "adaLN_modulation.bias": (6 * WIDTH,),
        "output_layer.norm_final.weight": (WIDTH,),
        "output_layer.linear.weight": (VOCABULARY, WIDTH),
        "output_layer.linear.bias": (VOCABULARY,),
        "output_layer.adaLN_modulation.weight": (2 * WIDTH, COND),
        "output_layer.adaLN_modulation.bias": (2 * WIDTH,),
    }[end]


def network(seed: int = 0) -> dict[str, Tensor]:
    """Random parameters, and the buffer that is saved with them."""
    generator = torch.Generator().manual_seed(seed)
    weights = {name: 0.3 * torch.randn(shape_of(name), generator=generator) for name in names_of_the_network()}
    head = WIDTH // HEADS
    weights["rotary_emb.inv_freq"] = 1.0 / (10_000 ** (torch.arange(0, head, 2).float() / head))
    return weights


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def denoiser(weights: dict[str, Tensor], **settings: Any) -> DiT:
    """Our network with these weights, without the package's loading."""
    settings = {"max_length": 1024, **settings}
    made = DiT(
        DiTConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_layers=BLOCKS,
            num_heads=HEADS,
            cond_size=COND,
            **settings,
        )
    )
    assert not made.load_state_dict(weights).missing_keys
    return made.eval()


def discriminator(seed: int = 1) -> tuple[dict[str, Tensor], nn.Sequential]:
    """The authors' discriminator: the network with its output layer replaced by a head under the older spectral norm;
    its weights, and the head as a module of torch."""
    torch.manual_seed(seed)
    head = nn.Sequential(
        nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)), nn.SiLU(), nn.utils.spectral_norm(nn.Linear(WIDTH, 1))
    )
    head(torch.randn(3, WIDTH))
    weights = {name: value for name, value in network(seed).items() if not name.startswith("output_layer.")}
    weights |= {f"output_layer.main.{name}": value for name, value in head.state_dict().items()}
    assert {name for name in weights if "main" in name} == {
        *(f"output_layer.main.{i}.{part}" for i in (0, 2) for part in ("bias", "weight_orig", "weight_u", "weight_v"))
    }
    return {name: value.clone() for name, value in weights.items()}, head.eval()


def write_mdlm_hub(folder: Path, weights: dict[str, Tensor], **changes: Any) -> None:
    """kuleshov-group/mdlm-owt."""
    save_file(prefixed(weights, "backbone."), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["MDLM"],
        "auto_map": {"AutoConfig": "configuration_mdlm.MDLMConfig", "AutoModelForMaskedLM": "modeling_mdlm.MDLM"},
        "model_type": "mdlm",
        "vocab_size": VOCABULARY,
        "model_length": 16,
        "hidden_dim": WIDTH,
        "cond_dim": COND,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "dropout": 0.1,
        "time_conditioning": False,
        "return_dict": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def write_sdtt_hub(folder: Path, weights: dict[str, Tensor], prefix: str = "backbone.") -> None:
    """jdeschena/sdtt, whose students hold one ``backbone.`` and whose copy of MDLM holds two."""
    save_file(prefixed(weights, prefix), folder / "model.safetensors", metadata={"format": "pt"})
    model = {
        "name": "small",
        "type": "ddit-orig",
        "hidden_size": WIDTH,
        "cond_dim": COND,
        "length": 16,
        "n_blocks": BLOCKS,
        "n_heads": HEADS,
        "scale_by_sigma": True,
        "dropout": 0.1,
        "tie_word_embeddings": False,
    }
    config = {"model": model, "time_conditioning": False, "parameterization": {"name": "multi-round-sdtt"}, "T": 0}
    (folder / "config.json").write_text(json.dumps(config))


def write_lightning(file: Path, state: dict[str, Tensor], shadows: dict[str, Tensor] | None, **more: Any) -> None:
    """A ``.ckpt`` of the MDLM, DUO or DiDi-Instruct code; averages are listed without names."""
    checkpoint = {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "2.2.1",
        "state_dict": state,
        "loops": {"fit_loop": {"epoch_progress": {"current": {"completed": 3}}}},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 3e-4}]}],
        "sampler": {"random_state": None},
        **more,
    }
    if shadows is not None:
        ordered = [shadows[name] for name in names_of_the_network()]
        checkpoint["ema"] = {"decay": 0.9999, "num_updates": 1000, "shadow_params": ordered}
    torch.save(checkpoint, file)


def write_didi_instruct_hub(folder: Path, student: dict[str, Tensor], judge: dict[str, Tensor]) -> None:
    """haoyangzheng/didi-instruct-small."""
    save_file(student, folder / "model.safetensors")
    save_file(judge, folder / "discriminator.safetensors")


def judged(weights: dict[str, Tensor], head: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """The authors' discriminator by our blocks and torch's older head: told the true sigma, no last norm."""
    body = {name: value for name, value in weights.items() if not name.startswith("output_layer.")}
    rest = {name: value for name, value in network().items() if name.startswith("output_layer.")}
    backbone = denoiser({**body, **rest}, time_conditioning=True)
    h, cond = backbone.embed(x_t), backbone.condition(t, None)
    for block in backbone.blocks:
        h = block(h, cond, backbone.rotary_emb(x_t.shape[1]), None)
    return head(h).squeeze(-1)
