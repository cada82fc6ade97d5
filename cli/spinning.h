// How long threads of the OpenMP team wait in a loop for each other.
#pragma once

namespace vidkv::cli {

// libgomp waits milliseconds in a loop at every barrier: beside other jobs, whole time slices. It reads its settings before
// main, so this starts the program again with a bound, or without such loops where other tasks want the cores, unless the user has
// set one. Returns if there is nothing to do or it fails.
void bound_spinning(char ** argv);

} // namespace vidkv::cli
