// The path through a trellis that gives known levels: sets of states that can still be on it, from a step to the next around the ring.
#include <algorithm>
#include <bitset>
#include <vector>

#include "codec/trellis.h"

namespace vidkv {

namespace {

constexpr int states = 256;
using States = std::bitset<states>;

class PathSearch {
  public:
    PathSearch(const TrellisTable & table, const TrellisRing & ring, const uint8_t * use, const uint8_t * levels)
        : table_(table), steps_(ring.steps), reached_(static_cast<size_t>(ring.steps)) {
        for (int t = 0; t < steps_; ++t) {
            const int row = ring.row(t, 0);
            allowed_.push_back(use[row] ? with_level(levels[row]) : ~States());
        }
        const auto fewest = std::min_element(allowed_.begin(), allowed_.end(),
                                             [](const States & a, const States & b) { return a.count() < b.count(); });
        first_ = static_cast<int>(fewest - allowed_.begin());
    }

    bool find() {
        if (!reach(allowed_[first_])) return false; // no way round at all
        for (int s = 0; s < states; ++s) {
            if (allowed_[first_][s] && reach(States().set(s)) && close(s)) return true;
        }
        return false;
    }
    uint8_t state(int step) const { return path_[static_cast<size_t>((step - first_ + steps_) % steps_)]; }

  private:
    States with_level(uint8_t level) const {
        States found;
        for (int s = 0; s < states; ++s) found[s] = table_.level(0, static_cast<uint8_t>(s)) == level;
        return found;
    }
    const States & allowed(int i) const { return allowed_[static_cast<size_t>((first_ + i) % steps_)]; }
    int next(int state, int bits) const { return state >> table_.bits | bits << (8 - table_.bits); }
    bool follows(int state, int after) const { return (after & ((1 << (8 - table_.bits)) - 1)) == state >> table_.bits; }

    // reached_[i]: the states i steps after the first that come from one of `from`. False if they end.
    bool reach(const States & from) {
        reached_[0] = from;
        for (int i = 1; i < steps_; ++i) {
            States & to = reached_[i];
            to.reset();
            for (int s = 0; s < states; ++s) {
                if (!reached_[i - 1][s]) continue;
                for (int bits = 0; bits < 1 << table_.bits; ++bits) to.set(static_cast<size_t>(next(s, bits)));
            }
            to &= allowed(i);
            if (to.none()) return false;
        }
        return true;
    }
    // Goes back from the state that comes last in the ring to the first one.
    bool close(int after) {
        path_.assign(static_cast<size_t>(steps_), 0);
        for (int i = steps_ - 1; i >= 0; --i) {
            int s = 0;
            while (s < states && !(reached_[i][s] && follows(s, after))) ++s;
            if (s == states) return false;
            path_[i] = static_cast<uint8_t>(after = s);
        }
        return true;
    }

    const TrellisTable & table_;
    int steps_, first_ = 0;
    std::vector<States> allowed_, reached_;
    std::vector<uint8_t> path_;
};

} // namespace

bool encode_trellis_levels(QuadCode code, const uint8_t * use, int rows, int lane, uint8_t * packed, uint8_t * levels) {
    const TrellisTable & table = trellis_table(code);
    const TrellisRing ring(table, rows);
    PathSearch search(table, ring, use, levels);
    if (!search.find()) return false;
    for (int index = 0; index < ring.planes * ring.n; ++index) packed[ring.at(lane, index)] = 0;
    for (int step = 0; step < ring.steps; ++step) {
        for (int b = 0; b < table.bits; ++b) {
            const int bit = step * table.bits + b;
            uint8_t & byte = packed[ring.at(lane, bit / 8)];
            byte = static_cast<uint8_t>(byte | (search.state(step) >> b & 1) << (bit % 8));
        }
        levels[ring.row(step, 0)] = table.level(0, search.state(step));
    }
    return true;
}

} // namespace vidkv
