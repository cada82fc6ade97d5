// llama.cpp's own quantized cache types, through ggml's own functions (reference quantizers).
#include <algorithm>

#include "ggml.h"
#include "eval/reference_codecs/reference_codec.h"

namespace vidkv::cli {

namespace {

template <ggml_type TYPE> double bits(vidkv_side, int, int) {
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

// As llama.cpp's own cache has them since 2026: keys are turned by a Hadamard matrix of the largest power of two in head_dim, values by
// one of 64 channels (llama-kv-cache.cpp, n_rot_k and n_rot_v); nothing is turned where 64 does not divide head_dim.
template <ggml_type TYPE> void rotated_round_trip(const ReferenceRows & rows, vidkv_side side) {
    const int64_t n = rows.tokens * rows.heads * rows.head_dim;
    const int whole = rows.head_dim & -rows.head_dim, block = rows.head_dim % 64 ? 1 : side == VIDKV_KEYS ? whole : 64;
    hadamard(rows.data, n, block);
    round_trip<TYPE>(rows, side);
    hadamard(rows.data, n, block);
}

template <ggml_type TYPE> ReferenceCodec peer(const char * name) {
    return {name, "ggml's cache type of that name", bits<TYPE>, round_trip<TYPE>};
}
template <ggml_type TYPE> ReferenceCodec rotated_peer(const char * name) {
    return {name, "the same in llama.cpp's cache, which turns keys and values", bits<TYPE>, rotated_round_trip<TYPE>};
}

} // namespace

ReferenceCodec q8_0_reference() { return peer<GGML_TYPE_Q8_0>("q8_0"); }
ReferenceCodec q5_1_reference() { return peer<GGML_TYPE_Q5_1>("q5_1"); }
ReferenceCodec q5_0_reference() { return peer<GGML_TYPE_Q5_0>("q5_0"); }
ReferenceCodec q4_0_reference() { return peer<GGML_TYPE_Q4_0>("q4_0"); }
ReferenceCodec q8_0_rotated_reference() { return rotated_peer<GGML_TYPE_Q8_0>("q8_0-rot"); }
ReferenceCodec q5_0_rotated_reference() { return rotated_peer<GGML_TYPE_Q5_0>("q5_0-rot"); }
ReferenceCodec q4_0_rotated_reference() { return rotated_peer<GGML_TYPE_Q4_0>("q4_0-rot"); }

} // namespace vidkv::cli
