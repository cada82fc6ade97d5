// Five ternary digits in a byte.
#pragma once

#include <cstdint>

namespace vidkv {

// The five digits (each 0, 1 or 2; first one most significant) make v = 0..242, kept as the fixed-point fraction
// ceil(256 v / 243). Multiplying by 3 then pushes the digits out one by one: the carry past 8 bits is the next digit.
inline uint8_t pack_trits(const uint8_t digits[5]) {
    unsigned v = 0;
    for (int i = 0; i < 5; ++i) v = v * 3 + digits[i];
    return static_cast<uint8_t>((v * 256 + 242) / 243);
}

inline void unpack_trits(uint8_t packed, uint8_t digits[5]) {
    unsigned fraction = packed;
    for (int i = 0; i < 5; ++i) {
        fraction *= 3;
        digits[i] = static_cast<uint8_t>(fraction >> 8);
        fraction &= 255;
    }
}

} // namespace vidkv
