#include "codec/viterbi_avx2.h"

#if VIDKV_HAVE_VITERBI_AVX2

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>

#pragma GCC target("avx2")
#include "codec/viterbi.h"

namespace vidkv {

void search_trellis_avx2(const TrellisTable & table, int steps, const float * x, uint8_t * came, uint8_t * path) {
    search_trellis(table, steps, x, came, path);
}

} // namespace vidkv

#endif
