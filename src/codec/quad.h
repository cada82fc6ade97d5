// Packed levels of four lanes: the one place that knows how codes lie in bytes. docs/format.md, "Quads".
#pragma once

#include <cstddef>
#include <cstdint>

namespace vidkv {

// A quad is `rows` x 4 levels: four channels of a page's 128 tokens (keys), or four tokens of a head's channels (values).
// Levels are small whole numbers; what they mean is up to a scale and an offset (see level_grid).
enum class QuadCode : uint8_t {
    none = 0,     // no bits: nothing is read
    trellis1 = 1, // 8-bit state, 1 bit per level
    trellis2 = 2, // 2 bits per level
    trellis3 = 3, // 3 bits per level
    uniform4 = 4, // plain numbers of 4, 5, 6 bits
    uniform5 = 5,
    uniform6 = 6,
    trellis1_5 = 7, // 3 bits for two levels
    uniform1 = 8,   // plain numbers of 1, 2 bits
    uniform2 = 9
};

// Bytes of a quad: rows is a multiple of 8.
size_t quad_bytes(QuadCode code, int rows);

// levels: [rows][4]. The specification of unpacking; kernels must give the same numbers.
void unpack_quad(QuadCode code, const uint8_t * packed, int rows, uint8_t * levels);

// Plain numbers (uniform codes) into bytes; bits above the code's width must be 0.
void pack_uniform(QuadCode code, const uint8_t * levels, int rows, uint8_t * packed);

// A level l stands for (l - offset) * step in units of the scale: unit variance for what the codes were made for.
struct LevelGrid {
    float step, offset;
};
LevelGrid level_grid(QuadCode code);

// The largest level of a code: 15 for trellis codes.
int largest_level(QuadCode code);

} // namespace vidkv
