// Loops of nothing but 8-bit dot products, to know what the best attention kernel could reach.
#include <algorithm>
#include <vector>

#include "machine.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#include <sys/auxv.h>
#endif

namespace vidkv::cli {

namespace {

constexpr int ROUNDS = 1000000; // some milliseconds: what starting the threads takes does not matter
constexpr int REPEATS = 7;

// Does ROUNDS rounds; the multiply-adds of one round.
struct Loop {
    void (*run)();
    double macs;
};

#if defined(__x86_64__)

// Twelve sums hide the latency of the dot product; each asm makes the compiler believe that a sum was used.
[[gnu::target("avx512f,avx512bw,avx512vnni")]] void avx512_loop() {
    __m512i sums[12] = {};
    const __m512i a = _mm512_set1_epi8(3), b = _mm512_set1_epi8(1);
    for (int round = 0; round < ROUNDS; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) {
            sums[i] = _mm512_dpbusd_epi32(sums[i], a, b);
            asm volatile("" : "+v"(sums[i]));
        }
    }
}

[[gnu::target("avx2")]] void avx2_loop() {
    __m256i sums[8] = {}, a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1);
    for (int round = 0; round < ROUNDS; ++round) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; ++i) {
            asm volatile("" : "+x"(a));
            sums[i] = _mm256_add_epi16(sums[i], _mm256_maddubs_epi16(a, b));
            asm volatile("" : "+x"(sums[i]));
        }
    }
}

// The EVEX encoding: a processor that has the VEX one alone gets no figure.
[[gnu::target("avx512f,avx512bw,avx512vl,avx512vnni")]] void vnni256_loop() {
    __m256i sums[12] = {};
    const __m256i a = _mm256_set1_epi8(3), b = _mm256_set1_epi8(1);
    for (int round = 0; round < ROUNDS; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) {
            sums[i] = _mm256_dpbusd_epi32(sums[i], a, b);
            asm volatile("" : "+v"(sums[i]));
        }
    }
}

Loop loop_of(const std::string & isa) {
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    if (isa.starts_with("avx512") && vnni) return {avx512_loop, 12 * 64.0};
    if ((isa == "vnni256" || isa == "avxvnni") && vnni && __builtin_cpu_supports("avx512vl"))
        return {vnni256_loop, 12 * 32.0};
    if (isa == "avx2" && __builtin_cpu_supports("avx2")) return {avx2_loop, 8 * 32.0};
    return {nullptr, 0};
}

#elif defined(__aarch64__)

[[gnu::target("+dotprod")]] void neon_loop() {
    int32x4_t sums[12] = {};
    const int8x16_t a = vdupq_n_s8(3), b = vdupq_n_s8(1);
    for (int round = 0; round < ROUNDS; ++round) {
#pragma GCC unroll 12
        for (int i = 0; i < 12; ++i) {
            sums[i] = vdotq_s32(sums[i], a, b);
            asm volatile("" : "+w"(sums[i]));
        }
    }
}

Loop loop_of(const std::string & isa) {
    constexpr unsigned long HAS_DOT_PRODUCT = 1ul << 20; // HWCAP_ASIMDDP
    return isa.starts_with("neon") && (getauxval(AT_HWCAP) & HAS_DOT_PRODUCT) ? Loop{neon_loop, 12 * 16.0}
                                                                              : Loop{nullptr, 0};
}

#else

Loop loop_of(const std::string &) { return {nullptr, 0}; }

#endif

} // namespace

double int8_peak(const std::string & isa, int threads) {
    const Loop loop = loop_of(isa);
    if (!loop.run) return 0;
    std::vector<double> seconds;
    for (int i = 0; i < REPEATS; ++i) seconds.push_back(run_on_threads(threads, [&](int) { loop.run(); }));
    return loop.macs * ROUNDS * threads / *std::min_element(seconds.begin(), seconds.end());
}

} // namespace vidkv::cli
