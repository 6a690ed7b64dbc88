"""The protein recipe at tiny size, FASTA files, and the external models on random weights of their architecture."""

import json
import math
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from discrete_distill import models
from discrete_distill.distillation.methods import Regularization
from discrete_distill.distillation.networks import Networks
from discrete_distill.evaluation.protein import AMINO_ACIDS
from discrete_distill.recipes.common.assets import asset
from discrete_distill.recipes.common.fasta import is_fasta, read_fasta
from discrete_distill.recipes.protein.__main__ import main
from discrete_distill.recipes.protein.dplm import (
    esm_letters,
    esm_masked_sequences,
    esm_process,
    load_dplm,
    sample_dplm,
)
from discrete_distill.recipes.protein.esm import CLS, EOS, ESM_ALPHABET, MASK, EsmTokenizer, find_residues
from discrete_distill.recipes.protein.folding import load_strictly, mean_plddt, plddt
from discrete_distill.recipes.protein.report import diagnostics, protein_table
from discrete_distill.recipes.protein.residues import ResidueTokenizer
from discrete_distill.training import fold_seed

TINY = [
    "--data.length=32", "--precision=fp32",
    "--teacher.model.hidden-size=16", "--teacher.model.num-layers=2", "--teacher.model.num-heads=2",
    "--teacher.model.cond-size=8", "--teacher.model.max-length=32",
    "--teacher.loop.num-steps=3", "--teacher.batch-size=4",
    "--distill.loop.num-steps=3", "--distill.batch-size=4", "--distill.method.advantages.group-size=2",
    "--distill.method.log-ratio.warmup=1",
    "--evaluate.num-samples=2", "--evaluate.seeds", "0", "1", "--evaluate.steps", "4", "8",
    "--evaluate.guided-steps", "4", "--minimum-residues=4",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_process_state() -> None:
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty random proteins in lower case, broken over lines."""
    draw = torch.Generator().manual_seed(0)
    path = tmp_path_factory.mktemp("proteins") / "some.fasta"
    rows = ["".join(AMINO_ACIDS[i] for i in torch.randint(20, (60,), generator=draw)) for _ in range(60)]
    path.write_text("".join(f">sp|{n}\n{row[:40].lower()}\n{row[40:]}\n\n" for n, row in enumerate(rows)))
    return path


def test_the_recipe_distils_measures_and_reports(sequences: Path, tmp_path: Path) -> None:
    base = [*TINY, f"--data.source={sequences}", f"--output={tmp_path}", "--name=tiny"]
    assert main(["teacher", *base]) == 0
    flags = [*base, f"--teacher.path={tmp_path}/tiny/teacher"]
    assert main(flags) == 0
    results = json.loads((tmp_path / "tiny" / "evaluation.json").read_text())
    assert [(line["method"], line["steps"]) for line in results["lines"]] == [
        ("real proteins", None),
        ("teacher", 4),
        ("teacher", 8),
        ("student", 4),
        ("student", 8),
        ("student + RGAS", 4),
    ]
    assert all({"agreement", "reverse_nats"} <= set(line["between_samples"]) for line in results["lines"])
    real = results["lines"][0]["figures"]
    assert real["maximum_identity"] < 0.9  # Held-out sequences are not training ones.
    report = (tmp_path / "tiny" / "report.md").read_text()
    for part in ("Quality", "UniProt", "3-gram@", "Limitations", "facebook/esmfold_v1"):
        assert part in report
    assert main(["sample", *flags, "--sample.prompt=MKV", "--sample.count=2"]) == 0


def test_collapse_and_copies_are_named() -> None:
    figures = {"identity": 0.9}
    lines = [
        {"method": "real proteins", "steps": None, "entropy": 2.8, "figures": figures},
        {"method": "student", "steps": 8, "entropy": 2.0, "figures": figures},
    ]
    found = diagnostics({"lines": lines})
    assert any(line.startswith("COLLAPSE: the entropy of student at 8 steps") for line in found)
    assert any("copies its training sequences" in line for line in found)


def test_windows_that_are_one_sequence_have_no_perplexity() -> None:
    def line(method: str, steps: int | None, **more: object) -> dict:
        rest = {"perplexity": 17.0, "standard_error": 0.01, "entropy": 2.8, "figures": None, "plddt": None}
        return {"method": method, "steps": steps, **rest, **more}

    def agreeing(value: float) -> dict:
        return {"between_samples": {"agreement": [value, 0.001], "reverse_nats": [2.9, 0.01]}}

    lines = [
        line("real proteins", None, **agreeing(0.06)),
        line("teacher", 8, **agreeing(0.07)),
        line("student", 8, **agreeing(0.9)),
        line("DPLM", 8),
    ]
    table = protein_table({"lines": lines}).splitlines()[-3:]
    assert table[0].startswith("| teacher | 8 |  | 17.00 | 1.0% | 2.800 | 7.00% ± 0.10% | 18 ± 1.0% | no protein |")
    assert table[1].startswith("| student | 8 |  | collapsed |  | 2.800 | 90.00% ± 0.10% |")
    assert table[2].startswith("| DPLM | 8 |  | 17.00 | 1.0% | 2.800 |  |  |")
    assert len({row.count("|") for row in protein_table({"lines": lines}).splitlines()}) == 1
    (found,) = (each for each in diagnostics({"lines": lines}) if each.startswith("MODE COLLAPSE"))
    assert "student at 8 steps: collapsed, agreement of two samples 90% (reference 7%)" in found


def test_the_bundled_sequences_are_what_their_notice_says() -> None:
    found = read_fasta(asset("protein/proteins.fasta.xz"))
    assert len(found) == 5869
    assert {len(sequence) for sequence in found.values()} <= set(range(50, 257))
    assert "UniProt" in asset("NOTICE").read_text()


def test_letters_become_tokens_and_back_and_windows_fall_into_proteins() -> None:
    tokenizer = ResidueTokenizer()
    assert (tokenizer.vocab_size, tokenizer.eos_token_id, tokenizer.mask_token_id) == (22, 20, 21)
    (ids,) = tokenizer.encode([AMINO_ACIDS + "."])
    assert ids == list(range(21))
    assert tokenizer.decode([*ids, 21]) == AMINO_ACIDS + "._"
    windows = tokenizer.encode(["ACD.EFGHI.K", "LLLLLLLLLLL"])
    assert tokenizer.proteins(windows, minimum_residues=4) == ["EFGHI", "LLLLLLLLLLL"]
    with pytest.raises(ValueError, match="'B' is no amino acid"):
        tokenizer.encode(["AB"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "no sequence"),
        ("ACD\n", "no header line"),
        (">a\nAXC\n", "no sequence"),
        (">a\nA1C\n", "line 2: '1' is no amino acid"),
        (">a\nAC\n>a\nAC\n", "two sequences named a"),
    ],
)
def test_bad_fasta_is_refused(content, said, tmp_path, capsys) -> None:
    path = tmp_path / "bad.fa"
    path.write_text(content)
    with pytest.raises(ValueError, match=said):
        read_fasta(path)
    assert main(["teacher", f"--data.source={path}", f"--output={tmp_path}/runs"]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert is_fasta(Path("A.FASTA.XZ"))
    assert not is_fasta(Path("a.txt"))


@pytest.fixture(scope="module")
def small_esm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ESM-2's architecture and alphabet, as DPLM has them, with random weights."""
    from transformers import EsmConfig, EsmForMaskedLM

    torch.manual_seed(0)
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, position_embedding_type="rotary", token_dropout=False, max_position_embeddings=64,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("esm")
    EsmForMaskedLM(config).save_pretrained(folder)
    return folder


def test_x_init_and_letters_of_esms_alphabet() -> None:
    assert (CLS, EOS, MASK) == (0, 2, 32)
    x_init = esm_masked_sequences(2, 3)
    assert x_init.tolist() == [[0, 32, 32, 32, 2]] * 2
    assert esm_letters(torch.tensor([[0, 5, 4, 23, 2]])) == ["ALC"]


needs_adapter = pytest.mark.skipif(not hasattr(models, "as_denoiser"), reason="models.as_denoiser is not there yet")


@needs_adapter
def test_dplm_is_a_denoiser_that_draws_amino_acids_alone_and_can_teach(small_esm: Path) -> None:
    from discrete_distill import DiDiInstruct, DiDiInstructConfig

    denoiser = load_dplm(str(small_esm))
    proteins, cost = sample_dplm(denoiser, 5, 12, num_steps=4, seed=fold_seed("test"), batch_size=3)
    assert [len(protein) for protein in proteins] == [12] * 5
    assert set("".join(proteins)) <= set(AMINO_ACIDS)
    assert cost <= 4
    config = DiDiInstructConfig.recommended(
        advantages={"group_size": 2},
        paths={"step_conditioning": False},
        log_ratio={"step_conditioning": False, "warmup": 0},
        regularization=Regularization(),
    )
    student, auxiliary = (load_dplm(str(small_esm)) for _ in range(2))
    with torch.no_grad():  # With an auxiliary equal to the teacher there would be nothing to learn.
        for parameter in auxiliary.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    method = DiDiInstruct(Networks(student, denoiser, auxiliary=auxiliary), esm_process(), config)
    rollout = method.rollout(x_init=esm_masked_sequences(4, 12), generator=torch.Generator().manual_seed(0))
    assert bool((rollout.sequences[:, 0] == CLS).all())
    assert bool((rollout.sequences[:, -1] == EOS).all())
    method.student_loss(rollout, generator=torch.Generator().manual_seed(1)).loss.backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in student.parameters())


