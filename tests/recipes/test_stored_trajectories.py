"""Recorded trajectories in the recipe's distillation and in transformers' Trainer."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from discrete_distill import ConfidenceSampler, MaskedDiffusion
from discrete_distill.distillation.methods import (
    AlphaLossConfig,
    BlockHalves,
    CertaintyForcing,
    CertaintyForcingConfig,
    TrajectoryStates,
)
from discrete_distill.distillation.trajectories import Trajectories
from discrete_distill.integrations.transformers import DiDiInstructTrainer, DiDiInstructTrainingArguments
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.corpus import TokenStream
from discrete_distill.recipes.common.distill import Distillation
from discrete_distill.recipes.common.distill_config import DistillConfig
from discrete_distill.samplers import Sampler
from discrete_distill.training import LoopConfig, OptimizerConfig, TrajectoryStore, step_generator

LENGTH, MASK = 8, 5
PROCESS = MaskedDiffusion(MASK)
ALONG = CertaintyForcingConfig(corruption=TrajectoryStates(block_length=(4, 8)))


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def teacher(seed: int = 0) -> DiT:
    torch.manual_seed(seed)
    made = DiT(DiTConfig(vocab_size=6, max_length=LENGTH, hidden_size=8, num_layers=1, num_heads=1, cond_size=4))
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def settings(method: Any, folder: str, **given: Any) -> DistillConfig:
    return DistillConfig(
        method=method,
        loop=LoopConfig(num_steps=5),
        batch_size=4,
        discriminator=False,
        teacher_steps=4,
        trajectories=folder,
        trajectory_rows=12,
        student=OptimizerConfig(learning_rate=1e-2, ema_decay=0.5),
        **given,
    )


def distillation(folder: Path, config: Any = ALONG, seed: int = 0, **given: Any) -> Distillation:
    stream = TokenStream(np.arange(100, dtype=np.uint16) % 5, LENGTH)
    return Distillation(settings(config, str(folder), **given), teacher(seed), stream, PROCESS, Accelerator(cpu=True))


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the samplers that are called from now on."""
    calls: list[str] = []
    plain = Sampler.__call__

    def call(self: Sampler, *args: Any, **kwargs: Any) -> Any:
        calls.append(type(self).__name__)
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(Sampler, "__call__", call)
    return calls


@pytest.mark.parametrize(
    ("config", "sampler"), [(ALONG, "ConfidenceSampler"), (CertaintyForcingConfig(), "AncestralSampler")]
)
@pytest.mark.parametrize("given", [{}, {"accumulate": 2}])
def test_the_teacher_is_sampled_by_the_first_run_alone(
    config: Any, sampler: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, losses = counted(monkeypatch), []
    for _ in range(2):
        made = distillation(tmp_path, config, **given)
        losses.append([made.step(index, step_generator(0, index))["cross_entropy"] for index in range(5)])
    assert calls == [sampler]
    assert losses[0] == losses[1]
    with pytest.raises(ValueError, match="teacher"):
        distillation(tmp_path, config, seed=1).step(0, step_generator(0, 0))


def test_trajectories_that_nobody_reads_and_states_without_any_are_refused() -> None:
    with pytest.raises(ValueError, match="somewhere"):
        settings(AlphaLossConfig(), "somewhere")
    with pytest.raises(ValueError, match="trajectories"):
        settings(ALONG, "")
    settings(CertaintyForcingConfig(corruption=BlockHalves()), "")


def test_a_store_is_a_data_set_of_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with prompts and padding arrive at the method as they were recorded."""
    place, row = torch.arange(LENGTH), torch.arange(12)[:, None]
    real = place < LENGTH - row % 2
    x_init = torch.where((place < row % 3) | ~real, 1, MASK)
    store = TrajectoryStore.record(
        tmp_path / "store", ConfidenceSampler(PROCESS, num_steps=4), teacher(), x_init=x_init, attention_mask=real
    )
    seen: list[Trajectories] = []
    plain = CertaintyForcing.rollout

    def rollout(self: Any, *args: Any, reference: Any, **given: Any) -> Any:
        seen.append(reference)
        return plain(self, *args, reference=reference, **given)

    monkeypatch.setattr(CertaintyForcing, "rollout", rollout)
    trainer = DiDiInstructTrainer(
        CertaintyForcing.make_student(teacher(), ALONG),
        DiDiInstructTrainingArguments(
            output_dir=str(tmp_path / "run"), num_train_epochs=1, per_device_train_batch_size=4, length=LENGTH,
            learning_rate=1e-2, report_to=[], disable_tqdm=True, use_cpu=True,
        ),
        teacher=teacher(),
        process=PROCESS,
        config=ALONG,
        train_dataset=store,
    )  # fmt: skip
    before = nn.utils.parameters_to_vector(trainer.model.parameters()).detach().clone()
    trainer.train()
    assert not torch.equal(nn.utils.parameters_to_vector(trainer.model.parameters()), before)
    found = {tuple(row.tolist()) for each in seen for row in torch.cat((each.x_0, each.reveal_step), 1)}
    whole = store.rows(torch.arange(12))
    assert found == {tuple(row.tolist()) for row in torch.cat((whole.x_0, whole.reveal_step), 1)}
