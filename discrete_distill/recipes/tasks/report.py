"""The report of the recipe of tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...evaluation import AccuracyCurve, plot_accuracy
from ...training import flat_settings
from ..common.report_page import bullets, write_page
from ..common.tables import markdown_table, number
from .evaluate import Line
from .run import TaskRun
from .settings import BY_STEPS

TITLES = {
    "sudoku": "Sudoku in few steps",
    "permutations": "Permutations in few steps",
    "brackets": "Balanced brackets in few steps",
    "countdown": "Countdown in few steps",
    "arithmetic": "Arithmetic in few steps",
}


LEAST_COVERAGE = 0.95


def write_report(run: TaskRun, results: dict[str, Any]) -> Path:
    """Write ``report.md`` and its plots into the folder of a run."""
    title = title_of(results)
    plots = draw_plots(results, run.directory, title)
    parts = [
        f"# {title}",
        provenance(run, results),
        "## Accuracy by forwards\n\n" + summary(results),
        *(f"![Accuracy against tokens per forward, {prompts}]({name})" for prompts, name in plots.items()),
        "## Accuracy against tokens per forward\n\n" + accuracy_table(results),
        "## Accuracy under parallelism\n\n" + area_table(results),
        *coverage_part(results),
        "## Cost of training\n\n" + cost_table(results),
        *shown_part(results),
        "## Limitations\n\n" + bullets(limitations(results)),
    ]
    left_out = ("data", "discriminator", "evaluate")
    return write_page(run.directory, parts, flat_settings(run.config, leave_out=left_out))


def title_of(results: dict[str, Any]) -> str:
    """The task and its size."""
    return f"{TITLES[results['task']]}, size {results['size']}"


def provenance(run: TaskRun, results: dict[str, Any]) -> str:
    """Where the figures come from."""
    trained = sum(cost["seconds"] for cost in results["training"].values())
    return bullets(
        [
            f"Command: `{run.command}`",
            f"Machine: {run.machine}",
            f"Training of the students: {trained:.0f} s; evaluation: {results['seconds']:.0f} s",
            f"Teacher: {results['parameters'] / 1e6:.2f}M parameters; {results['length']} tokens an answer",
            f"Every figure: {results['num_prompts']} answers, one training; ± is half of Wilson's 95% interval",
        ]
    )


def networks_of(results: dict[str, Any]) -> list[str]:
    """The networks, the teacher first."""
    return list(dict.fromkeys(line["network"] for line in results["lines"]))


def prompts_of(results: dict[str, Any]) -> list[str]:
    """The sets of prompts."""
    return list(dict.fromkeys(line["prompts"] for line in results["lines"]))


def lines_of(results: dict[str, Any], **wanted: str) -> list[Line]:
    """The lines with these values."""
    return [line for line in results["lines"] if all(line[name] == value for name, value in wanted.items())]


def percent(line: Line) -> str:
    """Accuracy with half of its interval, in per cent."""
    accuracy = line["accuracy"]
    return f"{accuracy['value']:.1%} ± {(accuracy['high'] - accuracy['low']) / 2:.1%}".replace("%", "")


def is_collapsed(line: Line) -> bool:
    """Whether there are too few distinct answers among the right ones."""
    coverage = line["coverage"]
    return bool(coverage) and coverage["num_distinct"] < LEAST_COVERAGE * coverage["distinct_expected"]


def summary(results: dict[str, Any]) -> str:
    """Accuracy of each network by number of forwards, and its AUP; narrow enough for a terminal."""
    parts, mark = [], {False: "", True: " †"}
    every = [line for line in results["lines"] if line["decoding"] in BY_STEPS]
    for prompts, decoding in dict.fromkeys((line["prompts"], line["decoding"]) for line in every):
        rows, header = [], []
        for network in networks_of(results):
            lines = lines_of(results, prompts=prompts, decoding=decoding, network=network)
            areas = [each for each in _areas(results, prompts, network) if each["decoding"] == decoding]
            cells = [f"{line['accuracy']['value']:.1%}{mark[is_collapsed(line)]}" for line in lines]
            rows.append([network, *cells, *(f"{each['aup']:.0f}" for each in areas)])
            header = ["forwards", *(line["setting"].removesuffix(" steps") for line in lines), "AUP"]
        parts.append(f"Right answers, {prompts}, {decoding}:\n\n" + markdown_table(header, rows))
    if "†" in "".join(parts):
        parts.append(
            f"† repeats itself: fewer than {LEAST_COVERAGE:.0%} of the distinct answers that a uniform sampler has "
            "among as many right ones."
        )
    return "\n\n".join(parts)


def _areas(results: dict[str, Any], prompts: str, network: str) -> list[dict[str, Any]]:
    return [each for each in results["aup"] if (each["prompts"], each["network"]) == (prompts, network)]


def accuracy_table(results: dict[str, Any]) -> str:
    """Every line."""
    rows = [
        [
            line["prompts"],
            line["network"],
            line["decoding"],
            line["setting"],
            f"{line['tokens_per_forward']:.2f}",
            percent(line),
        ]
        for line in results["lines"]
    ]
    header = ["prompts", "network", "decoding", "setting", "tokens per forward", "right, %"]
    return (
        "A forward is an evaluation of the network in which a token of the answer is revealed, counted for each "
        "sequence alone.\n\n" + markdown_table(header, rows)
    )


def area_table(results: dict[str, Any]) -> str:
    """AUP of every network by every decoding."""
    decodings = list(dict.fromkeys(each["decoding"] for each in results["aup"]))
    rows = []
    for prompts in prompts_of(results):
        for network in networks_of(results):
            found = {each["decoding"]: each["aup"] for each in _areas(results, prompts, network)}
            rows.append([prompts, network, *(f"{found[name]:.0f}" for name in decodings)])
    return (
        "AUP of d3LLM ([arXiv 2601.07568](https://arxiv.org/abs/2601.07568)), per cent times tokens per forward, with "
        "the best accuracy of all networks on the same prompts as the reference; points 5 points below the slowest one "
        "of a curve are left out.\n\n" + markdown_table(["prompts", "network", *decodings], rows)
    )


def coverage_part(results: dict[str, Any]) -> list[str]:
    """Distinct right answers, and the divergence from uniform; nothing where the right answers are not known."""
    rows = [
        [
            line["network"],
            line["decoding"],
            line["setting"],
            str(coverage["num_samples"]),
            str(coverage["num_distinct"]),
            f"{coverage['distinct_expected']:.1f} ± {coverage['distinct_deviation']:.1f}",
            f"{coverage['num_distinct'] / coverage['distinct_expected']:.1%}",
            number(round(coverage["excess_kl"], 3) + 0.0, ".3f"),
        ]
        for line in results["lines"]
        if (coverage := line["coverage"]) is not None
    ]
    if not rows:
        return []
    solutions = next(line["coverage"]["num_solutions"] for line in results["lines"] if line["coverage"])
    header = [
        "network",
        "decoding",
        "setting",
        "right",
        "distinct",
        "of a uniform sampler",
        "ratio",
        "entropy lost, nats",
    ]
    return [
        f"## Coverage\n\nDistinct ones among the right answers, of {solutions} that there are. The loss of entropy "
        "against the uniform distribution is corrected for the number of samples; it is too small where there are few "
        "samples for so many answers.\n\n" + markdown_table(header, rows)
    ]


def cost_table(results: dict[str, Any]) -> str:
    """What each student took."""
    rows = [
        [name, f"{cost['steps']}", f"{cost['seconds']:.0f}", f"{cost['network_evaluations']:.0f}"]
        for name, cost in results["training"].items()
    ]
    return (
        f"Budget: {results['amount']:g} {results['budget'].replace('_', ' ')} for each method, planned from a few "
        "tried steps. An evaluation is one pass of one sequence through one network; a backward pass counts as two. "
        "The training of the teacher is not counted.\n\n"
        + markdown_table(["", "steps", "seconds", "network evaluations"], rows)
    )


def shown_part(results: dict[str, Any]) -> list[str]:
    """A few answers."""
    blocks = [
        f"{network}, {each['how']}, {'right' if each['right'] else 'wrong'}:\n\n```\n{each['text']}\n```"
        for network, answers in results["shown"].items()
        for each in answers
    ]
    return ["## Some answers\n\n" + "\n\n".join(blocks)] if blocks else []


def limitations(results: dict[str, Any]) -> list[str]:
    """What a reader must know before believing a figure. Never empty."""
    found = [
        "One training of each method: the intervals are those of sampling, and another training seed may move a line "
        "by more (--seed).",
    ]
    solutions = max((line["coverage"]["num_solutions"] for line in results["lines"] if line["coverage"]), default=0)
    if solutions > results["num_prompts"] ** 2:
        found.append(
            f"Of {solutions} right answers a uniform sampler repeats none among {results['num_prompts']}: distinct "
            "ones show gross repetition, and nothing finer."
        )
    return found + collapse_warnings(results)


def collapse_warnings(results: dict[str, Any]) -> list[str]:
    """One sentence for each network and decoding that repeats itself: its worst setting, and how many are like it."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in filter(is_collapsed, results["lines"]):
        groups.setdefault((line["network"], line["decoding"]), []).append(line)
    found = []
    for (network, decoding), lines in groups.items():
        worst = min(lines, key=lambda line: line["coverage"]["num_distinct"] / line["coverage"]["distinct_expected"])
        others = f", and {len(lines) - 1} other setting(s)" if len(lines) > 1 else ""
        coverage = worst["coverage"]
        found.append(
            f"COLLAPSE: {network}, {decoding}, {worst['setting']}: {coverage['num_distinct']} distinct answer(s) where "
            f"a uniform sampler has {coverage['distinct_expected']:.0f}{others}."
        )
    return found


