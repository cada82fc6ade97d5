#include "codec/shared_rows.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "codec/page_mean.h"
#include "codec/rotation.h"
#include "codec/two_bit.h"

namespace vidkv {

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float most_left_by_mean = 0.6f;       // of a row's energy, in a page with a mean
constexpr float most_left_by_direction = 0.75f; // of what would be lost without it
constexpr float most_left_bare = 0.6f;          // of the energy of a row that has no codes
// Rounding to points, a twelfth of their distance squared: two fifths of the codes' noise.
constexpr float most_rounding = 5.0f;

// What a code loses of a row's energy.
float loss_of(QuadCode code) {
    switch (code) {
    case QuadCode::none: return 1.0f;
    case QuadCode::trellis1: return 0.31f;
    case QuadCode::trellis1_5: return 0.165f;
    case QuadCode::trellis2: return 0.085f;
    case QuadCode::trellis3: return 0.023f;
    default: return 0.011f;
    }
}

using Places = std::array<float, page_tokens>; // of rows on a line

// first_bare: of the slots without codes, where a row comes out as what is shared, so that one it says little of is lost: infinite then.
float left_of(const PageRows & rows, const Shared & shared, int first_bare) {
    ShareLeft left;
    std::vector<float> rest(rows.head_dim());
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (!rows.is_used(slot)) continue;
        const float * row = rows.at(slot);
        const float energy = dot(row, row, rows.head_dim());
        if (!(energy > 0.0f)) return infinity;
        shared.rest_of(rows, slot, rest.data());
        const float of_rest = dot(rest.data(), rest.data(), rows.head_dim());
        if (slot >= first_bare && of_rest > most_left_bare * energy) return infinity;
        left.add(of_rest, energy);
    }
    return left.average();
}

Shared nothing_shared(const PageRows & rows) {
    return {Sharing::nothing, std::vector<float>(rows.head_dim()), std::vector<float>(rows.head_dim()), {}};
}

Shared average_of(const PageRows & rows) {
    Shared shared = nothing_shared(rows);
    shared.kind = Sharing::mean;
    for (int slot = 0; slot < page_tokens; ++slot)
        add_scaled(rows.at(slot), rows.share(slot), rows.head_dim(), shared.mean.data());
    return shared;
}

// Rows without their average: the direction in which they differ most, and how far along it each of them is.
class MainDirection {
  public:
    MainDirection(const PageRows & rows, const Shared & average)
        : rows_(rows), average_(average), n_(rows.head_dim()), rest_(static_cast<size_t>(page_tokens) * n_),
          direction_(n_) {
        take_rest();
        start();
        project();
        turn_to_rows();
        project();
        is_main_ = holds_enough();
        if (!is_main_) return;
        every_ = 1;
        take_rest();
        project();
        for (int turn = 0; turn < turns; ++turn) {
            turn_to_rows();
            project();
        }
    }
    bool is_main() const { return is_main_; } // and not one of many
    const std::vector<float> & direction() const { return direction_; }
    const Places & along() const { return along_; }

  private:
    static constexpr int turns = 6;
    static constexpr float least_held = 0.15f; // of the energy
    float * at(int slot) { return &rest_[static_cast<size_t>(slot) * n_]; }
    void take_rest() {
        for (int slot = 0; slot < page_tokens; slot += every_)
            for (int c = 0; c < n_ && rows_.is_used(slot); ++c) at(slot)[c] = rows_.at(slot)[c] - average_.mean[c];
    }
    // From the longest row.
    void start() {
        float most = 0;
        for (int slot = 0; slot < page_tokens; slot += every_) {
            const float energy = rows_.share(slot) * dot(at(slot), at(slot), n_);
            energy_ += energy;
            if (!(energy > most)) continue;
            most = energy;
            std::copy_n(at(slot), n_, direction_.begin());
        }
    }
    void turn_to_rows() {
        std::fill(direction_.begin(), direction_.end(), 0.0f);
        for (int slot = 0; slot < page_tokens; slot += every_)
            add_scaled(at(slot), rows_.share(slot) * along_[slot], n_, direction_.data());
    }
    void project() {
        const float length = std::sqrt(dot(direction_.data(), direction_.data(), n_)),
                    inverse = length > 0.0f ? 1.0f / length : 0.0f;
        for (float & x : direction_) x *= std::isfinite(inverse) ? inverse : 0.0f;
        for (int slot = 0; slot < page_tokens; slot += every_) along_[slot] = dot(at(slot), direction_.data(), n_);
    }
    bool holds_enough() const {
        float along = 0;
        for (int slot = 0; slot < page_tokens; slot += every_) along += rows_.share(slot) * along_[slot] * along_[slot];
        return along > least_held * energy_;
    }

