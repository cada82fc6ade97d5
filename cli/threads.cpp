#include "threads.h"

#include <algorithm>
#include <atomic>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace vidkv::cli {

void share_among_threads(int64_t n, int threads, const std::function<void(int64_t)> & work) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto run = [&] {
        try {
            for (int64_t i; (i = next++) < n;) work(i);
        } catch (...) {
            next = n;
            const std::lock_guard lock(failing);
            if (!failure) failure = std::current_exception();
        }
    };
    std::vector<std::thread> helpers;
    try {
        for (int64_t i = 1; i < std::min<int64_t>(threads, n); ++i) helpers.emplace_back(run);
    } catch (const std::system_error &) { // fewer will do
    }
    run();
    for (std::thread & helper : helpers) helper.join();
    if (failure) std::rethrow_exception(failure);
}

} // namespace vidkv::cli
