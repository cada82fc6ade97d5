#include "engine/state_layout.h"

#include <algorithm>
#include <cstring>
#include <optional>

namespace vidkv::cli {

namespace {

constexpr uint32_t MOST_STREAMS = 1024, MOST_LAYERS = 4096;
constexpr int32_t F16 = 1; // GGML_TYPE_F16
constexpr uint64_t MOST_ROW_BYTES = 1 << 20;

// Reads the state's numbers; once one is missing, all are 0 and good() is false.
class StateReader {
  public:
    StateReader(const uint8_t * data, size_t size) : data_(data), size_(size) {}

    template <typename T> T next() {
        T value{};
        if (skip(sizeof(T))) std::memcpy(&value, data_ + at_ - sizeof(T), sizeof(T));
        return value;
    }
    bool skip(uint64_t bytes) {
        good_ = good_ && bytes <= size_ - at_;
        if (good_) at_ += bytes;
        return good_;
    }
    bool good() const { return good_; }
    uint64_t at() const { return at_; }

  private:
    const uint8_t * data_;
    size_t size_;
    uint64_t at_ = 0;
    bool good_ = true;
};

// Records of cells: position, 1, whatever llama.cpp keeps beside it (`more` bytes), the sequence.
bool skip_cells(StateReader & in, uint32_t cells, uint64_t more) {
    for (uint32_t i = 0; i < cells; ++i) {
        in.next<int32_t>();
        if (in.next<uint32_t>() != 1 || !in.skip(more + sizeof(int32_t))) return false;
    }
    return in.good();
}

bool read_rows(StateReader & in, StateLayout & layout, bool keys, uint32_t layers) {
    for (uint32_t i = 0; i < layers; ++i) {
        const auto type = in.next<int32_t>();
        const auto row = in.next<uint64_t>();
        if (!in.good() || type != F16 || row == 0 || row % 2 != 0 || row > MOST_ROW_BYTES) return false;
        layout.rows.push_back({in.at(), static_cast<int64_t>(row / 2), keys});
        if (!in.skip(layout.rows.back().bytes(layout.cells))) return false;
    }
    return true;
}

std::optional<StateLayout> read_stream(StateReader in, uint32_t cells, uint64_t more) {
    if (!skip_cells(in, cells, more)) return std::nullopt;
    const auto transposed = in.next<uint32_t>(), layers = in.next<uint32_t>();
    in.skip(2 * sizeof(uint32_t)); // rotations of keys and values
    if (!in.good() || transposed != 0 || layers == 0 || layers > MOST_LAYERS) return std::nullopt;
    StateLayout layout;
    layout.cells = cells;
    if (!read_rows(in, layout, true, layers) || !read_rows(in, layout, false, layers)) return std::nullopt;
    return layout;
}

} // namespace

uint64_t head_of_state(const uint8_t * state, size_t size) {
    constexpr uint32_t magic = 0xaf143cd8; // llama-context.cpp; no number of streams
    return StateReader(state, size).next<uint32_t>() == magic ? sizeof(magic) + sizeof(int32_t) : 0;
}

StateLayout layout_of_state(const uint8_t * state, size_t size) {
    constexpr uint64_t cell_extra = 12; // place in the picture and token, with M-RoPE
    StateReader in(state, size);
    in.skip(head_of_state(state, size));
    const auto streams = in.next<uint32_t>();
    for (uint32_t s = 0; s < std::min(streams, MOST_STREAMS) && in.good(); ++s) {
        const auto cells = in.next<uint32_t>();
        if (cells == 0) continue;
        for (const uint64_t more : {uint64_t(0), cell_extra})
            if (const auto layout = read_stream(in, cells, more)) return *layout;
        break;
    }
    return {};
}

uint64_t state_of_slot(const uint8_t * data, size_t size) {
    StateReader in(data, size);
    const auto magic = in.next<uint32_t>(), version = in.next<uint32_t>();
    if (!in.good() || magic != SLOT_MAGIC || version != SLOT_VERSION) return 0;
    in.skip(uint64_t(in.next<uint32_t>()) * sizeof(int32_t));
    return in.good() ? in.at() : 0;
}

std::vector<uint8_t> head_of_slot(const std::vector<uint8_t> & tokens) {
    const uint32_t numbers[] = {SLOT_MAGIC, SLOT_VERSION, static_cast<uint32_t>(tokens.size() / sizeof(int32_t))};
    std::vector<uint8_t> head(sizeof(numbers) + tokens.size());
    std::memcpy(head.data(), numbers, sizeof(numbers));
    std::copy(tokens.begin(), tokens.end(), head.begin() + sizeof(numbers));
    return head;
}

} // namespace vidkv::cli
