// Products that unpack as they multiply: included inside the anonymous namespace of kernels_avx512.cpp. The dot products leave execution
// ports idle that unpacking can use, and no level passes through memory. It pays while one pass over the codes serves all rows. Written
// for quads of 128 rows (keys, values of head_dim 128), two vectors of 16 rows a pass, and of 64 rows (values of head_dim 64), all four.

constexpr int decoded_rows = 128; // of a quad
constexpr int passes = decoded_rows / (2 * product_lanes);

// 8 bits from bit Shift of a on; next: the bytes that follow those of a.
template <int Shift> INLINE I state_of(I a, I next) {
    if constexpr (Shift == 0) return a;
    const I keep = _mm512_set1_epi8(static_cast<char>(0xff >> Shift));
    return _mm512_ternarylogic_epi32(_mm512_srli_epi16(a, Shift), _mm512_slli_epi16(next, 8 - Shift), keep, 0xe4); // keep ? a : next
}

INLINE I load_bytes(const uint8_t * p) { return _mm512_loadu_si512(p); }
INLINE I following(I a, I first) { return _mm512_alignr_epi32(first, a, 1); }
template <int Shift, int Bits> INLINE I field_of(I x) {
    return _mm512_and_si512(Shift == 0 ? x : _mm512_srli_epi16(x, Shift), _mm512_set1_epi8((1 << Bits) - 1));
}

// Levels of states: one sample a step.
struct StateLevels {
    I mix, values;
    explicit StateLevels(QuadCode code)
        : mix(repeated(trellis_table(code).mix.data())), values(repeated(trellis_table(code).values[0].data())) {}
    // A permutation of 64 bytes looks at 6 bits of an index: with the table four times over, what is above bit 3 does not matter.
    static INLINE I repeated(const uint8_t * table) { return _mm512_broadcast_i32x4(load_16(table)); }
    INLINE I of(I state) const {
        const I mixed = _mm512_permutexvar_epi8(_mm512_srli_epi16(state, 4), mix);
        return _mm512_permutexvar_epi8(_mm512_xor_si512(state, mixed), values);
    }
};

// Decoder<Code>::pass<P>: levels of rows 32 P to 32 P + 31 of the quad at `packed`.
template <QuadCode Code> struct Decoder;

