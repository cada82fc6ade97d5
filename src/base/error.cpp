#include "base/error.h"

#include <utility>

namespace vidkv {

namespace {
thread_local std::string message_of_thread;
}

vidkv_status fail(vidkv_status status, std::string message) {
    message_of_thread = std::move(message);
    return status;
}

const char * last_error() { return message_of_thread.c_str(); }

} // namespace vidkv
