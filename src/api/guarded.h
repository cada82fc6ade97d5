// From the C API to the classes behind it and back: pointers that are null, exceptions as statuses.
#pragma once

#include <new>
#include <stdexcept>

#include "base/error.h"
#include "cache/cache.h"

namespace vidkv {

inline Store * unwrap(vidkv_store * store) { return reinterpret_cast<Store *>(store); }
inline const Store * unwrap(const vidkv_store * store) { return reinterpret_cast<const Store *>(store); }
inline Cache * unwrap(vidkv_cache * cache) { return reinterpret_cast<Cache *>(cache); }
inline const Cache * unwrap(const vidkv_cache * cache) { return reinterpret_cast<const Cache *>(cache); }

inline vidkv_status null_pointer() { return fail(VIDKV_E_ARGUMENT, "a pointer that must not be null is null"); }

// The status of the exception at hand.
inline vidkv_status status_of_exception() {
    try {
        throw;
    } catch (const std::bad_alloc &) {
        return fail(VIDKV_E_MEMORY, "not enough memory for the cache");
    } catch (const std::length_error &) {
        return fail(VIDKV_E_MEMORY, "the cache asked for is larger than any memory");
    } catch (const std::exception & error) {
        return fail(VIDKV_E_MEMORY, error.what()); // a lock or a thread that the system refuses
    }
}

// Runs body unless a pointer is null; nothing leaves the library as an exception.
template <typename Body, typename... Pointers> vidkv_status guarded(Body body, Pointers... pointers) {
    if ((!pointers || ...)) return null_pointer();
    try {
        return body();
    } catch (...) {
        return status_of_exception();
    }
}

} // namespace vidkv
