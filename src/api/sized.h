// Structs of callers that were built with another version of the header: shorter or longer than here.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "base/error.h"
#include "vidkv/blocks.h"
#include "vidkv/vidkv.h"

namespace vidkv {

// Bytes that every version of the struct has: up to the last field of the first one.
template <typename T> constexpr size_t first_size = 0;
#define VIDKV_FIRST_SIZE(T, last) template <> inline constexpr size_t first_size<T> = offsetof(T, last) + sizeof(T::last)
VIDKV_FIRST_SIZE(vidkv_params, protect);
VIDKV_FIRST_SIZE(vidkv_store_shape, sequences);
VIDKV_FIRST_SIZE(vidkv_cache_shape, sequences);
VIDKV_FIRST_SIZE(vidkv_seal_request, scale);
VIDKV_FIRST_SIZE(vidkv_attention_args, threads);
VIDKV_FIRST_SIZE(vidkv_rotation, gain);
VIDKV_FIRST_SIZE(vidkv_blocks_shape, spare);
VIDKV_FIRST_SIZE(vidkv_blocks_batch, threads);
#undef VIDKV_FIRST_SIZE

// Fields that the caller does not know are 0; those that are not known here must be.
template <typename T> vidkv_status copy_in(const T * from, size_t size, T & to) {
    static_assert(first_size<T> > 0);
    if (size < first_size<T>) return fail(VIDKV_E_ARGUMENT, "the size given for a struct is smaller than in any version");
    const auto * bytes = reinterpret_cast<const unsigned char *>(from);
    const size_t known = std::min(size, sizeof(T));
    if (std::any_of(bytes + known, bytes + size, [](unsigned char byte) { return byte != 0; })) {
        return fail(VIDKV_E_ARGUMENT,
                    "a field is set that this version of libvidkv does not know: leave it 0, or use a newer library");
    }
    to = T{};
    std::memcpy(static_cast<void *>(&to), bytes, known);
    return VIDKV_OK;
}

template <typename T> void copy_out(const T & from, T * to, size_t size) {
    std::memset(static_cast<void *>(to), 0, size);
    std::memcpy(static_cast<void *>(to), &from, std::min(size, sizeof(T)));
}

} // namespace vidkv
