// What the machine can do, measured: the yardsticks of vidkv bench.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace vidkv::cli {

// "Intel(R) Xeon(R) Processor", or what else the system calls it.
std::string cpu_name();
// The largest cache of this processor; 32 MiB where the system does not say.
int64_t last_level_cache_bytes();

// Runs task(0) .. task(threads - 1), each on a thread of its own, and returns the seconds until all were done.
double run_on_threads(int threads, const std::function<void(int)> & task);

double median(std::vector<double> values);

// Memory far larger than the last-level cache. Reading it measures the bandwidth and pushes everything else out of the
// caches.
class StreamBuffer {
  public:
    explicit StreamBuffer(size_t bytes);
    // Reads all of it; the seconds that took.
    double read(int threads) const;
    size_t bytes() const { return bytes_; }

  private:
    struct Free {
        void operator()(uint64_t * words) const;
    };
    size_t bytes_;
    std::unique_ptr<uint64_t, Free> words_;
};

// 8-bit multiply-adds per second that an instruction set (a name that VIDKV_FORCE_ISA takes) does on that many threads, all of them
// in registers: vpdpbusd, vpmaddubsw + vpaddw, sdot. 0 where there is no such loop for the instruction set or the machine.
double int8_peak(const std::string & isa, int threads);

// Bytes of memory this process holds now, and the most it has held.
int64_t resident_bytes();
int64_t peak_resident_bytes();

} // namespace vidkv::cli
