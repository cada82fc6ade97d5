#include "engine/state_section.h"

#include <algorithm>
#include <cstring>
#include <new>

#include <sys/mman.h>
#include <zlib.h>

#include "error.h"

namespace vidkv::cli {

namespace {

constexpr size_t MOST_RATIO = 1100;              // of zlib
constexpr size_t MOST_PACKED = size_t(64) << 20; // a stock cache is not worth zlib's time

// The cells' records of 12 or 24 bytes count up: differences of words 24 bytes apart are mostly the same.
constexpr size_t STRIDE = 24;

void to_differences(std::vector<uint8_t> & bytes) {
    for (size_t i = bytes.size(); i-- > STRIDE;) bytes[i] = static_cast<uint8_t>(bytes[i] - bytes[i - STRIDE]);
}

void from_differences(std::vector<uint8_t> & bytes) {
    for (size_t i = STRIDE; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(bytes[i] + bytes[i - STRIDE]);
}

std::vector<Gap> read_gaps(SectionReader & in, uint64_t size, uint64_t & kept) {
    const uint64_t n = in.number();
    if (n > in.left().size() / sizeof(Gap)) throw Error("its state is cut off");
    std::vector<Gap> gaps(n);
    uint64_t at = 0;
    kept = size;
    for (Gap & gap : gaps) {
        gap.at = in.number();
        gap.bytes = in.number();
        if (gap.at < at || gap.at > size || gap.bytes > size - gap.at) throw Error("its state contradicts itself");
        at = gap.at + gap.bytes;
        kept -= gap.bytes;
    }
    return gaps;
}

} // namespace

Mapping::Mapping(size_t bytes) : bytes_(bytes) {
    void * data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (data == MAP_FAILED) throw std::bad_alloc();
    data_ = static_cast<uint8_t *>(data);
}

Mapping::~Mapping() { munmap(data_, bytes_); }

void append_bytes(std::vector<uint8_t> & to, const void * data, size_t bytes) {
    const size_t at = to.size();
    to.resize(at + bytes);
    if (bytes > 0) std::memcpy(to.data() + at, data, bytes);
}

void append_number(std::vector<uint8_t> & to, uint64_t number) { append_bytes(to, &number, sizeof(number)); }

uint64_t SectionReader::number() {
    uint64_t out = 0;
    std::memcpy(&out, bytes(sizeof(out)).data(), sizeof(out));
    return out;
}

std::string_view SectionReader::bytes(uint64_t n) {
    if (left_.size() < n) throw Error("its state is cut off");
    const std::string_view out = left_.substr(0, n);
    left_.remove_prefix(n);
    return out;
}

// u64 size, u64 gaps, [gap] u64 at, u64 bytes; u64 size of the rest, the rest by zlib.
std::vector<uint8_t> pack_state(const uint8_t * state, size_t size, const std::vector<Gap> & gaps) {
    std::vector<uint8_t> rest, out;
    append_number(out, size);
    append_number(out, gaps.size());
    size_t at = 0;
    for (const Gap & gap : gaps) {
        append_number(out, gap.at);
        append_number(out, gap.bytes);
        append_bytes(rest, state + at, gap.at - at);
        at = gap.at + gap.bytes;
    }
    append_bytes(rest, state + at, size - at);
    append_number(out, rest.size());
    to_differences(rest);
    uLongf packed = compressBound(rest.size());
    const size_t head = out.size();
    out.resize(head + packed);
    if (compress2(out.data() + head, &packed, rest.data(), rest.size(), rest.size() > MOST_PACKED ? 0 : 1) != Z_OK)
        throw std::bad_alloc();
    out.resize(head + packed);
    return out;
}

std::unique_ptr<Mapping> unpack_state(std::string_view section, std::vector<Gap> & gaps) {
    SectionReader in(section);
    const uint64_t size = in.number();
    uint64_t kept = 0;
    gaps = read_gaps(in, size, kept);
    if (size == 0 || in.number() != kept || kept / MOST_RATIO > in.left().size())
        throw Error("its state contradicts itself");
    std::vector<uint8_t> rest(kept);
    uLongf got = kept;
    const auto * packed = reinterpret_cast<const Bytef *>(in.left().data());
    if (uncompress(rest.data(), &got, packed, in.left().size()) != Z_OK || got != kept) throw Error("its state is altered");
    from_differences(rest);
    auto mapping = std::make_unique<Mapping>(size);
    uint64_t from = 0, at = 0;
    const auto put = [&](uint64_t end) {
        std::copy_n(rest.data() + from, end - at, mapping->data() + at);
        from += end - at;
    };
    for (const Gap & gap : gaps) {
        put(gap.at);
        at = gap.at + gap.bytes;
    }
    put(size);
    return mapping;
}

std::unique_ptr<Mapping> unpack_state(std::string_view section) {
    std::vector<Gap> gaps;
    return unpack_state(section, gaps);
}

} // namespace vidkv::cli
