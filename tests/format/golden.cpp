// Writes the golden files on purpose, and reads saved caches for the tests of the format.
//
//   vidkv_golden write FOLDER          the golden files, and rows.txt, what they hold
//   vidkv_golden forge FOLDER TO       bad files, made of the good ones
//   vidkv_golden read FILE             the f16 rows, layer by layer: keys, then values, sequence by sequence; fails for a bad file
//   vidkv_golden check FOLDER          holds the good files against rows.txt
//
// The files are the format's promise: if `check` fails, files that people saved can no longer be read. Rewrite them only
// with a new version.
#include <algorithm>
#include <array>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/forged_file.h"
#include "vidkv/file.h"

namespace {

namespace fs = std::filesystem;

struct Failure {
    std::string line;
};

void check(vidkv_status status) {
    if (status != VIDKV_OK) throw Failure{vidkv_last_error()};
}

struct CacheFree {
    void operator()(vidkv_cache * cache) const { vidkv_cache_free(cache); }
};
using Cache = std::unique_ptr<vidkv_cache, CacheFree>;

Cache make(const vidkv_cache_shape & shape, const vidkv_params & params) {
    vidkv_cache * cache = nullptr;
    check(vidkv_cache_create(&shape, &params, &cache));
    return Cache(cache);
}

// Numbers that are the same everywhere: sums of a generator's bits, about normal.
class Numbers {
  public:
    float next() {
        int sum = 0;
        for (int i = 0; i < 4; ++i) {
            state_ = state_ * 6364136223846793005u + 1442695040888963407u;
            sum += static_cast<int>(state_ >> 56) - 128;
        }
        return static_cast<float>(sum) / 128.0f;
    }

