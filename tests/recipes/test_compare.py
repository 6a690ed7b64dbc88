"""The comparison from the command line, at tiny size: every method, the report, the ablation, and what it refuses."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from accelerate.state import AcceleratorState

from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.fingerprint import write_fingerprint
from discrete_distill.recipes.common.teacher import load_teacher
from discrete_distill.recipes.compare.__main__ import main
from discrete_distill.recipes.compare.ablation import TECHNIQUES, published_order, rank_correlation, variants
from discrete_distill.recipes.compare.ablation_report import ablation_factors, ablation_table
from discrete_distill.recipes.compare.comparison import Comparison
from discrete_distill.recipes.compare.plots import step_curves
from discrete_distill.recipes.compare.readings import collapses
from discrete_distill.recipes.compare.report import diagnostics, perplexity_table, readings_table
from discrete_distill.recipes.compare.settings import PRESETS, ComparisonConfig
from discrete_distill.recipes.tasks.settings import PRESETS as TASK_PRESETS
from discrete_distill.recipes.tasks.settings import MeasureConfig, TaskConfig
from discrete_distill.recipes.tasks.settings import demo as tasks_demo
from discrete_distill.recipes.text.judge import JudgeConfig, save_judge

SIZE = 300
COMPARED = ("sdtt", "didi", "idlm", "mmd", "feature-mmd", "alpha", "certainty", "on-policy", "ar")
TINY = [
    "--data.length=16",
    f"--data.vocab-size={SIZE}",
    "--precision=fp32",
    "--budget=network_evaluations",
    "--distill.batch-size=4", "--distill.accumulate=1", "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=0", "--distill.method.log-ratio.updates=1",
    "--distill.method.credit.corruption.num-draws=1",
    "--discriminator.updates=2", "--discriminator.pool=4", "--discriminator.batch-size=2",
    "--didi-paper.batch-size=4", "--didi-paper.method.advantages.group-size=2",
    "--idlm.batch-size=4", "--idlm.method.advantages.group-size=2", "--idlm.method.log-ratio.warmup=0",
    "--idlm.method.log-ratio.updates=1", "--idlm.method.corruption.num-draws=1",
    "--mmd.batch-size=4", "--mmd.method.advantages.group-size=2",
    "--sdtt.batch-size=4", "--sdtt.method.teacher-steps=8", "--sdtt.method.rounds=2",
    "--feature-mmd.batch-size=4", "--alpha.batch-size=4", "--certainty.batch-size=4", "--certainty.teacher-steps=2",
    "--on-policy.batch-size=4", "--on-policy.method.teacher-steps=2", "--on-policy.method.num-steps", "2",
    "--autoregressive.batch-size=4",
    "--evaluate.num-samples=2", "--evaluate.seeds", "0", "1", "2",
    "--evaluate.steps", "4", "8", "--evaluate.teacher-frontier-steps", "2", "--evaluate.guided-steps", "8",
    "--bound-sequences=2", "--autoregressive-share=1", "--temperature-limits", "0.88", "1.0",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command line is a process of its own outside of tests; accelerate keeps one precision per process."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A small language, its tokenizer, an untrained teacher and judge."""
    from transformers import GPT2LMHeadModel

    from discrete_distill.recipes.common.tokenizer import train_tokenizer

    folder = tmp_path_factory.mktemp("language")
    words = ["the state", "of the union", "is", "strong", "and", "our", "people", "are", "free", "tonight"]
    lines = [" ".join(words[(i * j) % 10] for j in range(1, 60)) for i in range(1, 61)]
    (folder / "speech.txt").write_text("\n".join(lines))
    tokenizer = train_tokenizer(lines, SIZE)
    size = tokenizer.vocab_size
    tokenizer.save(folder / "tokenizer.json")
    torch.manual_seed(0)
    shape = DiTConfig(vocab_size=size, max_length=16, hidden_size=16, num_layers=2, num_heads=2, cond_size=8)
    teacher = DiT(shape)
    torch.nn.init.normal_(teacher.output_layer.linear.weight, std=0.5)
    teacher.save_pretrained(folder / "teacher")
    write_fingerprint(folder / "teacher", tokenizer)
    judge = JudgeConfig(vocab_size=size, context=16, hidden_size=16, num_layers=1, num_heads=2)
    save_judge(GPT2LMHeadModel(judge.network_config()), judge, folder / "judge")
    write_fingerprint(folder / "judge", tokenizer)
    return [
        f"--data.source={folder}/speech.txt",
        f"--data.tokenizer={folder}/tokenizer.json",
        f"--teacher.path={folder}/teacher",
        f"--judge.path={folder}/judge",
        f"--texts={folder}/speech.txt",
        f"--output={folder}/runs",
        *TINY,
    ]


