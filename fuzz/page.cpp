// A packed page that somebody altered: the input says which of its bytes, and of what preset and shape it is. What a store takes is read,
// attended to, exported as it came, written on and packed again: nothing may crash.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <vector>

#include "input.h"
#include "vidkv/vidkv.h"

namespace {

constexpr const char * presets[] = {"k2v2",  "k1.5v1.58", "k1v2-g128",        "t2.2", "t1.65",
                                    "t1.15", "t1.0",      "k1.5v1.58-stp0.2", "t4.2"};
constexpr int32_t head_dims[] = {8, 16, 64, 80, 128};
constexpr int64_t cells = 4 * VIDKV_PAGE;

struct Deleter {
    void operator()(vidkv_store * store) const { vidkv_store_free(store); }
};
using Store = std::unique_ptr<vidkv_store, Deleter>;

Store make(vidkv_side side, int32_t head_dim, const vidkv_params & params) {
    const vidkv_store_shape shape{side, 2 * head_dim, head_dim, cells, 1};
    vidkv_store * store = nullptr;
    demand(vidkv_store_create(&shape, &params, &store) == VIDKV_OK, "a store");
    return Store(store);
}

void write(vidkv_store * store, int32_t channels, int64_t first, int64_t n, uint32_t seed) {
    std::vector<float> rows(static_cast<size_t>(n * channels));
    const auto width = static_cast<size_t>(channels);
    for (size_t i = 0; i < rows.size(); ++i) {
        const float noise = static_cast<float>((i * 7919 + seed * 104729) % 1000) / 500 - 1;
        rows[i] = seed < 128 ? noise : scene(i % width, seed < 192 ? 0 : i / width) + 0.1f * noise;
    }
    std::vector<int64_t> to(static_cast<size_t>(n));
    std::iota(to.begin(), to.end(), first);
    demand(vidkv_store_write_f32(store, 0, to.data(), n, rows.data(), channels) == VIDKV_OK, "rows are written");
}

std::vector<uint8_t> exported(const vidkv_store * store, int64_t page) {
    uint64_t bytes = 0;
    int32_t sinks = 0;
    demand(vidkv_store_export_page(store, 0, page, nullptr, &bytes, &sinks) == VIDKV_OK, "its size");
    std::vector<uint8_t> data(bytes);
    demand(vidkv_store_export_page(store, 0, page, data.data(), &bytes, &sinks) == VIDKV_OK, "its bytes");
    return data;
}

std::vector<uint8_t> altered_page(vidkv_side side, int32_t head_dim, const vidkv_params & params, Input & input) {
    const Store store = make(side, head_dim, params);
    write(store.get(), 2 * head_dim, 0, 2 * VIDKV_PAGE, input.byte());
    demand(vidkv_store_seal(store.get(), 1) == VIDKV_OK, "it is packed");
    std::vector<uint8_t> page = exported(store.get(), 0);
    if (input.byte() % 8 == 0) page.resize(page.size() * input.byte() / 200);
    while (input.more() && !page.empty()) page[input.number() % page.size()] ^= static_cast<uint8_t>(input.byte());
    return page;
}

void use(vidkv_store * store, int32_t head_dim, bool keys) {
    std::vector<uint16_t> rows(static_cast<size_t>(cells * 2 * head_dim));
    demand(vidkv_store_read_f16(store, 0, 0, cells, rows.data()) == VIDKV_OK, "it is read");
    std::vector<float> q(static_cast<size_t>(4 * head_dim), 0.5f), out(q.size());
    vidkv_params plain;
    demand(vidkv_params_from_preset("f16", &plain) == VIDKV_OK, "a preset");
    const Store other = make(keys ? VIDKV_VALUES : VIDKV_KEYS, head_dim, plain);
    write(other.get(), 2 * head_dim, 0, VIDKV_PAGE, 1);
    vidkv_attention_args args{};
    args.q = q.data();
    args.out = out.data();
    args.q_token_stride = args.out_token_stride = 4 * head_dim;
    args.q_head_stride = args.out_head_stride = head_dim;
    args.tokens = 1;
    args.heads = 4;
    args.cells = VIDKV_PAGE;
    args.scale = 0.1f;
    args.threads = 1;
    const vidkv_store *k = keys ? store : other.get(), *v = keys ? other.get() : store;
    demand(vidkv_attention(k, v, &args) == VIDKV_OK, "it is attended to");
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    Input input(data, size);
    vidkv_params params;
    demand(vidkv_params_from_preset(presets[input.byte() % std::size(presets)], &params) == VIDKV_OK, "a preset");
    params.residual_length = VIDKV_PAGE;
    const int32_t head_dim = head_dims[input.byte() % std::size(head_dims)];
    const bool keys = input.byte() % 2 == 0;
    const vidkv_side side = keys ? VIDKV_KEYS : VIDKV_VALUES;
    if (vidkv_params_check(&params, head_dim) != VIDKV_OK) return 0;
    const std::vector<uint8_t> page = altered_page(side, head_dim, params, input);
    const Store store = make(side, head_dim, params);
    write(store.get(), 2 * head_dim, 0, VIDKV_PAGE, 3);
    if (vidkv_store_import_page(store.get(), 0, 0, page.data(), page.size()) == VIDKV_OK) {
        demand(exported(store.get(), 0) == page, "a page that was taken is exported as it came");
        use(store.get(), head_dim, keys);
    }
    write(store.get(), 2 * head_dim, VIDKV_PAGE / 2, 2 * VIDKV_PAGE, 5);
    demand(vidkv_store_seal(store.get(), 1) == VIDKV_OK, "it goes on");
    return 0;
}
