#include "help.h"

#include <algorithm>
#include <numeric>
#include <sstream>
#include <vector>

namespace vidkv::cli {

namespace {

constexpr size_t COLUMN = 28, WIDTH = 100; // where descriptions begin and end

// Words of `text` in lines that fit behind COLUMN.
std::string wrapped(const std::string & text) {
    std::istringstream words(text);
    std::string lines, word;
    size_t at = COLUMN;
    while (words >> word) {
        if (at > COLUMN && at + 1 + word.size() > WIDTH) {
            lines += "\n" + std::string(COLUMN, ' ');
            at = COLUMN;
        }
        if (at > COLUMN) lines += ' ';
        lines += word;
        at += word.size() + 1;
    }
    return lines;
}

std::string row(const std::string & name, const std::string & description) {
    const std::string gap =
        name.size() + 1 < COLUMN ? std::string(COLUMN - name.size(), ' ') : "\n" + std::string(COLUMN, ' ');
    return description.empty() ? name + "\n" : name + gap + wrapped(description) + "\n";
}

// What CLI11 calls by the C++ type, by what is meant.
std::string kind(const std::string & type) {
    if (type == "TEXT") return "S";
    return type == "INT" || type == "UINT" || type == "FLOAT" ? "N" : type;
}

class HelpFormatter : public CLI::Formatter {
  public:
    std::string make_option(const CLI::Option * option, bool positional) const override {
        std::string description = option->get_description();
        if (!option->get_envname().empty()) description += " [" + option->get_envname() + "]";
        return row("  " + make_option_name(option, positional) + make_option_opts(option), description);
    }

    std::string make_option_opts(const CLI::Option * option) const override {
        const std::string type = kind(option->get_type_name().substr(0, option->get_type_name().find(':')));
        const bool shown = option->get_type_size() != 0 && !type.empty() && !option->get_positional();
        return (shown ? " " + type : "") + (option->get_required() && !option->get_positional() ? " (required)" : "");
    }

    std::string make_subcommand(const CLI::App * command) const override {
        return row("  " + command->get_name(), command->get_description());
    }
};

// How many letters must be added, dropped, exchanged or swapped with their neighbour.
size_t edits(const std::string & a, const std::string & b) {
    std::vector<std::vector<size_t>> d(a.size() + 1, std::vector<size_t>(b.size() + 1));
    for (size_t i = 0; i <= a.size(); ++i) d[i][0] = i;
    std::iota(d[0].begin(), d[0].end(), size_t(0));
    for (size_t i = 1; i <= a.size(); ++i) {
        for (size_t j = 1; j <= b.size(); ++j) {
            d[i][j] = std::min({d[i - 1][j] + 1, d[i][j - 1] + 1, d[i - 1][j - 1] + (a[i - 1] != b[j - 1])});
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                d[i][j] = std::min(d[i][j], d[i - 2][j - 2] + 1);
        }
    }
    return d[a.size()][b.size()];
}

std::vector<const CLI::App *> all_commands(const CLI::App & app) {
    return app.get_subcommands([](const CLI::App *) { return true; });
}

const CLI::App * command_named(const CLI::App & app, const std::string & name) {
    for (const CLI::App * command : all_commands(app))
        if (command->get_name() == name) return command;
    return nullptr;
}

std::string complaint(const CLI::App & app, const std::string & word) {
    std::string names, nearest;
    size_t fewest = std::max<size_t>(1, word.size() / 2);
    for (const CLI::App * command : all_commands(app)) {
        names += (names.empty() ? "" : ", ") + command->get_name();
        if (const size_t n = edits(word, command->get_name()); n <= fewest) {
            fewest = n - (n > 0);
            nearest = command->get_name();
        }
    }
    return "no command '" + word +
           "': " + (nearest.empty() ? "the commands are " + names : "did you mean " + nearest + "?");
}

} // namespace

std::shared_ptr<CLI::FormatterBase> help_formatter() { return std::make_shared<HelpFormatter>(); }

std::string unknown_command(const CLI::App & app, int argc, char ** argv) {
    const CLI::App * at = &app;
    for (int i = 1; i < argc && at->get_require_subcommand_min() > 0; ++i) {
        const std::string word = argv[i];
        if (word.starts_with("-")) return "";
        const CLI::App * next = command_named(*at, word);
        if (!next) return complaint(*at, word);
        at = next;
    }
    return "";
}

} // namespace vidkv::cli
