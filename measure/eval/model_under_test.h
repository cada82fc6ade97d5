// The text model of a measurement, its cache in the plug-in.
#pragma once

#include <memory>
#include <string>

#include "engine/model.h"
#include "progress.h"

namespace vidkv::cli {

struct ModelUnderTest {
    std::unique_ptr<Model> model;
    bool exact = false;    // its quantized weights are written out
    bool too_many = false; // they are not: they are too many

    // written_out: if the model is small enough (ExactWeights).
    ModelUnderTest(const std::string & file, bool written_out, int threads, Progress & progress, int64_t most_as_f16 = 0);
};

} // namespace vidkv::cli
