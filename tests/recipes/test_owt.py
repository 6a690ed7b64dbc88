"""The text recipe from the command line, at tiny size: what it writes, repeats, resumes and refuses."""

import json
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from accelerate.state import AcceleratorState

from discrete_distill import AncestralSampler
from discrete_distill.models import load_sampling
from discrete_distill.process import likelihood
from discrete_distill.recipes.common.teacher import load_teacher
from discrete_distill.recipes.owt import default_preset, main
from discrete_distill.training import loop as loop_module

TINY_MODEL = [
    "--teacher.model.hidden-size=32",
    "--teacher.model.num-layers=2",
    "--teacher.model.num-heads=2",
    "--teacher.model.cond-size=8",
    "--teacher.model.max-length=16",
    "--judge.hidden-size=16",
    "--judge.num-layers=1",
    "--judge.num-heads=2",
    "--data.length=16",
    "--precision=fp32",
]
TINY_TRAINING = [
    "--teacher.loop.num-steps=3",
    "--teacher.batch-size=4",
    "--judge.loop.num-steps=3",
    "--judge.batch-size=4",
    "--distill.loop.num-steps=4",
    "--distill.loop.checkpoint-every=2",
    "--distill.batch-size=4",
    "--distill.accumulate=1",
    "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=1",
    "--discriminator.updates=2",
    "--discriminator.pool=8",
    "--discriminator.batch-size=4",
]
TINY_EVALUATION = [
    "--evaluate.num-samples=4",
    "--evaluate.seeds", "0", "1",
    "--evaluate.steps", "2", "8",
    "--evaluate.teacher-frontier-steps", "16",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line is a process of its own outside of tests; accelerate keeps one precision per process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty lines of a small language."""
    words = ["the state", "of the union", "is", "strong", "and", "our", "people", "are", "free", "tonight"]
    lines = [" ".join(words[(i * j) % 10] for j in range(1, 60)) for i in range(1, 61)]
    path = tmp_path_factory.mktemp("text") / "speech.txt"
    path.write_text("\n".join(lines))
    return path


def test_the_teacher_stage_trains_a_network_that_reads_by_blocks_by_its_own_bound(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, paired_logits = [], likelihood.paired_logits

    def noted(denoiser, *inputs, **given):
        lengths.append(denoiser.block_length)
        return paired_logits(denoiser, *inputs, **given)

    monkeypatch.setattr(likelihood, "paired_logits", noted)
    flags = [f"--output={tmp_path}", f"--data.source={text}", "--name=blocks", *TINY_MODEL, *TINY_TRAINING]
    sizes = ["--data.vocab-size=300", "--teacher.model.vocab-size=300", "--judge.vocab-size=300"]
    assert main(["teacher", *flags, *sizes, "--data.tokenizer=train", "--teacher.model.block-length=4"]) == 0
    network = load_teacher(str(tmp_path / "blocks" / "teacher"))
    assert network.block_length == 4
    assert len(lengths) > 3
    assert set(lengths) == {4}


def test_a_teacher_that_reads_by_blocks_is_distilled_evaluated_and_sampled_block_by_block(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = trained
    flags = [flag for flag in flags if not flag.startswith("--discriminator")]
    teacher = ["--teacher.init", f"{output}/made/teacher", "--teacher.model.block-length=4", "--name=in-blocks"]
    assert main(["teacher", *flags, *teacher]) == 0, capsys.readouterr().err
    flags += [
        f"--teacher.path={output}/in-blocks/teacher", "--name=of-blocks", "--discriminator.updates=0",
        "--distill.method.paths.no-step-conditioning", "--distill.method.log-ratio.no-step-conditioning",
    ]  # fmt: skip
    assert main(["distill", *flags]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert main(["evaluate", *flags]) == 2  # 16 tokens are four blocks, and `--evaluate.steps` begins with 2
    assert "4 steps or more, got 2" in capsys.readouterr().err
    assert main(["evaluate", *flags, "--evaluate.steps", "4", "8"]) == 0, capsys.readouterr().err
    results = json.loads((output / "of-blocks" / "evaluation.json").read_text())
    assert {line["nfe"] for line in results["by_steps"]} == {4, 8}  # four blocks of one or two steps
    capsys.readouterr()
    for whose in ("--sample.no-teacher", "--sample.teacher"):
        watching = ["--sample.steps=8", "--sample.watch", "--sample.seconds-per-step=0", whose]
        assert main(["sample", *flags, *watching]) == 0
        assert "tokens 13 to 16 of 16" in capsys.readouterr().out
    assert main(["sample", *flags, "--name=nobody", "--sample.steps=8"]) == 2  # There is no such student.
    assert main(["sample", *flags, "--name=nobody", "--sample.steps=8", "--sample.teacher"]) == 0


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        (["--distill.method.paths.step-conditioning"], "no-step-conditioning"),
        (["--distill.prior-guidance=1"], "prior-guidance 0"),
        (["--discriminator.updates=2"], "discriminator.updates 0"),
    ],
)
def test_what_a_teacher_that_reads_by_blocks_cannot_have_is_refused_before_anything_runs(
    wrong: list[str], remedy: str, trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = trained
    flags = [flag for flag in flags if not flag.startswith("--discriminator")]
    teacher = ["--teacher.init", f"{output}/made/teacher", "--teacher.model.block-length=4", "--name=in-blocks"]
    assert main(["teacher", *flags, *teacher]) == 0
    stage = "discriminator" if "--discriminator.updates=2" in wrong else "distill"
    given = ["--distill.method.paths.no-step-conditioning", "--distill.method.log-ratio.no-step-conditioning"]
    assert main([stage, *flags, f"--teacher.path={output}/in-blocks/teacher", "--name=none", *given, *wrong]) == 2
    assert remedy in capsys.readouterr().err
    assert not (output / "none").exists()


@pytest.fixture(scope="module")
def trained(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """Output folder and flags of a run whose teacher and judge are trained."""
    output = tmp_path_factory.mktemp("runs")
    base = [f"--output={output}", f"--data.source={text}", *TINY_MODEL, *TINY_TRAINING, *TINY_EVALUATION]
    sizes = ["--data.vocab-size=300", "--teacher.model.vocab-size=300", "--judge.vocab-size=300"]
    assert main(["teacher", *base, *sizes, "--data.tokenizer=train", "--name=made"]) == 0
    made = output / "made"
    flags = [*base, *sizes, f"--data.tokenizer={made}/teacher/tokenizer.json"]
    assert main(["judge", *flags, "--name=made"]) == 0
    return output, [*flags, f"--teacher.path={made}/teacher", f"--judge.path={made}/judge"]


def test_all_stages_leave_a_student_a_report_and_plots(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = trained
    assert main([*flags, "--name=whole"]) == 0
    run = output / "whole"
    for name in ("report.md", "metrics.jsonl", "evaluation.json", "frontier.png", "steps.png"):
        assert (run / name).stat().st_size > 0
    for name in ("student/model.safetensors", "student/config.json", "student/discriminator/model.safetensors"):
        assert (run / name).is_file()
    report = (run / "report.md").read_text()
    for part in ("At equal entropy", "By steps", "Samples", "Limitations", "Settings", "Judge: gpt2-"):
        assert part in report
    assert str(run / "report.md") in capsys.readouterr().out.replace("\n", "")


def test_a_guided_teacher_makes_another_student_and_is_measured_beside_it(trained: tuple[Path, list[str]]) -> None:
    output, flags = trained
    assert main([*flags, "--name=guided", "--distill.prior-guidance=0.5", "--discriminator.updates=0"]) == 0
    assert main(["distill", *flags, "--name=unguided"]) == 0
    guided, plain = (output / name / "student" / "model.safetensors" for name in ("guided", "unguided"))
    assert guided.read_bytes() != plain.read_bytes()
    report = (output / "guided" / "report.md").read_text()
    for method in ("teacher, 8 steps", "teacher + prior guidance, 8 steps", "teacher + prior guidance, 16 steps"):
        assert f"| {method} |" in report


def test_one_seed_gives_the_same_student_bit_for_bit(trained: tuple[Path, list[str]]) -> None:
    output, flags = trained
    weights = []
    for name, seed in (("first", 5), ("second", 5), ("third", 6)):
        assert main(["distill", *flags, f"--name={name}", f"--seed={seed}"]) == 0
        weights.append((output / name / "student" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]


def test_a_run_that_stops_half_way_resumes_to_the_same_student(trained: tuple[Path, list[str]]) -> None:
    output, flags = trained
    constant = ["--seed=5", "--distill.student.schedule=constant"]
    assert main(["distill", *flags, *constant, "--name=straight"]) == 0
    assert main(["distill", *flags, *constant, "--name=broken", "--distill.loop.num-steps=2"]) == 0
    assert main(["distill", *flags, *constant, "--name=broken"]) == 0
    straight, broken = (output / name / "student" / "model.safetensors" for name in ("straight", "broken"))
    assert straight.read_bytes() == broken.read_bytes()


def test_samples_are_printed_start_with_the_prompt_and_can_be_watched(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, flags = trained
    assert main(["distill", *flags, "--name=talker"]) == 0
    assert main(["discriminator", *flags, "--name=talker"]) == 0
    capsys.readouterr()
    assert main(["sample", *flags, "--name=talker", "--sample.prompt=the state", "--sample.guided"]) == 0
    out = capsys.readouterr().out
    assert out.count("the state") >= 4
    assert "network evaluations" in out
    watching = ["--sample.watch", "--sample.seconds-per-step=0"]
    assert main(["sample", *flags, "--name=talker", *watching]) == 0
    assert "step 8 of 8" in capsys.readouterr().out


def test_a_teacher_can_be_trained_further(trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    output, flags = trained
    further = [*flags, f"--teacher.init={output}/made/teacher", "--teacher.optimizer.learning-rate=1e-9"]
    assert main(["teacher", *further, "--name=further"]) == 0
    before, after = (load_teacher(str(output / name / "teacher")).state_dict() for name in ("made", "further"))
    for name, weight in before.items():
        torch.testing.assert_close(after[name], weight, atol=1e-4, rtol=1e-3)
    misfit = [*further, "--name=misfit", "--teacher.model.hidden-size=64"]
    assert "not of the shape --teacher.model" in fails_with(["teacher", *misfit], capsys)
    assert not (output / "misfit").exists()


def fails_with(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Exit code 2 and one line on standard error, which is returned."""
    capsys.readouterr()
    assert main(arguments) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--preset=huge"], "unknown preset 'huge'"),
        (["paint"], "unknown stage 'paint'"),
        (["--data.source=missing.txt"], "--data.source"),
        (["--data.tokenizer=missing.json"], "--data.tokenizer"),
        (["--teacher.path=missing-folder"], "--teacher.path"),
        (["--judge.path=missing-folder"], "--judge.path"),
        (["--data.length=129"], "max_length 128"),
        (["--distill.batch-size=16", "--distill.method.advantages.group-size=5"], "group_size 5 does not divide"),
        (["--distill.prior-guidance=-1"], "--distill.prior-guidance"),
        (["--distill.prior-guidance=nan"], "--distill.prior-guidance"),
        (["--distill.discriminator-every=0"], "--distill.discriminator-every"),
        (["--distill.student.learning-rate=nan"], "learning_rate"),
        (["--distill.student.gradient-clip=-1"], "gradient_clip"),
        (["--distill.loop.num-steps=0"], "num_steps"),
        (["--data.length=-3"], "--data.length"),
        (["--data.length=0"], "--data.length"),
        (["--threads=-1"], "--threads"),
        (["--threads=100000"], "--threads"),
        (["--name=../elsewhere"], "--name"),
        (["--discriminator.label-smoothing=5"], "--discriminator.label-smoothing"),
        (["--discriminator.log-every=0"], "--discriminator.log-every"),
        (["--evaluate.batch-size=0"], "--evaluate.batch-size"),
        (["--evaluate.num-samples=0"], "--evaluate.num-samples"),
        (["--evaluate.student-temperatures", "0"], "temperatures"),
        (["--evaluate.rerank-scale=nan"], "--evaluate.rerank-scale"),
        (["--distill.teacher-steps=0"], "--distill.teacher-steps"),
        (["--sample.temperature=0"], "--sample.temperature"),
        (["evaluate"], "no student"),
        (["discriminator", "--discriminator.updates=0"], "--discriminator.updates is 0"),
        (["report"], "run the evaluate stage first"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs"
    assert said in fails_with([*arguments, f"--output={output}"], capsys)
    assert not output.exists()


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "empty"), (b"caf\xe9 au lait", "not UTF-8"), (b"too short", "too short")]
)
def test_bad_text_is_one_line_and_leaves_nothing(
    content: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    output = tmp_path / "runs"
    assert said in fails_with([f"--data.source={tmp_path}/text.txt", f"--output={output}"], capsys)
    assert not output.exists()


def test_a_teacher_with_another_vocabulary_is_refused(
    trained: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, _ = trained
    flags = [f"--teacher.path={output}/made/teacher", f"--output={tmp_path}/runs", "--data.length=16"]
    assert "300 classes and the tokenizer 2048" in fails_with(["distill", *flags], capsys)
    assert not (tmp_path / "runs").exists()


def test_an_output_that_cannot_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("in the way")
    assert "cannot write to" in fails_with([f"--output={tmp_path}/file"], capsys)
    assert (tmp_path / "file").read_text() == "in the way"


def test_the_paper_presets_name_each_thing_that_is_missing_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails_with(["--preset=small", f"--output={tmp_path}/runs"], capsys)
    for flag in ("--data.tokenizer", "--teacher.path", "--judge.path", "--data.source"):
        assert flag in message
    assert not (tmp_path / "runs").exists()


def test_a_run_that_collapses_ends_with_a_report_that_says_so(trained: tuple[Path, list[str]]) -> None:
    """A learning rate far too high drives the student onto a few tokens, which the log of every step shows."""
    output, flags = trained
    rate = ["--distill.student.learning-rate=1.0", "--distill.student.warmup-steps=0", "--distill.loop.num-steps=16"]
    free = ["--distill.method.regularization.data-kl.coefficient=0"]
    wild = ["--name=wild", *rate, *free, "--distill.student.ema-decay=0.5"]
    assert main([*flags, *wild]) == 0
    assert "COLLAPSE" in (output / "wild" / "report.md").read_text()


def test_the_paper_preset_is_the_default_only_with_cuda_and_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert default_preset() == "demo"
    (tmp_path / "Skylion007___openwebtext").mkdir()
    assert default_preset() == "small"
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert default_preset() == "demo"


def test_a_student_that_collapses_ends_the_run_with_one_sentence(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, flags = trained
    real = loop_module.MetricWindow.flush
    flushed: list[float] = []

    def flush(window: object) -> dict[str, float]:
        means = real(window)  # type: ignore[arg-type]
        # The warm-up logs it too.
        assert 0.0 <= means["sample_agreement"] <= 1.0
        flushed.append(means["sample_agreement"])
        return {**means, "sample_agreement": 0.1 if len(flushed) < 16 else 0.9}

    monkeypatch.setattr(loop_module.MetricWindow, "flush", flush)
    more = ["--distill.loop.num-steps=40", "--distill.loop.log-every=1", "--distill.loop.checkpoint-every=1000"]
    assert main(["distill", *flags, *more, "--distill.loop.stop-on-collapse=6", "--name=collapsed"]) == 2
    shown = capsys.readouterr()
    message = shown.err.strip().splitlines()[-1]
    assert message.startswith("error: stopped at step ")
    assert "lower the student's learning rate" in message
    assert len(list((output / "collapsed" / "checkpoints").glob("step-*"))) == 1
    assert not (output / "collapsed" / "student").exists()
    report = (output / "collapsed" / "report.md").read_text()
    assert message.removeprefix("error: ") in report
    assert "| 16 | " in report
    assert "distill.loop.stop_on_collapse = 6" in report


def test_a_student_learns_from_an_autoregressive_target_that_the_run_trains(
    trained: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    output, flags = trained
    flags = [*flags, "--preset=demo-target", "--discriminator.updates=0", "--teacher.init", f"{output}/made/teacher"]
    assert main(["distill", *flags, "--name=early"]) == 2  # There is no target yet.
    assert "--distill.target" in capsys.readouterr().err
    assert main([*flags, "--name=to-target"]) == 0, capsys.readouterr().err
    target = output / "to-target" / "teacher"
    assert load_teacher(str(target)).block_length == 1
    assert load_teacher(str(output / "to-target" / "student")).block_length is None
    lines = [json.loads(line) for line in (output / "to-target" / "metrics.jsonl").read_text().splitlines()]
    assert "auxiliary_loss" in lines[-1]
    named = ["distill", *flags, "--name=named", f"--distill.target={target}"]
    assert main(named) == 0
    student, same = (output / name / "student" / "model.safetensors" for name in ("to-target", "named"))
    assert student.read_bytes() == same.read_bytes()
    assert main([*named[:-1], f"--distill.target={output}/made/teacher", "--name=both-ways"]) == 2
    assert "attends both ways" in capsys.readouterr().err
    plain = [flag for flag in flags if not flag.startswith("--preset")]
    assert main(["distill", *plain, "--name=plain", f"--distill.target={target}"]) == 2
    assert "--preset demo-target" in capsys.readouterr().err


def test_a_student_of_strided_paths_is_sampled_in_their_order(
    trained: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, flags = trained
    flags = [*flags, "--name=strided"]
    assert main(["distill", *flags, "--distill.method.paths.order=strided"]) == 0
    assert load_sampling(output / "strided" / "student").order == "strided"
    orders = []

    def noted(sampler: AncestralSampler, *inputs):
        orders.append(sampler.order)
        return fill(sampler, *inputs)

    fill = AncestralSampler.fill
    monkeypatch.setattr(AncestralSampler, "fill", noted)
    assert main(["evaluate", *flags]) == 0  # The order is the student's, and no flag.
    results = json.loads((output / "strided" / "evaluation.json").read_text())
    assert {line["method"] for line in results["by_steps"]} >= {"teacher", "strided teacher", "student"}
    assert set(orders) == {"random", "strided"}
    for whose, order in (("--sample.no-teacher", "strided"), ("--sample.teacher", "random")):
        orders.clear()
        assert main(["sample", *flags, whose]) == 0
        assert set(orders) == {order}
