"""Rewards and discriminators of guided sampling are passed the conditions of their sequences."""

import pytest
import torch
from counting import Counting, seeded
from test_rga import PROCESS, SHAPE, indifferent, small_discriminator

from discrete_distill import Discriminator, RGASampler, TeacherRatio

TOPICS = torch.tensor([0, 1, 2, 0, 1])


def by_topic(x_t, t, topic):
    """Prefers the word that is the topic of the sequence, whatever the batch."""
    return (x_t == topic[:, None]).double().sum(1)


class Topical(Discriminator):
    """One whose logits fall with the topic's soft embedding."""

    def forward(self, x_t, t, *, topic=None, attention_mask=None, inputs_embeds=None):
        h_BLD = self.embed(x_t) if inputs_embeds is None else inputs_embeds
        wanted_BD = self.embedding_weight()[topic]
        return -(h_BLD * wanted_BD[:, None]).sum(-1) * 1e3


def test_candidates_are_judged_under_the_conditions_of_their_sequence() -> None:
    sampler = RGASampler(PROCESS, reward=by_topic, num_steps=6, num_candidates=32, rerank_scale=1e3)
    out = sampler(indifferent, (5, 6), generator=seeded(0), model_kwargs={"topic": TOPICS})
    assert float((out.sequences == TOPICS[:, None]).double().mean()) > 0.9


def test_logits_are_tilted_under_the_conditions_of_their_sequence() -> None:
    torch.manual_seed(0)
    judge = Topical(SHAPE, trainable_blocks=1).eval()
    with torch.no_grad():
        judge.backbone.vocab_embed.embedding.copy_(torch.eye(4, 16))
    for chunk_rows in (1, 384):
        sampler = RGASampler(
            PROCESS, reward=judge, num_steps=2, tilt=(1e2, 1e2), tilt_fraction=1.0, chunk_rows=chunk_rows
        )
        out = sampler(indifferent, (5, 6), generator=seeded(0), model_kwargs={"topic": TOPICS})
        assert bool((out.sequences == TOPICS[:, None]).all())


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_a_discriminator_that_takes_no_such_condition_is_refused_before_anything_is_drawn(fraction) -> None:
    network = Counting(indifferent)
    sampler = RGASampler(PROCESS, reward=small_discriminator(), num_steps=2, tilt_fraction=fraction)
    with pytest.raises(TypeError, match="takes no keyword 'topic'"):
        sampler(network, (5, 6), model_kwargs={"topic": TOPICS})
    with pytest.raises(TypeError, match="takes no keyword 'attention_mask'"):
        RGASampler(PROCESS, reward=lambda x_t, t: x_t.float())(
            network, (1, 2), attention_mask=torch.tensor([[True, False]])
        )
    assert network.calls == 0


def test_a_teacher_scores_under_the_conditions_too() -> None:
    heard = []

    def teacher(x, t, topic):
        heard.append(topic)
        return indifferent(x, t)

    scorer = TeacherRatio(teacher, indifferent, PROCESS)
    RGASampler(PROCESS, reward=scorer, num_steps=1, num_candidates=2)(
        indifferent, (5, 6), generator=seeded(0), model_kwargs={"topic": TOPICS}
    )
    assert len(heard) == 2
    assert all(torch.equal(topic, TOPICS) for topic in heard)