def results_of(flags: list[str], name: str) -> tuple[Path, dict]:
    output = next(flag for flag in flags if flag.startswith("--output=")).removeprefix("--output=")
    run = Path(output) / name
    return run, json.loads((run / "comparison.json").read_text())


def test_every_method_is_trained_measured_and_reported(flags: list[str]) -> None:
    assert main([*flags, "--name=every", "--amount=150", "--methods", *COMPARED]) == 0
    run, results = results_of(flags, "every")
    report = (run / "report.md").read_text()
    methods = {line["method"] for line in results["lines"]}
    assert methods == {"teacher", *COMPARED, "didi + RGAS"}
    for part in (
        "At equal entropy",
        "Every reading",
        "Diversity",
        "Cost of training",
        "latency at batch 1",
        "speech.txt",
    ):
        assert part in report
    for name in ("frontier.png", "steps.png", "didi/seed-0/student/model.safetensors", "ar/seed-0/plan.json"):
        assert (run / name).stat().st_size > 0
    for name, (cost,) in results["training"].items():
        # The budget in evaluations is kept, up to one step and to paths of random length.
        assert 50.0 < cost["network_evaluations"] < 300.0, name
    by_name = {(line["method"], line["steps"]): line for line in results["lines"]}
    assert by_name["didi + RGAS", 8]["network_evaluations"] == 8 * 5
    assert by_name["ar", 16]["nfe"] == 16
    assert [method for method, steps in by_name if steps == 2] == ["teacher"]
    assert all(0.0 < line["mauve"] <= 1.0 for line in results["lines"])
    assert {"agreement", "reverse_nats"} <= set(results["data"]["between_samples"])
    assert report.count("two samples agree | reverse perplexity") == 1
    assert {(line["method"], line["text"]) for line in results["likelihood"]} == {
        (name, text) for name in ("teacher", *COMPARED) for text in ("held-out", "speech.txt")
    }
    exact = {line["method"] for line in results["likelihood"] if not line["bound"]}
    assert exact == {"ar"}


def small_task() -> TaskConfig:
    """The recipe of tasks on few answers, with the networks that ship."""
    config = tasks_demo()
    measure = MeasureConfig(num_prompts=4, decodings=("confidence",), forwards=(4,), shown=0)
    return replace(config, measure=measure, alpha=replace(config.alpha, batch_size=4))


def test_tasks_are_compared_by_the_same_methods_in_the_same_report(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TASK_PRESETS, "demo", small_task)
    arguments = [*flags, "--name=tasks", "--amount=60", "--methods", "alpha", "mmd", "--tasks", "sudoku"]
    assert main([*arguments, "--task-evaluations=100"]) == 0
    run, results = results_of(flags, "tasks")
    assert set(results["training"]) == {"alpha", "mmd"}
    answers = json.loads((run / "sudoku" / "evaluation.json").read_text())
    assert set(answers["training"]) == {"alpha"}  # The other one is not known to the recipe of tasks.
    assert 50.0 < answers["training"]["alpha"]["network_evaluations"] < 200.0
    report = (run / "report.md").read_text()
    assert "At equal entropy" in report
    assert "Right answers" in report
    for link in re.findall(r"\]\((sudoku/[^)]+)\)", report):
        assert (run / link).is_file()


