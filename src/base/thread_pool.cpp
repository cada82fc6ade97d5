#include "base/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

#if __has_include(<dlfcn.h>)
#include <dlfcn.h>
#define VIDKV_HAVE_DLSYM
#endif

namespace vidkv {

namespace {

void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#else
    std::this_thread::yield();
#endif
}

// Waits for a condition without sleeping, about as long as waking a sleeper would take. True if the condition holds.
template <typename Condition> bool spin_for(Condition condition) {
    constexpr auto patience = std::chrono::microseconds(30);
    const auto start = std::chrono::steady_clock::now();
    do {
        for (int i = 0; i < 32; ++i) {
            if (condition()) return true;
            pause_briefly();
        }
    } while (std::chrono::steady_clock::now() - start < patience);
    return false;
}

class ThreadPool {
  public:
    ~ThreadPool() {
        {
            const std::lock_guard lock(mutex_);
            stopping_ = true;
            job_number_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        for (std::thread & worker : workers_) worker.join();
    }

    void run(int64_t count, int helpers, const std::function<void(int64_t)> & task) {
        const std::lock_guard one_job_at_a_time(serve_);
        helpers = grow_to(helpers);
        next_.store(0, std::memory_order_relaxed);
        {
            const std::lock_guard lock(mutex_);
            task_ = &task;
            count_ = count;
            places_ = helpers;
            job_number_.fetch_add(1, std::memory_order_release);
        }
        wake_.notify_all();
        work(task, count);
        std::unique_lock lock(mutex_);
        places_ = 0; // helpers that wake up now do not join
        lock.unlock();
        if (spin_for([this] { return active_.load(std::memory_order_acquire) == 0; })) return;
        lock.lock();
        finished_.wait(lock, [this] { return active_.load(std::memory_order_acquire) == 0; });
    }

  private:
    void work(const std::function<void(int64_t)> & task, int64_t count) {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count;) task(i);
    }

    // Starts workers until there are `wanted`; returns how many there are, at most `wanted`.
    int grow_to(int wanted) {
        try {
            while (static_cast<int>(workers_.size()) < wanted) workers_.emplace_back([this] { serve(); });
        } catch (const std::system_error &) { // the system gives no more threads: go on with fewer
        } catch (const std::bad_alloc &) {
        }
        return std::min(wanted, static_cast<int>(workers_.size()));
    }

    void serve() {
        uint64_t seen = 0;
        while (true) {
            spin_for([&] { return job_number_.load(std::memory_order_acquire) != seen; });
            std::unique_lock lock(mutex_);
            wake_.wait(lock, [&] { return job_number_.load(std::memory_order_relaxed) != seen; });
            seen = job_number_.load(std::memory_order_relaxed);
            if (stopping_) return;
            if (places_ == 0) continue;
            --places_;
            active_.fetch_add(1, std::memory_order_relaxed);
            const auto * task = task_;
            const int64_t count = count_;
            lock.unlock();
            work(*task, count);
            lock.lock();
            if (active_.fetch_sub(1, std::memory_order_release) == 1) finished_.notify_one();
        }
    }

    std::mutex serve_; // held for the whole of a job
    std::vector<std::thread> workers_;

    std::mutex mutex_; // guards what follows; the atomics are also read without it
    std::condition_variable wake_, finished_;
    std::atomic<uint64_t> job_number_{0};
    std::atomic<int> active_{0}; // helpers inside the current job
    const std::function<void(int64_t)> * task_ = nullptr;
    int64_t count_ = 0;
    int places_ = 0; // helpers that may still join
    bool stopping_ = false;

    std::atomic<int64_t> next_{0}; // next index to hand out
};

// The entry point of the OpenMP runtime that the process has loaded already, as ggml and torch do: its threads spin while
// they wait, so that other threads beside them would get half of a core. Null if there is none; no runtime is loaded for
// it.
using TeamParallel = void (*)(void (*)(void *), void *, unsigned threads, unsigned flags);
#if defined(VIDKV_HAVE_DLSYM)
// A runtime that was loaded by a library of its own scope (ggml's back-ends as plug-ins) is not among the global symbols.
void * loaded_symbol(const char * symbol) {
    if (void * found = dlsym(RTLD_DEFAULT, symbol)) return found;
    for (const char * library : {"libgomp.so.1", "libomp.so.5", "libomp.so", "libiomp5.so"}) {
        void * handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
        void * found = handle ? dlsym(handle, symbol) : nullptr;
        if (found) return found; // and stays loaded: the handle is kept
        if (handle) dlclose(handle);
    }
    return nullptr;
}

TeamParallel host_team() {
    constexpr unsigned calls_between_looks = 64; // a host may load its runtime after the first call
    static std::atomic<TeamParallel> found{nullptr};
    static std::atomic<unsigned> calls{0};
    TeamParallel team = found.load(std::memory_order_acquire);
    if (team || calls.fetch_add(1, std::memory_order_relaxed) % calls_between_looks != 0) return team;
    team = reinterpret_cast<TeamParallel>(loaded_symbol("GOMP_parallel"));
    found.store(team, std::memory_order_release);
    return team;
}
#else
TeamParallel host_team() { return nullptr; }
#endif

// The pool of the process. A forked child has none of its threads: it leaves its parent's pool alone and makes one when it
// needs it.
std::atomic<ThreadPool *> pool_of_process{nullptr}, pool_of_parent{nullptr};

struct PoolOwner {
    PoolOwner() {
#if __has_include(<pthread.h>)
        pthread_atfork(nullptr, nullptr, [] { pool_of_parent = pool_of_process.exchange(nullptr); });
#endif
    }
    ~PoolOwner() { delete pool_of_process.exchange(nullptr); }
};

ThreadPool & shared_pool() {
    static const PoolOwner owner;
    ThreadPool * pool = pool_of_process.load(std::memory_order_acquire);
    if (pool) return *pool;
    auto made = std::make_unique<ThreadPool>();
    if (pool_of_process.compare_exchange_strong(pool, made.get())) return *made.release();
    return *pool;
}

struct TeamJob {
    const std::function<void(int64_t)> & task;
    int64_t count;
    std::atomic<int64_t> next{0};
};

void work_on(void * data) {
    TeamJob & job = *static_cast<TeamJob *>(data);
    for (int64_t i; (i = job.next.fetch_add(1, std::memory_order_relaxed)) < job.count;) job.task(i);
}

} // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)> & task) {
    const int64_t helpers = std::min<int64_t>(threads, count) - 1;
    if (helpers <= 0) {
        for (int64_t i = 0; i < count; ++i) task(i);
        return;
    }
    if (const TeamParallel team = host_team()) {
        TeamJob job{task, count};
        team(work_on, &job, static_cast<unsigned>(threads),
             0); // the whole team: GOMP ends the threads that a smaller one leaves out
        return;
    }
    shared_pool().run(count, static_cast<int>(helpers), task);
}

} // namespace vidkv
