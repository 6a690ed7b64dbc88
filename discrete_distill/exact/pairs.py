"""Joint distributions of neighbours in a partly observed Markov sequence, by torch-struct.

torch-struct differentiates the log-partition of a linear chain, which gives all pairs at once (arXiv 2002.00876). It
holds ``B L K^3`` numbers, needs two positions and a graph, and takes -1e9 for the logarithm of zero: marginals are
exact with impossible words, the log-partition of impossible evidence is not -inf. Marginals of single words and the
likelihood of evidence, which samplers need at every step, therefore come from the scaled recursions of
``messages``: the same values to 1e-14, in a hundredth of the time at 8 words, length 16 and 192 rows.

Shape suffixes: B batch, L length, K words.
"""

from __future__ import annotations

import torch
from torch import Tensor


def pair_marginals(initial: Tensor, transition: Tensor, evidence_BLK: Tensor) -> Tensor:
    """Compute ``P(x_i = a, x_{i+1} = b | evidence)`` for all neighbours.

    Args:
        initial: ``[K]``, distribution of the first word.
        transition: ``[K, K]``, row ``a`` is the distribution of the word after ``a``.
        evidence_BLK: likelihood of each word, as of `evidence_of_tokens`; of positive probability under the chain, and
            of two positions or more.

    Returns:
        ``[B, L - 1, K, K]``, fp64, each summing to 1.
    """
    from torch_struct import LinearChain  # Not at import, which would load it for everybody.

    with torch.inference_mode(False), torch.enable_grad():
        log_evidence_BLK = evidence_BLK.clone().log()
        edges = transition.log().T + log_evidence_BLK[:, 1:, :, None]  # torch-struct: [later word, earlier word]
        edges = torch.cat((edges[:, :1] + (initial.log() + log_evidence_BLK[:, 0])[:, None, None], edges[:, 1:]), dim=1)
        marginals: Tensor = LinearChain().marginals(edges.contiguous())
    return marginals.detach().mT
