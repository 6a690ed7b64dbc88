"""Every preset of every recipe reaches its first training step on files in the layouts in which they are published."""

from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from accelerate.state import AcceleratorState
from published_files import backend_without_mask, run_tokenizer, write_dataset, write_gpt2, write_mdlm, write_tokenizer

from discrete_distill.evaluation.protein import AMINO_ACIDS
from discrete_distill.recipes import owt
from discrete_distill.recipes.compare import __main__ as compare
from discrete_distill.recipes.compare.settings import PRESETS as COMPARISONS
from discrete_distill.recipes.protein import __main__ as protein
from discrete_distill.recipes.protein.settings import PRESETS as PROTEINS
from discrete_distill.recipes.text.settings import PRESETS as TEXTS
from discrete_distill.training import read_metrics

COMMON = ["--data.length=16", "--precision=fp32", "--discriminator.updates=0", "--name=run"]
DISTILL = [
    "--distill.loop.num-steps=1", "--distill.batch-size=4", "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=0",
]  # fmt: skip
MODEL = [
    "--teacher.model.hidden-size=16", "--teacher.model.num-layers=1", "--teacher.model.num-heads=2",
    "--teacher.model.cond-size=8", "--teacher.loop.num-steps=1", "--teacher.batch-size=4",
]  # fmt: skip
COMPARE = [
    "--budget=network_evaluations", "--amount=150",
    *(f"--{method}.batch-size=4" for method in ("distill", "didi-paper", "idlm", "mmd", "sdtt", "autoregressive")),
    *(f"--{method}.method.advantages.group-size=2" for method in ("distill", "didi-paper", "idlm", "mmd")),
    "--distill.method.log-ratio.warmup=0", "--idlm.method.log-ratio.warmup=0",
    "--sdtt.method.teacher-steps=8", "--sdtt.method.rounds=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags that name a data set, a tokenizer, a teacher and a judge."""
    folder = tmp_path_factory.mktemp("published")
    backend = backend_without_mask()
    size = run_tokenizer(backend).vocab_size
    write_dataset(folder / "data")
    write_tokenizer(folder / "tokenizer", backend)
    write_mdlm(folder / "mdlm", size)
    write_gpt2(folder / "gpt2", size, backend)
    return [
        f"--data.source={folder}/data",
        f"--data.tokenizer={folder}/tokenizer",
        f"--teacher.path={folder}/mdlm",
        f"--judge.path={folder}/gpt2",
        f"--teacher.model.vocab-size={size}",
        f"--judge.vocab-size={size}",
    ]


def steps_logged(run: Path) -> float:
    return read_metrics(run)[-1]["step"]


@pytest.mark.filterwarnings("ignore:.*no tokenizer_fingerprint")
@pytest.mark.parametrize("preset", TEXTS)
def test_a_text_preset_distils_trains_a_teacher_and_finds_its_judge(
    preset: str, published: list[str], tmp_path: Path
) -> None:
    flags = [*published, *COMMON, *DISTILL, *MODEL, f"--output={tmp_path}"]
    stages = [("distill", "run"), ("teacher", "run/teacher")]
    if preset == "demo-target":  # Its student learns from what the stage teacher makes, here from random weights.
        stages, flags = stages[::-1], [*flags, "--teacher.init="]
    for stage, folder in stages:
        assert owt.main([stage, "--preset", preset, *flags]) == 0
        assert steps_logged(tmp_path / folder) == 1.0
    small = ["--evaluate.num-samples=2", "--evaluate.seeds=0", "--evaluate.steps=8", "--evaluate.frontier-steps=8"]
    small += ["--evaluate.teacher-frontier-steps=8", "--evaluate.guided-steps=8", "--evaluate.num-candidates=2"]
    if preset in ("demo", "small"):
        assert owt.main(["evaluate", "--preset", preset, *flags, *small]) == 0


@pytest.mark.parametrize("preset", PROTEINS)
def test_a_protein_preset_distils(preset: str, tmp_path: Path, seeded: Callable[[int], torch.Generator]) -> None:
    rows = ["".join(AMINO_ACIDS[i] for i in torch.randint(20, (60,), generator=seeded(0))) for _ in range(30)]
    (tmp_path / "some.fasta").write_text("".join(f">p{n}\n{row}*\n" for n, row in enumerate(rows)))
    write_mdlm(tmp_path / "mdlm", 22)
    flags = [*COMMON, *DISTILL, f"--data.source={tmp_path}/some.fasta", f"--output={tmp_path}"]
    with pytest.warns(UserWarning, match="tokenizer_fingerprint"):
        assert protein.main(["distill", "--preset", preset, *flags, f"--teacher.path={tmp_path}/mdlm"]) == 0
    assert steps_logged(tmp_path / "run") == 1.0


@pytest.mark.filterwarnings("ignore:.*no tokenizer_fingerprint")
@pytest.mark.parametrize("preset", COMPARISONS)
def test_a_comparison_preset_trains_every_method(preset: str, published: list[str], tmp_path: Path) -> None:
    flags = [*published, *COMMON, *COMPARE, f"--output={tmp_path}"]
    assert compare.main(["train", "--preset", preset, *flags]) == 0
    trained = COMPARISONS[preset]().methods
    assert {path.name for path in (tmp_path / "run").iterdir() if path.is_dir()} >= set(trained)
    for method in trained:
        assert (tmp_path / "run" / method / "seed-0" / "student" / "tokenizer_fingerprint.json").is_file()