@needs_adapter
def test_what_is_no_dplm_is_refused(small_esm: Path, tmp_path: Path) -> None:
    from transformers import EsmConfig, EsmForMaskedLM

    config = EsmConfig.from_pretrained(small_esm)
    config.vocab_size = 40
    EsmForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="40 classes"):
        load_dplm(str(tmp_path))


def test_plddt_of_a_small_esmfold_is_a_mean_over_residues_in_percent() -> None:
    from transformers import EsmConfig, EsmForProteinFolding

    torch.manual_seed(0)
    trunk = {
        "num_blocks": 1, "sequence_state_dim": 16, "pairwise_state_dim": 8, "sequence_head_width": 8,
        "pairwise_head_width": 4, "position_bins": 4, "max_recycles": 1,
        "structure_module": {
            "sequence_dim": 16, "pairwise_dim": 8, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2,
            "num_qk_points": 2, "num_v_points": 2, "num_blocks": 1, "num_transition_layers": 1, "num_resnet_blocks": 1,
        },
    }  # fmt: skip
    config = EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, position_embedding_type="rotary", is_folding_model=True,
        esmfold_config={"trunk": trunk, "fp16_esm": False, "lddt_head_hid_dim": 8}, max_position_embeddings=64,
    )  # fmt: skip
    model = EsmForProteinFolding(config).eval()
    one, other = plddt(model, "MKVLA"), plddt(model, "ACDEFGH")
    assert 0.0 <= one <= 100.0
    out = model.infer(["MKVLA"])
    assert one == pytest.approx(100.0 * float(out.plddt[0, :5, 1].mean()), rel=1e-4)
    assert mean_plddt(model, ["MKVLA", "ACDEFGH"]) == pytest.approx(0.5 * (one + other))
    with pytest.raises(ValueError, match="no sequences to fold"):
        mean_plddt(model, [])


