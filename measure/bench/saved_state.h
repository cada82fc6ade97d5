// llama.cpp's state of a sequence of any length, with rows of f16 that are made up.
#pragma once

#include <cstdint>
#include <vector>

#include "llama.h"

namespace vidkv::cli {

class StateWriter {
  public:
    // like: a state of the same context, of any length.
    StateWriter(const std::vector<uint8_t> & like, int layers, int channels);

    std::vector<uint8_t> write(int64_t tokens) const;
    // The same state with the positions from `first` on.
    static void move_to(std::vector<uint8_t> & state, llama_pos first);

  private:
    std::vector<uint8_t> head_, layout_;
    int layers_;
    int64_t channels_;
    int32_t type_ = 0;
    std::vector<uint16_t> rows_;
};

} // namespace vidkv::cli