def test_a_task_that_is_not_trained_because_it_is_late_is_not_measured(tmp_path: Path) -> None:
    run = SimpleNamespace(load_teacher=lambda: None, directory=tmp_path)
    comparison: Any = SimpleNamespace(run=run, methods={"alpha": None}, tasks=["sudoku", "brackets"])
    Comparison.train(comparison, late=lambda: True)
    assert (comparison.methods, comparison.tasks) == ({}, [])


def test_samples_are_priced_by_a_further_judge_as_if_it_had_been_there(flags: list[str]) -> None:
    from transformers import GPT2LMHeadModel

    judge = Path(next(flag for flag in flags if flag.startswith("--judge.path=")).removeprefix("--judge.path="))
    other = judge.parent / "other-judge"
    shutil.copytree(judge, other, dirs_exist_ok=True)
    torch.manual_seed(1)
    GPT2LMHeadModel(GPT2LMHeadModel.from_pretrained(judge).config).save_pretrained(other)
    both = [*flags, "--amount=60", "--methods", "alpha", f"--extra-judges={other}"]
    assert main([*both, "--name=at-once"]) == 0
    alone = [*flags, "--name=later", "--amount=60", "--methods", "alpha"]
    assert main(alone) == 0
    assert main(["judge", *alone]) == 2  # Without a further judge there is nothing to do.
    run, before = results_of(flags, "later")
    shutil.rmtree(run / "alpha")
    assert main(["judge", *both, "--name=later", f"--judge.path={judge.parent}/left-behind"]) == 0
    assert main(["report", *both, "--name=later"]) == 0
    _, later = results_of(flags, "later")
    _, at_once = results_of(flags, "at-once")
    assert before["judges"] == later["judges"][:1] == at_once["judges"][:1]
    for key in ("lines", "data", "judges"):
        assert later[key] == at_once[key]
    first, second = (frontier["points"][0] for frontier in later["lines"][0]["frontiers"])
    assert first["nats_per_token"] != second["nats_per_token"]
    assert main(["judge", *both, "--name=later"]) == 0
    assert results_of(flags, "later")[1] == later
    (run / "samples.safetensors").write_bytes((run.parent / "at-once" / "samples.safetensors").read_bytes()[:-1])
    assert main(["judge", *both, "--name=later"]) == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ablation": True}, "--ablation"),
        ({"methods": ("mmd", "ar")}, "mmd"),
        ({"task_evaluations": 0.0}, "--task-evaluations"),
    ],
)
def test_tasks_that_cannot_be_compared_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRESETS["demo"](), tasks=("sudoku",), **changes)


def test_a_budget_of_tasks_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--task-evaluations .* --tasks"):
        replace(PRESETS["demo"](), task_evaluations=500.0)


def test_a_further_judge_that_fails_leaves_the_figures_of_the_first(flags: list[str], monkeypatch: Any) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("discrete_distill.recipes.compare.comparison.price", broken)
    judge = next(flag for flag in flags if flag.startswith("--judge.path=")).removeprefix("--judge.path=")
    with pytest.raises(RuntimeError, match="out of memory"):
        main([*flags, "--amount=60", "--methods", "alpha", f"--extra-judges={judge}", "--name=fails"])
    monkeypatch.undo()
    assert main(["report", *flags, "--amount=60", "--methods", "alpha", "--name=fails"]) == 0


def test_several_trainings_take_turns_over_the_seeds_and_nothing_is_trained_twice(flags: list[str]) -> None:
    arguments = [*flags, "--name=twice", "--amount=60", "--methods", "mmd", "--train-seeds", "3", "4"]
    assert main(["train", *arguments]) == 0
    run = Path(flags[5].removeprefix("--output=")) / "twice" / "mmd"
    weights = [(run / f"seed-{seed}" / "student" / "model.safetensors").read_bytes() for seed in (3, 4)]
    assert weights[0] != weights[1]
    lines = (run / "seed-3" / "metrics.jsonl").read_text()
    assert main(["train", *arguments]) == 0
    assert (run / "seed-3" / "metrics.jsonl").read_text() == lines
    assert main(["evaluate", *arguments]) == 0
    assert main(["report", *arguments]) == 0
    _, results = results_of(flags, "twice")
    assert len(results["training"]["mmd"]) == 2
    assert not any("training of each method" in line and line.startswith("1 ") for line in diagnostics(results))


