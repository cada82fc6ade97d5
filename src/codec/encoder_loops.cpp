#include "codec/encoder_loops.h"

#include "codec/encoder_loops.inc"
#include "codec/encoder_loops_x86.h"
#include "codec/viterbi.h"

namespace vidkv {

namespace {

const EncoderLoops & baseline_loops() {
    static const EncoderLoops loops = make_loops("baseline", search_trellis);
    return loops;
}

} // namespace

const std::vector<const EncoderLoops *> & supported_encoder_loops() {
    static const std::vector<const EncoderLoops *> supported = [] {
        std::vector<const EncoderLoops *> all = {&baseline_loops()};
#if VIDKV_HAVE_ENCODER_LOOPS_X86
        if (avx2_encoder_supported()) all.push_back(&avx2_encoder_loops);
        if (avx512_encoder_supported()) all.push_back(&avx512_encoder_loops);
#endif
        return all;
    }();
    return supported;
}

const EncoderLoops & encoder_loops() {
    static const EncoderLoops & best = *supported_encoder_loops().back();
    return best;
}

} // namespace vidkv