def test_a_model_of_transformers_is_loaded_whole_or_refused(small_esm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import EsmForMaskedLM

    loaded = load_strictly(EsmForMaskedLM, str(small_esm), flag="--dplm")
    assert not loaded.training
    weights = load_file(small_esm / "model.safetensors")
    (tmp_path / "config.json").write_text((small_esm / "config.json").read_text())
    without = {name: weight for name, weight in weights.items() if "contact_head" not in name}
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert load_dplm(str(tmp_path)) is not None
    del without["lm_head.dense.weight"]
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lm_head\.dense"):
        load_dplm(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_dplm(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--dplm"):
        load_dplm(str(tmp_path / "missing"))


@pytest.mark.parametrize("sharing", ["copies", "adapters"])
def test_a_model_of_esms_alphabet_is_trained_further_and_distilled(
    sequences: Path, tmp_path: Path, sharing: str
) -> None:
    transformers = pytest.importorskip("transformers")
    if sharing == "adapters":
        pytest.importorskip("peft", reason="LoRA is an optional extra")
    torch.manual_seed(0)
    size = {"vocab_size": 33, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.EsmConfig(
        **size, intermediate_size=24, max_position_embeddings=40, position_embedding_type="rotary",
        pad_token_id=1, mask_token_id=MASK, token_dropout=True,
    )  # fmt: skip
    transformers.EsmForMaskedLM(config).save_pretrained(tmp_path / "esm")
    flags = [each for each in TINY if not each.startswith("--teacher.model")]
    base = [*flags, f"--data.source={sequences}", f"--output={tmp_path}", "--name=esm"]
    assert main(["teacher", *base, f"--teacher.init={tmp_path}/esm"]) == 0
    made = [*base, f"--teacher.path={tmp_path}/esm/teacher", f"--distill.sharing={sharing}", "--distill.rank=2"]
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(made) == 0
    lines = json.loads((tmp_path / "esm" / "evaluation.json").read_text())["lines"]
    assert {line["method"] for line in lines} == {"real proteins", "teacher", "student", "student + RGAS"}
    real = lines[0]
    assert math.isfinite(real["perplexity"])  # of the letters: to the judge, the frame around them is impossible
    shown = [letter for line in lines for protein in line["shown"] for letter in protein]
    assert set(shown) <= set(AMINO_ACIDS)
    assert main(["sample", *made, "--sample.prompt=MKV", "--sample.count=2"]) == 0


def test_residues_in_esms_alphabet() -> None:
    tokenizer = EsmTokenizer()
    ids = tokenizer.encode(["MKV.A"])[0]
    assert [ESM_ALPHABET[index] for index in ids] == ["M", "K", "V", "<eos>", "A"]
    assert tokenizer.decode([CLS, *ids, MASK, EOS]) == "MKV.A_."
    assert {ESM_ALPHABET[index] for index in set(range(33)) - set(tokenizer.forbidden_token_ids)} == {
        *AMINO_ACIDS, "<eos>", "<mask>",
    }  # fmt: skip
    with pytest.raises(ValueError, match="B"):
        tokenizer.encode(["MB"])


def test_a_hugging_face_model_of_another_alphabet_is_refused() -> None:
    with pytest.raises(ValueError, match="30"):
        find_residues("folder", {"model_type": "bert", "vocab_size": 30})
