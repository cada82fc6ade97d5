// Filled stores and arguments of vidkv_cuda_attention that fit them, for the emulated device and for a real one.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <string>
#include <vector>

#include "base/half.h"
#include "cache/store.h"
#include "codec/value_page.h"
#include "core/attention_reference.h"
#include "core/random.h"
#include "vidkv/cuda.h"

namespace vidkv::test {

struct CudaCase {
    const char * preset = "t1.65";
    int head_dim = 128, kv_heads = 1, ratio = 1;
    int64_t cells = 300;
    int tokens = 1, sequences = 1, sink_tokens = 4;
    const char * mask = "none"; // holes, window, biased
    bool causal = false, sinks = false;
    bool still = false; // values that hardly move: their pages have a mean; or that move one way: a direction too
    float softcap = 0;

    std::string trace() const {
        return std::string(preset) + " head_dim " + std::to_string(head_dim) + " kv_heads " + std::to_string(kv_heads) +
               " ratio " + std::to_string(ratio) + " cells " + std::to_string(cells) + " tokens " + std::to_string(tokens) +
               " sequences " + std::to_string(sequences) + " sink_tokens " + std::to_string(sink_tokens) + " mask " + mask +
               " causal " + std::to_string(causal) + " still " + std::to_string(still) + " sinks " + std::to_string(sinks) +
               " softcap " + std::to_string(softcap);
    }
};

inline constexpr const char * cuda_presets[] = {"t2.2", "t1.65", "t1.15", "t1.0", "t3.2", "t4.2"};

// Both head_dims in decode, with up to 16 tokens and in prefill; the other choices take turns, so that each meets each over the table.
inline std::vector<CudaCase> cuda_cases(const char * preset) {
    constexpr int ratios[] = {1, 3, 7, 4}, tokens[] = {1, 2, 16, 19};
    constexpr int64_t lengths[] = {1, 31, 263, 300, 391, 520};
    constexpr const char * masks[] = {"none", "holes", "window", "biased"};
    std::vector<CudaCase> cases;
    int turn = static_cast<int>(std::strlen(preset));
    for (const int head_dim : {64, 128}) {
        for (const int count : tokens) {
            CudaCase c;
            c.preset = preset;
            c.head_dim = head_dim;
            c.ratio = ratios[turn % 4];
            c.kv_heads = 1 + turn % 2;
            c.cells = std::max<int64_t>(lengths[turn * 5 % 6], count);
            c.tokens = count;
            c.sequences = 1 + turn % 3 / 2;
            c.sink_tokens = turn % 4 == 1 ? 0 : turn % 7 == 5 ? 13 : 4;
            c.mask = masks[turn / 2 % 4];
            c.causal = turn % 3 == 1;
            c.sinks = turn % 5 == 2;
            c.still = turn / 2 % 2 == 1;
            c.softcap = turn % 7 == 3 ? 20.0f : 0.0f;
            cases.push_back(c);
            turn += 1;
        }
    }
    CudaCase decode; // several parts are merged
    decode.preset = preset;
    decode.cells = 2777;
    decode.ratio = 7;
    decode.sinks = true;
    cases.push_back(decode);
    return cases;
}

// Brings bytes to a device: their address there, a multiple of 16.
using ToDevice = std::function<void *(const void * bytes, size_t size)>;

class CudaProblem {
  public:
    CudaProblem(const CudaCase & c, Random & rng) : case_(c), keys(make(c, VIDKV_KEYS)), values(make(c, VIDKV_VALUES)) {
        for (int s = 0; s < c.sequences; ++s) fill(s, rng);
        fill_arguments(rng);
    }

    int64_t sealed_pages(int sequence) const {
        int64_t pages = 0;
        while ((pages + 1) * page_tokens <= case_.cells && keys.view(sequence, pages, 0).state == PageState::sealed)
            ++pages;
        return pages;
    }

    bool has_mean_alone() const {
        return has_page([](const ValuePage & page) { return page.is_still() && !page.direction; });
    }
    bool has_direction() const {
        return has_page([](const ValuePage & page) { return page.direction != nullptr; });
    }
    template <class Is> bool has_page(const Is & is) const {
        const int last = values.value_layout().head_dim > 0 && sealed_pages(0) > 0 ? case_.kv_heads : 0;
        for (int head = 0; head < last; ++head) {
            if (is(value_page(values.value_layout(), values.view(0, 0, head).page, head))) return true;
        }
        return false;
    }

