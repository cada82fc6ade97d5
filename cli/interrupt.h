// Ctrl-C and SIGTERM. The first signal asks the command to stop at the next safe place; where none comes within a moment,
// and on a second signal, the command ends at once. What it must not leave behind is named here: files half written, and
// child programs.
#pragma once

#include <string>

#include <sys/types.h>

namespace vidkv::cli {

void catch_interrupts();
bool interrupted();
// Throws Interrupted if a signal has come.
void check_interrupt();
// For llama.cpp's abort callbacks, and for its callbacks that tell how far loading is (which go on while they are told
// true).
bool interrupt_callback(void *);
bool go_on_loading(float, void *);

// A file that is removed unless it has been renamed, whatever ends the command.
class UnfinishedFile {
  public:
    explicit UnfinishedFile(std::string path);
    ~UnfinishedFile();
    UnfinishedFile(const UnfinishedFile &) = delete;
    UnfinishedFile & operator=(const UnfinishedFile &) = delete;

    const std::string & path() const { return path_; }

  private:
    std::string path_;
};

// A child that is killed if a signal ends the command.
class Child {
  public:
    explicit Child(pid_t child = -1);
    ~Child();
    Child(const Child &) = delete;
    Child & operator=(const Child &) = delete;

  private:
    pid_t child_;
};

} // namespace vidkv::cli