    const PageRows & rows_;
    const Shared & average_;
    int n_, every_ = 4; // most pages have no such direction, which a part of the rows shows
    std::vector<float> rest_, direction_;
    Places along_{};
    float energy_ = 0;
    bool is_main_ = false;
};

float rounded(float x) { return (x + 12582912.0f) - 12582912.0f; } // 1.5 x 2^23: ties to even; |x| below 2^22

// Points of a line, `unit` apart, that places are rounded to.
struct Grid {
    float low = 0, unit = 0;
    int steps = 0; // from the lowest place to the highest one
    float index(float place) const { return rounded((place - low) / unit); }
};

float along_of(float index) { return std::clamp(index, float{least_along}, float{most_along}); }

void set_along(const PageRows & rows, const Places & places, const Grid & grid, Shared & shared) {
    const int middle = (grid.steps + 1) / 2;
    for (int slot = 0; slot < page_tokens; ++slot)
        shared.along[slot] = rows.is_used(slot) ? along_of(grid.index(places[slot]) - static_cast<float>(middle)) : 0.0f;
}

// Mean and direction that come nearest to the rows with `along` as it is.
void fit(const PageRows & rows, Shared & shared) {
    std::vector<float> sum(rows.head_dim()), sum_along(rows.head_dim());
    for (int slot = 0; slot < page_tokens; ++slot) {
        for (int c = 0; c < rows.head_dim(); ++c) {
            const float part = rows.share(slot) * rows.at(slot)[c];
            sum[c] += part;
            sum_along[c] += shared.along[slot] * part;
        }
    }
    std::fill(shared.mean.begin(), shared.mean.end(), 0.0f);
    std::fill(shared.direction.begin(), shared.direction.end(), 0.0f);
    refit(rows, sum.data(), sum_along.data(), shared);
}

// What the codes of a page with this direction will add to an element: root mean squares.
struct CodeNoise {
    float average = 0, narrow = 0;
};

CodeNoise noise_of(const PageRows & rows, const Shared & shared, const SharingRule & rule) {
    std::vector<float> rest(rows.head_dim());
    const int first_narrow = page_tokens - 4 * rule.narrow_quads(Sharing::direction);
    const float elements = static_cast<float>(rows.head_dim());
    float sum = 0, narrow_sum = 0, narrow_share = 0;
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (!rows.is_used(slot)) continue;
        shared.rest_of(rows, slot, rest.data());
        const float noise = rule.noise(slot >= first_narrow) * dot(rest.data(), rest.data(), rows.head_dim()) / elements;
        sum += rows.share(slot) * noise;
        if (slot < first_narrow) continue;
        narrow_sum += rows.share(slot) * noise;
        narrow_share += rows.share(slot);
    }
    return {std::sqrt(sum), narrow_share > 0.0f ? std::sqrt(narrow_sum / narrow_share) : 0.0f};
}

// Chooses the points of a line that rows are to lie on: so far apart that what the codes add takes hardly a row to the next one. A
// page that is packed again finds its points.
class GridSearch {
  public:
    GridSearch(const PageRows & rows, const Places & places, const CodeNoise & noise) : noise_(noise) {
        for (int slot = 0; slot < page_tokens; ++slot)
            if (rows.is_used(slot)) places_[static_cast<size_t>(count_++)] = places[slot];
        low_ = *std::min_element(places_.begin(), places_.begin() + count_);
        high_ = *std::max_element(places_.begin(), places_.begin() + count_);
    }

    Grid best() const {
        if (!(high_ > low_)) return {};
        for (int steps = 1; steps <= most_steps; ++steps) {
            Grid grid{low_, (high_ - low_) / static_cast<float>(steps), steps};
            if (grid.unit < 4.8f * noise_.average) break;
            const float off = std::min(fit(grid), fit(grid));
            if (off <= 1.4f * noise_.average * noise_.average + 0.001f * grid.unit * grid.unit) return grid;
        }
        const float apart = std::max(6.0f * noise_.average, 4.0f * noise_.narrow);
        const float wanted = std::min((high_ - low_) / apart, float{most_steps});
        const int steps = std::max(static_cast<int>(wanted), 1);
        return {low_, (high_ - low_) / static_cast<float>(steps), steps};
    }

