#include "eval/exercises.h"

#include <array>

#include "eval/made_up.h"

namespace vidkv::cli {

namespace {

constexpr const char * ALONE = " Answer with the number alone.";
constexpr const char * STEPS = " Write down the calculation with its numbers, then the result.";
constexpr const char * NAMES_ALONE = " Answer with the names alone, separated by commas.";

std::string text(int number) { return std::to_string(number); }

// Lines: what stands in the file, without the end of the last line.
Fact exercise(const char * kind, std::string lines, std::string question, std::string answer, Compared compared) {
    while (lines.ends_with('\n')) lines.pop_back();
    return {kind, std::move(lines), std::move(question), std::move(answer), 0, compared};
}

Fact called_function(Dice & dice, Names & names) {
    const std::string name = "price_of_" + names.next('_');
    const int times = dice.from_to(3, 9), more = dice.from_to(11, 49), x = dice.from_to(4, 12);
    return exercise("code",
                    "def " + name + "(count):\n    total = count * " + text(times) + "\n    return total + " + text(more) +
                        "\n",
                    "What does " + name + "(" + text(x) + ") of the file return?" + STEPS, text(x * times + more),
                    Compared::last_number);
}

Fact list_of_stops(Dice & dice, Names & names) {
    const std::string line = names.next('-');
    std::string stops;
    for (int i = dice.from_to(6, 9); i > 0; --i) stops += names.next('-') + (i > 1 ? ", " : "");
    return exercise("list", "Stops of the line " + line + ": " + stops,
                    "Which stops does the line " + line + " have, by the file, in their order?" + NAMES_ALONE, stops,
                    Compared::names);
}

Fact order_total(Dice & dice, Names & names) {
    const std::string order = names.next('-');
    const int count = dice.from_to(3, 9), price = dice.from_to(11, 39), shipping = dice.from_to(5, 20);
    return exercise("arithmetic",
                    "Order " + order + ": " + text(count) + " lamps at " + text(price) + " euros each, shipping " +
                        text(shipping) + " euros",
                    "In the file, how many euros does the order " + order + " cost in total, with shipping?" + STEPS,
                    text(count * price + shipping), Compared::last_number);
}

Fact table_to_copy(Dice & dice, Names & names) {
    const std::string table = names.next('-');
    std::string rows;
    for (int i = 0; i < 28; ++i) rows += names.next('-') + "," + text(dice.from_to(1000, 9999)) + "\n";
    return exercise("copy", "# the CSV table " + table + "\nname,count\n" + rows,
                    "Write down the CSV table " + table + " of the file, unchanged and complete, in a code block.", rows,
                    Compared::words);
}

Fact nested_setting(Dice & dice, Names & names) {
    const std::string name = names.next('_');
    const int retries = dice.from_to(100, 999);
    return exercise("code",
                    "settings[\"" + name + R"("] = {"timeout": )" + text(dice.from_to(100, 999)) +
                        ", \"retries\": " + text(retries) + ", \"depth\": " + text(dice.from_to(100, 999)) + "}",
                    "What is settings[\"" + name + R"("]["retries"] in the file?)" + ALONE, text(retries),
                    Compared::last_number);
}

Fact services_that_are_down(Dice & dice, Names & names) {
    const std::string host = names.next('-');
    std::string lines = "Services on the host " + host + ":\n", down;
    for (int i = 0; i < 8; ++i) {
        const std::string service = names.next('-');
        const bool up = i % 4 == 3 || (i % 4 != 1 && dice.below(2) == 0); // two are down at least, two up
        lines += "  " + service + " is " + (up ? "up" : "down") + "\n";
        if (!up) down += (down.empty() ? "" : ", ") + service;
    }
    return exercise("list", lines,
                    "Which services on the host " + host + " are down, by the file, in their order?" + NAMES_ALONE, down,
                    Compared::names);
}

Fact growth(Dice & dice, Names & names) {
    const std::string counter = names.next('-');
    const int may = dice.from_to(1000, 4999), grown = dice.from_to(101, 899);
    return exercise("arithmetic",
                    "The counter " + counter + " stood at " + text(may) + " in May and at " + text(may + grown) +
                        " in June.",
                    "In the file, by how much did the counter " + counter + " grow from May to June?" + STEPS, text(grown),
                    Compared::last_number);
}

Fact function_to_copy(Dice & dice, Names & names) {
    const std::string name = "route_" + names.next('_');
    std::string code = "def " + name + "(order):\n";
    for (int i = 0; i < 10; ++i)
        code += "    if order.weight < " + text(dice.from_to(10, 99) + 100 * i) + ":\n        return (\"" +
                names.next('_') + "\", " + text(dice.from_to(1000, 9999)) + ")\n";
    code += "    return None\n";
    return exercise("copy", code,
                    "Write down the Python function " + name + " of the file, unchanged and complete, in a code block.",
                    code, Compared::code);
}

Fact short_function_to_copy(Dice & dice, Names & names) {
    const std::string name = "limit_" + names.next('_');
    const std::string code = "def " + name + "(x, y):\n    if x > " + text(dice.from_to(100, 999)) +
                             ":\n        return y - " + text(dice.from_to(100, 999)) + "\n    return x * " +
                             text(dice.from_to(100, 999)) + "\n";
    return exercise("code", code, "Write down the Python function " + name + " of the file, unchanged, in a code block.",
                    code, Compared::code);
}

Fact sum_of_a_ledger(Dice & dice, Names & names) {
    const std::string ledger = names.next('-');
    std::string lines = "Ledger " + ledger + ":";
    int sum = 0;
    for (const char * month : {"January", "February", "March"}) {
        const int paid = dice.from_to(11, 99);
        lines += std::string(sum > 0 ? ", " : " ") + month + " " + text(paid);
        sum += paid;
    }
    return exercise("arithmetic", lines,
                    "What is the sum of the three months of the ledger " + ledger + " in the file?" + STEPS, text(sum),
                    Compared::last_number);
}

} // namespace

std::vector<Fact> make_exercises(uint64_t seed, int64_t sample, int n) {
    constexpr std::array FORMS = {called_function,        list_of_stops,          order_total, table_to_copy,
                                  nested_setting,         services_that_are_down, growth,      function_to_copy,
                                  short_function_to_copy, sum_of_a_ledger};
    Dice dice(seed + 2, sample);
    Names names(dice);
    const size_t first = dice.below(FORMS.size());
    std::vector<Fact> exercises;
    for (int i = 0; i < n; ++i) {
        exercises.push_back(FORMS[(first + static_cast<size_t>(i)) % FORMS.size()](dice, names));
        exercises.back().depth = (i + static_cast<double>(dice.below(1000)) / 1000) / n;
    }
    return exercises;
}

} // namespace vidkv::cli
