// The trellis search of codec/viterbi.h compiled for AVX2.
#pragma once

#include "codec/trellis.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define VIDKV_HAVE_VITERBI_AVX2 1

namespace vidkv {

// x: [steps][samples] in coding order; came: room for the search; path: the state of every coding step.
void search_trellis_avx2(const TrellisTable & table, int steps, const float * x, uint8_t * came, uint8_t * path);

} // namespace vidkv

#endif
