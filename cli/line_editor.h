// Lines from a person, with editing and history where standard input is a terminal; from a pipe as they come.
#pragma once

#include <memory>
#include <string>

namespace vidkv::cli {

class LineEditor {
  public:
    // The prompt goes to standard error, and only to a terminal.
    explicit LineEditor(std::string prompt);
    ~LineEditor();

    // The next line without its end; false at the end of the input. Throws Interrupted on Ctrl-C.
    bool read(std::string & line);
    bool at_terminal() const { return terminal_ != nullptr; }

  private:
    struct Terminal;
    std::unique_ptr<Terminal> terminal_;
};

} // namespace vidkv::cli
