// What llama.cpp, ggml and libmtmd log: kept silent, but the last error is remembered to explain a failure.
#pragma once

#include <string>

namespace vidkv::cli {

// Takes over all three loggers. verbose: everything also goes to standard error.
void capture_logs(bool verbose);
void forget_logged_error();
// The last error line since forget_logged_error(), without its function name; "" if there was none.
std::string logged_error();

} // namespace vidkv::cli
