"""Damaged and hostile files: refused at once, by name, and nothing in them is run."""

import io
import json
import pickle
import re
import resource
import struct
import sys
import time
import types
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from discrete_distill.models import CheckpointError, Discriminator, DiT, DiTConfig, load_denoiser, load_discriminator
from discrete_distill.models.io.weights import Inert, read_pickle, read_safetensors, read_weights

CONFIG = DiTConfig(vocab_size=7, max_length=6, hidden_size=8, num_layers=2, num_heads=2, cond_size=4)


@pytest.fixture(autouse=True)
def within_a_second() -> object:
    started = time.process_time()
    yield
    assert time.process_time() - started < 1.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    DiT(CONFIG).save_pretrained(tmp_path)
    return tmp_path


def cut(file: Path, size: int) -> None:
    with file.open("r+b") as stream:
        stream.truncate(size)


@pytest.mark.parametrize("size", [0, 5, 40, -1])
def test_a_safetensors_file_that_is_cut_short(folder: Path, size: int) -> None:
    file = folder / "model.safetensors"
    cut(file, size if size >= 0 else file.stat().st_size - 1)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is (cut short|damaged)"):
        DiT.from_pretrained(folder)
    with pytest.raises(CheckpointError, match=r"cut short|damaged"):
        load_denoiser(file)


def test_a_header_of_ten_gigabytes(tmp_path: Path) -> None:
    """Declared in a small file, and in a sparse one that is as large as it says."""
    for name, size in (("small", 100), ("large", 10**10 + 8)):
        file = tmp_path / f"{name}.safetensors"
        file.write_bytes(struct.pack("<Q", 10**10) + b"{")
        with file.open("r+b") as stream:
            stream.truncate(size)
        with pytest.raises(CheckpointError, match="declares a header of 10000000000 bytes"):
            read_safetensors(file)


def test_a_tensor_that_claims_more_than_the_file_holds(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(CheckpointError, match="damaged"):
        read_safetensors(tmp_path / "model.safetensors")


def test_each_wrong_weight_is_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    # Copies: safetensors before 0.8 writes over the file that the tensors are mapped from.
    good = {name: value.clone() for name, value in load_file(file).items()}
    wrong = {
        r"missing: blocks\.1\.norm2\.weight$": {"blocks.1.norm2.weight": None},
        r"unknown: blocks\.1\.norm3\.weight$": {"blocks.1.norm3.weight": torch.ones(8)},
        r"blocks\.0\.attn_out\.weight has shape \(8, 9\), not \(8, 8\)$": {
            "blocks.0.attn_out.weight": torch.ones(8, 9)
        },
        r"output_layer\.linear\.bias has dtype torch\.int64, not torch\.float32$": {
            "output_layer.linear.bias": torch.ones(7, dtype=torch.long)
        },
        r"output_layer\.linear\.bias has dtype torch\.float8_e4m3fn": {
            "output_layer.linear.bias": torch.ones(7).to(torch.float8_e4m3fn)
        },
    }
    for message, change in wrong.items():
        changed = {name: value for name, value in {**good, **change}.items() if value is not None}
        save_file(changed, file)
        with pytest.raises(CheckpointError, match=message):
            DiT.from_pretrained(folder)
    save_file({name: value.bfloat16() for name, value in good.items()}, file)
    assert DiT.from_pretrained(folder).blocks[0].attn_qkv.weight.dtype == torch.float32


@pytest.mark.parametrize("changes", [{"num_layers": 10**9}, {"hidden_size": 2 * 10**6}, {"vocab_size": 10**10}])
def test_a_config_file_that_wants_more_memory_than_there_is(folder: Path, changes: dict[str, int]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    for load in (DiT.from_pretrained, load_denoiser):
        with pytest.raises(CheckpointError, match="config file"):
            load(folder)
    Discriminator(CONFIG, 1).save_pretrained(folder)
    config = {"backbone": {**config, **changes}, "trainable_blocks": 1}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="config file"):
        Discriminator.from_pretrained(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": "long"},
        {"widht": 3},
        {"max_length": 0},
        {"max_length": float("nan")},
        {"max_length": 8.5},
        {"dropout": float("nan")},
        {"dropout": "a"},
        {"dropout": 7},
        {"num_layers": True},
        {"time_conditioning": 1},
    ],
)
def test_a_config_file_that_describes_no_network(folder: Path, changes: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    for load in (DiT.from_pretrained, load_denoiser):
        with pytest.raises(CheckpointError, match=next(iter(changes))):
            load(folder)
    Discriminator(CONFIG, 1).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"backbone": {**config, **changes}, "trainable_blocks": 1}))
    with pytest.raises(CheckpointError, match=next(iter(changes))):
        Discriminator.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[1]", "null", "5", '"x"', "{" * 100_000, "[" * 100_000, "\x00"])
def test_a_config_file_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    for load in (load_denoiser, DiT.from_pretrained):
        with pytest.raises(CheckpointError, match=r"config\.json"):
            load(folder)


@pytest.mark.parametrize("backbone", [5, None, [1], "x"])
def test_a_discriminator_without_a_shape(folder: Path, backbone: object) -> None:
    Discriminator(CONFIG, 1).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"backbone": backbone, "trainable_blocks": 1}))
    for load in (load_discriminator, Discriminator.from_pretrained):
        with pytest.raises((CheckpointError, FileNotFoundError)):
            load(folder)


