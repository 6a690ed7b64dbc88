"""A classifier of student against reference that starts from a denoiser's own features.

Shape suffixes: B batch, L length, D width.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from ..checks import check_floats, check_mask, check_number
from ..process import FeatureDenoiser, evaluation_mode
from ..process.conditions import name_of
from .capabilities import EmbeddingDenoiser, HiddenStatesDenoiser, forgo, require
from .dit import DiT
from .dit_config import DiTConfig, config_from
from .io.adapter_files import described_base
from .io.hub import DISCRIMINATOR_CONFIG_FILE, DISCRIMINATOR_FILE, HubNetwork, write_json
from .lora import has_lora, lora_settings, refuse_unmerged
from .shared_copy import shared_copy
from .wrappers import unwrap


class RatioNetwork(Protocol):
    """``network(x_t, t, **model_kwargs) -> logits``: fp32 ``[B, L]``, positive where it sees the student.

    Examples:
        >>> def excess_of_threes(x_t, t, **model_kwargs):
        ...     return 10.0 * (x_t == 3)  # The student writes token 3 too often.
        >>> sampler = RGASampler(process, reward=excess_of_threes, num_steps=4, num_candidates=8, rerank_scale=100.0)
        >>> int((sampler(teacher, (2, 16), generator=generator).sequences == 3).sum())
        0
    """

    def __call__(self, x_t: Tensor, t: Tensor, /, **model_kwargs: Any) -> Tensor: ...


class TrunkDiscriminator(nn.Module):
    """DiDi-Instruct's discriminator (arXiv 2509.25035) on the trunk of any denoiser.

    The last blocks of the trunk are trainable, and a head ``Linear(d, d) - SiLU - Linear(d, 1)``, both under spectral
    norm; one logit per position, in fp32.

    Trained by `binary cross-entropy` to tell student (1) from reference (0), its logit at the optimum is
    ``log q_student(x_t) / q_reference(x_t)``, at every position the same: each reads the whole sequence.

    The trunk is read by ``features`` where it is a `FeatureDenoiser`, else by the hidden states of its last block. The
    discriminator is an `EmbeddingDenoiser` if its trunk is one.

    Args:
        backbone: a denoiser; its ``requires_grad`` is set by whoever makes the discriminator.
        trainable_blocks: how many of its last blocks are the discriminator's own; None where this is not known, or
            low-rank matrices are.

    Raises:
        TypeError: if the backbone has neither features nor hidden states.

    Examples:
        >>> made = Discriminator.from_denoiser(as_denoiser(bert), trainable_blocks=1)
        >>> type(made).__name__, made(x_t, t).shape  # The trunk is shared with bert, but for a copy of its last block.
        ('TrunkDiscriminator', torch.Size([8, 16]))
    """

    def __init__(self, backbone: nn.Module, trainable_blocks: int | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.trainable_blocks = trainable_blocks
        if not isinstance(backbone, FeatureDenoiser):
            require(backbone, HiddenStatesDenoiser, needed_by="a discriminator")
        device = next((each.device for each in backbone.parameters()), torch.device("cpu"))
        width = _width(backbone, device)
        # Spectral norm computes as it is made; on the meta device that would cost seconds of imports.
        with torch.device("cpu") if torch.get_default_device().type == "meta" else nullcontext():
            hidden = spectral_norm(nn.Linear(width, width))
            self.head = nn.Sequential(hidden, nn.SiLU(), spectral_norm(nn.Linear(width, 1)))
        self.head.to(device)
        if not isinstance(backbone, EmbeddingDenoiser):
            forgo(self, "embed", "embedding_weight")

    def logits_of_features(self, features_BLD: Tensor) -> Tensor:
        """Head alone, in fp32 whatever the precision of the backbone: ``[B, L]``."""
        with torch.autocast(features_BLD.device.type, enabled=False):
            return self.head(features_BLD.float()).squeeze(-1)

    def embed(self, x_t: Tensor) -> Tensor:
        """Embeddings ``[B, L, D]`` of ids ``[B, L]``."""
        return cast(Any, self.backbone).embed(x_t)

    def embedding_weight(self) -> Tensor:
        """``E``, ``[V, D]``."""
        return cast(Any, self.backbone).embedding_weight()

    def forward(self, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
        """Logits ``[B, L]`` of token ids ``[B, L]`` at times ``[B]``. With ``inputs_embeds`` ``[B, L, D]`` they are
        those of embeddings, so that soft tokens ``softmax(log p) @ E`` can be judged and differentiated."""
        return self.logits_of_features(trunk_features(self.backbone, x_t, t, **model_kwargs))

    def own_state(self) -> dict[str, Tensor]:
        """Head, and last blocks or low-rank matrices, by name: the state without what belongs to the base.

        Raises:
            ValueError: if it is not known which weights these are.
        """
        if has_lora(self.backbone):
            own = {
                name for name, _ in self.backbone.named_parameters() if ".lora_" in name or name.startswith("step_map.")
            }
        elif self.trainable_blocks is None:
            raise ValueError(
                f"it is not known which weights of the {type(self.backbone).__name__} below the discriminator were "
                "trained: make it by Discriminator.from_denoiser or make_networks, or save its state_dict()"
            )
        else:
            blocks = (
                list(getattr(self.backbone, "blocks", ()))[-self.trainable_blocks :] if self.trainable_blocks else []
            )
            parameters = {id(parameter) for block in blocks for parameter in block.parameters()}
            own = {name for name, parameter in self.backbone.named_parameters() if id(parameter) in parameters}
        return {
            name: value.detach()
            for name, value in self.state_dict().items()
            if name.startswith("head.") or name.removeprefix("backbone.") in own
        }

    def save_pretrained(self, save_directory: str | Path, *, base: str | Path | None = None) -> None:
        """Write what was trained, without the weights of the base: ``discriminator.safetensors`` and
        ``discriminator.json``. `load_discriminator` reads them back over the base.

        Args:
            save_directory: made if it is not there; that of the student, or one of its own.
            base: the model that the trunk started from, by folder or name on the hub, as `load_denoiser` takes it;
                None where `load_discriminator` is to be given it.

        Raises:
            ValueError: if it is not known which weights were trained.

        Examples:
            >>> teacher.save_pretrained("teacher")
            >>> made = Discriminator.from_denoiser(teacher, trainable_blocks=1)
            >>> made.save_pretrained("student", base="teacher")
            >>> load_discriminator("student").trainable_blocks
            1
        """
        state = {name: value.cpu().contiguous() for name, value in self.own_state().items()}
        made = {"trainable_blocks": self.trainable_blocks}
        config = {
            **({} if base is None else described_base(base, self)),
            "trunk": lora_settings(self.backbone) if has_lora(self.backbone) else made,
        }
        directory = Path(save_directory)
        directory.mkdir(parents=True, exist_ok=True)
        save_file(state, directory / DISCRIMINATOR_FILE, metadata={"format": "pt"})
        write_json(directory / DISCRIMINATOR_CONFIG_FILE, config)


class Discriminator(HubNetwork, TrunkDiscriminator, coders={DiTConfig: (asdict, config_from)}):
    """A `TrunkDiscriminator` on a `DiT`, that is saved and loaded by its configuration.

    Args:
        backbone: its shape, or a dictionary of the same fields (as read back from ``config.json``).
        trainable_blocks: how many of the last blocks are trained; the embeddings and the blocks before them are frozen.
        final_norm: whether the head reads the backbone's features, behind its last norm; else it reads what the last
            block returns, as in the authors' published weights, and the backbone has no output layer.

    Raises:
        ValueError: if the backbone has fewer blocks than that, or the number is negative.

    Examples:
        >>> made = Discriminator(shape, trainable_blocks=1)
        >>> [any(weight.requires_grad for weight in block.parameters()) for block in made.backbone.blocks]
        [False, True]
        >>> made.save_pretrained("discriminator")
        >>> torch.equal(Discriminator.from_pretrained("discriminator").eval()(x_t, t), made.eval()(x_t, t))
        True
    """

    backbone: DiT
    trainable_blocks: int

    def __init__(
        self, backbone: DiTConfig | dict[str, Any], trainable_blocks: int = 4, final_norm: bool = True
    ) -> None:
        config = backbone if isinstance(backbone, DiTConfig) else DiTConfig(**backbone)
        _check_trainable(trainable_blocks, config.num_layers)
        TrunkDiscriminator.__init__(self, DiT(config), trainable_blocks)
        self.config = config
        self.final_norm = final_norm
        if not final_norm:
            del self.backbone.output_layer
        self._freeze_all_but_the_last_blocks()

    @staticmethod
    def from_denoiser(denoiser: Any, trainable_blocks: int = 4) -> TrunkDiscriminator:
        """A discriminator whose trunk starts as that of ``denoiser``.

        Args:
            denoiser: of a `DiT` the trunk is a copy. Any other, with hidden states or features, shares its frozen
                weights with the trunk; the last blocks are copied, and trained.
            trainable_blocks: how many of the last blocks are trained. More than 0 needs a list of blocks.

        Returns:
            A `Discriminator` of a `DiT`, else a `TrunkDiscriminator`, in evaluation mode.

        Raises:
            TypeError: if it has neither features nor hidden states, or blocks are to be trained and none are known.
            ValueError: if it has fewer blocks than that, or LoRA weights that were not merged.
        """
        inner = unwrap(denoiser)[0]
        if isinstance(inner, DiT):
            refuse_unmerged(inner)
            made = Discriminator(inner.config, trainable_blocks)
            made.backbone.load_state_dict(copy.deepcopy(inner.state_dict()))
            return made.to(inner.output_layer.linear.weight.device)
        return trunk_discriminator(inner, trainable_blocks)

    def _freeze_all_but_the_last_blocks(self) -> None:
        self.backbone.requires_grad_(False)
        first = self.config.num_layers - self.trainable_blocks
        for block in self.backbone.blocks[first:]:
            block.requires_grad_(True)
        if not self.final_norm:
            return
        # The vocabulary head is not used here; what stands between the blocks and it is.
        self.backbone.output_layer.norm_final.requires_grad_(self.trainable_blocks > 0)
        self.backbone.output_layer.adaLN_modulation.requires_grad_(self.trainable_blocks > 0)

    def forward(  # type: ignore[override]  # no other keyword
        self, x_t: Tensor, t: Tensor, *, attention_mask: Tensor | None = None, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Logits ``[B, L]``; see `TrunkDiscriminator`, and ``final_norm``."""
        given: dict[str, Any] = {"attention_mask": attention_mask, "inputs_embeds": inputs_embeds}
        if self.final_norm:
            return self.logits_of_features(self.backbone.features(x_t, t, **given))
        return self.logits_of_features(self.backbone.hidden_states(x_t, t, self.config.num_layers - 1, **given))