def draw_plots(results: dict[str, Any], directory: Path, title: str) -> dict[str, str]:
    """One plot for each set of prompts: every network by its decoding with the largest AUP, and the teacher by all.

    Returns:
        Names of files by the name of the prompts.
    """
    names = {}
    for index, prompts in enumerate(prompts_of(results)):
        curves = [_curve(results, prompts, *pair) for pair in _plotted(results, prompts)]
        name = "accuracy.png" if index == 0 else f"accuracy-{prompts.replace(' ', '-')}.png"
        note = f"{results['num_prompts']} answers a point, 95% intervals; dashed: the teacher"
        plot_accuracy(curves, directory / name, title=f"{title}, {prompts}", note=note)
        names[prompts] = name
    return names


def _plotted(results: dict[str, Any], prompts: str) -> list[tuple[str, str]]:
    """Networks and decodings of a plot."""
    networks = networks_of(results)
    teacher = [(networks[0], each["decoding"]) for each in _areas(results, prompts, networks[0])]
    best = [
        (name, max(_areas(results, prompts, name), key=lambda each: each["aup"])["decoding"]) for name in networks[1:]
    ]
    return [*teacher, *best]


def _curve(results: dict[str, Any], prompts: str, network: str, decoding: str) -> AccuracyCurve:
    lines = lines_of(results, prompts=prompts, network=network, decoding=decoding)
    return AccuracyCurve(
        label=f"{network}, {decoding}",
        tokens_per_forward=tuple(line["tokens_per_forward"] for line in lines),
        accuracies=tuple(line["accuracy"]["value"] for line in lines),
        intervals=tuple((line["accuracy"]["low"], line["accuracy"]["high"]) for line in lines),
        dashed=network == networks_of(results)[0],
        repeating=tuple(map(is_collapsed, lines)),
    )
