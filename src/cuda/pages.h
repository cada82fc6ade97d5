// Attention on sealed pages of trellis codes. A warp has a page to itself: it rounds the queries to int8 factors for the page, multiplies them
// with the keys' levels on tensor cores, rounds the weights to int8 and multiplies those with the values' levels (docs/numerics.md).
#pragma once

#include <cstdint>

#include "cuda/params.h"

namespace vidkv::cuda {

constexpr float hidden_score = -__builtin_inff();
constexpr float round_by_adding = 12582912.0f; // 1.5 * 2^23: the sum's lowest byte is the nearest whole number
constexpr float smallest_factor = 1e-30f;      // below it a row of factors counts as 0
constexpr float log2_e = 1.44269504f;
constexpr uint32_t ones = 0x01010101u, still_mark = 255;

VIDKV_DEVICE uint32_t load_word(const uint8_t * at) { return *reinterpret_cast<const uint32_t *>(at); }

// A byte of a logarithmic scale.
VIDKV_DEVICE float log_scale(uint32_t u) {
    return u == 0 ? 0.0f : exp2_fast(0.125f * static_cast<float>(static_cast<int>(u) - 128));
}

// Twice the middle of a key code's levels, and what a code's level is times the scale (level_grid, quad.h).
VIDKV_DEVICE int doubled_offset(int code) { return code == 6 ? 63 : code == 5 ? 31 : 15; }
VIDKV_DEVICE float level_step(QuadCode code) {
    switch (code) {
    case QuadCode::none: return 0.0f;
    case QuadCode::trellis1_5: return 0.30f;
    case QuadCode::trellis3: return 0.35f;
    case QuadCode::uniform4: return 0.3352f;
    case QuadCode::uniform5: return 0.1881f;
    case QuadCode::uniform6: return 0.1041f;
    default: return 0.40f;
    }
}

// The lowest bytes of four words.
VIDKV_DEVICE uint32_t low_bytes(uint32_t a, uint32_t b, uint32_t c, uint32_t d) {
    return permute(permute(a, b, 0x0040), permute(c, d, 0x0040), 0x5410);
}

template <typename Op> VIDKV_DEVICE float over_groups(float x, Op op) { // lanes of equal t = lane % 4
    for (int mask = 4; mask < 32; mask *= 2) x = op(x, from_lane_xor(x, mask));
    return x;
}
struct Largest {
    VIDKV_DEVICE float operator()(float a, float b) const { return a > b ? a : b; }
};
struct Sum {
    VIDKV_DEVICE float operator()(float a, float b) const { return a + b; }
};

// Rows of queries of one KV head: row r is token r / ratio, head r % ratio of those that read the KV head.
struct RowBlock {
    const AttentionParams & p;
    int sequence, kv_head, first_row;

    VIDKV_DEVICE RowBlock(const AttentionParams & params, int item) : p(params) {
        first_row = item % p.row_blocks;
        kv_head = item / p.row_blocks % p.kv_heads;
        sequence = item / p.row_blocks / p.kv_heads;
    }
    VIDKV_DEVICE const SequenceParams & cells() const { return p.sequences[sequence]; }
    VIDKV_DEVICE bool has(int row) const { return first_row + row < p.tokens * p.ratio; }
    VIDKV_DEVICE int token(int row) const { return (first_row + row) / p.ratio; }
    VIDKV_DEVICE int head(int row) const { return kv_head * p.ratio + (first_row + row) % p.ratio; }
    // Cells from here on are in a row's future.
    VIDKV_DEVICE int end(int row) const {
        return p.causal && p.tokens > 1 ? cells().cells - p.tokens + token(row) + 1 : cells().cells;
    }
};

// The scores of one row, in units of log 2, from products with the scaled query.
class RowScores {
  public:
    VIDKV_DEVICE RowScores(const RowBlock & block, int row) : softcap_(block.p.softcap), end_(block.end(row)) {
        if (block.p.mask && block.has(row)) mask_ = block.p.mask + block.token(row) * block.p.mask_stride;
    }
    VIDKV_DEVICE float operator()(int cell, float x) const {
        if (softcap_ != 0.0f) x = softcap_ * log2_e * tanhf(x);
        if (cell >= end_) return hidden_score;
        if (!mask_) return x;
        return mask_[cell] == 0xfc00 ? hidden_score : x + log2_e * half_value(mask_[cell]);
    }

