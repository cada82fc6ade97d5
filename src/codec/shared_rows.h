// A head's rotated value rows of a page, and what they share: a mean, a direction (page_mean.h). What is chosen here is the encoder's
// doing; readers take any mean and direction.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "codec/layout.h"
#include "codec/value_page.h"

namespace vidkv {

float dot(const float * x, const float * y, int n); // n: a multiple of 8
void add_scaled(const float * x, float factor, int n, float * out);

// How much each row counts for what the tokens share: not at all if it is not to be used, little if it is far longer than most.
class PageRows {
  public:
    // x: [page_tokens][head_dim], natural channels by slot
    PageRows(const float * x, const uint8_t * use, int head_dim);
    int head_dim() const { return head_dim_; }
    bool is_used(int slot) const { return use_[slot] != 0; }
    const float * at(int slot) const { return &rows_[static_cast<size_t>(slot) * head_dim_]; }
    // What is added up over all slots, each by its share, becomes a mean.
    float share(int slot) const { return shares_[slot]; }

  private:
    void weigh(std::vector<float> & energies);

    const uint8_t * use_;
    int head_dim_;
    std::vector<float> rows_;
    std::array<float, page_tokens> shares_; // sum 1, or all are 0
};

struct Shared {
    Sharing kind = Sharing::nothing;
    std::vector<float> mean, direction;     // [head_dim], 0 where there is none
    std::array<float, page_tokens> along{}; // whole numbers, -8 .. 7
    bool only_across = false;               // codes are to say nothing along the direction: rows stay at their points of it
    void rest_of(const PageRows & rows, int slot, float * out) const; // what the slot's row does not share with the others
};

// A part of each row's energy that is left where the rows share something, averaged over the tokens: in shares of each row, so that a
// single short token, which attention may rest on, speaks against sharing.
class ShareLeft {
  public:
    void add(float left, float of) { left_ += of > 0.0f ? left / of : 1.0f, rows_ += 1.0f; }
    float average() const { return rows_ > 0.0f ? left_ / rows_ : 1.0f; }

  private:
    float left_ = 0, rows_ = 0;
};

// Which kind of page says most of every token: codes of what is left of the rows, some of them narrower, or codes of the rows.
class SharingRule {
  public:
    SharingRule(const ValueLayout & layout, int protected_units);
    // From what is left with a mean, and with a direction as well; infinite: out of the question.
    Sharing choose(float with_mean, float with_direction) const;
    int narrow_quads(Sharing kind) const;
    int first_bare(Sharing kind) const; // of the slots whose narrower code has no bits
    float noise(bool narrow) const;     // of codes, in shares of what they are left with: none where there are none
    bool has_room() const { return layout_.has_room_for_direction(protected_units_); } // for a direction

  private:
    float loss(Sharing kind) const;
    const ValueLayout & layout_;
    int protected_units_;
};

Shared find_shared(const PageRows & rows, const ValueLayout & layout, const SharingRule & rule, bool may_have_direction);

// Adds to mean and direction what brings the sum of what is missed, and the sum of it by `along`, to 0. missed, missed_along: these
// sums over all rows, by their shares.
void refit(const PageRows & rows, const float * missed, const float * missed_along, Shared & shared);

} // namespace vidkv
