#include "codec/trellis.h"

#include <algorithm>
#include <iterator>
#include <vector>

#include "codec/encoder_loops.h"

namespace vidkv {

namespace {

// The levels of all states.
using StateLevels = std::array<std::array<uint8_t, trellis_states>, 2>;
constexpr StateLevels state_levels(const TrellisTable & table) {
    StateLevels levels{};
    for (int v = 0; v < table.samples; ++v) {
        for (int s = 0; s < trellis_states; ++s) levels[v][s] = table.level(v, static_cast<uint8_t>(s));
    }
    return levels;
}
constexpr StateLevels levels_of_tables[] = {state_levels(trellis_tables[0]), state_levels(trellis_tables[1]),
                                            state_levels(trellis_tables[2]), state_levels(trellis_tables[3])};

// What a thread needs to search for lanes of so many rows in one code.
struct LaneSearch {
    int rows = 0;
    std::vector<int16_t> row_of; // [coding step][sample]; -1: there is none
    std::vector<float> pairs;    // a sample, its weight
    std::vector<uint8_t> came, path;

    void prepare(const TrellisRing & ring, int wanted) {
        if (rows == wanted) return;
        rows = 0;
        row_of.clear();
        for (int i = 0; i < ring.steps; ++i) {
            for (int v = 0; v < ring.samples; ++v) {
                const int row = ring.row(ring.steps - 1 - i, v);
                row_of.push_back(static_cast<int16_t>(row < wanted ? row : -1));
            }
        }
        pairs.resize(2 * row_of.size());
        const int longest = std::max(ring.steps, 2 * longest_warm_up);
        came.resize(search_room(longest));
        path.resize(static_cast<size_t>(longest));
        rows = wanted;
    }
};

// The new bits of every step, from the last one in coding order, into the lane's bytes.
void write_ring(const TrellisRing & ring, const uint8_t * path, int lane, uint8_t * packed) {
    const unsigned new_bits = (1u << ring.bits) - 1;
    const int word_of_bytes = 4 * ring.n;
    unsigned held = 0;
    int count = 0, step = ring.steps;
    for (int word = 0; word < ring.n; ++word) {
        for (int plane = 0; plane < ring.planes; ++plane) {
            for (; count < 8; count += ring.bits) held |= (path[--step] & new_bits) << count;
            packed[plane * word_of_bytes + 4 * word + lane] = static_cast<uint8_t>(held);
            held >>= 8;
            count -= 8;
        }
    }
}

} // namespace

void encode_trellis_lane(QuadCode code, const float * x, int rows, int lane, uint8_t * packed, uint8_t * levels,
                         const float * weight, bool keep_seam) {
    const TrellisTable & table = trellis_table(code);
    const TrellisRing ring(table, rows);
    thread_local LaneSearch searches[std::size(trellis_tables)];
    LaneSearch & search = searches[&table - trellis_tables];
    search.prepare(ring, rows);
    float * pair = search.pairs.data();
    for (const int16_t row : search.row_of) {
        pair[0] = row < 0 ? 0.0f : std::clamp(x[row], -6.0f, 6.0f);
        pair[1] = row < 0 ? 0.0f : weight ? weight[row] : 1.0f;
        pair += 2;
    }
    const int seam = keep_seam ? ring.state(packed, lane, 0) % (trellis_states >> table.bits) : -1;
    encoder_loops().search(table, ring.steps, search.pairs.data(), seam, search.came.data(), search.path.data());
    write_ring(ring, search.path.data(), lane, packed);
    const StateLevels & level = levels_of_tables[&table - trellis_tables];
    const int16_t * row = search.row_of.data();
    for (int i = 0; i < ring.steps; ++i) {
        for (int v = 0; v < table.samples; ++v, ++row) {
            if (*row >= 0) levels[*row] = level[v][search.path[i]];
        }
    }
}

} // namespace vidkv
