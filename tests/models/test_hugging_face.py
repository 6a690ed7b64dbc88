"""Models of transformers by name or folder: strict, in fp32, and no larger than their files."""

import copy
import json
import resource
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from external import masked_lm, randomised
from published import VOCABULARY, WIDTH, network
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from discrete_distill import CosineSchedule, as_denoiser
from discrete_distill.models import CheckpointError, load_denoiser, merge_lora


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (3, 7), generator=generator), torch.rand(3, generator=generator)


def tiny_bert(folder: Path) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=16,
    )
    model = transformers.BertForMaskedLM(config).eval()
    model.save_pretrained(folder)
    return model


def test_a_hugging_face_model_by_its_folder(tmp_path: Path) -> None:
    model = tiny_bert(tmp_path)
    x, t = example()
    loaded = load_denoiser(tmp_path)
    torch.testing.assert_close(loaded(x, t), model(x).logits)
    assert loaded.call_signature.head == "cls"
    weights = load_file(tmp_path / "model.safetensors")
    missing = {name: value for name, value in weights.items() if name != "bert.encoder.layer.0.output.dense.bias"}
    misshapen = {**weights, "bert.encoder.layer.0.output.dense.bias": torch.ones(3)}
    for wrong, message in ((missing, "missing: bert.encoder.layer.0.output.dense.bias"), (misshapen, "another shape")):
        save_file(wrong, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(tmp_path)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        stream.truncate(100)
    with pytest.raises(CheckpointError, match="cut short"):
        load_denoiser(tmp_path)


def causal_folder(folder: Path, **settings: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        **settings,
    )
    model = randomised(transformers.LlamaForCausalLM(config))
    model.save_pretrained(folder)
    return model


def test_a_causal_model_that_was_trained_to_read_both_ways(tmp_path: Path) -> None:
    model, (x, t) = causal_folder(tmp_path), example()
    with pytest.raises(ValueError, match="LlamaForCausalLM"):
        load_denoiser(tmp_path)
    plain = model(input_ids=x, attention_mask=torch.zeros(3, 1, 7, 7)).logits
    shifted = torch.cat((plain[:, :1], plain[:, :-1]), dim=1)
    loaded = load_denoiser(tmp_path, attention="full", shifted=True, head="lm_head")
    torch.testing.assert_close(loaded(x, t), shifted)
    torch.testing.assert_close(loaded.project(loaded.features(x, t)), shifted, atol=1e-5, rtol=1e-5)
    loaded.save_pretrained(tmp_path / "again")
    again = load_denoiser(tmp_path / "again")
    assert again.call_signature == loaded.call_signature
    assert torch.equal(again(x, t), loaded(x, t))
    torch.testing.assert_close(load_denoiser(tmp_path / "again", shifted=False)(x, t), plain)
    published.write_mdlm_hub(tmp_path / "again", network())
    with pytest.raises(ValueError, match="attention"):
        load_denoiser(tmp_path / "again", attention="full")
    (tmp_path / "denoiser.json").write_text('{"atention": "full"}')
    with pytest.raises(CheckpointError, match="atention"):
        load_denoiser(tmp_path)


def test_other_models_are_saved_with_how_they_are_called(tmp_path: Path) -> None:
    bert, (x, t) = tiny_bert(tmp_path / "bert"), example()
    peft = pytest.importorskip("peft", reason="LoRA is an optional extra")
    config = peft.LoraConfig(target_modules=["query"], init_lora_weights=False)
    adapted = as_denoiser(peft.get_peft_model(bert, config).eval())
    with pytest.raises(ValueError, match="merge_lora"):
        adapted.save_pretrained(tmp_path / "adapted")
    expected = adapted(x, t).detach()
    merge_lora(adapted).save_pretrained(tmp_path / "adapted")
    torch.testing.assert_close(load_denoiser(tmp_path / "adapted")(x, t), expected, atol=1e-5, rtol=1e-5)
    plain = as_denoiser(nn.Sequential(nn.Embedding(VOCABULARY, VOCABULARY)), ids="positional")
    plain.save_pretrained(tmp_path / "plain")
    assert set(load_file(tmp_path / "plain" / "model.safetensors")) == {"0.weight"}
    with pytest.raises(TypeError, match="function"):
        as_denoiser(lambda x: x, ids="x").save_pretrained(tmp_path / "function")
    told = as_denoiser(
        nn.Embedding(2, 2), ids="positional", time="t", time_conditioning=True, schedule=CosineSchedule()
    )
    with pytest.raises(ValueError, match="Cosine"):
        told.save_pretrained(tmp_path / "told")


def test_foreign_weights_in_half_precision_come_back_in_full(tmp_path: Path) -> None:
    """ESM keeps its rotary frequencies in the file, where they are rounded with the rest."""
    model = randomised(masked_lm("esm"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # so that only the frequencies can differ
    frequencies = {name: value.clone() for name, value in model.named_buffers() if name.endswith("inv_freq")}
    assert frequencies
    copy.deepcopy(model).bfloat16().save_pretrained(tmp_path)
    loaded = load_denoiser(tmp_path)
    assert {value.dtype for value in loaded.parameters()} == {torch.float32}
    for name, value in frequencies.items():
        torch.testing.assert_close(loaded.model.get_buffer(name), value, rtol=1e-6, atol=0)
    x, t = torch.randint(1, 10, (2, 12), generator=torch.Generator().manual_seed(0)), torch.ones(2)
    torch.testing.assert_close(loaded(x, t), model(x).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": 3 * 10**7},
        {"num_hidden_layers": 10**6},
        {"max_position_embeddings": 10**10},
        {"intermediate_size": 10**9},
        {"hidden_size": "wide"},
        {"num_attention_heads": 0},
        {"architectures": 5},
        {"auto_map": 5},
    ],
)
def test_a_foreign_config_file_that_asks_for_more_than_the_weights(tmp_path: Path, changes: dict[str, Any]) -> None:
    tiny_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


CODE = """
from pathlib import Path
from transformers import BertConfig, BertForMaskedLM
Path({trace!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnForMaskedLM(BertForMaskedLM):
    config_class = OwnConfig
"""


def test_code_of_a_repository_runs_only_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, trace = tiny_bert(tmp_path / "model"), tmp_path / "trace"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "model" / "own.py").write_text(CODE.format(trace=str(trace)))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForMaskedLM": "own.OwnForMaskedLM"}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": auto_map}))
    with pytest.raises(ValueError, match=r"brings code of its own .*trust_remote_code=True"):
        load_denoiser(tmp_path / "model")
    assert not trace.exists()
    x, t = example()
    loaded = load_denoiser(tmp_path / "model", trust_remote_code=True)
    assert trace.exists()
    torch.testing.assert_close(loaded(x, t), model(x).logits)


