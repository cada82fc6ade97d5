// Every allocation that ggml's calls for a tensor's bytes lead to fails once: the log says so, nothing is thrown through C, and a call
// that is made again does what it would have done. This replaces operator new of the whole program, and so of the plug-in.
#include <ggml-backend.h>
#include <ggml.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <functional>
#include <new>
#include <vector>

#include "session.h"

namespace {

thread_local int64_t left = -1; // allocations until one fails; negative: none does

bool fails() { return left >= 0 && left-- == 0; }

void * allocate(size_t size) {
    void * memory = fails() ? nullptr : std::malloc(size ? size : 1);
    if (!memory) throw std::bad_alloc();
    return memory;
}

} // namespace

void * operator new(size_t size) { return allocate(size); }
void * operator new[](size_t size) { return allocate(size); }
void operator delete(void * memory) noexcept { std::free(memory); }
void operator delete[](void * memory) noexcept { std::free(memory); }
void operator delete(void * memory, size_t) noexcept { std::free(memory); }
void operator delete[](void * memory, size_t) noexcept { std::free(memory); }

namespace vidkv_test {

namespace {

constexpr int64_t channels = 128, cells = 256;

// The keys and values of a layer, as llama.cpp has them allocated on the device.
struct Cache {
    Cache() {
        context = ggml_init({16 * ggml_tensor_overhead(), nullptr, true});
        keys = ggml_new_tensor_3d(context, GGML_TYPE_F16, channels, cells, 1);
        values = ggml_new_tensor_3d(context, GGML_TYPE_F16, channels, cells, 1);
        ggml_set_name(keys, "cache_k_l0");
        ggml_set_name(values, "cache_v_l0");
        buffer = ggml_backend_alloc_ctx_tensors_from_buft(context,
                                                          ggml_backend_dev_buffer_type(ggml_backend_dev_by_name("VIDKV")));
    }
    ~Cache() {
        ggml_backend_buffer_free(buffer);
        ggml_free(context);
    }

    ggml_context * context;
    ggml_tensor *keys, *values;
    ggml_backend_buffer_t buffer;
};

std::vector<ggml_fp16_t> rows_of_waves() {
    std::vector<ggml_fp16_t> rows(channels * cells);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = ggml_fp32_to_fp16(static_cast<float>(i * 7919 % 1000) / 500 - 1);
    return rows;
}

// How many of its allocations a call can be made to fail by.
int failures_of(const std::function<void()> & call) {
    for (int n = 0;; ++n) {
        left = n;
        call();
        const bool all_were_there = left >= 0;
        left = -1;
        if (all_were_there) return n;
        EXPECT_FALSE(logged(" failed: ").empty()) << "the failure of allocation " << n << " was not told";
        forget_log();
    }
}

} // namespace

TEST(NoMemory, WritingAndReadingTensorsSaysSo) {
    ASSERT_EQ(configure("t1.65"), nullptr);
    const Cache cache;
    ASSERT_NE(cache.buffer, nullptr);
    const std::vector<ggml_fp16_t> rows = rows_of_waves();
    std::vector<ggml_fp16_t> read(rows.size());
    forget_log();
    for (ggml_tensor * tensor : {cache.keys, cache.values}) {
        const int writes = failures_of([&] { ggml_backend_tensor_set(tensor, rows.data(), 0, ggml_nbytes(tensor)); });
        const int reads = failures_of([&] { ggml_backend_tensor_get(tensor, read.data(), 0, ggml_nbytes(tensor)); });
        std::printf("  %s: %d allocations of writing, %d of reading\n", tensor->name, writes, reads);
        EXPECT_EQ(read, rows) << "nothing is packed before a graph says how wide heads are";
        EXPECT_GT(writes, 10);
        EXPECT_GT(reads, 0);
    }
    EXPECT_GT(failures_of([&] { ggml_backend_tensor_memset(cache.keys, 0, 0, ggml_nbytes(cache.keys)); }), 0);
    EXPECT_EQ(configure(nullptr), nullptr);
}

} // namespace vidkv_test
