"""Weights as others publish them: loaded strictly, the same logits, one wrong key refused by name."""

import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import published
import pytest
import torch
from published import BLOCKS, VOCABULARY, denoiser, network, prefixed
from safetensors.torch import load_file, save_file
from torch import Tensor

from discrete_distill.models import CheckpointError, Discriminator, DiT, load_denoiser, load_discriminator
from discrete_distill.models.io import hub as hub_module


def example() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(VOCABULARY, (3, 7), generator=generator), torch.rand(3, generator=generator)


def assert_same(loaded: DiT, weights: dict[str, Tensor], **settings: object) -> None:
    expected = denoiser(weights, **settings)
    assert loaded.config == expected.config
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert torch.equal(loaded(*example()), expected(*example()))


def test_the_names_and_shapes_are_our_networks_own() -> None:
    ours = {name: tuple(value.shape) for name, value in denoiser(network()).named_parameters()}
    assert list(ours) == published.names_of_the_network()
    assert ours == {name: published.shape_of(name) for name in ours}


def test_mdlm_on_the_hub(tmp_path: Path) -> None:
    published.write_mdlm_hub(tmp_path, network())
    assert_same(load_denoiser(tmp_path), network(), max_length=16)
    assert_same(load_denoiser(tmp_path / "model.safetensors", max_length=32), network(), max_length=32)


@pytest.mark.parametrize("prefix", ["backbone.", "backbone.backbone."])
def test_sdtt_on_the_hub(tmp_path: Path, prefix: str) -> None:
    published.write_sdtt_hub(tmp_path, network(), prefix)
    assert_same(load_denoiser(tmp_path), network(), max_length=16)


def test_a_config_file_that_contradicts_the_weights_is_refused(tmp_path: Path) -> None:
    for name, wrong, ours in (("n_heads", 4, "num_heads = 4, its weights 3"), ("n_blocks", 9, "num_layers = 9")):
        published.write_mdlm_hub(tmp_path, network(), **{name: wrong})
        with pytest.raises(CheckpointError, match=f"its config file has {ours}"):
            load_denoiser(tmp_path)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_lightning_checkpoints_of_mdlm_and_duo(tmp_path: Path, compiled: bool, time_conditioning: bool) -> None:
    """Evaluated with the moving average, which is stored in order and without names."""
    raw, shadows = network(0), network(1)
    state = prefixed(raw, "backbone._orig_mod." if compiled else "backbone.")
    published.write_lightning(tmp_path / "duo.ckpt", state, shadows)
    options = {"time_conditioning": time_conditioning, "max_length": 16}
    assert_same(load_denoiser(tmp_path / "duo.ckpt", **options), shadows, **options)
    assert_same(load_denoiser(tmp_path / "duo.ckpt", averaging="raw", **options), raw, **options)


class DictConfig:
    """Pickles as OmegaConf's dictionary: what it holds lies in ``_content``."""


class AnyNode:
    """Likewise its leaf: its value is ``_val``."""