    // Everything on the device but out and workspace; the arguments stay valid as long as this does.
    vidkv_cuda_attention_args on_device(const ToDevice & to_device) {
        sequences_.clear();
        for (int s = 0; s < case_.sequences; ++s) sequences_.push_back(sequence_on(s, to_device));
        vidkv_cuda_attention_args a{};
        vidkv_params_from_preset(case_.preset, &a.params);
        a.head_dim = case_.head_dim;
        a.kv_heads = case_.kv_heads;
        a.heads = heads();
        a.sequences = case_.sequences;
        a.sequence = sequences_.data();
        a.tokens = case_.tokens;
        a.q = to_device(q_.data(), q_.size() * 4);
        a.q_head_stride = a.out_head_stride = case_.head_dim;
        a.q_token_stride = a.out_token_stride = int64_t{heads()} * case_.head_dim;
        a.q_sequence_stride = a.out_sequence_stride = case_.tokens * a.q_token_stride;
        if (!mask_.empty()) a.mask = static_cast<const uint16_t *>(to_device(mask_.data(), mask_.size() * 2));
        a.mask_stride = mask_stride_;
        a.causal = case_.causal;
        a.scale = scale();
        a.softcap = case_.softcap;
        if (case_.sinks) a.sinks = static_cast<const float *>(to_device(sinks_.data(), sinks_.size() * 4));
        return a;
    }

    size_t elements() const { return static_cast<size_t>(case_.sequences * case_.tokens * heads() * case_.head_dim); }

    // The largest difference from the double reference in units of its bound; 0 / 0 is 0.
    double worst_share(const std::vector<float> & got) const {
        double worst = 0;
        const size_t size = elements() / static_cast<size_t>(case_.sequences);
        for (int s = 0; s < case_.sequences; ++s) {
            vidkv_attention_args a{};
            a.q = &q_[static_cast<size_t>(s) * size];
            a.q_head_stride = case_.head_dim;
            a.q_token_stride = int64_t{heads()} * case_.head_dim;
            a.tokens = case_.tokens;
            a.heads = heads();
            a.cells = case_.cells;
            a.sequence = a.value_sequence = s;
            a.mask = mask_.empty() ? nullptr : mask_.data();
            a.mask_stride = mask_stride_;
            a.causal = case_.causal;
            a.scale = scale();
            a.softcap = case_.softcap;
            a.sinks = case_.sinks ? sinks_.data() : nullptr;
            const Reference reference = reference_attention(keys, values, a);
            for (size_t i = 0; i < size; ++i) {
                const double error = std::abs(got[static_cast<size_t>(s) * size + i] - reference.out[i]);
                if (error == 0) continue;
                const bool bounded = reference.bound[i] > 0 && std::isfinite(error);
                worst = std::max(worst, bounded ? error / reference.bound[i] : std::numeric_limits<double>::infinity());
            }
        }
        return worst;
    }

  private:
    int heads() const { return case_.kv_heads * case_.ratio; }
    float scale() const { return 1.0f / std::sqrt(static_cast<float>(case_.head_dim)); }

    static Store make(const CudaCase & c, vidkv_side side) {
        vidkv_params params;
        vidkv_params_from_preset(c.preset, &params);
        params.residual_length = 40;
        params.sink_tokens = c.sink_tokens;
        return Store({side, c.kv_heads * c.head_dim, c.head_dim, c.cells + 37, c.sequences}, params);
    }

    // What moves one way in the first head, and does not in the others.
    float picture(size_t token, size_t channel) const {
        const bool moves = channel < static_cast<size_t>(case_.head_dim);
        const float moved = moves ? std::sin(0.05f * static_cast<float>(token)) : 0.0f;
        return std::sin(static_cast<float>(channel)) + moved * std::cos(static_cast<float>(5 * channel));
    }

    // Some channels are large, as in real keys; queries look at some channels far more than at others, so that keys get 0 to 6 bits.
    void fill(int sequence, Random & rng) {
        const size_t channels = static_cast<size_t>(case_.kv_heads * case_.head_dim);
        for (Store * store : {&keys, &values}) {
            std::vector<float> rows =
                rng.normals(static_cast<size_t>(case_.cells) * channels, store == &keys ? 0.7f : 1.0f);
            for (size_t i = 0; i < rows.size(); ++i) {
                if (i % channels % 11 == 3) rows[i] = 3 + 2 * rows[i];
                if (case_.still && store == &values) rows[i] = 0.2f * rows[i] + picture(i / channels, i % channels);
            }
            std::vector<int64_t> index(static_cast<size_t>(case_.cells));
            std::iota(index.begin(), index.end(), 0);
            for (int64_t at = 0; at < case_.cells; at += 23) {
                const int64_t n = std::min<int64_t>(23, case_.cells - at);
                store->write(sequence, &index[static_cast<size_t>(at)], n, &rows[static_cast<size_t>(at) * channels],
                             static_cast<int64_t>(channels));
                if (store == &keys) observe(sequence, rng);
                store->seal(1);
            }
        }
    }
    void observe(int sequence, Random & rng) {
        std::vector<float> q = rng.normals(static_cast<size_t>(case_.kv_heads * case_.head_dim));
        for (size_t i = 0; i < q.size(); ++i) q[i] *= std::exp2(static_cast<float>(i % 13) - 8.0f);
        keys.observe_queries(sequence, q.data(), 1, case_.kv_heads, 0, case_.head_dim);
    }

