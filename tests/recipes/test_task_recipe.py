"""The recipe of tasks at tiny size: teacher, students, figures, report; the network of a grid; what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Generator

from discrete_distill import MaskedDiffusion
from discrete_distill.evaluation import AccuracyCurve, plot_accuracy
from discrete_distill.evaluation.tasks import Prompts, Sudoku, TokenizedTask, check_task
from discrete_distill.evaluation.tasks.sudoku_grids import random_cell_order
from discrete_distill.models import DiT, DiTConfig
from discrete_distill.recipes.common.fingerprint import write_fingerprint
from discrete_distill.recipes.common.teacher import load_network
from discrete_distill.recipes.sudoku import main
from discrete_distill.recipes.tasks.decoding import Decoding, decode, decodings
from discrete_distill.recipes.tasks.evaluate import areas
from discrete_distill.recipes.tasks.named_tasks import MAKERS, SymbolTokenizer, named_task, sudoku_peers
from discrete_distill.recipes.tasks.report import collapse_warnings, summary
from discrete_distill.recipes.tasks.settings import PRESETS, MeasureConfig
from discrete_distill.recipes.tasks.stream import TaskStream
from discrete_distill.samplers import AncestralSampler

NETWORK = DiTConfig(vocab_size=5, hidden_size=16, num_layers=2, num_heads=4, cond_size=4, dropout=0.0)
TINY = [
    "--precision=fp32", "--size=4",
    "--teacher.model.hidden-size=16", "--teacher.model.num-layers=2", "--teacher.model.num-heads=4",
    "--teacher.model.cond-size=4", "--teacher.loop.num-steps=3", "--teacher.batch-size=4",
    "--amount=300", "--distill.batch-size=4", "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=1", "--alpha.batch-size=4",
    "--measure.num-prompts=4", "--measure.num-clues=6", "--measure.forwards", "4",
    "--measure.gammas", "1.0", "--measure.thresholds", "0.5",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


def test_the_recipe_trains_measures_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*TINY, f"--output={tmp_path}", "--name=tiny", "--methods", "didi"]
    assert main(["teacher", *flags]) == 0
    assert main(["distill", *flags]) == 0
    weights = (tmp_path / "tiny" / "didi" / "student" / "model.safetensors").read_bytes()
    assert main(["distill", *flags]) == 0  # What is finished is not done again.
    assert (tmp_path / "tiny" / "didi" / "student" / "model.safetensors").read_bytes() == weights
    assert main(["evaluate", *flags]) == 0
    capsys.readouterr()
    assert main(["report", *flags]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines()[:-1])) <= 80
    results = json.loads((tmp_path / "tiny" / "evaluation.json").read_text())
    assert {(line["network"], line["prompts"]) for line in results["lines"]} == {
        (network, prompts) for network in ("teacher", "didi") for prompts in ("empty", "6 clues")
    }
    slowest = [line for line in results["lines"] if line["setting"] == "16 steps"]
    assert all(line["tokens_per_forward"] == 1.0 for line in slowest)
    assert set(results["training"]) == {"didi"}
    assert {answer["how"] for answer in results["shown"]["teacher"]} == {"ancestral, 4 steps"}
    assert all(cost["steps"] >= 1 for cost in results["training"].values())
    assert (tmp_path / "tiny" / "accuracy.png").exists()
    assert (tmp_path / "tiny" / "accuracy-6-clues.png").exists()
    puzzle = ["--sample.puzzles", "1.34 .... .... ...."]
    assert main(["sample", *flags, *puzzle, "--sample.watch", "--sample.seconds-per-step=0"]) == 0
    assert main(["sample", *flags, "--sample.method=teacher"]) == 0


def test_runs_of_two_tasks_do_not_meet() -> None:
    demo = PRESETS["demo"]()
    folders = [
        replace(demo, task=task, size=size, name=name).directory.name
        for task, size, name in (
            ("sudoku", 0, demo.name),
            ("sudoku", 6, demo.name),
            ("sudoku", 4, demo.name),
            ("countdown", 0, PRESETS["long"]().name),
            ("countdown", 0, "mine"),
        )
    ]
    assert folders == ["sudoku", "sudoku", "sudoku-4", "countdown-long", "mine"]


def test_the_student_that_was_trained_is_the_one_that_is_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [*TINY, f"--output={tmp_path}", "--sample.count=1"]
    assert main(["sample", *flags]) == 2
    assert "didi" in capsys.readouterr().err
    for name in ("sdtt", "alpha"):
        saved_teacher(tmp_path / "sudoku-4" / name / "student")
        assert main(["sample", *flags]) == 0
        assert name in capsys.readouterr().out


@pytest.mark.parametrize(("task", "size", "tokens"), [("sudoku", "4", 16), ("countdown", "2", 8)])  # 4 blocks, and 3
def test_a_task_is_solved_block_by_block(
    task: str, size: str, tokens: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        *TINY, f"--output={tmp_path}", "--name=blocks", f"--task={task}", f"--size={size}", "--methods", "didi",
        "alpha", "--teacher.model.block-length=4", "--measure.num-clues=0",
        "--measure.forwards", "2", "8",
        "--distill.method.paths.no-step-conditioning", "--distill.method.log-ratio.no-step-conditioning",
    ]  # fmt: skip
    assert main(["all", *flags, "--teacher.path="]) == 0
    config = json.loads((tmp_path / "blocks" / "teacher" / "config.json").read_text())
    assert (config["block_length"], config["position_bias"]) == (4, task == "sudoku")
    results = json.loads((tmp_path / "blocks" / "evaluation.json").read_text())
    lines = results["lines"]
    assert {line["network"] for line in lines} == {"teacher", "didi", "alpha"}
    # Two steps are fewer than blocks of the answer, and left out; in eight a Sudoku of four blocks takes two a block.
    # Each block but the last has one pass more, which keeps its keys. An answer of Countdown lies in three blocks, the
    # first of which holds the end of the prompt.
    commits = 3 if task == "sudoku" else 2
    assert "2 steps" not in {line["setting"] for line in lines}
    assert results["length"] == tokens
    rates = {line["tokens_per_forward"] for line in lines if line["setting"] == "8 steps"}
    assert all(tokens / (8 + commits) <= rate < tokens / commits for rate in rates)
    slow = {line["tokens_per_forward"] for line in lines if line["setting"] == f"{tokens} steps"}
    assert slow == {tokens / (tokens + commits)}
    assert main(["sample", *flags, "--sample.method=teacher", "--sample.forwards=8"]) == 0
    capsys.readouterr()
    assert main(["sample", *flags, "--sample.forwards=8", "--sample.watch", "--sample.seconds-per-step=0"]) == 0
    length = named_task(task, int(size)).length
    assert f"to {length} of {length}" in capsys.readouterr().out


def test_a_task_behind_a_start_token_trains_its_own_teacher_first(tmp_path: Path) -> None:
    flags = [*TINY, f"--output={tmp_path}", "--name=words", "--task=brackets", "--size=2", "--methods", "alpha"]
    assert main([*flags, "--measure.decodings", "ancestral"]) == 0
    config = json.loads((tmp_path / "words" / "teacher" / "config.json").read_text())
    assert (config["vocab_size"], config["max_length"], config["position_bias"]) == (4, 5, False)
    results = json.loads((tmp_path / "words" / "evaluation.json").read_text())
    assert [line["tokens_per_forward"] for line in results["lines"]] == [1.0, 1.0]
    assert {line["coverage"]["num_solutions"] for line in results["lines"] if line["coverage"]} <= {2}


@pytest.mark.parametrize(
    ("change", "offending"),
    [
        (["--sample.puzzles", "11.. .... .... ...."], "'11.. .... .... ....'"),
        (["--sample.puzzles", "1"], "'1'"),
        (["--methods", "magic"], "'magic'"),
        (["--sample.method=magic"], "'magic'"),
        (["--measure.num-clues=16"], "16"),
        (["--measure.decodings", "greedy"], "'greedy'"),
        (["--size=5"], "5"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    change: list[str], offending: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "teacher"
    saved_teacher(folder)
    flags = [
        *TINY,
        f"--output={tmp_path}",
        "--name=bad",
        f"--teacher.path={folder}",
        "--sample.method=teacher",
        *change,
    ]
    assert main(["sample", *flags]) == 2
    error = capsys.readouterr().err
    assert offending in error
    assert error.count("\n") == 1
    assert not (tmp_path / "bad").exists()


def saved_teacher(folder: Path, size: int = 4, name: str = "sudoku") -> None:
    named = named_task(name, size)  # type: ignore[arg-type]
    named.new_network(named.network_config(NETWORK)).save_pretrained(folder)
    write_fingerprint(folder, SymbolTokenizer(named))


@pytest.mark.parametrize(
    ("made_for", "found"),
    [(("sudoku", 6), "7 classes"), (("permutations", 4), "another task"), (("permutations", 9), "10 classes")],
)
def test_a_teacher_of_another_task_is_refused(
    made_for: tuple[str, int], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, size = made_for
    saved_teacher(tmp_path / "teacher", size, name)
    if made_for == ("permutations", 4):  # The same vocabulary and length: only what is written beside it tells.
        named = named_task("sudoku", 4)
        named.new_network(named.network_config(NETWORK)).save_pretrained(tmp_path / "teacher")
        write_fingerprint(tmp_path / "teacher", SymbolTokenizer(named_task(name, size)))
    flags = [*TINY, f"--output={tmp_path}", f"--teacher.path={tmp_path / 'teacher'}"]
    assert main(["distill", *flags]) == 2
    assert found in capsys.readouterr().err


@pytest.mark.parametrize("name", list(MAKERS))
def test_every_task_is_learned_in_its_own_tokens(name: str) -> None:
    named = named_task(name)  # type: ignore[arg-type]
    check_task(named.task, Generator().manual_seed(0))
    stream = TaskStream(named)
    x_0 = stream.crops(4, generator=Generator().manual_seed(1))
    assert x_0.shape == (4, named.length)
    assert int(x_0.max()) < named.mask_token_id
    assert bool((x_0[:, ~stream.text_mask()] == torch.tensor(named.prefix)).all())
    assert isinstance(named.task, TokenizedTask) == bool(named.prefix)
    network = named.new_network(named.network_config(NETWORK))
    assert network(x_0, torch.ones(4)).shape == (4, named.length, named.mask_token_id + 1)
    assert torch.equal(stream.packed(5), stream.packed(5))


@pytest.mark.parametrize("size", [4, 6])
def test_peers_are_the_cells_that_no_valid_grid_gives_the_same_symbol(size: int) -> None:
    grids = Sudoku(size, mask_token_id=size).sample_solutions(64, Generator().manual_seed(0)).sequences
    never_equal = (grids[:, :, None] != grids[:, None, :]).all(0)
    peers = sudoku_peers(size).bool()
    assert torch.equal(peers.any(0), never_equal)
    assert bool((peers.sum(2) == size - 1).all())


def test_a_new_network_of_a_grid_does_not_know_the_cells_apart_but_by_their_peers() -> None:
    """Its answers move with a symmetry of Sudoku, and not with a permutation of cells that is none."""
    named = named_task("sudoku", 6)
    network = named.new_network(named.network_config(NETWORK))
    generator = Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "position" not in name:
                parameter.normal_(std=0.3, generator=generator)
    x, t = torch.randint(7, (3, 36), generator=generator), torch.ones(3)
    symmetry, other = random_cell_order(6, 1, generator)[0], torch.arange(36).roll(1)
    with torch.no_grad():
        moved, kept = network(x[:, symmetry], t), network(x, t)[:, symmetry]
        torch.testing.assert_close(moved, kept)
        assert (network(x[:, other], t) - network(x, t)[:, other]).abs().max() > 0.01


def test_a_forward_is_counted_for_each_sequence_where_it_reveals_something() -> None:
    """With all but one cell given, every number of steps costs one forward; two sequences are averaged."""
    process = MaskedDiffusion(2)
    x_init = torch.tensor([[2, 0, 0, 0], [2, 2, 2, 2]])
    prompts = Prompts(x_init, x_init == 2)
    network = DiT(DiTConfig(vocab_size=3, max_length=4, hidden_size=8, num_layers=1, num_heads=1, cond_size=4))
    config = MeasureConfig(
        decodings=("ancestral", "strided", "confidence", "entropy-bounded"), forwards=(2,), gammas=(0.0,)
    )
    for each in decodings(process, config, 4):
        out = decode(each, network, prompts, Generator().manual_seed(0))
        if each.setting == "4 steps" or each.name == "entropy-bounded":
            assert out.nfe == 2.5
        assert 1.0 <= out.nfe <= 2.5
    one = Decoding(name="ancestral", setting="", sampler=AncestralSampler(process, num_steps=1))
    assert decode(one, network, prompts, None).nfe == 1.0


def test_areas_are_read_against_the_best_accuracy_of_all() -> None:
    def line(network: str, rate: float, accuracy: float) -> dict:
        return {
            "network": network, "prompts": "empty", "decoding": "confidence", "tokens_per_forward": rate,
            "accuracy": {"value": accuracy},
        }  # fmt: skip

    lines = [line("a", 1.0, 1.0), line("a", 2.0, 1.0), line("a", 2.0, 0.96), line("b", 1.0, 0.0)]
    found = {each["network"]: each["aup"] for each in areas(lines)}
    # Two points at the same speed are averaged: 1 * 1 + (1 + 0.98 exp(-0.06)) / 2.
    assert found["a"] == pytest.approx(100.0 * (1.0 + (1.0 + 0.98 * 0.941764534) / 2.0))
    assert found["b"] == 0.0
    assert [each["aup"] for each in areas([line("b", 1.0, 0.0)])] == [0.0]


def test_a_plot_of_accuracy_needs_a_curve_with_an_interval_for_each_point(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got none"):
        plot_accuracy([], tmp_path / "plot.png")
    with pytest.raises(ValueError, match="2 accuracies"):
        AccuracyCurve(label="a", tokens_per_forward=(1.0,), accuracies=(0.5, 0.5), intervals=((0.4, 0.6),))
    curve = AccuracyCurve(label="a", tokens_per_forward=(2.0, 1.0), accuracies=(0.5, 0.9), intervals=((0.4, 0.6),) * 2)
    assert plot_accuracy([curve], tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="1 marks"):
        replace(curve, repeating=(True,))


def test_points_that_repeat_themselves_are_crossed(tmp_path: Path, monkeypatch: Any) -> None:
    from matplotlib.axes import Axes

    crossed = []
    monkeypatch.setattr(Axes, "scatter", lambda _, xs, ys, **style: crossed.append((xs, ys, style["label"])))
    values = {"tokens_per_forward": (2.0, 1.0), "accuracies": (0.5, 0.9), "intervals": ((0.4, 0.6),) * 2}
    curves = [AccuracyCurve(label="a", repeating=(True, False), **values), AccuracyCurve(label="b", **values)]
    plot_accuracy(curves, tmp_path / "plot.png")
    assert crossed == [((2.0,), (0.5,), "repeats itself")]


def saved_model(
    folder: Path, kind: str = "modernbert", vocab_size: int = 5, max_length: int = 16, **stated: int
) -> Path:
    """A model of transformers with random weights, which knows the tokens of a Sudoku of 4x4."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    size = {"vocab_size": vocab_size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"intermediate_size": 24, "max_position_embeddings": max_length}
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"))
    if kind == "modernbert":
        model = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**size, **special, **stated))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**size, **special, **stated))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    return folder


