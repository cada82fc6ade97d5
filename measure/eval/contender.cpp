#include "eval/contender.h"

#include <algorithm>

#include "error.h"
#include "ggml.h"
#include "engine/plugin.h"

namespace vidkv::cli {

namespace {

constexpr const char * WITHOUT_SINKS = "-nosink";
constexpr int64_t PAGE = VIDKV_PAGE;

// Rows 0 .. n - 1 of a store; the sink tokens take no part in the scales of others.
std::vector<float> rows_to_pack(const Contender & contender, int store, const vidkv_kv_info & info, int64_t n) {
    const int64_t row = info.channels, sinks = std::min<int64_t>(contender.kv.params.sink_tokens, n);
    std::vector<float> rows = read_rows(store, 0, n, info.channels);
    const auto first = rows.begin() + sinks * row;
    for (int64_t sink = 0; sink < sinks && sinks < n; ++sink) std::copy_n(first, row, rows.begin() + sink * row);
    return rows;
}

void pack_store(const Contender & contender, int store, const vidkv_kv_info & info, int64_t n,
                const Calibration * calibration) {
    const int64_t row = info.channels, sinks = std::min<int64_t>(contender.kv.params.sink_tokens, n);
    std::vector<float> rows = rows_to_pack(contender, store, info, n);
    contender.reference->round_trip({rows.data(), n, info.channels / info.head_dim, info.head_dim, calibration},
                                    static_cast<vidkv_side>(info.side));
    std::vector<ggml_fp16_t> halves(rows.size());
    ggml_fp32_to_fp16_row(rows.data(), halves.data(), static_cast<int64_t>(rows.size()));
    check_plugin(inspector().write(store, 0, sinks, n - sinks, halves.data() + sinks * row));
}

// The keys of each layer, before any of them are packed.
std::map<int, std::vector<float>> keys_by_layer(const Contender & contender, const std::vector<vidkv_kv_info> & stores,
                                                int64_t n) {
    std::map<int, std::vector<float>> keys;
    for (size_t i = 0; i < stores.size(); ++i)
        if (stores[i].side == VIDKV_KEYS)
            keys[stores[i].layer] = rows_to_pack(contender, static_cast<int>(i), stores[i], n);
    return keys;
}

void pack_calibrated(const Contender & contender, const std::vector<vidkv_kv_info> & stores, int64_t n,
                     const QueriesByLayer & queries) {
    const std::map<int, std::vector<float>> keys = keys_by_layer(contender, stores, n);
    for (size_t i = 0; i < stores.size(); ++i) {
        const HeardQueries & heard = queries.at(stores[i].layer);
        const Calibration calibration{heard.rows, keys.at(stores[i].layer), heard.heads};
        pack_store(contender, static_cast<int>(i), stores[i], n, &calibration);
    }
}

void seal_stores(const Contender::Alone & alone, int threads) {
    const std::vector<vidkv_kv_info> stores = live_stores();
    for (size_t i = 0; alone.layer >= 0 && i < stores.size(); ++i) {
        if (stores[i].layer != alone.layer || stores[i].side != alone.side)
            check_plugin(inspector().keep_open(static_cast<int32_t>(i)));
    }
    seal_now(threads);
}

Packed measure_reference(const Contender & contender, int64_t packed_cells, int64_t cells) {
    const int64_t n = packed_prefix(contender, packed_cells), sinks = std::min<int64_t>(contender.kv.params.sink_tokens, n);
    Packed result;
    double bits = 0;
    for (const vidkv_kv_info & store : live_stores()) {
        const double element = n > 0 ? contender.reference->bits(static_cast<vidkv_side>(store.side),
                                                                 store.channels / store.head_dim, store.head_dim)
                                     : 16;
        (store.side == VIDKV_KEYS ? result.k_bits : result.v_bits) = element;
        bits += static_cast<double>(store.channels) *
                (static_cast<double>(n - sinks) * element + static_cast<double>(cells - n + sinks) * 16);
    }
    result.bytes = static_cast<uint64_t>(bits / 8);
    return result;
}

// A sequence's plan: the order of the channels, and for trellis keys their means.
double plan_bytes(const vidkv_params & params, const vidkv_kv_info & store) {
    if (store.side == VIDKV_VALUES || store.stats.cells_sealed == 0) return 0;
    return store.channels * (params.key_codec == VIDKV_CODEC_TRELLIS ? 4.0 : 2.0);
}

Packed measure_preset(const vidkv_params & params) {
    Packed result;
    double bytes[2] = {0, 0}, elements[2] = {0, 0};
    for (const vidkv_kv_info & store : live_stores()) {
        bytes[store.side] += static_cast<double>(store.stats.sealed_bytes) + plan_bytes(params, store);
        elements[store.side] += static_cast<double>(store.stats.cells_sealed) * store.channels;
        result.bytes += store.stats.bytes;
    }
    if (elements[VIDKV_KEYS] > 0) result.k_bits = 8 * bytes[VIDKV_KEYS] / elements[VIDKV_KEYS];
    if (elements[VIDKV_VALUES] > 0) result.v_bits = 8 * bytes[VIDKV_VALUES] / elements[VIDKV_VALUES];
    return result;
}

} // namespace

Contender parse_contender(const std::string & name) {
    const bool sinks = !name.ends_with(WITHOUT_SINKS);
    const std::string base = sinks ? name : name.substr(0, name.size() - std::string(WITHOUT_SINKS).size());
    Contender contender;
    contender.reference = find_reference_codec(base);
    contender.kv = parse_kv(contender.reference ? "f16" : base);
    contender.name = name;
    if (!sinks) contender.kv.params.sink_tokens = 0;
    return contender;
}

std::vector<std::string> all_contender_names() {
    std::vector<std::string> names;
    for (size_t i = 0; const char * preset = vidkv_preset_name(i); ++i) names.emplace_back(preset);
    for (const ReferenceCodec & peer : all_reference_codecs()) names.emplace_back(peer.name);
    for (const ReferenceCodec & peer : all_reference_codecs()) names.push_back(std::string(peer.name) + WITHOUT_SINKS);
    return names;
}

int64_t packed_prefix(const Contender & contender, int64_t cells) {
    const int64_t old = cells - std::max<int64_t>(contender.kv.params.residual_length, PAGE);
    return std::max<int64_t>(0, old) / PAGE * PAGE;
}

void pack(const Contender & contender, int64_t cells, int threads, const QueriesByLayer * queries) {
    if (contender.kv.stock) return;
    if (!contender.reference) return seal_stores(contender.alone, threads);
    const int64_t n = packed_prefix(contender, cells);
    const std::vector<vidkv_kv_info> stores = live_stores();
    if (n == 0) return;
    if (contender.reference->calibrated) {
        if (!queries) throw Error(contender.name + " is calibrated on queries, which are not kept here: leave it out");
        return pack_calibrated(contender, stores, n, *queries);
    }
    for (size_t i = 0; i < stores.size(); ++i) pack_store(contender, static_cast<int>(i), stores[i], n, nullptr);
}

Packed measure(const Contender & contender, int64_t packed_cells, int64_t cells) {
    return contender.reference ? measure_reference(contender, packed_cells, cells) : measure_preset(contender.kv.params);
}

std::vector<float> read_rows(int store, int64_t first, int64_t cells, int channels) {
    std::vector<ggml_fp16_t> halves(static_cast<size_t>(cells * channels));
    check_plugin(inspector().read(store, 0, first, cells, halves.data()));
    std::vector<float> rows(halves.size());
    ggml_fp16_to_fp32_row(halves.data(), rows.data(), static_cast<int64_t>(rows.size()));
    return rows;
}

} // namespace vidkv::cli