template <> struct Decoder<QuadCode::uniform1> {
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        const I x = load_bytes(packed);
        u[0] = field_of<2 * P, 1>(x);
        u[1] = field_of<2 * P + 1, 1>(x);
    }
};
template <> struct Decoder<QuadCode::uniform2> {
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        unroll<2>([&](auto i) ALWAYS_INLINE { u[i] = field_of<2 * P, 2>(load_bytes(packed + 64 * i)); });
    }
};
template <> struct Decoder<QuadCode::uniform4> {
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        unroll<2>([&](auto i) ALWAYS_INLINE { u[i] = field_of<P / 2 * 4, 4>(load_bytes(packed + 128 * (P % 2) + 64 * i)); });
    }
};
template <> struct Decoder<QuadCode::uniform5> {
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        const I low = load_bytes(packed + 256);
        unroll<2>([&](auto i) ALWAYS_INLINE {
            const I high = field_of<P / 2 * 4, 4>(load_bytes(packed + 128 * (P % 2) + 64 * i));
            u[i] = _mm512_or_si512(_mm512_slli_epi16(high, 1), field_of<2 * P + i, 1>(low));
        });
    }
};
template <> struct Decoder<QuadCode::uniform6> {
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        unroll<2>([&](auto i) ALWAYS_INLINE {
            const I high = field_of<P / 2 * 4, 4>(load_bytes(packed + 128 * (P % 2) + 64 * i)), low = load_bytes(packed + 256 + 64 * i);
            u[i] = _mm512_or_si512(_mm512_slli_epi16(high, 2), field_of<2 * P, 2>(low));
        });
    }
};
template <> struct Decoder<QuadCode::trellis1> {
    StateLevels levels{QuadCode::trellis1};
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        const I a = load_bytes(packed), next = following(a, a);
        u[0] = levels.of(state_of<2 * P>(a, next));
        u[1] = levels.of(state_of<2 * P + 1>(a, next));
    }
};
template <> struct Decoder<QuadCode::trellis2> {
    StateLevels levels{QuadCode::trellis2};
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        const I a = load_bytes(packed), b = load_bytes(packed + 64);
        u[0] = levels.of(state_of<2 * P>(a, following(a, b)));
        u[1] = levels.of(state_of<2 * P>(b, following(b, a)));
    }
};
template <> struct Decoder<QuadCode::trellis3> {
    StateLevels levels{QuadCode::trellis3};
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        unroll<2>([&](auto i) ALWAYS_INLINE {
            constexpr int bit = 3 * (2 * P + i), plane = bit / 8;
            const I a = load_bytes(packed + 64 * plane);
            I next = a; // not looked at where the state lies in one byte
            if constexpr (bit % 8 > 0) next = plane < 2 ? load_bytes(packed + 64 * (plane + 1)) : first_plane_on(packed);
            u[i] = levels.of(state_of<bit % 8>(a, next));
        });
    }
    static INLINE I first_plane_on(const uint8_t * packed) {
        const I first = load_bytes(packed);
        return following(first, first);
    }
};
// Two samples a step: a state of 32 bytes gives 8 rows of each, side by side.
template <> struct Decoder<QuadCode::trellis1_5> {
    __m256i mix;
    I values; // of sample 0 in the lower half, of sample 1 in the upper
    Decoder() {
        const TrellisTable & table = trellis_table(QuadCode::trellis1_5);
        mix = _mm256_broadcastsi128_si256(load_16(table.mix.data()));
        values = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_broadcastsi128_si256(load_16(table.values[0].data()))),
                                    _mm256_broadcastsi128_si256(load_16(table.values[1].data())), 1);
    }
    template <int P> INLINE void pass(const uint8_t * packed, I (&u)[2]) const {
        unroll<2>([&](auto i) ALWAYS_INLINE {
            constexpr int bit = 3 * (2 * P + i), plane = bit / 8, shift = bit % 8;
            __m256i state = load_plane(packed, plane);
            if constexpr (shift > 0) {
                const __m256i first = load_plane(packed, 0);
                const __m256i next = plane < 2 ? load_plane(packed, plane + 1)
                                               : _mm256_permutevar8x32_epi32(first, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
                state = _mm256_ternarylogic_epi32(_mm256_srli_epi16(state, shift), _mm256_slli_epi16(next, 8 - shift),
                                                  _mm256_set1_epi8(static_cast<char>(0xff >> shift)), 0xe4);
            }
            const __m256i mixed = _mm256_permutexvar_epi8(_mm256_srli_epi16(state, 4), mix);
            const __m256i index = _mm256_ternarylogic_epi32(state, _mm256_set1_epi8(15), mixed, 0x6a); // (state & 15) ^ mixed
            u[i] = _mm512_shuffle_epi8(values, _mm512_broadcast_i64x4(index));
        });
    }
    static INLINE __m256i load_plane(const uint8_t * packed, int plane) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(packed + 32 * plane));
    }
};

// Decoder64<Code>::all: the levels of a quad of 64 rows.
template <QuadCode Code> struct Decoder64;

INLINE I load_32(const uint8_t * p) { return _mm512_zextsi256_si512(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p))); }

