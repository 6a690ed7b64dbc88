"""Signs of trouble in the metrics of a run, each with what it means and what to do."""

from __future__ import annotations

from .mode_collapse import mode_collapse

ENTROPY_KEPT = 0.5
CHANCE, CERTAIN = 0.55, 0.98
OFTEN = 0.25
TRAINED_NETWORKS = ("student", "auxiliary", "discriminator")

History = list[dict[str, float]]


def explain(history: History) -> dict[str, str]:
    """Describe signs of trouble in the metrics of a run, by name; empty where nothing is wrong.

    Args:
        history: lines of ``metrics.jsonl``, oldest first.

    Examples:
        >>> list(explain([{"step": 10.0, "discriminator_accuracy": 0.5, "clipped_rewards": 0.9}]))
        ['discriminator', 'clipped_rewards']
    """
    if not history:
        return {}
    last = history[-1]
    return {
        **_skipped(last),
        **_collapse(history),
        **_entropy(history),
        **_discriminator(last),
        **_rewards(last),
    }


def _skipped(last: dict[str, float]) -> dict[str, str]:
    counts = {name: last.get(f"{name}_skipped_updates", 0.0) for name in TRAINED_NETWORKS}
    return {
        f"{name}_skipped_updates": f"{count:.0f} updates of the {name} had a gradient that was not finite and were "
        "skipped. A few do no harm; lower its learning rate, or use fp32, where there are more."
        for name, count in counts.items()
        if count
    }


def _collapse(history: History) -> dict[str, str]:
    sign = mode_collapse(history)
    return {} if sign is None else {"mode_collapse": f"{sign}; see stop_on_collapse."}


def _entropy(history: History) -> dict[str, str]:
    values = [line["entropy"] for line in history if "entropy" in line]
    if not values or values[-1] >= ENTROPY_KEPT * values[0]:
        return {}
    return {
        "entropy": f"COLLAPSE: the entropy of the student's predictions fell from {values[0]:.2f} to {values[-1]:.2f} "
        "nats. It keeps to ever fewer tokens, which a judge of perplexity likes: compare at equal entropy. Lower the "
        "student's learning rate, or raise regularization.data_kl.coefficient or entropy_coefficient."
    }


def _discriminator(last: dict[str, float]) -> dict[str, str]:
    accuracy = last.get("discriminator_accuracy")
    if accuracy is None or CHANCE <= accuracy <= CERTAIN:
        return {}
    if accuracy < CHANCE:
        meaning = (
            f"The discriminator is near chance (accuracy {accuracy:.2f}): its reward and its guidance say little. "
            "Either the student is as good as its reference, or the discriminator lags: raise its learning rate, or "
            "take log_ratio.warmup."
        )
    else:
        meaning = (
            f"The discriminator is nearly certain (accuracy {accuracy:.2f}): the student is far from its reference, "
            "and log-ratios are large and alike within a group. Lower its learning rate, or raise label_smoothing."
        )
    return {"discriminator": meaning}


def _rewards(last: dict[str, float]) -> dict[str, str]:
    found = {}
    for name, what, remedy in (
        ("clipped_rewards", "raw log-ratios", "reward_clip"),
        ("clipped_advantages", "advantages", "advantages.clip"),
    ):
        share = last.get(name, 0.0)
        if share > OFTEN:
            found[name] = (
                f"{share:.0%} of the {what} are clipped: most samples of a group get the same reward, whatever "
                f"their differences. The ratio estimate is too sharp for its clip: raise {remedy}, or lower the "
                "learning rate of the ratio."
            )
    if last.get("log_ratio_std", 1.0) == 0.0:
        found["log_ratio_std"] = (
            "All samples of the last batches have one and the same log-ratio: there is nothing to prefer, and the "
            "student does not learn. It may have collapsed onto one sequence."
        )
    return found
