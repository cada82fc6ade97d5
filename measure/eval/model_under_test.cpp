#include "eval/model_under_test.h"

#include "eval/exact_weights.h"

namespace vidkv::cli {

ModelUnderTest::ModelUnderTest(const std::string & file, bool written_out, int threads, Progress & progress,
                               int64_t most_as_f16) {
    std::unique_ptr<ExactWeights> weights;
    ModelOptions chosen;
    chosen.files.text = file;
    chosen.threads = threads;
    if (written_out) {
        progress.show("writing the weights out", 0, 0, "");
        weights = std::make_unique<ExactWeights>(file, most_as_f16);
        chosen.files.text = weights->path();
        exact = weights->copied();
        too_many = weights->too_many();
    }
    model = std::make_unique<Model>(chosen, parse_kv("f16")); // keeps the copy's pages after its file is gone
}

} // namespace vidkv::cli
