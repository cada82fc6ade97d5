// Writes the golden files on purpose, and reads saved caches for the tests of the format.
//
//   vidkv_golden write FOLDER          the golden files, good and bad, and rows.txt, what the good ones hold
//   vidkv_golden read FILE             the f16 rows, layer by layer: keys, then values, sequence by sequence; fails for a bad file
//   vidkv_golden check FOLDER          holds the good files against rows.txt
//
// The files are the format's promise: if `check` fails, files that people saved can no longer be read. Rewrite them only
// with a new version.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "vidkv/vidkv.h"

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
};
constexpr Golden goldens[] = {{"k2v2", "k2v2", 16},
                              {"k1.5v1.58", "k1.5v1.58", 24},
                              {"k1.5v1.58-g64-stp0.2", "k1.5v1.58-g64-stp0.2", 24},
                              {"k1.5v1.58-g128", "k1.5v1.58-g128", 16},
                              {"t2.2", "t2.2", 16},
                              {"t1.65-stp0.2", "t1.65-stp0.2", 24},
                              {"t1.0", "t1.0", 16},
                              {"kt4vt3", "kt4vt3", 24},
                              {"k16vt1", "k16vt1", 16}};
constexpr int kv_heads = 2, heads = 4;
constexpr int64_t tokens = 256, cells = 300;

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
    }
    for (float & x : q) x = numbers.next();
    const int64_t marked[] = {20, 21, 22, 40, 41, 60, 61, 62, 63, 64, 65, 66, 67, 100, 101, 127};
    if (params.protect > 0) check(vidkv_cache_protect(cache.get(), 0, marked, std::size(marked)));
    check(vidkv_cache_append(cache.get(), 0, 0, tokens, k.data(), v.data()));
    check(vidkv_cache_observe_queries(cache.get(), 0, 0, q.data(), 64, heads));
    check(vidkv_cache_seal(cache.get(), 1));
    check(vidkv_cache_save(cache.get(), file.string().c_str()));
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

uint64_t fnv(const uint8_t * data, size_t size) {
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < size; ++i) hash = (hash ^ data[i]) * 0x100000001b3u;
    return hash;
}

constexpr size_t header_bytes = 64;

// docs/format.md, "Saved cache", with one layer and one sequence.
struct Places {
    static constexpr size_t length = header_bytes, writes = length + 8 + 5, plans = writes + 9, order = plans + 4;
};

template <typename T> T field(const std::vector<uint8_t> & file, size_t at) {
    T value;
    std::memcpy(&value, file.data() + at, sizeof value);
    return value;
}

void write_bad(const fs::path & good, const fs::path & folder) {
    const std::vector<uint8_t> paper = read_bytes(good / "k2v2.vidkv"), trellis = read_bytes(good / "t2.2.vidkv");
    const std::vector<uint8_t> protects = read_bytes(good / "t1.65-stp0.2.vidkv");
    write_bytes(folder / "cut.vidkv", {paper.begin(), paper.begin() + 3000});
    std::vector<uint8_t> file = paper;
    file[1000] ^= 1;
    write_bytes(folder / "altered.vidkv", file);
    const auto forge = [&](const char * name, const std::vector<uint8_t> & from, size_t at, uint8_t flip) {
        std::vector<uint8_t> forged = from;
        forged[at] ^= flip;
        const uint64_t hash = fnv(forged.data(), forged.size() - 8);
        std::memcpy(&forged[forged.size() - 8], &hash, 8);
        write_bytes(folder / (std::string(name) + ".vidkv"), forged);
    };
    forge("version1", paper, 7, '1' ^ '2');
    forge("version3", paper, 7, '3' ^ '2'); // of a release to come
    forge("forged_length", paper, Places::length + 7, 0x80);
    forge("forged_writes", paper, Places::writes + 7, 0x80);
    forge("forged_plan", paper, Places::order, 1);
    // The first key page of t2.2: after plans, statistics and sinks; its code starts stand at its end.
    const size_t dim = 16, statistics = 24 + 4 * kv_heads * (dim * (dim + 1) / 2 + dim), sinks = 1 + 4 * 2 * kv_heads * dim;
    const size_t page = Places::order + kv_heads * 4 * dim + 1 + statistics + sinks, data = page + 1 + 16 + 8 + 16 + 4;
    const uint32_t size = field<uint32_t>(trellis, data - 4);
    forge("forged_state", trellis, page, 1);
    forge("forged_code_start", trellis, data + size - 2, 1);
    forge("forged_quad_code", trellis, data + size - 4 - 2, 8);
    // The mask of the value page: found from the back, where the open page of the values ends the file.
    const size_t open = 1 + 16 + 8 + 16 + 4 + 256 * kv_heads * 24, empty = 17, protected_dim = 24;
    const size_t end = protects.size() - 8 - empty - open;
    vidkv_params params;
    check(vidkv_params_from_preset("t1.65-stp0.2", &params));
    const size_t quad2 = protected_dim, quad15 = 24, units = 4; // 16 tokens are marked
    const size_t bytes = 16 + kv_heads * (units * quad2 + (32 - units) * quad15 + 128);
    if (field<uint32_t>(protects, end - bytes - 4) != bytes) throw Failure{"the value page is not where it is looked for"};
    forge("forged_mask", protects, end - bytes, 1);
}

