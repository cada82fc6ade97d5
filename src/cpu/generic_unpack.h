// Unpacking, for any instruction set: included inside the anonymous namespace of kernels_<isa>.cpp, which has defined vectors of
// bytes. A type B of them takes B::span bytes from each of B::quads neighbouring quads.

// What bytes that are unpacked chunk by chunk need: chunks follow one another, the last one ends with the plane.
template <class B> INLINE int chunk_at(int at, int bytes) { return at + B::span <= bytes ? at : bytes - B::span; }

struct UnpackJob {
    const uint8_t * packed;
    int rows, quad; // quad: bytes from quad to quad
    uint8_t * levels;
    int stride; // bytes from quad to quad
    int quads;  // left

    INLINE void advance(int n) {
        packed += n * quad;
        levels += n * stride;
        quads -= n;
    }
};

template <class B, int Bits, int... Field>
INLINE void store_fields(const UnpackJob & job, int bytes, int x, typename B::V v, std::integer_sequence<int, Field...>) {
    (B::store(job.levels + Field * bytes + x, job.stride, B::template field<Field * Bits, Bits>(v)), ...);
}

// One plane of plain numbers.
template <class B, int Bits> void unpack_plain(UnpackJob job) {
    const int bytes = job.rows * Bits / 2;
    for (; job.quads >= B::quads; job.advance(B::quads)) {
        for (int at = 0; at < bytes; at += B::span) {
            const int x = chunk_at<B>(at, bytes);
            store_fields<B, Bits>(job, bytes, x, B::load(job.packed + x, job.quad), std::make_integer_sequence<int, 8 / Bits>());
        }
    }
}

template <class B, int Bits, int... Field>
INLINE void store_joined(const UnpackJob & job, int bytes, int x, typename B::V low, std::integer_sequence<int, Field...>) {
    constexpr int half = 4 / Bits; // low planes in a field of the high plane
    (B::store(job.levels + Field * bytes + x, job.stride,
              B::template join<Bits>(B::template field<Field / half * 4, 4>(B::load(job.packed + Field % half * bytes + x, job.quad)),
                                     B::template field<Field * Bits, Bits>(low))),
     ...);
}

// A plane of 4 high bits, then one of 1 or 2 low bits.
template <class B, int Bits> void unpack_joined(UnpackJob job) {
    const int bytes = job.rows * Bits / 2;
    for (; job.quads >= B::quads; job.advance(B::quads)) {
        for (int at = 0; at < bytes; at += B::span) {
            const int x = chunk_at<B>(at, bytes);
            const typename B::V low = B::load(job.packed + 2 * job.rows + x, job.quad);
            store_joined<B, Bits>(job, bytes, x, low, std::make_integer_sequence<int, 8 / Bits>());
        }
    }
}

// The low and the high half of a state are windows of four bits onto the ring; the compiler sees where steps share them.
template <class B, int Bit> INLINE typename B::V window(const typename B::V * plane) {
    return B::template window<Bit % 8>(plane[Bit / 8], plane[Bit % 8 > 4 ? Bit / 8 + 1 : Bit / 8]);
}

// Vector Index of the levels: step Index / Samples, sample Index % Samples.
template <class B, int Bits, int Samples, int Index>
INLINE typename B::V levels_at(const typename B::V * plane, const typename B::Levels & levels) {
    constexpr int bit = Index / Samples * Bits;
    return B::pick(levels.values[Index % Samples], levels.index(window<B, bit>(plane), window<B, bit + 4>(plane)));
}

// Four vectors that follow each other in the levels, `bytes` apart: whole stores where B takes several quads.
template <class B> INLINE void store_4(uint8_t * p, int bytes, int stride, const typename B::V (&v)[4]) {
    if constexpr (B::quads > 1) {
        B::store_neighbours(p, stride, v); // bytes == span
    } else {
        unroll<4>([&](auto i) ALWAYS_INLINE { B::store(p + i * bytes, stride, v[i]); });
    }
}

template <class B, int Bits, int Samples, int First>
INLINE void store_steps(const UnpackJob & job, int bytes, int x, const typename B::V * plane, const typename B::Levels & levels) {
    typename B::V v[4];
    unroll<4>([&](auto i) ALWAYS_INLINE { v[i] = levels_at<B, Bits, Samples, First + i>(plane, levels); });
    store_4<B>(job.levels + First * bytes + x, bytes, job.stride, v);
}

