"""Evaluation on several processes: each draws and prices its share, and all have everything, in order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...distributed.collectives import num_processes
from ...evaluation import Judge, TokenNats
from ...samplers import SamplerOutput
from ...training import gather_in_order, my_share


def draw_in_shares(starts: list[int], draw: Callable[[int], SamplerOutput]) -> list[SamplerOutput]:
    """``[draw(start) for start in starts]``, each by one process; what is drawn depends on ``start`` alone."""
    outputs = [draw(start) for start in my_share(starts)]
    if num_processes() == 1:
        return outputs
    on_cpu = [replace(out, sequences=out.sequences.cpu(), log_probs=out.log_probs.cpu()) for out in outputs]
    return gather_in_order(on_cpu)


class SharedJudge:
    """A judge of which every process has a copy: each prices its share of the rows. All must call it together.

    Args:
        judge: this process's copy.
    """

    def __init__(self, judge: Judge) -> None:
        self.judge = judge

    @property
    def name(self) -> str:
        """Of the judge."""
        return self.judge.name

    def token_nats(self, sequences_BL: Tensor) -> TokenNats:
        """See `Judge`."""
        if num_processes() == 1:
            return self.judge.token_nats(sequences_BL)
        mine = my_share(list(range(len(sequences_BL))))
        rows: list[tuple[Tensor, Tensor]] = []
        if mine:
            priced = self.judge.token_nats(sequences_BL[mine])
            rows = list(zip(priced.nats.cpu().unbind(), priced.loss_mask.cpu().unbind(), strict=True))
        nats, loss_mask = zip(*gather_in_order(rows), strict=True)
        return TokenNats(pad_sequence(list(nats), batch_first=True), pad_sequence(list(loss_mask), batch_first=True))
