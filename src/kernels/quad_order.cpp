#include "kernels/quad_order.h"

#include <array>

namespace vidkv {

namespace {

constexpr int place_bits = 7; // of a field that counts up to most_sorted quads

// Where every quad's factors and levels are.
constexpr auto quad_places = [] {
    std::array<KeyQuad, largest_head_dim / 4> made{};
    for (int quad = 0; quad < largest_head_dim / 4; ++quad) made[static_cast<size_t>(quad)] = key_quad(quad, 0);
    return made;
}();

// Fields of a code in a word that counts all codes.
struct Place {
    int shift = 63;               // of its field
    uint64_t one = 0;             // in that field
    uint32_t aside = most_sorted; // quads without a code are put behind the list
};
constexpr auto places_of_codes = [] {
    std::array<Place, 16> made{};
    for (int i = 0; i < code_count; ++i)
        made[static_cast<size_t>(code_order[i])] = {place_bits * i, uint64_t{1} << place_bits * i, 0};
    return made;
}();

} // namespace

const CodeGrids & code_grids() {
    static const CodeGrids grids = [] {
        CodeGrids made{};
        for (const QuadCode code : code_order) {
            const auto i = static_cast<size_t>(code);
            made.step[i] = level_grid(code).step;
            made.offset[i] = static_cast<uint8_t>(largest_level(code));
            made.units[i] = static_cast<uint8_t>(quad_bytes(code, page_tokens) / code_unit);
        }
        return made;
    }();
    return grids;
}

// Numbers of quads are counted in fields of one word, which a product sums up: what stands before each code. There are no
// branches to predict.
uint32_t sort_quads_plainly(const uint8_t * codes, int first, int end, uint32_t packed, const QuadOrder & order) {
    constexpr uint64_t ones = [] {
        uint64_t sum = 0;
        for (int i = 0; i < code_count; ++i) sum |= uint64_t{1} << place_bits * i;
        return sum;
    }();
    constexpr uint64_t field = (1 << place_bits) - 1;
    const CodeGrids & grids = code_grids();
    const auto code_of = [&](int quad) { return static_cast<size_t>(codes[quad / 2] >> (quad % 2 * 4) & 15); };
    uint64_t counts = 0;
    for (int quad = first; quad < end; ++quad) {
        const size_t code = code_of(quad);
        for (int i = 4 * quad; i < 4 * quad + 4; ++i)
            order.step[i] = grids.step[code], order.offset[i] = grids.offset[code];
        counts += places_of_codes[code].one;
    }
    uint64_t places = counts * ones << place_bits;
    for (int quad = first; quad < end; ++quad) {
        const size_t code = code_of(quad);
        const Place & of = places_of_codes[code];
        KeyQuad place = quad_places[static_cast<size_t>(quad)];
        place.packed = packed;
        order.sorted[(places >> of.shift & field) | of.aside] = place;
        places += of.one;
        packed += uint32_t{grids.units[code]} * code_unit;
    }
    for (int i = 0; i < code_count; ++i) order.counts[i] = static_cast<uint8_t>(counts >> place_bits * i & field);
    return packed;
}

} // namespace vidkv
