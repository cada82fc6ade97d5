#include "codec/rotation.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <mutex>

namespace vidkv {

namespace {

constexpr int largest = 512; // head_dim

std::vector<float> make_signs(int n, float magnitude) {
    std::vector<float> signs(static_cast<size_t>(n));
    uint32_t state = 1;
    for (float & sign : signs) sign = next_sign(state) ? -magnitude : magnitude;
    return signs;
}

} // namespace

void hadamard(float * x, int n) {
    for (int half = 1; half < n; half *= 2) {
        for (int i = 0; i < n; i += 2 * half) {
            for (int j = i; j < i + half; ++j) {
                const float a = x[j], b = x[j + half];
                x[j] = a + b;
                x[j + half] = a - b;
            }
        }
    }
}

Rotation::Rotation(int head_dim) : n_(head_dim), even_(head_dim & -head_dim), odd_(head_dim / even_) {
    if (odd_ > 1) dft_ = real_dft(odd_);
    signs_ = make_signs(n_, 1.0f / std::sqrt(static_cast<float>(even_)));
}

void Rotation::forward(float * x) const {
    for (int i = 0; i < n_; ++i) x[i] *= signs_[i];
    for (int block = 0; block < odd_; ++block) hadamard(x + block * even_, even_);
    if (!dft_) return;
    float mixed[largest];                   // not allocated: attention rotates in its parallel tasks, which must not throw
    dft_->forward_columns(x, mixed, even_); // x is [odd][even]
    std::copy_n(mixed, n_, x);
}

void Rotation::inverse(float * x) const { inverse(x, hadamard); }

void Rotation::inverse(float * x, void (*transform)(float * x, int n)) const {
    if (dft_) {
        float mixed[largest];
        dft_->inverse_columns(x, mixed, even_);
        std::copy_n(mixed, n_, x);
    }
    for (int block = 0; block < odd_; ++block) transform(x + block * even_, even_);
    for (int i = 0; i < n_; ++i) x[i] *= signs_[i];
}

std::shared_ptr<const Rotation> rotation(int head_dim) {
    static std::mutex mutex;
    static std::map<int, std::shared_ptr<const Rotation>> shared;
    const std::lock_guard lock(mutex);
    std::shared_ptr<const Rotation> & entry = shared[head_dim];
    if (!entry) entry = std::make_shared<Rotation>(head_dim);
    return entry;
}

} // namespace vidkv