  private:
    uint64_t state_ = 7;
};

struct Golden {
    const char *name, *preset;
    int head_dim;
    bool still = false;   // values of a picture that hardly moves
    bool shifted = false; // keys moved after they were packed, in two ways
    bool moving = false;  // with still: values of a picture that moves one way
};
constexpr Golden goldens[] = {{"k2v2", "k2v2", 16},
                              {"k1.5v1.58", "k1.5v1.58", 24},
                              {"k1.5v1.58-g64-stp0.2", "k1.5v1.58-g64-stp0.2", 24},
                              {"k1.5v1.58-g128", "k1.5v1.58-g128", 16},
                              {"t2.2", "t2.2", 16},
                              {"t1.65-stp0.2", "t1.65-stp0.2", 24},
                              {"t1.0", "t1.0", 16},
                              {"kt4vt3", "kt4vt3", 24},
                              {"k16vt1", "k16vt1", 16},
                              {"t1.65-still", "t1.65", 24, true},
                              {"t3.2-still", "t3.2", 16, true},
                              {"t4.2", "t4.2", 16},
                              {"t1.15-stp0.2-still", "t1.15-stp0.2", 16, true},
                              {"t1.65-shifted", "t1.65", 16, false, true},
                              {"t1.65-moving", "t1.65", 24, true, false, true},
                              {"t1.15-stp0.2-moving", "t1.15-stp0.2", 16, true, false, true}};
constexpr int kv_heads = 2, heads = 4;
constexpr int64_t tokens = 256, cells = 300;
constexpr char manifest[] = R"({"kind": "golden"})";

// Cells 20 .. 127 by -37 positions, 60 .. 79 by 5 more: a part of each head, halves of pairs side by side.
void shift_keys(vidkv_store * keys) {
    const double angles[] = {1, .25, .0625, .015625, .00390625};
    const vidkv_rotation rotation = {2, 1, 5, 5, angles, 1.25f};
    for (const auto & [first, end, by] : {std::array{20, 128, -37}, {60, 80, 5}}) {
        for (int64_t cell = first; cell < end; ++cell) {
            int64_t left = 0, n_left = 0;
            check(vidkv_store_shift(keys, 0, &cell, &by, 1, &rotation, &left, &n_left));
            if (n_left > 0) throw Failure{"a cell did not move"};
        }
    }
}

// Two pages: the first sealed, the second open but for a case apart; some channels are large, some constant.
void write_golden(const Golden & golden, const fs::path & file) {
    vidkv_params params;
    check(vidkv_params_from_preset(golden.preset, &params));
    const Cache cache = make({1, kv_heads, golden.head_dim, cells, 1}, params);
    const size_t row = static_cast<size_t>(kv_heads * golden.head_dim);
    Numbers numbers;
    std::vector<float> k(tokens * row), v(tokens * row), q(64 * heads * static_cast<size_t>(golden.head_dim));
    for (size_t i = 0; i < k.size(); ++i) {
        const size_t channel = i % row;
        k[i] = channel == 5 ? 12.5f : numbers.next() * (channel % 7 == 3 ? 30.0f : 1.0f) + (channel % 5 == 1 ? 4.0f : 0.0f);
        v[i] = numbers.next() * (channel % 6 == 2 ? 5.0f : 0.5f);
        if (golden.still && i >= row) v[i] = v[channel] + 0.3f * v[i];
        if (golden.moving)
            v[i] += static_cast<float>(i / row % VIDKV_PAGE) / VIDKV_PAGE * (channel % 3 == 0 ? 4.0f : -2.0f);
    }
    for (float & x : q) x = numbers.next();
    const int64_t marked[] = {20, 21, 22, 40, 41, 60, 61, 62, 63, 64, 65, 66, 67, 100, 101, 127};
    if (params.protect > 0) check(vidkv_cache_protect(cache.get(), 0, marked, std::size(marked)));
    check(vidkv_cache_append(cache.get(), 0, 0, tokens, k.data(), v.data()));
    check(vidkv_cache_observe_queries(cache.get(), 0, 0, q.data(), 64, heads));
    check(vidkv_cache_seal(cache.get(), 1));
    if (golden.shifted) shift_keys(vidkv_cache_keys(cache.get(), 0));
    vidkv_file_writer * writer = nullptr;
    check(vidkv_file_create(file.string().c_str(), &params, &writer));
    const std::unique_ptr<vidkv_file_writer, decltype(&vidkv_file_abandon)> owner(writer, vidkv_file_abandon);
    check(vidkv_file_add_section(writer, "manifest", manifest, sizeof manifest - 1));
    check(vidkv_file_add_cache(writer, 0, cache.get(), 0));
    check(vidkv_file_finish(writer));
}

std::vector<uint8_t> read_bytes(const fs::path & file) {
    std::ifstream in(file, std::ios::binary);
    if (!in) throw Failure{"cannot open '" + file.string() + "'"};
    return {std::istreambuf_iterator<char>(in), {}};
}

void write_bytes(const fs::path & file, const std::vector<uint8_t> & bytes) {
    std::ofstream out(file, std::ios::binary);
    out.write(reinterpret_cast<const char *>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
    if (!out.flush()) throw Failure{"cannot write '" + file.string() + "'"};
}

// A golden file has the section, then keys and values of one layer.
enum Entry : size_t { section, keys, values };

void write_bad(const fs::path & good, const fs::path & folder) {
    using vidkv::test::ForgedFile;
    const std::vector<uint8_t> paper = read_bytes(good / "k2v2.vidkv"), trellis = read_bytes(good / "t2.2.vidkv");
    const std::vector<uint8_t> protects = read_bytes(good / "t1.65-stp0.2.vidkv");
    const std::vector<uint8_t> shifted = read_bytes(good / "t1.65-shifted.vidkv");
    write_bytes(folder / "cut.vidkv", {paper.begin(), paper.begin() + 3000});
    const auto flip = [&](const char * name, const std::vector<uint8_t> & from, auto where, uint8_t bits, bool sign) {
        ForgedFile file(from);
        file.bytes[where(file)] ^= bits;
        if (sign) file.sign();
        write_bytes(folder / (std::string(name) + ".vidkv"), file.bytes);
    };
    const auto at = [](size_t byte) { return [byte](const ForgedFile &) { return byte; }; };
    const auto in_page = [](Entry entry, size_t byte) {
        return [=](const ForgedFile & f) { return f.page_at(entry, 0) + byte; };
    };
    const auto from_end = [](Entry entry, size_t byte) {
        return [=](const ForgedFile & f) { return f.page_at(entry, 0) + f.page_entry(entry, 0).bytes - byte; };
    };
    const auto in_state = [](Entry entry, size_t byte) {
        return [=](const ForgedFile & f) { return f.state_at(entry) + byte; };
    };
    const auto from_state_end = [](Entry entry, size_t byte) {
        return [=](const ForgedFile & f) { return f.state_at(entry) + f.entry(entry).data.bytes - byte; };
    };
    const auto in_entry = [](Entry entry, size_t page, size_t byte) {
        return [=](const ForgedFile & f) { return f.page_entry_at(entry, page) + byte; };
    };
    flip("altered_header", paper, at(20), 1, false);
    flip(
        "altered_table", paper, [](const ForgedFile & f) { return f.entry_at(keys) + 50; }, 1, false);
    flip(
        "altered_section", paper, [](const ForgedFile & f) { return f.entry(section).data.at + 3; }, 1, false);
    flip("altered_state", paper, in_state(keys, 70), 1, false);
    flip("altered_page", paper, in_page(keys, 100), 1, false);
    flip(
        "altered_between", paper, [](const ForgedFile & f) { return f.entry(section).data.at + 30; }, 1, false);
    flip("version1", paper, at(7), '1' ^ '3', true);
    flip("version2", paper, at(7), '2' ^ '3', true);
    flip("version4", paper, at(7), '4' ^ '3', true); // of a release to come
    flip("forged_needs", paper, at(8), 16, true);
    flip("unannounced_bits", paper, in_state(keys, 39), 0x40, true); // 2.0, as the file has anyway
    flip("unannounced_mean", read_bytes(good / "t1.65-still.vidkv"), at(8), 1, true);
    flip("unannounced_direction", read_bytes(good / "t1.65-moving.vidkv"), at(8), 4, true);
    flip("forged_preset", paper, at(18), 0x40, true);
    flip(
        "forged_kind", paper, [](const ForgedFile & f) { return f.entry_at(keys) + 32; }, 2, true);
    flip(
        "forged_layer", paper, [](const ForgedFile & f) { return f.entry_at(keys) + 39; }, 0x80, true);
    flip(
        "forged_range", paper, [](const ForgedFile & f) { return f.entry_at(values) + 76; }, 1, true);
    flip(
        "forged_twice", paper, [](const ForgedFile & f) { return f.entry_at(values) + 40; }, 1, true);
    flip("forged_pages", paper, in_state(keys, 20), 1, true);
    flip("forged_writes", paper, in_state(keys, 31), 0x80, true);
    flip("forged_plan_number", paper, in_state(keys, 32), 1, true);
    flip(
        "forged_plan", paper,
        [](const ForgedFile & f) { return f.page_entry_at(keys, f.get<uint64_t>(f.state_at(keys) + 16)); }, 1, true);
    flip("forged_state", paper, in_entry(keys, 0, 22), 1, true);
    flip("forged_order", paper, in_entry(keys, 1, 0), 1, true);
    flip("forged_place", paper, in_entry(keys, 0, 14), 1, true);
    flip("forged_unaligned", paper, in_entry(keys, 1, 8), 1, true);
    flip("forged_size", paper, in_entry(keys, 0, 16), 1, true);
    flip("forged_last_write", paper, in_entry(values, 1, 31), 0x80, true);
    flip("forged_written", paper, in_entry(values, 1, 17), 1, true);
    flip("forged_code_start", trellis, from_end(keys, 2), 1, true);
    flip("forged_quad_code", trellis, from_end(keys, 6), 8, true);
    flip("forged_mask", protects, in_page(values, 0), 1, true);
    ForgedFile statistics(trellis);
    statistics.put(statistics.state_at(keys) + statistics.entry(keys).data.bytes - 4, 0x7fc00000u); // no number
    statistics.sign();
    write_bytes(folder / "forged_statistics.vidkv", statistics.bytes);
    flip("forged_shift", shifted, from_state_end(keys, 9), 0x10, true); // cell 60 moves in two ways
    flip("forged_gain", shifted, from_state_end(keys, 17), 0x80, true);
}

struct FileClose {
    void operator()(vidkv_file * file) const { vidkv_file_close(file); }
};

// What the file holds, up to the last cell of any store.
std::vector<uint8_t> rows_of(const fs::path & path) {
    vidkv_file * opened = nullptr;
    check(vidkv_file_open(path.string().c_str(), 0, &opened));
    const std::unique_ptr<vidkv_file, FileClose> file(opened);
    check(vidkv_file_verify(opened, 1));
    vidkv_file_info about;
    vidkv_file_get_info(opened, &about);
    int64_t count = 0;
    vidkv_file_store_info info;
    for (int64_t i = 0; i < about.stores; ++i) {
        check(vidkv_file_get_store(opened, i, &info));
        count = std::max(count, info.cells);
    }
    const Cache cache =
        make({about.layers, info.channels / info.head_dim, info.head_dim, count, about.sequences}, about.params);
    check(vidkv_cache_load(cache.get(), path.string().c_str()));
    std::vector<uint8_t> out;
    std::vector<uint16_t> rows(static_cast<size_t>(count * info.channels));
    for (int layer = 0; layer < about.layers; ++layer) {
        for (const vidkv_store * store : {vidkv_cache_keys(cache.get(), layer), vidkv_cache_values(cache.get(), layer)}) {
            for (int sequence = 0; sequence < about.sequences; ++sequence) {
                check(vidkv_store_read_f16(store, sequence, 0, count, rows.data()));
                const auto * bytes = reinterpret_cast<const uint8_t *>(rows.data());
                out.insert(out.end(), bytes, bytes + rows.size() * 2);
            }
        }
    }
    return out;
}

uint64_t fnv(const uint8_t * data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash;
}

std::map<std::string, uint64_t> hashes(const fs::path & good) {
    std::map<std::string, uint64_t> out;
    for (const Golden & golden : goldens) {
        const std::vector<uint8_t> rows = rows_of(good / (std::string(golden.name) + ".vidkv"));
        out[golden.name] = fnv(rows.data(), rows.size());
    }
    return out;
}

int run(const std::string & command, const fs::path & path, const fs::path & to) {
    if (command == "read") {
        const std::vector<uint8_t> rows = rows_of(path);
        std::cout.write(reinterpret_cast<const char *>(rows.data()), static_cast<std::streamsize>(rows.size()));
        return 0;
    }
    const fs::path good = path / "good";
    if (command == "forge") {
        write_bad(good, to);
        return 0;
    }
    if (command == "write") {
        fs::create_directories(good);
        for (const Golden & golden : goldens) write_golden(golden, good / (std::string(golden.name) + ".vidkv"));
        std::ofstream out(path / "rows.txt");
        for (const auto & [name, hash] : hashes(good)) out << name << " " << std::hex << hash << "\n";
        return 0;
    }
    std::ifstream in(path / "rows.txt");
    int wrong = 0;
    std::map<std::string, uint64_t> want;
    std::string name;
    for (uint64_t hash; in >> name >> std::hex >> hash;) want[name] = hash;
    for (const auto & [file, hash] : hashes(good)) {
        if (want[file] == hash) continue;
        std::cerr << file << ".vidkv holds other rows than it did when it was written: the format or a table changed\n";
        ++wrong;
    }
    return wrong != 0;
}

} // namespace

int main(int argc, char ** argv) {
    const std::string command = argc > 1 ? argv[1] : "";
    const bool known = command == "write" || command == "read" || command == "check" || command == "forge";
    if (!known || argc != (command == "forge" ? 4 : 3)) {
        std::cerr << "usage: vidkv_golden write FOLDER | forge FOLDER TO | read FILE | check FOLDER\n";
        return 2;
    }
    try {
        return run(command, argv[2], argc > 3 ? argv[3] : "");
    } catch (const Failure & failure) {
        std::cerr << "vidkv_golden: " << failure.line << "\n";
        return 1;
    }
}
