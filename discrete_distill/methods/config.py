"""What DiDi-Instruct can be told, and what it was told in the paper."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ..checks import check_all_counts, check_count, check_number
from ..divergence import DivergenceKind
from ..rewards import Baseline, Scale, check_advantages
from .protocol import UpdatePlan


@dataclass(kw_only=True)
class DiDiInstructConfig:
    """Every technique of DiDi-Instruct (arXiv 2509.25035) and of what measured better, one field each.

    The defaults are what measured best in this library's own runs; `paper` is the published method.

    Args:
        score_decomposition: train along paths through intermediate states; off: the sample is drawn in one step.
        path_steps: numbers of steps of a path; one is drawn for each batch (paper: 2).
        gradient_steps: steps of a path that keep a graph, drawn at random and weighted; None for all (paper: all).
        branching: rows of a group share their path up to the one step that keeps a graph, and the masks that their
            rewards are read with (paper: off). See `IntermediateStateMatcher`.
        path_times: intermediate times evenly spaced as in the "sampler", or drawn "random"ly (paper: random tau).
        tau_low: least random time (paper: 0.02).
        tau_high: greatest random time (paper: 0.98).
        tau_shape: both shapes of the Beta law of random times (paper: 1 or 2); 1 is uniform.
        coupled_time: corrupt samples to the path's own tau (paper), not to a time drawn anew.
        log_ratio: what estimates log q_student / q_teacher: a "discriminator" (paper), an "auxiliary" denoiser
            fitted to the student, the law of the "path" itself (the student's own probabilities: no network, an
            upper bound), or in its place the "mmd" between features of samples and data (see `MMDLogRatio`).
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
        group_size: G, consecutive rows compared with each other (paper: 4).
        baseline: what is subtracted from rewards (paper: group mean).
        scale: what rewards are divided by (paper: group standard deviation).
        reward_clip: greatest raw log-ratio, nats (paper: 8).
        advantage_clip: greatest normalised reward (paper: 3).
        kl_coefficient: weight of the KL between student and teacher (paper: 0.02); 0 for none.
        kl_kind: forward, reverse, jeffreys, js or tv (paper: jeffreys).
        kl_beta: mixes the two directions (paper: 0.5).
        data_kl_coefficient: weight of the forward KL from the teacher in states of reference sequences, corrupted to
            the times of the paths (paper: 0); it keeps the modes of the data. See `data_divergence`.
        diversity_tolerance: excess of the agreement of two samples at which that weight is full; it is 0 where samples
            are as diverse as the reference, or as those of the undistilled student, which the first
            ``ratio_warmup`` rollouts (at least one) show. None: it is always full. See `DiversityControl`.
        entropy_coefficient: weight of the student's entropy, a bonus (paper: 5e-4); 0 for none.
        label_smoothing: of the discriminator (paper: 0.1).
        reference: where reference sequences come from: "data" (the authors' code) or "teacher" samples (their
            Algorithm 1).
        discriminator_states: it judges samples "corrupted" to a time (paper), or the states of the "path"
            themselves, which is what re-ranking in a sampler meets. A discriminator that gives the reward is asked
            about corrupted samples, and must be trained on them.
        reuse_verdict: the student's reward is what the discriminator said while it was trained in the same step: one
            pass fewer, one update behind; off: the updated discriminator is asked (paper).
        ratio_warmup: updates of discriminator or auxiliary before the student moves (paper: 0).
        ratio_updates: updates of the auxiliary denoiser for each one of the student.
        ratio_conditioning: tell the auxiliary which number of steps its samples were drawn in, so that each is compared
            with the teacher by itself; off: the mixture of all is.
        step_conditioning: tell the student where its step ends; its first answers are the teacher's.

    Raises:
        TypeError: if a number that counts something is not whole.
        ValueError: if a number is out of range or two choices do not go together.
    """

    score_decomposition: bool = True
    path_steps: tuple[int, ...] = (4, 8)
    gradient_steps: int | None = None
    branching: bool = False
    path_times: Literal["sampler", "random"] = "sampler"
    tau_low: float = 0.02
    tau_high: float = 0.98
    tau_shape: float = 1.0
    coupled_time: bool = False
    log_ratio: Literal["discriminator", "auxiliary", "path", "mmd"] = "auxiliary"
    credit: Literal["sequence", "token", "vocabulary"] = "token"
    window: int = 6
    hidden: float = 0.5
    corruptions: int = 4
    corruption_by: Literal["time", "count", "parts"] = "count"
    omega: Literal["elbo", "constant"] = "constant"
    omega_low: float = 0.1
    omega_high: float = 10.0
    importance_weight: bool = False
    group_size: int = 16
    baseline: Baseline = "leave_one_out"
    scale: Scale = "batch"
    reward_clip: float = float("inf")
    advantage_clip: float | None = 3.0
    kl_coefficient: float = 0.0
    kl_kind: DivergenceKind = "jeffreys"
    kl_beta: float = 0.5
    data_kl_coefficient: float = 0.0
    diversity_tolerance: float | None = None
    entropy_coefficient: float = 0.0
    label_smoothing: float = 0.0
    reference: Literal["data", "teacher"] = "data"
    discriminator_states: Literal["corrupted", "path"] = "path"
    reuse_verdict: bool = False
    ratio_warmup: int = 10
    ratio_updates: int = 4
    ratio_conditioning: bool = True
    step_conditioning: bool = True

    def __post_init__(self) -> None:
        self._check_names()
        self._check_numbers()
        if self.credit == "vocabulary" and self.log_ratio in ("discriminator", "mmd"):
            raise ValueError(
                f"a {self.log_ratio} scores what was drawn, not the whole vocabulary; "
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
        if self.reuse_verdict and self.log_ratio != "discriminator":
            raise ValueError(
                f"reuse_verdict takes the reward from a discriminator, not from log_ratio={self.log_ratio!r}; leave it "
                "out"
            )
        if self.coupled_time and self.importance_weight and self.path_times == "sampler":
            raise ValueError(
                'times of a grid have no density to divide by; take path_times="random", or leave out coupled_time or '
                "importance_weight"
            )

    def _check_names(self) -> None:
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                raise ValueError(f"{name} is one of {get_args(hint)}, got {getattr(self, name)!r}")

    def _check_numbers(self) -> None:
        check_all_counts(self, "group_size", "corruptions", "ratio_updates")
        check_all_counts(self, "ratio_warmup", "window", least=0)
        if self.gradient_steps is not None:
            check_count("gradient_steps", self.gradient_steps)
        for steps in self.path_steps:
            check_count("path_steps", steps)
        if not self.path_steps:
            raise ValueError("path_steps needs one or more numbers of steps, got none")
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
        check_advantages(self.scale, self.baseline, self.advantage_clip)

    def update_plan(self, *, discriminator: bool = False) -> UpdatePlan:
        """Order and number of the updates in a training step.

        Args:
            discriminator: whether one is trained, for the log-ratio or for guided sampling alone.
        """
        order = ["student"]
        if self.log_ratio == "auxiliary":
            order.append("auxiliary")
        if self.log_ratio == "discriminator":
            order.insert(0, "discriminator")
        elif discriminator:
            order.append("discriminator")
        reads = {"student": self.log_ratio == "mmd" or self.data_kl_coefficient > 0.0, "discriminator": True}
        return UpdatePlan(
            order=tuple(order),
            updates={"auxiliary": self.ratio_updates} if "auxiliary" in order else {},
            warmup=self.ratio_warmup,
            reads_reference=tuple(name for name in order if reads.get(name, False)),
            keeps_logits=self.credit == "vocabulary",
        )

    @classmethod
    def recommended(cls, **changes: Any) -> DiDiInstructConfig:
        """What the recipes use, with ``changes``: the defaults, and a control of diversity.

        A reverse KL is lower on one mode of the teacher than on all, wherever parallel draws cost more than that mode's
        surprise. Where two samples of the student agree more often than its teacher's, this adds the forward KL in
        states of data, up to a weight of 2; elsewhere it changes nothing. Student paths then need reference sequences.
        """
        controlled: dict[str, Any] = {"data_kl_coefficient": 2.0, "diversity_tolerance": 0.05}
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
            "ratio_warmup": 0,
            "ratio_updates": 1,
            "ratio_conditioning": False,
            "step_conditioning": False,
        }
        return cls(**{**published, **changes})

    @classmethod
    def idlm(cls, **changes: Any) -> DiDiInstructConfig:
        """The objective of IDLM (arXiv 2602.19066), with ``changes``: teacher's less auxiliary's likelihood bound on
        the student's samples, one reward for the whole sequence.

        Its gradient is estimated here by the score function; the paper's relaxes the tokens.
        """
        inverse: dict[str, Any] = {
            "log_ratio": "auxiliary",
            "credit": "sequence",
            "corruption_by": "count",
            "corruptions": 2,
        }
        return cls(**{**inverse, **changes})

    @classmethod
    def mmd(cls, **changes: Any) -> DiDiInstructConfig:
        """Frozen-feature token MMD with leave-one-out REINFORCE in groups of 4 (arXiv 2610.06648), with ``changes``.

        The batch must hold two groups or more. Rewards are scaled by their deviation over the batch, since kernel
        values differ by hundredths.
        """
        kernel: dict[str, Any] = {
            "log_ratio": "mmd",
            "credit": "sequence",
            "corruption_by": "time",
            "corruptions": 1,
            "group_size": 4,
            "baseline": "leave_one_out",
            "scale": "batch",
            "ratio_warmup": 0,
        }
        return cls(**{**kernel, **changes})
