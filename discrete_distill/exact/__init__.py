"""The exact laboratory: languages of which every quantity is known."""

from .chain_denoiser import ChainDenoiser
from .chains import StandardLaw, large_law, random_chain, small_law
from .divergences import agreement, collision, entropy, kl, position_marginals, total_correlation, total_variation
from .enumeration import enumerate_sequences, look_up
from .forward import LawDenoiser, forward_law, visible_marginals
from .ikl import discriminator_logits, integral_kl, kl_at_time, log_ratio, subset_kl, token_log_ratio
from .markov import MarkovChain
from .mixture import MarkovMixture, MixtureDenoiser, modal_law
from .optimal import OptimalStudent, optimal_student
from .sampler import sampler_law, sampler_path_laws, uniform_times
from .tabular import TabularDenoiser
from .vocabulary import tokens_of_words, words_of_tokens

__all__ = [
    "ChainDenoiser",
    "LawDenoiser",
    "MarkovChain",
    "MarkovMixture",
    "MixtureDenoiser",
    "OptimalStudent",
    "StandardLaw",
    "TabularDenoiser",
    "agreement",
    "collision",
    "discriminator_logits",
    "entropy",
    "enumerate_sequences",
    "forward_law",
    "integral_kl",
    "kl",
    "kl_at_time",
    "large_law",
    "log_ratio",
    "look_up",
    "modal_law",
    "optimal_student",
    "position_marginals",
    "random_chain",
    "sampler_law",
    "sampler_path_laws",
    "small_law",
    "subset_kl",
    "token_log_ratio",
    "tokens_of_words",
    "total_correlation",
    "total_variation",
    "uniform_times",
    "visible_marginals",
    "words_of_tokens",
]
