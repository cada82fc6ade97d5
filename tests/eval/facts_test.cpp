#include <gtest/gtest.h>

#include <set>
#include <string>

#include "eval/facts.h"

namespace vidkv::cli {

namespace {

std::string sample_text() {
    std::string text;
    for (int i = 0; i < 300; ++i) text += "line " + std::string(static_cast<size_t>(i % 50), 'x') + "\n";
    return text;
}

size_t times(const std::string & text, const std::string & words) {
    size_t count = 0;
    for (size_t at = text.find(words); at != std::string::npos; at = text.find(words, at + 1)) ++count;
    return count;
}

TEST(Facts, AreTheSameForTheSameSeedAndSample) {
    const std::vector<Fact> facts = make_facts(5, 2, 9), again = make_facts(5, 2, 9), others = make_facts(5, 3, 9);
    ASSERT_EQ(facts.size(), 9U);
    EXPECT_EQ(facts[8].line, again[8].line);
    EXPECT_NE(facts[8].line, others[8].line);
    EXPECT_NE(make_facts(6, 2, 9)[8].line, facts[8].line);
}

TEST(Facts, HaveNamesOfTheirOwnAndEveryKind) {
    std::set<std::string> questions, kinds;
    for (const Fact & fact : make_facts(1, 0, 60)) {
        questions.insert(fact.question);
        kinds.insert(fact.kind);
        EXPECT_NE(fact.line.find(fact.answer), std::string::npos);
        EXPECT_EQ(fact.question.find(fact.answer), std::string::npos);
    }
    EXPECT_EQ(questions.size(), 60U);
    EXPECT_EQ(kinds, (std::set<std::string>{"constant", "function", "port"}));
}

TEST(Facts, StandOnceOnALineOfTheirOwnWhereTheyShould) {
    const std::vector<Fact> facts = make_facts(3, 1, 8);
    for (const size_t bytes : {size_t{4000}, size_t{40'000}}) { // the second goes over the text's end
        const std::string file = "\n" + plant(sample_text(), facts, 3, 1, bytes);
        EXPECT_NEAR(static_cast<double>(file.size()), static_cast<double>(bytes), 200);
        for (const Fact & fact : facts) {
            EXPECT_EQ(times(file, "\n" + fact.line + "\n"), 1U);
            const double found = static_cast<double>(file.find(fact.line)) / static_cast<double>(file.size());
            EXPECT_NEAR(found, fact.depth, 0.05);
        }
    }
    EXPECT_EQ(plant(sample_text(), facts, 3, 1, 4000), plant(sample_text(), facts, 3, 1, 4000));
}

TEST(Facts, APlantedTextNeedsNoEndOfItsLastLine) { EXPECT_EQ(plant("one", {}, 0, 0, 8), "one\none\n"); }

TEST(Facts, TheFirstNumberOfAnAnswer) {
    EXPECT_EQ(first_number("The port is 48213."), "48213");
    EXPECT_EQ(first_number("48,213 (not 5)"), "48213");
    EXPECT_EQ(first_number("`48213`"), "48213");
    EXPECT_EQ(first_number("4821, 3"), "4821");
    EXPECT_EQ(first_number("no number"), "");
}

} // namespace

} // namespace vidkv::cli