  private:
    static constexpr int most_steps = most_along - least_along;
    // Moves the grid to the rows; returns the mean square of how far they are off it.
    float fit(Grid & grid) const {
        float n = 0, x = 0, xx = 0, y = 0, xy = 0;
        for (int i = 0; i < count_; ++i) {
            const float index = grid.index(places_[i]);
            n += 1.0f, x += index, xx += index * index, y += places_[i], xy += index * places_[i];
        }
        const float spread = n * xx - x * x;
        if (!(spread > 0.0f)) return infinity;
        const float unit = (n * xy - x * y) / spread;
        if (!(unit > 0.0f)) return infinity;
        grid.unit = unit;
        grid.low = (y - unit * x) / n;
        float off = 0;
        for (int i = 0; i < count_; ++i) {
            const float rest = places_[i] - grid.low - grid.unit * grid.index(places_[i]);
            off += rest * rest;
        }
        return off / n;
    }

    CodeNoise noise_;
    float low_, high_;
    Places places_{};
    int count_ = 0;
};

// Puts every row at the point of the line that is nearest to it; returns whether some row moved.
bool settle(const PageRows & rows, Shared & shared) {
    const int n = rows.head_dim();
    const float length = dot(shared.direction.data(), shared.direction.data(), n);
    if (!(length > 0.0f)) return false;
    const float of_mean = dot(shared.mean.data(), shared.direction.data(), n);
    bool moved = false;
    for (int slot = 0; slot < page_tokens; ++slot) {
        if (!rows.is_used(slot)) continue;
        const float along = along_of(rounded((dot(rows.at(slot), shared.direction.data(), n) - of_mean) / length));
        moved = moved || along != shared.along[slot];
        shared.along[slot] = along;
    }
    return moved;
}

// Of kind direction, if that is worth a thought.
Shared direction_of(const PageRows & rows, const Shared & average, float with_average, const SharingRule & rule) {
    const MainDirection main(rows, average);
    if (!main.is_main()) return average;
    Shared shared = average;
    shared.direction = main.direction();
    shared.along = main.along(); // of any size, as yet
    shared.kind = rule.choose(with_average, left_of(rows, shared, rule.first_bare(Sharing::direction)));
    if (shared.kind != Sharing::direction) return shared;
    const CodeNoise noise = noise_of(rows, shared, rule);
    const Grid grid = GridSearch(rows, main.along(), noise).best();
    if (grid.steps == 0) return average;
    shared.only_across =
        grid.unit * grid.unit < most_rounding * noise.average * noise.average * static_cast<float>(rows.head_dim());
    set_along(rows, main.along(), grid, shared);
    for (int turn = 0; turn < 3; ++turn) {
        fit(rows, shared);
        if (!settle(rows, shared)) break;
    }
    return shared;
}

// Where the narrower code has no bits at all, the last rows of a page that is packed again are exactly what they share: points of one
// line, whole steps apart.
class LastRows {
  public:
    LastRows(const PageRows & rows, int quads) : rows_(rows), n_(rows.head_dim()), first_slot_(page_tokens - 4 * quads) {
        for (int slot = first_slot_; slot < page_tokens; ++slot) {
            if (!rows.is_used(slot)) continue;
            if (!first_) first_ = rows.at(slot), first_used_ = slot;
            if (distance(rows.at(slot)) > distance(farthest_)) farthest_ = rows.at(slot);
        }
    }

    bool are_one() const { return first_ && !farthest_; }
    const float * first() const { return first_; }

