// Runs a fuzz target without a fuzzer: first the inputs in a folder, then random ones. usage: REPLAY FOLDER COUNT [SEED]
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size);

int main(int argc, char ** argv) {
    if (argc < 3) {
        std::fprintf(stderr, "usage: %s FOLDER COUNT [SEED]\n", argv[0]);
        return 2;
    }
    int ran = 0;
    if (std::filesystem::exists(argv[1])) {
        for (const auto & entry : std::filesystem::directory_iterator(argv[1])) {
            std::ifstream file(entry.path(), std::ios::binary);
            const std::vector<char> input{std::istreambuf_iterator<char>(file), {}};
            std::printf("%s\n", entry.path().filename().c_str());
            LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t *>(input.data()), input.size());
            ++ran;
        }
    }
    const int count = std::atoi(argv[2]);
    const uint64_t seed = argc > 3 ? std::strtoull(argv[3], nullptr, 10) : 1;
    for (int i = 0; i < count; ++i, ++ran) {
        std::mt19937_64 random(seed + static_cast<uint64_t>(i));
        std::vector<uint8_t> input(8 + random() % 64);
        for (uint8_t & byte : input) byte = static_cast<uint8_t>(random());
        std::printf("seed %llu\n", static_cast<unsigned long long>(seed) + static_cast<unsigned long long>(i));
        std::fflush(stdout);
        LLVMFuzzerTestOneInput(input.data(), input.size());
    }
    std::printf("%d inputs\n", ran);
    return 0;
}
