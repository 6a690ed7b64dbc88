"""The settings: the paper's, and those that are refused."""

from dataclasses import asdict

import pytest

from discrete_distill import DiDiInstructConfig


def test_the_papers_settings() -> None:
    paper = asdict(DiDiInstructConfig.paper())
    assert paper == {
        "score_decomposition": True,
        "path_steps": (2,),
        "gradient_steps": None,
        "branching": False,
        "path_times": "random",
        "tau_low": 0.02,
        "tau_high": 0.98,
        "tau_shape": 1.0,
        "coupled_time": True,
        "log_ratio": "discriminator",
        "credit": "sequence",
        "window": 6,
        "hidden": 0.5,
        "corruptions": 1,
        "corruption_by": "time",
        "omega": "elbo",
        "omega_low": 0.1,
        "omega_high": 10.0,
        "importance_weight": False,
        "group_size": 4,
        "baseline": "group",
        "scale": "group",
        "reward_clip": 8.0,
        "advantage_clip": 3.0,
        "kl_coefficient": 0.02,
        "kl_kind": "jeffreys",
        "kl_beta": 0.5,
        "data_kl_coefficient": 0.0,
        "diversity_tolerance": None,
        "entropy_coefficient": 5e-4,
        "label_smoothing": 0.1,
        "reference": "data",
        "discriminator_states": "corrupted",
        "reuse_discriminator_logits": False,
        "log_ratio_warmup": 0,
        "log_ratio_updates": 1,
        "log_ratio_conditioning": False,
        "step_conditioning": False,
    }


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"group_size": 0}, "group_size.*0"),
        ({"log_ratio": "discriminator", "credit": "vocabulary"}, "a discriminator scores what was drawn"),
        ({"log_ratio": "path", "credit": "sequence"}, "got credit='sequence'"),
        ({"log_ratio": "discriminator", "credit": "sequence"}, 'take corruption_by="time"'),
        ({"kl_coefficient": -0.1}, "kl_coefficient.*-0.1"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient.*-1.0"),
        ({"data_kl_coefficient": -1.0}, "data_kl_coefficient.*-1.0"),
        ({"data_kl_coefficient": 1.0, "diversity_tolerance": 0.0}, "diversity_tolerance.*0.0"),
        ({"diversity_tolerance": 0.05}, "data_kl_coefficient"),
        ({"path_steps": ()}, "path_steps"),
        ({"path_steps": (2, 0)}, "path_steps.*0"),
        ({"hidden": 0.0}, "hidden.*0.0"),
        ({"corruptions": 0}, "corruptions.*0"),
        ({"log_ratio_updates": 0}, "log_ratio_updates.*0"),
        ({"log_ratio_warmup": -1}, "log_ratio_warmup.*-1"),
        ({"label_smoothing": 1.0}, "label_smoothing.*1.0"),
        ({"tau_low": 0.9, "tau_high": 0.1}, "tau_high.*0.1"),
        ({"window": -1}, "window.*-1"),
        ({"kl_coefficient": float("nan")}, "nan"),
        ({"entropy_coefficient": float("inf")}, "inf"),
        ({"kl_beta": 1.5}, "1.5"),
        ({"advantage_clip": 0.0}, "0.0"),
        ({"advantage_clip": float("nan")}, "nan"),
        ({"reward_clip": -8.0}, "-8.0"),
        (
            {
                "log_ratio": "discriminator",
                "credit": "sequence",
                "corruption_by": "time",
                "discriminator_states": "path",
            },
            "corrupted",
        ),
        ({"reuse_discriminator_logits": True, "discriminator_states": "corrupted"}, "auxiliary"),
        ({"coupled_time": True, "importance_weight": True, "path_times": "sampler"}, "random"),
        ({"scale": "range"}, r"scale is .*, got 'range'"),
        ({"omega": "elba"}, r"omega is .*, got 'elba'"),
        ({"credit": "word"}, r"credit is .*, got 'word'"),
        ({"reference": "web"}, r"reference is .*, got 'web'"),
    ],
)
def test_settings_out_of_range_or_at_odds_are_refused(choices, message) -> None:
    with pytest.raises(ValueError, match=message):
        DiDiInstructConfig(**choices)


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        DiDiInstructConfig(True)  # type: ignore[misc]


@pytest.mark.parametrize("name", ["group_size", "corruptions", "log_ratio_updates", "log_ratio_warmup", "window"])
def test_what_is_counted_is_whole(name) -> None:
    with pytest.raises(TypeError, match=name):
        DiDiInstructConfig(**{name: 1.5})
