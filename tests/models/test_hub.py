"""Saving, cards and publishing, up to the calls that would leave the machine."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from published import VOCABULARY, denoiser, network

from discrete_distill import SDTT, DiDiInstruct, DiDiInstructConfig, SDTTConfig
from discrete_distill.models import (
    Discriminator,
    DiT,
    ModelFacts,
    load_denoiser,
    load_discriminator,
    push_distilled,
    save_distilled,
)
from discrete_distill.models.io.hub import find_file

FACTS = ModelFacts(
    method="DiDi-Instruct with an auxiliary denoiser, arXiv 2509.25035",
    data="State of the Union addresses, public domain",
    settings={"learning_rate": 5e-4, "group_size": 8, "note": "a | b"},
    frontier=[
        {"steps": 8, "temperature": 1.0, "entropy, nats": 4.364, "perplexity": 132.3456},
        {"steps": 16, "temperature": 0.9, "entropy, nats": 4.2, "perplexity": 101.0},
    ],
    measured_by="Bundled judge, 3 seeds of 32 samples of 128 tokens, fp32.",
    license="mit",
)


def pair() -> tuple[DiT, Discriminator]:
    torch.manual_seed(0)
    student = denoiser(network(), max_length=16)
    return student, Discriminator.from_denoiser(denoiser(network(1)), trainable_blocks=1).eval()


def example() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(10).view(2, 5) % VOCABULARY, torch.tensor([0.2, 0.7])


def test_the_card_states_method_data_settings_and_the_measured_frontier(tmp_path: Path) -> None:
    pair()[0].save_pretrained(tmp_path, facts=FACTS)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "mit"
    assert {"masked-diffusion", "distillation", "dit"} <= set(card.data.tags)
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", card.text, re.MULTILINE | re.DOTALL))
    assert sections["Method"].strip() == FACTS.method
    assert sections["Data"].strip() == FACTS.data
    rows = [line.split(" | ") for line in sections["Measured frontier"].splitlines() if line.startswith("|")]
    assert [[cell.strip("| ") for cell in row] for row in (rows[0], *rows[2:])] == [
        ["steps", "temperature", "entropy, nats", "perplexity"],
        ["8", "1", "4.364", "132.3"],
        ["16", "0.9", "4.2", "101"],
    ]
    assert FACTS.measured_by in sections["Measured frontier"]
    assert "| learning_rate | 0.0005 |" in sections["Settings"]
    assert "| note | a \\| b |" in sections["Settings"]
    assert "| hidden_size | 24 |" in sections["Shape"]


def test_what_is_not_known_is_said_to_be_unknown(tmp_path: Path) -> None:
    pair()[1].save_pretrained(tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.count("Not stated by who saved it.") == 3
    assert "Not measured." in text
    assert "| backbone.hidden_size | 24 |" in text
    pair()[1].save_pretrained(tmp_path, facts=ModelFacts(frontier=FACTS.frontier))
    assert "How it was measured is not stated." in (tmp_path / "README.md").read_text()


def test_a_frontier_of_unlike_rows_is_refused() -> None:
    with pytest.raises(ValueError, match=r"different columns: \('entropy',\) and \('steps',\)"):
        ModelFacts(frontier=[{"steps": 8}, {"entropy": 4.0}])


def test_a_student_and_its_discriminator_in_one_folder(tmp_path: Path) -> None:
    student, judge = pair()
    save_distilled(tmp_path, student, judge, facts=FACTS)
    names = {"README.md", "config.json", "discriminator.json", "discriminator.safetensors", "model.safetensors"}
    assert {file.name for file in tmp_path.iterdir()} == names
    x, t = example()
    for place in (tmp_path, tmp_path / "model.safetensors"):
        assert torch.equal(load_denoiser(place)(x, t), student(x, t))
    for place in (tmp_path, tmp_path / "discriminator.safetensors"):
        loaded = load_discriminator(place)
        assert torch.equal(loaded(x, t), judge(x, t))
        assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in judge.parameters()]
    assert json.loads((tmp_path / "discriminator.json").read_text())["trainable_blocks"] == 1
    save_distilled(tmp_path, student)  # without facts the card of before would be wrong
    assert FACTS.method not in (tmp_path / "README.md").read_text()


class Hub:
    """The two calls that leave the machine, kept here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.folder, self.made, self.uploads = folder, [], []
        monkeypatch.setattr(HfApi, "create_repo", self.create_repo)
        monkeypatch.setattr(HfApi, "upload_folder", self.upload_folder)

    def create_repo(self, repo_id: str, private: bool | None = None, exist_ok: bool = False) -> SimpleNamespace:
        assert exist_ok
        self.made.append((repo_id, private))
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def upload_folder(self, repo_id: str, folder_path: str | Path, **options: object) -> str:
        for file in Path(folder_path).iterdir():
            (self.folder / file.name).write_bytes(file.read_bytes())
        self.uploads.append((repo_id, options))
        return f"https://hub/{repo_id}/commit/1"


