// Ctrl-C: the first one asks the command to stop at the next safe place, the second one ends it at once.
#pragma once

namespace vidkv::cli {

void catch_interrupts();
bool interrupted();
// Throws Interrupted if Ctrl-C has been pressed.
void check_interrupt();
// For llama.cpp's abort callback.
bool interrupt_callback(void *);

} // namespace vidkv::cli
