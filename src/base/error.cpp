#include "base/error.h"

#include <algorithm>
#include <cstring>

namespace vidkv {

namespace {
thread_local char message_of_thread[2048];
}

vidkv_status fail(vidkv_status status, const char * message) noexcept {
    const size_t length = std::min(std::strlen(message), sizeof message_of_thread - 1);
    std::memmove(message_of_thread, message, length);
    message_of_thread[length] = '\0';
    return status;
}

const char * last_error() noexcept { return message_of_thread; }

} // namespace vidkv
