#include "line_editor.h"

#include <cerrno>
#include <clocale>
#include <cstdio>
#include <cwchar>
#include <iostream>

#include <histedit.h>
#include <unistd.h>

#include "interrupt.h"

namespace vidkv::cli {

namespace {

constexpr int REMEMBERED_LINES = 500;
constexpr char CTRL_D = 4;

// One character of the terminal: 1; 0 at its end, and on Ctrl-C, which libedit would read on after.
int read_character(EditLine *, wchar_t * out) {
    std::mbstate_t state = {};
    for (char byte;;) {
        const ssize_t got = ::read(STDIN_FILENO, &byte, 1);
        if (got < 0 && errno == EINTR && !interrupted()) continue; // the window was resized
        if (got <= 0) return 0;
        // Typed while an answer was written, it is the terminal's own end of input, which raw mode reads as 0.
        if (byte == 0) byte = CTRL_D;
        const size_t used = std::mbrtowc(out, &byte, 1, &state);
        if (used != static_cast<size_t>(-2)) return used == static_cast<size_t>(-1) ? 0 : 1; // -2: more bytes of it follow
    }
}

} // namespace

struct LineEditor::Terminal {
    explicit Terminal(std::string text)
        : prompt(std::move(text)), editor(el_init("vidkv", stdin, stderr, stderr)), past(history_init()) {
        std::setlocale(LC_CTYPE, ""); // letters beyond ASCII; numbers stay as in C
        HistEvent event;
        ::history(past, &event, H_SETSIZE, REMEMBERED_LINES);
        ::history(past, &event, H_SETUNIQUE, 1);
        el_set(editor, EL_CLIENTDATA, this);
        el_set(
            editor, EL_PROMPT, +[](EditLine * asking) {
                Terminal * self = nullptr;
                el_get(asking, EL_CLIENTDATA, &self);
                return self->prompt.data();
            });
        el_set(editor, EL_EDITOR, "emacs");
        el_set(editor, EL_HIST, ::history, past);
        el_set(editor, EL_GETCFN, read_character);
        el_source(editor, nullptr); // ~/.editrc
    }
    ~Terminal() {
        el_end(editor);
        history_end(past);
    }
    Terminal(const Terminal &) = delete;
    Terminal & operator=(const Terminal &) = delete;

    bool read(std::string & line) const {
        // Raw mode before the prompt: libedit enters it after, and a key typed between is the terminal's.
        el_set(editor, EL_PREP_TERM, 1);
        int length = 0;
        const char * text = el_gets(editor, &length);
        check_interrupt();
        if (!text || length <= 0) return false;
        line.assign(text, static_cast<size_t>(length));
        while (!line.empty() && line.back() == '\n') line.pop_back();
        HistEvent event;
        if (!line.empty()) ::history(past, &event, H_ENTER, line.c_str());
        return true;
    }

    std::string prompt;
    EditLine * editor;
    History * past;
};

LineEditor::LineEditor(std::string prompt) {
    if (isatty(STDIN_FILENO) && isatty(STDERR_FILENO)) terminal_ = std::make_unique<Terminal>(std::move(prompt));
}

LineEditor::~LineEditor() = default;

bool LineEditor::read(std::string & line) {
    if (terminal_) return terminal_->read(line);
    const bool got = static_cast<bool>(std::getline(std::cin, line));
    check_interrupt();
    return got;
}

} // namespace vidkv::cli
