// Work that is shared among threads.
#pragma once

#include <cstdint>
#include <functional>

namespace vidkv::cli {

// Runs work(i) for i in [0, n) on at most `threads` threads, the caller among them. What one throws is thrown here, once all have
// ended.
void share_among_threads(int64_t n, int threads, const std::function<void(int64_t)> & work);

} // namespace vidkv::cli
