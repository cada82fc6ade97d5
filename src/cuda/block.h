// What a block of threads does: its part of the pages, or the f16 rows; the last block of a row block that is done adds up the parts.
#pragma once

#include <cstdint>

#include "cuda/pages.h"
#include "cuda/rows.h"

namespace vidkv::cuda {

VIDKV_DEVICE float load_number(const void * at, int64_t index, Number number) {
    if (number == Number::f32) return static_cast<const float *>(at)[index];
    const uint16_t bits = static_cast<const uint16_t *>(at)[index];
    if (number == Number::f16) return half_value(bits);
    union {
        uint32_t bits;
        float x;
    } whole = {static_cast<uint32_t>(bits) << 16};
    return whole.x;
}

VIDKV_DEVICE void store_number(void * at, int64_t index, Number number, float x) {
    if (number == Number::f32) {
        static_cast<float *>(at)[index] = x;
        return;
    }
    const uint32_t bits = float_bits(x), nearest = x == x ? bits + 0x7fff + (bits >> 16 & 1) : 0x7fc00000u;
    static_cast<uint16_t *>(at)[index] = number == Number::f16 ? half_bits(x) : static_cast<uint16_t>(nearest >> 16);
}

template <int D, int NT> class AttentionBlock {
    using Layout = BlockLayout<D, NT>;
    using Part = PartLayout<D, NT>;
    static constexpr int rows = Part::rows;

  public:
    // part 0: the f16 rows; part i: pages (i - 1) / splits .. i / splits of all.
    VIDKV_DEVICE AttentionBlock(const AttentionParams & params, int item, int part, int thread, uint8_t * shared)
        : p_(params), b_(params, item), item_(item), part_(part), thread_(thread), threads_(params.warps * lanes_per_warp),
          shared_(shared) {
        b_.first_row *= rows;
    }

    VIDKV_DEVICE void run() {
        if (part_ == 0)
            attend_rows();
        else
            attend_pages();
        block_sync();
        merge_warps();
        if (is_last()) finish();
    }

  private:
    VIDKV_DEVICE void attend_rows() {
        load_queries();
        block_sync();
        RowWarp<D, NT> warp(b_, shared_, thread_);
        warp.attend(thread_ / lanes_per_warp, p_.warps);
        const SequenceParams & s = b_.cells();
        limit_active((s.cells - s.pages * page_tokens + (s.pages > 0 ? s.sinks : 0) + lanes_per_warp - 1) / lanes_per_warp);
        block_sync(); // what follows lies where warps had theirs
        warp.write(merge_room(thread_ / lanes_per_warp));
    }

    VIDKV_DEVICE void attend_pages() {
        load_tables();
        const int64_t pages = b_.cells().pages;
        const int end = static_cast<int>(pages * part_ / p_.splits);
        const int begin = static_cast<int>(pages * (part_ - 1) / p_.splits), first = begin + thread_ / lanes_per_warp;
        limit_active(end - begin);
        PageWarp<D, NT> warp(b_, shared_, thread_);
        warp.start(first, end);
        load_queries();
        wait_copies<2>(); // the tables
        block_sync();
        warp.attend(first, end, p_.warps);
        wait_copies<0>();
        block_sync();
        warp.write(merge_room(thread_ / lanes_per_warp));
    }

    // Warps that have summed something.
    VIDKV_DEVICE void limit_active(int wanted) { active_ = wanted < 1 ? 1 : wanted < p_.warps ? wanted : p_.warps; }

    VIDKV_DEVICE float * merge_room(int warp) const {
        return reinterpret_cast<float *>(shared_ + Layout::tables) + warp * Part::floats;
    }
    VIDKV_DEVICE float * part_at(int part) const {
        return p_.parts + (static_cast<int64_t>(item_) * (p_.splits + 1) + part) * Part::floats;
    }

    // Scaled; for pages in the order of the channels' plan, with what the plan's means add to every score.
    VIDKV_DEVICE void load_queries() {
        float * queries = reinterpret_cast<float *>(shared_ + Layout::queries);
        for (int i = thread_; i < rows * D; i += threads_) {
            const int row = i / D, c = i % D;
            const int from = part_ > 0 ? b_.cells().order[b_.kv_head * D + c] : c;
            queries[row * Layout::query_stride + c] = b_.has(row) ? query(row, from) : 0.0f;
        }
        block_sync();
        if (part_ == 0) return;
        float * bases = reinterpret_cast<float *>(shared_ + Layout::bases);
        for (int row = thread_ / lanes_per_warp; row < rows; row += p_.warps) {
            float base = 0.0f;
            for (int c = thread_ % lanes_per_warp; c < D; c += lanes_per_warp) {
                const float q = queries[row * Layout::query_stride + c];
                base = fmaf(q, b_.cells().means[b_.kv_head * D + c], base) + 0.0f * q; // a query that is not finite: NaN
            }
            for (int mask = 1; mask < 32; mask *= 2) base += from_lane_xor(base, mask);
            if (thread_ % lanes_per_warp == 0) bases[row] = base;
        }
    }
    VIDKV_DEVICE float query(int row, int channel) const {
        const int64_t at = b_.sequence * p_.q_sequence + b_.token(row) * p_.q_token + b_.head(row) * p_.q_head + channel;
        return load_number(p_.q, at, p_.q_number) * p_.factor;
    }

    VIDKV_DEVICE void load_tables() {
        const uint8_t * from = reinterpret_cast<const uint8_t *>(p_.tables);
        for (int at = 16 * thread_; at < static_cast<int>(sizeof(LevelTables)); at += 16 * threads_)
            copy_16(shared_ + Layout::tables + at, from + at);
        commit_copies();
    }

    VIDKV_DEVICE static float decay(float score, float largest) {
        return largest == hidden_score ? 0.0f : exp2_fast(score - largest);
    }

    // All warps' sums into this block's part.
    VIDKV_DEVICE void merge_warps() {
        float * out = part_at(part_);
        for (int i = thread_; i < rows * D; i += threads_) {
            const int row = i / D;
            float top = hidden_score, total = 0.0f, sum = 0.0f;
            for (int w = 0; w < active_; ++w) top = Largest()(top, Part::top(merge_room(w))[row]);
            for (int w = 0; w < active_; ++w) {
                const float factor = decay(Part::top(merge_room(w))[row], top);
                total = fmaf(Part::total(merge_room(w))[row], factor, total);
                sum = fmaf(Part::sum(merge_room(w))[i], factor, sum);
            }
            Part::sum(out)[i] = sum;
            if (i % D != 0) continue;
            Part::top(out)[row] = top;
            Part::total(out)[row] = total;
        }
        publish();
    }

    VIDKV_DEVICE bool is_last() {
        int * message = reinterpret_cast<int *>(shared_ + Layout::message);
        block_sync();
        if (thread_ == 0) {
            *message = count_up(p_.counters + item_) == p_.splits;
            if (*message) p_.counters[item_] = 0;
            publish();
        }
        block_sync();
        return *message;
    }

    // Adds up the parts, takes the rotation back and divides.
    VIDKV_DEVICE void finish() {
        float * weights = merge_room(0); // [row][splits + 1] what a part's sums count
        const int parts = p_.splits + 1;
        for (int row = thread_ / lanes_per_warp; row < rows; row += p_.warps) weigh_parts(row, weights + row * parts);
        block_sync();
        float * sums = weights + rows * parts;
        for (int i = thread_; i < rows * D; i += threads_) {
            const float * weight = weights + i / D * parts;
            float sum = 0.0f;
            VIDKV_UNROLL_BY(8)
            for (int part = 1; part < parts; ++part)
                sum = fmaf(read_shared_result(Part::sum(part_at(part)) + i), weight[part], sum);
            sums[i] = sum;
        }
        block_sync();
        for (int row = thread_ / lanes_per_warp; row < rows; row += p_.warps)
            write_row(row, weights[row * parts], sums + row * D);
    }

    VIDKV_DEVICE void weigh_parts(int row, float * weights) {
        const int lane = thread_ % lanes_per_warp, parts = p_.splits + 1;
        const float sink = p_.sinks && b_.has(row) ? p_.sinks[b_.head(row)] * log2_e : hidden_score;
        float top = sink, total = 0.0f;
        for (int part = lane; part < parts; part += lanes_per_warp) {
            const float part_top = read_shared_result(Part::top(part_at(part)) + row);
            const float part_total = read_shared_result(Part::total(part_at(part)) + row), before = top;
            top = Largest()(part_top, top);
            total = fmaf(total, decay(before, top), part_total * decay(part_top, top));
            weights[part] = part_top;
        }
        const float own = top;
        for (int mask = 1; mask < 32; mask *= 2) top = Largest()(top, from_lane_xor(top, mask));
        total *= decay(own, top);
        for (int part = lane; part < parts; part += lanes_per_warp) weights[part] = decay(weights[part], top);
        for (int mask = 1; mask < 32; mask *= 2) total += from_lane_xor(total, mask);
        total += decay(sink, top);
        const float inverse = total == 0.0f ? 0.0f : 1.0f / total; // sees nothing: zeros
        for (int part = lane; part < parts; part += lanes_per_warp) weights[part] *= inverse;
    }

    // sum [D]: of rotated values. Lane l holds channels l, l + 32, ..
    VIDKV_DEVICE void write_row(int row, float open_weight, const float * sum) {
        constexpr int width = D / lanes_per_warp;
        const int lane = thread_ % lanes_per_warp;
        float x[width];
        VIDKV_UNROLL
        for (int k = 0; k < width; ++k) x[k] = sum[lane + lanes_per_warp * k];
        for (int half = 1; half < lanes_per_warp; half *= 2) {
            VIDKV_UNROLL
            for (int k = 0; k < width; ++k) {
                const float other = from_lane_xor(x[k], half);
                x[k] = lane & half ? other - x[k] : x[k] + other;
            }
        }
        VIDKV_UNROLL
        for (int half = 1; half < width; half *= 2) {
            VIDKV_UNROLL
            for (int k = 0; k < width; ++k) {
                if (k & half) continue;
                const float a = x[k], b = x[k + half];
                x[k] = a + b;
                x[k + half] = a - b;
            }
        }
        if (!b_.has(row)) return;
        const float * open = Part::sum(part_at(0)) + row * D;
        const int64_t at = b_.sequence * p_.out_sequence + b_.token(row) * p_.out_token + b_.head(row) * p_.out_head;
        VIDKV_UNROLL
        for (int k = 0; k < width; ++k) {
            const int c = lane + lanes_per_warp * k;
            const float size = D == 128 ? 0.0883883476f : 0.125f; // 1 / sqrt(D)
            const float natural = x[k] * (p_.signs[k] >> lane & 1 ? -size : size);
            const float added = open_weight == 0.0f ? 0.0f : open_weight * read_shared_result(open + c);
            store_number(p_.out, at + c, p_.out_number, natural + added);
        }
    }

    const AttentionParams & p_;
    RowBlock b_;
    const int item_, part_, thread_, threads_;
    int active_ = 1;
    uint8_t * shared_;
};

} // namespace vidkv::cuda