    void fill_arguments(Random & rng) {
        q_ = rng.normals(elements());
        sinks_ = rng.normals(static_cast<size_t>(heads()));
        if (std::strcmp(case_.mask, "none") != 0) fill_mask(rng);
    }
    void fill_mask(Random & rng) {
        constexpr uint16_t hidden = 0xfc00;
        const bool holes = std::strcmp(case_.mask, "holes") == 0, window = std::strcmp(case_.mask, "window") == 0;
        mask_stride_ = case_.cells + 5;
        mask_.assign(static_cast<size_t>(case_.tokens * mask_stride_), 0);
        for (int64_t t = 0; t < case_.tokens; ++t) {
            uint16_t * row = &mask_[static_cast<size_t>(t * mask_stride_)];
            const int64_t last = case_.cells - case_.tokens + t;
            for (int64_t cell = 0; cell < case_.cells; ++cell) {
                if (holes && rng.integer(0, 3) == 0) row[cell] = hidden;
                if (window && (cell > last || cell < last - 50)) row[cell] = hidden;
                if (!holes && !window) row[cell] = float_to_half(-0.1f * static_cast<float>(rng.integer(0, 60)));
            }
            if (holes && t == case_.tokens / 2) std::fill_n(row, case_.cells, hidden); // this one sees nothing
        }
    }

    vidkv_cuda_sequence sequence_on(int s, const ToDevice & to_device) const {
        vidkv_cuda_sequence out{};
        out.cells = case_.cells;
        out.pages = sealed_pages(s);
        out.keys = window_on(keys, s, out.pages, to_device);
        out.values = window_on(values, s, out.pages, to_device);
        if (out.pages == 0) return out;
        out.key_pages = pages_on(keys, s, out.pages, to_device);
        out.value_pages = pages_on(values, s, out.pages, to_device);
        out.key_sinks = sinks_on(keys, s, to_device);
        out.value_sinks = sinks_on(values, s, to_device);
        out.sinks = keys.view(s, 0, 0).sink_count;
        std::vector<int16_t> order;
        std::vector<float> means;
        for (int head = 0; head < case_.kv_heads; ++head) {
            const ChannelPlan & plan = keys.plan(s, head);
            for (const auto channel : plan.order) order.push_back(static_cast<int16_t>(channel));
            for (const uint16_t mean : plan.mean) means.push_back(half_to_float(mean));
        }
        out.order = static_cast<const int16_t *>(to_device(order.data(), order.size() * 2));
        out.means = static_cast<const float *>(to_device(means.data(), means.size() * 4));
        return out;
    }
    const uint8_t * const * pages_on(const Store & store, int s, int64_t pages, const ToDevice & to_device) const {
        std::vector<const void *> addresses;
        for (int64_t page = 0; page < pages; ++page) {
            const std::vector<uint8_t> bytes = page_bytes_of(store, s, page);
            addresses.push_back(to_device(bytes.data(), bytes.size()));
        }
        return static_cast<const uint8_t * const *>(to_device(addresses.data(), addresses.size() * sizeof(void *)));
    }
    std::vector<uint8_t> page_bytes_of(const Store & store, int s, int64_t page) const {
        vidkv_params params;
        vidkv_params_from_preset(case_.preset, &params);
        const size_t size =
            vidkv::page_bytes(params, &store == &keys ? VIDKV_KEYS : VIDKV_VALUES, case_.head_dim, case_.kv_heads);
        const uint8_t * bytes = store.view(s, page, 0).page;
        return {bytes, bytes + size};
    }
    // [rows][kv_heads][head_dim], as stores have them.
    vidkv_cuda_rows sinks_on(const Store & store, int s, const ToDevice & to_device) const {
        const PageView view = store.view(s, 0, 0);
        const int64_t channels = store.channels();
        if (view.sink_count == 0) return {};
        void * rows = to_device(view.sink_rows, static_cast<size_t>(view.sink_count * channels) * 2);
        return {static_cast<const uint16_t *>(rows), case_.head_dim, channels};
    }
    vidkv_cuda_rows window_on(const Store & store, int s, int64_t pages, const ToDevice & to_device) const {
        const int64_t channels = store.channels();
        std::vector<uint16_t> rows;
        for (int64_t first = pages * page_tokens; first < case_.cells; first += page_tokens) {
            const uint16_t * from = store.view(s, first / page_tokens, 0).rows;
            rows.insert(rows.end(), from, from + std::min<int64_t>(page_tokens, case_.cells - first) * channels);
        }
        if (rows.empty()) return {};
        return {static_cast<const uint16_t *>(to_device(rows.data(), rows.size() * 2)), case_.head_dim, channels};
    }

    CudaCase case_;
    std::vector<float> q_, sinks_;
    std::vector<uint16_t> mask_;
    int64_t mask_stride_ = 0;
    std::vector<vidkv_cuda_sequence> sequences_;

  public:
    Store keys, values;
};

} // namespace vidkv::test
