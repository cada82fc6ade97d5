// KIVI (arXiv 2402.02750) at 2 bits: keys per channel in groups of 32 tokens, values per token in groups of
// 32 channels; asymmetric, one f16 scale and one zero point per group.
#include <algorithm>

#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

constexpr int BITS = 2;
constexpr int GROUP = 32;

double bits(vidkv_side, int, int) { return BITS + 32.0 / GROUP; }

void keys(const ReferenceRows & rows) {
    const int64_t row = int64_t{rows.heads} * rows.head_dim;
    for (int64_t first = 0; first < rows.tokens; first += GROUP) {
        const int64_t n = std::min<int64_t>(GROUP, rows.tokens - first);
        for (int64_t channel = 0; channel < row; ++channel)
            min_max_round_trip(rows.data + first * row + channel, n, row, BITS);
    }
}

void values(const ReferenceRows & rows) {
    for (int64_t token = 0; token < rows.tokens; ++token)
        for (int head = 0; head < rows.heads; ++head)
            for (int channel = 0; channel < rows.head_dim; channel += GROUP)
                min_max_round_trip(&rows.at(token, head, channel), std::min(GROUP, rows.head_dim - channel), 1, BITS);
}

void round_trip(const ReferenceRows & rows, vidkv_side side) { side == VIDKV_KEYS ? keys(rows) : values(rows); }

} // namespace

ReferenceCodec kivi2_reference() { return {"kivi2", "KIVI, arXiv 2402.02750", bits, round_trip}; }

} // namespace vidkv::cli
