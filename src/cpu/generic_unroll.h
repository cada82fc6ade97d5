// Loops whose indices are constants from the start, so that arrays indexed by them stay in registers: included inside the anonymous
// namespace of kernels_<isa>.cpp, so that bodies and loops are compiled for the same instruction set.

#define ALWAYS_INLINE __attribute__((always_inline))

// body(std::integral_constant<int, 0>()) to body(std::integral_constant<int, N - 1>()); bodies are ALWAYS_INLINE.
template <int N, class Body> INLINE void unroll(const Body & body) {
    [&]<int... I>(std::integer_sequence<int, I...>) ALWAYS_INLINE { (body(std::integral_constant<int, I>()), ...); }
    (std::make_integer_sequence<int, N>());
}
