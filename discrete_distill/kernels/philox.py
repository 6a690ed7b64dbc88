"""Counter-based random numbers: Philox4x32-10, the same words in torch and in Triton.

A counter-based generator has no state: the word at a counter is a pure function of the counter and a key. A
draw that is named by (candidate, global row, step, stream) is therefore the same whatever the chunking, the
device or the backend.

Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32 with 10 rounds,
    Random123).
"""

from __future__ import annotations

import torch
from torch import Tensor

from discrete_distill.kernels.dispatch import resolve_backend, scalar_tensor

STREAM_TOKEN = 0
"""Which token a row draws (`sample_rows`)."""
STREAM_UNMASK = 1
"""Whether a masked position is unmasked in this step."""
STREAM_CORRUPTION = 2
"""Which positions the forward process masks."""
STREAM_REMASK = 3
"""Which tokens a re-masking sampler masks again."""
STREAM_CANDIDATE = 4
"""Which candidate a re-ranking sampler keeps."""
STREAM_TIME = 5
"""Times: of corruption in training, of the events of a first-hitting sampler."""
STREAM_ORDER = 6
"""In which order a sampler reveals positions, where the order is noisy."""
STREAM_USER = 1024
"""First number that the library never uses: streams from here on are the caller's."""

_MASK32 = 0xFFFFFFFF
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85
_ROUNDS = 10

Word = Tensor | int


def _multiply_high_low(constant: int, word: Word) -> tuple[Word, Word]:
    """High and low 32 bits of `constant * word`, in halves of 16 bits so that no int64 product overflows."""
    low_product = word * (constant & 0xFFFF)
    carried = word * (constant >> 16) + (low_product >> 16)
    return carried >> 16, ((carried & 0xFFFF) << 16) | (low_product & 0xFFFF)


def _as_word(name: str, value: Word) -> Word:
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} is a tensor of {value.dtype}; counters and seeds are integers, pass torch.int64")
        return value.to(torch.int64) & _MASK32
    if isinstance(value, bool) or not isinstance(value, (int, torch.SymInt)):
        raise TypeError(f"{name} is {value!r} ({type(value).__name__}); pass an int or an int64 tensor")
    return value & _MASK32


def _key(seed: Word) -> tuple[Word, Word]:
    if isinstance(seed, Tensor):
        if seed.numel() != 1:
            raise ValueError(f"seed has shape {tuple(seed.shape)}; pass an int or an int64 tensor of one element")
        seed = seed.reshape(())
    low = _as_word("seed", seed)
    high = _as_word("seed", seed >> 32)
    return low, high


