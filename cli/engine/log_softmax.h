#pragma once

#include <cstdint>

namespace vidkv::cli {

// Natural logarithms of softmax(logits), in place.
void log_softmax(float * logits, int64_t vocabulary);

} // namespace vidkv::cli
