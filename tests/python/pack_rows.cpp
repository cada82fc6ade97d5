// Packs rows as a C++ program does, for test_same_bits.py: pack_rows PRESET LAYERS KV_HEADS HEAD_DIM HEADS TOKENS IN OUT.
// IN: f32, for each layer keys [tokens][kv_heads][head_dim], values likewise, queries [tokens][heads][head_dim].
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <vector>

#include "vidkv/vidkv.hpp"

int main(int argc, char ** argv) {
    if (argc != 9) return 2;
    const int layers = std::atoi(argv[2]), kv_heads = std::atoi(argv[3]), head_dim = std::atoi(argv[4]),
              heads = std::atoi(argv[5]);
    const int64_t tokens = std::atoll(argv[6]);
    std::ifstream in(argv[7], std::ios::binary);
    const auto read = [&](int n) {
        std::vector<float> rows(static_cast<size_t>(tokens) * n * head_dim);
        in.read(reinterpret_cast<char *>(rows.data()), static_cast<std::streamsize>(rows.size() * sizeof(float)));
        return rows;
    };
    try {
        vidkv::CacheHandle cache({layers, kv_heads, head_dim, 1024, 1}, vidkv::preset(argv[1]));
        for (int layer = 0; layer < layers; ++layer) {
            const std::vector<float> keys = read(kv_heads), values = read(kv_heads), queries = read(heads);
            if (!in) return 3;
            cache.append(layer, 0, tokens, keys.data(), values.data());
            vidkv::check(vidkv_cache_observe_queries(cache.get(), layer, 0, queries.data(), tokens, heads));
        }
        cache.seal(1);
        cache.save(argv[8]);
    } catch (const vidkv::Error & error) {
        std::fprintf(stderr, "pack_rows: %s\n", error.what());
        return 1;
    }
    return 0;
}
