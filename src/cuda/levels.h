// Quads -> levels, for tensor cores: a word is the levels of a row's four lanes, and a thread makes the words of its rows. Sixteen rows
// are a tile, of which thread group g (lane / 4) has two. docs/format.md, "Quads", says where the bits are.
#pragma once

#include <cstdint>

#include "codec/quad.h"
#include "cuda/device.h"

namespace vidkv::cuda {

// Levels of several steps of a trellis at once, by the bits of the ring that they depend on.
struct LevelTables {
    uint32_t one[2048];      // 1 bit: four steps, a byte each
    uint32_t one_half[2048]; // 1.5 bits: two steps of two samples
    uint16_t three[2048];    // 3 bits: two steps
    uint16_t two[16384];     // 2 bits: four steps, half a byte each
};

// Which two rows of tile m are a thread's, h = 0 and 1.
enum class RowOrder {
    pairs,  // 16 m + 2 g + h
    eights, // 16 m + 8 h + g
    fours   // 32 (g / 4) + 8 m + 4 h + g % 4: for 64 rows of the 1.5-bit code
};
template <RowOrder order> VIDKV_DEVICE int row_of(int m, int h, int g) {
    if (order == RowOrder::pairs) return 16 * m + 2 * g + h;
    if (order == RowOrder::eights) return 16 * m + 8 * h + g;
    return 32 * (g / 4) + 8 * m + 4 * h + g % 4;
}

// Four words of four bytes, turned: byte b of word i becomes byte i of word b.
VIDKV_DEVICE void transpose(uint32_t a, uint32_t b, uint32_t c, uint32_t d, uint32_t (&out)[4]) {
    const uint32_t low_ab = permute(a, b, 0x5140), low_cd = permute(c, d, 0x5140);
    const uint32_t high_ab = permute(a, b, 0x7362), high_cd = permute(c, d, 0x7362);
    out[0] = permute(low_ab, low_cd, 0x5410);
    out[1] = permute(low_ab, low_cd, 0x7632);
    out[2] = permute(high_ab, high_cd, 0x5410);
    out[3] = permute(high_ab, high_cd, 0x7632);
}

// The entry of a table that the bits of x from bit `shift` on choose; a negative shift is to the left. One mask makes the offset in bytes.
template <int shift, typename T, int n> VIDKV_DEVICE uint32_t look_up(const T (&table)[n], uint32_t x) {
    constexpr int by = shift - (sizeof(T) == 4 ? 2 : 1);
    constexpr uint32_t mask = (n - 1) * sizeof(T);
    const uint32_t offset = (by >= 0 ? x >> (by >= 0 ? by : 0) : x << (by >= 0 ? 0 : -by)) & mask;
    return *reinterpret_cast<const T *>(reinterpret_cast<const uint8_t *>(table) + offset);
}

VIDKV_DEVICE uint32_t low_nibbles(uint32_t x) { return x & 0x0f0f0f0fu; }

// Where the word of a row is: of n words in a plane, word j of the step has rows s n + j.
template <RowOrder order> VIDKV_DEVICE int word_of(int h, int g) {
    return order == RowOrder::pairs ? 2 * g + h : 8 * h + g;
}

// The 16 bits of the ring from a byte on, of two lanes each.
struct Rings16 {
    uint32_t low, high;
    VIDKV_DEVICE Rings16(uint32_t word, uint32_t next)
        : low(permute(word, next, 0x5140)), high(permute(word, next, 0x7362)) {}
};

// 1 bit: a word has eight steps, out[u] for row u n + j.
template <int first> VIDKV_DEVICE void four_of_one(const LevelTables & tables, const Rings16 & ring, uint32_t (&out)[8]) {
    uint32_t four[4];
    transpose(look_up<first>(tables.one, ring.low), look_up<16 + first>(tables.one, ring.low),
              look_up<first>(tables.one, ring.high), look_up<16 + first>(tables.one, ring.high), four);
    VIDKV_UNROLL
    for (int i = 0; i < 4; ++i) out[first + i] = four[i];
}
VIDKV_DEVICE void levels_one(const LevelTables & tables, uint32_t word, uint32_t next, uint32_t (&out)[8]) {
    const Rings16 ring(word, next);
    four_of_one<0>(tables, ring, out);
    four_of_one<4>(tables, ring, out);
}

// 2 bits: four steps.
VIDKV_DEVICE void levels_two(const LevelTables & tables, uint32_t word, uint32_t next, uint32_t (&out)[4]) {
    const Rings16 ring(word, next);
    const uint32_t a = permute(look_up<0>(tables.two, ring.low), look_up<16>(tables.two, ring.low), 0x5140);
    const uint32_t b = permute(look_up<0>(tables.two, ring.high), look_up<16>(tables.two, ring.high), 0x5140);
    const uint32_t first = permute(a, b, 0x5410), last = permute(a, b, 0x7632);
    out[0] = low_nibbles(first);
    out[1] = low_nibbles(first >> 4);
    out[2] = low_nibbles(last);
    out[3] = low_nibbles(last >> 4);
}

// Codes of 3 bits a step: the lanes' rings of 24 bits and the byte behind them.
struct Rings32 {
    uint32_t lane[4];
    VIDKV_DEVICE Rings32(const uint32_t * plane, int n, int j) {
        transpose(plane[j], plane[n + j], plane[2 * n + j], plane[(j + 1) & (n - 1)], lane);
    }
};

// 3 bits: steps 2 k and 2 k + 1 of eight.
template <int k> VIDKV_DEVICE void two_of_three(const LevelTables & tables, const Rings32 & ring, uint32_t (&out)[8]) {
    const uint32_t a =
        permute(look_up<6 * k>(tables.three, ring.lane[0]), look_up<6 * k>(tables.three, ring.lane[1]), 0x5140);
    const uint32_t b =
        permute(look_up<6 * k>(tables.three, ring.lane[2]), look_up<6 * k>(tables.three, ring.lane[3]), 0x5140);
    out[2 * k] = permute(a, b, 0x5410);
    out[2 * k + 1] = permute(a, b, 0x7632);
}
VIDKV_DEVICE void levels_three(const LevelTables & tables, const Rings32 & ring, uint32_t (&out)[8]) {
    two_of_three<0>(tables, ring, out);
    two_of_three<1>(tables, ring, out);
    two_of_three<2>(tables, ring, out);
    two_of_three<3>(tables, ring, out);
}

// 1.5 bits: steps 2 k and 2 k + 1, out[m][h] for sample h of step m.
template <int k, int n>
VIDKV_DEVICE void two_of_one_half(const LevelTables & tables, const Rings32 & ring, uint32_t (&out)[n][2]) {
    uint32_t four[4];
    transpose(look_up<6 * k>(tables.one_half, ring.lane[0]), look_up<6 * k>(tables.one_half, ring.lane[1]),
              look_up<6 * k>(tables.one_half, ring.lane[2]), look_up<6 * k>(tables.one_half, ring.lane[3]), four);
    VIDKV_UNROLL
    for (int i = 0; i < 4; ++i) out[2 * k + i / 2][i % 2] = four[i];
}

// The words of a thread's rows of a quad: out[m][h], for R rows.
template <int R> using Words = uint32_t[R / 16][2];

// Eight words of levels in a row, those of half h.
template <int R> VIDKV_DEVICE void put_eight(const uint32_t (&levels)[8], int h, Words<R> & out) {
    VIDKV_UNROLL
    for (int u = 0; u < 8; ++u) {
        if (R == 128)
            out[u][h] = levels[u];
        else
            out[u / 2][u % 2] = levels[u];
    }
}

template <int R, RowOrder order>
VIDKV_DEVICE void unpack_one(const LevelTables & tables, const uint32_t * quad, int g, Words<R> & out) {
    constexpr int n = R / 8;
    VIDKV_UNROLL
    for (int h = 0; h < (R == 128 ? 2 : 1); ++h) {
        const int j = word_of<order>(h, g);
        uint32_t levels[8];
        levels_one(tables, quad[j], quad[(j + 1) & (n - 1)], levels);
        put_eight<R>(levels, h, out);
    }
}

template <int R, RowOrder order>
VIDKV_DEVICE void unpack_two(const LevelTables & tables, const uint32_t * quad, int g, Words<R> & out) {
    constexpr int n = R / 4;
    VIDKV_UNROLL
    for (int part = 0; part < n / 16; ++part) {
        VIDKV_UNROLL
        for (int h = 0; h < 2; ++h) {
            const int j = 16 * part + word_of<order>(h, g);
            uint32_t levels[4];
            levels_two(tables, quad[j], quad[(j + 1) & (n - 1)], levels);
            VIDKV_UNROLL
            for (int u = 0; u < 4; ++u) out[u * (n / 16) + part][h] = levels[u];
        }
    }
}

template <int R, RowOrder order>
VIDKV_DEVICE void unpack_three(const LevelTables & tables, const uint32_t * quad, int g, Words<R> & out) {
    VIDKV_UNROLL
    for (int h = 0; h < (R == 128 ? 2 : 1); ++h) {
        const Rings32 ring(quad, R / 8, word_of<order>(h, g));
        uint32_t levels[8];
        levels_three(tables, ring, levels);
        put_eight<R>(levels, h, out);
    }
}

// 64 rows beside the 1.5-bit code: steps 0 .. 3 or 4 .. 7 of two words.
VIDKV_DEVICE void unpack_one_in_fours(const LevelTables & tables, const uint32_t * quad, int g, Words<64> & out) {
    VIDKV_UNROLL
    for (int h = 0; h < 2; ++h) {
        const int j = 4 * h + (g & 3);
        Rings16 ring(quad[j], quad[(j + 1) & 7]);
        ring.low >>= g >> 2 << 2;
        ring.high >>= g >> 2 << 2;
        uint32_t levels[8];
        four_of_one<0>(tables, ring, levels);
        VIDKV_UNROLL
        for (int m = 0; m < 4; ++m) out[m][h] = levels[m];
    }
}

// Plain numbers of 4 bits in RowOrder::eights.
template <int R> VIDKV_DEVICE void unpack_four(const uint32_t * quad, int g, Words<R> & out) {
    VIDKV_UNROLL
    for (int m = 0; m < R / 32; ++m) {
        VIDKV_UNROLL
        for (int h = 0; h < 2; ++h) {
            const uint32_t word = quad[16 * m + 8 * h + g];
            out[m][h] = low_nibbles(word);
            out[m + R / 32][h] = low_nibbles(word >> 4);
        }
    }
}

// 128 rows in RowOrder::eights, 64 in RowOrder::fours.
template <int R>
VIDKV_DEVICE void unpack_one_half(const LevelTables & tables, const uint32_t * quad, int g, Words<R> & out) {
    Rings32 ring(quad, R / 16, R == 128 ? g : g & 3);
    if constexpr (R == 128) {
        two_of_one_half<2>(tables, ring, out);
        two_of_one_half<3>(tables, ring, out);
    } else { // the first or the last four steps of the word
        VIDKV_UNROLL
        for (uint32_t & lane : ring.lane) lane >>= g >> 2 ? 12 : 0;
    }
    two_of_one_half<0>(tables, ring, out);
    two_of_one_half<1>(tables, ring, out);
}

// Uniform codes of 4 to 6 bits, 128 rows in RowOrder::pairs: a plane of upper halves, then one of `low` bits.
template <int low> VIDKV_DEVICE void unpack_uniform(const uint32_t * quad, int g, Words<128> & out) {
    VIDKV_UNROLL
    for (int m = 0; m < 4; ++m) {
        VIDKV_UNROLL
        for (int h = 0; h < 2; ++h) {
            const uint32_t word = quad[16 * m + 2 * g + h];
            out[m][h] = low_nibbles(word) << low;
            out[m + 4][h] = low_nibbles(word >> 4) << low;
        }
    }
    if constexpr (low > 0) {
        constexpr uint32_t mask = low == 1 ? 0x01010101u : 0x03030303u;
        VIDKV_UNROLL
        for (int m = 0; m < 8; ++m) {
            VIDKV_UNROLL
            for (int h = 0; h < 2; ++h) out[m][h] |= quad[64 + m % low * 16 + 2 * g + h] >> (m / low * low) & mask;
        }
    }
}

// A quad of keys: 128 tokens in RowOrder::pairs.
VIDKV_DEVICE void unpack_keys(const LevelTables & tables, QuadCode code, const uint32_t * quad, int g, Words<128> & out) {
    switch (code) {
    case QuadCode::trellis1: return unpack_one<128, RowOrder::pairs>(tables, quad, g, out);
    case QuadCode::trellis2: return unpack_two<128, RowOrder::pairs>(tables, quad, g, out);
    case QuadCode::trellis3: return unpack_three<128, RowOrder::pairs>(tables, quad, g, out);
    case QuadCode::uniform4: return unpack_uniform<0>(quad, g, out);
    case QuadCode::uniform5: return unpack_uniform<1>(quad, g, out);
    case QuadCode::uniform6: return unpack_uniform<2>(quad, g, out);
    default:
        VIDKV_UNROLL
        for (int m = 0; m < 8; ++m) out[m][0] = out[m][1] = 0;
    }
}

// The order of a quad of values' rows, the head's D channels; `code` is that of most quads.
template <int D> VIDKV_DEVICE int value_channel(QuadCode code, int m, int h, int g) {
    if (D == 64 && code == QuadCode::trellis1_5) return row_of<RowOrder::fours>(m, h, g);
    return row_of<RowOrder::eights>(m, h, g);
}

// What the last quads of a still page have in the place of this code (layout.h); for the 1-bit code it is none.
template <QuadCode code>
constexpr QuadCode narrower = code == QuadCode::trellis3   ? QuadCode::trellis2
                              : code == QuadCode::uniform4 ? QuadCode::trellis3
                                                           : QuadCode::trellis1;

template <int D, QuadCode code>
VIDKV_DEVICE void unpack_values(const LevelTables & tables, const uint32_t * quad, int g, Words<D> & out) {
    if constexpr (code == QuadCode::trellis1)
        unpack_one<D, RowOrder::eights>(tables, quad, g, out);
    else if constexpr (code == QuadCode::trellis2)
        unpack_two<D, RowOrder::eights>(tables, quad, g, out);
    else if constexpr (code == QuadCode::trellis3)
        unpack_three<D, RowOrder::eights>(tables, quad, g, out);
    else if constexpr (code == QuadCode::uniform4)
        unpack_four<D>(quad, g, out);
    else
        unpack_one_half<D>(tables, quad, g, out);
}

// The same in a page of such a code, where it is still.
template <int D, QuadCode code>
VIDKV_DEVICE void unpack_narrow(const LevelTables & tables, const uint32_t * quad, int g, Words<D> & out) {
    if constexpr (code == QuadCode::trellis1) {
        VIDKV_UNROLL
        for (int m = 0; m < D / 16; ++m) out[m][0] = out[m][1] = 0;
    } else if constexpr (D == 64 && code == QuadCode::trellis1_5) {
        unpack_one_in_fours(tables, quad, g, out);
    } else {
        unpack_values<D, narrower<code>>(tables, quad, g, out);
    }
}

} // namespace vidkv::cuda