ANY_TEACHER = [
    *TINY, "--name=any", "--measure.num-clues=0", "--measure.decodings", "confidence",
    "--distill.method.paths.num-steps", "2", "--feature-mmd.batch-size=4",
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "called", "methods"),
    [("modernbert", [], ("alpha", "didi", "feature-mmd")), ("llama", ["--teacher.attention=full"], ("alpha", "didi"))],
)
def test_a_teacher_of_transformers_is_distilled_measured_and_reported(
    kind: str, called: list[str], methods: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The student of the paths is passed its step, by an embedding of its own beside the weights of the model."""
    folder = saved_model(tmp_path / "model", kind)
    flags = [*ANY_TEACHER, f"--output={tmp_path}", f"--teacher.path={folder}", *called, "--methods", *methods]
    capsys.readouterr()
    assert main(["distill", *flags]) == 0, capsys.readouterr().err
    shown = capsys.readouterr().err
    assert "alpha: 100%" in shown
    assert "weights" not in shown  # Neither loaded nor written with a bar of its own.
    assert "shards" not in shown
    student = json.loads((tmp_path / "any" / "alpha" / "student" / "config.json").read_text())
    assert student["model_type"] == kind
    assert main(["evaluate", *flags]) == 0, capsys.readouterr().err
    assert main(["report", *flags]) == 0
    results = json.loads((tmp_path / "any" / "evaluation.json").read_text())
    assert {line["network"] for line in results["lines"]} == {"teacher", *methods}
    costs = json.loads((tmp_path / "any" / "costs.json").read_text())
    assert all(cost["steps"] >= 2 for cost in costs.values())
    before = load_network(str(folder), **({"attention": "full"} if called else {})).state_dict()
    for name, prefix in (("alpha", ""), ("didi", "denoiser.")):
        after = load_network(str(tmp_path / "any" / name / "student")).state_dict()
        assert any(not torch.equal(after[prefix + key], before[key]) for key in before)
    assert main(["sample", *flags, "--sample.method=alpha", "--sample.forwards=4"]) == 0


@pytest.mark.parametrize(
    ("made", "found"),
    [
        ({"vocab_size": 7}, "7 classes"),
        ({"vocab_size": 4}, "none for the mask"),
        ({"mask_token_id": 2}, "token 2 as its mask"),
        ({"max_length": 12}, "12 tokens"),
        ({"kind": "llama"}, "attention"),
    ],
)
def test_a_teacher_of_transformers_that_does_not_fit_the_task_is_refused(
    made: dict[str, Any], found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = saved_model(tmp_path / "model", **made)
    capsys.readouterr()
    assert main(["distill", *ANY_TEACHER, f"--output={tmp_path}", f"--teacher.path={folder}"]) == 2
    error = capsys.readouterr().err
    assert found in error
    assert error.count("\n") == 1
    assert not (tmp_path / "any").exists()


def test_an_answer_that_repeats_itself_is_marked_and_named_once() -> None:
    def line(network: str, setting: str, distinct: int) -> dict:
        coverage = {"num_distinct": distinct, "distinct_expected": 100.0, "num_solutions": 132}
        return {
            "network": network, "prompts": "empty", "decoding": "ancestral", "setting": setting,
            "accuracy": {"value": 0.5}, "coverage": coverage,
        }  # fmt: skip

    lines = [line("teacher", "8 steps", 96), line("teacher", "4 steps", 95)]
    lines += [line("alpha", "8 steps", 94), line("alpha", "4 steps", 7)]
    aup = [{"prompts": "empty", "network": name, "decoding": "ancestral", "aup": 1.0} for name in ("teacher", "alpha")]
    table = summary({"lines": lines, "aup": aup})
    assert [(row.count("50.0%"), row.count("50.0% †")) for row in table.splitlines() if "50.0%" in row] == [
        (2, 0),
        (2, 2),
    ]
    (warning,) = collapse_warnings({"lines": lines})
    assert warning.startswith("COLLAPSE: alpha, ancestral, 4 steps: 7 ")
