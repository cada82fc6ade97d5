#include <gtest/gtest.h>

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "base/thread_pool.h"

namespace vidkv {
namespace {

TEST(ThreadPool, EveryIndexIsServedOnce) {
    for (const int threads : {-1, 0, 1, 2, 3, 8, 33}) {
        for (const int64_t count : {0, 1, 2, 7, 1000}) {
            std::vector<int> times(static_cast<size_t>(count), 0); // plain ints: the pool must order the accesses
            parallel_for(count, threads, [&](int64_t i) { ++times[i]; });
            EXPECT_EQ(times, std::vector<int>(static_cast<size_t>(count), 1)) << threads << " threads, count " << count;
        }
    }
}

TEST(ThreadPool, NoMoreThreadsThanAskedFor) {
    for (const int threads : {1, 2, 4}) {
        std::atomic<int> inside{0}, most{0};
        parallel_for(200, threads, [&](int64_t) {
            const int now = ++inside;
            for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
            }
            std::this_thread::yield();
            --inside;
        });
        EXPECT_LE(most, threads);
        EXPECT_GE(most, 1);
    }
}

TEST(ThreadPool, OthersHelp) {
    // Two tasks that wait for each other can only end on two threads.
    std::atomic<int> arrived{0};
    parallel_for(2, 2, [&](int64_t) {
        ++arrived;
        while (arrived < 2) std::this_thread::yield();
    });
    EXPECT_EQ(arrived, 2);
}

TEST(ThreadPool, ManySmallJobsInARow) {
    int64_t total = 0;
    std::vector<int64_t> parts(5);
    for (int job = 0; job < 3000; ++job) {
        parallel_for(5, 1 + job % 4, [&](int64_t i) { parts[i] = job + i; });
        for (const int64_t part : parts) total += part;
    }
    EXPECT_EQ(total, 5LL * 3000 * 2999 / 2 + 3000 * 10);
}

TEST(ThreadPool, SeveralCallersAtOnce) {
    constexpr int callers = 4, jobs = 200, count = 16;
    std::atomic<int> wrong{0};
    std::vector<std::thread> threads;
    for (int c = 0; c < callers; ++c) {
        threads.emplace_back([&, c] {
            for (int job = 0; job < jobs; ++job) {
                std::vector<int> mine(count, -1);
                parallel_for(count, 3, [&](int64_t i) { mine[i] = c * jobs + job; });
                for (const int value : mine) wrong += value != c * jobs + job;
            }
        });
    }
    for (std::thread & thread : threads) thread.join();
    EXPECT_EQ(wrong, 0);
}

// The child has none of its parent's threads: it works with threads of its own, and its exit waits for nobody.
TEST(ThreadPool, AForkedChildWorksAndExits) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    GTEST_SKIP() << "GCC's sanitizers do not take threads in a forked child, nor look for leaks there";
#endif
    const auto work = [] {
        std::atomic<int> done{0};
        parallel_for(100, 3, [&](int64_t) { ++done; });
        return done == 100;
    };
    ASSERT_TRUE(work());
    std::fflush(nullptr);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
        alarm(100); // a child that hangs is killed, and seen as that
        std::exit(work() ? 42 : 1);
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    EXPECT_EQ(WEXITSTATUS(status), 42);
    EXPECT_TRUE(work());
}

} // namespace
} // namespace vidkv