  private:
    float softcap_;
    int end_;
    const uint16_t * mask_ = nullptr;
};

struct alignas(16) Floats4 {
    float x[4];
};
VIDKV_DEVICE Floats4 load_floats(const float * at) { return *reinterpret_cast<const Floats4 *>(at); }

// Of a head's bytes in a page of keys: scales, means and code of the lane's quad; the quads' codes, where they did not fit in shared memory.
struct KeyHead {
    uint32_t scale = 0, mean = 0;
    int code = 0;
    const uint8_t * elsewhere = nullptr;
};

// A page that is wanted next.
struct PagePlace {
    const uint8_t *keys, *values;
    int start, end; // of the head's codes of keys, in units of 64 bytes
};

template <int D, int NT> class PageWarp {
    using Layout = BlockLayout<D, NT>;
    static constexpr int units = D / 16;       // of keys: four quads, 16 channels
    static constexpr int value_units = 8;      // four quads, 16 tokens
    static constexpr int value_tiles = D / 16; // 16 channels

  public:
    VIDKV_DEVICE PageWarp(const RowBlock & block, uint8_t * shared, int thread)
        : b_(block), p_(block.p), shared_(shared), lane_(thread % lanes_per_warp), g_(lane_ / 4), t_(lane_ % 4) {
        own_ = shared + Layout::warps + thread / lanes_per_warp * p_.warp_bytes;
        rest_ = own_ + p_.key_room + p_.value_room;
    }

    // Asks for the first page, if there is one: two groups of copies.
    VIDKV_DEVICE void start(int first, int end) {
        if (first >= end) {
            commit_copies();
            commit_copies();
            return;
        }
        find(first);
        find_codes();
        fetch_keys();
        fetch_values();
    }

    // Pages first, first + step, .. before `end`.
    VIDKV_DEVICE void attend(int first, int end, int step) {
        clear();
        if (first < end) find(first + step < end ? first + step : first);
        for (int page = first; page < end; page += step) {
            find_codes();
            wait_copies<1>();
            warp_sync();
            fold_queries();
            if (keys_.elsewhere)
                score<false>();
            else
                score<true>();
            warp_sync();
            fetch_keys();
            weigh(page);
            wait_copies<1>();
            warp_sync();
            if (values_)
                add_values<false>();
            else
                add_values<true>();
            warp_sync();
            fetch_values();
            find(page + 2 * step < end ? page + 2 * step : page);
        }
    }

    VIDKV_DEVICE void write(float * part) const {
        using Part = PartLayout<D, NT>;
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) {
            VIDKV_UNROLL
            for (int i = 0; i < 2; ++i) {
                const int row = 8 * n + 2 * t_ + i;
                const float total = over_groups(total_[n][i], Sum());
                if (g_ == 0) {
                    Part::top(part)[row] = top_[n][i];
                    Part::total(part)[row] = total;
                }
                VIDKV_UNROLL
                for (int m = 0; m < value_tiles; ++m) {
                    VIDKV_UNROLL
                    for (int h = 0; h < 2; ++h)
                        Part::sum(part)[row * D + value_channel<D>(p_.value_code, m, h, g_)] = sum_[n][m][2 * h + i];
                }
            }
        }
    }

