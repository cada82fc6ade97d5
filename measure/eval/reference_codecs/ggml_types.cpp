// llama.cpp's own quantized cache types, through ggml's own functions (reference quantizers).
#include <algorithm>

#include "ggml.h"
#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

template <ggml_type TYPE> double bits(vidkv_side, int) {
    return 8.0 * static_cast<double>(ggml_type_size(TYPE)) / static_cast<double>(ggml_blck_size(TYPE));
}

template <ggml_type TYPE> void round_trip(const ReferenceRows & rows, vidkv_side) {
    // llama.cpp quantizes whole rows in blocks of 32; a row that is no multiple of that is filled up with zeros.
    const int64_t row = int64_t{rows.heads} * rows.head_dim, block = ggml_blck_size(TYPE);
    const int64_t padded = (row + block - 1) / block * block;
    const ggml_type_traits * traits = ggml_get_type_traits(TYPE);
    std::vector<float> numbers(static_cast<size_t>(padded));
    std::vector<uint8_t> packed(ggml_row_size(TYPE, padded));
    for (int64_t token = 0; token < rows.tokens; ++token) {
        std::copy_n(rows.data + token * row, row, numbers.begin());
        traits->from_float_ref(numbers.data(), packed.data(), padded);
        traits->to_float(packed.data(), numbers.data(), padded);
        std::copy_n(numbers.begin(), row, rows.data + token * row);
    }
}

template <ggml_type TYPE> ReferenceCodec peer(const char * name) {
    return {name, "ggml's cache type of that name", bits<TYPE>, round_trip<TYPE>};
}

} // namespace

ReferenceCodec q8_0_reference() { return peer<GGML_TYPE_Q8_0>("q8_0"); }
ReferenceCodec q4_0_reference() { return peer<GGML_TYPE_Q4_0>("q4_0"); }

} // namespace vidkv::cli
