"""The exact laboratory: languages of which every quantity is known."""

from .chain_denoiser import ChainDenoiser
from .chains import StandardChain, large_chain, random_chain, small_chain
from .divergences import agreement, collision, entropy, kl, position_marginals, total_correlation, total_variation
from .enumeration import enumerate_sequences, look_up
from .forward import DistributionDenoiser, forward_distribution, visible_marginals
from .ikl import discriminator_logits, integral_kl, kl_at_time, log_ratio, subset_kl, token_log_ratio
from .markov import MarkovChain
from .mixture import MarkovMixture, MixtureDenoiser, modal_mixture
from .optimal import OptimalStudent, optimal_student
from .sampler import sampler_distribution, sampler_path_distributions, uniform_times
from .tabular import TabularDenoiser
from .vocabulary import tokens_of_words, words_of_tokens

__all__ = [
    "ChainDenoiser",
    "DistributionDenoiser",
    "MarkovChain",
    "MarkovMixture",
    "MixtureDenoiser",
    "OptimalStudent",
    "StandardChain",
    "TabularDenoiser",
    "agreement",
    "collision",
    "discriminator_logits",
    "entropy",
    "enumerate_sequences",
    "forward_distribution",
    "integral_kl",
    "kl",
    "kl_at_time",
    "large_chain",
    "log_ratio",
    "look_up",
    "modal_mixture",
    "optimal_student",
    "position_marginals",
    "random_chain",
    "sampler_distribution",
    "sampler_path_distributions",
    "small_chain",
    "subset_kl",
    "token_log_ratio",
    "tokens_of_words",
    "total_correlation",
    "total_variation",
    "uniform_times",
    "visible_marginals",
    "words_of_tokens",
]