    // Whether they are such points. Of kind direction then.
    bool find_line(Shared & shared) {
        if (!farthest_) return false;
        line_.resize(n_);
        for (int c = 0; c < n_; ++c) line_[c] = farthest_[c] - first_[c];
        if (!are_on_line()) return false;
        const int steps = steps_between();
        if (steps == 0) return false;
        const float unit = 1.0f / static_cast<float>(steps), most = most_along - least_along;
        const auto step_at = [&](auto place) { return rounded(*place / unit); };
        const auto [low, high] = std::minmax_element(place_.begin(), place_.end());
        const float last_high = step_at(std::max_element(place_.begin() + first_slot_, place_.end()));
        const float first = std::max(step_at(low), last_high - most), last = std::min(step_at(high), first + most);
        const Grid grid{first * unit, unit, static_cast<int>(last - first)};
        set_along(rows_, place_, grid, shared);
        shared.kind = Sharing::direction;
        shared.only_across = true;
        const float at_first = shared.along[first_used_]; // where its place is 0
        for (int c = 0; c < n_; ++c) {
            shared.direction[c] = line_[c] * unit;
            shared.mean[c] = first_[c] - at_first * shared.direction[c];
        }
        return true;
    }

  private:
    static constexpr float tolerance = 1e-6f; // of energy: rows were rounded to f16
    float distance(const float * row) const {
        float sum = 0;
        for (int c = 0; c < n_ && row; ++c) sum += (row[c] - first_[c]) * (row[c] - first_[c]);
        return sum;
    }
    bool is_last(int slot) const { return slot >= first_slot_ && rows_.is_used(slot); }

    // Sets the places of all rows: 0 is the first of these, 1 the farthest.
    bool are_on_line() {
        const float length = dot(line_.data(), line_.data(), n_);
        std::vector<float> apart(n_);
        for (int slot = 0; slot < page_tokens; ++slot) {
            place_[slot] = 0.0f;
            if (!rows_.is_used(slot)) continue;
            for (int c = 0; c < n_; ++c) apart[c] = rows_.at(slot)[c] - first_[c];
            place_[slot] = dot(apart.data(), line_.data(), n_) / length;
            for (int c = 0; c < n_; ++c) apart[c] -= place_[slot] * line_[c];
            const float energy = dot(rows_.at(slot), rows_.at(slot), n_);
            if (is_last(slot) && dot(apart.data(), apart.data(), n_) > tolerance * energy) return false;
        }
        return true;
    }
    // The fewest steps from the first to the farthest that all are whole steps from; 0: none.
    int steps_between() const {
        for (int steps = 1; steps <= most_along - least_along; ++steps) {
            bool fits = true;
            for (int slot = first_slot_; slot < page_tokens && fits; ++slot) {
                const float at = place_[slot] * static_cast<float>(steps);
                fits = !is_last(slot) || std::fabs(at - rounded(at)) < 0.05f;
            }
            if (fits) return steps;
        }
        return 0;
    }

    const PageRows & rows_;
    int n_, first_slot_, first_used_ = 0;
    const float *first_ = nullptr, *farthest_ = nullptr; // from the first; null: all are one
    std::vector<float> line_;
    Places place_{};
};

} // namespace

float dot(const float * x, const float * y, int n) {
    std::array<float, 8> sums = {};
    for (int i = 0; i < n; i += 8) {
        for (int j = 0; j < 8; ++j) sums[j] += x[i + j] * y[i + j];
    }
    return ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]));
}

void add_scaled(const float * x, float factor, int n, float * out) {
    for (int i = 0; i < n; ++i) out[i] += factor * x[i];
}

PageRows::PageRows(const float * x, const uint8_t * use, int head_dim)
    : use_(use), head_dim_(head_dim), rows_(static_cast<size_t>(page_tokens) * head_dim) {
    const auto rotate = rotation(head_dim);
    std::vector<float> energies;
    for (int slot = 0; slot < page_tokens; ++slot) {
        float * row = &rows_[static_cast<size_t>(slot) * head_dim];
        for (int c = 0; c < head_dim; ++c) row[c] = use[slot] ? sanitize(x[slot * head_dim + c]) : 0.0f;
        rotate->forward(row);
        shares_[slot] = dot(row, row, head_dim);
        if (shares_[slot] > 0.0f) energies.push_back(shares_[slot]);
    }
    weigh(energies);
}

void PageRows::weigh(std::vector<float> & energies) {
    const auto middle = energies.begin() + static_cast<std::ptrdiff_t>(energies.size() / 2);
    if (!energies.empty()) std::nth_element(energies.begin(), middle, energies.end());
    float total = 0;
    for (float & weight : shares_) {
        if (weight > 0.0f) weight = std::min(1.0f, 4.0f * *middle / weight);
        total += weight;
    }
    const float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    for (float & weight : shares_) weight *= inverse;
}