template <> struct Decoder64<QuadCode::uniform2> {
    INLINE void all(const uint8_t * packed, I (&u)[4]) const {
        const I x = load_bytes(packed);
        unroll<4>([&](auto i) ALWAYS_INLINE { u[i] = field_of<2 * i, 2>(x); });
    }
};
template <> struct Decoder64<QuadCode::trellis2> {
    StateLevels levels{QuadCode::trellis2};
    INLINE void all(const uint8_t * packed, I (&u)[4]) const {
        const I a = load_bytes(packed), next = following(a, a);
        unroll<4>([&](auto i) ALWAYS_INLINE { u[i] = levels.of(state_of<2 * i>(a, next)); });
    }
};
// A ring of 32 bytes: vector i is step 2 i in the lower half, step 2 i + 1 in the upper.
template <> struct Decoder64<QuadCode::trellis1> {
    StateLevels levels{QuadCode::trellis1};
    INLINE void all(const uint8_t * packed, I (&u)[4]) const {
        const I ring = load_32(packed), a = _mm512_shuffle_i64x2(ring, ring, 0x44);
        const I next = _mm512_permutexvar_epi32(_mm512_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 0), ring);
        unroll<4>([&](auto i) ALWAYS_INLINE {
            u[i] = levels.of(state_by(a, next, shifts(2 * i, 2 * i + 1), shifts(8 - 2 * i, 7 - 2 * i), shifts(0xff >> 2 * i, 0xff >> (2 * i + 1)) ));
        });
    }
    // Words of the lower and of the upper half; of masks both bytes.
    static INLINE I shifts(int low, int high) {
        return _mm512_inserti64x4(_mm512_set1_epi16(static_cast<short>(low)), _mm256_set1_epi16(static_cast<short>(high)), 1);
    }
    static INLINE I state_by(I a, I next, I down, I up, I keep) {
        keep = _mm512_or_si512(keep, _mm512_slli_epi16(keep, 8));
        return _mm512_ternarylogic_epi32(_mm512_srlv_epi16(a, down), _mm512_sllv_epi16(next, up), keep, 0xe4);
    }
};
// Three planes of 32 bytes: vector i is step 2 i in the lower half, step 2 i + 1 in the upper.
template <> struct Decoder64<QuadCode::trellis3> {
    StateLevels levels{QuadCode::trellis3};
    INLINE void all(const uint8_t * packed, I (&u)[4]) const {
        const __m256i first = plane(packed, 0);
        const __m256i planes[4] = {first, plane(packed, 1), plane(packed, 2),
                                   _mm256_permutevar8x32_epi32(first, _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0))};
        unroll<4>([&](auto i) ALWAYS_INLINE {
            const I low = _mm512_castsi256_si512(state<2 * i>(planes));
            u[i] = levels.of(_mm512_inserti64x4(low, state<2 * i + 1>(planes), 1));
        });
    }
    static INLINE __m256i plane(const uint8_t * packed, int p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(packed + 32 * p));
    }
    template <int Step> static INLINE __m256i state(const __m256i * planes) {
        constexpr int bit = 3 * Step, shift = bit % 8;
        if constexpr (shift == 0) return planes[bit / 8];
        else
            return _mm256_ternarylogic_epi32(_mm256_srli_epi16(planes[bit / 8], shift), _mm256_slli_epi16(planes[bit / 8 + 1], 8 - shift),
                                             _mm256_set1_epi8(static_cast<char>(0xff >> shift)), 0xe4);
    }
};
// Three planes of 16 bytes: the states of four steps fill a vector, and each gives 4 rows of two samples.
template <> struct Decoder64<QuadCode::trellis1_5> {
    I mix, values; // of sample 0 in even lanes of 16 bytes, of sample 1 in odd ones
    Decoder64() {
        const TrellisTable & table = trellis_table(QuadCode::trellis1_5);
        mix = _mm512_broadcast_i32x4(load_16(table.mix.data()));
        const __m256i pair = _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(table.values[0].data())), load_16(table.values[1].data()), 1);
        values = _mm512_broadcast_i64x4(pair);
    }
    INLINE void all(const uint8_t * packed, I (&u)[4]) const {
        const I planes = _mm512_maskz_loadu_epi32(0x0fff, packed);
        unroll<2>([&](auto half) ALWAYS_INLINE {
            // Step s begins in plane 3 s / 8; plane 3 is plane 0 four bytes on.
            const I from = half ? _mm512_setr_epi32(4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11, 8, 9, 10, 11)
                                : _mm512_setr_epi32(0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7);
            const I to = half ? _mm512_setr_epi32(8, 9, 10, 11, 8, 9, 10, 11, 1, 2, 3, 0, 1, 2, 3, 0)
                              : _mm512_setr_epi32(4, 5, 6, 7, 4, 5, 6, 7, 4, 5, 6, 7, 8, 9, 10, 11);
            const I down = half ? words(4, 7, 2, 5) : words(0, 3, 6, 1), up = _mm512_sub_epi16(_mm512_set1_epi16(8), down);
            const I keep = half ? bytes(0xff >> 4, 0xff >> 7, 0xff >> 2, 0xff >> 5) : bytes(0xff, 0xff >> 3, 0xff >> 6, 0xff >> 1);
            const I state = _mm512_ternarylogic_epi32(_mm512_srlv_epi16(_mm512_permutexvar_epi32(from, planes), down),
                                                      _mm512_sllv_epi16(_mm512_permutexvar_epi32(to, planes), up), keep, 0xe4);
            const I mixed = _mm512_permutexvar_epi8(_mm512_srli_epi16(state, 4), mix);
            const I index = _mm512_ternarylogic_epi32(state, _mm512_set1_epi8(15), mixed, 0x6a); // (state & 15) ^ mixed
            u[2 * half] = _mm512_shuffle_epi8(values, _mm512_shuffle_i32x4(index, index, 0x50)); // lanes 0 0 1 1
            u[2 * half + 1] = _mm512_shuffle_epi8(values, _mm512_shuffle_i32x4(index, index, 0xfa)); // lanes 2 2 3 3
        });
    }
    static INLINE I words(int a, int b, int c, int d) {
        const auto two = [](int x) { return x * 0x10001; };
        return _mm512_setr_epi32(two(a), two(a), two(a), two(a), two(b), two(b), two(b), two(b), two(c), two(c), two(c), two(c), two(d), two(d),
                                 two(d), two(d));
    }
    static INLINE I bytes(int a, int b, int c, int d) { return words(a * 0x101, b * 0x101, c * 0x101, d * 0x101); }
};

