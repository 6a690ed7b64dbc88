"""The lm-evaluation-harness: its requests by a stand-in of its base class everywhere, a task of its own where it is."""

import importlib
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from discrete_distill import AncestralSampler, MaskedDiffusion, exact
from discrete_distill.evaluation import TextModel
from discrete_distill.models import DiT, DiTConfig

HERE = importlib.util.find_spec("lm_eval") is not None
MODULE = "discrete_distill.integrations.lm_eval"
LETTERS = "abcd"
PROCESS = MaskedDiffusion(len(LETTERS))


class BaseOfHarness:
    """What the integration uses of the harness's ``LM``."""

    def __init__(self) -> None:
        self.cached: list[tuple[str, Any, Any]] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *line: self.cached.append(line))


@pytest.fixture
def integration(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module, on the stand-in."""
    model: Any = ModuleType("lm_eval.api.model")
    model.LM = BaseOfHarness
    for name, module in (("lm_eval", ModuleType("lm_eval")), ("lm_eval.api", ModuleType("lm_eval.api"))):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", model)
    sys.modules.pop(MODULE, None)
    yield importlib.import_module(MODULE)
    sys.modules.pop(MODULE, None)


def text_model(denoiser: Any = None, **options: Any) -> TextModel:
    chain = exact.random_chain(len(LETTERS), torch.Generator().manual_seed(0))
    return TextModel(
        PROCESS,
        denoiser or chain.denoiser(len(LETTERS)),
        AncestralSampler(PROCESS, num_steps=3),
        encode=lambda text: [LETTERS.index(letter) for letter in text if letter in LETTERS],
        decode=lambda ids: "".join(LETTERS[index] for index in ids),
        max_length=12,
        num_samples=16,
        **options,
    )


def request(*args: Any) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_requests_are_answered_by_the_text_model_in_their_order_and_kept(integration: ModuleType) -> None:
    model = text_model()
    lm = integration.DenoiserLM(model, max_gen_toks=5)
    pairs = [("ab", "c"), ("", "abc"), ("dc", "ba")]
    assert lm.loglikelihood([request(*pair) for pair in pairs]) == [model.log_likelihood(*pair) for pair in pairs]
    texts = ["abcd", "dcbaabcdabcdabcd"]
    assert lm.loglikelihood_rolling([request(text) for text in texts]) == [
        model.rolling_log_likelihood(text) for text in texts
    ]
    options: list[dict[str, Any]] = [
        {},
        {"until": "a", "max_gen_toks": 7},
        {"until": ["b", "cc"], "temperature": 0.0, "do_sample": False},
        {"until": None},
    ]
    prompts = ["a", "b", "", "abc"]
    assert lm.generate_until([request(*pair) for pair in zip(prompts, options, strict=True)]) == model.complete(
        prompts, max_new_tokens=[5, 7, 5, 5], stop=[(), ("a",), ("b", "cc"), ()]
    )
    assert [(kind, args) for kind, args, _ in lm.cached] == [
        *(("loglikelihood", pair) for pair in pairs),
        *(("loglikelihood_rolling", (text,)) for text in texts),
        *(("generate_until", pair) for pair in zip(prompts, options, strict=True)),
    ]
    for kind in ("loglikelihood", "loglikelihood_rolling", "generate_until"):
        assert getattr(lm, kind)([]) == []


def test_what_is_no_text_model_is_refused(integration: ModuleType) -> None:
    with pytest.raises(TypeError, match="TextModel"):
        integration.DenoiserLM(torch.nn.Identity())
    with pytest.raises(ValueError, match="max_gen_toks"):
        integration.DenoiserLM(text_model(), max_gen_toks=0)


def test_without_the_harness_the_error_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lm_eval", "lm_eval.api", "lm_eval.api.model"):
        monkeypatch.setitem(sys.modules, name, None)  # type: ignore[arg-type]
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match="lm-eval"):
        importlib.import_module(MODULE)


TASKS: dict[str, str] = {
    "choice": """
output_type: multiple_choice
doc_to_text: "{{context}}"
doc_to_choice: ["a", "b", "cd"]
doc_to_target: "{{answer}}"
""",
    "completion": """
output_type: generate_until
doc_to_text: "{{context}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["d"], max_gen_toks: 4}
metric_list: [{metric: exact_match}]
""",
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
""",
}


@pytest.mark.skipif(not HERE, reason="lm-eval is not installed")
def test_a_task_of_each_kind_runs_in_the_harness(tmp_path: Path) -> None:
    import lm_eval
    from lm_eval.tasks import TaskManager

    from discrete_distill.integrations.lm_eval import DenoiserLM

    documents = [{"context": "ab", "answer": n % 3, "text": "abc" * (n + 1)} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(each) for each in documents))
    for name, text in TASKS.items():
        data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/rows.jsonl}}}}\ntest_split: test"
        (tmp_path / f"{name}.yaml").write_text(f"task: tiny_{name}\n{data}{text}")
    torch.manual_seed(0)
    shape = DiTConfig(vocab_size=5, max_length=12, hidden_size=8, num_layers=1, num_heads=1, cond_size=4)
    denoiser = DiT(shape)
    torch.nn.init.normal_(denoiser.output_layer.linear.weight)
    model = text_model(denoiser)
    found = lm_eval.simple_evaluate(
        model=DenoiserLM(model),
        tasks=[f"tiny_{name}" for name in TASKS],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]
    choices = [model.log_likelihood("ab", " " + each)[0] for each in ("a", "b", "cd")]
    assert found["tiny_choice"]["acc,none"] == sum(choices.index(max(choices)) == d["answer"] for d in documents) / 4
    drawn = model.complete(["ab"] * 4, max_new_tokens=4, stop=[("d",)] * 4)
    right = sum(text == document["text"] for text, document in zip(drawn, documents, strict=True))
    assert found["tiny_completion"]["exact_match,none"] == right / 4
    nats = -sum(model.rolling_log_likelihood(document["text"]) for document in documents)
    size = sum(len(document["text"]) for document in documents)
    bits = nats / size / torch.log(torch.tensor(2.0)).item()
    assert found["tiny_rolling"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
