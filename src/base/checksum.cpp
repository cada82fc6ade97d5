#include "base/checksum.h"

#define XXH_INLINE_ALL // the library itself is not needed
#include <xxhash.h>

namespace vidkv {

struct Checksum::State {
    XXH3_state_t xxh;
};

uint64_t checksum(const void * data, size_t size) { return XXH3_64bits(data, size); }

Checksum::Checksum() : state_(std::make_unique<State>()) { reset(); }
Checksum::~Checksum() = default;
void Checksum::reset() { XXH3_64bits_reset(&state_->xxh); }
void Checksum::add(const void * data, size_t size) { XXH3_64bits_update(&state_->xxh, data, size); }
uint64_t Checksum::value() const { return XXH3_64bits_digest(&state_->xxh); }

} // namespace vidkv
