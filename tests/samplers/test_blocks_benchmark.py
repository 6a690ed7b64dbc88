"""The benchmark of blocks from beginning to end with tiny shapes, whose times mean nothing."""

import csv
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def test_the_dry_run_times_every_method_and_judges_every_goal(monkeypatch, tmp_path) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from benchmarks import blocks

    blocks.main(["--dry-run", "--output", str(tmp_path)])
    document = json.loads((tmp_path / "blocks.json").read_text())
    assert len(document["goals"]) == 3 * 2 * 2
    with (tmp_path / "blocks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["method"] for row in rows} == {*blocks.METHODS, blocks.ONE_BY_ONE}
    by_method = {row["method"]: row for row in rows if (row["batch"], row["steps"]) == ("1", "4")}
    # Two blocks of four tokens in four steps each, one of them committed behind a prompt.
    assert {name: int(by_method[name]["network_evaluations"]) for name in blocks.METHODS} == {
        "no cache": 8,
        "exact": 10,
        "prefix": 8,
        "dual": 8,
    }
    assert [place for place, _ in document["growth"]["exact"]] == list(range(0, 32, 4))
    assert (tmp_path / "blocks.png").stat().st_size > 5000
