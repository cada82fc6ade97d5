#include "engine/log_softmax.h"

#include <algorithm>
#include <cmath>

namespace vidkv::cli {

void log_softmax(float * logits, int64_t vocabulary) {
    const float top = *std::max_element(logits, logits + vocabulary);
    double sum = 0;
    for (int64_t i = 0; i < vocabulary; ++i) sum += std::exp(logits[i] - top);
    const auto offset = static_cast<float>(std::log(sum));
    for (int64_t i = 0; i < vocabulary; ++i) logits[i] = logits[i] - top - offset;
}

} // namespace vidkv::cli
