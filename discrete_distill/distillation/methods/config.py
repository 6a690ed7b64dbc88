"""Configuration of DiDi-Instruct, with the paper's preset."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ...checks import check_all_counts, check_number
from ..divergence import DivergenceKind
from .path_config import PathConfig
from .protocol import UpdatePlan
from .step_losses import Regularization

if TYPE_CHECKING:
    from .didi_instruct import DiDiInstruct


@dataclass(kw_only=True)
class DiDiInstructConfig(PathConfig):
    """Every technique of DiDi-Instruct (arXiv 2509.25035) and of what measured better, one field each. `PathConfig`
    has the fields of paths and advantages.

    The defaults are what measured best in this library's own runs; `paper` is the published method.

    Args:
        score_decomposition: train along paths through intermediate states; off: the sample is drawn in one step.
        path_times: intermediate times evenly spaced as in the "sampler", or drawn "random"ly (paper: random tau).
        tau_low: least random time (paper: 0.02).
        tau_high: greatest random time (paper: 0.98).
        tau_shape: both shapes of the Beta distribution of random times (paper: 1 or 2); 1 is uniform.
        coupled_time: corrupt samples to the path's own tau (paper), not to a time drawn anew.
        log_ratio: what estimates log q_student / q_teacher: a "discriminator" (paper), an "auxiliary" denoiser
            fitted to the student, or the distribution of the "path" itself (the student's own probabilities: no
            network, an upper bound).
        credit: advantage for the whole "sequence" (paper), for each "token", or over the whole "vocabulary" at every
            step.
        window: token credit: positions up to this far away count for a token.
        hidden: credit over the vocabulary: least fraction of a step's masked positions that is scored, given the
            others.
        corruptions: sequence and token credit: corruptions averaged for each sample (paper: 1).
        corruption_by: by "time" (paper), by "count" of masks, or in "parts" that are hidden in turn.
        omega: weight of time, "elbo" (paper) or "constant".
        omega_low: least weight (paper: 0.1).
        omega_high: greatest weight (paper: 10).
        importance_weight: divide by pi(t) (paper: optional).
        reward_clip: greatest raw log-ratio, nats (paper: 8).
        kl_coefficient: weight of the KL between student and teacher (paper: 0.02); 0 for none.
        kl_kind: forward, reverse, jeffreys, js or tv (paper: jeffreys).
        kl_beta: mixes the two directions (paper: 0.5).
        data_kl_coefficient: weight of the forward KL from the teacher in states of reference sequences, corrupted to
            the times of the paths (paper: 0); it keeps the modes of the data. See `data_divergence`.
        diversity_tolerance: excess of the agreement of two samples at which that weight is full; it is 0 where samples
            are as diverse as the reference, or as those of the undistilled student, which the first
            ``log_ratio_warmup`` rollouts (at least one) show. None: it is always full. See `DiversityControl`.
        entropy_coefficient: weight of the student's entropy, a bonus (paper: 5e-4); 0 for none.
        label_smoothing: of the discriminator (paper: 0.1).
        discriminator_states: it judges samples "corrupted" to a time (paper), or the states of the "path"
            themselves, which is what re-ranking in a sampler meets. A discriminator that gives the reward is asked
            about corrupted samples, and must be trained on them.
        reuse_discriminator_logits: the student's reward is what the discriminator said while it was trained in the same
            step: one pass fewer, one update behind; off: the updated discriminator is asked (paper).
        log_ratio_warmup: updates of discriminator or auxiliary before the student moves (paper: 0).
        log_ratio_updates: updates of the auxiliary denoiser for each one of the student.
        log_ratio_conditioning: tell the auxiliary which number of steps its samples were drawn in, so that each is
            compared with the teacher by itself; off: the mixture of all is.

    Raises:
        TypeError: if a number that counts something is not whole.
        ValueError: if a number is out of range or two choices do not go together.
    """

    score_decomposition: bool = True
    path_times: Literal["sampler", "random"] = "sampler"
    tau_low: float = 0.02
    tau_high: float = 0.98
    tau_shape: float = 1.0
    coupled_time: bool = False
    log_ratio: Literal["discriminator", "auxiliary", "path"] = "auxiliary"
    credit: Literal["sequence", "token", "vocabulary"] = "token"
    window: int = 6
    hidden: float = 0.5
    corruptions: int = 4
    corruption_by: Literal["time", "count", "parts"] = "count"
    omega: Literal["elbo", "constant"] = "constant"
    omega_low: float = 0.1
    omega_high: float = 10.0
    importance_weight: bool = False
    reward_clip: float = float("inf")
    kl_coefficient: float = 0.0
    kl_kind: DivergenceKind = "jeffreys"
    kl_beta: float = 0.5
    data_kl_coefficient: float = 0.0
    diversity_tolerance: float | None = None
    entropy_coefficient: float = 0.0
    label_smoothing: float = 0.0
    discriminator_states: Literal["corrupted", "path"] = "path"
    reuse_discriminator_logits: bool = False
    log_ratio_warmup: int = 10
    log_ratio_updates: int = 4
    log_ratio_conditioning: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_numbers()
        if self.credit == "vocabulary" and self.log_ratio == "discriminator":
            raise ValueError(
                "a discriminator scores what was drawn, not the whole vocabulary; "
                'take credit="sequence", or log_ratio="auxiliary" or "path"'
            )
        if self.log_ratio == "path" and self.credit != "vocabulary":
            raise ValueError(f'log_ratio="path" goes with credit="vocabulary", got credit={self.credit!r}')
        if self.log_ratio == "discriminator" and self.corruption_by != "time":
            raise ValueError('a discriminator reads one time for each sample; take corruption_by="time"')
        if self.log_ratio == "discriminator" and self.discriminator_states != "corrupted":
            raise ValueError(
                "a discriminator of path states does not know the corrupted samples that the reward is read at; take "
                'discriminator_states="corrupted"'
            )
        if self.reuse_discriminator_logits and self.log_ratio != "discriminator":
            raise ValueError(
                "reuse_discriminator_logits takes the reward from a discriminator, not from "
                f"log_ratio={self.log_ratio!r}; leave it "
                "out"
            )
        if self.coupled_time and self.importance_weight and self.path_times == "sampler":
            raise ValueError(
                'times of a grid have no density to divide by; take path_times="random", or leave out coupled_time or '
                "importance_weight"
            )

    def _check_numbers(self) -> None:
        check_all_counts(self, "corruptions", "log_ratio_updates")
        check_all_counts(self, "log_ratio_warmup", "window", least=0)
        for name in ("kl_coefficient", "data_kl_coefficient", "entropy_coefficient", "omega_low"):
            check_number(name, getattr(self, name), least=0.0)
        if self.diversity_tolerance is not None:
            check_number("diversity_tolerance", self.diversity_tolerance, above=0.0)
            if not self.data_kl_coefficient:
                raise ValueError(
                    f"diversity_tolerance = {self.diversity_tolerance} controls the weight of data_kl_coefficient, "
                    "which is 0; raise it, or leave diversity_tolerance out"
                )
        check_number("omega_high", self.omega_high, above=self.omega_low)
        check_number("tau_low", self.tau_low, least=0.0)
        check_number("tau_high", self.tau_high, above=self.tau_low, most=1.0)
        check_number("tau_shape", self.tau_shape, above=0.0)
        check_number("hidden", self.hidden, above=0.0, most=1.0)
        check_number("kl_beta", self.kl_beta, least=0.0, most=1.0)
        check_number("label_smoothing", self.label_smoothing, least=0.0, below=1.0)
        check_number("reward_clip", self.reward_clip, above=0.0, finite=False)

    @property
    def method_class(self) -> type[DiDiInstruct]:
        """`DiDiInstruct`."""
        from .didi_instruct import DiDiInstruct  # its module imports this one

        return DiDiInstruct

    @property
    def regularization(self) -> Regularization:
        """KL from the teacher and entropy along the path."""
        return Regularization(
            kl_coefficient=self.kl_coefficient,
            kl_kind=self.kl_kind,
            kl_beta=self.kl_beta,
            entropy_coefficient=self.entropy_coefficient,
        )

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """Order and number of the updates in a training step. A discriminator that gives the reward is updated before
        the student (the paper's Algorithm 1). An auxiliary denoiser follows the student: the reward is then read from a
        network that has not seen these samples, and its update does not need memory beside the graph of the paths.

        Args:
            discriminator: whether one is trained, for the log-ratio or for guided sampling alone.
        """
        order = ["student", "auxiliary"] if self.log_ratio == "auxiliary" else ["student"]
        if self.log_ratio == "discriminator":
            order.insert(0, "discriminator")
        elif discriminator:
            order.append("discriminator")
        reads = {"student": self.data_kl_coefficient > 0.0, "discriminator": True}
        return UpdatePlan(
            order=tuple(order),
            updates={"auxiliary": self.log_ratio_updates} if "auxiliary" in order else {},
            warmup=self.log_ratio_warmup,
            reads_reference=tuple(name for name in order if reads.get(name, False)),
            keeps_logits=self.credit == "vocabulary",
        )

    def path_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float, float]:
        """See `PathConfig.path_evaluations`."""
        if not self.score_decomposition:
            return 1.0, 1.0, 1.0
        steps, states, graph = super().path_evaluations(batch)
        if self.path_times == "random" and steps > 1.0 and (time_conditioning or self.step_conditioning):
            states, graph = steps * batch, graph / states * steps * batch
        return steps, states, graph

    def loss_evaluations(self, batch: int, *, time_conditioning: bool = True) -> tuple[float, float]:
        """See `PathConfig.loss_evaluations`."""
        steps, states, _ = self.path_evaluations(batch, time_conditioning=time_conditioning)
        forward, backward = states if self.kl_coefficient else 0.0, 0.0
        if self.data_kl_coefficient:
            forward, backward = forward + 2.0 * batch, backward + batch
        if self.credit == "vocabulary":
            forward += (1.0 if self.log_ratio == "path" else 2.0) * steps * batch
            if self.log_ratio == "auxiliary":
                forward, backward = forward + self.log_ratio_updates * steps * batch, backward + steps * batch
        elif self.log_ratio == "auxiliary":
            forward += 2.0 * self.corruptions * batch + self.log_ratio_updates * batch
            backward += self.log_ratio_updates * batch
        elif self.log_ratio == "discriminator" and not self.reuse_discriminator_logits:
            forward += self.corruptions * batch
        return forward, backward

    @classmethod
    def recommended(cls, **changes: Any) -> DiDiInstructConfig:
        """What the recipes use, with ``changes``: the defaults, and a control of diversity.

        A reverse KL is lower on one mode of the teacher than on all, wherever parallel draws cost more than that mode's
        surprise. Where two samples of the student agree more often than its teacher's, this adds the forward KL in
        states of data, up to a weight of 1; elsewhere it changes nothing. Student paths then need reference sequences.
        """
        controlled: dict[str, Any] = {"data_kl_coefficient": 1.0, "diversity_tolerance": 0.05}
        return cls(**{**controlled, **changes})

    @classmethod
    def paper(cls, **changes: Any) -> DiDiInstructConfig:
        """The first configuration published with arXiv 2509.25035, with ``changes``."""
        published: dict[str, Any] = {
            "path_steps": (2,),
            "path_times": "random",
            "coupled_time": True,
            "log_ratio": "discriminator",
            "credit": "sequence",
            "corruptions": 1,
            "group_size": 4,
            "corruption_by": "time",
            "omega": "elbo",
            "baseline": "group",
            "scale": "group",
            "reward_clip": 8.0,
            "advantage_clip": 3.0,
            "kl_coefficient": 0.02,
            "entropy_coefficient": 5e-4,
            "label_smoothing": 0.1,
            "discriminator_states": "corrupted",
            "log_ratio_warmup": 0,
            "log_ratio_updates": 1,
            "log_ratio_conditioning": False,
            "step_conditioning": False,
        }
        return cls(**{**published, **changes})