def test_code_beside_a_model_of_a_known_kind_is_not_even_asked_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """transformers would ask at the terminal whether to run it."""
    model, trace = tiny_bert(tmp_path / "model"), tmp_path / "trace"
    (tmp_path / "model" / "own.py").write_text(CODE.format(trace=str(trace)))
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    auto_map = {"AutoConfig": "own.OwnConfig", "AutoModelForMaskedLM": "own.OwnForMaskedLM"}
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "auto_map": auto_map}))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    x, t = example()
    torch.testing.assert_close(load_denoiser(tmp_path / "model")(x, t), model(x).logits)
    assert not trace.exists()


def test_weights_of_others_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tiny_bert(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["bert.encoder.layer.0.output.dense.bias"][0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"output\.dense\.bias"):
        load_denoiser(tmp_path)


def test_weights_in_several_files(tmp_path: Path) -> None:
    model, (x, t) = tiny_bert(tmp_path / "whole"), example()
    model.save_pretrained(tmp_path / "parts", max_shard_size="5KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    torch.testing.assert_close(load_denoiser(tmp_path / "parts")(x, t), model(x).logits)
    config = json.loads((tmp_path / "parts" / "config.json").read_text())
    (tmp_path / "parts" / "config.json").write_text(json.dumps({**config, "vocab_size": 3 * 10**7}))
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path / "parts")
    index = tmp_path / "parts" / "model.safetensors.index.json"
    for wrong, error in (
        ({"weight_map": 3}, CheckpointError),
        ({"weight_map": {"w": "no.safetensors"}}, FileNotFoundError),
    ):
        index.write_text(json.dumps(wrong))
        with pytest.raises(error):
            load_denoiser(tmp_path / "parts")


def pickled_bert(folder: Path, **changes: Any) -> torch.nn.Module:
    """A folder of transformers' older layout; head and embedding are one tensor, as BERT's are."""
    model = tiny_bert(folder)
    (folder / "model.safetensors").unlink()
    torch.save({**model.state_dict(), **changes}, folder / "pytorch_model.bin")
    return model


def test_weights_of_the_older_layout(tmp_path: Path) -> None:
    """Read as a pickle of tensors, and as strictly as safetensors."""
    model, (x, t) = pickled_bert(tmp_path), example()
    torch.testing.assert_close(load_denoiser(tmp_path)(x, t), model(x).logits)
    weights = {name: value.half() for name, value in model.state_dict().items()}
    torch.save(weights, tmp_path / "pytorch_model.bin")
    loaded = load_denoiser(tmp_path)
    assert {each.dtype for each in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(x, t), model(x).logits, atol=1e-2, rtol=1e-2)
    broken = "bert.encoder.layer.0.output.dense.bias"
    missing = {name: value for name, value in model.state_dict().items() if name != broken}
    claims = {**missing, broken: torch.zeros(1).expand(WIDTH)}
    nan = {**missing, broken: torch.full((WIDTH,), torch.nan)}
    for wrong, message in (
        (missing, f"missing: {broken}"),
        ({**missing, broken: torch.ones(3)}, "another shape"),
        ({**missing, broken: "ones"}, "holds a str"),
        (claims, "claims"),
        (nan, "not finite"),
        (list(missing.values()), "not a dictionary of tensors"),
    ):
        torch.save(wrong, tmp_path / "pytorch_model.bin")
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(tmp_path)


class Code:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return (Path.touch, (self.file,))


def test_nothing_in_the_older_layout_is_run_and_no_size_is_believed(tmp_path: Path) -> None:
    pickled_bert(tmp_path, code=Code(tmp_path / "ran"))
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path)
    assert not (tmp_path / "ran").exists()
    pickled_bert(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in (("vocab_size", 10**9), ("num_hidden_layers", 10**6)):
        (tmp_path / "config.json").write_text(json.dumps({**config, name: value}))
        with pytest.raises(CheckpointError, match=r"claims|num_hidden_layers"):
            load_denoiser(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "pytorch_model.bin").write_bytes((tmp_path / "pytorch_model.bin").read_bytes()[:1000])
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path)
    (tmp_path / "pytorch_model.bin").rename(tmp_path / "pytorch_model-00001-of-00002.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="save_pretrained"):
        load_denoiser(tmp_path)
