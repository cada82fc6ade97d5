#include "cache/page_shifts.h"

#include <algorithm>
#include <cmath>

namespace vidkv {

Ref<const Rope> Rope::make(const vidkv_rotation & rotation) {
    auto * rope = new Rope;
    Ref<const Rope> made(rope);
    rope->first = rotation.first;
    rope->step = rotation.step;
    rope->apart = rotation.apart;
    if (rotation.pairs > 0 && rotation.angles) rope->angles.assign(rotation.angles, rotation.angles + rotation.pairs);
    return made;
}

bool Rope::is_same(const Rope & other) const {
    return first == other.first && step == other.step && apart == other.apart && angles == other.angles;
}

bool Rope::fits(int head_dim) const {
    if (first < 0 || first >= head_dim || angles.empty() || angles.size() > static_cast<size_t>(head_dim / 2)) return false;
    const bool neighbours = step == 2 && apart == 1, halves = step == 1 && apart == pairs();
    const auto is_sane = [](double angle) { return std::fabs(angle) < 1e3; };
    return (neighbours || halves) && first + 2 * pairs() <= head_dim && std::all_of(angles.begin(), angles.end(), is_sane);
}

void Shift::turn(const Rope & rope, float * key) const {
    for (int i = 0; i < rope.pairs(); ++i) {
        float &a = key[rope.first + i * rope.step], &b = key[rope.first + i * rope.step + rope.apart];
        const float x = a * cosines[i] - b * sines[i], y = a * sines[i] + b * cosines[i];
        a = x;
        b = y;
    }
}

void Shift::turn_back(const Rope & rope, const float * query, int head_dim, float * out) const {
    std::copy_n(query, head_dim, out);
    for (int i = 0; i < rope.pairs(); ++i) {
        const int a = rope.first + i * rope.step, b = a + rope.apart;
        out[a] = query[a] * cosines[i] + query[b] * sines[i];
        out[b] = query[b] * cosines[i] - query[a] * sines[i];
    }
}

const Shift * PageShifts::of(int cell) const {
    const auto found = std::find_if(all.begin(), all.end(), [&](const Shift & each) { return has_cell(each.cells, cell); });
    return found == all.end() ? nullptr : &*found;
}

bool PageShifts::is_same(const PageShifts & other) const {
    return rope->is_same(*other.rope) &&
           std::equal(all.begin(), all.end(), other.all.begin(), other.all.end(), [](const Shift & a, const Shift & b) {
               return a.positions == b.positions && a.gain == b.gain && a.cells == b.cells;
           });
}

size_t PageShifts::held() const {
    const size_t pairs = static_cast<size_t>(rope->pairs());
    return sizeof(*this) + sizeof(Rope) + pairs * sizeof(double) + all.size() * (sizeof(Shift) + 2 * pairs * sizeof(float));
}

namespace {

struct SavedRope {
    int32_t first, step, apart, pairs;
};
struct SavedShift {
    int32_t positions;
    float gain;
    PageBits cells;
};

void set_angles(Shift & shift, const Rope & rope) {
    for (const double angle : rope.angles) {
        shift.cosines.push_back(static_cast<float>(shift.gain * std::cos(shift.positions * angle)));
        shift.sines.push_back(static_cast<float>(shift.gain * std::sin(shift.positions * angle)));
    }
}

bool is_sane_gain(float gain) { return gain > 1e-6f && gain < 1e6f; }

Ref<const PageShifts> make(const Ref<const Rope> & rope, std::vector<Shift> all) {
    auto * shifts = new PageShifts;
    Ref<const PageShifts> made(shifts);
    for (Shift & each : all) set_angles(each, *rope);
    shifts->rope = rope;
    shifts->all = std::move(all);
    return made;
}

} // namespace

void PageShifts::save(std::vector<uint8_t> & out) const {
    append_number(out, SavedRope{rope->first, rope->step, rope->apart, rope->pairs()});
    append_bytes(out, rope->angles.data(), rope->angles.size() * sizeof(double));
    append_number(out, static_cast<uint64_t>(all.size()));
    for (const Shift & each : all) append_number(out, SavedShift{each.positions, each.gain, each.cells});
}

Ref<const PageShifts> PageShifts::load(ByteReader & in, int head_dim) {
    const auto head = in.number<SavedRope>();
    if (!in.ok() || head.pairs < 1 || head.pairs > head_dim / 2) return {};
    std::vector<double> angles(static_cast<size_t>(head.pairs));
    in.bytes(angles.data(), angles.size() * sizeof(double));
    const Ref<const Rope> rope = Rope::make({head.first, head.step, head.apart, head.pairs, angles.data(), 1});
    const auto count = in.number<uint64_t>();
    if (!in.ok() || !rope->fits(head_dim) || count < 1 || count > most) return {};
    std::vector<Shift> all;
    PageBits taken{};
    for (uint64_t i = 0; i < count; ++i) {
        const auto saved = in.number<SavedShift>();
        const bool far = saved.positions > farthest || saved.positions < -farthest;
        if (!in.ok() || far || !is_sane_gain(saved.gain) || (taken & saved.cells) != PageBits{}) return {};
        taken = taken | saved.cells;
        all.push_back({saved.positions, saved.gain, saved.cells, {}, {}});
    }
    return make(rope, std::move(all));
}

namespace {

// Shifts of a page while they are put together: those that are the same are one.
class Sum {
  public:
    // False: too far, or too much.
    bool add(int64_t positions, float gain, const PageBits & cells) {
        if (cells == PageBits{} || (positions == 0 && gain == 1.0f)) return true;
        if (positions > PageShifts::farthest || positions < -PageShifts::farthest || !is_sane_gain(gain)) return false;
        for (Shift & each : all) {
            if (each.positions != positions || each.gain != gain) continue;
            each.cells = each.cells | cells;
            return true;
        }
        all.push_back({static_cast<int32_t>(positions), gain, cells, {}, {}});
        return all.size() <= PageShifts::most;
    }
    std::vector<Shift> all;
};

} // namespace

std::optional<Ref<const PageShifts>> moved(const Ref<const PageShifts> & before, const std::vector<Move> & moves,
                                           const Ref<const Rope> & rope, float gain, const PageBits & used) {
    if (before && !before->rope->is_same(*rope)) return std::nullopt;
    std::vector<Shift> parts = before ? before->all : std::vector<Shift>();
    PageBits rest = used;
    for (const Shift & part : parts) rest = rest & ~part.cells;
    parts.push_back({0, 1.0f, rest, {}, {}});
    Sum sum;
    for (const Shift & part : parts) {
        PageBits stays = part.cells & used;
        for (const Move & move : moves) {
            const int64_t positions = int64_t{part.positions} + move.positions;
            if (!sum.add(positions, part.gain * gain, stays & move.cells)) return std::nullopt;
            stays = stays & ~move.cells;
        }
        if (!sum.add(part.positions, part.gain, stays)) return std::nullopt;
    }
    if (sum.all.empty()) return Ref<const PageShifts>();
    if (sum.all.size() == 1 && (used & ~sum.all[0].cells) == PageBits{}) sum.all[0].cells = all_cells;
    return make(before ? before->rope : rope, std::move(sum.all));
}

} // namespace vidkv