def test_the_ablation_compares_the_published_method_with_itself_less_one_technique(flags: list[str]) -> None:
    assert main([*flags, "--name=ablation", "--amount=60", "--ablation", "--evaluate.steps", "8"]) == 0
    run, results = results_of(flags, "ablation")
    assert "Which technique matters" in (run / "report.md").read_text()
    assert {line["method"] for line in results["lines"]} == {
        "teacher",
        "didi-paper",
        "didi-paper + RGAS",
        *(f"without-{t.name.replace(' ', '-')}" for t in TECHNIQUES if t.field),
    }


def test_each_variant_differs_from_the_published_method_in_one_field() -> None:
    full = PRESETS["demo"]().didi_paper
    made = variants(full)
    assert len(made) == 7
    for name, config in made.items():
        changed = [key for key, value in vars(config.method).items() if value != vars(full.method)[key]]
        assert len(changed) == (0 if name == "didi-paper" else 1), name
        assert config.discriminator


def line(method: str, nats: float, seeds: int = 2) -> dict:
    rest = {"corpus_entropy": 5.0, "standard_error": 0.1}
    points = [
        {"temperature": t, "seed": s, "entropy": e, "nats_per_token": n + 0.1 * s, **rest}
        for t, e, n in ((0.9, 3.0, nats - 0.2), (1.0, 4.0, nats + 0.2))
        for s in range(seeds)
    ]
    frontier = {"method": method, "judge": "j", "precision": "fp32", "num_samples": 2, "length": 8, "points": points}
    return {"method": method, "steps": 8, "frontiers": [frontier]}


def test_factors_are_ratios_at_equal_entropy_with_their_errors_and_orders_are_compared() -> None:
    lines = [line("didi-paper", 5.0), line("didi-paper + RGAS", 4.5), line("without-coupled-time", 6.0)]
    results = {"frontier_steps": 8, "data": {"entropy": 3.5}, "lines": lines}
    factors = ablation_factors(results)
    assert set(factors) == {"coupled time", "guided inference"}
    assert factors["coupled time"][0] == pytest.approx(1.0)
    assert factors["guided inference"][0] == pytest.approx(0.5)
    assert factors["coupled time"][1] == pytest.approx(0.05 * 2**0.5)
    assert perplexity_table({**results, "lines": lines}).splitlines()[2] == "| didi-paper | 156.0 ± 5.0% |"
    assert published_order()[:2] == ["coupled time", "guided inference"]
    assert rank_correlation(["a", "b", "c"], ["c", "b", "a"]) == -1.0
    assert rank_correlation(["a", "b", "c"], ["a", "b", "c"]) == 1.0
    assert rank_correlation(["a"], ["a"]) is None


def with_agreement(saved: dict, agreement: float) -> dict:
    """The line with figures between its samples at every point."""
    for point in saved["frontiers"][0]["points"]:
        point["diversity"] = {"agreement": [agreement, 0.001], "reverse_nats": [5.0, 0.01]}
    return {**saved, "network_evaluations": 8}


