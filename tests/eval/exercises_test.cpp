#include <gtest/gtest.h>

#include <map>
#include <set>
#include <string>

#include "eval/exercises.h"

namespace vidkv::cli {

namespace {

TEST(Exercises, AreTheSameForTheSameSeedAndSample) {
    const std::vector<Fact> exercises = make_exercises(5, 2, 10), again = make_exercises(5, 2, 10);
    ASSERT_EQ(exercises.size(), 10U);
    for (size_t i = 0; i < 10; ++i) {
        EXPECT_EQ(exercises[i].line, again[i].line);
        EXPECT_EQ(exercises[i].answer, again[i].answer);
        EXPECT_NEAR(exercises[i].depth, (static_cast<double>(i) + 0.5) / 10, 0.051);
    }
    EXPECT_NE(make_exercises(5, 3, 10)[0].line, exercises[0].line);
    EXPECT_NE(make_exercises(6, 2, 10)[0].line, exercises[0].line);
}

TEST(Exercises, TenOfThemAreOneOfEachForm) {
    std::map<std::string, int> kinds;
    std::set<std::string> questions;
    for (const Fact & exercise : make_exercises(1, 0, 10)) {
        ++kinds[exercise.kind];
        questions.insert(exercise.question.substr(0, 24));
        EXPECT_LE(exercise.question.size(), 200U); // 128 tokens, the chat format among them
        EXPECT_FALSE(exercise.line.ends_with('\n'));
    }
    EXPECT_EQ(kinds, (std::map<std::string, int>{{"arithmetic", 3}, {"code", 3}, {"copy", 2}, {"list", 2}}));
    EXPECT_GE(questions.size(), 7U);
}

// What is copied stands in the file; what is reckoned does not; and none of it in the question.
TEST(Exercises, AnswersAreRightAndNotGivenAway) {
    for (const Fact & exercise : make_exercises(3, 1, 40)) {
        EXPECT_TRUE(is_right(exercise, exercise.answer)) << exercise.question;
        EXPECT_EQ(exercise.question.find(exercise.answer), std::string::npos) << exercise.question;
        const bool copied = exercise.kind == "copy" || exercise.compared == Compared::code;
        const bool stands_there = (exercise.line + "\n").find(exercise.answer) != std::string::npos;
        EXPECT_TRUE(stands_there || !copied) << exercise.question;
        EXPECT_FALSE(exercise.kind == "arithmetic" && is_right(exercise, exercise.line)) << exercise.line;
    }
}

bool right(Compared compared, const std::string & expected, const std::string & answer) {
    return is_right({"", "", "", expected, 0, compared}, answer);
}

TEST(Exercises, NumbersAreReadOutOfWords) {
    EXPECT_TRUE(right(Compared::first_number, "48213", "It is 48,213, not 5."));
    EXPECT_TRUE(right(Compared::last_number, "89", "7 * 12 + 5 = 84 + 5 = 89 euros."));
    EXPECT_FALSE(right(Compared::last_number, "89", "89 it is, of 100"));
    EXPECT_FALSE(right(Compared::last_number, "89", "none"));
}

TEST(Exercises, ListsKeepTheirOrderAndNothingElse) {
    const std::string expected = "amber-falcon, calm-heron, icy-raven";
    EXPECT_TRUE(right(Compared::names, expected, "1. `amber-falcon`\n2. `calm-heron`\n3. `icy-raven`\n"));
    EXPECT_FALSE(right(Compared::names, expected, "amber-falcon, icy-raven, calm-heron"));
    EXPECT_FALSE(right(Compared::names, expected, "amber-falcon, calm-heron"));
    EXPECT_FALSE(right(Compared::names, expected, expected + ", warm-urchin"));
}

TEST(Exercises, CopiesMayStandInAnyFrame) {
    EXPECT_TRUE(right(Compared::words, "a-b,1\nc-d,2\n", "The table:\n\n| a-b | 1 |\n| c-d | 2 |"));
    EXPECT_FALSE(right(Compared::words, "a-b,1\nc-d,2\n", "a-b,1\nc-d,3"));
    const std::string code = "def f(x):\n    return x * 2\n";
    EXPECT_TRUE(right(Compared::code, code, "```python\ndef f( x ):\n\treturn x*2\n```"));
    EXPECT_FALSE(right(Compared::code, code, "def f(x):\n    return x + 2\n"));
    EXPECT_FALSE(right(Compared::code, code, "def f(x):\n    y = x\n    return x * 2\n"));
}

} // namespace

} // namespace vidkv::cli
