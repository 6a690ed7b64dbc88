"""A judge reads ids that are its own and the text of all others; damaged files and excessive claims are refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from published_files import backend_without_mask, lines_of_text, write_gpt2, write_mdlm
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel

from discrete_distill.evaluation import CausalLMJudge, TextJudge, generative_perplexity
from discrete_distill.evaluation.pretrained import check_claims, end_of_text_of
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.fingerprint import write_fingerprint
from discrete_distill.recipes.common.tokenizer import TextTokenizer, train_tokenizer
from discrete_distill.recipes.owt import main
from discrete_distill.recipes.text.judge import JudgeConfig, load_judge, save_judge
from discrete_distill.recipes.text.judge_loading import load_judge_for

MINE = train_tokenizer(lines_of_text(), 280)
OTHER = train_tokenizer(["entirely other words than those of presidents"] * 9, 280)


def write_own(folder: Path, tokenizer: TextTokenizer) -> None:
    """As the judge stage does."""
    torch.manual_seed(0)
    config = JudgeConfig(vocab_size=tokenizer.vocab_size, context=16, hidden_size=16, num_layers=1, num_heads=2)
    save_judge(GPT2LMHeadModel(config.network_config()), config, folder)
    tokenizer.save(folder / "tokenizer.json")
    write_fingerprint(folder, tokenizer)


def samples() -> torch.Tensor:
    return torch.tensor([row[:12] for row in MINE.encode(lines_of_text(4, seed=1))])


def test_a_judge_of_the_runs_tokenizer_reads_ids(tmp_path: Path) -> None:
    write_own(tmp_path, MINE)
    judge = load_judge_for(str(tmp_path), MINE)
    assert isinstance(judge, CausalLMJudge)
    assert torch.equal(judge.token_nats(samples()).nats, load_judge(tmp_path).token_nats(samples()).nats)
    assert isinstance(load_judge_for("bundled", TextTokenizer.load(asset("tokenizer.json"))), CausalLMJudge)


@pytest.mark.parametrize("kind", ["own", "published", "shipped"])
def test_a_judge_of_another_tokenizer_reads_text(kind: str, tmp_path: Path) -> None:
    """Its nats are those of the same text in its own tokens."""
    if kind == "own":
        write_own(tmp_path, OTHER)
        encode, network = OTHER.encode, load_judge(tmp_path).model
    elif kind == "published":
        backend = backend_without_mask(270)
        write_gpt2(tmp_path, MINE.vocab_size, backend)  # As many classes as the run's tokenizer.
        encode = lambda texts: [backend.encode(text).ids for text in texts]  # noqa: E731
        network = GPT2LMHeadModel.from_pretrained(tmp_path).eval()
    else:
        encode, network = TextTokenizer.load(asset("tokenizer.json")).encode, load_judge(asset("judge")).model
    judge = load_judge_for("bundled" if kind == "shipped" else str(tmp_path), MINE)
    assert isinstance(judge, TextJudge)
    for row in samples():
        (ids,) = encode([MINE.decode(row.tolist())])
        direct = CausalLMJudge(network, name="direct", eos_token_id=None)
        expected = generative_perplexity(torch.tensor([ids]), direct).nats_per_token
        assert generative_perplexity(row[None], judge).nats_per_token == pytest.approx(expected, rel=1e-5)


def test_ids_of_another_tokenizer_are_refused_where_there_is_no_text_to_read(tmp_path: Path) -> None:
    write_own(tmp_path, OTHER)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=OTHER.fingerprint() if OTHER.vocab_size == MINE.vocab_size else "classes"):
        load_judge_for(str(tmp_path), MINE)


# Files.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_gpt2(tmp_path / "judge", 300, backend_without_mask(270))
    return tmp_path / "judge"


def damage(folder: Path, how: str) -> None:
    weights, config = folder / "model.safetensors", json.loads((folder / "config.json").read_text())
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif how == "noise":
        weights.write_bytes(b"\x01" * 500)
    elif how == "pickle":
        weights.unlink()
        (folder / "pytorch_model.bin").write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR.")
    elif how == "missing":
        save_file({n: w for n, w in load_file(weights).items() if "ln_f" not in n}, weights, metadata={"format": "pt"})
    elif how in ("n_embd", "n_layer", "n_inner", "vocab_size", "n_positions"):
        claimed = {"n_embd": 20_000, "n_layer": 10**6, "n_inner": 10**9, "vocab_size": 10**9, "n_positions": 10**9}
        (folder / "config.json").write_text(json.dumps({**config, how: claimed[how]}))
    elif how == "n_head":
        (folder / "config.json").write_text(json.dumps({**config, "n_head": 0}))
    else:
        (folder / "config.json").write_text({"list": "[]", "null": "null", "number": "5", "deep": "[" * 100_000}[how])


DAMAGES = ("cut", "noise", "pickle", "missing", "n_embd", "n_layer", "n_inner", "vocab_size", "n_positions", "n_head")


@pytest.mark.parametrize("how", [*DAMAGES, "list", "null", "number", "deep"])
def test_a_damaged_judge_is_one_error(how: str, folder: Path) -> None:
    damage(folder, how)
    with pytest.raises((ValueError, OSError)):
        TextJudge.from_pretrained(str(folder), decode=MINE.decode, eos_token_id=0)


@pytest.mark.parametrize("how", [how for how in DAMAGES if how not in ("pickle",)] + ["list", "null", "deep"])
def test_a_damaged_judge_of_our_own_is_one_error(how: str, tmp_path: Path) -> None:
    write_own(tmp_path, MINE)
    damage(tmp_path, how)
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_judge_for(str(tmp_path), MINE)


def test_a_claim_is_refused_before_anything_of_its_size_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_claims(folder)
    damage(folder, "n_layer")
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", lambda *_, **__: pytest.fail("was made"))
    with pytest.raises(ValueError, match="1000000 layers"):
        check_claims(folder)


def test_code_in_a_judges_folder_is_neither_run_nor_asked_about(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\n")
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append("asked") or "n")
    with pytest.raises((ValueError, OSError)):
        TextJudge.from_pretrained(str(folder), decode=MINE.decode, eos_token_id=0)
    assert not asked
    assert not (folder / "ran").exists()


def test_text_that_spells_the_judges_end_is_read_to_its_end(folder: Path) -> None:
    judge = TextJudge.from_pretrained(str(folder), decode=MINE.decode, eos_token_id=MINE.eos_token_id)
    (ids,) = MINE.encode(["the war <|endoftext|> and the peace"])
    backend = backend_without_mask(270)
    backend.encode_special_tokens = True
    expected = len(backend.encode(MINE.decode(ids)).ids) - 1
    assert generative_perplexity(torch.tensor([ids]), judge).num_tokens == expected


def test_a_tokenizer_without_an_end_takes_the_models(folder: Path, tiny_judge: Callable[..., object]) -> None:
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    del stated["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    judge = TextJudge.from_pretrained(str(folder), decode=MINE.decode, eos_token_id=None)
    assert judge.judge_eos_token_id == 0
    assert end_of_text_of(tiny_judge([7, 8]), tiny_judge(None), "x") == 7
    with pytest.raises(ValueError, match="eos_token"):
        end_of_text_of(tiny_judge(None), tiny_judge(None), "x")


@pytest.fixture
def tiny_judge() -> Callable[..., object]:
    """Something with an end of text, as a tokenizer and as a model state it."""

    class Stated:
        def __init__(self, end: object) -> None:
            self.eos_token_id = end
            self.config = self

    return Stated


def test_a_damaged_judge_and_teacher_are_one_sentence_before_anything_is_trained(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for how in ("cut", "n_layer"):
        damage(folder, how)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([f"--judge.path={folder}", f"--output={tmp_path}/runs"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
        assert not (tmp_path / "runs").exists()
    write_mdlm(tmp_path / "mdlm", 2048)
    for content in ("[]", "null", "5", '"x"', "[" * 100_000):
        (tmp_path / "mdlm" / "config.json").write_text(content)
        AcceleratorState._reset_state(reset_partial_state=True)
        assert main([f"--teacher.path={tmp_path}/mdlm", f"--output={tmp_path}/runs"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("path", ["/no/such/teacher", "a/b/c/d", "no such", "./missing", "", "missing.ckpt"])
def test_a_teacher_that_is_not_there_is_one_sentence(
    path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["distill", f"--teacher.path={path}", f"--output={tmp_path}/runs"]) == 2
    message = capsys.readouterr().err
    assert "--teacher.path" in message
    assert len(message.splitlines()) == 1


def test_a_teacher_of_another_kind_is_refused(folder: Path, tmp_path: Path) -> None:
    assert main(["distill", f"--teacher.path={folder}", f"--output={tmp_path}/runs"]) == 2


def test_a_judge_that_ends_texts_otherwise_is_neither_trained_nor_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"context": 16, "hidden_size": 16, "num_layers": 1, "num_heads": 2}
    config = JudgeConfig(vocab_size=MINE.vocab_size, eos_token_id=7, **shape)
    save_judge(GPT2LMHeadModel(config.network_config()), config, tmp_path / "judge")
    write_fingerprint(tmp_path / "judge", MINE)
    with pytest.raises(ValueError, match="7"):
        load_judge_for(str(tmp_path / "judge"), MINE)
    AcceleratorState._reset_state(reset_partial_state=True)
    (tmp_path / "a.txt").write_text("\n".join(lines_of_text()))
    flags = [f"--data.source={tmp_path}/a.txt", "--data.length=16", f"--output={tmp_path}/runs"]
    assert main(["judge", "--judge.eos-token-id=7", *flags]) == 2
    assert not (tmp_path / "runs" / "demo" / "judge").exists()
