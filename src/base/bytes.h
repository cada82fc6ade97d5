// Little-endian numbers in byte buffers.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

namespace vidkv {

static_assert(std::endian::native == std::endian::little, "packed pages and saved caches are little-endian");

template <typename T> T load_at(const uint8_t * bytes, size_t index = 0) {
    static_assert(std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, bytes + index * sizeof(T), sizeof(T));
    return value;
}

template <typename T> void store_at(uint8_t * bytes, size_t index, T value) {
    static_assert(std::is_trivially_copyable_v<T>);
    std::memcpy(bytes + index * sizeof(T), &value, sizeof(T));
}

inline void append_bytes(std::vector<uint8_t> & out, const void * data, size_t size) {
    const size_t at = out.size();
    out.resize(at + size);
    if (size) std::memcpy(out.data() + at, data, size);
}

template <typename T> void append_number(std::vector<uint8_t> & out, const T & value) {
    static_assert(std::is_trivially_copyable_v<T>);
    append_bytes(out, &value, sizeof(T));
}

// Reads a buffer front to back and never past its end; after the first short read everything fails.
class ByteReader {
  public:
    ByteReader(const uint8_t * data, size_t size) : cursor_(data), left_(size) {}

    bool bytes(void * out, size_t size) {
        if (!ok_ || size > left_) return ok_ = false;
        if (size) std::memcpy(out, cursor_, size);
        cursor_ += size;
        left_ -= size;
        return true;
    }
    template <typename T> T number() {
        T value{};
        bytes(&value, sizeof(T));
        return value;
    }
    bool skip(size_t count, size_t size) { // of each
        if (!ok_ || count > left_ / size) return ok_ = false;
        cursor_ += count * size;
        left_ -= count * size;
        return true;
    }
    bool ok() const { return ok_; }
    size_t left() const { return left_; }

  private:
    const uint8_t * cursor_;
    size_t left_;
    bool ok_ = true;
};

} // namespace vidkv