def torch_philox_4x32(
    seed: Word, candidate: Word, row: Word, step: Word, stream: Word
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`philox_4x32` in torch whatever the device: the definition."""
    counters = {"candidate": candidate, "row": row, "step": step, "stream": stream}
    c0, c1, c2, c3 = (_as_word(name, value) for name, value in counters.items())
    key_0, key_1 = _key(seed)
    for _ in range(_ROUNDS):
        high_0, low_0 = _multiply_high_low(_MULTIPLIER_0, c0)
        high_1, low_1 = _multiply_high_low(_MULTIPLIER_1, c2)
        c0, c1, c2, c3 = high_1 ^ c1 ^ key_0, low_1, high_0 ^ c3 ^ key_1, low_0
        key_0 = (key_0 + _WEYL_0) & _MASK32
        key_1 = (key_1 + _WEYL_1) & _MASK32
    device = _device(*counters.values(), seed)
    words = [
        w if isinstance(w, Tensor) else torch.full((), w, dtype=torch.int64, device=device) for w in (c0, c1, c2, c3)
    ]
    w0, w1, w2, w3 = torch.broadcast_tensors(*words)
    return w0, w1, w2, w3


def _device(*values: Word) -> torch.device | None:
    """The device that the numbers belong on: that of the first tensor which is more than a CPU scalar."""
    first: torch.device | None = None
    for value in values:
        if isinstance(value, Tensor):
            if value.device.type != "cpu":
                return value.device
            first = value.device if first is None else first
    return first


# The backend is chosen inside, where tensors have values: tracing with fake CUDA tensors launches nothing.
@torch.library.custom_op("discrete_distill::philox_4x32", mutates_args=())
def _philox_op(seed: Tensor, candidate: Tensor, row: Tensor, step: Tensor, stream: Tensor, backend: str) -> Tensor:
    """Words `[4, ...]` of int64 counters below 2**32 on one device."""
    if resolve_backend(backend, seed.device) == "triton":
        from discrete_distill.kernels.triton_philox import triton_philox_4x32

        return triton_philox_4x32(seed, [candidate, row, step, stream])
    return torch.stack(torch_philox_4x32(seed, candidate, row, step, stream))


@_philox_op.register_fake
def _(seed: Tensor, candidate: Tensor, row: Tensor, step: Tensor, stream: Tensor, backend: str) -> Tensor:
    shape = torch.broadcast_shapes(candidate.shape, row.shape, step.shape, stream.shape)
    return seed.new_empty((4, *shape), dtype=torch.int64)


def philox_4x32(
    seed: Word, candidate: Word, row: Word, step: Word, stream: Word
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four independent uniform 32-bit words for every counter `(candidate, row, step, stream)`.

    Philox4x32-10 (Salmon et al., SC 2011). Bit-identical to Random123 and on every backend; one kernel on a
    CUDA device where Triton runs (torch.compile fuses the torch version by itself).

    Args:
        seed: 64-bit key; an int (taken modulo 2**64) or an int64 tensor of one element.
        candidate: first counter; int or integer tensor, taken modulo 2**32.
        row: second counter; the *global* row number, so that splitting a batch changes nothing.
        step: third counter.
        stream: fourth counter; one of the `STREAM_*` constants, or `STREAM_USER` and above. The counters
            broadcast.

    Returns:
        Four int64 tensors of the broadcast shape of the counters, with values in [0, 2**32).

    Raises:
        TypeError: a counter or the seed is not an integer.
        ValueError: the seed has more than one element.

    Examples:
        >>> words = philox_4x32(0, candidate=0, row=torch.arange(2), step=0, stream=STREAM_USER)
        >>> again = philox_4x32(0, candidate=0, row=torch.tensor([1]), step=0, stream=STREAM_USER)
        >>> len(words), bool(words[0][1] == again[0][0])  # A row has its words wherever it stands.
        (4, True)
    """
    device = _device(candidate, row, step, stream, seed)
    if device is None or device.type != "cuda" or torch.compiler.is_compiling():
        return torch_philox_4x32(seed, candidate, row, step, stream)
    counters = {"candidate": candidate, "row": row, "step": step, "stream": stream}
    tensors = [_counter_tensor(name, value, device) for name, value in counters.items()]
    w0, w1, w2, w3 = _philox_op(scalar_tensor("seed", seed, device), *tensors, "auto").unbind(0)
    return w0, w1, w2, w3


def _counter_tensor(name: str, value: Word, device: torch.device) -> Tensor:
    word = _as_word(name, value)
    if isinstance(word, Tensor):
        return word.to(device) if word.dim() == 0 else word
    return torch.full((), word, dtype=torch.int64, device=device)


def to_unit_interval(words: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Map 32-bit words to uniforms strictly inside (0, 1).

    float64: `(w + 1/2) 2**-32`. float32: `(floor(w / 2**9) + 1/2) 2**-23`, since 24 bits are all that fp32
        holds below 1.

    Args:
        words: integer tensor with values in [0, 2**32), any shape.
        dtype: torch.float64 or torch.float32.

    Returns:
        A tensor of the same shape and of `dtype`.

    Raises:
        ValueError: any other dtype (half-precision uniforms bias what is drawn with them, arXiv 2409.02908).
    """
    if dtype == torch.float64:
        return (words.to(torch.float64) + 0.5) * 2.0**-32
    if dtype == torch.float32:
        return ((words >> 9).to(torch.float32) + 0.5) * 2.0**-23
    raise ValueError(
        f"dtype is {dtype}; uniforms come in torch.float64 or torch.float32, convert the result if you must"
    )


def uniform(
    seed: Word,
    *,
    row: Word,
    candidate: Word = 0,
    step: Word = 0,
    stream: Word = STREAM_USER,
    word: int = 0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Uniform numbers strictly inside (0, 1), one for every counter.

    Args:
        seed, candidate, row, step, stream: as in `philox_4x32`; the counters broadcast.
        word: which of the four words of the counter, 0 to 3: four independent numbers cost one call each.
        dtype: torch.float64 (32 random bits) or torch.float32 (23 random bits).

    Returns:
        A tensor of the broadcast shape of the counters.

    Raises:
        TypeError: a counter or the seed is not an integer.
        ValueError: `word` is not in 0..3, or `dtype` is neither float64 nor float32, or the seed is not one
            number.

    Examples:
        >>> drawn = uniform(0, row=torch.arange(1000), step=3)
        >>> abs(float(drawn.mean()) - 0.5) < 5 * (1 / 12 / 1000) ** 0.5  # Five standard errors.
        True
    """
    if word not in (0, 1, 2, 3):
        raise ValueError(f"word is {word!r}; a counter has four words, pass 0, 1, 2 or 3")
    return to_unit_interval(philox_4x32(seed, candidate, row, step, stream)[word], dtype)
