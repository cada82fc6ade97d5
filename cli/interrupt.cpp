#include "interrupt.h"

#include <csignal>
#include <unistd.h>

#include "error.h"

namespace vidkv::cli {

namespace {

volatile std::sig_atomic_t pressed = 0;

void on_interrupt(int) {
    if (pressed) _exit(EXIT_INTERRUPTED);
    pressed = 1;
}

} // namespace

void catch_interrupts() {
    struct sigaction action = {};
    action.sa_handler = on_interrupt; // without SA_RESTART, so that a blocked read returns
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
    std::signal(SIGXFSZ, SIG_IGN); // a file size limit is then an error of write(), as a full disk is
}

bool interrupted() { return pressed != 0; }

void check_interrupt() {
    if (interrupted()) throw Interrupted();
}

bool interrupt_callback(void *) { return interrupted(); }

} // namespace vidkv::cli
