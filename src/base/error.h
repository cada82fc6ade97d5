// The thread's last error, behind vidkv_last_error().
#pragma once

#include <string>

#include "vidkv/vidkv.h"

namespace vidkv {

// Keeps one line for people and hands the status back: `return fail(VIDKV_E_ARGUMENT, "...")`.
vidkv_status fail(vidkv_status status, std::string message);
const char * last_error();

} // namespace vidkv
