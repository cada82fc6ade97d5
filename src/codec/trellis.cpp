#include "codec/trellis.h"

#include <algorithm>
#include <vector>

#include "codec/viterbi.h"
#include "codec/viterbi_avx2.h"

namespace vidkv {

namespace {

using Search = void (*)(const TrellisTable &, int, const float *, uint8_t *, uint8_t *);

void search_baseline(const TrellisTable & table, int steps, const float * x, uint8_t * came, uint8_t * path) {
    search_trellis(table, steps, x, came, path);
}

Search choose_search() {
#if VIDKV_HAVE_VITERBI_AVX2
    if (__builtin_cpu_supports("avx2")) return search_trellis_avx2;
#endif
    return search_baseline;
}

} // namespace

void encode_trellis_lane(QuadCode code, const float * x, int rows, int lane, uint8_t * packed, uint8_t * levels,
                         const float * weight) {
    static const Search chosen = choose_search();
    const TrellisTable & table = trellis_table(code);
    const TrellisRing ring(table, rows);
    std::vector<float> ordered(static_cast<size_t>(2 * ring.steps * ring.samples)); // pairs: a sample, its weight
    for (int i = 0; i < ring.steps; ++i) {
        for (int v = 0; v < ring.samples; ++v) {
            const int row = ring.row(ring.steps - 1 - i, v);
            if (row >= rows) continue;
            float * pair = &ordered[static_cast<size_t>(2 * (i * ring.samples + v))];
            pair[0] = std::clamp(x[row], -6.0f, 6.0f);
            pair[1] = weight ? weight[row] : 1.0f;
        }
    }
    const size_t longest = static_cast<size_t>(std::max(ring.steps, 2 * warm_up));
    std::vector<uint8_t> came(longest * (states >> table.bits)), path(longest);
    chosen(table, ring.steps, ordered.data(), came.data(), path.data());
    for (int index = 0; index < ring.planes * ring.n; ++index) packed[ring.at(lane, index)] = 0;
    for (int i = 0; i < ring.steps; ++i) {
        const int step = ring.steps - 1 - i;
        for (int b = 0; b < table.bits; ++b) {
            const int bit = step * table.bits + b;
            uint8_t & byte = packed[ring.at(lane, bit / 8)];
            byte = static_cast<uint8_t>(byte | (path[i] >> b & 1) << (bit % 8));
        }
        for (int v = 0; v < table.samples; ++v) {
            const int row = ring.row(step, v);
            if (row < rows) levels[row] = table.level(v, path[i]);
        }
    }
}

} // namespace vidkv
