// Products that unpack as they multiply, two vectors of 16 x 4 levels of a quad at a time: included inside the anonymous namespace of
// kernels_avx512.cpp. The dot products leave execution ports idle that unpacking can use, and no level passes through memory. It pays
// while one pass over the codes serves all rows, and is written for quads of 128 rows: keys, and values of head_dim 128.

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
void add_codes(const ValueProduct & p) { add_codes_up_to<row_block>(p); }
