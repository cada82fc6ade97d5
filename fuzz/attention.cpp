// Attention on a cache and queries made of the fuzzer's bytes: every instruction set must give the bits of the
// specification, and none may crash, whatever the floats are.
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "attention/attention.h"
#include "input.h"
#include "kernels/dispatch.h"

namespace vidkv {
namespace {

constexpr const char * presets[] = {
    "f16",   "k2v2",  "k1.5v2", "k1.5v1.58", "k1.25v1.58-g64",   "k1v2-g128",    "t2.2",
    "t1.65", "t1.15", "t1.0",   "kt3vt3",    "k1.5v1.58-stp0.2", "t1.65-stp0.3", "t1.15-stp0.2"};
constexpr int head_dims[] = {8, 16, 64, 72, 80, 96, 112, 128, 192, 256};
constexpr uint16_t hidden = 0xfc00; // -inf

// Takes choices from the input; when that is used up, from a generator that the input has seeded.
class Source {
  public:
    Source(const uint8_t * data, size_t size) : data_(data), size_(size) {
        for (size_t i = 0; i < size; ++i) state_ = (state_ ^ data[i]) * 0x100000001b3u;
    }
    uint8_t byte() { return at_ < size_ ? data_[at_++] : static_cast<uint8_t>(next() >> 24); }
    int below(int n) { return (byte() << 8 | byte()) % n; }
    bool once_in(int n) { return below(n) == 0; }
    // Mostly ordinary numbers; any bit pattern where the input asks for it.
    float number(bool raw) {
        if (raw && next() % 8 == 0) return std::bit_cast<float>(static_cast<uint32_t>(next()));
        return static_cast<float>(static_cast<int32_t>(next())) * 0x1p-30f;
    }

  private:
    uint64_t next() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        state_ ^= state_ << 17;
        return state_;
    }
    const uint8_t * data_;
    size_t size_, at_ = 0;
    uint64_t state_ = 0xcbf29ce484222325u;
};

void require(vidkv_status status) {
    if (status == VIDKV_OK) return;
    std::fprintf(stderr, "a valid call failed: %s\n", vidkv_last_error());
    std::abort();
}

void fill(Store & store, Source & source, bool raw) {
    const size_t channels = static_cast<size_t>(store.channels());
    std::vector<float> rows(static_cast<size_t>(store.cells()) * channels);
    for (float & x : rows) x = source.number(raw);
    const int kind = store.side() == VIDKV_VALUES ? source.below(3) : 0; // noise, a still picture, one that moves
    for (size_t i = 0; i < rows.size() && kind > 0; ++i)
        rows[i] = scene(i % channels, kind == 1 ? 0 : i / channels) + 0.1f * rows[i];
    std::vector<int64_t> cells(static_cast<size_t>(store.cells()));
    std::iota(cells.begin(), cells.end(), 0);
    for (int64_t at = 0; at < store.cells();) {
        const int64_t n = std::min<int64_t>(store.cells() - at, 1 + source.below(200));
        require(store.write(0, &cells[static_cast<size_t>(at)], n, &rows[static_cast<size_t>(at) * channels],
                            store.channels()));
        if (store.side() == VIDKV_VALUES && store.params().protect > 0 && source.once_in(2))
            require(store.protect(0, &at, 1));
        require(store.seal(1));
        at += n;
    }
}

struct Call {
    std::vector<float> q, sinks;
    std::vector<uint16_t> mask;
    vidkv_attention_args args{};
};

void fill(Call & call, const Store & store, Source & source, bool raw) {
    vidkv_attention_args & a = call.args;
    a.heads = store.kv_heads() * (1 + source.below(9));
    a.tokens = 1 + source.below(6);
    a.cells = 1 + source.below(static_cast<int>(store.cells()));
    a.causal = a.cells >= a.tokens && source.once_in(2);
    a.scale = 1.0f / std::sqrt(static_cast<float>(store.head_dim()));
    a.softcap = source.once_in(4) ? 20.0f : 0.0f;
    a.max_bias = source.once_in(4) ? 8.0f : 0.0f;
    a.q_head_stride = a.out_head_stride = store.head_dim();
    a.q_token_stride = a.out_token_stride = int64_t{a.heads} * store.head_dim();
    call.q.resize(static_cast<size_t>(a.tokens * a.q_token_stride));
    for (float & x : call.q) x = source.number(raw);
    a.q = call.q.data();
    if (source.once_in(3)) {
        call.sinks.resize(static_cast<size_t>(a.heads));
        for (float & x : call.sinks) x = source.number(false);
        a.sinks = call.sinks.data();
    }
    if (source.once_in(2)) {
        call.mask.resize(static_cast<size_t>(a.tokens * a.cells));
        for (uint16_t & m : call.mask) m = source.once_in(3) ? hidden : source.once_in(2) ? 0 : 0xb800; // -0.5
        a.mask = call.mask.data();
        a.mask_stride = a.cells;
    }
    a.threads = 1;
}

std::vector<float> attend_with(const Kernels & kernels, const Store & keys, const Store & values, const Call & call) {
    std::vector<float> out(call.q.size(), 7.0f);
    vidkv_attention_args args = call.args;
    args.out = out.data();
    require(check_attention(keys, values, args));
    attend(keys, values, args, kernels);
    return out;
}

void compare(const Kernels & kernels, const std::vector<float> & want, const std::vector<float> & got) {
    for (size_t i = 0; i < want.size(); ++i) {
        const bool same = std::bit_cast<uint32_t>(want[i]) == std::bit_cast<uint32_t>(got[i]) ||
                          (std::isnan(want[i]) && std::isnan(got[i]));
        if (same) continue;
        std::fprintf(stderr, "%s gives %a at %zu, the specification %a\n", kernels.name, static_cast<double>(got[i]), i,
                     static_cast<double>(want[i]));
        std::abort();
    }
}

} // namespace
} // namespace vidkv

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    using namespace vidkv;
    Source source(data, size);
    vidkv_params params;
    require(vidkv_params_from_preset(presets[source.below(std::size(presets))], &params));
    params.residual_length = source.below(200);
    params.sink_tokens = source.below(33);
    const int head_dim = head_dims[source.below(std::size(head_dims))], kv_heads = 1 + source.below(2);
    const int64_t cells = 1 + source.below(700);
    if (vidkv_params_check(&params, head_dim) != VIDKV_OK) return 0;
    const bool raw = source.once_in(3);
    Store keys({VIDKV_KEYS, kv_heads * head_dim, head_dim, cells, 1}, params);
    Store values({VIDKV_VALUES, kv_heads * head_dim, head_dim, cells, 1}, params);
    Call call;
    fill(call, keys, source, raw);
    require(keys.observe_queries(0, call.q.data(), call.args.tokens, call.args.heads, call.args.q_token_stride, head_dim));
    fill(keys, source, raw);
    fill(values, source, raw);
    const std::vector<float> want = attend_with(scalar_kernels, keys, values, call);
    for (const KernelChoice & choice : kernel_choices()) {
        if (choice.kernels == &scalar_kernels || !choice.supported()) continue;
        compare(*choice.kernels, want, attend_with(*choice.kernels, keys, values, call));
    }
    return 0;
}
