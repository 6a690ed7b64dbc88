"""A denoiser in EleutherAI's lm-evaluation-harness: ``lm_eval.simple_evaluate(model=DenoiserLM(text_model), ...)``."""

from __future__ import annotations

from typing import Any

from ..checks import check_count
from ..evaluation import TextModel

try:
    from lm_eval.api.model import LM
except ImportError as error:
    raise ImportError("this needs lm-evaluation-harness: pip install 'discrete_distill[lm-eval]'") from error


class DenoiserLM(LM):
    """The three kinds of requests of the harness, answered by a `TextModel`.

    ``loglikelihood`` and ``loglikelihood_rolling`` are lower bounds, estimated from ``num_samples`` corruptions of the
    text model: perplexities are upper bounds, and choices are compared by bounds. In ``generate_until`` the sampler of
    the text model draws; a task's ``until`` and ``max_gen_toks`` are obeyed, and its ``temperature``, ``do_sample`` and
    the like are not read.

    Args:
        text_model: see `TextModel`.
        max_gen_toks: generated tokens where a task states none.

    Raises:
        TypeError: if the number is no integer, or the text model of another class.
        ValueError: if the number is below 1.

    Examples:
        >>> from lm_eval.api.instance import Instance
        >>> from discrete_distill.evaluation import TextModel
        >>> options = {"encode": lambda text: [int(word) for word in text.split()], "decode": str, "max_length": 16}
        >>> model = DenoiserLM(TextModel(process, teacher, AncestralSampler(process), **options))
        >>> model.loglikelihood([Instance("loglikelihood", {}, ("1 2", " 3"), 0)])  # One of eight.
        [(-2.079..., False)]
    """

    def __init__(self, text_model: TextModel, *, max_gen_toks: int = 256) -> None:
        super().__init__()
        if not isinstance(text_model, TextModel):
            raise TypeError(f"text_model must be a TextModel, got {type(text_model).__name__}")
        self.text_model = text_model
        self.max_gen_toks = check_count("max_gen_toks", max_gen_toks)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """Bounds of ``(context, continuation)``, and whether greedy decoding gives the continuation."""
        return self._each("loglikelihood", requests, self.text_model.log_likelihood)

    def loglikelihood_rolling(self, requests: list[Any]) -> list[float]:
        """Bounds of whole texts."""
        return self._each("loglikelihood_rolling", requests, self.text_model.rolling_log_likelihood)

    def generate_until(self, requests: list[Any]) -> list[str]:
        """Completions of ``(context, {"until": ..., "max_gen_toks": ...})``."""
        options = [request.args[1] for request in requests]
        stops = [each.get("until") or () for each in options]
        completions = self.text_model.complete(
            [request.args[0] for request in requests],
            max_new_tokens=[each.get("max_gen_toks", self.max_gen_toks) for each in options],
            stop=[(stop,) if isinstance(stop, str) else tuple(stop) for stop in stops],
        )
        for request, completion in zip(requests, completions, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, completion)
        return completions

    def _each(self, kind: str, requests: list[Any], answer: Any) -> list[Any]:
        answers = []
        for request in requests:
            answers.append(answer(*request.args))
            self.cache_hook.add_partial(kind, request.args, answers[-1])
        return answers