def test_a_method_whose_samples_resemble_one_another_has_no_figure_and_no_factor() -> None:
    lines = [
        with_agreement(line("teacher", 6.0), 0.01),
        with_agreement(line("didi-paper", 5.0), 0.012),
        with_agreement(line("without-coupled-time", 4.0), 0.6),
        with_agreement(line("without-time-weight", 5.5), 0.013),
    ]
    data = {"entropy": 3.5, "between_samples": {"agreement": [0.01, 0.001]}}
    results = {"frontier_steps": 8, "data": data, "lines": lines}
    assert collapses(results) == {("without-coupled-time", 8): "collapsed, agreement of two samples 60% (reference 1%)"}
    table = {row.split(" | ")[0]: row for row in perplexity_table(results).splitlines()}
    assert table["| without-coupled-time"].endswith("| collapsed, agreement of two samples 60% (reference 1%) |")
    assert "collapsed" not in table["| didi-paper"]
    assert set(ablation_factors(results)) == {"time weight"}
    (row,) = (row for row in ablation_table(results).splitlines() if row.startswith("| coupled time"))
    assert "collapsed, agreement of two samples 60%" in row
    assert "| 1.20% ± 0.07% | 148 ± 0.7% |" in readings_table(results)
    assert [curve.less_diverse for curve in step_curves(results)] == [(False,), (False,), (True,), (False,)]
    # Less diverse than the teacher, and not than data.
    results["data"] = {**data, "between_samples": {"agreement": [0.9, 0.001]}}
    assert [curve.less_diverse for curve in step_curves(results)] == [(False,), (False,), (True,), (False,)]


def test_a_comparison_that_was_written_without_figures_between_samples_is_still_read() -> None:
    results = {"frontier_steps": 8, "data": {"entropy": 3.5}, "lines": [line("teacher", 6.0), line("didi-paper", 5.0)]}
    results["lines"] = [{**each, "network_evaluations": 8} for each in results["lines"]]
    assert collapses(results) == {}
    assert "|  |  |" in readings_table(results).splitlines()[-1]
    assert "collapsed" not in perplexity_table(results)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "gan"], "unknown method 'gan'"),
        (["--amount=0"], "--amount"),
        (["--evaluate.frontier-steps=3"], "--evaluate.frontier-steps 3 is not among"),
        (["--preset=huge"], "unknown preset 'huge'"),
        (["paint"], "unknown stage 'paint'"),
        (["report"], "run the evaluate stage first"),
        (["evaluate"], "run the train stage first"),
        (["--texts", "missing.txt"], "no text at missing.txt"),
        (["--texts", "a/same.txt", "b/same.txt"], "same.txt"),
        (["--extra-judges", "no/such/judge/here"], "--extra-judges"),
        (["--teacher.path=missing"], "--teacher.path"),
        (["--autoregressive.path=missing"], "no autoregressive model in missing"),
        (["--amount=1e-9"], "less than one training step"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path, flags, capsys) -> None:
    base = [flag for flag in flags if not flag.startswith("--output")]
    head, rest = (arguments[:1], arguments[1:]) if not arguments[0].startswith("-") else ([], arguments)
    assert main([*head, *base, *rest, f"--output={tmp_path}/runs"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert said in message


def test_presets_are_whole() -> None:
    for name, make in PRESETS.items():
        config = make()
        assert isinstance(config, ComparisonConfig), name
        assert set(config.trained()) == set(config.methods)
        for distill in (config.distill, config.didi_paper, config.idlm, config.mmd):
            assert distill == replace(distill), "checked again, as when it was made"
    assert PRESETS["demo"]().evaluate.steps == (4, 8, 16, 32, 64, 128)
    assert len(PRESETS["demo"]().evaluate.seeds) >= 3


def test_didi_instruct_with_a_target_is_compared_and_refused_without(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*flags, "--amount=400", "--methods", "didi-target", "--name=targets"]
    arguments += ["--didi-target.batch-size=4", "--didi-target.method.advantages.group-size=2"]
    arguments += ["--didi-target.method.log-ratio.warmup=1"]
    assert main(["train", *arguments]) == 2
    assert "--didi-target.target" in capsys.readouterr().err
    teacher = load_teacher(next(flag for flag in flags if flag.startswith("--teacher.path=")).split("=", 1)[1])
    causal = DiT(replace(teacher.config, block_length=1))
    causal.load_state_dict(teacher.state_dict())
    folder = Path(flags[5].removeprefix("--output=")) / "causal"
    causal.save_pretrained(folder)
    assert main(["train", *arguments, f"--didi-target.target={folder}"]) == 0, capsys.readouterr().err
    costs = json.loads((folder.parent / "targets" / "costs.json").read_text())
    assert costs["didi-target"][0]["network_evaluations"] <= 500.0
