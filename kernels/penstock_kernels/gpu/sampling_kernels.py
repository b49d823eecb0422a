"""The kernels of `penstock_kernels.gpu.sampling`, which says how they follow one another.

`power` stands for 2^-octaves, a token's weight before it is made a whole number; `steep` for octaves per unit of logit.
Loops hold few calls of other functions: in Triton's interpreter a call costs as much as a hundred operations.
"""

import triton
import triton.language as tl

from penstock_kernels.sampling import LOG2_E, TAYLOR

_LOG2_E = tl.constexpr(LOG2_E)
_T6, _T5, _T4, _T3, _T2, _T1, _T0 = (tl.constexpr(coefficient) for coefficient in TAYLOR)
_INFINITE = tl.constexpr(0x7F800000)  # the bits of the largest gap


@triton.jit
def steepness(temperature):
    """Octaves of weight per unit of logit; infinite at temperature 0."""
    some = tl.where(temperature > 0, temperature, 1.0)
    return tl.where(temperature > 0, tl.math.div_rn(some * 0.0 + _LOG2_E, some), float("inf"))


@triton.jit
def tile_of(source, start, count, peak, steep, TILE: tl.constexpr):
    """(gaps, octaves, powers) of TILE logits of `source` from `start` on; a power is 2^-octaves, 0 from 32 octaves on.

    A gap that is not a number has no power.
    """
    at = start + tl.arange(0, TILE)
    gap = peak - tl.load(source + at, at < count, float("-inf"))
    octaves = gap * tl.where(gap == 0, 0.0, steep)
    near = octaves < 32.0
    exponent = tl.where(near, -octaves, 0.0)
    whole = tl.floor(exponent + 0.5)
    part = exponent - whole
    power = ((((_T6 * part + _T5) * part + _T4) * part + _T3) * part + _T2) * part + _T1
    power = power * part + _T0
    scale = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return gap, octaves, tl.where(near, power * scale, 0.0)


@triton.jit
def weight_of(power):
    return (power * 4294967296.0).to(tl.int64)


@triton.jit
def share(total, part):
    """floor(total * part / 2^24) without overflow."""
    return (total >> 24) * part + (((total & 0xFFFFFF) * part) >> 24)


@triton.jit
def nucleus_of(mass, top_p):
    """A token is in the nucleus if those likelier than it weigh less than this: the likeliest always is."""
    return tl.maximum(share(mass, (top_p * 16777216.0).to(tl.int64)), 1)


@triton.jit
def is_filtered(top_k, top_p, row):
    return (tl.load(top_k + row) > 0) | (tl.load(top_p + row) < 1.0)


