// A C++ program that asks the installed library something.
#include <cstdio>
#include <vidkv/vidkv.hpp>

int main() {
    const vidkv_params params = vidkv::preset("t1.65");
    std::printf("%.3f\n", vidkv_true_bits(&params, VIDKV_KEYS, 128));
}
