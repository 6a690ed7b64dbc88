"""The networks of a distillation: student, teacher and what estimates their log-ratio, as copies or on one base."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from torch import Generator, nn

from ..checks import check_count, check_number
from ..models import Discriminator, TrunkDiscriminator, merge_lora
from ..models.adapted_copy import adapted_copy
from ..models.in_blocks import InBlocks
from ..models.lora import has_lora, refuse_unmerged
from ..models.shared_copy import shared_copy
from ..models.step_conditioning import trainable_copy
from ..models.wrappers import unwrap
from ..process import Denoiser, FeatureDenoiser
from ..process.blocks import block_length_of, reads_blocks

LogRatioKind = Literal["auxiliary", "discriminator"]


@dataclass(kw_only=True, frozen=True)
class SharedBase:
    """One set of frozen weights for all networks of a distillation; each trained network adds low-rank matrices.

    Every network has modules of its own on the same parameters, so that nothing is switched between calls: the backward
    pass of one, activation checkpointing included, does not depend on calls of another.

    Args:
        rank: of the matrices (LoRA, arXiv 2106.09685).
        alpha: scale of their product, which is multiplied by ``alpha / rank``; twice the rank if None.
        targets: names of linear layers, in full or their ends; None takes all but the vocabulary head, tied layers and
            embeddings of time.

    Raises:
        TypeError: if the rank is no whole number, or alpha no number.
        ValueError: if one of them is not positive.

    Examples:
        >>> networks = make_networks(teacher, sharing=SharedBase(rank=1))
        >>> networks.student.embedding_weight().data_ptr() == networks.teacher.embedding_weight().data_ptr()
        True
    """

    rank: int = 16
    alpha: float | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_count("rank", self.rank)
        if self.alpha is not None:
            check_number("alpha", self.alpha, exclusive_minimum=0.0)

    def adapted(
        self, base: nn.Module, *, step_conditioning: bool = False, generator: Generator | None = None
    ) -> nn.Module:
        """A network on the weights of ``base`` with low-rank matrices of its own, in evaluation mode; its first outputs
        are those of the base.

        Args:
            base: it stays as it is.
            step_conditioning: pass the network its step; the embedding of the step is its own, and trained.
            generator: source of the matrices' initial values.

        Raises:
            ImportError: if peft is not installed.
            TypeError: if the network is to be passed its step and cannot be.
            ValueError: if no linear layer has one of the names, or one of them is tied.
        """
        return adapted_copy(
            base,
            rank=self.rank,
            alpha=2.0 * self.rank if self.alpha is None else self.alpha,
            targets=self.targets,
            step_conditioning=step_conditioning,
            generator=generator,
        )


@dataclass(frozen=True)
class Networks:
    """Networks of a distillation by name, as every method takes them: ``DiDiInstruct(networks, process, config)``.

    Attributes:
        student: the denoiser that is trained.
        teacher: the denoiser that it is distilled from.
        auxiliary: a denoiser that is fitted to the student, or None.
        discriminator: a `RatioNetwork`, or None.
        target: an autoregressive network of the same tokens, whose distribution the student is to have in the place of
            the teacher's, or None; see `AutoregressiveRatio`.

    Examples:
        >>> networks = Networks(student, teacher, discriminator=discriminator)
        >>> sorted(networks.trained()), networks.auxiliary
        (['discriminator', 'student'], None)
        >>> method = DiDiInstruct(networks, process)
    """

    student: nn.Module
    teacher: Denoiser
    auxiliary: nn.Module | None = None
    discriminator: nn.Module | None = None
    target: nn.Module | None = None

    def named(self) -> dict[str, Any]:
        """All networks by name; absent ones are None."""
        return dict(vars(self))

    def trained(self) -> dict[str, nn.Module]:
        """The networks that are trained, by name."""
        frozen = ("teacher", "target")
        return {name: each for name, each in self.named().items() if name not in frozen and each is not None}

    def trainable_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Parameters with gradients of each network that is trained; those of an optimiser of its own."""
        return {
            name: [parameter for parameter in network.parameters() if parameter.requires_grad]
            for name, network in self.trained().items()
        }

    def in_blocks(self, *, reads_teacher: bool = True) -> Networks:
        """The same networks where the student attends both ways; where it reads by blocks, views of them that predict
        every block given the clean ones before it (`InBlocks`), as methods read them.

        Args:
            reads_teacher: whether states of the student are read by the others; without, it alone is viewed.

        Raises:
            ValueError: if another denoiser that reads states of the student has not its blocks, or there is a
                discriminator, which reads whole sequences.
        """
        if reads_teacher:
            self._check_same_blocks()
        if not reads_blocks(self.student):
            return self
        if not reads_teacher:
            return replace(self, student=InBlocks(self.student))
        if self.discriminator is not None:
            raise ValueError(
                "a discriminator reads whole sequences, and the student reads by blocks: take an auxiliary alone, "
                'make_networks(teacher, log_ratio="auxiliary")'
            )
        if self.target is not None:
            raise ValueError("a target reads whole samples, and the student reads by blocks: leave the target out")
        auxiliary = None if self.auxiliary is None else InBlocks(self.auxiliary)
        return Networks(InBlocks(self.student), InBlocks(self.teacher), auxiliary=auxiliary)

    def _check_same_blocks(self) -> None:
        """Raise ValueError if teacher or auxiliary condition a token on others than the student does; an auxiliary that
        is a copy of a target reads as the target does."""
        blocks = block_length_of(self.student)
        for name in ("teacher", "auxiliary") if self.target is None else ("teacher",):
            network = self.named()[name]
            if network is not None and (others := block_length_of(network)) != blocks:
                raise ValueError(
                    f"the {name} {_reading(others)} and the student {_reading(blocks)}, so that their predictions are "
                    "given other tokens: take networks with the same block_length, such as those of "
                    "make_networks(teacher)"
                )

    def merge(self, name: str = "student") -> nn.Module:
        """A denoiser with weights of its own: low-rank matrices folded in; the networks stay as they are.

        It has the teacher's class, and its ``save_pretrained`` writes a plain model (of a model behind `as_denoiser`
        the model's own files, which load without this library). An embedding of the step, where there is one, is
        written to a file of its own.

        Args:
            name: "student" or "auxiliary".

        Raises:
            ValueError: if there is no such denoiser.
        """
        network = self.named().get(name)
        if name not in ("student", "auxiliary") or network is None:
            raise ValueError(
                f'merge is for a trained denoiser, "student" or "auxiliary"; there is no {name!r} to merge'
            )
        merged = copy.deepcopy(network)
        return merge_lora(merged) if has_lora(merged) else merged


