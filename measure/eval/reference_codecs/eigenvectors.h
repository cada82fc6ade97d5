// Eigenvectors of a symmetric matrix, by Jacobi's rotations.
#pragma once

#include <vector>

namespace vidkv::cli {

struct Eigenvectors {
    std::vector<double> values;
    std::vector<float> vectors; // [i][channel], of length one

    // The part of x along the i-th vector.
    float along(int i, const float * x) const;
    // x: the sum of the vectors, each times its part.
    void sum(const std::vector<float> & parts, float * x) const;
};

// matrix: n by n.
Eigenvectors eigenvectors(std::vector<double> matrix, int n);

} // namespace vidkv::cli
