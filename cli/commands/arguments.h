// Which arguments of ask are videos, and which are questions.
#pragma once

#include <string>
#include <vector>

#include "commands/watch.h"

namespace vidkv::cli {

// The command line with each question after `--` named: `--question=...`.
std::vector<std::string> name_questions(std::vector<std::string> arguments);

// Moves what is a question from options.videos (all arguments without a name) to options.questions. Throws UsageError if
// either is missing, Error if an argument is the name of a file that is not there.
void sort_arguments(AskOptions & options);

} // namespace vidkv::cli