def trunk_discriminator(denoiser: nn.Module, trainable_blocks: int = 4) -> TrunkDiscriminator:
    """A discriminator on the trunk of any denoiser, with which it shares its frozen weights.

    Args:
        denoiser: with features or hidden states; it stays as it is.
        trainable_blocks: how many of the last blocks are copied and trained.

    Raises:
        TypeError: if it has neither features nor hidden states, or blocks are to be trained and none are known.
        ValueError: if it has fewer blocks than that, or LoRA weights that were not merged.
    """
    if not isinstance(denoiser, nn.Module):
        raise TypeError(
            f"a discriminator starts from a network, and {name_of(denoiser)} is none: give a RatioNetwork of your own"
        )
    refuse_unmerged(denoiser)
    trained: list[nn.Module] = []
    if trainable_blocks:
        blocks = require(denoiser, HiddenStatesDenoiser, needed_by="a discriminator with trainable_blocks").blocks
        _check_trainable(trainable_blocks, len(blocks))
        trained = list(blocks)[len(blocks) - trainable_blocks :]
    return TrunkDiscriminator(shared_copy(denoiser, copied=trained), trainable_blocks).eval()


def trunk_features(backbone: Any, x_t: Tensor, t: Tensor, **model_kwargs: Any) -> Tensor:
    """Features of a trunk ``[B, L, D]``, before its vocabulary head where that is known, else after its last block."""
    if isinstance(backbone, FeatureDenoiser):
        return backbone.features(x_t, t, **model_kwargs)
    return backbone.hidden_states(x_t, t, len(backbone.blocks) - 1, **model_kwargs)


