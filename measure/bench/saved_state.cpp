#include "bench/saved_state.h"

#include <cstring>

#include "bench/attention.h"
#include "ggml.h"

namespace vidkv::cli {

namespace {

constexpr uint32_t SEED = 20251126;
constexpr size_t CELL = 12; // position, number of sequences, the sequence

template <typename T> T at(const std::vector<uint8_t> & bytes, size_t offset) {
    T value;
    std::memcpy(&value, bytes.data() + offset, sizeof(T));
    return value;
}

void add(std::vector<uint8_t> & out, const void * data, size_t n) {
    const size_t end = out.size();
    out.resize(end + n);
    std::memcpy(out.data() + end, data, n);
}

template <typename T> void number(std::vector<uint8_t> & out, T value) { add(out, &value, sizeof(T)); }

std::vector<uint16_t> half_rows(int channels) {
    const std::vector<float> numbers = gaussian(static_cast<size_t>(TokenRows::BLOCK * channels), SEED);
    std::vector<uint16_t> rows(numbers.size());
    ggml_fp32_to_fp16_row(numbers.data(), rows.data(), static_cast<int64_t>(rows.size()));
    return rows;
}

} // namespace

StateWriter::StateWriter(const std::vector<uint8_t> & like, int layers, int channels)
    : head_(like.begin(), like.begin() + 12), layers_(layers), channels_(channels), rows_(half_rows(channels)) {
    const size_t after = 16 + at<uint32_t>(like, 12) * CELL;
    layout_.assign(like.begin() + static_cast<ptrdiff_t>(after), like.begin() + static_cast<ptrdiff_t>(after + 16));
    type_ = at<int32_t>(like, after + 16);
}

void StateWriter::move_to(std::vector<uint8_t> & state, llama_pos first) {
    for (uint32_t i = 0; i < at<uint32_t>(state, 12); ++i) {
        const llama_pos position = first + static_cast<llama_pos>(i);
        std::memcpy(&state[16 + i * CELL], &position, sizeof(position));
    }
}

std::vector<uint8_t> StateWriter::write(int64_t tokens) const {
    std::vector<uint8_t> out;
    out.reserve(static_cast<size_t>(tokens) * (CELL + static_cast<size_t>(2 * layers_ * channels_) * 2) + 4096);
    add(out, head_.data(), head_.size());
    number(out, static_cast<uint32_t>(tokens));
    for (int64_t i = 0; i < tokens; ++i) {
        number(out, static_cast<llama_pos>(i));
        number(out, uint32_t{1});
        number(out, llama_seq_id{0});
    }
    add(out, layout_.data(), layout_.size());
    const auto row_bytes = static_cast<uint64_t>(channels_) * 2;
    for (int tensor = 0; tensor < 2 * layers_; ++tensor) {
        number(out, type_);
        number(out, row_bytes);
        for (int64_t i = 0; i < tokens; ++i) // another order in each tensor
            add(out, &rows_[static_cast<size_t>((i * 7 + tensor * 131) % TokenRows::BLOCK * channels_)], row_bytes);
    }
    return out;
}

} // namespace vidkv::cli
