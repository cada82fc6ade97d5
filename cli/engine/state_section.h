// The section `state` of a .vidkv file: llama.cpp's state of a sequence without the rows of packed caches (docs/format.md).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <vector>

namespace vidkv::cli {

// Addresses for a state, most of which is never touched.
class Mapping {
  public:
    explicit Mapping(size_t bytes);
    ~Mapping();
    Mapping(const Mapping &) = delete;
    Mapping & operator=(const Mapping &) = delete;

    uint8_t * data() const { return data_; }
    size_t bytes() const { return bytes_; }

  private:
    uint8_t * data_ = nullptr;
    size_t bytes_;
};

// A piece of the state that is not kept.
struct Gap {
    uint64_t at, bytes;
};

// gaps: by their places, none within another.
std::vector<uint8_t> pack_state(const uint8_t * state, size_t size, const std::vector<Gap> & gaps);
// The state, zeros in its gaps. Throws Error where the section contradicts itself.
std::unique_ptr<Mapping> unpack_state(std::string_view section);
std::unique_ptr<Mapping> unpack_state(std::string_view section, std::vector<Gap> & gaps);

// Numbers of a section, each of which may be wrong. Throws Error where there are no more.
class SectionReader {
  public:
    explicit SectionReader(std::string_view bytes) : left_(bytes) {}
    uint64_t number();
    std::string_view bytes(uint64_t n);
    std::string_view left() const { return left_; }

  private:
    std::string_view left_;
};
void append_number(std::vector<uint8_t> & to, uint64_t number);
void append_bytes(std::vector<uint8_t> & to, const void * data, size_t bytes);

} // namespace vidkv::cli