NOT_NUMBERS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "repeated": lambda value: value.flatten()[:1].clone().expand(value.numel()).view(value.shape),
    "sparse": lambda value: value.to_sparse(),
    "meta": lambda value: value.to("meta"),
    "NaN": lambda value: value * torch.nan,
    "infinite": lambda value: value + torch.inf,
}


@pytest.mark.parametrize("kind", NOT_NUMBERS)
@pytest.mark.parametrize("name", ["blocks.0.attn_out.weight", "vocab_embed.embedding", "rotary_emb.inv_freq"])
def test_weights_that_are_no_numbers_of_the_file(tmp_path: Path, kind: str, name: str) -> None:
    weights = DiT(CONFIG).state_dict()
    weights[name] = NOT_NUMBERS[kind](weights[name])
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=name.rpartition(".")[2]):
        load_denoiser(tmp_path / "model.pt")


@pytest.mark.parametrize("vocabulary", [24 * 10**6, 2 * 10**12])
def test_a_small_file_whose_tensors_claim_terabytes(tmp_path: Path, vocabulary: int) -> None:
    weights = DiT(CONFIG).state_dict()
    weights["vocab_embed.embedding"] = torch.zeros(1).expand(vocabulary, 8)
    weights["output_layer.linear.weight"] = torch.zeros(1).expand(vocabulary, 8)
    weights["output_layer.linear.bias"] = torch.zeros(1).expand(vocabulary)
    torch.save(weights, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").stat().st_size < 100_000
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="claims"):
        load_denoiser(tmp_path / "model.pt")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_a_network_of_a_thousand_blocks(tmp_path: Path) -> None:
    weights = DiT(CONFIG).state_dict()
    block = {name.removeprefix("blocks.0"): value for name, value in weights.items() if name.startswith("blocks.0")}
    weights |= {f"blocks.{i}{name}": value for i in range(1000) for name, value in block.items()}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="1000"):
        load_denoiser(tmp_path / "model.pt")


def test_blocks_that_share_their_numbers(tmp_path: Path) -> None:
    """A small file would be a large network."""
    weights = DiT(CONFIG).state_dict()
    block = {name.removeprefix("blocks.0"): value for name, value in weights.items() if name.startswith("blocks.0")}
    weights |= {f"blocks.{i}{name}": value for i in range(30) for name, value in block.items()}
    torch.save(weights, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="share"):
        load_denoiser(tmp_path / "model.pt")


def test_a_header_of_a_million_tensors(tmp_path: Path) -> None:
    entry = '"%07d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = ("{" + ",".join(entry % i for i in range(100_000)) + "}").encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=str(len(header))):
        read_safetensors(tmp_path / "model.safetensors")