  private:
    VIDKV_DEVICE void clear() {
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) {
            VIDKV_UNROLL
            for (int i = 0; i < 2; ++i) {
                top_[n][i] = hidden_score;
                total_[n][i] = 0.0f;
            }
            VIDKV_UNROLL
            for (int m = 0; m < value_tiles; ++m) {
                VIDKV_UNROLL
                for (int i = 0; i < 4; ++i) sum_[n][m][i] = 0.0f;
            }
        }
    }

    VIDKV_DEVICE float * floats(int at) const { return reinterpret_cast<float *>(rest_ + at); }
    VIDKV_DEVICE const LevelTables & tables() const {
        return *reinterpret_cast<const LevelTables *>(shared_ + Layout::tables);
    }

    // Bytes into the warp's memory, if they fit: null; else they are read where they are.
    VIDKV_DEVICE const uint8_t * fetch(const uint8_t * from, int bytes, uint8_t * to, int room) const {
        if (bytes > room) return from;
        for (int at = 16 * lane_; at < bytes; at += 16 * lanes_per_warp) copy_16(to + at, from + at);
        return nullptr;
    }

    // What finding a page waits for is asked for well before it is used.
    VIDKV_DEVICE void find(int page) {
        next_.keys = b_.cells().key_pages[page];
        next_.values = b_.cells().value_pages[page];
    }
    VIDKV_DEVICE void find_codes() {
        const auto * starts =
            reinterpret_cast<const uint16_t *>(next_.keys + p_.key_codes + p_.kv_heads * (2 * D + D / 8)) + b_.kv_head;
        next_.start = starts[0];
        next_.end = b_.kv_head + 1 == p_.kv_heads ? p_.key_codes / 64 : starts[1];
    }

    VIDKV_DEVICE void fetch_keys() {
        const uint8_t * meta = next_.keys + p_.key_codes + b_.kv_head * (2 * D + D / 8);
        keys_.elsewhere = fetch(next_.keys + 64 * next_.start, 64 * (next_.end - next_.start), own_, p_.key_room);
        commit_copies();
        if (lane_ < D / 4) {
            keys_.scale = load_word(meta + 4 * lane_);
            keys_.mean = load_word(meta + D + 4 * lane_);
            keys_.code = meta[2 * D + lane_ / 2] >> 4 * (lane_ % 2) & 15;
        }
    }

    VIDKV_DEVICE void fetch_values() {
        mean_ = next_.values + (b_.kv_head + 1) * p_.value_head_codes - p_.mean_bytes;
        values_ =
            fetch(next_.values + b_.kv_head * p_.value_head_codes, p_.value_head_codes, own_ + p_.key_room, p_.value_room);
        commit_copies();
        slot_scales_ = load_word(next_.values + p_.kv_heads * p_.value_head_codes + b_.kv_head * page_tokens + 4 * lane_);
    }

    // What the page's levels stand for, into shared memory, by the lane of the quad; and where each quad is: 64-byte units and code.
    VIDKV_DEVICE void load_steps() {
        int place = keys_.code; // a quad of b bits takes b units
        for (int d = 1; d < lanes_per_warp; d *= 2) {
            const int before = from_lane(place, lane_ - d);
            if (lane_ >= d) place += before;
        }
        place_ = (place - keys_.code) << 4 | keys_.code;
        if (lane_ < D / 4) {
            const float unit = level_step(static_cast<QuadCode>(keys_.code));
            VIDKV_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float scale = log_scale(keys_.scale >> 8 * i & 255);
                floats(Layout::steps)[4 * lane_ + i] = scale * unit;
                floats(Layout::centers)[4 * lane_ + i] =
                    scale * 0.125f * static_cast<float>(static_cast<int8_t>(keys_.mean >> 8 * i & 255));
            }
        }
        warp_sync();
    }

    // The queries' int8 factors for this page; column_scale_ and column_base_ make scores of the products.
    VIDKV_DEVICE void fold_queries() {
        load_steps();
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) fold_tile(n);
        warp_sync();
    }

    VIDKV_DEVICE void fold_tile(int n) {
        const int row = 8 * n + g_;
        const float * q = reinterpret_cast<const float *>(shared_ + Layout::queries) + row * Layout::query_stride;
        float largest = 0.0f, base = 0.0f;
        VIDKV_UNROLL
        for (int u = 0; u < units; ++u) {
            const int c = 16 * u + 4 * t_;
            const Floats4 query = load_floats(q + c), step = load_floats(floats(Layout::steps) + c);
            const Floats4 center = load_floats(floats(Layout::centers) + c);
            VIDKV_UNROLL
            for (int i = 0; i < 4; ++i) {
                const float factor = fabsf(query.x[i] * step.x[i]);
                largest = factor > largest ? factor : largest;
                base = fmaf(query.x[i], center.x[i], base);
            }
        }
        VIDKV_UNROLL
        for (int mask = 1; mask < 4; mask *= 2) {
            largest = Largest()(largest, from_lane_xor(largest, mask));
            base += from_lane_xor(base, mask);
        }
        const float inverse = largest > smallest_factor ? 127.0f / largest : 0.0f, scale = largest * (1.0f / 127.0f);
        int offset = 0;
        VIDKV_UNROLL
        for (int u = 0; u < units; ++u) {
            const int c = 16 * u + 4 * t_;
            const Floats4 query = load_floats(q + c), step = load_floats(floats(Layout::steps) + c);
            uint32_t rounded[4];
            VIDKV_UNROLL
            for (int i = 0; i < 4; ++i) rounded[i] = float_bits(fmaf(query.x[i] * step.x[i], inverse, round_by_adding));
            const uint32_t bytes = low_bytes(rounded[0], rounded[1], rounded[2], rounded[3]);
            *reinterpret_cast<uint32_t *>(rest_ + Layout::factors + row * byte_stride + c) = bytes;
            offset += dot4(bytes, ones, 0) * doubled_offset(from_lane(place_, 4 * u + t_) & 15);
        }
        VIDKV_UNROLL
        for (int mask = 1; mask < 4; mask *= 2) offset += from_lane_xor(offset, mask);
        base += reinterpret_cast<const float *>(shared_ + Layout::bases)[row] - 0.5f * static_cast<float>(offset) * scale;
        VIDKV_UNROLL
        for (int i = 0; i < 2; ++i) {
            column_scale_[n][i] = from_lane(scale, 4 * (2 * t_ + i));
            column_base_[n][i] = from_lane(base, 4 * (2 * t_ + i));
        }
    }

    VIDKV_DEVICE uint32_t factors(int n, int unit) const {
        return *reinterpret_cast<const uint32_t *>(rest_ + Layout::factors + (8 * n + g_) * byte_stride + 16 * unit +
                                                   4 * t_);
    }

    // dots_[n][m]: tokens of tile m (RowOrder::pairs) with queries of tile n.
    template <bool staged> VIDKV_DEVICE void score() {
        const auto * codes = reinterpret_cast<const uint32_t *>(staged ? own_ : keys_.elsewhere);
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) {
            VIDKV_UNROLL
            for (int m = 0; m < 8; ++m) {
                VIDKV_UNROLL
                for (int i = 0; i < 4; ++i) dots_[n][m][i] = 0;
            }
        }
        VIDKV_UNROLL_BY(1)
        for (int u = 0; u < units; ++u) {
            const int place = from_lane(place_, 4 * u + t_);
            Words<128> levels;
            unpack_keys(tables(), static_cast<QuadCode>(place & 15), codes + 16 * (place >> 4), g_, levels);
            warp_sync();
            VIDKV_UNROLL
            for (int n = 0; n < NT; ++n) {
                const uint32_t b = factors(n, u);
                VIDKV_UNROLL
                for (int m = 0; m < 8; ++m) multiply(dots_[n][m], levels[m][0], levels[m][1], b);
            }
        }
    }

    // What levels of the page's slots stand for. The last scale says whether the page is still; its own is with the mean then.
    VIDKV_DEVICE void load_slots() {
        still_ = from_lane(slot_scales_, lanes_per_warp - 1) >> 24 == still_mark;
        if (still_) {
            moving_ = mean_[1] == 0;
            first_narrow_ = p_.first_narrow[moving_];
        }
        if (still_ && lane_ == lanes_per_warp - 1)
            slot_scales_ = (slot_scales_ & 0xffffff) | static_cast<uint32_t>(mean_[0]) << 24;
        const float step = level_step(still_ && lane_ >= first_narrow_ ? p_.narrow_code : p_.value_code);
        VIDKV_UNROLL
        for (int i = 0; i < 4; ++i) floats(Layout::slots)[4 * lane_ + i] = step * log_scale(slot_scales_ >> 8 * i & 255);
        warp_sync();
    }

    // Softmax weights of the page, rounded to int8: into shared memory, by query and token.
    VIDKV_DEVICE void weigh(int page) {
        load_slots();
        const int end = (page + 1) * page_tokens, sequence_end = b_.cells().cells;
        const bool some_hidden =
            p_.mask || p_.softcap != 0.0f || end > (p_.causal ? sequence_end - p_.tokens + 1 : sequence_end);
        float slots[16];
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) slots[k] = floats(Layout::slots)[row_of<RowOrder::pairs>(k / 2, k % 2, g_)];
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) {
            VIDKV_UNROLL
            for (int i = 0; i < 2; ++i) weigh_column(page * page_tokens, n, i, some_hidden, slots);
        }
        warp_sync();
    }

    VIDKV_DEVICE void weigh_column(int first_cell, int n, int i, bool some_hidden, const float (&slots)[16]) {
        const int row = 8 * n + 2 * t_ + i;
        float x[16], top = hidden_score;
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) {
            const int dot = dots_[n][k / 2][k % 2 * 2 + i];
            x[k] = fmaf(static_cast<float>(dot), column_scale_[n][i], column_base_[n][i]);
        }
        if (some_hidden) {
            const RowScores score(b_, row);
            VIDKV_UNROLL
            for (int k = 0; k < 16; ++k) x[k] = score(first_cell + row_of<RowOrder::pairs>(k / 2, k % 2, g_), x[k]);
        }
        if (first_cell == 0) { // sink cells are read elsewhere, as f16
            VIDKV_UNROLL
            for (int k = 0; k < 16; ++k)
                x[k] = row_of<RowOrder::pairs>(k / 2, k % 2, g_) < b_.cells().sinks ? hidden_score : x[k];
        }
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) top = x[k] > top ? x[k] : top;
        top = Largest()(over_groups(top, Largest()), top_[n][i]);
        const float reference = top == hidden_score ? 0.0f : top;
        decay_[n][i] = exp2_fast(top_[n][i] - reference);
        top_[n][i] = top;
        float total = 0.0f, largest = 0.0f;
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) x[k] = exp2_fast(x[k] - reference);
        if (still_ && moving_) page_along_[n][i] = over_groups(sum_along(x), Sum());
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) {
            total += x[k];
            x[k] *= slots[k];
            largest = x[k] > largest ? x[k] : largest;
        }
        total_[n][i] = fmaf(total_[n][i], decay_[n][i], total);
        page_total_[n][i] = still_ ? over_groups(total, Sum()) : 0.0f;
        largest = over_groups(largest, Largest());
        const float inverse = largest > smallest_factor ? 127.0f / largest : 0.0f;
        column_scale_[n][i] = largest * (1.0f / 127.0f);
        uint8_t * weights = rest_ + Layout::factors + row * byte_stride + 2 * g_;
        VIDKV_UNROLL
        for (int m = 0; m < 8; ++m) {
            const uint32_t first = float_bits(fmaf(x[2 * m], inverse, round_by_adding));
            const uint32_t second = float_bits(fmaf(x[2 * m + 1], inverse, round_by_adding));
            *reinterpret_cast<uint16_t *>(weights + 16 * m) = static_cast<uint16_t>(permute(first, second, 0x0040));
        }
    }

    // How far along the page's direction the lane's weights come to.
    VIDKV_DEVICE float sum_along(const float (&weights)[16]) const {
        const uint8_t * bytes = mean_ - page_tokens / 2;
        float sum = 0.0f;
        VIDKV_UNROLL
        for (int k = 0; k < 16; ++k) {
            const int token = row_of<RowOrder::pairs>(k / 2, k % 2, g_);
            const int bits = bytes[token % (page_tokens / 2)] >> (token < page_tokens / 2 ? 0 : 4);
            sum = fmaf(weights[k], static_cast<float>((bits & 7) - (bits & 8)), sum);
        }
        return sum;
    }

    template <bool staged> VIDKV_DEVICE void add_values() {
        switch (p_.value_code) {
        case QuadCode::trellis1: return add_values_of<staged, QuadCode::trellis1>();
        case QuadCode::trellis2: return add_values_of<staged, QuadCode::trellis2>();
        case QuadCode::trellis3: return add_values_of<staged, QuadCode::trellis3>();
        case QuadCode::uniform4: return add_values_of<staged, QuadCode::uniform4>();
        default: return add_values_of<staged, QuadCode::trellis1_5>();
        }
    }

    template <bool staged, QuadCode code> VIDKV_DEVICE void add_values_of() {
        const uint8_t * codes = staged ? own_ + p_.key_room : values_;
        int sums[NT] = {};
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) {
            VIDKV_UNROLL
            for (int m = 0; m < value_tiles; ++m) {
                VIDKV_UNROLL
                for (int i = 0; i < 4; ++i) dots_[n][m][i] = 0;
            }
        }
        VIDKV_UNROLL_BY(1)
        for (int u = 0; u < value_units; ++u) {
            Words<D> levels;
            const int quad = 4 * u + t_, narrow = still_ ? quad - first_narrow_ : -1;
            if (narrow < 0) {
                unpack_values<D, code>(tables(), reinterpret_cast<const uint32_t *>(codes + quad * p_.value_quad), g_,
                                       levels);
            } else {
                const uint8_t * at = codes + first_narrow_ * p_.value_quad + narrow * p_.narrow_quad;
                unpack_narrow<D, code>(tables(), reinterpret_cast<const uint32_t *>(at), g_, levels);
            }
            warp_sync();
            VIDKV_UNROLL
            for (int n = 0; n < NT; ++n) {
                const uint32_t b = factors(n, u);
                sums[n] = dot4(b, ones, sums[n]);
                VIDKV_UNROLL
                for (int m = 0; m < value_tiles; ++m) multiply(dots_[n][m], levels[m][0], levels[m][1], b);
            }
        }
        VIDKV_UNROLL
        for (int n = 0; n < NT; ++n) add_tile(n, sums[n]);
        if (still_) add_shared();
    }

    // What a still page's tokens share (page_mean.h): the mean for all their weight, the direction for how far along it that comes to.
    VIDKV_DEVICE void add_shared() {
        const uint8_t * const direction = mean_ - p_.direction_bytes;
        add_vector(moving_ ? direction[0] : mean_[1], mean_ + 2, page_total_);
        if (moving_) add_vector(direction[1], direction + 2, page_along_);
    }

    // A vector of 12-bit numbers, as often as `weight` says for each query.
    VIDKV_DEVICE void add_vector(int scale, const uint8_t * numbers, const float (&weight)[NT][2]) {
        const float step = log_scale(scale) * (1.0f / 2048.0f);
        VIDKV_UNROLL
        for (int m = 0; m < value_tiles; ++m) {
            VIDKV_UNROLL
            for (int h = 0; h < 2; ++h) {
                const int c = value_channel<D>(p_.value_code, m, h, g_), lower = numbers[D + c % (D / 2)];
                const int upper = static_cast<int8_t>(numbers[c]);
                const float x = step * static_cast<float>(16 * upper + (c < D / 2 ? lower & 15 : lower >> 4));
                VIDKV_UNROLL
                for (int n = 0; n < NT; ++n) {
                    VIDKV_UNROLL
                    for (int i = 0; i < 2; ++i) sum_[n][m][2 * h + i] = fmaf(x, weight[n][i], sum_[n][m][2 * h + i]);
                }
            }
        }
    }

    VIDKV_DEVICE void add_tile(int n, int weights) {
        VIDKV_UNROLL
        for (int mask = 1; mask < 4; mask *= 2) weights += from_lane_xor(weights, mask);
        VIDKV_UNROLL
        for (int i = 0; i < 2; ++i) {
            const float offset = 7.5f * static_cast<float>(from_lane(weights, 4 * (2 * t_ + i)));
            VIDKV_UNROLL
            for (int m = 0; m < value_tiles; ++m) {
                VIDKV_UNROLL
                for (int h = 0; h < 2; ++h) {
                    float & sum = sum_[n][m][2 * h + i];
                    sum =
                        fmaf(static_cast<float>(dots_[n][m][2 * h + i]) - offset, column_scale_[n][i], sum * decay_[n][i]);
                }
            }
        }
    }

    const RowBlock & b_;
    const AttentionParams & p_;
    uint8_t *shared_, *own_, *rest_;
    const int lane_, g_, t_;
    KeyHead keys_;
    const uint8_t * values_ = nullptr;    // the codes, where they did not fit
    const uint8_t * mean_ = nullptr;      // of the page of values, if it is still
    bool still_ = false, moving_ = false; // moving: with a direction
    int first_narrow_ = 0;
    PagePlace next_{};
    uint32_t slot_scales_ = 0;
    int place_ = 0; // of the lane's quad: (units before it) << 4 | code
    int dots_[NT][8][4];
    float column_scale_[NT][2], column_base_[NT][2], decay_[NT][2];
    float page_total_[NT][2], page_along_[NT][2];
    float top_[NT][2], total_[NT][2], sum_[NT][value_tiles][4];
};

} // namespace vidkv::cuda