template <int R, QuadCode Code>
INLINE void add_decoded_64(Sum (&sum)[R][4], const LevelRun & run, const int8_t * factors) {
    const Decoder64<Code> decoder;
    const int bytes = quad_size(Code, 64);
    const uint8_t * packed = run.packed;
    const int8_t * q = factors + 4 * run.first;
    for (int i = 0; i < run.quads; ++i, packed += bytes, q += 4) {
        I u[4];
        decoder.all(packed, u);
        unroll<R>([&](auto r) ALWAYS_INLINE {
            const LevelVector x = splat_factors(q + r * operand_bytes);
            unroll<4>([&](auto j) ALWAYS_INLINE { add_dot4(sum[r][j], u[j], x); });
        });
    }
}

// Values of head_dim 64: R rows, which with four vectors each must fit into registers.
template <int R> void add_all_64(const ValueProduct & p, int row) {
    const int8_t * factors = p.weights + row * operand_bytes;
    for (const ValueGroup * g = p.group; g != p.group + p.groups; ++g) {
        Sum sum[R][4];
        clear_sums(sum);
        for (const LevelRun * run = g->runs; run != g->runs + g->run_count; ++run) {
            switch (run->code) {
            case QuadCode::uniform2: add_decoded_64<R, QuadCode::uniform2>(sum, *run, factors); break;
            case QuadCode::trellis1: add_decoded_64<R, QuadCode::trellis1>(sum, *run, factors); break;
            case QuadCode::trellis1_5: add_decoded_64<R, QuadCode::trellis1_5>(sum, *run, factors); break;
            case QuadCode::trellis2: add_decoded_64<R, QuadCode::trellis2>(sum, *run, factors); break;
            case QuadCode::trellis3: add_decoded_64<R, QuadCode::trellis3>(sum, *run, factors); break;
            default: break; // no code of values
            }
        }
        add_sums(p, *g, row, 0, sum);
    }
}
template <int R> void add_64_up_to(const ValueProduct & p, int row, int rows) {
    if (rows == R) return add_all_64<R>(p, row);
    if constexpr (R > 1) add_64_up_to<R - 1>(p, row, rows);
}

