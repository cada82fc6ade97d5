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

// STEP adds a product of a and b to a sum, SUMS times in turn, which hides its latency; each asm makes the compiler believe that a
// register of that class was changed or used.
#define DOT_PRODUCTS(NAME, TARGET, SUM, CLASS, SUMS, A, B, STEP)                                                           \
    [[gnu::target(TARGET)]] void NAME() {                                                                                  \
        SUM sums[SUMS] = {};                                                                                               \
        auto a = A;                                                                                                        \
        const auto b = B;                                                                                                  \
        for (int round = 0; round < ROUNDS; ++round) {                                                                     \
            _Pragma("GCC unroll 12") for (auto & sum : sums) {                                                             \
                asm volatile("" : CLASS(a));                                                                               \
                sum = STEP;                                                                                                \
                asm volatile("" : CLASS(sum));                                                                             \
            }                                                                                                              \
        }                                                                                                                  \
    }

#if defined(__x86_64__)

DOT_PRODUCTS(avx512_loop, "avx512f,avx512bw,avx512vnni", __m512i, "+v", 12, _mm512_set1_epi8(3), _mm512_set1_epi8(1),
             _mm512_dpbusd_epi32(sum, a, b))
// The EVEX encoding: a processor that has the VEX one alone gets no figure.
DOT_PRODUCTS(vnni256_loop, "avx512f,avx512bw,avx512vl,avx512vnni", __m256i, "+v", 12, _mm256_set1_epi8(3),
             _mm256_set1_epi8(1), _mm256_dpbusd_epi32(sum, a, b))
DOT_PRODUCTS(avx2_loop, "avx2", __m256i, "+x", 8, _mm256_set1_epi8(3), _mm256_set1_epi8(1),
             _mm256_add_epi16(sum, _mm256_maddubs_epi16(a, b)))

Loop loop_of(const std::string & isa) {
    const bool vnni = __builtin_cpu_supports("avx512vnni");
    if (isa.starts_with("avx512") && vnni) return {avx512_loop, 12 * 64.0};
    if ((isa == "vnni256" || isa == "avxvnni") && vnni && __builtin_cpu_supports("avx512vl"))
        return {vnni256_loop, 12 * 32.0};
    if (isa == "avx2" && __builtin_cpu_supports("avx2")) return {avx2_loop, 8 * 32.0};
    return {nullptr, 0};
}

#elif defined(__aarch64__)

DOT_PRODUCTS(neon_loop, "+dotprod", int32x4_t, "+w", 12, vdupq_n_s8(3), vdupq_n_s8(1), vdotq_s32(sum, a, b))

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
