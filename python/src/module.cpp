// vidkv._core: the C API for Python. Tensors come and go by DLPack; this file knows nothing of torch.
#include <set>

#include <nanobind/nanobind.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "arrays.h"
#include "blocks.h"
#include "file.h"
#include "store.h"
#include "vidkv/layers.hpp"

namespace nb = nanobind;
using namespace nb::literals;

namespace vidkv::python {

namespace {

vidkv_params params_from_preset(const std::string & name) {
    vidkv_params params;
    check(vidkv_params_from_preset(name.c_str(), &params));
    return params;
}

std::vector<std::string> preset_names() {
    std::vector<std::string> names;
    for (size_t i = 0; const char * name = vidkv_preset_name(i); ++i) names.emplace_back(name);
    return names;
}

// The parameters of these layers, with bits that are spread over them by a layers file; layers that it does not name have p's.
std::map<int, vidkv_params> params_by_layer(const vidkv_params & p, const std::string & path,
                                            const std::vector<int> & layers) {
    std::map<int, vidkv_params> params;
    try {
        const std::set<int> wanted(layers.begin(), layers.end());
        params = vidkv::params_by_layer(p, vidkv::read_layer_losses(path), wanted);
    } catch (const vidkv::Error & error) {
        check(error.status());
    }
    for (const int layer : layers) params.try_emplace(layer, p);
    return params;
}

std::string describe(const vidkv_params & p) {
    const auto codec = [](float bits, int32_t which) {
        return bits == 16 ? "f16" : which == VIDKV_CODEC_PAPER ? "paper" : "trellis";
    };
    return "Params(key_bits=" + nb::cast<std::string>(nb::str(nb::float_(p.key_bits))) + " " +
           codec(p.key_bits, p.key_codec) + ", value_bits=" + nb::cast<std::string>(nb::str(nb::float_(p.value_bits))) +
           " " + codec(p.value_bits, p.value_codec) + ", group_size=" + std::to_string(p.group_size) +
           ", residual_length=" + std::to_string(p.residual_length) + ", sink_tokens=" + std::to_string(p.sink_tokens) +
           ", protect=" + nb::cast<std::string>(nb::str(nb::float_(p.protect))) + ")";
}

void bind_params(nb::module_ & m) {
    nb::class_<vidkv_params>(m, "Params", "How keys and values are stored; the fields are those of vidkv_params.")
        .def_static(
            "from_preset", &params_from_preset, "name"_a,
            "The parameters of a preset such as 't1.65' or 'k1.5v1.58-stp0.2'. ValueError if there is no such preset.")
        .def_rw("key_bits", &vidkv_params::key_bits, "Bits of a key's code; 16: f16.")
        .def_rw("value_bits", &vidkv_params::value_bits, "Bits of a value's code; 16: f16.")
        .def_rw("key_codec", &vidkv_params::key_codec, "0: the paper's, 1: trellis.")
        .def_rw("value_codec", &vidkv_params::value_codec, "0: the paper's, 1: trellis.")
        .def_rw("group_size", &vidkv_params::group_size, "Tokens that share a scale.")
        .def_rw("residual_length", &vidkv_params::residual_length, "Newest tokens kept in f16.")
        .def_rw("sink_tokens", &vidkv_params::sink_tokens, "First tokens kept in f16.")
        .def_rw("protect", &vidkv_params::protect, "Share of tokens whose values get more bits.")
        .def(
            "check", [](const vidkv_params & p, int head_dim) { check(vidkv_params_check(&p, head_dim)); },
            "head_dim"_a = 0, "ValueError if the parameters do not fit together, or do not fit this head_dim (0: any).")
        .def(
            "true_bits",
            [](const vidkv_params & p, const std::string & side, int head_dim) {
                return vidkv_true_bits(&p, side_from(side), head_dim);
            },
            "side"_a, "head_dim"_a, "Bits per element of a sealed page, all metadata included. side: 'keys' or 'values'.")
        .def(
            "by_layer", &params_by_layer, "path"_a, "layers"_a,
            "Params of each of these layers: the bits spread over them by what a file of `vidkv eval layers` says that they lose.")
        .def("__copy__", [](const vidkv_params & p) { return p; })
        .def(
            "__deepcopy__", [](const vidkv_params & p, nb::handle) { return p; }, "memo"_a)
        .def("__repr__", &describe);
}

void bind_stats(nb::module_ & m) {
    nb::class_<vidkv_store_stats>(m, "Stats", "What a store or a cache holds at this moment.")
        .def_ro("bytes", &vidkv_store_stats::bytes, "All bytes held, tables and windows included.")
        .def_ro("bytes_f16", &vidkv_store_stats::bytes_f16, "What the written cells would take in f16.")
        .def_ro("bytes_planned", &vidkv_store_stats::bytes_planned, "Bytes when every cell is written.")
        .def_ro("sealed_bytes", &vidkv_store_stats::sealed_bytes, "Packed pages alone.")
        .def_ro("cells_written", &vidkv_store_stats::cells_written)
        .def_ro("cells_sealed", &vidkv_store_stats::cells_sealed)
        .def_ro("pages_reopened", &vidkv_store_stats::pages_reopened);
}

void bind_store(nb::module_ & m) {
    nb::class_<StoreHandle>(
        m, "Store", "Keys or values of one layer: f16 rows that are packed, page by page of 128 cells, as they age.")
        .def(nb::init<const std::string &, int, int, const vidkv_params &, int64_t, int>(), "side"_a, "channels"_a,
             "head_dim"_a, "params"_a, "cells"_a, "sequences"_a = 1,
             "side: 'keys' or 'values'; channels: kv_heads * head_dim; cells: capacity of one sequence.")
        .def(
            "write", &StoreHandle::write, "sequence"_a, "first_cell"_a, "rows"_a,
            "Writes rows [n, channels] (float32 or float16, unit stride in the last dimension) to cells first_cell and on.")
        .def("read", &StoreHandle::read, "sequence"_a, "first_cell"_a, "out"_a,
             "Fills out [n, channels] (float16, contiguous) with cells first_cell and on.")
        .def(
            "observe_queries", &StoreHandle::observe_queries, "sequence"_a, "q"_a,
            "Tells a key store which queries q [tokens, heads, head_dim] (float32) read it; trellis keys spend their bits by them.")
        .def("protect", &StoreHandle::protect, "sequence"_a, "cells"_a, "Marks these cells of a value store for more bits.")
        .def("protect_by_queries", &StoreHandle::protect_by_queries, "keys"_a, "scale"_a,
             "Marks what the queries observed by `keys` attend to most, where nobody marked cells.")
        .def("seal", &StoreHandle::seal, "threads"_a = 1,
             "Packs every page that is old enough. Call it when the tokens just written have been attended to.")
        .def("keep_open", &StoreHandle::keep_open, "From now on nothing is packed.")
        .def("truncate", &StoreHandle::truncate, "sequence"_a, "first_cell"_a, "Forgets the cells first_cell and on.")
        .def("copy_sequence", &StoreHandle::copy_sequence, "source"_a, "target"_a,
             "Makes sequence `target` a copy of `source`.")
        .def("resize", &StoreHandle::resize, "cells"_a, "sequences"_a, "Changes the capacity; codes stay as they are.")
        .def("clone", &StoreHandle::clone, "A copy, codes included.")
        .def("sealed_page", &StoreHandle::sealed_page, "sequence"_a, "page"_a,
             "The packed bytes of a page; None if it is not sealed.")
        .def(
            "channel_plan", &StoreHandle::channel_plan, "sequence"_a,
            "(order, means) of a key store: bytes of uint16 and of float16, [kv_heads, head_dim] each; means are 0 but for trellis keys.")
        .def("release_page", &StoreHandle::release_page, "sequence"_a, "page"_a,
             "Forgets a page that is read elsewhere from a copy; the channel plan stays.")
        .def("clear", &StoreHandle::clear, "Forgets everything.")
        .def("stats", &StoreHandle::stats);
}

void bind_cache(nb::module_ & m) {
    nb::class_<Cache>(m, "Cache", "All layers of a model: a key store and a value store each (vidkv_cache of the C API).")
        .def(nb::init<int, int, int, int64_t, const vidkv_params &, int>(), "layers"_a, "kv_heads"_a, "head_dim"_a,
             "cells"_a, "params"_a, "sequences"_a = 1)
        .def("append", &Cache::append, "layer"_a, "sequence"_a, "keys"_a, "values"_a,
             "Appends tokens to one layer: keys and values [n, kv_heads, head_dim], float32, contiguous.")
        .def("length", &Cache::length, "layer"_a, "sequence"_a = 0, "Tokens appended so far.")
        .def("observe_queries", &Cache::observe_queries, "layer"_a, "sequence"_a, "q"_a,
             "q [tokens, heads, head_dim], float32, contiguous: the queries that read that layer.")
        .def("protect", &Cache::protect, "sequence"_a, "cells"_a, "Marks cells for more bits in the values of all layers.")
        .def("seal", &Cache::seal, "threads"_a = 1, "Packs what is old enough.")
        .def("read", &Cache::read, "layer"_a, "side"_a, "sequence"_a, "first_cell"_a, "out"_a,
             "Fills out [n, kv_heads * head_dim] (float16, contiguous).")
        .def("attend", &Cache::attend, "layer"_a, "q"_a, "out"_a, nb::kw_only(), "sequence"_a = 0, "causal"_a = true,
             "scale"_a = nb::none(), "threads"_a = 1,
             "softmax(scale q K^T) V over all cells: q and out [tokens, heads, head_dim], float32.")
        .def("truncate", &Cache::truncate, "sequence"_a, "length"_a)
        .def("copy_sequence", &Cache::copy_sequence, "source"_a, "target"_a)
        .def("clear", &Cache::clear)
        .def("save", &Cache::save, "path"_a, "Writes everything to a file, packed pages bit for bit.")
        .def("load", &Cache::load, "path"_a, "Fills the cache from a file of the same shape and parameters.")
        .def("stats", &Cache::stats);
}

} // namespace

NB_MODULE(_core, m) {
    m.doc() = "The packed KV cache of libvidkv. Arrays are anything that speaks DLPack on the CPU: torch, NumPy, JAX.";
    m.def(
        "version", [] { return std::string(vidkv_version()); }, "MAJOR.MINOR.PATCH");
    m.def(
        "isa", [] { return std::string(vidkv_isa()); }, "The instruction set in use.");
    m.def("presets", &preset_names, "The presets worth listing, in order of falling bits.");
    bind_params(m);
    bind_stats(m);
    bind_store(m);
    bind_cache(m);
    bind_files(m);
    bind_blocks(m);
    m.def(
        "attention", &attention, "keys"_a, "values"_a, "q"_a, "out"_a, nb::kw_only(), "cells"_a, "sequence"_a = 0,
        "mask"_a = nb::none(), "causal"_a = false, "scale"_a, "softcap"_a = 0.0f, "sinks"_a = nb::none(), "threads"_a = 1,
        "softmax(scale q K^T + mask) V on the packed codes of one sequence. q and out [tokens, heads, head_dim] (float32, unit "
        "stride in the last dimension; out may have another head_dim), mask [tokens, cells] (float16, added), sinks [heads] "
        "(float32). causal: token i sees cells 0 .. cells - tokens + i.");
}

} // namespace vidkv::python