def _reading(block_length: int | None) -> str:
    return "does not read by blocks" if block_length is None else f"reads by blocks of {block_length}"


def make_networks(
    teacher: Denoiser,
    *,
    target: nn.Module | None = None,
    log_ratio: LogRatioKind | Sequence[LogRatioKind] | None = "auxiliary",
    step_conditioning: bool = True,
    log_ratio_conditioning: bool | None = None,
    sharing: Literal["copies"] | SharedBase = "copies",
    trainable_blocks: int = 4,
    generator: Generator | None = None,
) -> Networks:
    """Make the networks of a distillation from its teacher. The teacher stays as it is.

    Args:
        teacher: a network of this library, a model behind `as_denoiser`, or any module that is a denoiser.
        target: an autoregressive network of the same tokens, `AutoregressiveRatio` needs it; the auxiliary is then a
            copy of it.
        log_ratio: what estimates the log-ratio of student and teacher: an "auxiliary" denoiser, a "discriminator", or
            None for methods without either; or both in a sequence.
        step_conditioning: pass student and auxiliary the step ``(t, s)``. A model without a way of its own must be an
            `EmbeddingDenoiser`; see `StepConditioned`.
        log_ratio_conditioning: pass the auxiliary its step; None takes ``step_conditioning``.
        sharing: "copies", each network with weights of its own (a discriminator shares its frozen ones with a teacher
            that is no `DiT`); or `SharedBase`, all of them on one set of frozen weights.
        trainable_blocks: how many of the last blocks of a copied discriminator are trained; at most all.
        generator: source of the initial values of low-rank matrices.

    Returns:
        All of them in evaluation mode. With `SharedBase` the returned teacher is a frozen view of the given one: until
        it is moved to another device it shares the weights' memory.

    Raises:
        TypeError: if the teacher is no network, or lacks a capability; names it, and how to supply it.
        ValueError: if a choice is unknown, or the teacher has LoRA weights that were not merged.
        ImportError: if weights are to be shared and peft is not installed.

    Examples:
        >>> networks = make_networks(as_denoiser(bert), log_ratio="auxiliary", sharing=SharedBase(rank=4))
        >>> sorted(networks.trainable_parameters())
        ['auxiliary', 'student']
        >>> method = DiDiInstruct(networks, process, DiDiInstructConfig.recommended())
        >>> optimizer = torch.optim.AdamW(networks.trainable_parameters()["student"])
    """
    kinds = () if log_ratio is None else (log_ratio,) if isinstance(log_ratio, str) else tuple(log_ratio)
    if not set(kinds) <= set(get_args(LogRatioKind)):
        raise ValueError(f"log_ratio is one of {get_args(LogRatioKind)}, both or None, got {log_ratio!r}")
    auxiliary_conditioning = step_conditioning if log_ratio_conditioning is None else log_ratio_conditioning
    if sharing != "copies" and not isinstance(sharing, SharedBase):
        raise ValueError(f'sharing is "copies" or a SharedBase, got {sharing!r}')
    inner = unwrap(teacher)[0]
    if not isinstance(inner, nn.Module):
        raise TypeError(
            f"a student starts from the weights of its teacher, and a {type(inner).__name__} has none: make a network "
            "of your own, and give it to the method itself"
        )
    if hasattr(inner, "get_input_embeddings") and not isinstance(inner, FeatureDenoiser):
        raise TypeError(
            f"a {type(inner).__name__} is a model of transformers, which is called in another way: pass "
            "as_denoiser(model)"
        )
    refuse_unmerged(inner)

    if isinstance(sharing, SharedBase):
        base = shared_copy(inner).eval()

        def denoiser(conditioned: bool) -> nn.Module:
            return sharing.adapted(base, step_conditioning=conditioned, generator=generator)

        def discriminator() -> nn.Module:
            return TrunkDiscriminator(sharing.adapted(base, generator=generator)).eval()

        given: Any = base
    else:
        blocks = min(trainable_blocks, len(getattr(inner, "blocks", ())))

        def denoiser(conditioned: bool) -> nn.Module:
            return trainable_copy(inner, step_conditioning=conditioned)

        def discriminator() -> nn.Module:
            return Discriminator.from_denoiser(inner, blocks).eval()

        given = teacher

    def auxiliary() -> nn.Module:
        if target is None:
            return denoiser(auxiliary_conditioning)
        if isinstance(sharing, SharedBase):
            return sharing.adapted(shared_copy(unwrap(target)[0]).eval(), generator=generator)
        return trainable_copy(target, step_conditioning=False)

    return Networks(
        student=denoiser(step_conditioning),
        teacher=given,
        auxiliary=auxiliary() if "auxiliary" in kinds else None,
        discriminator=discriminator() if "discriminator" in kinds else None,
        target=target,
    )