@pytest.mark.parametrize("depth", [1, 10**4])
def test_a_pickle_of_endless_instructions(tmp_path: Path, depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuple of a tuple, and so on; and compressed, so that a small file is a long pickle."""
    monkeypatch.setattr("discrete_distill.models.io.weights.INSTRUCTIONS_LIMIT", 10**4)
    pickled = b"\x80\x02}" + b")" * (10**4 // depth) + b"\x85" * depth + b"."
    for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        packed = io.BytesIO()
        torch.save({}, packed)
        with (
            zipfile.ZipFile(packed) as source,
            zipfile.ZipFile(tmp_path / "model.ckpt", "w", compression) as target,
        ):
            for record in source.infolist():
                is_pickle = record.filename.endswith("data.pkl")
                target.writestr(record.filename, pickled if is_pickle else source.read(record))
        with pytest.raises(CheckpointError, match=r"instructions|compressed"):
            read_pickle(tmp_path / "model.ckpt")


def test_a_compressed_archive_is_refused_however_small(tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(DiT(CONFIG).state_dict(), file)
    with zipfile.ZipFile(file) as source:
        records = {record.filename: source.read(record) for record in source.infolist()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in records.items():
            target.writestr(name, content)
    with pytest.raises(CheckpointError, match="compressed"):
        load_denoiser(file)


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize("in_state", [False, True])
def test_a_pickle_with_code_is_refused_and_nothing_of_it_runs(tmp_path: Path, in_state: bool) -> None:
    trace = tmp_path / "trace"
    code = Runs(eval, f"open({str(trace)!r}, 'w').close()")
    payload = {"state_dict": {"w": code}} if in_state else {"state_dict": {}, "hyper_parameters": code}
    torch.save(payload, tmp_path / "model.ckpt")
    with pytest.raises(CheckpointError, match=r"names code that is not weights: builtins\.eval; nothing of it was run"):
        load_denoiser(tmp_path / "model.ckpt")
    assert not trace.exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert trace.exists()


def test_a_plain_pickle_is_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    (tmp_path / "model.pt").write_bytes(pickle.dumps(Runs(eval, f"open({str(trace)!r}, 'w').close()")))
    with pytest.raises(CheckpointError, match="is no zip archive"):
        load_denoiser(tmp_path / "model.pt")
    assert not trace.exists()


def test_damaged_archives_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"w": torch.ones(1000)}}, file)
    whole = file.read_bytes()
    for part in (whole[:-1000], whole[: len(whole) // 2], whole[:2000] + whole[2600:]):
        file.write_bytes(part)
        with pytest.raises(CheckpointError, match=r"damaged|no zip archive"):
            read_pickle(file)
    for content, message in ((torch.ones(2), "holds a Tensor"), ([1], "holds a list")):
        torch.save(content, file)
        with pytest.raises(CheckpointError, match=message):
            read_pickle(file)


def test_an_archive_whose_pickle_unpacks_to_gigabytes(tmp_path: Path) -> None:
    file, packed = tmp_path / "model.ckpt", io.BytesIO()
    torch.save({}, packed)
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as target:
        for record in source.infolist():
            content = source.read(record)
            target.writestr(record.filename, bytes(65_000_000) if record.filename.endswith("data.pkl") else content)
    assert file.stat().st_size < 200_000
    with pytest.raises(CheckpointError, match="65000000"):
        read_pickle(file)


def test_settings_beside_the_weights_are_read_as_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classes of other libraries, as training checkpoints hold them: not imported, not called."""
    module = types.ModuleType("omegaconf.dictconfig")
    made = []

    class DictConfig:
        def __init__(self) -> None:
            self.content = {"lr": 1e-4}

        def __setstate__(self, state: object) -> None:
            made.append(state)

        def __getstate__(self) -> object:
            return {"content": self.content}

    DictConfig.__module__, DictConfig.__qualname__ = "omegaconf.dictconfig", "DictConfig"
    module.DictConfig = DictConfig  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, "omegaconf.dictconfig", module)
    payload = {"state_dict": {"w": torch.arange(3.0)}, "hyper_parameters": {"config": DictConfig()}, "epoch": 3}
    torch.save(payload, tmp_path / "model.ckpt")
    allowed = set(torch.serialization.get_safe_globals())
    read = read_pickle(tmp_path / "model.ckpt")
    assert isinstance(read["hyper_parameters"]["config"], Inert)
    assert read["epoch"] == 3
    assert read["state_dict"]["w"].tolist() == [0.0, 1.0, 2.0]
    assert not made
    assert set(torch.serialization.get_safe_globals()) == allowed


def test_a_file_of_another_kind_or_none(tmp_path: Path) -> None:
    (tmp_path / "model.npz").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"ends neither in \.safetensors nor"):
        read_weights(tmp_path / "model.npz")
    with pytest.raises(FileNotFoundError, match="nothing at"):
        load_denoiser(tmp_path / "nowhere.ckpt")
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors"):
        load_denoiser(tmp_path)


LOADERS = (DiT.from_pretrained, Discriminator.from_pretrained, load_denoiser, load_discriminator)


@pytest.mark.parametrize("load", LOADERS)
@pytest.mark.parametrize("name", ["a/folder/that/is/not/there", "./nowhere", "no such folder"])
def test_a_name_that_neither_disk_nor_hub_can_have(load, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"nothing at {re.escape(name)}"):
        load(name)
