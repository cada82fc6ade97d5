// vidkv._core.Blocks: packed pages in the memory of a host that addresses them by number (vidkv/blocks.h).
#pragma once

#include <nanobind/nanobind.h>

namespace vidkv::python {

void bind_blocks(nanobind::module_ & m);

} // namespace vidkv::python