def _width(backbone: Any, device: torch.device) -> int:
    """Width ``D`` of what a trunk returns: as configured, or that of one token."""
    if isinstance(backbone, DiT):
        return backbone.config.hidden_size
    with torch.no_grad(), evaluation_mode(backbone):
        features_11D = trunk_features(
            backbone, torch.zeros(1, 1, dtype=torch.long, device=device), torch.ones(1, device=device)
        )
    return features_11D.shape[-1]


def _check_trainable(trainable_blocks: int, num_layers: int) -> None:
    if not 0 <= trainable_blocks <= num_layers:
        raise ValueError(f"trainable_blocks must lie in [0, {num_layers}] for this backbone, got {trainable_blocks}")


def discriminator_loss(
    student_logits_BL: Tensor,
    reference_logits_BL: Tensor,
    student_counted: Tensor,
    reference_counted: Tensor,
    *,
    label_smoothing: float = 0.0,
    weight_B: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy, nats, student 1 against reference 0: averaged within a sequence, then over sequences.

    Args:
        student_logits_BL: logits on student samples.
        reference_logits_BL: logits on reference samples.
        student_counted: bool ``[B, L]``, positions that count.
        reference_counted: likewise.
        label_smoothing: labels become ``1 - s/2`` and ``s/2``, so the optimum is pulled towards zero.
        weight_B: weight of each sequence, ``[B]``; ``1 / B`` by default. A batch in parts, on one process or several,
            has the loss of the whole if its weights are those of the whole.

    Raises:
        TypeError: if logits are no floating-point numbers, or positions that count no booleans.
        ValueError: if ``label_smoothing`` is outside ``[0, 1)``, or shapes do not fit.

    Examples:
        >>> everywhere = torch.ones(8, 16, dtype=torch.bool)
        >>> logits = torch.zeros(8, 16)  # It cannot tell them apart: log(2).
        >>> discriminator_loss(logits, logits, everywhere, everywhere)
        tensor(0.6931)
    """
    check_number("label_smoothing", label_smoothing, minimum=0.0, exclusive_maximum=1.0)
    _check_sides(student_logits_BL, reference_logits_BL, student_counted, reference_counted)
    if weight_B is not None and weight_B.shape != student_logits_BL.shape[:1]:
        raise ValueError(f"weight_B must be [{len(student_logits_BL)}], got shape {list(weight_B.shape)}")
    loss = torch.zeros((), device=student_logits_BL.device)
    for logits, loss_mask, label in (
        (student_logits_BL, student_counted, 1.0 - 0.5 * label_smoothing),
        (reference_logits_BL, reference_counted, 0.5 * label_smoothing),
    ):
        read = torch.where(loss_mask.bool(), logits, torch.zeros_like(logits))  # NaN elsewhere would reach gradients
        nats = F.binary_cross_entropy_with_logits(read, torch.full_like(read, label), reduction="none")
        mean_B = masked_mean(nats, loss_mask)
        loss = loss + 0.5 * (mean_B.mean() if weight_B is None else (weight_B * mean_B).sum())
    return loss


def discriminator_accuracy(
    student_logits_BL: Tensor, reference_logits_BL: Tensor, student_counted: Tensor, reference_counted: Tensor
) -> Tensor:
    """Fraction of sequences whose mean logit has the right sign, both sides alike; 0.5 is chance.

    Sequences without a counted position are left out. Arguments and errors as for `discriminator_loss`.

    Examples:
        >>> everywhere, logits = torch.ones(8, 16, dtype=torch.bool), torch.ones(8, 16)
        >>> discriminator_accuracy(logits, -logits, everywhere, everywhere)
        tensor(1.)
    """
    _check_sides(student_logits_BL, reference_logits_BL, student_counted, reference_counted)
    fractions = []
    for logits, loss_mask, sign in (
        (student_logits_BL, student_counted, 1.0),
        (reference_logits_BL, reference_counted, -1.0),
    ):
        judged = loss_mask.any(1)
        right = (sign * masked_mean(logits.detach(), loss_mask) > 0) & judged
        fractions.append(right.sum() / judged.sum().clamp(min=1))
    return 0.5 * (fractions[0] + fractions[1])


def _check_sides(student_BL: Tensor, reference_BL: Tensor, student_counted: Tensor, reference_counted: Tensor) -> None:
    for side, logits, loss_mask in (
        ("student", student_BL, student_counted),
        ("reference", reference_BL, reference_counted),
    ):
        check_floats(f"{side}_logits_BL", logits)
        if logits.dim() != 2:
            raise ValueError(f"{side}_logits_BL must be [B, L], got shape {list(logits.shape)}")
        check_mask(f"{side}_counted", loss_mask, logits.shape, of="logits")


def masked_mean(values_BL: Tensor, loss_mask_BL: Tensor) -> Tensor:
    """Mean over counted positions of each row, ``[B]``; 0 in a row where none counts. What stands elsewhere, NaN
    included, is not read.

    Raises:
        TypeError: if ``counted_BL`` does not hold booleans.
        ValueError: if the values are not ``[B, L]``, or shapes differ.

    Examples:
        >>> masked_mean(torch.tensor([[1.0, 3.0, torch.nan]]), torch.tensor([[True, True, False]]))
        tensor([2.])
    """
    if values_BL.dim() != 2:
        raise ValueError(f"values_BL must be [B, L], got shape {list(values_BL.shape)}")
    check_mask("loss_mask_BL", loss_mask_BL, values_BL.shape, of="values")
    loss_mask = loss_mask_BL.bool()
    total = torch.where(loss_mask, values_BL, torch.zeros_like(values_BL)).sum(1)
    return total / loss_mask.sum(1).clamp(min=1).to(values_BL.dtype)
