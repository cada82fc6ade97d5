#include "codec/quad.h"

#include <cstring>

#include "codec/trellis.h"

namespace vidkv {

namespace {

constexpr int lanes = 4;

// A plane holds `width` bits of every level, 8 / width levels in a byte: with n = rows * width / 8 bytes per lane, byte j of
// lane i is at j * 4 + i and its field s belongs to row s * n + j.
struct Plane {
    int width, rows;
    int n() const { return rows * width / 8; }
    size_t bytes() const { return static_cast<size_t>(n()) * lanes; }

    void unpack(const uint8_t * packed, int shift, uint8_t * levels) const {
        for (int r = 0; r < rows; ++r) {
            for (int i = 0; i < lanes; ++i) {
                const unsigned field = packed[r % n() * lanes + i] >> (r / n() * width) & ((1u << width) - 1);
                levels[r * lanes + i] = static_cast<uint8_t>(levels[r * lanes + i] | field << shift);
            }
        }
    }
    void pack(const uint8_t * levels, int shift, uint8_t * packed) const {
        std::memset(packed, 0, bytes());
        for (int r = 0; r < rows; ++r) {
            for (int i = 0; i < lanes; ++i) {
                const unsigned field = levels[r * lanes + i] >> shift & ((1u << width) - 1);
                packed[r % n() * lanes + i] =
                    static_cast<uint8_t>(packed[r % n() * lanes + i] | field << (r / n() * width));
            }
        }
    }
};

// The planes of a uniform code: high bits first. low is 0 where one plane is enough.
struct Widths {
    int high, low;
};
Widths widths(QuadCode code) {
    switch (code) {
    case QuadCode::uniform1: return {1, 0};
    case QuadCode::uniform2: return {2, 0};
    case QuadCode::uniform4: return {4, 0};
    case QuadCode::uniform5: return {4, 1};
    case QuadCode::uniform6: return {4, 2};
    default: return {0, 0};
    }
}

void unpack_trellis(QuadCode code, const uint8_t * packed, int rows, uint8_t * levels) {
    const TrellisTable & table = trellis_table(code);
    const TrellisRing ring(table, rows);
    for (int lane = 0; lane < lanes; ++lane) {
        for (int step = 0; step < ring.steps; ++step) {
            const uint8_t state = ring.state(packed, lane, step);
            for (int v = 0; v < table.samples; ++v) {
                const int row = ring.row(step, v);
                if (row < rows) levels[row * lanes + lane] = table.level(v, state);
            }
        }
    }
}

} // namespace

size_t quad_bytes(QuadCode code, int rows) {
    switch (code) {
    case QuadCode::none: return 0;
    case QuadCode::trellis1:
    case QuadCode::trellis1_5:
    case QuadCode::trellis2:
    case QuadCode::trellis3: return TrellisRing(trellis_table(code), rows).bytes();
    default: {
        const Widths w = widths(code);
        return static_cast<size_t>(rows) * lanes * (w.high + w.low) / 8;
    }
    }
}

void unpack_quad(QuadCode code, const uint8_t * packed, int rows, uint8_t * levels) {
    std::memset(levels, 0, static_cast<size_t>(rows) * lanes);
    if (code == QuadCode::none) return;
    const auto [high, low] = widths(code);
    if (high == 0) return unpack_trellis(code, packed, rows, levels);
    const Plane plane{high, rows};
    plane.unpack(packed, low, levels);
    if (low) Plane{low, rows}.unpack(packed + plane.bytes(), 0, levels);
}

void pack_uniform(QuadCode code, const uint8_t * levels, int rows, uint8_t * packed) {
    const auto [high, low] = widths(code);
    const Plane plane{high, rows};
    plane.pack(levels, low, packed);
    if (low) Plane{low, rows}.pack(levels, 0, packed + plane.bytes());
}

LevelGrid level_grid(QuadCode code) {
    switch (code) { // steps of least squared error on Gaussian samples
    case QuadCode::none: return {0.0f, 0.0f};
    case QuadCode::uniform4: return {0.3352f, 7.5f};
    case QuadCode::uniform5: return {0.1881f, 15.5f};
    case QuadCode::uniform6: return {0.1041f, 31.5f};
    case QuadCode::uniform1: return {2.0f, 0.5f}; // the paper's: -1, +1
    case QuadCode::uniform2: return {1.0f, 0.0f}; // the paper's: minimum + scale * level
    default: return {trellis_table(code).step, 7.5f};
    }
}

int largest_level(QuadCode code) {
    switch (code) {
    case QuadCode::none: return 0;
    case QuadCode::uniform1: return 1;
    case QuadCode::uniform2: return 3;
    case QuadCode::uniform5: return 31;
    case QuadCode::uniform6: return 63;
    default: return 15;
    }
}

} // namespace vidkv
