// The OpenMP team of a host that has one, or else worker threads shared by everything in the process; the calling thread works too.
#pragma once

#include <cstdint>
#include <functional>

namespace vidkv {

// Runs task(i) for i in [0, count) on at most `threads` threads, the caller among them, and returns when all are done.
// Which thread takes which i is not fixed. Without a team, calls from several threads are served one after
// the other, and workers sleep when there is nothing to do. task must not throw and must not call parallel_for.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)> & task);

} // namespace vidkv
