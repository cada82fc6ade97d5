#include "engine/sequence_state.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <memory>
#include <string_view>

#include <sys/mman.h>
#include <zlib.h>

#include "engine/logs.h"
#include "engine/plugin.h"
#include "engine/video_file.h"
#include "error.h"
#include "vidkv/file.h"

namespace vidkv::cli {

namespace {

constexpr const char * STATE = "state";
constexpr size_t MOST_RATIO = 1100;              // of zlib
constexpr size_t MOST_PACKED = size_t(64) << 20; // a stock cache is not worth zlib's time

// Addresses for a state, most of which is never touched.
class Mapping {
  public:
    explicit Mapping(size_t bytes) : bytes_(bytes) {
        void * data = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (data == MAP_FAILED) throw std::bad_alloc();
        data_ = static_cast<uint8_t *>(data);
    }
    ~Mapping() { munmap(data_, bytes_); }
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

class RowsLeftAlone {
  public:
    explicit RowsLeftAlone(int32_t when) { plugin_state().rows(when); }
    ~RowsLeftAlone() { plugin_state().rows(VIDKV_ROWS_AS_USUAL); }
    RowsLeftAlone(const RowsLeftAlone &) = delete;
    RowsLeftAlone & operator=(const RowsLeftAlone &) = delete;
};

std::vector<Gap> gaps_of(const Mapping & mapping) {
    std::vector<vidkv_bytes> left(static_cast<size_t>(plugin_state().left_alone(nullptr, 0)));
    plugin_state().left_alone(left.data(), static_cast<int64_t>(left.size()));
    std::vector<Gap> gaps;
    for (const vidkv_bytes & each : left)
        gaps.push_back({static_cast<uint64_t>(static_cast<const uint8_t *>(each.data) - mapping.data()), each.bytes});
    std::ranges::sort(gaps, {}, &Gap::at);
    return gaps;
}

void append_bytes(std::vector<uint8_t> & to, const void * data, size_t bytes) {
    const size_t at = to.size();
    to.resize(at + bytes);
    if (bytes > 0) std::memcpy(to.data() + at, data, bytes);
}

void append_number(std::vector<uint8_t> & to, uint64_t number) { append_bytes(to, &number, sizeof(number)); }

// The cells' records of 12 or 24 bytes count up: differences of words 24 bytes apart are mostly the same.
constexpr size_t STRIDE = 24;

void to_differences(std::vector<uint8_t> & bytes) {
    for (size_t i = bytes.size(); i-- > STRIDE;) bytes[i] = static_cast<uint8_t>(bytes[i] - bytes[i - STRIDE]);
}

void from_differences(std::vector<uint8_t> & bytes) {
    for (size_t i = STRIDE; i < bytes.size(); ++i) bytes[i] = static_cast<uint8_t>(bytes[i] + bytes[i - STRIDE]);
}

// u64 size, u64 gaps, [gap] u64 at, u64 bytes; u64 size of the rest, the rest by zlib.
std::vector<uint8_t> pack(const Mapping & mapping, size_t size, const std::vector<Gap> & gaps) {
    std::vector<uint8_t> rest, out;
    append_number(out, size);
    append_number(out, gaps.size());
    size_t at = 0;
    for (const Gap & gap : gaps) {
        append_number(out, gap.at);
        append_number(out, gap.bytes);
        append_bytes(rest, mapping.data() + at, gap.at - at);
        at = gap.at + gap.bytes;
    }
    append_bytes(rest, mapping.data() + at, size - at);
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

// Reads numbers of a section, each of which may be wrong.
class Reader {
  public:
    explicit Reader(std::string_view bytes) : left_(bytes) {}
    uint64_t number() {
        uint64_t out = 0;
        if (left_.size() < sizeof(out)) throw Error("its state is cut off");
        std::memcpy(&out, left_.data(), sizeof(out));
        left_.remove_prefix(sizeof(out));
        return out;
    }
    std::string_view left() const { return left_; }

  private:
    std::string_view left_;
};

std::vector<Gap> read_gaps(Reader & in, uint64_t size, uint64_t & kept) {
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

std::unique_ptr<Mapping> unpack(std::string_view section) {
    Reader in(section);
    const uint64_t size = in.number();
    uint64_t kept = 0;
    const std::vector<Gap> gaps = read_gaps(in, size, kept);
    if (in.number() != kept || kept / MOST_RATIO > in.left().size()) throw Error("its state contradicts itself");
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

// llama.cpp's state and the gaps in it.
std::vector<uint8_t> read_state(llama_context * context, bool stock) {
    const Mapping mapping(llama_state_seq_get_size(context, 0));
    const size_t written = llama_state_seq_get_data(context, mapping.data(), mapping.bytes(), 0);
    if (written == 0) throw Error("llama.cpp cannot save this model's cache: " + logged_error());
    return pack(mapping, written, stock ? std::vector<Gap>{} : gaps_of(mapping));
}

void write_plain(const std::string & path, const std::vector<Section> & sections) {
    vidkv_params params = {};
    vidkv_file_writer * writer = nullptr;
    bool good = vidkv_params_from_preset("f16", &params) == VIDKV_OK &&
                vidkv_file_create(path.c_str(), &params, &writer) == VIDKV_OK;
    for (const Section & each : sections)
        good = good && vidkv_file_add_section(writer, each.name.c_str(), each.bytes.data(), each.bytes.size()) == VIDKV_OK;
    good = good && vidkv_file_finish(writer) == VIDKV_OK;
    const std::string why = good ? "" : vidkv_last_error();
    vidkv_file_abandon(writer);
    if (!good) throw Error(why);
}

void write_packed(const std::string & path, const std::vector<Section> & sections) {
    std::vector<vidkv_named_bytes> named;
    for (const Section & each : sections) named.push_back({each.name.c_str(), each.bytes.data(), each.bytes.size()});
    const char * complaint = plugin_state().save(path.c_str(), named.data(), static_cast<int64_t>(named.size()));
    if (complaint) throw Error(complaint);
}

// llama.cpp logs what it does not like; the plug-in says what does not fit.
void take(llama_context * context, bool stock, const VideoFile & file) {
    const std::unique_ptr<Mapping> mapping = unpack(file.section(STATE));
    forget_logged_error();
    if (llama_state_seq_set_data(context, mapping->data(), mapping->bytes(), 0) != mapping->bytes())
        throw Error("llama.cpp does not take its state: " + logged_error());
    if (stock) return;
    const std::string_view manifest = file.section("manifest");
    const char * complaint = plugin_state().load(file.path().c_str(), file.copied(), manifest.data(), manifest.size());
    if (complaint) throw Error(complaint);
}

} // namespace

void save_sequence(llama_context * context, bool stock, const std::string & path, std::vector<Section> sections) {
    llama_synchronize(context);
    if (stock) {
        sections.push_back({STATE, read_state(context, stock)});
        return write_plain(path, sections);
    }
    const RowsLeftAlone rows(VIDKV_ROWS_LEFT_ON_SAVE);
    sections.push_back({STATE, read_state(context, stock)});
    write_packed(path, sections);
}

void load_sequence(llama_context * context, bool stock, const VideoFile & file) {
    llama_memory_clear(llama_get_memory(context), true);
    try {
        if (stock) return take(context, stock, file);
        const RowsLeftAlone rows(VIDKV_ROWS_LEFT_ON_LOAD);
        take(context, stock, file);
    } catch (const Error & error) {
        llama_memory_clear(llama_get_memory(context), true);
        throw Error("the saved cache '" + file.path() + "' does not fit: " + error.what());
    }
}

} // namespace vidkv::cli