@pytest.mark.parametrize("index", [0, 1])
def test_push_to_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    hub, model = Hub(monkeypatch, tmp_path), pair()[index]
    address = model.push_to_hub("student", facts=FACTS, private=True, commit_message="Trained", branch="v1")
    assert address == "https://hub/me/student/commit/1"
    assert hub.made == [("student", True)]
    ((repo, options),) = hub.uploads
    assert repo == "me/student"
    assert options["commit_message"] == "Trained"
    assert options["revision"] == "v1"
    assert FACTS.method in (tmp_path / "README.md").read_text()
    assert torch.equal(type(model).from_pretrained(tmp_path)(*example()), model(*example()))


def test_push_distilled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub, (student, judge) = Hub(monkeypatch, tmp_path), pair()
    assert push_distilled("pair", student, judge, facts=FACTS, branch="v2") == "https://hub/me/pair/commit/1"
    assert hub.uploads[0][1]["revision"] == "v2"
    assert FACTS.data in (tmp_path / "README.md").read_text()
    assert torch.equal(load_denoiser(tmp_path)(*example()), student(*example()))
    assert torch.equal(load_discriminator(tmp_path)(*example()), judge(*example()))


class Tokenizer:
    """Of as many entries as the student has classes."""

    vocab_size = VOCABULARY

    def fingerprint(self) -> str:
        return "0123abcd"


def test_the_fingerprint_of_the_tokenizer_is_published_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given, or read beside the student; by its next copy and its next push too."""
    (student, judge), stored = pair(), {"fingerprint": "0123abcd", "vocab_size": VOCABULARY}
    for name, network_of, kwargs in (
        ("given", lambda: student, {"tokenizer": Tokenizer()}),
        ("class", lambda: DiT.from_pretrained(tmp_path / "given"), {}),
        ("loaded", lambda: load_denoiser(tmp_path / "class"), {}),
        ("file", lambda: load_denoiser(tmp_path / "loaded" / "model.safetensors"), {}),
        (
            "student",
            lambda: DiDiInstruct.make_student(load_denoiser(tmp_path / "file"), DiDiInstructConfig.recommended()),
            {},
        ),
        ("told no step", lambda: SDTT.make_student(load_denoiser(tmp_path / "file"), SDTTConfig()), {}),
    ):
        (tmp_path / name).mkdir()
        Hub(monkeypatch, tmp_path / name)
        push_distilled("pair", network_of(), judge, **kwargs)
        assert json.loads((tmp_path / name / "tokenizer_fingerprint.json").read_text()) == stored, name
    Hub(monkeypatch, tmp_path)
    load_denoiser(tmp_path / "file").push_to_hub("alone")
    assert json.loads((tmp_path / "tokenizer_fingerprint.json").read_text()) == stored
    other = Tokenizer()
    other.vocab_size = VOCABULARY + 1
    with pytest.raises(ValueError, match=f"{VOCABULARY} classes and the tokenizer {VOCABULARY + 1}"):
        save_distilled(tmp_path / "other", student, tokenizer=other)
    assert not (tmp_path / "other").exists()
    save_distilled(tmp_path / "unknown", student)
    assert not (tmp_path / "unknown" / "tokenizer_fingerprint.json").exists()


def test_without_the_hub_a_file_is_known_not_to_be_there(tmp_path: Path) -> None:
    """As the last answer of the hub had it; of a repository that was never asked for, nothing is known."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    folder, commit = tmp_path / "models--user--model", "0" * 40
    for file in ("refs/main", f"snapshots/{commit}/config.json", f".no_exist/{commit}/denoiser.json"):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(commit)
    asked = {"cache_dir": tmp_path, "local_files_only": True}
    assert find_file("user/model", "denoiser.json", **asked) is None
    for name, file in (("user/model", "other.json"), ("user/other", "denoiser.json")):
        with pytest.raises(LocalEntryNotFoundError):
            find_file(name, file, **asked)


def test_networks_of_others_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    student, _ = pair()
    for networks in ((torch.nn.Linear(2, 2),), (student, torch.nn.Linear(2, 2))):
        with pytest.raises(TypeError, match="Linear"):
            save_distilled(tmp_path / "there", *networks)
        with pytest.raises(TypeError, match="Linear"):
            push_distilled("user/model", *networks)
    assert not (tmp_path / "there").exists()
