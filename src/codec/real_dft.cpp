#include "codec/real_dft.h"

#include <cmath>
#include <map>
#include <mutex>
#include <numbers>

namespace vidkv {

namespace {

// out[c] = sum over r of in[r] * rows[r][c]; each sum runs over rising r.
void combine(const float * in, const float * rows, int n, float * out) {
    for (int c = 0; c < n; ++c) out[c] = 0;
    for (int r = 0; r < n; ++r) {
        const float * row = rows + static_cast<size_t>(r) * n;
        for (int c = 0; c < n; ++c) out[c] += in[r] * row[c];
    }
}

} // namespace

RealDft::RealDft(int n) : n_(n), basis_(static_cast<size_t>(n) * static_cast<size_t>(n)), transposed_(basis_.size()) {
    for (int k = 0; k < n; ++k) {
        const int frequency = (k + 1) / 2;
        const bool alone = k == 0 || (n % 2 == 0 && k == n - 1); // the mean and the alternating sum have no sine
        const double norm = std::sqrt((alone ? 1.0 : 2.0) / n);
        for (int i = 0; i < n; ++i) {
            const double angle = 2.0 * std::numbers::pi * (static_cast<int64_t>(frequency) * i % n) / n;
            const bool sine = !alone && k % 2 == 0;
            const float value = static_cast<float>(norm * (sine ? std::sin(angle) : std::cos(angle)));
            basis_[static_cast<size_t>(k) * n + i] = transposed_[static_cast<size_t>(i) * n + k] = value;
        }
    }
}

void RealDft::forward(const float * in, float * out) const { combine(in, transposed_.data(), n_, out); }
void RealDft::inverse(const float * in, float * out) const { combine(in, basis_.data(), n_, out); }

void RealDft::forward_columns(const float * in, float * out, int width) const {
    for (int k = 0; k < n_; ++k) {
        float * row = out + static_cast<size_t>(k) * width;
        for (int t = 0; t < width; ++t) row[t] = 0;
        for (int i = 0; i < n_; ++i) {
            const float b = basis_[static_cast<size_t>(k) * n_ + i];
            const float * x = in + static_cast<size_t>(i) * width;
            for (int t = 0; t < width; ++t) row[t] += b * x[t];
        }
    }
}

void RealDft::inverse_columns(const float * in, float * out, int width) const {
    for (int i = 0; i < n_ * width; ++i) out[i] = 0;
    for (int k = 0; k < n_; ++k) {
        const float * y = in + static_cast<size_t>(k) * width;
        for (int i = 0; i < n_; ++i) {
            const float b = basis_[static_cast<size_t>(k) * n_ + i];
            float * row = out + static_cast<size_t>(i) * width;
            for (int t = 0; t < width; ++t) row[t] += b * y[t];
        }
    }
}

std::shared_ptr<const RealDft> real_dft(int n) {
    static std::mutex mutex;
    static std::map<int, std::shared_ptr<const RealDft>> instances;
    const std::lock_guard lock(mutex);
    auto & instance = instances[n];
    if (!instance) instance = std::make_shared<const RealDft>(n);
    return instance;
}

} // namespace vidkv
