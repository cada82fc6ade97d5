// Keys that moved to other positions after their page was sealed: by what they are rotated when they are read.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "base/bytes.h"
#include "base/counted.h"
#include "vidkv/vidkv.h"

namespace vidkv {

// One bit per cell of a page.
using PageBits = std::array<uint64_t, 2>;
constexpr PageBits all_cells = {~uint64_t{0}, ~uint64_t{0}};

inline PageBits operator&(const PageBits & a, const PageBits & b) { return {a[0] & b[0], a[1] & b[1]}; }
inline PageBits operator|(const PageBits & a, const PageBits & b) { return {a[0] | b[0], a[1] | b[1]}; }
inline PageBits operator~(const PageBits & a) { return {~a[0], ~a[1]}; }
inline bool has_cell(const PageBits & bits, int i) { return bits[static_cast<size_t>(i) / 64] >> (i % 64) & 1u; }

// vidkv_rotation without its gain.
struct Rope : Counted {
    int32_t first = 0, step = 0, apart = 0;
    std::vector<double> angles; // [pairs]

    static Ref<const Rope> make(const vidkv_rotation & rotation);
    static void destroy(const Rope * rope) { delete rope; }
    bool is_same(const Rope & other) const;
    bool fits(int head_dim) const; // its pairs are channels, each in one pair at most
    int pairs() const { return static_cast<int>(angles.size()); }
};

// Cells of a page that have moved by so many positions in all.
struct Shift {
    int32_t positions = 0;
    float gain = 1;
    PageBits cells{};
    std::vector<float> cosines, sines; // [pairs], times gain: of what moved the cells

    void turn(const Rope & rope, float * key) const; // [head_dim], in place
    // out . key is query . turned key.
    void turn_back(const Rope & rope, const float * query, int head_dim, float * out) const;
};

// Cells that are in none of `all` have not moved.
struct PageShifts : Counted {
    static constexpr size_t most = 4;
    static constexpr int32_t farthest = 1 << 30;

    Ref<const Rope> rope;
    std::vector<Shift> all;

    static void destroy(const PageShifts * shifts) { delete shifts; }
    size_t held() const; // bytes
    const Shift * of_all() const { return all.size() == 1 && all[0].cells == all_cells ? all.data() : nullptr; }
    const Shift * of(int cell) const; // null: it has not moved
    bool is_same(const PageShifts & other) const;

    // As saved: the rope, and the shifts.
    void save(std::vector<uint8_t> & out) const;
    static Ref<const PageShifts> load(ByteReader & in, int head_dim); // null: no such thing was saved
};

// Cells of a page that are to be moved, on top of `before` (which may be null): {positions, cells} each, no cell twice. `used`: cells
// that count. Null in the optional: none has moved any more; none at all: that cannot be said so.
struct Move {
    int32_t positions;
    PageBits cells;
};
std::optional<Ref<const PageShifts>> moved(const Ref<const PageShifts> & before, const std::vector<Move> & moves,
                                           const Ref<const Rope> & rope, float gain, const PageBits & used);

} // namespace vidkv
