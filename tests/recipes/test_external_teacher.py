"""The text recipe with Hugging Face teachers: it distils them with their own tokenizer, as copies or as adapters."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from accelerate.state import AcceleratorState
from external_teacher import CLASSES, SPECIAL, save_teacher, text, transformers

from discrete_distill.models import StepConditioned, load_denoiser
from discrete_distill.recipes.common.model_tokenizer import load_model_tokenizer
from discrete_distill.recipes.compare.__main__ import main as compare
from discrete_distill.recipes.owt import main
from discrete_distill.samplers import Frame

PAD, UNK, CLS, SEP, MASK = range(5)
LLAMA = ["--teacher.attention=full", "--teacher.shifted=True"]
TINY = [
    "--data.length=10",
    "--precision=fp32",
    "--judge.hidden-size=16",
    "--judge.num-layers=1",
    "--judge.num-heads=2",
    f"--judge.vocab-size={CLASSES}",
    f"--judge.eos-token-id={SEP}",
    "--judge.loop.num-steps=2",
    "--judge.batch-size=4",
    "--distill.loop.num-steps=3",
    "--distill.loop.checkpoint-every=2",
    "--distill.batch-size=4",
    "--distill.accumulate=1",
    "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=1",
    "--distill.student.warmup-steps=0",
    "--discriminator.updates=2",
    "--discriminator.pool=8",
    "--discriminator.batch-size=4",
    "--discriminator.trainable-blocks=1",
    "--evaluate.num-samples=4",
    "--evaluate.seeds", "0",
    "--evaluate.steps", "2",
    "--evaluate.guided-steps", "2",
    "--evaluate.frontier-steps=2",
    "--evaluate.teacher-frontier-steps", "4",
    "--evaluate.num-candidates=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AcceleratorState._reset_state(reset_partial_state=True)


def flags_of(folder: Path, kind: str) -> list[str]:
    teacher = save_teacher(folder / kind, kind)
    called = LLAMA if kind == "llama" else []
    return [f"--data.source={text(folder)}", f"--output={folder}/runs", f"--teacher.path={teacher}", *TINY, *called]


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_tokenizer_of_a_model_knows_its_mask_its_frame_and_what_is_no_text(kind: str, tmp_path: Path) -> None:
    config: dict[str, Any] = {"vocab_size": CLASSES, "mask_token_id": MASK}
    tokenizer = load_model_tokenizer(str(save_teacher(tmp_path, kind)), config)
    framed = kind == "bert"
    assert (tokenizer.prefix, tokenizer.suffix) == (((CLS,), (SEP,)) if framed else ((), ()))
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id, tokenizer.vocab_size) == (MASK, SEP, CLASSES)
    assert set(tokenizer.forbidden_token_ids) == {PAD, UNK, CLS, *range(17, CLASSES)}
    assert tokenizer.encode(["the state [MASK] strange free"]) == [[5, 6, 15]]
    with pytest.raises(ValueError, match="16"):
        load_model_tokenizer(str(tmp_path), {**config, "vocab_size": 16})
    if not framed:
        with pytest.raises(ValueError, match="mask_token_id"):
            load_model_tokenizer(str(tmp_path), {"vocab_size": CLASSES})


@pytest.mark.parametrize("sharing", ["copies", "adapters"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_hugging_face_teacher_is_distilled_saved_and_sampled(
    kind: str, sharing: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if sharing == "adapters":
        pytest.importorskip("peft", reason="LoRA is an optional extra")
    flags = [*flags_of(tmp_path, kind), f"--distill.sharing={sharing}", "--distill.rank=2"]
    assert main(["distill", *flags]) == 0
    student: Any = load_denoiser(tmp_path / "runs" / "demo" / "student")
    assert isinstance(student, StepConditioned)
    plain = transformers.AutoConfig.from_pretrained(tmp_path / "runs" / "demo" / "student")
    assert plain.model_type == kind
    teacher: Any = load_denoiser(tmp_path / kind, **({"attention": "full", "shifted": True} if kind == "llama" else {}))
    x_t, t = torch.tensor([[CLS, MASK, 6, MASK, SEP]]), torch.ones(1)
    moved = (student(x_t, t) - teacher(x_t, t)).detach().abs().max()
    assert 0.0 < float(moved) < 0.1  # three updates of rate 3e-4
    capsys.readouterr()
    called = LLAMA if kind == "llama" else []
    few = ["sample", f"--output={tmp_path}/runs", f"--teacher.path={tmp_path / kind}", "--precision=fp32", *called]
    assert main(few) == 0
    assert "10 tokens, 8 steps" in capsys.readouterr().out
    head = student.denoiser.vocabulary_head.state_dict()
    for name, weight in teacher.vocabulary_head.state_dict().items():
        assert torch.equal(head[name], weight) == (sharing == "adapters"), name


def test_all_stages_run_with_a_hugging_face_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(tmp_path, "bert")
    assert main(["judge", *flags, "--name=made"]) == 0
    flags.append(f"--judge.path={tmp_path}/runs/made/judge")
    assert main(flags) == 0
    assert (tmp_path / "runs" / "demo" / "report.md").exists()
    capsys.readouterr()
    assert main(["sample", *flags, "--sample.prompt=the state", "--sample.guided", "--sample.steps=2"]) == 0
    assert capsys.readouterr().out.count("the state") >= 4


def test_methods_are_compared_from_a_hugging_face_teacher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = flags_of(tmp_path, "bert")
    assert main(["judge", *flags, "--name=made"]) == 0
    compared = [
        *flags[:4],
        f"--judge.path={tmp_path}/runs/made/judge", "--name=compared", "--precision=fp32",
        "--budget=network_evaluations", "--amount=150", "--methods", "sdtt", "didi", "alpha", "ar",
        "--distill.batch-size=4", "--distill.accumulate=1", "--distill.method.advantages.group-size=2",
        "--distill.method.log-ratio.warmup=0", "--discriminator.updates=0",
        "--sdtt.batch-size=4", "--sdtt.method.teacher-steps=8", "--sdtt.method.rounds=1", "--alpha.batch-size=4",
        "--autoregressive.batch-size=4", "--evaluate.num-samples=2", "--evaluate.seeds", "0", "--evaluate.steps", "2",
        "--evaluate.frontier-steps=2", "--bound-sequences=2", "--temperature-limits", "0.88", "1.0",
    ]  # fmt: skip
    assert compare(compared) == 0, capsys.readouterr().err
    results = json.loads((tmp_path / "runs" / "compared" / "comparison.json").read_text())
    assert {line["method"] for line in results["lines"]} == {"teacher", "sdtt", "didi", "alpha", "ar"}
    for line in results["lines"]:  # in its frame, and of words alone between
        for row in line["samples"]:
            assert (row[0], row[-1], len(row)) == (CLS, SEP, 10), line["method"]
            assert not {PAD, UNK, CLS, MASK} & set(row[1:-1]), line["method"]


def test_memory_is_told_for_copies_and_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dry-run", *flags_of(tmp_path, "bert")]) == 0
    said = capsys.readouterr().out
    assert "2 layers, 16 wide, 24 classes" in said
    assert "with --distill.sharing adapters" in said
    assert not (tmp_path / "runs" / "demo").exists()


@pytest.mark.parametrize(
    ("kind", "more", "said"),
    [
        ("bert", ["--data.length=17"], "max_length 16"),
        ("bert", ["--data.length=2"], "no room"),
        ("bert", ["--distill.prior-guidance=1"], "--distill.prior-guidance"),
        ("bert", ["--distill.sharing=adapters", "--distill.parallel.strategy=fsdp"], "--distill.sharing copies"),
        ("bert", ["--distill.rank=0"], "--distill.rank"),
        ("llama", ["--teacher.attention=None"], "attention"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    kind: str, more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["distill", *flags_of(tmp_path, kind), *more]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs" / "demo").exists()


def test_samples_stand_in_the_frame_and_hold_no_forbidden_id() -> None:
    from discrete_distill import AncestralSampler, MaskedDiffusion

    forbidden = (PAD, UNK, CLS)
    process = MaskedDiffusion(MASK, forbidden_token_ids=forbidden)
    frame = Frame(3, prefix=[CLS], suffix=[SEP])
    x = AncestralSampler(process, num_steps=2)(
        lambda x_t, t: torch.zeros(*x_t.shape, len(SPECIAL)), (64, frame), generator=torch.Generator().manual_seed(0)
    ).sequences
    assert bool((x[:, 0] == CLS).all())
    assert bool((x[:, 1:] == SEP).all())


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_a_hugging_face_model_is_trained_further_and_distilled(kind: str, tmp_path: Path) -> None:
    flags = [each for each in flags_of(tmp_path, kind) if not each.startswith("--teacher.path")]
    init = f"--teacher.init={tmp_path / kind}"
    assert main(["distill", *flags, init]) != 0
    trained = [
        "--teacher.loop.num-steps=60",
        "--teacher.loop.log-every=10",
        "--teacher.batch-size=8",
        "--teacher.optimizer.warmup-steps=1",
    ]
    assert main(["teacher", *flags, init, *trained, "--name=made"]) == 0
    made = tmp_path / "runs" / "made" / "teacher"
    log = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["loss"] < log[0]["loss"] - 0.1
    assert transformers.AutoConfig.from_pretrained(made).model_type == kind
    called = [each for each in flags if not each.startswith("--teacher.")]  # what its files say already
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["distill", *called, f"--teacher.path={made}"]) == 0
