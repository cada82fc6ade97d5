// Attention on f16 rows: the residual window and, where there are sealed pages, the sink cells. A warp takes 32 rows at a time, a lane
// one of them for the scores, a lane some channels of all for the sums.
#pragma once

#include <cstdint>

#include "cuda/pages.h"

namespace vidkv::cuda {

// Eight f16 numbers.
struct alignas(16) Halves8 {
    uint16_t x[8];
};

template <int D, int NT> class RowWarp {
    using Layout = BlockLayout<D, NT>;
    static constexpr int rows = rows_per_tile * NT;
    static constexpr int width = D / lanes_per_warp; // channels of a lane

  public:
    VIDKV_DEVICE RowWarp(const RowBlock & block, uint8_t * shared, int thread)
        : b_(block), shared_(shared), lane_(thread % lanes_per_warp) {
        const AttentionParams & p = block.p;
        weights_ = reinterpret_cast<float *>(shared + Layout::warps + thread / lanes_per_warp * p.warp_bytes + p.key_room +
                                             p.value_room + Layout::factors);
    }

    // Rows 32 * first .., then 32 * (first + step) .., counted over sink cells and then the window.
    VIDKV_DEVICE void attend(int first, int step) {
        VIDKV_UNROLL
        for (int r = 0; r < rows; ++r) {
            top_[r] = hidden_score;
            total_[r] = 0.0f;
            VIDKV_UNROLL
            for (int c = 0; c < width; ++c) sum_[r][c] = 0.0f;
        }
        const SequenceParams & s = b_.cells();
        const int sinks = s.pages > 0 ? s.sinks : 0, count = sinks + s.cells - s.pages * page_tokens;
        for (int at = 32 * first; at < count; at += 32 * step) {
            weigh(at, count, sinks);
            add(at, count, sinks);
        }
    }

    VIDKV_DEVICE void write(float * part) const {
        using Part = PartLayout<D, NT>;
        VIDKV_UNROLL
        for (int r = 0; r < rows; ++r) {
            if (lane_ == 0) {
                Part::top(part)[r] = top_[r];
                Part::total(part)[r] = total_[r];
            }
            VIDKV_UNROLL
            for (int c = 0; c < width; ++c) Part::sum(part)[r * D + width * lane_ + c] = sum_[r][c];
        }
    }

  private:
    VIDKV_DEVICE const uint16_t * row(const HalfRowsOf & sinks, const HalfRowsOf & window, int at, int sink_count) const {
        const HalfRowsOf & from = at < sink_count ? sinks : window;
        return from.rows + b_.kv_head * from.head_stride + (at < sink_count ? at : at - sink_count) * from.row_stride;
    }

    // weights_[token][row] for 32 tokens, and the running softmax.
    VIDKV_DEVICE void weigh(int first, int count, int sinks) {
        const SequenceParams & s = b_.cells();
        const int at = first + lane_, cell = at < sinks ? at : at - sinks + s.pages * page_tokens;
        float score[rows] = {};
        if (at < count) dot(row(s.key_sinks, s.keys, at, sinks), score);
        VIDKV_UNROLL
        for (int r = 0; r < rows; ++r) {
            score[r] = at < count ? finite_top(RowScores(b_, r)(cell, score[r])) : hidden_score;
            float top = score[r] > top_[r] ? score[r] : top_[r], sum;
            for (int mask = 1; mask < 32; mask *= 2) top = Largest()(top, from_lane_xor(top, mask));
            const float reference = top == hidden_score ? 0.0f : top, decay = exp2_fast(top_[r] - reference);
            const float weight = sum = exp2_fast(score[r] - reference);
            for (int mask = 1; mask < 32; mask *= 2) sum += from_lane_xor(sum, mask);
            weights_[lane_ * rows + r] = weight;
            top_[r] = top;
            total_[r] = fmaf(total_[r], decay, sum);
            VIDKV_UNROLL
            for (int c = 0; c < width; ++c) sum_[r][c] *= decay;
        }
        warp_sync();
    }

    // An infinite score takes all the weight; several share it.
    VIDKV_DEVICE static float finite_top(float score) { return score > 3e38f ? 3e38f : score; }

    VIDKV_DEVICE void dot(const uint16_t * key, float (&score)[rows]) const {
        const float * q = reinterpret_cast<const float *>(shared_ + Layout::queries);
        VIDKV_UNROLL_BY(8)
        for (int c = 0; c < D; c += 8) {
            const Halves8 part = *reinterpret_cast<const Halves8 *>(key + c);
            VIDKV_UNROLL
            for (int r = 0; r < rows; ++r) {
                VIDKV_UNROLL
                for (int i = 0; i < 8; ++i)
                    score[r] = fmaf(q[r * Layout::query_stride + c + i], half_value(part.x[i]), score[r]);
            }
        }
    }

    VIDKV_DEVICE void add(int first, int count, int sinks) {
        const SequenceParams & s = b_.cells();
        const int tokens = count - first < 32 ? count - first : 32;
        VIDKV_UNROLL_BY(8)
        for (int t = 0; t < tokens; ++t) {
            const uint16_t * value = row(s.value_sinks, s.values, first + t, sinks) + width * lane_;
            float v[width];
            VIDKV_UNROLL
            for (int c = 0; c < width; ++c) v[c] = half_value(value[c]);
            VIDKV_UNROLL
            for (int r = 0; r < rows; ++r) {
                const float weight = weights_[t * rows + r];
                if (weight == 0.0f) continue; // a hidden cell may hold an infinity, and 0 * infinity is NaN
                VIDKV_UNROLL
                for (int c = 0; c < width; ++c) sum_[r][c] = fmaf(weight, v[c], sum_[r][c]);
            }
        }
        warp_sync();
    }

    const RowBlock & b_;
    uint8_t * shared_;
    const int lane_;
    float * weights_;
    float top_[rows], total_[rows], sum_[rows][width];
};

} // namespace vidkv::cuda