@pytest.fixture
def omegaconf(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    for name, kind in (("omegaconf.dictconfig", DictConfig), ("omegaconf.nodes", AnyNode)):
        module = types.ModuleType(name)
        setattr(module, kind.__name__, kind)
        monkeypatch.setattr(kind, "__module__", name)
        monkeypatch.setitem(sys.modules, name, module)


def omegaconf_of(settings: Any) -> Any:
    made = DictConfig() if isinstance(settings, dict) else AnyNode()
    content = {name: omegaconf_of(each) for name, each in settings.items()} if isinstance(settings, dict) else settings
    made.__dict__.update({"_content" if isinstance(settings, dict) else "_val": content, "_parent": None})
    return made


@pytest.mark.usefixtures("omegaconf")
@pytest.mark.parametrize("stored", ["omegaconf", "plain"])
@pytest.mark.parametrize(
    ("said", "noise"),
    [
        ({"algo": {"name": "duo_base", "backbone": "dit"}}, "uniform"),
        ({"algo": {"name": "duo"}}, "uniform"),
        ({"diffusion": "uniform", "parameterization": "d3pm"}, "uniform"),
        ({"algo": {"name": "udlm"}}, "uniform"),
        ({"diffusion": "absorbing_state"}, "masked"),
        ({"algo": {"name": "mdlm"}}, "masked"),
        ({"algo": {"name": "distillation"}}, "unknown"),
        ({"seed": 1}, "unknown"),
    ],
)
def test_a_checkpoint_says_on_which_noise_it_was_trained(
    stored: str, said: dict[str, Any], noise: str, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    """As DUO's, UDLM's and MDLM's Lightning modules store their configuration."""
    settings = {"config": omegaconf_of(said) if stored == "omegaconf" else said}
    file = tmp_path / "last.ckpt"
    published.write_lightning(file, prefixed(network(0), "backbone."), network(1), hyper_parameters=settings)
    if noise == "uniform":
        with pytest.raises(ValueError, match="uniform-state model"):
            load_denoiser(file)
        return
    assert_same(load_denoiser(file), network(1))
    assert any("on which noise" in str(each.message) for each in recwarn) == (noise == "unknown")


def test_a_checkpoint_without_settings_is_warned_of_and_a_config_file_beside_it_is_read(tmp_path: Path) -> None:
    published.write_lightning(tmp_path / "last.ckpt", prefixed(network(0), "backbone."), network(1))
    with pytest.warns(UserWarning, match="does not say on which noise"):
        load_denoiser(tmp_path / "last.ckpt")
    (tmp_path / "config.json").write_text('{"model_type": "duo"}')
    with pytest.raises(ValueError, match="uniform-state model"):
        load_denoiser(tmp_path / "last.ckpt")


def test_settings_and_tokeniser_in_a_checkpoint_are_not_needed(tmp_path: Path) -> None:
    """Lightning stores them as objects, which ``weights_only`` alone refuses."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0}, merges=[]))
    settings = {"tokenizer": transformers.PreTrainedTokenizerFast(tokenizer_object=backend, mask_token="[MASK]")}
    state = prefixed(network(0), "backbone.")
    published.write_lightning(tmp_path / "mdlm.ckpt", state, network(1), hyper_parameters=settings)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        torch.load(tmp_path / "mdlm.ckpt", weights_only=True)
    assert_same(load_denoiser(tmp_path / "mdlm.ckpt"), network(1))


def test_without_a_moving_average_the_raw_weights_must_be_asked_for(tmp_path: Path) -> None:
    published.write_lightning(tmp_path / "mdlm.ckpt", prefixed(network(), "backbone."), None)
    with pytest.raises(CheckpointError, match=r'holds no moving average; .* averaging="raw"'):
        load_denoiser(tmp_path / "mdlm.ckpt")
    assert_same(load_denoiser(tmp_path / "mdlm.ckpt", averaging="raw"), network())


def test_a_moving_average_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state, names = prefixed(network(), "backbone."), published.names_of_the_network()
    published.write_lightning(tmp_path / "mdlm.ckpt", state, network(1))
    checkpoint = torch.load(tmp_path / "mdlm.ckpt", weights_only=True)
    shadows = checkpoint["ema"]["shadow_params"]
    swapped = [shadows[0], shadows[2], shadows[1], *shadows[3:]]
    for wrong, message in (
        (shadows[:-1], rf"of {len(names) - 1} parameters; the network has {len(names)}"),
        (swapped, r"in the place of sigma_map\.mlp\.0\.weight has shape \(5,\)"),
    ):
        torch.save({**checkpoint, "ema": {"shadow_params": wrong}}, tmp_path / "mdlm.ckpt")
        with pytest.raises(CheckpointError, match=message):
            load_denoiser(tmp_path / "mdlm.ckpt")


def test_the_authors_student_and_discriminator(tmp_path: Path) -> None:
    judge, head = published.discriminator()
    published.write_didi_instruct_hub(tmp_path, network(), judge)
    assert_same(load_denoiser(tmp_path), network())
    for place in (tmp_path, tmp_path / "discriminator.safetensors"):
        loaded = load_discriminator(place, trainable_blocks=1)
        x_t, t = example()
        with torch.no_grad():
            torch.testing.assert_close(loaded(x_t, t), published.judged(judge, head, x_t, t), atol=1e-5, rtol=1e-5)
    assert loaded(x_t, t).std() > 0.01
    assert not torch.allclose(loaded(x_t, t), loaded(x_t, 0.5 * t))  # told the time, unlike the student
    trainable = {name for name, parameter in loaded.named_parameters() if parameter.requires_grad}
    assert all(name.startswith(("backbone.blocks.1.", "head.")) for name in trainable)
    assert len(load_discriminator(tmp_path).backbone.blocks) == load_discriminator(tmp_path).trainable_blocks == BLOCKS
    told_nothing = load_discriminator(tmp_path, time_conditioning=False)
    assert torch.equal(told_nothing(x_t, t), told_nothing(x_t, 0.5 * t))


def test_the_authors_training_checkpoint(tmp_path: Path) -> None:
    """The student's average is a network of its own there, and wins over Lightning's."""
    judge, head = published.discriminator()
    state = {
        **prefixed(network(0), "backbone."),
        **prefixed(network(1), "student_ema."),
        **prefixed(judge, "discriminator."),
        "reward_baseline": torch.tensor(0.0),
    }
    published.write_lightning(tmp_path / "didi-instruct.ckpt", state, network(2))
    assert_same(load_denoiser(tmp_path / "didi-instruct.ckpt"), network(1))
    assert_same(load_denoiser(tmp_path / "didi-instruct.ckpt", averaging="raw"), network(0))
    x_t, t = example()
    with torch.no_grad():
        loaded = load_discriminator(tmp_path / "didi-instruct.ckpt")
        torch.testing.assert_close(loaded(x_t, t), published.judged(judge, head, x_t, t), atol=1e-5, rtol=1e-5)
    published.write_lightning(tmp_path / "mdlm.ckpt", prefixed(network(0), "backbone."), None)
    with pytest.raises(CheckpointError, match="holds no discriminator"):
        load_discriminator(tmp_path / "mdlm.ckpt")
    # As their converter writes it: no plain weights, no Lightning average.
    converted = {name: value for name, value in state.items() if name.startswith(("student_ema.", "discriminator."))}
    published.write_lightning(tmp_path / "converted.ckpt", converted, None)
    assert_same(load_denoiser(tmp_path / "converted.ckpt"), network(1))


Change = Callable[[dict[str, Tensor], str], None]


def without(weights: dict[str, Tensor], name: str) -> None:
    del weights[name]


def with_another(weights: dict[str, Tensor], name: str) -> None:
    weights[f"{name}s"] = weights[name].clone()


def misshapen(weights: dict[str, Tensor], name: str) -> None:
    weights[name] = torch.cat((weights[name], weights[name][:1]))


CHANGES: list[tuple[Change, str]] = [
    (without, "missing: {name}$"),
    (with_another, "unknown: {name}s$"),
    (misshapen, r"{name} has shape \("),
]


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize("name", ["blocks.1.mlp.2.bias", "output_layer.linear.weight"])
def test_one_wrong_key_of_a_denoiser_is_refused_by_name(
    tmp_path: Path, change: Change, message: str, name: str
) -> None:
    weights = network()
    change(weights, name)
    published.write_mdlm_hub(tmp_path, weights)
    published.write_lightning(tmp_path / "mdlm.ckpt", prefixed(weights, "backbone."), None)
    published.write_lightning(tmp_path / "averaged.ckpt", prefixed(weights, "backbone."), network(1))
    published.write_lightning(tmp_path / "didi.ckpt", prefixed(weights, "student_ema."), None)
    escaped = message.format(name=name.replace(".", r"\."))
    with pytest.raises(CheckpointError, match=escaped):
        load_denoiser(tmp_path)
    with pytest.raises(CheckpointError, match=escaped):
        load_denoiser(tmp_path / "mdlm.ckpt", averaging="raw")
    with pytest.raises(CheckpointError, match=escaped):
        load_denoiser(tmp_path / "didi.ckpt")
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_denoiser(tmp_path / "averaged.ckpt")


@pytest.mark.parametrize("name", ["vocab_embed.embedding", "sigma_map.mlp.2.weight", "rotary_emb.inv_freq"])
def test_a_missing_key_that_tells_the_shape_is_named(tmp_path: Path, name: str) -> None:
    weights = network()
    del weights[name]
    published.write_mdlm_hub(tmp_path, weights)
    with pytest.raises(CheckpointError, match=f"missing: {name}"):
        load_denoiser(tmp_path)


@pytest.mark.parametrize(("change", "message"), CHANGES)
@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("output_layer.main.0.weight_orig", "head.0.parametrizations.weight.original"),
        ("output_layer.main.2.weight_v", "head.2.parametrizations.weight.0._v"),
        ("blocks.1.norm1.weight", "backbone.blocks.1.norm1.weight"),
    ],
)
def test_one_wrong_key_of_a_discriminator_is_refused_by_name(
    tmp_path: Path, change: Change, message: str, name: str, ours: str
) -> None:
    judge, _ = published.discriminator()
    change(judge, name)
    published.write_didi_instruct_hub(tmp_path, network(), judge)
    shown = f"backbone.{name}" if change is with_another and "main" in name else ours
    with pytest.raises(CheckpointError, match=message.format(name=shown.replace(".", r"\."))):
        load_discriminator(tmp_path)


def test_weights_of_an_unknown_part_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    for name in ("critic.w", 7):
        state = {**prefixed(network(), "backbone."), name: torch.ones(2)}
        published.write_lightning(tmp_path / "mdlm.ckpt", state, network(1))
        with pytest.raises(CheckpointError, match=f"weights of none of the known codes: {name}"):
            load_denoiser(tmp_path / "mdlm.ckpt")


def test_a_key_that_is_there_under_two_names_is_refused(tmp_path: Path) -> None:
    """Which of the two is meant, nobody can tell."""
    twice = {**prefixed(network(), "backbone."), "output_layer.linear.bias": torch.zeros(VOCABULARY)}
    save_file(twice, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"has output_layer\.linear\.bias twice"):
        load_denoiser(tmp_path)


def test_our_own_networks_by_the_same_two_functions(tmp_path: Path) -> None:
    student = denoiser(network(), max_length=16, step_conditioning=False, time_conditioning=True)
    student.add_step_conditioning()
    student.save_pretrained(tmp_path / "student")
    x_t, t = example()
    loaded = load_denoiser(tmp_path / "student")
    assert loaded.config == student.config
    assert torch.equal(loaded(x_t, t, s=0.5 * t), student.eval()(x_t, t, s=0.5 * t))
    assert load_denoiser(tmp_path / "student", max_length=8).config.max_length == 8
    judge = Discriminator.from_denoiser(denoiser(network()), trainable_blocks=1).eval()
    judge.save_pretrained(tmp_path / "judge")
    assert torch.equal(load_discriminator(tmp_path / "judge")(x_t, t), judge(x_t, t))
    assert load_discriminator(tmp_path / "judge", trainable_blocks=2).trainable_blocks == 2


def test_names_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own download function, with revision and token handed on; a file that is not there is None."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    published.write_didi_instruct_hub(tmp_path, network(), published.discriminator()[0])
    asked: list[tuple[str, dict[str, object]]] = []

    def download(repo_id: str, filename: str, **hub: object) -> str:
        asked.append((repo_id, hub))
        if not (tmp_path / filename).exists():
            raise EntryNotFoundError(f"no {filename}")
        return str(tmp_path / filename)

    monkeypatch.setattr(hub_module, "hf_hub_download", download)
    assert_same(load_denoiser("haoyangzheng/didi-instruct-small", revision="main"), network())
    assert load_discriminator("haoyangzheng/didi-instruct-small", token="t").final_norm is False
    assert {repo for repo, _ in asked} == {"haoyangzheng/didi-instruct-small"}
    assert [hub for _, hub in asked[:2]] == [{"revision": "main"}] * 2
    assert asked[-1][1] == {"token": "t"}
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model\.safetensors and no pytorch_model\.bin at user/model"):
        load_denoiser("user/model")

    def offline(**_: object) -> str:
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub_module, "hf_hub_download", offline)
    with pytest.raises(LocalEntryNotFoundError):
        load_denoiser("user/model")


def test_blocks_in_bf16_and_weights_in_half_precision(tmp_path: Path) -> None:
    published.write_mdlm_hub(tmp_path, network())
    loaded = load_denoiser(tmp_path, bf16_blocks=True)
    assert loaded.config.bf16_blocks
    assert loaded(*example()).dtype == torch.bfloat16
    half = {name: value.half() for name, value in load_file(tmp_path / "model.safetensors").items()}
    save_file(half, tmp_path / "model.safetensors")
    loaded = load_denoiser(tmp_path)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(*example()), denoiser(network())(*example()), atol=0.05, rtol=0.05)


def test_loading_draws_nothing_and_training_does_not_write_into_the_file(tmp_path: Path) -> None:
    published.write_didi_instruct_hub(tmp_path, network(), published.discriminator()[0])
    before, contents = torch.get_rng_state(), (tmp_path / "model.safetensors").read_bytes()
    loaded, _ = load_denoiser(tmp_path), load_discriminator(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        loaded.output_layer.linear.weight.fill_(7.0)
    assert (tmp_path / "model.safetensors").read_bytes() == contents
    assert_same(load_denoiser(tmp_path), network())


def test_models_of_uniform_noise_are_refused(tmp_path: Path) -> None:
    for changes in ({"model_type": "DUO"}, {"architectures": ["UDLM"]}, {"diffusion": "uniform"}):
        published.write_mdlm_hub(tmp_path, network(), **changes)
        for place in (tmp_path, tmp_path / "model.safetensors"):
            with pytest.raises(ValueError, match="uniform"):
                load_denoiser(place)


@pytest.mark.parametrize(
    "changes",
    [
        {"dropout": float("nan")},
        {"dropout": "a"},
        {"dropout": 7},
        {"model_length": float("nan")},
        {"model_length": 8.5},
        {"n_blocks": True},
        {"time_conditioning": "no"},
    ],
)
def test_odd_settings_of_published_networks_are_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    published.write_mdlm_hub(tmp_path, network(), **changes)
    with pytest.raises(CheckpointError):
        load_denoiser(tmp_path)


def test_rotary_frequencies_of_another_base_are_refused(tmp_path: Path) -> None:
    weights = network()
    weights["rotary_emb.inv_freq"] = weights["rotary_emb.inv_freq"] ** 1.5
    published.write_mdlm_hub(tmp_path, weights)
    with pytest.raises(CheckpointError, match="inv_freq"):
        load_denoiser(tmp_path)
