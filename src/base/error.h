// The thread's last error, behind vidkv_last_error().
#pragma once

#include <string>

#include "vidkv/vidkv.h"

namespace vidkv {

// Keeps one line for people, cut where it is very long, and hands the status back: `return fail(VIDKV_E_ARGUMENT, "...")`.
// Neither allocates, so that they can report that there is no memory.
vidkv_status fail(vidkv_status status, const char * message) noexcept;
inline vidkv_status fail(vidkv_status status, const std::string & message) noexcept {
    return fail(status, message.c_str());
}
const char * last_error() noexcept;

} // namespace vidkv
