// The quads of packed keys, sorted by code, so that products change codes seldom.
#pragma once

#include "kernels/kernels.h"

namespace vidkv {

constexpr int code_count = 9; // that have bits

// By the order in which the runs of a page stand: large levels last.
constexpr QuadCode code_order[code_count] = {QuadCode::trellis1_5, QuadCode::trellis1, QuadCode::trellis2,
                                             QuadCode::trellis3,   QuadCode::uniform1, QuadCode::uniform2,
                                             QuadCode::uniform4,   QuadCode::uniform5, QuadCode::uniform6};

constexpr int code_unit = 32; // a quad of a page takes a multiple of so many bytes

// By QuadCode, zeros for what is none: for table look-ups.
struct CodeGrids {
    alignas(64) float step[16];     // of a level, in units of the channel's scale
    alignas(16) uint8_t offset[16]; // twice the middle of the levels: the largest one
    alignas(16) uint8_t units[16];  // code_units of a quad
};
const CodeGrids & code_grids();

// Kernels::sort_quads for any machine.
uint32_t sort_quads_plainly(const uint8_t * codes, int first, int end, uint32_t packed, const QuadOrder & order);

} // namespace vidkv