@triton.jit
def peaks_kernel(logits, peaks, vocabulary, stride, CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    values = tl.load(logits + row * stride + token, token < vocabulary, float("-inf"))
    tl.store(peaks + row * CHUNKS + chunk, tl.max(values))


@triton.jit
def row_peak(peaks, row, chunks, CHUNKS: tl.constexpr):
    at = tl.arange(0, CHUNKS)
    return tl.max(tl.load(peaks + row * CHUNKS + at, at < chunks, float("-inf")))


@triton.jit
def tally_kernel(
    logits,
    peaks,
    masses,
    counts,
    temperature,
    top_k,
    top_p,
    min_p,
    vocabulary,
    stride,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
):
    """Where no other filter follows, what min-p drops weighs nothing."""
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    peak, steep = row_peak(peaks, row, chunks, CHUNKS), steepness(tl.load(temperature + row))
    _, octaves, power = tile_of(logits + row * stride, chunk * CHUNK, vocabulary, peak, steep, CHUNK)
    filtered = is_filtered(top_k, top_p, row)
    least = tl.where(filtered, 0.0, tl.load(min_p + row))
    tl.store(masses + row * CHUNKS + chunk, tl.sum(tl.where(power >= least, weight_of(power), 0)))
    if filtered:
        near = octaves < 32.0
        bin_of = tl.where(near, octaves * (BINS // 32), 0.0).to(tl.int32)
        at = tl.arange(0, BINS)
        tl.store(counts + (row * CHUNKS + chunk) * BINS + at, tl.histogram(bin_of, BINS, near))


@triton.jit
def plan_kernel(
    counts,
    offsets,
    bins_taken,
    top_k,
    top_p,
    chunks,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    """offsets[row, chunk] is where the chunk's candidates begin; offsets[row, chunks] how many there are in all."""
    row = tl.program_id(0).to(tl.int64)
    if is_filtered(top_k, top_p, row):
        chunk, each = tl.arange(0, CHUNKS)[:, None], tl.arange(0, BINS)[None, :]
        tally = tl.load(counts + (row * CHUNKS + chunk) * BINS + each, chunk < chunks, 0)
        fits = tl.cumsum(tl.sum(tally, axis=0)) <= CANDIDATES
        taken = tl.sum(fits.to(tl.int32))
        tl.store(bins_taken + row, taken)
        ends = tl.cumsum(tl.sum(tl.where(each < taken, tally, 0), axis=1))
        base = offsets + row * (CHUNKS + 1)
        tl.store(base, 0)
        tl.store(base + 1 + tl.arange(0, CHUNKS), ends)


@triton.jit
def collect_kernel(
    logits,
    peaks,
    offsets,
    bins_taken,
    candidate_logits,
    candidate_ids,
    temperature,
    top_k,
    top_p,
    vocabulary,
    stride,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row, chunk = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if is_filtered(top_k, top_p, row):
        peak, steep = row_peak(peaks, row, chunks, CHUNKS), steepness(tl.load(temperature + row))
        _, octaves, _ = tile_of(logits + row * stride, chunk * CHUNK, vocabulary, peak, steep, CHUNK)
        near = octaves < 32.0
        bin_of = tl.where(near, octaves * (BINS // 32), 0.0).to(tl.int32)
        taken = near & (bin_of < tl.load(bins_taken + row))
        first = tl.load(offsets + row * (CHUNKS + 1) + chunk)
        at = row * CANDIDATES + first + tl.cumsum(taken.to(tl.int32)) - 1
        token = chunk * CHUNK + tl.arange(0, CHUNK)
        tl.store(candidate_logits + at, tl.load(logits + row * stride + token, taken), taken)
        tl.store(candidate_ids + at, token, taken)


@triton.jit
def amount_below(source, count, peak, steep, bits, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """How many tokens have a gap of smaller bits, or what they weigh. Gaps are not negative: bits order as they do."""
    amount = bits.to(tl.int64) * 0
    for start in range(0, count, TILE):
        gap, _, power = tile_of(source, start, count, peak, steep, TILE)
        each = (power * 4294967296.0).to(tl.int64) if BY_MASS else 1
        amount += tl.sum(tl.where(gap.to(tl.int32, bitcast=True) < bits, each, 0).to(tl.int64))
    return amount


@triton.jit
def widest_gap(source, count, peak, steep, limit, BY_MASS: tl.constexpr, TILE: tl.constexpr):
    """The largest bits of a gap such that the tokens of smaller gap number, or weigh, less than `limit`."""
    low = count * 0
    high = low + _INFINITE
    while low < high:
        middle = high - (high - low) // 2
        kept = amount_below(source, count, peak, steep, middle, BY_MASS, TILE) < limit
        low = tl.where(kept, middle, low)
        high = tl.where(kept, high, middle - 1)
    return low


@triton.jit
def place_of(source, count, peak, steep, widest, least, uniform, TILE: tl.constexpr):
    """Index in `source` of the first token, of those kept, at which their sum passes the uniform's share of it."""
    total = tl.zeros((), tl.int64)
    for start in range(0, count, TILE):
        gap, _, power = tile_of(source, start, count, peak, steep, TILE)
        kept = (gap.to(tl.int32, bitcast=True) <= widest) & (power >= least)
        total += tl.sum(tl.where(kept, weight_of(power), 0))
    target, before, place = share(total, uniform), tl.zeros((), tl.int64), tl.zeros((), tl.int32)
    for start in range(0, count, TILE):
        gap, _, power = tile_of(source, start, count, peak, steep, TILE)
        kept = (gap.to(tl.int32, bitcast=True) <= widest) & (power >= least)
        weights = tl.where(kept, weight_of(power), 0)
        place += tl.sum((before + tl.cumsum(weights) <= target).to(tl.int32))
        before += tl.sum(weights)
    return place


@triton.jit
def draw_filtered(source, count, row_mass, peak, steep, top_k, top_p, least, uniform, TILE: tl.constexpr):
    """Index in `source`, which holds every token that the filters keep."""
    widest, mass = count * 0 + _INFINITE, row_mass
    if top_k > 0:
        widest = widest_gap(source, count, peak, steep, top_k, False, TILE)
        mass = amount_below(source, count, peak, steep, widest + 1, True, TILE)
    if top_p < 1.0:
        nucleus = nucleus_of(mass, top_p)
        widest = tl.minimum(widest, widest_gap(source, count, peak, steep, nucleus, True, TILE))
    return place_of(source, count, peak, steep, widest, least, uniform, TILE)


@triton.jit
def candidates_settle(
    source, count, taken, row_mass, peak, steep, top_k, top_p, BINS: tl.constexpr, TILE: tl.constexpr
):
    """Whether every token that the filters keep is among the candidates."""
    if top_k > 0:
        enough = count >= top_k
    else:
        mass = amount_below(source, count, peak, steep, count * 0 + _INFINITE, True, TILE)
        enough = mass >= nucleus_of(row_mass, top_p)
    return enough | (taken == BINS)


@triton.jit
def uniform_of(seed, output_index, choice):
    """24 bits of Philox's first word."""
    index, sample = output_index.to(tl.uint32), choice.to(tl.uint32)
    first, _, _, _ = tl.philox(seed, index, sample, index * 0, index * 0)
    return (first >> 8).to(tl.int64)


@triton.jit
def choose_kernel(
    logits,
    peaks,
    masses,
    offsets,
    bins_taken,
    candidate_logits,
    candidate_ids,
    tokens,
    temperature,
    top_k,
    top_p,
    min_p,
    seed,
    output_index,
    choice,
    vocabulary,
    stride,
    chunks,
    CHUNK: tl.constexpr,
    CHUNKS: tl.constexpr,
    BINS: tl.constexpr,
    CANDIDATES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    source = logits + row * stride
    steep = steepness(tl.load(temperature + row))
    peak = row_peak(peaks, row, chunks, CHUNKS)
    uniform = uniform_of(tl.load(seed + row), tl.load(output_index + row), tl.load(choice + row))
    uniform = tl.where(steep < float("inf"), uniform, 0)
    least = tl.load(min_p + row)
    at = tl.arange(0, CHUNKS)
    mass_of_chunks = tl.load(masses + row * CHUNKS + at, at < chunks, 0)
    mass = tl.sum(mass_of_chunks)
    if is_filtered(top_k, top_p, row):
        k, p = tl.load(top_k + row), tl.load(top_p + row)
        taken, count = tl.load(bins_taken + row), tl.load(offsets + row * (CHUNKS + 1) + chunks)
        candidates = candidate_logits + row * CANDIDATES
        if candidates_settle(candidates, count, taken, mass, peak, steep, k, p, BINS, CANDIDATES):
            place = draw_filtered(candidates, count, mass, peak, steep, k, p, least, uniform, CANDIDATES)
            token = tl.load(candidate_ids + row * CANDIDATES + tl.minimum(place, count - 1), count > 0, 0)
        else:
            token = draw_filtered(source, vocabulary, mass, peak, steep, k, p, least, uniform, CHUNK)
    else:
        target = share(mass, uniform)
        chunk = tl.minimum(tl.sum((tl.cumsum(mass_of_chunks) <= target).to(tl.int32)), chunks - 1)
        before = tl.sum(tl.where(at < chunk, mass_of_chunks, 0))
        _, _, power = tile_of(source, chunk * CHUNK, vocabulary, peak, steep, CHUNK)
        kept = tl.where(power >= least, weight_of(power), 0)
        token = chunk * CHUNK + tl.sum((before + tl.cumsum(kept) <= target).to(tl.int32))
    tl.store(tokens + row, tl.minimum(token, vocabulary - 1).to(tl.int64))
