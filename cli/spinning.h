// How long threads of the OpenMP team wait in a loop for each other.
#pragma once

namespace vidkv::cli {

// libgomp waits milliseconds in a loop at every barrier: beside other jobs, whole time slices. It reads its settings when it
// is loaded, so a bound is set before any library is set up: few turns, or none where other tasks want the cores, unless the user has
// set one. This gives back what that took the place of; where there was no place, it starts the program again with the bound. Returns
// if there is nothing to do or it fails.
void bound_spinning(char ** argv);

} // namespace vidkv::cli
