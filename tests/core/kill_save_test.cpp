// A save that is killed at any moment leaves the file that was there, or the new one, whole.
#include <gtest/gtest.h>

#include <csignal>
#include <filesystem>

#include <sys/wait.h>
#include <unistd.h>

#include "cache/cache.h"
#include "core/contents.h"
#include "core/encoding.h"
#include "core/random.h"

namespace vidkv {
namespace {

using test::contents;
using test::Random;

constexpr vidkv_cache_shape shape{2, 2, 64, 600, 1};

Cache filled(uint64_t seed) {
    Cache cache(shape, test::preset("t1.65"));
    Random rng{seed};
    for (int layer = 0; layer < shape.layers; ++layer) {
        const std::vector<float> k = rng.normals(500 * 128), v = rng.normals(500 * 128);
        EXPECT_EQ(cache.append(layer, 0, 500, k.data(), v.data()), VIDKV_OK);
    }
    EXPECT_EQ(cache.seal(1), VIDKV_OK);
    return cache;
}

TEST(KillSave, LeavesOneWholeFile) {
    const uint64_t seed = std::random_device{}();
    SCOPED_TRACE("seed " + std::to_string(seed));
    const std::filesystem::path folder =
        std::filesystem::path(testing::TempDir()) / ("vidkv-kill-save-" + std::to_string(getpid()));
    std::filesystem::create_directories(folder);
    const std::string file = (folder / "saved.vidkv").string();
    Cache old_one = filled(1), new_one = filled(2);
    const std::vector<uint8_t> before = contents(old_one), after = contents(new_one);
    ASSERT_NE(before, after);
    ASSERT_EQ(old_one.save(file.c_str()), VIDKV_OK);
    Random rng{seed};
    int killed = 0;
    for (int round = 0; round < 60; ++round) {
        const pid_t child = fork();
        ASSERT_GE(child, 0);
        if (child == 0) {
            for (;;) (round % 2 ? old_one : new_one).save(file.c_str());
        }
        usleep(static_cast<useconds_t>(rng.integer(0, 4000)));
        kill(child, SIGKILL);
        int status = 0;
        ASSERT_EQ(waitpid(child, &status, 0), child);
        killed += WIFSIGNALED(status);
        Cache loaded(shape, test::preset("t1.65"));
        ASSERT_EQ(loaded.load(file.c_str()), VIDKV_OK) << "round " << round;
        const std::vector<uint8_t> found = contents(loaded);
        EXPECT_TRUE(found == before || found == after) << "round " << round;
    }
    EXPECT_EQ(killed, 60);
    std::filesystem::remove_all(folder);
}

} // namespace
} // namespace vidkv
