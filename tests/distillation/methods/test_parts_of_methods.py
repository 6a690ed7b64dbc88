"""What methods are made of and given is checked where it comes in, in one sentence each."""

import pytest
import torch

from discrete_distill import (
    SDTT,
    DiDiInstruct,
    DiDiInstructConfig,
    IntermediateStateMatcher,
    MaskedDiffusion,
    make_networks,
)
from discrete_distill.distillation.methods import IDLM, BaseMethod, MethodConfig, Paths
from discrete_distill.models import DiT, DiTConfig

PROCESS = MaskedDiffusion(7)


def tiny() -> DiT:
    shape = {"vocab_size": 8, "max_length": 6, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "cond_size": 8}
    return DiT(DiTConfig(**shape)).eval()


def test_what_is_no_part_of_a_method_is_named() -> None:
    networks = make_networks(tiny())
    for wrong, message in (
        (
            lambda: DiDiInstruct(tiny(), PROCESS),
            r"networks must be a Networks, such as make_networks\(teacher\), got DiT",
        ),
        (lambda: SDTT(tiny(), PROCESS), "networks must be a Networks"),
        (
            lambda: DiDiInstruct(networks, 7, DiDiInstructConfig.recommended()),
            "process must be a MaskedDiffusion, got int",
        ),
        (lambda: IDLM(networks, PROCESS, DiDiInstructConfig.recommended()), "config of IDLM must be IDLMConfig"),
        (lambda: Paths(num_steps=4), r"num_steps is a sequence of integers, such as \(2, 4\), got 4"),
        (lambda: IntermediateStateMatcher(PROCESS, num_steps=4), "num_steps is a sequence"),
    ):
        with pytest.raises(TypeError, match=message):
            wrong()


def test_a_reference_is_looked_at_even_while_it_is_not_read(seeded) -> None:
    config = DiDiInstructConfig.recommended(advantages={"group_size": 2}, log_ratio={"warmup": 0})
    method = DiDiInstruct(make_networks(tiny()), PROCESS, config)
    rollout = method.rollout(4, 6, generator=seeded(0))
    assert "student" not in method.update_plan.reads_reference  # the weight of the KL in states of data is 0
    data = torch.zeros(4, 6, dtype=torch.long)
    method.loss("student", rollout, reference=data, generator=seeded(1))
    for wrong, error, message in (
        (data.float(), TypeError, "int64"),
        (data.int(), TypeError, "int64"),
        (data[:2], ValueError, "as many reference sequences"),
        (torch.full_like(data, PROCESS.mask_token_id), ValueError, "holds masks"),
    ):
        with pytest.raises(error, match=message):
            method.loss("student", rollout, reference=wrong, generator=seeded(1))


def test_a_method_that_lacks_a_part_says_which() -> None:
    class Config(MethodConfig):
        pass

    class Method(BaseMethod[Config]):
        config_class = Config

    method = Method(make_networks(tiny()), PROCESS, Config())
    for call, message in (
        (lambda: method.update_plan, "Config has no update_plan"),
        (method.rollout, "Method has no rollout"),
        (method.student_loss, "Method has no loss of the student"),
        (lambda: method._ratio_loss("critic", None, None), "Method has no loss of the critic"),
    ):
        with pytest.raises(NotImplementedError, match=message):
            call()


def test_a_bare_model_of_transformers_is_told_of_its_adapter() -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=8, **size))
    with pytest.raises(TypeError, match=r"BertForMaskedLM is a model of transformers.*as_denoiser\(model\)"):
        make_networks(bert)
