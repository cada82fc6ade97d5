#include "machine.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <new>
#include <thread>

#include <sys/mman.h>
#include <unistd.h>

namespace vidkv::cli {

namespace {

constexpr size_t HUGE_PAGE = size_t(2) << 20;
constexpr int64_t ASSUMED_CACHE = int64_t(32) << 20;

std::string value_of(const std::string & path, const std::string & key) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);) {
        const size_t colon = line.find(':');
        if (!line.starts_with(key) || colon == std::string::npos) continue;
        const size_t value = line.find_first_not_of(" \t", colon + 1);
        return value == std::string::npos ? "" : line.substr(value);
    }
    return "";
}

// Kept out of line and its result used, so that no load is optimised away.
[[gnu::noinline]] uint64_t sum(const uint64_t * words, size_t n) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i + 8 <= n; i += 8)
        for (size_t lane = 0; lane < 8; ++lane) sums[lane] += words[i + lane];
    uint64_t total = 0;
    for (const uint64_t lane : sums) total += lane;
    return total;
}

} // namespace

std::string cpu_name() {
    for (const char * key : {"model name", "Model", "Hardware", "CPU part"})
        if (std::string name = value_of("/proc/cpuinfo", key); !name.empty()) return name;
    return "unknown";
}

int64_t last_level_cache_bytes() {
    int64_t largest = 0;
    for (int index = 0; index < 8; ++index) {
        std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
        int64_t size = 0;
        char unit = ' ';
        if (file >> size >> unit) largest = std::max(largest, size << (unit == 'M' ? 20 : 10));
    }
    return largest > 0 ? largest : ASSUMED_CACHE;
}

double run_on_threads(int threads, const std::function<void(int)> & task) {
    std::vector<std::thread> others;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 1; i < threads; ++i) others.emplace_back(task, i);
    task(0);
    for (std::thread & other : others) other.join();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    const size_t n = values.size();
    return n == 0 ? 0 : n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

void StreamBuffer::Free::operator()(uint64_t * words) const { std::free(words); }

StreamBuffer::StreamBuffer(size_t bytes) : bytes_((bytes + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE) {
    words_.reset(static_cast<uint64_t *>(std::aligned_alloc(HUGE_PAGE, bytes_)));
    if (!words_) throw std::bad_alloc();
    madvise(words_.get(), bytes_, MADV_HUGEPAGE);
    std::memset(words_.get(), 1, bytes_);
}

double StreamBuffer::read(int threads) const {
    const size_t words = bytes_ / sizeof(uint64_t), share = words / static_cast<size_t>(threads);
    volatile uint64_t sink = 0;
    return run_on_threads(threads, [&](int i) {
        const uint64_t total = sum(words_.get() + static_cast<size_t>(i) * share, share);
        if (i == 0) sink = total;
    });
}

int64_t resident_bytes() {
    std::ifstream file("/proc/self/statm");
    int64_t size = 0, resident = 0;
    file >> size >> resident;
    return resident * sysconf(_SC_PAGESIZE);
}

// Not getrusage: its figure starts with that of the process that started this one.
int64_t peak_resident_bytes() {
    const std::string kilobytes = value_of("/proc/self/status", "VmHWM");
    return kilobytes.empty() ? resident_bytes() : std::atoll(kilobytes.c_str()) * 1024;
}

} // namespace vidkv::cli
