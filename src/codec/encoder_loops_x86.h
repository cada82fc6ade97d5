// EncoderLoops for vectors of x86; each table only where the machine supports it.
#pragma once

#include "codec/encoder_loops.h"

#if defined(__x86_64__) && defined(__GNUC__)
#define VIDKV_HAVE_ENCODER_LOOPS_X86 1

namespace vidkv {

extern const EncoderLoops avx2_encoder_loops, avx512_encoder_loops;
bool avx2_encoder_supported();
bool avx512_encoder_supported();

} // namespace vidkv

#endif