// Trellis codes: Planes planes of a ring of bytes; every step takes Bits bits and gives Samples rows.
template <class B, int Planes, int Bits, int Samples> void unpack_ring(UnpackJob job, const typename B::Levels & tables) {
    constexpr int rows_a_byte = Samples * 8 * Planes / Bits;
    const int bytes = (job.rows + rows_a_byte - 1) / rows_a_byte * 4; // of a plane
    const typename B::Levels levels = tables;
    for (; job.quads >= B::quads; job.advance(B::quads)) {
        for (int at = 0; at < bytes; at += B::span) {
            const int x = chunk_at<B>(at, bytes);
            typename B::V plane[Planes + 1];
            for (int p = 0; p < Planes; ++p) plane[p] = B::load(job.packed + p * bytes + x, job.quad);
            plane[Planes] = x + B::span < bytes ? B::load(job.packed + x + 4, job.quad)
                                                : B::following(plane[0], B::load(job.packed, job.quad));
            unroll<2 * Planes * Samples / Bits>(
                [&](auto group) ALWAYS_INLINE { store_steps<B, Bits, Samples, 4 * group>(job, bytes, x, plane, levels); });
        }
    }
}

template <class B> void unpack_all(QuadCode code, const UnpackJob & job, const typename B::Levels & levels) {
    switch (code) {
    case QuadCode::uniform1: return unpack_plain<B, 1>(job);
    case QuadCode::uniform2: return unpack_plain<B, 2>(job);
    case QuadCode::uniform4: return unpack_plain<B, 4>(job);
    case QuadCode::uniform5: return unpack_joined<B, 1>(job);
    case QuadCode::uniform6: return unpack_joined<B, 2>(job);
    case QuadCode::trellis1: return unpack_ring<B, 1, 1, 1>(job, levels);
    case QuadCode::trellis1_5: return unpack_ring<B, 3, 3, 2>(job, levels);
    case QuadCode::trellis2: return unpack_ring<B, 1, 2, 1>(job, levels);
    case QuadCode::trellis3: return unpack_ring<B, 3, 3, 1>(job, levels);
    case QuadCode::none: return;
    }
}

// Bytes of the smallest plane.
int plane_bytes(QuadCode code, int rows) {
    switch (code) {
    case QuadCode::uniform4: return rows * 2;
    case QuadCode::uniform2:
    case QuadCode::uniform6:
    case QuadCode::trellis2: return rows;
    case QuadCode::trellis1_5: return (rows + 15) / 16 * 4;
    default: return rows / 2;
    }
}

// quad_bytes, cheaply.
int quad_size(QuadCode code, int rows) {
    const int plane = plane_bytes(code, rows);
    switch (code) {
    case QuadCode::trellis1_5:
    case QuadCode::trellis3: return 3 * plane;
    case QuadCode::uniform5: return 5 * plane; // 4 bits and 1
    case QuadCode::uniform6: return 3 * plane; // 4 bits and 2
    default: return plane;
    }
}

// As many quads as B can take; the rest is for narrower vectors, and in the end for the specification.
template <class B, class... Narrower> void unpack_rest(QuadCode code, UnpackJob job) {
    const int plane = plane_bytes(code, job.rows);
    if (B::quads == 1 ? plane >= B::span : plane == B::span) {
        const TrellisTable & table = trellis_table(code); // any, if it is not a trellis code
        const auto levels = B::Levels::of(table);
        unpack_all<B>(code, job, levels);
        job.advance(job.quads / B::quads * B::quads);
    }
    if constexpr (sizeof...(Narrower) > 0) {
        if (job.quads > 0) unpack_rest<Narrower...>(code, job);
    } else {
        for (; job.quads > 0; job.advance(1)) unpack_quad(code, job.packed, job.rows, job.levels);
    }
}

// B: from the widest to the narrowest vectors.
template <class... B> void unpack_quads_by(QuadCode code, const uint8_t * packed, int rows, int quads, int stride, uint8_t * levels) {
    if (code == QuadCode::none) return;
    unpack_rest<B...>(code, {packed, rows, quad_size(code, rows), levels, stride, quads});
}

template <class B> void unpack_ternary_by(const uint8_t * packed, int bytes, uint8_t * levels) {
    if (bytes < B::span) {
        for (int j = 0; j < bytes; ++j) {
            uint8_t digits[5];
            unpack_trits(packed[j], digits);
            for (int d = 0; d < 5; ++d) levels[d * bytes + j] = digits[d];
        }
        return;
    }
    for (int at = 0; at < bytes; at += B::span) {
        const int x = chunk_at<B>(at, bytes);
        typename B::V fraction = B::load(packed + x, 0);
        for (int d = 0; d < 5; ++d) {
            B::store(levels + d * bytes + x, 0, B::trit(fraction));
            fraction = B::times_3(fraction);
        }
    }
}
