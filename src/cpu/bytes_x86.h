// Vectors of 16, 32 and 64 bytes on x86: what generic_unpack.h works with. Included inside an anonymous namespace.

INLINE __m128i load_16(const uint8_t * p) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p)); }
INLINE void store_16(uint8_t * p, __m128i v) { _mm_storeu_si128(reinterpret_cast<__m128i *>(p), v); }

// a | (b & mask)
INLINE __m128i or_masked(__m128i a, __m128i b, __m128i mask) { return _mm_or_si128(a, _mm_and_si128(b, mask)); }
INLINE __m256i or_masked(__m256i a, __m256i b, __m256i mask) { return _mm256_or_si256(a, _mm256_and_si256(b, mask)); }
#if defined(VIDKV_BYTES_64)
INLINE __m512i or_masked(__m512i a, __m512i b, __m512i mask) { return _mm512_ternarylogic_epi32(a, b, mask, 0xf8); }
#endif

// x86 shifts 16-bit words, so bits of the neighbour come in and are masked out.
#define VIDKV_BYTE_OPERATIONS(NAME, VECTOR, BITS, SI, BROADCAST)                                                                   \
    struct NAME {                                                                                                                  \
        using V = VECTOR;                                                                                                          \
        static INLINE V splat_byte(int x) { return _mm##BITS##_set1_epi8(static_cast<char>(x)); }                                  \
        static INLINE V both(V a, V b) { return _mm##BITS##_and_##SI(a, b); }                                                      \
        static INLINE V pick(V table, V index) { return _mm##BITS##_shuffle_epi8(table, index); }                                  \
        static INLINE V table_16(const uint8_t * p) { return BROADCAST(load_16(p)); }                                              \
        template <int Shift> static INLINE V down(V v) {                                                                           \
            if constexpr (Shift == 0) return v;                                                                                    \
            else return _mm##BITS##_srli_epi16(v, Shift);                                                                          \
        }                                                                                                                          \
        template <int Shift, int Bits> static INLINE V field(V v) { return both(down<Shift>(v), splat_byte((1 << Bits) - 1)); }    \
        template <int Bits> static INLINE V join(V high, V low) { return _mm##BITS##_or_##SI(_mm##BITS##_slli_epi16(high, Bits), low); }\
        /* Four bits from bit Shift of a on; next: the byte after a. */                                                            \
        template <int Shift> static INLINE V window(V a, V next) {                                                                 \
            if constexpr (Shift <= 4) return field<Shift, 4>(a);                                                                   \
            else return or_masked(field<Shift, 8 - Shift>(a), _mm##BITS##_slli_epi16(next, 8 - Shift), splat_byte(15 & 0xff << (8 - Shift)));\
        }                                                                                                                          \
        static INLINE V trit(V x) {                                                                                                \
            const V y = _mm##BITS##_subs_epu8(x, splat_byte(1));                                                                   \
            return field<6, 2>(_mm##BITS##_avg_epu8(y, _mm##BITS##_avg_epu8(y, splat_byte(0))));                                   \
        }                                                                                                                          \
        static INLINE V times_3(V x) { return _mm##BITS##_add_epi8(x, _mm##BITS##_add_epi8(x, x)); }                               \
        struct Levels {                                                                                                            \
            V mix, values[2];                                                                                                      \
            static INLINE Levels of(const TrellisTable & table) {                                                                  \
                return {table_16(table.mix.data()), {table_16(table.values[0].data()), table_16(table.values[1].data())}};         \
            }                                                                                                                      \
            INLINE V index(V low, V high) const { return _mm##BITS##_xor_##SI(low, pick(mix, high)); }                             \
        };                                                                                                                         \
    };

VIDKV_BYTE_OPERATIONS(Operations16, __m128i, , si128, )
VIDKV_BYTE_OPERATIONS(Operations32, __m256i, 256, si256, _mm256_broadcastsi128_si256)
#if defined(VIDKV_BYTES_64)
VIDKV_BYTE_OPERATIONS(Operations64, __m512i, 512, si512, _mm512_broadcast_i32x4)
#endif

struct Bytes16 : Operations16 {
    static constexpr int quads = 1, span = 16;
    static INLINE V load(const uint8_t * p, int) { return load_16(p); }
    static INLINE void store(uint8_t * p, int, V v) { store_16(p, v); }
    // The four bytes after each of a's; behind the last ones come the first of the ring.
    static INLINE V following(V a, V first) { return _mm_alignr_epi8(first, a, 4); }
};

template <int Quads> struct Bytes32 : Operations32 {
    static constexpr int quads = Quads, span = 32 / Quads;

    static INLINE V load(const uint8_t * p, int quad) {
        if constexpr (Quads == 1) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
        else return _mm256_inserti128_si256(_mm256_castsi128_si256(load_16(p)), load_16(p + quad), 1);
    }
    static INLINE void store(uint8_t * p, int stride, V v) {
        if constexpr (Quads == 1) {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(p), v);
        } else {
            store_16(p, _mm256_castsi256_si128(v));
            store_16(p + stride, _mm256_extracti128_si256(v, 1));
        }
    }
    static INLINE void store_neighbours(uint8_t * p, int stride, const V (&v)[4]) {
        unroll<2>([&](auto i) ALWAYS_INLINE {
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + 32 * i), _mm256_permute2x128_si256(v[2 * i], v[2 * i + 1], 0x20));
            _mm256_storeu_si256(reinterpret_cast<__m256i *>(p + stride + 32 * i), _mm256_permute2x128_si256(v[2 * i], v[2 * i + 1], 0x31));
        });
    }
    static INLINE V following(V a, V first) {
        if constexpr (Quads == 1) return _mm256_permutevar8x32_epi32(_mm256_blend_epi32(a, first, 1), _mm256_setr_epi32(1, 2, 3, 4, 5, 6, 7, 0));
        else return _mm256_shuffle_epi32(a, 0x39);
    }
};
