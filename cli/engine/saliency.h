// Which visual tokens a question is about (arXiv 2503.16257, section 3.3): the mean over the question's tokens of the dot
// product of their input embeddings with the visual token's. Known before the prefill.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/encode.h"
#include "engine/model.h"

namespace vidkv::cli {

// The cells of the `share` of visual tokens that matter most to the questions taken together, in rising order. Cells are
// those that Session::prefill fills. Throws Error if the model's embeddings cannot be read.
std::vector<int64_t> salient_cells(const Model & model, const EncodedVideo & video,
                                   const std::vector<std::string> & questions, double share);

} // namespace vidkv::cli