Cache load(const fs::path & file) {
    const std::vector<uint8_t> bytes = read_bytes(file);
    if (bytes.size() < header_bytes) throw Failure{"'" + file.string() + "' is cut off"};
    const vidkv_params params{field<float>(bytes, 8),    field<float>(bytes, 12),   field<int32_t>(bytes, 16),
                              field<int32_t>(bytes, 20), field<int32_t>(bytes, 24), field<int32_t>(bytes, 28),
                              field<int32_t>(bytes, 32), field<float>(bytes, 36)};
    Cache cache = make({field<int32_t>(bytes, 40), field<int32_t>(bytes, 44), field<int32_t>(bytes, 48),
                        field<int64_t>(bytes, 56), field<int32_t>(bytes, 52)},
                       params);
    check(vidkv_cache_load(cache.get(), file.string().c_str()));
    return cache;
}

std::vector<uint8_t> rows_of(const fs::path & file) {
    const Cache cache = load(file);
    const std::vector<uint8_t> header = read_bytes(file);
    const int layers = field<int32_t>(header, 40), sequences = field<int32_t>(header, 52);
    const size_t channels =
        static_cast<size_t>(field<int32_t>(header, 44)) * static_cast<size_t>(field<int32_t>(header, 48));
    const int64_t count = field<int64_t>(header, 56);
    std::vector<uint8_t> out;
    std::vector<uint16_t> rows(static_cast<size_t>(count) * channels);
    for (int layer = 0; layer < layers; ++layer) {
        for (const vidkv_store * store : {vidkv_cache_keys(cache.get(), layer), vidkv_cache_values(cache.get(), layer)}) {
            for (int sequence = 0; sequence < sequences; ++sequence) {
                check(vidkv_store_read_f16(store, sequence, 0, count, rows.data()));
                const auto * bytes = reinterpret_cast<const uint8_t *>(rows.data());
                out.insert(out.end(), bytes, bytes + rows.size() * 2);
            }
        }
    }
    return out;
}

std::map<std::string, uint64_t> hashes(const fs::path & good) {
    std::map<std::string, uint64_t> out;
    for (const Golden & golden : goldens) {
        const std::vector<uint8_t> rows = rows_of(good / (std::string(golden.name) + ".vidkv"));
        out[golden.name] = fnv(rows.data(), rows.size());
    }
    return out;
}

int run(const std::string & command, const fs::path & path) {
    if (command == "read") {
        const std::vector<uint8_t> rows = rows_of(path);
        std::cout.write(reinterpret_cast<const char *>(rows.data()), static_cast<std::streamsize>(rows.size()));
        return 0;
    }
    const fs::path good = path / "good", bad = path / "bad";
    if (command == "write") {
        fs::create_directories(good);
        fs::create_directories(bad);
        for (const Golden & golden : goldens) write_golden(golden, good / (std::string(golden.name) + ".vidkv"));
        write_bad(good, bad);
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
    const std::string command = argc == 3 ? argv[1] : "";
    if (command != "write" && command != "read" && command != "check") {
        std::cerr << "usage: vidkv_golden write FOLDER | read FILE | check FOLDER\n";
        return 2;
    }
    try {
        return run(command, argv[2]);
    } catch (const Failure & failure) {
        std::cerr << "vidkv_golden: " << failure.line << "\n";
        return 1;
    }
}