template <int R, int P, QuadCode Code>
INLINE void add_decoded_quads(Sum (&sum)[R][2], const uint8_t * packed, int first, int quads, const int8_t * factors) {
    const Decoder<Code> decoder;
    const int bytes = quad_size(Code, decoded_rows);
    for (int quad = first, end = first + quads; quad < end;) {
        const int left = slab_quads - quad % slab_quads, n = end - quad < left ? end - quad : left;
        const int8_t * q = factors_of(factors, quad);
        for (int i = 0; i < n; ++i, packed += bytes, q += 4) {
            I u[2];
            decoder.template pass<P>(packed, u);
            unroll<R>([&](auto r) ALWAYS_INLINE {
                const LevelVector x = splat_factors(q + r * operand_bytes);
                unroll<2>([&](auto j) ALWAYS_INLINE { add_dot4(sum[r][j], u[j], x); });
            });
        }
        quad += n;
    }
}

template <int R, int P> INLINE void add_decoded(Sum (&sum)[R][2], const LevelRun & run, const int8_t * factors) {
    switch (run.code) {
    case QuadCode::uniform1: return add_decoded_quads<R, P, QuadCode::uniform1>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::uniform2: return add_decoded_quads<R, P, QuadCode::uniform2>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::uniform4: return add_decoded_quads<R, P, QuadCode::uniform4>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::uniform5: return add_decoded_quads<R, P, QuadCode::uniform5>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::uniform6: return add_decoded_quads<R, P, QuadCode::uniform6>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::trellis1: return add_decoded_quads<R, P, QuadCode::trellis1>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::trellis1_5: return add_decoded_quads<R, P, QuadCode::trellis1_5>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::trellis2: return add_decoded_quads<R, P, QuadCode::trellis2>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::trellis3: return add_decoded_quads<R, P, QuadCode::trellis3>(sum, run.packed, run.first, run.quads, factors);
    case QuadCode::none: return;
    }
}

template <int R, int P> void score_pass(const KeyProduct & p) {
    Sum sum[R][2];
    clear_sums(sum);
    for (const LevelRun * run = p.runs; run != p.runs + p.run_count; ++run) add_decoded<R, P>(sum, *run, p.folded->q);
    store_scores(p, 0, 2 * product_lanes * P, sum);
}

template <int R, int P> void add_pass(const ValueProduct & p) {
    for (const ValueGroup * g = p.group; g != p.group + p.groups; ++g) {
        Sum sum[R][2];
        clear_sums(sum);
        for (const LevelRun * run = g->runs; run != g->runs + g->run_count; ++run) add_decoded<R, P>(sum, *run, p.weights);
        add_sums(p, *g, 0, 2 * product_lanes * P, sum);
    }
}

template <int R> void score_codes_of(const KeyProduct & p) {
    unroll<passes>([&](auto pass) ALWAYS_INLINE {
        const int token = 2 * product_lanes * pass;
        if (token >= p.first_token && token < p.first_token + p.tokens) score_pass<R, pass>(p);
    });
}
template <int R> void add_codes_of(const ValueProduct & p) {
    unroll<passes>([&](auto pass) ALWAYS_INLINE { add_pass<R, pass>(p); });
}

template <int R> void score_codes_up_to(const KeyProduct & p) {
    if (p.rows == R) return score_codes_of<R>(p);
    if constexpr (R > 1) score_codes_up_to<R - 1>(p);
}
template <int R> void add_codes_up_to(const ValueProduct & p) {
    if (p.rows == R) return add_codes_of<R>(p);
    if constexpr (R > 1) add_codes_up_to<R - 1>(p);
}

void score_codes(const KeyProduct & p) { score_codes_up_to<row_block>(p); }
void add_codes(const ValueProduct & p) {
    if (p.channels == decoded_rows) return add_codes_up_to<row_block>(p);
    constexpr int most = 4;
    for (int row = 0; row < p.rows; row += most) add_64_up_to<most>(p, row, p.rows - row < most ? p.rows - row : most);
}