void Shared::rest_of(const PageRows & rows, int slot, float * out) const {
    for (size_t c = 0; c < mean.size(); ++c) out[c] = rows.at(slot)[c] - (mean[c] + along[slot] * direction[c]);
}

SharingRule::SharingRule(const ValueLayout & layout, int protected_units)
    : layout_(layout), protected_units_(protected_units) {}

float SharingRule::noise(bool narrow) const {
    const QuadCode code = narrow ? layout_.narrow_code : layout_.plain_code;
    return code == QuadCode::none ? 0.25f : loss_of(code);
}

int SharingRule::narrow_quads(Sharing kind) const {
    return kind == Sharing::nothing ? 0 : kind == Sharing::mean ? layout_.mean_quads : layout_.direction_quads;
}

int SharingRule::first_bare(Sharing kind) const {
    return layout_.narrow_code == QuadCode::none ? page_tokens - 4 * narrow_quads(kind) : page_tokens;
}

// Of quads that are not protected.
float SharingRule::loss(Sharing kind) const {
    const int narrow = narrow_quads(kind), plain = page_tokens / 4 - protected_units_ - narrow;
    return static_cast<float>(plain) * loss_of(layout_.plain_code) +
           static_cast<float>(narrow) * loss_of(layout_.narrow_code);
}

Sharing SharingRule::choose(float with_mean, float with_direction) const {
    const bool mean = with_mean < most_left_by_mean;
    const float without = mean ? with_mean * loss(Sharing::mean) : most_left_by_mean * loss(Sharing::nothing);
    if (has_room() && with_direction * loss(Sharing::direction) < most_left_by_direction * without)
        return Sharing::direction;
    return mean ? Sharing::mean : Sharing::nothing;
}

namespace {

// Where the last rows say it already: a page that is packed again keeps what it has.
Shared last_rows_share(const PageRows & rows, const ValueLayout & layout, const SharingRule & rule) {
    Shared shared = nothing_shared(rows);
    if (layout.narrow_code != QuadCode::none) return shared;
    LastRows line(rows, layout.direction_quads);
    if (line.find_line(shared) &&
        rule.choose(infinity, left_of(rows, shared, rule.first_bare(Sharing::direction))) == Sharing::direction)
        return shared;
    shared = nothing_shared(rows);
    const LastRows last(rows, layout.mean_quads);
    if (line.are_one() || !last.are_one())
        return shared; // one point of a direction, or of more than a mean leaves without codes
    std::copy_n(last.first(), rows.head_dim(), shared.mean.begin());
    shared.kind = rule.choose(left_of(rows, shared, rule.first_bare(Sharing::mean)), infinity);
    return shared.kind == Sharing::mean ? shared : nothing_shared(rows);
}

} // namespace

Shared find_shared(const PageRows & rows, const ValueLayout & layout, const SharingRule & rule, bool may_have_direction) {
    Shared last = last_rows_share(rows, layout, rule);
    if (last.kind == Sharing::mean || (last.kind == Sharing::direction && may_have_direction)) return last;
    Shared average = average_of(rows);
    const float with_mean = left_of(rows, average, rule.first_bare(Sharing::mean));
    if (may_have_direction && rule.has_room()) {
        Shared direction = direction_of(rows, average, with_mean, rule);
        if (direction.kind == Sharing::direction &&
            rule.choose(with_mean, left_of(rows, direction, rule.first_bare(Sharing::direction))) == Sharing::direction)
            return direction;
    }
    average.kind = rule.choose(with_mean, infinity);
    return average.kind == Sharing::mean ? average : nothing_shared(rows);
}

void refit(const PageRows & rows, const float * missed, const float * missed_along, Shared & shared) {
    float sum = 0, squares = 0;
    for (int slot = 0; slot < page_tokens; ++slot) {
        const float part = rows.share(slot) * shared.along[slot];
        sum += part;
        squares += part * shared.along[slot];
    }
    const float spread = squares - sum * sum, inverse = spread > 1e-4f ? 1.0f / spread : 0.0f;
    for (int c = 0; c < rows.head_dim(); ++c) {
        const float more = (missed_along[c] - sum * missed[c]) * inverse;
        shared.direction[c] += more;
        shared.mean[c] += missed[c] - sum * more;
    }
}

} // namespace vidkv
